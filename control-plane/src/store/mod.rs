//! The only SQL: durable state in Postgres, as transitions that are one statement and one commit each.
//!
//! What is stored and why: the registry (agents with immutable revisions, routes, the document), because every replica must
//! see one truth; sessions, turns, their ends and deliveries, because an accepted message must survive any crash; who holds
//! a lease, because the fence decides who may write; hashes of tokens and the certificate authority.
//! Called by `registry`, `intake`, `dispatch`, `outbox`, `identity` and `app`. Always true: every write of a worker carries
//! the epoch and an old one changes nothing; only the database's clock decides leases; the hot path never waits for a
//! NOTIFY. It knows neither proto, platforms nor workers' streams, and it decides nothing that `hermes-core` can decide.

mod accounts;
mod agents;
mod approvals;
mod asks;
mod blobs;
mod budgets;
mod busy;
mod calls;
mod clock;
mod commands;
mod cron;
mod dead_letters;
mod deliveries;
mod documents;
mod doorbell;
mod functions;
mod gate;
mod giving_up;
mod home_chats;
mod homes;
mod identities;
mod journal;
mod mcp;
mod migrate;
mod origin;
mod pairing;
mod previews;
mod reach;
mod retention;
mod search;
mod sessions;
mod transitions;
mod workers;

pub use blobs::{Noted, hash_of, turn_file_id};

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, QueueMode, RecyclingMethod, Runtime, Timeouts};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Row};

use crate::failpoint::{Failpoints, Verdict};

pub use accounts::{AccountClaim, AccountHeld, AccountRow};
pub use agents::{AgentRow, RegistryChange, RegistryRows, RevisionRow};
pub use approvals::{Answered, ApprovalAnswer, ApprovalAsk, ApprovalAsked, ApprovalRow, ApprovalState, Judged};
pub use asks::{Ask, AskRow, Asking, LookedAsk};
pub use budgets::{Alerted, BudgetAlertRow, BudgetCall, BudgetHit, PauseRow, RaiseRow, Reserved, SpentRow};
pub use busy::{Absorbed, Backlog, Signal, Signalled, Stopped};
pub use calls::{CallEffect, CallScope, CallStep, Called, Caller, Looked, Wakes};
pub use clock::DatabaseClock;
pub use commands::{Again, Answer, CommandRow, Commanded, Effect, Listed, Outcome, Resumed, Standing, Used};
pub use cron::{
    Begin, CRON_DUE, Compose, CronChanges, CronEdit, CronJobRow, CronRunRow, CronRunState, CronTick, CronTimes, Decide,
    DueJob, EndedRun, Fired, Firing, Judge, Mirror, NewCronJob, Settle, WaitingRun,
};
pub use dead_letters::{DeadTurnRow, DeliveryFilter, DeliveryId, DeliveryRow, DeliveryState, Redrive};
pub use deliveries::{DeliveryOutcome, DueDelivery, LaneKey, SendResult};
pub use doorbell::{Bell, Rung};
pub use functions::Functions;
pub use giving_up::GivenUp;
pub use home_chats::{DocumentedHome, Homed};
pub use homes::{HomeDocument, HomeDocumentInfo, HomeRevision, Imported, OpenDocument, PushOutcome};
pub use identities::LAUNCH_TTL;
pub use journal::{JOURNAL_BEGIN, JournalCursor, Journaled, StepRecord, StepRow};
pub use mcp::{McpRow, McpTool, McpTools};
pub use origin::Fenced;
pub use pairing::{PairedSender, PairingApproved, PairingAsk, PairingAsked, PairingRow};
pub use previews::{PreviewBegin, PreviewEnd};
pub use reach::ReachedChat;
pub use retention::{RETAINED, Retained, RetentionRun};
pub use search::{Match, PastTurn};
pub use sessions::{Did, Exchange, SessionRow, StatusCounts, Summarised, Summary, TurnEnd, TurnRow};
pub use transitions::{Claimed, Completion, CompletionOutcome, Ended, Ingest, Ingested, Leased, NextTurn};
pub use workers::{Leaving, Parting, PollAnswer, WorkerRegistration};

/// Longest wait for the answer to a poll: longer is no database.
pub const POLL_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for any answer: the server ends a statement after 30 s, so later it is the way there that is broken.
const CALL_LIMIT: Duration = Duration::from_secs(40);
/// Most rows one batched call carries (measured: batches pay up to 40 rows and no longer after 70).
pub const BATCH_ROWS: usize = 256;

/// Why the store did not do what was asked. `Display` names no secret and no connection string.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres cannot be reached or is shutting down. Whether a write happened is unknown: repeat it with the same key.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// Somebody else changed it first; nothing was written.
    #[error("{0}")]
    Conflict(String),
    /// There is no such thing; nothing was written.
    #[error("{0}")]
    NotFound(String),
    /// The database's schema is not one this build knows.
    #[error("{0}")]
    Schema(String),
    /// Postgres refused a statement: a defect of ours or of the data. Nothing of that statement was written.
    #[error("the database refused a statement ({code})")]
    Refused {
        /// SQLSTATE.
        code: String,
        /// The whole error for the log.
        #[source]
        source: tokio_postgres::Error,
    },
}

