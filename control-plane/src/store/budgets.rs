//! Budgets: reservations of model calls and what became of them, raises, pauses, alerts.
//!
//! Always true: a call is let in and settled in one commit each, and only for payers that have a budget; what was reserved
//! stays spent until its own call settles it; a pause and a raise move the registry's version, so every replica follows them.

use std::time::Duration;

use hermes_core::budget::{Amount, Ceilings, Limit, Periods, Spent, Usd};
use jiff::Timestamp;
use jiff::civil::Date;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Error, Result, SessionId, Store, TurnId, millis};

/// A model call, as its reservation is found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetCall {
    /// The turn.
    pub turn: TurnId,
    /// The fence of the attempt that makes the call.
    pub epoch: i64,
    /// The step.
    pub step: i32,
    /// Its own number.
    pub call: Uuid,
}

/// What became of the wish to make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// It is let in.
    In,
    /// It does not fit a payer.
    Refused {
        /// Which of those named.
        payer: usize,
        /// What that one has spent.
        spent: Spent,
    },
    /// A later attempt of the turn makes the same call.
    Fenced,
}

/// A limit that an operator raised.
#[derive(Clone, Debug)]
pub struct RaiseRow {
    /// Number of its agent.
    pub agent_no: i32,
    /// Which limit.
    pub limit: Limit,
    /// To what: nano-dollars or tokens.
    pub value: u64,
    /// Until when.
    pub until: Timestamp,
    /// Id of the operator's token.
    pub by: String,
}

/// An agent that asks no model.
#[derive(Clone, Debug)]
pub struct PauseRow {
    /// Its number.
    pub agent_no: i32,
    /// Id of the operator's token.
    pub by: String,
    /// Since when.
    pub at: Timestamp,
}

/// A limit that was hit.
#[derive(Clone, Debug)]
pub struct BudgetAlertRow {
    /// Which.
    pub limit: String,
    /// The turn that hit it first.
    pub turn: TurnId,
    /// When.
    pub at: Timestamp,
}

/// A limit that is hit now.
#[derive(Clone, Copy, Debug)]
pub struct BudgetHit<'a> {
    /// Whose.
    pub payer: &'a str,
    /// Which.
    pub limit: Limit,
    /// The first day of its period.
    pub period: Date,
    /// The turn that hit it.
    pub turn: TurnId,
    /// Number of the turn's agent.
    pub agent_no: i32,
    /// What its home is told.
    pub text: &'a str,
}

/// What became of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alerted {
    /// It was there before.
    Before,
    /// It is noted; its agent has no home.
    Noted,
    /// It is noted, and on its way to its agent's home.
    Home,
}

/// What a payer has spent.
#[derive(Clone, Debug, Default)]
pub struct SpentRow {
    /// The payer.
    pub payer: String,
    /// Spent, reservations included.
    pub spent: Spent,
    /// Of it for calls that are on their way.
    pub reserved: Amount,
    /// Limits that were hit in the periods that are not over.
    pub alerts: Vec<BudgetAlertRow>,
}

impl Store {
    /// Lets a call in that takes at most `ask`, if it fits the ceilings of every payer.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: the call must not be made; a repeat for the same step finds what was reserved.
    pub async fn budget_reserve(
        &self,
        call: &BudgetCall,
        payers: &[(String, Ceilings)],
        periods: &Periods,
        ask: &Amount,
        ttl: Duration,
    ) -> Result<Reserved> {
        let names: Vec<&str> = payers.iter().map(|(payer, _)| payer.as_str()).collect();
        let part = |part: fn(&Ceilings) -> Option<i64>| -> Vec<Option<i64>> {
            payers.iter().map(|(_, ceilings)| part(ceilings)).collect()
        };
        let (day_usd, month_usd, day_tokens) =
            (part(|most| most.day_usd), part(|most| most.month_usd), part(|most| most.day_tokens));
        let rows = self
            .query_retrying(
                "SELECT * FROM budget_reserve($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14)",
                &[
                    &call.turn.session.0,
                    &call.turn.seq,
                    &call.epoch,
                    &call.step,
                    &call.call,
                    &names,
                    &periods.day,
                    &periods.month,
                    &signed(ask.usd.nanos()),
                    &signed(ask.tokens),
                    &day_usd,
                    &month_usd,
                    &day_tokens,
                    &millis(ttl),
                ],
            )
            .await?;
        let row = rows.first().ok_or_else(|| Error::Unavailable("no answer".to_owned()))?;
        Ok(match row.get("o_result") {
            1 => Reserved::In,
            2 => Reserved::Fenced,
            _ => {
                let payer = usize::try_from(row.get::<_, i32>("o_payer") - 1).unwrap_or(0);
                Reserved::Refused { payer, spent: spent(row, ["o_day_usd", "o_day_tokens", "o_month_usd"]) }
            }
        })
    }

