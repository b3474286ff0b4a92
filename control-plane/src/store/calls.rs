//! Calls of tools that the control plane runs: what a call does and the journal row that says so are one commit.
//!
//! Always true: nothing of a call is written but under the fence of its turn; a step is done once, however often it is asked
//! for; a step that was asked for with another call is never answered. The result's row keeps a digest of its call in
//! `idem_key`, and is otherwise a result like any other, so whoever reads journals reads it.
//!
//! A call that takes long begins with what is to be done once, in a commit of its own under the same fence, and has its result
//! journaled later; asked for again in between, it finds what was begun.
//!
//! Locks: the session, then what the effect takes (its agent's row, for documents and jobs; the head of a chat's deliveries, for a text),
//! always in this order.

use std::time::Duration;

use deadpool_postgres::Transaction;
use futures_util::future::BoxFuture;
use hermes_core::step::{Effect, StepKind};
use tokio_postgres::Row;

use super::journal::{effect_code, kind_code};
use super::{CALL_LIMIT, Error, Result, Store, TurnId};
use crate::failpoint::Verdict;

/// Attempts at a transaction that met a concurrent one.
const MAX_ATTEMPTS: u32 = 6;

/// A step that is such a call.
#[derive(Clone, Debug)]
pub struct CallStep {
    /// The turn.
    pub turn: TurnId,
    /// The fence.
    pub epoch: i64,
    /// Number of the step in the turn, from 0.
    pub step: i32,
    /// Which call it is: equal for equal calls alone.
    pub call: String,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Called {
    /// It is done and journaled with this text.
    Stored {
        /// What the model is shown.
        text: Vec<u8>,
        /// By this call, not by one before.
        now: bool,
        /// The agent whose documents changed, and its home version now.
        moved: Option<(i32, i64)>,
        /// Who has something to do now.
        wakes: Wakes,
    },
    /// What it did is committed, and it goes on: there is no result yet.
    Begun(Wakes),
    /// Somebody else has the turn, or nobody; nothing was done.
    Fenced,
    /// Something else is journaled at that step; nothing was done.
    Diverged,
}

/// Who has something to do after a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wakes {
    /// The outbox: a chat has something to be delivered.
    pub outbox: bool,
    /// Workers of this agent: a turn of it waits.
    pub agent: Option<i32>,
    /// The loops of scheduled jobs: one was made, changed or wanted.
    pub jobs: bool,
}

/// What is there before a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looked {
    /// Nothing yet.
    Open(Caller),
    /// As [`Called`].
    Over(Called),
}

/// For whom a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The turn that asks.
    pub turn: TurnId,
    /// The agent.
    pub agent_no: i32,
}

/// What a call does. It may be run again after a rollback, so it keeps nothing of a run.
pub trait CallEffect: Send + Sync {
    /// Does it, and says what the model is shown. What is written is written when the call's row is; a refusal writes nothing.
    fn run<'a>(&'a self, scope: &'a mut CallScope<'_>) -> BoxFuture<'a, Result<String>>;
}

/// The transaction of a call, as its effect sees it.
pub struct CallScope<'t> {
    pub(super) tx: Transaction<'t>,
    pub(super) step: &'t CallStep,
    caller: Caller,
    /// The agent's home version, when this call changed it.
    pub(super) moved: Option<i64>,
    pub(super) wakes: Wakes,
    /// The call goes on beyond this commit.
    pub(super) goes_on: bool,
}

impl CallScope<'_> {
    /// For whom.
    pub fn caller(&self) -> Caller {
        self.caller
    }

    /// What was last kept for the session under that name.
    ///
    /// # Errors
    /// As of the call.
    pub async fn note(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let sql = "SELECT body FROM session_notes WHERE session_id = $1 AND name = $2";
        let statement = self.tx.prepare_cached(sql).await?;
        let row = self.tx.query_opt(&statement, &[&self.caller.turn.session.0, &name]).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Keeps this for the session under that name, in place of what was there.
    ///
    /// # Errors
    /// As of the call.
    pub async fn set_note(&self, name: &str, body: &[u8]) -> Result<()> {
        let sql = "INSERT INTO session_notes(session_id, name, body) VALUES ($1, $2, $3) \
                   ON CONFLICT (session_id, name) DO UPDATE SET body = excluded.body";
        let statement = self.tx.prepare_cached(sql).await?;
        self.tx.execute(&statement, &[&self.caller.turn.session.0, &name, &body]).await?;
        Ok(())
    }
}

pub(super) const FENCE: &str =
    "SELECT agent_no FROM sessions WHERE session_id = $1 AND epoch = $2 AND state = 2 AND head_seq = $3";
pub(super) const THERE: &str = "SELECT phase, kind, idem_key, body FROM turn_steps WHERE session_id = $1 AND seq = $2 AND step = $3 \
                     ORDER BY phase DESC LIMIT 1";

