//! The flags of `cron …`; parsed by `main`, read by the cron commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use hermes_core::cron::Missed;

use super::{LimitArgs, duration};

/// `cron …`
#[derive(Debug, Subcommand)]
pub(crate) enum CronCommand {
    /// Make a job: an agent is told a prompt whenever a schedule says so.
    #[command(
        after_help = "Examples:\n  hermesctl cron add coder \"0 9 * * mon-fri\" \"What changed since yesterday?\" --tz Europe/Berlin --deliver telegram:-1001234\n  hermesctl cron add coder \"every 15m\" --name watch --script watch.sh --no-agent --deliver all\n  hermesctl cron add coder 30m --prompt-file todo.md --repeat 1 --run-timeout 20m\n\nA schedule is \"30m\" or \"2h\" (once, after that time), \"every 15m\", \"2027-01-31T09:00\" (once), or a cron pattern; `hermesctl cron next`\nshows what one comes to. Without --deliver the answer is kept and sent nowhere: `hermesctl cron runs` shows it."
    )]
    Add(Box<CronAddArgs>),
    /// List jobs: when each runs next, and how its last run went.
    #[command(after_help = "Examples:\n  hermesctl cron list\n  hermesctl cron list --agent coder -o json")]
    List(CronListArgs),
    /// Show everything about a job, with its next three runs.
    #[command(after_help = "Examples:\n  hermesctl cron show watch\n  hermesctl cron show watch --agent coder -o json")]
    Show(OneJob),
    /// Change a job; what is not named stays as it is.
    #[command(
        after_help = "Examples:\n  hermesctl cron edit watch --schedule \"every 30m\" --deliver origin\n  hermesctl cron edit 3f9a1c07b2de --name sentry --clear model,skills\n  hermesctl cron edit watch --prompt - < prompt.md\n\nFields that --clear makes the default: timezone, prompt, skills, deliver, repeat, paused, model, workdir, script, no_agent,\ncontext_from, missed, overlap, jitter_seconds, timeout_seconds, session, bare, mirror."
    )]
    Edit(Box<CronEditArgs>),
    /// Let a job run no more by itself; what runs goes on, what waits is cancelled.
    #[command(after_help = "Example:\n  hermesctl cron pause watch")]
    Pause(OneJob),
    /// Let a job run again from its next time on.
    #[command(after_help = "Example:\n  hermesctl cron resume watch")]
    Resume(OneJob),
    /// Run a job now, beside its schedule.
    #[command(
        after_help = "Examples:\n  hermesctl cron run watch\n  hermesctl cron run watch --wait -o json\n\nWith --wait the exit code is 1 when the run did not succeed."
    )]
    Run(CronRunArgs),
    /// Remove a job: what waits of it never runs, what runs is stopped. Its runs can be looked at by its id for a while.
    #[command(
        after_help = "Examples:\n  hermesctl cron remove watch\n  hermesctl cron remove watch --agent coder --yes"
    )]
    Remove(CronRemoveArgs),
    /// Show what became of a job's runs, the newest first.
    #[command(
        after_help = "Examples:\n  hermesctl cron runs watch -n 5\n  hermesctl cron runs watch -o json\n  hermesctl cron runs watch --slot 2027-01-31T08:00:00Z"
    )]
    Runs(CronRunsArgs),
    /// Show when a schedule runs next; asks no server.
    #[command(
        after_help = "Examples:\n  hermesctl cron next \"0 9 * * mon-fri\"\n  hermesctl cron next \"30 2 * * *\" --tz America/New_York --now 2027-03-13T00:00:00-05:00 -n 3 -o json\n  hermesctl cron next \"every 2h\"\n  hermesctl cron next \"CRON_TZ=Asia/Tokyo @daily\"\n\nA schedule is \"30m\" or \"2h\" (once, after that time), \"every 15m\", \"2027-01-31T09:00\" (once), or a cron pattern: minute,\nhour, day of month, month, day of week, then (where they are wanted) second and year. MOVED says what a clock change did: `gap`, the\ntime was left out, and this is the first instant behind; `repeat`, it comes twice, and this is one of them."
    )]
    Next(CronNextArgs),
}

/// Which job.
#[derive(Debug, Args)]
pub(crate) struct OneJob {
    /// The job: its id, or its name.
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Whose, where several agents have one of that name.
    #[arg(long, value_name = "ID")]
    pub agent: Option<String>,
}

