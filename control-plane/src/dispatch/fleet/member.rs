//! One worker of the fleet: what it said of itself, its slots, its channel.
//!
//! Used by [`super::Fleet`] under its lock. Always true: a running turn is found by its fence without a search; what is sent
//! never waits.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hermes_core::AgentId;
use hermes_core::step::Phase;
use hermes_core::turn::{Errand, Usage};
use hermes_home::curator::{Order, Settings};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Replies;
use crate::attachments::Had;
use crate::dispatch::{Assignment, StepAnswer};
use crate::store::{Signal, TurnId};

/// What the control plane tells a worker.
#[derive(Clone, Debug)]
pub enum ToWorker {
    /// Run this turn.
    Assign(Box<Assignment>),
    /// The completion is stored (or fenced: forget the turn).
    CompletedAck {
        /// The turn.
        turn: TurnId,
        /// Its fence.
        epoch: i64,
        /// False: fenced.
        stored: bool,
    },
    /// What became of a reported step.
    StepAck {
        /// The turn.
        turn: TurnId,
        /// Its fence.
        epoch: i64,
        /// The step.
        step: i32,
        /// Before or after it.
        phase: Phase,
        /// Forget the turn unless it is stored or refused.
        answer: StepAnswer,
    },
    /// Answer to a heartbeat.
    HeartbeatAck {
        /// Of the heartbeat.
        sequence: u64,
        /// Stop and register again.
        lease_lost: bool,
        /// When the agent's skills are looked after, as of now; nothing: as before.
        curator: Option<Settings>,
    },
    /// End or drop a turn.
    Cancel {
        /// The turn.
        turn: TurnId,
        /// Its fence.
        epoch: i64,
        /// What is wanted.
        kind: CancelKind,
        /// For its log and, where the turn is to be ended with a sentence, for the chat.
        reason: String,
    },
    /// A message that the turn may take in at its next step.
    Steer {
        /// The turn.
        turn: TurnId,
        /// Its fence.
        epoch: i64,
        /// The queued turn that the message is.
        seq: i64,
        /// JSON of `TurnInput`.
        input: Vec<u8>,
    },
    /// Do this to the agent's skills, and say what came of it.
    Curate {
        /// Comes back with the answer.
        id: u64,
        /// What is asked.
        order: Order,
        /// By which settings.
        settings: Settings,
    },
    /// Take nothing new; what runs may end by itself for this long, then hand it back; leave.
    Drain(Duration),
}

/// What a worker is to do with a turn; see the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelKind {
    /// A person stopped it: end it as cancelled.
    Stopped,
    /// A newer message goes first: end it as cancelled.
    Interrupted,
    /// End it as failed with a sentence for the chat.
    Overdue,
    /// Drop it at once and report nothing.
    Abandoned,
}

/// Why a turn is taken from its worker though the worker lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overrun {
    /// It took longer than a turn may.
    Deadline,
    /// It showed no progress for too long.
    Stalled,
}

impl Overrun {
    /// One word for programs.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Stalled => "stalled",
        }
    }

    /// The sentence for the chat.
    pub fn notice(self) -> &'static str {
        match self {
            Self::Deadline => {
                "I gave this message up because working on it took longer than it may. You can send the next one."
            }
            Self::Stalled => {
                "I gave this message up because nothing moved any more while I worked on it. You can send the next one."
            }
        }
    }
}

/// What the worker of a running turn was told meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Told {
    /// Nothing.
    #[default]
    Nothing,
    /// That it may take in the queued turns up to this number.
    Offered(i64),
    /// That a newer message goes first.
    Interrupted,
    /// That a person stopped it.
    Stopped,
}

