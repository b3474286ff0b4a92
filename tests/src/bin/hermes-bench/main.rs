//! `hermes-bench`: how many messages a second, how fast, and at what cost, with everything on this machine.
//!
//! Run by people and by CI. It starts the binaries beside itself (`hermesctl up` in a temporary directory), a model server in
//! a process of its own and, for Telegram's surface, a Bot API server in this one; plays N chats, each a closed loop of
//! "send, wait for the reply that names this very message"; then measures what the same Postgres can do alone. Always
//! true: only the processes below `up` count as ours; everything it started is gone when it ends, however it ends. It
//! judges nothing: the figures are for whoever compares.

mod chaos;
mod floor;
mod grpc;
mod idle;
mod ledger;
mod load;
mod outside;
mod plane;
mod report;
mod scale;
mod tally;
mod telegram;
mod tools;
mod usage;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use hermes_tests::fake_telegram::FakeTelegram;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::load::Load;
use crate::outside::{HungCollector, ModelServer};
use crate::plane::{Access, Plane, Setup, Telegram};
use crate::report::{Report, Seen, Settings};
use crate::tally::Tally;

const EXAMPLE: &str = "Examples:
  cargo build --release
  target/release/hermes-bench --surface telegram --chats 32 --seconds 10
  target/release/hermes-bench --surface grpc --chats 128 --seconds 10 -o json
  target/release/hermes-bench --surface telegram --chats 32 --seconds 10 --otlp-hung
  target/release/hermes-bench idle --workers 100 --seconds 30
  target/release/hermes-bench tools
  target/release/hermes-bench scale --sessions 1000000 --turns 5000000

The Telegram account runs without bounds of its own (`rate: off`, `inbound_per_second: 0`), against a
Bot API server on this machine. CPU and memory are those of the control plane, the workers and Postgres; this program, its
Bot API server and the model server are shown apart. The floor is what the same Postgres does with
nothing else running: 32 connections, each looping the four transactions of a turn, loops a second.";

/// Measures the release binaries beside it: messages a second, latency, CPU and memory, beside the floor of Postgres.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLE, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Args {
    /// Through which protocol the messages come.
    #[arg(long, required = true)]
    surface: Option<Surface>,
    /// How many chats, each with at most one message on its way.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    chats: u32,
    /// How long is measured, after the warm-up.
    #[arg(long, default_value = "10", value_parser = seconds)]
    seconds: Duration,
    /// How long is not measured, before that.
    #[arg(long, default_value = "2", value_parser = seconds)]
    warm_up: Duration,
    /// How the figures are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Where hermesctl, hermes-control-plane and hermes-worker are. Default: beside this program.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// How long the floor of Postgres is measured.
    #[arg(long, default_value = "5", value_parser = seconds)]
    floor_seconds: Duration,
    /// Leaves the floor of Postgres out.
    #[arg(long)]
    no_floor: bool,
    /// Sends traces and metrics there (OTLP over gRPC, for example http://127.0.0.1:4317).
    #[arg(long, value_name = "URL", conflicts_with = "otlp_hung")]
    otlp: Option<String>,
    /// Sends traces and metrics to a collector that accepts and never answers.
    #[arg(long)]
    otlp_hung: bool,
    /// Keeps a copy of what the measured processes logged.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    #[command(subcommand)]
    inside: Option<Inside>,
}

