//! The command line as types. Parsed by `main`, read by the commands. Nothing here opens a file or a connection; what a
//! flag may contain is judged by the control plane unless it cannot even be sent. Always true: every command has an
//! example in its `--help`, and no help text shows the value of an environment variable.

mod agent;
mod approval;
mod budget;
mod cron;
mod curator;
mod delivery;
mod home;
mod pairing;
mod route;
mod source;
mod token;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub(crate) use self::agent::{AgentAddArgs, AgentCommand, AgentMcpCommand, AgentRemoveArgs, AgentUpdateArgs, SpecArgs};
pub(crate) use self::approval::{ApprovalCommand, ApprovalListArgs, Reach};
pub(crate) use self::budget::{BudgetCommand, BudgetRaiseArgs, BudgetShowArgs};
pub(crate) use self::cron::{
    CronAddArgs, CronCommand, CronEditArgs, CronListArgs, CronNextArgs, CronRemoveArgs, CronRunArgs, CronRunsArgs,
    JobArgs, OneJob,
};
pub(crate) use self::curator::{CuratorCommand, OneSkill};
pub(crate) use self::delivery::{
    DeadCommand, DeadListArgs, DeadTurnsArgs, DeliveryCommand, DeliveryListArgs, DeliveryRedriveArgs,
    State as DeliveryState,
};
pub(crate) use self::home::{EditArgs, ExportArgs, FilesArgs, FilesCommand, ImportArgs};
pub(crate) use self::pairing::{PairingApproveArgs, PairingCommand, PairingRevokeArgs};
pub(crate) use self::route::{ExplainArgs, RouteAddArgs, RouteCommand};
pub(crate) use self::source::{SendArgs, SessionCommand, SessionKeyArgs, SessionListArgs, SourceArgs};
pub(crate) use self::token::{Role, TokenCommand, TokenCreateArgs};

/// Runs and steers a Hermes control plane: many agents, many chat platforms, one place that decides who answers.
#[derive(Debug, Parser)]
#[command(
    name = "hermesctl",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = false,
    after_help = "Examples:\n  hermesctl up\n  hermesctl agent add coder --model builtin/echo\n  hermesctl chat coder hello\n\nExit codes: 0 done, 1 refused or failed, 2 wrong usage."
)]
pub(crate) struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// What stdout carries: a table for people, JSON or YAML for programs.
    #[arg(short = 'o', long, global = true, value_enum, default_value_t = Format::Table, help_heading = "Output")]
    pub output: Format,
    /// Where the control plane listens for gRPC, for example http://127.0.0.1:7070.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "HERMES_SERVER",
        hide_env_values = true,
        help_heading = "Connection"
    )]
    pub server: Option<String>,
    /// The bearer token. Other users of this machine can read arguments: prefer --token-file or the variable.
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "HERMES_TOKEN",
        hide_env_values = true,
        allow_hyphen_values = true,
        help_heading = "Connection"
    )]
    pub token: Option<String>,
    /// A file that holds the bearer token.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub token_file: Option<PathBuf>,
    /// PEM certificates to trust when the server's URL is https; without it the system's.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "HERMES_CA_FILE",
        hide_env_values = true,
        help_heading = "Connection"
    )]
    pub ca_file: Option<PathBuf>,
    /// The data directory of an `up` on this machine; its endpoint and operator token are found there.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "HERMES_DATA_DIR",
        hide_env_values = true,
        help_heading = "Connection"
    )]
    pub data_dir: Option<PathBuf>,
    /// How long one call may take, for example 30s or 2m. Waiting for an agent's answer is not limited by it.
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = duration, help_heading = "Connection")]
    pub timeout: Duration,
}

