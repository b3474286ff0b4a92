//! The curator of an agent's skills: which of those that it made itself have gone stale or go into the archive, and where one comes
//! back from.
//!
//! Called by the worker, which moves the folders and keeps the files, and by the control plane, which hands on what an operator asks
//! and what came of it. It owns no file. Always true: a skill that is pinned, that a job refers to or that the agent did not make is
//! left as it is; nothing is ever deleted; the same rows, jobs and time give the same answer. The forms are those of existing homes:
//! `skills/.usage.json`, `skills/.curator_state` and `skills/.archive/`. It deliberately merges and rewrites no skills: that is a turn of the
//! agent, whose model is asked, and which says here what goes into the archive ([`Order::PutAway`]).

mod report;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use report::{Activity, Archived, Change, MAX_LISTED, MERGEABLE, Order, Report, TOP};
pub use settings::{DAYS, INTERVAL_HOURS, MIN_IDLE_HOURS, Settings};

/// Digits of the time behind the name of an archived skill whose name was taken there.
const STAMP_DIGITS: usize = 14;

/// So many hours; of more than 100 years as many.
fn hours(count: u64) -> SignedDuration {
    SignedDuration::from_hours(i64::try_from(count.min(876_000)).unwrap_or_default())
}

fn days(count: u64) -> SignedDuration {
    hours(count.saturating_mul(24))
}

/// How a skill stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In use.
    #[default]
    Active,
    /// Not touched for [`Settings::stale_after_days`].
    Stale,
    /// In the archive.
    Archived,
}

impl State {
    /// The word in files.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Stale => "stale",
            Self::Archived => "archived",
        }
    }

    fn of(word: Option<&str>) -> Self {
        match word {
            Some("stale") => Self::Stale,
            Some("archived") => Self::Archived,
            _ => Self::Active,
        }
    }
}

/// What is known of one skill: a row of `skills/.usage.json`. Times are RFC 3339.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// `agent` where the agent made it without being asked to.
    pub created_by: Option<String>,
    /// Times it was used.
    pub use_count: u64,
    /// Times it was read.
    pub view_count: u64,
    /// Times it was changed.
    pub patch_count: u64,
    /// When it was last used.
    pub last_used_at: Option<String>,
    /// When it was last read.
    pub last_viewed_at: Option<String>,
    /// When it was last changed.
    pub last_patched_at: Option<String>,
    /// When it was made.
    pub created_at: Option<String>,
    /// A word of [`State`].
    pub state: Option<String>,
    /// Whether a person wants it left alone.
    pub pinned: Option<bool>,
    /// When it went into the archive.
    pub archived_at: Option<String>,
    /// All else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Usage {
    /// The row of a skill that nothing was known of until `now`.
    pub fn new(now: Timestamp) -> Self {
        Self {
            created_at: Some(now.to_string()),
            state: Some(State::Active.word().to_owned()),
            pinned: Some(false),
            ..Self::default()
        }
    }

    /// Whether the curator may touch it by itself at all.
    pub fn is_the_agents(&self) -> bool {
        self.created_by.as_deref() == Some("agent")
    }

    /// Whether a person wants it left alone.
    pub fn is_pinned(&self) -> bool {
        self.pinned == Some(true)
    }

    /// Whether a model may merge a skill of that row with others: nobody wants it left alone, and the agent made it by itself, or it `is_free`, as it
    /// was when the merging began.
    pub fn may_be_merged(row: Option<&Self>, is_free: bool) -> bool {
        !row.is_some_and(Self::is_pinned) && (is_free || row.is_some_and(Self::is_the_agents))
    }

    /// How it stands, as written.
    pub fn state(&self) -> State {
        State::of(self.state.as_deref())
    }

    /// Writes how it stands from `now` on.
    pub fn become_state(&mut self, state: State, now: Timestamp) {
        self.state = Some(state.word().to_owned());
        self.archived_at = (state == State::Archived).then(|| now.to_string());
    }

    /// Uses, looks and changes together.
    pub fn activity(&self) -> u64 {
        self.use_count.saturating_add(self.view_count).saturating_add(self.patch_count)
    }

    /// When it was last used, read or changed; that it was made does not count.
    pub fn last_activity(&self) -> Option<Timestamp> {
        [&self.last_used_at, &self.last_viewed_at, &self.last_patched_at].into_iter().filter_map(time).max()
    }

    /// How the curator wants an unprotected skill that is not in the archive to stand at `now`. One whose age cannot be told stays.
    pub fn wanted(&self, now: Timestamp, settings: &Settings) -> State {
        let (stale_after, archive_after) = (days(settings.stale_after_days), days(settings.archive_after_days));
        let created = time(&self.created_at);
        let older = |at: Timestamp, than: SignedDuration| now.duration_since(at) >= than;
        if self.use_count == 0 && created.is_some_and(|created| !older(created, stale_after)) {
            return State::Active;
        }
        match self.last_activity().or(created) {
            Some(anchor) if older(anchor, archive_after) => State::Archived,
            Some(anchor) if older(anchor, stale_after) => State::Stale,
            Some(_) => State::Active,
            None => self.state(),
        }
    }
}

