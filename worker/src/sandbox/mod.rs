//! The boundary around whatever a model makes this worker run.
//!
//! Called by the tools that start processes or touch files ([`Boundary::start`]), and once at start and by `doctor`
//! ([`Ability::probe`]). What is run inside is taken to be hostile. Always true, on the levels `strict` and `home`: it sees the
//! agent's own entries of the home, read-only system paths, a `/tmp` of bounded size, and nothing else; no process but its
//! own; no environment but what the tool gives; its processes, memory and processor time are bounded; it has no network unless
//! the policy opens it, or gives it a proxy; and when the call ends, or this worker does, all that it started is gone. A boundary that the machine
//! cannot give is an error, never a weaker boundary.
//!
//! A process is started in two stages, both of the program [`PROGRAM`]: [`enter`] makes the namespaces, [`inside`] is the first process in
//! them, builds what is seen there, closes the door behind itself (Landlock, seccomp, no new privileges) and does the task that it
//! is given then. A fresh process does that because a process with threads cannot: namespaces and rules hold for one thread, and
//! between `fork` and `exec` of a threaded process next to nothing is allowed. It is a program of its own, because to load the worker's
//! for each task would take twice as long. It takes a while all the same, so the next boundary is built while the model thinks ([`spare`]).
//!
//! The worker itself stays outside: a process behind Landlock may not mount, so it could not build this for others. Its own code
//! reads and writes the home by names that it checks, and follows no link there.
//!
//! What it deliberately does not do: judge what is run (approvals do), keep a call from
//! spoiling what its agent owns.

mod cgroup;
mod disk;
mod enter;
mod filter;
mod frame;
mod handover;
mod inside;
mod root;
mod rules;
mod spare;
mod wire;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, PipeWriter, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::tools::local::files;
use cgroup::Group;
use handover::{Handover, Invitation};
use spare::Spares;

pub use hermes_home::sandbox::{Level, Network, Sandbox};
pub use wire::from_wire;

/// The program of the stages; it lies beside the worker's.
pub const PROGRAM: &str = "hermes-sandbox";
/// Its argument that begins with the first stage.
const ENTER: &str = "enter";
/// Its argument that begins with the second stage.
const INSIDE: &str = "inside";
/// [`PROGRAM`]: the stage that its first argument names. Whoever else starts it gets the exit code 2.
pub fn process(argument: Option<OsString>) -> ExitCode {
    match argument {
        Some(stage) if stage == ENTER => enter::main(),
        Some(stage) if stage == INSIDE => inside::main(),
        _ => {
            // A closed stderr leaves nobody to tell.
            let _ = writeln!(io::stderr(), "{PROGRAM} is started by hermes-worker, around what its agent's tools run");
            ExitCode::from(2)
        }
    }
}

/// Where the proxy is, in the network that a tool has for itself.
pub const PROXY: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3128);
/// What tells programs of the proxy, each by the name that it knows; nothing is reached without it.
const PROXY_NAMES: [&str; 6] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
/// Exit code of a stage that could not build the boundary; the reason is on its stderr.
pub const NOT_BUILT: u8 = 125;

/// What of a home belongs to the agent, beside [`SCRATCH`]: made by the worker or found there.
const ENTRIES: [&str; 11] = [
    "SOUL.md",
    "memories",
    "skills",
    "scripts",
    "cron/output",
    "AGENTS.md",
    "CLAUDE.md",
    "HERMES.md",
    ".hermes.md",
    ".cursorrules",
    ".cursor/rules",
];
/// The agent's own scratch, where commands begin.
pub const SCRATCH: &str = "workspace";
/// How long what was asked to end may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Largest file that a tool may write, MiB.
const FILE_MB: u64 = 1024;

