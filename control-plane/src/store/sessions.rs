//! Reading sessions, turns and transcripts, for people and for workers.

use std::collections::{BTreeMap, VecDeque};

use hermes_core::step::StepKind;
use hermes_core::turn::{TurnInput, TurnState, Usage};
use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::Row;

use super::journal::kind_code;
use super::transitions::Ended;
use super::{Error, Result, SessionId, Store, TurnId};

/// How much of a call's result a history tells, bytes; workers tell a model less of it.
const RESULT_BYTES: i32 = 2 << 10;
/// How much of what a turn did a history tells, bytes: the newest.
const STEPS_BYTES: i64 = 64 << 10;
/// Least that one look at a dialogue reads, bytes of stored inputs and replies.
const MIN_PAGE_BYTES: usize = 64 << 10;

/// A session as people see it.
#[derive(Clone, Debug)]
pub struct SessionRow {
    /// Its id.
    pub id: SessionId,
    /// Its agent.
    pub agent_id: String,
    /// Its key.
    pub session_key: String,
    /// 0 idle, 1 waits, 2 runs, 3 waits for the session it replaced.
    pub state: i16,
    /// Turns accepted.
    pub accepted: i64,
    /// Turns accepted and not ended.
    pub open: i64,
    /// First message.
    pub created_at: Timestamp,
    /// Last use.
    pub updated_at: Timestamp,
    /// When a reset ended it.
    pub ended_at: Option<Timestamp>,
    /// Why.
    pub end_reason: Option<String>,
}

/// How a turn ended.
#[derive(Clone, Debug, PartialEq)]
pub struct TurnEnd {
    /// One of the ended states.
    pub state: TurnState,
    /// The whole reply.
    pub reply: String,
    /// What it used.
    pub usage: Usage,
}

/// How a turn stands.
#[derive(Clone, Debug)]
pub struct TurnRow {
    /// The turn.
    pub id: TurnId,
    /// Its agent.
    pub agent_id: String,
    /// Its session's key.
    pub session_key: String,
    /// How it ended, if it did.
    pub ended: Option<Ended>,
    /// A worker has it now.
    pub running: bool,
    /// The reply, once ended.
    pub reply: Vec<u8>,
    /// JSON of `Usage`, once ended.
    pub usage: Option<Value>,
    /// JSON of `TurnInput`.
    pub payload: Vec<u8>,
    /// Id of the token that submitted it; absent for what a platform brought.
    pub submitter: Option<String>,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Number of the turn of its session that took it in; how that one ends is how this one ends.
    pub absorbed_by: Option<i64>,
}

impl TurnRow {
    /// How it ended, if it did.
    pub fn end(&self) -> Option<TurnEnd> {
        let state = match self.ended? {
            Ended::Succeeded => TurnState::Succeeded,
            Ended::Failed => TurnState::Failed,
            Ended::Dead => TurnState::Dead,
            Ended::Cancelled => TurnState::Cancelled,
        };
        let usage = self.usage.clone().and_then(|usage| serde_json::from_value(usage).ok()).unwrap_or_default();
        Some(TurnEnd { state, reply: String::from_utf8_lossy(&self.reply).into_owned(), usage })
    }

    /// How it stands.
    pub fn state(&self) -> TurnState {
        match self.end() {
            Some(end) => end.state,
            None if self.running => TurnState::Running,
            None => TurnState::Queued,
        }
    }
}

/// One answered turn for a worker's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Turn number.
    pub seq: i64,
    /// What the user said, and what the turn took in while it ran, in order.
    pub said: Vec<String>,
    /// The reply.
    pub reply: Vec<u8>,
}

impl Exchange {
    fn bytes(&self) -> usize {
        self.reply.len() + self.said.iter().map(String::len).sum::<usize>()
    }
}

/// A step of a turn, as its history tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Did {
    /// A model's reply that asks for tools: its body.
    Asked(Vec<u8>),
    /// How a call's result begins.
    Result(Vec<u8>),
    /// It took in a message.
    TookIn,
}

/// What stands for the oldest turns of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The newest of these turns.
    pub through: i64,
    /// Its text.
    pub body: Vec<u8>,
}

