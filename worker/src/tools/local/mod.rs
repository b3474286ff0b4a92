//! The tools that act on this machine: commands, processes in the background and files, all behind the sandbox.
//!
//! Injected by the composition root as the worker's toolbox. Beside what models are offered it runs the scripts of jobs. Owns the background processes. Always true: whatever a model asks
//! for runs behind [`Boundary`] under the policy of the turn's profile; its output is bounded while it comes, not after; a call
//! that ends early, and the end of the worker, end what it started; a session reaches its own background processes only.
//! It deliberately judges no command.

pub mod files;
mod output;
mod processes;
pub mod script;
mod specs;
mod terminal;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{ToolCall, ToolResult, ToolSpec, Toolbox};
use crate::sandbox::{Boundary, SCRATCH, Sandbox, Task};
use files::{Request, Skills};
pub(super) use output::Captured;
use processes::Processes;
use script::SCRIPT;
pub(crate) use terminal::environment;

/// Longest answer of work on files, bytes; the work itself stays below it.
const MAX_FILES_ANSWER: usize = 200 << 10;

/// The tools of one worker's home.
#[derive(Debug)]
pub struct LocalTools {
    boundary: Boundary,
    home: PathBuf,
    scratch: PathBuf,
    specs: Arc<[ToolSpec]>,
    processes: Processes,
    now: fn() -> Timestamp,
}

impl LocalTools {
    /// For `home` (absolute, symlinks resolved), behind `boundary`; `now` is the time.
    pub fn new(boundary: Boundary, home: &Path, now: fn() -> Timestamp) -> Self {
        let specs = specs::all().into();
        Self {
            boundary,
            home: home.to_owned(),
            scratch: home.join(SCRATCH),
            specs,
            processes: Processes::default(),
            now,
        }
    }

    async fn skills(&self, policy: &Sandbox, request: Skills) -> ToolResult {
        on_files(&self.boundary, policy, Request::Skills(request, (self.now)()), None).await
    }

    /// Where the work of a turn with that folder begins.
    fn begin(&self, workdir: Option<&str>) -> PathBuf {
        workdir.map_or_else(|| self.scratch.clone(), |workdir| self.scratch.join(workdir))
    }
}

/// Work on files, done behind the boundary; relative paths begin in that folder of the scratch.
pub(crate) async fn on_files(
    boundary: &Boundary,
    policy: &Sandbox,
    request: Request,
    folder: Option<String>,
) -> files::Answer {
    let mut running = boundary.start(policy, Task::Files(request, folder), false).await.map_err(|e| e.to_string())?;
    let mut captured = Captured::new(MAX_FILES_ANSWER);
    let read = output::read_all(&mut running, &mut captured).await;
    let code = read.map_err(|error| format!("the answer was lost: {error}"))?;
    let text = captured.text();
    match serde_json::from_str::<files::Answer>(&text) {
        Ok(answer) => answer,
        Err(_) if code == 0 => Err("the answer cannot be read".to_owned()),
        Err(_) => Err(format!("this could not be done within the sandbox (exit code {code}): {}", text.trim())),
    }
}

impl Toolbox for LocalTools {
    fn specs(&self) -> Arc<[ToolSpec]> {
        Arc::clone(&self.specs)
    }

    fn call(&self, call: ToolCall) -> BoxFuture<'_, ToolResult> {
        Box::pin(async move {
            let ToolCall { turn, name, arguments, cancel, policy, workdir, author, .. } = call;
            let begin = self.begin(workdir.as_deref());
            let files = |request| on_files(&self.boundary, &policy, request, workdir);
            match name.as_str() {
                SCRIPT => self.script(&policy, begin, read(arguments)?, &cancel).await,
                "terminal" => self.terminal(&policy, turn.session_id, begin, read(arguments)?, &cancel).await,
                "process" => self.processes.call(turn.session_id, read(arguments)?, &cancel).await,
                "read_file" => files(Request::Read(read(arguments)?)).await,
                "write_file" => files(Request::Write(read(arguments)?)).await,
                "patch" => files(Request::Patch(read(arguments)?)).await,
                "search_files" => files(Request::Search(read(arguments)?)).await,
                "skills_list" => self.skills(&policy, Skills::List(read(arguments)?)).await,
                "skill_view" => self.skills(&policy, Skills::View(read(arguments)?)).await,
                "skill_manage" => self.skills(&policy, Skills::Manage(read(arguments)?, author)).await,
                _ => Err(format!("there is no tool {name}")),
            }
        })
    }
}

/// A tool's arguments; else what is wrong with them, for the model.
fn read<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(arguments)).map_err(|error| format!("the arguments do not fit: {error}"))
}
