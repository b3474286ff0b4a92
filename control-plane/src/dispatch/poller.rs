//! The loops without input: claim what waits, one poll a second for everything else, typing signals.
//!
//! Always true: each tick may run at any time, twice, or after a crash; a nudge only makes it earlier.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{DEAD_NOTICE, Dispatcher, LEASE, MAX_CRASHES, REMOVED_NOTICE, STICKY};
use crate::store::{self, BATCH_ROWS};

const PERIOD: Duration = Duration::from_secs(1);
/// Older transactions are worth a warning.
const OLD_TRANSACTION: Duration = Duration::from_secs(60);

/// How long after it asked for its lease a replica may begin to send a delivery that is its own: what is left of the lease is for
/// the way to the platform.
const SENDER_LEASE: Duration = LEASE.saturating_sub(Duration::from_secs(2));

/// What a claim found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// A session for each free slot: another claim may find more.
    Full,
    /// Not enough, because sessions are left to the workers they were last on for [`STICKY`].
    Sticky,
    /// Nothing more is due.
    Rest,
}

/// Claims waiting sessions whenever a slot is free for them.
pub(super) async fn run_claimer(dispatcher: Dispatcher, stop: CancellationToken) {
    let mut found = Found::Rest;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = dispatcher.inner.claim.notified() => {}
            () = tokio::time::sleep(STICKY), if found == Found::Sticky => {}
        }
        found = Found::Full;
        while found == Found::Full && !stop.is_cancelled() {
            found = claim_once(&dispatcher).await;
        }
    }
}

/// One claim.
async fn claim_once(dispatcher: &Dispatcher) -> Found {
    let inner = &dispatcher.inner;
    let waiting = inner.fleet.claimable();
    if waiting.is_empty() {
        return Found::Rest;
    }
    let agents: Vec<i32> = waiting.iter().map(|(agent, _)| *agent).collect();
    let _leasing = dispatcher.leasing().await;
    let slots = inner.fleet.reserve_all(&agents, BATCH_ROWS);
    if slots.is_empty() {
        return Found::Rest;
    }
    // Sessions that only newer workers can go on with are not left to a call with an older one among the offered.
    let mut by_protocol: BTreeMap<u32, Vec<(i64, i16)>> = BTreeMap::new();
    for (worker, slot) in slots {
        by_protocol.entry(inner.fleet.protocol(worker).unwrap_or(0)).or_default().push((worker, slot));
    }
    let (mut full, mut sticky, mut failed) = (true, false, false);
    for (_, slots) in by_protocol.into_iter().rev() {
        let claimed = match inner.store.claim(&slots, STICKY, dispatcher.turn_limit()).await {
            Ok(claimed) => claimed,
            Err(error) => {
                // It may have leased all the same: the slots stay reserved until the store was asked.
                tracing::warn!(%error, "could not claim waiting sessions");
                for (worker, slot) in slots {
                    inner.fleet.doubt(worker, slot);
                }
                failed = true;
                continue;
            }
        };
        for (worker, slot) in &slots {
            if !claimed.leased.iter().any(|lease| lease.worker == *worker && lease.slot == *slot) {
                inner.fleet.release(*worker, *slot);
                full = false;
            }
        }
        sticky |= claimed.sticky;
        for lease in claimed.leased {
            if let Some(agent) = inner.fleet.agent_of(lease.worker) {
                inner.pressure.begun(agent);
            }
            dispatcher.begin(lease);
        }
    }
    if failed {
        return Found::Rest;
    }
    if full {
        return Found::Full;
    }
    if sticky {
        // Those agents' sessions still wait.
        return Found::Sticky;
    }
    // Nothing more is due for these agents now; the poll finds what becomes due later.
    inner.fleet.clear_waiting(&waiting);
    Found::Rest
}

/// One statement a second answers for all loops of this replica.
pub(super) async fn run_poller(dispatcher: Dispatcher, stop: CancellationToken) {
    let inner = &dispatcher.inner;
    let mut ticks = 0_u64;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = inner.poll.notified() => {}
            () = inner.outbox.adapters().leases().changed() => {}
            // Never in step with other replicas for long, and never more than one a second.
            () = tokio::time::sleep(PERIOD + Duration::from_millis(rand::random_range(0..50))) => {}
        }
        if let Err(error) = poll_once(&dispatcher).await {
            tracing::warn!(%error, "the poll failed");
            inner.registry.set_database(Err(error.to_string()));
        }
        if ticks.is_multiple_of(600) {
            repair(&dispatcher).await;
        }
        ticks += 1;
        // A net below what is known to be in doubt: a lease of a worker here that this replica never heard of must not stand still.
        if ticks.is_multiple_of(10) {
            inner.fleet.suspect();
        }
        if ticks.is_multiple_of(60) {
            look_for_old_transactions(&dispatcher).await;
        }
    }
}

/// Once a minute: a transaction that stays open keeps everybody's dead rows alive, and the hot tables swell.
async fn look_for_old_transactions(dispatcher: &Dispatcher) {
    let inner = &dispatcher.inner;
    match inner.store.oldest_transaction().await {
        Ok(age) => {
            inner.metrics.oldest_transaction(age);
            if age > OLD_TRANSACTION {
                tracing::warn!(
                    seconds = age.as_secs(),
                    "a transaction of this database is old: tables swell while it is open"
                );
            }
        }
        Err(error) => tracing::debug!(%error, "could not look for old transactions"),
    }
}

