//! The commit that many messages share: the connection that comes back is the clock, there is no linger.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hermes_core::busy::BusyMode;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::commands::Telling;
use crate::dispatch::{Dispatcher, STOPPED};
use crate::registry::Registry;
use crate::store::{
    Answered, BATCH_ROWS, CommandRow, Commanded, DatabaseClock, Error, Ingest, Ingested, Leased, NextTurn, Outcome,
    Result, Resumed, TurnId,
};

/// A message ready for its commit.
pub(super) struct Prepared {
    pub(super) work: Work,
    pub(super) answer: oneshot::Sender<Result<Kept>>,
    pub(super) group: Group,
}

/// What is committed.
pub(super) enum Work {
    /// A turn.
    Turn(Ingest),
    /// A command: by itself, between the turns before and after it.
    Command(CommandRow, Telling),
}

/// Messages that one caller hands over in order and repeats from the first that was not kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Group(Arc<AtomicBool>);

impl Group {
    /// One of it was not kept.
    pub(super) fn break_off(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn is_broken(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A message after its commit.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// As a turn.
    Turn {
        /// The turn; the first one's when it is a duplicate.
        turn: TurnId,
        duplicate: bool,
        conflict: bool,
        running: bool,
        /// Number of the running turn that it waits behind.
        behind: Option<i64>,
        /// It was not kept: its session holds as many as it may.
        full: bool,
    },
    /// As a command that was carried out.
    Command(Commanded),
}

pub(super) async fn run(
    dispatcher: Dispatcher,
    registry: Registry,
    clock: Arc<DatabaseClock>,
    mut offered: mpsc::Receiver<Prepared>,
    stop: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH_ROWS);
    loop {
        batch.clear();
        tokio::select! {
            () = stop.cancelled() => return,
            taken = offered.recv_many(&mut batch, BATCH_ROWS) => if taken == 0 { return },
        }
        let most = i64::try_from(registry.current().document.limits.queued_per_session).unwrap_or(i64::MAX);
        let mut turns = Vec::with_capacity(batch.len());
        for Prepared { work, answer, group } in batch.drain(..) {
            match work {
                Work::Turn(row) => turns.push((row, answer, group)),
                Work::Command(row, telling) => {
                    commit(&dispatcher, &clock, most, std::mem::take(&mut turns)).await;
                    carry_out(&dispatcher, &row, &telling, answer, &group).await;
                }
            }
        }
        commit(&dispatcher, &clock, most, turns).await;
    }
}

type Turn = (Ingest, oneshot::Sender<Result<Kept>>, Group);

/// What follows in a group after one that was not kept is not kept either: it comes again behind it.
fn behind_a_gap() -> Result<Kept> {
    Err(Error::Unavailable("a message before it was not stored".to_owned()))
}

async fn carry_out(
    dispatcher: &Dispatcher,
    row: &CommandRow,
    telling: &Telling,
    answer: oneshot::Sender<Result<Kept>>,
    group: &Group,
) {
    if group.is_broken() {
        let _ = answer.send(behind_a_gap());
        return;
    }
    let carried = dispatcher.store().command(row, STOPPED, telling).await;
    match &carried {
        Ok(commanded) => follow(dispatcher, row.agent_no, commanded),
        Err(Error::Unavailable(_)) => group.break_off(),
        Err(_) => {}
    }
    let _ = answer.send(carried.map(Kept::Command));
}

/// Wakes whoever a command has given something to do.
fn follow(dispatcher: &Dispatcher, agent_no: i32, commanded: &Commanded) {
    match &commanded.outcome {
        Some(Outcome::Stopped(stopped) | Outcome::Renewed(stopped) | Outcome::Resumed(Resumed::Done(_, stopped))) => {
            dispatcher.stopped(*stopped);
        }
        Some(Outcome::Answered(Answered::Done(_))) => dispatcher.approval_answered(),
        Some(Outcome::Again(_)) => {
            dispatcher.pressure().waits(agent_no);
            dispatcher.waits_anywhere(agent_no);
        }
        _ => {}
    }
    if commanded.answer.told {
        dispatcher.delivers();
    }
}

async fn commit(dispatcher: &Dispatcher, clock: &DatabaseClock, most: i64, turns: Vec<Turn>) {
    let (turns, broken): (Vec<Turn>, Vec<Turn>) = turns.into_iter().partition(|(_, _, group)| !group.is_broken());
    for (_, answer, _) in broken {
        let _ = answer.send(behind_a_gap());
    }
    if turns.is_empty() {
        return;
    }
    let (mut rows, answers): (Vec<Ingest>, Vec<_>) =
        turns.into_iter().map(|(row, answer, group)| (row, (answer, group))).unzip();
    let _leasing = dispatcher.leasing().await;
    for row in &mut rows {
        row.reserved = dispatcher.fleet().reserve(row.agent_no, &row.session_key);
    }
    let outcomes = dispatcher.store().ingest(&rows, most, dispatcher.turn_limit()).await;
    for ((row, (answer, group)), outcome) in rows.into_iter().zip(answers).zip(outcomes) {
        let kept = match outcome {
            Ok(ingested) => {
                let kept = Kept::Turn {
                    turn: ingested.turn,
                    duplicate: ingested.duplicate,
                    conflict: ingested.conflict,
                    running: ingested.epoch.is_some(),
                    behind: ingested.behind,
                    full: ingested.full,
                };
                begin(dispatcher, clock, row, ingested);
                Ok(kept)
            }
            Err(error) => {
                let uncertain = matches!(error, Error::Unavailable(_));
                if uncertain {
                    group.break_off();
                }
                match row.reserved {
                    // It may be stored, and leased to this very slot.
                    Some((worker, slot)) if uncertain => dispatcher.fleet().doubt(worker, slot),
                    Some((worker, slot)) => dispatcher.fleet().release(worker, slot),
                    None => {}
                }
                Err(error)
            }
        };
        let _ = answer.send(kept);
    }
}

fn begin(dispatcher: &Dispatcher, clock: &DatabaseClock, row: Ingest, ingested: Ingested) {
    match (row.reserved, ingested.epoch) {
        (Some((worker, slot)), Some(epoch)) => {
            let next = NextTurn {
                lane: row.lane,
                payload: row.payload,
                traceparent: row.traceparent,
                accepted_at: clock.now(),
                rewinds: ingested.rewinds,
                model: ingested.model,
            };
            let (turn, session_key) = (ingested.turn, row.session_key);
            let left = dispatcher.turn_limit();
            dispatcher.begin(Leased { worker, slot, turn, epoch, crashes: 0, journaled: 0, left, session_key, next });
        }
        (Some((worker, slot)), None) => dispatcher.fleet().release(worker, slot),
        (None, _) => {}
    }
    if !ingested.duplicate && !ingested.full && ingested.epoch.is_none() {
        dispatcher.pressure().waits(row.agent_no);
    }
    if ingested.behind.is_some() && row.busy != BusyMode::Queue {
        dispatcher.signalled();
    }
    if ingested.waits {
        dispatcher.waits_anywhere(row.agent_no);
    }
}
