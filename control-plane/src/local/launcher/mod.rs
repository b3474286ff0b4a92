//! The process launcher: one `hermes-worker` process per agent, as children on this host.
//!
//! Made by the composition root, told by the registry which agents there are and by dispatch which are wanted. It owns the
//! worker processes. Always true: an agent has at most one process; each agent is supervised by a task of its own, so that
//! a crash loop, a slow stop or a failing start of one never delays another; every start gets a fresh join token through
//! an inherited descriptor; a worker that must go is asked first (SIGTERM), then its process group is killed. `main` is
//! started at once, others at their first demand, or one after another while the machine has room. It deliberately knows
//! nothing of turns: what a lost worker means is for [`Config::on_exit`] to say.

mod output;
mod room;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_core::id::AgentId;
use rand::Rng as _;
use secrecy::SecretString;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

pub use self::room::has_room;
use super::homes;
use super::spawn::{Child, ChildSpec, Output, Signal, Spawner};
use crate::tasks::Tasks;

/// What of our environment a worker may see. No provider key, no platform token, no `HERMES_*`, no `HOME`.
const ENVIRONMENT: [&str; 15] = [
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "NO_COLOR",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
];

/// Makes a one-use join token for one agent, for one start, and answers its id too: the worker's name in its certificate.
pub type Mint = Arc<dyn Fn(AgentId) -> BoxFuture<'static, Result<(Uuid, SecretString), MintError>> + Send + Sync>;
/// Why there is no join token; logged, and the start is tried again.
pub type MintError = Box<dyn std::error::Error + Send + Sync>;

/// Told when a worker process has been reaped: everything it held is free. Must not block.
pub type OnExit = Arc<dyn Fn(Exit) + Send + Sync>;

/// The end of a worker process, as the launcher itself knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The id of the join token that this start was given. A pid would be the worker's own word.
    pub start: Uuid,
    /// The launcher ended it on purpose: what it still ran did not crash it.
    pub asked: bool,
}

/// What the launcher needs; plain values, fixed for its life.
#[derive(Clone)]
pub struct Config {
    /// The `hermes-worker` executable.
    pub worker_binary: PathBuf,
    /// Where workers reach their listener.
    pub worker_addr: SocketAddr,
    /// The workers' environment: see [`environment`].
    pub environment: Vec<(OsString, OsString)>,
    /// Makes join tokens.
    pub mint: Mint,
    /// Told of each end of a worker process.
    pub on_exit: OnExit,
    /// Whether this machine has room for a worker nobody asked for; [`has_room`] outside tests.
    pub has_room: fn() -> bool,
    /// Time limits.
    pub timing: Timing,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The pause before the first restart; doubled by each failure that follows.
    pub backoff_first: Duration,
    /// The longest pause.
    pub backoff_most: Duration,
    /// A worker that lived so long begins anew with the first pause.
    pub healthy_after: Duration,
    /// A worker that lived so long and then ended with exit code 0 was asked to (`worker drain`): no failure.
    pub served_after: Duration,
    /// From SIGTERM to SIGKILL when one worker is replaced or removed: its turns may finish.
    pub drain: Duration,
    /// How long a worker started in idle time keeps the next one waiting, unless it attaches earlier.
    pub idle_spacing: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            backoff_first: Duration::from_millis(200),
            backoff_most: Duration::from_secs(30),
            healthy_after: Duration::from_secs(60),
            served_after: Duration::from_secs(1),
            drain: Duration::from_secs(30),
            idle_spacing: Duration::from_secs(2),
        }
    }
}

/// One agent's worker as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchSpec {
    /// The agent.
    pub agent: AgentId,
    /// Its home, absolute; the worker creates it.
    pub home: PathBuf,
    /// Changed when the process has to be replaced though the home stays: runtime or sandbox changed.
    pub generation: u64,
}

/// Handle to the launcher; cheap to clone.
#[derive(Clone)]
pub struct Launcher {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    spawner: Spawner,
    tasks: Tasks,
    /// Counts the supervisors, so that [`Launcher::stop`] can wait for them.
    supervisors: TaskTracker,
    stop: CancellationToken,
    /// From SIGTERM to SIGKILL once everything stops.
    stop_grace: Mutex<Duration>,
    /// Whether idle starts are open.
    idle: watch::Sender<bool>,
    /// Idle starts happen one after another.
    idle_turn: Semaphore,
    agents: Mutex<BTreeMap<AgentId, Supervised>>,
}

