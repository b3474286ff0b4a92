//! What a turn does for its model by itself: questions, tasks worked on apart, and calls that only look at the same time.

use hermes_proto::v1::*;

use crate::fake::{soon, turn};
use crate::journal::{ask, say};
use crate::plane::Stage;

const TASK: &str = r#"{"goal":"find it","context":"it is red"}"#;

#[tokio::test]
async fn a_question_ends_the_turn_and_is_its_answer() {
    let choices = r#"{"question":"Which?","choices":["red","blue"]}"#;
    let script = [(0, ask("I look first.", &[("a", "look", "{}"), ("b", "clarify", choices)])), (1, say("unreached"))];
    let mut stage = Stage::new(script).await;
    stage.assign(turn(7, 1, 1)).await;
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "I look first.\n\nWhich?\n1. red\n2. blue".into()));
    let journal = ["0 result: reply", "1 result: look done", "2 result: The user was asked; the next message answers."];
    assert_eq!(stage.journal(&turn(7, 1, 1)), journal);
    // The next turn knows that, and what was asked.
    stage.fake.state.script.lock().unwrap().insert(0, say("Red it is."));
    stage.assign(turn(7, 2, 1)).await;
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Red it is.".into()));
    let view = stage.asked(0).pop().unwrap();
    let told = view.iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(
        told[3..5],
        [
            "tool b: The user was asked; the next message answers.",
            "assistant: I look first.\n\nWhich?\n1. red\n2. blue"
        ]
    );
}

#[tokio::test]
async fn a_question_that_cannot_be_asked_is_told_to_the_model() {
    let script = [(0, ask("", &[("a", "clarify", r#"{"question":""}"#)])), (2, say("Then not."))];
    let mut stage = Stage::new(script).await;
    stage.assign(turn(7, 1, 1)).await;
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Then not.".into()));
    assert!(stage.asked(2)[0][2].starts_with("tool a: Error: write a question"), "{:?}", stage.asked(2));
}

/// A task of one call that looks and one that acts.
fn delegating() -> [(u32, crate::journal::Line); 5] {
    [
        (0, ask("I have it found.", &[("d", "delegate_task", TASK)])),
        (1, ask("Working.", &[("x", "look", "{}"), ("y", "put", "{}")])),
        (4, say("It is in the shed.")),
        (5, say("Done.")),
        (6, say("unreached")),
    ]
}

#[tokio::test]
async fn a_task_is_worked_on_apart_and_only_its_result_is_told() {
    let mut stage = Stage::new(delegating()).await;
    stage.assign(turn(7, 1, 1)).await;
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
    assert_eq!(stage.asked(1), [["user: find it\n\nWhat you have to know:\nit is red"]]);
    let parent =
        ["user: hi", &format!("assistant: I have it found. d=delegate_task({TASK})"), "tool d: It is in the shed."];
    assert_eq!(stage.asked(5), [parent]);
    let journal = stage.journal(&turn(7, 1, 1));
    assert_eq!(journal.last().map(String::as_str), Some("4 result: It is in the shed."), "{journal:?}");
    let told = |step| stage.fake.state.tools_told(step).contains(&"delegate_task".to_owned());
    assert!(told(0) && !told(1), "a task delegates nothing");
}

#[tokio::test]
async fn a_task_is_done_once_wherever_its_worker_dies() {
    let points = [
        ("model.before", 1),
        ("model.after", 1),
        ("model.before", 2),
        ("model.after", 2),
        ("effect.before", 1),
        ("effect.after", 1),
        ("result.before", 1),
        ("result.after", 1),
        ("intent.before", 1),
        ("intent.after", 1),
        ("effect.before", 2),
        ("effect.after", 2),
        ("result.before", 2),
        ("result.after", 2),
        ("model.before", 3),
        ("model.after", 3),
        ("result.before", 3),
        ("result.after", 3),
        ("model.before", 4),
        ("model.after", 4),
        ("complete.before", 1),
    ];
    for (point, nth) in points {
        let mut stage = Stage::new(delegating()).await;
        stage.world.hold_at(point, nth);
        stage.assign(turn(1, 1, 1)).await;
        soon(point, stage.world.held.notified()).await;
        stage.replace_worker().await;
        stage.assign(turn(1, 1, 2)).await;
        assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()), "{point} {nth}");
        let effects = stage.world.effects();
        let keys: Vec<&String> = effects.iter().filter(|effect| effect.starts_with("put")).collect();
        assert!(keys.iter().all(|key| *key == "put1.1.3"), "{point} {nth}: {effects:?}");
        assert_eq!(stage.asked(5).last().unwrap()[2], "tool d: It is in the shed.", "{point} {nth}");
    }
}

#[tokio::test]
async fn calls_that_only_look_are_made_at_the_same_time_and_stored_in_their_order() {
    let calls =
        [("a", "meet", "{}"), ("b", "meet", "{}"), ("c", "put", "{}"), ("d", "meet", "{}"), ("e", "meet", "{}")];
    let mut stage = Stage::new([(0, ask("", &calls)), (6, say("Done."))]).await;
    stage.assign(turn(1, 1, 1)).await;
    // Each waits until another one is there.
    assert_eq!(soon("the end", stage.plane.completed()).await, (Outcome::Succeeded, "Done.".into()));
    assert_eq!(stage.world.effects(), ["meet", "meet", "put1.1.3", "meet", "meet"]);
    let journal = stage.journal(&turn(1, 1, 1));
    let results: Vec<&str> = journal.iter().map(|row| row.split(':').next().unwrap()).collect();
    assert_eq!(
        results,
        ["0 result", "1 result", "2 result", "3 intent 1.1.3", "3 result 1.1.3", "4 result", "5 result"]
    );
}

#[tokio::test]
async fn looks_that_were_stored_are_not_made_again() {
    let calls = [("a", "look", "{}"), ("b", "look", "{}"), ("c", "look", "{}")];
    for (point, nth, made) in
        [("effect.before", 1, 3), ("effect.after", 1, 6), ("result.after", 1, 5), ("result.after", 3, 3)]
    {
        let mut stage = Stage::new([(0, ask("", &calls)), (4, say("Done."))]).await;
        stage.world.hold_at(point, nth);
        stage.assign(turn(1, 1, 1)).await;
        soon(point, stage.world.held.notified()).await;
        stage.replace_worker().await;
        stage.assign(turn(1, 1, 2)).await;
        assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()), "{point} {nth}");
        assert_eq!(stage.world.effects().len(), made, "{point} {nth}");
    }
}
