//! Tools that the control plane runs: the fake's side of them, and what a worker makes of them.

use std::sync::Mutex;

use hermes_proto::v1::*;
use tonic::Status;

use crate::fake::{assignment, says, soon, turn};
use crate::journal::{Journal, ask, say};
use crate::plane::{Plane, Stage};

/// What the fake runs itself.
#[derive(Default)]
pub(crate) struct Offered {
    /// Nothing: it is of before such tools.
    pub(crate) tools: Mutex<Option<Vec<OfferedTool>>>,
    /// How often it was asked for them, and how many of the next times it cannot say.
    lists: Mutex<u32>,
    unlisted: Mutex<u32>,
    /// Calls as they came, those that were done, and how many of the next answers get lost.
    calls: Mutex<Vec<CallToolRequest>>,
    done: Mutex<Vec<String>>,
    lose: Mutex<u32>,
}

/// One less, if there is one.
fn take(count: &Mutex<u32>) -> bool {
    let mut count = count.lock().unwrap();
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}

impl Offered {
    pub(crate) fn list(&self) -> Result<ListToolsResponse, Status> {
        *self.lists.lock().unwrap() += 1;
        if take(&self.unlisted) {
            return Err(Status::unavailable("not now"));
        }
        let tools = self.tools.lock().unwrap().clone();
        let tools = tools.ok_or_else(|| Status::unimplemented("a control plane of before its own tools"))?;
        Ok(ListToolsResponse { tools })
    }

    pub(crate) fn call(&self, journal: &Mutex<Journal>, request: CallToolRequest) -> Result<CallToolResponse, Status> {
        self.calls.lock().unwrap().push(request.clone());
        let (answer, done) = journal.lock().unwrap().call(&request);
        if done {
            self.done.lock().unwrap().push(request.call.unwrap().name);
        }
        if take(&self.lose) {
            return Err(Status::unavailable("the answer is lost"));
        }
        Ok(answer)
    }

    fn done(&self) -> Vec<String> {
        self.done.lock().unwrap().clone()
    }

