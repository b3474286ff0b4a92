//! Deliveries and dead turns as operators see them, and what they may do about the dead ones.
//!
//! Always true: a dead delivery is redriven once (its successor may be redriven again), a dead turn's input is appended once per
//! redrive however often the call is repeated, and both note who asked. History is never removed here.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use tokio_postgres::Row;

use super::{Error, Result, SessionId, Store, TurnId};

/// A delivery's lane and place. People see it as `d7.123`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryId {
    /// Its lane.
    pub lane: i64,
    /// Its place in the order of all deliveries.
    pub pos: i64,
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}.{}", self.lane, self.pos)
    }
}

impl FromStr for DeliveryId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (lane, pos) = text.strip_prefix('d')?.split_once('.')?;
            Some(Self { lane: lane.parse().ok()?, pos: pos.parse().ok()? })
        };
        parse().ok_or_else(|| {
            Error::NotFound(format!("{text:?} is not a delivery id; `hermesctl delivery list` shows them"))
        })
    }
}

/// How a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// Behind others of its lane, for its account, or for a free sender.
    Waiting,
    /// A replica sends it.
    Attempting,
    /// An attempt did not succeed; the next one has its time.
    Retrying,
    /// Given up.
    Dead,
    /// Arrived.
    Delivered,
}

impl DeliveryState {
    const ALL: [Self; 5] = [Self::Waiting, Self::Attempting, Self::Retrying, Self::Dead, Self::Delivered];

    fn code(self) -> i32 {
        match self {
            Self::Waiting => 1,
            Self::Attempting => 2,
            Self::Retrying => 3,
            Self::Dead => 4,
            Self::Delivered => 5,
        }
    }
}

/// A delivery as people see it.
#[derive(Clone, Debug)]
pub struct DeliveryRow {
    /// Its id.
    pub id: DeliveryId,
    /// How it stands.
    pub state: DeliveryState,
    /// Platform name.
    pub platform: String,
    /// Account id.
    pub account: String,
    /// The chat.
    pub chat_id: String,
    /// The topic, empty for none.
    pub thread_id: String,
    /// The turn it belongs to.
    pub turn: TurnId,
    /// Attempts begun.
    pub attempts: i32,
    /// Attempts that went wrong; zero once it has ended.
    pub failures: i32,
    /// A marked copy is there or may be.
    pub maybe_duplicate: bool,
    /// Parts that certainly arrived.
    pub part: i32,
    /// Why it waits or is dead.
    pub cause: String,
    /// The next attempt.
    pub next_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// The platform's id of its first message.
    pub message_id: String,
    /// What took its place, by whom and when.
    pub redriven: Option<(DeliveryId, String, Timestamp)>,
    /// Why its whole chat counts as dead.
    pub chat_dead: Option<String>,
    /// The whole text; only of [`Store::delivery_get`].
    pub text: Vec<u8>,
}

/// Which deliveries.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    /// In one of these states; none: in all but delivered.
    pub states: Vec<DeliveryState>,
    /// Of this platform.
    pub platform: Option<String>,
    /// Of this account.
    pub account: Option<String>,
    /// For this chat, all topics.
    pub chat_id: Option<String>,
    /// Dead ones that were not redriven, and nothing else.
    pub open_dead: bool,
}

/// What became of a redrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redrive<T> {
    /// This took its place.
    Done(T),
    /// Nothing was done, and why.
    Refused(String),
}

/// A turn that was given up.
#[derive(Clone, Debug)]
pub struct DeadTurnRow {
    /// The turn.
    pub turn: TurnId,
    /// Its agent.
    pub agent_id: String,
    /// Number of its agent.
    pub agent_no: i32,
    /// That agent was removed.
    pub removed: bool,
    /// Its session's key.
    pub session_key: String,
    /// Why it died, one word.
    pub reason: String,
    /// When.
    pub at: Timestamp,
    /// JSON of its `TurnInput`.
    pub payload: Vec<u8>,
    /// Where its reply goes.
    pub lane: Option<i64>,
    /// Id of the token that submitted it.
    pub submitter: Option<String>,
    /// How often it was redriven.
    pub redrives: i32,
    /// `redriven` or `dropped`, by whom and when.
    pub settled: Option<(String, String, Timestamp)>,
    /// The newest turn with the same input.
    pub redriven_as: Option<TurnId>,
}

/// The undelivered half, then the ended one, in the same columns.
const OPEN: &str = "SELECT o.lane_id, o.pos, CASE WHEN o.state = 1 THEN 2 WHEN o.state = 0 OR o.parked IS NOT NULL OR o.cause IS NULL THEN 1 ELSE 3 END AS state, \
     o.session_id, o.seq, o.attempt - (o.state <> 1)::int AS attempts, o.failures, o.maybe_dup, o.part, \
     CASE WHEN o.parked IS NOT NULL THEN 'the account ' || o.parked || ' is not there' ELSE o.cause END AS cause, \
     CASE WHEN o.next_at < 'infinity' THEN o.next_at END AS next_at, NULL::timestamptz AS ended_at, NULL::text AS message_id, \
     NULL::bigint AS redriven_pos, NULL::text AS redriven_by, NULL::timestamptz AS redriven_at, o.body FROM outbox o";
