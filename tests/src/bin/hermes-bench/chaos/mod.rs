//! Runs in which processes, lines, the platform and the model fail, and the verdict on them.
//!
//! Started by `main` for its subcommands. A run builds a [`world::World`] of real processes, lets chats write, injects the
//! planned faults, lets everything go quiet, and asks the [`checker`], which reads only what the stand-ins saw. Always
//! true: the seed is said first and makes the same plan again; a broken promise is an exit code and names its messages;
//! nothing that was started is left.

mod checker;
mod cron;
mod faults;
mod inject;
mod model;
mod neighbour;
mod outage;
mod process;
mod record;
mod report;
mod rolling;
mod traffic;
mod world;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum as _};
use hermes_control_plane::dispatch::LEASE;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use self::faults::Fault;
use self::inject::Struck;
use self::report::{Report, rounded};
use self::traffic::{Load, Traffic};
use self::world::{Plan, World};
use crate::{Output, seconds};

/// How often a drain is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// After the last answer: a copy would come by then.
const QUIET: Duration = Duration::from_secs(3);

/// The kinds of runs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lets processes, lines, platform and model fail by a plan, and judges what the chats saw.
    Chaos(ChaosArgs),
    /// Restarts every replica and worker in order, under load: nothing lost, nothing marked, nothing unknown.
    Rolling(Common),
    /// Stops Postgres under load: nothing is acknowledged meanwhile, everything is answered afterwards.
    Outage(Common),
    /// One agent's worker keeps dying, a second agent has a long queue: a third one's answers are hardly slower.
    Neighbour(NeighbourArgs),
    /// Many jobs on the same second while replicas and Postgres keep dying: each slot is answered once.
    Cron(cron::CronArgs),
}

/// What every kind takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// How long faults come and chats write.
    #[arg(long, default_value = "60", value_parser = seconds)]
    seconds: Duration,
    /// Makes the plan; a random one unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many chats write; two thirds to the bot, the rest through the gateway.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(i64).range(3..=2_000))]
    chats: i64,
    /// How many agents there are.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=32))]
    agents: u8,
    /// How many workers each agent has.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    workers_per_agent: u8,
    /// How many replicas there are.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: u8,
    /// How long everything may take to be answered when no more faults come.
    #[arg(long, default_value = "150", value_parser = seconds)]
    drain: Duration,
    /// How the verdict is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Where hermesctl, hermes-control-plane and hermes-worker are. Default: beside this program.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Keeps the logs of all processes and the record of what was seen.
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

/// What `chaos` takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct ChaosArgs {
    #[command(flatten)]
    common: Common,
    /// Which faults; all but `rolling` unless given.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…", hide_possible_values = true)]
    faults: Vec<Fault>,
    /// Prints the names of the faults.
    #[arg(long)]
    list_faults: bool,
}

/// What `neighbour` takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct NeighbourArgs {
    #[command(flatten)]
    common: Common,
    /// How many messages wait for the second agent.
    #[arg(long, default_value_t = 10_000)]
    queued: u32,
}

impl Common {
    fn plan(&self) -> anyhow::Result<Plan> {
        let program = std::env::current_exe().context("find this program")?;
        let binaries = self.bin_dir.as_deref().or(program.parent()).context("find its folder")?;
        Ok(Plan {
            binaries: binaries.to_owned(),
            seed: self.seed.unwrap_or_else(rand::random),
            replicas: self.replicas.into(),
            agents: self.agents.into(),
            workers_per_agent: self.workers_per_agent.into(),
            slots: 16,
            chats: self.chats,
            thinks: (30, 700),
            queued: None,
        })
    }

    fn load(&self, seed: u64) -> Load {
        let platform = (self.chats * 2 / 3).max(1);
        Load {
            seed,
            agents: self.agents.into(),
            platform_chats: 1..platform + 1,
            gateway_chats: platform + 1..self.chats + 1,
            pause: 100..700,
            open: 5,
        }
    }
}

