//! From a leased turn to its stored end: which worker runs it, what it is told, and the commit of what it answers.
//!
//! Called by `intake` (turns leased in the accepting commit), by the worker links in `grpc` (registration, reports) and by
//! the composition root, which runs the loops. It owns the fleet (connected state) and the live text of running turns.
//! Always true: a replica leases turns only to workers connected to it; a report is stored only under its fence, whatever
//! this process believes; losing this process loses nothing that the store does not give back. It never decides which agent
//! answers and never talks to a platform.

mod approvals;
mod completer;
mod curation;
mod deadlines;
mod fleet;
mod journal;
mod live;
mod poller;
mod pressure;
mod releaser;
mod signals;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hermes_core::AgentId;
use hermes_core::approvals::Approvals;
use hermes_core::mcp::McpServers;
use hermes_core::runtime::Runtime;
use hermes_core::turn::Usage;
use hermes_home::sandbox::Sandbox;
use jiff::Timestamp;
use tokio::sync::{Notify, RwLock, RwLockReadGuard, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use approvals::{DangerousCall, Permission};
pub use curation::Curated;
pub use fleet::{CancelKind, Connected, Fleet, Overrun, Replies, Running, ToWorker, Told, WorkerView};
pub use journal::{ReplyAnswer, StepAnswer};
pub use live::{Live, Question, TurnEvent};
pub use pressure::{COME_BACK, OnTheWay, Pressed, Pressure};
pub use signals::STOPPED;

use crate::attachments::Had;
use crate::cron::Alarm;
use crate::doorbell::Word;
use crate::outbox::Outbox;
use crate::registry::{AgentEntry, Registry, Snapshot};
use crate::store::{self, DatabaseClock, Ended, Leased, Store, TurnId, WorkerRegistration};
use crate::tasks::Tasks;
use crate::telemetry::{self, Metrics, TRACE};

/// Time to live of a worker's lease; renewed by heartbeats.
pub const LEASE: Duration = Duration::from_secs(15);
/// How often a worker sends a heartbeat.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long what runs on a worker that is parted with may go on, where nobody said otherwise.
pub const DRAIN_GRACE: Duration = Duration::from_secs(30);
/// How long a waiting session is left to the worker it was last on.
const STICKY: Duration = Duration::from_millis(200);
/// The crash of one turn at which it is given up.
const MAX_CRASHES: i32 = 3;
/// What a chat is told of a turn that was given up.
const DEAD_NOTICE: &str =
    "I could not answer this message: it stopped my worker three times, so I gave it up. You can send the next one.";
/// What a chat is told of a message that waited when its agent was removed.
pub const REMOVED_NOTICE: &str =
    "This agent was removed before it came to your message, so there will be no answer to it.";

/// Everything a worker needs to run one turn.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The turn.
    pub turn: TurnId,
    /// Its fence.
    pub epoch: i64,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Session key.
    pub session_key: String,
    /// JSON of `TurnInput`.
    pub input: Vec<u8>,
    /// Trace context of the intake.
    pub traceparent: String,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// Profile revision pinned for it.
    pub revision: i64,
    /// Its model.
    pub model: String,
    /// Toolsets that replace the default ones.
    pub enabled_toolsets: Option<Vec<String>>,
    /// Toolsets taken away.
    pub disabled_toolsets: Vec<String>,
    /// The boundary around its tools.
    pub sandbox: Sandbox,
    /// When people are asked before what it does.
    pub approvals: Approvals,
    /// Its MCP servers, those that are on.
    pub mcp_servers: McpServers,
    /// What answers it; nothing: the worker's own loop.
    pub runtime: Option<Runtime>,
    /// Most history for the model, bytes.
    pub history_bytes: u64,
    /// How often turns were left out of the session's history.
    pub history_rewinds: u32,
    /// Newest home version of the agent.
    pub home_version: i64,
    /// Rows that the turn's journal holds already: with any, the worker goes on after them.
    pub journal_entries: u32,
}

/// A worker's report that its turn ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// The turn.
    pub turn: TurnId,
    /// The fence it ran under.
    pub epoch: i64,
    /// How.
    pub ended: Ended,
    /// Text for the chat.
    pub reply: String,
    /// What it used.
    pub usage: Usage,
}