/// What became of a summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Summarised {
    /// It is stored, now or by an earlier call of the same turn; how often the history has changed now.
    Stored(u32),
    /// Somebody else has the turn, or nobody; nothing was stored.
    Fenced,
    /// Not all of those turns are over, or another summary stands for them; nothing was stored.
    Refused,
}

/// Counts for `status`.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatusCounts {
    /// All sessions.
    pub sessions: i64,
    /// Sessions that wait.
    pub waiting: i64,
    /// Deliveries not yet ended.
    pub deliveries: i64,
    /// Replicas that live.
    pub replicas: i64,
}

const SESSION: &str = "s.session_id, a.agent_id, s.session_key, s.state, s.tail_seq, s.tail_seq - s.head_seq + 1 - s.absorbed AS open, \
     s.created_at, s.updated_at, s.ended_at, s.end_reason FROM sessions s JOIN agents a USING (agent_no)";
/// What became of a turn that another one took in is what became of that one.
const TURN: &str = "t.session_id, t.seq, a.agent_id, s.session_key, CASE WHEN t.ended = 6 THEN b.ended ELSE t.ended END AS ended, \
     (s.state = 2 AND s.head_seq = coalesce(t.absorbed_by, t.seq)) AS running, CASE WHEN t.ended = 6 THEN b.body ELSE t.reply END AS reply, \
     CASE WHEN t.ended = 6 THEN NULL ELSE t.usage END AS usage, t.payload, t.created_at, \
     CASE WHEN t.ended = 6 THEN b.at ELSE t.ended_at END AS ended_at, t.submitter, t.absorbed_by \
     FROM transcripts t JOIN sessions s USING (session_id) JOIN agents a USING (agent_no) \
     LEFT JOIN turn_steps b ON b.session_id = t.session_id AND b.seq = t.absorbed_by AND b.step = 2147483647 AND b.phase = 1";

