//! Do the drills see anything? Each mechanism is taken away, and the drills that rest on it must go red.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::FutureExt as _;
use hermes_tests::drill::Mechanism;

use super::{DRILLS, Drill};

/// What rests on each mechanism.
const CAUGHT_BY: &[(Mechanism, &[&str])] = &[
    (Mechanism::Epoch, &["a_worker_whose_turn_is_anothers_appends_and_ends_nothing"]),
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

/// So many at a time: each is a plane of its own, and mostly waits.
const AT_ONCE: usize = 3;

/// What became of a drill that did without a mechanism, in a runtime of its own: drills wait in their own ways.
fn outcome(mechanism: Mechanism, name: &str) -> String {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match runtime.block_on(AssertUnwindSafe(drill(name)(Some(mechanism))).catch_unwind()) {
        Ok(Ok(())) => "SAW NOTHING".to_owned(),
        Ok(Err(error)) => format!("red: {}", error.to_string().lines().next().unwrap_or_default()),
        Err(_) => "red: it did not get to its end".to_owned(),
    }
}

#[test]
fn without_its_mechanism_each_drill_goes_red() {
    let tried: Vec<(Mechanism, &str)> =
        CAUGHT_BY.iter().flat_map(|(mechanism, names)| names.iter().map(|name| (*mechanism, *name))).collect();
    let untried: Vec<&str> = Mechanism::ALL
        .into_iter()
        .filter(|one| !tried.iter().any(|(known, _)| known == one))
        .map(Mechanism::name)
        .collect();
    let (next, lines) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((index, (mechanism, name))) =
                    Some(next.fetch_add(1, Relaxed)).and_then(|index| Some((index, tried.get(index)?)))
                {
                    let line = format!("without {:<10} {name}: {}", mechanism.name(), outcome(*mechanism, name));
                    lines.lock().unwrap().insert(index, line);
                }
            });
        }
    });
    let table: Vec<String> = lines.into_inner().unwrap().into_values().collect();
    let table = table.join("\n");
    println!("{table}");
    assert!(untried.is_empty(), "no drill is tried without {untried:?}");
    assert!(!table.contains("SAW NOTHING"), "some drills saw nothing:\n{table}");
}
