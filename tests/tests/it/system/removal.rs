//! `agent remove`: a tombstone that keeps what runs, tells what waits, and lets everything come back.

use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::system::{Options, Up, until};
use serde_json::Value;

use super::{SOON, ended, export, tell, with_model};

#[test]
fn an_agent_that_routes_or_the_default_name_is_removed_only_with_a_word_about_them() {
    let up = Up::start(Options::default());
    let document = "default_agent: coder\nagents: {coder: {}, helper: {}, other: {}}\nplatforms: {telegram: {accounts: [\
                    {id: a, token_env: NOT_SET, homes: {coder: 1}}, {id: b, token_env: NOT_SET, homes: {coder: 2, helper: 3, other: 4}}]}}\nroutes:\n\
                    - {match: {platform: slack}, agent: coder}\n- {match: {platform: irc}, agent: main}\n\
                    - {match: {platform: telegram}, agent: coder}\n";
    let file = up.file("agents.yaml", document);
    up.ctl(["apply", "-f", file.to_str().unwrap()]).ok();
    let before = export(&up);

    let error = up.ctl(["agent", "remove", "coder"]).refused(1);
    for part in ["routes[0]", "routes[2]", "default_agent", "platform=slack", "--yes", "--reroute-to"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let homes = "platforms.telegram.accounts[a].homes.coder and platforms.telegram.accounts[b].homes.coder still name";
    assert!(error.contains(homes), "{error}");
    for (args, part) in [
        (["agent", "remove", "main", "--yes"], "main is never removed"),
        (["agent", "remove", "ghost", "--yes"], "agent ghost is not registered"),
        (["agent", "remove", "coder", "--reroute-to=ghost"], "agent ghost is not registered"),
        (["agent", "remove", "coder", "--reroute-to=coder"], "names the agent itself"),
    ] {
        let error = up.ctl(args).refused(1);
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(export(&up), before, "nothing was changed");

    let error = up.ctl(["agent", "remove", "other"]).refused(1);
    assert!(error.contains("platforms.telegram.accounts[b].homes.other still name agent other: say --yes"), "{error}");
    up.ctl(["agent", "remove", "other", "--yes"]).ok();

    let removed = up.json(["agent", "remove", "coder", "--reroute-to", "helper"]);
    assert_eq!(removed["routes_changed"], 2);
    let routes = up.json(["route", "list"]).to_string();
    assert!(routes.contains("helper") && !routes.contains("coder"), "{routes}");
    assert!(export(&up).contains("default_agent: helper"));
    let homes = || export(&up).matches("helper: \"").count();
    assert_eq!((homes(), export(&up).contains("helper: \"3\"")), (2, true), "each account has one: {}", export(&up));
    let error = up.ctl(["agent", "remove", "helper"]).refused(1);
    assert!(error.contains("accounts[a].homes.helper"), "{error}");

    let removed = up.json(["agent", "remove", "helper", "--yes"]);
    assert_eq!(removed["routes_changed"], 2);
    assert!(!export(&up).contains("homes:"), "{}", export(&up));
    let explained = up.json(["route", "explain", "--platform", "telegram", "--chat-id", "1"]);
    assert_eq!((&explained["agent"], &explained["decided_by"]), (&"main".into(), &"default".into()));
    assert_eq!(explained["routes"].as_array().unwrap().len(), 1);
}

#[test]
fn an_agent_with_jobs_is_removed_only_with_a_word_about_them() {
    let up = Up::start(Options::default());
    up.ctl(["agent", "add", "coder"]).ok();
    for schedule in ["0 9 * * *", "30m"] {
        up.ctl(["cron", "add", "coder", schedule, "look"]).ok();
    }
    let jobs = || up.json(["cron", "list"]);
    let names: Vec<String> =
        jobs().as_array().unwrap().iter().map(|job| job["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["look", "look 2"], "nobody had named them");
    let refused = up.ctl(["agent", "remove", "coder"]).refused(1);
    assert!(refused.contains("2 scheduled jobs of agent coder would run no more: say --yes"), "{refused}");
    assert_eq!(jobs()[0]["state"], "scheduled");
    assert_eq!(up.json(["agent", "remove", "coder", "--yes"])["jobs_stopped"], 2);
    let id = jobs()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(jobs()[0]["state"], "stopped");
    let refused = up.ctl(["cron", "run", &id]).refused(1);
    assert!(refused.contains("the agent of the job \"look\" was removed"), "{refused}");
    assert_eq!(up.json(["cron", "runs", &id]), serde_json::json!([]), "what was refused is no run");
}

fn states(up: &Up, session: &Value) -> Vec<String> {
    let session = up.json(["session", "show", session["session_id"].as_str().unwrap()]);
    let turns = session["transcript"].as_array().unwrap();
    turns.iter().map(|turn| turn["state"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_finishes_what_waits_is_cancelled_with_a_notice_and_all_comes_back_until_it_is_purged() {
    let model = MockModel::start().await.unwrap();
    model.otherwise(Behaviour::Held);
    let up = with_model(&model);
    let soul = up.file("soul.md", "I am the coder.");
    up.ctl(["agent", "add", "coder", "--soul-file", soul.to_str().unwrap()]).ok();
    let to_coder = |text: &str, more: &[&str]| {
        let args = ["send", "--platform", "irc", "--chat-id", "c", "--agent", "coder", "--text", text, "-o", "json"];
        up.ctl(args.iter().chain(more))
    };
    let running = to_coder("first", &[]).ok().json();
    until(SOON, "the first turn runs", || (model.requests() == 1).then_some(()));
    let waiting = to_coder("second", &[]).ok().json();
    assert_eq!(waiting["state"], "queued");
    let home = super::agent_of(&up, "coder")["home"].as_str().unwrap().to_owned();

    // Purged whole or not at all.
    let error = up.ctl(["agent", "remove", "coder", "--purge"]).refused(1);
    assert!(error.contains("nothing was changed") && error.contains("still run"), "{error}");
    assert_eq!(super::agent_of(&up, "coder")["id"], "coder");

    up.ctl(["agent", "remove", "coder"]).ok();
    assert!(!up.json(["agent", "list"]).to_string().contains("coder"));
    assert!(to_coder("too late", &[]).refused(1).contains("coder"));
    let error = up.ctl(["agent", "remove", "coder", "--purge"]).refused(1);
    assert!(error.contains("still run"), "{error}");

    model.release(1);
    let finished = ended(&up, &running);
    assert_eq!(finished["state"], "succeeded");
    assert!(finished["reply"].as_str().unwrap().starts_with("first"), "{finished}");
    let cancelled = ended(&up, &waiting);
    assert_eq!(cancelled["state"], "cancelled");
    assert!(cancelled["reply"].as_str().unwrap().contains("removed"), "{cancelled}");
    assert_eq!(model.requests(), 1, "nobody was asked about it");
    until(SOON, "its worker leaves", || (!up.json(["worker", "list"]).to_string().contains("coder")).then_some(()));

    // The same agent again: its home, and its sessions with all they hold.
    model.otherwise(Behaviour::Answer);
    up.ctl(["agent", "add", "coder"]).ok();
    let third = to_coder("third", &["--wait"]).ok().json();
    assert_eq!(third["session_id"], running["session_id"]);
    assert_eq!(states(&up, &running), ["succeeded", "cancelled", "succeeded"]);
    let asked = model.last().json()["messages"].to_string();
    assert!(asked.contains("I am the coder.") && asked.contains("first"), "{asked}");
    assert_eq!(super::agent_of(&up, "coder")["home"], home.as_str());

    // And never again.
    up.ctl(["agent", "remove", "coder", "--purge"]).ok();
    assert!(!std::path::Path::new(&home).try_exists().unwrap());
    assert_eq!(up.json(["session", "list", "--ended"]).as_array().unwrap().len(), 0);
    up.ctl(["agent", "add", "coder"]).ok();
    let fresh = to_coder("fresh", &["--wait"]).ok().json();
    assert_ne!(fresh["session_id"], running["session_id"]);
    let asked = model.last().json()["messages"].to_string();
    assert!(!asked.contains("I am the coder.") && !asked.contains("first"), "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_the_turns_of_a_removed_agent_ended() {
    let model = MockModel::start().await.unwrap();
    model.otherwise(Behaviour::Held);
    let mut up = with_model(&model);
    up.ctl(["agent", "add", "coder"]).ok();
    up.ctl(["route", "add", "--agent", "coder", "--match", "platform=telegram"]).ok();
    let running = tell(&up, "1", "first");
    let waiting = tell(&up, "1", "second");
    until(SOON, "the first turn runs", || (model.requests() == 1).then_some(()));
    up.ctl(["agent", "remove", "coder", "--yes"]).ok();
    up.kill9();
    up.restart();
    // Who would have finished it is gone, and nobody is started for a removed agent.
    for turn in [&running, &waiting] {
        let end = ended(&up, turn);
        assert_eq!(end["state"], "cancelled", "{end}");
        assert!(end["reply"].as_str().unwrap().contains("removed"), "{end}");
    }
    assert!(!up.json(["worker", "list"]).to_string().contains("coder"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_a_document_prunes_is_left_by_its_worker_and_what_waits_is_cancelled() {
    let model = MockModel::start().await.unwrap();
    model.otherwise(Behaviour::Held);
    let up = with_model(&model);
    up.ctl(["agent", "add", "coder"]).ok();
    up.ctl(["route", "add", "--agent", "coder", "--match", "platform=telegram"]).ok();
    let running = tell(&up, "1", "first");
    let waiting = tell(&up, "1", "second");
    until(SOON, "the first turn runs", || (model.requests() == 1).then_some(()));
    let mut pruned = super::model_document(&model);
    pruned["routes"] = serde_json::json!([]);
    let file = up.file("pruned.yaml", pruned.to_string());
    up.ctl(["apply", "--prune", "-f", file.to_str().unwrap()]).ok();
    assert!(!up.json(["agent", "list"]).to_string().contains("coder"));
    until(SOON, "its worker is drained", || (super::worker_of(&up, "coder")["state"] == "draining").then_some(()));
    model.release(1);
    assert_eq!(ended(&up, &running)["state"], "succeeded");
    assert_eq!(ended(&up, &waiting)["state"], "cancelled");
    assert_eq!(model.requests(), 1, "nobody was asked about it");
    until(SOON, "its worker leaves", || (!up.json(["worker", "list"]).to_string().contains("coder")).then_some(()));
}