    /// Puts what a call used in the place of its reservation, or leaves it at that. False: it holds none.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: the reservation may still stand for it.
    pub async fn budget_settle(&self, call: &BudgetCall, used: Option<&Amount>) -> Result<bool> {
        let (usd, tokens) = (used.map(|used| signed(used.usd.nanos())), used.map(|used| signed(used.tokens)));
        let rows = self
            .query_retrying(
                "SELECT budget_settle($1,$2,$3,$4,$5,$6)",
                &[&call.turn.session.0, &call.turn.seq, &call.step, &call.call, &usd, &tokens],
            )
            .await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// The input of a turn: JSON of `TurnInput`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn turn_payload(&self, turn: TurnId) -> Result<Vec<u8>> {
        let row = self
            .query_opt("SELECT payload FROM turns WHERE session_id = $1 AND seq = $2", &[&turn.session.0, &turn.seq])
            .await?;
        row.map(|row| row.get(0)).ok_or_else(|| Error::NotFound(format!("there is no turn {turn}")))
    }

    /// What these payers have spent and the limits that they hit in `periods`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn budget_spent(&self, payers: &[String], periods: &Periods) -> Result<Vec<SpentRow>> {
        let sql = "SELECT p.payer, coalesce(d.day_usd, 0) AS day_usd, coalesce(d.day_tokens, 0) AS day_tokens, \
                     coalesce(d.month_usd, 0) AS month_usd, coalesce(r.usd, 0) AS reserved_usd, coalesce(r.tokens, 0) AS reserved_tokens \
                   FROM unnest($1::text[]) WITH ORDINALITY p(payer, n) \
                   CROSS JOIN LATERAL (SELECT sum(d.usd)::bigint AS month_usd, sum(d.usd) FILTER (WHERE d.day = $2)::bigint AS day_usd, \
                       sum(d.tokens) FILTER (WHERE d.day = $2)::bigint AS day_tokens FROM budget_days d \
                     WHERE d.payer = p.payer AND d.day >= $3 AND d.day < $3::date + interval '1 month') d \
                   LEFT JOIN (SELECT q.payer, sum(r.usd)::bigint AS usd, sum(r.tokens)::bigint AS tokens \
                       FROM budget_reservations r, unnest(r.payers) q(payer) WHERE r.until > clock_timestamp() GROUP BY 1) r USING (payer) \
                   ORDER BY p.n";
        let rows = self.query(sql, &[&payers, &periods.day, &periods.month]).await?;
        let mut found: Vec<SpentRow> = rows.iter().map(spent_row).collect();
        let sql = "SELECT payer, what, session_id, seq, at FROM budget_alerts WHERE payer = ANY($1) \
                     AND period = CASE what WHEN 'usd_per_month' THEN $3::date ELSE $2::date END ORDER BY at";
        for row in self.query(sql, &[&payers, &periods.day, &periods.month]).await? {
            let payer: String = row.get("payer");
            if let Some(of) = found.iter_mut().find(|spent| spent.payer == payer) {
                let turn = TurnId { session: SessionId(row.get("session_id")), seq: row.get("seq") };
                of.alerts.push(BudgetAlertRow { limit: row.get("what"), turn, at: row.get("at") });
            }
        }
        Ok(found)
    }

    /// Users that spent something in the month, behind `after`, in the order of their names as payers.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn budget_users(&self, periods: &Periods, after: &str, limit: i64) -> Result<Vec<String>> {
        let sql = "SELECT DISTINCT payer FROM budget_days WHERE payer LIKE 'user:%' AND payer > $1 AND day >= $2 ORDER BY payer LIMIT $3";
        Ok(self.query(sql, &[&after, &periods.month, &limit]).await?.iter().map(|row| row.get(0)).collect())
    }

    /// Notes that a payer hit a limit, and, where it is the first time in that period, has `text` delivered to the agent's home: that
    /// of the account of the turn's chat, else the one that was set last.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn budget_alert(&self, hit: &BudgetHit<'_>) -> Result<Alerted> {
        let sql = "WITH noted AS (INSERT INTO budget_alerts(payer, what, period, session_id, seq) VALUES ($1,$2,$3,$4,$5) \
                     ON CONFLICT DO NOTHING RETURNING 1), \
                   o AS (SELECT l.platform, l.account FROM turns q JOIN lanes l USING (lane_id) WHERE q.session_id = $4 AND q.seq = $5), \
                   home AS (SELECT h.lane_id FROM home_channels h LEFT JOIN o ON true WHERE h.agent_no = $6 \
                     ORDER BY (h.platform, h.account) = (o.platform, o.account) DESC NULLS LAST, h.documented DESC, h.set_at DESC LIMIT 1) \
                   SELECT CASE WHEN home.lane_id IS NULL THEN false ELSE enqueue(home.lane_id, $4, 0, $7) IS NOT NULL END \
                     FROM noted LEFT JOIN home ON true";
        let TurnId { session, seq } = hit.turn;
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&hit.payer, &hit.limit.as_str(), &hit.period, &session.0, &seq, &hit.agent_no, &hit.text.as_bytes()];
        Ok(match self.query_opt(sql, &params).await? {
            None => Alerted::Before,
            Some(row) if row.get(0) => Alerted::Home,
            Some(_) => Alerted::Noted,
        })
    }

    /// Raises limits of an agent for a time; a later raise of the same limit takes the place of the earlier one.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it may be done; repeat it.
    pub async fn budget_raise(&self, raises: &[RaiseRow]) -> Result<()> {
        let numbers: Vec<i32> = raises.iter().map(|raise| raise.agent_no).collect();
        let limits: Vec<&str> = raises.iter().map(|raise| raise.limit.as_str()).collect();
        let values: Vec<i64> = raises.iter().map(|raise| signed(raise.value)).collect();
        let until: Vec<Timestamp> = raises.iter().map(|raise| raise.until).collect();
        let by: Vec<&str> = raises.iter().map(|raise| raise.by.as_str()).collect();
        let sql = "WITH moved AS (UPDATE documents SET version = version + 1) \
                   INSERT INTO budget_raises(agent_no, what, value, until, by) \
                     SELECT * FROM unnest($1::int[], $2::text[], $3::bigint[], $4::timestamptz[], $5::text[]) \
                   ON CONFLICT (agent_no, what) DO UPDATE SET value = excluded.value, until = excluded.until, by = excluded.by, \
                     at = clock_timestamp()";
        self.execute(sql, &[&numbers, &limits, &values, &until, &by]).await.map(|_| ())
    }

    /// Lets an agent ask no model any more. False: it is paused already.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it may be done; repeat it.
    pub async fn budget_pause(&self, agent_no: i32, by: &str) -> Result<bool> {
        let sql = "WITH paused AS (INSERT INTO budget_pauses(agent_no, by) VALUES ($1,$2) ON CONFLICT DO NOTHING RETURNING 1) \
                   UPDATE documents SET version = version + 1 WHERE EXISTS (SELECT 1 FROM paused)";
        Ok(self.execute(sql, &[&agent_no, &by]).await? > 0)
    }

    /// Lets an agent ask models again. False: it was not paused.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it may be done; repeat it.
    pub async fn budget_resume(&self, agent_no: i32) -> Result<bool> {
        let sql = "WITH resumed AS (DELETE FROM budget_pauses WHERE agent_no = $1 RETURNING 1) \
                   UPDATE documents SET version = version + 1 WHERE EXISTS (SELECT 1 FROM resumed)";
        Ok(self.execute(sql, &[&agent_no]).await? > 0)
    }
}

