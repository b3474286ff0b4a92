//! `terminal`: a shell command, in the foreground or left running.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::output::{Captured, read_all};
use super::{LocalTools, ToolResult};
use crate::sandbox::{Level, Sandbox, Task};

/// How long a command may take when nobody says otherwise.
pub(super) const USUAL_WAIT: Duration = Duration::from_secs(180);
/// The longest time that may be asked for.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Most of a command's output that is kept, bytes.
pub(super) const MAX_OUTPUT: usize = 50_000;

/// The arguments.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Arguments {
    command: String,
    #[serde(default)]
    workdir: Option<String>,
    #[serde(default)]
    timeout: Option<u64>,
    #[serde(default)]
    background: bool,
}

impl LocalTools {
    pub(super) async fn terminal(
        &self,
        policy: &Sandbox,
        session: u64,
        begin: PathBuf,
        arguments: Arguments,
        cancel: &CancellationToken,
    ) -> ToolResult {
        let Arguments { command, workdir, timeout, background } = arguments;
        if command.trim().is_empty() || command.contains('\0') {
            return Err("command is empty".to_owned());
        }
        let cwd = match workdir {
            Some(workdir) => directory(&self.scratch, &begin, &workdir),
            None => begin,
        };
        let argv = ["/bin/bash", "-c", &command].map(str::to_owned).to_vec();
        let task = Task::Command { argv, cwd, env: environment(&self.scratch, policy.level) };
        if background {
            let running = self.boundary.start(policy, task, true).await.map_err(|error| error.to_string())?;
            let full = {
                let (boundary, policy) = (self.boundary.clone(), *policy);
                async move { boundary.overflow(&policy).await }
            };
            return self.processes.keep(session, &command, running, full);
        }
        let mut running = self.boundary.start(policy, task, false).await.map_err(|error| error.to_string())?;
        let wait = timeout.map_or(USUAL_WAIT, |seconds| Duration::from_secs(seconds.max(1)).min(LONGEST_WAIT));
        let mut captured = Captured::new(MAX_OUTPUT);
        let ended = tokio::select! {
            ended = tokio::time::timeout(wait, read_all(&mut running, &mut captured)) => Ok(ended),
            () = cancel.cancelled() => Err("[stopped]".to_owned()),
            taken = self.boundary.overflow(policy) => Err(format!("[ended because the disk is full: {taken}; remove what is not needed]")),
        };
        let how = match ended {
            Ok(Ok(Ok(code))) => format!("[exit code {code}]"),
            Ok(Ok(Err(error))) => format!("[its output was lost: {error}]"),
            Ok(Err(_)) => {
                running.end().await;
                format!("[ended after {} s; ask for a longer timeout, or use background]", wait.as_secs())
            }
            Err(how) => {
                running.end().await;
                how
            }
        };
        Ok(with_end(&captured.text(), &how))
    }
}

/// An output and how it ended.
pub(super) fn with_end(output: &str, how: &str) -> String {
    let output = output.trim_end_matches('\n');
    if output.is_empty() { how.to_owned() } else { format!("{output}\n{how}") }
}

/// Where a command begins, by what the model wrote, from where the turn's work begins. Whether it may be seen is the boundary's matter.
fn directory(scratch: &Path, begin: &Path, written: &str) -> PathBuf {
    let written = written.trim();
    let whole = match written.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => scratch.join(rest.trim_start_matches('/')),
        _ => begin.join(written),
    };
    let mut path = PathBuf::new();
    for part in whole.components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir => {}
            part => path.push(part),
        }
    }
    path
}

/// All that a command is told of the world.
pub(crate) fn environment(scratch: &Path, level: Level) -> BTreeMap<String, String> {
    let temporary = if level == Level::Off { scratch.display().to_string() } else { "/tmp".to_owned() };
    let entries = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOME", scratch.display().to_string()),
        ("USER", "hermes".to_owned()),
        ("LOGNAME", "hermes".to_owned()),
        ("SHELL", "/bin/bash".to_owned()),
        ("TERM", "dumb".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TMPDIR", temporary),
        // Nobody is there to answer.
        ("GIT_TERMINAL_PROMPT", "0".to_owned()),
        ("PAGER", "cat".to_owned()),
    ];
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_found_from_what_a_model_writes() {
        let scratch = Path::new("/h/workspace");
        for (written, found) in [
            ("", "/h/workspace"),
            (".", "/h/workspace"),
            ("~", "/h/workspace"),
            ("~/a", "/h/workspace/a"),
            ("a/../b", "/h/workspace/b"),
            ("../skills", "/h/skills"),
            ("/usr/lib", "/usr/lib"),
        ] {
            assert_eq!(directory(scratch, scratch, written), Path::new(found), "{written}");
        }
        let begin = Path::new("/h/workspace/site");
        assert_eq!(directory(scratch, begin, "a"), Path::new("/h/workspace/site/a"));
        assert_eq!(directory(scratch, begin, "~/a"), Path::new("/h/workspace/a"));
    }
}
