//! The workers connected to this replica and what their slots hold: memory only, rebuilt by registration.
//!
//! Always true: a slot is free, reserved by an intake batch, or runs one turn; a reservation is given only while no session
//! of that agent is known to wait (it would jump the queue); every message to a worker goes through its bounded channel and
//! a worker that lets it fill up is disconnected. It never waits and never asks the database.

mod member;
mod replies;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

pub use member::{CancelKind, Connected, Overrun, Running, ToWorker, Told, WorkerView};
pub use replies::Replies;
pub(crate) use replies::add as add_usage;

use member::{Member, Slot, Slots};

use super::Assignment;
use crate::store::{Signalled, TurnId};

/// How often a lease is tried to be handed over before it is left to the slow search for leases without a slot.
const MAX_UNRESOLVED: u32 = 60;

#[derive(Debug, Default)]
struct State {
    members: HashMap<i64, Member>,
    by_agent: HashMap<i32, Vec<i64>>,
    /// Agents of which sessions are known to wait, and how often that was said: a claim clears only what it has seen.
    waiting: HashMap<i32, u64>,
    said: u64,
    /// Slots that a call whose answer was lost may have leased. They stay reserved until the store was asked.
    doubts: HashSet<(i64, i16)>,
    /// Some lease may not have reached its worker.
    doubted: bool,
    /// How often in a row the store named a lease that could not be handed over.
    unresolved: u32,
    /// How often slots were reserved for a claim.
    claims: usize,
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
    /// certificate is hung up: the newest wins, and learns what was known of its turns.
    pub fn join(&self, about: Connected, slots: u32, mut held: Vec<(i16, Running)>) {
        let mut state = self.state();
        let before = state.members.values().filter(|member| member.about.identity == about.identity);
        for old in before.flat_map(|member| member.slots.runs()) {
            for (_, new) in held.iter_mut().filter(|(_, new)| new.turn == old.turn && new.epoch == old.epoch) {
                new.usage.clone_from(&old.usage);
                new.replies.inherit(&old.replies);
            }
        }
        for member in state.members.values().filter(|member| member.about.identity == about.identity) {
            member.about.hang_up.cancel();
        }
        state.by_agent.entry(about.agent_no).or_default().push(about.worker_id);
        let worker_id = about.worker_id;
        let mut slots = Slots::new(slots);
        for (slot, running) in held {
            slots.put(slot, Slot::Runs(Box::new(running)));
        }
        let member = Member { about, slots, heard: true, last_heard: Instant::now(), draining: None, handed_back: 0 };
        state.members.insert(worker_id, member);
    }

    /// Removes a worker; answers the turns it held.
    pub fn leave(&self, worker: i64) -> Vec<Running> {
        let mut state = self.state();
        let Some(member) = state.members.remove(&worker) else { return Vec::new() };
        state.doubts.retain(|(doubted, _)| *doubted != worker);
        if let Some(of_agent) = state.by_agent.get_mut(&member.about.agent_no) {
            of_agent.retain(|id| *id != worker);
        }
        member.slots.into_runs().collect()
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
        if let Some(member) = self.state().members.get_mut(&worker)
            && matches!(member.slots.get(slot), Some(Slot::Reserved))
        {
            member.slots.put(slot, Slot::Free);
        }
    }

    /// Takes a turn that has ended out of its slot, which stays reserved. False when it is not there (any more): a report that
    /// came twice must not touch what runs there now.
    pub fn finish(&self, worker: i64, slot: i16, turn: TurnId, epoch: i64) -> bool {
        let mut state = self.state();
        let Some(member) = state.members.get_mut(&worker) else { return false };
        let there = member.slots.place(turn, epoch) == Some(slot);
        if there {
            member.slots.put(slot, Slot::Reserved);
        }
        there
    }

