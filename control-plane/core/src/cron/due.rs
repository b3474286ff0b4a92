//! What becomes of the slots that have come due: which run, which are missed, and when the next one is.
//!
//! Called by the scheduler with the database's time. Always true: every slot up to now is either run or missed, none is both, and the next one lies
//! behind now; however long nobody looked, the work is bounded.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Missed, Schedule};

/// Slots that are walked one by one before the walk takes longer steps.
const WALK: usize = 2_000;

/// Slots in a row that were not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissedSlots {
    /// The first.
    pub first: Timestamp,
    /// The last.
    pub last: Timestamp,
    /// How many; with `more` at least so many.
    pub count: u32,
    /// They were too many to be counted.
    pub more: bool,
}

/// What has come due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Those before the ones that run.
    pub missed: Option<MissedSlots>,
    /// Those that run, in their order; of these all but the last are made up for.
    pub run: Vec<Timestamp>,
    /// The first slot after now.
    pub next: Option<Timestamp>,
}

/// Judges the slots from `slot`, which is due, up to `now`. One that begins later by `jitter` is looked at then.
pub fn due(
    schedule: &Schedule,
    slot: Timestamp,
    now: Timestamp,
    policy: Missed,
    jitter: impl Fn(Timestamp) -> Duration,
) -> Due {
    let most = usize::try_from(policy.made_up()).unwrap_or(usize::MAX);
    let is_due = |slot: Timestamp| {
        let later = SignedDuration::try_from(jitter(slot)).unwrap_or_default();
        slot.checked_add(later).is_ok_and(|begins| begins <= now)
    };
    let mut last = std::collections::VecDeque::from([slot]);
    let mut missed: Option<MissedSlots> = None;
    let mut passed = |slot: Timestamp, jumped: bool| {
        let row = missed.get_or_insert(MissedSlots { first: slot, last: slot, count: 0, more: false });
        row.last = slot;
        row.count = row.count.saturating_add(1);
        row.more |= jumped;
    };
    let (mut at, mut walked, mut jumped) = (slot, 0_usize, false);
    let next = loop {
        let happens_once = matches!(schedule.kind(), super::Kind::Once(_));
        let Some(found) = (!happens_once).then(|| schedule.next(at)).flatten() else { break None };
        if !is_due(found.at) {
            break Some(found.at);
        }
        last.push_back(found.at);
        if last.len() > most {
            // Never empty here.
            if let Some(slot) = last.pop_front() {
                passed(slot, jumped);
            }
        }
        (at, walked) = (found.at, walked + 1);
        if walked.is_multiple_of(WALK) {
            // Half of what is left, as long as that surely leaves more slots than are wanted.
            let left = now.duration_since(at);
            let distance =
                at.duration_since(slot).checked_div(i32::try_from(walked).unwrap_or(i32::MAX)).unwrap_or_default();
            let wanted = distance.saturating_mul(i32::try_from(most.saturating_add(WALK)).unwrap_or(i32::MAX));
            if left > wanted.saturating_mul(2)
                && let Ok(there) = at.checked_add(left / 2)
            {
                // What lay between was missed; of that only the two ends are known.
                for slot in last.drain(..) {
                    passed(slot, true);
                }
                (at, jumped) = (there, true);
            }
        }
    };
    let is_run = |slot: Timestamp| {
        let age = now.duration_since(slot);
        match policy {
            Missed::Once | Missed::All(_) => true,
            Missed::Skip => {
                let spread = i64::try_from(jitter(slot).as_secs()).unwrap_or(i64::MAX);
                age.as_secs() <= schedule.grace_seconds(slot).saturating_add(spread)
            }
            Missed::Within(most) => age <= SignedDuration::try_from(most).unwrap_or(SignedDuration::MAX),
        }
    };
    let mut run = Vec::new();
    for slot in last {
        if is_run(slot) {
            run.push(slot);
        } else {
            passed(slot, jumped);
        }
    }
    Due { missed, run, next }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2027-01-31T{text}Z").parse().unwrap()
    }

    fn schedule(text: &str) -> Schedule {
        Schedule::parse(text, at("00:00:00"), &TimeZone::UTC).unwrap()
    }

    #[expect(clippy::type_complexity, reason = "missed, run and next, each in its shortest form")]
    fn judged(
        text: &str,
        slot: &str,
        now: &str,
        policy: &str,
    ) -> (Option<(String, String, u32)>, Vec<String>, Option<String>) {
        let due = due(&schedule(text), at(slot), at(now), policy.parse().unwrap(), |_| Duration::ZERO);
        let short = |at: Timestamp| at.strftime("%H:%M").to_string();
        (
            due.missed.map(|missed| (short(missed.first), short(missed.last), missed.count)),
            due.run.into_iter().map(short).collect(),
            due.next.map(short),
        )
    }

    fn texts(all: &[&str]) -> Vec<String> {
        all.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn what_comes_due_in_time_runs_whatever_the_policy() {
        for policy in ["skip", "once", "all", "within 1m"] {
            let found = judged("*/5 * * * *", "10:05:00", "10:05:00", policy);
            assert_eq!(found, (None, texts(&["10:05"]), Some("10:10".to_owned())), "{policy}");
        }
    }

    #[test]
    fn late_slots_are_what_the_policy_says() {
        let late = |policy| judged("*/5 * * * *", "10:00:00", "10:14:00", policy);
        let missed = |first: &str, last: &str, count| Some((first.to_owned(), last.to_owned(), count));
        let next = Some("10:15".to_owned());
        // Grace of five minutes is 150 s: 10:10 is 240 s old.
        assert_eq!(late("skip"), (missed("10:00", "10:10", 3), vec![], next.clone()));
        assert_eq!(late("once"), (missed("10:00", "10:05", 2), texts(&["10:10"]), next.clone()));
        assert_eq!(late("all"), (None, texts(&["10:00", "10:05", "10:10"]), next.clone()));
        assert_eq!(late("all 2"), (missed("10:00", "10:00", 1), texts(&["10:05", "10:10"]), next.clone()));
        assert_eq!(late("within 3m"), (missed("10:00", "10:10", 3), vec![], next.clone()));
        assert_eq!(late("within 4m"), (missed("10:00", "10:05", 2), texts(&["10:10"]), next));
    }

    #[test]
    fn a_run_that_happens_once_has_no_next() {
        let once = |now, policy| judged("2027-01-31T10:00", "10:00:00", now, policy);
        assert_eq!(once("10:00:01", "skip"), (None, texts(&["10:00"]), None));
        assert_eq!(once("11:00:00", "skip"), (Some(("10:00".to_owned(), "10:00".to_owned(), 1)), vec![], None));
        assert_eq!(once("23:00:00", "once"), (None, texts(&["10:00"]), None));
    }

    #[test]
    fn a_slot_is_due_when_its_jitter_is_over() {
        let due =
            due(&schedule("* * * * *"), at("10:00:00"), at("10:01:10"), Missed::Once, |_| Duration::from_secs(30));
        assert_eq!((due.missed, due.run, due.next), (None, vec![at("10:00:00")], Some(at("10:01:00"))));
    }

    #[test]
    fn years_without_a_look_are_judged_at_once() {
        let now: Timestamp = "2030-01-31T10:00:30Z".parse().unwrap();
        for (pattern, policy, runs) in [
            ("* * * * *", "once", 1),
            ("* * * * * *", "all", 100),
            ("every 1m", "skip", 1),
            ("*/7 3 * * *", "all 9", 9),
        ] {
            let started = std::time::Instant::now();
            let due = due(&schedule(pattern), at("10:00:00"), now, policy.parse().unwrap(), |_| Duration::ZERO);
            let (missed, next) = (due.missed.unwrap(), due.next.unwrap());
            assert_eq!(due.run.len(), runs, "{pattern}");
            let all: Vec<Timestamp> = schedule(pattern).upcoming(due.run[0]).map(|slot| slot.at).take(runs).collect();
            assert_eq!(
                (due.run[1..].to_vec(), next),
                (all[..runs - 1].to_vec(), all[runs - 1]),
                "{pattern}: the last ones, in a row"
            );
            assert!(missed.first == at("10:00:00") && missed.last < due.run[0] && next > now, "{pattern}: {missed:?}");
            assert!(missed.more || missed.count < 20_000, "{pattern}");
            assert!(started.elapsed() < Duration::from_secs(20), "{pattern}");
        }
    }
}
