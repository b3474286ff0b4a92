//! The workers connected to this replica and what their slots hold: memory only, rebuilt by registration.
//!
//! Always true: a slot is free, reserved by an intake batch, or runs one turn; a reservation is given only while no session
//! of that agent is known to wait (it would jump the queue); every message to a worker goes through its bounded channel and
//! a worker that lets it fill up is disconnected. It never waits and never asks the database.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hermes_core::AgentId;
use hermes_core::turn::Usage;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Assignment;
use crate::store::TurnId;

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
    /// Answer to a heartbeat.
    HeartbeatAck {
        /// Of the heartbeat.
        sequence: u64,
        /// Stop and register again.
        lease_lost: bool,
    },
    /// Finish what runs, take nothing new, leave.
    Drain,
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
    /// Trace context of its intake.
    pub traceparent: Option<String>,
    /// When it was handed to the worker.
    pub since: Instant,
    /// What its model calls used so far, as the broker counted.
    pub usage: Option<Usage>,
}

#[derive(Debug)]
enum Slot {
    Free,
    Reserved,
    Runs(Box<Running>),
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
    /// Since when.
    pub connected_at: Timestamp,
    /// To its stream.
    pub outgoing: mpsc::Sender<ToWorker>,
    /// Ends its stream.
    pub hang_up: CancellationToken,
}

#[derive(Debug)]
struct Member {
    about: Connected,
    slots: Vec<Slot>,
    free: usize,
    heard: bool,
    draining: bool,
}

#[derive(Debug, Default)]
struct State {
    members: HashMap<i64, Member>,
    by_agent: HashMap<i32, Vec<i64>>,
    /// Agents of which sessions are known to wait, and how often that was said: a claim clears only what it has seen.
    waiting: HashMap<i32, u64>,
    said: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Fleet {
    state: Mutex<State>,
}

impl Fleet {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a worker with `slots` slots, of which those in `held` run what it brought along. An earlier connection of the same
    /// certificate is hung up: the newest wins.
    pub fn join(&self, about: Connected, slots: u32, held: Vec<(i16, Running)>) {
        let mut state = self.state();
        for member in state.members.values().filter(|member| member.about.identity == about.identity) {
            member.about.hang_up.cancel();
        }
        state.by_agent.entry(about.agent_no).or_default().push(about.worker_id);
        let slots: Vec<Slot> = (0..slots).map(|_| Slot::Free).collect();
        let free = slots.len();
        let worker_id = about.worker_id;
        let mut member = Member { about, slots, free, heard: true, draining: false };
        for (slot, running) in held {
            member.put(slot, Slot::Runs(Box::new(running)));
        }
        state.members.insert(worker_id, member);
    }

    /// Removes a worker; answers the turns it held.
    pub fn leave(&self, worker: i64) -> Vec<Running> {
        let mut state = self.state();
        let Some(member) = state.members.remove(&worker) else { return Vec::new() };
        if let Some(of_agent) = state.by_agent.get_mut(&member.about.agent_no) {
            of_agent.retain(|id| *id != worker);
        }
        member
            .slots
            .into_iter()
            .filter_map(|slot| if let Slot::Runs(running) = slot { Some(*running) } else { None })
            .collect()
    }

    /// Reserves a slot for a message of `session_key`, if the agent has one free here and nobody of it waits. The same session
    /// gets the same worker and slot where those are free.
    pub fn reserve(&self, agent_no: i32, session_key: &str) -> Option<(i64, i16)> {
        let mut state = self.state();
        if state.waiting.contains_key(&agent_no) {
            return None;
        }
        let hash =
            usize::try_from(BuildHasherDefault::<DefaultHasher>::default().hash_one(session_key) >> 1).unwrap_or(0);
        let of_agent = state.by_agent.get(&agent_no)?;
        let count = of_agent.len();
        let candidates: Vec<i64> =
            (0..count).filter_map(|i| of_agent.get((hash.wrapping_add(i)) % count).copied()).collect();
        candidates.into_iter().find_map(|worker| {
            let member = state.members.get_mut(&worker)?;
            member.take_slot(hash).map(|slot| (worker, slot))
        })
    }

    /// The agent of a connected worker.
    pub fn agent_of(&self, worker: i64) -> Option<i32> {
        self.state().members.get(&worker).map(|member| member.about.agent_no)
    }

    /// Gives a reservation back.
    pub fn release(&self, worker: i64, slot: i16) {
        if let Some(member) = self.state().members.get_mut(&worker) {
            member.put(slot, Slot::Free);
        }
    }

    /// Sends an assignment again; false when the worker is gone or does not read.
    pub fn remind(&self, worker: i64, assignment: Box<Assignment>) -> bool {
        self.send(worker, ToWorker::Assign(assignment))
    }