const OVER: &str = "SELECT d.lane_id, d.pos, CASE d.state WHEN 4 THEN 4 ELSE 5 END AS state, d.session_id, d.seq, d.attempts, 0 AS failures, d.maybe_dup, d.part, \
     d.reason AS cause, NULL::timestamptz AS next_at, d.at AS ended_at, d.platform_msg_id AS message_id, d.redriven_pos, d.redriven_by, d.redriven_at, d.body \
     FROM deliveries d";
const DEAD_TURN: &str = "SELECT x.session_id, x.seq, a.agent_id, a.agent_no, a.removed_at IS NOT NULL AS removed, s.session_key, x.reason, x.at, t.payload, \
     t.lane_id, t.submitter, x.redrives, x.settled, x.settled_by, x.settled_at, x.redriven_session, x.redriven_seq \
     FROM dead_turns x JOIN turns t USING (session_id, seq) JOIN sessions s USING (session_id) JOIN agents a USING (agent_no)";

impl Store {
    /// Deliveries, newest place first, below place `before`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn delivery_list(&self, filter: &DeliveryFilter, before: i64, limit: i64) -> Result<Vec<DeliveryRow>> {
        let wanted = |state: DeliveryState| match (filter.open_dead, filter.states.is_empty()) {
            (true, _) => state == DeliveryState::Dead,
            (false, true) => state != DeliveryState::Delivered,
            (false, false) => filter.states.contains(&state),
        };
        let states: Vec<i32> =
            DeliveryState::ALL.into_iter().filter(|state| wanted(*state)).map(DeliveryState::code).collect();
        let mut halves = Vec::new();
        if [DeliveryState::Waiting, DeliveryState::Attempting, DeliveryState::Retrying].into_iter().any(wanted) {
            halves.push(format!("SELECT * FROM ({OPEN}) o"));
        }
        // Written out, so that the index of the dead is used: the delivered are the whole history.
        for (state, code) in [(DeliveryState::Dead, 4), (DeliveryState::Delivered, 2)] {
            if wanted(state) {
                let open = if filter.open_dead { " AND d.redriven_pos IS NULL" } else { "" };
                halves.push(format!("{OVER} WHERE d.state = {code}{open}"));
            }
        }
        let sql = format!(
            "SELECT v.*, l.platform, l.account, l.chat_id, l.thread_id, l.dead_reason FROM ({}) v JOIN lanes l USING (lane_id) \
             WHERE v.state = ANY($1) AND v.pos < $2 AND ($3::text IS NULL OR l.platform = $3) AND ($4::text IS NULL OR l.account = $4) \
               AND ($5::text IS NULL OR l.chat_id = $5) ORDER BY v.pos DESC LIMIT $6",
            halves.join(" UNION ALL ")
        );
        let rows =
            self.query(&sql, &[&states, &before, &filter.platform, &filter.account, &filter.chat_id, &limit]).await?;
        Ok(rows.iter().map(delivery_row).collect())
    }

    /// One delivery with its text.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn delivery_get(&self, id: DeliveryId) -> Result<DeliveryRow> {
        let sql = format!(
            "SELECT v.*, l.platform, l.account, l.chat_id, l.thread_id, l.dead_reason, \
               coalesce(v.body, (SELECT t.reply FROM transcripts t WHERE t.session_id = v.session_id AND t.seq = v.seq)) AS text \
             FROM ({OPEN} WHERE o.lane_id = $1 AND o.pos = $2 UNION ALL {OVER} WHERE d.lane_id = $1 AND d.pos = $2) v JOIN lanes l USING (lane_id)"
        );
        let row = self.query_opt(&sql, &[&id.lane, &id.pos]).await?;
        let row = row.ok_or_else(|| Error::NotFound(format!("there is no delivery {id}")))?;
        Ok(DeliveryRow { text: row.get::<_, Option<Vec<u8>>>("text").unwrap_or_default(), ..delivery_row(&row) })
    }

    /// Sends a dead delivery once more, in the name of `by`.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it may be done; a repeat says so.
    pub async fn delivery_redrive(&self, id: DeliveryId, by: &str) -> Result<Redrive<DeliveryId>> {
        let rows = self.query_retrying("SELECT * FROM redrive($1,$2,$3)", &[&id.lane, &id.pos, &by]).await?;
        let row = rows.first().ok_or_else(|| Error::Unavailable("no answer".to_owned()))?;
        let successor = row.get::<_, Option<i64>>("o_pos").map(|pos| DeliveryId { lane: id.lane, pos });
        Ok(match (row.get::<_, i32>("o_what"), successor) {
            (1, Some(successor)) => Redrive::Done(successor),
            (3, Some(successor)) => Redrive::Refused(format!("{id} was redriven before, as {successor}")),
            (2, _) => Redrive::Refused(format!("{id} was delivered")),
            (5, _) => Redrive::Refused(format!("{id} is not over: it is sent again by itself")),
            _ => Redrive::Refused(format!("there is no delivery {id}")),
        })
    }

    /// Dead turns, newest first, `limit` from `offset` on.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn dead_turn_list(&self, settled: bool, offset: i64, limit: i64) -> Result<Vec<DeadTurnRow>> {
        let sql = format!(
            "{DEAD_TURN} WHERE $1 OR x.settled IS NULL ORDER BY x.at DESC, x.session_id DESC, x.seq DESC OFFSET $2 LIMIT $3"
        );
        Ok(self.query(&sql, &[&settled, &offset, &limit]).await?.iter().map(dead_turn_row).collect())
    }

    /// One dead turn.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is no dead turn, [`Error::Unavailable`].
    pub async fn dead_turn_get(&self, id: TurnId) -> Result<DeadTurnRow> {
        let sql = format!("{DEAD_TURN} WHERE x.session_id = $1 AND x.seq = $2");
        let row = self.query_opt(&sql, &[&id.session.0, &id.seq]).await?;
        row.as_ref().map(dead_turn_row).ok_or_else(|| Error::NotFound(format!("{id} is not a dead turn")))
    }

    /// Notes that a dead turn's `redrives`-th redrive became `next`.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: repeat the redrive.
    pub async fn dead_turn_redriven(&self, id: TurnId, redrives: i32, next: TurnId, by: &str) -> Result<()> {
        let sql = "UPDATE dead_turns SET redrives = $3, redriven_session = $4, redriven_seq = $5, settled = 'redriven', settled_by = $6, \
                     settled_at = clock_timestamp() WHERE session_id = $1 AND seq = $2 AND redrives < $3";
        self.execute(sql, &[&id.session.0, &id.seq, &redrives, &next.session.0, &next.seq, &by]).await.map(|_| ())
    }

    /// Takes an open dead turn off the list. False: it was not open.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn dead_turn_drop(&self, id: TurnId, by: &str) -> Result<bool> {
        let sql = "UPDATE dead_turns SET settled = 'dropped', settled_by = $3, settled_at = clock_timestamp() \
                   WHERE session_id = $1 AND seq = $2 AND settled IS NULL";
        Ok(self.execute(sql, &[&id.session.0, &id.seq, &by]).await? > 0)
    }
}

