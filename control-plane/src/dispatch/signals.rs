//! What is asked of running turns reaches their workers: a stop, an interruption, a message to take in.
//!
//! Run by dispatch; woken by intake and operators after a commit that asked for something, and by the poll while anything is
//! asked anywhere. Always true: what is asked is in the store before a worker hears of it, bound to one turn; a turn that went
//! to another worker is asked again there; who was asked to end and does not within [`PATIENCE`] is ended without its worker.
//! It never decides what is asked.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Dispatcher;
use crate::store::{self, SessionId, Stopped, TurnId};

/// What a chat is told of its turn that was stopped.
pub const STOPPED: &str = "Stopped.";
/// How long a worker may take to end a turn that was asked to.
const PATIENCE: Duration = Duration::from_secs(15);

impl Dispatcher {
    /// Something was asked of a running turn: tell its worker if it is connected here.
    pub fn signalled(&self) {
        self.inner.signals.notify_one();
    }

    /// Stops a session's running or next turn, or turn `seq` of it; bound to that turn, whatever ends meanwhile.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`]: repeat it.
    pub async fn stop(&self, session: SessionId, seq: Option<i64>) -> store::Result<Stopped> {
        let stopped = self.inner.store.stop(session, seq, STOPPED).await?;
        self.stopped(stopped);
        Ok(stopped)
    }

    /// Nobody waits any more for the answer of a turn that an agent was asked: it stops, or never begins.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`]: repeat it.
    pub async fn withdraw(&self, turn: TurnId) -> store::Result<Stopped> {
        let stopped = self.inner.store.withdraw(turn, STOPPED).await?;
        self.stopped(stopped);
        Ok(stopped)
    }

    /// Withdraws what was asked by turns that have ended or wait no more.
    pub(super) async fn forsake(&self) -> store::Result<()> {
        for stopped in self.inner.store.forsake(STOPPED).await? {
            if let Stopped::Asked(turn) | Stopped::Cancelled(turn) = stopped {
                tracing::info!(%turn, ?stopped, "nobody waits for the answer of an asked agent any more");
            }
            self.stopped(stopped);
        }
        Ok(())
    }

    /// A stop was committed.
    pub fn stopped(&self, stopped: Stopped) {
        match stopped {
            Stopped::Asked(_) => self.signalled(),
            Stopped::Cancelled(turn) => {
                self.inner.live.forget(turn);
                self.inner.outbox.nudge();
                self.nudge();
            }
            Stopped::Nothing => self.inner.outbox.nudge(),
            Stopped::Ended(_) | Stopped::Behind(_) | Stopped::Absorbed(_) => {}
        }
    }
}

/// The loop.
pub(super) async fn run(dispatcher: Dispatcher, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = dispatcher.inner.signals.notified() => {}
        }
        if let Err(error) = tick(&dispatcher).await {
            tracing::warn!(%error, "could not look for what is asked of running turns");
        }
    }
}

async fn tick(dispatcher: &Dispatcher) -> store::Result<()> {
    let inner = &dispatcher.inner;
    for signalled in inner.store.signals(&inner.fleet.workers()).await? {
        inner.fleet.tell(signalled);
    }
    let ended = inner.store.settle_signals(PATIENCE, STOPPED).await?;
    if ended.is_empty() {
        return Ok(());
    }
    for (turn, holder) in ended {
        tracing::info!(%turn, "a turn that was asked to end was ended without its worker");
        inner.live.forget(turn);
        if let Some((_, epoch)) = holder {
            inner.fleet.take(turn, epoch, true);
        }
    }
    inner.outbox.nudge();
    dispatcher.nudge();
    Ok(())
}