/// What stdout carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For programs and files.
    Yaml,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start Postgres, the control plane and its workers on this machine, until Ctrl-C.
    #[command(
        after_help = "Example:\n  hermesctl up --config hermes.yaml\n\nstdout carries one line, `ready grpc=… http=…`; everything else goes to stderr."
    )]
    Up(UpArgs),
    /// Show what runs and what waits.
    #[command(after_help = "Example:\n  hermesctl status -o json")]
    Status,
    /// Register, change and remove agents.
    #[command(subcommand, after_help = "Example:\n  hermesctl agent add coder --model builtin/echo")]
    Agent(AgentCommand),
    /// Decide which agent answers whom.
    #[command(
        subcommand,
        after_help = "Example:\n  hermesctl route add --agent coder --match platform=telegram --match chat_id=-1001234"
    )]
    Route(RouteCommand),
    /// Merge a document: what it names becomes as written, what it does not name stays.
    #[command(
        after_help = "Example:\n  hermesctl apply -f hermes.yaml\n\nOn any fault nothing is changed, every fault is listed and the exit code is 1."
    )]
    Apply(DocumentArgs),
    /// Show what `apply` would do; the exit code is 0 when nothing differs, else 1.
    #[command(after_help = "Example:\n  hermesctl diff -f hermes.yaml")]
    Diff(DocumentArgs),
    /// Print the stored document; applied again it changes nothing.
    #[command(after_help = "Example:\n  hermesctl export > hermes.yaml")]
    Export,
    /// Talk to an agent; without TEXT each line typed is one message.
    #[command(
        after_help = "Examples:\n  hermesctl chat coder \"what can you do?\"\n  hermesctl chat coder\n\nIn a dialogue Ctrl-C stops waiting for the answer (the agent goes on); Ctrl-D or `exit` leaves."
    )]
    Chat(ChatArgs),
    /// Submit one message as if it came from a platform.
    #[command(
        after_help = "Example:\n  hermesctl send --platform telegram --chat-id -1001234 --chat-type group --user-id 42 --text hello --wait -o json\n\nWith --wait the exit code is 1 when the turn did not succeed."
    )]
    Send(SendArgs),
    /// Look at sessions, stop what runs in them, compute session keys.
    #[command(subcommand, after_help = "Example:\n  hermesctl session list --agent coder")]
    Session(SessionCommand),
    /// Look at what a turn did, step by step, and stop it.
    #[command(subcommand, after_help = "Example:\n  hermesctl turn show t1234.5")]
    Turn(TurnCommand),
    /// Look at replies on their way into chats, and send given-up ones again.
    #[command(subcommand, after_help = "Example:\n  hermesctl delivery list --state dead")]
    Delivery(DeliveryCommand),
    /// Look at messages that were given up, and try or drop them.
    #[command(subcommand, after_help = "Example:\n  hermesctl dead list")]
    Dead(DeadCommand),
    /// Look at what agents and users spend on models, raise limits for a time, pause agents.
    #[command(subcommand, after_help = "Example:\n  hermesctl budget show")]
    Budget(BudgetCommand),
    /// Look at calls that wait for somebody to allow them, and answer.
    #[command(subcommand, after_help = "Example:\n  hermesctl approval list")]
    Approval(ApprovalCommand),
    /// Look after the skills that agents made: which are used, which go into the archive and come back.
    #[command(subcommand, after_help = "Example:\n  hermesctl curator status coder")]
    Curator(CuratorCommand),
    /// Look at strangers who wait to be heard by an account, approve and revoke.
    #[command(subcommand, after_help = "Example:\n  hermesctl pairing list")]
    Pairing(PairingCommand),
    /// Make, change, look at and run scheduled jobs, and see when schedules run.
    #[command(
        subcommand,
        after_help = "Examples:\n  hermesctl cron add coder \"0 9 * * mon-fri\" \"What changed since yesterday?\" --deliver telegram:-1001234\n  hermesctl cron list"
    )]
    Cron(CronCommand),
    /// Look at the connected workers.
    #[command(subcommand, after_help = "Example:\n  hermesctl worker list")]
    Worker(WorkerCommand),
    /// Make and revoke tokens.
    #[command(subcommand, after_help = "Example:\n  hermesctl token create --role api --name dashboard")]
    Token(TokenCommand),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  hermesctl completion bash > /etc/bash_completion.d/hermesctl")]
    Completion {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// Flags of `up`, handed to `hermes-control-plane dev` as they are.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// A document that is applied at the start when it changed since the last one.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// An existing Postgres to use. A password in it is visible to other users here: prefer DATABASE_URL.
    #[arg(long, value_name = "URL")]
    pub database_url: Option<OsString>,
    /// Address for operators and clients.
    #[arg(long, value_name = "ADDR")]
    pub grpc_addr: Option<OsString>,
    /// Address of the HTTP API.
    #[arg(long, value_name = "ADDR")]
    pub http_addr: Option<OsString>,
    /// Address for workers.
    #[arg(long, value_name = "ADDR")]
    pub worker_addr: Option<OsString>,
}

