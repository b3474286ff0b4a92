//! The system under measurement: `hermesctl up` of the binaries beside this one, in a temporary directory.
//!
//! Started and stopped by `main`. It owns the process, its directory and its log. Always true: the processes are their own
//! group, so a Ctrl-C at the terminal reaches this program alone and it stops them in order; after [`Plane::stop`] none
//! of them runs. It knows no surface and counts nothing.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, interval, sleep, timeout};

use crate::usage::{self, Process, Reading};

/// The subcommand that binds a process to this one.
pub(crate) const RUN_BOUND: &str = "run-bound";
/// From the start to the ready line: a new Postgres cluster, migrations and the first worker.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How often the process tree is looked at while it starts.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// From SIGTERM to the end; `up` promises five seconds.
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// From its end to that of its children, which get a signal then.
const CHILDREN_END_WITHIN: Duration = Duration::from_secs(2);
/// How much of the log an error shows.
const LOG_LINES: usize = 25;

/// The telegram account of the generated configuration.
pub(crate) struct Telegram<'a> {
    /// Base URL of the Bot API server.
    pub(crate) api_base: &'a str,
    /// The bot's token.
    pub(crate) token: &'a str,
}

/// What to start.
pub(crate) struct Setup<'a> {
    /// Where hermesctl, hermes-control-plane and hermes-worker are.
    pub(crate) binaries: &'a Path,
    /// This program, which then binds the processes to its own life ([`run_bound`]).
    pub(crate) bound_by: Option<&'a Path>,
    /// Base URL of an OpenAI-compatible server.
    pub(crate) model_url: &'a str,
    /// The account to serve, if any.
    pub(crate) telegram: Option<Telegram<'a>>,
    /// Where traces and metrics go, if anywhere.
    pub(crate) otlp: Option<&'a str>,
}

/// An `up`, ready or not.
#[derive(Debug)]
pub(crate) struct Plane {
    child: Child,
    pid: i32,
    // Held open: whoever writes to a pipe without a reader is ended by it.
    stdout: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
    seen: Vec<Process>,
    // Last, so that it is removed after the process is gone.
    dir: TempDir,
}

/// How to talk to one that is ready.
#[derive(Debug)]
pub(crate) struct Access {
    /// URL of the gRPC listener.
    pub(crate) grpc_url: String,
    /// The operator token.
    pub(crate) token: String,
    database_url: Option<String>,
    http: Option<String>,
}

/// `endpoint.json`, as far as we read it. Only the owner of the data directory can.
#[derive(Debug, Deserialize)]
struct Endpoint {
    grpc: String,
    http: Option<String>,
    database_url: Option<String>,
}

impl Plane {
    /// Starts it; [`Plane::stop`] must follow.
    ///
    /// # Errors
    /// When a binary is missing or cannot be executed.
    pub(crate) fn start(setup: &Setup<'_>) -> anyhow::Result<Self> {
        for name in ["hermesctl", "hermes-control-plane", "hermes-worker"] {
            let file = setup.binaries.join(name);
            let there = file.metadata().is_ok_and(|meta| meta.is_file());
            anyhow::ensure!(
                there,
                "{} is missing; build all with `cargo build --release`, or name --bin-dir",
                file.display()
            );
        }
        // Under root Postgres is another user: it may pass through, but not look around.
        let dir = tempfile::Builder::new()
            .prefix("hermes-bench-")
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir()
            .context("create a temporary directory")?;
        let config = dir.path().join("hermes.yaml");
        fs::write(&config, config_text(setup, dir.path())?).context("write the configuration")?;
        let log = dir.path().join("up.log");
        let mut child = command(setup, dir.path(), &config, &log)?.spawn().context("start hermesctl up")?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).context("hermesctl has ended already")?;
        let stdout = BufReader::new(child.stdout.take().context("stdout is not ours")?).lines();
        Ok(Self { child, pid, stdout, log, seen: Vec::new(), dir })
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time; with the end of its log.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<Access> {
        let said = timeout(READY_WITHIN, self.until_ready()).await;
        let access = match said {
            Ok(said) => said.and_then(|()| access(&self.dir.path().join("data"))),
            Err(_) => Err(anyhow::anyhow!("it said nothing within {READY_WITHIN:?}")),
        };
        // It may have ended; the error that matters is `access`.
        let _ = self.look();
        access.with_context(|| format!("hermesctl up is not ready; its log ends with:\n{}", tail(&self.log)))
    }