    /// Puts a turn into a reserved slot and sends its assignment. False when the worker is gone or does not read: the lease
    /// decides then.
    pub fn assign(&self, worker: i64, slot: i16, running: Running, assignment: Box<Assignment>) -> bool {
        let mut state = self.state();
        let Some(member) = state.members.get_mut(&worker) else { return false };
        member.put(slot, Slot::Runs(Box::new(running)));
        member.send(ToWorker::Assign(assignment))
    }

    /// Free slots of agents, reserved for a claim.
    pub fn reserve_all(&self, agents: &[i32], limit: usize) -> Vec<(i64, i16)> {
        let mut state = self.state();
        let workers: Vec<i64> =
            agents.iter().filter_map(|agent| state.by_agent.get(agent)).flatten().copied().collect();
        let mut slots = Vec::new();
        for worker in workers {
            let Some(member) = state.members.get_mut(&worker) else { continue };
            while slots.len() < limit {
                match member.take_slot(slots.len()) {
                    Some(slot) => slots.push((worker, slot)),
                    None => break,
                }
            }
        }
        slots
    }

    /// The turn that `worker` runs under this fence, with its slot.
    pub fn running(&self, worker: i64, turn: TurnId, epoch: i64) -> Option<(i16, Running)> {
        let state = self.state();
        let member = state.members.get(&worker)?;
        member.slots.iter().enumerate().find_map(|(index, slot)| match slot {
            Slot::Runs(running) if running.turn == turn && running.epoch == epoch => {
                Some((slot_number(index), running.as_ref().clone()))
            }
            _ => None,
        })
    }

    /// Whether any worker connected here runs the turn under this fence.
    pub fn runs(&self, turn: TurnId, epoch: i64) -> bool {
        let state = self.state();
        let mut slots = state.members.values().flat_map(|member| &member.slots);
        slots.any(|slot| matches!(slot, Slot::Runs(running) if running.turn == turn && running.epoch == epoch))
    }

    /// The turn that any connection of this certificate runs under this fence.
    pub fn running_by(&self, identity: Uuid, turn: TurnId, epoch: i64) -> Option<Running> {
        let worker = {
            let state = self.state();
            state
                .members
                .values()
                .find(|m| m.about.identity == identity && !m.about.hang_up.is_cancelled())?
                .about
                .worker_id
        };
        self.running(worker, turn, epoch).map(|(_, running)| running)
    }

    /// Adds what a model call of a running turn used.
    pub fn note_usage(&self, identity: Uuid, turn: TurnId, epoch: i64, used: &Usage) {
        let mut state = self.state();
        let slots = state.members.values_mut().filter(|m| m.about.identity == identity).flat_map(|m| &mut m.slots);
        for slot in slots {
            if let Slot::Runs(running) = slot
                && running.turn == turn
                && running.epoch == epoch
            {
                let sum = running.usage.get_or_insert_default();
                sum.input_tokens += used.input_tokens;
                sum.output_tokens += used.output_tokens;
                sum.cached_tokens += used.cached_tokens;
                sum.cost_usd = match (sum.cost_usd, used.cost_usd) {
                    (Some(a), Some(b)) => Some(a + b),
                    (a, b) => a.or(b),
                };
                sum.model.clone_from(&used.model);
            }
        }
    }

    /// Sends to a worker; false when it is gone or does not read.
    pub fn send(&self, worker: i64, message: ToWorker) -> bool {
        self.state().members.get_mut(&worker).is_some_and(|member| member.send(message))
    }

    /// Sessions of an agent are known to wait.
    pub fn set_waiting(&self, agent_no: i32) {
        let mut state = self.state();
        state.said += 1;
        let said = state.said;
        state.waiting.insert(agent_no, said);
    }

    /// Nothing of these agents waited when it was said for the last time that [`Fleet::claimable`] answered.
    pub fn clear_waiting(&self, seen: &[(i32, u64)]) {
        let mut state = self.state();
        for (agent_no, said) in seen {
            if state.waiting.get(agent_no) == Some(said) {
                state.waiting.remove(agent_no);
            }
        }
    }

    /// Whether sessions of an agent are known to wait.
    pub fn is_waiting(&self, agent_no: i32) -> bool {
        self.state().waiting.contains_key(&agent_no)
    }

    /// Agents with a free slot here that are known to wait, and when that was said.
    pub fn claimable(&self) -> Vec<(i32, u64)> {
        let state = self.state();
        let has_free = |agent: &i32| {
            state.by_agent.get(agent).is_some_and(|workers| {
                workers.iter().any(|w| state.members.get(w).is_some_and(|m| m.free > 0 && !m.draining))
            })
        };
        state.waiting.iter().filter(|(agent, _)| has_free(agent)).map(|(agent, said)| (*agent, *said)).collect()
    }

