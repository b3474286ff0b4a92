//! What a plane costs that has nothing to do: queries a second and CPU, with many workers connected, and with many scheduled jobs.
//!
//! Called by `main` for the subcommand. It owns the workers: real `hermes-worker` processes of the agent `main`, which
//! join with a token as on another machine, each with a home of its own. Always true: nothing is measured before all of
//! them are registered and had time to settle; none of them runs afterwards. Queries are Postgres' own count of
//! transactions of that database; our statements are one transaction each. Jobs are rows, made at once; how late their slots begin is what their
//! history says by the database's own clock.

use std::fmt::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use hermes_proto::v1::identity_service_client::IdentityServiceClient;
use hermes_proto::v1::system_service_client::SystemServiceClient;
use hermes_proto::v1::{CreateTokenRequest, GetStatusRequest, GetStatusResponse, TokenRole};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_postgres::NoTls;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::Output;
use crate::outside::ModelServer;
use crate::plane::{Access, Plane, Setup};
use crate::usage::{self, Role};

/// From the start of the last worker to the registration of all.
const REGISTERED_WITHIN: Duration = Duration::from_secs(120);
/// From SIGTERM to a worker's end.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// `hermes-bench idle`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Workers connected besides the plane's own.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1000))]
    workers: u32,
    /// How long is measured.
    #[arg(long, default_value = "30", value_parser = crate::seconds)]
    seconds: Duration,
    /// How long everything rests before that.
    #[arg(long, default_value = "10", value_parser = crate::seconds)]
    warm_up: Duration,
    /// Scheduled jobs, due in a year.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    jobs: u32,
    /// One of the jobs is due each second instead.
    #[arg(long, requires = "jobs")]
    due: bool,
    /// How the figures are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Where hermesctl, hermes-control-plane and hermes-worker are. Default: beside this program.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Keeps a copy of what the measured processes logged.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

/// The figures. Percent are of one core; megabytes are 10⁶ bytes.
#[derive(Debug, Serialize)]
struct Figures {
    /// Connected in the measured time, the plane's own included.
    workers: u64,
    seconds: f64,
    /// Transactions of the database.
    queries_per_s: f64,
    /// Control plane and Postgres together.
    cpu_percent: f64,
    control_plane_cpu_percent: f64,
    postgres_cpu_percent: f64,
    /// All workers together; not in `cpu_percent`.
    workers_cpu_percent: f64,
    control_plane_rss_mb: Option<f64>,
    /// Scheduled jobs.
    jobs: u32,
    /// Slots that came due while it was measured, and how late their turns were accepted, milliseconds: the median, the 99th of a hundred, the latest.
    slots: i64,
    late_p50_ms: Option<f64>,
    late_p99_ms: Option<f64>,
    late_most_ms: Option<f64>,
}

/// Measures and prints.
///
/// # Errors
/// When something does not start, ends early or cannot be stopped.
pub(crate) async fn run(args: &Args, interrupted: impl Future<Output = anyhow::Error>) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let binaries = args.bin_dir.as_deref().or(program.parent()).context("find its folder")?;
    let model = ModelServer::start().await?;
    let setup = Setup { binaries, bound_by: Some(&program), model_url: model.base_url(), telegram: None, otlp: None };
    let mut plane = Plane::start(&setup)?;
    let mut workers = Workers::new()?;
    let measured = tokio::select! {
        figures = measure(args, binaries, &mut plane, &mut workers) => figures,
        error = interrupted => Err(error),
    };
    workers.stop().await;
    let kept = args.log.as_deref().map_or(Ok(()), |path| plane.keep_log(path));
    let stopped = plane.stop().await;
    let figures = measured?;
    kept?;
    let text = match args.output {
        Output::Table => figures.table(),
        Output::Json => serde_json::to_string_pretty(&figures).context("write the figures")? + "\n",
    };
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).context("write to stdout")?;
    stopped
}

