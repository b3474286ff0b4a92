//! The curator in homes of a few skills.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-11-28T12:00:00Z";

struct Home(tempfile::TempDir);

impl Home {
    /// With these rows, and a folder for each of these skills.
    fn new(rows: Value, skills: &[&str]) -> Self {
        let home = Self(tempfile::tempdir().expect("tempdir"));
        for skill in skills {
            home.put(skill);
        }
        fs::create_dir_all(home.at("")).expect("mkdir");
        fs::write(home.at(".usage.json"), rows.to_string()).expect("write");
        home
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join("skills").join(path)
    }

    fn put(&self, skill: &str) {
        let name = skill.rsplit('/').next().expect("a name");
        fs::create_dir_all(self.at(skill).join("references")).expect("mkdir");
        fs::write(self.at(skill).join("references/more.md"), skill).expect("write");
        let text = format!("---\nname: {name}\ndescription: about {name}\n---\nText\n");
        fs::write(self.at(skill).join("SKILL.md"), text).expect("write");
    }

    /// Where the skill lies that was put there.
    fn holds(&self, place: &str, was: &str) -> bool {
        fs::read_to_string(self.at(place).join("references/more.md")).is_ok_and(|text| text == was)
            && self.at(place).join("SKILL.md").is_file()
    }

    fn order_with(&self, order: &Order, jobs: Result<&[&str], &str>) -> Result<Report, String> {
        let jobs = jobs.map(|names| names.iter().map(|name| (*name).to_owned()).collect()).map_err(str::to_owned);
        carry_out(self.0.path(), order, &Settings::default(), &jobs, NOW.parse().expect("time"))
    }

    fn order(&self, order: &Order) -> Result<Report, String> {
        self.order_with(order, Ok(&[]))
    }

    fn rows(&self) -> Value {
        serde_json::from_slice(&fs::read(self.at(".usage.json")).expect("read")).expect("json")
    }
}

fn row(state: &str, used: &str) -> Value {
    json!({"created_by": "agent", "state": state, "use_count": 1, "last_used_at": used, "x": [1]})
}

const OLD: &str = "2026-01-01T00:00:00+00:00";
const MIDDLE: &str = "2026-10-15T00:00:00+00:00";
const NEW: &str = "2026-11-27T00:00:00+00:00";

#[test]
fn a_run_moves_and_marks_the_agents_own_skills_and_no_other() {
    let mut rows = json!({
        "old": row("active", OLD), "middle": row("active", MIDDLE), "new": row("stale", NEW), "theirs": row("active", OLD),
        "pinned": row("active", OLD), "needed": row("active", OLD), "twice": row("active", OLD), "deleted": row("active", OLD),
        "moved": row("active", OLD),
    });
    rows["theirs"]["created_by"] = Value::Null;
    rows["pinned"]["pinned"] = json!(true);
    let skills = ["web/old", "middle", "new", "theirs", "pinned", "needed", "a/twice", "b/twice", ".archive/moved"];
    let home = Home::new(rows.clone(), &skills);
    let run = |dry_run| home.order_with(&Order::Run { dry_run }, Ok(&["needed"])).expect("run");
    let said = |report: &Report| {
        let said = report.changes.iter().map(|one| format!("{} {} {}", one.skill, one.to.word(), one.folder));
        said.collect::<Vec<_>>()
    };

    let report = run(true);
    assert_eq!(said(&report), ["middle stale ", "moved archived ", "new active ", "old archived "]);
    assert_eq!((home.rows(), report.runs), (rows, 0), "a dry run changes nothing");
    assert!(skills.iter().all(|skill| home.holds(skill, skill)));

    let report = run(false);
    let done = ["middle stale ", "moved archived ", "new active ", "old archived skills/.archive/old"];
    assert_eq!(said(&report), done);
    assert_eq!((report.runs, report.last_summary.as_deref()), (1, Some("2 archived, 1 stale, 1 active again")));
    assert_eq!(report.last_run_at.as_deref(), Some(NOW));
    assert!(home.holds(".archive/old", "web/old") && !home.at("web/old").is_dir());
    assert!(skills[1..].iter().all(|skill| home.holds(skill, skill)));
    let rows = home.rows();
    assert_eq!((&rows["old"]["state"], &rows["old"]["x"][0]), (&"archived".into(), &1.into()));
    assert_eq!(rows["old"]["archived_at"], NOW);
    assert_eq!((&rows["middle"]["state"], &rows["needed"]["state"]), (&"stale".into(), &"active".into()));
    assert!(run(false).changes.is_empty(), "nothing is due twice");
}

#[test]
fn jobs_that_cannot_be_read_keep_every_skill_where_it_is() {
    let home = Home::new(json!({"old": row("active", OLD)}), &["old"]);
    for order in [Order::Run { dry_run: false }, Order::Archive("old".into())] {
        let error = home.order_with(&order, Err("a comma")).expect_err("refused");
        assert!(error.contains("a comma, so nobody knows which skills jobs need"), "{error}");
    }
    assert!(home.holds("old", "old"));
    home.order_with(&Order::Status, Err("a comma")).expect("a look needs no jobs");
}