impl Store {
    /// Sessions, newest number first, below `before`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn session_list(
        &self,
        agent: Option<&str>,
        ended: bool,
        before: i64,
        limit: i64,
    ) -> Result<Vec<SessionRow>> {
        let sql = format!(
            "SELECT {SESSION} WHERE s.session_id < $1 AND ($2::text IS NULL OR a.agent_id = $2) AND ($3 OR s.ended_at IS NULL) \
             ORDER BY s.session_id DESC LIMIT $4"
        );
        Ok(self.query(&sql, &[&before, &agent, &ended, &limit]).await?.iter().map(session_row).collect())
    }

    /// The last turn of a session that was used within so many seconds.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn last_turn_within(&self, agent_no: i32, session_key: &str, seconds: u64) -> Result<Option<TurnId>> {
        let sql = "SELECT s.session_id, s.tail_seq FROM session_keys k JOIN sessions s USING (session_id) \
                   WHERE k.agent_no = $1 AND k.session_key = $2 AND s.tail_seq > 0 AND s.updated_at > clock_timestamp() - $3 * interval '1 second'";
        let seconds = f64::from(u32::try_from(seconds).unwrap_or(u32::MAX));
        let row = self.query_opt(sql, &[&agent_no, &session_key, &seconds]).await?;
        Ok(row.map(|row| TurnId { session: SessionId(row.get(0)), seq: row.get(1) }))
    }

    /// One session.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn session_get(&self, id: SessionId) -> Result<SessionRow> {
        let sql = format!("SELECT {SESSION} WHERE s.session_id = $1");
        let row = self.query_opt(&sql, &[&id.0]).await?;
        row.as_ref().map(session_row).ok_or_else(|| Error::NotFound(format!("there is no session {id}")))
    }

    /// Turns of a session in order, after turn number `after`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn session_turns(&self, id: SessionId, after: i64, limit: i64) -> Result<Vec<TurnRow>> {
        let sql = format!("SELECT {TURN} WHERE t.session_id = $1 AND t.seq > $2 ORDER BY t.seq LIMIT $3");
        Ok(self.query(&sql, &[&id.0, &after, &limit]).await?.iter().map(turn_row).collect())
    }

    /// One turn.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn turn_get(&self, id: TurnId) -> Result<TurnRow> {
        let sql = format!("SELECT {TURN} WHERE t.session_id = $1 AND t.seq = $2");
        let row = self.query_opt(&sql, &[&id.session.0, &id.seq]).await?;
        row.as_ref().map(turn_row).ok_or_else(|| Error::NotFound(format!("there is no turn {id}")))
    }

    /// Whose turn it is and where its reply goes.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn turn_place(&self, id: TurnId) -> Result<(String, Option<i64>)> {
        let sql = "SELECT a.agent_id, t.lane_id FROM turns t JOIN sessions s USING (session_id) JOIN agents a USING (agent_no) \
                   WHERE t.session_id = $1 AND t.seq = $2";
        let row = self.query_opt(sql, &[&id.session.0, &id.seq]).await?;
        row.map(|row| (row.get(0), row.get(1))).ok_or_else(|| Error::NotFound(format!("there is no turn {id}")))
    }

    /// The answered turns of a session between `after` and `before` (both excluded), oldest first, without those that only changed
    /// the history: the newest of them whose texts together have at most `bytes`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn transcript(&self, id: SessionId, after: i64, mut before: i64, bytes: usize) -> Result<Vec<Exchange>> {
        let sql = "SELECT o_seq, o_payload, o_reply, o_absorbed_by FROM past_turns($1,$2,$3,$4) ORDER BY o_seq";
        // A stored input carries more than its text, so one page may not hold enough.
        let page = i64::try_from(bytes.saturating_mul(2).max(MIN_PAGE_BYTES)).unwrap_or(i64::MAX);
        let mut turns: VecDeque<Exchange> = VecDeque::new();
        // Read already, but not yet the turn that took it in.
        let mut taken_in: Vec<Past> = Vec::new();
        let mut left = bytes;
        while before > after + 1 {
            let rows = self.query(sql, &[&id.0, &after, &before, &page]).await?;
            let Some(oldest) = rows.first() else { break };
            before = oldest.get(0);
            let mut read: Vec<Past> = rows.iter().map(past).collect();
            read.append(&mut taken_in);
            let first = read.iter().position(|turn| turn.absorbed_by.is_none()).unwrap_or(read.len());
            let whole = read.split_off(first);
            taken_in = read;
            for (is_dialogue, exchange) in exchanges(whole).into_iter().rev() {
                if !is_dialogue {
                    continue;
                }
                let Some(rest) = left.checked_sub(exchange.bytes()) else { return Ok(turns.into()) };
                left = rest;
                turns.push_front(exchange);
            }
        }
        Ok(turns.into())
    }

    /// What the turns `from` to `to` of a session did, by turn, in the order of their steps; of a turn that did much, the newest.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn steps_of(&self, id: SessionId, from: i64, to: i64) -> Result<BTreeMap<i64, Vec<Did>>> {
        let sql = "SELECT seq, kind, CASE WHEN kind = $4 THEN substring(body FROM 1 FOR $6) ELSE body END FROM (SELECT t.*, \
                     sum(CASE WHEN kind = $4 THEN least(octet_length(body), $6) ELSE octet_length(body) END) OVER (PARTITION BY seq ORDER BY step DESC) AS upto \
                     FROM turn_steps t WHERE session_id = $1 AND seq BETWEEN $2 AND $3 AND phase = 1 AND kind IN ($4, $5, $8) AND step < $7) s \
                   WHERE upto <= $9 ORDER BY seq, step";
        let (result, asked, took_in) =
            (kind_code(StepKind::ToolCall), kind_code(StepKind::ModelReply), kind_code(StepKind::Steering));
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 9] =
            [&id.0, &from, &to, &result, &asked, &RESULT_BYTES, &i32::MAX, &took_in, &STEPS_BYTES];
        let mut steps: BTreeMap<i64, Vec<Did>> = BTreeMap::new();
        for row in self.query(sql, &params).await? {
            let body = row.get::<_, Option<Vec<u8>>>(2).unwrap_or_default();
            let did = match row.get::<_, i16>(1) {
                kind if kind == result => Did::Result(body),
                kind if kind == asked => Did::Asked(body),
                _ => Did::TookIn,
            };
            steps.entry(row.get(0)).or_default().push(did);
        }
        Ok(steps)
    }

    /// The summary that stands for the oldest turns of a session.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn summary(&self, id: SessionId) -> Result<Option<Summary>> {
        let sql = "SELECT through, body FROM summaries WHERE session_id = $1 ORDER BY through DESC LIMIT 1";
        let row = self.query_opt(sql, &[&id.0]).await?;
        Ok(row.map(|row| Summary { through: row.get(0), body: row.get(1) }))
    }

    /// Puts a summary in the place of a session's oldest turns, under the fence of the turn that made it.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: repeat it.
    pub async fn summarise(&self, turn: TurnId, epoch: i64, summary: &Summary) -> Result<Summarised> {
        let sql = "SELECT o_result, o_rewinds FROM summarise($1,$2,$3,$4,$5)";
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&turn.session.0, &epoch, &turn.seq, &summary.through, &summary.body];
        let rows = self.query_retrying(sql, &params).await?;
        Ok(match rows.first().map(|row| (row.get::<_, i32>(0), row.get::<_, i32>(1))) {
            Some((1 | 2, rewinds)) => Summarised::Stored(rewinds.unsigned_abs()),
            Some((-1, _)) => Summarised::Refused,
            _ => Summarised::Fenced,
        })
    }

    /// Counts for `status`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn counts(&self) -> Result<StatusCounts> {
        let sql = "SELECT (SELECT count(*) FROM session_keys), (SELECT count(*) FROM ready), (SELECT count(*) FROM outbox), \
             (SELECT count(*) FROM replicas WHERE lost_at IS NULL AND lease_until > clock_timestamp())";
        let row = self.query_opt(sql, &[]).await?;
        Ok(row.map_or_else(StatusCounts::default, |row| StatusCounts {
            sessions: row.get(0),
            waiting: row.get(1),
            deliveries: row.get(2),
            replicas: row.get(3),
        }))
    }
}

