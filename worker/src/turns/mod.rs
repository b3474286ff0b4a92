//! Slots: which turns run here, how they are cancelled, and what they reported until it is acknowledged.
//!
//! Owned by the link's loop, which is the only caller; nothing here is shared. Always true: a session has at most one
//! running turn, the one with the highest epoch; at most `slots` turns run; a report is kept and resent until the
//! control plane has answered it. It does not talk to the network itself, and an end without a report (the turn was
//! fenced off) leaves no trace.

mod flow;

use std::collections::HashMap;
use std::sync::Arc;

use hermes_proto::v1::{Assignment, Completed, Outcome, TurnRef};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;
use crate::documents::Documents;
use crate::prompt::Prompts;
use crate::transcript::Transcripts;

/// What all turns of this process share.
pub struct Shared {
    /// The connection as of now.
    pub connection: watch::Receiver<Connection>,
    /// The home's documents.
    pub documents: Documents,
    /// What was said before.
    pub transcripts: Transcripts,
    /// The sessions' frozen prompts.
    pub prompts: Prompts,
    /// Today's date in the worker's time zone.
    pub today: fn() -> jiff::civil::Date,
}

/// What becomes of an assignment.
#[derive(Debug, PartialEq)]
pub enum Started {
    /// It runs; say so.
    Accepted,
    /// It ended here before and the control plane has not heard: say that again.
    AlreadyEnded(Box<Completed>),
    /// It is older than what runs, or there is no slot: nothing is said.
    Ignored,
}

/// How a turn left its slot.
struct Ended {
    turn: TurnRef,
    /// `None`: the turn is no longer ours, nothing may be reported.
    completed: Option<Completed>,
    /// What to remember once the control plane has stored the report.
    said: Option<Said>,
}

/// The two sides of a turn, for the transcript cache.
struct Said {
    input: Arc<str>,
    reply: Arc<str>,
    history_bytes: usize,
}

struct Running {
    turn: TurnRef,
    cancel: CancellationToken,
    task: tokio::task::Id,
}

/// The turns of this process.
pub struct Turns {
    shared: Arc<Shared>,
    slots: usize,
    /// By session.
    running: HashMap<u64, Running>,
    tasks: JoinSet<Ended>,
    /// Reported, not acknowledged.
    unacknowledged: HashMap<TurnKey, (Completed, Option<Said>)>,
}

/// A [`TurnRef`] that can be a key.
type TurnKey = (u64, u64, u64);

fn key(turn: &TurnRef) -> TurnKey {
    (turn.session_id, turn.seq, turn.epoch)
}

impl Turns {
    /// No turn runs yet.
    pub fn new(shared: Arc<Shared>, slots: usize) -> Self {
        Self { shared, slots, running: HashMap::new(), tasks: JoinSet::new(), unacknowledged: HashMap::new() }
    }

    /// Begins the assignment's turn where it is new.
    pub fn start(&mut self, assignment: Assignment) -> Started {
        let Some(turn) = assignment.turn else {
            return Started::Ignored;
        };
        if let Some((completed, _)) = self.unacknowledged.get(&key(&turn)) {
            return Started::AlreadyEnded(Box::new(completed.clone()));
        }
        if let Some(running) = self.running.get(&turn.session_id) {
            if key(&running.turn) == key(&turn) {
                return Started::Accepted;
            }
            if running.turn.epoch >= turn.epoch {
                tracing::warn!(
                    session = turn.session_id,
                    epoch = turn.epoch,
                    "an assignment older than the running turn is ignored"
                );
                return Started::Ignored;
            }
            // The control plane has given the session out anew: what runs here cannot be written any more.
            self.drop_session(turn.session_id);
        }
        if self.running.len() >= self.slots {
            tracing::warn!(
                session = turn.session_id,
                slots = self.slots,
                "an assignment without a free slot is ignored"
            );
            return Started::Ignored;
        }
        let cancel = CancellationToken::new();
        let flow = flow::run(Arc::clone(&self.shared), assignment, turn, cancel.clone());
        let task = self.tasks.spawn(flow).id();
        self.running.insert(turn.session_id, Running { turn, cancel, task });
        Started::Accepted
    }

    /// Asks a running turn to end as cancelled; one that does not run here is no concern.
    pub fn cancel(&mut self, turn: &TurnRef) {
        if let Some(running) = self.running.get(&turn.session_id)
            && running.turn.seq == turn.seq
        {
            running.cancel.cancel();
        }
    }

    /// Waits for the next turn to end and answers its report, if it has one. Pending while none runs.
    pub async fn next_ended(&mut self) -> Option<Completed> {
        loop {
            let Some(ended) = self.tasks.join_next_with_id().await else {
                std::future::pending::<()>().await;
                continue;
            };
            let ended = match ended {
                Ok((task, ended)) => {
                    if self.running.get(&ended.turn.session_id).is_none_or(|running| running.task != task) {
                        continue;
                    }
                    ended
                }
                Err(error) => match self.crashed(&error) {
                    Some(ended) => ended,
                    None => continue,
                },
            };
            self.running.remove(&ended.turn.session_id);
            let completed = ended.completed?;
            self.unacknowledged.insert(key(&ended.turn), (completed.clone(), ended.said));
            return Some(completed);
        }
    }

    /// A turn that panicked has failed, and only that one; one that was dropped has no end to report.
    fn crashed(&self, error: &tokio::task::JoinError) -> Option<Ended> {
        let running = self.running.values().find(|running| running.task == error.id())?;
        tracing::error!(session = running.turn.session_id, turn = running.turn.seq, %error, "a turn panicked");
        let sentence = "Something went wrong inside the agent. Please try again.";
        Some(flow::ended(running.turn, Outcome::Failed, sentence.to_owned(), None))
    }

    /// The control plane has heard the report; `stored` says whether it counted.
    pub fn acknowledged(&mut self, turn: &TurnRef, stored: bool) {
        let Some((_, said)) = self.unacknowledged.remove(&key(turn)) else {
            return;
        };
        match said {
            Some(said) if stored => {
                let Said { input, reply, history_bytes } = said;
                self.shared.transcripts.record(turn.session_id, turn.seq, input, reply, history_bytes);
            }
            _ if !stored => {
                tracing::info!(session = turn.session_id, turn = turn.seq, epoch = turn.epoch, "a report came too late")
            }
            _ => {}
        }
    }

    /// All reports without an answer, oldest session first.
    pub fn unacknowledged(&self) -> Vec<Completed> {
        let mut reports: Vec<_> = self.unacknowledged.iter().collect();
        reports.sort_unstable_by_key(|(key, _)| **key);
        reports.into_iter().map(|(_, (completed, _))| completed.clone()).collect()
    }

    /// Stops every running turn without a report: the lease is lost, others may run them.
    pub fn drop_running(&mut self) {
        self.tasks.abort_all();
        self.running.clear();
    }

    /// Whether nothing runs and nothing waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.unacknowledged.is_empty()
    }

    /// How many turns run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    fn drop_session(&mut self, session_id: u64) {
        if let Some(running) = self.running.remove(&session_id) {
            // Its end is recognised as stale by its task's id.
            running.cancel.cancel();
        }
    }
}
