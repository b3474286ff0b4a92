//! `hermes-worker` with its seams opened by the environment; see [`hermes_tests::drill`].

use std::process::ExitCode;

use hermes_tests::drill::Drill;
use hermes_worker::app;

fn main() -> ExitCode {
    match Drill::from_env() {
        Ok(drill) => app::process(drill.worker()),
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
