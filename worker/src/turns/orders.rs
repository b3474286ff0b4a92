//! What a running turn is told from outside: to end, to be handed back, or what else was said.
//!
//! The slots hold [`Orders`], the turn its [`Inbox`]. Always true: the first order to end wins, and it wins over a hand-back
//! that has not happened yet.

use hermes_proto::v1::{Outcome, Steer};
use tokio::sync::{mpsc, watch};

/// Messages that wait for a turn's next step boundary; more of them run by themselves.
const MAX_STEERS: usize = 64;

/// Whether a turn should go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Stop {
    /// It should.
    #[default]
    No,
    /// Give it back at the next step boundary.
    HandBack,
    /// End it: as what, and with which sentence (`None`: the text so far).
    End { outcome: Outcome, sentence: Option<String> },
}

/// Why a turn stops before its reply.
#[derive(Debug)]
pub(super) enum Halt {
    /// Not ours any more: nothing is reported.
    Gone,
    /// The lease ended before the turn could go on; the control plane may or may not have noticed.
    Left,
    /// Given back as told.
    HandedBack,
    /// Ended as told.
    Ended { outcome: Outcome, sentence: Option<String> },
    /// For good; the sentence is for the chat.
    Failed(String),
}

impl Stop {
    fn halt(&self) -> Option<Halt> {
        match self {
            Self::No => None,
            Self::HandBack => Some(Halt::HandedBack),
            Self::End { outcome, sentence } => Some(Halt::Ended { outcome: *outcome, sentence: sentence.clone() }),
        }
    }

    fn ends(&self) -> bool {
        matches!(self, Self::End { .. })
    }
}

/// The sending side.
pub(super) struct Orders {
    stop: watch::Sender<Stop>,
    steers: mpsc::Sender<Steer>,
}

impl Orders {
    pub(super) fn end(&self, outcome: Outcome, sentence: Option<String>) {
        self.stop.send_if_modified(|stop| {
            let first = !stop.ends();
            if first {
                *stop = Stop::End { outcome, sentence };
            }
            first
        });
    }

    pub(super) fn hand_back(&self) {
        self.stop.send_if_modified(|stop| {
            let first = *stop == Stop::No;
            if first {
                *stop = Stop::HandBack;
            }
            first
        });
    }

    /// Queues the message for the next step boundary; answers whether there was room.
    pub(super) fn steer(&self, steer: Steer) -> bool {
        self.steers.try_send(steer).is_ok()
    }
}

/// The turn's side.
pub(super) struct Inbox {
    stop: watch::Receiver<Stop>,
    steers: mpsc::Receiver<Steer>,
}

/// Both sides for a new turn.
pub(super) fn channel() -> (Orders, Inbox) {
    let (stop, stopped) = watch::channel(Stop::No);
    let (steers, steered) = mpsc::channel(MAX_STEERS);
    (Orders { stop, steers }, Inbox { stop: stopped, steers: steered })
}

impl Inbox {
    /// Why the turn should not go on, if it should not.
    pub(super) fn halt(&self) -> Option<Halt> {
        self.stop.borrow().halt()
    }

    /// Why the turn should end, if it should; a hand-back can wait.
    pub(super) fn end(&self) -> Option<Halt> {
        let stop = self.stop.borrow();
        if stop.ends() { stop.halt() } else { None }
    }

    /// Does work that may be given up at any moment.
    pub(super) fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = Result<T, Halt>> {
        unless(self.stop.clone(), |stop| *stop != Stop::No, work)
    }

    /// Does work that is given up only when the turn ends.
    pub(super) fn unless_ended<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = Result<T, Halt>> {
        unless(self.stop.clone(), Stop::ends, work)
    }

    /// Waits until the turn must end.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut stop = self.stop.clone();
        async move {
            // Without a sender nobody can end the turn but by dropping it.
            if stop.wait_for(Stop::ends).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The next message that waits.
    pub(super) fn steer(&mut self) -> Option<Steer> {
        self.steers.try_recv().ok()
    }
}

async fn unless<T>(
    mut stop: watch::Receiver<Stop>,
    when: impl FnMut(&Stop) -> bool,
    work: impl Future<Output = T>,
) -> Result<T, Halt> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        stop = stop.wait_for(when) => Err(stop.ok().and_then(|stop| stop.halt()).unwrap_or(Halt::Gone)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_wins_and_wins_over_a_hand_back() {
        let (orders, inbox) = channel();
        assert!(inbox.halt().is_none());
        orders.hand_back();
        assert!(inbox.end().is_none());
        assert!(matches!(inbox.halt(), Some(Halt::HandedBack)));
        orders.end(Outcome::Failed, Some("late".to_owned()));
        orders.end(Outcome::Cancelled, None);
        orders.hand_back();
        let Some(Halt::Ended { outcome, sentence }) = inbox.end() else { panic!("ended") };
        assert_eq!((outcome, sentence.as_deref()), (Outcome::Failed, Some("late")));
    }

    #[test]
    fn messages_wait_in_order_and_not_without_end() {
        let (orders, mut inbox) = channel();
        let steer = |seq| Steer { seq, ..Steer::default() };
        assert!((0..64).all(|seq| orders.steer(steer(seq))));
        assert!(!orders.steer(steer(64)));
        assert!((0..64).all(|seq| inbox.steer().is_some_and(|steer| steer.seq == seq)));
        assert!(inbox.steer().is_none());
    }
}
