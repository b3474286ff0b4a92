//! Deliveries: what was committed for a chat is sent there, in the order of its lane, until it arrived or is given up.
//!
//! Called by dispatch (a delivery committed as `attempting` by the completion, a turn whose text may be shown) and by the poll
//! (due ones). It owns the attempts in flight. Always true: `attempting` is committed before the platform is called; one
//! delivery of a lane is in flight at a time, because the store hands out one; parts that certainly arrived are committed before
//! the next is sent, so a retry goes on where it stopped; a copy that may be a duplicate is marked; a delivery that was handed
//! to this replica in an answer that got lost is found as soon as the store answers again (`upkeep`); what is known here of
//! dead chats only decides whether the store is asked; nothing is sent on the strength of a lease other than the one it was
//! taken over in (`tenure`). It knows adapters, not platforms.

mod adapters;
mod attempt;
mod files;
mod preview;
mod tenure;
mod upkeep;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hermes_platforms::{Adapter, ChatRef};
use tokio::sync::{Notify, RwLock, RwLockReadGuard, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use adapters::Adapters;
pub(crate) use files::by_id;

use preview::Previews;
use tenure::{Tenure, Tenures};

use crate::store::{self, BATCH_ROWS, DeliveryOutcome, DueDelivery, LaneKey, Store};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// Most attempts in flight on this replica; further deliveries wait in the store.
const MAX_IN_FLIGHT: usize = 1024;
/// Files that are being sent, at most: each is whole in memory.
const FILES_AT_ONCE: usize = 8;
/// Lanes remembered; beyond that the memory starts afresh.
const MAX_LANES: usize = 50_000;
/// How long it is taken as noted that a chat writes to an agent.
const HEARD: Duration = Duration::from_secs(3600);

/// What the first poll, which came before the outbox began, certainly leaves of this replica's lease.
const FIRST_LEASE: Duration = Duration::from_secs(5);

struct Recorded {
    outcome: DeliveryOutcome,
    held: oneshot::Sender<bool>,
}

/// Lane, place and attempt: never the same twice.
type Attempt = (i64, i64, i32);

fn attempt_of(delivery: &DueDelivery) -> Attempt {
    (delivery.lane, delivery.pos, delivery.attempt)
}

struct Inner {
    store: Store,
    replica: i64,
    adapters: Adapters,
    in_flight: AtomicUsize,
    tenures: Tenures,
    /// Nothing new is begun: this replica stops.
    closing: AtomicBool,
    attempts: Mutex<HashSet<Attempt>>,
    lanes: Mutex<Lanes>,
    previews: Previews,
    outcomes: mpsc::Sender<Recorded>,
    /// Files in memory at the same time.
    files: Semaphore,
    due: Notify,
    /// Held for reading from before a call that hands deliveries over until those are in `attempts`; held for writing, nothing is on
    /// its way, so what the store calls ours and `attempts` does not know was lost with an answer.
    handing_over: RwLock<()>,
    /// Some call that may have handed over got no answer.
    doubted: AtomicBool,
    doubt: Notify,
    tasks: Tasks,
    metrics: Metrics,
}

#[derive(Default)]
struct Lanes {
    ids: HashMap<LaneKey, i64>,
    keys: HashMap<i64, Arc<LaneKey>>,
    typed: HashMap<i64, Instant>,
    /// Those whose chat is gone, as far as is known here.
    dead: HashSet<i64>,
    /// When it was noted last that a chat wrote to an agent.
    heard: HashMap<(i32, i64), Instant>,
}

/// Why a lane leads nowhere right now.
enum Astray {
    /// Its account is not there.
    NoAccount(Arc<LaneKey>),
    /// The store could not be asked.
    Unavailable(String),
    /// It is not in the store.
    NoLane(String),
}

/// Handle to the outbox; cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    inner: Arc<Inner>,
}

impl Outbox {
    /// Makes the outbox and spawns its loops.
    pub fn start(store: Store, adapters: Adapters, replica: i64, metrics: Metrics, tasks: &Tasks) -> Self {
        let (outcomes, recorded) = mpsc::channel(2048);
        let inner = Inner {
            store,
            replica,
            adapters,
            in_flight: AtomicUsize::new(0),
            tenures: Tenures::new(Instant::now() + FIRST_LEASE),
            closing: AtomicBool::new(false),
            attempts: Mutex::default(),
            lanes: Mutex::default(),
            previews: Previews::default(),
            outcomes,
            files: Semaphore::new(FILES_AT_ONCE),
            due: Notify::new(),
            handing_over: RwLock::new(()),
            doubted: AtomicBool::new(false),
            doubt: Notify::new(),
            tasks: tasks.clone(),
            metrics,
        };
        let outbox = Self { inner: Arc::new(inner) };
        tasks.spawn("outbox recorder", run_recorder(outbox.clone(), recorded, tasks.stopping()));
        tasks.spawn("outbox", run_due(outbox.clone(), tasks.stopping()));
        tasks.spawn("outbox upkeep", upkeep::run(outbox.clone(), tasks.stopping()));
        outbox
    }

