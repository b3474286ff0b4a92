//! What a running turn is told: end, come back, listen.

use hermes_proto::v1::*;

use crate::fake::{assignment, says, soon, turn};
use crate::journal::{ask, say};
use crate::plane::{Plane, Stage};

fn handed_back(message: worker_message::Message) -> Option<TurnRef> {
    match message {
        worker_message::Message::HandBack(HandBack { turn }) => turn,
        other => panic!("expected HandBack, got {other:?}"),
    }
}

/// A turn whose first model call asks for this tool, which has begun.
async fn in_the_tool(tool: &str) -> Stage {
    let mut stage = Stage::new([(0, ask("Wait.", &[("a", tool, "{}")])), (2, say("Done."))]).await;
    stage.assign(turn(1, 1, 1)).await;
    soon("the call", stage.world.begun.notified()).await;
    stage
}

#[tokio::test]
async fn a_stopped_model_call_ends_at_once_with_the_text_so_far() {
    for (kind, reason, expected) in [
        (CancelKind::Unspecified, "", (Outcome::Cancelled, "par")),
        (CancelKind::Stopped, "a person", (Outcome::Cancelled, "par")),
        (CancelKind::Interrupted, "a newer message", (Outcome::Cancelled, "par")),
        (CancelKind::Overdue, "That took more than an hour.", (Outcome::Failed, "That took more than an hour.")),
        (CancelKind::Overdue, "", (Outcome::Failed, "This took too long, so I have stopped.")),
    ] {
        let mut stage = Stage::new([]).await;
        stage.assign(turn(1, 1, 1)).await;
        let call = stage.fake.call().await;
        call.say("par").await;
        stage.plane.progress("par").await;
        stage.plane.cancel(turn(1, 1, 1), kind, reason).await;
        let (outcome, text) = stage.plane.completed().await;
        assert_eq!((outcome, text.as_str()), expected, "{kind:?}");
        soon("the end of the model call", call.events.closed()).await;
    }
}

#[tokio::test]
async fn a_stopped_tool_is_asked_to_stop_and_its_result_is_journaled() {
    let mut stage = in_the_tool("wait").await;
    stage.plane.cancel(turn(1, 1, 1), CancelKind::Stopped, "").await;
    assert_eq!(stage.plane.completed().await, (Outcome::Cancelled, "Wait.".into()));
    assert_eq!(stage.journal(&turn(1, 1, 1)).last().unwrap(), "1 result: stopped half way");
    assert!(stage.asked(2).is_empty());
}

#[tokio::test]
async fn a_tool_that_does_not_stop_is_dropped_and_nobody_knows_what_it_did() {
    let mut stage = in_the_tool("stubborn").await;
    let asked = tokio::time::Instant::now();
    stage.plane.cancel(turn(1, 1, 1), CancelKind::Overdue, "That took too long.").await;
    assert_eq!(stage.plane.completed().await, (Outcome::Failed, "That took too long.".into()));
    assert!(asked.elapsed().as_millis() >= 5_000);
    let journal = stage.journal(&turn(1, 1, 1));
    assert!(journal.last().unwrap().starts_with("1 result unknown: UNKNOWN"), "{journal:?}");
}

#[tokio::test]
async fn a_stopped_turn_begins_no_effect_that_has_not_begun() {
    for point in ["intent.before", "intent.after", "effect.before"] {
        let mut stage = Stage::new([(0, ask("Wait.", &[("a", "send", "{}")])), (2, say("Done."))]).await;
        stage.world.hold_at(point, 1);
        stage.assign(turn(1, 1, 1)).await;
        soon(point, stage.world.held.notified()).await;
        stage.plane.cancel(turn(1, 1, 1), CancelKind::Stopped, "").await;
        // An answer to something sent later: the order before it has arrived.
        stage.assign(turn(2, 1, 1)).await;
        while !matches!(stage.plane.next().await, worker_message::Message::Accepted(accepted) if accepted.turn == Some(turn(2, 1, 1)))
        {
        }
        stage.world.release.notify_one();
        let mut ends = vec![stage.plane.completed().await, stage.plane.completed().await];
        ends.sort_by_key(|(outcome, _)| *outcome as i32);
        assert_eq!(ends, [(Outcome::Succeeded, "Done.".into()), (Outcome::Cancelled, "Wait.".into())], "{point}");
        assert_eq!(stage.world.effects(), ["send"], "{point}: of the other turn");
    }
}

