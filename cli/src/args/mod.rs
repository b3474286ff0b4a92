//! The command line as types. Parsed by `main`, read by the commands. Nothing here opens a file or a connection; what a
//! flag may contain is judged by the control plane unless it cannot even be sent. Always true: every command has an
//! example in its `--help`, and no help text shows the value of an environment variable.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

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
    /// Look at sessions and compute session keys.
    #[command(subcommand, after_help = "Example:\n  hermesctl session list --agent coder")]
    Session(SessionCommand),
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

/// `agent …`
#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Register an agent; an id that was removed gets its home and sessions back.
    #[command(
        after_help = "Example:\n  hermesctl agent add coder --model anthropic/claude-opus-4-6 --soul-file SOUL.md"
    )]
    Add(AgentAddArgs),
    /// List the agents; ` *` marks the default one.
    #[command(after_help = "Example:\n  hermesctl agent list -o json")]
    List(LimitArgs),
    /// Show one agent: its model, home, routes and the beginning of its SOUL.md.
    #[command(after_help = "Example:\n  hermesctl agent show coder")]
    Show {
        /// The agent.
        #[arg(value_name = "AGENT", allow_hyphen_values = true)]
        id: String,
    },
    /// Change an agent; the change applies to the next turn that starts.
    #[command(after_help = "Example:\n  hermesctl agent update coder --model openai/gpt-5 --clear base_url")]
    Update(AgentUpdateArgs),
    /// Remove an agent; its home and sessions stay unless --purge is given.
    #[command(after_help = "Example:\n  hermesctl agent remove coder --reroute-to main")]
    Remove(AgentRemoveArgs),
    /// List the revisions of an agent, newest first.
    #[command(after_help = "Example:\n  hermesctl agent history coder")]
    History {
        /// The agent.
        #[arg(value_name = "AGENT", allow_hyphen_values = true)]
        id: String,
        /// How many.
        #[command(flatten)]
        limit: LimitArgs,
    },
    /// Make a new revision that equals an earlier one.
    #[command(after_help = "Example:\n  hermesctl agent rollback coder 3")]
    Rollback {
        /// The agent.
        #[arg(value_name = "AGENT", allow_hyphen_values = true)]
        id: String,
        /// The revision to return to.
        revision: u64,
    },
}

/// What an agent is.
#[derive(Debug, Default, Args)]
pub(crate) struct SpecArgs {
    /// The model; without it the document's `model`.
    #[arg(long, allow_hyphen_values = true)]
    pub model: Option<String>,
    /// The provider; wins over the model id's prefix.
    #[arg(long, allow_hyphen_values = true)]
    pub provider: Option<String>,
    /// An OpenAI-compatible server for this agent alone.
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// The NAME of the control plane's environment variable that holds this agent's key.
    #[arg(long, value_name = "NAME")]
    pub api_key_env: Option<String>,
    /// The home directory on the control plane's machine.
    #[arg(long, value_name = "DIR")]
    pub home_dir: Option<String>,
    /// Toolsets instead of the default ones, separated by commas; "" is none at all.
    #[arg(long, value_name = "A,B")]
    pub enabled_toolsets: Option<String>,
    /// Toolsets taken away, separated by commas.
    #[arg(long, value_name = "A,B")]
    pub disabled_toolsets: Option<String>,
    /// The text of SOUL.md; `-` reads stdin.
    #[arg(long, value_name = "FILE")]
    pub soul_file: Option<PathBuf>,
}

/// `agent add`
#[derive(Debug, Args)]
pub(crate) struct AgentAddArgs {
    /// 1 to 40 of a-z, 0-9, _ and -; first and last a letter or digit.
    #[arg(value_name = "AGENT", allow_hyphen_values = true)]
    pub id: String,
    /// What it is.
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Copy specification, SOUL, memories and skills of this agent; never sessions, jobs or secrets.
    #[arg(long, alias = "from-profile", value_name = "AGENT", allow_hyphen_values = true)]
    pub from_agent: Option<String>,
}

/// `agent update`
#[derive(Debug, Args)]
pub(crate) struct AgentUpdateArgs {
    /// The agent.
    #[arg(value_name = "AGENT", allow_hyphen_values = true)]
    pub id: String,
    /// What changes.
    #[command(flatten)]
    pub spec: SpecArgs,
    /// A field to unset, for example model; may be repeated.
    #[arg(long, value_name = "FIELD", value_delimiter = ',')]
    pub clear: Vec<String>,
    /// Refuse when the agent is no longer at this revision.
    #[arg(long, value_name = "N")]
    pub expected_revision: Option<u64>,
}