    /// Whether a worker of the agent is connected here.
    pub fn has_worker(&self, agent_no: i32) -> bool {
        self.state().by_agent.get(&agent_no).is_some_and(|workers| !workers.is_empty())
    }

    /// A heartbeat came.
    pub fn heard(&self, worker: i64) {
        if let Some(member) = self.state().members.get_mut(&worker) {
            member.heard = true;
        }
    }

    /// The workers heard of since the last call: their leases are renewed.
    pub fn take_heard(&self) -> Vec<i64> {
        let mut state = self.state();
        state.members.values_mut().filter_map(|m| std::mem::take(&mut m.heard).then_some(m.about.worker_id)).collect()
    }

    /// The leases of these workers have lapsed: they are told and hung up.
    pub fn lapse(&self, workers: &[i64]) {
        let mut state = self.state();
        for worker in workers {
            if let Some(member) = state.members.get_mut(worker) {
                member.send(ToWorker::HeartbeatAck { sequence: 0, lease_lost: true });
                member.about.hang_up.cancel();
            }
        }
    }

    /// Takes no new turns to the workers that `which` picks and tells them to leave; answers them.
    pub fn drain(&self, which: impl Fn(&Connected) -> bool) -> Vec<i64> {
        let mut state = self.state();
        let mut drained = Vec::new();
        for member in state.members.values_mut().filter(|m| !m.draining && which(&m.about)) {
            member.draining = true;
            member.send(ToWorker::Drain);
            drained.push(member.about.worker_id);
        }
        drained
    }

    /// The registrations that `which` picks.
    pub fn find(&self, which: impl Fn(&Connected) -> bool) -> Vec<i64> {
        self.state().members.values().filter(|m| which(&m.about)).map(|m| m.about.worker_id).collect()
    }

    /// Turns that have run for at least `age` and have a lane, for typing signals.
    pub fn long_running(&self, age: std::time::Duration) -> Vec<i64> {
        let state = self.state();
        let slots = state.members.values().flat_map(|m| &m.slots);
        slots
            .filter_map(|slot| match slot {
                Slot::Runs(running) if running.since.elapsed() >= age => running.lane,
                _ => None,
            })
            .collect()
    }

    /// Connected workers, for people, by number.
    pub fn views(&self) -> Vec<WorkerView> {
        let state = self.state();
        let mut views: Vec<WorkerView> = state.members.values().map(Member::view).collect();
        views.sort_by_key(|view| view.worker_id);
        views
    }
}

impl Member {
    fn take_slot(&mut self, hash: usize) -> Option<i16> {
        if self.free == 0 || self.draining || self.about.hang_up.is_cancelled() {
            return None;
        }
        let count = self.slots.len();
        let index = (0..count)
            .map(|i| hash.wrapping_add(i) % count)
            .find(|i| matches!(self.slots.get(*i), Some(Slot::Free)))?;
        *self.slots.get_mut(index)? = Slot::Reserved;
        self.free -= 1;
        Some(slot_number(index))
    }

    fn put(&mut self, slot: i16, content: Slot) {
        let Some(place) = usize::try_from(slot).ok().and_then(|n| n.checked_sub(1)).and_then(|i| self.slots.get_mut(i))
        else {
            return;
        };
        let was_free = matches!(place, Slot::Free);
        let is_free = matches!(content, Slot::Free);
        *place = content;
        match (was_free, is_free) {
            (true, false) => self.free -= 1,
            (false, true) => self.free += 1,
            _ => {}
        }
    }

    fn send(&mut self, message: ToWorker) -> bool {
        if self.about.outgoing.try_send(message).is_ok() {
            return true;
        }
        // Full: it has stopped reading. Closed: it is leaving. Either way the lease decides.
        self.about.hang_up.cancel();
        false
    }

    fn view(&self) -> WorkerView {
        let running = self.slots.iter().filter(|slot| matches!(slot, Slot::Runs(_))).count();
        WorkerView {
            worker_id: self.about.worker_id,
            agent: self.about.agent.clone(),
            pid: self.about.pid,
            home: self.about.home.clone(),
            build: self.about.build.clone(),
            state: if self.draining {
                "draining"
            } else if self.free == 0 {
                "busy"
            } else {
                "ready"
            },
            slots: u32::try_from(self.slots.len()).unwrap_or(u32::MAX),
            running: u32::try_from(running).unwrap_or(u32::MAX),
            connected_at: self.about.connected_at,
        }
    }
}

fn slot_number(index: usize) -> i16 {
    i16::try_from(index + 1).unwrap_or(i16::MAX)
}
