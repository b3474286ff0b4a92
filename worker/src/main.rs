//! `hermes-worker`: see [`hermes_worker::app`].

use std::process::ExitCode;

use hermes_worker::app;
use hermes_worker::seams::Seams;

fn main() -> ExitCode {
    app::process(Seams::default())
}