/// What runs inside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Task {
    /// A program.
    Command {
        /// Program and arguments.
        argv: Vec<String>,
        /// Where it begins, an absolute path.
        cwd: PathBuf,
        /// All of its environment.
        env: BTreeMap<String, String>,
    },
    /// Work on files, done by the stage itself; the answer is JSON on stdout. Relative paths begin in that folder of the scratch.
    Files(files::Request, Option<String>),
    /// Nothing: whether the boundary can be built.
    Nothing,
}

/// What the first stage needs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entering {
    /// [`RELEASE`] of the worker.
    release: String,
    /// The worker: without it nothing begins.
    worker: i32,
    /// The entrances of the control groups to join.
    groups: Vec<PathBuf>,
    /// Without: the machine's network stays.
    own_network: bool,
    /// Where to hand over the listener of the way out, if there is one.
    way_out: Option<Invitation>,
}

/// What the second stage needs before its [`Task`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inside {
    /// [`RELEASE`] of the worker.
    release: String,
    home: PathBuf,
    level: Level,
    network: Network,
    memory_bytes: u64,
    pids: u64,
    cpu_seconds: u64,
}

/// What a worker and its stages have in common. Stages of another release build nothing: what they show, and what the worker takes them to show,
/// could differ.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Refuses what a worker of another release says.
fn same_release(worker: &str) -> io::Result<()> {
    if worker == RELEASE {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{PROGRAM} is of release {RELEASE}, the worker of {worker}: install both, and start the worker anew"
    )))
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine does not give what the policy asks for.
    #[error(
        "the sandbox cannot be built here: {reason}. `hermes-worker doctor` says what this machine gives; `sandbox: {{level: off}}` in the agent's configuration goes without"
    )]
    NotBuilt {
        /// What is missing.
        reason: String,
    },
    /// The program of the stages cannot be executed.
    #[error("{} cannot be started ({error}); it belongs beside hermes-worker: install it there", path.display())]
    Program {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The system refused.
    #[error("a tool's process cannot be started: {0}")]
    Io(#[from] io::Error),
}

/// What this machine gives, found by building a boundary.
#[derive(Clone, Debug)]
pub struct Ability {
    /// Why none can be built, if so.
    pub boundary: Result<(), String>,
    /// Why no task can have a proxy, if so.
    pub proxy: Result<(), String>,
    /// What bounds processes and memory, for people.
    pub limits: Result<&'static str, String>,
}

impl Ability {
    /// Builds a strict boundary around nothing in `home` and looks what comes.
    pub async fn probe(worker: &Path, home: &Path) -> Self {
        let boundary = Boundary::new(worker, home.to_owned()).with_way_out(Arc::new(|_| Box::pin(async {})));
        let limits = match &*boundary.group() {
            Ok(Some(group)) => Ok(group.kind()),
            Ok(None) => Ok("resource limits of this user"),
            Err(reason) => Err(reason.clone()),
        };
        let reason = |built: Result<(), Error>| {
            built.map_err(|error| match error {
                Error::NotBuilt { reason } => reason,
                error => error.to_string(),
            })
        };
        let built = reason(boundary.works().await);
        let proxy = reason(boundary.works_with(Network::Proxy).await);
        Self { boundary: built, proxy, limits }
    }
}

/// What bounds the number of processes: a group, or without one the limits of the user, who must not be root; else why nothing.
type Bounds = Result<Option<Group>, String>;

/// What serves the proxy of one task, on its listener, until it is dropped with the task.
pub type WayOut = Arc<dyn Fn(TcpListener) -> BoxFuture<'static, ()> + Send + Sync>;

/// The boundary of one worker.
#[derive(Clone)]
pub struct Boundary {
    program: PathBuf,
    way_out: Option<WayOut>,
    home: PathBuf,
    spares: Arc<Spares>,
    group: Arc<Mutex<Bounds>>,
    /// It was built once.
    tried: Arc<OnceCell<()>>,
}

impl std::fmt::Debug for Boundary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Boundary").field("home", &self.home).finish_non_exhaustive()
    }
}