/// What a worker says of itself when it registers.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its agent, from its certificate.
    pub agent: AgentId,
    /// The uuid of its certificate.
    pub identity: Uuid,
    /// The host's pid, as it says.
    pub pid: i64,
    /// Its home, as it says.
    pub home: String,
    /// Its build, as it says.
    pub build: String,
    /// Concurrent sessions.
    pub slots: u32,
    /// The worker protocol that it speaks.
    pub protocol: u32,
    /// Whether it does what operators ask of the curator of its skills.
    pub curates: bool,
}

/// A registered worker's end of the link.
#[derive(Debug)]
pub struct Attached {
    /// Registration number.
    pub worker_id: i64,
    /// What to send it.
    pub incoming: mpsc::Receiver<ToWorker>,
    /// Fires when its stream must end.
    pub hang_up: CancellationToken,
}

type Signal = Box<dyn Fn(&AgentId) + Send + Sync>;

/// What dispatch tells whoever starts workers.
struct LauncherEnd {
    demand: Signal,
    attached: Signal,
}

struct Inner {
    store: Store,
    registry: Registry,
    outbox: Outbox,
    clock: Arc<DatabaseClock>,
    replica: i64,
    fleet: Fleet,
    live: Live,
    completions: mpsc::Sender<completer::Pending>,
    steps: mpsc::Sender<journal::Pending>,
    releases: mpsc::Sender<releaser::Pending>,
    claim: Notify,
    poll: Notify,
    /// Something is asked of running turns.
    signals: Notify,
    /// Somebody answered whether a call may be made.
    approvals: Notify,
    pressure: Pressure,
    curations: curation::Curations,
    alarm: Arc<Alarm>,
    /// A worker's stream has ended.
    detached: Notify,
    launcher: OnceLock<LauncherEnd>,
    metrics: Metrics,
    /// Held for reading from before a call that leases until its leases are in the fleet; held for writing, nothing is on its
    /// way, so what the store calls leased and the fleet does not know was lost with an answer.
    leasing: RwLock<()>,
}

