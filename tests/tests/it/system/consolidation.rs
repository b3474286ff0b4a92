//! Skills that overlap are merged by the agent's model, in a turn that nobody wrote a message for, and the jobs that named them follow.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use hermes_tests::system::{Options, Up, until};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::curator::{curator, give_to_worker, has_document, home, put, used};
use super::{SOON, ask, ended, worker_of};

const NEW: &str = "---\nname: scraping\ndescription: All about scraping\n---\nBe polite.\n";
/// How the turn begins that merges skills.
const TOLD: &str = "This is no conversation";

/// What the model asks for then, one after the other.
fn script() -> Vec<(&'static str, Value)> {
    vec![
        ("skill_view", json!({"name": "scrape-shops"})),
        ("skill_manage", json!({"action": "create", "name": "scraping", "category": "web", "content": NEW})),
        ("skills_consolidate", json!({"skills": ["scrape-shops", "scrape-news"], "into": "scraping"})),
        ("skills_consolidate", json!({"skills": ["sole"]})),
        ("skills_consolidate", json!({"skills": ["junk"]})),
        ("skills_list", json!({})),
    ]
}

/// The model; at each step of the script that is in `holds` it once kills nobody, but waits for the worker to be killed.
async fn scripted(holds: &'static [usize]) -> MockModel {
    let model = MockModel::start().await.unwrap();
    let held = Mutex::new(HashSet::new());
    model.respond(move |body| {
        let messages = body["messages"].as_array().cloned().unwrap_or_default();
        let begun = messages.iter().rposition(|message| message["role"] == "user").unwrap_or_default();
        if !messages[begun]["content"].as_str().unwrap_or_default().starts_with(TOLD) {
            return Behaviour::Say("hello".to_owned());
        }
        let done = messages[begun..].iter().filter(|message| message["role"] == "tool").count();
        if holds.contains(&done) && held.lock().unwrap().insert(done) {
            return Behaviour::HangBeforeHeaders;
        }
        match script().get(done) {
            Some((name, arguments)) => {
                Behaviour::Ask(String::new(), vec![Call::new(&format!("call-{done}"), name, &arguments.to_string())])
            }
            None => Behaviour::Say("Merged two into scraping.".to_owned()),
        }
    });
    model
}

fn up(model: &MockModel) -> Up {
    let mut document = super::model_document(model);
    document["curator"] = json!({"consolidate": true, "interval_hours": 1, "min_idle_hours": 0});
    Up::start(Options::config(document.to_string()))
}

fn skills(home: &Path) {
    let names = ["scrape-shops", "web/scrape-news", "junk", "sole", "kept", "people"];
    names.iter().for_each(|name| put(home, name));
    let mut rows =
        json!({"scrape-shops": used(1), "scrape-news": used(2), "junk": used(3), "sole": used(1), "kept": used(1)});
    rows["kept"]["pinned"] = true.into();
    fs::write(home.join("skills/.usage.json"), rows.to_string()).unwrap();
    give_to_worker(home);
}

/// How the turn ended that an order led to.
fn merging(up: &Up, ran: &Value) -> Value {
    let turn = &ran["consolidation"];
    let session = format!("s{}", turn.as_str().unwrap()[1..].split_once('.').unwrap().0);
    ended(up, &json!({"turn": turn, "session_id": session}))
}

