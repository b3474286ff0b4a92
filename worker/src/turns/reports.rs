//! A turn's reports of its steps: one at a time, each answered before the turn goes on.
//!
//! The link sends a report on every new stream until it is answered; the database makes that harmless. Always true: at
//! most one report of a turn is without an answer, so a journal has no holes; and what is reported is bounded.

use hermes_proto::v1::{StepOutcome, StepReport, TurnRef};
use tokio::sync::{mpsc, oneshot, watch};

use super::orders::Halt;
use crate::connection::Connection;

/// A report on its way to the link, and where its answer goes.
pub(super) struct Reported {
    pub(super) turn: TurnRef,
    pub(super) report: StepReport,
    pub(super) answer: oneshot::Sender<StepOutcome>,
}

/// The turn's side.
pub(super) struct Reports {
    pub(super) turn: TurnRef,
    pub(super) link: mpsc::Sender<Reported>,
    pub(super) connection: watch::Receiver<Connection>,
}

impl Reports {
    /// Reports a step and waits for the answer: whether it was stored, or refused.
    ///
    /// # Errors
    /// [`Halt::Gone`] when the turn is somebody else's, [`Halt::Left`] when the lease ended before the answer.
    pub(super) async fn send(&mut self, report: StepReport) -> Result<bool, Halt> {
        let (answer, mut answered) = oneshot::channel();
        let reported = Reported { turn: self.turn, report: StepReport { turn: Some(self.turn), ..report }, answer };
        self.link.send(reported).await.map_err(|_| Halt::Gone)?;
        loop {
            let lease_end = self.connection.borrow_and_update().lease_end;
            tokio::select! {
                biased;
                outcome = &mut answered => return match outcome {
                    Ok(StepOutcome::Stored) => Ok(true),
                    Ok(StepOutcome::Refused) => Ok(false),
                    Ok(StepOutcome::Fenced | StepOutcome::Diverged | StepOutcome::Unspecified) | Err(_) => Err(Halt::Gone),
                },
                changed = self.connection.changed() => changed.map_err(|_| Halt::Gone)?,
                () = tokio::time::sleep_until(lease_end) => return Err(Halt::Left),
            }
        }
    }
}
