//! Questions whether a call may be made, and their answers. The SQL of both is in `control-plane/functions/approvals.sql`.
//!
//! Called by dispatch, intake and the operators' service. Always true: a question is bound to one step of one turn and to the hash of
//! its call; it is asked in its chat once, in the commit that makes it; it is answered once, before its time is over by the database's
//! clock, by whoever was asked, an admin of that chat or an operator. Where a model judges first, it is asked once, by whoever made the
//! question, and only what it leaves open is put to the person.

use std::time::Duration;

use hermes_core::approvals::Verdict;
use jiff::Timestamp;
use tokio_postgres::Row;

use super::{Error, Result, SessionId, Store, TurnId, millis};

/// A question on its way in.
#[derive(Clone, Debug)]
pub struct ApprovalAsk {
    /// The turn.
    pub turn: TurnId,
    /// Its fence.
    pub epoch: i64,
    /// The step that the call would be.
    pub step: i32,
    /// SHA-256 of the exact call.
    pub hash: [u8; 32],
    /// Who sent the turn's message, as [`hermes_core::approvals::asker`] writes it.
    pub asker: String,
    /// The tool.
    pub tool: String,
    /// The call, for people.
    pub shown: String,
    /// What it does, for people.
    pub reason: String,
    /// Keys of its patterns.
    pub patterns: Vec<String>,
    /// How long it waits.
    pub timeout: Duration,
    /// What its chat reads before and behind the number of the question.
    pub text: (String, String),
    /// How long a model has to judge it first; zero: none does.
    pub judge: Duration,
    /// Somebody may answer. Otherwise what would be put to them is denied.
    pub attended: bool,
}

/// How a question stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovalState {
    /// Nobody has answered yet.
    Pending,
    /// It may be made.
    Allowed,
    /// It may not.
    Denied,
    /// Nobody answered in time, or before its turn ended.
    Expired,
}

impl ApprovalState {
    fn from_code(code: i32) -> Self {
        match code {
            0 => Self::Pending,
            1 => Self::Allowed,
            3 => Self::Expired,
            _ => Self::Denied,
        }
    }

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Expired => "expired",
        }
    }
}

/// What a model comes to about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It may be made.
    Allowed,
    /// It may not.
    Denied,
    /// The person is to say.
    Open,
}

/// What became of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApprovalAsked {
    /// It stands so. `id` is 0 where nobody had to be asked; `asked`: the person, by this call.
    Stands {
        /// Number of the question.
        id: i64,
        /// How it stands.
        state: ApprovalState,
        /// It is new.
        asked: bool,
        /// The caller is to have it judged, and nobody else is.
        judge: bool,
        /// A model is being asked; the person was not yet.
        judging: bool,
        /// What the model said, where it decided.
        why: Option<String>,
        /// Until its time is over.
        left: Duration,
    },
    /// Somebody else has the turn.
    Fenced,
    /// Another call was asked about at that step.
    OtherCall,
}

/// Who answers a question, and how.
#[derive(Clone, Debug)]
pub struct ApprovalAnswer {
    /// Which question; `None`: the one that waits in the session of the key.
    pub id: Option<i64>,
    /// The answer.
    pub verdict: Verdict,
    /// Who answers, as the asker of a question is written; `None`: nobody that was ever asked.
    pub asker: Option<String>,
    /// Of the chat where they answer.
    pub admin: bool,
    /// For the record.
    pub by: String,
}

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// It counts.
    Done(i64),
    /// There is no such question for whoever answers.
    Unknown,
    /// It was answered before, its time is over, or its turn has ended.
    Over(i64, ApprovalState),
}

