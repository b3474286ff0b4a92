//! What a large history costs: the same load on an empty plane and, in the same run, on one with a million sessions.
//!
//! Called by `main` for the subcommands `seed` and `scale`. `seed` fills any database that the control plane has migrated;
//! `scale` owns a plane of its own. Always true: the load is the same before and after, its chats of the second part are seeded
//! sessions with a history; intake and queue wait are the control plane's own histograms, so only what it does is compared.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::{Client, NoTls};

use crate::load::Load;
use crate::outside::ModelServer;
use crate::plane::{Access, Plane, Setup};
use crate::tally::Tally;
use crate::usage::Role;
use crate::{Output, grpc};

/// Sessions of one statement.
const CHUNK: u64 = 50_000;
/// From the last message to quiet histograms.
const REST: Duration = Duration::from_secs(2);
const BOUNDS: &str = "from 1 to 100,000,000";

/// `hermes-bench seed`
#[derive(Debug, clap::Args)]
pub(crate) struct SeedArgs {
    /// The migrated database to fill.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    /// Sessions to make.
    #[arg(long, value_parser = count)]
    sessions: u64,
    /// Ended turns to make, spread evenly over them.
    #[arg(long, value_parser = count)]
    turns: u64,
}

/// `hermes-bench scale`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Sessions to make between the two parts.
    #[arg(long, default_value = "1000000", value_parser = count)]
    sessions: u64,
    /// Ended turns to make, spread evenly over them.
    #[arg(long, default_value = "5000000", value_parser = count)]
    turns: u64,
    /// How many chats, each with at most one message on its way.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    chats: u32,
    /// How long each part is measured, after the warm-up.
    #[arg(long, default_value = "10", value_parser = crate::seconds)]
    seconds: Duration,
    /// How long is not measured, before each part.
    #[arg(long, default_value = "2", value_parser = crate::seconds)]
    warm_up: Duration,
    /// It fails when intake or queue wait take longer than this many times the empty plane's.
    #[arg(long, default_value_t = 1.5)]
    most_ratio: f64,
    /// How the figures are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Where hermesctl, hermes-control-plane and hermes-worker are. Default: beside this program.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

fn count(text: &str) -> Result<u64, String> {
    let number: u64 = text.replace('_', "").parse().map_err(|_| format!("write a whole number {BOUNDS}"))?;
    if (1..=100_000_000).contains(&number) { Ok(number) } else { Err(format!("write a whole number {BOUNDS}")) }
}

/// One part. Milliseconds are means.
#[derive(Debug, Serialize)]
struct Part {
    answered_per_s: f64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    intake_ms: f64,
    queue_wait_ms: f64,
    control_plane_rss_mb: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Figures {
    sessions: u64,
    turns: u64,
    seed_seconds: f64,
    empty: Part,
    seeded: Part,
    intake_ratio: f64,
    queue_wait_ratio: f64,
}

/// Fills a database.
///
/// # Errors
/// When it cannot be reached or is not migrated.
pub(crate) async fn seed(args: &SeedArgs) -> anyhow::Result<()> {
    let begun = Instant::now();
    let client = connect(&args.database_url).await?;
    fill(&client, args.sessions, args.turns, 0, "agent:main:seed:dm:chat-0").await?;
    let text =
        format!("{} sessions and {} turns in {:.1} s\n", args.sessions, args.turns, begun.elapsed().as_secs_f64());
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).context("write to stdout")
}

/// Measures and prints.
///
/// # Errors
/// When something does not start or ends early, and when a ratio is larger than asked for.
pub(crate) async fn run(args: &Args, interrupted: impl Future<Output = anyhow::Error>) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let binaries = args.bin_dir.as_deref().or(program.parent()).context("find its folder")?;
    let model = ModelServer::start().await?;
    let setup = Setup { binaries, bound_by: Some(&program), model_url: model.base_url(), telegram: None, otlp: None };
    // The client that asks for the metrics wants one, although it does not use it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut plane = Plane::start(&setup)?;
    let measured = tokio::select! {
        figures = measure(args, &mut plane) => figures,
        error = interrupted => Err(error),
    };
    let stopped = plane.stop().await;
    let figures = measured?;
    let text = match args.output {
        Output::Table => figures.table(),
        Output::Json => serde_json::to_string_pretty(&figures).context("write the figures")? + "\n",
    };
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).context("write to stdout")?;
    stopped?;
    let worst = figures.intake_ratio.max(figures.queue_wait_ratio);
    anyhow::ensure!(
        worst <= args.most_ratio,
        "{worst:.2} times the empty plane's latency; at most {}",
        args.most_ratio
    );
    Ok(())
}