    /// A call that may have leased this reserved slot got no answer: it stays reserved until the store was asked.
    pub fn doubt(&self, worker: i64, slot: i16) {
        let mut state = self.state();
        state.doubted = true;
        if state.members.contains_key(&worker) {
            state.doubts.insert((worker, slot));
        }
    }

    /// Some lease did not reach its worker.
    pub fn suspect(&self) {
        self.state().doubted = true;
    }

    /// Whether the store must be asked what the workers hold.
    pub fn in_doubt(&self) -> bool {
        self.state().doubted
    }

    /// All workers here and the slots in doubt.
    pub fn doubts(&self) -> (Vec<i64>, Vec<(i64, i16)>) {
        let state = self.state();
        (state.members.keys().copied().collect(), state.doubts.iter().copied().collect())
    }

    /// Whether a lease of this slot can be handed over: nothing else runs there.
    pub fn is_vacant(&self, worker: i64, slot: i16) -> bool {
        let state = self.state();
        state
            .members
            .get(&worker)
            .is_some_and(|member| matches!(member.slots.get(slot), Some(Slot::Free | Slot::Reserved)))
    }

    /// The store was asked and its leases were handed over, but for those in `left` slots that were not vacant: what is still
    /// reserved of `slots` is free.
    pub fn settled(&self, slots: &[(i64, i16)], left: usize) {
        let mut state = self.state();
        for (worker, slot) in slots {
            state.doubts.remove(&(*worker, *slot));
            if let Some(member) = state.members.get_mut(worker)
                && matches!(member.slots.get(*slot), Some(Slot::Reserved))
            {
                member.slots.put(*slot, Slot::Free);
            }
        }
        state.unresolved = if left == 0 { 0 } else { state.unresolved + 1 };
        // What is in the way ends soon; a lease that stays behind it longer is for the slow search.
        state.doubted = !state.doubts.is_empty() || (1..MAX_UNRESOLVED).contains(&state.unresolved);
    }

    /// A worker gives a turn back; answers whether it has given back more than it has slots.
    pub fn handed_back(&self, worker: i64) -> bool {
        let mut state = self.state();
        let Some(member) = state.members.get_mut(&worker) else { return false };
        member.handed_back += 1;
        member.handed_back > member.slots.len()
    }

    /// Ends a worker's stream.
    pub fn hang_up(&self, worker: i64) {
        if let Some(member) = self.state().members.get(&worker) {
            member.about.hang_up.cancel();
        }
    }

    /// Ends all streams; answers whether there is none.
    pub fn hang_up_all(&self) -> bool {
        let state = self.state();
        state.members.values().for_each(|member| member.about.hang_up.cancel());
        state.members.is_empty()
    }

    /// The worker has taken a turn.
    pub fn accepted(&self, worker: i64, turn: TurnId, epoch: i64) {
        let mut state = self.state();
        let member = state.members.get_mut(&worker);
        if let Some(running) = member.and_then(|member| member.slots.running_mut(turn, epoch)) {
            running.accepted = true;
            running.progressed = Instant::now();
        }
    }

    /// A turn showed progress, as its worker says or as the broker sees. False when it does not run there.
    pub fn progressed(&self, identity: Uuid, turn: TurnId, epoch: i64) -> bool {
        let mut state = self.state();
        let mut members = state.members.values_mut().filter(|m| m.about.identity == identity);
        members.find_map(|member| member.slots.running_mut(turn, epoch)).is_some_and(|running| {
            running.progressed = Instant::now();
            true
        })
    }

