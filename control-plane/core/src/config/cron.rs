//! `cron` in a text, and in exports: the jobs of agents, below the agent that they belong to.
//!
//! Called by [`super::read`], the merge and [`super::to_yaml`]. What a job is is [`crate::cron`]'s. A text is judged as if it had been written long ago, so
//! that a job whose time has come and gone can stay in it; that a new job has a time to come is judged where it is taken in.

use std::collections::BTreeMap;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::export::{Shape, literal, text as text_shape};
use super::fields::{Entry, Faults, Path, Section, boolean, entries, integer, text, texts};
use super::tree::{Content, Node};
use super::{AgentSpec, PLATFORMS, Patch};
use crate::AgentId;
use crate::cron::{Deliver, Job, judge_name};

const KEYS: [&str; 19] = [
    "schedule",
    "timezone",
    "prompt",
    "skills",
    "deliver",
    "repeat",
    "paused",
    "model",
    "workdir",
    "script",
    "no_agent",
    "context_from",
    "missed",
    "overlap",
    "jitter_seconds",
    "timeout_seconds",
    "session",
    "bare",
    "mirror",
];

/// Jobs by agent and name.
pub type Jobs = BTreeMap<AgentId, BTreeMap<String, Job>>;

/// Where a text says something of a job: `cron.coder."morning report".schedule`; without a field, the job itself.
pub fn job_path(agent: &AgentId, name: &str, field: Option<&str>) -> String {
    let (top, root) = (Path::Root.key("cron"), agent.as_str());
    let agent = top.key(root);
    let job = agent.key(name);
    field.map_or_else(|| job.to_string(), |field| job.key(field).to_string())
}

pub(super) fn read(node: &Node, patch: &mut Patch, faults: &mut Faults) {
    let top = Path::Root.key("cron");
    for entry in entries(node, top, faults) {
        let path = top.key(entry.key);
        let agent = AgentId::parse(entry.key).map_err(|invalid| faults.add(entry.line, path, invalid.to_string()));
        let mut jobs = BTreeMap::new();
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        for one in entries(entry.value, path, faults) {
            let at = path.key(one.key);
            if let Err(message) = judge_name(one.key) {
                faults.add(one.line, at, message);
            }
            if let Some(line) = seen.insert(one.key.to_lowercase(), one.line) {
                let message = format!("line {line} has a job of this name but for its case; choose another name");
                faults.add(one.line, at, message);
            }
            patch.positions.note(at.to_string(), one.line);
            jobs.insert(one.key.to_owned(), job(&one, at, patch, faults));
        }
        if let Ok(agent) = agent {
            patch.positions.note(path.to_string(), entry.line);
            patch.cron.insert(agent, jobs);
        }
    }
}

