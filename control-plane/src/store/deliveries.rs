//! Deliveries in their lanes: how attempts went, what is due, whose chat is gone. The SQL is in `control-plane/functions`.
//!
//! Always true: an outcome is stored only under its fence (owner and attempt); one delivery of a lane is in a sender's hands;
//! what a platform says never keeps an outcome from being stored.

use std::time::Duration;

use tokio_postgres::Row;

use super::{Error, Result, SessionId, Store, TurnId, millis};

/// A delivery in this replica's hands.
#[derive(Clone, Debug)]
pub struct DueDelivery {
    /// Its lane.
    pub lane: i64,
    /// Its place in the order of all deliveries.
    pub pos: i64,
    /// The turn it belongs to.
    pub turn: TurnId,
    /// The fence of this attempt.
    pub attempt: i32,
    /// How many attempts went wrong; being asked to wait is none.
    pub failures: i32,
    /// Parts that certainly arrived.
    pub part: i32,
    /// A copy of the next part may have arrived already.
    pub maybe_duplicate: bool,
    /// The whole text.
    pub body: Vec<u8>,
    /// The trace of its turn.
    pub traceparent: Option<String>,
    /// Why its chat is gone, when the store knows that it is and the turn was accepted before: end it without a call.
    pub gone: Option<String>,
    /// Nobody has asked the store yet whether the chat is gone, and it is worth asking.
    pub ask: bool,
}

/// How an attempt went.
#[derive(Clone, Debug)]
pub enum SendResult {
    /// All parts arrived.
    Delivered {
        /// The platform's id of the first part sent in this attempt.
        message_id: Option<String>,
        /// The lane was marked dead: it lives again.
        revived: bool,
    },
    /// It will never arrive.
    Dead {
        /// For people.
        reason: String,
        /// The next part may have arrived.
        maybe_duplicate: bool,
    },
    /// It will never arrive, and nothing else will in this chat until somebody writes there.
    Gone {
        /// For people.
        reason: String,
        /// How long ago the attempt began: who wrote since then is heard.
        age: Duration,
        /// The next part may have arrived in an earlier attempt.
        maybe_duplicate: bool,
    },
    /// Try again.
    Retry {
        /// After this long.
        after: Duration,
        /// The next part may have arrived.
        maybe_duplicate: bool,
        /// For people.
        cause: String,
    },
    /// The platform asks to wait, or our own pacing or database does: try again, and nothing went wrong.
    Wait {
        /// After this long.
        after: Duration,
        /// The next part may have arrived in an earlier attempt.
        maybe_duplicate: bool,
        /// For people.
        cause: String,
    },
    /// Its account is not there: it waits until [`Store::unpark`] names that.
    Parked {
        /// `platform/account`.
        account: String,
        /// The next part may have arrived in an earlier attempt.
        maybe_duplicate: bool,
    },
    /// Parts up to `DeliveryOutcome::part` arrived and the attempt goes on.
    Progress,
}

/// The report of one attempt.
#[derive(Clone, Debug)]
pub struct DeliveryOutcome {
    /// Its lane.
    pub lane: i64,
    /// Its place.
    pub pos: i64,
    /// The fence.
    pub attempt: i32,
    /// Parts that certainly arrived.
    pub part: i32,
    /// How it went.
    pub result: SendResult,
}

/// The ordered deliveries of one chat.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// Platform name.
    pub platform: String,
    /// Account id.
    pub account: String,
    /// Chat id.
    pub chat_id: String,
    /// Topic, empty for none.
    pub thread_id: String,
}

impl Store {
    /// Records how attempts went. Answers per row whether the fence held, and the next deliveries of the lanes, already
    /// `attempting` in this replica's name.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: the attempts stay `attempting`; repeat the call.
    pub async fn deliver(&self, replica: i64, rows: &[DeliveryOutcome]) -> Result<(Vec<bool>, Vec<DueDelivery>)> {
        let lanes: Vec<i64> = rows.iter().map(|row| row.lane).collect();
        let positions: Vec<i64> = rows.iter().map(|row| row.pos).collect();
        let attempts: Vec<i32> = rows.iter().map(|row| row.attempt).collect();
        let parts: Vec<i32> = rows.iter().map(|row| row.part).collect();
        let mut results = Vec::with_capacity(rows.len());
        let mut messages = Vec::with_capacity(rows.len());
        let mut reasons = Vec::with_capacity(rows.len());
        let mut duplicates = Vec::with_capacity(rows.len());
        let mut delays = Vec::with_capacity(rows.len());
        // A platform's words may hold what Postgres text cannot.
        let storable = |text: &str| text.replace('\0', "\u{fffd}");
        for row in rows {
            let (result, message, reason, duplicate, delay) = match &row.result {
                SendResult::Delivered { message_id, revived } => {
                    (if *revived { 8_i16 } else { 2 }, message_id.as_deref().map(storable), None, false, 0)
                }
                SendResult::Dead { reason, maybe_duplicate } => (4, None, Some(storable(reason)), *maybe_duplicate, 0),
                SendResult::Gone { reason, age, maybe_duplicate } => {
                    (7, None, Some(storable(reason)), *maybe_duplicate, millis(*age))
                }
                SendResult::Retry { after, maybe_duplicate, cause } => {
                    (3, None, Some(storable(cause)), *maybe_duplicate, millis(*after))
                }
                SendResult::Wait { after, maybe_duplicate, cause } => {
                    (6, None, Some(storable(cause)), *maybe_duplicate, millis(*after))
                }
                SendResult::Parked { account, maybe_duplicate } => {
                    (9, Some(storable(account)), None, *maybe_duplicate, 0)
                }
                SendResult::Progress => (5, None, None, false, 0),
            };
            results.push(result);
            messages.push(message);
            reasons.push(reason);
            duplicates.push(duplicate);
            delays.push(delay);
        }
        let answers = self
            .query_retrying(
                "SELECT * FROM deliver_batch($1,$2,$3,$4,$5,$6,$7,$8,$9,$10)",
                &[&replica, &lanes, &positions, &attempts, &results, &parts, &messages, &reasons, &duplicates, &delays],
            )
            .await?;
        let (mut held, mut next) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in &answers {
            match row.get::<_, Option<bool>>("o_ok") {
                Some(ok) => held.push(ok),
                None => next.push(due_delivery(row)),
            }
        }
        Ok((held, next))
    }

