//! Deliveries: what was committed for a chat is sent there, in the order of its lane, until it arrived or is given up.
//!
//! Called by dispatch (a delivery committed as `attempting` by the completion) and by the poll (due ones). It owns the
//! attempts in flight. Always true: `attempting` is committed before the platform is called; one delivery of a lane is in
//! flight at a time, because the store hands out one; parts that certainly arrived are committed before the next is sent,
//! so a retry goes on where it stopped; a copy that may be a duplicate is marked. It knows adapters, not platforms.

mod adapters;
mod attempt;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hermes_platforms::{Adapter, ChatRef};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use adapters::Adapters;

use crate::store::{self, BATCH_ROWS, DeliveryOutcome, DueDelivery, LaneKey, Store};
use crate::tasks::Tasks;
use crate::telemetry::Metrics;

/// Most attempts in flight on this replica; further deliveries wait in the store.
const MAX_IN_FLIGHT: usize = 1024;
/// Lanes remembered; beyond that the memory starts afresh.
const MAX_LANES: usize = 50_000;

struct Recorded {
    outcome: DeliveryOutcome,
    held: oneshot::Sender<bool>,
}

struct Inner {
    store: Store,
    replica: i64,
    adapters: Adapters,
    in_flight: AtomicUsize,
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
            lanes: Mutex::default(),
            outcomes,
            due: Notify::new(),
            tasks: tasks.clone(),
            metrics,
        };
        let outbox = Self { inner: Arc::new(inner) };
        tasks.spawn("outbox recorder", run_recorder(outbox.clone(), recorded, tasks.stopping()));
        tasks.spawn("outbox", run_due(outbox.clone(), tasks.stopping()));
        outbox
    }

    /// Whether another delivery may be committed as `attempting` in this replica's name.
    pub fn has_room(&self) -> bool {
        self.inner.in_flight.load(Ordering::Relaxed) < MAX_IN_FLIGHT
    }

    /// Sends a delivery that is `attempting` in this replica's name.
    pub fn send(&self, delivery: DueDelivery) {
        self.inner.in_flight.fetch_add(1, Ordering::Relaxed);
        let outbox = self.clone();
        self.inner.tasks.spawn("delivery", async move {
            attempt::run(&outbox, delivery).await;
            outbox.inner.in_flight.fetch_sub(1, Ordering::Relaxed);
        });
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
                    adapter.typing(chat).await;
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
            () = stop.cancelled() => return,
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

/// Takes up due retries, notices and deliveries whose sender died.
async fn run_due(outbox: Outbox, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = outbox.inner.due.notified() => {}
        }
        let in_flight = outbox.inner.in_flight.load(Ordering::Relaxed);
        let room = MAX_IN_FLIGHT.saturating_sub(in_flight).min(BATCH_ROWS);
        if room == 0 {
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
