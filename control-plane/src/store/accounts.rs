//! Who receives for which account: the leases as the poll asks for them, and what people are shown.

use std::time::Duration;

use super::{Result, Store};

/// An account that this replica could receive for, as it tells the poll.
#[derive(Clone, Debug)]
pub struct AccountClaim {
    /// Platform name.
    pub platform: String,
    /// Account id.
    pub account: String,
    /// It has stopped receiving, or never will: it gives up the lease if it has it.
    pub leave: bool,
    /// How the account stands: up, down or failed. Stored by the holder alone.
    pub state: &'static str,
    /// Why, for people.
    pub detail: String,
    /// Since the platform answered a poll of this replica; `None` when it has not yet.
    pub silent: Option<Duration>,
}

/// An account that this replica may receive for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountHeld {
    /// Platform name.
    pub platform: String,
    /// Account id.
    pub account: String,
    /// The number of this holding: +1 with every new holder.
    pub epoch: i64,
    /// What was left of the lease when the database answered.
    pub left: Duration,
}

/// A polled account as all replicas see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRow {
    /// Platform name.
    pub platform: String,
    /// Account id.
    pub account: String,
    /// The replica that receives for it now.
    pub replica: Option<i64>,
    /// up, down or failed, as that replica says.
    pub state: String,
    /// Why.
    pub detail: String,
    /// Since the platform answered a poll of anybody.
    pub silent: Duration,
}

impl Store {
    /// Every account that is or was polled, in order.
    ///
    /// # Errors
    /// [`super::Error::Unavailable`].
    pub async fn accounts(&self) -> Result<Vec<AccountRow>> {
        let sql = "SELECT platform, account, CASE WHEN lease_until > clock_timestamp() THEN replica_id END, state, detail, \
                     greatest(0, (extract(epoch FROM clock_timestamp() - heard_at) * 1000)::bigint) \
                   FROM account_leases ORDER BY platform, account";
        let rows = self.query(sql, &[]).await?;
        let row = |row: &tokio_postgres::Row| AccountRow {
            platform: row.get(0),
            account: row.get(1),
            replica: row.get(2),
            state: row.get(3),
            detail: row.get(4),
            silent: Duration::from_millis(u64::try_from(row.get::<_, i64>(5)).unwrap_or(0)),
        };
        Ok(rows.iter().map(row).collect())
    }
}
