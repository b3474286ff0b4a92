//! The hot path: intake, claim and completion, many rows a call. The SQL is in `control-plane/functions`.
//!
//! Always true: answers are in input order; a batch that met a concurrent writer is repeated whole; a batch that one bad
//! row poisons is repeated row by row, so that one message never blocks another.

use std::time::Duration;

use hermes_core::busy::BusyMode;
use jiff::Timestamp;
use tokio_postgres::Row;

use super::busy::asked;
use super::{Error, Result, SessionId, Store, TurnId, millis};

/// One accepted message on its way in.
#[derive(Clone, Debug)]
pub struct Ingest {
    /// 16 bytes: four of the event's own time (or zero), twelve of hash.
    pub dedupe_key: Vec<u8>,
    /// Hash of the body where the caller chose the key: the same key with another body is a conflict.
    pub body_hash: Option<Vec<u8>>,
    /// The agent.
    pub agent_no: i32,
    /// The session key.
    pub session_key: String,
    /// Where the reply goes.
    pub lane: Option<i64>,
    /// JSON of `TurnInput`.
    pub payload: Vec<u8>,
    /// W3C trace context of the intake span.
    pub traceparent: Option<String>,
    /// Id of the token that submitted it.
    pub submitter: Option<String>,
    /// A reserved slot of a worker connected here.
    pub reserved: Option<(i64, i16)>,
    /// The session expires as idle when last used before this.
    pub idle_before: Option<Timestamp>,
    /// The session expires as daily when last used before this.
    pub daily_before: Option<Timestamp>,
    /// What it does to the turn that runs in its session.
    pub busy: BusyMode,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Ingested {
    /// Its turn, or the first one's when it is a duplicate.
    pub turn: TurnId,
    /// It was known.
    pub duplicate: bool,
    /// It was known with another body.
    pub conflict: bool,
    /// It runs on the reserved slot under this epoch.
    pub epoch: Option<i64>,
    /// Its session now waits for a slot.
    pub waits: bool,
    /// Number of the turn that ran in its session when it was stored and that it waits for.
    pub behind: Option<i64>,
    /// Its session holds as many turns as it may: it was not kept.
    pub full: bool,
    /// How often turns were left out of its session's history.
    pub rewinds: u32,
    /// Its session's own model.
    pub model: Option<String>,
}

/// A turn leased to a worker.
#[derive(Clone, Debug)]
pub struct Leased {
    /// The worker that holds it.
    pub worker: i64,
    /// Its slot.
    pub slot: i16,
    /// The turn.
    pub turn: TurnId,
    /// The fence.
    pub epoch: i64,
    /// How often this turn lost its worker.
    pub crashes: i16,
    /// Rows that its journal holds already.
    pub journaled: i64,
    /// How long it may still run.
    pub left: Duration,
    /// The session's key.
    pub session_key: String,
    /// What it is about.
    pub next: NextTurn,
}

/// What a claim found.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The turns leased.
    pub leased: Vec<Leased>,
    /// Sessions that are due were left to the workers they were last on.
    pub sticky: bool,
}

/// What a worker needs of a turn.
#[derive(Clone, Debug)]
pub struct NextTurn {
    /// Where the reply goes.
    pub lane: Option<i64>,
    /// JSON of `TurnInput`.
    pub payload: Vec<u8>,
    /// Trace context of its intake.
    pub traceparent: Option<String>,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// How often turns were left out of its session's history.
    pub rewinds: u32,
    /// Its session's own model.
    pub model: Option<String>,
}

/// How a turn ended, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Answered.
    Succeeded,
    /// The reply is an honest sentence about a failure.
    Failed,
    /// Given up after repeated crashes.
    Dead,
    /// Cancelled.
    Cancelled,
}

impl Ended {
    pub(super) fn code(self) -> i16 {
        match self {
            Self::Succeeded => 2,
            Self::Failed => 3,
            Self::Dead => 4,
            Self::Cancelled => 5,
        }
    }

    pub(super) fn from_code(code: i16) -> Self {
        match code {
            2 => Self::Succeeded,
            3 => Self::Failed,
            4 => Self::Dead,
            _ => Self::Cancelled,
        }
    }
}

/// A worker's report that a turn ended.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The turn.
    pub turn: TurnId,
    /// The fence it ran under.
    pub epoch: i64,
    /// How.
    pub ended: Ended,
    /// Text for the chat.
    pub reply: Vec<u8>,
    /// JSON of `Usage` and the profile revision.
    pub usage: serde_json::Value,
    /// Where the reply goes.
    pub lane: Option<i64>,
    /// The caller will send the delivery itself when this call returns.
    pub send: bool,
    /// Keep the slot for the session's next turn.
    pub next: bool,
}

/// What became of the report.
#[derive(Clone, Debug)]
pub struct CompletionOutcome {
    /// False: fenced, nothing was written.
    pub stored: bool,
    /// The delivery of the reply, if it has one.
    pub delivery: Option<i64>,
    /// The delivery is `attempting` in this replica's name: send it now.
    pub send: bool,
    /// The session's next turn, already leased to the same slot: epoch, number and content.
    pub next: Option<(i64, i64, NextTurn)>,
    /// Some session waits in `ready` now.
    pub waits: bool,
}

