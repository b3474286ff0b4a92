//! Embedded forward-only migrations of the tables, and this build's set of functions; by one replica at a time, under an
//! advisory lock.
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
    /// Creates schema `hermes` and this build's functions, and applies what is missing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when Postgres does not answer; [`Error::Schema`] for an unknown or changed migration.
    pub async fn migrate(&self) -> Result<()> {
        let mut client = self.client().await?;
        client.batch_execute("CREATE SCHEMA IF NOT EXISTS hermes").await.or_else(ignore_race)?;
        client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await?;
        let migrated = self.migrate_locked(&mut client).await;
        client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await?;
        migrated
    }

    /// Whether the database has this build's functions.
    ///
    /// # Errors
    /// [`Error::Schema`] when it has not; [`Error::Unavailable`].
    pub async fn check_functions(&self) -> Result<()> {
        let found = self.query_opt("SELECT to_regnamespace($1)::text", &[&self.functions.schema()]).await?;
        match found.and_then(|row| row.get::<_, Option<String>>(0)) {
            Some(_) => Ok(()),
            None => Err(Error::Schema(
                "the database has not the functions of this build; run `hermes-control-plane migrate` of this build first"
                    .to_owned(),
            )),
        }
    }

    async fn migrate_locked(&self, client: &mut deadpool_postgres::Object) -> Result<()> {
        // Its tables are in `hermes`, whichever functions come before them in the search path.
        client.batch_execute("SET search_path = hermes").await?;
        let runner = embedded::migrations::runner().set_abort_missing(true).set_abort_divergent(true);
        let applied = runner.run_async(&mut ***client).await;
        let functions = match applied {
            Ok(_) => self.make_functions(client).await,
            Err(_) => Ok(()),
        };
        client.batch_execute("RESET search_path").await?;
        functions?;
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

    /// Creates the set when it is not there, notes that it is in use, and drops sets that no build uses any more.
    async fn make_functions(&self, client: &mut deadpool_postgres::Object) -> Result<()> {
        let schema = self.functions.schema();
        let transaction = client.transaction().await?;
        let there = transaction.query_one("SELECT to_regnamespace($1) IS NOT NULL", &[&schema]).await?;
        if !there.get::<_, bool>(0) {
            transaction
                .batch_execute(&format!("CREATE SCHEMA {schema}; SET LOCAL search_path = {schema}, hermes"))
                .await?;
            transaction.batch_execute(self.functions.text()).await?;
        }
        let note =
            "INSERT INTO hermes.function_sets(name) VALUES ($1) ON CONFLICT (name) DO UPDATE SET used_at = now()";
        transaction.execute(note, &[&schema]).await?;
        let old = "DELETE FROM hermes.function_sets WHERE used_at < now() - interval '30 days' RETURNING name";
        for row in transaction.query(old, &[]).await? {
            let name: String = row.get(0);
            transaction.batch_execute(&format!("DROP SCHEMA IF EXISTS {name} CASCADE")).await?;
        }
        transaction.commit().await?;
        Ok(())
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
