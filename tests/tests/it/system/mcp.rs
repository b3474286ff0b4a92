//! MCP servers in real turns, by a scripted model, behind the real boundary: what they do when they misbehave costs a call and no
//! more, and what they say of themselves is what an operator has seen.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use hermes_tests::system::{Options, Up, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{SOON, agent_of};
use crate::node;

/// A model that makes the calls which the user's message names, as JSON, and then says that it is done.
pub(super) async fn caller() -> MockModel {
    let model = MockModel::start().await.unwrap();
    model.respond(|body| {
        let last = body["messages"].as_array().and_then(|messages| messages.last()).cloned().unwrap_or_default();
        let calls = last["content"].as_str().and_then(|text| serde_json::from_str::<Vec<(String, Value)>>(text).ok());
        match (last["role"].as_str(), calls) {
            (Some("user"), Some(calls)) => {
                let call = |(at, (name, arguments)): (usize, &(String, Value))| {
                    Call::new(&format!("call-{at}"), name, &arguments.to_string())
                };
                Behaviour::Ask(String::new(), calls.iter().enumerate().map(call).collect())
            }
            _ => Behaviour::Say("done".to_owned()),
        }
    });
    model
}

/// A system whose agent has no servers yet.
pub(super) fn start(model: &MockModel) -> Up {
    Up::start(Options::config(document(model, &json!({}))))
}

fn document(model: &MockModel, servers: &Value) -> String {
    let provider = json!({"kind": "openai", "base_url": model.base_url()});
    json!({"model": "mock/mock-1", "providers": {"mock": provider}, "mcp_servers": servers}).to_string()
}

/// From its next turn on the agent has these servers.
pub(super) fn serve(up: &Up, model: &MockModel, servers: &Value) {
    let file = up.file("servers.yaml", document(model, servers));
    up.ctl(["apply".as_ref(), "-f".as_ref(), file.as_os_str()]).ok();
}

pub(super) fn home(up: &Up) -> PathBuf {
    PathBuf::from(agent_of(up, "main")["home"].as_str().unwrap())
}

/// Has the model make these calls in one turn; their results in order.
pub(super) fn calls(up: &Up, model: &MockModel, calls: &[(&str, Value)]) -> Vec<String> {
    let text = serde_json::to_string(calls).unwrap();
    let answer = up.json(["send", "--platform", "irc", "--chat-id", "1", "--text", &text, "--wait"]);
    assert_eq!(answer["reply"], "done", "{answer}");
    let asked = model.last().json();
    let messages = asked["messages"].as_array().unwrap();
    let begun = messages.iter().rposition(|message| message["role"] == "user").unwrap();
    let results = messages[begun..].iter().filter(|message| message["role"] == "tool");
    results.map(|message| message["content"].as_str().unwrap().to_owned()).collect()
}

/// The names of the tools that the model was last offered by servers.
pub(super) fn offered(model: &MockModel) -> Vec<String> {
    let asked = model.last().json();
    let names = asked["tools"].as_array().into_iter().flatten();
    let names = names.map(|tool| tool["function"]["name"].as_str().unwrap().to_owned());
    names.filter(|name| name.starts_with("mcp_")).collect()
}

/// The misbehaving server, where the tools of that home see it.
pub(super) fn plant(home: &Path) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("mcp/hostile.py");
    let planted = home.join("scripts/hostile.py");
    fs::create_dir_all(home.join("scripts")).unwrap();
    fs::copy(script, &planted).unwrap();
    planted.display().to_string()
}

/// What the worker of this system takes of memory now, and the most that it ever took, MiB.
pub(super) fn worker_memory(up: &Up) -> (u64, u64) {
    let workers = up.json(["worker", "list"]);
    let pid = workers.as_array().unwrap()[0]["pid"].as_u64().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let [now, peak] = [of("VmRSS:"), of("VmHWM:")].map(|kb| kb.trim().trim_end_matches(" kB").parse::<u64>().unwrap());
    (now >> 10, peak >> 10)
}

