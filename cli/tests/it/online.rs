//! Against a control plane of fixed behaviour.

use std::io::{BufRead as _, Read as _, Write as _};
use std::process::{Command, Stdio};

use crate::fake::Fake;
use crate::{dir, file, hermesctl, run, run_with_input};

/// hermesctl for this control plane, with a token.
pub(crate) fn at(fake: &Fake, args: &[&str]) -> Command {
    let mut command = hermesctl(args);
    command.env("HERMES_SERVER", &fake.url).env("HERMES_TOKEN", "sesame");
    command
}

#[test]
fn an_up_is_found_by_its_data_directory_and_its_token_is_sent() {
    let fake = Fake::start();
    let data = dir("found");
    let endpoint = format!(r#"{{"grpc":"{}","http":"http://127.0.0.1:1","pid":{}}}"#, fake.url, std::process::id());
    std::fs::write(data.join("endpoint.json"), endpoint).unwrap();
    std::fs::write(data.join("operator.token"), "from-the-data-dir\n").unwrap();
    let ran = run(hermesctl(["status", "-o", "json"]).env("HERMES_DATA_DIR", &data));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert_eq!(ran.json()["version"], "0.1.0");
    assert_eq!(*fake.asked.authorization.lock().unwrap(), [Some("Bearer from-the-data-dir".to_owned())]);
}

#[test]
fn a_call_without_a_token_says_how_to_give_one() {
    let fake = Fake::start();
    let ran = run(hermesctl(["status"]).env("HERMES_SERVER", &fake.url));
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(
        ran.err.starts_with("error: this call needs a bearer token; give a token with --token-file"),
        "{}",
        ran.err
    );
    assert_eq!(*fake.asked.authorization.lock().unwrap(), [None]);
}

#[test]
fn a_list_is_complete_however_it_is_paged() {
    let fake = Fake::start();
    let ran = run(&mut at(&fake, &["agent", "list", "-o", "json"]));
    let agents = ran.json();
    let ids: Vec<_> = agents.as_array().unwrap().iter().map(|agent| agent["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["coder", "main", "research"]);
    assert_eq!(agents[0]["routes"][0]["match"]["chat_id"], "-1001234");
    let ran = run(&mut at(&fake, &["agent", "list", "--limit", "1", "-o", "yaml"]));
    assert!(ran.out.starts_with("- id: coder\n") && !ran.out.contains("research"), "{}", ran.out);
    let table = run(&mut at(&fake, &["agent", "list"])).out;
    assert!(table.contains("\nmain *") && !table.contains('\u{1b}'), "{table}");
}

#[test]
fn adding_an_agent_sends_what_was_said_and_tells_warnings() {
    let fake = Fake::start();
    let line = ["agent", "add", "writer", "--model", "x/y", "--enabled-toolsets", "", "--soul-file", "-", "-o", "json"];
    let ran = run_with_input(&mut at(&fake, &line), "Schreib schön.\n".as_bytes());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.json()["id"], "writer");
    assert_eq!(ran.err, "warning: no provider is configured for x/y; set providers.x or default_provider\n");
    let added = fake.asked.added.lock().unwrap().pop().unwrap();
    assert_eq!(added.soul.as_deref(), Some("Schreib schön.\n".as_bytes()));
    let spec = added.spec.unwrap();
    assert_eq!((spec.model.as_deref(), spec.provider), (Some("x/y"), None));
    assert_eq!(spec.enabled_toolsets.unwrap().values, [""; 0]);

    let twice = run(&mut at(&fake, &["agent", "add", "coder", "-o", "json"]));
    assert_eq!((twice.code, twice.out.as_str()), (Some(1), ""));
    assert_eq!(twice.err, "error: agent coder is registered already; change it with `agent update`\n");
    let soul = run_with_input(&mut at(&fake, &line), b"\xff");
    assert_eq!(soul.code, Some(1));
    assert!(soul.err.contains("not UTF-8"), "{}", soul.err);
}

#[test]
fn hostile_ids_are_refused_by_the_control_plane_with_one_line() {
    let fake = Fake::start();
    for id in ["", "-rf", "../x", "a\nb", "\u{1b}[2J", "раypal"] {
        let ran = run(&mut at(&fake, &["agent", "show", id]));
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{id:?}");
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        assert!(ran.err.contains("is not registered") && !ran.err.contains('\u{1b}'), "{}", ran.err);
    }
}

#[test]
fn a_refused_removal_lists_the_routes_and_what_to_say() {
    let fake = Fake::start();
    let ran = run(&mut at(&fake, &["agent", "remove", "coder"]));
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    let expected = "error: 1 route names agent coder\n  route platform=telegram chat_id=-1001234\n\
        say --yes to drop all that names it (main becomes the default agent), or --reroute-to AGENT to have it name another\n";
    assert_eq!(ran.err, expected);
    let ran = run(&mut at(&fake, &["agent", "remove", "coder", "--yes"]));
    assert_eq!(ran.code, Some(0));
    let ran = run(&mut at(&fake, &["agent", "remove", "coder", "--reroute-to", "main", "--purge", "-o", "json"]));
    assert_eq!(ran.json()["purged"], true);
    let removed = fake.asked.removed.lock().unwrap();
    assert!(!removed[0].drop_routes && removed[1].drop_routes && !removed[1].purge);
    assert_eq!((removed[2].reroute_to.as_deref(), removed[2].purge), (Some("main"), true));
}

#[test]
fn routes_are_added_and_explained() {
    let fake = Fake::start();
    let line = ["route", "add", "--agent", "coder", "--match", "platform=telegram", "--match", "chat_id=-1001234"];
    let ran = run(&mut at(&fake, &line));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), "warning: routes[1]: can never win: route 0 covers it\n"));
    assert_eq!(ran.out, "added route 1: platform=telegram chat_id=-1001234 -> coder\n");
    let sent = fake.asked.routes.lock().unwrap().pop().unwrap();
    assert_eq!((sent.at, sent.route.unwrap().r#match[1].value.as_str()), (None, "-1001234"));
    let line = ["route", "explain", "--platform", "telegram", "--chat-id", "-1001234", "-o", "json"];
    let expected = r#"{"agent":"coder","decided_by":"route","route_index":0,"routes":[{"index":0,"matched":true}]}"#;
    assert_eq!(run(&mut at(&fake, &line)).json(), serde_json::from_str::<serde_json::Value>(expected).unwrap());
    let ran = run(&mut at(&fake, &["route", "remove", "7"]));
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), "error: there is no route 7; see `route list`\n"));
}