impl Error {
    /// Whether repeating the same call can succeed at once (serialization, deadlock, or a duplicate key that the repeat will see).
    fn is_retryable(&self) -> bool {
        let Self::Refused { source, .. } = self else { return false };
        source.code().is_some_and(|code| {
            [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::UNIQUE_VIOLATION]
                .contains(code)
        })
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(source: tokio_postgres::Error) -> Self {
        match source.as_db_error() {
            Some(db) if is_passing(db.code()) => Self::Unavailable(db.message().to_owned()),
            Some(db) => Self::Refused { code: format!("{}: {}", db.code().code(), db.message()), source },
            None => Self::Unavailable(one_line(&source)),
        }
    }
}

/// Whether it is the server's state and not the statement or its data: a full disk, a statement that ran into its time
/// limit, a shutdown. The same call may succeed later, so nothing may be given up because of it.
fn is_passing(code: &SqlState) -> bool {
    // Connection, resources, operator intervention (timeouts and shutdowns), system errors, locks, transaction time limits.
    ["08", "53", "57", "58", "55P03", "25P03", "25P04"].iter().any(|class| code.code().starts_with(class))
}

fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

impl From<deadpool_postgres::PoolError> for Error {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        match error {
            deadpool_postgres::PoolError::Backend(source) => match Self::from(source) {
                Self::Refused { code, .. } => Self::Unavailable(code),
                other => other,
            },
            deadpool_postgres::PoolError::Timeout(_) => Self::Unavailable("no connection within 4 s".to_owned()),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// Answer of the store.
pub type Result<T> = std::result::Result<T, Error>;

/// A session's number. People see it as `s123`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub i64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl FromStr for SessionId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        text.strip_prefix('s').and_then(|digits| digits.parse().ok()).map(Self).ok_or_else(|| {
            Error::NotFound(format!("{text:?} is not a session id; `hermesctl session list` shows them"))
        })
    }
}

/// One turn of one session. People see it as `t123.4`; to callers it is opaque.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TurnId {
    /// The session.
    pub session: SessionId,
    /// Turn number in it, from 1.
    pub seq: i64,
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}.{}", self.session.0, self.seq)
    }
}

impl FromStr for TurnId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (session, seq) = text.strip_prefix('t')?.split_once('.')?;
            Some(Self { session: SessionId(session.parse().ok()?), seq: seq.parse().ok()? })
        };
        parse().ok_or_else(|| Error::NotFound(format!("{text:?} is not a turn id")))
    }
}

