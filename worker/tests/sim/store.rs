//! What Postgres is to the replicas, as a model: sessions, leases, fences, journals, in memory that outlives every process.
//!
//! Asked by [`crate::plane`]. Always true, as in the real one: a lease lasts from a heartbeat; whoever lost it is fenced by the
//! epoch; a session's turns run one at a time in order; an end is stored once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hermes_proto::v1::*;
use tokio::sync::mpsc;
use tonic::Status;

use crate::journal::{Journal, Line, ask, say};

/// Of a worker.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// How often it is renewed.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);
/// Slots of a worker.
pub(crate) const SLOTS: u32 = 4;

/// A mechanism of the store to do without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Without {
    /// Ends and journal rows are taken from whoever names the turn that runs.
    pub(crate) epoch: bool,
    /// A worker that comes back finds its turns given away.
    pub(crate) adoption: bool,
}

/// An end that was stored, which is what the chat is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) session: u64,
    pub(crate) seq: u64,
    pub(crate) outcome: Outcome,
    pub(crate) reply: String,
    /// Whoever said so had the turn.
    pub(crate) current: bool,
}

#[derive(Debug, Default)]
struct Session {
    accepted: u64,
    head: u64,
    epoch: u64,
    /// The worker.
    lease: Option<u64>,
    /// Who ended which turn.
    ended: BTreeMap<u64, u64>,
}

type ToWorker = mpsc::Sender<Result<ControlMessage, Status>>;

#[derive(Debug)]
struct Worker {
    home: String,
    replica: usize,
    until: Duration,
    lost: bool,
    leaving: bool,
    to: ToWorker,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) without: Without,
    sessions: BTreeMap<u64, Session>,
    workers: BTreeMap<u64, Worker>,
    pub(crate) journal: Journal,
    pub(crate) told: Vec<Told>,
    /// Turns that somebody stopped.
    pub(crate) stopped: BTreeSet<(u64, u64)>,
    /// Leases that lapsed, for the test of the test.
    pub(crate) lapses: u32,
}

/// The store as all replicas have it; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(Arc<Mutex<Store>>);

impl Shared {
    pub(crate) fn locked(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap()
    }
}

fn to_worker(message: control_message::Message) -> Result<ControlMessage, Status> {
    Ok(ControlMessage { message: Some(message) })
}

/// What the model says at that step of that turn, always.
pub(crate) fn script(turn: &TurnRef, step: u32) -> Line {
    let tools = ["look", "put", "send"];
    let dice = turn.session_id * 7 + turn.seq * 3;
    // A reply that asks for tools stands before its calls; steps count both.
    let first = 1 + dice % 3;
    let calls = |count: u64, at: u64| -> Vec<(String, &str)> {
        (0..count)
            .map(|n| {
                let tool = tools.get(usize::try_from((dice + at + n) % 3).unwrap()).copied().unwrap();
                (format!("c{at}-{n}"), tool)
            })
            .collect()
    };
    let wish = |calls: Vec<(String, &str)>| {
        let calls: Vec<_> = calls.iter().map(|(id, tool)| (id.as_str(), *tool, "{}")).collect();
        ask("", &calls)
    };
    match u64::from(step) {
        0 => wish(calls(first, 0)),
        at if at == 1 + first && dice.is_multiple_of(2) => wish(calls(1, at)),
        _ => say(&format!("done {}.{}", turn.session_id, turn.seq)),
    }
}

impl Store {
    /// A message arrives.
    pub(crate) fn accept(&mut self, session: u64) {
        let session = self.sessions.entry(session).or_insert_with(|| Session { head: 1, ..Session::default() });
        session.accepted += 1;
    }

    /// Whether every message has its end.
    pub(crate) fn is_done(&self) -> bool {
        self.sessions.values().all(|session| session.head > session.accepted)
    }

    /// What was accepted, in order.
    pub(crate) fn accepted(&self) -> Vec<(u64, u64)> {
        self.sessions.iter().flat_map(|(id, session)| (1..=session.accepted).map(|seq| (*id, seq))).collect()
    }

    /// Whether this fence has the turn.
    pub(crate) fn holds(&self, turn: &TurnRef) -> bool {
        self.sessions.get(&turn.session_id).is_some_and(|session| {
            session.lease.is_some() && session.head == turn.seq && (self.without.epoch || session.epoch == turn.epoch)
        })
    }

    /// Whether this very fence is the newest, whatever is done without.
    pub(crate) fn is_current(&self, turn: &TurnRef) -> bool {
        self.sessions
            .get(&turn.session_id)
            .is_some_and(|session| session.lease.is_some() && session.head == turn.seq && session.epoch == turn.epoch)
    }

    /// A worker registers; answers its number.
    pub(crate) fn register(&mut self, home: &str, replica: usize, to: ToWorker, now: Duration) -> u64 {
        let number = self.workers.len() as u64 + 1;
        let until = now + LEASE;
        let (lost, leaving) = (false, false);
        self.workers.insert(number, Worker { home: home.to_owned(), replica, until, lost, leaving, to });
        let before: Vec<u64> = self
            .workers
            .iter_mut()
            .filter(|(id, worker)| **id != number && worker.home == home && !worker.lost && worker.until > now)
            .map(|(id, worker)| {
                worker.lost = true;
                *id
            })
            .collect();
        let moved: Vec<u64> = self
            .sessions
            .iter_mut()
            .filter(|(_, session)| session.lease.is_some_and(|lease| before.contains(&lease)))
            .map(|(id, session)| {
                session.lease = Some(number);
                *id
            })
            .collect();
        for session in moved {
            if self.without.adoption {
                self.take_back(session);
            } else {
                self.assign(session);
            }
        }
        number
    }