/// The slow search: at the start and then every ten minutes.
async fn repair(dispatcher: &Dispatcher) {
    match dispatcher.inner.store.leases_repair().await {
        Ok(0) => {}
        Ok(found) => {
            tracing::warn!(found, "turns that no worker had any more wait again");
            dispatcher.nudge();
        }
        Err(error) => tracing::warn!(%error, "could not look for turns that no worker has"),
    }
}

async fn poll_once(dispatcher: &Dispatcher) -> store::Result<()> {
    let inner = &dispatcher.inner;
    let heard = inner.fleet.take_heard();
    let leases = inner.outbox.adapters().leases();
    let (claims, asked) = (leases.claims(), Instant::now());
    let answer = inner.store.poll_for(inner.replica, &heard, &claims, LEASE).await?;
    leases.told(&claims, asked, &answer.accounts, answer.live, LEASE);
    inner.outbox.held(asked + SENDER_LEASE);
    if let Some(back) = inner.clock.set(answer.now) {
        inner.metrics.database_clock_went_back();
        tracing::error!(
            seconds = back.as_secs(),
            "the database's clock went back: leases last longer by so much; set it right"
        );
    }
    inner.registry.set_database(Ok(()));
    inner.registry.bell().replicas(answer.live);
    inner.outbox.adapters().share(u32::try_from(answer.live).unwrap_or(1));
    inner.metrics.accounts_deaf(leases.deaf().len() as u64);
    let lapsed: Vec<i64> = heard.into_iter().filter(|worker| !answer.alive.contains(worker)).collect();
    if !lapsed.is_empty() {
        tracing::warn!(?lapsed, "the leases of connected workers have lapsed");
        inner.fleet.lapse(&lapsed);
    }
    let idlers = inner.fleet.hang_up_idlers(LEASE);
    if !idlers.is_empty() {
        tracing::warn!(?idlers, "workers that are silent or do not take what they are given are hung up");
    }
    if inner.fleet.in_doubt() {
        settle_doubts(dispatcher).await?;
    }
    if answer.version != inner.registry.current().version {
        inner.registry.reload().await?;
    }
    dispatcher.drain_removed().await;
    for (worker, grace) in &answer.draining {
        inner.fleet.drain(|about| about.worker_id == *worker, *grace);
    }
    inner.registry.follow_homes(answer.homes).await?;
    if answer.lost {
        let reclaimed = inner.store.reclaim(MAX_CRASHES, DEAD_NOTICE, LEASE).await?;
        if !reclaimed.is_empty() {
            // They wait now; look again at once instead of in a second.
            inner.poll.notify_one();
        }
        for (turn, dead) in reclaimed {
            inner.live.forget(turn);
            if dead {
                tracing::error!(%turn, "a turn was given up after it stopped its worker {MAX_CRASHES} times");
            } else {
                tracing::info!(%turn, "a turn was taken back from a lost worker");
            }
        }
    }
    if answer.removed {
        let cancelled = inner.store.removed_cancel(REMOVED_NOTICE).await?;
        tracing::info!(cancelled, "waiting turns of removed agents were cancelled");
    }
    if answer.forsaken {
        dispatcher.forsake().await?;
    }
    inner.alarm.set(answer.cron_due);
    if answer.cron_open {
        inner.alarm.ended_somewhere();
    }
    if answer.signals {
        dispatcher.signalled();
    }
    if !answer.ready.is_empty() || inner.pressure.is_any() {
        let most = i64::try_from(inner.registry.current().document.limits.queued_per_agent).unwrap_or(i64::MAX);
        inner.pressure.counted(&inner.store.backlog(most).await?);
    }
    for agent in &answer.ready {
        dispatcher.waits(*agent);
    }
    if answer.outbox_due || answer.removed {
        inner.outbox.nudge();
    }
    Ok(())
}

/// Hands over the leases whose answers were lost. Without this their sessions would stand still as long as the worker lives, and
/// a slot given away twice would hide one of them from the reclaim, too.
async fn settle_doubts(dispatcher: &Dispatcher) -> store::Result<()> {
    let inner = &dispatcher.inner;
    let _nobody_leases = inner.leasing.write().await;
    let (workers, slots) = inner.fleet.doubts();
    let mut left = 0;
    for lease in inner.store.assigned(&workers).await? {
        if inner.fleet.runs(lease.turn, lease.epoch) {
            continue;
        }
        if inner.fleet.is_vacant(lease.worker, lease.slot) {
            tracing::warn!(turn = %lease.turn, worker = lease.worker, "a turn whose lease was lost with an answer is handed over");
            dispatcher.begin(lease);
        } else {
            left += 1;
        }
    }
    inner.fleet.settled(&slots, left);
    Ok(())
}

/// Shows in the chats of turns that take longer that an answer is on its way.
pub(super) async fn run_typing(dispatcher: Dispatcher, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        dispatcher.inner.outbox.typing(dispatcher.inner.fleet.long_running(PERIOD));
    }
}