/// A row of a session's past.
struct Past {
    seq: i64,
    input: TurnInput,
    reply: Vec<u8>,
    absorbed_by: Option<i64>,
}

fn past(row: &Row) -> Past {
    Past {
        seq: row.get(0),
        input: serde_json::from_slice(row.get(1)).unwrap_or_default(),
        reply: row.get::<_, Option<_>>(2).unwrap_or_default(),
        absorbed_by: row.get(3),
    }
}

/// Answered turns, oldest first, with what they took in, and whether each is part of the dialogue. One that was taken in follows the turn that
/// did; without that one it is left out.
fn exchanges(past: Vec<Past>) -> Vec<(bool, Exchange)> {
    let mut turns: Vec<(bool, Exchange)> = Vec::new();
    for Past { seq, input, reply, absorbed_by } in past {
        match (absorbed_by, turns.last_mut()) {
            (None, _) => {
                let is_dialogue = input.compress.is_none();
                turns.push((is_dialogue, Exchange { seq, said: vec![input.text], reply }));
            }
            (Some(by), Some((_, turn))) if turn.seq == by => turn.said.push(input.text),
            (Some(_), _) => {}
        }
    }
    turns
}

fn session_row(row: &Row) -> SessionRow {
    SessionRow {
        id: SessionId(row.get(0)),
        agent_id: row.get(1),
        session_key: row.get(2),
        state: row.get(3),
        accepted: row.get(4),
        open: row.get(5),
        created_at: row.get(6),
        updated_at: row.get(7),
        ended_at: row.get(8),
        end_reason: row.get(9),
    }
}

fn turn_row(row: &Row) -> TurnRow {
    TurnRow {
        id: TurnId { session: SessionId(row.get(0)), seq: row.get(1) },
        agent_id: row.get(2),
        session_key: row.get(3),
        ended: row.get::<_, Option<i16>>(4).map(Ended::from_code),
        running: row.get(5),
        reply: row.get::<_, Option<Vec<u8>>>(6).unwrap_or_default(),
        usage: row.get(7),
        payload: row.get(8),
        submitter: row.get(11),
        accepted_at: row.get(9),
        ended_at: row.get(10),
        absorbed_by: row.get(12),
    }
}
