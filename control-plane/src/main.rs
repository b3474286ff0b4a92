//! `hermes-control-plane`: see [`hermes_control_plane::app`].

use std::process::ExitCode;

use hermes_control_plane::app::{self, Seams};

/// The system's allocator took a sixth of the CPU of a busy process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    app::process(Seams::default())
}