    /// The lease of this replica was renewed, as is known from now on: what it took over since it last had none is its own `until` then.
    pub fn held(&self, until: Instant) {
        self.inner.tenures.renewed(Instant::now(), until);
    }

    /// Whether another delivery may be committed as `attempting` in this replica's name.
    pub fn has_room(&self) -> bool {
        !self.is_closing() && self.inner.in_flight.load(Ordering::Relaxed) < MAX_IN_FLIGHT
    }

    fn is_closing(&self) -> bool {
        self.inner.closing.load(Ordering::Relaxed)
    }

    /// Begins nothing new, but for what a lane's finished delivery hands over, and waits at most `patience` until nothing is
    /// being sent: a delivery that is cut off is sent again, marked as a possible duplicate. Answers whether all ended.
    pub async fn finish(&self, patience: Duration) -> bool {
        self.inner.closing.store(true, Ordering::Relaxed);
        let ended = async {
            while self.inner.in_flight.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(patience, ended).await.is_ok()
    }

    /// Hold it around a call of the store that may commit deliveries as `attempting` in this replica's name, until they were given
    /// to [`HandingOver::send`] or [`Outbox::doubt`] was called.
    pub async fn handing_over(&self) -> HandingOver<'_> {
        let excluding = self.inner.handing_over.read().await;
        HandingOver { outbox: self, tenure: self.inner.tenures.current(), _excluding: excluding }
    }

    /// A call that may have handed deliveries over got no answer: the store is asked what is ours.
    pub fn doubt(&self) {
        self.inner.doubted.store(true, Ordering::Release);
        self.inner.doubt.notify_one();
    }

    /// Sends a delivery that became `attempting` in this replica's name in this tenure.
    fn begin(&self, delivery: DueDelivery, tenure: &Tenure) {
        let Some(sending) = Sending::begin(self, &delivery) else { return };
        let (outbox, tenure) = (self.clone(), tenure.clone());
        self.inner.tasks.spawn("delivery", async move {
            let ended = attempt::run(&outbox, delivery, &tenure).await;
            drop(sending);
            if ended == attempt::End::Left {
                outbox.doubt();
            }
        });
    }

    fn attempts(&self) -> MutexGuard<'_, HashSet<Attempt>> {
        self.inner.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Look for due deliveries now.
    pub fn nudge(&self) {
        self.inner.due.notify_one();
    }

    /// The platform accounts that deliveries go through.
    pub fn adapters(&self) -> &Adapters {
        &self.inner.adapters
    }

    /// The lane of a chat, made when it is new.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`].
    pub async fn lane(&self, key: &LaneKey) -> store::Result<i64> {
        let known = self.lanes(|lanes| lanes.ids.get(key).copied());
        if let Some(lane) = known {
            return Ok(lane);
        }
        let lane = self.inner.store.lane_ensure(key).await?;
        self.remember(lane, Arc::new(key.clone()));
        Ok(lane)
    }

    /// [`Outbox::lane`] of a chat that writes to an agent, which may write back from then on.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`].
    pub async fn lane_of_sender(&self, key: &LaneKey, agent_no: i32) -> store::Result<i64> {
        let lane = self.lane(key).await?;
        let noted = self.lanes(|lanes| lanes.heard.get(&(agent_no, lane)).is_some_and(|at| at.elapsed() < HEARD));
        if !noted {
            self.inner.store.chat_heard(agent_no, lane).await?;
            self.lanes(|lanes| {
                if lanes.heard.len() >= MAX_LANES {
                    lanes.heard.clear();
                }
                lanes.heard.insert((agent_no, lane), Instant::now());
            });
        }
        Ok(lane)
    }

    /// Whether the chat of a lane was found dead, as far as is known here. The store knows for certain.
    pub fn is_suspected(&self, lane: i64) -> bool {
        self.lanes(|lanes| lanes.dead.contains(&lane))
    }

    fn suspect(&self, lane: i64, dead: bool) {
        self.lanes(|lanes| if dead { lanes.dead.insert(lane) } else { lanes.dead.remove(&lane) });
    }

    /// Shows in the chats of these lanes that an answer is being written; in each at most every four seconds.
    pub fn typing(&self, lanes: Vec<i64>) {
        let now = Instant::now();
        let due: Vec<i64> = self.lanes(|known| {
            known.typed.retain(|_, at| now.duration_since(*at) < Duration::from_secs(4));
            let mut fresh = lanes;
            fresh.retain(|lane| match known.typed.entry(*lane) {
                Entry::Vacant(vacant) => {
                    vacant.insert(now);
                    true
                }
                Entry::Occupied(_) => false,
            });
            fresh
        });
        for lane in due {
            let outbox = self.clone();
            self.inner.tasks.spawn("typing", async move {
                if let Ok((adapter, chat)) = outbox.route(lane).await {
                    // A signal that fails is no reason to stop.
                    let _ = AssertUnwindSafe(async { adapter.typing(chat).await }).catch_unwind().await;
                }
            });
        }
    }