/// A task that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Serves its proxy; ends with it.
    way_out: JoinSet<()>,
    group: Pid,
    /// What it writes to stdout and stderr, in one; of one started with [`Boundary::start_apart`] to stdout alone.
    pub output: Option<OwnedFd>,
    /// What it writes to stderr, where that is apart.
    pub errors: Option<OwnedFd>,
    /// Its stdin, where that was asked for.
    pub input: Option<ChildStdin>,
    /// Where the next one is built once it has ended, and for which policy: any sooner, that would take the processor from it.
    then: Option<(Boundary, Sandbox)>,
}

impl Boundary {
    /// Of the worker whose program is `worker`, around `home` (absolute, symlinks resolved).
    pub fn new(worker: &Path, home: PathBuf) -> Self {
        let program = worker.with_file_name(PROGRAM);
        let bounds = match Group::make(std::process::id()) {
            Ok(group) => Ok(Some(group)),
            Err(_) if !nix::unistd::geteuid().is_root() => Ok(None),
            Err(error) => Err(format!(
                "as root without writable control groups the number of processes cannot be bounded ({error}); run the worker as another user"
            )),
        };
        let group = Arc::new(Mutex::new(bounds));
        Self { program, way_out: None, home, spares: Arc::default(), group, tried: Arc::default() }
    }

    /// The same, with what serves the proxies of tasks whose policy gives them one.
    #[must_use]
    pub fn with_way_out(self, way_out: WayOut) -> Self {
        Self { way_out: Some(way_out), ..self }
    }

    fn group(&self) -> MutexGuard<'_, Bounds> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what `policy` asks for can be given here.
    ///
    /// # Errors
    /// [`Error`], with what is missing.
    pub async fn admits(&self, policy: &Sandbox) -> Result<(), Error> {
        if policy.level == Level::Off {
            return Ok(());
        }
        self.tried.get_or_try_init(|| self.works()).await.copied()
    }

    /// Starts `task`. With `input` its stdin stays open, otherwise it is at its end at once.
    ///
    /// # Errors
    /// [`Error`]. A boundary that fails later ends the task with [`NOT_BUILT`] and its reason as output.
    pub async fn start(&self, policy: &Sandbox, task: Task, input: bool) -> Result<Running, Error> {
        let spares = Spares::serve(policy, &task);
        let ready = if spares { self.handed(policy, &task).await? } else { None };
        let mut running = match ready {
            Some(running) => running,
            None => {
                let (reader, writer) = io::pipe()?;
                let mut running = self.launch(policy, task, writer.try_clone()?, writer).await?;
                running.output = Some(reader.into());
                running
            }
        };
        if !input {
            running.input = None;
            running.then = spares.then(|| (self.clone(), *policy));
        } else if spares {
            // Nobody waits for its end.
            self.spares.prepare(self, policy);
        }
        Ok(running)
    }

    /// The boundary that stands ready, with its task; nothing where there is none, or it has ended before it took the task.
    async fn handed(&self, policy: &Sandbox, task: &Task) -> Result<Option<Running>, Error> {
        let Some(mut running) = self.spares.take(policy, &self.home).await else { return Ok(None) };
        self.limit(policy)?;
        let told = running.tell(&framed(task)?).await?;
        Ok(told.then_some(running))
    }

    /// One around nothing yet, as [`Self::start`] gives it its task. What runs meanwhile keeps its limits.
    async fn spare(&self, policy: &Sandbox) -> Result<Running, Error> {
        let (reader, writer) = io::pipe()?;
        let mut running = self.build(policy, None, writer.try_clone()?, writer).await?;
        running.output = Some(reader.into());
        Ok(running)
    }

    /// Starts `task` with its stdin open, and with stdout and stderr apart.
    ///
    /// # Errors
    /// [`Error`]. A boundary that fails later ends the task with [`NOT_BUILT`] and its reason on stderr.
    pub async fn start_apart(&self, policy: &Sandbox, task: Task) -> Result<Running, Error> {
        let (output, stdout) = io::pipe()?;
        let (errors, stderr) = io::pipe()?;
        let mut running = self.launch(policy, task, stdout, stderr).await?;
        running.output = Some(output.into());
        running.errors = Some(errors.into());
        Ok(running)
    }

