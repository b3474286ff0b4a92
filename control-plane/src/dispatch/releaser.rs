//! Turns that their workers hand back, stored in batches like ends: the connection that comes back is the clock.
//!
//! Always true: a worker hands back only what it runs here; a turn that was handed back counts no crash, waits again before
//! younger ones of its agent and goes on from its journal; who hands back more than it has slots takes nothing new.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{DRAIN_GRACE, Dispatcher};
use crate::store::{BATCH_ROWS, TurnId};

/// A turn on its way back.
pub(super) struct Pending {
    worker: i64,
    turn: TurnId,
    epoch: i64,
    stored: oneshot::Sender<bool>,
}

/// Queues it and waits for its commit.
pub(super) async fn release(dispatcher: &Dispatcher, worker: i64, turn: TurnId, epoch: i64) -> bool {
    let inner = &dispatcher.inner;
    if inner.fleet.running(worker, turn, epoch).is_none() {
        tracing::info!(worker, %turn, epoch, "a turn was handed back that the worker does not run");
        return false;
    }
    let (stored, answer) = oneshot::channel();
    if inner.releases.send(Pending { worker, turn, epoch, stored }).await.is_err() {
        return false;
    }
    answer.await.unwrap_or(false)
}

/// The loop.
pub(super) async fn run(dispatcher: Dispatcher, mut pending: mpsc::Receiver<Pending>, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(BATCH_ROWS);
    loop {
        batch.clear();
        tokio::select! {
            () = stop.cancelled() => return,
            taken = pending.recv_many(&mut batch, BATCH_ROWS) => if taken == 0 { return },
        }
        let rows: Vec<(TurnId, i64)> = batch.iter().map(|pending| (pending.turn, pending.epoch)).collect();
        let answers = loop {
            match dispatcher.inner.store.release(&rows).await {
                Ok(answers) => break answers,
                Err(error) => tracing::warn!(%error, "could not store that turns were handed back"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        };
        for (Pending { worker, turn, epoch, stored }, released) in batch.drain(..).zip(answers) {
            tracing::info!(%turn, epoch, released, "a turn was handed back");
            // One that leaves has said so before and gets nothing more. One that was out of touch may be given the very turn again,
            // and has at most one for each slot; more is no accident, and would go round for ever, so it is parted with before its
            // slot is free again. It may well say each twice.
            if released && dispatcher.inner.fleet.handed_back(worker) {
                tracing::warn!(worker, "a worker hands back what it is given and is parted with");
                dispatcher.drain(|about| about.worker_id == worker, DRAIN_GRACE).await;
            }
            // Also when a repeated call says that it is fenced: either way it does not run here any more.
            if let Some(agent_no) = dispatcher.inner.fleet.take(turn, epoch, false) {
                dispatcher.inner.live.forget(turn);
                dispatcher.waits(agent_no);
            }
            let _ = stored.send(released);
        }
    }
}
