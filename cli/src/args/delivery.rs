//! The flags of `delivery …` and `dead …`; parsed by `main`, read by their commands.

use clap::{Args, Subcommand, ValueEnum};

use super::LimitArgs;

/// `delivery …`
#[derive(Debug, Subcommand)]
pub(crate) enum DeliveryCommand {
    /// List what is on its way into chats and what was given up, newest first; delivered ones only when asked for.
    #[command(
        after_help = "Examples:\n  hermesctl delivery list --state dead -o json\n  hermesctl delivery list --platform telegram --chat -1001234 --state delivered --limit 20"
    )]
    List(DeliveryListArgs),
    /// Show one delivery with its text.
    #[command(after_help = "Example:\n  hermesctl delivery show d7.123")]
    Show {
        /// The id `delivery list` shows.
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Send dead deliveries once more, each behind what its chat has now.
    #[command(
        after_help = "Examples:\n  hermesctl delivery redrive d7.123 d7.130\n  hermesctl delivery redrive --all-dead --platform telegram --account support\n\nA copy that the chat may have already is marked. The exit code is 1 when one of them was refused."
    )]
    Redrive(DeliveryRedriveArgs),
}

/// `delivery list`
#[derive(Debug, Args)]
pub(crate) struct DeliveryListArgs {
    /// Only those in this state; may be repeated.
    #[arg(long = "state", value_enum, value_name = "STATE")]
    pub states: Vec<State>,
    /// Only those of this platform.
    #[arg(long)]
    pub platform: Option<String>,
    /// Only those of this account.
    #[arg(long, allow_hyphen_values = true)]
    pub account: Option<String>,
    /// Only those for this chat id.
    #[arg(long, value_name = "CHAT_ID", allow_hyphen_values = true)]
    pub chat: Option<String>,
    /// How many.
    #[command(flatten)]
    pub limit: LimitArgs,
}

/// How a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    /// Behind others of its chat, for its account, or for a free sender.
    Waiting,
    /// It is being sent.
    Attempting,
    /// An attempt did not succeed; the next one has its time.
    Retrying,
    /// Given up.
    Dead,
    /// Arrived.
    Delivered,
}

/// `delivery redrive`
#[derive(Debug, Args)]
pub(crate) struct DeliveryRedriveArgs {
    /// The ids `delivery list --state dead` shows.
    #[arg(value_name = "ID", required_unless_present = "all_dead", conflicts_with = "all_dead")]
    pub ids: Vec<String>,
    /// All that are dead and were not redriven.
    #[arg(long)]
    pub all_dead: bool,
    /// With --all-dead: only those of this platform.
    #[arg(long, requires = "all_dead")]
    pub platform: Option<String>,
    /// With --all-dead: only those of this account.
    #[arg(long, requires = "all_dead", allow_hyphen_values = true)]
    pub account: Option<String>,
}

/// `dead …`
#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// List the messages that were given up, newest first.
    #[command(after_help = "Example:\n  hermesctl dead list -o json")]
    List(DeadListArgs),
    /// Give their inputs to the agent again, as new turns of the same dialogue.
    #[command(
        after_help = "Examples:\n  hermesctl dead redrive t12.4\n  hermesctl dead redrive --all\n\nThe exit code is 1 when one of them was refused."
    )]
    Redrive(DeadTurnsArgs),
    /// Take them off the list; they stay in the dialogue's history.
    #[command(after_help = "Example:\n  hermesctl dead drop t12.4")]
    Drop(DeadTurnsArgs),
}

/// `dead list`
#[derive(Debug, Args)]
pub(crate) struct DeadListArgs {
    /// Also those that were redriven or dropped.
    #[arg(long)]
    pub settled: bool,
    /// How many.
    #[command(flatten)]
    pub limit: LimitArgs,
}

/// `dead redrive` and `dead drop`
#[derive(Debug, Args)]
pub(crate) struct DeadTurnsArgs {
    /// The turns `dead list` shows.
    #[arg(value_name = "TURN", required_unless_present = "all", conflicts_with = "all")]
    pub turns: Vec<String>,
    /// All that are on the list.
    #[arg(long)]
    pub all: bool,
}
