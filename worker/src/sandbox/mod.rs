//! The boundary around whatever a model makes this worker run.
//!
//! Called by the tools that start processes or touch files ([`Boundary::start`]), and once at start and by `doctor`
//! ([`Ability::probe`]). What is run inside is taken to be hostile. Always true, on the levels `strict` and `home`: it sees the
//! agent's own entries of the home, read-only system paths, a `/tmp` of bounded size, and nothing else; no process but its
//! own; no environment but what the tool gives; its processes, memory and processor time are bounded; it has no network unless
//! the policy opens it, or gives it a proxy; and when the call ends, or this worker does, all that it started is gone. A boundary that the machine
//! cannot give is an error, never a weaker boundary.
//!
//! A process is started in two stages, both this very program: [`enter`] makes the namespaces, [`inside`] is the first process in
//! them, builds what is seen there, closes the door behind itself (Landlock, seccomp, no new privileges) and does the task. A
//! fresh process does that because a process with threads cannot: namespaces and rules hold for one thread, and between `fork`
//! and `exec` of a threaded process next to nothing is allowed.
//!
//! The worker itself stays outside: a process behind Landlock may not mount, so it could not build this for others. Its own code
//! reads and writes the home by names that it checks, and follows no link there.
//!
//! What it deliberately does not do: judge what is run (approvals do), keep a call from
//! spoiling what its agent owns.

mod cgroup;
mod disk;
pub mod enter;
mod filter;
mod frame;
mod handover;
pub mod inside;
mod root;
mod rules;

use std::collections::BTreeMap;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_proto::v1;
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

/// The argument by which this program becomes the first stage.
pub const ENTER: &str = "sandbox-enter";
/// The argument by which this program becomes the second stage.
pub const INSIDE: &str = "sandbox-inside";
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

/// How much of the machine a tool may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The agent's own entries of its home.
    Strict,
    /// The whole home, what others put there included.
    Home,
    /// No boundary at all.
    Off,
}

/// Which network a tool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// None but its own loopback.
    None,
    /// Its own loopback, and there an HTTP proxy, at [`PROXY`].
    Proxy,
    /// The machine's.
    Open,
}

/// What an agent's tools may do; from its profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What they see.
    pub level: Level,
    /// Whom they reach.
    pub network: Network,
    /// Memory of all tool processes of this worker together, and of each alone, MiB.
    pub memory_mb: u64,
    /// Processes and threads of all tools of this worker together.
    pub pids: u64,
    /// Processor time of each process, seconds.
    pub cpu_seconds: u64,
    /// What the agent's own entries of its home may take, MiB.
    pub disk_mb: u64,
}

impl Policy {
    /// As the control plane says it; what it leaves out, or this build does not know, is as strict as the default.
    pub fn from_wire(sandbox: Option<&v1::Sandbox>) -> Self {
        let usual = Self::default();
        let Some(sandbox) = sandbox else {
            return usual;
        };
        let level = match sandbox.level() {
            v1::SandboxLevel::Home => Level::Home,
            v1::SandboxLevel::Off => Level::Off,
            v1::SandboxLevel::Strict | v1::SandboxLevel::Unspecified => Level::Strict,
        };
        let network = match sandbox.network() {
            v1::SandboxNetwork::Proxy => Network::Proxy,
            v1::SandboxNetwork::Open => Network::Open,
            v1::SandboxNetwork::None | v1::SandboxNetwork::Unspecified => Network::None,
        };
        Self {
            level,
            network,
            memory_mb: sandbox.memory_mb.unwrap_or(usual.memory_mb),
            pids: sandbox.pids.unwrap_or(usual.pids),
            cpu_seconds: sandbox.cpu_seconds.unwrap_or(usual.cpu_seconds),
            disk_mb: sandbox.disk_mb.unwrap_or(usual.disk_mb),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            level: Level::Strict,
            network: Network::None,
            memory_mb: 1024,
            pids: 256,
            cpu_seconds: 600,
            disk_mb: 10_240,
        }
    }
}

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
struct Entering {
    /// The worker: without it nothing begins.
    worker: i32,
    /// Directories of control groups to join.
    groups: Vec<PathBuf>,
    /// Without: the machine's network stays.
    own_network: bool,
    /// Where to hand over the listener of the way out, if there is one.
    way_out: Option<Invitation>,
}

