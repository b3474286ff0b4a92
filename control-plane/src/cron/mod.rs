//! Scheduled jobs: their slots become runs at the right time, runs become turns, and what those say is delivered.
//!
//! Two loops on each replica, without a leader: one fires what is due, one settles what has ended. Both only call ticks of the store, each one
//! transaction, and decide with `hermes-core` in between ([`rules`]). They wake when a job is due ([`Alarm`], set by the poll and by whoever changes a job), and
//! when a run may have ended. Always true: only the database's clock says what is due; a slot ends as exactly one of ran, failed, missed, skipped
//! and cancelled, on however many replicas; however many jobs there are, nothing is asked of the database while none is due and none runs. It
//! knows no platform and no model: a run is a turn like any other.

mod alarm;
mod document;
mod jobs;
mod rules;

use std::time::Duration;

use hermes_core::cron::is_id;
use hermes_core::source::CRON;
use hermes_core::turn::TurnInput;
use tokio_util::sync::CancellationToken;

use crate::dispatch::Dispatcher;
use crate::registry::Registry;
use crate::store::{self, CronTick, Store};
use crate::tasks::Tasks;

pub use alarm::Alarm;
pub(crate) use document::{documented, exported, plan};
pub use jobs::{Error, Jobs, Outlook, Standing, Wanted, changed, judged, new_id, outlook};

/// Jobs in one transaction, at most: it holds their rows, and their sessions at its end.
const FIRED_AT_ONCE: i64 = 64;
const SETTLED_AT_ONCE: i32 = 32;
/// Before a tick that failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// Spawns both loops.
pub fn start(registry: Registry, dispatcher: Dispatcher, tasks: &Tasks) {
    let scheduler = Scheduler { store: registry.store().clone(), registry, dispatcher };
    tasks.spawn("cron", run_firing(scheduler.clone(), tasks.stopping()));
    tasks.spawn("cron-settle", run_settling(scheduler, tasks.stopping()));
}

#[derive(Clone)]
struct Scheduler {
    store: Store,
    registry: Registry,
    dispatcher: Dispatcher,
}

/// Fires whatever is due.
async fn run_firing(scheduler: Scheduler, stop: CancellationToken) {
    let alarm = scheduler.dispatcher.alarm();
    while stop.run_until_cancelled(alarm.rings()).await.is_some() {
        // Full batches go on at once.
        while let Some(FIRED_AT_ONCE..) = scheduler.fire().await.map(|tick| i64::try_from(tick.jobs).unwrap_or(0)) {
            if stop.is_cancelled() {
                return;
            }
        }
    }
}

/// Settles whatever has ended.
async fn run_settling(scheduler: Scheduler, stop: CancellationToken) {
    let alarm = scheduler.dispatcher.alarm();
    while stop.run_until_cancelled(alarm.ended()).await.is_some() {
        while let Some(true) = scheduler.settle().await.map(|tick| tick.settled > 0) {
            if stop.is_cancelled() {
                return;
            }
        }
    }
}

impl Scheduler {
    async fn fire(&self) -> Option<CronTick> {
        let rules = rules::Rules::of(self.registry.current());
        let fired =
            self.store.cron_fire(FIRED_AT_ONCE, &|due| rules.decide(due), &|waiting| rules.begin(waiting)).await;
        self.followed("fire", fired).await
    }

    async fn settle(&self) -> Option<CronTick> {
        let rules = rules::Rules::of(self.registry.current());
        let settled = self
            .store
            .cron_settle(SETTLED_AT_ONCE, &|ended| rules.settle(ended), &rules::mirrored, &|waiting| {
                rules.begin(waiting)
            })
            .await;
        self.followed("settle", settled).await
    }

    /// Draws the consequences; `None`: it failed, and is tried again with the next poll.
    async fn followed(&self, what: &str, tick: store::Result<CronTick>) -> Option<CronTick> {
        match tick {
            Ok(tick) => {
                for agent in &tick.wakes {
                    self.dispatcher.begins(*agent);
                }
                if tick.outbox {
                    self.dispatcher.delivers();
                }
                Some(tick)
            }
            Err(error) => {
                tracing::warn!(what, %error, "scheduled jobs could not be looked after; soon again");
                tokio::time::sleep(PAUSE).await;
                self.dispatcher.alarm().ended_somewhere();
                None
            }
        }
    }
}

/// Whether a turn is a run of a job, or a run asked for it, directly or through others.
pub(crate) fn is_run(input: &TurnInput) -> bool {
    input.cron.is_some() || input.behalf.as_ref().is_some_and(|source| source.platform == CRON)
}

/// Whether a session key is that of a job's runs.
pub(crate) fn is_session(key: &str) -> bool {
    let mut parts = key.rsplit(':');
    parts.next().is_some_and(is_id) && parts.any(|part| part == CRON)
}
