//! The right agent answers, as itself, once.

use std::time::{Duration, Instant};

use hermes_tests::system::{Options, Up, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{SEED, SOON, add_with_soul, agent_of, ask, chat, personas, with_model, worker_of};

#[test]
fn without_key_and_config_main_answers_with_the_echo_and_up_says_how_to_get_a_model() {
    let up = Up::start(Options::default());
    assert_eq!(chat(&up, "main", "hello"), "[main] hello");
    let log = up.log();
    assert!(log.contains("builtin/echo") && log.contains("ANTHROPIC_API_KEY"), "{log}");
    assert_eq!(up.said(), Vec::<String>::new(), "stdout carries the ready line alone");
}

#[test]
fn the_example_of_the_seed_is_applied_explained_listed_and_exported_unchanged() {
    let up = Up::start(Options::default());
    let file = up.file("seed.yaml", SEED);
    let file = file.to_str().unwrap();
    up.ctl(["diff", "-f", file]).differs();
    up.ctl(["apply", "-f", file]).ok();
    up.ctl(["diff", "-f", file]).ok();

    let explain = |flags: &[&str]| up.json(["route", "explain"].iter().chain(flags));
    let to_coder = explain(&["--platform", "telegram", "--chat-id", "-1001234", "--thread-id", "42"]);
    assert_eq!(to_coder["agent"], "coder");
    assert_eq!((&to_coder["decided_by"], &to_coder["route_index"]), (&"route".into(), &0.into()));
    let other = explain(&["--platform", "telegram", "--chat-id", "-1001234", "--thread-id", "43"]);
    assert_eq!((&other["agent"], &other["decided_by"]), (&"main".into(), &"default".into()));
    assert!(other["route_index"].is_null());
    assert_eq!(other["routes"][0]["failed_key"], "thread_id");
    assert_eq!(other["routes"][1]["failed_key"], "platform");
    let slack = explain(&["--platform", "slack", "--guild-id", "T0ABC"]);
    assert_eq!((&slack["agent"], &slack["route_index"]), (&"coder".into(), &1.into()));

    let agents = up.json(["agent", "list"]);
    let ids: Vec<&str> = agents.as_array().unwrap().iter().map(|agent| agent["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["coder", "main", "research"]);
    let (coder, research) = (&agents[0], &agents[2]);
    assert_eq!(coder["home"], format!("{}/home/.hermes/profiles/coder", up.root().display()));
    assert_eq!(research["home"], format!("{}/homes/research", up.data().display()));
    assert_eq!((&coder["route_count"], &research["route_count"]), (&2.into(), &0.into()));
    assert_eq!(coder["routes"][0]["match"]["thread_id"], "42");
    for agent in [coder, research] {
        let warnings = agent["warnings"].to_string();
        assert!(warnings.contains("anthropic/claude-"), "nobody serves its model: {warnings}");
    }
    let table = up.ctl(["agent", "list"]).ok().out;
    assert!(table.contains("main *") && table.contains("anthropic/claude-opus-4-6"), "{table}");

    let exported = up.file("exported.yaml", super::export(&up));
    up.ctl(["diff", "-f", exported.to_str().unwrap()]).ok();
    up.ctl(["apply", "-f", exported.to_str().unwrap()]).ok();
    up.ctl(["diff", "-f", exported.to_str().unwrap()]).ok();

    // Their turns fail honestly, and main answers by the default model.
    let failed = up.ctl([
        "send",
        "--platform",
        "slack",
        "--guild-id",
        "T0ABC",
        "--chat-id",
        "C1",
        "--text",
        "x",
        "--wait",
        "-o",
        "json",
    ]);
    assert_eq!((failed.code, &failed.json()["state"]), (Some(1), &"failed".into()));
    let reply = failed.json()["reply"].as_str().unwrap().to_owned();
    assert!(reply.contains("no provider is configured for") && reply.contains("default_provider"), "{reply}");
    assert_eq!(chat(&up, "main", "still here"), "[main] still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn weixin_goes_to_main_and_wecom_to_its_agent_with_keys_souls_and_memories_of_their_own() {
    let model = personas().await;
    let up = with_model(&model);
    add_with_soul(&up, "wecom-agent", "I am the WeCom agent.");
    up.ctl(["route", "add", "--agent", "wecom-agent", "--match", "platform=wecom"]).ok();
    let soul = up.file("main.md", "I am main.");
    up.ctl(["agent", "update", "main", "--soul-file", soul.to_str().unwrap()]).ok();

    let send = |platform: &str| {
        up.json(["send", "--platform", platform, "--chat-id", "c1", "--user-id", "u1", "--text", "hi", "--wait"])
    };
    let (weixin, wecom) = (send("weixin"), send("wecom"));
    assert_eq!((&weixin["agent"], &wecom["agent"]), (&"main".into(), &"wecom-agent".into()));
    assert_eq!(weixin["session_key"], "agent:main:weixin:dm:c1");
    assert_eq!(wecom["session_key"], "agent:wecom-agent:wecom:dm:c1");
    assert!(weixin["reply"].as_str().unwrap().starts_with("I am main. | hi"), "{weixin}");
    assert!(wecom["reply"].as_str().unwrap().starts_with("I am the WeCom agent. | hi"), "{wecom}");

    // What one of them notes, the other never sees.
    let memory = |agent: &str| {
        let home = agent_of(&up, agent)["home"].as_str().unwrap().to_owned();
        std::path::Path::new(&home).join("memories/MEMORY.md")
    };
    assert_ne!(memory("main"), memory("wecom-agent"));
    std::fs::write(memory("wecom-agent"), "the WeCom password is tulip").unwrap();
    // A running dialogue keeps the memories with which it began.
    let sees = |platform: &str| {
        let chat = uuid::Uuid::new_v4().to_string();
        up.json(["send", "--platform", platform, "--chat-id", &chat, "--user-id", "u1", "--text", "hi", "--wait"]);
        model.last().json()["messages"][0]["content"].as_str().unwrap().contains("tulip")
    };
    until(SOON, "its own agent sees the note", || sees("wecom").then_some(()));
    assert!(!sees("weixin"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_answer_as_themselves_and_one_killed_worker_neither_stops_the_other_nor_stays_away() {
    let model = personas().await;
    let up = with_model(&model);
    add_with_soul(&up, "anna", "I am Anna.\nI like maps.");
    add_with_soul(&up, "boris", "I am Boris.\nI like trains.");
    for agent in ["anna", "boris"] {
        up.ctl(["route", "add", "--agent", agent, "--match", &format!("chat_id={agent}")]).ok();
    }
    let reply = |agent: &str, text: &str| ask(&up, agent, text)["reply"].as_str().unwrap().to_owned();
    assert!(reply("anna", "who?").starts_with("I am Anna. | who?"));
    assert!(reply("boris", "who?").starts_with("I am Boris. | who?"));
    let (anna, boris) = (worker_of(&up, "anna"), worker_of(&up, "boris"));
    assert_ne!(anna["pid"], boris["pid"]);
    assert_ne!(anna["home"], boris["home"]);

    kill(Pid::from_raw(i32::try_from(anna["pid"].as_i64().unwrap()).unwrap()), Signal::SIGKILL).unwrap();
    let killed = Instant::now();
    assert!(reply("boris", "alone?").starts_with("I am Boris. | alone?"));
    assert!(reply("anna", "back?").starts_with("I am Anna. | back?"));
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    assert_ne!(worker_of(&up, "anna")["pid"], anna["pid"]);
    assert_eq!(worker_of(&up, "boris")["pid"], boris["pid"], "the other one was left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_message_id_five_times_in_parallel_is_one_turn_with_one_reply() {
    let model = personas().await;
    let up = with_model(&model);
    let send = || {
        up.json(["send", "--platform", "telegram", "--chat-id", "9", "--message-id", "m-1", "--text", "once", "--wait"])
    };
    let answers: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..5).map(|_| scope.spawn(send)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|answer| answer["duplicate"] == false).count(), 1);
    for answer in &answers {
        assert_eq!(answer["state"], "succeeded");
        assert_eq!((&answer["turn"], &answer["reply"]), (&answers[0]["turn"], &answers[0]["reply"]));
    }
    let again = send();
    assert_eq!((&again["duplicate"], &again["turn"]), (&true.into(), &answers[0]["turn"]));
    assert_eq!(model.requests(), 1);
    let session = up.json(["session", "show", answers[0]["session_id"].as_str().unwrap()]);
    assert_eq!(session["transcript"].as_array().unwrap().len(), 1);

    // Only within its account and chat is an id the same message.
    let elsewhere = up.json([
        "send",
        "--platform",
        "telegram",
        "--chat-id",
        "10",
        "--message-id",
        "m-1",
        "--text",
        "once",
        "--wait",
    ]);
    assert_eq!(elsewhere["duplicate"], false);
    let other = up.ctl([
        "send",
        "--platform",
        "telegram",
        "--chat-id",
        "9",
        "--message-id",
        "m-1",
        "--text",
        "twice",
        "--wait",
    ]);
    assert!(other.clone().refused(1).contains("other"), "{}", other.err);
}