async fn measure(args: &Args, binaries: &Path, plane: &mut Plane, workers: &mut Workers) -> anyhow::Result<Figures> {
    let access = plane.ready().await?;
    let operator = Operator::connect(&access).await?;
    let status = operator.status().await?;
    let token = operator.join_token(args.workers).await?;
    workers.start(binaries, &status.worker_addr, &token, args.workers)?;
    let all = u64::from(args.workers) + 1;
    let registered = timeout(REGISTERED_WITHIN, operator.until_connected(all));
    plane.meanwhile(registered).await?.context("not all workers registered in time")??;

    let (database, connection) =
        tokio_postgres::connect(access.database_url()?, NoTls).await.context("connect to Postgres")?;
    // A lost connection shows as an error of the next statement.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    add_jobs(&database, args).await?;
    plane.meanwhile(sleep(args.warm_up)).await?;
    // Slots that came due while their jobs were still being made are late by that.
    let since: SystemTime =
        database.query_one("SELECT clock_timestamp()", &[]).await.context("ask for the time")?.try_get(0)?;
    let (began, before, usage, cpu) = (Instant::now(), transactions(&database).await?, plane.usage()?, workers.cpu());
    plane.meanwhile(sleep(args.seconds)).await?;
    let (seconds, after, end, cpu_after) =
        (began.elapsed().as_secs_f64(), transactions(&database).await?, plane.usage()?, workers.cpu());
    let connected = operator.status().await?.workers;
    anyhow::ensure!(connected == all, "{connected} of {all} workers are connected at the end");
    let late = "SELECT count(*), percentile_cont('{0.5,0.99,1}'::float8[]) WITHIN GROUP (ORDER BY extract(epoch FROM at - slot) * 1000) FROM hermes.cron_runs WHERE slot >= $1";
    let late = database.query_one(late, &[&since]).await.context("read how late jobs were")?;
    let (slots, late): (i64, Option<Vec<f64>>) = (late.try_get(0)?, late.try_get(1)?);
    let late = |place: usize| late.as_ref().and_then(|late| late.get(place)).map(|ms| rounded(*ms));
    let (late_p50_ms, late_p99_ms, late_most_ms) = (late(0), late(1), late(2));
    drop(database);
    connections.join_all().await;

    let used = end.cpu_since(&usage);
    let percent = |ms: f64| rounded(ms / seconds / 10.0);
    // The first of our own two questions is in the second answer.
    let queries = f64::from(u32::try_from((after - before - 1).max(0)).unwrap_or(u32::MAX));
    Ok(Figures {
        workers: connected,
        seconds: rounded(seconds),
        queries_per_s: rounded(queries / seconds),
        cpu_percent: percent(used.control_plane + used.postgres),
        control_plane_cpu_percent: percent(used.control_plane),
        postgres_cpu_percent: percent(used.postgres),
        workers_cpu_percent: percent(used.workers + cpu_after - cpu),
        control_plane_rss_mb: end.largest_mb(Role::ControlPlane),
        jobs: args.jobs,
        slots,
        late_p50_ms,
        late_p99_ms,
        late_most_ms,
    })
}

/// The jobs, of `main`: due in a year, or one a second from now on.
async fn add_jobs(database: &tokio_postgres::Client, args: &Args) -> anyhow::Result<()> {
    let sql = "INSERT INTO hermes.cron_jobs(job_id, agent_no, name, spec, created_by, slot, due_at)
          SELECT lpad(to_hex(n), 12, '0'), agent_no, 'job ' || n, '{\"schedule\":\"0 0 1 1 *\",\"prompt\":\"say something\"}', 'hermes-bench', at, at
            FROM generate_series(1, $1::int) n, hermes.agents,
                 LATERAL (SELECT date_trunc('second', now()) + n * interval '1 second' + CASE WHEN $2 THEN '2 seconds' ELSE '1 year' END::interval AS at) x
           WHERE agent_id = 'main'";
    let jobs = i32::try_from(args.jobs).context("count the jobs")?;
    database.execute(sql, &[&jobs, &args.due]).await.context("make the jobs")?;
    database.batch_execute("ANALYZE hermes.cron_jobs").await.context("count the jobs")
}

async fn transactions(database: &tokio_postgres::Client) -> anyhow::Result<i64> {
    let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    let row = database.query_one(sql, &[]).await.context("read pg_stat_database")?;
    row.try_get(0).context("read pg_stat_database")
}

fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

