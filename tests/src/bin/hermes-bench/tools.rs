//! What a tool call costs beside what it does: a command in an agent's turn, and the same command run bare.
//!
//! Called by `main` for the subcommand. The model server is in this process, so that it sees how long each step takes: from its
//! reply that asks for a tool to the request that brings the result. In between lie the reply's way through the control plane,
//! the journal's commits, the boundary around the process, the process, and the next request's way. Always true: the kinds are
//! measured in turns of the same run, one after the other, so that what the machine does otherwise falls on all of them; nothing
//! else runs meanwhile; each turn is the first of its chat, so that none carries what was said before. The first round of each is
//! not counted.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::Output;
use crate::grpc::Caller;
use crate::plane::{Plane, Setup};
use crate::tally::{Percentiles, Tally};
use crate::usage::Role;

/// Calls of one turn; a turn has at most 90 model calls.
const CALLS: u64 = 40;
/// What is run, by a shell as the agent's tool does.
const COMMAND: &str = "true";
/// How long everything rests before the worker's memory is looked at, and after it.
const REST: Duration = Duration::from_secs(3);

/// `hermes-bench tools`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rounds that count, of 40 calls of each kind.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
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

/// The figures. Times are milliseconds; megabytes are 10⁶ bytes.
#[derive(Debug, Serialize)]
struct Figures {
    /// Of each kind.
    calls: u32,
    /// A step with the command in it, as the model sees it.
    terminal: Quantiles,
    /// A step that reads a file: what the boundary costs without a command.
    read_file: Quantiles,
    /// A step that the control plane does and journals in one commit: what a step costs without a process.
    todo: Quantiles,
    /// The command by itself.
    bare: Quantiles,
    /// The middle of `terminal` without that of `bare`.
    overhead_p50: f64,
    /// Resident memory of the worker before its first turn and after the last.
    worker_rss_mb: [Option<f64>; 2],
}

#[derive(Debug, Serialize)]
struct Quantiles {
    p50: f64,
    p95: f64,
    max: f64,
}

/// A model that asks as often as it is told for the tool that it is told, and notes how long each step took.
struct Stopwatch {
    model: MockModel,
    steps: Arc<Mutex<Steps>>,
}

#[derive(Default)]
struct Steps {
    asked: Option<Instant>,
    took: Vec<Duration>,
}

/// Measures and prints.
///
/// # Errors
/// When something does not start, ends early, answers amiss or cannot be stopped.
pub(crate) async fn run(args: &Args, interrupted: impl Future<Output = anyhow::Error>) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let binaries = args.bin_dir.as_deref().or(program.parent()).context("find its folder")?;
    let watch = Stopwatch::start().await?;
    let url = watch.model.base_url();
    let setup = Setup { binaries, bound_by: Some(&program), model_url: &url, telegram: None, otlp: None };
    let mut plane = Plane::start(&setup)?;
    let measured = tokio::select! {
        figures = measure(args, &watch, &mut plane) => figures,
        error = interrupted => Err(error),
    };
    let kept = args.log.as_deref().map_or(Ok(()), |path: &Path| plane.keep_log(path));
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

async fn measure(args: &Args, watch: &Stopwatch, plane: &mut Plane) -> anyhow::Result<Figures> {
    let access = plane.ready().await?;
    let caller = Caller::connect(&access.grpc_url, &access.token, 1 + 3 * (args.rounds + 1)).await?;
    plane.meanwhile(sleep(REST)).await?;
    let before = plane.usage()?.largest_mb(Role::Worker);
    let file = json!({"path": "bench.txt", "content": "a line\n"});
    plane.meanwhile(watch.turn(&caller, 0, ("write_file", &file, 1))).await??;

    let from = Instant::now();
    let [terminal, read_file, todo, bare] = [(); 4].map(|()| Tally::new(from));
    let (command, path) = (json!({ "command": COMMAND }), json!({"path": "bench.txt"}));
    let kinds = [(&terminal, "terminal", &command), (&read_file, "read_file", &path), (&todo, "todo", &json!({}))];
    let mut chats = 1..;
    for round in 0..=args.rounds {
        for ((tally, tool, arguments), chat) in kinds.into_iter().zip(&mut chats) {
            let took = plane.meanwhile(watch.turn(&caller, chat, (tool, arguments, CALLS))).await??;
            note(tally, from, took.into_iter().filter(|_| round > 0));
        }
        let took = plane.meanwhile(run_bare()).await??;
        note(&bare, from, took.into_iter().filter(|_| round > 0));
    }
    plane.meanwhile(sleep(REST)).await?;
    let after = plane.usage()?.largest_mb(Role::Worker);
    let quantiles = |tally: &Tally| tally.percentiles().map(Quantiles::from).context("nothing was measured");
    let (terminal, bare) = (quantiles(&terminal)?, quantiles(&bare)?);
    Ok(Figures {
        calls: args.rounds.saturating_mul(u32::try_from(CALLS).unwrap_or(u32::MAX)),
        overhead_p50: rounded(terminal.p50 - bare.p50),
        terminal,
        read_file: quantiles(&read_file)?,
        todo: quantiles(&todo)?,
        bare,
        worker_rss_mb: [before, after],
    })
}