#[tokio::test]
async fn an_abandoned_turn_is_dropped_at_once_without_a_word() {
    let mut stage = in_the_tool("wait").await;
    stage.plane.cancel(turn(1, 1, 1), CancelKind::Abandoned, "").await;
    *stage.fake.state.script.lock().unwrap() = [(0, say("Next."))].into();
    for session in [2, 3] {
        stage.assign(turn(session, 1, 1)).await;
        let worker_message::Message::Completed(completed) = stage.plane.end().await else { panic!("no report") };
        assert_eq!(completed.turn, Some(turn(session, 1, 1)));
    }
    assert_eq!(stage.journal(&turn(1, 1, 1)).len(), 2, "reply and intent");
}

#[tokio::test]
async fn a_cancel_reaches_exactly_the_turn_and_epoch_that_it_names() {
    let mut stage = in_the_tool("wait").await;
    for other in [turn(1, 1, 2), turn(1, 2, 1), turn(2, 1, 1), turn(1, 1, 0)] {
        for kind in [CancelKind::Stopped, CancelKind::Abandoned] {
            stage.plane.cancel(other, kind, "").await;
        }
    }
    stage.assign(turn(3, 1, 1)).await;
    soon("the second call", stage.world.begun.notified()).await;
    stage.world.go_on.notify_waiters();
    for _ in 0..2 {
        assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
    }
}