fn replace_worker(up: &Up) {
    let pid = worker_of(up, "main")["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    until(SOON, "another worker", || (worker_of(up, "main")["pid"].as_i64() != Some(pid)).then_some(()));
}

fn archive(home: &Path) -> Vec<String> {
    let entries = fs::read_dir(home.join("skills/.archive")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn job_skills(up: &Up, job: &str) -> Value {
    up.json(["cron", "show", job])["spec"]["skills"].clone()
}

fn jobs(up: &Up) {
    let add = |name: &str, skills: &[&str], prompt: Option<&str>| {
        let mut args = vec!["cron", "add", "main", "0 9 * * *"];
        args.extend(prompt);
        args.extend(["--name", name, "--paused"]);
        for skill in skills {
            args.extend(["--skill", skill]);
        }
        up.json(args);
    };
    add("shops", &["kept", "scrape-shops", "people"], Some("go"));
    add("both", &["web/scrape-news", "scrape-shops"], None);
    add("tidy", &["junk"], Some("go"));
    add("lone", &["sole"], None);
}

fn merged(up: &Up, home: &Path) {
    assert_eq!(job_skills(up, "shops"), json!(["kept", "scraping", "people"]));
    assert_eq!(job_skills(up, "both"), json!(["scraping"]), "once");
    assert_eq!(job_skills(up, "tidy"), json!([]));
    assert_eq!(job_skills(up, "lone"), json!(["sole"]), "it would have nothing left to do");
    assert_eq!(archive(home), ["junk", "scrape-news", "scrape-shops"]);
    for there in ["sole", "kept", "people", "web/scraping"] {
        assert!(home.join("skills").join(there).join("SKILL.md").is_file(), "{there}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_has_the_model_merge_skills_and_jobs_name_the_new_one() {
    let model = scripted(&[]).await;
    let up = up(&model);
    let home: PathBuf = home(&up);
    skills(&home);
    jobs(&up);
    let dry = curator(&up, &["run", "main", "--dry-run"]);
    assert_eq!(dry["mergeable"], json!(["junk", "scrape-news", "scrape-shops", "sole"]));
    assert_eq!(dry["consolidation"], Value::Null);
    assert_eq!(model.requests(), 0, "nobody was asked");

    let ran = curator(&up, &["run", "main"]);
    let turn = merging(&up, &ran);
    assert_eq!((&turn["state"], &turn["reply"]), (&json!("succeeded"), &json!("Merged two into scraping.")));
    merged(&up, &home);
    let last = model.last().json();
    let tools: HashSet<_> = last["tools"].as_array().unwrap().iter().map(|tool| &tool["function"]["name"]).collect();
    assert_eq!(tools.len(), 4, "{tools:?}");
    let answers: Vec<_> =
        last["messages"].as_array().unwrap().iter().filter(|message| message["role"] == "tool").collect();
    let answered = |number: usize| answers[number]["content"].as_str().unwrap().to_owned();
    assert_eq!(
        answered(2),
        r#"{"success":true,"archived":["scrape-shops","scrape-news"],"into":"scraping","jobs_changed":["shops","both"]}"#
    );
    assert!(answered(3).contains("the job \\\"lone\\\" has nothing to do without them"), "{}", answered(3));
    assert!(!answered(5).contains("scrape-shops") && answered(5).contains("scraping"), "{}", answered(5));

    // In the next turn the agent sees the new one alone, and has the usual tools.
    ask(&up, "1", "hello");
    let told = model.last().json();
    assert!(told.to_string().contains("- scraping: All about scraping") && !told.to_string().contains("scrape-shops"));
    let tools = told["tools"].as_array().unwrap();
    assert!(tools.len() > 4 && tools.iter().all(|tool| tool["function"]["name"] != "skills_consolidate"));
    until(SOON, "its documents", || {
        ask(&up, "1", "hello");
        has_document(&home, "skills/web/scraping/SKILL.md").then_some(())
    });

    // The conversation is nobody's, each such turn begins anew, and with too few skills left there is none.
    let again = curator(&up, &["run", "main"]);
    assert_eq!(again["mergeable"], json!(["scraping", "sole"]));
    merging(&up, &again);
    let asked = model.last().json()["messages"].as_array().unwrap().clone();
    assert_eq!(asked.iter().filter(|message| message["role"] == "user").count(), 1, "{asked:?}");
    curator(&up, &["pin", "main", "scraping"]);
    assert_eq!(curator(&up, &["run", "main"])["consolidation"], Value::Null);
    up.ctl_with_input(["apply", "-f", "-"], b"curator: {consolidate: false}").ok();
    assert_eq!(curator(&up, &["run", "main"])["mergeable"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_meanwhile_merges_nothing_twice_and_leaves_no_job_without() {
    // Before the calls that merge, and behind them.
    let model = scripted(&[2, 3]).await;
    let up = up(&model);
    let home = home(&up);
    skills(&home);
    jobs(&up);
    let ran = curator(&up, &["run", "main"]);
    for requests in [3, 5] {
        until(SOON, "the step", || (model.requests() == requests).then_some(()));
        replace_worker(&up);
    }
    assert_eq!(merging(&up, &ran)["state"], "succeeded");
    merged(&up, &home);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_come_by_themselves_lead_to_one_such_turn_in_their_interval() {
    let model = scripted(&[]).await;
    let up = up(&model);
    let home = home(&up);
    skills(&home);
    jobs(&up);
    let turns = || {
        let sessions = up.json(["session", "list"]);
        let session = sessions
            .as_array()
            .unwrap()
            .iter()
            .find(|session| session["session_key"].as_str().unwrap() == "agent:main:curator:dm:skills")?;
        let shown = up.json(["session", "show", session["session_id"].as_str().unwrap()]);
        Some(shown["transcript"].as_array().unwrap().clone())
    };
    // Each worker finds a run due, as if each had a home of its own.
    for runs in 1..=2 {
        let last = (Timestamp::now() - SignedDuration::from_hours(2)).to_string();
        let state = json!({"run_count": runs - 1, "last_run_at": last});
        fs::write(home.join("skills/.curator_state"), state.to_string()).unwrap();
        give_to_worker(&home);
        replace_worker(&up);
        until(SOON, "its run", || (curator(&up, &["status", "main"])["runs"] == runs).then_some(()));
        until(SOON, "the turn's end", || {
            let turns = turns()?;
            turns.iter().all(|turn| turn["state"] == "succeeded").then_some(())
        });
    }
    // Whoever asks has one more.
    let asked = curator(&up, &["run", "main"]);
    assert_eq!(asked["mergeable"], json!(["scraping", "sole"]), "{asked}");
    merging(&up, &asked);
    let turns: Vec<_> = turns().unwrap().iter().map(|turn| turn["state"].clone()).collect();
    assert_eq!(turns, ["succeeded", "succeeded"]);
}
