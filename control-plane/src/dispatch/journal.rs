//! The journal of running turns, stored in batches: the connection that comes back is the clock, there is no linger.
//!
//! Called by the worker links (steps that a worker reports) and by the model broker's service (replies that ask for tools).
//! Always true: nothing is answered as stored before its commit; a worker writes only to turns that this replica gave it;
//! a turn whose second attempt does something else than its journal says is given up, and its chat is told. It knows steps as
//! numbers and bytes, not what is in them, but for the usage of a model's reply.

use std::time::Duration;

use hermes_core::step::{Effect, Phase, StepKind};
use hermes_core::turn::{TurnState, Usage};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Dispatcher, fleet};
use crate::store::{
    self, Absorbed, BATCH_ROWS, CallEffect, CallStep, Called, GivenUp, Journaled, StepRow, Store, TurnEnd, TurnId,
    Wakes,
};

/// Steps on their way into the store; whoever brings more waits.
pub(super) const QUEUE: usize = 512;
/// Content of one call of the store, bytes; a single row may be larger.
const BATCH_BYTES: usize = 8 << 20;
/// What a chat is told of a turn whose attempts differ.
const DIVERGED_NOTICE: &str = "I could not answer this message: when I took it up again I did something else than the first \
     time, so I stopped instead of doing things twice. You can send the next one.";

/// A step on its way into the store.
pub(super) struct Pending {
    row: StepRow,
    /// The worker that reported it; none for what the broker journals.
    worker: Option<i64>,
    /// Dropped without an answer when nothing is known: whoever reported it does so again.
    stored: oneshot::Sender<StepAnswer>,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepAnswer {
    /// It is in the journal.
    Stored,
    /// Somebody else has the turn: forget it.
    Fenced,
    /// The journal says something else: the turn is given up, forget it.
    Diverged,
    /// A queued turn cannot be taken in.
    Refused,
}

/// What became of a model's reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyAnswer {
    /// It is in the journal.
    Stored,
    /// Another reply was journaled first: this one counts.
    Journaled(Vec<u8>),
    /// Somebody else has the turn.
    Fenced,
    /// Nothing is known: ask again.
    Uncertain,
}

impl Dispatcher {
    /// Journals a step that `worker` reports. Nothing when it is not known what became of it: the worker reports it again.
    pub async fn record(&self, worker: i64, row: StepRow) -> Option<StepAnswer> {
        if self.inner.fleet.running(worker, row.turn, row.epoch).is_none() {
            // Epochs can be guessed: what this worker was not given it may not write to.
            tracing::info!(worker, turn = %row.turn, epoch = row.epoch, "a step of a turn that the worker does not run was refused");
            self.inner.metrics.report_fenced("step");
            return Some(StepAnswer::Fenced);
        }
        if row.kind == StepKind::Steering {
            return self.absorb(row).await;
        }
        self.store_step(row, Some(worker)).await
    }

    /// A turn that runs here has taken in the next queued one: rare, so a call of its own.
    async fn absorb(&self, row: StepRow) -> Option<StepAnswer> {
        match self.inner.store.absorb(&row).await {
            Ok(Absorbed::Stored) => {
                self.inner.metrics.step(row.kind.as_str(), "none", false);
                // The next one, if another waits.
                self.signalled();
                Some(StepAnswer::Stored)
            }
            Ok(Absorbed::Fenced) => Some(StepAnswer::Fenced),
            Ok(Absorbed::Refused) => Some(StepAnswer::Refused),
            Ok(Absorbed::Diverged) => park(self, row.turn, row.epoch).await.ok().map(|()| StepAnswer::Diverged),
            Err(error) => {
                tracing::warn!(turn = %row.turn, %error, "it is not known whether a message was taken in");
                None
            }
        }
    }

    /// Does a tool's call of a turn that runs here and journals it; `None` when it is not known what became of it: a repetition
    /// tells.
    pub async fn call_tool(&self, step: &CallStep, effect: &dyn CallEffect) -> Option<Called> {
        let inner = &self.inner;
        let called = match inner.store.call_tool(step, effect).await {
            Ok(called) => called,
            Err(error) => {
                tracing::warn!(turn = %step.turn, step = step.step, %error, "it is not known whether a tool was called");
                return None;
            }
        };
        self.settle_call(step, called).await
    }