    fn assign(&mut self, id: u64) {
        let Some(session) = self.sessions.get(&id) else { return };
        let turn = TurnRef { session_id: id, seq: session.head, epoch: session.epoch };
        let journal_entries = self.journal.lease(&turn);
        let assignment = Assignment {
            turn: Some(turn),
            input: br#"{"text":"please"}"#.to_vec(),
            attempt: 1,
            session_key: format!("s{id}"),
            journal_entries,
            ..Assignment::default()
        };
        if let Some(worker) = session.lease.and_then(|lease| self.workers.get(&lease)) {
            // A worker that is gone is found by its lease.
            let _ = worker.to.try_send(to_worker(control_message::Message::Assignment(assignment)));
        }
    }

    /// The fence moves on; nobody has the session.
    fn take_back(&mut self, id: u64) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.lease = None;
            session.epoch += 1;
            let turn = TurnRef { session_id: id, seq: session.head, epoch: session.epoch };
            if !self.without.epoch {
                self.journal.lease(&turn);
            }
        }
    }

    /// A heartbeat; whether the lease still holds.
    pub(crate) fn heard(&mut self, number: u64, now: Duration) -> bool {
        let Some(worker) = self.workers.get_mut(&number) else { return false };
        let holds = !worker.lost && worker.until > now;
        if holds {
            worker.until = now + LEASE;
        }
        holds
    }

    /// What one replica does now and then: takes back what lapsed, and leases what waits to whom it has.
    pub(crate) fn tick(&mut self, replica: usize, now: Duration) {
        let lapsed: BTreeSet<u64> = self
            .workers
            .iter_mut()
            .filter(|(_, worker)| !worker.lost && worker.until <= now)
            .map(|(id, worker)| {
                worker.lost = true;
                *id
            })
            .collect();
        let dead = |session: &Session| {
            let lost =
                |lease: u64| lapsed.contains(&lease) || self.workers.get(&lease).is_none_or(|worker| worker.lost);
            session.lease.is_some_and(lost)
        };
        let given_up: Vec<u64> = self.sessions.iter().filter(|(_, session)| dead(session)).map(|(id, _)| *id).collect();
        for id in given_up {
            self.lapses += 1;
            self.take_back(id);
        }
        let waiting = |session: &Session| session.lease.is_none() && session.head <= session.accepted;
        let waiting: Vec<u64> =
            self.sessions.iter().filter(|(_, session)| waiting(session)).map(|(id, _)| *id).collect();
        for id in waiting {
            let held = |number: u64| self.sessions.values().filter(|session| session.lease == Some(number)).count();
            let free = self.workers.iter().filter(|(number, worker)| {
                worker.replica == replica
                    && !worker.lost
                    && !worker.leaving
                    && !worker.to.is_closed()
                    && held(**number) < usize::try_from(SLOTS).unwrap()
            });
            let Some(number) = free.map(|(number, _)| *number).min_by_key(|number| held(*number)) else { return };
            if let Some(session) = self.sessions.get_mut(&id) {
                session.lease = Some(number);
                session.epoch += 1;
            }
            self.assign(id);
        }
    }

    /// A worker says that it goes.
    pub(crate) fn leaves(&mut self, number: u64) {
        if let Some(worker) = self.workers.get_mut(&number) {
            worker.leaving = true;
        }
    }

    /// A worker reports an end; whether that is stored, now or before.
    pub(crate) fn complete(&mut self, completed: &Completed) -> bool {
        let turn = completed.turn.unwrap();
        if self.holds(&turn) {
            let current = self.is_current(&turn);
            let session = self.sessions.get_mut(&turn.session_id).unwrap();
            session.ended.insert(turn.seq, turn.epoch);
            session.head += 1;
            session.lease = None;
            self.told.push(Told {
                session: turn.session_id,
                seq: turn.seq,
                outcome: completed.outcome(),
                reply: String::from_utf8_lossy(&completed.reply).into_owned(),
                current,
            });
            return true;
        }
        let ended = self.sessions.get(&turn.session_id).and_then(|session| session.ended.get(&turn.seq));
        ended == Some(&turn.epoch)
    }

    /// A worker gives a turn back.
    pub(crate) fn release(&mut self, turn: &TurnRef) -> bool {
        let held = self.holds(turn);
        if held {
            self.take_back(turn.session_id);
        }
        held
    }

    /// Somebody stops what runs in the session; which turn that is.
    pub(crate) fn stop(&mut self, id: u64) {
        let Some(session) = self.sessions.get(&id) else { return };
        let turn = TurnRef { session_id: id, seq: session.head, epoch: session.epoch };
        if let Some(worker) = session.lease.and_then(|lease| self.workers.get(&lease)) {
            let cancel = Cancel { turn: Some(turn), reason: "a person".into(), kind: CancelKind::Stopped.into() };
            if worker.to.try_send(to_worker(control_message::Message::Cancel(cancel))).is_ok() {
                self.stopped.insert((id, turn.seq));
            }
        }
    }

    /// Somebody parts with the workers that have this home.
    pub(crate) fn drain(&mut self, home: &str) {
        for worker in self.workers.values_mut().filter(|worker| worker.home == home && !worker.lost) {
            worker.leaving = true;
            let _ = worker.to.try_send(to_worker(control_message::Message::Drain(Drain { grace_ms: 300 })));
        }
    }
}