    fn lanes<T>(&self, look: impl FnOnce(&mut Lanes) -> T) -> T {
        look(&mut self.inner.lanes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn remember(&self, lane: i64, key: Arc<LaneKey>) {
        self.lanes(|lanes| {
            if lanes.ids.len() >= MAX_LANES {
                let dead = std::mem::take(&mut lanes.dead);
                *lanes = Lanes { dead, ..Lanes::default() };
            }
            lanes.ids.insert(key.as_ref().clone(), lane);
            lanes.keys.insert(lane, key);
        });
    }

    /// The account and chat of a lane, or what is missing.
    async fn route(&self, lane: i64) -> Result<(Arc<dyn Adapter>, ChatRef), Astray> {
        let known = self.lanes(|lanes| lanes.keys.get(&lane).cloned());
        let key = match known {
            Some(key) => key,
            None => {
                let key = Arc::new(self.inner.store.lane_get(lane).await.map_err(|error| match error {
                    store::Error::NotFound(what) => Astray::NoLane(what),
                    error => Astray::Unavailable(error.to_string()),
                })?);
                self.remember(lane, key.clone());
                key
            }
        };
        let chat = ChatRef {
            chat_id: key.chat_id.clone(),
            thread_id: (!key.thread_id.is_empty()).then(|| key.thread_id.clone()),
        };
        let adapter = self.inner.adapters.get(&key.platform, &key.account);
        adapter.map(|adapter| (adapter, chat)).ok_or(Astray::NoAccount(key))
    }

    /// Commits how an attempt went. False: it is not ours any more.
    async fn record(&self, outcome: DeliveryOutcome) -> bool {
        let (held, answer) = oneshot::channel();
        if self.inner.outcomes.send(Recorded { outcome, held }).await.is_err() {
            return false;
        }
        answer.await.unwrap_or(false)
    }
}

/// A call of the store is on its way that may hand deliveries over.
pub struct HandingOver<'a> {
    outbox: &'a Outbox,
    /// As it was before the call.
    tenure: Tenure,
    _excluding: RwLockReadGuard<'a, ()>,
}

impl HandingOver<'_> {
    /// Sends a delivery that the call made `attempting` in this replica's name.
    pub fn send(&self, delivery: DueDelivery) {
        self.outbox.begin(delivery, &self.tenure);
    }
}

/// Stores outcomes in batches and starts the next deliveries of their lanes.
async fn run_recorder(outbox: Outbox, mut recorded: mpsc::Receiver<Recorded>, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(BATCH_ROWS);
    loop {
        batch.clear();
        tokio::select! {
            biased;
            taken = recorded.recv_many(&mut batch, BATCH_ROWS) => if taken == 0 { return },
            () = nothing_in_flight(&outbox, &stop) => return,
        }
        let rows: Vec<DeliveryOutcome> = batch.iter().map(|recorded| recorded.outcome.clone()).collect();
        loop {
            let handing_over = outbox.handing_over().await;
            let stored = outbox.inner.store.deliver(outbox.inner.replica, &rows).await;
            match stored {
                Ok((held, next)) => {
                    for (recorded, held) in batch.drain(..).zip(held) {
                        let _ = recorded.held.send(held);
                    }
                    for delivery in next {
                        handing_over.send(delivery);
                    }
                    break;
                }
                Err(error) => {
                    // What it may have handed over is looked for; a repeat says nothing of it.
                    drop(handing_over);
                    outbox.doubt();
                    tracing::warn!(%error, "could not record how deliveries went");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_millis(200)) => {}
                    }
                }
            }
        }
    }
}

/// After the stop: what is being sent right now ends first. Without its outcome it would be sent again, marked as a duplicate.
async fn nothing_in_flight(outbox: &Outbox, stop: &CancellationToken) {
    stop.cancelled().await;
    while outbox.inner.in_flight.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Takes up due retries, notices and deliveries whose sender died.
async fn run_due(outbox: Outbox, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = outbox.inner.due.notified() => {}
        }
        let in_flight = outbox.inner.in_flight.load(Ordering::Relaxed);
        let room = MAX_IN_FLIGHT.saturating_sub(in_flight).min(BATCH_ROWS);
        if room == 0 || outbox.is_closing() {
            continue;
        }
        let handing_over = outbox.handing_over().await;
        match outbox.inner.store.outbox_claim(outbox.inner.replica, i32::try_from(room).unwrap_or(1)).await {
            Ok(due) => {
                if due.len() >= room {
                    outbox.nudge();
                }
                for delivery in due {
                    handing_over.send(delivery);
                }
            }
            Err(error) => {
                outbox.doubt();
                tracing::warn!(%error, "could not look for due deliveries");
            }
        }
    }
}

/// An attempt in this replica's hands, until it ends in any way.
struct Sending {
    outbox: Outbox,
    attempt: Attempt,
}

impl Sending {
    /// Nothing when this very attempt is in hand already.
    fn begin(outbox: &Outbox, delivery: &DueDelivery) -> Option<Self> {
        let attempt = attempt_of(delivery);
        if !outbox.attempts().insert(attempt) {
            return None;
        }
        outbox.inner.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Self { outbox: outbox.clone(), attempt })
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.outbox.attempts().remove(&self.attempt);
        self.outbox.inner.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
