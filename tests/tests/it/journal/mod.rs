//! The journal of turns, through the real control plane: what workers report is stored before it counts, what was stored is
//! handed on and never done over, and who has no turn writes nothing. The workers are the test's own.

mod calls;
mod foreign;
mod jobs;
mod merging;
pub(crate) mod plane;
mod schedules;

use std::time::Duration;

use hermes_proto::v1;
use hermes_proto::v1::worker_message::Message as Says;
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use serde_json::{Value, json};

use plane::{Plane, Reply, SOON};

/// Larger than a chunk.
const LONG: usize = 600 << 10;

fn asks(text: &str) -> Behaviour {
    let calls = vec![Call::new("call_a", "act", "{\"n\": 1}"), Call::new("", "act", "{\"n\": 2}")];
    Behaviour::Ask(text.to_owned(), calls)
}

fn step(turn: Option<v1::TurnRef>, step: u32, phase: v1::StepPhase, body: &str) -> v1::StepReport {
    v1::StepReport {
        turn,
        step,
        phase: phase.into(),
        kind: v1::StepKind::ToolCall.into(),
        effect: v1::Effect::AtMostOnce.into(),
        body: body.into(),
        ..v1::StepReport::default()
    }
}

/// Before a call that may happen once.
pub(crate) fn intent(turn: Option<v1::TurnRef>, number: u32, body: &str) -> v1::StepReport {
    step(turn, number, v1::StepPhase::Intent, body)
}

/// After it.
pub(crate) fn result(turn: Option<v1::TurnRef>, number: u32, body: &str) -> v1::StepReport {
    step(turn, number, v1::StepPhase::Result, body)
}