impl Store {
    /// Does a call and journals its result, in one commit.
    ///
    /// # Errors
    /// [`Error::Unavailable`] (repeat; a repeat is answered what was journaled) or [`Error::Refused`]. Nothing is half done.
    pub async fn call_tool(&self, step: &CallStep, effect: &dyn CallEffect) -> Result<Called> {
        let cut = || Error::Unavailable("cut by a drill".to_owned());
        if self.failpoints.reach("call_tool.before").await == Verdict::Fail {
            return Err(cut());
        }
        let mut attempt = 0_u32;
        let called = loop {
            match self.call_limited(step, effect).await {
                Err(error) if error.is_retryable() && attempt < MAX_ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(rand::random_range(1..=(4_u64 << attempt)))).await;
                }
                other => break other?,
            }
        };
        match self.failpoints.reach("call_tool.after").await {
            Verdict::GoOn => Ok(called),
            Verdict::Fail => Err(cut()),
        }
    }

    async fn call_limited(&self, step: &CallStep, effect: &dyn CallEffect) -> Result<Called> {
        let mut client = self.client().await?;
        match tokio::time::timeout(CALL_LIMIT, call_once(&mut client, step, effect)).await {
            Ok(called) => called,
            Err(_) => {
                // Whoever had it next would wait behind this call.
                drop(deadpool_postgres::Object::take(client));
                Err(Error::Unavailable(format!("no answer within {} s", CALL_LIMIT.as_secs())))
            }
        }
    }

    /// What is there of a call, without a lock: for calls that only look, before they do.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn look_for_call(&self, step: &CallStep) -> Result<Looked> {
        let TurnId { session, seq } = step.turn;
        let Some(session_row) = self.query_opt(FENCE, &[&session.0, &step.epoch, &seq]).await? else {
            return Ok(Looked::Over(Called::Fenced));
        };
        match self.query_opt(THERE, &[&session.0, &seq, &step.step]).await? {
            Some(row) => Ok(Looked::Over(known(&row, step))),
            None => Ok(Looked::Open(Caller { turn: step.turn, agent_no: session_row.get(0) })),
        }
    }
}

async fn call_once<'c>(
    client: &'c mut deadpool_postgres::Object,
    step: &'c CallStep,
    effect: &dyn CallEffect,
) -> Result<Called> {
    let TurnId { session, seq } = step.turn;
    let tx = client.transaction().await?;
    // A: a reclaim waits for us, or we for it. B reads what is then true.
    let lock = tx.prepare_cached("SELECT 1 FROM sessions WHERE session_id = $1 FOR NO KEY UPDATE").await?;
    tx.execute(&lock, &[&session.0]).await?;
    let fence = tx.prepare_cached(FENCE).await?;
    let Some(row) = tx.query_opt(&fence, &[&session.0, &step.epoch, &seq]).await? else {
        return Ok(Called::Fenced);
    };
    let agent_no = row.get(0);
    let there = tx.prepare_cached(THERE).await?;
    if let Some(row) = tx.query_opt(&there, &[&session.0, &seq, &step.step]).await? {
        return Ok(known(&row, step));
    }
    let mut scope = CallScope {
        tx,
        step,
        caller: Caller { turn: step.turn, agent_no },
        moved: None,
        wakes: Wakes::default(),
        goes_on: false,
    };
    let text = effect.run(&mut scope).await?.into_bytes();
    let CallScope { tx, moved, wakes, goes_on, .. } = scope;
    if goes_on {
        tx.commit().await?;
        return Ok(Called::Begun(wakes));
    }
    let sql = "INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, effect, idem_key, body) \
               VALUES ($1, $2, $3, 1, $4, $5, $6, $7, $8)";
    let insert = tx.prepare_cached(sql).await?;
    let (kind, effect) = (kind_code(StepKind::ToolCall), effect_code(Effect::Idempotent));
    tx.execute(&insert, &[&session.0, &seq, &step.step, &step.epoch, &kind, &effect, &step.call, &text]).await?;
    tx.commit().await?;
    Ok(Called::Stored { text, now: true, moved: moved.map(|version| (agent_no, version)), wakes })
}

/// The row with the highest phase at the step is this call's result, or something else happened there.
pub(super) fn known(row: &Row, step: &CallStep) -> Called {
    let (phase, kind): (i16, i16) = (row.get(0), row.get(1));
    let call: Option<&str> = row.get(2);
    if (phase, kind) == (1, kind_code(StepKind::ToolCall)) && call == Some(step.call.as_str()) {
        let text = row.get::<_, Option<Vec<u8>>>(3).unwrap_or_default();
        Called::Stored { text, now: false, moved: None, wakes: Wakes::default() }
    } else {
        Called::Diverged
    }
}