/// A turn in a slot.
#[derive(Clone, Debug)]
pub struct Running {
    /// The turn.
    pub turn: TurnId,
    /// Its fence.
    pub epoch: i64,
    /// Where its reply goes.
    pub lane: Option<i64>,
    /// Its session's key.
    pub session_key: String,
    /// The profile revision pinned for it.
    pub revision: i64,
    /// Its session's own model.
    pub model: Option<String>,
    /// What it is about that nobody asked for in a conversation.
    pub errand: Option<Errand>,
    /// Trace context of its intake.
    pub traceparent: Option<String>,
    /// When it was handed to the worker.
    pub since: Instant,
    /// What its model calls used so far, as the broker counted.
    pub usage: Option<Usage>,
    /// What is known of its journaled model replies.
    pub replies: Replies,
    /// The worker said that it has it.
    pub accepted: bool,
    /// When it must have ended; nothing: no limit is known.
    pub deadline: Option<Instant>,
    /// When it last showed progress.
    pub progressed: Instant,
    /// It was told to end because of this, then.
    pub overrun: Option<(Overrun, Instant)>,
    /// What it was told since.
    pub told: Told,
    /// What was asked for of its files.
    pub had: Had,
}

impl Running {
    /// What the worker must be told of a signal; nothing when it knows.
    pub(super) fn tell(&mut self, signal: Signal) -> Option<ToWorker> {
        let (turn, epoch) = (self.turn, self.epoch);
        let (told, message) = match (signal, self.told) {
            (Signal::Stop, Told::Nothing | Told::Offered(_) | Told::Interrupted) => (
                Told::Stopped,
                ToWorker::Cancel { turn, epoch, kind: CancelKind::Stopped, reason: "a person stopped it".to_owned() },
            ),
            (Signal::Interrupt, Told::Nothing | Told::Offered(_)) => (
                Told::Interrupted,
                ToWorker::Cancel {
                    turn,
                    epoch,
                    kind: CancelKind::Interrupted,
                    reason: "a newer message goes first".to_owned(),
                },
            ),
            (Signal::Steer(Some((seq, input))), Told::Nothing) => {
                (Told::Offered(seq), ToWorker::Steer { turn, epoch, seq, input })
            }
            (Signal::Steer(Some((seq, input))), Told::Offered(before)) if before < seq => {
                (Told::Offered(seq), ToWorker::Steer { turn, epoch, seq, input })
            }
            _ => return None,
        };
        self.told = told;
        Some(message)
    }
}

#[derive(Debug)]
pub(super) enum Slot {
    Free,
    Reserved,
    Runs(Box<Running>),
}

/// The slots of a worker, numbered from 1.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: usize,
    /// Where a turn runs, by its fence.
    places: HashMap<(TurnId, i64), i16>,
}

impl Slots {
    pub(super) fn new(count: u32) -> Self {
        let slots: Vec<Slot> = (0..count).map(|_| Slot::Free).collect();
        Self { free: slots.len(), slots, places: HashMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many are free.
    pub(super) fn free(&self) -> usize {
        self.free
    }

    pub(super) fn get(&self, slot: i16) -> Option<&Slot> {
        self.slots.get(usize::try_from(slot).ok()?.checked_sub(1)?)
    }

    /// What runs here.
    pub(super) fn runs(&self) -> impl Iterator<Item = &Running> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Runs(running) => Some(running.as_ref()),
            _ => None,
        })
    }

    /// As [`Slots::runs`]; turn and fence stay what they are.
    pub(super) fn runs_mut(&mut self) -> impl Iterator<Item = &mut Running> {
        self.slots.iter_mut().filter_map(|slot| match slot {
            Slot::Runs(running) => Some(running.as_mut()),
            _ => None,
        })
    }

    /// The slot of a turn under this fence.
    pub(super) fn place(&self, turn: TurnId, epoch: i64) -> Option<i16> {
        self.places.get(&(turn, epoch)).copied()
    }

    /// A turn under this fence.
    pub(super) fn running(&self, turn: TurnId, epoch: i64) -> Option<&Running> {
        match self.get(self.place(turn, epoch)?) {
            Some(Slot::Runs(running)) => Some(running),
            _ => None,
        }
    }

    /// As [`Slots::running`]; turn and fence stay what they are.
    pub(super) fn running_mut(&mut self, turn: TurnId, epoch: i64) -> Option<&mut Running> {
        let index = usize::try_from(self.place(turn, epoch)?).ok()?.checked_sub(1)?;
        match self.slots.get_mut(index) {
            Some(Slot::Runs(running)) => Some(running),
            _ => None,
        }
    }

    /// Reserves a free one, the one that `hash` points to where that is free.
    fn take(&mut self, hash: usize) -> Option<i16> {
        let count = self.slots.len();
        let is_free = |i: &usize| matches!(self.slots.get(*i), Some(Slot::Free));
        let index = (0..count).map(|i| hash.wrapping_add(i) % count).find(is_free)?;
        let slot = i16::try_from(index + 1).unwrap_or(i16::MAX);
        self.put(slot, Slot::Reserved);
        Some(slot)
    }

    pub(super) fn put(&mut self, slot: i16, content: Slot) {
        let index = usize::try_from(slot).ok().and_then(|number| number.checked_sub(1));
        let Some(place) = index.and_then(|index| self.slots.get_mut(index)) else { return };
        match std::mem::replace(place, content) {
            Slot::Free => self.free -= 1,
            Slot::Runs(before) => {
                let fence = (before.turn, before.epoch);
                if self.places.get(&fence) == Some(&slot) {
                    self.places.remove(&fence);
                }
            }
            Slot::Reserved => {}
        }
        match place {
            Slot::Free => self.free += 1,
            Slot::Runs(now) => {
                self.places.insert((now.turn, now.epoch), slot);
            }
            Slot::Reserved => {}
        }
    }

    /// What ran here, when the worker is gone.
    pub(super) fn into_runs(self) -> impl Iterator<Item = Running> {
        self.slots.into_iter().filter_map(|slot| match slot {
            Slot::Runs(running) => Some(*running),
            _ => None,
        })
    }
}