/// Looks until `look` finds something.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, looking).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// The turn's end.
async fn ended(plane: &Plane, turn: &Value) -> Value {
    until("the turn's end", async || Some(plane.turn(turn)).filter(|turn| turn["ended_at_ms"].is_number())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_asks_for_tools_is_committed_before_it_leaves_and_answers_every_repetition() {
    let mock = MockModel::start().await.unwrap();
    let plane = Plane::start(&mock).await;
    let mut worker = plane.worker("coder").await;
    let told = plane.tell("hello");
    let turn = worker.assignment().await.turn;
    mock.script([asks("let me see")]);

    // The commit has to wait as long as we hold the session.
    let (mut held, watcher) = (plane.sql().await, plane.sql().await);
    let pid: i32 = held.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let transaction = held.transaction().await.unwrap();
    transaction.execute("SELECT 1 FROM sessions FOR UPDATE", &[]).await.unwrap();
    let mut events = worker.generate(turn, 0, "hello").await.unwrap();
    let (seen, mut seen_here) = tokio::sync::mpsc::channel(1000);
    let mut reading = tokio::task::JoinSet::new();
    reading.spawn(async move {
        while let Ok(Some(event)) = events.message().await {
            let _ = seen.send(event).await;
        }
    });
    until("the commit", async || {
        let blocked = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))";
        (watcher.query_one(blocked, &[&pid]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    // What left before would be there by the time that something else has gone both ways.
    let sequence = 1000;
    worker.say(Says::Heartbeat(v1::Heartbeat { sequence })).await;
    worker
        .told("HeartbeatAck", |told| match told {
            v1::control_message::Message::HeartbeatAck(ack) if ack.sequence == sequence => Some(()),
            _ => None,
        })
        .await;
    let mut early = Reply::default();
    while let Ok(event) = seen_here.try_recv() {
        early.take(event);
    }
    assert!(early.calls.is_empty() && early.done.is_none(), "{early:?}");
    assert!("let me see".starts_with(&early.text), "{early:?}");

    // Now the connection of the call is cut, and the commit goes through.
    reading.shutdown().await;
    transaction.rollback().await.unwrap();
    until("the journaled reply", async || {
        let rows = watcher.query("SELECT 1 FROM turn_steps WHERE kind = 4", &[]).await.unwrap();
        (!rows.is_empty()).then_some(())
    })
    .await;

    let first = worker.reply(turn, 0, "hello").await;
    let second = worker.reply(turn, 0, "something else").await;
    assert_eq!(mock.requests(), 1);
    assert_eq!(first, second);
    assert_eq!(first.text, "let me see");
    let calls: Vec<_> = first.calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect();
    assert_eq!(calls, [("act", "{\"n\": 1}"), ("act", "{\"n\": 2}")]);
    assert!(first.calls[0].id == "call_a" && !first.calls[1].id.is_empty(), "{:?}", first.calls);
    let done = first.done.unwrap();
    assert!(done.replayed && done.finish_reason == "tool_calls", "{done:?}");

    // The next step asks again, and the turn's usage is that of two calls.
    mock.script([Behaviour::Say("done".to_owned())]);
    let last = worker.reply(turn, 3, "hello").await;
    assert_eq!((last.text.as_str(), last.calls.len(), last.done.map(|done| done.replayed)), ("done", 0, Some(false)));
    assert!(worker.complete(turn, "done").await);
    let end = ended(&plane, &told).await;
    assert_eq!(
        (&end["state"], &end["input_tokens"], &end["output_tokens"]),
        (&json!("succeeded"), &json!(200), &json!(100))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_worker_goes_on_from_the_journal_whether_the_turn_was_given_back_or_lost() {
    let mock = MockModel::start().await.unwrap();
    let plane = Plane::start(&mock).await;
    let mut first = plane.worker("coder").await;
    let told = plane.tell("hello");
    let given = first.assignment().await;
    assert_eq!((given.journal_entries, given.attempt), (0, 1));
    let turn = given.turn;
    mock.script([asks("")]);
    let asked = first.reply(turn, 0, "hello").await;
    assert_eq!(first.step(intent(turn, 1, "call 1")).await, v1::StepOutcome::Stored);
    let long = "x".repeat(LONG);
    assert_eq!(first.step(result(turn, 1, &long)).await, v1::StepOutcome::Stored);
    assert_eq!(first.step(intent(turn, 2, "call 2")).await, v1::StepOutcome::Stored);

    // Given back: no crash, and the journal comes along.
    let mut second = plane.worker("coder").await;
    first.hand_back(turn).await;
    let given = second.assignment().await;
    assert_eq!((given.journal_entries, given.attempt), (4, 1));
    assert_ne!(given.turn, turn);
    // Who gave it back has nothing to say any more, nor anything to read.
    assert_eq!(first.step(result(turn, 2, "late")).await, v1::StepOutcome::Fenced);
    assert!(first.journal(turn).await.is_err());
    let turn = given.turn;
    let rows = second.journal(turn).await.unwrap();
    let shown: Vec<_> =
        rows.iter().map(|row| (row.step, row.phase(), row.kind(), row.effect(), row.body.len())).collect();
    let (begin, end) = (v1::StepPhase::Intent, v1::StepPhase::Result);
    let (call, once) = (v1::StepKind::ToolCall, v1::Effect::AtMostOnce);
    let reply = (0, end, v1::StepKind::ModelReply, v1::Effect::Unspecified, rows[0].body.len());
    assert_eq!(shown, [reply, (1, begin, call, once, 6), (1, end, call, once, LONG), (2, begin, call, once, 6)]);
    let journaled: Value = serde_json::from_slice(&rows[0].body).unwrap();
    assert_eq!(journaled["tool_calls"][0], json!({"id": "call_a", "name": "act", "arguments": "{\"n\": 1}"}));
    let again = second.reply(turn, 0, "hello").await;
    assert_eq!((&again.calls, &again.text), (&asked.calls, &asked.text));
    assert_eq!(mock.requests(), 1);
    let unknown = v1::StepReport { unknown: true, ..result(turn, 2, "nobody knows") };
    assert_eq!(second.step(unknown).await, v1::StepOutcome::Stored);

    // Lost: a crash, and the journal comes along.
    let sql = plane.sql().await;
    let lost = "UPDATE workers SET lost = true, lost_at = clock_timestamp()";
    sql.execute(lost, &[]).await.unwrap();
    second.hung_up().await;
    let mut third = plane.worker("coder").await;
    let given = third.assignment().await;
    assert_eq!((given.journal_entries, given.attempt), (5, 2));
    let turn = given.turn;
    // It goes straight to the step after the journal: what came before is counted all the same.
    mock.script([Behaviour::Say("done".to_owned())]);
    assert_eq!(third.reply(turn, 3, "hello").await.text, "done");
    assert!(third.complete(turn, "done").await);
    assert_eq!(mock.requests(), 2);

    let end = ended(&plane, &told).await;
    assert_eq!((&end["state"], &end["input_tokens"]), (&json!("succeeded"), &json!(200)));
    let steps = end["steps"].as_array().unwrap();
    let shown: Vec<_> = steps
        .iter()
        .map(|step| (&step["step"], &step["phase"], &step["unknown"]))
        .map(|(a, b, c)| json!([a, b, c]))
        .collect();
    let expected =
        [(0, "result", false), (1, "intent", false), (1, "result", false), (2, "intent", false), (2, "result", true)];
    assert_eq!(shown, expected.map(|(number, phase, unknown)| json!([number, phase, unknown])));
    let full = plane.table(&["turn", "show", told["turn"].as_str().unwrap(), "--full"]);
    assert!(full.contains("nobody knows") && full.contains(&long), "{}", full.len());
    assert_eq!(plane.metric("hermes_steps_unknown_total").await.as_deref(), Some("1"));
    let steps = "hermes_steps_total{effect=\"at_most_once\",kind=\"tool_call\"}";
    assert_eq!(plane.metric(steps).await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_have_the_turn_writes_nothing_into_its_journal() {
    let mock = MockModel::start().await.unwrap();
    let plane = Plane::start(&mock).await;
    let (mut worker, mut stranger) = (plane.worker("coder").await, plane.worker("other").await);
    plane.tell("hello");
    let turn = worker.assignment().await.turn;
    let sql = plane.sql().await;
    let rows = async || sql.query_one("SELECT count(*) FROM turn_steps", &[]).await.unwrap().get::<_, i64>(0);

    // A worker of another agent that knows the fence.
    assert_eq!(stranger.step(intent(turn, 0, "mine")).await, v1::StepOutcome::Fenced);
    assert!(stranger.journal(turn).await.is_err() && stranger.generate(turn, 0, "hello").await.is_err());
    assert_eq!(rows().await, 0);

    // A message cannot be taken in.
    let steering =
        v1::StepReport { kind: v1::StepKind::Steering.into(), effect: 0, absorbs: 2, ..result(turn, 0, "more") };
    assert_eq!(worker.step(steering).await, v1::StepOutcome::Refused);
    assert_eq!(rows().await, 0);

    // Its own, behind this replica's back somebody else's.
    assert_eq!(worker.step(intent(turn, 0, "first")).await, v1::StepOutcome::Stored);
    sql.execute("UPDATE sessions SET epoch = epoch + 1", &[]).await.unwrap();
    assert_eq!(worker.step(result(turn, 0, "late")).await, v1::StepOutcome::Fenced);
    mock.script([asks("")]);
    let mut events = worker.generate(turn, 1, "hello").await.unwrap();
    let status = events.message().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status:?}");
    assert_eq!(rows().await, 1);
    assert_eq!(plane.metric("hermes_reports_fenced_total{report=\"step\"}").await.as_deref(), Some("3"));

    // What only the control plane may write ends the connection.
    let reply = v1::StepReport { kind: v1::StepKind::ModelReply.into(), effect: 0, ..result(turn, 5, "{}") };
    worker.say(Says::Step(reply)).await;
    worker.hung_up().await;
    assert_eq!(rows().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_differs_from_its_journal_is_given_up_and_the_next_message_runs() {
    let mock = MockModel::start().await.unwrap();
    let plane = Plane::start(&mock).await;
    let mut worker = plane.worker("coder").await;
    let (first, next) = (plane.tell("hello"), plane.tell("and again"));
    let turn = worker.assignment().await.turn;
    for _ in 0..2 {
        assert_eq!(worker.step(intent(turn, 0, "call")).await, v1::StepOutcome::Stored);
    }
    assert_eq!(worker.step(intent(turn, 0, "another call")).await, v1::StepOutcome::Diverged);
    let end = ended(&plane, &first).await;
    assert_eq!(end["state"], "dead");
    assert!(end["reply"].as_str().unwrap().starts_with("I could not answer this message"), "{}", end["reply"]);
    assert_eq!(plane.metric("hermes_turns_diverged_total").await.as_deref(), Some("1"));
    assert!(!worker.complete(turn, "never mind").await);

    let turn = worker.assignment().await.turn;
    assert_eq!(worker.step(intent(turn, 0, "call")).await, v1::StepOutcome::Stored);
    assert!(worker.complete(turn, "fine").await);
    let end = ended(&plane, &next).await;
    assert_eq!((&end["state"], &end["reply"]), (&json!("succeeded"), &json!("fine")));
}