    /// Draws the consequences of what became of a call, or was there before it.
    pub async fn settle_call(&self, step: &CallStep, called: Called) -> Option<Called> {
        let inner = &self.inner;
        match &called {
            Called::Begun(wakes) => self.wake(*wakes),
            Called::Stored { now, moved, wakes, .. } => {
                if let Some((agent_no, version)) = moved {
                    inner.registry.home_moved(*agent_no, *version);
                }
                self.wake(*wakes);
                if *now {
                    inner.metrics.step(StepKind::ToolCall.as_str(), Effect::Idempotent.as_str(), false);
                }
            }
            Called::Fenced => inner.metrics.report_fenced("step"),
            Called::Diverged => park(self, step.turn, step.epoch).await.ok()?,
        }
        Some(called)
    }

    fn wake(&self, wakes: Wakes) {
        if wakes.outbox {
            self.delivers();
        }
        if let Some(agent_no) = wakes.agent {
            self.begins(agent_no);
        }
        if wakes.jobs {
            self.jobs_changed();
        }
    }

    /// Journals a model's reply to a step of a turn that runs here.
    pub async fn record_reply(&self, turn: TurnId, epoch: i64, step: i32, body: Vec<u8>) -> ReplyAnswer {
        let row = StepRow {
            turn,
            epoch,
            step,
            phase: Phase::Result,
            kind: StepKind::ModelReply,
            effect: None,
            idempotency_key: None,
            body,
            unknown: false,
            absorbs: 0,
        };
        match self.store_step(row, None).await {
            Some(StepAnswer::Stored) => ReplyAnswer::Stored,
            Some(StepAnswer::Fenced | StepAnswer::Refused) => ReplyAnswer::Fenced,
            None => ReplyAnswer::Uncertain,
            Some(StepAnswer::Diverged) => match self.inner.store.journal_result(turn, step).await {
                Ok(Some((StepKind::ModelReply, body))) => ReplyAnswer::Journaled(body),
                Ok(_) => match park(self, turn, epoch).await {
                    Ok(()) => ReplyAnswer::Fenced,
                    Err(_) => ReplyAnswer::Uncertain,
                },
                Err(_) => ReplyAnswer::Uncertain,
            },
        }
    }

    /// The model's reply that the journal holds for a step, if it does.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`].
    pub async fn journaled_reply(&self, turn: TurnId, step: i32) -> store::Result<Option<Vec<u8>>> {
        let found = self.inner.store.journal_result(turn, step).await?;
        Ok(found.and_then(|(kind, body)| (kind == StepKind::ModelReply).then_some(body)))
    }

    /// Counts the model replies that an earlier attempt or another replica journaled, once.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`]: they are counted later.
    pub async fn recall(&self, turn: TurnId, epoch: i64) -> store::Result<()> {
        if !self.inner.fleet.to_recall(turn, epoch) {
            return Ok(());
        }
        for (step, body) in self.inner.store.journal_replies(turn).await? {
            let step = u32::try_from(step).unwrap_or(u32::MAX);
            self.inner.fleet.note_replayed(turn, epoch, step, &usage_in(&body));
        }
        self.inner.fleet.recalled(turn, epoch);
        Ok(())
    }

    async fn store_step(&self, row: StepRow, worker: Option<i64>) -> Option<StepAnswer> {
        let (stored, answer) = oneshot::channel();
        self.inner.steps.send(Pending { row, worker, stored }).await.ok()?;
        answer.await.ok()
    }
}

/// What the journaled model replies of a turn used.
pub(super) async fn usage_of(store: &Store, turn: TurnId) -> store::Result<Usage> {
    let mut sum = Usage::default();
    for (_, body) in store.journal_replies(turn).await? {
        fleet::add_usage(&mut sum, &usage_in(&body));
    }
    Ok(sum)
}

fn usage_in(reply: &[u8]) -> Usage {
    #[derive(Default, Deserialize)]
    struct Used {
        usage: Usage,
    }
    serde_json::from_slice::<Used>(reply).unwrap_or_default().usage
}

