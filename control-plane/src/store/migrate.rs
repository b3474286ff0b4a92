//! Embedded forward-only migrations, applied by one replica at a time under an advisory lock.
//!
//! Always true: the server starts only on a schema that this build made or knows; a database with a migration that this
//! build does not have (a newer release wrote it) is refused.

use super::{Error, Result, Store, one_line};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Any constant that no other program of this database takes as an advisory lock.
const LOCK: i64 = 0x4865_726d_6573_0001;

impl Store {
    /// Creates schema `hermes` and applies what is missing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when Postgres does not answer; [`Error::Schema`] for an unknown or changed migration.
    pub async fn migrate(&self) -> Result<()> {
        let mut client = self.client().await?;
        client.batch_execute("CREATE SCHEMA IF NOT EXISTS hermes").await.or_else(ignore_race)?;
        client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await?;
        let runner = embedded::migrations::runner().set_abort_missing(true).set_abort_divergent(true);
        let applied = runner.run_async(&mut **client).await;
        client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await?;
        match applied {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                refinery::error::Kind::MissingVersion(_) | refinery::error::Kind::DivergentVersion(..) => {
                    Err(Error::Schema(format!(
                        "the database's schema is not one this build knows ({error}); run the release that made it, or a newer one"
                    )))
                }
                _ => Err(Error::Unavailable(one_line(&error))),
            },
        }
    }
}

/// Two replicas may create the schema at once; the loser sees a duplicate.
fn ignore_race(error: tokio_postgres::Error) -> std::result::Result<(), tokio_postgres::Error> {
    use tokio_postgres::error::SqlState;
    match error.code() {
        Some(code) if *code == SqlState::UNIQUE_VIOLATION || *code == SqlState::DUPLICATE_SCHEMA => Ok(()),
        _ => Err(error),
    }
}
