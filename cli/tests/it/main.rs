//! hermesctl as a process: exit codes, stdout and stderr, against nothing at all, against a control plane of fixed
//! behaviour, and offline.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the harness of these tests fails by panicking")]

mod cron;
mod fake;
mod offline;
mod online;

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What a run of hermesctl left.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Its exit code.
    pub code: Option<i32>,
    /// Its stdout.
    pub out: String,
    /// Its stderr.
    pub err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let ran = Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
        ran
    }

    /// stdout as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// hermesctl with an environment of its own: nothing of the developer's is seen.
pub(crate) fn hermesctl<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hermesctl"));
    command.args(args).env_clear().env("HERMES_DATA_DIR", dir("empty")).stdin(Stdio::null());
    command
}

/// Runs to the end.
pub(crate) fn run(command: &mut Command) -> Ran {
    Ran::of(command.output().unwrap())
}

/// Runs with this on stdin.
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Ran {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that refuses early does not read everything.
    let _unread = child.stdin.take().unwrap().write_all(input);
    Ran::of(child.wait_with_output().unwrap())
}

/// A directory under the build directory that one test uses; what an earlier run left in it is still there.
pub(crate) fn dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hermesctl-it").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// A file with this content; each test names its own.
pub(crate) fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = dir("files").join(name);
    std::fs::write(&path, content).unwrap();
    path
}