/// A handle to the database; cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    place: std::sync::Arc<str>,
    functions: std::sync::Arc<Functions>,
    gate: std::sync::Arc<gate::Gate>,
    /// For connections beside the pool.
    direct: std::sync::Arc<doorbell::Direct>,
    failpoints: Failpoints,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Prepares a pool of `connections` to `url` (`postgres://…` or key=value form); connects lazily.
    ///
    /// # Errors
    /// [`Error::Schema`] when the URL cannot be read; its text is not repeated since it may hold a password.
    pub fn new(url: &str, connections: usize) -> Result<Self> {
        Self::with_functions(url, connections, Functions::default())
    }

    /// [`Store::new`] with another set of functions.
    ///
    /// # Errors
    /// As [`Store::new`].
    pub fn with_functions(url: &str, connections: usize, functions: Functions) -> Result<Self> {
        let mut config = tokio_postgres::Config::from_str(url).map_err(|_| {
            Error::Schema("the database URL cannot be read; write postgres://user:password@host:5432/name".to_owned())
        })?;
        let place = place_of(&config);
        config.connect_timeout(Duration::from_secs(3));
        // A way that is gone without a word is noticed in 25 s.
        config.keepalives_idle(Duration::from_secs(10));
        config.keepalives_interval(Duration::from_secs(5));
        config.keepalives_retries(3);
        config.tcp_user_timeout(Duration::from_secs(25));
        config.application_name("hermes-control-plane");
        let own = format!(
            "-c search_path={},hermes -c plan_cache_mode=force_generic_plan -c jit=off -c statement_timeout=30s \
             -c idle_in_transaction_session_timeout=10s -c client_min_messages=warning",
            functions.schema()
        );
        let options = config.get_options().map_or_else(|| own.clone(), |given| format!("{own} {given}"));
        config.options(options);
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let direct = doorbell::Direct::new(config.clone());
        let manager = match direct.tls() {
            Some(tls) => Manager::from_config(config, tls, recycling),
            None => Manager::from_config(config, NoTls, recycling),
        };
        let limit = Some(Duration::from_secs(4));
        let pool = Pool::builder(manager)
            .max_size(connections)
            // The one that came back last: its server process has its plans and tables at hand.
            .queue_mode(QueueMode::Lifo)
            .timeouts(Timeouts { wait: limit, create: limit, recycle: limit })
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| Error::Schema(error.to_string()))?;
        Ok(Self {
            pool,
            place: place.into(),
            functions: functions.into(),
            gate: std::sync::Arc::default(),
            direct: direct.into(),
            failpoints: Failpoints::default(),
        })
    }

    /// With points around each transition.
    #[must_use]
    pub fn with_failpoints(self, failpoints: Failpoints) -> Self {
        Self { failpoints, ..self }
    }

    /// The points of this process.
    pub(crate) fn failpoints(&self) -> &Failpoints {
        &self.failpoints
    }

    /// Where the database is, for people: host and port or socket directory, and its name; never user or password.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Closes all connections; every later call is answered as unavailable.
    pub fn close(&self) {
        self.pool.close();
    }

    async fn client(&self) -> Result<deadpool_postgres::Object> {
        self.gate.wait().await;
        let client = self.pool.get().await;
        // A pool that is busy says nothing about the database.
        self.gate.note(!matches!(client, Err(deadpool_postgres::PoolError::Backend(_))));
        Ok(client?)
    }

    async fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.query_within(CALL_LIMIT, sql, params).await
    }

    async fn query_within(&self, limit: Duration, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        let client = self.client().await?;
        gate::within(limit, client, async |client| {
            let statement = client.prepare_cached(sql).await?;
            client.query(&statement, params).await
        })
        .await
    }

    async fn query_opt(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Option<Row>> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    async fn execute(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<u64> {
        let client = self.client().await?;
        gate::within(CALL_LIMIT, client, async |client| {
            let statement = client.prepare_cached(sql).await?;
            client.execute(&statement, params).await
        })
        .await
    }

    /// A transition with its points; those are named after the function that the statement calls.
    async fn drilled(&self, limit: Duration, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        if !self.failpoints.are_set() {
            return self.query_within(limit, sql, params).await;
        }
        let head = sql.split('(').next().unwrap_or_default();
        let function = head.split_whitespace().next_back().unwrap_or_default();
        let cut = || Error::Unavailable("cut by a drill".to_owned());
        if self.failpoints.reach(&format!("{function}.before")).await == Verdict::Fail {
            return Err(cut());
        }
        let rows = self.query_within(limit, sql, params).await?;
        match self.failpoints.reach(&format!("{function}.after")).await {
            Verdict::GoOn => Ok(rows),
            Verdict::Fail => Err(cut()),
        }
    }

    /// Repeats a whole batch that met a concurrent writer, a few times with jitter.
    async fn query_retrying(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.query_retrying_within(CALL_LIMIT, sql, params).await
    }

    async fn query_retrying_within(
        &self,
        limit: Duration,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        let mut attempt = 0;
        loop {
            match self.drilled(limit, sql, params).await {
                Err(error) => pause_before_repeating(&mut attempt, error).await?,
                Ok(rows) => return Ok(rows),
            }
        }
    }

    /// The server's version, for people: `postgres 15.18`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn server_version(&self) -> Result<String> {
        let row = self.query_opt("SELECT current_setting('server_version')", &[]).await?;
        let version: String = row.map_or_else(String::new, |row| row.get(0));
        Ok(format!("postgres {}", version.split_whitespace().next().unwrap_or("?")))
    }
}

/// Waits a moment, with jitter, before a whole transaction that met a concurrent writer is repeated.
///
/// # Errors
/// The transaction's own, where repeating it does not help or did not.
async fn pause_before_repeating(attempt: &mut u32, error: Error) -> Result<()> {
    match error {
        error if error.is_retryable() && *attempt < 6 => {
            *attempt += 1;
            let jitter = rand::random_range(1..=(4_u64 << *attempt));
            tokio::time::sleep(Duration::from_millis(jitter)).await;
            Ok(())
        }
        // Others kept being faster. Nothing is wrong with the batch.
        Error::Refused { code, source } if source.code().is_some_and(|code| code.code().starts_with("40")) => {
            Err(Error::Unavailable(code))
        }
        error => Err(error),
    }
}

fn place_of(config: &tokio_postgres::Config) -> String {
    use tokio_postgres::config::Host;
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(index, host)| match host {
        Host::Tcp(name) => format!("{name}:{}", ports.get(index).or(ports.first()).unwrap_or(&5432)),
        Host::Unix(dir) => dir.display().to_string(),
    });
    let hosts: Vec<String> = hosts.collect();
    match config.get_dbname() {
        Some(name) => format!("{}/{name}", hosts.join(",")),
        None => hosts.join(","),
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_or_a_slow_statement_is_no_fault_of_the_row() {
        for passing in [SqlState::DISK_FULL, SqlState::OUT_OF_MEMORY, SqlState::QUERY_CANCELED, SqlState::IO_ERROR] {
            assert!(is_passing(&passing), "{passing:?}");
        }
        assert!(is_passing(&SqlState::ADMIN_SHUTDOWN) && is_passing(&SqlState::TOO_MANY_CONNECTIONS));
        for fault in [SqlState::CHARACTER_NOT_IN_REPERTOIRE, SqlState::CHECK_VIOLATION, SqlState::UNIQUE_VIOLATION] {
            assert!(!is_passing(&fault), "{fault:?}");
        }
    }
}