/// A question as people see it.
#[derive(Clone, Debug)]
pub struct ApprovalRow {
    /// Its number.
    pub id: i64,
    /// The agent.
    pub agent: String,
    /// The turn.
    pub turn: TurnId,
    /// The step.
    pub step: i32,
    /// The tool.
    pub tool: String,
    /// The call.
    pub shown: String,
    /// What it does.
    pub reason: String,
    /// Keys of its patterns.
    pub patterns: Vec<String>,
    /// Who was asked.
    pub asker: String,
    /// How it stands.
    pub state: ApprovalState,
    /// Who answered; `smart`: a model; `nobody`: there was nobody to be asked.
    pub answered_by: Option<String>,
    /// What a model said of it, or why it said nothing; nothing where none was asked.
    pub judgement: Option<String>,
    /// When it was asked.
    pub asked_at: Timestamp,
    /// When its time is over.
    pub expires_at: Timestamp,
}

impl Store {
    /// Asks, once, and says how the question stands.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it may have been asked; repeat it.
    pub async fn approval_ask(&self, ask: &ApprovalAsk) -> Result<ApprovalAsked> {
        let rows = self
            .query_retrying(
                "SELECT * FROM approval_ask($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15)",
                &[
                    &ask.turn.session.0,
                    &ask.epoch,
                    &ask.turn.seq,
                    &ask.step,
                    &ask.hash.as_slice(),
                    &ask.asker,
                    &ask.tool,
                    &ask.shown,
                    &ask.reason,
                    &ask.patterns,
                    &millis(ask.timeout),
                    &ask.text.0,
                    &ask.text.1,
                    &millis(ask.judge),
                    &ask.attended,
                ],
            )
            .await?;
        let row = rows.first().ok_or_else(|| Error::Unavailable("no answer".to_owned()))?;
        Ok(match row.get::<_, i32>("o_state") {
            -1 => ApprovalAsked::Fenced,
            -2 => ApprovalAsked::OtherCall,
            state => ApprovalAsked::Stands {
                id: row.get::<_, Option<i64>>("o_id").unwrap_or(0),
                state: ApprovalState::from_code(state),
                asked: row.get("o_asked"),
                judge: row.get("o_judge"),
                judging: row.get("o_judging"),
                why: row.get("o_why"),
                left: Duration::from_millis(u64::try_from(row.get::<_, i64>("o_left_ms")).unwrap_or(0)),
            },
        })
    }

    /// What a model said of a call, and why. True: it counts; somebody may have been asked meanwhile.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it may count; repeat it.
    pub async fn approval_judged(&self, ask: &ApprovalAsk, judged: Judged, why: &str) -> Result<bool> {
        let state = match judged {
            Judged::Open => 0,
            Judged::Allowed => 1,
            Judged::Denied => 2,
        };
        let rows = self
            .query_retrying(
                "SELECT approval_judged($1,$2,$3,$4,$5,$6,$7,$8,$9,$10)",
                &[
                    &ask.turn.session.0,
                    &ask.turn.seq,
                    &ask.step,
                    &ask.hash.as_slice(),
                    &state,
                    &why,
                    &millis(ask.timeout),
                    &ask.text.0,
                    &ask.text.1,
                    &ask.attended,
                ],
            )
            .await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// The question that waits for this asker in the current session of a key, in this chat.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn approval_waiting(
        &self,
        agent_no: i32,
        session_key: &str,
        lane: Option<i64>,
        asker: &str,
    ) -> Result<Option<i64>> {
        let sql = "SELECT a.approval_id FROM session_keys k JOIN sessions s ON s.session_id = k.session_id \
                     JOIN approvals a ON a.session_id = s.session_id AND a.seq = s.head_seq AND a.state = 0 \
                   WHERE k.agent_no = $1 AND k.session_key = $2 AND a.lane_id IS NOT DISTINCT FROM $3 AND a.asker = $4 \
                     AND a.judge_until IS NULL AND a.expires_at > clock_timestamp() ORDER BY a.step DESC LIMIT 1";
        let row = self.query_opt(sql, &[&agent_no, &session_key, &lane, &asker]).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// The question that a delivery asks, while it waits for its answer.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn approval_of_delivery(&self, lane: i64, pos: i64) -> Result<Option<i64>> {
        let sql = "SELECT approval_id FROM approvals WHERE lane_id = $1 AND pos = $2 AND state = 0";
        Ok(self.query_opt(sql, &[&lane, &pos]).await?.map(|row| row.get(0)))
    }

