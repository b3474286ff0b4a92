//! What agents ask each other: the call that waits, the turn that answers it.
//!
//! Called by the tool `ask_agent` within its call. Always true: a call asks once, in the commit that makes the answering turn; agents
//! never wait for each other in a circle, so that somebody's slot always becomes free: asks begin one after the other, and what
//! a turn waits for is known from its own session, so that one which has ended waits for nothing; what nobody waits for any more is
//! withdrawn: it is told to stop, and where it waits it never runs. It deliberately does not know who
//! may ask whom, nor how long anybody waits.

use std::time::Duration;

use super::calls::{FENCE, THERE, known};
use super::{CallScope, CallStep, Called, Caller, Result, SessionId, Stopped, Store, TurnId, millis};

/// Most questions that one call withdraws.
const MOST_FORSAKEN: i32 = 64;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Number of the agent that is asked.
    pub asked_no: i32,
    /// In which of its dialogues.
    pub session_key: String,
    /// JSON of the `TurnInput`.
    pub payload: Vec<u8>,
    /// How many askers stand before the answer, this one included.
    pub depth: i32,
    /// How long its asker waits.
    pub wait: Duration,
    /// Most turns that the dialogue may hold.
    pub most: i64,
    /// How long the turn may run.
    pub limit: Duration,
}

/// What is known before something is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asking {
    /// How many askers stand before the caller's own answer; 0: nobody asked it.
    pub depth: i32,
    /// How often its turn has asked already.
    pub before: i64,
    /// Whether the asked agent waits for the caller's already, or is the caller's.
    pub circle: bool,
}

/// Something that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskRow {
    /// The turn that answers.
    pub turn: TurnId,
    /// How long its asker still waits.
    pub left: Duration,
}

/// What is there of a call that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookedAsk {
    /// Nothing yet.
    Open(Caller),
    /// It has asked, and has no result yet.
    Waits(AskRow),
    /// As [`Called`].
    Over(Called),
}

const CIRCLE: &str = "WITH RECURSIVE waits(agent_no) AS (SELECT $1::int UNION SELECT a.asked_no FROM waits w \
      JOIN asks a ON a.agent_no = w.agent_no AND NOT a.done \
      JOIN sessions s ON s.session_id = a.session_id AND s.head_seq = a.seq AND s.state IN (1, 2)) \
    SELECT coalesce((SELECT a.depth FROM asks a WHERE a.asked_session = $3 AND a.asked_seq = $4), 0), \
      (SELECT count(*) FROM asks a WHERE a.session_id = $3 AND a.seq = $4), EXISTS (SELECT 1 FROM waits WHERE agent_no = $2)";
const INGEST: &str = "SELECT o_session, o_seq, o_full FROM ingest_batch(ARRAY[$1::bytea], ARRAY[NULL::bytea], ARRAY[$2::int], ARRAY[$3::text], \
    ARRAY[NULL::bigint], ARRAY[$4::bytea], ARRAY[NULL::text], ARRAY[NULL::text], ARRAY[NULL::bigint], ARRAY[NULL::smallint], \
    ARRAY[NULL::timestamptz], ARRAY[NULL::timestamptz], ARRAY[0::smallint], $5, $6)";
const KEEP: &str = "INSERT INTO asks(session_id, seq, step, call, agent_no, asked_no, asked_session, asked_seq, depth, wait_until) \
    VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9, clock_timestamp() + $10::bigint * interval '1 millisecond')";

impl Store {
    /// What is there of a call that asks, without a lock.
    ///
    /// # Errors
    /// [`super::Error::Unavailable`].
    pub async fn look_for_ask(&self, step: &CallStep) -> Result<LookedAsk> {
        let TurnId { session, seq } = step.turn;
        let Some(fenced) = self.query_opt(FENCE, &[&session.0, &step.epoch, &seq]).await? else {
            return Ok(LookedAsk::Over(Called::Fenced));
        };
        if let Some(row) = self.query_opt(THERE, &[&session.0, &seq, &step.step]).await? {
            return Ok(LookedAsk::Over(known(&row, step)));
        }
        let sql = "SELECT call, asked_session, asked_seq, \
                     greatest(0, extract(epoch FROM wait_until - clock_timestamp()) * 1000)::bigint \
                   FROM asks WHERE session_id = $1 AND seq = $2 AND step = $3";
        let Some(row) = self.query_opt(sql, &[&session.0, &seq, &step.step]).await? else {
            return Ok(LookedAsk::Open(Caller { turn: step.turn, agent_no: fenced.get(0) }));
        };
        if row.get::<_, &str>(0) != step.call {
            return Ok(LookedAsk::Over(Called::Diverged));
        }
        let left = Duration::from_millis(row.get::<_, i64>(3).unsigned_abs());
        Ok(LookedAsk::Waits(AskRow { turn: TurnId { session: SessionId(row.get(1)), seq: row.get(2) }, left }))
    }
}