/// What a job is, beside its schedule and its prompt.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// What it is called; a new one otherwise after its prompt, skill or script.
    #[arg(long)]
    pub name: Option<String>,
    /// A file with what the agent is told; `-` reads stdin.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// The IANA time zone of its times, for example Europe/Berlin; otherwise the document's.
    #[arg(long, value_name = "ZONE", value_parser = zone_name)]
    pub tz: Option<String>,
    /// Where the answer goes: local (nowhere), origin, all, a platform's home chat, or PLATFORM:CHAT[:THREAD]; several with commas.
    #[arg(long, value_name = "WHERE")]
    pub deliver: Option<String>,
    /// A skill whose text the agent is given; may be repeated.
    #[arg(long = "skill", value_name = "SKILL")]
    pub skills: Vec<String>,
    /// A file below the home's scripts/ that is run first; the agent is told what it prints.
    #[arg(long, value_name = "FILE")]
    pub script: Option<String>,
    /// The script alone: what it prints is the answer.
    #[arg(long)]
    pub no_agent: bool,
    /// The model in place of the agent's, as PROVIDER/MODEL.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// A folder below the home's workspace/ where its commands begin.
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// A job of the same agent whose last answer it is given; may be repeated.
    #[arg(long, value_name = "JOB")]
    pub context_from: Vec<String>,
    /// How often it runs in all; 0: for ever.
    #[arg(long, value_name = "N")]
    pub repeat: Option<u32>,
    /// What becomes of times when nobody could run it: once (the last one runs), all, "all 5" (the last five), "within 2h" (the last one, if it is no
    /// older) or skip (none; what is late by no more than half the distance of two runs, 2 minutes to 2 hours, is in time).
    #[arg(long, value_name = "POLICY", value_parser = missed)]
    pub missed: Option<String>,
    /// What becomes of a time while an earlier run goes on; with queue ten wait at most, or N where "--missed all N" says more.
    #[arg(long, value_name = "POLICY", value_parser = ["skip", "queue", "cancel"])]
    pub overlap: Option<String>,
    /// Each run begins later by up to so much, always the same for the same time.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub jitter: Option<Duration>,
    /// How long a run may take; otherwise as long as a turn may.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub run_timeout: Option<Duration>,
    /// Whether each run begins a conversation or all go on with one.
    #[arg(long, value_name = "MODE", value_parser = ["fresh", "continue"])]
    pub session: Option<String>,
    /// Deliver the answer without the lines that say which job it is from.
    #[arg(long)]
    pub bare: bool,
    /// What is delivered to the chat it was made in becomes part of the conversation there.
    #[arg(long)]
    pub mirror: bool,
}

/// `cron add`
#[derive(Debug, Args)]
pub(crate) struct CronAddArgs {
    /// Whose.
    #[arg(value_name = "AGENT")]
    pub agent: String,
    /// When.
    #[arg(value_name = "SCHEDULE")]
    pub schedule: String,
    /// What the agent is told; `-` reads stdin.
    #[arg(value_name = "PROMPT")]
    pub prompt: Option<String>,
    /// What it is.
    #[command(flatten)]
    pub job: JobArgs,
    /// It does not run by itself until it is resumed.
    #[arg(long)]
    pub paused: bool,
}

/// `cron edit`
#[derive(Debug, Args)]
pub(crate) struct CronEditArgs {
    /// Which.
    #[command(flatten)]
    pub of: OneJob,
    /// When.
    #[arg(long, value_name = "SCHEDULE")]
    pub schedule: Option<String>,
    /// What the agent is told; `-` reads stdin.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// What it is.
    #[command(flatten)]
    pub job: JobArgs,
    /// A field that becomes the default, for example model; may be repeated.
    #[arg(long, value_name = "FIELD", value_delimiter = ',')]
    pub clear: Vec<String>,
    /// Refuse when the job is no longer at this version.
    #[arg(long, value_name = "N")]
    pub expected_version: Option<i64>,
}

/// `cron list`
#[derive(Debug, Args)]
pub(crate) struct CronListArgs {
    /// Only those of this agent.
    #[arg(long, value_name = "ID")]
    pub agent: Option<String>,
    /// How many.
    #[command(flatten)]
    pub limit: LimitArgs,
}

/// `cron run`
#[derive(Debug, Args)]
pub(crate) struct CronRunArgs {
    /// Which.
    #[command(flatten)]
    pub of: OneJob,
    /// Wait until the run is over.
    #[arg(long)]
    pub wait: bool,
}

/// `cron remove`
#[derive(Debug, Args)]
pub(crate) struct CronRemoveArgs {
    /// Which.
    #[command(flatten)]
    pub of: OneJob,
    /// Do not ask.
    #[arg(long, short = 'y')]
    pub yes: bool,
}

/// `cron runs`
#[derive(Debug, Args)]
pub(crate) struct CronRunsArgs {
    /// Which.
    #[command(flatten)]
    pub of: OneJob,
    /// How many; without it the whole history.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Show the run of this time alone, with what its agent said.
    #[arg(long, value_name = "SLOT", conflicts_with = "count")]
    pub slot: Option<String>,
}

/// `cron next`
#[derive(Debug, Args)]
pub(crate) struct CronNextArgs {
    /// The schedule.
    #[arg(value_name = "SCHEDULE", allow_hyphen_values = true)]
    pub schedule: String,
    /// The IANA time zone whose wall clock counts, for example Europe/Berlin.
    #[arg(long, value_name = "ZONE", default_value = "UTC", value_parser = zone)]
    pub tz: jiff::tz::TimeZone,
    /// From when on, for example 2027-03-13T00:00:00-05:00 [default: now]
    #[arg(long, value_name = "TIME", value_parser = instant)]
    pub now: Option<jiff::Timestamp>,
    /// How many runs.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub count: u16,
}

fn zone(name: &str) -> Result<jiff::tz::TimeZone, String> {
    jiff::tz::TimeZone::get(name)
        .map_err(|_| "there is no such time zone; write one as in Europe/Berlin or UTC".to_owned())
}

fn instant(text: &str) -> Result<jiff::Timestamp, String> {
    text.parse().map_err(|_| {
        "write a time with its distance from UTC, as in 2027-03-13T00:00:00-05:00 or 2027-03-13T05:00:00Z".to_owned()
    })
}

fn zone_name(name: &str) -> Result<String, String> {
    zone(name).map(|_| name.to_owned())
}

fn missed(text: &str) -> Result<String, String> {
    text.parse::<Missed>().map(|policy| policy.to_string()).map_err(|error| error.to_string())
}
