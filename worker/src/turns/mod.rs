//! Slots: which turns run here, what they are told, and what they reported until it is acknowledged.
//!
//! Owned by the link's loop, which is the only caller; nothing here is shared. Always true: a session has at most one
//! running turn, the one with the highest epoch; at most `slots` turns run; what a turn reported, a step or its end, is
//! kept and sent again until the control plane has answered it; an order reaches exactly the turn and epoch that it names.
//! It does not talk to the network itself, and an end without a report (the turn was fenced off) leaves no trace.
//!
//! `flow` runs a turn, `compression` makes room in its history, `foreign` has a program answer instead, `job` is what runs of scheduled jobs begin and end with, `own` is what it does for its model itself, `steps` is its loop of model and tool calls, `past` what an earlier attempt journaled, `reports` and
//! `orders` its two lines to this loop, `input` what it is given and `reply` what it says.

mod compression;
mod consolidation;
mod flow;
mod foreign;
mod input;
mod job;
mod orders;
mod own;
mod past;
mod reply;
mod reports;
mod steps;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hermes_proto::v1::{
    Accepted, Assignment, Cancel, CancelKind, Completed, HandBack, Outcome, Steer, StepAck, StepOutcome, StepReport,
    TurnRef, worker_message,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::acp::Programs;
use crate::connection::Connection;
use crate::documents::Documents;
use crate::model::Message;
use crate::prompt::Prompts;
use crate::sandbox::Boundary;
use crate::seams::Seams;
use crate::tools::{McpServers, PlaneTools, Toolbox};
use crate::transcript::Transcripts;
use orders::Orders;
pub(crate) use past::reply_that_asked;
use reports::Reported;

/// Reports of steps on their way from the turns to the loop.
const REPORTS: usize = 64;

/// What a chat is told when a step can no longer be reported.
const NOT_TAKEN: &str = "I was interrupted in the middle of something and cannot go on. Please check it and ask again.";

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
    /// What the control plane runs for turns.
    pub plane_tools: PlaneTools,
    /// Programs that bring tools; none where there is no boundary to run them behind.
    pub mcp: Option<McpServers>,
    /// Programs that answer turns; none where there is no boundary to run them behind.
    pub programs: Option<Programs>,
    /// Today's date in the worker's time zone.
    pub today: fn() -> jiff::civil::Date,
    /// The time.
    pub now: fn() -> jiff::Timestamp,
    /// The tools that run here.
    pub toolbox: Arc<dyn Toolbox>,
    /// What they run behind; none where the tools were injected.
    pub boundary: Option<Boundary>,
    /// What was injected.
    pub seams: Seams,
}

/// What becomes of an assignment.
#[derive(Debug, PartialEq)]
pub enum Started {
    /// It runs; say so.
    Accepted,
    /// It ended here before and the control plane has not heard: say that again.
    AlreadyEnded(Box<worker_message::Message>),
    /// It is older than what runs, or there is no slot: nothing is said.
    Ignored,
}

/// How a turn left its slot.
struct Ended {
    turn: TurnRef,
    end: End,
}

enum End {
    /// With a report, and what to remember once the control plane has stored it.
    Completed(Box<Completed>, Option<Said>),
    /// Given back.
    HandedBack,
    /// The turn is no longer ours, nothing may be reported.
    Gone,
}

/// A turn for the transcript cache: its message, what it did, its reply.
struct Said {
    messages: Vec<Message>,
    history_bytes: usize,
    rewinds: u32,
}

struct Running {
    turn: TurnRef,
    orders: Orders,
    task: AbortHandle,
}

/// The turns of this process.
pub struct Turns {
    shared: Arc<Shared>,
    slots: usize,
    /// By session.
    running: HashMap<u64, Running>,
    tasks: JoinSet<Ended>,
    to_loop: mpsc::Sender<Reported>,
    from_turns: mpsc::Receiver<Reported>,
    /// Steps reported, not answered: at most one of each turn.
    steps: BTreeMap<TurnKey, (StepReport, oneshot::Sender<StepOutcome>)>,
    /// Ends reported, not acknowledged.
    unacknowledged: BTreeMap<TurnKey, (worker_message::Message, Option<Said>)>,
}

/// A [`TurnRef`] that can be a key.
type TurnKey = (u64, u64, u64);

fn key(turn: &TurnRef) -> TurnKey {
    (turn.session_id, turn.seq, turn.epoch)
}