/// Carries out one of the kinds and prints its verdict.
///
/// # Errors
/// When a promise broke, or nothing could be judged.
pub(crate) async fn run(command: &Command) -> anyhow::Result<()> {
    let common = match command {
        Command::Chaos(args) if args.list_faults => {
            let names: String = Fault::value_variants().iter().map(|fault| fault.name() + "\n").collect();
            return std::io::stdout().write_all(names.as_bytes()).context("write to stdout");
        }
        Command::Chaos(ChaosArgs { common, .. }) | Command::Neighbour(NeighbourArgs { common, .. }) => common,
        Command::Rolling(common) | Command::Outage(common) => common,
        Command::Cron(args) => &args.common,
    };
    let plan = common.plan()?;
    writeln!(std::io::stderr(), "seed {}", plan.seed).context("write to stderr")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let run = async {
        match command {
            Command::Chaos(args) if args.faults == [Fault::Rolling] => rolling::run(common, &plan).await,
            Command::Chaos(args) => chaos(args, &plan).await,
            Command::Rolling(_) => rolling::run(common, &plan).await,
            Command::Outage(_) => outage::run(common, &plan).await,
            Command::Neighbour(args) => neighbour::run(args, &plan).await,
            Command::Cron(args) => cron::run(args, &plan).await,
        }
    };
    // What is dropped here takes its processes along.
    let report = tokio::select! {
        report = run => report?,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("interrupted"),
    };
    let text = match common.output {
        Output::Table => report.table(),
        Output::Json => report.json().context("write the verdict")? + "\n",
    };
    std::io::stdout().write_all(text.as_bytes()).context("write to stdout")?;
    anyhow::ensure!(report.is_kept(), "a promise was broken (seed {})", plan.seed);
    anyhow::ensure!(report.verdict.accepted > 0, "not one message was accepted");
    Ok(())
}

async fn chaos(args: &ChaosArgs, plan: &Plan) -> anyhow::Result<Report> {
    let common = &args.common;
    let chosen = if args.faults.is_empty() { Fault::all() } else { args.faults.clone() };
    let planned = faults::plan(plan.seed, common.seconds, LEASE, &chosen);
    let world = Arc::new(World::start(plan).await?);
    let traffic = Traffic::start(&world, &common.load(plan.seed))?;
    let struck = Struck::default();
    let start = Instant::now();
    let mut injecting = JoinSet::new();
    for one in planned {
        sleep_until(start + one.at).await;
        note(&world, &format!("{} (lasts {:.1} s)", one.fault.name(), one.lasts.as_secs_f64()))?;
        injecting.spawn(inject::inject(Arc::clone(&world), one, struck.clone()));
    }
    sleep_until(start + common.seconds).await;
    traffic.stop();
    while injecting.join_next().await.is_some() {}
    inject::heal(&world);
    finish("chaos", common, plan, world, traffic, struck.by_name(&chosen)).await
}

/// One line of what is going on, for people.
fn note(world: &World, what: &str) -> anyhow::Result<()> {
    writeln!(std::io::stderr(), "{:8.3} {what}", world.recorder.now()).context("write to stderr")
}

/// Waits until everything is answered and quiet, judges, and ends the world.
async fn finish(
    name: &'static str,
    common: &Common,
    plan: &Plan,
    world: Arc<World>,
    traffic: Traffic,
    faults: std::collections::BTreeMap<String, u64>,
) -> anyhow::Result<Report> {
    let drained = drain(common, &world, traffic).await;
    let record = world.record();
    let mut surprises = world.surprises();
    surprises.extend(record.refused.iter().cloned());
    if let Some(logs) = &common.logs {
        world.keep(logs).await?;
    }
    let verdict = checker::check(&record);
    let last = record.shown.last().map_or(0.0, |shown| shown.at);
    let first = record.said.first().map_or(0.0, |said| said.at);
    let report = Report {
        run: name,
        seed: plan.seed,
        seconds: common.seconds.as_secs_f64(),
        chats: common.chats,
        replicas: plan.replicas,
        workers: world.workers.len(),
        tools: plan.binaries.join("hermes-drill-worker").is_file(),
        messages_per_s: rounded(checker::answered(&record.shown).len() as f64 / (last - first).max(1.0)),
        drain_s: rounded(drained.as_secs_f64()),
        verdict,
        faults,
        surprises,
        conditions: Vec::new(),
    };
    if let Some(world) = Arc::into_inner(world) {
        world.end().await;
    }
    Ok(report)
}

/// How long it took until everything was answered, and a quiet time more; bounded.
async fn drain(common: &Common, world: &World, traffic: Traffic) -> Duration {
    let start = Instant::now();
    let end = start + common.drain;
    traffic.end(common.drain).await;
    let mut shown = 0;
    let mut quiet_since = Instant::now();
    loop {
        let record = world.record();
        let now = Instant::now();
        if record.shown.len() != shown || checker::open(&record) > 0 {
            (shown, quiet_since) = (record.shown.len(), now);
        }
        if now >= end || now.duration_since(quiet_since) >= QUIET {
            return quiet_since.duration_since(start);
        }
        sleep(LOOK_EVERY).await;
    }
}
