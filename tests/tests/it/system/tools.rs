//! Every tool in one turn, by a scripted model, with the worker killed between each two steps in turn: what was done is done once,
//! and the transcript says so once.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use axum::extract::Query;
use axum::routing::get;
use axum::{Json, Router};
use hermes_tests::fake_telegram::FakeTelegram;
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use hermes_tests::system::{Options, Up, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::mcp::plant;
use super::{SOON, agent_of};

const BOT: &str = "790:tools-secret";
/// What the agent asks in the end, and how the chat sees it.
const QUESTION: &str = "Where to?\n1. east\n2. west";

/// What the model of agent `number` asks for, one after the other; the last call ends the turn. `site` is where the web is.
fn script(number: usize, site: SocketAddr) -> Vec<(&'static str, Value)> {
    let skill = "---\nname: maps\ndescription: Reads maps.\n---\nLook north.\n";
    vec![
        ("write_file", json!({"path": "notes.txt", "content": "one\n"})),
        ("read_file", json!({"path": "notes.txt"})),
        ("patch", json!({"path": "notes.txt", "old_string": "one", "new_string": "two"})),
        ("search_files", json!({"pattern": "two"})),
        ("terminal", json!({"command": "echo ran >> log.txt; cat log.txt"})),
        ("process", json!({"action": "list"})),
        ("skill_manage", json!({"action": "create", "name": "maps", "content": skill})),
        ("skill_view", json!({"name": "maps"})),
        ("skills_list", json!({})),
        ("memory", json!({"action": "add", "target": "memory", "content": "The harbour is east."})),
        ("todo", json!({"todos": [{"id": "1", "content": "sail", "status": "pending"}]})),
        ("session_search", json!({"query": "harbour"})),
        ("send_message", json!({"target": "origin", "message": "on my way"})),
        ("ask_agent", json!({"agent": "helper", "message": format!("well, {number}?")})),
        ("web_fetch", json!({"url": format!("http://{site}/page?by={number}")})),
        ("web_search", json!({"query": format!("tea{number}")})),
        ("mcp_own_note", json!({"text": "noted"})),
        ("cronjob", json!({"action": "create", "name": "watch", "schedule": "every 1d", "prompt": "Look out."})),
        ("delegate_task", json!({"goal": format!("part of {number}")})),
        ("clarify", json!({"question": "Where to?", "choices": ["east", "west"]})),
    ]
}

/// Model calls of a turn: one before each call of the script, and two of the task apart.
fn boundaries() -> usize {
    script(0, SocketAddr::from(([127, 0, 0, 1], 1))).len() + 2
}

/// The model: `go N` runs the script, and once, when it is asked for the Nth time, it says so and does not answer.
async fn scripted(reached: mpsc::Sender<usize>, site: SocketAddr) -> MockModel {
    let model = MockModel::start().await.unwrap();
    let held = Mutex::new(HashSet::new());
    model.respond(move |body| {
        let messages = body["messages"].as_array().cloned().unwrap_or_default();
        let begun = messages.iter().rposition(|message| message["role"] == "user").unwrap_or_default();
        let said = messages[begun]["content"].as_str().unwrap_or_default();
        if body["model"] == "helper" {
            return Behaviour::Say(format!("heard {said}"));
        }
        let number = |before: &str| said.strip_prefix(before)?.parse::<usize>().ok();
        let done = messages[begun..].iter().filter(|message| message["role"] == "tool").count();
        let holds = |number: usize, at: usize| at == number && held.lock().unwrap().insert(number);
        let ask = |name: &str, arguments: &Value| {
            Behaviour::Ask(String::new(), vec![Call::new(&format!("call-{done}"), name, &arguments.to_string())])
        };
        if let Some(number) = number("part of ") {
            if holds(number, boundaries() - 2 + done) {
                reached.send(number).unwrap();
                return Behaviour::HangBeforeHeaders;
            }
            return match done {
                0 => ask("terminal", &json!({"command": "echo apart >> part.txt"})),
                _ => Behaviour::Say("the part is done".to_owned()),
            };
        }
        let Some(number) = number("go ") else {
            return Behaviour::Say("hello".to_owned());
        };
        if holds(number, done) {
            reached.send(number).unwrap();
            return Behaviour::HangBeforeHeaders;
        }
        let (name, arguments) = &script(number, site)[done];
        ask(name, arguments)
    });
    model
}

/// A page and a search provider; what was asked of them, in order.
async fn web(tasks: &mut JoinSet<()>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (page, search) = (Arc::clone(&asked), Arc::clone(&asked));
    let page = async move |Query(query): Query<HashMap<String, String>>| {
        page.lock().unwrap().push(format!("page {}", query["by"]));
        "A page."
    };
    let search = async move |Query(query): Query<HashMap<String, String>>| {
        search.lock().unwrap().push(format!("search {}", query["q"]));
        Json(
            json!({"query": query["q"], "results": [{"title": "Tea", "url": "https://a.example/", "content": "Leaves"}]}),
        )
    };
    let router = Router::new().route("/page", get(page)).route("/search", get(search));
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, asked)
}