#[tokio::test]
async fn a_message_that_comes_meanwhile_is_taken_in_after_the_tools() {
    let script = [(0, ask("Wait.", &[("a", "wait", "{}")])), (4, say("Done."))];
    let mut stage = Stage::new(script).await;
    let first = turn(1, 1, 1);
    stage.assign(first).await;
    soon("the call", stage.world.begun.notified()).await;
    for seq in [2, 3] {
        stage.fake.state.journal.lock().unwrap().queue(&first, seq);
    }
    for (seq, text) in [(2, "and now"), (9, "not queued"), (3, "and \"then\"")] {
        stage.plane.steer(first, seq, text).await;
    }
    stage.plane.steer(turn(1, 1, 2), 3, "of another epoch").await;
    stage
        .plane
        .send(control_message::Message::Steer(Steer { turn: Some(first), seq: 4, input: b"no JSON".to_vec() }))
        .await;
    // An answer to something sent later: the messages before it have arrived.
    stage.assign(first).await;
    for _ in 0..2 {
        assert!(matches!(stage.plane.next().await, worker_message::Message::Accepted(_)));
    }
    stage.world.go_on.notify_one();
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
    let journal = stage.journal(&first);
    assert_eq!(journal[3..], [r#"2 result: {"text":"and now"}"#, r#"3 result: {"text":"and \"then\""}"#]);
    let said = ["user: hi", "assistant: Wait. a=wait({})", "tool a: wait done", "user: and now", "user: and \"then\""];
    assert_eq!(stage.asked(4), [said]);
}

#[tokio::test]
async fn what_was_taken_in_is_there_for_the_next_worker() {
    let script = [(0, ask("Wait.", &[("a", "wait", "{}")])), (3, say("Done."))];
    let mut stage = Stage::new(script).await;
    let first = turn(1, 1, 1);
    stage.assign(first).await;
    soon("the call", stage.world.begun.notified()).await;
    stage.fake.state.journal.lock().unwrap().queue(&first, 2);
    stage.plane.steer(first, 2, "and now").await;
    stage.world.hold_at("model.before", 1);
    // An answer to something sent later: the message before it has arrived.
    stage.assign(first).await;
    for _ in 0..2 {
        assert!(matches!(stage.plane.next().await, worker_message::Message::Accepted(_)));
    }
    stage.world.go_on.notify_one();
    soon("the next model call", stage.world.held.notified()).await;
    stage.replace_worker().await;
    stage.assign(turn(1, 1, 2)).await;
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
    let said = ["user: hi", "assistant: Wait. a=wait({})", "tool a: wait done", "user: and now"];
    assert_eq!(stage.asked(3), [said]);
    assert_eq!(stage.world.effects(), ["wait"]);
}

#[tokio::test]
async fn a_turn_in_a_model_call_is_handed_back_at_once() {
    let mut stage = Stage::new([]).await;
    stage.assign(turn(1, 1, 1)).await;
    let call = stage.fake.call().await;
    stage.plane.send(control_message::Message::Drain(Drain { grace_ms: 0 })).await;
    assert_eq!(handed_back(stage.plane.end().await), Some(turn(1, 1, 1)));
    soon("the end of the call", call.events.closed()).await;
    stage.worker.ended().await.expect("drained");
}

#[tokio::test]
async fn a_turn_in_a_tool_is_handed_back_when_its_result_is_journaled() {
    let mut stage = in_the_tool("wait").await;
    stage.plane.send(control_message::Message::Drain(Drain { grace_ms: 0 })).await;
    // What comes after the goodbye goes back unbegun.
    assert!(matches!(stage.plane.next().await, worker_message::Message::Accepted(_)));
    assert!(matches!(stage.plane.next().await, worker_message::Message::GoingAway(_)));
    stage.assign(turn(2, 1, 1)).await;
    assert_eq!(handed_back(stage.plane.end().await), Some(turn(2, 1, 1)));
    stage.world.go_on.notify_one();
    assert_eq!(handed_back(stage.plane.end().await), Some(turn(1, 1, 1)));
    assert_eq!(stage.journal(&turn(1, 1, 1)).last().unwrap(), "1 result: wait done");
    stage.worker.ended().await.expect("drained");
    // The next worker goes on from there: nothing is done again, nothing is unknown.
    stage.replace_worker().await;
    stage.assign(turn(1, 1, 2)).await;
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
    assert_eq!(stage.world.effects(), ["wait"]);
    assert_eq!((stage.asked(0).len(), stage.asked(2).len()), (1, 1));
}

#[tokio::test]
async fn a_turn_may_end_within_the_grace() {
    let mut stage = in_the_tool("wait").await;
    stage.worker.stop.cancel();
    assert!(matches!(stage.plane.next().await, worker_message::Message::Accepted(_)));
    assert!(matches!(stage.plane.next().await, worker_message::Message::GoingAway(_)));
    stage.world.go_on.notify_one();
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
    stage.worker.ended().await.expect("drained");
}

#[tokio::test]
async fn a_hand_back_is_sent_again_until_it_is_answered() {
    let mut stage = Stage::new([]).await;
    stage.assign(turn(1, 1, 1)).await;
    let _call = stage.fake.call().await;
    drop(stage.plane);
    let mut link = stage.fake.attached().await;
    link.welcome_speaking(2, 1_000, 60_000).await;
    link.send(control_message::Message::Drain(Drain { grace_ms: 0 })).await;
    assert!(matches!(link.next().await, worker_message::Message::GoingAway(_)));
    assert_eq!(handed_back(link.next().await), Some(turn(1, 1, 1)));
    drop(link);
    let mut plane = Plane::attach(&mut stage.fake).await;
    assert_eq!(handed_back(plane.end().await), Some(turn(1, 1, 1)));
    stage.worker.ended().await.expect("drained");
}

#[tokio::test]
async fn a_turn_whose_lease_ended_meanwhile_is_given_back() {
    let mut stage = Stage::new([(0, ask("", &[("a", "send", "{}")]))]).await;
    drop(stage.plane);
    let mut link = stage.fake.attached().await;
    link.welcome_speaking(2, 50, 300).await;
    stage.world.hold_at("model.before", 1);
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    soon("the model call", stage.world.held.notified()).await;
    // Nobody answers until the lease is over.
    let _ = soon("the end of the stream", async { while let Ok(Some(_)) = link.from_worker.message().await {} }).await;
    stage.world.release.notify_one();
    soon("the turn's end", async {
        while stage.world.points().last().map(String::as_str) != Some("handback.before") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut plane = Plane::attach(&mut stage.fake).await;
    assert_eq!(handed_back(plane.end().await), Some(turn(1, 1, 1)));
    assert!(stage.world.effects().is_empty());
}