/// How much of a list.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct LimitArgs {
    /// Stop after this many; without it the whole list.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

/// `apply` and `diff`
#[derive(Debug, Args)]
pub(crate) struct DocumentArgs {
    /// The document; `-` reads stdin.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: PathBuf,
    /// Also remove the agents, providers and accounts that the document does not name.
    #[arg(long)]
    pub prune: bool,
}

/// `chat`
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// The agent to talk to.
    #[arg(allow_hyphen_values = true)]
    pub agent: String,
    /// The message; several words are joined by blanks. Write `--` before a text that begins with a dash.
    pub text: Vec<String>,
    /// Which dialogue: the same id continues it. Without it, one per login name.
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    pub chat_id: Option<String>,
}

/// `turn …`
#[derive(Debug, Subcommand)]
pub(crate) enum TurnCommand {
    /// Show a turn and the steps of its journal: model replies that asked for tools, and tool calls.
    #[command(
        after_help = "Example:\n  hermesctl turn show t1234.5 --full\n\nA tool call has an intent, written before it, and a result. `unknown` is the result of a call that was cut off: nobody\nknows whether it happened, and it was not repeated."
    )]
    Show(TurnShowArgs),
    /// Stop a turn: only this one, whatever runs when the command arrives.
    #[command(after_help = "Example:\n  hermesctl turn stop t1234.5")]
    Stop {
        /// The turn.
        #[arg(value_name = "TURN")]
        id: String,
    },
}

/// `turn show`
#[derive(Debug, Args)]
pub(crate) struct TurnShowArgs {
    /// The turn, as `send` and `session show` name it.
    #[arg(value_name = "TURN")]
    pub turn: String,
    /// Also the content of each step.
    #[arg(long)]
    pub full: bool,
    /// How many rows of the journal.
    #[command(flatten)]
    pub limit: LimitArgs,
}

/// `worker …`
#[derive(Debug, Subcommand)]
pub(crate) enum WorkerCommand {
    /// List the workers that are connected.
    #[command(after_help = "Example:\n  hermesctl worker list -o json")]
    List(LimitArgs),
    /// Part with workers: they take nothing new, end or hand back what runs, and exit. Who starts them starts new ones.
    #[command(
        after_help = "Examples:\n  hermesctl worker drain 7\n  hermesctl worker drain --agent coder --grace 2m --wait\n  hermesctl worker drain --all --wait"
    )]
    Drain(DrainArgs),
}

/// `worker drain`
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Which workers, as `worker list` numbers them.
    #[arg(value_name = "WORKER", required_unless_present_any = ["agent", "all"], conflicts_with_all = ["agent", "all"])]
    pub workers: Vec<u64>,
    /// Those of this agent.
    #[arg(long, value_name = "ID", conflicts_with = "all")]
    pub agent: Option<String>,
    /// All of them.
    #[arg(long)]
    pub all: bool,
    /// How long what runs may go on before it is handed back.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub grace: Duration,
    /// Wait until they are gone.
    #[arg(long)]
    pub wait: bool,
}

/// `90`, `90s`, `10m`, `12h` or `7d`; never zero.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!("\"{}\" is no duration: write a whole number with s, m, h or d, for example 10m", text.escape_debug())
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text.get(digits.len()..).ok_or_else(wrong)? {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_ignored| wrong())?;
    match number.checked_mul(unit) {
        Some(seconds @ 1..=3_155_760_000) => Ok(Duration::from_secs(seconds)),
        Some(0) => Err("it must be longer than zero".to_owned()),
        _ => Err("it must be at most 100 years".to_owned()),
    }
}

#[cfg(test)]
mod tests;