impl Turns {
    /// No turn runs yet.
    pub fn new(shared: Arc<Shared>, slots: usize) -> Self {
        let (to_loop, from_turns) = mpsc::channel(REPORTS);
        Self {
            shared,
            slots,
            running: HashMap::new(),
            tasks: JoinSet::new(),
            to_loop,
            from_turns,
            steps: BTreeMap::new(),
            unacknowledged: BTreeMap::new(),
        }
    }

    /// Begins the assignment's turn where it is new.
    pub fn start(&mut self, assignment: Assignment) -> Started {
        let Some(turn) = assignment.turn else {
            return Started::Ignored;
        };
        if let Some((report, _)) = self.unacknowledged.get(&key(&turn)) {
            return Started::AlreadyEnded(Box::new(report.clone()));
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
            self.forget(running.turn);
        }
        if self.running.len() >= self.slots {
            tracing::warn!(
                session = turn.session_id,
                slots = self.slots,
                "an assignment without a free slot is ignored"
            );
            return Started::Ignored;
        }
        let (orders, inbox) = orders::channel();
        let flow = flow::run(Arc::clone(&self.shared), assignment, turn, inbox, self.to_loop.clone());
        let task = self.tasks.spawn(flow);
        self.running.insert(turn.session_id, Running { turn, orders, task });
        Started::Accepted
    }

    /// Gives a turn back that was not begun; what to say. One that runs here or ended here is answered as by
    /// [`Turns::start`].
    pub fn decline(&mut self, turn: TurnRef) -> worker_message::Message {
        if self.find(&turn).is_some() {
            return worker_message::Message::Accepted(Accepted { turn: Some(turn) });
        }
        let report = || (worker_message::Message::HandBack(HandBack { turn: Some(turn) }), None);
        self.unacknowledged.entry(key(&turn)).or_insert_with(report).0.clone()
    }

    /// Tells a running turn to end; one that does not run here under that fence is no concern.
    pub fn cancel(&mut self, cancel: Cancel) {
        let Some(running) = cancel.turn.and_then(|turn| self.find(&turn)) else {
            return;
        };
        match cancel.kind() {
            CancelKind::Unspecified | CancelKind::Stopped | CancelKind::Interrupted => {
                running.orders.end(Outcome::Cancelled, None);
            }
            CancelKind::Overdue => {
                let overdue = "This took too long, so I have stopped.";
                let sentence = if cancel.reason.is_empty() { overdue.to_owned() } else { cancel.reason };
                running.orders.end(Outcome::Failed, Some(sentence));
            }
            CancelKind::Abandoned => {
                let turn = running.turn;
                self.forget(turn);
            }
        }
    }

    /// A message for the next step boundary of a running turn; without that turn it is no concern.
    pub fn steer(&mut self, steer: Steer) {
        let Some(running) = steer.turn.and_then(|turn| self.find(&turn)) else {
            return;
        };
        if !running.orders.steer(steer) {
            tracing::warn!(
                session = running.turn.session_id,
                "too many messages wait for a turn; this one runs by itself"
            );
        }
    }

    /// Tells every running turn to be handed back at its next step boundary.
    pub fn hand_back(&mut self) {
        self.running.values().for_each(|running| running.orders.hand_back());
    }

    /// Waits for the next report of a turn, and answers it when it is for the control plane. Pending while none comes.
    pub async fn next_report(&mut self) -> Option<worker_message::Message> {
        loop {
            tokio::select! {
                biased;
                // A turn's steps before its end.
                Some(Reported { turn, report, answer }) = self.from_turns.recv() => {
                    if self.find(&turn).is_some() {
                        self.steps.insert(key(&turn), (report.clone(), answer));
                        return Some(worker_message::Message::Step(report));
                    }
                }
                Some(ended) = self.tasks.join_next_with_id() => {
                    let ended = match ended {
                        Ok((task, ended)) => {
                            if self.running.get(&ended.turn.session_id).is_none_or(|running| running.task.id() != task) {
                                continue;
                            }
                            ended
                        }
                        Err(error) => match self.crashed(&error) {
                            Some(ended) => ended,
                            None => continue,
                        },
                    };
                    return self.ended(ended);
                }
            }
        }
    }

