//! The flags of `budget …`; parsed by `main`, read by the budget commands.

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::LimitArgs;

/// `budget …`
#[derive(Debug, Subcommand)]
pub(crate) enum BudgetCommand {
    /// Show limits, what was spent and reserved, raises, pauses and limits that were hit.
    #[command(
        after_help = "Examples:\n  hermesctl budget show\n  hermesctl budget show coder -o json\n  hermesctl budget show --users --limit 20\n\nOnly agents with a budget are counted, and users where there is one for users."
    )]
    Show(BudgetShowArgs),
    /// Raise limits of an agent for a time; the document stays as it is.
    #[command(
        after_help = "Examples:\n  hermesctl budget raise coder --usd-per-day 20\n  hermesctl budget raise coder --tokens-per-day 500000 --until 2026-12-24T18:00:00Z\n\nWithout --until a raise ends with the day, that of a month's limit with the month."
    )]
    Raise(BudgetRaiseArgs),
    /// Let an agent make no further model call; its turns end with a sentence that says so.
    #[command(after_help = "Example:\n  hermesctl budget pause coder")]
    Pause {
        /// The agent.
        #[arg(value_name = "AGENT", allow_hyphen_values = true)]
        agent: String,
    },
    /// Let a paused agent make model calls again.
    #[command(after_help = "Example:\n  hermesctl budget resume coder")]
    Resume {
        /// The agent.
        #[arg(value_name = "AGENT", allow_hyphen_values = true)]
        agent: String,
    },
}

/// `budget show`
#[derive(Debug, Args)]
pub(crate) struct BudgetShowArgs {
    /// Only this agent.
    #[arg(value_name = "AGENT", allow_hyphen_values = true)]
    pub agent: Option<String>,
    /// Users that spent something this month, instead of agents.
    #[arg(long, conflicts_with = "agent")]
    pub users: bool,
    /// How many.
    #[command(flatten)]
    pub limit: LimitArgs,
}

/// `budget raise`
#[derive(Debug, Args)]
pub(crate) struct BudgetRaiseArgs {
    /// The agent.
    #[arg(value_name = "AGENT", allow_hyphen_values = true)]
    pub agent: String,
    /// US dollars in a day.
    #[arg(long, value_name = "USD", required_unless_present_any = ["usd_per_month", "tokens_per_day"])]
    pub usd_per_day: Option<f64>,
    /// US dollars in a month.
    #[arg(long, value_name = "USD")]
    pub usd_per_month: Option<f64>,
    /// Tokens in a day.
    #[arg(long, value_name = "N")]
    pub tokens_per_day: Option<u64>,
    /// Until when, for example 2026-12-24T18:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub until: Option<Timestamp>,
}
