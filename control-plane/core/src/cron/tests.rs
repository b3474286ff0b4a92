//! Schedules on clocks that are changed.

use jiff::civil::DateTime;
use jiff::tz::AmbiguousOffset;
use jiff::{ToSpan as _, Zoned};

use super::*;

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).expect(name)
}

fn read(text: &str, zone: &TimeZone) -> Schedule {
    Schedule::parse(text, Timestamp::UNIX_EPOCH, zone).expect(text)
}

/// The next runs, as the wall clock shows them.
fn runs(text: &str, now: &str, count: usize) -> Vec<String> {
    let now: Zoned = now.parse().expect(now);
    let schedule = read(text, now.time_zone());
    let shown = |slot: Slot| {
        let at = slot.at.to_zoned(schedule.zone().clone()).strftime("%m-%d %H:%M:%S %Z").to_string();
        slot.moved.map_or(at.clone(), |moved| format!("{at} {}", moved.as_str()))
    };
    schedule.upcoming(now.timestamp()).take(count).map(shown).collect()
}

#[test]
fn a_time_that_is_left_out_comes_behind_the_gap() {
    assert_eq!(
        runs("30 2 * * *", "2027-03-13T00:00[America/New_York]", 3),
        ["03-13 02:30:00 EST", "03-14 03:00:00 EDT gap", "03-15 02:30:00 EDT"]
    );
    // What falls there anyway comes once.
    assert_eq!(
        runs("*/20 2-3 * * *", "2027-03-14T01:00[America/New_York]", 3),
        ["03-14 03:00:00 EDT", "03-14 03:20:00 EDT", "03-14 03:40:00 EDT"]
    );
    assert_eq!(runs("15 2 * * *", "2027-03-14T03:00[America/New_York]", 1), ["03-15 02:15:00 EDT"]);
    // A whole day was left out.
    assert_eq!(
        runs("0 12 * * *", "2011-12-29T13:00[Pacific/Apia]", 2),
        ["12-31 00:00:00 +14 gap", "12-31 12:00:00 +14"]
    );
}

#[test]
fn a_time_that_comes_twice_is_the_first_unless_the_pattern_steps_through() {
    let before = "2027-11-07T00:59[America/New_York]";
    assert_eq!(runs("30 1 * * *", before, 2), ["11-07 01:30:00 EDT repeat", "11-08 01:30:00 EST"]);
    assert_eq!(
        runs("30 * * * *", before, 3),
        ["11-07 01:30:00 EDT repeat", "11-07 01:30:00 EST repeat", "11-07 02:30:00 EST"]
    );
    assert_eq!(
        runs("*/30 1 * * *", before, 5),
        [
            "11-07 01:00:00 EDT repeat",
            "11-07 01:30:00 EDT repeat",
            "11-07 01:00:00 EST repeat",
            "11-07 01:30:00 EST repeat",
            "11-08 01:00:00 EST"
        ]
    );
    // Asked in the middle of the second pass.
    assert_eq!(runs("30 1 * * *", "2027-11-07T01:10-05:00[America/New_York]", 1), ["11-08 01:30:00 EST"]);
    assert_eq!(runs("0 2 * * *", "2027-11-07T01:10-05:00[America/New_York]", 1), ["11-07 02:00:00 EST"]);
}

#[test]
fn what_goes_beyond_the_reference_is_read() {
    let now = "2026-03-01T10:07:30[UTC]";
    for (text, first) in [
        ("@daily", "03-02 00:00:00 UTC"),
        ("0 9 * * mon-fri", "03-02 09:00:00 UTC"),
        ("0 9 * * FRI-MON", "03-02 09:00:00 UTC"),
        ("0 9 L * *", "03-31 09:00:00 UTC"),
        ("0 9 LW * *", "03-31 09:00:00 UTC"),
        ("0 9 15W * *", "03-16 09:00:00 UTC"),
        ("0 9 * * fri#2", "03-13 09:00:00 UTC"),
        ("0 9 * * 5L", "03-27 09:00:00 UTC"),
        ("0 9 1 jan,JUN *", "06-01 09:00:00 UTC"),
        ("CRON_TZ=Asia/Tokyo 0 9 * * *", "03-02 09:00:00 JST"),
        ("0 9 * * * 15", "03-02 09:00:15 UTC"),
        ("*/61 * * * *", "03-01 11:00:00 UTC"),
    ] {
        assert_eq!(runs(text, now, 1), [first], "{text}");
    }
}

#[test]
fn what_cannot_be_read_is_said_with_its_field() {
    let said = |text: &str| Schedule::parse(text, Timestamp::UNIX_EPOCH, &TimeZone::UTC).expect_err(text).to_string();
    assert!(said("60 * * * *").starts_with("the minute \"60\" cannot be read: write *, 0 to 59,"));
    assert!(said("0 9 * foo *").starts_with("the month \"foo\" cannot be read"));
    assert!(said("0 9 * * 5#6").starts_with("the day of week \"5#6\" cannot be read"));
    assert!(said("CRON_TZ=Mars/Base 0 9 * * *").starts_with("there is no time zone \"Mars/Base\""));
    assert!(said("@reboot").contains("@daily"));
    assert!(said("0 9 * *").contains("every 15m"));
    assert!(said(&"9".repeat(300)).contains("200 bytes"));
    for text in ["*/0 * * * *", "1-2-3 * * * *", "* * * * * * 1900", "99999999999999999999d", "+5m", "every"] {
        said(text);
    }
}