/// `agent remove`
#[derive(Debug, Args)]
pub(crate) struct AgentRemoveArgs {
    /// The agent.
    #[arg(value_name = "AGENT", allow_hyphen_values = true)]
    pub id: String,
    /// Drop the routes that name it; if it is the default agent, main becomes it.
    #[arg(long, short = 'y', conflicts_with = "reroute_to")]
    pub yes: bool,
    /// Point its routes, and the default agent if it is that, at this agent.
    #[arg(long, value_name = "AGENT", allow_hyphen_values = true)]
    pub reroute_to: Option<String>,
    /// Delete its home documents and sessions too.
    #[arg(long)]
    pub purge: bool,
}

/// How much of a list.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct LimitArgs {
    /// Stop after this many; without it the whole list.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

/// `route …`
#[derive(Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// List the routes in order; the first one that matches wins.
    #[command(after_help = "Example:\n  hermesctl route list")]
    List(LimitArgs),
    /// Add a route, at the end or before --at.
    #[command(
        after_help = "Example:\n  hermesctl route add --agent coder --match platform=telegram --match chat_id=-1001234 --at 0"
    )]
    Add(RouteAddArgs),
    /// Remove the route at an index.
    #[command(after_help = "Example:\n  hermesctl route remove 3")]
    Remove {
        /// The index `route list` shows.
        index: u64,
        /// Refuse when the table is no longer at this version.
        #[arg(long, value_name = "N")]
        expected_version: Option<u64>,
    },
    /// Say who would answer a source, and why the other routes do not match. Nothing is sent.
    #[command(
        after_help = "Examples:\n  hermesctl route explain --platform telegram --chat-id -1001234 -o json\n  hermesctl route explain --platform slack --guild-id T0ABC -f hermes.yaml\n\nWith -f the document is read and no control plane is needed."
    )]
    Explain(Box<ExplainArgs>),
}

/// `route add`
#[derive(Debug, Args)]
pub(crate) struct RouteAddArgs {
    /// Who answers.
    #[arg(long, allow_hyphen_values = true)]
    pub agent: String,
    /// A property the source must have; all of them must hold.
    #[arg(long = "match", value_name = "KEY=VALUE", required = true, allow_hyphen_values = true, value_parser = match_pair)]
    pub matches: Vec<(String, String)>,
    /// Insert before this index.
    #[arg(long, value_name = "N")]
    pub at: Option<u64>,
}

/// Where a message comes from.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SourceArgs {
    /// The platform: telegram, slack, discord, webhook …
    #[arg(long, allow_hyphen_values = true, help_heading = "Source")]
    pub platform: String,
    /// Which account (bot) on the platform.
    #[arg(long, allow_hyphen_values = true, help_heading = "Source")]
    pub account: Option<String>,
    /// The chat.
    #[arg(
        long,
        value_name = "ID",
        allow_hyphen_values = true,
        default_value = "",
        hide_default_value = true,
        help_heading = "Source"
    )]
    pub chat_id: String,
    /// dm, group, channel, thread, forum or any other text.
    #[arg(long, value_name = "TYPE", allow_hyphen_values = true, default_value = "dm", help_heading = "Source")]
    pub chat_type: String,
    /// The topic or thread inside the chat.
    #[arg(long, value_name = "ID", allow_hyphen_values = true, help_heading = "Source")]
    pub thread_id: Option<String>,
    /// The chat this one hangs under.
    #[arg(long, value_name = "ID", allow_hyphen_values = true, help_heading = "Source")]
    pub parent_chat_id: Option<String>,
    /// The sender.
    #[arg(long, value_name = "ID", allow_hyphen_values = true, help_heading = "Source")]
    pub user_id: Option<String>,
    /// A second, more stable id of the sender; preferred in session keys.
    #[arg(long, value_name = "ID", allow_hyphen_values = true, help_heading = "Source")]
    pub user_id_alt: Option<String>,
    /// The guild, workspace or team.
    #[arg(long, value_name = "ID", allow_hyphen_values = true, help_heading = "Source")]
    pub guild_id: Option<String>,
}

/// `route explain`
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The source.
    #[command(flatten)]
    pub source: SourceArgs,
    /// An agent that is already set on the source; it wins over everything.
    #[arg(long, value_name = "PRESET", allow_hyphen_values = true)]
    pub agent: Option<String>,
    /// What a select_agent hook would answer; it wins over the routes.
    #[arg(long, value_name = "AGENT", allow_hyphen_values = true)]
    pub hook_result: Option<String>,
    /// Explain by this document instead of the stored one; `-` reads stdin.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: Option<PathBuf>,
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