/// Handle to dispatch; cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("replica", &self.inner.replica).finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// Makes dispatch and spawns its loops: completer, journal, releaser, deadlines, claimer, poller.
    pub fn start(
        store: Store,
        registry: Registry,
        outbox: Outbox,
        clock: Arc<DatabaseClock>,
        replica: i64,
        metrics: Metrics,
        tasks: &Tasks,
    ) -> Self {
        let (completions, pending) = mpsc::channel(2048);
        let (steps, reported) = mpsc::channel(journal::QUEUE);
        let (releases, released) = mpsc::channel(2048);
        let inner = Inner {
            store,
            registry,
            outbox,
            clock,
            replica,
            fleet: Fleet::default(),
            live: Live::default(),
            completions,
            steps,
            releases,
            claim: Notify::new(),
            poll: Notify::new(),
            signals: Notify::new(),
            approvals: Notify::new(),
            pressure: Pressure::default(),
            curations: curation::Curations::default(),
            alarm: Arc::default(),
            detached: Notify::new(),
            launcher: OnceLock::new(),
            metrics,
            leasing: RwLock::new(()),
        };
        let dispatcher = Self { inner: Arc::new(inner) };
        let stop = tasks.stopping();
        tasks.spawn("completer", completer::run(dispatcher.clone(), pending, stop.clone()));
        tasks.spawn("journal", journal::run(dispatcher.clone(), reported, stop.clone()));
        tasks.spawn("releaser", releaser::run(dispatcher.clone(), released, stop.clone()));
        tasks.spawn("deadlines", deadlines::run(dispatcher.clone(), stop.clone()));
        tasks.spawn("claimer", poller::run_claimer(dispatcher.clone(), stop.clone()));
        tasks.spawn("poller", poller::run_poller(dispatcher.clone(), stop.clone()));
        tasks.spawn("signals", signals::run(dispatcher.clone(), stop.clone()));
        tasks.spawn("typing", poller::run_typing(dispatcher.clone(), stop));
        dispatcher
    }

    /// Says whom to ask for a worker when a message waits for an agent that has none here, and whom to tell that one came.
    pub fn on_demand(
        &self,
        demand: impl Fn(&AgentId) + Send + Sync + 'static,
        attached: impl Fn(&AgentId) + Send + Sync + 'static,
    ) {
        let _ = self.inner.launcher.set(LauncherEnd { demand: Box::new(demand), attached: Box::new(attached) });
    }

    /// The number of this replica.
    pub fn replica(&self) -> i64 {
        self.inner.replica
    }

    /// The workers connected here.
    pub fn fleet(&self) -> &Fleet {
        &self.inner.fleet
    }

    /// The text of running turns.
    pub fn live(&self) -> &Live {
        &self.inner.live
    }

    /// How much of each agent's work waits.
    pub fn pressure(&self) -> &Pressure {
        &self.inner.pressure
    }

    /// The store this dispatch writes to.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Hands a leased turn to its worker.
    pub fn begin(&self, lease: Leased) {
        let (worker, slot, turn) = (lease.worker, lease.slot, lease.turn);
        let snapshot = self.inner.registry.current();
        let Some(agent) = self.inner.fleet.agent_of(worker).and_then(|agent_no| snapshot.by_no(agent_no)) else {
            // The worker left between the lease and now: its loss gives the turn back, or it registers anew and has it again.
            self.inner.fleet.suspect();
            tracing::info!(%turn, worker, "the worker left before its turn was handed over");
            return;
        };
        let span = tracing::info_span!(target: TRACE, "claim", %turn, agent = %agent.id, worker);
        let span = telemetry::child_of(lease.next.traceparent.as_deref().unwrap_or_default(), span);
        let _entered = span.enter();
        let lane = lease.next.lane;
        let waited = self.inner.clock.now().duration_since(lease.next.accepted_at);
        self.inner.metrics.turn_started(Duration::try_from(waited).unwrap_or_default());
        let (running, assignment) = hand_over(&snapshot, agent, lease);
        self.inner.live.begin(turn);
        self.show(turn, lane);
        if !self.inner.fleet.assign(worker, slot, running, Box::new(assignment)) {
            self.inner.live.forget(turn);
            self.inner.fleet.suspect();
            tracing::info!(%turn, worker, "the worker did not take its turn");
        }
    }

    /// Its chat may see the turn's text while it grows.
    fn show(&self, turn: TurnId, lane: Option<i64>) {
        if let Some(lane) = lane {
            self.inner.outbox.show(turn, lane, || self.inner.live.texts(turn));
        }
    }

    /// Hold it around a call of the store that leases, until the answer's leases were given to [`Dispatcher::begin`] or their
    /// slots to [`Fleet::doubt`].
    pub async fn leasing(&self) -> RwLockReadGuard<'_, ()> {
        self.inner.leasing.read().await
    }

    /// A session of the agent waits: claim it when a slot is free, ask for a worker when there is none.
    pub fn waits(&self, agent_no: i32) {
        self.inner.fleet.set_waiting(agent_no);
        self.inner.claim.notify_one();
        if !self.inner.fleet.has_worker(agent_no)
            && let Some(launcher) = self.inner.launcher.get()
            && let Some(agent) = self.inner.registry.current().by_no(agent_no)
        {
            (launcher.demand)(&agent.id);
        }
    }

    /// Registers a worker.
    ///
    /// # Errors
    /// [`store::Error::NotFound`] when its agent is not registered (any more), [`store::Error::Unavailable`].
    pub async fn attach(&self, arrival: Arrival) -> store::Result<Attached> {
        let snapshot = self.inner.registry.current();
        let Some(agent) = snapshot.agent(&arrival.agent) else {
            return Err(store::Error::NotFound(format!("agent {} is not registered", arrival.agent)));
        };
        let registration = WorkerRegistration {
            agent_no: agent.no,
            identity: arrival.identity.to_string(),
            pid: arrival.pid,
            home: arrival.home.clone(),
            slots: i32::try_from(arrival.slots).unwrap_or(1),
            protocol: i32::try_from(arrival.protocol).unwrap_or(i32::MAX),
            build: arrival.build.clone(),
        };
        let worker_id = self.inner.store.worker_register(self.inner.replica, &registration, LEASE).await?;
        // Room for an assignment, an acknowledgement, an offer and two cancellations per slot: a worker that reads never fills it.
        let (outgoing, incoming) = mpsc::channel(arrival.slots as usize * 6 + 64);
        let hang_up = CancellationToken::new();
        // What the same process held under an older registration goes on; it is reminded of it below.
        let held = self.inner.store.adopt(worker_id, &registration.identity).await?;
        let kept: Vec<_> = held
            .into_iter()
            .map(|lease| {
                let (slot, turn) = (lease.slot, lease.turn);
                let (mut running, assignment) = hand_over(&snapshot, agent, lease);
                // Where it ran before, a model's reply may be on its way into the journal under the same fence.
                running.replies = Replies::new(true);
                (slot, turn, running, assignment)
            })
            .collect();
        let about = Connected {
            worker_id,
            agent_no: agent.no,
            agent: arrival.agent.clone(),
            identity: arrival.identity,
            pid: arrival.pid,
            home: arrival.home,
            build: arrival.build,
            protocol: arrival.protocol,
            curates: arrival.curates,
            connected_at: self.inner.clock.now(),
            outgoing,
            hang_up: hang_up.clone(),
        };
        let running = kept.iter().map(|(slot, _, running, _)| (*slot, running.clone())).collect();
        self.inner.fleet.join(about, arrival.slots, running);
        for (_, turn, running, assignment) in kept {
            self.inner.live.begin(turn);
            self.show(turn, running.lane);
            self.inner.fleet.remind(worker_id, Box::new(assignment));
        }
        tracing::info!(worker = worker_id, agent = %arrival.agent, pid = arrival.pid, "worker registered");
        if let Some(launcher) = self.inner.launcher.get() {
            (launcher.attached)(&arrival.agent);
        }
        // What waited for a worker is found by the claim.
        self.waits(agent.no);
        Ok(Attached { worker_id, incoming, hang_up })
    }

    /// A worker's stream has ended. Its lease stays until it lapses, unless it left in order or its process is known to be gone.
    /// One that left in order crashed nothing: it has handed back what it still had, or means to.
    pub async fn detach(&self, worker: i64, left_in_order: bool) {
        let held = self.inner.fleet.leave(worker);
        self.inner.curations.left(worker);
        self.inner.detached.notify_waiters();
        tracing::info!(worker, turns = held.len(), left_in_order, "worker disconnected");
        for running in &held {
            // The process may have registered anew and brought the turn along.
            if !self.inner.fleet.runs(running.turn, running.epoch) {
                self.inner.live.forget(running.turn);
            }
        }
        if left_in_order {
            self.lose(&[worker], true).await;
        }
    }

    /// These workers' processes are gone: their turns go back at once, as crashed unless they left in order.
    pub async fn lose(&self, workers: &[i64], in_order: bool) {
        if let Err(error) = self.inner.store.workers_lose(workers, in_order).await {
            tracing::warn!(%error, "could not mark workers as lost; their leases will lapse");
        }
        self.inner.poll.notify_one();
    }

    /// The launcher reaped the worker process whose certificate is `identity`; `asked`: it ended it on purpose.
    pub async fn process_exited(&self, identity: Uuid, asked: bool) {
        match self.inner.store.workers_of_identity(&identity.to_string()).await {
            Ok(known) if known.is_empty() => {}
            Ok(known) => self.lose(&known, asked).await,
            Err(error) => tracing::warn!(%error, "could not look up the workers of an exited process"),
        }
    }

    /// Ends the streams of all workers, for the stop of this replica: they go on with what they run, register with another
    /// replica and bring it along. Answers when what they reported until now is stored, at the latest after `patience`.
    pub async fn part(&self, patience: Duration) {
        let parted = async {
            loop {
                let detached = self.inner.detached.notified();
                tokio::pin!(detached);
                detached.as_mut().enable();
                if self.inner.fleet.hang_up_all() {
                    return;
                }
                detached.await;
            }
        };
        if tokio::time::timeout(patience, parted).await.is_err() {
            tracing::warn!("some workers' reports could not be stored in time; they will send them again");
        }
    }

    /// The workers that `which` picks finish what they run and leave; after `grace` they give back what they still run.
    pub async fn drain(&self, which: impl Fn(&Connected) -> bool, grace: Duration) {
        let drained = self.inner.fleet.drain(which, grace);
        if !drained.is_empty()
            && let Err(error) = self.inner.store.workers_drain(&drained).await
        {
            tracing::warn!(%error, "could not mark workers as draining");
        }
    }

    /// Drains the workers connected here whose agents are not registered any more, whoever removed them and wherever.
    pub async fn drain_removed(&self) {
        let snapshot = self.inner.registry.current();
        self.drain(|worker| snapshot.agent(&worker.agent).is_none(), DRAIN_GRACE).await;
    }

    /// Stores a report. True when it is stored now or was before; false when it is fenced.
    pub async fn complete(&self, worker: i64, agent: &AgentId, report: Report) -> bool {
        completer::complete(self, worker, agent, report).await
    }

    /// A worker gives a turn back: it waits again at once, without a crash. False when it is not that worker's (any more).
    pub async fn release(&self, worker: i64, turn: TurnId, epoch: i64) -> bool {
        releaser::release(self, worker, turn, epoch).await
    }

    /// How long a turn may run.
    pub fn turn_limit(&self) -> Duration {
        Duration::from_secs(self.inner.registry.current().document.limits.turn_seconds)
    }

    /// Look at everything now instead of at the next second.
    pub fn nudge(&self) {
        self.inner.poll.notify_one();
    }

    /// Something waits to be delivered.
    pub fn delivers(&self) {
        self.inner.outbox.nudge();
    }

    /// [`Dispatcher::waits`] for a session that no slot here was free for: other replicas look for one, too.
    pub fn waits_anywhere(&self, agent_no: i32) {
        self.waits(agent_no);
        self.inner.registry.bell().ring(Word::Ready(agent_no));
    }

    /// A turn of the agent was accepted beside intake: whoever has a worker for it may run it.
    pub fn begins(&self, agent_no: i32) {
        self.inner.pressure.waits(agent_no);
        self.waits_anywhere(agent_no);
    }

    /// When scheduled jobs have something to do.
    pub fn alarm(&self) -> Arc<Alarm> {
        Arc::clone(&self.inner.alarm)
    }

    /// Jobs were made, changed or wanted: this replica and the others look when the next one is due.
    pub fn jobs_changed(&self) {
        self.inner.alarm.ended_somewhere();
        self.nudge();
        self.inner.registry.bell().ring(Word::Look);
    }

    /// Another replica rang.
    pub fn rung(&self, words: &[Word]) {
        for word in words {
            match word {
                Word::Ready(agent_no) if self.inner.fleet.has_worker(*agent_no) => self.waits(*agent_no),
                Word::Ready(_) => {}
                Word::Outbox => self.inner.outbox.nudge(),
                Word::Look => {
                    self.inner.approvals.notify_waiters();
                    self.nudge();
                }
            }
        }
    }
}

