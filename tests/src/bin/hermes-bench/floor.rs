//! What this Postgres can do for a turn at most, so that a rate can be read as a part of it.
//!
//! Called after the load, when nothing else runs. It owns a schema of its own, dropped at the end and before the start.
//! Always true: a turn here is four transactions, each one prepared statement in one round trip, on tables of the same
//! shape as the hot path's and with the server's own settings. It does not batch: this is the floor that one commit per
//! transition stands on, and a plane that shares commits among messages may stand higher.

use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::{Client, NoTls, Statement};

/// Connections, each with its own session, that loop at the same time.
const CONNECTIONS: i64 = 32;
/// Bytes of a message and of a reply, about what the load has.
const MESSAGE: &[u8] = &[b'm'; 32];
const REPLY: &[u8] = &[b'r'; 400];

const CREATE: &str = "
    DROP SCHEMA IF EXISTS hermes_bench_floor CASCADE;
    CREATE SCHEMA hermes_bench_floor;
    SET search_path = hermes_bench_floor;
    CREATE TABLE inbound (
        dedupe_key  bytea PRIMARY KEY,
        session_id  bigint NOT NULL,
        seq         bigint NOT NULL,
        received_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE sessions (
        session_id bigint PRIMARY KEY,
        head_seq   bigint NOT NULL DEFAULT 1,
        tail_seq   bigint NOT NULL DEFAULT 0,
        epoch      bigint NOT NULL DEFAULT 0,
        state      smallint NOT NULL DEFAULT 0,
        worker_id  bigint,
        deadline   timestamptz) WITH (fillfactor = 50);
    CREATE TABLE turns (
        session_id bigint NOT NULL,
        seq        bigint NOT NULL,
        state      smallint NOT NULL DEFAULT 0,
        input      bytea NOT NULL,
        reply      bytea,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (session_id, seq));
    CREATE TABLE deliveries (
        lane_id      bigint NOT NULL,
        pos          bigint NOT NULL,
        state        smallint NOT NULL DEFAULT 0,
        delivered_at timestamptz,
        PRIMARY KEY (lane_id, pos));
    INSERT INTO sessions (session_id) SELECT generate_series(1, 32);";

/// The transactions of a turn in order; $1 is the session, $2 the number of the turn.
const TRANSITIONS: [&str; 4] = [
    "WITH seen AS (INSERT INTO hermes_bench_floor.inbound (dedupe_key, session_id, seq)
                   VALUES (int8send($1) || int8send($2), $1, $2)),
          head AS (UPDATE hermes_bench_floor.sessions SET tail_seq = $2, state = 1 WHERE session_id = $1)
     INSERT INTO hermes_bench_floor.turns (session_id, seq, input) VALUES ($1, $2, $3)",
    "UPDATE hermes_bench_floor.sessions
        SET state = 2, epoch = epoch + 1, worker_id = 1, deadline = now() + interval '15 s'
      WHERE session_id = $1 AND head_seq = $2 AND state = 1",
    "WITH turn AS (UPDATE hermes_bench_floor.turns SET state = 3, reply = $3 WHERE session_id = $1 AND seq = $2),
          head AS (UPDATE hermes_bench_floor.sessions SET head_seq = $2 + 1, state = 0, deadline = NULL
                    WHERE session_id = $1 AND head_seq = $2 AND state = 2)
     INSERT INTO hermes_bench_floor.deliveries (lane_id, pos) VALUES ($1, $2)",
    "UPDATE hermes_bench_floor.deliveries SET state = 2, delivered_at = now() WHERE lane_id = $1 AND pos = $2",
];

/// The server's settings that decide what a commit costs.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Settings {
    pub(crate) server_version: String,
    pub(crate) fsync: String,
    pub(crate) synchronous_commit: String,
    pub(crate) full_page_writes: String,
    pub(crate) shared_buffers: String,
    pub(crate) max_connections: String,
}

/// The measured floor.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Floor {
    /// Loops of four transactions a second, all connections together.
    pub(crate) per_s: f64,
    pub(crate) connections: i64,
    pub(crate) seconds: f64,
    pub(crate) settings: Settings,
}

/// Measures for `time`.
///
/// # Errors
/// When the server refuses a connection or a statement.
pub(crate) async fn measure(url: &str, time: Duration) -> anyhow::Result<Floor> {
    let mut connections = JoinSet::new();
    let control = connect(url, &mut connections).await?;
    control.batch_execute(CREATE).await.context("create the floor's tables")?;
    let measured = loops(url, time, &mut connections).await;
    let settings = settings(&control).await;
    control.batch_execute("DROP SCHEMA hermes_bench_floor CASCADE").await.context("drop the floor's tables")?;
    let per_s = measured?;
    Ok(Floor { per_s, connections: CONNECTIONS, seconds: time.as_secs_f64(), settings: settings? })
}

