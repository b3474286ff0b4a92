//! A real `hermesctl up` in a temporary directory, and `hermesctl` against it.
//!
//! Used by every test of this folder. It owns the process, its directory and its log. Always true: ports are free ones, no
//! provider key of whoever runs the tests is seen, and nothing is left running; when a test fails the end of the log is
//! printed.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// A new cluster, migrations and a worker, on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// From SIGTERM to the end, as promised.
pub(super) const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How long one `hermesctl` may take.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);
const LOG_LINES: usize = 60;
/// What the one who runs the tests may have set.
const FOREIGN: [&str; 17] = [
    "ANTHROPIC_API_KEY",
    "OPENAI_API_KEY",
    "GEMINI_API_KEY",
    "OPENROUTER_API_KEY",
    "DATABASE_URL",
    "HERMES_CONFIG",
    "HERMES_DATA_DIR",
    "HERMES_GRPC_ADDR",
    "HERMES_HOME",
    "HERMES_HTTP_ADDR",
    "HERMES_LOG",
    "HERMES_LOG_FORMAT",
    "HERMES_SERVER",
    "HERMES_TOKEN",
    "HERMES_WORKER_ADDR",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "RUST_LOG",
];

/// One of this workspace's programs, which cargo builds beside the tests.
pub(super) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let file = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(file.is_file(), "{} is missing; build it with `cargo build --workspace --all-targets`", file.display());
    file
}

/// A command of `program` without the surroundings of whoever runs the tests.
pub(super) fn command(name: &str) -> Command {
    let mut command = Command::new(program(name));
    for variable in FOREIGN {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A directory that the account of Postgres may pass through.
pub(super) fn directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("hermes-it-")
        .permissions(fs::Permissions::from_mode(0o711))
        .tempdir_in("/tmp")
        .unwrap()
}

/// A process that says `ready …` on stdout.
pub(super) struct Server {
    child: Child,
    // Held open: whoever writes to a pipe without a reader is ended by it.
    _stdout: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
    /// The ready line.
    pub(super) ready: String,
}

impl Server {
    /// Starts `command` with its stderr in `log` and waits until it is ready.
    pub(super) async fn start(mut command: Command, log: &Path) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(File::create(log).unwrap()).spawn();
        let mut child = child.unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(READY_WITHIN, stdout.next_line()).await;
        let ready = match line {
            Ok(Ok(Some(line))) if line.starts_with("ready ") => line,
            other => panic!("no ready line but {other:?}; its log ends with\n{}", tail(log)),
        };
        Self { child, _stdout: stdout, log: log.to_owned(), ready }
    }

    /// The `name=value` of the ready line.
    pub(super) fn said(&self, name: &str) -> &str {
        let mut words = self.ready.split(' ');
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).expect("the ready line has it")
    }

    /// Sends SIGTERM and waits for the end; answers how long it took.
    pub(super) async fn stop(mut self) -> Duration {
        let began = Instant::now();
        self.signal(Signal::SIGTERM);
        let status = tokio::time::timeout(STOP_WITHIN * 3, self.child.wait()).await;
        let status = status.expect("it ends after SIGTERM").unwrap();
        assert!(status.success(), "{status}; its log ends with\n{}", tail(&self.log));
        began.elapsed()
    }

    /// Sends a signal to it, which has not been waited for.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id() {
            kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} ends with\n{}", self.log.display(), tail(&self.log));
        }
        // In order if it can, so that no Postgres or worker outlives the test.
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + STOP_WITHIN;
        while self.child.id().is_some() && matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// An `up` that is ready.
pub(super) struct Up {
    server: Server,
    data: PathBuf,
    // Last: removed when the process is gone.
    dir: TempDir,
}

impl Up {
    /// Starts one with this document; JSON is YAML.
    pub(super) async fn start(document: Value) -> Self {
        Self::with(document, |_| {}).await
    }

    /// As [`Up::start`], with more flags and variables.
    pub(super) async fn with(document: Value, change: impl FnOnce(&mut Command)) -> Self {
        let dir = directory();
        let (data, config) = (dir.path().join("data"), dir.path().join("hermes.yaml"));
        fs::write(&config, document.to_string()).unwrap();
        let mut up = command("hermesctl");
        up.arg("up").arg("--data-dir").arg(&data).arg("--config").arg(&config);
        for flag in ["--grpc-addr", "--http-addr", "--worker-addr"] {
            up.args([flag, "127.0.0.1:0"]);
        }
        change(&mut up);
        let server = Server::start(up, &dir.path().join("up.log")).await;
        Self { server, data, dir }
    }

    /// URL of its HTTP listener, without a final slash.
    pub(super) fn http(&self) -> String {
        format!("http://{}", self.server.said("http"))
    }

    /// Its log so far.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.server.log).unwrap()
    }

    /// A place for files of the test, removed with it.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `hermesctl` of this `up`, ready to be run.
    pub(super) fn hermesctl(&self, args: &[&str]) -> Command {
        let mut command = command("hermesctl");
        command.env("HERMES_DATA_DIR", &self.data).args(args);
        command
    }

    /// What `hermesctl` comes to.
    pub(super) async fn run(&self, args: &[&str]) -> Output {
        output(self.hermesctl(args)).await
    }

    /// The JSON of a `hermesctl … -o json` that succeeds.
    pub(super) async fn json(&self, args: &[&str]) -> Value {
        json(self.hermesctl(&[args, &["-o", "json"]].concat())).await
    }

    /// Stops it; it ends in order and in time.
    pub(super) async fn stop(self) {
        let took = self.server.stop().await;
        assert!(took <= STOP_WITHIN, "the stop took {took:?}");
    }
}

/// What `command` comes to.
pub(super) async fn output(mut command: Command) -> Output {
    let output = tokio::time::timeout(COMMAND_WITHIN, command.output()).await;
    output.unwrap_or_else(|_| panic!("{command:?} did not end")).unwrap()
}

/// The JSON that `command` writes when it succeeds.
pub(super) async fn json(command: Command) -> Value {
    let said = format!("{command:?}");
    let output = output(command).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}: {}: {error}", output.status);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{said}: {error}"))
}