/// The launcher's end of one supervisor.
struct Supervised {
    wanted: watch::Sender<Option<LaunchSpec>>,
    signals: Arc<Signals>,
}

#[derive(Default)]
struct Signals {
    /// Somebody needs the agent now. Keeps one permit, so a demand before the supervisor listens is not lost.
    demanded: Notify,
    /// The worker has attached.
    attached: Notify,
}

/// The part of our own environment that workers may see; `all` is `std::env::vars_os()`.
pub fn environment(all: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    all.into_iter().filter(|(name, _)| ENVIRONMENT.iter().any(|allowed| name == allowed)).collect()
}

impl Launcher {
    /// A launcher without agents. It stops by itself when `tasks` stop; [`Launcher::stop`] is the orderly way.
    pub fn new(config: Config, spawner: Spawner, tasks: Tasks) -> Self {
        let stop = tasks.stopping().child_token();
        let shared = Shared {
            config,
            spawner,
            tasks,
            supervisors: TaskTracker::new(),
            stop,
            stop_grace: Mutex::new(Duration::from_secs(2)),
            idle: watch::Sender::new(false),
            idle_turn: Semaphore::new(1),
            agents: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The agents there are now, all of them. New ones begin, missing ones drain, changed ones are replaced after a
    /// drain, the others do not notice. Answers the agents that stay without a worker because another has their home.
    pub fn set_agents(&self, mut specs: Vec<LaunchSpec>) -> Vec<homes::Error> {
        let mut agents = self.shared.agents.lock().unwrap_or_else(PoisonError::into_inner);
        // Who has a home already keeps it against a newcomer.
        specs.sort_by_key(|spec| {
            let has = |one: &Supervised| one.wanted.borrow().as_ref().is_some_and(|current| current.home == spec.home);
            !agents.get(&spec.agent).is_some_and(has)
        });
        let refused = homes::shared(specs.iter().map(|spec| (&spec.agent, spec.home.as_path())));
        let is_refused = |agent: &AgentId| {
            refused.iter().any(|error| matches!(error, homes::Error::Shared { second, .. } if second == agent))
        };
        let mut wanted: BTreeMap<AgentId, LaunchSpec> =
            specs.into_iter().filter(|spec| !is_refused(&spec.agent)).map(|spec| (spec.agent.clone(), spec)).collect();
        for (agent, supervised) in agents.iter() {
            let spec = wanted.remove(agent);
            supervised.wanted.send_if_modified(|current| {
                let changed = *current != spec;
                *current = spec;
                changed
            });
        }
        if !self.shared.stop.is_cancelled() {
            for (agent, spec) in wanted {
                let supervised = self.supervise(spec);
                agents.insert(agent, supervised);
            }
        }
        refused
    }

    /// Somebody needs a worker of `agent` now. Without effect while it has one, and on a pause after a crash.
    pub fn demand(&self, agent: &AgentId) {
        self.signal(agent, |signals| signals.demanded.notify_one());
    }

    /// The worker of `agent` has attached: the next idle start need not wait for it.
    pub fn attached(&self, agent: &AgentId) {
        self.signal(agent, |signals| signals.attached.notify_waiters());
    }

    /// Begins to start, one after another, the agents nobody has asked for yet. Call after the ready line.
    pub fn start_idle(&self) {
        self.shared.idle.send_replace(true);
    }

    /// Stops all workers side by side: SIGTERM, `grace`, SIGKILL. Answers when all are reaped.
    pub async fn stop(&self, grace: Duration) {
        *self.shared.stop_grace.lock().unwrap_or_else(PoisonError::into_inner) = grace;
        self.shared.stop.cancel();
        self.shared.supervisors.close();
        self.shared.supervisors.wait().await;
    }

    fn signal(&self, agent: &AgentId, send: impl FnOnce(&Signals)) {
        let agents = self.shared.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(supervised) = agents.get(agent) {
            send(&supervised.signals);
        }
    }

    fn supervise(&self, spec: LaunchSpec) -> Supervised {
        let signals = Arc::new(Signals::default());
        let (wanted, receiver) = watch::channel(Some(spec.clone()));
        let supervisor = Supervisor {
            agent: spec.agent,
            wanted: receiver,
            signals: Arc::clone(&signals),
            shared: Arc::clone(&self.shared),
            failures: 0,
        };
        let counted = self.shared.supervisors.track_future(supervisor.run());
        self.shared.tasks.spawn("worker supervisor", counted);
        Supervised { wanted, signals }
    }
}

/// One agent's supervisor: waits until the agent is wanted, then keeps its process running.
struct Supervisor {
    agent: AgentId,
    wanted: watch::Receiver<Option<LaunchSpec>>,
    signals: Arc<Signals>,
    shared: Arc<Shared>,
    /// Ends in a row without a healthy time between.
    failures: u32,
}

/// Why a running worker is no longer waited for.
enum Cause {
    /// By itself; `well` with exit code 0, as one that was drained does.
    Ended {
        well: bool,
    },
    Replaced,
    Removed,
    Stopping,
}

impl Supervisor {
    async fn run(mut self) {
        let stop = self.shared.stop.clone();
        while let Some(spec) = self.next_spec(&stop).await {
            if !self.called_for(&spec, &stop).await {
                continue;
            }
            self.keep_running(&stop).await;
        }
    }

    /// The agent as it should be, waiting while it is removed; `None` when all stops.
    async fn next_spec(&mut self, stop: &CancellationToken) -> Option<LaunchSpec> {
        let wanted = async { self.wanted.wait_for(Option::is_some).await.ok().and_then(|spec| spec.clone()) };
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            spec = wanted => spec,
        }
    }

    /// Waits for the first reason to have a process. `false`: the agent changed or all stops, look again.
    async fn called_for(&mut self, spec: &LaunchSpec, stop: &CancellationToken) -> bool {
        if spec.agent.is_main() {
            return true;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = self.signals.demanded.notified() => true,
            _ = self.wanted.changed() => false,
            () = idle_start(&self.shared, &self.signals) => true,
        }
    }

    /// Starts the process again and again until the agent is removed or all stops.
    async fn keep_running(&mut self, stop: &CancellationToken) {
        loop {
            let Some(spec) = self.wanted.borrow_and_update().clone() else { return };
            let began = Instant::now();
            let minted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                minted = (self.shared.config.mint)(self.agent.clone()) => minted,
            };
            // Not cut short by the stop: a process that was started is watched over to its end.
            let started = match minted {
                Ok((start, token)) => self.start(&spec, token).await.map(|child| (start, child)),
                Err(error) => Err(error),
            };
            let cause = match started {
                Ok((start, child)) => self.watch_over(start, child, stop).await,
                Err(error) => {
                    let error: &(dyn std::error::Error + 'static) = error.as_ref();
                    tracing::error!(agent = %self.agent, error, "cannot start the worker, trying again");
                    Cause::Ended { well: false }
                }
            };
            match cause {
                Cause::Stopping | Cause::Removed => return,
                Cause::Replaced => self.failures = 0,
                Cause::Ended { well } => {
                    // One that ended well after it was of use was asked to, and is no failure.
                    let served = well && began.elapsed() >= self.shared.config.timing.served_after;
                    if served || began.elapsed() >= self.shared.config.timing.healthy_after {
                        self.failures = 0;
                    }
                    let pause = backoff(&self.shared.config.timing, self.failures);
                    self.failures = self.failures.saturating_add(1);
                    tracing::info!(agent = %self.agent, ?pause, failures = self.failures, "restarting the worker");
                    if !self.pause(pause, stop).await {
                        return;
                    }
                }
            }
        }
    }

    async fn start(&self, spec: &LaunchSpec, token: SecretString) -> Result<Child, MintError> {
        let child = self.shared.spawner.spawn(command(&self.shared.config, &spec.home, token)).await?;
        tracing::info!(agent = %self.agent, pid = child.pid(), home = %spec.home.display(), "worker started");
        Ok(child)
    }

    /// Copies the worker's output and waits for its end, or ends it; it is reaped when this answers.
    async fn watch_over(&mut self, start: Uuid, mut child: Child, stop: &CancellationToken) -> Cause {
        let pid = child.pid();
        match child.take_output() {
            Ok(Some(pipe)) => {
                self.shared.tasks.spawn("worker output", output::copy(self.agent.clone(), pipe));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(agent = %self.agent, %error, "cannot read the worker's output"),
        }
        let cause = tokio::select! {
            biased;
            () = stop.cancelled() => Cause::Stopping,
            _ = child.wait() => Cause::Ended { well: false },
            changed = self.wanted.changed() => match changed {
                Err(_) => Cause::Stopping,
                Ok(()) if self.wanted.borrow().is_some() => Cause::Replaced,
                Ok(()) => Cause::Removed,
            },
        };
        let status = match cause {
            Cause::Ended { .. } => child.wait().await,
            Cause::Stopping => {
                let grace = *self.shared.stop_grace.lock().unwrap_or_else(PoisonError::into_inner);
                child.stop(&[(Signal::SIGTERM, grace)]).await
            }
            Cause::Replaced | Cause::Removed => self.drain(&mut child, stop).await,
        };
        tracing::info!(agent = %self.agent, pid, %status, "worker ended");
        let ended = matches!(cause, Cause::Ended { .. });
        (self.shared.config.on_exit)(Exit { start, asked: !ended });
        if ended { Cause::Ended { well: status.success() } } else { cause }
    }

    /// A long drain is cut short when all stops.
    async fn drain(&self, child: &mut Child, stop: &CancellationToken) -> std::process::ExitStatus {
        child.signal(Signal::SIGTERM);
        tokio::select! {
            biased;
            status = child.wait() => status,
            () = tokio::time::sleep(self.shared.config.timing.drain) => child.stop(&[]).await,
            () = stop.cancelled() => {
                let grace = *self.shared.stop_grace.lock().unwrap_or_else(PoisonError::into_inner);
                child.stop(&[(Signal::SIGTERM, grace)]).await
            }
        }
    }

    /// Waits out a pause; a changed agent ends it early. `false` when all stops.
    async fn pause(&mut self, pause: Duration, stop: &CancellationToken) -> bool {
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            changed = self.wanted.changed() => changed.is_ok(),
            () = tokio::time::sleep(pause) => true,
        }
    }
}

/// Answers when it is this agent's turn to be started without demand.
async fn idle_start(shared: &Arc<Shared>, signals: &Arc<Signals>) {
    let mut open = shared.idle.subscribe();
    if open.wait_for(|open| *open).await.is_err() {
        return std::future::pending().await;
    }
    let Ok(turn) = shared.idle_turn.acquire().await else { return std::future::pending().await };
    while !(shared.config.has_room)() {
        tokio::time::sleep(shared.config.timing.idle_spacing).await;
    }
    turn.forget();
    // The turn passes on when this worker has attached, or after a while.
    let (shared, signals) = (Arc::clone(shared), Arc::clone(signals));
    let tasks = shared.tasks.clone();
    tasks.spawn("idle start", async move {
        let stop = shared.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = signals.attached.notified() => {}
            () = tokio::time::sleep(shared.config.timing.idle_spacing) => {}
        }
        shared.idle_turn.add_permits(1);
    });
}

fn command(config: &Config, home: &Path, token: SecretString) -> ChildSpec {
    let server = format!("https://{}", config.worker_addr);
    let parent = std::process::id().to_string();
    let args: [OsString; 8] = [
        "--server".into(),
        server.into(),
        "--home".into(),
        home.into(),
        "--parent-pid".into(),
        parent.into(),
        // What `output` reads.
        "--log-format".into(),
        "json".into(),
    ];
    ChildSpec {
        program: config.worker_binary.clone(),
        args: args.into(),
        environment: config.environment.clone(),
        user: None,
        death_signal: Signal::SIGKILL,
        output: Output::Pipe,
        secret: Some(("--join-token-fd", token)),
    }
}

/// Exponential, with up to a quarter taken off so that agents that fail together do not return together.
fn backoff(timing: &Timing, failures: u32) -> Duration {
    let whole = timing.backoff_first.saturating_mul(1 << failures.min(16)).min(timing.backoff_most);
    whole.mul_f64(rand::rng().random_range(0.75..=1.0))
}