async fn measure(args: &Args, plane: &mut Plane) -> anyhow::Result<Figures> {
    let access = plane.ready().await?;
    let caller = grpc::Caller::connect(&access.grpc_url, &access.token, args.chats * 2).await?;
    let empty = part(args, plane, &access, &caller, 0).await?;
    let begun = Instant::now();
    let client = connect(access.database_url()?).await?;
    let known = "SELECT session_key FROM session_keys WHERE session_key LIKE '%chat-0%' LIMIT 1";
    let like: String = client.query_one(known, &[]).await.context("find the first chat's session")?.get(0);
    plane.meanwhile(fill(&client, args.sessions, args.turns, u64::from(args.chats), &like)).await??;
    let seed_seconds = begun.elapsed().as_secs_f64();
    let seeded = part(args, plane, &access, &caller, args.chats).await?;
    Ok(Figures {
        sessions: args.sessions,
        turns: args.turns,
        seed_seconds,
        intake_ratio: ratio(empty.intake_ms, seeded.intake_ms),
        queue_wait_ratio: ratio(empty.queue_wait_ms, seeded.queue_wait_ms),
        empty,
        seeded,
    })
}

/// The load of the chats from `first` on.
async fn part(
    args: &Args,
    plane: &mut Plane,
    access: &Access,
    caller: &grpc::Caller,
    first: u32,
) -> anyhow::Result<Part> {
    let from = Instant::now() + args.warm_up;
    let load = Load { tally: Arc::new(Tally::new(from)), until: from + args.seconds };
    let mut chats = JoinSet::new();
    for number in first..first + args.chats {
        chats.spawn(grpc::chat(caller.clone(), number, load.clone()));
    }
    plane.meanwhile(sleep_until(from)).await?;
    let (before, start) = (histograms(access).await?, load.tally.counts());
    plane.meanwhile(sleep_until(load.until)).await?;
    let (after, end) = (histograms(access).await?, load.tally.counts());
    while let Some(ended) = plane.meanwhile(chats.join_next()).await? {
        ended.context("run the chats")??;
    }
    sleep(REST).await;
    if let Some(fault) = load.tally.first_fault() {
        anyhow::bail!("a message was not answered: {fault}");
    }
    let percentiles = load.tally.percentiles();
    let mean = |name: usize| {
        let (sum, count) = (after[name].0 - before[name].0, after[name].1 - before[name].1);
        if count > 0.0 { sum / count * 1000.0 } else { 0.0 }
    };
    #[expect(clippy::cast_precision_loss, reason = "counts of one run are small")]
    let answered = (end.answered - start.answered) as f64;
    Ok(Part {
        answered_per_s: answered / args.seconds.as_secs_f64(),
        p50_ms: percentiles.as_ref().map(|all| all.p50),
        p99_ms: percentiles.as_ref().map(|all| all.p99),
        intake_ms: mean(0),
        queue_wait_ms: mean(1),
        control_plane_rss_mb: plane.usage()?.largest_mb(Role::ControlPlane),
    })
}

/// Sum and count of intake and of queue wait, seconds.
async fn histograms(access: &Access) -> anyhow::Result<[(f64, f64); 2]> {
    let text = reqwest::get(access.metrics_url()?).await.context("ask for the metrics")?.text().await?;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|number| number.parse().ok()).unwrap_or(0.0)
    };
    Ok(["hermes_intake_seconds", "hermes_queue_wait_seconds"]
        .map(|name| (value(&format!("{name}_sum")), value(&format!("{name}_count")))))
}

#[expect(clippy::disallowed_methods, reason = "it ends with its client")]
async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("connect to the database")?;
    tokio::spawn(connection);
    client.batch_execute("SET search_path = hermes; SET synchronous_commit = off; SET jit = off").await?;
    Ok(client)
}

