//! The flags of `agent files`, `edit`, `export` and `import`; parsed by `main`, read by the agent commands.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::LimitArgs;

/// `agent files`
#[derive(Debug, Args)]
pub(crate) struct FilesArgs {
    /// The agent.
    #[arg(value_name = "AGENT", allow_hyphen_values = true)]
    pub id: String,
    /// How many are listed.
    #[command(flatten)]
    pub limit: LimitArgs,
    /// What to do with one; without it they are listed.
    #[command(subcommand)]
    pub command: Option<FilesCommand>,
}

/// `agent files AGENT …`
#[derive(Debug, Subcommand)]
pub(crate) enum FilesCommand {
    /// Print a document.
    #[command(after_help = "Example:\n  hermesctl agent files coder show SOUL.md")]
    Show {
        /// SOUL.md, memories/<name>.md or a file below skills/.
        path: String,
        /// This version instead of the present one.
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// List the kept versions of a document, newest first: when and by whom.
    #[command(after_help = "Example:\n  hermesctl agent files coder history memories/MEMORY.md")]
    History {
        /// SOUL.md, memories/<name>.md or a file below skills/.
        path: String,
        /// How many.
        #[command(flatten)]
        limit: LimitArgs,
    },
    /// Make a new version that equals a kept one.
    #[command(after_help = "Example:\n  hermesctl agent files coder rollback SOUL.md --to 3")]
    Rollback {
        /// SOUL.md, memories/<name>.md or a file below skills/.
        path: String,
        /// The version to return to.
        #[arg(long, value_name = "N")]
        to: u64,
    },
    /// Remove a document; its kept versions stay, so it can be brought back.
    #[command(after_help = "Example:\n  hermesctl agent files coder rm skills/maps/SKILL.md")]
    Rm {
        /// SOUL.md, memories/<name>.md or a file below skills/.
        path: String,
    },
}

/// `agent edit`
#[derive(Debug, Args)]
pub(crate) struct EditArgs {
    /// The agent.
    #[arg(value_name = "AGENT", allow_hyphen_values = true)]
    pub id: String,
    /// SOUL.md, memories/<name>.md or a file below skills/; it need not be there yet.
    pub path: String,
    /// Take the text from this file instead of an editor; `-` reads stdin.
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// With --from: refuse when the document is no longer at this version; 0 says that there is none.
    #[arg(long, value_name = "N", requires = "from")]
    pub expected_version: Option<u64>,
}

/// `agent export`
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The agent.
    #[arg(value_name = "AGENT", allow_hyphen_values = true)]
    pub id: String,
    /// The archive to write, which must not be there yet; `-` is stdout.
    #[arg(value_name = "FILE.tar.gz")]
    pub file: PathBuf,
}

/// `agent import`
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The agent.
    #[arg(value_name = "AGENT", allow_hyphen_values = true)]
    pub id: String,
    /// The archive; `-` reads stdin.
    #[arg(value_name = "FILE.tar.gz")]
    pub file: PathBuf,
    /// Register the agent with the archive's specification; without it the agent is there and keeps its own.
    #[arg(long)]
    pub create: bool,
    /// Judge everything and say what would change, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}
