//! Dangerous calls: not made before somebody allowed them, whoever has the turn by then.

use hermes_proto::v1::{ApprovalState, Outcome};

use crate::fake::{soon, turn};
use crate::journal::{ask, say};
use crate::plane::Stage;

/// Asked for everywhere.
const DANGEROUS: &str = r#"{"command":"rm -rf ../skills"}"#;

/// A turn that asks for one command and then says `Done.`; how these questions about it are answered.
async fn stage(command: &str, answers: &[ApprovalState]) -> Stage {
    let script = [(0, ask("Wait.", &[("a", "terminal", command)])), (2, say("Done."))];
    let stage = Stage::new(script).await;
    stage.fake.state.approvals.lock().unwrap().answers.extend(answers);
    stage
}

/// What the model was shown of the call, and how often somebody was asked.
fn shown(stage: &Stage) -> (String, usize) {
    let asked = stage.fake.state.approvals.lock().unwrap().asked.clone();
    assert!(asked.iter().all(|(step, arguments)| (*step, arguments.as_str()) == (1, DANGEROUS)), "{asked:?}");
    (stage.asked(2).last().unwrap().last().unwrap().clone(), asked.len())
}

#[tokio::test]
async fn a_call_is_made_once_it_is_allowed_and_not_before() {
    let mut stage = stage(DANGEROUS, &[ApprovalState::Pending, ApprovalState::Pending, ApprovalState::Allowed]).await;
    stage.assign(turn(1, 1, 1)).await;
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
    assert_eq!(shown(&stage), ("tool a: terminal done".to_owned(), 3));
    assert_eq!(stage.world.effects(), ["terminal"]);
    // Nothing is journaled of a call that waits.
    let points = stage.world.points();
    let at = |name: &str| points.iter().position(|point| point == name).unwrap();
    assert!(at("approval.after") < at("intent.before"), "{points:?}");
}

#[tokio::test]
async fn a_call_that_is_not_allowed_is_not_made_and_the_model_is_told() {
    for (answer, said) in [
        (ApprovalState::Denied, "it may not"),
        (ApprovalState::OtherCall, "it may not"),
        (ApprovalState::Expired, "nobody answered in time"),
    ] {
        let mut stage = stage(DANGEROUS, &[answer]).await;
        stage.assign(turn(1, 1, 1)).await;
        assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
        let (text, asked) = shown(&stage);
        assert!(text.starts_with("tool a: Denied: ") && text.contains(said) && asked == 1, "{answer:?}: {text}");
        assert!(stage.world.effects().is_empty(), "{answer:?}");
    }
}

#[tokio::test]
async fn a_model_that_does_not_allow_a_call_says_why() {
    let mut stage = stage(DANGEROUS, &[ApprovalState::Denied]).await;
    stage.fake.state.approvals.lock().unwrap().reason = "It deletes what nobody named.".to_owned();
    stage.assign(turn(1, 1, 1)).await;
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
    let (text, _) = shown(&stage);
    assert!(
        text.contains("It says: \"It deletes what nobody named.\"") && !text.contains("a person was asked"),
        "{text}"
    );
    assert!(stage.world.effects().is_empty());
}

#[tokio::test]
async fn what_nobody_can_allow_is_refused_without_a_question_and_the_rest_needs_none() {
    for (command, shown, effects) in [
        (r#"{"command":"rm -rf /"}"#, "tool a: Refused: ", 0),
        (r#"{"command":"rm -rf build"}"#, "tool a: terminal done", 1),
    ] {
        let mut stage = stage(command, &[]).await;
        stage.assign(turn(1, 1, 1)).await;
        assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
        let view = stage.asked(2);
        assert!(view.last().unwrap().last().unwrap().starts_with(shown), "{view:?}");
        assert_eq!(stage.world.effects().len(), effects);
        assert!(stage.fake.state.approvals.lock().unwrap().asked.is_empty(), "{command}");
    }
}

#[tokio::test]
async fn whoever_gets_the_turn_next_asks_again_and_makes_the_call_once() {
    for (at, asked) in [("approval.before", 1), ("approval.after", 2), ("intent.before", 2)] {
        let mut stage = stage(DANGEROUS, &[ApprovalState::Allowed, ApprovalState::Allowed]).await;
        stage.world.hold_at(at, 1);
        stage.assign(turn(1, 1, 1)).await;
        soon(at, stage.world.held.notified()).await;
        stage.replace_worker().await;
        stage.assign(turn(1, 1, 2)).await;
        assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()), "{at}");
        assert_eq!(shown(&stage), ("tool a: terminal done".to_owned(), asked), "{at}");
        assert_eq!(stage.world.effects(), ["terminal"], "{at}");
    }
}
