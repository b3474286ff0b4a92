//! Without a control plane: usage, discovery, `up`, and the commands that need none.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::{Ran, dir, file, hermesctl, run, run_with_input};

/// The example of the configuration's documentation.
const SEED: &str = r#"default_agent: main
agents:
  coder:
    model: "anthropic/claude-opus-4-6"
    home_dir: ~/.hermes/profiles/coder
  research:
    model: "anthropic/claude-sonnet-4-6"
routes:
  - match: { platform: telegram, chat_id: "-1001234", thread_id: "42" }
    agent: coder
  - match: { platform: slack, guild_id: "T0ABC" }
    agent: coder
"#;

#[test]
fn a_schedule_says_when_it_runs_without_a_server() {
    let args =
        ["cron", "next", "30 2 * * *", "--tz", "America/New_York", "--now", "2027-03-13T00:00:00-05:00", "-n", "3"];
    let ran = run(hermesctl(args).args(["-o", "json"]));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let said: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        said,
        serde_json::json!({"next": [
            {"at": "2027-03-13T07:30:00Z", "local": "2027-03-13T02:30:00-05:00", "moved": null},
            {"at": "2027-03-14T07:00:00Z", "local": "2027-03-14T03:00:00-04:00", "moved": "gap"},
            {"at": "2027-03-15T06:30:00Z", "local": "2027-03-15T02:30:00-04:00", "moved": null},
        ]})
    );
    for (wrong, code, why) in [
        (&["cron", "next", "0 0 30 2 *"][..], 1, "matches no day"),
        (&["cron", "next", "60 * * * *"], 1, "the minute \"60\" cannot be read"),
        (&["cron", "next", "@daily", "--tz", "Mars/Base"], 2, "there is no such time zone"),
    ] {
        let ran = run(&mut hermesctl(wrong));
        assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{wrong:?}");
        assert!(ran.err.contains(why), "{}", ran.err);
    }
}

/// An address on which nothing listens: it was free a moment ago.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn help_is_done_and_wrong_usage_is_2() {
    for help in [&["--help"][..], &["agent", "add", "--help"], &["help", "send"], &["--version"]] {
        let ran = run(&mut hermesctl(help));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{help:?}");
        assert!(!ran.out.is_empty());
    }
    for wrong in [&[][..], &["agent"], &["nonsense"], &["send", "--platform"], &["agent", "list", "-o", "xml"]] {
        let ran = run(&mut hermesctl(wrong));
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{wrong:?}");
        assert!(!ran.err.is_empty());
    }
}

#[test]
fn arguments_that_are_no_utf8_are_wrong_usage() {
    let bad = || OsString::from_vec(b"\xff\xfe".to_vec());
    for line in [
        vec!["agent".into(), "show".into(), bad()],
        vec!["chat".into(), "main".into(), bad()],
        vec!["route".into(), "add".into(), "--agent".into(), "x".into(), "--match".into(), bad()],
    ] {
        let ran = run(&mut hermesctl(&line));
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{line:?}");
        assert!(ran.err.contains("UTF-8"), "{}", ran.err);
    }
    assert_eq!(run(&mut hermesctl([bad()])).code, Some(2));
}

#[test]
fn help_does_not_tell_the_token() {
    let ran = run(hermesctl(["send", "--help"]).env("HERMES_TOKEN", "sesame"));
    assert_eq!(ran.code, Some(0));
    assert!(!ran.out.contains("sesame"));
}

fn says_that_nothing_answers(ran: &Ran) {
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.err.contains("no control plane answers at "), "{}", ran.err);
    assert!(ran.err.contains("start one with `hermesctl up`"), "{}", ran.err);
}

