//! The curator of skills as an operator uses it: in a home of old, over a real run, and when its worker is killed in the middle.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;

use hermes_tests::mock_model::MockModel;
use hermes_tests::system::{Options, Up, until};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{SOON, agent_of, ask, personas, with_model, worker_of};

pub(super) fn home(up: &Up) -> PathBuf {
    worker_of(up, "main");
    PathBuf::from(agent_of(up, "main")["home"].as_str().unwrap())
}

pub(super) fn curator(up: &Up, args: &[&str]) -> Value {
    up.json(["curator"].iter().chain(args))
}

fn refused(up: &Up, args: &[&str]) -> String {
    up.ctl(["curator"].iter().chain(args)).refused(1)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::write(target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

/// As its agent would have left it: the worker's user owns it.
pub(super) fn give_to_worker(home: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    let of = fs::metadata(home).unwrap();
    let mut waiting = vec![home.join("skills"), home.join("cron")];
    waiting.retain(|path| path.is_dir());
    while let Some(path) = waiting.pop() {
        std::os::unix::fs::lchown(&path, Some(of.uid()), Some(of.gid())).unwrap();
        waiting.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
}

pub(super) fn put(home: &Path, place: &str) {
    let name = place.rsplit('/').next().unwrap();
    let folder = home.join("skills").join(place);
    fs::create_dir_all(folder.join("references")).unwrap();
    fs::write(folder.join("SKILL.md"), format!("---\nname: {name}\ndescription: about {name}\n---\nText\n")).unwrap();
    fs::write(folder.join("references/more.md"), name).unwrap();
}

fn is_whole(home: &Path, place: &str) -> bool {
    let folder = home.join("skills").join(place);
    let name = place.rsplit('/').next().unwrap();
    fs::read_to_string(folder.join("references/more.md")).is_ok_and(|text| text == name)
        && folder.join("SKILL.md").is_file()
}

/// A row of a skill that was last used so many days ago.
pub(super) fn used(days: i64) -> Value {
    let at = Timestamp::now() - SignedDuration::from_hours(24 * days);
    json!({"created_by": "agent", "state": "active", "use_count": 1, "last_used_at": at.to_string(), "pinned": false})
}

/// Whether the control plane has the document, as the worker last agreed with it.
pub(super) fn has_document(home: &Path, path: &str) -> bool {
    let ledger: Value = serde_json::from_slice(&fs::read(home.join(".hermes-documents.json")).unwrap()).unwrap();
    let entry = &ledger["documents"][path];
    entry["version"].as_u64() > Some(0) && entry["deleted"] != true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_of_old_shows_its_skills_and_gets_an_archived_one_back() {
    let model = personas().await;
    let up = with_model(&model);
    let home = home(&up);
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("hermes-home");
    copy(&old.join("skills"), &home.join("skills"));
    fs::create_dir_all(home.join("cron")).unwrap();
    let job = json!({"id": "legacy000001", "name": null, "skill": "deploy-app", "enabled": true});
    fs::write(home.join("cron/jobs.json"), json!({"jobs": [job]}).to_string()).unwrap();
    give_to_worker(&home);

    let status = curator(&up, &["status", "main"]);
    assert_eq!((&status["active"], &status["stale"], &status["archived"]), (&4.into(), &1.into(), &1.into()));
    assert_eq!(status["pinned"], json!(["weekly-report"]));
    assert_eq!(status["most_active"][0]["skill"], "deploy-app");
    assert_eq!(status["most_active"][0]["activity"], 4);
    let archived = curator(&up, &["list-archived", "main"]);
    assert_eq!(archived, json!([{"folder": "retired-skill", "archived_at": "2026-11-22T06:11:13.015801+00:00"}]));

    assert!(refused(&up, &["archive", "main", "weekly-report"]).contains("pinned"));
    assert!(refused(&up, &["archive", "main", "deploy-app"]).contains("cron/jobs.json"), "an old job names it");
    let active = |skill: &str| refused(&up, &["archive", "main", skill]);
    let other = home.join("skills/scheduled");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("SKILL.md"), "---\nname: scheduled\ndescription: Of a job\n---\nDo it.\n").unwrap();
    give_to_worker(&home);
    up.json(["cron", "add", "main", "0 9 * * *", "go", "--name", "j", "--skill", "scheduled", "--paused"]);
    assert!(active("scheduled").contains("needed by a job"), "a paused job of the control plane names it");
    up.ctl(["cron", "remove", "j", "--yes"]).ok();
    curator(&up, &["archive", "main", "scheduled"]);
    assert!(home.join("skills/.archive/scheduled/SKILL.md").is_file() && !other.is_dir());
    assert!(refused(&up, &["restore", "main", "nothing"]).contains("no skill nothing in the archive"));

    let restored = curator(&up, &["restore", "main", "retired-skill"]);
    let change =
        json!({"skill": "retired-skill", "from": "archived", "to": "active", "folder": "skills/retired-skill"});
    assert_eq!((&restored["changes"][0], &restored["active"], &restored["archived"]), (&change, &5.into(), &0.into()));
    assert!(has_document(&home, "skills/retired-skill/SKILL.md"));
    assert!(refused(&up, &["restore", "main", "retired-skill"]).contains("no skill retired-skill in the archive"));
    put(&home, ".archive/ops/retired-skill");
    give_to_worker(&home);
    assert!(refused(&up, &["restore", "main", "retired-skill"]).contains("there is a skill retired-skill already"));
    let usage: Value = serde_json::from_slice(&fs::read(home.join("skills/.usage.json")).unwrap()).unwrap();
    assert_eq!((&usage["retired-skill"]["state"], &usage["deploy-app"]["use_count"]), (&"active".into(), &3.into()));
    assert_eq!(ask(&up, "1", "hello")["state"], "succeeded");
    assert!(model.last().json().to_string().contains("- retired-skill: An archived skill"), "its agent sees it again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_archives_what_nobody_uses_and_the_agent_sees_it_no_more() {
    let model = personas().await;
    let up = with_model(&model);
    let home = home(&up);
    let names = ["web/old", "tired", "fresh", "needed", "kept"];
    names.iter().for_each(|name| put(&home, name));
    let rows = json!({"old": used(100), "tired": used(40), "fresh": used(1), "needed": used(100), "kept": used(100)});
    fs::write(home.join("skills/.usage.json"), rows.to_string()).unwrap();
    fs::create_dir_all(home.join("cron")).unwrap();
    let jobs = json!({"jobs": [{"id": "a", "skills": ["needed"], "enabled": false, "state": "paused"}]});
    fs::write(home.join("cron/jobs.json"), jobs.to_string()).unwrap();
    give_to_worker(&home);
    assert_eq!(curator(&up, &["pin", "main", "kept"])["pinned"], json!(["kept"]));
    // A turn looks at the files unless somebody has just looked.
    until(SOON, "its documents", || {
        ask(&up, "1", "hello");
        has_document(&home, "skills/web/old/SKILL.md").then_some(())
    });
    assert!(model.last().json().to_string().contains("- old: about old"));

    let dry = curator(&up, &["run", "main", "--dry-run"]);
    let becomes = |report: &Value| {
        let changes = report["changes"].as_array().unwrap().iter();
        changes
            .map(|one| format!("{} {}", one["skill"].as_str().unwrap(), one["to"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(becomes(&dry), ["old archived", "tired stale"]);
    assert!(names.iter().all(|name| is_whole(&home, name)) && dry["runs"] == 0);

    let ran = curator(&up, &["run", "main"]);
    assert_eq!(becomes(&ran), becomes(&dry));
    assert_eq!((&ran["runs"], &ran["last_summary"]), (&1.into(), &"1 archived, 1 stale, 0 active again".into()));
    assert!(is_whole(&home, ".archive/old") && names[1..].iter().all(|name| is_whole(&home, name)));
    assert!(!has_document(&home, "skills/web/old/SKILL.md") && has_document(&home, "skills/tired/SKILL.md"));
    ask(&up, "1", "and now");
    let told = model.last().json().to_string();
    assert!(!told.contains("- old: about old") && told.contains("- tired: about tired"), "{told}");

    assert_eq!(curator(&up, &["pause", "main"])["paused"], true);
    assert_eq!(curator(&up, &["resume", "main"])["paused"], false);
    fs::write(home.join("cron/jobs.json"), "{").unwrap();
    assert!(refused(&up, &["run", "main"]).contains("cron/jobs.json cannot be read"));
    assert!(refused(&up, &["status", "nobody"]).contains("nobody"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_in_the_middle_leaves_every_skill_whole_in_one_place() {
    let model = MockModel::start().await.unwrap();
    let up = Up::start(Options::config(super::model_document(&model).to_string()));
    let home = home(&up);
    let names: Vec<String> = (0..120).map(|number| format!("skill-{number:03}")).collect();
    names.iter().for_each(|name| put(&home, name));
    let rows: serde_json::Map<String, Value> = names.iter().map(|name| (name.clone(), used(100))).collect();
    fs::write(home.join("skills/.usage.json"), Value::Object(rows).to_string()).unwrap();
    give_to_worker(&home);
    let pid = i32::try_from(worker_of(&up, "main")["pid"].as_i64().unwrap()).unwrap();
    let moved = || fs::read_dir(home.join("skills/.archive")).map_or(0, Iterator::count);
    let said = thread::scope(|scope| {
        let run = scope.spawn(|| refused(&up, &["run", "main"]));
        until(SOON, "the first moves", || (moved() >= 3).then_some(()));
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        run.join().unwrap()
    });
    assert!(said.contains("the worker left before it answered"), "{said}");
    // Held until whoever moved skills is gone.
    File::open(home.join("skills/.skills.lock")).unwrap().lock().unwrap();
    for name in &names {
        let places = [is_whole(&home, name), is_whole(&home, &format!(".archive/{name}"))];
        assert!(places[0] != places[1], "{name}: {places:?}");
    }
    until(SOON, "another worker", || (worker_of(&up, "main")["pid"].as_i64() != Some(pid.into())).then_some(()));
    let ran = curator(&up, &["run", "main"]);
    assert_eq!((&ran["archived"], &ran["active"], moved()), (&120.into(), &0.into(), 120), "{ran}");
    assert!(names.iter().all(|name| is_whole(&home, &format!(".archive/{name}"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_document_says_of_it_reaches_the_worker_with_the_next_order() {
    let model = personas().await;
    let up = with_model(&model);
    let home = home(&up);
    let rows = json!({"maps": used(3), "old": used(7)});
    put(&home, "maps");
    put(&home, "old");
    fs::write(home.join("skills/.usage.json"), rows.to_string()).unwrap();
    give_to_worker(&home);
    assert_eq!(curator(&up, &["run", "main"])["changes"], json!([]));
    let apply = |text: &str| up.ctl_with_input(["apply", "-f", "-"], text.as_bytes());
    let said = apply("curator: {stale_after_days: 7, archive_after_days: 6}").refused(1);
    assert!(said.contains("1: curator.archive_after_days") && said.contains("7 or more"), "{said}");
    apply("curator: {interval_days: 2, stale_after_days: 3, archive_after_days: 6}").ok();
    let ran = curator(&up, &["run", "main"]);
    let states: Vec<_> =
        ran["changes"].as_array().unwrap().iter().map(|change| (&change["skill"], &change["to"])).collect();
    assert_eq!(states, [(&json!("maps"), &json!("stale")), (&json!("old"), &json!("archived"))]);
    assert_eq!(
        (&ran["interval_hours"], &ran["stale_after_days"], &ran["enabled"]),
        (&48.into(), &3.into(), &true.into())
    );
    // An agent's own counts as a whole.
    apply("agents: {main: {curator: {enabled: false}}}").ok();
    let status = curator(&up, &["status", "main"]);
    assert_eq!((&status["enabled"], &status["stale_after_days"]), (&false.into(), &30.into()));
    assert!(apply("curator: {consolidate: 7}").refused(1).contains("true or false"));
}
