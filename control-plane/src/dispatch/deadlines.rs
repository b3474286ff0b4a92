//! Turns that take too long, or stand still, though their workers live.
//!
//! A loop of this replica over the workers connected to it. Monotonic time only: what is left until a turn's deadline comes
//! from the database with each lease and each adoption. Always true: such a turn's worker is asked first to end it with a
//! sentence for the chat; what it has not ended after [`GRACE`] is given up under its fence, the chat is told, the session
//! goes on, and whatever the worker still reports of it is refused. A worker whose slot stays taken by it does not accept its
//! next turn and is hung up for that. A turn's time begins anew with each attempt; attempts that crash are limited elsewhere.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Dispatcher;
use crate::store::{self, BATCH_ROWS, GivenUp};

/// How long a worker may take to end a turn that it was asked to end, at most as long again as the turn may take.
const GRACE: Duration = Duration::from_secs(30);
/// How often all are looked at.
const PERIOD: Duration = Duration::from_millis(250);

/// The loop.
pub(super) async fn run(dispatcher: Dispatcher, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        if let Err(error) = tick(&dispatcher).await {
            tracing::warn!(%error, "could not give up turns that take too long");
        }
    }
}

async fn tick(dispatcher: &Dispatcher) -> store::Result<()> {
    let inner = &dispatcher.inner;
    let stall = Duration::from_secs(inner.registry.current().document.limits.stall_seconds);
    for (turn, why) in inner.fleet.overrun(stall) {
        inner.metrics.overrun(why.reason());
        tracing::warn!(%turn, reason = why.reason(), "a turn takes too long; its worker is asked to end it");
    }
    let mut late = inner.fleet.overrun_since(GRACE.min(dispatcher.turn_limit()));
    late.truncate(BATCH_ROWS);
    if late.is_empty() {
        return Ok(());
    }
    let rows: Vec<GivenUp> = late
        .iter()
        .map(|(turn, epoch, why)| GivenUp { turn: *turn, epoch: *epoch, reason: why.reason(), notice: why.notice() })
        .collect();
    let answers = inner.store.give_up(&rows).await?;
    for (GivenUp { turn, epoch, reason, .. }, given_up) in rows.into_iter().zip(answers) {
        if given_up {
            tracing::error!(%turn, reason, "a turn was given up that its worker did not end");
        }
        // Not given up: it is fenced, or a lost answer had given it up already.
        if let Some(agent_no) = inner.fleet.take(turn, epoch, true) {
            inner.live.forget(turn);
            dispatcher.waits(agent_no);
        }
    }
    // The chat is told and the session's next turn waits; both are found by the poll.
    dispatcher.nudge();
    Ok(())
}
