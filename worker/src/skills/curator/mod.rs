//! The curator at work in a home: counts what was used, marks skills stale, moves them into `skills/.archive` and back.
//!
//! Called inside the boundary, with what an operator or the idle worker asks. Which skills and where to is decided by
//! [`hermes_home::curator`]. Always true: a skill is moved by one rename, so it lies whole in one of the two places whatever ends this
//! process; what is written of it follows the move, and where it did not, the next run writes it; no folder is replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use hermes_home::curator::{self, Change, Due, MAX_LISTED, Memory, Order, Report, Settings, State, Usage};
use jiff::Timestamp;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::{MAX_FOLDERS, is_name, place, places, usage};
use crate::beneath::Folder;
use crate::tools::local::files::is_readable;

/// Where archived skills lie, in the home.
const ARCHIVE: &str = "skills/.archive";
/// The curator's own file, in `skills/`.
const MEMORY: &str = ".curator_state";
const MAX_MEMORY_BYTES: u64 = 1 << 20;
/// How deep a skill lies in the archive, at most.
const MAX_DEPTH: usize = 8;

/// Does what is asked at `now`, by these settings. `jobs` are the skills that jobs refer to, or why that is not known.
///
/// # Errors
/// Why not, for people. What was done before is done, and each skill is whole.
pub(crate) fn carry_out(
    home: &Path,
    order: &Order,
    settings: &Settings,
    jobs: &Result<BTreeSet<String>, String>,
    now: Timestamp,
) -> Result<Report, String> {
    Folder::make(home, "skills").map_err(|error| failed("skills", &error))?;
    let _alone = usage::hold(&home.join("skills")).map_err(|error| failed("skills", &error))?;
    let curator = Curator { home, settings, jobs, now };
    let mut mergeable = Vec::new();
    let changes = match order {
        Order::Status => Vec::new(),
        Order::Run { .. } | Order::Due => match curator.run_of(order)? {
            Some(changes) => {
                if settings.consolidate {
                    mergeable = curator.mergeable()?;
                }
                changes
            }
            None => Vec::new(),
        },
        Order::PutAway { skills, into, free, dry_run: true } => {
            curator.may_put_away(skills, into.as_deref(), free)?;
            Vec::new()
        }
        Order::PutAway { skills, into, dry_run: false, .. } => curator.put_away_all(skills, into.as_deref())?,
        Order::Pause | Order::Resume => {
            let memory = Memory { paused: *order == Order::Pause, ..curator.memory()? };
            curator.remember(&memory)?;
            Vec::new()
        }
        Order::Pin(skill) | Order::Unpin(skill) => curator.pin(skill, matches!(order, Order::Pin(_)))?,
        Order::Archive(skill) => curator.archive(skill)?,
        Order::Restore(skill) => curator.restore(skill)?,
    };
    let (rows, there) = (curator.rows()?, curator.there());
    let there: Vec<String> = there.into_keys().collect();
    mergeable.truncate(MAX_LISTED);
    let report = Report::of(&curator.memory()?, &rows, &there, &archived(home)?).with(changes);
    Ok(Report { mergeable, ..report })
}

/// Whether a skill of that name was put away.
///
/// # Errors
/// Why that is not known, for people.
pub(crate) fn was_put_away(home: &Path, name: &str) -> Result<bool, String> {
    Ok(curator::comes_back_from(name, &archived(home)?).is_some())
}

struct Curator<'a> {
    home: &'a Path,
    settings: &'a Settings,
    jobs: &'a Result<BTreeSet<String>, String>,
    now: Timestamp,
}

