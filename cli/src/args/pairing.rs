//! The flags of `pairing …`; parsed by `main`, read by the pairing commands.

use clap::{Args, Subcommand};

use super::LimitArgs;

/// `pairing …`
#[derive(Debug, Subcommand)]
pub(crate) enum PairingCommand {
    /// Show strangers who wait to be approved, and those who were.
    #[command(after_help = "Examples:\n  hermesctl pairing list\n  hermesctl pairing list -o json")]
    List(LimitArgs),
    /// Approve the stranger who was sent this code: their account hears them from the next message on.
    #[command(
        after_help = "Examples:\n  hermesctl pairing approve 7KQ2MXHD\n  hermesctl pairing approve 7KQ2MXHD --account telegram/support\n\nA code is good for an hour. After five wrong ones no code is approved for an hour. The exit code is 1 when nobody has the code."
    )]
    Approve(PairingApproveArgs),
    /// Hear an approved sender no more.
    #[command(after_help = "Example:\n  hermesctl pairing revoke telegram/support 123456789")]
    Revoke(PairingRevokeArgs),
}

/// `pairing approve`
#[derive(Debug, Args)]
pub(crate) struct PairingApproveArgs {
    /// The code they were sent.
    #[arg(value_name = "CODE")]
    pub code: String,
    /// Only a code of this account; without it any.
    #[arg(long, value_name = "PLATFORM/ACCOUNT")]
    pub account: Option<String>,
}

/// `pairing revoke`
#[derive(Debug, Args)]
pub(crate) struct PairingRevokeArgs {
    /// The account that hears them.
    #[arg(value_name = "PLATFORM/ACCOUNT", value_parser = account)]
    pub account: (String, String),
    /// Their id on the platform, as the list shows it.
    #[arg(value_name = "USER")]
    pub user: String,
}

fn account(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((platform, account)) if !platform.is_empty() && !account.is_empty() => {
            Ok((platform.to_owned(), account.to_owned()))
        }
        _ => Err("write PLATFORM/ACCOUNT, for example telegram/support".to_owned()),
    }
}