fn job(entry: &Entry<'_>, path: Path<'_>, patch: &mut Patch, faults: &mut Faults) -> Job {
    let section = Section::open(entry.value, &path, &KEYS, faults);
    let before = faults.len();
    let mut some_text =
        |key| section.optional(key, faults, |node, path, faults| text(node, path, faults).map(str::to_owned));
    let (schedule, timezone, prompt) = (some_text("schedule"), some_text("timezone"), some_text("prompt"));
    let (model, workdir, script) = (some_text("model"), some_text("workdir"), some_text("script"));
    let mut names = |key| {
        let item = |node: &Node, path: Path<'_>, faults: &mut Faults| text(node, path, faults).map(str::to_owned);
        section.optional(key, faults, |node, path, faults| texts(node, path, faults, item)).unwrap_or_default()
    };
    let (skills, context_from) = (names("skills"), names("context_from"));
    let mut flag = |key| section.optional(key, faults, boolean).unwrap_or_default();
    let (paused, no_agent, bare, mirror) = (flag("paused"), flag("no_agent"), flag("bare"), flag("mirror"));
    let mut number = |key| {
        let number =
            section.optional(key, faults, |node, path, faults| integer(node, 0..=u64::from(u32::MAX), path, faults));
        number.and_then(|number| u32::try_from(number).ok())
    };
    let (repeat, jitter, timeout) = (number("repeat"), number("jitter_seconds"), number("timeout_seconds"));
    let job = Job {
        schedule: schedule.unwrap_or_default(),
        timezone,
        prompt: prompt.unwrap_or_default(),
        skills,
        deliver: section.optional("deliver", faults, deliver).unwrap_or_default(),
        repeat,
        paused,
        model,
        workdir,
        script,
        no_agent,
        context_from,
        missed: section.optional("missed", faults, word).unwrap_or_default(),
        overlap: section.optional("overlap", faults, word).unwrap_or_default(),
        jitter_seconds: jitter.unwrap_or_default(),
        timeout_seconds: timeout,
        session: section.optional("session", faults, word).unwrap_or_default(),
        bare,
        mirror,
    };
    for key in KEYS {
        if let Some(node) = section.get(key) {
            patch.positions.note(path.key(key).to_string(), node.line);
        }
    }
    if section.get("schedule").is_none() {
        faults.add(
            entry.line,
            path.key("schedule"),
            "schedule is missing; write when it runs, for example \"0 9 * * mon-fri\"",
        );
    }
    if faults.len() == before {
        for fault in job.judged(Timestamp::UNIX_EPOCH, &TimeZone::UTC, PLATFORMS).err().unwrap_or_default() {
            let line = section.get(fault.field).map_or(entry.line, |node| node.line);
            faults.add(line, path.key(fault.field), fault.message);
        }
    }
    job
}

/// A text, or a list of texts.
fn deliver(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<Deliver> {
    if !matches!(node.content, Content::List(_)) {
        return text(node, path, faults).map(Deliver::parse);
    }
    let item = |node: &Node, path: Path<'_>, faults: &mut Faults| text(node, path, faults).map(str::to_owned);
    texts(node, path, faults, item).map(|parts| Deliver::parse(&parts.join(",")))
}

fn word<T: FromStr<Err = crate::cron::Error>>(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<T> {
    let word = text(node, path, faults)?;
    word.parse().map_err(|error: crate::cron::Error| faults.add(node.line, path, error.to_string())).ok()
}

/// The jobs that a text gives: those that it names become as written, whatever the case of their name. With `prune`, agents that it names keep
/// only those. An agent without jobs is left out, unless it is not among `agents`: then it is still to be complained of.
pub(super) fn merge(stored: &mut Jobs, named: Jobs, prune: bool, agents: &BTreeMap<AgentId, AgentSpec>) {
    for (agent, named) in named {
        let jobs = stored.entry(agent).or_default();
        let lower: Vec<String> = named.keys().map(|name| name.to_lowercase()).collect();
        jobs.retain(|name, _| !prune && !lower.contains(&name.to_lowercase()));
        jobs.extend(named);
    }
    stored.retain(|agent, jobs| !jobs.is_empty() || !agents.contains_key(agent));
}

pub(super) fn shape(jobs: &Jobs) -> Shape {
    let one = |job: &Job| match serde_json::to_value(job) {
        Ok(value) => value_shape(&value),
        Err(_) => Shape::Map(Vec::new()),
    };
    let all =
        |jobs: &BTreeMap<String, Job>| Shape::Map(jobs.iter().map(|(name, job)| (name.clone(), one(job))).collect());
    Shape::Map(jobs.iter().map(|(agent, jobs)| (agent.to_string(), all(jobs))).collect())
}

fn value_shape(value: &Value) -> Shape {
    match value {
        Value::String(value) => text_shape(value),
        Value::Array(items) => Shape::List(items.iter().map(value_shape).collect()),
        Value::Object(entries) => Shape::Map(
            KEYS.iter().filter_map(|key| Some(((*key).to_owned(), value_shape(entries.get(*key)?)))).collect(),
        ),
        other => literal(other),
    }
}
