//! Whether this database is the one that was written to last, or a copy from before: a restore, a standby that took over.
//!
//! In a copy epochs, registrations and session numbers have gone back. A worker or replica that lived through it could hold
//! numbers that are given out again, and its writes would pass the fence. So a row notes the cluster's identifier, the
//! timeline of its log and the transaction that wrote the row, and the server does not start where they differ, until
//! [`Store::fence`] made all earlier numbers invalid.
//!
//! What differs: after `pg_dump` and restore the writer, because rows are written anew (and the cluster, if it is another one);
//! after a base backup with recovery to a point in time, and after a standby took over, the timeline. What does not: a
//! file-level copy that starts as if after a crash (a volume's or a machine's snapshot). Nothing inside such a copy tells it
//! from the original, so there it is up to whoever restores it. An upgrade by `pg_upgrade` is asked for a fence without need.

use super::{Error, Result, Store};

/// What a fence took back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fenced {
    /// Sessions with a new epoch.
    pub sessions: i64,
    /// Workers that counted as there.
    pub workers: i64,
}

/// Where the database lives; what a server does not tell is not compared.
struct Place {
    cluster: Option<i64>,
    timeline: Option<i64>,
}

impl Store {
    /// Notes where this database lives, or finds that it still does.
    ///
    /// # Errors
    /// [`Error::Schema`] when it is a copy that was not fenced; [`Error::Unavailable`].
    pub async fn origin_check(&self) -> Result<()> {
        let here = self.place_of_database().await?;
        let note = "INSERT INTO origins(cluster, timeline, writer) VALUES ($1, $2, pg_current_xact_id()::text::bigint) \
                    ON CONFLICT (only_one) DO NOTHING";
        self.execute(note, &[&here.cluster, &here.timeline]).await?;
        let sql = "SELECT cluster, timeline, xmin::text::bigint = writer % 4294967296 FROM origins";
        let row = self.query_opt(sql, &[]).await?.ok_or_else(|| Error::Unavailable("no origin".to_owned()))?;
        let same = |noted: Option<i64>, here: Option<i64>| noted.is_none() || here.is_none() || noted == here;
        let what = if !row.get::<_, bool>(2) {
            "its rows were written anew since"
        } else if !same(row.get(0), here.cluster) {
            "it belonged to another cluster"
        } else if !same(row.get(1), here.timeline) {
            "its log went another way since"
        } else {
            return Ok(());
        };
        Err(Error::Schema(format!(
            "this database is a copy: {what} (a restored backup, or a standby that took over). Stop every control plane on it and on \
             what it was copied from, run `hermes-control-plane fence` once, and start again"
        )))
    }

    /// Makes a copy usable: see `fence_all` in the functions. Nothing may run on the database meanwhile.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: nothing was changed.
    pub async fn fence(&self) -> Result<Fenced> {
        let here = self.place_of_database().await?;
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        // All sessions are written; that may take long.
        transaction.batch_execute("SET LOCAL statement_timeout = 0").await?;
        let row = transaction.query_one("SELECT o_sessions, o_workers FROM fence_all()", &[]).await?;
        let note = "INSERT INTO origins(cluster, timeline, writer, fenced) VALUES ($1, $2, pg_current_xact_id()::text::bigint, 1) \
                    ON CONFLICT (only_one) DO UPDATE SET cluster = excluded.cluster, timeline = excluded.timeline, \
                      writer = excluded.writer, fenced = origins.fenced + 1, at = now()";
        transaction.execute(note, &[&here.cluster, &here.timeline]).await?;
        transaction.commit().await?;
        Ok(Fenced { sessions: row.get(0), workers: row.get(1) })
    }

    async fn place_of_database(&self) -> Result<Place> {
        let cluster = self.told("SELECT system_identifier FROM pg_control_system()").await?;
        // The log's file names begin with their timeline. The last checkpoint's may be older than what is written now.
        let timeline = self
            .told("SELECT ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint")
            .await?;
        Ok(Place { cluster, timeline })
    }

    /// What some servers do not tell, or not to everybody.
    async fn told(&self, sql: &str) -> Result<Option<i64>> {
        match self.query_opt(sql, &[]).await {
            Ok(row) => Ok(row.map(|row| row.get(0))),
            Err(Error::Refused { code, .. }) => {
                tracing::warn!(code, "this server does not tell enough to notice every restore from a backup");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