    fn ended(&mut self, Ended { turn, end }: Ended) -> Option<worker_message::Message> {
        let (report, said) = match end {
            End::Completed(completed, said) => (worker_message::Message::Completed(*completed), said),
            End::HandedBack => (worker_message::Message::HandBack(HandBack { turn: Some(turn) }), None),
            End::Gone => {
                self.forget(turn);
                return None;
            }
        };
        self.running.remove(&turn.session_id);
        self.unacknowledged.insert(key(&turn), (report.clone(), said));
        Some(report)
    }

    /// A turn that panicked has failed, and only that one; one that was dropped has no end to report.
    fn crashed(&self, error: &tokio::task::JoinError) -> Option<Ended> {
        let turn = self.running.values().find(|running| running.task.id() == error.id())?.turn;
        tracing::error!(session = turn.session_id, turn = turn.seq, %error, "a turn panicked");
        let sentence = "Something went wrong inside the agent. Please try again.";
        let completed = flow::completed(turn, Outcome::Failed, sentence.to_owned(), None);
        Some(Ended { turn, end: End::Completed(completed, None) })
    }

    /// The control plane has answered a step's report.
    pub fn step_acknowledged(&mut self, ack: &StepAck) {
        let Some(turn) = ack.turn else {
            return;
        };
        let waits = |(report, _): &(StepReport, _)| (report.step, report.phase) == (ack.step, ack.phase);
        if !self.steps.get(&key(&turn)).is_some_and(waits) {
            return;
        }
        let outcome = ack.outcome();
        if matches!(outcome, StepOutcome::Stored | StepOutcome::Refused) {
            if let Some((_, answer)) = self.steps.remove(&key(&turn)) {
                // The turn may have ended without waiting for it.
                let _ = answer.send(outcome);
            }
            return;
        }
        tracing::info!(
            session = turn.session_id,
            turn = turn.seq,
            epoch = turn.epoch,
            ?outcome,
            "a step was not stored; the turn is dropped"
        );
        self.forget(turn);
    }

    /// The control plane has heard the report of an end; `stored` says whether it counted.
    pub fn acknowledged(&mut self, turn: &TurnRef, stored: bool) {
        let Some((_, said)) = self.unacknowledged.remove(&key(turn)) else {
            return;
        };
        self.steps.remove(&key(turn));
        match said {
            Some(said) if stored => {
                let Said { messages, history_bytes, rewinds } = said;
                let place = (turn.session_id, turn.seq);
                self.shared.transcripts.record(place, rewinds, messages, history_bytes);
            }
            _ if !stored => {
                tracing::info!(session = turn.session_id, turn = turn.seq, epoch = turn.epoch, "a report came too late")
            }
            _ => {}
        }
    }

    /// All reports without an answer, each turn's step before its end, for a new stream of that worker protocol.
    pub fn unanswered(&mut self, takes_steps: bool) -> Vec<worker_message::Message> {
        if !takes_steps {
            self.give_up_steps();
            // The end of a lease it notices by itself.
            self.unacknowledged.retain(|_, (report, _)| !matches!(report, worker_message::Message::HandBack(_)));
        }
        let steps = self.steps.values().filter(|_| takes_steps).map(|(report, _)| report.clone());
        let ends = self.unacknowledged.values().map(|(report, _)| report.clone());
        steps.map(worker_message::Message::Step).chain(ends).collect()
    }

    /// The control plane is of before steps: what waits for one to be stored cannot go on.
    pub fn give_up_steps(&mut self) {
        for waiting in self.steps.keys() {
            if let Some(running) = self.running.get(&waiting.0).filter(|running| key(&running.turn) == *waiting) {
                running.orders.end(Outcome::Failed, Some(NOT_TAKEN.to_owned()));
            }
        }
    }

    /// Stops every running turn without a report: the lease is lost, others may run them.
    pub fn drop_running(&mut self) {
        self.tasks.abort_all();
        for (_, running) in self.running.drain() {
            self.steps.remove(&key(&running.turn));
        }
    }

    /// Whether nothing runs and nothing waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.unacknowledged.is_empty()
    }

    /// How many turns run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    fn find(&self, turn: &TurnRef) -> Option<&Running> {
        self.running.get(&turn.session_id).filter(|running| key(&running.turn) == key(turn))
    }

    /// Stops a turn at once and without a report; what it did not report of its end stays unreported.
    fn forget(&mut self, turn: TurnRef) {
        self.steps.remove(&key(&turn));
        if self.find(&turn).is_some()
            && let Some(running) = self.running.remove(&turn.session_id)
        {
            // Its end is recognised as stale by its task's id.
            running.task.abort();
        }
    }
}
