//! Turns with tools: what is journaled, and what a second worker makes of it wherever the first one died.

use std::time::Duration;

use hermes_proto::v1::*;
use hermes_worker::seams::Without;

use crate::attached;
use crate::fake::{assignment, says, soon, turn};
use crate::journal::{ask, say};
use crate::plane::{Plane, Stage};

const UNKNOWN: &str = "UNKNOWN: this call was begun, and then its process ended. It may or may not have happened. Check \
                       before you repeat it.";

#[tokio::test]
async fn a_turn_with_tools_is_journaled_step_by_step() {
    let calls = [("a", "look", "{}"), ("b", "put", r#"{"x":1}"#), ("c", "send", "")];
    let script = [(0, ask("I look.", &calls)), (4, ask("", &[("d", "look", "{}")])), (6, say("Done."))];
    let mut stage = Stage::new(script).await;
    stage.assign(turn(7, 3, 1)).await;
    let worker_message::Message::Completed(completed) = stage.plane.end().await else { panic!("no report") };
    assert_eq!((completed.outcome(), completed.reply.as_slice()), (Outcome::Succeeded, &b"Done."[..]));
    let usage = completed.usage.unwrap();
    assert_eq!((usage.input_tokens, usage.output_tokens), (9, 15), "three calls");
    assert_eq!(stage.world.effects(), ["look", "put7.3.2", "send", "look"]);
    assert_eq!(
        stage.journal(&turn(7, 3, 1)),
        [
            "0 result: reply",
            "1 result: look done",
            r#"2 intent 7.3.2: {"id":"b","name":"put","arguments":"{\"x\":1}"}"#,
            "2 result 7.3.2: put done",
            r#"3 intent: {"id":"c","name":"send","arguments":""}"#,
            "3 result: send done",
            "4 result: reply",
            "5 result: look done",
        ]
    );
    assert_eq!(
        stage.asked(6),
        [[
            "user: hi",
            r#"assistant: I look. a=look({}) b=put({"x":1}) c=send()"#,
            "tool a: look done",
            "tool b: put done",
            "tool c: send done",
            "assistant:  d=look({})",
            "tool d: look done",
        ]]
    );
    let points = stage.world.points();
    let of_one_call =
        ["intent.before", "intent.after", "effect.before", "effect.after", "result.before", "result.after"];
    assert!(points.windows(6).any(|points| points == of_one_call), "{points:?}");
    assert_eq!(points.first().map(String::as_str), Some("turn.begin"));
    assert_eq!(points.last().map(String::as_str), Some("complete.before"));
}

#[tokio::test]
async fn what_a_turn_did_is_told_to_the_next_one() {
    let script = [(0, ask("I look.", &[("a", "look", r#"{"at":"sea"}"#)])), (2, say("Done."))];
    let mut stage = Stage::new(script).await;
    for seq in [1, 2] {
        stage.assign(turn(7, seq, 1)).await;
        let worker_message::Message::Completed(completed) = stage.plane.end().await else { panic!("no report") };
        assert_eq!(completed.reply, b"Done.");
    }
    let before = ["user: hi", r#"assistant: I look. a=look({"at":"sea"})"#, "tool a: look done", "assistant: Done."];
    assert_eq!(stage.asked(0)[1], [&before[..], &["user: hi"]].concat());

    // What is not known is fetched, and comes to the same.
    let asked =
        r#"{"text":"I look.","tool_calls":[{"id":"a","name":"look","arguments":"{\"at\":\"sea\"}"}],"usage":null}"#;
    let entries = [
        (TranscriptRole::User, "hi"),
        (TranscriptRole::Asks, asked),
        (TranscriptRole::Result, "look done"),
        (TranscriptRole::Assistant, "Done."),
    ];
    let entries = entries.map(|(role, text)| (1, role, text.to_owned())).to_vec();
    (*stage.fake.state.transcript.lock().unwrap()).clone_from(&entries);
    stage.assign(turn(8, 2, 1)).await;
    stage.plane.end().await;
    assert_eq!(stage.asked(0)[2], stage.asked(0)[1]);

    // Who has no tools is told of no calls.
    let (mut fake, _worker, mut link) = attached().await;
    *fake.state.transcript.lock().unwrap() = entries;
    link.assign(assignment(turn(8, 2, 1), &says("hi"))).await;
    let call = fake.call().await;
    assert!(call.tools.is_empty());
    assert_eq!(call.view, ["user: hi", "assistant: Done.", "user: hi"]);
}

/// Where a worker dies, and what must be true after another one has ended the turn.
struct Death {
    at: &'static str,
    nth: usize,
    effects: usize,
    unknown: bool,
    /// Times that a provider was asked for the first and the last reply.
    asked: (usize, usize),
}

const fn death(at: &'static str, nth: usize, effects: usize, unknown: bool, asked: (usize, usize)) -> Death {
    Death { at, nth, effects, unknown, asked }
}

/// Kills a worker at each of these points of a turn that calls the tool once.
async fn deaths(tool: &str, deaths: &[Death]) {
    for Death { at, nth, effects, unknown, asked } in deaths {
        let at_this = format!("{tool} killed at {at} {nth}");
        let script = [(0, ask("Wait.", &[("a", tool, "{}")])), (2, say("Done."))];
        let mut stage = Stage::new(script).await;
        stage.world.hold_at(at, *nth);
        stage.assign(turn(1, 1, 1)).await;
        soon(&at_this, stage.world.held.notified()).await;
        stage.replace_worker().await;
        stage.assign(turn(1, 1, 2)).await;
        assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()), "{at_this}");
        let done = stage.world.effects();
        assert_eq!(done.len(), *effects, "{at_this}: {done:?}");
        assert!(done.windows(2).all(|pair| pair[0] == pair[1]), "{at_this}: one key: {done:?}");
        let result = if *unknown { UNKNOWN.to_owned() } else { format!("{tool} done") };
        let view = ["user: hi".to_owned(), format!("assistant: Wait. a={tool}({{}})"), format!("tool a: {result}")];
        assert_eq!(stage.asked(2).last().unwrap(), &view, "{at_this}");
        assert_eq!((stage.asked(0).len(), stage.asked(2).len()), *asked, "{at_this}");
        assert_eq!(
            stage.fake.state.journal.lock().unwrap().replays,
            0,
            "{at_this}: the journal stood in for the model"
        );
        let journal = stage.journal(&turn(1, 1, 2));
        assert_eq!(journal.iter().any(|row| row.starts_with("1 result unknown: ")), *unknown, "{at_this}: {journal:?}");
    }
}

#[tokio::test]
async fn a_pure_call_is_made_again_unless_its_result_is_journaled() {
    deaths(
        "look",
        &[
            death("turn.begin", 1, 1, false, (1, 1)),
            death("model.before", 1, 1, false, (1, 1)),
            death("model.after", 1, 1, false, (1, 1)),
            death("effect.before", 1, 1, false, (1, 1)),
            death("effect.after", 1, 2, false, (1, 1)),
            death("result.before", 1, 2, false, (1, 1)),
            death("result.after", 1, 1, false, (1, 1)),
            death("model.before", 2, 1, false, (1, 1)),
            death("model.after", 2, 1, false, (1, 2)),
            death("complete.before", 1, 1, false, (1, 2)),
        ],
    )
    .await;
}

#[tokio::test]
async fn an_idempotent_call_is_made_again_under_its_key() {
    deaths(
        "put",
        &[
            death("model.after", 1, 1, false, (1, 1)),
            death("intent.before", 1, 1, false, (1, 1)),
            death("intent.after", 1, 1, false, (1, 1)),
            death("effect.before", 1, 1, false, (1, 1)),
            death("effect.after", 1, 2, false, (1, 1)),
            death("result.before", 1, 2, false, (1, 1)),
            death("result.after", 1, 1, false, (1, 1)),
            death("model.before", 2, 1, false, (1, 1)),
            death("model.after", 2, 1, false, (1, 2)),
            death("complete.before", 1, 1, false, (1, 2)),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_call_that_may_have_happened_is_never_made_again() {
    deaths(
        "send",
        &[
            death("model.after", 1, 1, false, (1, 1)),
            death("intent.before", 1, 1, false, (1, 1)),
            death("intent.after", 1, 0, true, (1, 1)),
            death("effect.before", 1, 0, true, (1, 1)),
            death("effect.after", 1, 1, true, (1, 1)),
            death("result.before", 1, 1, true, (1, 1)),
            death("result.after", 1, 1, false, (1, 1)),
            death("model.before", 2, 1, false, (1, 1)),
            death("model.after", 2, 1, false, (1, 2)),
            death("complete.before", 1, 1, false, (1, 2)),
        ],
    )
    .await;
}

/// The counter-check of the tests above.
#[tokio::test]
async fn without_the_intent_a_call_is_made_twice() {
    let script = [(0, ask("", &[("a", "send", "{}")])), (2, say("Done."))];
    let mut stage = Stage::with(script, Without { intent_row: true, ..Without::default() }).await;
    stage.world.hold_at("effect.after", 1);
    stage.assign(turn(1, 1, 1)).await;
    soon("the effect", stage.world.held.notified()).await;
    stage.replace_worker().await;
    stage.assign(turn(1, 1, 2)).await;
    stage.plane.completed().await;
    assert_eq!(stage.world.effects(), ["send", "send"]);
}

#[tokio::test]
async fn an_unknown_result_is_the_same_for_the_worker_after_the_next() {
    let script = [(0, ask("", &[("a", "send", "{}"), ("b", "look", "{}")])), (3, say("Done."))];
    let mut stage = Stage::new(script).await;
    stage.world.hold_at("effect.after", 1);
    stage.assign(turn(1, 1, 1)).await;
    soon("the effect", stage.world.held.notified()).await;
    stage.world.hold_at("result.after", 1);
    *stage.fake.state.joins_left.lock().unwrap() = 2;
    stage.replace_worker().await;
    stage.assign(turn(1, 1, 2)).await;
    soon("the second death", stage.world.held.notified()).await;
    stage.replace_worker().await;
    stage.assign(turn(1, 1, 3)).await;
    stage.plane.completed().await;
    assert_eq!(stage.world.effects(), ["send", "look"]);
    let asked = stage.asked(3).pop().unwrap();
    assert_eq!(asked[2..], [format!("tool a: {UNKNOWN}"), "tool b: look done".to_owned()]);
}

#[tokio::test]
async fn what_a_model_gets_wrong_is_told_to_the_model() {
    let calls = [("a", "fly", "{}"), ("b", "send", "{"), ("c", "panics", "{}"), ("d", "long", "{}")];
    let mut stage = Stage::new([(0, ask("", &calls)), (5, say("Sorry."))]).await;
    stage.assign(turn(1, 1, 1)).await;
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Sorry.".into()));
    let view = stage.asked(5).pop().unwrap();
    assert_eq!(view[2], "tool a: Error: there is no tool fly.");
    assert!(view[3].starts_with("tool b: Error: the arguments are not a JSON object: "), "{}", view[3]);
    assert_eq!(view[4], "tool c: Error: panics broke down inside.");
    assert!(view[5].ends_with("xx\n[The output was 2000 bytes long and is cut here.]") && view[5].len() <= 1_008);
    assert_eq!(stage.world.effects(), ["panics", "long"]);
    assert!(!stage.journal(&turn(1, 1, 1)).iter().any(|row| row.contains("intent")));
}

#[tokio::test]
async fn old_results_of_a_turn_that_has_grown_long_are_left_out() {
    let ids: Vec<String> = (0..32).map(|number| format!("c{number}")).collect();
    let calls: Vec<_> = ids.iter().map(|id| (id.as_str(), "long", "{}")).collect();
    let (first, second) = calls.split_at(24);
    let mut stage = Stage::new([(0, ask("", first)), (25, ask("", second)), (34, say("Done."))]).await;
    // With 32 results of a thousand bytes it is more than four times the 100,000 of the history.
    stage.assign_text(turn(1, 1, 1), &"w".repeat(380_000)).await;
    assert_eq!(stage.plane.completed().await, (Outcome::Succeeded, "Done.".into()));
    let left_out = |view: &[String]| view.iter().filter(|line| line.contains("was left out to make room")).count();
    assert_eq!(left_out(&stage.asked(25).pop().unwrap()), 0);
    // Those of the last reply never give way.
    let view = stage.asked(34).pop().unwrap();
    assert_eq!(left_out(&view), 24);
    assert!(view.iter().rev().take(8).all(|line| line.contains("xx")), "{view:?}");
    let journal = stage.journal(&turn(1, 1, 1));
    assert!(!journal.iter().any(|row| row.contains("left out")), "the journal has them whole");
}

#[tokio::test]
async fn an_endless_turn_ends_with_an_honest_sentence() {
    let script = (0..90).map(|call| (call * 2, ask("", &[(format!("c{call}").as_str(), "look", "{}")])));
    let mut stage = Stage::new(script).await;
    stage.assign(turn(1, 1, 1)).await;
    let (outcome, reply) = stage.plane.completed().await;
    assert_eq!(outcome, Outcome::Failed);
    assert_eq!(reply, "I have taken 180 steps for this message and am still not done, so I stop here.");
    assert_eq!(stage.world.effects().len(), 90);
}

#[tokio::test]
async fn a_step_is_reported_again_on_the_next_stream_and_its_effect_waits() {
    let mut stage = Stage::new([(0, ask("", &[("a", "send", "{}")])), (2, say("Done."))]).await;
    stage.world.hold_at("intent.before", 1);
    stage.assign(turn(1, 1, 1)).await;
    soon("the intent", stage.world.held.notified()).await;
    // This stream ends before anything is heard on it; the next one hears the intent twice, the second time with an answer.
    let Stage { mut fake, world, worker: _worker, plane } = stage;
    plane.to_worker.send(Err(tonic::Status::unavailable("replica stops"))).await.unwrap();
    drop(plane);
    let mut link = fake.attached().await;
    link.welcome_speaking(2, 1_000, 60_000).await;
    world.release.notify_one();
    let worker_message::Message::Step(first) = link.next().await else { panic!("no step") };
    assert_eq!((first.step, first.phase()), (1, StepPhase::Intent));
    link.to_worker.send(Err(tonic::Status::unavailable("replica stops"))).await.unwrap();
    drop(link);
    let mut link = fake.attached().await;
    link.welcome_speaking(2, 1_000, 60_000).await;
    assert_eq!(link.next().await, worker_message::Message::Step(first.clone()));
    assert!(world.effects().is_empty(), "the intent is not stored yet");
    let outcome = fake.state.journal.lock().unwrap().record(&first).into();
    let ack = StepAck { turn: first.turn, step: 1, phase: first.phase, outcome };
    link.send(control_message::Message::StepAck(ack)).await;
    let worker_message::Message::Step(result) = link.next().await else { panic!("no result") };
    assert_eq!((result.phase(), result.body.as_slice()), (StepPhase::Result, &b"send done"[..]));
    assert_eq!(world.effects(), ["send"]);
}

#[tokio::test]
async fn a_step_that_is_not_stored_drops_the_turn_silently() {
    for outcome in [StepOutcome::Fenced, StepOutcome::Diverged] {
        let mut stage = Stage::new([(0, ask("", &[("a", "send", "{}")])), (2, say("Done."))]).await;
        stage.world.hold_at("intent.before", 1);
        stage.assign(turn(1, 1, 1)).await;
        soon("the intent", stage.world.held.notified()).await;
        {
            let mut journal = stage.fake.state.journal.lock().unwrap();
            match outcome {
                StepOutcome::Fenced => _ = journal.lease(&turn(1, 1, 2)),
                _ => journal.spoil(&turn(1, 1, 1), 1, StepKind::ToolCall, "something else"),
            }
        }
        if outcome == StepOutcome::Diverged {
            // The row that is there is an intent, like the one to come.
            let mut journal = stage.fake.state.journal.lock().unwrap();
            let other = StepReport {
                turn: Some(turn(1, 1, 1)),
                step: 1,
                phase: StepPhase::Intent.into(),
                kind: StepKind::ToolCall.into(),
                effect: Effect::AtMostOnce.into(),
                body: b"another call".to_vec(),
                ..StepReport::default()
            };
            assert_eq!(journal.record(&other), StepOutcome::Stored);
        }
        stage.world.release.notify_one();
        // The worker's next word is about another turn, and its slot is free.
        stage.assign(turn(2, 1, 1)).await;
        loop {
            match stage.plane.next().await {
                worker_message::Message::Accepted(_) => {}
                worker_message::Message::Completed(completed) => {
                    assert_eq!(completed.turn, Some(turn(2, 1, 1)), "{outcome:?}");
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(stage.world.effects(), ["send"], "{outcome:?}: of the other turn");
    }
}

/// A turn that was held up until its lease's fence had passed.
async fn held_beyond_the_fence(point: &str, without: Without) -> (Vec<String>, usize) {
    let mut stage = Stage::with([(0, ask("", &[("a", "send", "{}")])), (2, say("Done."))], without).await;
    drop(stage.plane);
    let mut link = stage.fake.attached().await;
    link.welcome_speaking(2, 100, 2_000).await;
    stage.world.hold_at(point, 1);
    stage.fake.state.journal.lock().unwrap().lease(&turn(1, 1, 1));
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let silent = tokio::time::Instant::now();
    let (mut held, mut given_up) = (false, false);
    // Steps are answered, heartbeats are not; the worker looks for another control plane long before its fence.
    while silent.elapsed() < Duration::from_millis(1_650) {
        tokio::select! {
            () = stage.world.held.notified() => held = true,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
            message = link.next_if_any(), if !given_up => match message {
                Some(worker_message::Message::Step(report)) => {
                let outcome = stage.fake.state.journal.lock().unwrap().record(&report).into();
                let ack = StepAck { turn: report.turn, step: report.step, phase: report.phase, outcome };
                link.send(control_message::Message::StepAck(ack)).await;
                }
                message => given_up = message.is_none(),
            },
        }
    }
    assert_eq!(given_up, !without.self_fence, "{point}");
    assert!(held, "{point}");
    stage.world.release.notify_one();
    // By the time that the worker is back, or says what came of it, whatever begins has begun.
    if given_up {
        stage.fake.attached().await.register().await;
    } else {
        while !matches!(link.next_any().await, worker_message::Message::Step(_)) {}
    }
    (stage.world.effects(), stage.fake.state.asked(0).len())
}

#[tokio::test]
async fn nothing_begins_after_the_fence() {
    assert_eq!(held_beyond_the_fence("effect.before", Without::default()).await, (vec![], 1));
    assert_eq!(held_beyond_the_fence("model.before", Without::default()).await, (vec![], 0));
    let without = Without { self_fence: true, ..Without::default() };
    assert_eq!(
        held_beyond_the_fence("effect.before", without).await,
        (vec!["send".to_owned()], 1),
        "the counter-check"
    );
}

#[tokio::test]
async fn a_journal_that_cannot_be_understood_is_said_honestly() {
    for (step, kind, body) in [
        (1, StepKind::ModelReply, r#"{"text":"a gap before"}"#),
        (0, StepKind::Unspecified, "of a later build"),
        (0, StepKind::ModelReply, "no JSON"),
        (0, StepKind::ToolCall, "nobody asked for it"),
    ] {
        let mut stage = Stage::new([(0, say("Done."))]).await;
        stage.fake.state.journal.lock().unwrap().spoil(&turn(1, 1, 1), step, kind, body);
        stage.assign(turn(1, 1, 2)).await;
        let (outcome, reply) = stage.plane.completed().await;
        assert_eq!(outcome, Outcome::Failed, "{body}");
        assert!(reply.contains("I cannot read what I had already done"), "{reply}");
        assert!(stage.asked(0).is_empty());
    }
}

#[tokio::test]
async fn a_control_plane_of_before_steps_gets_a_turn_without_tools() {
    let mut stage = Stage::new([]).await;
    drop(stage.plane);
    let mut link = stage.fake.attached().await;
    link.welcome().await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let call = stage.fake.call().await;
    assert!(call.tools.is_empty());
    call.say("Hello.").await;
    call.done().await;
    assert_eq!(link.completed().await.reply, b"Hello.");
}

#[tokio::test]
async fn a_turn_with_tools_that_comes_to_a_control_plane_of_before_steps_ends_honestly() {
    let mut stage = Stage::new([(0, ask("", &[("a", "send", "{}")])), (2, say("Done."))]).await;
    for (session, point) in [(1, "intent.before"), (2, "intent.after")] {
        stage.world.hold_at(point, 1);
        stage.assign(turn(session, 1, 1)).await;
        soon(point, stage.world.held.notified()).await;
    }
    let Stage { mut fake, world, worker: _worker, plane } = stage;
    drop(plane);
    let mut link = fake.attached().await;
    link.welcome().await;
    world.release.notify_waiters();
    for _ in 0..2 {
        let completed = link.completed().await;
        assert_eq!(completed.outcome(), Outcome::Failed);
        let reply = String::from_utf8(completed.reply).unwrap();
        assert!(reply.starts_with("I was interrupted in the middle of something"), "{reply}");
    }
    assert!(world.effects().is_empty(), "what cannot be noted any more is not done");
}

#[tokio::test]
async fn the_tools_are_offered_with_their_schemas() {
    let mut stage = Stage::new([]).await;
    stage.assign(turn(1, 1, 1)).await;
    let call = stage.fake.call().await;
    let names: Vec<_> = call.tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(
        names,
        ["look", "put", "send", "wait", "stubborn", "panics", "long", "meet", "terminal", "clarify", "delegate_task"]
    );
    assert_eq!(call.tools[0].parameters, r#"{"type":"object"}"#);
    assert_eq!(call.tools[0].description, "it does look");
    // As shipped there are none.
    let (mut fake, _worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    assert!(fake.call().await.tools.is_empty());
}

#[tokio::test]
async fn another_server_is_tried_when_one_does_not_answer() {
    let mut stage = Stage::new([(0, say("Done."))]).await;
    stage.worker.task.abort_all();
    while stage.worker.task.join_next().await.is_some() {}
    let worker = crate::Worker::new();
    let mut config = worker.config(&stage.fake);
    config.servers =
        ["https://127.0.0.1:1", "https://no.invalid:1", &stage.fake.url].map(|url| url.parse().unwrap()).to_vec();
    let _tasks = {
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(hermes_worker::app::serve(config, worker.stop.clone()));
        tasks
    };
    stage.plane = Plane::attach(&mut stage.fake).await;
    stage.assign(turn(1, 1, 1)).await;
    assert_eq!(stage.plane.completed().await.1, "Done.");
}