/// The loop: takes what has gathered, stores it, acts on the answers.
pub(super) async fn run(dispatcher: Dispatcher, mut reported: mpsc::Receiver<Pending>, stop: CancellationToken) {
    let mut gathered = Vec::with_capacity(BATCH_ROWS);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            taken = reported.recv_many(&mut gathered, BATCH_ROWS) => if taken == 0 { return },
        }
        while !gathered.is_empty() {
            let rest = gathered.split_off(first_batch(&gathered));
            store_batch(&dispatcher, std::mem::replace(&mut gathered, rest), &stop).await;
        }
    }
}

/// How many of them, one at least, go into one call.
fn first_batch(gathered: &[Pending]) -> usize {
    let mut bytes = 0;
    let fits = gathered.iter().take_while(|pending| {
        bytes += pending.row.body.len();
        bytes <= BATCH_BYTES
    });
    fits.count().max(1)
}

async fn store_batch(dispatcher: &Dispatcher, mut batch: Vec<Pending>, stop: &CancellationToken) {
    while !batch.is_empty() {
        let rows: Vec<StepRow> = batch.iter().map(|pending| pending.row.clone()).collect();
        let answers = dispatcher.inner.store.journal(&rows).await;
        let mut again = Vec::new();
        for (pending, answer) in batch.drain(..).zip(answers) {
            match answer {
                Ok(Journaled::Diverged) if pending.worker.is_some() => {
                    match park(dispatcher, pending.row.turn, pending.row.epoch).await {
                        Ok(()) => drop(pending.stored.send(StepAnswer::Diverged)),
                        Err(_) => again.push(pending),
                    }
                }
                Ok(answer) => settle(dispatcher, pending, answer),
                Err(store::Error::Unavailable(_)) => again.push(pending),
                Err(error) => {
                    // Its content was checked, so this is a defect of ours; the loss of its worker gives the turn back.
                    tracing::error!(turn = %pending.row.turn, step = pending.row.step, %error, "a step was refused by the database");
                    if let Some(worker) = pending.worker {
                        dispatcher.inner.fleet.hang_up(worker);
                    }
                }
            }
        }
        batch = again;
        if !batch.is_empty() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }
}

fn settle(dispatcher: &Dispatcher, pending: Pending, answer: Journaled) {
    let (row, metrics) = (pending.row, &dispatcher.inner.metrics);
    let answer = match answer {
        Journaled::Stored => {
            if row.phase == Phase::Result {
                metrics.step(row.kind.as_str(), row.effect.map_or("none", |effect| effect.as_str()), row.unknown);
            }
            if row.unknown {
                tracing::warn!(turn = %row.turn, step = row.step, "nobody knows whether a tool call of an earlier attempt happened");
            }
            StepAnswer::Stored
        }
        Journaled::Known => StepAnswer::Stored,
        Journaled::Fenced => {
            tracing::info!(turn = %row.turn, epoch = row.epoch, step = row.step, "a stale step was refused");
            metrics.report_fenced("step");
            StepAnswer::Fenced
        }
        Journaled::Diverged => StepAnswer::Diverged,
    };
    let _ = pending.stored.send(answer);
}

/// Gives up a turn that does something else than its journal says. It is a defect of its worker (or somebody's attack), and going
/// on could repeat what was done.
async fn park(dispatcher: &Dispatcher, turn: TurnId, epoch: i64) -> store::Result<()> {
    let inner = &dispatcher.inner;
    let given_up = GivenUp { turn, epoch, reason: "diverged", notice: DIVERGED_NOTICE };
    let was_running = inner.store.give_up(&[given_up]).await?.contains(&true);
    if was_running {
        tracing::error!(%turn, epoch, "a turn was given up: its worker did something else than the journal says");
        inner.metrics.turn_diverged();
        let end = TurnEnd { state: TurnState::Dead, reply: DIVERGED_NOTICE.to_owned(), usage: Usage::default() };
        inner.live.end(turn, end);
        inner.outbox.nudge();
    }
    if let Some(agent_no) = inner.fleet.take(turn, epoch, true) {
        // The session's next message waits.
        dispatcher.waits(agent_no);
    }
    Ok(())
}