#[test]
fn apply_and_diff_tell_faults_changes_and_sameness() {
    let fake = Fake::start();
    let bad = file("bad.yaml", b"bad: 1\n");
    for command in ["apply", "diff"] {
        let ran = run(&mut at(&fake, &[command, "-f", bad.to_str().unwrap(), "-o", "json"]));
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
        let name = bad.display();
        let expected = format!(
            "{name}:2: agents.coder.modle: is unknown; did you mean model?\n{name}:7: routes[0].match: is empty\n\
            error: 2 faults; nothing was changed\n"
        );
        assert_eq!(ran.err, expected);
    }
    let new = file("new.yaml", b"agents: { coder: {} }\n");
    let same = file("same.yaml", b"same: 1\n");
    let code =
        |command: &str, file: &std::path::Path| run(&mut at(&fake, &[command, "-f", file.to_str().unwrap()])).code;
    assert_eq!((code("diff", &same), code("diff", &new)), (Some(0), Some(1)));
    assert_eq!((code("apply", &same), code("apply", &new)), (Some(0), Some(0)));
    let applied = run_with_input(&mut at(&fake, &["apply", "-f", "-", "-o", "json"]), b"agents: { coder: {} }\n");
    assert_eq!((applied.json()["version"].as_u64(), &applied.json()["changes"][0]["kind"]), (Some(5), &"add".into()));
}

#[test]
fn a_long_document_arrives_whole_in_parts() {
    let fake = Fake::start();
    let text = "# größer als ein Teil\n".repeat(60_000);
    let ran = run_with_input(&mut at(&fake, &["apply", "-f", "-"]), text.as_bytes());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(fake.asked.documents.lock().unwrap().pop().unwrap(), text);
    assert!(*fake.asked.parts.lock().unwrap() > 4);
    let empty = run_with_input(&mut at(&fake, &["apply", "-f", "-"]), b"");
    assert_eq!((empty.code, *fake.asked.parts.lock().unwrap()), (Some(0), 1));
}

#[test]
fn export_prints_the_document_as_it_is() {
    let fake = Fake::start();
    assert_eq!(run(&mut at(&fake, &["export"])).out, "default_agent: main\nagents:\n  main: {}\n");
    let json = run(&mut at(&fake, &["export", "-o", "json"])).json();
    assert_eq!(json["default_agent"], "main");
}

fn send<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    [&["send", "--platform", "x", "--chat-id", "-1", "-o", "json"][..], flags].concat()
}

