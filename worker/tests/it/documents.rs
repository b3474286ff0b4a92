use hermes_proto::v1::*;

use crate::fake::{Attached, Fake, assignment, says, turn};
use crate::{Worker, attached};

/// Runs one turn of a new session at that home version and answers its system prompt.
async fn prompt_of(fake: &mut Fake, link: &mut Attached, session: u64, home_version: u64) -> String {
    let mut assignment = assignment(turn(session, 1, 1), &says("hi"));
    assignment.home_version = home_version;
    link.assign(assignment).await;
    let call = fake.call().await;
    let system = call.messages[0].1.clone();
    call.done().await;
    let completed = link.completed().await;
    link.acknowledge(&completed).await;
    system
}

#[tokio::test]
async fn documents_of_the_control_plane_are_written_before_the_first_turn() {
    let mut fake = Fake::start().await;
    fake.state.put("SOUL.md", Some("You are Nova."));
    fake.state.put("skills/ops/deploy/SKILL.md", Some("---\nname: deploy\ndescription: how\n---\nx"));
    let version = fake.state.put("memories/MEMORY.md", Some("Old."));
    let worker = Worker::start(&fake);
    let mut link = fake.attached().await;
    link.welcome().await;
    let system = prompt_of(&mut fake, &mut link, 1, version).await;
    assert!(system.starts_with("You are Nova.") && system.contains("    - deploy: how") && system.contains("\nOld."));
    assert_eq!(worker.read("SOUL.md"), "You are Nova.");
    assert!(!worker.has("SOUL.md.conflict-1"), "the starter is nobody's edit");

    // A newer version and a deletion come with the next assignment that names them; nothing is fetched otherwise.
    fake.state.put("memories/MEMORY.md", None);
    let version = fake.state.put("SOUL.md", Some("You are Vega."));
    let system = prompt_of(&mut fake, &mut link, 1, version).await;
    assert!(system.starts_with("You are Vega.") && !system.contains("Old."));
    assert!(!worker.has("memories/MEMORY.md"));
    let fetches = *fake.state.home_fetches.lock().unwrap();
    prompt_of(&mut fake, &mut link, 2, version).await;
    assert_eq!(*fake.state.home_fetches.lock().unwrap(), fetches);
}

#[tokio::test]
async fn a_hand_edit_becomes_the_next_version_and_reaches_the_next_turn() {
    let (mut fake, worker, mut link) = attached().await;
    let version = fake.state.put("SOUL.md", Some("You are Nova."));
    prompt_of(&mut fake, &mut link, 1, version).await;
    worker.write("SOUL.md", "You are Iris.");
    worker.write("skills/a/SKILL.md", "---\nname: a\ndescription: b\n---\nx");
    worker.write("workspace/scratch.md", "stays");
    let mut system = String::new();
    for session in 2.. {
        system = prompt_of(&mut fake, &mut link, session, version).await;
        // Files are looked at every 200 ms at most, so the first turns may still be on the old text.
        if system.starts_with("You are Iris.") || session > 2_000 {
            break;
        }
    }
    assert!(system.starts_with("You are Iris.") && system.contains("- a: b"), "{system}");
    assert_eq!(fake.state.document("SOUL.md"), Some((2, Some("You are Iris.".into()))));
    assert_eq!(fake.state.documents.lock().unwrap().len(), 2, "only documents travel");
    assert_eq!(*fake.state.home_version.lock().unwrap(), 3);
}

