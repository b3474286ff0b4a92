//! Turns that leave their workers while these live: handed back, or given up. The SQL is in `control-plane/functions`.
//!
//! Always true: both are fenced like a report, and a repeated call does nothing more.

use super::{Result, Store, TurnId};

/// A running turn to give up.
#[derive(Clone, Debug)]
pub struct GivenUp {
    /// The turn.
    pub turn: TurnId,
    /// Its fence.
    pub epoch: i64,
    /// Why, one word for programs: `deadline`, `stalled`, `diverged`.
    pub reason: &'static str,
    /// What its chat is told.
    pub notice: &'static str,
}

impl Store {
    /// Turns that their workers give back: they wait again at once and count no crash. Answers per row whether it still ran
    /// under that fence.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: repeat it; what was given back is then answered as fenced.
    pub async fn release(&self, rows: &[(TurnId, i64)]) -> Result<Vec<bool>> {
        let sessions: Vec<i64> = rows.iter().map(|(turn, _)| turn.session.0).collect();
        let epochs: Vec<i64> = rows.iter().map(|(_, epoch)| *epoch).collect();
        let seqs: Vec<i64> = rows.iter().map(|(turn, _)| turn.seq).collect();
        let sql = "SELECT o_ok FROM release_batch($1,$2,$3) ORDER BY o_ord";
        let rows = self.query_retrying(sql, &[&sessions, &epochs, &seqs]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Gives up running turns, each for a reason and with a notice for its chat. Answers per row whether it still ran under
    /// that fence.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: repeat it; what was given up is then answered as fenced.
    pub async fn give_up(&self, rows: &[GivenUp]) -> Result<Vec<bool>> {
        let sessions: Vec<i64> = rows.iter().map(|row| row.turn.session.0).collect();
        let epochs: Vec<i64> = rows.iter().map(|row| row.epoch).collect();
        let seqs: Vec<i64> = rows.iter().map(|row| row.turn.seq).collect();
        let reasons: Vec<&str> = rows.iter().map(|row| row.reason).collect();
        let notices: Vec<&[u8]> = rows.iter().map(|row| row.notice.as_bytes()).collect();
        let sql = "SELECT o_ok FROM give_up($1,$2,$3,$4,$5) ORDER BY o_ord";
        let rows = self.query_retrying(sql, &[&sessions, &epochs, &seqs, &reasons, &notices]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