#[test]
fn a_message_is_sent_and_its_answer_awaited() {
    let fake = Fake::start();
    let ran = run(&mut at(&fake, &send(&["--text", "hi"])));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let expected = r#"{"agent":"main","session_key":"agent:main:x:dm:1","session_id":"17","turn":"hi",
        "duplicate":false,"state":"queued","reply":null}"#;
    assert_eq!(ran.json(), serde_json::from_str::<serde_json::Value>(expected).unwrap());
    let ran = run(&mut at(&fake, &send(&["--text", "again", "--message-id", "5", "--wait"])));
    assert_eq!(ran.code, Some(0));
    assert_eq!((&ran.json()["reply"], &ran.json()["duplicate"]), (&"echo: again".into(), &true.into()));
    let ran = run_with_input(&mut at(&fake, &send(&["--text", "-", "--wait"])), "zwei\nZeilen\n".as_bytes());
    assert_eq!(ran.json()["reply"], "echo: zwei\nZeilen");
    let submitted = fake.asked.submitted.lock().unwrap();
    assert_eq!((submitted[1].dedupe_key.as_deref(), submitted[1].agent.as_deref()), (None, None));
    assert_eq!(submitted[1].source.as_ref().unwrap().message_id.as_deref(), Some("5"));
    assert_eq!(submitted[1].source.as_ref().unwrap().chat_type, "dm");
}

#[test]
fn an_awaited_turn_that_did_not_succeed_is_a_failure() {
    let fake = Fake::start();
    let failed = run(&mut at(&fake, &send(&["--text", "fail", "--wait"])));
    assert_eq!(failed.code, Some(1));
    assert_eq!(
        (&failed.json()["state"], &failed.json()["reply"]),
        (&"failed".into(), &"no provider is configured for x".into())
    );
    assert!(failed.err.starts_with("error: the turn failed"), "{}", failed.err);
    let dead = run(&mut at(&fake, &send(&["--text", "dead", "--wait"])));
    assert_eq!((dead.code, &dead.json()["state"]), (Some(1), &"dead".into()));
}

#[test]
fn refusals_leave_stdout_empty() {
    let fake = Fake::start();
    let undeliverable = run(&mut at(&fake, &send(&["--text", "x", "--deliver"])));
    assert_eq!((undeliverable.code, undeliverable.out.as_str()), (Some(1), ""));
    assert!(undeliverable.err.contains("has no account"), "{}", undeliverable.err);
    for wait in [&[][..], &["--wait"]] {
        let line = [&send(&["--text", "unspecified"])[..], wait].concat();
        let ran = run(&mut at(&fake, &line));
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
        assert!(ran.err.contains("unknown turn state"), "{}", ran.err);
    }
}

#[test]
fn a_call_that_broke_is_repeated_with_the_same_key() {
    let fake = Fake::start();
    let ran = run(&mut at(&fake, &send(&["--text", "busy once"])));
    assert_eq!((ran.code, &ran.json()["state"]), (Some(0), &"queued".into()));
    let submitted = fake.asked.submitted.lock().unwrap();
    assert_eq!(submitted.len(), 2);
    assert!(submitted[0].dedupe_key.is_some() && submitted[0].dedupe_key == submitted[1].dedupe_key);
}

#[test]
fn a_stream_that_broke_after_the_message_was_accepted_asks_for_the_turn() {
    let fake = Fake::start();
    let ran = run(&mut at(&fake, &send(&["--text", "cut", "--wait"])));
    assert_eq!((ran.code, &ran.json()["reply"]), (Some(0), &"echo: cut".into()));
    assert_eq!(fake.asked.submitted.lock().unwrap().len(), 1);
}

#[test]
fn chat_prints_text_as_it_comes() {
    let fake = Fake::start();
    let mut child = at(&fake, &["chat", "coder", "slow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 6];
    out.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"echo: ");
    fake.asked.go_on.notify_one();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("slow\n", Some(0)));
    assert_eq!(fake.asked.submitted.lock().unwrap()[0].agent.as_deref(), Some("coder"));
}

#[test]
fn a_control_plane_that_dies_and_comes_back_is_asked_for_the_turn() {
    let fake = Fake::start();
    let mut child = at(&fake, &["chat", "coder", "slow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 6];
    out.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"echo: ");
    let fake = fake.restart();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("slow\n", Some(0)));
    assert_eq!(fake.asked.submitted.lock().unwrap().len(), 0);
}

#[test]
fn a_dialogue_takes_one_line_as_one_message() {
    let fake = Fake::start();
    let ran = run_with_input(&mut at(&fake, &["chat", "main"]), b"one\n\ntwo words\nexit\nnever\n");
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "echo: one\necho: two words\n", ""));
    let ran = run_with_input(&mut at(&fake, &["chat", "main", "-o", "json"]), b"fail\nok\n");
    assert_eq!((ran.code, ran.out.lines().count()), (Some(1), 2));
    let submitted = fake.asked.submitted.lock().unwrap();
    assert_eq!(submitted.len(), 4);
    assert_eq!(submitted[0].source, submitted[1].source);
    assert_ne!(submitted[0].dedupe_key, submitted[1].dedupe_key);
}

#[test]
fn a_dialogue_answers_each_line_before_the_next_is_typed() {
    let fake = Fake::start();
    let mut child = at(&fake, &["chat", "main"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    for text in ["one", "two"] {
        writeln!(input, "{text}").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), format!("echo: {text}"));
    }
    drop(input);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