/// What the second stage needs.
#[derive(Debug, Serialize, Deserialize)]
struct Inside {
    home: PathBuf,
    level: Level,
    network: Network,
    memory_bytes: u64,
    pids: u64,
    cpu_seconds: u64,
    task: Task,
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
    pub async fn probe(program: &Path, home: &Path) -> Self {
        let boundary =
            Boundary::new(program.to_owned(), home.to_owned()).with_way_out(Arc::new(|_| Box::pin(async {})));
        let limits = match &*boundary.group() {
            Ok(Some(group)) => Ok(group.kind()),
            Ok(None) => Ok("resource limits of this user"),
            Err(reason) => Err(reason.clone()),
        };
        let reason = |built: Result<(), Error>| {
            built.map_err(|error| match error {
                Error::NotBuilt { reason } => reason,
                Error::Io(error) => error.to_string(),
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
}

impl Boundary {
    /// Of the worker that runs `program`, around `home` (absolute, symlinks resolved).
    pub fn new(program: PathBuf, home: PathBuf) -> Self {
        let bounds = match Group::make(std::process::id()) {
            Ok(group) => Ok(Some(group)),
            Err(_) if !nix::unistd::geteuid().is_root() => Ok(None),
            Err(error) => Err(format!(
                "as root without writable control groups the number of processes cannot be bounded ({error}); run the worker as another user"
            )),
        };
        Self { program, way_out: None, home, group: Arc::new(Mutex::new(bounds)), tried: Arc::default() }
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
    pub async fn admits(&self, policy: &Policy) -> Result<(), Error> {
        if policy.level == Level::Off {
            return Ok(());
        }
        self.tried.get_or_try_init(|| self.works()).await.copied()
    }

    /// Starts `task`. With `input` its stdin stays open, otherwise it is at its end at once.
    ///
    /// # Errors
    /// [`Error`]. A boundary that fails later ends the task with [`NOT_BUILT`] and its reason as output.
    pub async fn start(&self, policy: &Policy, task: Task, input: bool) -> Result<Running, Error> {
        let (reader, writer) = io::pipe()?;
        let mut running = self.launch(policy, task, writer.try_clone()?, writer).await?;
        running.output = Some(reader.into());
        if !input {
            running.input = None;
        }
        Ok(running)
    }

    /// Starts `task` with its stdin open, and with stdout and stderr apart.
    ///
    /// # Errors
    /// [`Error`]. A boundary that fails later ends the task with [`NOT_BUILT`] and its reason on stderr.
    pub async fn start_apart(&self, policy: &Policy, task: Task) -> Result<Running, Error> {
        let (output, stdout) = io::pipe()?;
        let (errors, stderr) = io::pipe()?;
        let mut running = self.launch(policy, task, stdout, stderr).await?;
        running.output = Some(output.into());
        running.errors = Some(errors.into());
        Ok(running)
    }

    async fn launch(
        &self,
        policy: &Policy,
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
        let frames = self.frames(policy, task.clone(), way_out.as_ref().map(|(_, handover)| handover.invitation()))?;
        let mut command = match (policy.level, &task) {
            (Level::Off, Task::Command { argv, cwd, env }) => {
                let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("there is no command"))?;
                let mut command = Command::new(program);
                command.args(arguments).current_dir(cwd).env_clear().envs(env);
                command
            }
            (Level::Off, _) => {
                let mut command = Command::new(&self.program);
                command.arg(INSIDE).env_clear();
                command
            }
            (Level::Strict | Level::Home, _) => {
                let mut command = Command::new(&self.program);
                command.arg(ENTER).env_clear();
                command
            }
        };
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(stdout).stderr(stderr);
        let mut child = command.spawn()?;
        // The command holds the pipes' other ends.
        drop(command);
        let id = child.id().and_then(|id| i32::try_from(id).ok()).ok_or_else(|| io::Error::other("it has ended"))?;
        let mut stdin = child.stdin.take();
        let mut running = Running {
            child,
            way_out: JoinSet::new(),
            group: Pid::from_raw(id),
            output: None,
            errors: None,
            input: None,
        };
        if let Some(pipe) = &mut stdin {
            // A stage that ends before it has read says why on its output.
            match pipe.write_all(&frames).await {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
                _ => {}
            }
        }
        running.input = stdin;
        if let Some((serve, handover)) = way_out {
            tokio::select! {
                listener = handover.taken() => drop(running.way_out.spawn(serve(listener?))),
                // It says why on its output.
                ended = running.child.wait() => drop(ended?),
            }
        }
        Ok(running)
    }

    /// What the stages read before the task's own input.
    fn frames(&self, policy: &Policy, task: Task, way_out: Option<Invitation>) -> Result<Vec<u8>, Error> {
        let mut frames = Vec::new();
        if policy.level == Level::Off {
            if matches!(task, Task::Command { .. }) {
                return Ok(frames);
            }
        } else {
            let groups = match &*self.group() {
                Ok(Some(group)) => {
                    group.limit(policy)?;
                    group.directories()
                }
                Ok(None) => Vec::new(),
                Err(reason) => return Err(Error::NotBuilt { reason: reason.clone() }),
            };
            let worker = i32::try_from(std::process::id()).map_err(io::Error::other)?;
            let own_network = policy.network != Network::Open;
            frame::push(&mut frames, &Entering { worker, groups, own_network, way_out })?;
        }
        let inside = Inside {
            home: self.home.clone(),
            level: policy.level,
            network: policy.network,
            memory_bytes: policy.memory_mb << 20,
            pids: policy.pids,
            cpu_seconds: policy.cpu_seconds,
            task,
        };
        frame::push(&mut frames, &inside)?;
        Ok(frames)
    }

    /// Ends when the agent's own entries take more of the disk than the policy lets them; says how much, for people.
    pub async fn overflow(&self, policy: &Policy) -> String {
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
        let policy = Policy { network, ..Policy::default() };
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
    /// Waits for its end; its exit code, 128 and the signal's number where one ended it.
    ///
    /// # Errors
    /// What the system answers.
    pub async fn wait(&mut self) -> io::Result<i32> {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.child.wait().await?;
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
