//! `hermes-control-plane` with its seams opened by the environment; see [`hermes_tests::drill`].

use std::process::ExitCode;

use hermes_control_plane::app;
use hermes_tests::drill::Drill;

fn main() -> ExitCode {
    match Drill::from_env().and_then(|drill| drill.control_plane()) {
        Ok(seams) => app::process(seams),
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a process that cannot start")]
fn complain(error: &anyhow::Error) {
    eprintln!("{error:#}");
}