/// A lease as this replica remembers it and as its worker is told.
fn hand_over(snapshot: &Snapshot, agent: &AgentEntry, lease: Leased) -> (Running, Assignment) {
    let Leased { turn, epoch, crashes, journaled, left, session_key, next, .. } = lease;
    let now = Instant::now();
    let errand = hermes_core::turn::TurnInput::errand(&next.payload);
    let assignment = Assignment {
        turn,
        epoch,
        attempt: u32::try_from(crashes).unwrap_or(0) + 1,
        session_key: session_key.clone(),
        input: next.payload,
        traceparent: next.traceparent.clone().unwrap_or_default(),
        accepted_at: next.accepted_at,
        revision: agent.revision,
        model: next.model.clone().unwrap_or_else(|| snapshot.model_of(&agent.spec).to_owned()),
        enabled_toolsets: agent.spec.enabled_toolsets.clone(),
        disabled_toolsets: agent.spec.disabled_toolsets.clone().unwrap_or_default(),
        sandbox: snapshot.document.sandbox_of(&agent.spec),
        approvals: snapshot.document.approvals_of(&agent.spec).clone(),
        mcp_servers: on(snapshot.document.mcp_servers_of(&agent.spec)),
        runtime: agent.spec.runtime.clone(),
        // A worker of the build before knows nothing of rewinds, but fetches again what it has for a smaller budget.
        history_bytes: snapshot.document.limits.history_bytes.saturating_add(next.rewinds.into()),
        history_rewinds: next.rewinds,
        home_version: agent.home_version(),
        journal_entries: u32::try_from(journaled).unwrap_or(u32::MAX),
    };
    let running = Running {
        turn,
        epoch,
        lane: next.lane,
        session_key,
        revision: agent.revision,
        model: next.model,
        errand,
        traceparent: next.traceparent,
        since: now,
        usage: None,
        replies: Replies::new(journaled > 0),
        accepted: false,
        told: Told::Nothing,
        deadline: now.checked_add(left),
        progressed: now,
        overrun: None,
        had: Had::default(),
    };
    (running, assignment)
}

fn on(servers: &McpServers) -> McpServers {
    servers.iter().filter(|(_, server)| server.enabled).map(|(name, server)| (name.clone(), server.clone())).collect()
}