    async fn until_ready(&mut self) -> anyhow::Result<()> {
        let mut tick = interval(LOOK_EVERY);
        loop {
            tokio::select! {
                line = self.stdout.next_line() => match line.context("read stdout")? {
                    Some(line) if line.starts_with("ready ") => return Ok(()),
                    Some(_) => {}
                    None => bail!("it closed stdout"),
                },
                _ = self.child.wait() => bail!("it ended"),
                // Who it has started by now is known even if it ends the next moment.
                _ = tick.tick() => { let _ = self.look(); }
            }
        }
    }

    /// CPU and memory of all its processes now.
    ///
    /// # Errors
    /// When it has ended; with the end of its log.
    pub(crate) fn usage(&mut self) -> anyhow::Result<Reading> {
        self.look().with_context(|| self.obituary())
    }

    /// What `work` comes to, as long as it runs.
    ///
    /// # Errors
    /// When it ends first; with the end of its log.
    pub(crate) async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> anyhow::Result<T> {
        tokio::select! {
            done = work => Ok(done),
            _ = self.child.wait() => Err(anyhow::anyhow!(self.obituary())),
        }
    }

    /// Reads the process tree and remembers who was in it, so that nobody is left behind in the end.
    fn look(&mut self) -> anyhow::Result<Reading> {
        let reading = usage::read_tree(self.pid)?;
        for process in &reading.processes {
            if !self.seen.iter().any(|seen| (seen.pid, seen.started) == (process.pid, process.started)) {
                self.seen.push(process.clone());
            }
        }
        Ok(reading)
    }

    fn obituary(&self) -> String {
        format!("hermesctl up has ended; its log ends with:\n{}", tail(&self.log))
    }

    /// Copies the log to `path`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn keep_log(&self, path: &Path) -> anyhow::Result<()> {
        fs::copy(&self.log, path).with_context(|| format!("write {}", path.display())).map(drop)
    }

    /// Stops it, ends what is left of it, and removes its directory.
    ///
    /// # Errors
    /// When something had to be killed, or the directory cannot be removed.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        // An error means that it has ended; then those are left that were seen before.
        let _ = self.look();
        let killed = end(&mut self.child, self.pid, &self.seen).await;
        self.dir.close().context("remove the temporary directory")?;
        anyhow::ensure!(killed == 0, "{killed} processes of hermesctl up did not end by themselves and were killed");
        Ok(())
    }
}

impl Access {
    /// URL of its metrics.
    ///
    /// # Errors
    /// When `endpoint.json` has no HTTP address.
    pub(crate) fn metrics_url(&self) -> anyhow::Result<String> {
        let http = self.http.as_deref().context("endpoint.json has no http")?;
        Ok(if http.contains("://") { format!("{http}/metrics") } else { format!("http://{http}/metrics") })
    }

    /// Connection string of its Postgres.
    ///
    /// # Errors
    /// When `endpoint.json` has none.
    pub(crate) fn database_url(&self) -> anyhow::Result<&str> {
        self.database_url.as_deref().context(
            "endpoint.json has no database_url, so the floor of Postgres cannot be measured; leave it out with --no-floor",
        )
    }
}

fn access(data: &Path) -> anyhow::Result<Access> {
    let endpoint = fs::read(data.join("endpoint.json")).context("read endpoint.json")?;
    let Endpoint { grpc, http, database_url } = serde_json::from_slice(&endpoint).context("parse endpoint.json")?;
    let token = fs::read_to_string(data.join("operator.token")).context("read operator.token")?;
    let grpc_url = if grpc.contains("://") { grpc } else { format!("http://{grpc}") };
    Ok(Access { grpc_url, token: token.trim().to_owned(), database_url, http })
}