#[tokio::test]
async fn edits_while_no_worker_ran_are_recognised_and_a_conflict_keeps_both_texts() {
    let mut fake = Fake::start().await;
    *fake.state.joins_left.lock().unwrap() = 2;
    fake.state.put("SOUL.md", Some("one"));
    let version = fake.state.put("memories/USER.md", Some("u"));
    let mut worker = Worker::start(&fake);
    let mut link = fake.attached().await;
    link.welcome().await;
    prompt_of(&mut fake, &mut link, 1, version).await;
    worker.stop.cancel();
    assert!(matches!(link.next().await, worker_message::Message::GoingAway(_)));
    assert!(link.ended().await);
    drop(link);
    worker.ended().await.expect("drained");

    worker.write("SOUL.md", "mine");
    std::fs::remove_file(worker.home().join("memories/USER.md")).unwrap();
    let version = fake.state.put("SOUL.md", Some("theirs"));
    let worker = worker.serve(&fake);
    let mut link = fake.attached().await;
    link.welcome().await;
    let system = prompt_of(&mut fake, &mut link, 2, version).await;
    assert!(system.starts_with("theirs"));
    assert_eq!(worker.read("SOUL.md.conflict-1"), "mine");
    assert_eq!(fake.state.document("SOUL.md"), Some((2, Some("theirs".into()))));
    assert_eq!(fake.state.document("memories/USER.md"), Some((2, None)));
}

#[tokio::test]
async fn a_push_that_comes_second_loses_and_is_kept_beside() {
    let (mut fake, worker, mut link) = attached().await;
    let version = fake.state.put("SOUL.md", Some("one"));
    prompt_of(&mut fake, &mut link, 1, version).await;
    // Another worker was faster, and this one has not heard of it: its assignment names the old home version.
    fake.state.put("SOUL.md", Some("theirs"));
    worker.write("SOUL.md", "mine");
    for session in 2.. {
        let system = prompt_of(&mut fake, &mut link, session, version).await;
        assert!(session < 2_000 && !system.starts_with("mine"));
        if system.starts_with("theirs") {
            break;
        }
    }
    assert_eq!((worker.read("SOUL.md"), worker.read("SOUL.md.conflict-1")), ("theirs".into(), "mine".into()));
    assert_eq!(fake.state.document("SOUL.md"), Some((2, Some("theirs".into()))));
}

#[tokio::test]
async fn a_hostile_control_plane_cannot_write_outside_the_documents() {
    let mut fake = Fake::start().await;
    let worker = Worker::start(&fake);
    let outside = worker.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let mut link = fake.attached().await;
    let absolute = outside.join("SOUL.md").display().to_string();
    for path in
        ["../outside/x", "skills/../../outside/x", "/outside/x", ".env", "workspace/x", "skills/link/x", &absolute]
    {
        fake.state.hostile.lock().unwrap().push((path.to_owned(), b"evil".to_vec()));
    }
    std::os::unix::fs::symlink(&outside, worker.home().join("skills/link")).unwrap();
    link.welcome().await;
    let version = fake.state.put("SOUL.md", Some("You are Nova."));
    let system = prompt_of(&mut fake, &mut link, 1, version).await;
    assert!(system.starts_with("You are Nova."), "the good document arrives all the same");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!worker.has(".env") && !worker.has("workspace/x"));
}

#[tokio::test]
async fn a_home_of_another_agent_is_refused() {
    let fake = Fake::start().await;
    let worker = Worker::new();
    worker.write(".hermes-documents.json", r#"{"agent":"main","home_version":0,"documents":{}}"#);
    let mut worker = worker.serve(&fake);
    let error = format!("{:#}", worker.ended().await.expect_err("another agent's home"));
    assert!(error.contains("belongs to agent main; give coder another --home"), "{error}");
}

#[tokio::test]
async fn a_document_deleted_there_and_written_again_here_is_its_next_version() {
    let (mut fake, worker, mut link) = attached().await;
    fake.state.put("memories/MEMORY.md", Some("old"));
    let version = fake.state.put("memories/MEMORY.md", None);
    prompt_of(&mut fake, &mut link, 1, version).await;
    worker.write("memories/MEMORY.md", "new");
    for session in 2.. {
        // Every assignment names a newer home, so everything known is compared again, too.
        let version = fake.state.put("memories/OTHER.md", Some("x"));
        let system = prompt_of(&mut fake, &mut link, session, version).await;
        assert!(session < 2_000);
        if system.contains("\nnew") {
            break;
        }
    }
    assert_eq!(fake.state.document("memories/MEMORY.md"), Some((3, Some("new".into()))));
    assert!(!worker.has("memories/MEMORY.md.conflict-1"));
}