#[test]
fn what_an_operator_archives_comes_back_to_the_top_and_replaces_nothing() {
    let home = Home::new(json!({}), &["ops/s", ".archive/s"]);
    let report = home.order(&Order::Archive("s".into())).expect("archived");
    assert_eq!(report.changes[0].folder, "skills/.archive/s-20261128120000");
    assert!(home.holds(".archive/s-20261128120000", "ops/s") && home.holds(".archive/s", ".archive/s"));

    let report = home.order(&Order::Restore("s".into())).expect("restored");
    assert_eq!((report.changes[0].to, report.changes[0].folder.as_str()), (State::Active, "skills/s"));
    assert!(home.holds("s", ".archive/s"), "the exact name first");
    assert_eq!((&home.rows()["s"]["state"], &home.rows()["s"]["archived_at"]), (&"active".into(), &Value::Null));
    let error = home.order(&Order::Restore("s".into())).expect_err("there is one");
    assert!(error.contains("there is a skill s already"), "{error}");

    fs::remove_dir_all(home.at("s")).expect("remove");
    fs::write(home.at("s"), "a file").expect("write");
    let error = home.order(&Order::Restore("s".into())).expect_err("something is in the way");
    assert!(error.contains("skills/s is there already"), "{error}");
    fs::remove_file(home.at("s")).expect("remove");
    fs::create_dir(home.at("s")).expect("an empty folder is in the way, too");
    home.order(&Order::Restore("s".into())).expect_err("something is in the way");
    fs::remove_dir(home.at("s")).expect("remove");
    home.order(&Order::Restore("s".into())).expect("the one with a time");
    assert!(home.holds("s", "ops/s"));

    home.put(".archive/deep/er/n");
    home.put(".archive/n-20260101000000");
    home.order(&Order::Restore("n".into())).expect("restored");
    assert!(home.holds("n", ".archive/deep/er/n"));
}

#[test]
fn what_cannot_be_done_is_refused_with_a_reason() {
    let home = Home::new(json!({"p": {"pinned": true}}), &["p", "j", "a/two", "b/two"]);
    std::os::unix::fs::symlink("/etc", home.at("p/link")).expect("symlink");
    for (order, part) in [
        (Order::Archive("p".into()), "pinned; unpin"),
        (Order::Archive("j".into()), "cron/jobs.json"),
        (Order::Archive("two".into()), "several categories (a, b)"),
        (Order::Archive("none".into()), "no skill none"),
        (Order::Archive("../x".into()), "no name"),
        (Order::Pin("none".into()), "no skill none"),
        (Order::Restore("none".into()), "list-archived"),
        (Order::Restore("a/two".into()), "without its category"),
    ] {
        let error = home.order_with(&order, Ok(&["j"])).expect_err(part);
        assert!(error.contains(part), "{error}");
    }
    home.order(&Order::Unpin("p".into())).expect("unpinned");
    home.order(&Order::Archive("p".into())).expect("archived");
    assert!(home.holds(".archive/p", "p"));

    fs::remove_dir_all(home.at(".archive")).expect("remove");
    std::os::unix::fs::symlink("/tmp", home.at(".archive")).expect("symlink");
    home.order(&Order::Archive("j".into())).expect_err("nothing leaves the home");
    assert!(home.holds("j", "j"));
}

#[test]
fn by_itself_it_waits_an_interval_and_while_it_is_paused() {
    let home = Home::new(json!({"old": row("active", OLD)}), &["old"]);
    let remembers = |last: &str| fs::write(home.at(".curator_state"), json!({"last_run_at": last, "y": 7}).to_string());
    let report = home.order(&Order::Due).expect("noted");
    assert_eq!((report.runs, report.last_run_at.as_deref()), (0, Some(NOW)));
    assert_eq!(home.order(&Order::Due).expect("nothing").runs, 0);
    remembers(MIDDLE).expect("write");
    home.order(&Order::Pause).expect("paused");
    let report = home.order(&Order::Due).expect("nothing");
    assert!(report.paused && report.runs == 0 && home.holds("old", "old"));
    home.order(&Order::Resume).expect("resumed");
    let report = home.order(&Order::Due).expect("run");
    assert_eq!((report.runs, report.paused, report.archived), (1, false, 1));
    let written: Value = serde_json::from_slice(&fs::read(home.at(".curator_state")).expect("read")).expect("json");
    assert_eq!(written["y"], 7, "what others wrote stays");
    fs::write(home.at(".curator_state"), "[").expect("write");
    assert!(home.order(&Order::Due).expect_err("broken").contains("repair or remove it"));
}
