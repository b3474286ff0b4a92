//! The flags that say where a message comes from, and those of the commands that send one or name its session. Always
//! true: an absent flag and an empty value are different things.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args, Subcommand};

use super::LimitArgs;

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
    /// The message; `-` reads stdin. With --attach it may be missing.
    #[arg(long, allow_hyphen_values = true, required_unless_present = "attach")]
    pub text: Option<String>,
    /// A file that goes with it, of at most 20 MiB; up to ten.
    #[arg(long, value_name = "FILE")]
    pub attach: Vec<PathBuf>,
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
    /// Stop the turn that runs in a session, or is next there; what waits behind it goes on.
    #[command(after_help = "Example:\n  hermesctl session stop s1234")]
    Stop {
        /// The session.
        #[arg(value_name = "SESSION")]
        id: String,
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
