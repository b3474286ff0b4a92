//! Homes: whose they are, what is copied, and what a hand edit does.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use hermes_tests::system::{Up, until};

use super::{SOON, add_with_soul, agent_of, personas, with_model};

#[track_caller]
fn home(up: &Up, agent: &str) -> PathBuf {
    PathBuf::from(agent_of(up, agent)["home"].as_str().unwrap())
}

#[track_caller]
fn ask(up: &Up, agent: &str, chat: &str) -> String {
    let args = ["send", "--platform", "irc", "--chat-id", chat, "--agent", agent, "--text", "who?", "--wait"];
    up.json(args)["reply"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_soul_is_uploaded_edited_by_hand_and_copied_with_memories_and_skills_but_without_sessions() {
    let model = personas().await;
    let up = with_model(&model);
    let added = add_with_soul(&up, "anna", "I am Anna.");
    assert_eq!(added["soul_preview"], "I am Anna.");
    assert!(ask(&up, "anna", "1").starts_with("I am Anna. | "));
    let anna = home(&up, "anna");
    assert_eq!(fs::read_to_string(anna.join("SOUL.md")).unwrap(), "I am Anna.");
    assert_eq!(fs::metadata(&anna).unwrap().permissions().mode() & 0o777, 0o700);

    // By hand, in the home.
    fs::write(anna.join("SOUL.md"), "I am Anna the second.").unwrap();
    fs::create_dir_all(anna.join("skills/maps")).unwrap();
    fs::write(anna.join("skills/maps/SKILL.md"), "---\nname: maps\ndescription: Reads old maps.\n---\nLook north.\n")
        .unwrap();
    fs::write(anna.join("memories/MEMORY.md"), "The harbour is east.").unwrap();
    fs::write(anna.join("workspace/scratch.txt"), "mine").unwrap();
    until(SOON, "a new session sees the edit", || {
        ask(&up, "anna", &uuid::Uuid::new_v4().to_string()).starts_with("I am Anna the second. | ").then_some(())
    });
    assert_eq!(agent_of(&up, "anna")["soul_preview"], "I am Anna the second.");

    // Uploaded over the edit.
    let soul = up.file("third.md", "I am Anna the third.");
    up.ctl(["agent", "update", "anna", "--soul-file", soul.to_str().unwrap()]).ok();
    assert!(ask(&up, "anna", "2").starts_with("I am Anna the third. | "));
    assert_eq!(fs::read_to_string(anna.join("SOUL.md")).unwrap(), "I am Anna the third.");

    // Copied.
    let copy = up.json(["agent", "add", "clone", "--from-profile", "anna", "--model", "mock/mock-2"]);
    assert_eq!(copy["spec"]["model"], "mock/mock-2");
    assert!(ask(&up, "clone", "1").starts_with("I am Anna the third. | "));
    let asked = model.last().json();
    assert_eq!((&asked["model"], asked["messages"].as_array().unwrap().len()), (&"mock-2".into(), 2), "{asked}");
    let prompt = asked["messages"][0]["content"].as_str().unwrap();
    assert!(prompt.contains("Reads old maps.") && prompt.contains("The harbour is east."), "{prompt}");
    let clone = home(&up, "clone");
    assert_ne!(clone, anna);
    assert_eq!(fs::read_to_string(clone.join("memories/MEMORY.md")).unwrap(), "The harbour is east.");
    assert!(clone.join("skills/maps/SKILL.md").is_file());
    assert!(!clone.join("workspace/scratch.txt").try_exists().unwrap());

    // From then on each is its own.
    fs::write(clone.join("SOUL.md"), "I am the clone.").unwrap();
    until(SOON, "the clone sees its edit", || {
        ask(&up, "clone", &uuid::Uuid::new_v4().to_string()).starts_with("I am the clone. | ").then_some(())
    });
    assert!(ask(&up, "anna", "3").starts_with("I am Anna the third. | "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_belongs_to_one_agent() {
    let model = personas().await;
    let up = with_model(&model);
    let place = up.root().join("home/anna");
    let dir = place.to_str().unwrap();
    up.ctl(["agent", "add", "anna", "--home-dir", dir]).ok();
    let before = super::export(&up);
    let error = up.ctl(["agent", "add", "boris", "--home-dir", dir]).refused(1);
    assert!(error.contains("anna") && error.contains("boris"), "{error}");
    // The same place by another name.
    fs::create_dir_all(&place).unwrap();
    std::os::unix::fs::symlink(&place, up.root().join("home/link")).unwrap();
    let link = up.root().join("home/link");
    let error = up.ctl(["agent", "add", "boris", "--home-dir", link.to_str().unwrap()]).refused(1);
    assert!(error.contains("anna"), "{error}");
    assert_eq!(super::export(&up), before);

    // Inside is allowed, and what is copied is never the place.
    up.ctl(["agent", "add", "boris", "--home-dir", &format!("{dir}/profiles/boris")]).ok();
    up.ctl(["agent", "add", "clone", "--from-agent", "anna"]).ok();
    assert_eq!(home(&up, "clone"), up.data().join("homes/clone"));
    for agent in ["anna", "boris", "clone"] {
        ask(&up, agent, "1");
    }
    let workers = up.json(["worker", "list"]);
    let mut homes: Vec<_> = workers.as_array().unwrap().iter().map(|worker| worker["home"].to_string()).collect();
    homes.sort();
    homes.dedup();
    assert_eq!(homes.len(), workers.as_array().unwrap().len(), "{workers}");
}

/// An existing Hermes home as somebody brings it: of it the files that a prompt is made of, and what must not get into one.
#[tokio::test(flavor = "multi_thread")]
async fn an_existing_hermes_home_is_used_as_it_is() {
    let model = personas().await;
    let up = with_model(&model);
    let place = up.root().join("home/iris");
    copied(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("hermes-home"), &place);
    fs::write(place.join(".env"), "OPENROUTER_API_KEY=sk-or-canary").unwrap();
    up.ctl(["agent", "add", "iris", "--home-dir", place.to_str().unwrap()]).ok();
    ask(&up, "iris", "1");
    let asked = model.last().json();
    let prompt = asked["messages"][0]["content"].as_str().unwrap();
    insta::with_settings!({filters => vec![(r"Conversation started: \w+, [0-9-]+", "Conversation started: [DATE]")]}, {
        insta::assert_snapshot!("prompt_of_an_existing_home", prompt);
    });
    // Nothing in it was changed by being used.
    for name in ["SOUL.md", "memories/MEMORY.md", "skills/weekly-report/SKILL.md", "skills/.usage.json"] {
        let before = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("hermes-home").join(name);
        assert_eq!(fs::read(place.join(name)).unwrap(), fs::read(before).unwrap(), "{name}");
    }
}

fn copied(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copied(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