    async fn launch(
        &self,
        policy: &Sandbox,
        task: Task,
        stdout: PipeWriter,
        stderr: PipeWriter,
    ) -> Result<Running, Error> {
        let proxied = policy.network == Network::Proxy && matches!(task, Task::Command { .. } | Task::Nothing);
        let way_out = match (policy.level, &self.way_out) {
            (Level::Strict | Level::Home, Some(way_out)) if proxied => Some((way_out, Handover::new()?)),
            _ if proxied => {
                let reason = "this worker has no proxy for its tools, or no boundary to put it into".to_owned();
                return Err(Error::NotBuilt { reason });
            }
            _ => None,
        };
        let task = if proxied { with_proxy(task) } else { task };
        let mut running = match (policy.level, &task) {
            (Level::Off, Task::Command { argv, cwd, env }) => {
                let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("there is no command"))?;
                let mut command = Command::new(program);
                command.args(arguments).current_dir(cwd).env_clear().envs(env);
                Running::spawn(command, stdout, stderr)?
            }
            _ => {
                if policy.level != Level::Off {
                    self.limit(policy)?;
                }
                let invitation = way_out.as_ref().map(|(_, handover)| handover.invitation());
                let mut running = self.build(policy, invitation, stdout, stderr).await?;
                running.tell(&framed(&task)?).await?;
                running
            }
        };
        if let Some((serve, handover)) = way_out {
            tokio::select! {
                listener = handover.taken() => drop(running.way_out.spawn(serve(listener?))),
                // It says why on its output.
                ended = running.child.wait() => drop(ended?),
            }
        }
        Ok(running)
    }

    /// Starts the stages, which wait for their task once the boundary is built.
    async fn build(
        &self,
        policy: &Sandbox,
        way_out: Option<Invitation>,
        stdout: PipeWriter,
        stderr: PipeWriter,
    ) -> Result<Running, Error> {
        let mut frames = Vec::new();
        let stage = if policy.level == Level::Off {
            INSIDE
        } else {
            let groups = self.grouped(|group| Ok(group.entrances()))?.unwrap_or_default();
            let worker = i32::try_from(std::process::id()).map_err(io::Error::other)?;
            let own_network = policy.network != Network::Open;
            frame::push(&mut frames, &Entering { release: RELEASE.to_owned(), worker, groups, own_network, way_out })?;
            ENTER
        };
        let inside = Inside {
            release: RELEASE.to_owned(),
            home: self.home.clone(),
            level: policy.level,
            network: policy.network,
            memory_bytes: policy.memory_mb << 20,
            pids: policy.pids,
            cpu_seconds: policy.cpu_seconds,
        };
        frame::push(&mut frames, &inside)?;
        let mut command = Command::new(&self.program);
        command.arg(stage).env_clear();
        let mut running = Running::spawn(command, stdout, stderr)
            .map_err(|error| Error::Program { path: self.program.clone(), error })?;
        running.tell(&frames).await?;
        Ok(running)
    }

    /// Bounds what all tasks take together.
    fn limit(&self, policy: &Sandbox) -> Result<(), Error> {
        self.grouped(|group| group.limit(policy)).map(Option::unwrap_or_default)
    }

    /// What comes of the control group, where there is one.
    fn grouped<T>(&self, what: impl FnOnce(&Group) -> io::Result<T>) -> Result<Option<T>, Error> {
        match &*self.group() {
            Ok(group) => Ok(group.as_ref().map(what).transpose()?),
            Err(reason) => Err(Error::NotBuilt { reason: reason.clone() }),
        }
    }

    /// Ends when the agent's own entries take more of the disk than the policy lets them; says how much, for people.
    pub async fn overflow(&self, policy: &Sandbox) -> String {
        match policy.level {
            Level::Off => std::future::pending().await,
            level => disk::overflow(inside::owned(&self.home, level), policy.disk_mb).await,
        }
    }

    /// Whether a strict boundary can be built.
    ///
    /// # Errors
    /// [`Error::NotBuilt`] with what is missing.
    pub async fn works(&self) -> Result<(), Error> {
        self.works_with(Network::None).await
    }

    /// Whether one with that network can be built.
    ///
    /// # Errors
    /// [`Error::NotBuilt`] with what is missing.
    pub async fn works_with(&self, network: Network) -> Result<(), Error> {
        let policy = Sandbox { network, ..Sandbox::default() };
        let mut running = self.start(&policy, Task::Nothing, false).await?;
        let output = running.output.take();
        let code = running.wait().await?;
        if code == 0 {
            return Ok(());
        }
        let mut reason = String::new();
        if let Some(output) = output {
            use std::io::Read as _;
            std::fs::File::from(output).take(4096).read_to_string(&mut reason)?;
        }
        Err(Error::NotBuilt { reason: reason.trim().to_owned() })
    }
}

