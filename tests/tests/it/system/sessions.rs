//! Which messages share a dialogue, and when it ends.

use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::system::{Options, Up, until};
use serde_json::{Value, json};

use super::{SOON, ended, with_model};

#[track_caller]
fn apply(up: &Up, document: &Value) {
    up.ctl_with_input(["apply", "-f", "-"], document.to_string().as_bytes()).ok();
}

#[test]
fn isolation_flags_decide_who_shares_a_dialogue_and_the_offline_key_agrees() {
    let up = Up::start(Options::default());
    for (per_user, thread_per_user) in [(true, false), (false, false), (true, true), (false, true)] {
        apply(&up, &json!({"group_sessions_per_user": per_user, "thread_sessions_per_user": thread_per_user}));
        for source in [
            &["--chat-type", "dm", "--chat-id", "5"][..],
            &["--chat-type", "group", "--chat-id", "-5"],
            &["--chat-type", "group", "--chat-id", "-5", "--thread-id", "9"],
        ] {
            let keys = ["ada", "bob"].map(|user| {
                let user = ["--platform", "telegram", "--user-id", user];
                let flags = user.iter().chain(source).copied();
                let sent = up.json(["send", "--text", "x"].into_iter().chain(flags.clone()));
                let group = format!("--group-sessions-per-user={per_user}");
                let thread = format!("--thread-sessions-per-user={thread_per_user}");
                let offline = ["session", "key", &group, &thread].into_iter().chain(flags);
                assert_eq!(up.json(offline)["session_key"], sent["session_key"]);
                (sent["session_key"].clone(), sent["session_id"].clone())
            });
            let apart = match source {
                [_, "dm", ..] => false,
                [.., "--thread-id", _] => thread_per_user && per_user,
                _ => per_user,
            };
            assert_eq!(keys[0].0 != keys[1].0, apart, "{source:?} {per_user} {thread_per_user}: {keys:?}");
            assert_eq!(keys[0].1 != keys[1].1, apart, "a key is a session: {keys:?}");
        }
    }
}

/// As if nobody had written in it for so long.
#[track_caller]
fn age(up: &Up, session: &Value, minutes: u32) {
    let number = session["session_id"].as_str().unwrap().trim_start_matches('s');
    up.sql(&format!(
        "UPDATE hermes.sessions SET updated_at = now() - interval '{minutes} minutes' WHERE session_id = {number}"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_dialogue_ends_by_policy_and_the_next_message_begins_a_new_one() {
    let model = MockModel::start().await.unwrap();
    let up = with_model(&model);
    apply(
        &up,
        &json!({
            "session_reset": {"mode": "idle", "idle_minutes": 10},
            "reset_by_platform": {"slack": {"mode": "none"}, "irc": {"mode": "daily", "at_hour": 4}},
        }),
    );
    let send = |platform: &str, text: &str| {
        up.json(["send", "--platform", platform, "--chat-id", "1", "--text", text, "--wait"])
    };
    let asked = || model.last().json()["messages"].as_array().unwrap().len();

    let first = send("telegram", "one");
    age(&up, &first, 9);
    let same = send("telegram", "two");
    assert_eq!(same["session_id"], first["session_id"]);
    assert_eq!(asked(), 4, "system, the first exchange, the message");
    age(&up, &first, 11);
    let fresh = send("telegram", "three");
    assert_ne!(fresh["session_id"], first["session_id"]);
    assert_eq!(fresh["session_key"], first["session_key"]);
    assert_eq!(asked(), 2, "it starts from nothing");
    let old = up.json(["session", "show", first["session_id"].as_str().unwrap()]);
    assert_eq!((&old["end_reason"], old["ended_at_ms"].is_number()), (&"idle".into(), true));
    assert_eq!(old["transcript"].as_array().unwrap().len(), 2);

    // Never here, daily there.
    let slack = send("slack", "one");
    age(&up, &slack, 100_000);
    assert_eq!(send("slack", "two")["session_id"], slack["session_id"]);
    let irc = send("irc", "one");
    age(&up, &irc, 24 * 60 + 1);
    assert_ne!(send("irc", "two")["session_id"], irc["session_id"]);
    let old = up.json(["session", "show", irc["session_id"].as_str().unwrap()]);
    assert_eq!(old["end_reason"], "daily");
    let live = up.json(["session", "list"]).to_string();
    let id = |session: &Value| format!("\"{}\"", session["session_id"].as_str().unwrap());
    assert!(!live.contains(&id(&irc)) && live.contains(&id(&slack)), "{live}");
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_of_a_dialogue_that_was_replaced_end_before_those_of_the_new_one_begin() {
    let model = MockModel::start().await.unwrap();
    model.script([Behaviour::Held]);
    let up = with_model(&model);
    apply(&up, &json!({"session_reset": {"mode": "idle", "idle_minutes": 10}}));
    let send = |text: &str| up.json(["send", "--platform", "irc", "--chat-id", "1", "--text", text]);
    let running = send("one");
    until(SOON, "the first turn runs", || (model.requests() == 1).then_some(()));
    let waiting = send("two");
    age(&up, &running, 11);
    let next = send("three");
    assert_ne!(next["session_id"], running["session_id"]);
    let shown = up.json(["session", "show", next["session_id"].as_str().unwrap()]);
    assert_eq!(shown["state"], "blocked");
    assert_eq!(model.requests(), 1);
    model.release(1);
    let ends: Vec<_> = [&running, &waiting, &next].map(|turn| ended(&up, turn)["ended_at_ms"].as_i64()).into();
    assert!(ends.is_sorted(), "{ends:?}");
    assert_eq!(model.requests(), 3);
}