#[test]
fn nothing_listening_is_said_at_once() {
    let begun = Instant::now();
    let address = nobody();
    for line in [&["status"][..], &["agent", "list", "-o", "json"], &["chat", "main", "x"], &["export"]] {
        let ran = run(hermesctl(line).args(["--server", &address]).env("HERMES_TOKEN", "sesame"));
        says_that_nothing_answers(&ran);
        assert!(ran.err.contains(&address) && !ran.err.contains("sesame"), "{}", ran.err);
    }
    says_that_nothing_answers(&run(&mut hermesctl(["status"])));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn an_endpoint_that_a_dead_process_left_is_called_so() {
    let data = dir("stale");
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let endpoint = format!(r#"{{"grpc":"http://{}","http":"http://127.0.0.1:1","pid":{}}}"#, nobody(), gone.id());
    std::fs::write(data.join("endpoint.json"), endpoint).unwrap();
    std::fs::write(data.join("operator.token"), "sesame\n").unwrap();
    let ran = run(hermesctl(["worker", "list"]).env("HERMES_DATA_DIR", &data));
    says_that_nothing_answers(&ran);
    assert!(ran.err.contains(&format!("process {}, which is gone", gone.id())), "{}", ran.err);
    assert!(!ran.err.contains("sesame"));
}

#[test]
fn a_listener_that_never_answers_is_given_up() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = mute.local_addr().unwrap().to_string();
    let begun = Instant::now();
    let ran = run(&mut hermesctl(["status", "--server", &address, "--timeout", "1s"]));
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.err.contains("--timeout"), "{}", ran.err);
    assert!(begun.elapsed() < Duration::from_secs(6));
}

#[test]
fn an_address_that_speaks_no_grpc_is_called_so() {
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = web.local_addr().unwrap().to_string();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = web.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let ran = run(&mut hermesctl(["status", "--server", &address]));
    answer.join().unwrap();
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.err.contains("is that its gRPC address"), "{}", ran.err);
}

#[test]
fn routes_are_explained_from_a_file_without_a_server() {
    let seed = file("seed.yaml", SEED.as_bytes());
    let explain = |flags: &[&str]| {
        let line = ["route", "explain", "-f", seed.to_str().unwrap(), "-o", "json"];
        run(hermesctl(line).args(flags))
    };
    let telegram = |thread| explain(&["--platform", "telegram", "--chat-id", "-1001234", "--thread-id", thread]);
    let expected = r#"{"agent":"coder","decided_by":"route","route_index":0,
        "routes":[{"index":0,"matched":true},{"index":1,"matched":false,"failed_key":"platform"}]}"#;
    let coder = telegram("42");
    assert_eq!(coder.code, Some(0), "{coder:?}");
    assert_eq!(coder.json(), serde_json::from_str::<serde_json::Value>(expected).unwrap());
    let expected = r#"{"agent":"main","decided_by":"default","route_index":null,
        "routes":[{"index":0,"matched":false,"failed_key":"thread_id"},{"index":1,"matched":false,"failed_key":"platform"}]}"#;
    assert_eq!(telegram("43").json(), serde_json::from_str::<serde_json::Value>(expected).unwrap());
    let slack = explain(&["--platform", "slack", "--chat-id", "C1", "--guild-id", "T0ABC"]);
    assert_eq!(slack.json()["agent"], "coder");
    let hook = explain(&["--platform", "slack", "--chat-id", "C1", "--hook-result", "research"]);
    assert_eq!((&hook.json()["agent"], &hook.json()["decided_by"]), (&"research".into(), &"hook".into()));
    let preset = explain(&["--platform", "slack", "--agent", "main", "--hook-result", "research"]);
    assert_eq!(preset.json()["decided_by"], "preset");
    let absent = explain(&["--platform", "slack", "--agent", "ghost"]);
    assert_eq!((absent.code, absent.out.as_str()), (Some(1), ""));
    assert!(absent.err.contains("has no agent ghost"), "{}", absent.err);
}

