//! The tables of the curator's rules.

use std::collections::BTreeMap;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

const NOW: &str = "2026-11-28T12:00:00Z";

fn ago(days: i64, seconds: i64) -> Option<String> {
    let back = SignedDuration::from_hours(24 * days) + SignedDuration::from_secs(seconds);
    Some((at(NOW) - back).to_string())
}

fn row(state: &str, uses: u64, used: Option<String>, created: Option<String>) -> Usage {
    Usage {
        created_by: Some("agent".into()),
        use_count: uses,
        last_used_at: used,
        created_at: created,
        state: Some(state.into()),
        ..Usage::default()
    }
}

#[test]
fn a_skill_is_judged_by_its_last_activity_else_by_when_it_was_made() {
    use State::{Active, Archived, Stale};
    for (what, row, wanted) in [
        ("fresh", row("active", 1, ago(1, 0), ago(200, 0)), Active),
        ("a second short of stale", row("active", 1, ago(30, -1), ago(200, 0)), Active),
        ("just stale", row("active", 1, ago(30, 0), ago(200, 0)), Stale),
        ("stale stays stale", row("stale", 1, ago(60, 0), ago(200, 0)), Stale),
        ("stale and used again", row("stale", 2, ago(2, 0), ago(200, 0)), Active),
        ("a second short of the archive", row("stale", 1, ago(90, -1), ago(200, 0)), Stale),
        ("just for the archive", row("stale", 1, ago(90, 0), ago(200, 0)), Archived),
        ("active goes there at once", row("active", 1, ago(90, 0), None), Archived),
        ("never used and young", row("active", 0, None, ago(29, 0)), Active),
        ("never used, young, written down as stale", row("stale", 0, None, ago(29, 0)), Active),
        ("never used and old enough", row("active", 0, None, ago(30, 0)), Stale),
        ("never used and very old", row("active", 0, None, ago(90, 0)), Archived),
        ("never used, with an older look", row("stale", 0, ago(100, 0), ago(29, 0)), Active),
        ("no time at all", row("stale", 0, None, None), Stale),
        ("no time that can be read", row("active", 3, Some("yesterday".into()), Some("once".into())), Active),
        ("the future", row("stale", 1, ago(-5, 0), None), Active),
    ] {
        assert_eq!(row.wanted(at(NOW), &Settings::default()), wanted, "{what}");
    }
    let looked = Usage { last_viewed_at: ago(3, 0), last_patched_at: ago(2, 0), ..row("active", 1, ago(99, 0), None) };
    assert_eq!(
        (looked.wanted(at(NOW), &Settings::default()), looked.last_activity()),
        (Active, ago(2, 0).map(|text| at(&text)))
    );
}

#[test]
fn it_runs_by_itself_a_whole_interval_after_it_was_first_there() {
    let memory = |paused, last: Option<String>| Memory { paused, last_run_at: last, ..Memory::default() };
    for (paused, last, due) in [
        (false, None, Due::Note),
        (false, Some("never".to_owned()), Due::Note),
        (false, ago(7, -1), Due::Nothing),
        (false, ago(7, 0), Due::Run),
        (true, ago(70, 0), Due::Nothing),
        (true, None, Due::Nothing),
    ] {
        assert_eq!(memory(paused, last.clone()).due(at(NOW), &Settings::default()), due, "{paused} {last:?}");
    }
}

#[test]
fn jobs_name_skills_in_every_form_that_homes_have() {
    let named = |text: &str| named_by_jobs(text).map(|names| names.into_iter().collect::<Vec<_>>());
    let text = "\u{feff}{\"jobs\": [{\"skills\": [\"a\", \"x/b\"], \"skill\": \"a\"}, {\"skill\": \"c\", \"enabled\": false, \"state\": \"paused\"}, {\"skills\": \"d\"}, {}, 7]}";
    assert_eq!(named(text).unwrap(), ["a", "b", "c", "d"]);
    assert_eq!(named("[{\"skill\": \"e\"}]").unwrap(), ["e"]);
    assert!(named("{\"jobs\": []}").unwrap().is_empty());
    for text in ["", "{", "{}", "7", "{\"jobs\": 7}"] {
        assert!(named(text).is_err(), "{text}");
    }
}