#[test]
fn what_nobody_can_want_is_not_admitted() {
    let now: Timestamp = "2026-03-01T10:07:30Z".parse().expect("now");
    let admitted = |text: &str| {
        Schedule::parse(text, now, &TimeZone::UTC).expect(text).admit(now).map(|schedule| schedule.to_string())
    };
    for text in ["0 0 30 2 *", "0 0 31 4,6 *", "0 9 1 1 * 0 2020", "every 0m", "2026-03-01T10:05:29"] {
        admitted(text).expect_err(text);
    }
    assert_eq!(admitted("2026-03-01T10:05:30").as_deref(), Ok("once at 2026-03-01 10:05"));
    assert_eq!(admitted("0  0 29 2 *").as_deref(), Ok("0 0 29 2 *"));
}

/// What the rule says, found by walking the wall clock minute by minute from `from` to `to`.
fn walked(pattern: &str, steps: bool, zone: &TimeZone, from: DateTime, to: DateTime) -> Vec<Timestamp> {
    let on_utc = read(pattern, &TimeZone::UTC);
    let mut found = Vec::new();
    let mut time = from;
    while time < to {
        let just_before = time.to_zoned(TimeZone::UTC).expect("UTC").timestamp() - 1.second();
        if on_utc.next(just_before).is_some_and(|slot| TimeZone::UTC.to_datetime(slot.at) == time) {
            match zone.to_ambiguous_timestamp(time).offset() {
                AmbiguousOffset::Unambiguous { offset } => found.push(offset.to_timestamp(time).expect("time")),
                AmbiguousOffset::Fold { before, after } => {
                    found.push(before.to_timestamp(time).expect("time"));
                    found.extend(steps.then(|| after.to_timestamp(time).expect("time")));
                }
                AmbiguousOffset::Gap { .. } => {
                    let mut valid = time;
                    while matches!(zone.to_ambiguous_timestamp(valid).offset(), AmbiguousOffset::Gap { .. }) {
                        valid += 1.minute();
                    }
                    found.push(zone.to_timestamp(valid).expect("time"));
                }
            }
        }
        time += 1.minute();
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn around_every_clock_change_of_a_year_each_time_comes_as_the_rule_says() {
    let patterns = [
        ("30 2 * * *", false),
        ("0,30 0-3 * * *", false),
        ("15 * * * *", true),
        ("*/20 1-2 * * *", true),
        ("0 */2 * * *", false),
    ];
    let year = "2026-01-01T00:00:00Z".parse::<Timestamp>().expect("year");
    let end = "2027-01-01T00:00:00Z".parse::<Timestamp>().expect("year");
    let (mut changes, mut seen) = (0, std::collections::HashSet::new());
    for name in jiff::tz::db().available() {
        let zone = zone(name.as_str());
        for change in zone.following(year).take_while(|change| change.timestamp() < end) {
            changes += 1;
            // Many zones change alike.
            let (at, later) = (change.timestamp(), change.offset());
            if !seen.insert((at, later, zone.to_offset(at - 1.second()))) {
                continue;
            }
            let about = zone.to_datetime(change.timestamp());
            let (from, to) = (
                about.date().to_datetime(civil::Time::midnight()) - 1.day(),
                about.date().to_datetime(civil::Time::midnight()) + 2.days(),
            );
            for (pattern, steps) in patterns {
                let schedule = read(pattern, &zone);
                let before = zone.to_timestamp(from).expect("time") - 1.second();
                let last = zone.to_timestamp(to).expect("time");
                let ours: Vec<_> = schedule.upcoming(before).map(|slot| slot.at).take_while(|at| *at < last).collect();
                assert_eq!(ours, walked(pattern, steps, &zone, from, to), "{pattern} in {name} around {about}");
                // Whenever it is asked, it is the first one after.
                for minutes in (0..3 * 24 * 60).step_by(37) {
                    let asked = before + minutes.minutes();
                    let first = ours.iter().find(|at| **at > asked);
                    assert!(
                        first.is_none() || schedule.next(asked).map(|slot| slot.at) == first.copied(),
                        "{pattern} in {name} after {asked}"
                    );
                }
            }
        }
    }
    assert!(changes > 200, "{changes} changes");
}

#[test]
fn a_daily_job_runs_once_a_day_all_year_in_every_zone() {
    let year = civil::date(2026, 1, 1);
    for name in jiff::tz::db().available() {
        let zone = zone(name.as_str());
        let schedule = read("30 2 * * *", &zone);
        let begin = zone.to_timestamp(year.to_datetime(civil::Time::midnight())).expect("year");
        let days: Vec<_> = schedule.upcoming(begin).map(|slot| zone.to_datetime(slot.at).date()).take(365).collect();
        let expected: Vec<_> = year.series(1.day()).take(365).collect();
        assert_eq!(days, expected, "{name}");
    }
}