/// Makes idle sessions with ended turns, all of the last days. The key of chat N is `like` with N for its 0.
async fn fill(client: &Client, sessions: u64, turns: u64, first: u64, like: &str) -> anyhow::Result<()> {
    let of = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let base: i64 = client
        .query_one("SELECT setval('session_ids', nextval('session_ids') + $1) - $1", &[&of(sessions)])
        .await
        .context("reserve session numbers")?
        .get(0);
    let mut made = 0;
    while made < sessions {
        let chunk = CHUNK.min(sessions - made);
        // Turns of each session of the chunk, so that all together come to `turns`.
        let each = (turns * (made + chunk))
            .div_ceil(sessions)
            .saturating_sub((turns * made).div_ceil(sessions))
            .div_ceil(chunk);
        let (from, to) = (base + of(made), base + of(made + chunk) - 1);
        let shift = of(first) - base;
        client
            .execute(
                "WITH k AS (INSERT INTO session_keys(agent_no, session_key, session_id) \
                   SELECT a.agent_no, replace(replace($3, 'chat-0', 'chat-' || (g + $4::bigint)), 'user-0', 'user-' || (g + $4::bigint)), g \
                     FROM generate_series($1::bigint, $2::bigint) g, agents a WHERE a.agent_id = 'main' ON CONFLICT DO NOTHING RETURNING *) \
                 INSERT INTO sessions(session_id, head_seq, tail_seq, epoch, agent_no, state, session_key, updated_at) \
                   SELECT k.session_id, $5::bigint + 1, $5::bigint, $5::bigint, k.agent_no, 0, k.session_key, now() - random() * interval '5 days' FROM k",
                &[&from, &to, &like, &shift, &of(each)],
            )
            .await
            .context("make sessions")?;
        let turn_rows = [
            "INSERT INTO turns(session_id, seq, payload, created_at) SELECT s, q, \
               convert_to('{\"text\":\"' || repeat('seeded message ', 12) || q || '\"}', 'UTF8'), now() - random() * interval '5 days' \
               FROM generate_series($1::bigint, $2::bigint) s, generate_series(1, $3::bigint) q",
            "INSERT INTO turn_steps(session_id, seq, step, phase, epoch, kind, ended, body, usage, at) SELECT s, q, 2147483647, 1, q, 3, 2, \
               convert_to(repeat('seeded answer ', 30), 'UTF8'), '{}', now() - random() * interval '5 days' \
               FROM generate_series($1::bigint, $2::bigint) s, generate_series(1, $3::bigint) q",
            "INSERT INTO inbound(dedupe_key, session_id, seq, received_at) \
               SELECT substr(sha256(convert_to(s || '.' || q, 'UTF8')), 1, 16), s, q, now() - random() * interval '5 days' \
               FROM generate_series($1::bigint, $2::bigint) s, generate_series(1, $3::bigint) q ON CONFLICT DO NOTHING",
        ];
        for sql in turn_rows {
            client.execute(sql, &[&from, &to, &of(each)]).await.context("make turns")?;
        }
        made += chunk;
    }
    // As the background would have left them by the time there are so many.
    for table in ["sessions", "session_keys", "turns", "turn_steps", "inbound"] {
        client.batch_execute(&format!("VACUUM (ANALYZE) {table}")).await.context("vacuum")?;
    }
    client.batch_execute("CHECKPOINT").await.context("write everything out")
}

/// How much longer it takes. What takes less than a millisecond counts as one: below that the clock and the scheduler are measured.
fn ratio(empty: f64, seeded: f64) -> f64 {
    seeded.max(1.0) / empty.max(1.0)
}

impl Figures {
    fn table(&self) -> String {
        let mut text = format!(
            "{} sessions and {} turns were made in {:.1} s\n\n{:24}{:>12}{:>12}{:>8}\n",
            self.sessions, self.turns, self.seed_seconds, "", "empty", "seeded", "ratio"
        );
        let mut row = |name: &str, empty: Option<f64>, seeded: Option<f64>| {
            let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
            let ratio = empty.zip(seeded).map(|(empty, seeded)| ratio(empty, seeded));
            let _ = writeln!(text, "{name:24}{:>12}{:>12}{:>8}", shown(empty), shown(seeded), shown(ratio));
        };
        let (empty, seeded) = (&self.empty, &self.seeded);
        row("intake, ms", Some(empty.intake_ms), Some(seeded.intake_ms));
        row("queue wait, ms", Some(empty.queue_wait_ms), Some(seeded.queue_wait_ms));
        row("message, p50 ms", empty.p50_ms, seeded.p50_ms);
        row("message, p99 ms", empty.p99_ms, seeded.p99_ms);
        row("messages a second", Some(empty.answered_per_s), Some(seeded.answered_per_s));
        row("control plane, MB", empty.control_plane_rss_mb, seeded.control_plane_rss_mb);
        text
    }
}
