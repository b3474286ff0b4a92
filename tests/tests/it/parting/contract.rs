//! What this release does with workers of the one before it, with strangers, and with those that leave.

use hermes_proto::v1;
use hermes_proto::v1::control_message::Message as FromPlane;
use hermes_proto::v1::worker_message::Message as ToPlane;
use hermes_tests::postgres::TestPostgres;
use hermes_tests::system::{Options, Up, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::scripted::Joined;
use super::{Plane, SOON, document};

const DONE: i32 = v1::Outcome::Succeeded as i32;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_the_protocol_before_is_served() {
    let database = TestPostgres::empty().unwrap();
    let plane = Plane::start(database.url(), &document(json!({"turn_seconds": 60})), &[]).await;
    let joined = Joined::main(&plane).await;
    let (mut worker, first) = joined.register(1, 1).await;
    // What it knows of the answer is as it was.
    let FromPlane::Welcome(welcome) = first else { panic!("{first:?}") };
    assert!(welcome.heartbeat_ms > 0 && welcome.lease_ms > welcome.heartbeat_ms && welcome.agent == "main");
    let asked = plane.ask("1", "hello");
    let turn = worker.take().await.turn;
    worker.end(turn, DONE, "from before").await;
    assert!(worker.acknowledged().await);
    assert_eq!(asked.await.unwrap()["reply"], "from before");

    // A turn with steps is not for it, and waits for one that can go on with it. A new one is.
    let steps = plane.tell("1", "with steps");
    let turn = worker.take().await.turn.unwrap();
    super::look(
        database.url(),
        &format!(
            "INSERT INTO hermes.turn_steps(session_id, seq, epoch, step, phase, kind, body) VALUES ({}, {}, {}, 0, 1, 1, 'x')",
            turn.session_id, turn.seq, turn.epoch
        ),
    );
    drop(worker);
    let (id, lost) =
        (welcome.worker_id, "UPDATE hermes.workers SET lost = true, lost_at = now(), left_in_order = true");
    super::look(database.url(), &format!("{lost} WHERE worker_id = {id}"));
    super::until(database.url(), "it waits", "SELECT needs FROM hermes.ready", "2").await;
    let (mut older, _) = Joined::main(&plane).await.register(1, 1).await;
    plane.tell("2", "fresh");
    assert_eq!(older.take().await.session_key, "agent:main:gateway:dm:2");
    let mut newer = Joined::main(&plane).await.attach().await;
    let again = newer.take().await;
    assert_eq!(again.turn.unwrap().session_id, turn.session_id, "{steps}");
    assert!(again.turn.unwrap().epoch > turn.epoch && again.attempt == 1, "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_with_the_remedy_and_nothing_is_guessed() {
    let database = TestPostgres::empty().unwrap();
    let plane = Plane::start(database.url(), &document(json!({})), &[]).await;
    let joined = Joined::main(&plane).await;
    for (protocol, remedy) in [(0, "start the worker from a newer release"), (3, "upgrade the control plane before")] {
        let (mut worker, first) = joined.register(protocol, 1).await;
        let FromPlane::Refused(refused) = first else { panic!("{first:?}") };
        assert!(refused.reason.contains(remedy) && !refused.retry, "{refused:?}");
        assert!(worker.hear().await.is_none());
    }
    // An outcome that nobody knows ends the stream, and the turn is still there for who comes back.
    let mut worker = joined.attach().await;
    let asked = plane.ask("1", "hello");
    let turn = worker.take().await.turn;
    worker.end(turn, 99, "a guess").await;
    assert!(worker.hear().await.is_none());
    let mut worker = joined.attach().await;
    assert_eq!(worker.take().await.turn, turn, "the same process has it still");
    worker.end(turn, DONE, "known").await;
    assert!(worker.acknowledged().await);
    assert_eq!(asked.await.unwrap()["reply"], "known");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_handed_back_or_left_in_order_goes_on_elsewhere_as_its_first_attempt() {
    let database = TestPostgres::empty().unwrap();
    let plane = Plane::start(database.url(), &document(json!({})), &[]).await;
    let mut leaving = Joined::main(&plane).await.attach().await;
    let asked = plane.ask("1", "hello");
    let turn = leaving.take().await.turn;
    // One that was out of touch hands back and stays: it may have the turn again.
    leaving.say(ToPlane::HandBack(v1::HandBack { turn })).await;
    let again = leaving.acknowledged_and_given_again().await;
    assert_eq!((again.turn.unwrap().seq, again.attempt), (turn.unwrap().seq, 1));
    let turn = again.turn;
    // One that does it more often than it has slots is parted with.
    leaving.say(ToPlane::HandBack(v1::HandBack { turn })).await;
    assert!(matches!(leaving.hear().await, Some(FromPlane::Drain(_))));
    assert!(leaving.acknowledged().await);
    let mut other = Joined::main(&plane).await.attach().await;
    let again = other.take().await;
    assert_eq!((again.turn.unwrap().seq, again.attempt), (turn.unwrap().seq, 1));
    leaving.end(turn, DONE, "too late").await;
    assert!(!leaving.acknowledged().await);
    leaving.say(ToPlane::HandBack(v1::HandBack { turn })).await;
    assert!(!leaving.acknowledged().await);

    // The other one says goodbye and closes without a word about its turn.
    other.leave().await;
    let mut third = Joined::main(&plane).await.attach().await;
    let again = third.take().await;
    assert_eq!(again.attempt, 1, "no crash is counted");
    third.end(again.turn, DONE, "at last").await;
    assert!(third.acknowledged().await);
    assert_eq!(asked.await.unwrap()["reply"], "at last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_drained_through_any_replica() {
    let database = TestPostgres::empty().unwrap();
    let (here, there) = (document(json!({})), document(json!({"turn_seconds": 60})));
    let here = Plane::start(database.url(), &here, &[]).await;
    let there = Plane::start(database.url(), &there, &[]).await;
    let mut worker = Joined::main(&here).await.at(&there).attach().await;
    assert!(here.ctl(&["worker", "drain", "99"]).refused(1).contains("no such worker: 99"));
    let told = here.json(&["worker", "drain", "--agent", "main", "--grace", "7s"]);
    assert_eq!(told.as_array().unwrap().len(), 1, "{told}");
    match worker.hear().await {
        Some(FromPlane::Drain(drain)) => assert!((1..=7_000).contains(&drain.grace_ms), "{drain:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(there.json(&["worker", "list"])[0]["state"], "draining");
    here.tell("1", "not for it");
    let waiting = here.hermesctl(&["worker", "drain", "--all", "--wait"]);
    let waiting = tokio::task::spawn_blocking(move || hermes_tests::system::run(waiting, b"", SOON).ok());
    worker.leave().await;
    waiting.await.unwrap();
    let mut fresh = Joined::main(&here).await.attach().await;
    assert_eq!(fresh.take().await.attempt, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_process_is_not_that_of_one_that_claims_its_pid() {
    let up = Up::start(Options::default());
    let launched = |not: i64| {
        until(SOON, "a worker of the launcher", || {
            let workers = up.json(["worker", "list"]);
            let workers = workers.as_array().unwrap();
            workers
                .iter()
                .find(|one| one["home"] != "/nowhere" && one["pid"] != not)
                .and_then(|one| one["pid"].as_i64())
        })
    };
    let pid = launched(0);
    let endpoint: serde_json::Value =
        serde_json::from_slice(&std::fs::read(up.data().join("endpoint.json")).unwrap()).unwrap();
    let token = up.json(["token", "create", "--role", "worker", "--agent", "main"]);
    let server = format!("https://{}", endpoint["worker"].as_str().unwrap());
    let joined = Joined::with(&server, token["token"].as_str().unwrap()).await;
    let (mut liar, first) = joined.register(2, pid).await;
    assert!(matches!(first, FromPlane::Welcome(_)), "{first:?}");
    // Some chat comes to it, the others to the real one.
    for chat in 0..40 {
        up.json(["send", "--platform", "gateway", "--chat-id", &chat.to_string(), "--text", "hello"]);
        if liar.would_take().await {
            break;
        }
    }
    let turn = liar.take().await.turn;
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    launched(pid);
    liar.end(turn, DONE, "still mine").await;
    assert!(liar.acknowledged().await, "its own lease was not touched");
}