/// A task, as the second stage takes it.
fn framed(task: &Task) -> io::Result<Vec<u8>> {
    let mut frames = Vec::new();
    frame::push(&mut frames, task)?;
    Ok(frames)
}

/// Tells a command of the proxy.
fn with_proxy(task: Task) -> Task {
    let Task::Command { argv, cwd, mut env } = task else { return task };
    env.extend(PROXY_NAMES.map(|name| (name.to_owned(), format!("http://{PROXY}"))));
    env.extend(["NO_PROXY", "no_proxy"].map(|name| (name.to_owned(), String::new())));
    // Node looks at those above only when it is told to.
    env.insert("NODE_USE_ENV_PROXY".to_owned(), "1".to_owned());
    Task::Command { argv, cwd, env }
}

impl Running {
    fn spawn(mut command: Command, stdout: PipeWriter, stderr: PipeWriter) -> io::Result<Self> {
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(stdout).stderr(stderr);
        let mut child = command.spawn()?;
        // The command holds the pipes' other ends.
        drop(command);
        let id = child.id().and_then(|id| i32::try_from(id).ok()).ok_or_else(|| io::Error::other("it has ended"))?;
        let input = child.stdin.take();
        let group = Pid::from_raw(id);
        Ok(Self { child, way_out: JoinSet::new(), group, output: None, errors: None, input, then: None })
    }

    /// Writes to its stdin; whether somebody is there to read it. A stage that ends before says why on its output.
    async fn tell(&mut self, frames: &[u8]) -> io::Result<bool> {
        let Some(input) = &mut self.input else { return Ok(false) };
        match input.write_all(frames).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn is_there(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end; its exit code, 128 and the signal's number where one ended it.
    ///
    /// # Errors
    /// What the system answers.
    pub async fn wait(&mut self) -> io::Result<i32> {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.child.wait().await?;
        if let Some((boundary, policy)) = self.then.take() {
            boundary.spares.prepare(&boundary, &policy);
        }
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    /// Asks it to end, and ends it and all that it started when it does not.
    pub async fn end(&mut self) {
        // Gone already: nothing is left to signal.
        let _ = killpg(self.group, Signal::SIGTERM);
        if tokio::time::timeout(PATIENCE, self.child.wait()).await.is_err() {
            self.kill();
            let _ = self.child.wait().await;
        }
    }

    /// Ends it and all that it started at once.
    pub fn kill(&mut self) {
        let _ = killpg(self.group, Signal::SIGKILL);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.id().is_some() {
            self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_of_another_release_build_nothing_and_say_what_to_do() {
        assert!(same_release(RELEASE).is_ok());
        let said = same_release("0.0.9").expect_err("another release").to_string();
        assert!(said.contains(RELEASE) && said.contains("0.0.9") && said.contains("install both"), "{said}");
    }
}