    /// An operator's answer, or that of an API caller who was asked.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it may count; repeat it.
    pub async fn approval_answer(&self, id: i64, verdict: Verdict, by: &str) -> Result<Answered> {
        let sql = "SELECT o_result, o_id, o_state FROM approval_answer($1, 0, '', NULL, NULL, false, true, $2, $3, $4)";
        let rows = self.query_retrying(sql, &[&id, &(verdict != Verdict::Deny), &reach(verdict), &by]).await?;
        rows.first().map(answered).ok_or_else(|| Error::Unavailable("no answer".to_owned()))
    }

    /// Questions behind `before` (exclusive, newest first): those that wait, or `all`; of one submitter where it is named.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn approvals(
        &self,
        all: bool,
        submitter: Option<&str>,
        before: i64,
        limit: i64,
    ) -> Result<Vec<ApprovalRow>> {
        let sql = format!(
            "{COLUMNS} WHERE a.approval_id < $3 AND ($1 OR (a.state = 0 AND a.expires_at > clock_timestamp() AND EXISTS \
               (SELECT 1 FROM sessions s WHERE s.session_id = a.session_id AND s.head_seq = a.seq))) \
               AND ($2::text IS NULL OR split_part(a.asker, E'\\t', 1) = $2) ORDER BY a.approval_id DESC LIMIT $4"
        );
        Ok(self.query(&sql, &[&all, &submitter, &before, &limit]).await?.iter().map(approval_row).collect())
    }

    /// One question.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn approval(&self, id: i64) -> Result<ApprovalRow> {
        let sql = format!("{COLUMNS} WHERE a.approval_id = $1");
        let row = self.query_opt(&sql, &[&id]).await?;
        row.as_ref().map(approval_row).ok_or_else(|| Error::NotFound(format!("there is no question {id}")))
    }
}

const COLUMNS: &str = "SELECT a.approval_id, g.agent_id, a.session_id, a.seq, a.step, a.tool, a.shown, a.reason, a.patterns, a.asker, \
       CASE WHEN a.state = 0 AND (a.expires_at <= clock_timestamp() OR NOT EXISTS (SELECT 1 FROM sessions s \
         WHERE s.session_id = a.session_id AND s.head_seq = a.seq)) THEN 3 ELSE a.state END::int AS state, a.answered_by, a.judgement, a.asked_at, \
       a.expires_at FROM approvals a JOIN agents g USING (agent_no)";

fn approval_row(row: &Row) -> ApprovalRow {
    ApprovalRow {
        id: row.get("approval_id"),
        agent: row.get("agent_id"),
        turn: TurnId { session: SessionId(row.get("session_id")), seq: row.get("seq") },
        step: row.get("step"),
        tool: row.get("tool"),
        shown: row.get("shown"),
        reason: row.get("reason"),
        patterns: row.get("patterns"),
        asker: row.get("asker"),
        state: ApprovalState::from_code(row.get("state")),
        answered_by: row.get("answered_by"),
        judgement: row.get("judgement"),
        asked_at: row.get("asked_at"),
        expires_at: row.get("expires_at"),
    }
}

/// How far an answer reaches, for the database.
pub(super) fn reach(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Once | Verdict::Deny => 0,
        Verdict::Session => 1,
        Verdict::Always => 2,
    }
}

/// What `approval_answer` says.
pub(super) fn answered(row: &Row) -> Answered {
    let id = row.get::<_, Option<i64>>("o_id").unwrap_or(0);
    match row.get::<_, i32>("o_result") {
        1 => Answered::Done(id),
        2 => Answered::Over(id, ApprovalState::from_code(row.get::<_, Option<i32>>("o_state").unwrap_or(2))),
        _ => Answered::Unknown,
    }
}