impl Curator<'_> {
    /// What a run that is asked for, or due, does or would do; nothing where none is due.
    fn run_of(&self, order: &Order) -> Result<Option<Vec<Change>>, String> {
        if let Order::Run { dry_run } = order {
            return self.run(*dry_run).map(Some);
        }
        let memory = self.memory()?;
        match memory.due(self.now, self.settings) {
            Due::Run => self.run(false).map(Some),
            Due::Note => {
                self.remember(&Memory { last_run_at: Some(self.now.to_string()), ..memory })?;
                Ok(None)
            }
            Due::Nothing => Ok(None),
        }
    }

    /// The skills that a model may merge: the agent made them by itself, and nobody wants them left alone.
    fn mergeable(&self) -> Result<Vec<String>, String> {
        let rows = self.rows()?;
        let is_free = |name: &String| Usage::may_be_merged(rows.get(name), false);
        let there = self.there().into_iter().filter(|(_, categories)| categories.len() == 1);
        Ok(there.map(|(name, _)| name).filter(is_free).collect())
    }

    /// Why a model may not have these skills, of those that are `free`, put away.
    fn may_put_away(&self, skills: &[String], into: Option<&str>, free: &[String]) -> Result<(), String> {
        if let Some(into) = into {
            self.found(into)?;
            if skills.iter().any(|skill| skill == into) {
                return Err(format!("{into} cannot be merged into itself"));
            }
        }
        let (rows, jobs) = (self.rows()?, self.jobs()?);
        for skill in skills {
            let category = self.found(skill)?;
            if !Usage::may_be_merged(rows.get(skill), free.contains(skill)) {
                return Err(format!(
                    "{skill} is not one of yours to merge: it is pinned, or you did not make it by yourself"
                ));
            }
            if jobs.contains(skill) {
                return Err(format!("{skill} is needed by a job of cron/jobs.json; leave it"));
            }
            if into.is_some() && !is_readable(&self.home.join(place(&category, skill))) {
                return Err(format!(
                    "{skill} cannot be shown to you as a whole: it has a file that is long, or no text; leave it as it is"
                ));
            }
        }
        Ok(())
    }

    /// Moves skills that a model has merged into another one, or found useless, into the archive: those that are there, and that nobody pinned
    /// meanwhile.
    fn put_away_all(&self, skills: &[String], into: Option<&str>) -> Result<Vec<Change>, String> {
        into.map_or(Ok(String::new()), |into| self.found(into))?;
        let rows = self.rows()?;
        let mut changes = Vec::new();
        for skill in skills.iter().filter(|skill| !rows.get(*skill).is_some_and(Usage::is_pinned)) {
            let Ok(category) = self.found(skill) else { continue };
            let folder = self.put_away(&category, skill)?;
            let from = rows.get(skill).map_or(State::Active, Usage::state);
            changes.push(Change { skill: skill.clone(), from, to: State::Archived, folder });
        }
        Ok(changes)
    }

    /// All that is due by the agent's own skills.
    fn run(&self, dry: bool) -> Result<Vec<Change>, String> {
        let jobs = self.jobs()?;
        let mut changes = Vec::new();
        let there = self.there();
        let archived = archived(self.home)?;
        for (name, row) in self.rows()?.iter().filter(|(_, row)| row.is_the_agents()) {
            let from = row.state();
            let change = |to, folder| Change { skill: name.clone(), from, to, folder };
            let Some(categories) = there.get(name) else {
                // Moved, and not written down.
                if from != State::Archived && curator::comes_back_from(name, &archived).is_some() {
                    if !dry {
                        self.write_state(name, State::Archived)?;
                    }
                    changes.push(change(State::Archived, String::new()));
                }
                continue;
            };
            // Two of one name share a row that says nothing of either.
            let [category] = categories.as_slice() else { continue };
            if row.is_pinned() || jobs.contains(name) {
                continue;
            }
            let to = row.wanted(self.now, self.settings);
            if to == State::Archived {
                let folder = if dry { String::new() } else { self.put_away(category, name)? };
                changes.push(change(to, folder));
            } else if to != from {
                if !dry {
                    self.write_state(name, to)?;
                }
                changes.push(change(to, String::new()));
            }
        }
        if !dry {
            let memory = self.memory()?;
            self.remember(&Memory {
                run_count: memory.run_count.saturating_add(1),
                last_run_at: Some(self.now.to_string()),
                last_run_summary: Some(summary(&changes)),
                ..memory
            })?;
        }
        Ok(changes)
    }

    fn pin(&self, skill: &str, pinned: bool) -> Result<Vec<Change>, String> {
        self.found(skill)?;
        self.write(skill, |row| row.pinned = Some(pinned))?;
        Ok(Vec::new())
    }

    fn archive(&self, skill: &str) -> Result<Vec<Change>, String> {
        let category = self.found(skill)?;
        let row = self.rows()?.remove(skill).unwrap_or_else(|| Usage::new(self.now));
        if row.is_pinned() {
            return Err(format!("{skill} is pinned; unpin it first"));
        }
        if self.jobs()?.contains(skill) {
            return Err(format!(
                "{skill} is needed by a job (one of hermesctl cron list, or of cron/jobs.json); take it out of that job first"
            ));
        }
        let folder = self.put_away(&category, skill)?;
        Ok(vec![Change { skill: skill.to_owned(), from: row.state(), to: State::Archived, folder }])
    }

    fn restore(&self, skill: &str) -> Result<Vec<Change>, String> {
        named(skill)?;
        let archived = archived(self.home)?;
        let from = curator::comes_back_from(skill, &archived).ok_or_else(|| {
            format!("there is no skill {skill} in the archive; list-archived names those that are there")
        })?;
        if let Some(category) = self.there().get(skill).and_then(|categories| categories.first()) {
            let folder = place(category, skill);
            return Err(format!("there is a skill {skill} already, {folder}; archive or delete it first"));
        }
        let folder = format!("skills/{skill}");
        let (source, name) = from
            .rsplit_once('/')
            .map_or((ARCHIVE.to_owned(), from), |(folders, name)| (format!("{ARCHIVE}/{folders}"), name));
        self.rename((&source, name), ("skills", skill)).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => format!("{folder} is there already; move it away first"),
            _ => failed(&folder, &error),
        })?;
        self.write_state(skill, State::Active)?;
        Ok(vec![Change { skill: skill.to_owned(), from: State::Archived, to: State::Active, folder }])
    }

    /// Moves a skill into the archive and writes that down; where it lies then.
    fn put_away(&self, category: &str, name: &str) -> Result<String, String> {
        let at = place(category, name);
        let archive = Folder::make(self.home, ARCHIVE).map_err(|error| failed(ARCHIVE, &error))?;
        let taken = |folder: &str| fs::symlink_metadata(archive.path(folder)).is_ok();
        let folder = curator::archive_folder(name, self.now, taken)
            .ok_or_else(|| format!("there is no free name for {name} in {ARCHIVE}; move older ones away"))?;
        let source = at.rsplit_once('/').map_or("skills", |(source, _)| source);
        self.rename((source, name), (ARCHIVE, &folder)).map_err(|error| failed(&at, &error))?;
        self.write_state(name, State::Archived)?;
        Ok(format!("{ARCHIVE}/{folder}"))
    }

    /// Moves a folder, by its parent and name, to where nothing is.
    fn rename(&self, (source, name): (&str, &str), (target, new): (&str, &str)) -> io::Result<()> {
        let source = Folder::open(self.home, source)?.ok_or(io::ErrorKind::NotFound)?;
        let target = Folder::open(self.home, target)?.ok_or(io::ErrorKind::NotFound)?;
        let flags = RenameFlags::RENAME_NOREPLACE;
        renameat2(AT_FDCWD, &source.path(name), AT_FDCWD, &target.path(new), flags).map_err(io::Error::from)
    }

    /// The category of a skill that is there.
    fn found(&self, skill: &str) -> Result<String, String> {
        named(skill)?;
        match self.there().remove(skill).unwrap_or_default().as_slice() {
            [category] => Ok(category.clone()),
            [] => Err(format!("the agent has no skill {skill}")),
            several => Err(format!("{skill} is in several categories ({}); rename all but one", several.join(", "))),
        }
    }

    /// The skills that are there, with their categories.
    fn there(&self) -> BTreeMap<String, Vec<String>> {
        let mut there: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (category, name) in places(self.home) {
            there.entry(name).or_default().push(category);
        }
        there
    }

    fn jobs(&self) -> Result<&BTreeSet<String>, String> {
        self.jobs.as_ref().map_err(|problem| {
            format!("{problem}, so nobody knows which skills jobs need; try again when that is right")
        })
    }

    fn rows(&self) -> Result<BTreeMap<String, Usage>, String> {
        usage::rows(&self.home.join("skills")).map_err(|error| failed("skills/.usage.json", &error))
    }

    fn write_state(&self, skill: &str, state: State) -> Result<(), String> {
        self.write(skill, |row| row.become_state(state, self.now))
    }

    fn write(&self, skill: &str, change: impl FnOnce(&mut Usage)) -> Result<(), String> {
        let written = usage::change(&self.home.join("skills"), |rows| {
            change(rows.entry(skill.to_owned()).or_insert_with(|| Usage::new(self.now)));
        });
        written.map_err(|error| failed("skills/.usage.json", &error))
    }

    fn memory(&self) -> Result<Memory, String> {
        let at = format!("skills/{MEMORY}");
        let read = crate::beneath::read(self.home, &at, MAX_MEMORY_BYTES).map_err(|error| failed(&at, &error))?;
        let Some((bytes, _)) = read else { return Ok(Memory::default()) };
        serde_json::from_slice(&bytes).map_err(|error| format!("{at} cannot be read ({error}); repair or remove it"))
    }

    fn remember(&self, memory: &Memory) -> Result<(), String> {
        let skills = self.home.join("skills");
        usage::replace(&skills, MEMORY, memory).map_err(|error| failed(&format!("skills/{MEMORY}"), &error))
    }
}