fn time(text: &Option<String>) -> Option<Timestamp> {
    text.as_deref()?.parse().ok()
}

/// What the curator remembers between its runs: `skills/.curator_state`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Whether a person has stopped it from running by itself.
    pub paused: bool,
    /// Runs so far.
    pub run_count: u64,
    /// When it last ran, or was first there; RFC 3339.
    pub last_run_at: Option<String>,
    /// What came of the last run, for people.
    pub last_run_summary: Option<String>,
    /// All else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What an agent that has been idle long enough makes the curator do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It is here for the first time: it notes that, and waits a whole interval.
    Note,
    /// It runs.
    Run,
    /// Nothing.
    Nothing,
}

impl Memory {
    /// What is due at `now`. A time that cannot be read counts as none.
    pub fn due(&self, now: Timestamp, settings: &Settings) -> Due {
        match time(&self.last_run_at) {
            _ if self.paused || !settings.enabled => Due::Nothing,
            None => Due::Note,
            Some(last) if now.duration_since(last) >= hours(settings.interval_hours) => Due::Run,
            Some(_) => Due::Nothing,
        }
    }
}

/// The names of the skills that jobs in the text of a `cron/jobs.json` refer to, paused jobs included.
///
/// # Errors
/// What is wrong with the text: whose jobs cannot be read may refer to anything.
pub fn named_by_jobs(text: &str) -> Result<BTreeSet<String>, String> {
    let text = text.trim_start_matches('\u{feff}');
    let read: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let jobs = read.get("jobs").unwrap_or(&read).as_array().ok_or("it holds no list of jobs")?;
    let names = jobs.iter().flat_map(|job| [&job["skills"], &job["skill"]]).flat_map(|field| match field {
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        field => field.as_str().into_iter().collect::<Vec<_>>(),
    });
    // One that is named with its category is meant by its name.
    Ok(names.map(|name| name.rsplit('/').next().unwrap_or(name).trim().to_owned()).collect())
}

/// The folder in the archive for a skill that goes there at `now`; with the time behind its name where that is `taken`.
pub fn archive_folder(name: &str, now: Timestamp, taken: impl Fn(&str) -> bool) -> Option<String> {
    if !taken(name) {
        return Some(name.to_owned());
    }
    // The next second is free where this one is not.
    (0..60).find_map(|later| {
        let at = now.checked_add(SignedDuration::from_secs(later)).ok()?;
        let folder = format!("{name}-{}", at.strftime("%Y%m%d%H%M%S"));
        (!taken(&folder)).then_some(folder)
    })
}

/// Which of the skills' `folders` in the archive, paths with slashes, the skill `name` comes back from: one of exactly that name,
/// however deep it lies, else the newest that has the time of its archiving behind it.
pub fn comes_back_from<'a>(name: &str, folders: &'a [String]) -> Option<&'a str> {
    let last = |path: &'a str| path.rsplit('/').next().unwrap_or(path);
    let mut exact: Vec<&str> = folders.iter().map(String::as_str).filter(|path| last(path) == name).collect();
    exact.sort_by_key(|path| (path.matches('/').count(), *path));
    let stamp = |path: &&'a str| {
        let stamp = last(path).strip_prefix(name)?.strip_prefix('-')?;
        (stamp.len() == STAMP_DIGITS && stamp.bytes().all(|byte| byte.is_ascii_digit())).then_some(stamp)
    };
    let stamped = folders.iter().map(String::as_str).filter(|path| stamp(path).is_some());
    exact.first().copied().or_else(|| stamped.max_by_key(stamp))
}
