//! `hermes-sandbox`: the stages of the boundary around what a worker's tools run; see [`hermes_worker::sandbox`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hermes_worker::sandbox::process(std::env::args_os().nth(1))
}
