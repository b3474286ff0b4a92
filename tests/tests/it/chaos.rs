//! A minute and a half in which everything fails, with real processes: no promise breaks.
//!
//! The checker itself is tested where it is, in the benchmark's own tests, with hand-written records.

use std::process::{Command, Stdio};

use hermes_tests::system::binary;
use serde_json::Value;

/// Whatever the seed makes of it must hold; a fixed one makes a failure come again.
const SEED: &str = "20260101";

/// Runs the benchmark, bound to the life of this test, and answers its figures.
fn bench(args: &[&str]) -> Value {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(binary("hermes-bench")).args(args).args(["-o", "json"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    serde_json::from_str(&out).unwrap()
}

#[test]
fn whatever_fails_for_a_minute_and_a_half_nothing_is_lost_doubled_or_out_of_order() {
    let said = bench(&["chaos", "--seconds", "90", "--seed", SEED]);
    for promise in ["lost", "never_accepted", "duplicates_unmarked", "out_of_order", "effects_twice"] {
        assert_eq!(said[promise], 0, "{promise}: {said}");
    }
    assert!(said["accepted"].as_u64().unwrap() > 100, "it hardly ran: {said}");
    // What did not strike has proven nothing. A scripted answer may find no call on a slow machine.
    let faults = said["faults"].as_object().unwrap();
    let missed: Vec<&String> = faults.iter().filter(|(_, count)| **count == 0).map(|(name, _)| name).collect();
    assert!(faults.len() >= 24 && missed.len() <= 3, "these faults never struck: {missed:?}");
}

#[test]
fn a_rolling_restart_loses_marks_and_fails_nothing() {
    let said = bench(&["rolling", "--seconds", "10", "--chats", "30", "--seed", SEED]);
    assert_eq!(
        (&said["lost"], &said["duplicates_marked"], &said["unknown_steps"], &said["told"]),
        (&0.into(), &0.into(), &0.into(), &0.into()),
        "{said}"
    );
    assert!(said["faults"]["rolling"].as_u64().unwrap() >= 8, "{said}");
}