    fn asked(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

pub(crate) fn tool(name: &str, toolset: &str) -> OfferedTool {
    OfferedTool {
        name: name.into(),
        description: format!("it does {name}"),
        parameters: r#"{"type":"object"}"#.into(),
        toolset: toolset.into(),
        time_limit_ms: 10_000,
        max_output: 1_000,
    }
}

const DONE: &str = "memory done over there";

/// A model that calls `memory` once, and a control plane that runs it.
async fn stage() -> Stage {
    let script = [(0, ask("Wait.", &[("a", "memory", r#"{"x":1}"#)])), (2, say("Done."))];
    let stage = Stage::new(script).await;
    *stage.fake.state.offered.tools.lock().unwrap() = Some(vec![tool("memory", "memory"), tool("look", "theirs")]);
    stage
}

#[tokio::test]
async fn what_the_control_plane_runs_is_not_journaled_by_the_worker() {
    let mut stage = stage().await;
    stage.assign(turn(7, 3, 1)).await;
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
    assert_eq!(stage.journal(&turn(7, 3, 1)), ["0 result: reply", &format!(r#"1 result memory:{{"x":1}}: {DONE}"#)]);
    let asked = stage.asked(2).pop().unwrap();
    assert_eq!(asked[2], format!("tool a: {DONE}"));
    let calls = stage.fake.state.offered.calls.lock().unwrap().clone();
    let call = ToolCall { id: "a".into(), name: "memory".into(), arguments: r#"{"x":1}"#.into() };
    assert_eq!(calls, [CallToolRequest { turn: Some(turn(7, 3, 1)), step: 1, call: Some(call) }]);
    assert!(stage.world.effects().is_empty());
}

#[tokio::test]
async fn a_call_whose_answer_is_lost_is_repeated_and_done_once() {
    let mut stage = stage().await;
    *stage.fake.state.offered.lose.lock().unwrap() = 3;
    stage.assign(turn(1, 1, 1)).await;
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
    let offered = &stage.fake.state.offered;
    assert_eq!((offered.asked(), offered.done()), (4, vec!["memory".to_owned()]));
    assert_eq!(stage.asked(2).pop().unwrap()[2], format!("tool a: {DONE}"));
}

#[tokio::test]
async fn a_worker_that_dies_around_the_call_leaves_it_done_once_and_told_once() {
    // How often it was asked for, and done by whom.
    for (point, nth, asked) in [
        ("model.after", 1, 1),
        ("effect.before", 1, 1),
        ("effect.after", 1, 1),
        ("model.before", 2, 1),
        ("complete.before", 1, 1),
    ] {
        let mut stage = stage().await;
        stage.world.hold_at(point, nth);
        stage.assign(turn(1, 1, 1)).await;
        soon(point, stage.world.held.notified()).await;
        stage.replace_worker().await;
        stage.assign(turn(1, 1, 2)).await;
        assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()), "{point}");
        let offered = &stage.fake.state.offered;
        assert_eq!((offered.asked(), offered.done()), (asked, vec!["memory".to_owned()]), "{point}");
        let view = stage.asked(2).pop().unwrap();
        assert_eq!(view, ["user: hi", r#"assistant: Wait. a=memory({"x":1})"#, &format!("tool a: {DONE}")], "{point}");
        assert_eq!(stage.journal(&turn(1, 1, 2)).len(), 2, "{point}");
    }
}

#[tokio::test]
async fn a_turn_that_is_not_ours_any_more_or_differs_is_dropped_silently() {
    for fenced in [true, false] {
        let mut stage = stage().await;
        stage.world.hold_at("effect.before", 1);
        stage.assign(turn(1, 1, 1)).await;
        soon("the call", stage.world.held.notified()).await;
        {
            let mut journal = stage.fake.state.journal.lock().unwrap();
            if fenced {
                journal.lease(&turn(1, 1, 2));
            } else {
                journal.spoil(&turn(1, 1, 1), 1, StepKind::ToolCall, "something else");
            }
        }
        stage.world.release.notify_one();
        // The worker's next word is about another turn.
        stage.assign(turn(2, 1, 1)).await;
        loop {
            match stage.plane.next().await {
                worker_message::Message::Accepted(_) => {}
                worker_message::Message::Completed(completed) => {
                    assert_eq!(completed.turn, Some(turn(2, 1, 1)), "fenced: {fenced}");
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(stage.fake.state.offered.done(), ["memory"], "fenced: {fenced}: of the other turn");
    }
}

/// What the model of that turn is offered.
async fn names(stage: &mut Stage, turn: TurnRef, profile: ProfileRevision) -> Vec<String> {
    stage.fake.state.journal.lock().unwrap().lease(&turn);
    let assignment = Assignment { profile: Some(profile), ..assignment(turn, &says("hi")) };
    stage.plane.send(control_message::Message::Assignment(assignment)).await;
    let call = stage.fake.call().await;
    let names = call.tools.iter().map(|tool| tool.name.clone()).collect();
    call.say("Hello.").await;
    call.done().await;
    stage.plane.completed().await;
    names
}

#[tokio::test]
async fn the_list_is_asked_for_once_on_each_registration_and_again_when_it_fails() {
    let mut stage = Stage::new([]).await;
    let ours =
        ["look", "put", "send", "wait", "stubborn", "panics", "long", "meet", "terminal", "clarify", "delegate_task"];
    // A control plane of before such tools.
    let profile = ProfileRevision { revision: 1, ..ProfileRevision::default() };
    assert_eq!(names(&mut stage, turn(1, 1, 1), profile.clone()).await, ours);
    *stage.fake.state.offered.tools.lock().unwrap() = Some(vec![tool("memory", "memory"), tool("look", "theirs")]);
    assert_eq!(names(&mut stage, turn(2, 1, 1), profile.clone()).await, ours);
    assert_eq!(*stage.fake.state.offered.lists.lock().unwrap(), 1);

    *stage.fake.state.offered.unlisted.lock().unwrap() = 2;
    drop(stage.plane);
    stage.plane = Plane::attach(&mut stage.fake).await;
    for session in [3, 4] {
        let mut offered = names(&mut stage, turn(session, 1, 1), profile.clone()).await;
        assert_eq!(offered.pop().as_deref(), Some("memory"));
        assert_eq!(offered, ours, "ours counts where both have one of a name");
    }
    assert_eq!(*stage.fake.state.offered.lists.lock().unwrap(), 4);
}

#[tokio::test]
async fn a_tool_outside_of_the_turns_toolsets_does_not_exist() {
    let mut stage = Stage::new([]).await;
    *stage.fake.state.offered.tools.lock().unwrap() = Some(vec![tool("memory", "memory"), tool("todo", "todo")]);
    let profile = |enabled: Option<&[&str]>, disabled: &[&str]| ProfileRevision {
        revision: 1,
        toolsets_set: enabled.is_some(),
        enabled_toolsets: enabled.unwrap_or_default().iter().map(|name| (*name).to_owned()).collect(),
        disabled_toolsets: disabled.iter().map(|name| (*name).to_owned()).collect(),
        ..ProfileRevision::default()
    };
    assert_eq!(
        names(&mut stage, turn(1, 1, 1), profile(None, &["drill", "clarify", "delegation"])).await,
        ["memory", "todo"]
    );
    assert_eq!(names(&mut stage, turn(2, 1, 1), profile(Some(&["todo", "memory"]), &["memory"])).await, ["todo"]);
    assert!(names(&mut stage, turn(3, 1, 1), profile(Some(&[]), &[])).await.is_empty());

    // Offered nothing of the kind, a model asks for it all the same.
    *stage.fake.state.script.lock().unwrap() =
        [(0, ask("", &[("a", "memory", "{}"), ("b", "send", "{}"), ("c", "todo", "{}")])), (4, say("Done."))].into();
    let journal_entries = stage.fake.state.journal.lock().unwrap().lease(&turn(4, 1, 1));
    let profile = Some(profile(Some(&["todo"]), &[]));
    let assignment = Assignment { profile, journal_entries, ..assignment(turn(4, 1, 1), &says("hi")) };
    stage.plane.send(control_message::Message::Assignment(assignment)).await;
    assert_eq!(stage.plane.completed().await.1, "Done.");
    let view = stage.asked(4).pop().unwrap();
    assert_eq!(view[2..4], ["tool a: Error: there is no tool memory.", "tool b: Error: there is no tool send."]);
    assert_eq!(view[4], "tool c: todo done over there");
    assert_eq!(stage.fake.state.offered.done(), ["todo"]);
    assert!(stage.world.effects().is_empty());
}

#[tokio::test]
async fn a_call_waits_for_a_connection_and_goes_on_there() {
    let mut stage = stage().await;
    stage.world.hold_at("effect.before", 1);
    stage.assign(turn(1, 1, 1)).await;
    soon("the call", stage.world.held.notified()).await;
    stage.plane.to_worker.send(Err(Status::unavailable("replica stops"))).await.unwrap();
    drop(stage.plane);
    stage.plane = Plane::attach(&mut stage.fake).await;
    stage.world.release.notify_one();
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
    assert_eq!(stage.fake.state.offered.done(), ["memory"]);
}