/// A connected worker, for people.
#[derive(Clone, Debug)]
pub struct WorkerView {
    /// Registration number.
    pub worker_id: i64,
    /// Its agent.
    pub agent: AgentId,
    /// The host's pid, as it says.
    pub pid: i64,
    /// Its home, as it says.
    pub home: String,
    /// Its build, as it says.
    pub build: String,
    /// `ready`, `busy` (no free slot) or `draining`.
    pub state: &'static str,
    /// Slots.
    pub slots: u32,
    /// Turns running.
    pub running: u32,
    /// Since when.
    pub connected_at: Timestamp,
}

/// A worker that has registered.
#[derive(Debug)]
pub struct Connected {
    /// Registration number.
    pub worker_id: i64,
    /// Its agent's number.
    pub agent_no: i32,
    /// Its agent.
    pub agent: AgentId,
    /// The uuid of its certificate.
    pub identity: Uuid,
    /// The host's pid, as it says.
    pub pid: i64,
    /// Its home, as it says.
    pub home: String,
    /// Its build, as it says.
    pub build: String,
    /// The worker protocol that it speaks.
    pub protocol: u32,
    /// Whether it does what operators ask of the curator of its skills.
    pub curates: bool,
    /// Since when.
    pub connected_at: Timestamp,
    /// To its stream.
    pub outgoing: mpsc::Sender<ToWorker>,
    /// Ends its stream.
    pub hang_up: CancellationToken,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) about: Connected,
    pub(super) slots: Slots,
    pub(super) heard: bool,
    pub(super) last_heard: Instant,
    /// It takes no new turns, and was told to give back then what it still runs.
    pub(super) draining: Option<Instant>,
    /// Turns that it gave back.
    pub(super) handed_back: usize,
}

impl Member {
    pub(super) fn take_slot(&mut self, hash: usize) -> Option<i16> {
        if self.slots.free() == 0 || self.draining.is_some() || self.about.hang_up.is_cancelled() {
            return None;
        }
        self.slots.take(hash)
    }

    pub(super) fn send(&mut self, message: ToWorker) -> bool {
        if self.about.outgoing.try_send(message).is_ok() {
            return true;
        }
        // Full: it has stopped reading. Closed: it is leaving. Either way the lease decides.
        self.about.hang_up.cancel();
        false
    }

    pub(super) fn view(&self) -> WorkerView {
        WorkerView {
            worker_id: self.about.worker_id,
            agent: self.about.agent.clone(),
            pid: self.about.pid,
            home: self.about.home.clone(),
            build: self.about.build.clone(),
            state: if self.draining.is_some() {
                "draining"
            } else if self.slots.free() == 0 {
                "busy"
            } else {
                "ready"
            },
            slots: u32::try_from(self.slots.len()).unwrap_or(u32::MAX),
            running: u32::try_from(self.slots.runs().count()).unwrap_or(u32::MAX),
            connected_at: self.about.connected_at,
        }
    }
}