const INGEST: &str = "SELECT o_session, o_seq, o_dup, o_conflict, o_epoch, o_waits, o_busy, o_full, o_rewinds, o_model \
     FROM ingest_batch($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15) ORDER BY o_ord";
const COMPLETE: &str = "SELECT o_ok, o_pos, o_send, o_epoch, o_seq, o_lane, o_payload, o_trace, o_created, o_ready, o_rewinds, o_model \
     FROM complete_batch($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11) ORDER BY o_ord";

impl Store {
    /// Accepts messages: dedupe, session, turn and, where a slot was reserved, its lease; a turn may run for `limit`. Answers per
    /// row; a row that only it can have spoilt fails alone. `most` is how many turns that have not ended a session holds.
    ///
    /// # Errors
    /// Per row: [`Error::Unavailable`] (repeat with the same key) or [`Error::Refused`].
    pub async fn ingest(&self, rows: &[Ingest], most: i64, limit: Duration) -> Vec<Result<Ingested>> {
        match self.ingest_once(rows, most, limit).await {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(Error::Unavailable(why)) => rows.iter().map(|_| Err(Error::Unavailable(why.clone()))).collect(),
            Err(error) if rows.len() == 1 => vec![Err(error)],
            Err(_) => {
                let mut answers = Vec::with_capacity(rows.len());
                for row in rows {
                    let one = self.ingest_once(std::slice::from_ref(row), most, limit).await;
                    answers.push(one.map(|mut one| one.remove(0)));
                }
                answers
            }
        }
    }

    async fn ingest_once(&self, rows: &[Ingest], most: i64, limit: Duration) -> Result<Vec<Ingested>> {
        let keys: Vec<&[u8]> = rows.iter().map(|row| row.dedupe_key.as_slice()).collect();
        let hashes: Vec<Option<&[u8]>> = rows.iter().map(|row| row.body_hash.as_deref()).collect();
        let agents: Vec<i32> = rows.iter().map(|row| row.agent_no).collect();
        let session_keys: Vec<&str> = rows.iter().map(|row| row.session_key.as_str()).collect();
        let lanes: Vec<Option<i64>> = rows.iter().map(|row| row.lane).collect();
        let payloads: Vec<&[u8]> = rows.iter().map(|row| row.payload.as_slice()).collect();
        let traces: Vec<Option<&str>> = rows.iter().map(|row| row.traceparent.as_deref()).collect();
        let submitters: Vec<Option<&str>> = rows.iter().map(|row| row.submitter.as_deref()).collect();
        let workers: Vec<Option<i64>> = rows.iter().map(|row| row.reserved.map(|(worker, _)| worker)).collect();
        let slots: Vec<Option<i16>> = rows.iter().map(|row| row.reserved.map(|(_, slot)| slot)).collect();
        let idle: Vec<Option<Timestamp>> = rows.iter().map(|row| row.idle_before).collect();
        let daily: Vec<Option<Timestamp>> = rows.iter().map(|row| row.daily_before).collect();
        let busy: Vec<i16> = rows.iter().map(|row| asked(row.busy)).collect();
        let answers = self
            .query_retrying(
                INGEST,
                &[
                    &keys,
                    &hashes,
                    &agents,
                    &session_keys,
                    &lanes,
                    &payloads,
                    &traces,
                    &submitters,
                    &workers,
                    &slots,
                    &idle,
                    &daily,
                    &busy,
                    &most,
                    &millis(limit),
                ],
            )
            .await?;
        Ok(answers.iter().map(ingested).collect())
    }

    /// Leases waiting sessions to free slots (worker, slot), at most one each; `sticky` is how long a session waits for the
    /// worker it was last on, if that lives, and `limit` how long a turn may run. The workers of one agent speak one protocol:
    /// what the oldest of them cannot go on with is left to another call.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: what was leased is found by [`Store::assigned`].
    pub async fn claim(&self, free: &[(i64, i16)], sticky: Duration, limit: Duration) -> Result<Claimed> {
        let workers: Vec<i64> = free.iter().map(|(worker, _)| *worker).collect();
        let slots: Vec<i16> = free.iter().map(|(_, slot)| *slot).collect();
        let sql = "SELECT * FROM claim_batch($1,$2,$3,$4)";
        let mut rows = self.query_retrying(sql, &[&workers, &slots, &millis(sticky), &millis(limit)]).await?;
        let sticky = rows.pop_if(|row| row.get::<_, Option<i64>>("o_session").is_none()).is_some();
        Ok(Claimed { leased: rows.iter().map(|row| leased(row, limit)).collect(), sticky })
    }