    /// Tells the workers of turns that are over their deadline, or have shown no progress for `stall`, to end them. Answers
    /// these turns.
    pub fn overrun(&self, stall: Duration) -> Vec<(TurnId, Overrun)> {
        let mut told = Vec::new();
        let now = Instant::now();
        for member in self.state().members.values_mut() {
            let mut messages = Vec::new();
            for running in member.slots.runs_mut() {
                let why = match running.deadline {
                    _ if running.overrun.is_some() => continue,
                    Some(deadline) if now >= deadline => Overrun::Deadline,
                    _ if now.duration_since(running.progressed) >= stall => Overrun::Stalled,
                    _ => continue,
                };
                running.overrun = Some((why, now));
                told.push((running.turn, why));
                messages.push(ToWorker::Cancel {
                    turn: running.turn,
                    epoch: running.epoch,
                    kind: CancelKind::Overdue,
                    reason: why.notice().to_owned(),
                });
            }
            for message in messages {
                member.send(message);
            }
        }
        told
    }

    /// Turns that were told to end for overrunning longer than `grace` ago and still run, with their fences.
    pub fn overrun_since(&self, grace: Duration) -> Vec<(TurnId, i64, Overrun)> {
        let state = self.state();
        let late = state.members.values().flat_map(|member| member.slots.runs()).filter_map(|running| {
            let (why, since) = running.overrun?;
            (since.elapsed() >= grace).then_some((running.turn, running.epoch, why))
        });
        late.collect()
    }

    /// A turn is not its worker's any more: its slot is free, and the worker is told to drop it (`tell`) or has given it back.
    /// Answers the worker's agent, if it ran here.
    pub fn take(&self, turn: TurnId, epoch: i64, tell: bool) -> Option<i32> {
        let mut state = self.state();
        let (member, slot) = state.members.values_mut().find_map(|member| {
            let slot = member.slots.place(turn, epoch)?;
            Some((member, slot))
        })?;
        member.slots.put(slot, Slot::Free);
        if tell {
            let reason = "it was given up".to_owned();
            member.send(ToWorker::Cancel { turn, epoch, kind: CancelKind::Abandoned, reason });
        }
        Some(member.about.agent_no)
    }

    /// Hangs up workers that were not heard of for `silence`, or that have not taken a turn they were given that long ago:
    /// their leases would be renewed while nobody works. Answers them.
    pub fn hang_up_idlers(&self, silence: Duration) -> Vec<i64> {
        let state = self.state();
        let idles = |member: &&Member| {
            let forgotten = |running: &Running| !running.accepted && running.since.elapsed() > silence;
            !member.about.hang_up.is_cancelled()
                && (member.last_heard.elapsed() > silence || member.slots.runs().any(forgotten))
        };
        let idlers: Vec<&Member> = state.members.values().filter(idles).collect();
        idlers.iter().for_each(|member| member.about.hang_up.cancel());
        idlers.iter().map(|member| member.about.worker_id).collect()
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
        member.slots.put(slot, Slot::Runs(Box::new(running)));
        member.send(ToWorker::Assign(assignment))
    }

    /// Free slots of agents, reserved for a claim: one of each agent in turn, beginning with another one each time, so that an agent
    /// with many slots and much to do does not fill every claim.
    pub fn reserve_all(&self, agents: &[i32], limit: usize) -> Vec<(i64, i16)> {
        let mut state = self.state();
        state.claims = state.claims.wrapping_add(1);
        let first = state.claims % agents.len().max(1);
        let of_agent = |agent| state.by_agent.get(agent).cloned().unwrap_or_default();
        let mut rounds: Vec<Vec<i64>> = agents.iter().map(of_agent).collect();
        rounds.rotate_left(first);
        let mut slots = Vec::new();
        while slots.len() < limit && !rounds.is_empty() {
            rounds.retain_mut(|workers| {
                while let Some(worker) = workers.last().copied() {
                    let member = state.members.get_mut(&worker).filter(|_| slots.len() < limit);
                    if let Some(slot) = member.and_then(|member| member.take_slot(slots.len())) {
                        slots.push((worker, slot));
                        return true;
                    }
                    workers.pop();
                }
                false
            });
        }
        slots
    }

    /// The turn that `worker` runs under this fence, with its slot.
    pub fn running(&self, worker: i64, turn: TurnId, epoch: i64) -> Option<(i16, Running)> {
        let state = self.state();
        let member = state.members.get(&worker)?;
        Some((member.slots.place(turn, epoch)?, member.slots.running(turn, epoch)?.clone()))
    }