#[test]
fn a_faulty_file_is_refused_with_every_place() {
    let text = b"agents:\n  coder: { modle: x }\nroutes:\n  - match: {}\n    agent: coder\n";
    let line = ["route", "explain", "-f", "-", "--platform", "x", "-o", "json"];
    let ran = run_with_input(&mut hermesctl(line), text);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.err.contains("<stdin>:2: agents.coder.modle: "), "{}", ran.err);
    assert!(ran.err.contains("<stdin>:4: routes[0].match"), "{}", ran.err);
    let ran = run_with_input(&mut hermesctl(line), b"a: 1\nb: \xff\n");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("<stdin>:2: the text is not UTF-8"), "{}", ran.err);
    let ran = run(&mut hermesctl(["diff", "-f", "/nonexistent/h.yaml"]));
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("/nonexistent/h.yaml"), "{}", ran.err);
}

#[test]
fn session_keys_are_computed_without_a_server() {
    let key = |flags: &[&str]| {
        let ran = run(hermesctl(["session", "key", "-o", "json"]).args(flags));
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.json()["session_key"].as_str().unwrap().to_owned()
    };
    assert_eq!(key(&["--platform", "telegram", "--chat-id", "12345"]), "agent:main:telegram:dm:12345");
    let group = ["--platform", "telegram", "--chat-id", "-1001234", "--chat-type", "group", "--user-id", "7"];
    assert_eq!(key(&group), "agent:main:telegram:group:-1001234:7");
    assert_eq!(key(&[&group[..], &["--group-sessions-per-user=false"]].concat()), "agent:main:telegram:group:-1001234");
    let thread = [&group[..], &["--thread-id", "42", "--agent", "coder"]].concat();
    assert_eq!(key(&thread), "agent:coder:telegram:group:-1001234:42");
    let isolated = [&thread[..], &["--thread-sessions-per-user=true"]].concat();
    assert_eq!(key(&isolated), "agent:coder:telegram:group:-1001234:42:7");
}

#[test]
fn whatsapp_aliases_come_from_the_home_that_is_named() {
    let home = dir("whatsapp-home");
    let mappings = home.join("platforms/whatsapp/session");
    std::fs::create_dir_all(&mappings).unwrap();
    std::fs::write(mappings.join("lid-mapping-60123456789.json"), "\"77@lid\"").unwrap();
    let line = ["session", "key", "--platform", "whatsapp", "--chat-id", "+60123456789"];
    let with_flag = run(hermesctl(line).arg("--whatsapp-home").arg(&home));
    assert_eq!(with_flag.out, "agent:main:whatsapp:dm:77\n");
    let with_variable = run(hermesctl(line).env("HERMES_HOME", &home));
    assert_eq!(with_variable.out, "agent:main:whatsapp:dm:77\n");
    assert_eq!(run(&mut hermesctl(line)).out, "agent:main:whatsapp:dm:60123456789\n");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let mut command = hermesctl(["completion", shell]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{shell}");
        assert!(run(&mut hermesctl(["completion", shell])).out.contains("explain"), "{shell}");
    }
}

#[test]
fn up_becomes_the_control_plane_beside_it() {
    std::fs::remove_dir_all(dir("bin")).unwrap();
    let bin = dir("bin");
    let own = bin.join("hermesctl");
    std::fs::hard_link(env!("CARGO_BIN_EXE_hermesctl"), &own).unwrap();
    let data = dir("up");
    let line = ["up", "--grpc-addr", "127.0.0.1:0", "--config", "h.yaml"];
    let missing = run(std::process::Command::new(&own).args(line).env_clear().env("HERMES_DATA_DIR", &data));
    assert_eq!((missing.code, missing.out.as_str()), (Some(1), ""));
    assert!(missing.err.contains("neither beside hermesctl nor on PATH"), "{}", missing.err);

    let script = bin.join("hermes-control-plane");
    std::fs::write(&script, "#!/bin/sh\necho \"$$ $*\"\nexit 7\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = std::process::Command::new(&own);
    let child = command.args(line).env_clear().env("HERMES_DATA_DIR", &data).stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let expected = format!("{pid} dev --data-dir {} --config h.yaml --grpc-addr 127.0.0.1:0\n", data.display());
    assert_eq!((output.status.code(), String::from_utf8(output.stdout).unwrap()), (Some(7), expected));
}
