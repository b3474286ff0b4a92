//! [`Process`]: one program that is started again whenever it ends, until the run is over.
//!
//! Used by [`super::world`]. It owns the process and its log. Always true: at most one instance runs; it ends with the run,
//! and with this program, however that ends; an end that nobody asked for is told. It knows nothing of what it runs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// From an end to the next start.
const PAUSE: Duration = Duration::from_millis(300);
/// From SIGTERM to SIGKILL at the end of the run.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Makes the command for a start.
pub(crate) type Start = Box<dyn Fn() -> std::process::Command + Send + Sync>;

/// How to start one.
pub(crate) struct Program {
    /// What it is called in reports, and its log without `.log`.
    pub(crate) name: String,
    /// Makes the command.
    pub(crate) start: Start,
    /// Where its log is.
    pub(crate) logs: PathBuf,
}

/// A supervised program. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    shared: Arc<Shared>,
    stop: CancellationToken,
    // The child is killed when the task that holds it is dropped.
    supervising: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The last line of standard output that began with `ready`, and which instance said it.
    ready: watch::Sender<(u64, Option<String>)>,
}

#[derive(Debug, Default)]
struct State {
    pid: Option<Pid>,
    starts: u64,
    is_stopped: bool,
    /// Whether a signal of ours is why it ends.
    is_expected: bool,
    /// Not started while it is held down.
    is_held: bool,
    /// Ends that nobody asked for.
    surprises: Vec<String>,
}

impl Process {
    /// Starts it, for the first time.
    pub(crate) fn start(program: Program) -> Self {
        let (ready, _) = watch::channel((0, None));
        let shared = Arc::new(Shared { state: Mutex::default(), ready });
        let stop = CancellationToken::new();
        let name = program.name.clone();
        let mut supervising = JoinSet::new();
        supervising.spawn(supervise(program, Arc::clone(&shared), stop.clone()));
        Self { name, shared, stop, supervising }
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Sends it a signal that does not end it unasked; false when it does not run, or stands still already.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        let mut state = self.shared.locked();
        let (Some(pid), continues) = (state.pid, signal == Signal::SIGCONT) else { return false };
        if state.is_stopped != continues {
            return false;
        }
        let sent = kill(pid, signal).is_ok();
        match signal {
            Signal::SIGSTOP => state.is_stopped = sent,
            Signal::SIGCONT => state.is_stopped = !sent,
            _ => state.is_expected |= sent,
        }
        sent
    }

    /// What its newest instance said when it was ready; `None` while there is none.
    pub(crate) fn ready(&self) -> Option<String> {
        let starts = self.shared.locked().starts;
        let (instance, line) = self.shared.ready.borrow().clone();
        line.filter(|_| instance == starts)
    }

    /// How often it was started.
    pub(crate) fn starts(&self) -> u64 {
        self.shared.locked().starts
    }

    /// Ends that nobody asked for.
    pub(crate) fn surprises(&self) -> Vec<String> {
        self.shared.locked().surprises.clone()
    }

    /// While it is held, it is not started again.
    pub(crate) fn hold(&self, held: bool) {
        self.shared.locked().is_held = held;
    }

    /// Asks it to end and waits for it; what does not end is killed.
    pub(crate) async fn end(mut self) {
        self.signal(Signal::SIGCONT);
        self.stop.cancel();
        while self.supervising.join_next().await.is_some() {}
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn supervise(program: Program, shared: Arc<Shared>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if shared.locked().is_held {
            tokio::select! { () = tokio::time::sleep(PAUSE) => {} () = stop.cancelled() => {} }
            continue;
        }
        match spawn(&program, &shared) {
            Ok(child) => run(child, &program, &shared, &stop).await,
            Err(error) => shared.locked().surprises.push(format!("{}: {error:#}", program.name)),
        }
        tokio::select! { () = tokio::time::sleep(PAUSE) => {} () = stop.cancelled() => {} }
    }
}

fn spawn(program: &Program, shared: &Shared) -> anyhow::Result<Child> {
    let inner = (program.start)();
    // KILL and not TERM: who stands still hears nothing else.
    let mut bound = std::process::Command::new("setpriv");
    bound.args(["--pdeathsig", "KILL"]).arg(inner.get_program()).args(inner.get_args()).env_clear();
    bound.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let log = File::options().create(true).append(true).open(log_file(program)).context("open its log")?;
    let mut command = Command::from(bound);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0).kill_on_drop(true);
    let mut state = shared.locked();
    let child = command.spawn().with_context(|| format!("start {}", program.name))?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).context("it has ended already")?;
    let surprises = std::mem::take(&mut state.surprises);
    *state = State { pid: Some(Pid::from_raw(pid)), starts: state.starts + 1, surprises, ..State::default() };
    Ok(child)
}

fn log_file(program: &Program) -> PathBuf {
    Path::new(&program.logs).join(format!("{}.log", program.name))
}

/// Hears what it says until it closes standard output, which it may do long after it was ready.
async fn hear(stdout: Option<ChildStdout>, shared: &Shared) -> std::convert::Infallible {
    if let Some(stdout) = stdout {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.starts_with("ready") {
                let instance = shared.locked().starts;
                shared.ready.send_replace((instance, Some(line)));
            }
        }
    }
    std::future::pending().await
}

async fn run(mut child: Child, program: &Program, shared: &Shared, stop: &CancellationToken) {
    let stdout = child.stdout.take();
    let status = tokio::select! {
        never = hear(stdout, shared) => match never {},
        status = child.wait() => status,
        () = stop.cancelled() => {
            shared.locked().is_expected = true;
            let pid = shared.locked().pid;
            if let Some(pid) = pid {
                let _ = kill(pid, Signal::SIGTERM);
            }
            if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
                let _ = child.start_kill();
            }
            child.wait().await
        }
    };
    let mut state = shared.locked();
    state.pid = None;
    if !state.is_expected {
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        state.surprises.push(format!("{} ended by itself: {how}", program.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_ends_is_started_again_and_what_stands_still_ends_too() {
        let logs = tempfile::tempdir().unwrap();
        let start: Start = Box::new(|| {
            let mut command = std::process::Command::new("/bin/sh");
            command.args(["-c", "echo ready pid=$$; exec sleep 300"]).env("PATH", "/usr/bin:/bin");
            command
        });
        let process = Process::start(Program { name: "p".into(), start, logs: logs.path().to_owned() });
        let mut ready = process.shared.ready.subscribe();
        ready.wait_for(|(instance, _)| *instance == 1).await.unwrap();
        assert!(process.ready().unwrap().starts_with("ready pid="));
        assert!(process.signal(Signal::SIGKILL));
        ready.wait_for(|(instance, _)| *instance == 2).await.unwrap();
        assert!(process.surprises().is_empty(), "{:?}", process.surprises());
        let pid = process.shared.locked().pid.unwrap();
        // Behind the supervisor's back.
        kill(pid, Signal::SIGKILL).unwrap();
        ready.wait_for(|(instance, _)| *instance == 3).await.unwrap();
        assert_eq!(process.surprises().len(), 1);
        assert!(process.signal(Signal::SIGSTOP) && !process.signal(Signal::SIGSTOP));
        let pid = process.shared.locked().pid.unwrap();
        process.end().await;
        assert!(kill(pid, None).is_err());
    }
}