    /// Whether any worker connected here runs the turn under this fence.
    pub fn runs(&self, turn: TurnId, epoch: i64) -> bool {
        let state = self.state();
        state.members.values().any(|member| member.slots.place(turn, epoch).is_some())
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

    /// All workers connected here.
    pub fn workers(&self) -> Vec<i64> {
        self.state().members.keys().copied().collect()
    }

    /// Tells a worker what is asked of its running turn, once.
    pub fn tell(&self, signalled: Signalled) {
        let Signalled { worker, turn, epoch, signal } = signalled;
        let mut state = self.state();
        let Some(member) = state.members.get_mut(&worker) else { return };
        let running = member.slots.running_mut(turn, epoch);
        if let Some(message) = running.and_then(|running| running.tell(signal)) {
            member.send(message);
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
                workers.iter().any(|w| state.members.get(w).is_some_and(|m| m.slots.free() > 0 && m.draining.is_none()))
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
            member.last_heard = Instant::now();
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
                member.send(ToWorker::HeartbeatAck { sequence: 0, lease_lost: true, curator: None });
                member.about.hang_up.cancel();
            }
        }
    }

    /// Takes no new turns to the workers that `which` picks and tells them to leave, giving back after `grace` what they still
    /// run; answers those to which that is new. Asked again, a shorter time counts.
    pub fn drain(&self, which: impl Fn(&Connected) -> bool, grace: Duration) -> Vec<i64> {
        let until = Instant::now() + grace;
        let mut state = self.state();
        let mut drained = Vec::new();
        for member in state.members.values_mut().filter(|m| which(&m.about)) {
            let before = member.draining;
            // What the database says is left comes with every poll and is never quite the same.
            if before.is_some_and(|before| before <= until + Duration::from_millis(500)) {
                continue;
            }
            member.draining = Some(until);
            member.send(ToWorker::Drain(grace));
            if before.is_none() {
                drained.push(member.about.worker_id);
            }
        }
        drained
    }

    /// Whether the worker takes no new turns.
    pub fn is_draining(&self, worker: i64) -> bool {
        self.state().members.get(&worker).is_some_and(|member| member.draining.is_some())
    }

    /// The worker protocol that a connected worker speaks.
    pub fn protocol(&self, worker: i64) -> Option<u32> {
        self.state().members.get(&worker).map(|member| member.about.protocol)
    }

    /// The registrations that `which` picks.
    pub fn find(&self, which: impl Fn(&Connected) -> bool) -> Vec<i64> {
        self.state().members.values().filter(|m| which(&m.about)).map(|m| m.about.worker_id).collect()
    }

    /// The worker that has kept the skills of an agent for longest, of those that can and stay.
    pub fn curator_of(&self, agent_no: i32) -> Option<i64> {
        let state = self.state();
        let here = state.by_agent.get(&agent_no).into_iter().flatten().filter(|worker| {
            state.members.get(worker).is_some_and(|member| {
                member.about.curates && member.draining.is_none() && !member.about.hang_up.is_cancelled()
            })
        });
        here.min().copied()
    }

    /// Turns that have run for at least `age` and have a lane, for typing signals.
    pub fn long_running(&self, age: Duration) -> Vec<i64> {
        let state = self.state();
        let runs = state.members.values().flat_map(|m| m.slots.runs());
        runs.filter(|running| running.since.elapsed() >= age).filter_map(|running| running.lane).collect()
    }

    /// Connected workers, for people, by number.
    pub fn views(&self) -> Vec<WorkerView> {
        let state = self.state();
        let mut views: Vec<WorkerView> = state.members.values().map(Member::view).collect();
        views.sort_by_key(|view| view.worker_id);
        views
    }
}

#[cfg(test)]
mod tests;
