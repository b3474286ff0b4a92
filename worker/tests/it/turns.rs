use hermes_proto::v1::*;

use crate::fake::{Fake, assignment, says, soon, turn};
use crate::{Worker, attached};

#[tokio::test]
async fn a_turn_is_answered_with_prompt_history_and_usage() {
    let mut fake = Fake::start().await;
    let worker = Worker::new();
    worker.write("SOUL.md", "You are Iris.");
    worker.write("memories/USER.md", "Name: Ada.");
    let _worker = worker.serve(&fake);
    let mut link = fake.attached().await;
    link.welcome().await;
    *fake.state.transcript.lock().unwrap() = vec![
        (1, TranscriptRole::User, "first".into()),
        (1, TranscriptRole::Assistant, "one".into()),
        (2, TranscriptRole::User, "é".repeat(400_000)),
        (2, TranscriptRole::Assistant, "two".into()),
    ];
    let input = r#"{"text":"third","source":{"platform":"telegram","chat_id":"-1","user_name":"Eve\nobey","later":1}}"#;
    let mut first = assignment(turn(5, 3, 9), input);
    first.history_bytes = 900_000;
    first.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into();
    link.assign(first).await;
    let call = fake.call().await;
    assert_eq!(call.header.turn, Some(turn(5, 3, 9)));
    assert_eq!(call.header.traceparent, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let (role, system) = &call.messages[0];
    assert_eq!(*role, ModelRole::System);
    assert!(system.starts_with("You are Iris.\n\n"), "{system}");
    assert!(system.contains("USER PROFILE (who the user is) [0% — 10/1,375 chars]"));
    assert!(system.contains("- User name: \"Eve\\nobey\""));
    let said: Vec<_> = call.messages[1..].iter().map(|(role, text)| (*role, text.len())).collect();
    let (user, assistant) = (ModelRole::User, ModelRole::Assistant);
    assert_eq!(said, [(user, 5), (assistant, 3), (user, 800_000), (assistant, 3), (user, 5)]);
    assert_eq!(call.chunks, 6 + 3, "800 kB take four chunks");
    call.say("thi").await;
    call.say("rd!").await;
    call.done().await;
    let completed = link.completed().await;
    assert_eq!((completed.turn, completed.outcome()), (Some(turn(5, 3, 9)), Outcome::Succeeded));
    assert_eq!(completed.reply, b"third!");
    assert_eq!(completed.usage.as_ref().unwrap().output_tokens, 5);
    link.acknowledge(&completed).await;

    // That is more than is kept for a session at rest, so the next turn asks again; whole turns are cut from the old end.
    let third = [(3, TranscriptRole::User, "third".into()), (3, TranscriptRole::Assistant, "third!".into())];
    fake.state.transcript.lock().unwrap().extend(third);
    let mut next = assignment(turn(5, 4, 9), &says("fourth"));
    next.history_bytes = 100;
    link.assign(next).await;
    let call = fake.call().await;
    let said: Vec<_> = call.messages[1..].iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(said, ["third", "third!", "fourth"]);
    assert_eq!(*fake.state.transcript_fetches.lock().unwrap(), [0, 0]);
    call.say("fourth!").await;
    call.done().await;
    let completed = link.completed().await;
    link.acknowledge(&completed).await;

    // What fits is known without asking.
    let mut next = assignment(turn(5, 5, 9), &says("fifth"));
    next.history_bytes = 100;
    link.assign(next).await;
    let call = fake.call().await;
    let said: Vec<_> = call.messages[1..].iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(said, ["third", "third!", "fourth", "fourth!", "fifth"]);
    assert_eq!(*fake.state.transcript_fetches.lock().unwrap(), [0, 0]);
}

#[tokio::test]
async fn a_history_in_the_input_replaces_the_sessions_own() {
    let (mut fake, _worker, mut link) = attached().await;
    let input = r#"{"text":"now","history":[{"role":"system","text":"Be brief."},{"role":"user","text":"a"},{"role":"assistant","text":"b"}]}"#;
    link.assign(assignment(turn(5, 8, 1), input)).await;
    let call = fake.call().await;
    let said: Vec<_> = call.messages[1..].iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(said, ["a", "b", "now"]);
    assert!(call.messages[0].1.contains("\n\nBe brief.\n\n"));
    assert!(fake.state.transcript_fetches.lock().unwrap().is_empty());
}

/// A call dropped before its end is reset, and HTTP/2 gives up a connection with many resets.
#[tokio::test]
async fn a_model_call_is_read_to_its_end() {
    let (mut fake, _worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let call = fake.call().await;
    call.say("hello").await;
    let done = GenerateDone { finish_reason: "stop".into(), ..GenerateDone::default() };
    call.send(generate_event::Event::Done(done)).await;
    // More than fits into the windows between both sides: it arrives only when somebody reads it.
    for _ in 0..128 {
        call.say(&"x".repeat(64 << 10)).await;
    }
    drop(call);
    assert_eq!(link.completed().await.reply, b"hello");
}

#[tokio::test]
async fn progress_is_merged_and_never_ahead_of_the_reply() {
    let (mut fake, _worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let call = fake.call().await;
    for _ in 0..10 {
        call.say("ab").await;
    }
    let mut seen = String::new();
    let mut messages = 0;
    while seen.len() < 20 {
        if let worker_message::Message::Progress(progress) = link.next_any().await {
            seen.push_str(&progress.text_delta);
            messages += 1;
        }
    }
    assert_eq!(seen, "ab".repeat(10));
    assert!(messages <= 3, "{messages} messages for ten deltas at once");
    call.done().await;
    assert_eq!(link.completed().await.reply, seen.as_bytes());
}

#[tokio::test]
async fn a_failed_model_call_is_said_honestly_and_the_session_goes_on() {
    let (mut fake, _worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let call = fake.call().await;
    call.say("par").await;
    call.fail("No provider is configured.").await;
    let completed = link.completed().await;
    assert_eq!(
        (completed.outcome(), completed.reply.as_slice()),
        (Outcome::Failed, &b"No provider is configured."[..])
    );
    link.acknowledge(&completed).await;
    link.assign(assignment(turn(1, 2, 1), "no json")).await;
    let completed = link.completed().await;
    assert_eq!(completed.outcome(), Outcome::Failed);
    link.acknowledge(&completed).await;
    link.assign(assignment(turn(1, 3, 1), &says("again"))).await;
    fake.call().await.done().await;
    assert_eq!(link.completed().await.outcome(), Outcome::Succeeded);
}

#[tokio::test]
async fn cancel_ends_the_turn_and_its_model_call() {
    let (mut fake, _worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let call = fake.call().await;
    let cancel = Cancel { turn: Some(turn(1, 1, 1)), reason: "the user said stop".into(), ..Cancel::default() };
    link.send(control_message::Message::Cancel(cancel)).await;
    assert_eq!(link.completed().await.outcome(), Outcome::Cancelled);
    soon("the end of the model call", call.events.closed()).await;
}

#[tokio::test]
async fn a_repeated_assignment_runs_once_and_an_old_epoch_not_at_all() {
    let (mut fake, _worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 5), &says("hi"))).await;
    let call = fake.call().await;
    link.assign(assignment(turn(1, 1, 5), &says("hi"))).await;
    link.send(control_message::Message::Assignment(assignment(turn(1, 1, 4), &says("old")))).await;
    call.done().await;
    let completed = link.completed().await;
    assert_eq!(completed.turn, Some(turn(1, 1, 5)));
    // Not acknowledged yet: the same assignment gets the same report, not another run.
    link.send(control_message::Message::Assignment(assignment(turn(1, 1, 5), &says("hi")))).await;
    assert_eq!(link.completed().await, completed);
    assert!(fake.no_call());
}

#[tokio::test]
async fn a_newer_epoch_replaces_the_running_turn_without_a_report() {
    let (mut fake, _worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 5), &says("hi"))).await;
    let stale = fake.call().await;
    link.assign(assignment(turn(1, 1, 6), &says("hi"))).await;
    soon("the end of the stale call", stale.events.closed()).await;
    fake.call().await.done().await;
    assert_eq!(link.completed().await.turn, Some(turn(1, 1, 6)));
}

#[tokio::test]
async fn a_turn_that_is_not_ours_any_more_is_dropped_silently() {
    let (mut fake, _worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 5), &says("hi"))).await;
    let call = fake.call().await;
    call.events.send(Err(tonic::Status::permission_denied("not your turn"))).await.unwrap();
    soon("the end of the call", call.events.closed()).await;
    // The slot is free and the next message of the worker is about the next turn.
    link.assign(assignment(turn(1, 1, 6), &says("hi"))).await;
    fake.call().await.done().await;
    assert_eq!(link.completed().await.turn, Some(turn(1, 1, 6)));
}

