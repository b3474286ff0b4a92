//! What is asked of running turns, and what waits: the SQL is in `control-plane/functions/busy.sql`.
//!
//! Always true: what is asked is bound to a turn's number, so it never meets the turn after it.

use std::time::Duration;

use hermes_core::busy::BusyMode;

use super::journal::phase_code;
use super::{Result, SessionId, StepRow, Store, TurnId, millis};

/// What is asked of a running turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A person wants it to stop.
    Stop,
    /// A newer message goes first.
    Interrupt,
    /// It may take this message in: number of the queued turn, and JSON of its `TurnInput`. None: nothing waits any more.
    Steer(Option<(i64, Vec<u8>)>),
}

/// The number that a message's mode has in the database; 0 asks nothing.
pub(super) fn asked(mode: BusyMode) -> i16 {
    match mode {
        BusyMode::Queue => 0,
        BusyMode::Interrupt => 2,
        BusyMode::Steer => 3,
    }
}

/// A signal and the turn it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signalled {
    /// Who runs the turn.
    pub worker: i64,
    /// The turn.
    pub turn: TurnId,
    /// Its fence.
    pub epoch: i64,
    /// What is asked.
    pub signal: Signal,
}

/// What a stop came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Nothing runs or waits there.
    Nothing,
    /// The worker that runs this turn is told.
    Asked(TurnId),
    /// This turn had not begun, or waited for another worker: it has ended as cancelled.
    Cancelled(TurnId),
    /// This turn had ended before, or this very stop was delivered before.
    Ended(TurnId),
    /// This turn waits behind another one.
    Behind(TurnId),
    /// This turn was taken in by the running one and ends with it.
    Absorbed(TurnId),
}

impl Stopped {
    /// The turn that it is about, if there is one.
    pub fn turn(self) -> Option<TurnId> {
        match self {
            Self::Nothing => None,
            Self::Asked(turn)
            | Self::Cancelled(turn)
            | Self::Ended(turn)
            | Self::Behind(turn)
            | Self::Absorbed(turn) => Some(turn),
        }
    }

    pub(super) fn from_code(result: i32, turn: TurnId) -> Self {
        match result {
            1 => Self::Asked(turn),
            2 => Self::Cancelled(turn),
            3 => Self::Ended(turn),
            4 => Self::Behind(turn),
            5 => Self::Absorbed(turn),
            _ => Self::Nothing,
        }
    }
}

/// What became of a report that a queued turn was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absorbed {
    /// Now, or before with the same words.
    Stored,
    /// Somebody else has the turn.
    Fenced,
    /// Another row is there.
    Diverged,
    /// That queued turn cannot be taken in (any more).
    Refused,
}

/// How much of an agent's work waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// The agent.
    pub agent_no: i32,
    /// Turns of its waiting sessions; those behind running turns are not counted.
    pub queued: i64,
    /// How long its first session has been waiting for a worker.
    pub oldest: Duration,
}

impl Store {
    /// Stops a session's running or next turn, or turn `seq` of it.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: repeat it.
    pub async fn stop(&self, session: SessionId, seq: Option<i64>, notice: &str) -> Result<Stopped> {
        let sql = "SELECT o_result, o_seq FROM stop_head($1,$2,$3)";
        let rows = self.query_retrying(sql, &[&session.0, &seq, &notice.as_bytes()]).await?;
        Ok(rows.first().map_or(Stopped::Nothing, |row| {
            Stopped::from_code(row.get(0), TurnId { session, seq: row.get::<_, Option<i64>>(1).unwrap_or(0) })
        }))
    }

    /// What is asked of the turns that these workers run.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn signals(&self, workers: &[i64]) -> Result<Vec<Signalled>> {
        let sql = "SELECT o_worker, o_session, o_seq, o_epoch, o_kind, o_next, o_payload FROM signals($1)";
        let rows = self.query_retrying(sql, &[&workers]).await?;
        let signalled = rows.iter().map(|row| Signalled {
            worker: row.get(0),
            turn: TurnId { session: SessionId(row.get(1)), seq: row.get(2) },
            epoch: row.get(3),
            signal: match row.get::<_, i16>(4) {
                1 => Signal::Stop,
                2 => Signal::Interrupt,
                _ => Signal::Steer(row.get::<_, Option<i64>>(5).zip(row.get(6))),
            },
        });
        Ok(signalled.collect())
    }

    /// Whether a turn was asked to end: [`Signal::Stop`] or [`Signal::Interrupt`].
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn asked_to_end(&self, turn: TurnId) -> Result<Option<Signal>> {
        let sql = "SELECT kind FROM turn_signals WHERE session_id = $1 AND seq = $2 AND kind < 3";
        let row = self.query_opt(sql, &[&turn.session.0, &turn.seq]).await?;
        Ok(row.map(|row| if row.get::<_, i16>(0) == 1 { Signal::Stop } else { Signal::Interrupt }))
    }

    /// Ends turns that were asked to and cannot say so: their worker is lost, or has not answered within `patience`. Answers them
    /// with the worker that still has one.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn settle_signals(&self, patience: Duration, notice: &str) -> Result<Vec<(TurnId, Option<(i64, i64)>)>> {
        let sql = "SELECT o_session, o_seq, o_worker, o_epoch FROM settle_signals($1,$2)";
        let rows = self.query_retrying(sql, &[&millis(patience), &notice.as_bytes()]).await?;
        let ended = rows.iter().map(|row| {
            let turn = TurnId { session: SessionId(row.get(0)), seq: row.get(1) };
            (turn, row.get::<_, Option<i64>>(2).map(|worker| (worker, row.get(3))))
        });
        Ok(ended.collect())
    }

    /// Stores that a running turn has taken in the next queued one, under its fence.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: repeat it; a repeat is answered as stored.
    pub async fn absorb(&self, row: &StepRow) -> Result<Absorbed> {
        let StepRow { turn, epoch, step, absorbs, body, .. } = row;
        let phase = &phase_code(row.phase);
        let sql = "SELECT absorb($1,$2,$3,$4,$5,$6,$7)";
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&turn.session.0, epoch, &turn.seq, step, phase, absorbs, body];
        let rows = self.query_retrying(sql, &params).await?;
        Ok(match rows.first().map_or(0, |row| row.get::<_, i32>(0)) {
            1 => Absorbed::Stored,
            2 => Absorbed::Refused,
            0 => Absorbed::Fenced,
            _ => Absorbed::Diverged,
        })
    }

    /// A notice for a chat, after what waits for it already.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it may be queued all the same.
    pub async fn notice(&self, lane: i64, turn: TurnId, text: &str) -> Result<()> {
        let sql = "SELECT enqueue($1,$2,$3,$4)";
        self.query(sql, &[&lane, &turn.session.0, &turn.seq, &text.as_bytes()]).await.map(|_| ())
    }

    /// How much waits, of agents of which something does; no more than `most` sessions of each are counted.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn backlog(&self, most: i64) -> Result<Vec<Backlog>> {
        let rows = self.query("SELECT o_agent, o_queued, o_oldest_ms FROM backlog($1)", &[&most]).await?;
        let backlog = rows.iter().map(|row| Backlog {
            agent_no: row.get(0),
            queued: row.get(1),
            oldest: Duration::from_millis(u64::try_from(row.get::<_, i64>(2)).unwrap_or(0)),
        });
        Ok(backlog.collect())
    }
}
