//! Turns that take too long though their workers live: the chat is told, and the next message runs.

use std::time::{Duration, Instant};

use hermes_proto::v1;
use hermes_proto::v1::control_message::Message as FromPlane;
use hermes_proto::v1::worker_message::Message as ToPlane;
use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::postgres::TestPostgres;
use serde_json::json;

use super::scripted::Joined;
use super::{Plane, document, look};

const DONE: i32 = v1::Outcome::Succeeded as i32;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_over_its_deadline_is_asked_to_end_then_given_up_and_the_next_one_runs() {
    let database = TestPostgres::empty().unwrap();
    let plane = Plane::start(database.url(), &document(json!({"turn_seconds": 1})), &[]).await;
    let mut worker = Joined::main(&plane).await.attach().await;
    let asked = plane.ask("1", "takes for ever");
    let turn = worker.take().await.turn;
    let began = Instant::now();
    let (kind, sentence) = worker.cancelled().await;
    assert_eq!(kind, v1::CancelKind::Overdue);
    assert!(sentence.contains("longer than it may"), "{sentence}");
    let (kind, _) = worker.cancelled().await;
    assert_eq!(kind, v1::CancelKind::Abandoned);
    assert!(began.elapsed() >= Duration::from_secs(2), "it had as long again to end: {:?}", began.elapsed());
    let answer = asked.await.unwrap();
    assert_eq!((&answer["state"], &answer["reply"]), (&"dead".into(), &sentence.into()), "{answer}");
    assert_eq!(look(database.url(), "SELECT reason FROM hermes.dead_turns"), "deadline");

    let asked = plane.ask("1", "quick");
    let next = worker.take().await.turn;
    worker.end(turn, DONE, "too late").await;
    assert!(!worker.acknowledged().await);
    worker.end(next, DONE, "in time").await;
    assert!(worker.acknowledged().await);
    assert_eq!(asked.await.unwrap()["reply"], "in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_shows_progress_goes_on_and_one_that_stands_still_is_ended() {
    let database = TestPostgres::empty().unwrap();
    let plane = Plane::start(database.url(), &document(json!({"stall_seconds": 3})), &[]).await;
    let mut worker = Joined::main(&plane).await.attach().await;
    let asked = plane.ask("1", "moves, then stands");
    let turn = worker.take().await.turn;
    // Signs of life without text, for twice as long as nothing may be heard.
    for _ in 0..12 {
        worker.say(ToPlane::Progress(v1::Progress { turn, text_delta: String::new() })).await;
        let heard = tokio::time::timeout(Duration::from_millis(500), worker.hear()).await;
        assert!(heard.is_err(), "{heard:?}");
    }
    let (kind, sentence) = worker.cancelled().await;
    assert_eq!(kind, v1::CancelKind::Overdue);
    assert!(sentence.contains("nothing moved"), "{sentence}");
    // One that knows no kinds takes it for a stop; its chat is told why all the same.
    worker.end(turn, v1::Outcome::Cancelled.into(), "stopped").await;
    assert!(worker.acknowledged().await);
    let answer = asked.await.unwrap();
    assert_eq!((&answer["state"], &answer["reply"]), (&"failed".into(), &sentence.into()), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_hangs_is_not_waited_for_beyond_the_limit() {
    let (database, mock) = (TestPostgres::empty().unwrap(), MockModel::start().await.unwrap());
    let mut document = document(json!({"turn_seconds": 2}));
    document["model"] = json!("mock/mock-1");
    document["providers"] = json!({"mock": {"kind": "openai", "base_url": mock.base_url()}});
    let plane = Plane::start(database.url(), &document, &[]).await;
    super::secret_file(&plane.file("join.token"), &plane.join_token("main"));
    let mut worker = super::command("hermes-worker");
    worker.args(["--server", &format!("https://{}", plane.said("worker"))]);
    worker.arg("--home").arg(plane.file("home")).arg("--join-token-file").arg(plane.file("join.token"));
    let mut worker = worker.stderr(std::process::Stdio::null()).spawn().unwrap();
    mock.script([Behaviour::HangBeforeHeaders]);
    let began = Instant::now();
    let answer = plane.ask("1", "hang").await.unwrap();
    assert!(answer["reply"].as_str().unwrap().contains("longer than"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let answer = plane.ask("1", "and now?").await.unwrap();
    assert_eq!(answer["state"], "succeeded", "{answer}");
    worker.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_turns_time_is_known_to_the_replica_that_takes_it_over() {
    let database = TestPostgres::empty().unwrap();
    let limits = document(json!({"turn_seconds": 4}));
    let (mut here, there) =
        (Plane::start(database.url(), &limits, &[]).await, Plane::start(database.url(), &limits, &[]).await);
    let joined = Joined::main(&here).await;
    let mut worker = joined.attach().await;
    let asked = there.ask("1", "takes for ever");
    let turn = worker.take().await.turn;
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    here.stop().await;
    let mut worker = joined.at(&there).attach().await;
    assert_eq!(worker.take().await.turn, turn);
    let (kind, sentence) = worker.cancelled().await;
    assert_eq!(kind, v1::CancelKind::Overdue);
    assert!(began.elapsed() < Duration::from_millis(5500), "its time did not begin anew: {:?}", began.elapsed());
    worker.end(turn, v1::Outcome::Failed.into(), &sentence).await;
    assert!(matches!(worker.hear().await, Some(FromPlane::CompletedAck(ack)) if ack.stored));
    assert_eq!(asked.await.unwrap()["reply"], sentence);
}
