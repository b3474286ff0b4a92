//! The tools on files: what they are asked, and the work, which is done inside the boundary.
//!
//! Called by the second stage of the sandbox with a request that the worker made of a model's arguments; nothing here runs
//! in the worker itself, so a file that is a trap costs a call, not the worker. Relative paths and `~` begin in the agent's
//! scratch, relative ones in a folder of it where the turn has one. Always true: a file is written whole or not at all, where its directory allows that; answers are bounded, and say
//! what was left out and how to get it. Which paths may be touched is the boundary's matter, not decided here.

mod patch;
mod read;
mod search;
mod skills;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use search::{Output, Target};
pub(crate) use skills::is_readable;
pub use skills::{Action, Author, List as ListSkills, Manage as ManageSkill, Request as Skills, View as ViewSkill};

/// Largest file that is read, or made by an edit, bytes.
const MAX_FILE: u64 = 16 << 20;

/// What a model asks of files. Also the tools' arguments, field by field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// `read_file`.
    Read(Read),
    /// `write_file`.
    Write(Write),
    /// `patch`.
    Patch(Patch),
    /// `search_files`.
    Search(Search),
    /// The tools on skills, with the time of the call.
    Skills(Skills, jiff::Timestamp),
    /// No tool: what an operator, or an idle worker, asks of the curator.
    Curate(Box<Curate>),
}

/// What the curator is asked, and what it cannot see from where it works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Curate {
    /// What is asked.
    pub order: hermes_home::curator::Order,
    /// By which settings.
    pub settings: hermes_home::curator::Settings,
    /// The skills that jobs refer to, or why that is not known.
    pub jobs: Result<std::collections::BTreeSet<String>, String>,
    /// The time.
    pub now: jiff::Timestamp,
}

/// Lines of a text file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Read {
    /// Which file.
    pub path: String,
    /// The first line, from 1.
    #[serde(default = "one")]
    pub offset: usize,
    /// How many lines, at most [`read::MAX_LINES`].
    #[serde(default = "some_lines")]
    pub limit: usize,
}

/// A file as it shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// Which file; directories on the way are made.
    pub path: String,
    /// All of it.
    pub content: String,
}

/// A change of a file: a text for another, or a unified diff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    /// Which file.
    pub path: String,
    /// What goes.
    #[serde(default)]
    pub old_string: Option<String>,
    /// What comes.
    #[serde(default)]
    pub new_string: Option<String>,
    /// Everywhere, not only where it stands once.
    #[serde(default)]
    pub replace_all: bool,
    /// Instead of the three: a unified diff of this one file.
    #[serde(default)]
    pub diff: Option<String>,
}

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// A regular expression for what is in files; a glob for their names.
    pub pattern: String,
    /// In files, or among their names.
    #[serde(default)]
    pub target: Target,
    /// Where, a directory or a file.
    #[serde(default = "here")]
    pub path: String,
    /// Only in files whose name fits this glob.
    #[serde(default)]
    pub file_glob: Option<String>,
    /// Most lines or files.
    #[serde(default = "some_hits")]
    pub limit: usize,
    /// How many to leave out at the beginning.
    #[serde(default)]
    pub offset: usize,
    /// What is shown of hits.
    #[serde(default)]
    pub output_mode: Output,
    /// Lines around each hit.
    #[serde(default)]
    pub context: usize,
}

fn one() -> usize {
    1
}

fn some_lines() -> usize {
    500
}

fn here() -> String {
    ".".to_owned()
}

fn some_hits() -> usize {
    50
}

/// What came of it: text for the model, or what went wrong, for the model too.
pub type Answer = Result<String, String>;

/// From where a model's paths are read.
struct Base<'a> {
    /// The agent's scratch: `~`.
    scratch: &'a Path,
    /// Where a relative path begins.
    here: PathBuf,
}

/// Does the work; relative paths begin in `folder` of `scratch`, or in that itself.
pub fn run(scratch: &Path, folder: Option<&str>, request: Request) -> Answer {
    let here = folder.map_or_else(|| scratch.to_owned(), |folder| scratch.join(folder));
    let base = &Base { scratch, here };
    match request {
        Request::Read(read) => read::run(base, &read),
        Request::Write(write) => write::run(base, &write),
        Request::Patch(patch) => patch::run(base, &patch),
        Request::Search(search) => search::run(base, &search),
        Request::Skills(request, now) => skills::run(scratch, request, now),
        Request::Curate(request) => {
            let Curate { order, settings, jobs, now } = *request;
            let report =
                crate::skills::curator::carry_out(scratch.parent().unwrap_or(scratch), &order, &settings, &jobs, now)?;
            serde_json::to_string(&report).map_err(|error| error.to_string())
        }
    }
}

/// The path that a model wrote.
fn resolved(base: &Base<'_>, path: &str) -> Result<PathBuf, String> {
    let path = path.trim();
    if path.is_empty() || path.contains('\0') {
        return Err("path must name a file".to_owned());
    }
    Ok(match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => base.scratch.join(rest.trim_start_matches('/')),
        _ => base.here.join(path),
    })
}

/// What the system answered about a path, for the model.
fn said(path: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("{path} does not exist"),
        io::ErrorKind::PermissionDenied => format!("{path} is outside of what this agent may touch"),
        io::ErrorKind::IsADirectory => format!("{path} is a directory"),
        io::ErrorKind::NotADirectory => format!("a part of {path} is not a directory"),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => format!("there is no room left for {path}"),
        _ => format!("{path}: {error}"),
    }
}

/// A text file's content.
fn text(path: &Path, shown: &str) -> Result<String, String> {
    let metadata = std::fs::metadata(path).map_err(|error| said(shown, &error))?;
    if metadata.is_dir() {
        return Err(format!("{shown} is a directory; search_files with target \"files\" lists it"));
    }
    if !metadata.is_file() {
        return Err(format!("{shown} is not a regular file"));
    }
    if metadata.len() > MAX_FILE {
        return Err(format!("{shown} has {} bytes, more than the {MAX_FILE} that are read at once", metadata.len()));
    }
    let bytes = std::fs::read(path).map_err(|error| said(shown, &error))?;
    if bytes.iter().take(8192).any(|byte| *byte == 0) {
        return Err(format!("{shown} is a binary file of {} bytes", bytes.len()));
    }
    String::from_utf8(bytes).map_err(|_| format!("{shown} is not UTF-8 text"))
}