fn delivery_row(row: &Row) -> DeliveryRow {
    let lane = row.get("lane_id");
    let code: i32 = row.get("state");
    let redriven = match (row.get("redriven_pos"), row.get("redriven_by"), row.get("redriven_at")) {
        (Some(pos), Some(by), Some(at)) => Some((DeliveryId { lane, pos }, by, at)),
        _ => None,
    };
    DeliveryRow {
        id: DeliveryId { lane, pos: row.get("pos") },
        state: DeliveryState::ALL.into_iter().find(|state| state.code() == code).unwrap_or(DeliveryState::Waiting),
        platform: row.get("platform"),
        account: row.get("account"),
        chat_id: row.get("chat_id"),
        thread_id: row.get("thread_id"),
        turn: TurnId { session: SessionId(row.get("session_id")), seq: row.get("seq") },
        attempts: row.get("attempts"),
        failures: row.get("failures"),
        maybe_duplicate: row.get("maybe_dup"),
        part: row.get("part"),
        cause: row.get::<_, Option<String>>("cause").unwrap_or_default(),
        next_at: row.get("next_at"),
        ended_at: row.get("ended_at"),
        message_id: row.get::<_, Option<String>>("message_id").unwrap_or_default(),
        redriven,
        chat_dead: row.get("dead_reason"),
        text: Vec::new(),
    }
}

fn dead_turn_row(row: &Row) -> DeadTurnRow {
    let settled = match (row.get("settled"), row.get("settled_by"), row.get("settled_at")) {
        (Some(how), Some(by), Some(at)) => Some((how, by, at)),
        _ => None,
    };
    let redriven_as = match (row.get("redriven_session"), row.get("redriven_seq")) {
        (Some(session), Some(seq)) => Some(TurnId { session: SessionId(session), seq }),
        _ => None,
    };
    DeadTurnRow {
        turn: TurnId { session: SessionId(row.get("session_id")), seq: row.get("seq") },
        agent_id: row.get("agent_id"),
        agent_no: row.get("agent_no"),
        removed: row.get("removed"),
        session_key: row.get("session_key"),
        reason: row.get("reason"),
        at: row.get("at"),
        payload: row.get("payload"),
        lane: row.get("lane_id"),
        submitter: row.get("submitter"),
        redrives: row.get("redrives"),
        settled,
        redriven_as,
    }
}