fn note(tally: &Tally, from: Instant, took: impl Iterator<Item = Duration>) {
    took.for_each(|took| tally.answered(from, took));
}

/// How long the command takes that nobody watches over.
async fn run_bare() -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::new();
    for _ in 0..CALLS {
        let began = Instant::now();
        let mut command = Command::new("/bin/bash");
        command.args(["-c", COMMAND]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.kill_on_drop(true).output().await.context("run the bare command")?;
        anyhow::ensure!(output.status.success(), "the bare command failed: {}", output.status);
        took.push(began.elapsed());
    }
    Ok(took)
}

impl Stopwatch {
    async fn start() -> anyhow::Result<Self> {
        let model = MockModel::start().await.context("start the model server")?;
        let steps: Arc<Mutex<Steps>> = Arc::default();
        let noted = Arc::clone(&steps);
        model.respond(move |body| {
            let messages = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
            let begun = messages.iter().rposition(|message| message["role"] == "user").unwrap_or_default();
            let this_turn = messages.get(begun..).unwrap_or_default();
            let done = this_turn.iter().filter(|message| message["role"] == "tool").count();
            let told = this_turn.first().and_then(|said| said["content"].as_str()).unwrap_or_default();
            let (tool, arguments, times): (String, Value, usize) = serde_json::from_str(told).unwrap_or_default();
            let mut steps = noted.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(asked) = steps.asked.take() {
                steps.took.push(asked.elapsed());
            }
            if done == times {
                let last = this_turn.last().and_then(|result| result["content"].as_str()).unwrap_or_default();
                return Behaviour::Say(last.to_owned());
            }
            steps.asked = Some(Instant::now());
            Behaviour::Ask(String::new(), vec![Call::new(&format!("call-{done}"), &tool, &arguments.to_string())])
        });
        Ok(Self { model, steps })
    }

    /// A turn that makes this call so often; how long each took.
    async fn turn(
        &self,
        caller: &Caller,
        chat: u32,
        (tool, arguments, times): (&str, &Value, u64),
    ) -> anyhow::Result<Vec<Duration>> {
        let reply = caller.ask(chat, json!([tool, arguments, times]).to_string()).await?;
        let took = std::mem::take(&mut self.steps.lock().unwrap_or_else(PoisonError::into_inner).took);
        let failed = reply.starts_with("Error") || !u64::try_from(took.len()).is_ok_and(|count| count == times);
        anyhow::ensure!(!failed, "{tool} was called {} times and came to: {reply}", took.len());
        Ok(took)
    }
}

impl From<Percentiles> for Quantiles {
    fn from(all: Percentiles) -> Self {
        Self { p50: rounded(all.p50), p95: rounded(all.p95), max: rounded(all.max) }
    }
}

fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

impl Figures {
    fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} calls of each kind, ms{:>21} {:>8} {:>8}", self.calls, "p50", "p95", "max");
        let rows = [
            ("terminal `true`, a step of a turn", &self.terminal),
            ("read_file, a step of a turn", &self.read_file),
            ("todo, a step of a turn", &self.todo),
            ("bash -c true, bare", &self.bare),
        ];
        for (name, Quantiles { p50, p95, max }) in rows {
            let _ = writeln!(text, "{name:<38} {p50:>8.2} {p95:>8.2} {max:>8.2}");
        }
        let _ = writeln!(text, "{:<38} {:>8.2}", "terminal beyond bare", self.overhead_p50);
        let [before, after] = self.worker_rss_mb.map(|mb| mb.map_or("?".to_owned(), |mb| format!("{mb:.1}")));
        let _ = writeln!(text, "RSS of the worker: {before} MB before its first turn, {after} MB after the last");
        text
    }
}