/// Opens a connection whose other half runs in `connections`.
async fn connect(url: &str, connections: &mut JoinSet<()>) -> anyhow::Result<Client> {
    // The error's text names the server, never the password.
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.context("connect to Postgres for the floor")?;
    connections.spawn(async move {
        // A lost connection shows as an error of the next statement.
        let _ = connection.await;
    });
    Ok(client)
}

async fn loops(url: &str, time: Duration, connections: &mut JoinSet<()>) -> anyhow::Result<f64> {
    let mut prepared = Vec::new();
    for session in 1..=CONNECTIONS {
        let client = connect(url, connections).await?;
        let mut statements = Vec::with_capacity(TRANSITIONS.len());
        for text in TRANSITIONS {
            statements.push(client.prepare(text).await.context("prepare the floor's statements")?);
        }
        prepared.push((session, client, statements));
    }
    let start = Instant::now();
    let mut running = JoinSet::new();
    for (session, client, statements) in prepared {
        running.spawn(async move { looping(&client, session, &statements, start + time).await });
    }
    let mut turns = 0;
    while let Some(ended) = running.join_next().await {
        turns += ended.context("run the floor's loops")??;
    }
    Ok(f64::from(turns) / start.elapsed().as_secs_f64())
}

async fn looping(client: &Client, session: i64, statements: &[Statement], end: Instant) -> anyhow::Result<u32> {
    let mut turns = 0;
    while Instant::now() < end {
        let seq = i64::from(turns) + 1;
        for (index, statement) in statements.iter().enumerate() {
            let done = match index {
                0 => client.execute(statement, &[&session, &seq, &MESSAGE]).await,
                2 => client.execute(statement, &[&session, &seq, &REPLY]).await,
                _ => client.execute(statement, &[&session, &seq]).await,
            };
            let rows = done.context("run the floor's statements")?;
            anyhow::ensure!(rows == 1, "transition {} of the floor changed {rows} rows instead of 1", index + 1);
        }
        turns += 1;
    }
    Ok(turns)
}

async fn settings(client: &Client) -> anyhow::Result<Settings> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'),
                    current_setting('full_page_writes'), current_setting('shared_buffers'), current_setting('max_connections')",
            &[],
        )
        .await
        .context("read the server's settings")?;
    let text = |index| row.try_get::<_, String>(index).context("read the server's settings");
    Ok(Settings {
        server_version: text(0)?,
        fsync: text(1)?,
        synchronous_commit: text(2)?,
        full_page_writes: text(3)?,
        shared_buffers: text(4)?,
        max_connections: text(5)?,
    })
}

#[cfg(test)]
mod tests {
    use hermes_tests::postgres::TestPostgres;

    use super::*;

    #[tokio::test]
    async fn the_floor_is_measured_on_a_real_server_and_leaves_nothing_behind() {
        let database = TestPostgres::empty().unwrap();
        let floor = measure(database.url(), Duration::from_millis(300)).await.unwrap();
        assert!(floor.per_s > 0.0);
        assert_eq!(floor.settings.fsync, "off");
        let mut connections = JoinSet::new();
        let client = connect(database.url(), &mut connections).await.unwrap();
        let left = "SELECT count(*) FROM pg_namespace WHERE nspname = 'hermes_bench_floor'";
        assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    }

    /// Were a transition to change nothing, the floor would be that of an empty statement.
    #[tokio::test]
    async fn a_turn_goes_through_all_its_states() {
        let database = TestPostgres::empty().unwrap();
        let mut connections = JoinSet::new();
        let client = connect(database.url(), &mut connections).await.unwrap();
        client.batch_execute(CREATE).await.unwrap();
        let mut statements = Vec::new();
        for text in TRANSITIONS {
            statements.push(client.prepare(text).await.unwrap());
        }
        let turns = looping(&client, 7, &statements, Instant::now() + Duration::from_millis(50)).await.unwrap();
        let ended = "SELECT count(*), bool_and(t.state = 3 AND d.state = 2 AND reply IS NOT NULL)
                       FROM hermes_bench_floor.turns t
                       JOIN hermes_bench_floor.inbound i USING (session_id, seq)
                       JOIN hermes_bench_floor.deliveries d ON d.lane_id = t.session_id AND d.pos = t.seq";
        let row = client.query_one(ended, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, bool>(1)), (i64::from(turns), true));
        let head = "SELECT head_seq, tail_seq, epoch, state FROM hermes_bench_floor.sessions WHERE session_id = 7";
        let row = client.query_one(head, &[]).await.unwrap();
        let turns = i64::from(turns);
        assert_eq!((row.get(0), row.get(1), row.get(2), row.get(3)), (turns + 1, turns, turns, 0_i16));
        // The fence: a turn that is not the session's next changes nothing and is noticed.
        assert_eq!(client.execute(&statements[1], &[&7_i64, &1_i64]).await.unwrap(), 0);
    }
}