/// Other runs, and what this program starts of itself.
#[derive(Debug, Subcommand)]
enum Inside {
    #[command(flatten)]
    Chaos(chaos::Command),
    /// Measures what a plane with many workers and nothing to do costs: queries a second, CPU.
    Idle(idle::Args),
    /// Measures what a tool call of an agent costs beside the same command run bare.
    Tools(tools::Args),
    /// Fills a database with sessions and ended turns.
    Seed(scale::SeedArgs),
    /// Measures the same load before and after a plane has a large history.
    Scale(scale::Args),
    /// The model server: says its base URL and runs until its standard input ends.
    #[command(name = outside::MODEL_SERVER, hide = true)]
    ModelServer,
    /// Becomes another program that ends with this one's parent.
    #[command(name = plane::RUN_BOUND, hide = true)]
    RunBound {
        /// Pid of the parent.
        parent: u32,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        program: Vec<OsString>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Surface {
    /// Long polling of a Bot API server, one bot, private chats.
    Telegram,
    /// MessageService.SubmitAndStream.
    Grpc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    let time = Duration::try_from_secs_f64(number).map_err(|error| error.to_string())?;
    let sensible = time >= Duration::from_millis(100) && time <= Duration::from_secs(3600);
    sensible.then_some(time).ok_or_else(|| "must be between 0.1 and 3600 seconds".to_owned())
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = match (&args.inside, args.surface) {
        (Some(Inside::Idle(args)), _) => idle(args).await,
        (Some(Inside::Tools(args)), _) => tools(args).await,
        (Some(Inside::Seed(args)), _) => scale::seed(args).await,
        (Some(Inside::Scale(args)), _) => scale(args).await,
        (Some(Inside::ModelServer), _) => outside::serve_model().await,
        (Some(Inside::RunBound { parent, program }), _) => plane::run_bound(*parent, program),
        (Some(Inside::Chaos(command)), _) => chaos::run(command).await,
        (None, Some(surface)) => bench(&args, surface).await,
        (None, None) => Err(anyhow::anyhow!("say --surface telegram or --surface grpc")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "hermes-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Listens for Ctrl-C and SIGTERM; what it answers comes to an error when one of them is there.
fn interruption() -> anyhow::Result<impl Future<Output = anyhow::Error>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    Ok(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        anyhow::anyhow!("interrupted")
    })
}

async fn idle(args: &idle::Args) -> anyhow::Result<()> {
    idle::run(args, interruption()?).await
}

async fn tools(args: &tools::Args) -> anyhow::Result<()> {
    tools::run(args, interruption()?).await
}

async fn scale(args: &scale::Args) -> anyhow::Result<()> {
    scale::run(args, interruption()?).await
}

async fn bench(args: &Args, surface: Surface) -> anyhow::Result<()> {
    let interrupted = interruption()?;
    let program = std::env::current_exe().context("find this program")?;
    let binaries = args.bin_dir.as_deref().or(program.parent()).context("find its folder")?;

    let world = Outside::start(args, surface).await?;
    let setup = Setup {
        binaries,
        bound_by: Some(&program),
        model_url: world.model.base_url(),
        telegram: world.telegram.as_ref().map(|(_, base)| Telegram { api_base: base, token: telegram::TOKEN }),
        otlp: world.otlp.as_deref(),
    };
    let mut plane = Plane::start(&setup)?;
    let measured = tokio::select! {
        report = measure(args, surface, &world, &mut plane) => report,
        error = interrupted => Err(error),
    };
    let kept = args.log.as_deref().map_or(Ok(()), |path| plane.keep_log(path));
    let stopped = plane.stop().await;
    let report = measured?;
    kept?;
    let text = match args.output {
        Output::Table => report.table(),
        Output::Json => report.json().context("write the figures")? + "\n",
    };
    std::io::stdout().write_all(text.as_bytes()).context("write to stdout")?;
    stopped?;
    anyhow::ensure!(report.has_answers(), "not one message was answered; --log FILE keeps what the processes logged");
    Ok(())
}

/// What stands around the measured processes.
struct Outside {
    model: ModelServer,
    telegram: Option<(FakeTelegram, String)>,
    otlp: Option<String>,
    _collector: Option<HungCollector>,
}

impl Outside {
    async fn start(args: &Args, surface: Surface) -> anyhow::Result<Self> {
        let telegram = match surface {
            Surface::Telegram => {
                let server = FakeTelegram::start().await.context("start the Bot API server")?;
                // The bot exists before the control plane asks for it, as with the real @BotFather.
                server.bot(telegram::TOKEN);
                let base = server.base();
                Some((server, base))
            }
            Surface::Grpc => None,
        };
        let collector = if args.otlp_hung { Some(HungCollector::start().await?) } else { None };
        let otlp = collector.as_ref().map(HungCollector::url).or_else(|| args.otlp.clone());
        Ok(Self { model: ModelServer::start().await?, telegram, otlp, _collector: collector })
    }
}

async fn measure(args: &Args, surface: Surface, world: &Outside, plane: &mut Plane) -> anyhow::Result<Report> {
    let access = plane.ready().await?;
    let from = Instant::now() + args.warm_up;
    let load = Load { tally: Arc::new(Tally::new(from)), until: from + args.seconds };
    let mut chats = spawn_chats(args, world, &access, &load).await?;
    let own = i32::try_from(std::process::id()).context("read this program's pid")?;
    let outside_cpu = || (usage::cpu_of(own), usage::cpu_of(world.model.pid()));

    plane.meanwhile(sleep_until(from)).await?;
    let (start, start_counts, started, start_outside) =
        (plane.usage()?, load.tally.counts(), Instant::now(), outside_cpu());
    plane.meanwhile(sleep_until(load.until)).await?;
    let (end_counts, elapsed) = (load.tally.counts(), started.elapsed().as_secs_f64());
    let (end, end_outside) = (plane.usage()?, outside_cpu());

    while let Some(ended) = plane.meanwhile(chats.join_next()).await? {
        ended.context("run the chats")??;
    }
    let after = plane.usage()?;
    let floor = match args.no_floor {
        true => None,
        false => Some(floor::measure(access.database_url()?, args.floor_seconds).await?),
    };
    let seen = Seen {
        counts: [start_counts, end_counts, load.tally.counts()],
        elapsed,
        percentiles: load.tally.percentiles(),
        cpu: end.cpu_since(&start),
        // The model server is not a child that was waited for, so its time is not in ours.
        driver_cpu: end_outside.0 - start_outside.0,
        model_cpu: end_outside.1 - start_outside.1,
        after,
        floor,
        first_fault: load.tally.first_fault(),
    };
    let settings = Settings {
        surface: match surface {
            Surface::Telegram => "telegram",
            Surface::Grpc => "grpc",
        },
        chats: args.chats,
        seconds: args.seconds.as_secs_f64(),
        warm_up_seconds: args.warm_up.as_secs_f64(),
        account_rate: world.telegram.as_ref().map(|_| "off"),
        model: "mock, 50 tokens at once, streamed",
        otlp: world.otlp.clone().map(|url| if args.otlp_hung { format!("{url} (hung)") } else { url }),
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
    };
    Ok(Report::new(settings, seen))
}

async fn spawn_chats(
    args: &Args,
    world: &Outside,
    access: &Access,
    load: &Load,
) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let mut chats = JoinSet::new();
    if let Some((server, _)) = &world.telegram {
        let bot = server.bot(telegram::TOKEN);
        for number in 0..args.chats {
            let (bot, load) = (bot.clone(), load.clone());
            chats.spawn(async move {
                telegram::chat(bot, number, load).await;
                Ok(())
            });
        }
    } else {
        let caller = grpc::Caller::connect(&access.grpc_url, &access.token, args.chats).await?;
        for number in 0..args.chats {
            chats.spawn(grpc::chat(caller.clone(), number, load.clone()));
        }
    }
    Ok(chats)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_the_fixed_one() {
        Args::command().debug_assert();
        let args =
            Args::parse_from(["hermes-bench", "--surface", "telegram", "--chats", "8", "--seconds", "3", "-o", "json"]);
        assert_eq!((args.surface, args.chats, args.output), (Some(Surface::Telegram), 8, Output::Json));
        assert_eq!(args.seconds, Duration::from_secs(3));
        assert!(Args::try_parse_from(["hermes-bench"]).is_err());
        assert!(Args::try_parse_from(["hermes-bench", "--surface", "grpc", "--chats", "0"]).is_err());
        assert!(Args::try_parse_from(["hermes-bench", "--surface", "grpc", "--seconds", "-1"]).is_err());
        assert!(Args::try_parse_from(["hermes-bench", outside::MODEL_SERVER]).unwrap().inside.is_some());
        let bound =
            Args::try_parse_from(["hermes-bench", plane::RUN_BOUND, "7", "/bin/x", "up", "--data-dir", "d"]).unwrap();
        assert!(matches!(bound.inside, Some(Inside::RunBound { parent: 7, program }) if program.len() == 4));
        let idle = Args::try_parse_from(["hermes-bench", "idle", "--workers", "7", "-o", "json"]).unwrap();
        assert!(matches!(idle.inside, Some(Inside::Idle(_))));
        assert!(Args::command().render_help().to_string().contains("--surface telegram --chats 32"));
    }
}
