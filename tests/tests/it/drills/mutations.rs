//! Do the drills see anything? Each mechanism is taken away, and the drills that rest on it must go red.

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use hermes_tests::drill::Mechanism;

use super::{DRILLS, Drill};

/// What rests on each mechanism.
const CAUGHT_BY: &[(Mechanism, &[&str])] = &[
    (Mechanism::Dedupe, &["the_answer_of_an_intake_commit_is_lost", "killed_after_the_intake_commit"]),
    (Mechanism::Delivery, &["killed_after_the_completion"]),
    (
        Mechanism::Preview,
        &["a_shown_answer_becomes_the_answer", "killed_while_a_shown_answer_grows", "killed_before_the_last_edit"],
    ),
    (Mechanism::DeadMark, &["a_chat_that_is_gone_gets_one_attempt_lives_again_and_is_redriven"]),
    (Mechanism::LaneOrder, &["replies_wait_behind_a_slow_one_in_order"]),
    (Mechanism::Intent, &["killed_between_an_effect_and_its_result_it_is_not_repeated"]),
    (Mechanism::SelfFence, &["a_worker_out_of_touch_stops_before_its_lease_ends"]),
];

fn drill(name: &str) -> Drill {
    DRILLS.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("there is no drill {name}")).1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_mechanism_each_drill_goes_red() {
    let (mut table, mut missed) = (String::new(), Vec::new());
    for (mechanism, names) in CAUGHT_BY {
        for name in *names {
            let outcome = AssertUnwindSafe(drill(name)(Some(*mechanism))).catch_unwind().await;
            let why = match outcome {
                Ok(Ok(())) => {
                    missed.push((mechanism.name(), name));
                    "SAW NOTHING".to_owned()
                }
                Ok(Err(error)) => format!("red: {}", error.to_string().lines().next().unwrap_or_default()),
                Err(_) => "red: it did not get to its end".to_owned(),
            };
            let _ = writeln!(table, "without {:<10} {name}: {why}", mechanism.name());
        }
    }
    println!("{table}");
    assert!(missed.is_empty(), "these drills saw nothing: {missed:?}\n{table}");
}
