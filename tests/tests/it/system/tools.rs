//! Every tool in one turn, by a scripted model, with the worker killed between each two steps in turn: what was done is done once,
//! and the transcript says so once.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use hermes_tests::system::{Options, Up, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{SOON, agent_of};

/// What the model asks for, one after the other.
fn script() -> Vec<(&'static str, Value)> {
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
    ]
}

/// The model: `go N` runs the script, and once, when it is asked for step N, it says so and does not answer.
async fn scripted(reached: mpsc::Sender<usize>) -> MockModel {
    let model = MockModel::start().await.unwrap();
    let (script, held) = (script(), Arc::new(Mutex::new(HashSet::new())));
    model.respond(move |body| {
        let messages = body["messages"].as_array().cloned().unwrap_or_default();
        let begun = messages.iter().rposition(|message| message["role"] == "user").unwrap_or_default();
        let stop = messages[begun]["content"].as_str().and_then(|text| text.strip_prefix("go ")?.parse::<usize>().ok());
        let Some(stop) = stop else {
            return Behaviour::Say("hello".to_owned());
        };
        let done = messages[begun..].iter().filter(|message| message["role"] == "tool").count();
        if done == stop && held.lock().unwrap().insert(stop) {
            reached.send(stop).unwrap();
            return Behaviour::HangBeforeHeaders;
        }
        match script.get(done) {
            Some((name, arguments)) => {
                Behaviour::Ask(String::new(), vec![Call::new(&format!("call-{done}"), name, &arguments.to_string())])
            }
            None => Behaviour::Say("all done".to_owned()),
        }
    });
    model
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
    let (reached, kills) = mpsc::channel();
    let model = scripted(reached).await;
    let steps = script().len();
    let name = |step: usize| format!("agent{step}");
    let agents: serde_json::Map<String, Value> = (0..=steps).map(|step| (name(step), json!({}))).collect();
    let document = json!({
        "model": "mock/mock-1",
        "providers": {"mock": {"kind": "openai", "base_url": model.base_url()}},
        "agents": agents,
    });
    let up = Up::start(Options::config(document.to_string()));
    let say = |agent: &str, text: &str| {
        let args = ["send", "--platform", "irc", "--chat-id", agent, "--agent", agent, "--text", text, "--wait"];
        up.json(args)
    };
    thread::scope(|scope| {
        let up = &up;
        scope.spawn(move || {
            for step in kills.iter().take(steps + 1) {
                kill(Pid::from_raw(worker_pid(up, &name(step))), Signal::SIGKILL).unwrap();
            }
        });
        let turns: Vec<_> =
            (0..=steps).map(|step| scope.spawn(move || (step, say(&name(step), &format!("go {step}"))))).collect();
        for turn in turns {
            let (step, answer) = turn.join().unwrap();
            assert_eq!(answer["reply"], "all done", "killed before step {step}: {answer}");
            let home = PathBuf::from(agent_of(up, &name(step))["home"].as_str().unwrap());
            let read = |path: &str| fs::read_to_string(home.join(path)).unwrap();
            assert_eq!(
                (read("workspace/notes.txt"), read("workspace/log.txt")),
                ("two\n".to_owned(), "ran\n".to_owned())
            );
            assert!(read("skills/maps/SKILL.md").contains("Look north."));
            let shown = up.json(["turn", "show", answer["turn"].as_str().unwrap()]);
            let calls: Vec<&Value> = shown["steps"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|one| one["kind"] == "tool_call" && one["phase"] == "result")
                .collect();
            assert_eq!(calls.len(), steps, "killed before step {step}: {shown}");
            assert!(calls.iter().all(|call| call["unknown"] != true), "{shown}");
        }
    });
    // What each of them noted is there once, in the prompt of its next session.
    for step in 0..=steps {
        let agent = name(step);
        let args = ["send", "--platform", "irc", "--chat-id", "later", "--agent", &agent, "--text", "hello", "--wait"];
        up.json(args);
        let asked = model.last().json();
        let prompt = asked["messages"][0]["content"].as_str().unwrap();
        assert_eq!(prompt.matches("The harbour is east.").count(), 1, "{agent}: {prompt}");
        assert!(prompt.contains("maps: Reads maps."), "{agent}: {prompt}");
    }
    // In the same chat the next turn is told what that one did, wherever it ran.
    up.json(["send", "--platform", "irc", "--chat-id", "agent3", "--agent", "agent3", "--text", "and now?", "--wait"]);
    let asked = model.last().json();
    let roles: Vec<&str> =
        asked["messages"].as_array().unwrap().iter().map(|message| message["role"].as_str().unwrap()).collect();
    let turn = [&["system", "user"][..], &["assistant", "tool"].repeat(steps), &["assistant", "user"]].concat();
    assert_eq!(roles, turn);
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
