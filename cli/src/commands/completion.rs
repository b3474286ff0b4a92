//! `completion`: the script a shell sources. Called by people's shell set-up; needs no control plane.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Invocation;
use crate::args::Cli;
use crate::error::ExitStatus;

/// Prints the script.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn run(shell: Shell, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hermesctl", &mut script);
    inv.printer.bytes(&script)?;
    Ok(ExitStatus::Done)
}
