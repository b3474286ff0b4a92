//! The registry of agents: changes, history, and when they apply.

use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::system::{Options, Up, until};

use super::{SOON, agent_of, ask, ended, tell, with_model, worker_of};

#[test]
fn every_change_is_a_revision_that_can_be_returned_to() {
    let up = Up::start(Options::default());
    up.ctl(["agent", "add", "coder", "--model", "builtin/echo", "--enabled-toolsets", "files,web"]).ok();
    assert!(up.ctl(["agent", "add", "coder"]).refused(1).contains("exists already"));
    up.ctl(["agent", "update", "coder", "--model", "mock/two", "--enabled-toolsets", ""]).ok();
    up.ctl(["agent", "update", "coder", "--clear", "model"]).ok();
    let stale = up.ctl(["agent", "update", "coder", "--model", "x/y", "--expected-revision", "2"]).refused(1);
    assert!(stale.contains("revision 3"), "{stale}");
    let agent = agent_of(&up, "coder");
    assert_eq!((&agent["revision"], &agent["effective_model"]), (&3.into(), &"builtin/echo".into()));
    assert_eq!(agent["spec"]["enabled_toolsets"], serde_json::json!([]));

    let history = up.json(["agent", "history", "coder"]);
    let models: Vec<_> = history.as_array().unwrap().iter().map(|revision| &revision["spec"]["model"]).collect();
    assert_eq!(models, [&serde_json::Value::Null, &"mock/two".into(), &"builtin/echo".into()]);
    assert!(history[0]["created_by"].as_str().unwrap().starts_with("operator "), "{history}");

    up.ctl(["agent", "rollback", "coder", "1"]).ok();
    let agent = agent_of(&up, "coder");
    assert_eq!((&agent["revision"], &agent["spec"]["model"]), (&4.into(), &"builtin/echo".into()));
    assert_eq!(agent["spec"]["enabled_toolsets"], serde_json::json!(["files", "web"]));
    assert!(up.ctl(["agent", "rollback", "coder", "9"]).refused(1).contains("no revision 9"));
    assert_eq!(ask(&up, "1", "x")["agent"], "main");
    let reply = up.json(["send", "--platform", "a", "--chat-id", "b", "--agent", "coder", "--text", "t", "--wait"]);
    assert_eq!(reply["reply"], "[coder] t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_change_applies_to_the_next_started_turn_in_the_same_process() {
    let model = MockModel::start().await.unwrap();
    model.script([Behaviour::Held]);
    let up = with_model(&model);
    let running = tell(&up, "1", "first");
    until(SOON, "the first turn runs", || (model.requests() == 1).then_some(()));
    let pid = worker_of(&up, "main")["pid"].clone();
    let waiting = tell(&up, "1", "second");
    up.ctl(["agent", "update", "main", "--model", "mock/mock-2"]).ok();
    assert_eq!(model.last().json()["model"], "mock-1");
    model.release(1);
    assert_eq!(ended(&up, &running)["model"], "mock/mock-1");
    ended(&up, &waiting);
    assert_eq!(model.last().json()["model"], "mock-2", "a queued turn takes the newest profile");
    ask(&up, "1", "third");
    assert_eq!(model.last().json()["model"], "mock-2");
    assert_eq!(worker_of(&up, "main")["pid"], pid);
    assert_eq!(up.json(["worker", "list"]).as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_change_applies_to_the_next_accepted_message_and_never_to_a_waiting_one() {
    let model = MockModel::start().await.unwrap();
    model.script([Behaviour::Held]);
    let up = with_model(&model);
    up.ctl(["agent", "add", "coder"]).ok();
    up.ctl(["route", "add", "--agent", "coder", "--match", "chat_id=1"]).ok();
    let running = tell(&up, "1", "first");
    until(SOON, "the first turn runs", || (model.requests() == 1).then_some(()));
    let waiting = tell(&up, "1", "second");
    up.ctl(["route", "add", "--agent", "main", "--match", "chat_id=1", "--at", "0"]).ok();
    let next = ask(&up, "1", "third");
    assert_eq!((&next["agent"], &next["state"]), (&"main".into(), &"succeeded".into()));
    model.release(1);
    for turn in [&running, &waiting] {
        assert_eq!(turn["agent"], "coder");
        assert_eq!(ended(&up, turn)["state"], "succeeded");
    }
    up.ctl(["route", "remove", "0"]).ok();
    assert_eq!(ask(&up, "1", "fourth")["agent"], "coder");
}
