//! The script of a scheduled job, run before its model is asked, or in its place.
//!
//! Called by a turn that is a run of such a job, as a call of [`SCRIPT`]; no model is offered that, so none can call it. Always true: only a
//! regular file below the home's `scripts/` is run, reached through no link; it runs behind the same boundary, with the same
//! environment and the same bound of its output as a command of `terminal` (what looks like a credential is replaced as in the output of any tool); what it printed is told from what went wrong by the first
//! line of the answer, which no script writes ([`Printed`]). What its output means is not known here.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::output::{Captured, read_apart};
use super::terminal::{LONGEST_WAIT, MAX_OUTPUT, environment};
use super::{LocalTools, ToolResult};
use crate::beneath::Folder;
use crate::sandbox::{Sandbox, Task};
use crate::tools::{Effect, MAX_OUTPUT_BYTES, ToolSpec};

/// By which a script is called.
pub const SCRIPT: &str = "cron_script";
/// The folder of the home that they are in.
const FOLDER: &str = "scripts";
/// How much of its stderr is told when it fails, bytes.
const MAX_ERRORS: usize = 2_000;
/// What stands before the output of a script that ended well.
const DONE: &str = "[exit code 0]\n";
/// How the text of a call begins whose end nobody knows.
const UNKNOWN: &str = "UNKNOWN:";

/// The arguments.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Arguments {
    script: String,
    /// Seconds; absent: as long as a script may take.
    #[serde(default)]
    timeout: Option<u64>,
}

/// The arguments of a call for that script.
pub(crate) fn arguments(script: &str) -> String {
    json!({"script": script}).to_string()
}

/// What a turn has to know of such a call.
pub(crate) fn spec() -> ToolSpec {
    ToolSpec {
        name: SCRIPT.to_owned(),
        description: String::new(),
        parameters: r#"{"type":"object"}"#.to_owned(),
        toolset: "cron".to_owned(),
        effect: Effect::AtMostOnce,
        time_limit: LONGEST_WAIT + Duration::from_secs(10),
        max_output: MAX_OUTPUT_BYTES,
    }
}

/// What came of a script, as the text of its call says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Printed {
    /// It ended well and wrote this.
    Output(String),
    /// It was begun, and nobody knows how far it came.
    Unknown,
    /// It failed; a sentence that names it.
    Failed(String),
}

impl Printed {
    /// Reads the text of a call.
    pub(crate) fn read(text: &str) -> Self {
        match text.strip_prefix(DONE) {
            // Many programs begin a text with a mark of its encoding; it is no part of what is said.
            Some(output) => Self::Output(output.trim_start_matches('\u{feff}').to_owned()),
            None if text.starts_with(UNKNOWN) => Self::Unknown,
            None => Self::Failed(text.strip_prefix("Error: ").unwrap_or(text).to_owned()),
        }
    }
}

impl LocalTools {
    pub(super) async fn script(
        &self,
        policy: &Sandbox,
        begin: PathBuf,
        arguments: Arguments,
        cancel: &CancellationToken,
    ) -> ToolResult {
        let Arguments { script, timeout } = arguments;
        let path = self.script_path(&script)?;
        let interpreter = if path.ends_with(".sh") || path.ends_with(".bash") { "bash" } else { "python3" };
        let argv = ["/usr/bin/env", interpreter, path.as_str()].map(str::to_owned).to_vec();
        let task = Task::Command { argv, cwd: begin, env: environment(&self.scratch, policy.level) };
        let started = self.boundary.start_apart(policy, task).await;
        let mut running = started.map_err(|error| format!("the script {script} could not be started: {error}."))?;
        // Nobody answers it.
        running.input = None;
        let wait = timeout.map_or(LONGEST_WAIT, |seconds| Duration::from_secs(seconds).min(LONGEST_WAIT));
        let (mut output, mut errors) = (Captured::new(MAX_OUTPUT), Captured::new(MAX_ERRORS));
        let ended = tokio::select! {
            ended = tokio::time::timeout(wait, read_apart(&mut running, &mut output, &mut errors)) => ended,
            () = cancel.cancelled() => {
                running.end().await;
                return Err(format!("the script {script} was stopped."));
            }
            taken = self.boundary.overflow(policy) => {
                running.end().await;
                return Err(format!("the script {script} was ended because the disk is full: {taken}; remove what is not needed."));
            }
        };
        let how = match ended {
            Ok(Ok(0)) => return Ok(format!("{DONE}{}", output.text())),
            Ok(Ok(code)) => format!("the script {script} failed with exit code {code}."),
            Ok(Err(error)) => format!("the output of the script {script} was lost: {error}."),
            Err(_) => {
                running.end().await;
                format!("the script {script} was ended after its time limit of {} s.", wait.as_secs())
            }
        };
        let said = errors.text();
        let said = said.trim();
        Err(if said.is_empty() { how } else { format!("{how} On stderr: {said}") })
    }

    /// Where the script is; else why it is not run, for people.
    fn script_path(&self, script: &str) -> Result<String, String> {
        let refused = || {
            format!(
                "the script {script} is not run: it has to be a regular file below {FOLDER}/ of the home, behind no link."
            )
        };
        if !script.split('/').all(|part| !part.is_empty() && part != "." && part != "..") || script.contains('\0') {
            return Err(refused());
        }
        let missing =
            || format!("the script {script} is not there; it has to be {} in the home of the agent.", place(script));
        let relative = place(script);
        let (folder, name) = relative.rsplit_once('/').unwrap_or(("", &relative));
        let folder = Folder::open(&self.home, folder).map_err(|_| refused())?.ok_or_else(missing)?;
        match std::fs::symlink_metadata(folder.path(name)) {
            Ok(found) if found.is_file() => Ok(self.home.join(&relative).display().to_string()),
            Ok(_) => Err(refused()),
            Err(_) => Err(missing()),
        }
    }
}

fn place(script: &str) -> String {
    format!("{FOLDER}/{script}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_script_printed_is_told_from_what_went_wrong_whatever_it_prints() {
        let read = Printed::read;
        assert_eq!(read("[exit code 0]\nError: x"), Printed::Output("Error: x".to_owned()));
        assert_eq!(read("[exit code 0]\nUNKNOWN: x"), Printed::Output("UNKNOWN: x".to_owned()));
        assert_eq!(read("[exit code 0]\n"), Printed::Output(String::new()));
        assert_eq!(read("[exit code 0]\n\u{feff}[SILENT]"), Printed::Output("[SILENT]".to_owned()));
        assert_eq!(read("UNKNOWN: it was begun"), Printed::Unknown);
        assert_eq!(read("Error: the script a failed."), Printed::Failed("the script a failed.".to_owned()));
    }
}