/// A raise as the registry loads it; nothing when this build does not know its limit.
pub(super) fn raise_row(row: &Row) -> Option<RaiseRow> {
    Some(RaiseRow {
        agent_no: row.get("agent_no"),
        limit: Limit::parse(row.get("what"))?,
        value: unsigned(row.get("value")),
        until: row.get("until"),
        by: row.get("by"),
    })
}

/// A pause as the registry loads it.
pub(super) fn pause_row(row: &Row) -> PauseRow {
    PauseRow { agent_no: row.get("agent_no"), by: row.get("by"), at: row.get("at") }
}

fn spent_row(row: &Row) -> SpentRow {
    SpentRow {
        payer: row.get("payer"),
        spent: spent(row, ["day_usd", "day_tokens", "month_usd"]),
        reserved: Amount {
            usd: Usd::from_nanos(unsigned(row.get("reserved_usd"))),
            tokens: unsigned(row.get("reserved_tokens")),
        },
        alerts: Vec::new(),
    }
}

fn spent(row: &Row, [day_usd, day_tokens, month_usd]: [&str; 3]) -> Spent {
    let usd = |column| Usd::from_nanos(unsigned(row.get(column)));
    Spent { day: Amount { usd: usd(day_usd), tokens: unsigned(row.get(day_tokens)) }, month: usd(month_usd) }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
