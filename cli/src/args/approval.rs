//! The flags of `approval …`; parsed by `main`, read by the approval commands.

use clap::{Args, Subcommand, ValueEnum};

use super::LimitArgs;

/// `approval …`
#[derive(Debug, Subcommand)]
pub(crate) enum ApprovalCommand {
    /// Show calls that wait for somebody to allow them, newest first.
    #[command(after_help = "Examples:\n  hermesctl approval list\n  hermesctl approval list --all -o json")]
    List(ApprovalListArgs),
    /// Allow a call.
    #[command(
        after_help = "Examples:\n  hermesctl approval approve 17\n  hermesctl approval approve 17 --for session\n\nThe exit code is 1 when it was answered before or its time is over."
    )]
    Approve(ApprovalApproveArgs),
    /// Refuse a call.
    #[command(after_help = "Example:\n  hermesctl approval deny 17")]
    Deny {
        /// Number of the question.
        #[arg(value_name = "ID")]
        id: u64,
    },
}

/// `approval list`
#[derive(Debug, Args)]
pub(crate) struct ApprovalListArgs {
    /// Those that were answered or ran out, too.
    #[arg(long)]
    pub all: bool,
    /// How many.
    #[command(flatten)]
    pub limit: LimitArgs,
}

/// `approval approve`
#[derive(Debug, Args)]
pub(crate) struct ApprovalApproveArgs {
    /// Number of the question.
    #[arg(value_name = "ID")]
    pub id: u64,
    /// How far it reaches, for whoever was asked.
    #[arg(long = "for", value_enum, default_value_t = Reach::Once)]
    pub reach: Reach,
}

/// How far an answer reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reach {
    /// This call alone.
    Once,
    /// And all of its kind in this session.
    Session,
    /// And all of its kind with this agent.
    Always,
}
