//! The flags of `curator …`; parsed by `main`, read by the curator commands.

use clap::{Args, Subcommand};

/// `curator …`
#[derive(Debug, Subcommand)]
pub(crate) enum CuratorCommand {
    /// Show how the skills that an agent made by itself stand, and which it uses most and least.
    #[command(after_help = "Example:\n  hermesctl curator status coder")]
    Status(OfAgent),
    /// Look after the skills now: mark what lies untouched for 30 days, archive what does for 90, merge what overlaps where `consolidate` is on.
    #[command(
        after_help = "Examples:\n  hermesctl curator run coder --dry-run\n  hermesctl curator run coder\n\nPinned skills, those that a job refers to and those that the agent did not make by itself stay as they are."
    )]
    Run {
        /// Whose.
        #[command(flatten)]
        of: OfAgent,
        /// Only show what it would do.
        #[arg(long)]
        dry_run: bool,
    },
    /// Do not run by itself any more; `run` still does.
    #[command(after_help = "Example:\n  hermesctl curator pause coder")]
    Pause(OfAgent),
    /// Run by itself again.
    #[command(after_help = "Example:\n  hermesctl curator resume coder")]
    Resume(OfAgent),
    /// Leave a skill as it is.
    #[command(after_help = "Example:\n  hermesctl curator pin coder weekly-report")]
    Pin(OneSkill),
    /// Do not leave it any more.
    #[command(after_help = "Example:\n  hermesctl curator unpin coder weekly-report")]
    Unpin(OneSkill),
    /// Move a skill into the archive: the agent no longer sees it, and nothing is deleted.
    #[command(after_help = "Example:\n  hermesctl curator archive coder old-scraper")]
    Archive(OneSkill),
    /// Move a skill out of the archive, to the top of skills/; refused where there is one of that name.
    #[command(
        after_help = "Example:\n  hermesctl curator restore coder retired-skill\n\nIt may be archived again by the next run while nobody uses it; pin it to keep it."
    )]
    Restore(OneSkill),
    /// List what lies in the archive.
    #[command(after_help = "Example:\n  hermesctl curator list-archived coder -o json")]
    ListArchived(OfAgent),
}

/// Whose skills.
#[derive(Debug, Args)]
pub(crate) struct OfAgent {
    /// The agent; one of its workers has to be connected.
    #[arg(value_name = "AGENT", allow_hyphen_values = true)]
    pub agent: String,
}

/// One of its skills.
#[derive(Debug, Args)]
pub(crate) struct OneSkill {
    /// The agent; one of its workers has to be connected.
    #[arg(value_name = "AGENT", allow_hyphen_values = true)]
    pub agent: String,
    /// The skill's name, without its category.
    #[arg(value_name = "SKILL")]
    pub skill: String,
}