#[test]
fn a_skill_comes_back_from_its_own_name_else_from_the_newest_with_a_time() {
    let folders = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for (there, found) in [
        (&["s"][..], Some("s")),
        (&["s-20260101000000", "ops/s", "s-20270101000000"], Some("ops/s")),
        (&["ops/deep/s", "web/s"], Some("web/s")),
        (&["s-20260101000000", "ops/s-20260301000000", "s-20260201000000"], Some("ops/s-20260301000000")),
        (&["s-2026010100000", "s-202601010000000", "s-2026010100000x", "s-extra-20260101000000", "ss"], None),
        (&["s/inner"], None),
        (&[], None),
    ] {
        assert_eq!(comes_back_from("s", &folders(there)), found, "{there:?}");
    }
}

#[test]
fn a_taken_name_in_the_archive_gets_the_time_behind_it() {
    let folder = |taken: &[&str]| archive_folder("s", at(NOW), |name| taken.contains(&name)).unwrap();
    assert_eq!(folder(&[]), "s");
    assert_eq!(folder(&["s"]), "s-20261128120000");
    assert_eq!(folder(&["s", "s-20261128120000"]), "s-20261128120001");
    assert_eq!(comes_back_from("s", &[folder(&["s"])]), Some("s-20261128120000"));
}

#[test]
fn the_status_counts_where_skills_lie_and_ranks_the_agents_own() {
    let mut rows: BTreeMap<String, Usage> = BTreeMap::new();
    rows.insert("used".into(), row("active", 9, ago(1, 0), ago(50, 0)));
    rows.insert("quiet".into(), row("stale", 0, None, ago(50, 0)));
    rows.insert("back".into(), row("archived", 1, ago(40, 0), None));
    rows.insert("gone".into(), Usage { archived_at: ago(3, 0), ..row("active", 0, None, None) });
    rows.insert("deleted".into(), row("active", 0, None, None));
    rows.insert("theirs".into(), Usage { created_by: None, pinned: Some(true), ..row("active", 99, ago(0, 1), None) });
    let there = ["used", "quiet", "back", "theirs"].map(str::to_owned);
    let report = Report::of(&Memory::default(), &rows, &there, &["ops/gone".to_owned()]);
    assert_eq!((report.active, report.stale, report.archived), (2, 1, 1));
    assert_eq!(report.pinned, ["theirs"]);
    let names = |list: &[Activity]| list.iter().map(|one| one.skill.clone()).collect::<Vec<_>>().join(" ");
    assert_eq!(names(&report.least_recent), "quiet back used");
    assert_eq!(names(&report.most_active), "used back quiet");
    assert_eq!(names(&report.least_active), "quiet back used");
    assert_eq!((report.archive[0].folder.as_str(), &report.archive[0].archived_at), ("ops/gone", &ago(3, 0)));
    rows.retain(|name, _| name == "quiet");
    assert!(Report::of(&Memory::default(), &rows, &there, &[]).most_active.is_empty());
}

#[test]
fn settings_move_every_bound() {
    let settings = Settings { interval_hours: 3, stale_after_days: 2, archive_after_days: 2, ..Settings::default() };
    let wanted = |last| row("active", 1, last, ago(200, 0)).wanted(at(NOW), &settings);
    assert_eq!((wanted(ago(2, -1)), wanted(ago(2, 0))), (State::Active, State::Archived));
    let later = Settings { archive_after_days: 3, ..settings };
    assert_eq!(row("active", 1, ago(2, 0), None).wanted(at(NOW), &later), State::Stale);
    let due = |hours: i64, settings: &Settings| {
        let last = (at(NOW) - SignedDuration::from_hours(hours)).to_string();
        Memory { last_run_at: Some(last), ..Memory::default() }.due(at(NOW), settings)
    };
    assert_eq!((due(2, &settings), due(3, &settings)), (Due::Nothing, Due::Run));
    assert_eq!(due(300, &Settings { enabled: false, ..settings }), Due::Nothing);
    // What no control plane of ours says is taken for nothing said.
    let odd = Settings { stale_after_days: 9, archive_after_days: 8, enabled: false, ..settings };
    assert_eq!(odd.or_usual(), Settings { enabled: false, ..Settings::default() });
    assert_eq!(settings.or_usual(), settings);
}