    /// Takes deliveries that are due again, and those whose sender died.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn outbox_claim(&self, replica: i64, limit: i32) -> Result<Vec<DueDelivery>> {
        let rows = self.query_retrying("SELECT * FROM claim_outbox($1,$2)", &[&replica, &limit]).await?;
        Ok(rows.iter().map(due_delivery).collect())
    }

    /// All that is `attempting` in this replica's name, also what was handed over in an answer that got lost.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn outbox_held(&self, replica: i64) -> Result<Vec<DueDelivery>> {
        let sql = "SELECT o.lane_id AS o_lane, o.pos AS o_pos, o.session_id AS o_session, o.seq AS o_seq, o.attempt AS o_attempt, \
                     o.part AS o_part, o.maybe_dup AS o_dup, coalesce(o.body, (SELECT t.reply FROM transcripts t \
                       WHERE t.session_id = o.session_id AND t.seq = o.seq)) AS o_body, \
                     (SELECT q.traceparent FROM turns q WHERE q.session_id = o.session_id AND q.seq = o.seq) AS o_trace, o.failures AS o_failures, \
                     CASE WHEN NOT o.redriven THEN lane_gone(o.lane_id, o.session_id, o.seq) END AS o_gone \
                   FROM outbox o WHERE o.head AND o.state = 1 AND o.owner = $1";
        Ok(self.query(sql, &[&replica]).await?.iter().map(due_delivery).collect())
    }

    /// The lane of a chat, made when it is new.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn lane_ensure(&self, lane: &LaneKey) -> Result<i64> {
        let find = "SELECT lane_id FROM lanes WHERE platform = $1 AND account = $2 AND chat_id = $3 AND thread_id = $4";
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&lane.platform, &lane.account, &lane.chat_id, &lane.thread_id];
        if let Some(row) = self.query_opt(find, &params).await? {
            return Ok(row.get(0));
        }
        let make = "INSERT INTO lanes(platform, account, chat_id, thread_id) VALUES ($1,$2,$3,$4) \
                    ON CONFLICT (platform, account, chat_id, thread_id) DO UPDATE SET platform = excluded.platform RETURNING lane_id";
        let row = self.query_opt(make, &params).await?;
        row.map(|row| row.get(0)).ok_or_else(|| Error::NotFound("the lane was not made".to_owned()))
    }

    /// The chat of a lane.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::Unavailable`].
    pub async fn lane_get(&self, lane: i64) -> Result<LaneKey> {
        let sql = "SELECT platform, account, chat_id, thread_id FROM lanes WHERE lane_id = $1";
        let row = self.query_opt(sql, &[&lane]).await?;
        row.map(|row| LaneKey { platform: row.get(0), account: row.get(1), chat_id: row.get(2), thread_id: row.get(3) })
            .ok_or_else(|| Error::NotFound(format!("there is no lane {lane}")))
    }

    /// Why a delivery of `turn` in `lane` would find nobody; `None`: send it.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn lane_gone(&self, lane: i64, turn: TurnId) -> Result<Option<String>> {
        let row = self.query_opt("SELECT lane_gone($1,$2,$3)", &[&lane, &turn.session.0, &turn.seq]).await?;
        Ok(row.and_then(|row| row.get(0)))
    }

    /// Lanes that are marked dead, the latest marks first, ten thousand at most.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn lanes_dead(&self) -> Result<Vec<i64>> {
        let sql = "SELECT lane_id FROM lanes WHERE dead_since IS NOT NULL ORDER BY dead_since DESC LIMIT 10000";
        Ok(self.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
    }

    /// Makes deliveries due that wait for one of these accounts (`platform/account`), `limit` at most; answers how many.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn unpark(&self, accounts: &[String], limit: i32) -> Result<i64> {
        let row = self.query_opt("SELECT unpark($1,$2)", &[&accounts, &limit]).await?;
        Ok(row.map_or(0, |row| row.get(0)))
    }
}

fn due_delivery(row: &Row) -> DueDelivery {
    DueDelivery {
        lane: row.get("o_lane"),
        pos: row.get("o_pos"),
        turn: TurnId { session: SessionId(row.get("o_session")), seq: row.get("o_seq") },
        attempt: row.get("o_attempt"),
        failures: row.get("o_failures"),
        part: row.get("o_part"),
        maybe_duplicate: row.get("o_dup"),
        body: row.get::<_, Option<Vec<u8>>>("o_body").unwrap_or_default(),
        traceparent: row.get("o_trace"),
        gone: row.get("o_gone"),
        ask: false,
    }
}
