//! Removing what is over: one small step a call, and what people are shown of it.

use std::time::Duration;

use hermes_core::config::Retention;
use jiff::Timestamp;

use super::{Result, Store, millis};

/// What retention removes, one kind at a time. Turns come before the sessions that are empty without them.
pub const RETAINED: [&str; 8] = ["inbound", "steps", "turns", "sessions", "deliveries", "blobs", "cron_runs", "leases"];

const DAY: Duration = Duration::from_secs(86_400);

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    /// The pass goes on.
    pub more: bool,
    /// Rows that are gone.
    pub removed: i64,
}

/// How far one kind is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionRun {
    /// One of [`RETAINED`].
    pub what: String,
    /// End of the last whole pass.
    pub finished_at: Option<Timestamp>,
    /// Rows removed by the last pass, or so far by the one on its way.
    pub removed: i64,
    /// Rows removed since the beginning.
    pub total: i64,
}

/// After how long rows of this kind are over, and dead ones; nothing when they are kept for ever.
fn kept(what: &str, days: &Retention) -> Option<(Duration, Duration)> {
    let time = |days: u64| DAY.saturating_mul(u32::try_from(days).unwrap_or(u32::MAX));
    let dead = time(days.dead_days);
    Some(match what {
        "inbound" => (time(days.dedupe_days), dead),
        "steps" => (time(days.steps_days), dead),
        // A dead letter shows its turn and may be sent again with its reply; it died some days after the turn's end at most.
        "turns" | "sessions" => (time(days.turns_days?).max(dead + 30 * DAY), dead),
        "deliveries" | "cron_runs" => (time(days.deliveries_days), dead),
        "blobs" => (time(days.attachments_days), dead),
        _ => (DAY, dead),
    })
}

impl Store {
    /// One step through the rows of kind `what`, `pages` pages of 8 KiB long; a pass begins at most once in `every`.
    ///
    /// # Errors
    /// [`super::Error::Unavailable`].
    pub async fn retain(&self, what: &str, days: &Retention, pages: i64, every: Duration) -> Result<Retained> {
        let Some((keep, dead)) = kept(what, days) else { return Ok(Retained { more: false, removed: 0 }) };
        let sql = "SELECT * FROM retain($1, $2 * interval '1 ms', $3 * interval '1 ms', $4, $5 * interval '1 ms')";
        #[expect(clippy::cast_precision_loss, reason = "whole days in milliseconds are exact")]
        let ms = |time: Duration| millis(time) as f64;
        let rows = self.query_retrying(sql, &[&what, &ms(keep), &ms(dead), &pages, &ms(every)]).await?;
        let row = rows.first();
        Ok(Retained { more: row.is_some_and(|row| row.get(0)), removed: row.map_or(0, |row| row.get(1)) })
    }

    /// How far retention is with each kind.
    ///
    /// # Errors
    /// [`super::Error::Unavailable`].
    pub async fn retention_runs(&self) -> Result<Vec<RetentionRun>> {
        let sql = "SELECT what, finished_at, removed, total FROM retention ORDER BY what";
        let rows = self.query(sql, &[]).await?;
        let run = |row: &tokio_postgres::Row| RetentionRun {
            what: row.get(0),
            finished_at: row.get(1),
            removed: row.get(2),
            total: row.get(3),
        };
        Ok(rows.iter().map(run).collect())
    }
}
