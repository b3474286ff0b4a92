//! What an operator asks of the curator and what is answered.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Memory, State, Usage};

/// How many skills the rankings show.
pub const TOP: usize = 5;
/// How many skills every other list of a report shows, at most.
pub const MAX_LISTED: usize = 200;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// How all stands.
    Status,
    /// Run now, or only say what a run would do.
    Run {
        /// Change nothing.
        dry_run: bool,
    },
    /// What is due, by an agent that has been idle.
    Due,
    /// Do not run by itself any more.
    Pause,
    /// Do.
    Resume,
    /// Leave this skill alone.
    Pin(String),
    /// Do not leave it alone any more.
    Unpin(String),
    /// Into the archive with this skill.
    Archive(String),
    /// Out of it.
    Restore(String),
    /// Into the archive with skills that a model has merged into another one, or found useless.
    PutAway {
        /// Those; what is there already stays.
        skills: Vec<String>,
        /// The one that says it all now.
        into: Option<String>,
        /// Those that may go.
        free: Vec<String>,
        /// Change nothing, only say why not.
        dry_run: bool,
    },
}

impl Order {
    /// Whether the skills that jobs refer to matter to it.
    pub fn heeds_jobs(&self) -> bool {
        matches!(self, Self::Run { .. } | Self::Due | Self::Archive(_) | Self::PutAway { .. })
    }

    /// Whether it may change skills.
    pub fn moves_skills(&self) -> bool {
        match self {
            Self::Run { dry_run } | Self::PutAway { dry_run, .. } => !dry_run,
            Self::Due | Self::Archive(_) | Self::Restore(_) => true,
            Self::Status | Self::Pause | Self::Resume | Self::Pin(_) | Self::Unpin(_) => false,
        }
    }
}

/// What is answered to every [`Order`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Whether it does not run by itself.
    pub paused: bool,
    /// Runs so far.
    pub runs: u64,
    /// When it last ran, RFC 3339.
    pub last_run_at: Option<String>,
    /// What came of that.
    pub last_summary: Option<String>,
    /// The agent's own skills that are active.
    pub active: u64,
    /// Those that are stale.
    pub stale: u64,
    /// Those in the archive.
    pub archived: u64,
    /// The pinned ones.
    pub pinned: Vec<String>,
    /// Those touched longest ago.
    pub least_recent: Vec<Activity>,
    /// Those touched most often; empty where none was ever touched.
    pub most_active: Vec<Activity>,
    /// Those touched least often.
    pub least_active: Vec<Activity>,
    /// What lies in the archive.
    pub archive: Vec<Archived>,
    /// What was done, or would be.
    pub changes: Vec<Change>,
    /// How many changes are not listed.
    pub more_changes: u64,
    /// The skills that a model may merge, where it was a run and is to have them merged.
    pub mergeable: Vec<String>,
    /// The turn that merges them, as people write it; nothing where there is none.
    pub consolidation: Option<String>,
    /// Why there is none, where there should be one.
    pub consolidation_problem: Option<String>,
}

/// Fewest skills that can be merged.
pub const MERGEABLE: usize = 2;

/// How often and when a skill was touched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Activity {
    /// Its name.
    pub skill: String,
    /// All together.
    pub activity: u64,
    /// Uses.
    pub uses: u64,
    /// Looks.
    pub views: u64,
    /// Changes.
    pub patches: u64,
    /// When last, RFC 3339.
    pub last_activity: Option<String>,
}

/// A skill in the archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Archived {
    /// Its folder, below `skills/.archive`.
    pub folder: String,
    /// When it went there, as far as that is known; RFC 3339.
    pub archived_at: Option<String>,
}

/// What became of a skill.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// Its name.
    pub skill: String,
    /// How it stood.
    pub from: State,
    /// How it stands.
    pub to: State,
    /// Where in the home its folder lies now; empty where it stayed.
    pub folder: String,
}

impl Report {
    /// How all stands: `rows` by name, the names of the skills that are there, and the folders of those in the archive.
    pub fn of(memory: &Memory, rows: &BTreeMap<String, Usage>, there: &[String], archive: &[String]) -> Self {
        let last = |folder: &str| folder.rsplit('/').next().unwrap_or(folder).to_owned();
        let lies_archived = |name: &str| super::comes_back_from(name, archive).is_some();
        let own = || rows.iter().filter(|(_, row)| row.is_the_agents());
        let live: Vec<(&String, &Usage)> = own().filter(|(name, _)| there.contains(name)).collect();
        let count = |state| u64::try_from(live.iter().filter(|(_, row)| is(row, state)).count()).unwrap_or(u64::MAX);
        let (active, stale) = (count(State::Active), count(State::Stale));
        let gone = own().filter(|(name, _)| !there.contains(name) && lies_archived(name)).count();
        let pinned = rows.iter().filter(|(name, row)| row.is_pinned() && there.contains(name));
        let ranked = |key: &dyn Fn(&Usage) -> (bool, i128)| {
            let mut ranked = live.clone();
            ranked.sort_by_key(|(name, row)| (key(row), (*name).clone()));
            ranked.into_iter().take(TOP).map(|(name, row)| Activity::of(name, row)).collect::<Vec<_>>()
        };
        let most = |row: &Usage| (row.activity() == 0, -i128::from(row.activity()));
        let any = live.iter().any(|(_, row)| row.activity() > 0);
        let mut listed: Vec<Archived> = archive
            .iter()
            .map(|folder| Archived {
                archived_at: rows.get(&last(folder)).and_then(|row| row.archived_at.clone()),
                folder: folder.clone(),
            })
            .collect();
        listed.sort_by_key(|one| Reverse(one.archived_at.clone()));
        listed.truncate(MAX_LISTED);
        Self {
            paused: memory.paused,
            runs: memory.run_count,
            last_run_at: memory.last_run_at.clone(),
            last_summary: memory.last_run_summary.clone(),
            active,
            stale,
            archived: u64::try_from(gone).unwrap_or(u64::MAX),
            pinned: pinned.map(|(name, _)| name.clone()).take(MAX_LISTED).collect(),
            least_recent: ranked(&|row| match row.last_activity() {
                Some(at) => (true, at.as_nanosecond()),
                None => (false, 0),
            }),
            most_active: if any { ranked(&most) } else { Vec::new() },
            least_active: ranked(&|row| (false, i128::from(row.activity()))),
            archive: listed,
            ..Self::default()
        }
    }

    /// Adds what was done.
    pub fn with(mut self, mut changes: Vec<Change>) -> Self {
        let more = changes.len().saturating_sub(MAX_LISTED);
        changes.truncate(MAX_LISTED);
        self.more_changes = u64::try_from(more).unwrap_or(u64::MAX);
        self.changes = changes;
        self
    }
}

/// A skill that is there is not archived, whatever is written of it.
fn is(row: &Usage, state: State) -> bool {
    match row.state() {
        State::Archived => state == State::Active,
        written => written == state,
    }
}

impl Activity {
    fn of(name: &str, row: &Usage) -> Self {
        Self {
            skill: name.to_owned(),
            activity: row.activity(),
            uses: row.use_count,
            views: row.view_count,
            patches: row.patch_count,
            last_activity: row.last_activity().map(|at| at.to_string()),
        }
    }
}
