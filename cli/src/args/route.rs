//! The flags of `route …`; parsed by `main`, read by the route commands.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{LimitArgs, SourceArgs};

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

/// `KEY=VALUE`; the value may be empty, begin with a dash and contain `=`.
fn match_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, for example chat_id=-1001234".to_owned()),
    }
}
