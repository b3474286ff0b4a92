//! The commit that many messages share: the connection that comes back is the clock, there is no linger.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::dispatch::Dispatcher;
use crate::store::{BATCH_ROWS, DatabaseClock, Error, Ingest, Ingested, Leased, NextTurn, Result, TurnId};

/// A message ready for its commit.
pub(super) struct Prepared {
    pub(super) row: Ingest,
    pub(super) answer: oneshot::Sender<Result<Kept>>,
    pub(super) group: Group,
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
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) turn: TurnId,
    pub(super) duplicate: bool,
    pub(super) conflict: bool,
    pub(super) running: bool,
}

pub(super) async fn run(
    dispatcher: Dispatcher,
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
        commit(&dispatcher, &clock, &mut batch).await;
    }
}

async fn commit(dispatcher: &Dispatcher, clock: &DatabaseClock, batch: &mut Vec<Prepared>) {
    // What follows in a group after one that was not kept is not kept either: it comes again behind it.
    let (batch, broken): (Vec<Prepared>, Vec<Prepared>) =
        batch.drain(..).partition(|prepared| !prepared.group.is_broken());
    for prepared in broken {
        let _ = prepared.answer.send(Err(Error::Unavailable("a message before it was not stored".to_owned())));
    }
    if batch.is_empty() {
        return;
    }
    let (mut rows, answers): (Vec<Ingest>, Vec<_>) =
        batch.into_iter().map(|prepared| (prepared.row, (prepared.answer, prepared.group))).unzip();
    let _leasing = dispatcher.leasing().await;
    for row in &mut rows {
        row.reserved = dispatcher.fleet().reserve(row.agent_no, &row.session_key);
    }
    let outcomes = dispatcher.store().ingest(&rows, dispatcher.turn_limit()).await;
    for ((row, (answer, group)), outcome) in rows.into_iter().zip(answers).zip(outcomes) {
        let kept = match outcome {
            Ok(ingested) => {
                let kept = Kept {
                    turn: ingested.turn,
                    duplicate: ingested.duplicate,
                    conflict: ingested.conflict,
                    running: ingested.epoch.is_some(),
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
            };
            let (turn, session_key) = (ingested.turn, row.session_key);
            let left = dispatcher.turn_limit();
            dispatcher.begin(Leased { worker, slot, turn, epoch, crashes: 0, journaled: 0, left, session_key, next });
        }
        (Some((worker, slot)), None) => dispatcher.fleet().release(worker, slot),
        (None, _) => {}
    }
    if ingested.waits {
        dispatcher.waits_anywhere(row.agent_no);
    }
}
