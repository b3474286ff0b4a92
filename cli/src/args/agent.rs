//! The flags of `agent …`; parsed by `main`, read by the agent commands.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::LimitArgs;
use super::home::{EditArgs, ExportArgs, FilesArgs, ImportArgs};

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
    /// MCP servers: which tools they have, and which are withheld because they changed.
    #[command(subcommand, after_help = "Example:\n  hermesctl agent mcp list coder")]
    Mcp(AgentMcpCommand),
    /// Make a new revision that equals an earlier one.
    #[command(after_help = "Example:\n  hermesctl agent rollback coder 3")]
    Rollback {
        /// The agent.
        #[arg(value_name = "AGENT", allow_hyphen_values = true)]
        id: String,
        /// The revision to return to.
        revision: u64,
    },
    /// List the documents of an agent's home; or show, go back to or remove one.
    #[command(
        after_help = "Examples:\n  hermesctl agent files coder\n  hermesctl agent files coder show SOUL.md --version 3\n  hermesctl agent files coder rollback memories/MEMORY.md --to 12"
    )]
    Files(FilesArgs),
    /// Write a document of an agent's home in $VISUAL or $EDITOR; the next turn sees it.
    #[command(
        after_help = "Examples:\n  hermesctl agent edit coder SOUL.md\n  hermesctl agent edit coder skills/maps/SKILL.md --from SKILL.md"
    )]
    Edit(EditArgs),
    /// Write an archive of an agent: its specification and the documents of its home; never secrets, sessions or the workspace.
    #[command(after_help = "Example:\n  hermesctl agent export coder coder.tar.gz")]
    Export(ExportArgs),
    /// Put the documents of an archive into an agent's home, all or none; what the archive does not name stays.
    #[command(
        after_help = "Examples:\n  hermesctl agent import coder coder.tar.gz --dry-run\n  hermesctl agent import copy coder.tar.gz --create"
    )]
    Import(ImportArgs),
}

/// `agent mcp …`
#[derive(Debug, Subcommand)]
pub(crate) enum AgentMcpCommand {
    /// List the MCP servers of an agent and their tools, as its workers last saw them.
    #[command(after_help = "Example:\n  hermesctl agent mcp list coder")]
    List {
        /// The agent.
        #[arg(value_name = "AGENT", allow_hyphen_values = true)]
        id: String,
    },
    /// Let an agent have the tools of a server as they are now, those that changed included.
    #[command(after_help = "Example:\n  hermesctl agent mcp accept coder github --seen 6f1c…")]
    Accept {
        /// The agent.
        #[arg(value_name = "AGENT", allow_hyphen_values = true)]
        id: String,
        /// The server.
        #[arg(value_name = "SERVER")]
        name: String,
        /// Refuse when they are no longer those that `agent mcp list` showed with this SEEN.
        #[arg(long, value_name = "SEEN")]
        seen: Option<String>,
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
    /// How its tools are kept apart, instead of the document's `sandbox` as a whole: level, network, memory_mb, pids, cpu_seconds, disk_mb.
    #[arg(long, value_name = "KEY=VALUE,…", allow_hyphen_values = true)]
    pub sandbox: Option<String>,
    /// When people are asked before what it does, instead of the document's `approvals` as a whole: mode, smart_model, timeout_seconds, and any number of
    /// allow and deny.
    #[arg(long, value_name = "KEY=VALUE,…", allow_hyphen_values = true)]
    pub approvals: Option<String>,
    /// What answers its turns: kind (native or acp); of acp also command, which is split at white space, start_timeout_seconds, env.NAME, and
    /// secret.NAME=env:VARIABLE or secret.NAME=file:PATH, found by the control plane.
    #[arg(long, value_name = "KEY=VALUE,…", allow_hyphen_values = true)]
    pub runtime: Option<String>,
    /// Models asked in this order when its own cannot answer, separated by commas; "" means none.
    #[arg(long, value_name = "A,B")]
    pub fallback_models: Option<String>,
    /// Agents that it may ask by itself, separated by commas; "" means none.
    #[arg(long, value_name = "A,B")]
    pub may_ask: Option<String>,
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
    /// Drop the routes and homes that name it, and stop its scheduled jobs; if it is the default agent, main becomes it.
    #[arg(long, short = 'y', conflicts_with = "reroute_to")]
    pub yes: bool,
    /// Point its routes, its homes, and the default agent if it is that, at this agent.
    #[arg(long, value_name = "AGENT", allow_hyphen_values = true)]
    pub reroute_to: Option<String>,
    /// Delete its home documents and sessions too.
    #[arg(long)]
    pub purge: bool,
}