/// `send`
#[derive(Debug, Args)]
pub(crate) struct SendArgs {
    /// The source.
    #[command(flatten)]
    pub source: SourceArgs,
    /// The sender's display name.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, help_heading = "Source")]
    pub user_name: Option<String>,
    /// The chat's display name.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, help_heading = "Source")]
    pub chat_name: Option<String>,
    /// The platform's id of this message; the same id sent again is the same message.
    #[arg(long, value_name = "ID", allow_hyphen_values = true, help_heading = "Source")]
    pub message_id: Option<String>,
    /// The message; `-` reads stdin.
    #[arg(long, allow_hyphen_values = true)]
    pub text: String,
    /// The agent that must answer, instead of the one the routes choose.
    #[arg(long, allow_hyphen_values = true)]
    pub agent: Option<String>,
    /// Wait for the answer.
    #[arg(long)]
    pub wait: bool,
    /// Also deliver the answer to the chat on its platform account.
    #[arg(long)]
    pub deliver: bool,
}

/// `session …`
#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// List sessions, the live ones unless --ended is given.
    #[command(after_help = "Example:\n  hermesctl session list --agent coder")]
    List(SessionListArgs),
    /// Show a session and its turns.
    #[command(after_help = "Example:\n  hermesctl session show 1234 --limit 20")]
    Show {
        /// The session.
        #[arg(value_name = "SESSION")]
        id: String,
        /// How many turns.
        #[command(flatten)]
        limit: LimitArgs,
    },
    /// Compute the session key of a source. No control plane is asked.
    #[command(after_help = "Example:\n  hermesctl session key --platform telegram --chat-id 12345 -o json")]
    Key(Box<SessionKeyArgs>),
}

/// `session list`
#[derive(Debug, Args)]
pub(crate) struct SessionListArgs {
    /// Only this agent's.
    #[arg(long, allow_hyphen_values = true)]
    pub agent: Option<String>,
    /// Also the ended ones.
    #[arg(long, alias = "include-ended")]
    pub ended: bool,
    /// How many.
    #[command(flatten)]
    pub limit: LimitArgs,
}

/// `session key`
#[derive(Debug, Args)]
pub(crate) struct SessionKeyArgs {
    /// The source.
    #[command(flatten)]
    pub source: SourceArgs,
    /// The agent that has the session.
    #[arg(long, value_name = "ID", allow_hyphen_values = true, default_value = "main")]
    pub agent: String,
    /// One session per user in group chats.
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, value_parser = BoolishValueParser::new(), default_value = "true")]
    pub group_sessions_per_user: bool,
    /// One session per user inside a thread.
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, value_parser = BoolishValueParser::new(), default_value = "false")]
    pub thread_sessions_per_user: bool,
    /// The home whose WhatsApp alias files are read.
    #[arg(long, value_name = "DIR", env = "HERMES_HOME", hide_env_values = true)]
    pub whatsapp_home: Option<PathBuf>,
}

/// `worker …`
#[derive(Debug, Subcommand)]
pub(crate) enum WorkerCommand {
    /// List the workers that are connected.
    #[command(after_help = "Example:\n  hermesctl worker list -o json")]
    List(LimitArgs),
}

/// `token …`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token. It is shown once; only its hash is kept.
    #[command(
        after_help = "Examples:\n  hermesctl token create --role api --name dashboard -o json\n  hermesctl token create --role worker --agent coder --uses 3 --ttl 1h"
    )]
    Create(TokenCreateArgs),
    /// List tokens, never their text.
    #[command(after_help = "Example:\n  hermesctl token list")]
    List(LimitArgs),
    /// Revoke a token at once.
    #[command(after_help = "Example:\n  hermesctl token revoke 7")]
    Revoke {
        /// The id `token list` shows.
        #[arg(value_name = "TOKEN_ID")]
        id: String,
    },
}

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Everything.
    Operator,
    /// Submit messages and use the HTTP API.
    Api,
    /// Start workers of one agent.
    Worker,
    /// Look, not touch.
    Viewer,
}

/// `token create`
#[derive(Debug, Args)]
pub(crate) struct TokenCreateArgs {
    /// What it may do.
    #[arg(long, value_enum)]
    pub role: Role,
    /// The agent whose workers may join with it.
    #[arg(long, required_if_eq("role", "worker"), allow_hyphen_values = true)]
    pub agent: Option<String>,
    /// How many workers may join with it; 1 unless said otherwise.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: Option<u32>,
    /// How long it is good, for example 10m, 12h or 7d. Worker tokens: 10m; others: until revoked.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub ttl: Option<Duration>,
    /// A name for people.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub name: String,
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

/// `KEY=VALUE`; the value may be empty, begin with a dash and contain `=`.
fn match_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, for example chat_id=-1001234".to_owned()),
    }
}

#[cfg(test)]
mod tests;
