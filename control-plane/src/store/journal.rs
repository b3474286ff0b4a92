//! The journal of running turns: what a turn did, step by step, so that another attempt goes on instead of beginning again.
//!
//! Always true: a row is written only under the fence of its turn and never changed; a step whose call may act once only is
//! answered as stored to one epoch alone.

use hermes_core::step::{Effect, Phase, StepKind};
use jiff::Timestamp;
use tokio_postgres::Row;

use super::{Error, Result, Store, TurnId};

/// The step number of the row that ends a turn; no worker may journal it.
const END: i32 = i32::MAX;

/// One step on its way in.
#[derive(Clone, Debug)]
pub struct StepRow {
    /// The turn.
    pub turn: TurnId,
    /// The fence.
    pub epoch: i64,
    /// Number of the step in the turn, from 0.
    pub step: i32,
    /// Before or after it.
    pub phase: Phase,
    /// What it is.
    pub kind: StepKind,
    /// What repeating it would do; `None` where it is no tool call.
    pub effect: Option<Effect>,
    /// The key under which an idempotent call may be repeated.
    pub idempotency_key: Option<String>,
    /// The content.
    pub body: Vec<u8>,
    /// A result that only says that nobody knows whether the call happened.
    pub unknown: bool,
    /// Number of the queued turn that steering takes in; 0 where it is none.
    pub absorbs: i64,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journaled {
    /// It is written now.
    Stored,
    /// The same row was there.
    Known,
    /// Somebody else has the turn, or nobody; nothing was written.
    Fenced,
    /// Another row is there.
    Diverged,
}

/// A journaled row.
#[derive(Clone, Debug)]
pub struct StepRecord {
    /// Number of the step in the turn, from 0.
    pub step: i32,
    /// Before or after it.
    pub phase: Phase,
    /// What it is.
    pub kind: StepKind,
    /// What repeating it would do; `None` where it is no tool call.
    pub effect: Option<Effect>,
    /// The key under which an idempotent call may be repeated.
    pub idempotency_key: Option<String>,
    /// Nobody knows whether the call happened.
    pub unknown: bool,
    /// The fence of the attempt that wrote it.
    pub epoch: i64,
    /// When it was written.
    pub at: Timestamp,
    /// Size of the content, bytes.
    pub bytes: i64,
    /// The content; empty where it was not asked for.
    pub body: Vec<u8>,
}

/// A place in a turn's journal: the row after it is next.
pub type JournalCursor = (i32, i16);

/// Before the first row.
pub const JOURNAL_BEGIN: JournalCursor = (-1, 1);

const JOURNAL: &str = "SELECT o_result FROM journal_batch($1,$2,$3,$4,$5,$6,$7,$8,$9,$10) ORDER BY o_ord";

impl Store {
    /// Writes steps. Answers per row; a row that only it can have spoilt fails alone.
    ///
    /// # Errors
    /// Per row: [`Error::Unavailable`] (repeat; a repeat is answered as [`Journaled::Known`]) or [`Error::Refused`].
    pub async fn journal(&self, rows: &[StepRow]) -> Vec<Result<Journaled>> {
        match self.journal_once(rows).await {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(Error::Unavailable(why)) => rows.iter().map(|_| Err(Error::Unavailable(why.clone()))).collect(),
            Err(error) if rows.len() == 1 => vec![Err(error)],
            Err(_) => {
                let mut answers = Vec::with_capacity(rows.len());
                for row in rows {
                    answers.push(self.journal_once(std::slice::from_ref(row)).await.map(|mut one| one.remove(0)));
                }
                answers
            }
        }
    }

    async fn journal_once(&self, rows: &[StepRow]) -> Result<Vec<Journaled>> {
        let sessions: Vec<i64> = rows.iter().map(|row| row.turn.session.0).collect();
        let epochs: Vec<i64> = rows.iter().map(|row| row.epoch).collect();
        let seqs: Vec<i64> = rows.iter().map(|row| row.turn.seq).collect();
        let steps: Vec<i32> = rows.iter().map(|row| row.step).collect();
        let phases: Vec<i16> = rows.iter().map(|row| phase_code(row.phase)).collect();
        let kinds: Vec<i16> = rows.iter().map(|row| kind_code(row.kind)).collect();
        let effects: Vec<i16> = rows.iter().map(|row| row.effect.map_or(0, effect_code)).collect();
        let keys: Vec<Option<&str>> = rows.iter().map(|row| row.idempotency_key.as_deref()).collect();
        let bodies: Vec<&[u8]> = rows.iter().map(|row| row.body.as_slice()).collect();
        let unknown: Vec<bool> = rows.iter().map(|row| row.unknown).collect();
        let answers = self
            .query_retrying(
                JOURNAL,
                &[&sessions, &epochs, &seqs, &steps, &phases, &kinds, &effects, &keys, &bodies, &unknown],
            )
            .await?;
        let meant = |row: &Row| match row.get::<_, i32>(0) {
            1 => Journaled::Stored,
            2 => Journaled::Known,
            0 => Journaled::Fenced,
            _ => Journaled::Diverged,
        };
        Ok(answers.iter().map(meant).collect())
    }