impl Figures {
    fn table(&self) -> String {
        let mut text = String::new();
        let rows = [
            ("queries/s", self.queries_per_s),
            ("CPU of control plane and Postgres, % of a core", self.cpu_percent),
            ("  control plane", self.control_plane_cpu_percent),
            ("  Postgres", self.postgres_cpu_percent),
            ("CPU of all workers, % of a core", self.workers_cpu_percent),
        ];
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} workers connected, {} s", self.workers, self.seconds);
        for (name, value) in rows {
            let _ = writeln!(text, "{name:<48} {value:>8.2}");
        }
        let _ = writeln!(text, "{} jobs, {} slots", self.jobs, self.slots);
        for (name, value) in [("p50", self.late_p50_ms), ("p99", self.late_p99_ms), ("the latest", self.late_most_ms)] {
            if let Some(ms) = value {
                let _ = writeln!(text, "{:<48} {ms:>8.2}", format!("late, ms, {name}"));
            }
        }
        text
    }
}

/// Calls with the operator's token.
struct Operator {
    channel: Channel,
    bearer: MetadataValue<Ascii>,
}

impl Operator {
    async fn connect(access: &Access) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(access.grpc_url.clone()).context("parse the gRPC address")?;
        let channel = endpoint.connect().await.with_context(|| format!("connect to {}", access.grpc_url))?;
        let bearer = format!("Bearer {}", access.token).parse().ok();
        Ok(Self { channel, bearer: bearer.context("the token has characters that no header can carry")? })
    }

    fn with_token<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.clone());
        request
    }

    async fn status(&self) -> anyhow::Result<GetStatusResponse> {
        let mut system = SystemServiceClient::new(self.channel.clone());
        let status = system.get_status(self.with_token(GetStatusRequest {})).await;
        Ok(status.context("ask for the status")?.into_inner())
    }

    async fn join_token(&self, uses: u32) -> anyhow::Result<String> {
        let request = CreateTokenRequest {
            role: TokenRole::Worker.into(),
            agent: "main".into(),
            uses: uses.max(1),
            name: "hermes-bench".into(),
            ..CreateTokenRequest::default()
        };
        let mut identities = IdentityServiceClient::new(self.channel.clone());
        let token = identities.create_token(self.with_token(request)).await;
        Ok(token.context("make a join token")?.into_inner().token)
    }

    async fn until_connected(&self, workers: u64) -> anyhow::Result<()> {
        let mut tick = interval(Duration::from_millis(200));
        loop {
            tick.tick().await;
            if self.status().await?.workers >= workers {
                return Ok(());
            }
        }
    }
}

/// Worker processes with their homes. Dropping it kills them.
struct Workers {
    children: Vec<Child>,
    // Last, so that it is removed after they are gone.
    dir: TempDir,
}

impl Workers {
    fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("hermes-idle-").tempdir().context("create a temporary directory")?;
        Ok(Self { children: Vec::new(), dir })
    }

    fn start(&mut self, binaries: &Path, address: &str, token: &str, count: u32) -> anyhow::Result<()> {
        let token_file = self.dir.path().join("join-token");
        let mut file = std::fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&token_file)
            .context("write the join token")?;
        std::io::Write::write_all(&mut file, token.as_bytes()).context("write the join token")?;
        let server = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
        for number in 0..count {
            let mut command = Command::new(binaries.join("hermes-worker"));
            command.arg("--server").arg(&server).arg("--home").arg(self.dir.path().join(format!("home-{number}")));
            command.arg("--join-token-file").arg(&token_file);
            // It ends by itself when this program is gone, however that happened.
            command.arg("--parent-pid").arg(std::process::id().to_string());
            command.env_remove("OTEL_EXPORTER_OTLP_ENDPOINT").env_remove("RUST_LOG");
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .kill_on_drop(true);
            self.children.push(command.spawn().context("start a worker")?);
        }
        Ok(())
    }

    fn pids(&self) -> impl Iterator<Item = i32> {
        self.children.iter().filter_map(|child| i32::try_from(child.id()?).ok())
    }

    /// CPU of all, milliseconds.
    fn cpu(&self) -> f64 {
        self.pids().map(usage::cpu_of).sum()
    }

    /// SIGTERM, then SIGKILL.
    async fn stop(mut self) {
        for pid in self.pids() {
            // An error means that it has ended already: a child is not reaped before `wait`, so the pid is still its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let deadline = Instant::now() + STOP_WITHIN;
        for child in &mut self.children {
            if tokio::time::timeout_at(deadline, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }
}