fn worker_pid(up: &Up, agent: &str) -> i32 {
    until(SOON, "its worker", || {
        let workers = up.json(["worker", "list"]);
        let found = workers.as_array().unwrap().iter().find(|worker| worker["agent"] == agent)?["pid"].as_i64();
        i32::try_from(found?).ok()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tool_is_done_once_though_the_worker_is_killed_between_any_two_steps() {
    let mut tasks = JoinSet::new();
    let (reached, kills) = mpsc::channel();
    let (site, asked_of_web) = web(&mut tasks).await;
    let model = scripted(reached, site).await;
    let fake = FakeTelegram::start().await.unwrap();
    let bot = fake.bot(BOT);
    let all = 0..boundaries();
    let name = |number: usize| format!("agent{number}");
    let chat = |number: usize| i64::try_from(100 + number).unwrap();
    let account =
        json!({"id": "front", "token_env": "FRONT_TOKEN", "api_base": fake.base(), "allow_all": true, "rate": "off"});
    let agents: serde_json::Map<String, Value> =
        all.clone().map(|n| (name(n), json!({"may_ask": ["helper"]}))).collect();
    let routes: Vec<Value> =
        all.clone().map(|n| json!({"match": {"chat_id": chat(n).to_string()}, "agent": name(n)})).collect();
    let mut document = json!({
        "model": "mock/mock-1",
        "providers": {"mock": {"kind": "openai", "base_url": model.base_url()}},
        "platforms": {"telegram": {"accounts": [account]}},
        "web": {
            "ports": [site.port()], "allow_private": ["127.0.0.0/8"],
            "search": {"provider": "searxng", "base_url": format!("http://{site}")},
        },
        "agents": agents,
        "routes": routes,
    });
    document["agents"]["helper"] = json!({"model": "mock/helper"});
    let env = vec![("FRONT_TOKEN".to_owned(), BOT.into())];
    let up = Up::start(Options { env, ..Options::config(document.to_string()) });
    let homes: Vec<PathBuf> =
        all.clone().map(|n| PathBuf::from(agent_of(&up, &name(n))["home"].as_str().unwrap())).collect();
    for (number, home) in homes.iter().enumerate() {
        let server = plant(home);
        document["agents"][name(number)]["mcp_servers"] = json!({"own": {"command": "python3", "args": [server]}});
    }
    up.ctl_with_input(["apply", "-f", "-"], document.to_string().as_bytes()).ok();

    for number in all.clone() {
        bot.push_text(chat(number), chat(number), &format!("go {number}"));
    }
    for number in kills.iter().take(all.len()) {
        kill(Pid::from_raw(worker_pid(&up, &name(number))), Signal::SIGKILL).unwrap();
    }
    for (number, home) in homes.iter().enumerate() {
        let said = bot.wait_for(chat(number), 2, 4 * SOON).await;
        let said = said.unwrap_or_else(|said| panic!("agent {number} said {said:?}\n{}", up.log_tail()));
        let said: Vec<&str> = said.iter().map(|one| one.text.as_str()).collect();
        assert_eq!(said, ["on my way", QUESTION], "killed at {number}");
        let read = |path: &str| fs::read_to_string(home.join(path)).unwrap();
        let files =
            ["workspace/notes.txt", "workspace/log.txt", "workspace/part.txt", "scripts/says.txt.notes"].map(read);
        assert_eq!(files, ["two\n", "ran\n", "apart\n", "noted\n"], "killed at {number}");
        assert!(read("skills/maps/SKILL.md").contains("Look north."));
        let session = up.json(["session", "list", "--agent", &name(number)]);
        let session = session[0]["session_id"].as_str().unwrap();
        let shown = up.json(["turn", "show", &format!("{}.1", session.replacen('s', "t", 1))]);
        let calls = shown["steps"].as_array().unwrap().iter();
        let calls: Vec<&Value> = calls.filter(|one| one["kind"] == "tool_call" && one["phase"] == "result").collect();
        // And the call of the task apart.
        assert_eq!(calls.len(), script(number, site).len() + 1, "killed at {number}: {shown}");
        assert!(calls.iter().all(|call| call["unknown"] != true), "{shown}");
    }
    let mut expected: Vec<String> = all.clone().flat_map(|n| [format!("page {n}"), format!("search tea{n}")]).collect();
    let mut asked = asked_of_web.lock().unwrap().clone();
    expected.sort_unstable();
    asked.sort_unstable();
    assert_eq!(asked, expected);
    let asked = up.json(["session", "list", "--agent", "helper"]);
    let turns: Vec<&Value> = asked.as_array().unwrap().iter().map(|session| &session["turns"]).collect();
    assert_eq!(turns, vec![&json!(1); all.len()], "{asked}");
    up.sql(&format!(
        "DO $$ BEGIN ASSERT (SELECT array_agg(n) FROM (SELECT count(*) n FROM hermes.cron_jobs WHERE name = 'watch' GROUP BY agent_no) x) \
           = array_fill(1::bigint, ARRAY[{}]), 'each has one job'; END $$",
        all.len()
    ));
    // What each of them noted is there once, in the prompt of its next session.
    for number in all {
        let agent = name(number);
        let args = ["send", "--platform", "irc", "--chat-id", "later", "--agent", &agent, "--text", "hello", "--wait"];
        up.json(args);
        let asked = model.last().json();
        let prompt = asked["messages"][0]["content"].as_str().unwrap();
        assert_eq!(prompt.matches("The harbour is east.").count(), 1, "{agent}: {prompt}");
        assert!(prompt.contains("maps: Reads maps."), "{agent}: {prompt}");
        assert_eq!(bot.delivered(chat(number)).len(), 2, "{agent}");
    }
    // In the same chat the next turn is told what that one did, wherever it ran.
    bot.push_text(chat(3), chat(3), "east");
    bot.wait_for(chat(3), 3, SOON).await.unwrap();
    let asked = model.last().json();
    let roles: Vec<&str> =
        asked["messages"].as_array().unwrap().iter().map(|message| message["role"].as_str().unwrap()).collect();
    let turn = [&["system", "user"][..], &["assistant", "tool"].repeat(script(3, site).len()), &["assistant", "user"]]
        .concat();
    assert_eq!(roles, turn, "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_its_worker_is_killed_under_ends_with_it_and_is_not_run_again() {
    let model = MockModel::start().await.unwrap();
    model.respond(|body| {
        let last = body["messages"].as_array().and_then(|messages| messages.last()).cloned().unwrap_or_default();
        match (last["role"].as_str(), last["content"].as_str().unwrap_or_default()) {
            (Some("tool"), text) => Behaviour::Say(text.to_owned()),
            (_, "go") => {
                let command = json!({"command": "echo begun >> log.txt; sleep 300; echo ended >> log.txt"}).to_string();
                Behaviour::Ask(String::new(), vec![Call::new("call-1", "terminal", &command)])
            }
            _ => Behaviour::Say("hello".to_owned()),
        }
    });
    let document =
        json!({"model": "mock/mock-1", "providers": {"mock": {"kind": "openai", "base_url": model.base_url()}}});
    let up = Up::start(Options::config(document.to_string()));
    let log = PathBuf::from(agent_of(&up, "main")["home"].as_str().unwrap()).join("workspace/log.txt");
    let answer = thread::scope(|scope| {
        let turn = scope.spawn(|| up.json(["send", "--platform", "irc", "--chat-id", "1", "--text", "go", "--wait"]));
        until(SOON, "the command", || log.try_exists().unwrap().then_some(()));
        let worker = worker_pid(&up, "main");
        assert!(sleeps(), "the command runs");
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        until(Duration::from_secs(5), "the end of the command", || (!sleeps()).then_some(()));
        turn.join().unwrap()
    });
    assert!(answer["reply"].as_str().unwrap().starts_with("UNKNOWN"), "{answer}");
    assert_eq!(fs::read_to_string(&log).unwrap(), "begun\n");
}

/// Whether the command of the test above sleeps anywhere on this machine.
fn sleeps() -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.starts_with(b"/bin/bash\0-c\0echo begun >> log.txt; sleep 300")
    })
}