    /// Rows of a turn's journal after `after`, in the order of steps, each step's intent before its result; at most `limit`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn journal_rows(
        &self,
        turn: TurnId,
        after: JournalCursor,
        limit: i64,
        bodies: bool,
    ) -> Result<Vec<StepRecord>> {
        let sql = "SELECT step, phase, kind, effect, idem_key, unknown, epoch, at, coalesce(octet_length(body), 0)::bigint, \
                     CASE WHEN $6 THEN body END \
                   FROM turn_steps WHERE session_id = $1 AND seq = $2 AND (step, phase) > ($3, $4) AND step < $7 \
                   ORDER BY step, phase LIMIT $5";
        let (session, (step, phase)) = (turn.session.0, after);
        let rows = self.query(sql, &[&session, &turn.seq, &step, &phase, &limit, &bodies, &END]).await?;
        Ok(rows.iter().filter_map(record).collect())
    }

    /// The result journaled at a step of a turn: what it is, and its body.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn journal_result(&self, turn: TurnId, step: i32) -> Result<Option<(StepKind, Vec<u8>)>> {
        let sql = "SELECT kind, body FROM turn_steps WHERE session_id = $1 AND seq = $2 AND step = $3 AND phase = 1";
        let row = self.query_opt(sql, &[&turn.session.0, &turn.seq, &step]).await?;
        let meant = |row: Row| Some((kind_of(row.get(0))?, row.get::<_, Option<Vec<u8>>>(1).unwrap_or_default()));
        Ok(row.and_then(meant))
    }

    /// All model replies in a turn's journal: their steps and bodies.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn journal_replies(&self, turn: TurnId) -> Result<Vec<(i32, Vec<u8>)>> {
        let sql = "SELECT step, body FROM turn_steps WHERE session_id = $1 AND seq = $2 AND phase = 1 AND kind = $3 ORDER BY step";
        let rows = self.query(sql, &[&turn.session.0, &turn.seq, &kind_code(StepKind::ModelReply)]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get::<_, Option<Vec<u8>>>(1).unwrap_or_default())).collect())
    }
}

impl StepRecord {
    /// Where the next row is found.
    pub fn cursor(&self) -> JournalCursor {
        (self.step, phase_code(self.phase))
    }
}

pub(super) fn phase_code(phase: Phase) -> i16 {
    match phase {
        Phase::Intent => 0,
        Phase::Result => 1,
    }
}

pub(super) fn kind_code(kind: StepKind) -> i16 {
    match kind {
        StepKind::ModelReply => 4,
        StepKind::ToolCall => 5,
        StepKind::Steering => 6,
    }
}

fn kind_of(code: i16) -> Option<StepKind> {
    Some(match code {
        4 => StepKind::ModelReply,
        5 => StepKind::ToolCall,
        6 => StepKind::Steering,
        _ => return None,
    })
}

pub(super) fn effect_code(effect: Effect) -> i16 {
    match effect {
        Effect::Pure => 1,
        Effect::Idempotent => 2,
        Effect::AtMostOnce => 3,
    }
}

fn effect_of(code: i16) -> Option<Effect> {
    Some(match code {
        1 => Effect::Pure,
        2 => Effect::Idempotent,
        3 => Effect::AtMostOnce,
        _ => return None,
    })
}

/// A row of a kind that this build does not know is passed over: it was written by a newer one.
fn record(row: &Row) -> Option<StepRecord> {
    Some(StepRecord {
        step: row.get(0),
        phase: if row.get::<_, i16>(1) == 0 { Phase::Intent } else { Phase::Result },
        kind: kind_of(row.get(2))?,
        effect: effect_of(row.get(3)),
        idempotency_key: row.get(4),
        unknown: row.get(5),
        epoch: row.get(6),
        at: row.get(7),
        bytes: row.get(8),
        body: row.get::<_, Option<Vec<u8>>>(9).unwrap_or_default(),
    })
}
