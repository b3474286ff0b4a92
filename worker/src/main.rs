//! The worker's entry point: settings from the command line, one single-threaded runtime, an exit code.
//!
//! A worker waits on the network nearly all the time, so one thread serves hundreds of turns a second and keeps the
//! process small; file work that may take long goes to the runtime's blocking threads.

use std::process::ExitCode;

use hermes_worker::config::Config;

fn main() -> ExitCode {
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing else installs a TLS provider before main");
    let config = match Config::from_args(std::env::args_os()) {
        Ok(config) => config,
        Err(error) => {
            // Help and version are answers; everything else is a wrong use. A closed stderr leaves nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    let runtime = runtime.expect("the kernel gives a new process its event queue");
    let code = runtime.block_on(hermes_worker::app::run_process(config));
    runtime.shutdown_background();
    code
}