/// SIGTERM, then SIGKILL to each process of `seen` that is still itself; answers how many had to be killed.
async fn end(child: &mut Child, pid: i32, seen: &[Process]) -> usize {
    // An error means that it has ended already: the child is not reaped before `wait`, so the pid is still its own.
    if child.id().is_some() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let ended = timeout(STOP_WITHIN, child.wait()).await.is_ok();
    let patience = if ended { CHILDREN_END_WITHIN } else { Duration::ZERO };
    let left = still_running(seen, patience).await;
    for process in &left {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
    let _ = timeout(STOP_WITHIN, child.wait()).await;
    still_running(seen, CHILDREN_END_WITHIN).await;
    left.len()
}

/// Who of `seen` runs after all had `patience` to end. Most are not our children: there is nothing to wait on but /proc.
async fn still_running(seen: &[Process], patience: Duration) -> Vec<&Process> {
    let deadline = Instant::now() + patience;
    loop {
        let left: Vec<&Process> = seen.iter().filter(|process| usage::is_running(process)).collect();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Becomes `program`, which gets a SIGTERM when process `parent` ends, even by a SIGKILL.
///
/// # Errors
/// When that process has ended already, or `program` cannot be executed; there is no other return.
pub(crate) fn run_bound(parent: u32, program: &[OsString]) -> anyhow::Result<()> {
    let (program, args) = program.split_first().context("say what to run")?;
    // The signal stays set in whatever this process becomes.
    prctl::set_pdeathsig(Signal::SIGTERM).context("bind this process to its parent")?;
    anyhow::ensure!(u32::try_from(getppid().as_raw()).is_ok_and(|pid| pid == parent), "the parent has ended");
    let failed = std::process::Command::new(program).args(args).exec();
    Err(failed).with_context(|| format!("start {}", program.display()))
}

fn command(setup: &Setup<'_>, dir: &Path, config: &Path, log: &Path) -> anyhow::Result<Command> {
    let log = File::create(log).context("create the log")?;
    let hermesctl = setup.binaries.join("hermesctl");
    let mut command = match setup.bound_by {
        Some(program) => {
            let mut command = Command::new(program);
            command.arg(RUN_BOUND).arg(std::process::id().to_string()).arg(hermesctl);
            command
        }
        None => Command::new(hermesctl),
    };
    command.arg("up").arg("--data-dir").arg(dir.join("data")).arg("--config").arg(config);
    // Ports of our own choice never collide with an `up` that somebody else runs here.
    for flag in ["--grpc-addr", "--http-addr", "--worker-addr"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    // What is measured must not depend on who measures.
    for name in [
        "ANTHROPIC_API_KEY",
        "OPENAI_API_KEY",
        "GEMINI_API_KEY",
        "OPENROUTER_API_KEY",
        "DATABASE_URL",
        "HERMES_HOME",
        "HERMES_DATA_DIR",
        "HERMES_SERVER",
        "HERMES_TOKEN",
        "RUST_LOG",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ] {
        command.env_remove(name);
    }
    if let Some(endpoint) = setup.otlp {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0).kill_on_drop(true);
    Ok(command)
}

/// The document that `up` applies. JSON is YAML in which everything is quoted, `off` too.
fn config_text(setup: &Setup<'_>, dir: &Path) -> anyhow::Result<String> {
    let mut document = serde_json::json!({
        "model": "mock/mock-1",
        "providers": {"mock": {"kind": "openai", "base_url": setup.model_url}},
    });
    if let Some(telegram) = &setup.telegram {
        let token_file = dir.join("bot-token");
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&token_file)
            .context("write the bot token")?;
        std::io::Write::write_all(&mut file, telegram.token.as_bytes()).context("write the bot token")?;
        document["platforms"] = serde_json::json!({"telegram": {"accounts": [{
            "id": "bench", "token_file": token_file, "api_base": telegram.api_base, "allow_all": true, "rate": "off",
        }]}});
        // One account brings what is measured; its default bound is 1,000 a second.
        document["limits"] = serde_json::json!({"inbound_per_second": 0});
    }
    serde_json::to_string_pretty(&document).context("write the configuration")
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup<'a>(binaries: &'a Path) -> Setup<'a> {
        Setup { binaries, bound_by: None, model_url: "http://127.0.0.1:1/v1", telegram: None, otlp: None }
    }

    /// Three programs; hermesctl is this script.
    fn programs(hermesctl: &str) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["hermesctl", "hermes-control-plane", "hermes-worker"] {
            let path = dir.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{hermesctl}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir
    }

    #[test]
    fn the_configuration_is_what_the_documentation_says() {
        let dir = tempfile::tempdir().unwrap();
        let telegram = Some(Telegram { api_base: "http://127.0.0.1:2", token: "1:secret" });
        let text = config_text(&Setup { telegram, ..setup(dir.path()) }, dir.path()).unwrap();
        assert!(text.contains("\"off\""), "{text}");
        let value: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(value["providers"]["mock"]["base_url"], "http://127.0.0.1:1/v1");
        let account = &value["platforms"]["telegram"]["accounts"][0];
        assert_eq!(account["rate"], "off");
        assert!(!text.contains("1:secret"));
        let (document, warnings) = hermes_core::config::load_offline(&text).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(document.platforms.telegram["bench"].rate, hermes_core::config::Rate::Off);
        assert_eq!(fs::read_to_string(account["token_file"].as_str().unwrap()).unwrap(), "1:secret");
    }

    #[tokio::test]
    async fn it_is_started_read_and_stopped_with_all_its_children() {
        // The data directory is the third argument. The grandchild outlives a SIGTERM of its parent and must be killed.
        let programs = programs(
            "mkdir -p \"$3\"; echo '{\"grpc\":\"127.0.0.1:7\",\"database_url\":\"postgres://x\"}' > \"$3/endpoint.json\"\n\
             echo tok > \"$3/operator.token\"; sleep 300 & echo starting; echo 'ready grpc=127.0.0.1:7 http=127.0.0.1:8'; wait",
        );
        let mut plane = Plane::start(&setup(programs.path())).unwrap();
        let access = plane.ready().await.unwrap();
        assert_eq!((access.grpc_url.as_str(), access.token.as_str()), ("http://127.0.0.1:7", "tok"));
        assert_eq!(access.database_url().unwrap(), "postgres://x");
        let seen = plane.usage().unwrap().processes;
        assert_eq!(seen.len(), 2);
        let dir = plane.dir.path().to_owned();
        let error = plane.stop().await.unwrap_err();
        assert!(error.to_string().starts_with("1 processes"), "{error}");
        assert!(seen.iter().all(|process| !usage::is_running(process)));
        assert!(!dir.try_exists().unwrap());
    }

    #[tokio::test]
    async fn one_that_ends_early_is_an_error_with_its_log() {
        let programs = programs("echo 'no Postgres found' >&2; exit 1");
        let mut plane = Plane::start(&setup(programs.path())).unwrap();
        let error = format!("{:#}", plane.ready().await.unwrap_err());
        plane.stop().await.unwrap();
        assert!(error.contains("no Postgres found"), "{error}");
    }

    #[tokio::test]
    async fn one_that_ends_under_load_is_an_error_and_nobody_is_left() {
        let programs = programs(
            "mkdir -p \"$3\"; echo '{\"grpc\":\"127.0.0.1:7\"}' > \"$3/endpoint.json\"; echo tok > \"$3/operator.token\"\n\
             sleep 300 & echo 'ready grpc=x http=y'; sleep 0.2; echo 'out of memory' >&2; kill -9 $$",
        );
        let mut plane = Plane::start(&setup(programs.path())).unwrap();
        let access = plane.ready().await.unwrap();
        assert!(access.database_url().is_err());
        let error = plane.meanwhile(std::future::pending::<()>()).await.unwrap_err().to_string();
        assert!(error.contains("out of memory"), "{error}");
        assert!(plane.usage().is_err());
        let seen = plane.seen.clone();
        assert!(plane.stop().await.is_err());
        assert!(seen.len() >= 2 && seen.iter().all(|process| !usage::is_running(process)));
    }

    #[test]
    fn missing_binaries_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Plane::start(&setup(dir.path())).unwrap_err().to_string();
        assert!(error.contains("hermesctl is missing"), "{error}");
    }
}
