//! `hermes-worker`: see [`hermes_worker::app`].

use std::process::ExitCode;

use hermes_worker::app;
use hermes_worker::seams::Seams;

/// The system's allocator took a sixth of the CPU of a busy process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    app::process(Seams::default())
}
