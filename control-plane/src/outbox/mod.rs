//! Deliveries: what was committed for a chat is sent there, in the order of its lane, until it arrived or is given up.
//!
//! Called by dispatch (a delivery committed as `attempting` by the completion) and by the poll (due ones). It owns the
//! attempts in flight. Always true: `attempting` is committed before the platform is called; one delivery of a lane is in
//! flight at a time, because the store hands out one; parts that certainly arrived are committed before the next is sent,
//! so a retry goes on where it stopped; a copy that may be a duplicate is marked; a delivery that was handed to this replica
//! in an answer that got lost is found again. It knows adapters, not platforms.

mod adapters;
mod attempt;

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hermes_platforms::{Adapter, ChatRef};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use adapters::Adapters;

use crate::store::{self, BATCH_ROWS, DeliveryOutcome, DueDelivery, LaneKey, Store};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// Most attempts in flight on this replica; further deliveries wait in the store.
const MAX_IN_FLIGHT: usize = 1024;
/// How often strays are looked for: longer than any call of the store can take, so that what one look and the next one
/// both find was not handed over in between.
const STRAYS_EVERY: Duration = Duration::from_secs(45);
/// Lanes remembered; beyond that the memory starts afresh.
const MAX_LANES: usize = 50_000;

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
    /// Nothing new is begun: this replica stops.
    closing: AtomicBool,
    attempts: Mutex<HashSet<Attempt>>,
    lanes: Mutex<Lanes>,
    outcomes: mpsc::Sender<Recorded>,
    due: Notify,
    tasks: Tasks,
    metrics: Metrics,
}

#[derive(Default)]
struct Lanes {
    ids: HashMap<LaneKey, i64>,
    keys: HashMap<i64, Arc<LaneKey>>,
    typed: HashMap<i64, Instant>,
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
            closing: AtomicBool::new(false),
            attempts: Mutex::default(),
            lanes: Mutex::default(),
            outcomes,
            due: Notify::new(),
            tasks: tasks.clone(),
            metrics,
        };
        let outbox = Self { inner: Arc::new(inner) };
        tasks.spawn("outbox recorder", run_recorder(outbox.clone(), recorded, tasks.stopping()));
        tasks.spawn("outbox", run_due(outbox.clone(), tasks.stopping()));
        tasks.spawn("outbox strays", run_strays(outbox.clone(), tasks.stopping()));
        outbox
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

    /// Sends a delivery that is `attempting` in this replica's name.
    pub fn send(&self, delivery: DueDelivery) {
        let Some(sending) = Sending::begin(self, &delivery) else { return };
        let outbox = self.clone();
        self.inner.tasks.spawn("delivery", async move {
            attempt::run(&outbox, delivery).await;
            drop(sending);
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

    /// Shows in a lane's chat that an answer is being written; at most every four seconds.
    pub fn typing(&self, lane: i64) {
        let due = self.lanes(|lanes| {
            let now = Instant::now();
            lanes.typed.retain(|_, at| now.duration_since(*at) < Duration::from_secs(4));
            let fresh = !lanes.typed.contains_key(&lane);
            if fresh {
                lanes.typed.insert(lane, now);
            }
            fresh
        });
        if due {
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
                *lanes = Lanes::default();
            }
            lanes.ids.insert(key.as_ref().clone(), lane);
            lanes.keys.insert(lane, key);
        });
    }

    /// The account and chat of a lane; the error says what is missing.
    async fn route(&self, lane: i64) -> Result<(Arc<dyn Adapter>, ChatRef), String> {
        let known = self.lanes(|lanes| lanes.keys.get(&lane).cloned());
        let key = match known {
            Some(key) => key,
            None => {
                let key = Arc::new(self.inner.store.lane_get(lane).await.map_err(|error| error.to_string())?);
                self.remember(lane, key.clone());
                key
            }
        };
        let chat = ChatRef {
            chat_id: key.chat_id.clone(),
            thread_id: (!key.thread_id.is_empty()).then(|| key.thread_id.clone()),
        };
        let adapter = self.inner.adapters.get(&key.platform, &key.account);
        adapter
            .map(|adapter| (adapter, chat))
            .ok_or_else(|| format!("there is no {} account {}", key.platform, key.account))
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
            match outbox.inner.store.deliver(outbox.inner.replica, &rows).await {
                Ok((held, next)) => {
                    for (recorded, held) in batch.drain(..).zip(held) {
                        let _ = recorded.held.send(held);
                    }
                    for delivery in next {
                        outbox.send(delivery);
                    }
                    break;
                }
                Err(error) => {
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
        match outbox.inner.store.outbox_claim(outbox.inner.replica, i32::try_from(room).unwrap_or(1)).await {
            Ok(due) => {
                if due.len() >= room {
                    outbox.nudge();
                }
                for delivery in due {
                    outbox.send(delivery);
                }
            }
            Err(error) => tracing::warn!(%error, "could not look for due deliveries"),
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

/// Finds deliveries that the store believes to be in our hands and that are not: the answer that handed them over was lost.
/// Without this their lanes would stand still until this replica ends.
async fn run_strays(outbox: Outbox, stop: CancellationToken) {
    let mut suspects = HashSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(STRAYS_EVERY) => {}
        }
        match outbox.inner.store.outbox_held(outbox.inner.replica).await {
            Ok(held) => {
                let found = strays(held, &outbox.attempts(), &mut suspects);
                for delivery in found {
                    tracing::warn!(turn = %delivery.turn, lane = delivery.lane, "a delivery whose hand-over was lost is taken up");
                    outbox.send(delivery);
                }
            }
            Err(error) => tracing::warn!(%error, "could not look for stray deliveries"),
        }
    }
}

/// Those of `held` that nobody sends and that the last look suspected already. They are marked: whoever had them may have
/// died in the middle of sending.
fn strays(held: Vec<DueDelivery>, sending: &HashSet<Attempt>, suspects: &mut HashSet<Attempt>) -> Vec<DueDelivery> {
    let idle: Vec<DueDelivery> = held.into_iter().filter(|held| !sending.contains(&attempt_of(held))).collect();
    let before = std::mem::replace(suspects, idle.iter().map(attempt_of).collect());
    idle.into_iter()
        .filter(|idle| before.contains(&attempt_of(idle)))
        .map(|stray| DueDelivery { maybe_duplicate: true, ..stray })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SessionId, TurnId};

    fn delivery(lane: i64, attempt: i32) -> DueDelivery {
        let turn = TurnId { session: SessionId(1), seq: 1 };
        DueDelivery {
            lane,
            pos: 1,
            turn,
            attempt,
            failures: 0,
            part: 0,
            maybe_duplicate: false,
            body: Vec::new(),
            traceparent: None,
        }
    }

    #[test]
    fn a_stray_is_what_two_looks_find_and_nobody_sends() {
        let mut suspects = HashSet::new();
        let sending = HashSet::from([(1, 1, 1)]);
        let held = || vec![delivery(1, 1), delivery(2, 1), delivery(3, 1)];
        assert!(strays(held(), &sending, &mut suspects).is_empty());
        // Lane 2 was in fact handed over and is at its next attempt by now.
        let found = strays(vec![delivery(1, 1), delivery(2, 2), delivery(3, 1)], &sending, &mut suspects);
        assert_eq!(found.iter().map(|stray| (stray.lane, stray.maybe_duplicate)).collect::<Vec<_>>(), [(3, true)]);
        assert!(strays(vec![delivery(1, 1)], &HashSet::new(), &mut suspects).is_empty());
        assert_eq!(strays(vec![delivery(1, 1)], &HashSet::new(), &mut suspects).len(), 1);
    }
}