    /// What these workers hold, for a lease whose answer was lost.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn assigned(&self, workers: &[i64]) -> Result<Vec<Leased>> {
        Ok(self.query("SELECT * FROM assigned($1)", &[&workers]).await?.iter().map(held).collect())
    }

    /// Moves what older live registrations of the same process hold to `worker`; answers all that it holds now.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: the older leases stay until they lapse.
    pub async fn adopt(&self, worker: i64, identity: &str) -> Result<Vec<Leased>> {
        let rows = self.query_retrying("SELECT * FROM adopt($1,$2)", &[&worker, &identity]).await?;
        Ok(rows.iter().map(held).collect())
    }

    /// Ends turns: one fenced transaction with the reply, the session's advance and the delivery. A session's next turn may run
    /// for `limit`. Answers per row.
    ///
    /// # Errors
    /// Per row: [`Error::Unavailable`] (repeat; a repeat is answered as stored) or [`Error::Refused`].
    pub async fn complete(&self, replica: i64, rows: &[Completion], limit: Duration) -> Vec<Result<CompletionOutcome>> {
        match self.complete_once(replica, rows, limit).await {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(Error::Unavailable(why)) => rows.iter().map(|_| Err(Error::Unavailable(why.clone()))).collect(),
            Err(error) if rows.len() == 1 => vec![Err(error)],
            Err(_) => {
                let mut answers = Vec::with_capacity(rows.len());
                for row in rows {
                    let one = self.complete_once(replica, std::slice::from_ref(row), limit).await;
                    answers.push(one.map(|mut one| one.remove(0)));
                }
                answers
            }
        }
    }

    async fn complete_once(
        &self,
        replica: i64,
        rows: &[Completion],
        limit: Duration,
    ) -> Result<Vec<CompletionOutcome>> {
        let sessions: Vec<i64> = rows.iter().map(|row| row.turn.session.0).collect();
        let epochs: Vec<i64> = rows.iter().map(|row| row.epoch).collect();
        let seqs: Vec<i64> = rows.iter().map(|row| row.turn.seq).collect();
        let ended: Vec<i16> = rows.iter().map(|row| row.ended.code()).collect();
        let replies: Vec<&[u8]> = rows.iter().map(|row| row.reply.as_slice()).collect();
        let usages: Vec<&serde_json::Value> = rows.iter().map(|row| &row.usage).collect();
        let lanes: Vec<Option<i64>> = rows.iter().map(|row| row.lane).collect();
        let sends: Vec<bool> = rows.iter().map(|row| row.send).collect();
        let nexts: Vec<bool> = rows.iter().map(|row| row.next).collect();
        let answers = self
            .query_retrying(
                COMPLETE,
                &[
                    &replica,
                    &sessions,
                    &epochs,
                    &seqs,
                    &ended,
                    &replies,
                    &usages,
                    &lanes,
                    &sends,
                    &nexts,
                    &millis(limit),
                ],
            )
            .await?;
        Ok(answers.iter().map(completion_outcome).collect())
    }
}

fn ingested(row: &Row) -> Ingested {
    Ingested {
        turn: TurnId { session: SessionId(row.get("o_session")), seq: row.get("o_seq") },
        duplicate: row.get("o_dup"),
        conflict: row.get("o_conflict"),
        epoch: row.get("o_epoch"),
        waits: row.get("o_waits"),
        behind: row.get("o_busy"),
        full: row.get("o_full"),
        rewinds: rewinds(row),
        model: row.get("o_model"),
    }
}

/// A lease made just now.
fn leased(row: &Row, limit: Duration) -> Leased {
    Leased {
        worker: row.get("o_worker"),
        slot: row.get("o_slot"),
        turn: TurnId { session: SessionId(row.get("o_session")), seq: row.get("o_seq") },
        epoch: row.get("o_epoch"),
        crashes: row.get("o_crashes"),
        journaled: row.get("o_journal"),
        left: limit,
        session_key: row.get("o_key"),
        next: next_turn(row),
    }
}

/// A lease made earlier.
fn held(row: &Row) -> Leased {
    // None is set by a build from before deadlines were.
    let left: Option<i64> = row.get("o_left_ms");
    leased(row, left.map_or(Duration::MAX, |ms| Duration::from_millis(ms.unsigned_abs())))
}

fn next_turn(row: &Row) -> NextTurn {
    NextTurn {
        lane: row.get("o_lane"),
        payload: row.get("o_payload"),
        traceparent: row.get("o_trace"),
        accepted_at: row.get("o_created"),
        rewinds: rewinds(row),
        model: row.get("o_model"),
    }
}

fn rewinds(row: &Row) -> u32 {
    row.get::<_, Option<i32>>("o_rewinds").map_or(0, i32::unsigned_abs)
}

fn completion_outcome(row: &Row) -> CompletionOutcome {
    let epoch: Option<i64> = row.get("o_epoch");
    let payload: Option<Vec<u8>> = row.get("o_payload");
    CompletionOutcome {
        stored: row.get("o_ok"),
        delivery: row.get("o_pos"),
        send: row.get("o_send"),
        next: match (epoch, payload) {
            (Some(epoch), Some(_)) => Some((epoch, row.get("o_seq"), next_turn(row))),
            _ => None,
        },
        waits: row.get("o_ready"),
    }
}