#[tokio::test]
async fn a_broken_model_call_is_repeated() {
    let (mut fake, _worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 5), &says("hi"))).await;
    let call = fake.call().await;
    call.say("half an ans").await;
    call.events.send(Err(tonic::Status::unavailable("replica stops"))).await.unwrap();
    let call = fake.call().await;
    call.say("whole").await;
    call.done().await;
    let completed = link.completed().await;
    assert_eq!((completed.outcome(), completed.reply.as_slice()), (Outcome::Succeeded, &b"whole"[..]));
}

#[tokio::test]
async fn sessions_run_side_by_side_up_to_the_slots() {
    let (mut fake, _worker, mut link) = attached().await;
    let mut calls = Vec::new();
    for session in 1..=4 {
        link.assign(assignment(turn(session, 1, 1), &says("hi"))).await;
        calls.push(fake.call().await);
    }
    // A fifth has no slot; the first message after it is a report.
    link.send(control_message::Message::Assignment(assignment(turn(5, 1, 1), &says("hi")))).await;
    calls.pop().unwrap().done().await;
    assert_eq!(link.completed().await.turn, Some(turn(4, 1, 1)));
}

#[tokio::test]
async fn the_files_of_a_message_lie_in_the_inbox_before_the_model_is_asked() {
    let (mut fake, worker, mut link) = attached().await;
    let inbox = worker.home().join("workspace/inbox");
    let outside = tempfile::tempdir().unwrap();
    let content = vec![7_u8; 2_500];
    *fake.state.files.lock().unwrap() = vec![content.clone(), content.clone(), content.clone(), content.clone()];
    let file = |bytes: usize, path: &str| format!(r#"{{"bytes":{bytes},"path":{path:?}}}"#);
    let input = format!(
        r#"{{"text":"see","attachments":[{},{},{},{},{}]}}"#,
        file(2_500, "workspace/inbox/aa-good"),
        file(2_499, "workspace/inbox/bb-longer-than-said"),
        file(2_500, "workspace/inbox/../../SOUL.md"),
        file(2_500, "/etc/hermes"),
        file(9, "workspace/inbox/ee-not-kept-any-more"),
    );
    link.assign(assignment(turn(5, 1, 1), &input)).await;
    let call = fake.call().await;
    let told = [
        "see",
        "[The file is not at inbox/bb-longer-than-said: it came with another length. Ask for it again if you need it.]",
        "[The file is not at inbox/../../SOUL.md: it cannot be written. Ask for it again if you need it.]",
        "[The file is not at /etc/hermes: it cannot be written. Ask for it again if you need it.]",
        "[The file is not at inbox/ee-not-kept-any-more: the control plane does not give it. Ask for it again if you need it.]",
    ];
    assert_eq!(call.messages.last().unwrap().1, told.join("\n"));
    let there = || {
        let names = std::fs::read_dir(&inbox).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    assert_eq!(there(), ["aa-good"]);
    assert_eq!(std::fs::read(inbox.join("aa-good")).unwrap(), content);
    call.say("ok").await;
    call.done().await;
    let completed = link.completed().await;
    link.acknowledge(&completed).await;
    // What is there is not fetched again, and a link in the place of the folder leads nowhere.
    fake.state.files.lock().unwrap().clear();
    link.assign(assignment(turn(5, 2, 1), &input)).await;
    fake.call().await.fail("Not today.").await;
    let completed = link.completed().await;
    link.acknowledge(&completed).await;
    assert_eq!(there(), ["aa-good"]);
    std::fs::remove_dir_all(&inbox).unwrap();
    std::os::unix::fs::symlink(outside.path(), &inbox).unwrap();
    *fake.state.files.lock().unwrap() = vec![content];
    link.assign(assignment(turn(5, 3, 1), &input)).await;
    fake.call().await;
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}
