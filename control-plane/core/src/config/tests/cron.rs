//! Jobs in a text: read, refused with their place, merged, compared and exported.

use super::{load, refused};
use crate::config::*;
use crate::cron::{Conversation, Missed, Overlap};

const TEXT: &str = r#"
agents: {coder: {}, other: {}}
cron:
  coder:
    morning report:
      schedule: "0 9 * * mon-fri"
      timezone: Europe/Berlin
      prompt: "yes:\nno"
      deliver: [telegram:-1001234, origin]
      skills: [maps]
      repeat: 3
      paused: true
      model: a/b
      workdir: x/y
      script: a.sh
      context_from: [watch]
      missed: all 5
      overlap: queue
      jitter_seconds: 60
      timeout_seconds: 600
      session: continue
      bare: true
      mirror: true
    watch: {schedule: "2020-01-31T09:00", script: w.sh, no_agent: true}
  other:
    morning report: {schedule: every 2h, prompt: x}
"#;

fn patched(document: &Document, text: &str, prune: bool) -> Document {
    read(text).onto(document, prune).unwrap().0
}

#[test]
fn jobs_are_read_exported_and_read_again() {
    let document = load(TEXT);
    let jobs = &document.cron["coder"];
    let report = &jobs["morning report"];
    assert_eq!(report.deliver.to_string(), "telegram:-1001234,origin");
    assert_eq!(
        (report.missed, report.overlap, report.session),
        (Missed::All(5), Overlap::Queue, Conversation::Continue)
    );
    assert_eq!((report.prompt.as_str(), report.repeat, report.timeout_seconds), ("yes:\nno", Some(3), Some(600)));
    assert!(report.paused && report.bare && report.mirror && jobs["watch"].no_agent);
    assert_eq!(document.cron["other"]["morning report"].schedule, "every 2h");
    let exported = to_yaml(&document);
    assert_eq!(load(&exported), document, "{exported}");
    assert!(!to_yaml(&load("{}")).contains("cron"));
}

#[test]
fn every_fault_of_a_job_has_its_line_and_path() {
    refused(
        "cron:\n  coder:\n    a:\n      prompt: x\n      shedule: 1h\n  0: {}\n  nobody: {}\n",
        &[
            (2, "cron.coder", "not registered"),
            (3, "cron.coder.a.schedule", "missing"),
            (5, "cron.coder.a.shedule", "did you mean schedule"),
            (6, "cron", "a key is text"),
            (7, "cron.nobody", "not registered"),
        ],
    );
    refused(
        "agents: {coder: {}}\ncron:\n  coder:\n    a b:\n      schedule: sometimes\n      prompt: x\n      script: ../x\n      jitter_seconds: 90000\n      deliver: telegarm\n",
        &[
            (5, "cron.coder.\"a b\".schedule", "is no schedule"),
            (7, "cron.coder.\"a b\".script", ".."),
            (8, "cron.coder.\"a b\".jitter_seconds", "86400"),
            (9, "cron.coder.\"a b\".deliver", "did you mean telegram"),
        ],
    );
    refused(
        "agents: {coder: {}}\ncron:\n  coder:\n    a:\n      schedule: 7\n      prompt: x\n      missed: maybe\n      overlap: never\n      bare: 1\n      repeat: -1\n      skills: maps\n",
        &[
            (5, "cron.coder.a.schedule", "quote it"),
            (7, "cron.coder.a.missed", "write skip, once"),
            (8, "cron.coder.a.overlap", "write one of"),
            (9, "cron.coder.a.bare", "true or false"),
            (10, "cron.coder.a.repeat", "whole number"),
            (11, "cron.coder.a.skills", "a list"),
        ],
    );
    refused(
        "agents: {coder: {}}\ncron:\n  coder:\n    Tea: {schedule: 1h, prompt: x}\n    tea: {schedule: 1h, prompt: x}\n    0123456789ab: {schedule: 1h, prompt: x}\n    b: {schedule: 1h}\n",
        &[
            (5, "cron.coder.tea", "but for its case"),
            (6, "cron.coder.0123456789ab", "are an id"),
            (7, "cron.coder.b.prompt", "say in prompt"),
        ],
    );
}

#[test]
fn a_text_reaches_the_jobs_that_it_names_and_prune_those_of_the_agents_that_it_names() {
    let before = load(TEXT);
    let same = patched(&before, "cron: {other: {Morning Report: {schedule: 1h, prompt: y}}}", false);
    assert_eq!(same.cron["coder"], before.cron["coder"], "another agent's job of the same name");
    assert_eq!(same.cron["other"].keys().collect::<Vec<_>>(), ["Morning Report"]);

    let agents = "agents: {coder: {}, other: {}}\n";
    let pruned = patched(&before, &format!("{agents}cron: {{coder: {{watch: {{schedule: 1h, prompt: y}}}}}}"), true);
    assert_eq!(pruned.cron["coder"].keys().collect::<Vec<_>>(), ["watch"]);
    assert_eq!(pruned.cron["other"], before.cron["other"]);
    assert_eq!(patched(&before, agents, true).cron, before.cron, "a text without cron says nothing of jobs");
    assert!(!patched(&before, &format!("{agents}cron: {{coder: {{}}}}"), true).cron.contains_key("coder"));
    assert!(!patched(&before, "agents: {coder: {}}", true).cron.contains_key("other"), "they go with their agent");
}

#[test]
fn what_would_change_is_told_by_job_and_field() {
    let before = load(TEXT);
    let after = patched(
        &before,
        "cron: {other: {morning report: {schedule: every 3h, prompt: x}, tea: {schedule: 1h, prompt: y}}}",
        false,
    );
    let told: Vec<(ChangeKind, String)> = diff(&before, &after).into_iter().map(|one| (one.kind, one.path)).collect();
    let expected = [
        (ChangeKind::Change, "cron.other.morning report.schedule".to_owned()),
        (ChangeKind::Add, "cron.other.tea".to_owned()),
    ];
    assert_eq!(told, expected);
    let none = Document { cron: Jobs::new(), ..before.clone() };
    assert_eq!(diff(&none, &before).len(), 1);
}
