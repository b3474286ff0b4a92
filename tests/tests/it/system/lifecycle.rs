//! `up` starts, stops, is killed, starts again, and refuses what it must.

use std::net::TcpListener;
use std::time::Duration;

use hermes_tests::system::{Options, Up, until_gone, up_to_its_end};

use super::{agent_of, ask, chat, export};

/// What a stop or a refusal may take.
const AT_ONCE: Duration = Duration::from_secs(5);
/// How long the kernel and Postgres may take to notice that `up` was killed.
const A_FEW_SECONDS: Duration = Duration::from_secs(5);

#[test]
fn ctrl_c_ends_everything_within_five_seconds_and_the_next_start_continues() {
    let mut up = Up::start(Options::default());
    up.ctl(["agent", "add", "coder"]).ok();
    up.ctl(["route", "add", "--agent", "coder", "--match", "platform=telegram"]).ok();
    let first = ask(&up, "7", "one");
    assert_eq!((&first["agent"], &first["reply"]), (&"coder".into(), &"[coder] one".into()));
    let exported = export(&up);

    let (status, took, processes) = up.interrupt();
    assert!(status.success(), "{status}");
    assert!(took < AT_ONCE, "{took:?}");
    until_gone(Duration::ZERO, &processes);
    assert!(processes.iter().any(|process| process.name == "postgres"), "{processes:?}");
    assert!(processes.iter().filter(|process| process.name == "hermes-worker").count() >= 2, "{processes:?}");
    assert!(!up.data().join("endpoint.json").try_exists().unwrap(), "nobody listens there any more");
    let error = up.ctl(["status"]).refused(1);
    assert!(error.contains("hermesctl up"), "{error}");

    up.restart();
    assert_eq!(export(&up), exported);
    let second = ask(&up, "7", "two");
    assert_eq!(second["reply"], "[coder] two");
    assert_eq!(second["session_id"], first["session_id"], "the dialogue goes on");
    let session = up.json(["session", "show", first["session_id"].as_str().unwrap()]);
    let replies: Vec<_> = session["transcript"].as_array().unwrap().iter().map(|turn| turn["reply"].clone()).collect();
    assert_eq!(replies, ["[coder] one", "[coder] two"]);
    // A client that kept the token of before still may.
    assert_eq!(agent_of(&up, "coder")["revision"], 1);
}

#[test]
fn a_killed_up_leaves_no_process_and_blocks_nobody() {
    let mut up = Up::start(Options::default());
    assert_eq!(chat(&up, "main", "before"), "[main] before");
    let processes = up.kill9();
    assert!(processes.len() > 5, "{processes:?}");
    // At once: what is left of the dead one must not be in the way.
    up.restart();
    assert_eq!(chat(&up, "main", "after"), "[main] after");
    until_gone(A_FEW_SECONDS, &processes);

    let processes = up.kill9();
    until_gone(A_FEW_SECONDS, &processes);
    let error = up.ctl(["status"]).refused(1);
    assert!(error.contains("hermesctl up"), "a dead endpoint is no riddle: {error}");
    up.restart();
    assert_eq!(chat(&up, "main", "again"), "[main] again");
}

#[test]
fn a_second_up_on_a_live_directory_is_refused_by_the_pid_of_the_first() {
    let up = Up::start(Options::default());
    let error = up.second(&Options::default(), AT_ONCE).refused(1);
    assert!(error.contains(&up.pid().to_string()) && error.contains("--data-dir"), "{error}");
    assert_eq!(chat(&up, "main", "unharmed"), "[main] unharmed");
}

#[test]
fn the_document_of_the_start_is_applied_only_when_the_file_changed() {
    let document = |model: &str| format!("agents:\n  coder:\n    model: {model}\n");
    let mut up = Up::start(Options::config(document("builtin/echo")));
    up.ctl(["agent", "update", "coder", "--model", "mock/by-hand"]).ok();
    up.interrupt();
    up.restart();
    assert_eq!(agent_of(&up, "coder")["spec"]["model"], "mock/by-hand", "a restart never undoes a later change");
    up.interrupt();
    up.restart_with(Options::config(document("mock/by-file")));
    assert_eq!(agent_of(&up, "coder")["spec"]["model"], "mock/by-file");

    // A file that is refused stops the start, and what was stored stays.
    up.interrupt();
    let broken = up.second(&Options::config("agents:\n  coder:\n    modell: x\n"), Duration::from_secs(30));
    let error = broken.refused(1);
    assert!(error.contains("hermes.yaml:3") && error.contains("agents.coder.modell"), "{error}");
    up.restart_with(Options::default());
    assert_eq!(agent_of(&up, "coder")["spec"]["model"], "mock/by-file");
}

#[test]
fn an_explicit_port_that_is_taken_is_refused_by_flag_and_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--grpc-addr", "--http-addr", "--worker-addr"] {
        let error = up_to_its_end(&Options::default().flag(flag, &address), AT_ONCE).refused(1);
        assert!(error.contains(flag) && error.contains(&address), "{error}");
    }
}

#[test]
fn a_postgres_that_refuses_or_hangs_is_named_within_five_seconds() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Accepted by the kernel, never answered.
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [closed, hanging.local_addr().unwrap()] {
        let url = format!("postgres://hermes:secret-word@{address}/hermes");
        let refused = up_to_its_end(&Options::default().flag("--database-url", &url), Duration::from_secs(15));
        assert!(refused.took < AT_ONCE, "{:?}", refused.took);
        let error = refused.refused(1);
        assert!(error.contains(&address.to_string()), "which one? {error}");
        assert!(!error.contains("secret-word"), "{error}");
    }
}