impl Store {
    /// Nobody waits for the answer of a turn any more: as [`Store::stop`], but one that waits right behind its session's head ends, too.
    ///
    /// # Errors
    /// [`super::Error::Unavailable`]: repeat it.
    pub async fn withdraw(&self, turn: TurnId, notice: &str) -> Result<Stopped> {
        let rows =
            self.query_retrying("SELECT withdraw($1,$2,$3)", &[&turn.session.0, &turn.seq, &notice.as_bytes()]).await?;
        Ok(rows.first().map_or(Stopped::Nothing, |row| Stopped::from_code(row.get(0), turn)))
    }

    /// Withdraws what was asked by turns that wait for it no more, and says what became of each.
    ///
    /// # Errors
    /// [`super::Error::Unavailable`]: repeat it.
    pub async fn forsake(&self, notice: &str) -> Result<Vec<Stopped>> {
        let sql = "SELECT o_result, o_session, o_seq FROM forsake($1,$2)";
        let rows = self.query_retrying(sql, &[&MOST_FORSAKEN, &notice.as_bytes()]).await?;
        let turn = |row: &tokio_postgres::Row| TurnId { session: SessionId(row.get(1)), seq: row.get(2) };
        Ok(rows.iter().map(|row| Stopped::from_code(row.get(0), turn(row))).collect())
    }
}

impl CallScope<'_> {
    /// What is known before the caller asks this agent; nothing: this very call has asked, and goes on. Until the call's commit nobody
    /// else asks anything.
    ///
    /// # Errors
    /// As of the call.
    pub async fn asking(&mut self, asked_no: i32) -> Result<Option<Asking>> {
        let caller = self.caller();
        // Two that asked each other at once would not see each other.
        let lock = self.tx.prepare_cached("SELECT pg_advisory_xact_lock(hashtext('hermes.asks'))").await?;
        self.tx.execute(&lock, &[]).await?;
        let TurnId { session, seq } = caller.turn;
        let there =
            self.tx.prepare_cached("SELECT 1 FROM asks WHERE session_id = $1 AND seq = $2 AND step = $3").await?;
        if self.tx.query_opt(&there, &[&session.0, &seq, &self.step.step]).await?.is_some() {
            self.goes_on = true;
            return Ok(None);
        }
        let look = self.tx.prepare_cached(CIRCLE).await?;
        let row = self.tx.query_one(&look, &[&asked_no, &caller.agent_no, &session.0, &seq]).await?;
        Ok(Some(Asking { depth: row.get(0), before: row.get(1), circle: row.get(2) }))
    }

    /// JSON of the caller's `TurnInput`.
    ///
    /// # Errors
    /// As of the call.
    pub async fn input(&self) -> Result<Vec<u8>> {
        let sql = "SELECT payload FROM turns WHERE session_id = $1 AND seq = $2";
        let statement = self.tx.prepare_cached(sql).await?;
        let TurnId { session, seq } = self.caller().turn;
        Ok(self.tx.query_one(&statement, &[&session.0, &seq]).await?.get(0))
    }

    /// Asks, and lets the call go on. False: the dialogue holds as many turns as it may, and nothing was done.
    ///
    /// # Errors
    /// As of the call.
    pub async fn ask(&mut self, ask: &Ask) -> Result<bool> {
        let Caller { turn: TurnId { session, seq }, agent_no } = self.caller();
        let CallStep { step, call, .. } = self.step;
        // Known again for ever, and like no other.
        let key = [b"ask".as_slice(), &session.0.to_be_bytes(), &seq.to_be_bytes(), &step.to_be_bytes()].concat();
        let ingest = self.tx.prepare_cached(INGEST).await?;
        let (payload, limit) = (&ask.payload, millis(ask.limit));
        let row =
            self.tx.query_one(&ingest, &[&key, &ask.asked_no, &ask.session_key, payload, &ask.most, &limit]).await?;
        if row.get(2) {
            return Ok(false);
        }
        let (asked_session, asked_seq): (i64, i64) = (row.get(0), row.get(1));
        let keep = self.tx.prepare_cached(KEEP).await?;
        let (asked_no, wait) = (ask.asked_no, millis(ask.wait));
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 10] =
            [&session.0, &seq, step, call, &agent_no, &asked_no, &asked_session, &asked_seq, &ask.depth, &wait];
        self.tx.execute(&keep, &params).await?;
        self.wakes.agent = Some(asked_no);
        self.goes_on = true;
        Ok(true)
    }

    /// What the call asked is answered.
    ///
    /// # Errors
    /// As of the call.
    pub async fn answered(&self) -> Result<()> {
        let sql = "UPDATE asks SET done = true WHERE session_id = $1 AND seq = $2 AND step = $3";
        let statement = self.tx.prepare_cached(sql).await?;
        let TurnId { session, seq } = self.caller().turn;
        self.tx.execute(&statement, &[&session.0, &seq, &self.step.step]).await?;
        Ok(())
    }
}