/// The folders of skills in the archive, as paths below it.
fn archived(home: &Path) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut waiting = vec![String::new()];
    let mut budget = MAX_FOLDERS;
    while let Some(path) = waiting.pop() {
        let at = if path.is_empty() { ARCHIVE.to_owned() } else { format!("{ARCHIVE}/{path}") };
        let Some(folder) = Folder::open(home, &at).map_err(|error| failed(&at, &error))? else { continue };
        if !path.is_empty() && fs::symlink_metadata(folder.path("SKILL.md")).is_ok_and(|file| file.is_file()) {
            found.push(path);
            continue;
        }
        for entry in folder.entries().map_err(|error| failed(&at, &error))? {
            let (name, is_folder) = entry.map_err(|error| failed(&at, &error))?;
            if is_folder && path.matches('/').count() < MAX_DEPTH && budget > 0 {
                budget -= 1;
                waiting.push(if path.is_empty() { name } else { format!("{path}/{name}") });
            }
        }
    }
    found.sort();
    Ok(found)
}

fn named(skill: &str) -> Result<(), String> {
    if is_name(skill) { Ok(()) } else { Err(format!("{skill:?} is no name of a skill; give it without its category")) }
}

fn failed(what: &str, error: &io::Error) -> String {
    format!("{what}: {error}")
}

fn summary(changes: &[Change]) -> String {
    let count = |state| changes.iter().filter(|change| change.to == state).count();
    let [archived, stale, active] = [State::Archived, State::Stale, State::Active].map(count);
    format!("{archived} archived, {stale} stale, {active} active again")
}

#[cfg(test)]
mod tests;
