//! The flags of `token …`; parsed by `main`, read by the token commands.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{LimitArgs, duration};

/// `token …`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token. It is shown once; only its hash is kept.
    #[command(
        after_help = "Examples:\n  hermesctl token create --role api --name dashboard -o json\n  hermesctl token create --role api --agent coder --name coders-jobs\n  hermesctl token create --role worker --agent coder --uses 3 --ttl 1h\n\nAn API token with --agent reaches that agent alone, and its scheduled jobs; one without reaches every agent, and no jobs."
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
    /// Submit messages and use the HTTP API; with an agent its scheduled jobs, too.
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
    /// The agent whose workers may join with it; of an API token the only agent that it reaches.
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