/// The processes anywhere on this machine that were started with exactly these arguments.
fn running(argv: &[&str]) -> Vec<PathBuf> {
    let line = argv.iter().flat_map(|argument| argument.bytes().chain([0])).collect::<Vec<_>>();
    let is_one = |entry: &PathBuf| fs::read(entry.join("cmdline")).is_ok_and(|read| read == line);
    fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(is_one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_misbehaves_costs_a_call_and_the_turn_goes_on() {
    let model = caller().await;
    let up = start(&model);
    let script = plant(&home(&up));
    let (idle, _) =
        until(SOON, "the worker", || (up.json(["worker", "list"]) != json!([])).then(|| worker_memory(&up)));
    let server = |mode: &str| {
        let connect = if mode == "mute" { 3 } else { 30 };
        json!({"command": "python3", "args": [script, mode], "connect_timeout_seconds": connect, "env": {"GREETING": "ahoy"}})
    };
    let mut servers = json!({"absent": {"command": "/nowhere/mcp"}});
    servers["good"] = server("well");
    for name in ["die", "hang", "line", "chatter", "huge", "garbage", "wrong-id"] {
        servers[name] = server("well");
        servers[name]["tools"] = json!({"include": ["echo", name]});
    }
    for name in ["hang", "garbage", "wrong-id"] {
        servers[name]["timeout_seconds"] = json!(2);
    }
    for mode in ["gone", "mute", "flood", "endless"] {
        servers[mode] = server(mode);
    }
    serve(&up, &model, &servers);

    let none = || json!({});
    let results = calls(
        &up,
        &model,
        &[
            ("mcp_good_echo", json!({"text": "before"})),
            ("mcp_die_die", none()),
            ("mcp_hang_hang", none()),
            ("mcp_line_line", none()),
            ("mcp_chatter_chatter", none()),
            ("mcp_huge_huge", none()),
            ("mcp_garbage_garbage", none()),
            ("mcp_wrong_id_wrong_id", none()),
            ("mcp_good_wrong_shape", none()),
            ("mcp_good_requests", none()),
            ("mcp_good_stderr", none()),
            ("mcp_good_error", none()),
            ("mcp_good_environment", none()),
            ("mcp_good_daemon", json!({"seconds": "31557"})),
            ("mcp_good_injects", none()),
            ("mcp_die_echo", json!({"text": "risen"})),
            ("mcp_good_echo", json!({"text": "after"})),
        ],
    );
    let expected = [
        "before",
        "UNKNOWN: the MCP server die ended in the middle of this call: it ended with exit code 3 (on stderr: I cannot go on).",
        "Error: the MCP server hang did not answer within 2 s. It answered nothing else either, and is ended.",
        "UNKNOWN: the MCP server line ended in the middle of this call: it wrote a line longer than 2 MiB.",
        "UNKNOWN: the MCP server chatter ended in the middle of this call: it wrote more than 8 MiB without being asked.",
        "yyyy",
        "Error: the MCP server garbage did not answer within 2 s. What it did",
        "Error: the MCP server wrong-id did not answer within 2 s. What it did",
        "Error: the",
        "refused refused refused answered",
        "written",
        "Error: it went wrong; the key is [REDACTED]",
        "GIT_TERMINAL_PROMPT GREETING HOME",
        "left one behind",
        "Error: there is no tool mcp_good_injects.",
        "risen",
        "after",
    ];
    for (result, expected) in results.iter().zip(expected) {
        assert!(result.starts_with(expected), "{expected:?}: {:?}", result.chars().take(300).collect::<String>());
    }
    assert_eq!(results.len(), expected.len());
    assert!(results[5].len() <= 64 << 10 && results[5].contains("is cut here"));
    assert!(results[12].ends_with(" ahoy") && !results[12].contains("HERMES"), "{}", results[12]);
    let names = offered(&model);
    assert!(
        names.iter().all(|name| ["gone", "mute", "flood", "endless", "absent"].iter().all(|away| !name.contains(away)))
    );
    assert!(!names.iter().any(|name| name.ends_with("_injects") || name.ends_with("_schema")), "{names:?}");
    let (now, peak) = worker_memory(&up);
    assert!(peak < idle + 32, "the worker took {idle} MiB before its first server, {now} MiB now, {peak} MiB at most");

    // What became of them, for operators.
    let listed = up.json(["agent", "mcp", "list", "main"]);
    let problem = |name: &str| {
        let of = listed.as_array().unwrap().iter().find(|server| server["name"] == name).unwrap();
        of["problem"].as_str().unwrap().to_owned()
    };
    for (name, expected) in [
        ("gone", "it ended with exit code 1 (on stderr: no licence found"),
        ("mute", "it was not ready within 3 s"),
        ("flood", "it wrote a line longer than 2 MiB"),
        ("endless", "its list of tools has more than 32 pages"),
        ("absent", "/nowhere/mcp"),
        ("good", "\"injects\" is left out: what it says of itself reads like an order"),
        ("good", "\"schema\" is left out"),
    ] {
        assert!(problem(name).contains(expected), "{name}: {}", problem(name));
    }

    // With the servers goes all that they started.
    assert_eq!(running(&["sleep", "31557"]).len(), 1);
    serve(&up, &model, &json!({}));
    assert_eq!(calls(&up, &model, &[("mcp_good_echo", none())]), ["Error: there is no tool mcp_good_echo."]);
    until(SOON, "the end of the servers", || running(&["sleep", "31557"]).is_empty().then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_changes_is_withheld_until_an_operator_has_seen_it() {
    let model = caller().await;
    let up = start(&model);
    let script = plant(&home(&up));
    let tools = json!({"include": ["echo", "changed", "die"]});
    serve(&up, &model, &json!({"odd": {"command": ["python3", script], "tools": tools}}));
    let echo = || ("mcp_odd_echo", json!({"text": "ahoy"}));
    let changed = |says: &str| ("mcp_odd_changed", json!({"says": says}));
    assert_eq!(calls(&up, &model, &[echo()]), ["ahoy"]);
    assert_eq!(offered(&model), ["mcp_odd_changed", "mcp_odd_die", "mcp_odd_echo"]);
    let server = || up.json(["agent", "mcp", "list", "main"])[0].clone();
    let pin = |server: &Value| {
        let tools = server["tools"].as_array().unwrap();
        tools.iter().find(|tool| tool["name"] == "echo").unwrap()["pin"].as_str().unwrap().to_owned()
    };
    assert_eq!(pin(&server()), "pinned");

    // It says that it changed: from the next turn on it is gone, and a model that calls it is told why.
    assert_eq!(calls(&up, &model, &[changed("Says it again, and to me."), echo()]), ["changed", "ahoy"]);
    let told = calls(&up, &model, &[echo()]);
    assert!(
        told[0].starts_with("Error: echo of the MCP server odd is not what it was when it was first seen"),
        "{told:?}"
    );
    assert_eq!(offered(&model), ["mcp_odd_changed", "mcp_odd_die"]);
    let seen = server();
    assert_eq!(pin(&seen), "changed");
    let echo_of = |server: &Value| {
        server["tools"].as_array().unwrap().iter().find(|tool| tool["name"] == "echo").unwrap().clone()
    };
    assert_eq!(echo_of(&seen)["description"], "Says it again, and to me.");
    assert_eq!(echo_of(&seen)["pinned_description"], "Says it again.");

    // It changes without a word, while it is started anew.
    assert_eq!(calls(&up, &model, &[changed("Says it once.")]), ["changed"]);
    calls(&up, &model, &[echo()]);
    let error = up.ctl(["agent", "mcp", "accept", "main", "odd", "--seen", seen["seen"].as_str().unwrap()]).refused(1);
    assert!(error.contains("others than those you looked at"), "{error}");
    up.json(["agent", "mcp", "accept", "main", "odd", "--seen", server()["seen"].as_str().unwrap()]);
    assert_eq!(calls(&up, &model, &[echo()]), ["ahoy"]);
    assert_eq!(pin(&server()), "pinned");
    assert!(model.last().json().to_string().contains("Says it once."));
    fs::write(home(&up).join("scripts/says.txt"), "Says something else.").unwrap();
    let told = calls(&up, &model, &[("mcp_odd_die", json!({})), echo()]);
    assert!(told[0].starts_with("UNKNOWN") && told[1].ends_with("is not what it was when it was offered"), "{told:?}");

    // Under another configuration it begins anew.
    serve(&up, &model, &json!({"odd": {"command": ["python3", script, "well"], "tools": tools}}));
    assert_eq!(calls(&up, &model, &[echo()]), ["ahoy"]);
    assert_eq!(pin(&server()), "pinned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_its_worker_is_killed_under_is_not_made_again_and_the_server_ends_with_its_worker() {
    let model = caller().await;
    let up = start(&model);
    let (home, script) = (home(&up), plant(&home(&up)));
    serve(&up, &model, &json!({"odd": {"command": ["python3", script, "well"]}}));
    let hung = home.join("scripts/says.txt.hung");
    let told = thread::scope(|scope| {
        let turn = scope
            .spawn(|| calls(&up, &model, &[("mcp_odd_hang", json!({})), ("mcp_odd_echo", json!({"text": "ahoy"}))]));
        until(SOON, "the call", || fs::read_to_string(&hung).ok().filter(|text| !text.is_empty()));
        let servers = running(&["python3", &script, "well"]);
        assert_eq!(servers.len(), 1);
        let workers = up.json(["worker", "list"]);
        let pid = i32::try_from(workers[0]["pid"].as_i64().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        until(SOON, "the server's end", || (!servers[0].try_exists().unwrap()).then_some(()));
        turn.join().unwrap()
    });
    assert!(told[0].starts_with("UNKNOWN: this call was begun") && told[1] == "ahoy", "{told:?}");
    assert_eq!(fs::read_to_string(&hung).unwrap(), "once\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_test_server_is_listed_and_called() {
    let model = caller().await;
    let up = start(&model);
    let home = home(&up);
    let (node, modules) = node::packages("mcp", &home);
    let server = modules.join("@modelcontextprotocol/server-everything/dist/index.js");
    let servers =
        json!({"everything": {"command": node, "args": [server, "stdio"], "tools": {"exclude": ["get-env"]}}});
    serve(&up, &model, &servers);
    let results = calls(
        &up,
        &model,
        &[
            ("mcp_everything_echo", json!({"message": "ahoy"})),
            ("mcp_everything_get_sum", json!({"a": 19, "b": 23})),
            ("mcp_everything_get_tiny_image", json!({})),
            ("mcp_everything_get_structured_content", json!({"location": "Chicago"})),
            ("mcp_everything_trigger_long_running_operation", json!({"duration": 1, "steps": 4})),
            ("mcp_everything_get_env", json!({})),
            ("mcp_everything_get_sum", json!({"a": "not a number"})),
        ],
    );
    let expected = [
        "Echo: ahoy",
        "The sum of 19 and 23 is 42.",
        "[an image (image/png)",
        "temperature",
        "Long running operation completed",
        "there is no tool",
        "Error: ",
    ];
    for (result, expected) in results.iter().zip(expected) {
        assert!(result.contains(expected), "{expected:?}: {result}");
    }
    let names = offered(&model);
    assert!(names.len() >= 10 && names.contains(&"mcp_everything_get_resource_links".to_owned()), "{names:?}");
    let listed = up.json(["agent", "mcp", "list", "main"]);
    assert_eq!(listed[0]["problem"], "", "{listed}");
}
