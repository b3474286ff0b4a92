//! `hermes-control-plane`: see [`hermes_control_plane::app`].

use std::process::ExitCode;

use hermes_control_plane::app::{self, Seams};

fn main() -> ExitCode {
    app::process(Seams::default())
}
