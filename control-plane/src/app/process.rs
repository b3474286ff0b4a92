//! The process around the composition root: arguments, telemetry, exit code; and the seams that drills open.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;

use super::{LogFormat, Options, Surroundings};
use crate::failpoint::Failpoints;
use crate::store::{self, Functions, Store};
use crate::telemetry;

/// Where a drill may differ from the process as shipped, which has the default of each.
#[derive(Clone, Debug, Default)]
pub struct Seams {
    /// The transition functions.
    pub functions: Functions,
    /// Points at which the flow may be held, ended or failed.
    pub failpoints: Failpoints,
    /// The program that the launcher starts instead of the `hermes-worker` beside this one.
    pub worker_binary: Option<PathBuf>,
    /// Variables that worker processes get beyond the few that they may see.
    pub worker_environment: Vec<(OsString, OsString)>,
}

impl Seams {
    pub(super) fn store(&self, url: &str, connections: usize) -> store::Result<Store> {
        let store = Store::with_functions(url, connections, self.functions.clone())?;
        Ok(store.with_failpoints(self.failpoints.clone()))
    }
}

/// Runs the process from its arguments to its exit code.
pub fn process(seams: Seams) -> ExitCode {
    // Before anything makes a TLS client or server.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = Options::parse();
    let surroundings = Surroundings::read();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(options, surroundings, seams)),
        Err(error) => complain(&anyhow::Error::from(error).context("start the runtime")),
    }
}

async fn run(options: Options, surroundings: Surroundings, seams: Seams) -> ExitCode {
    let settings = telemetry::Options {
        filter: options.log.clone(),
        format: if options.log_format == LogFormat::Json {
            telemetry::LogFormat::Json
        } else {
            telemetry::LogFormat::Text
        },
        otlp_endpoint: options.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty()),
    };
    let telemetry = match telemetry::Telemetry::start(&settings) {
        Ok((telemetry, dispatch)) => {
            let _ = tracing::dispatcher::set_global_default(dispatch);
            telemetry
        }
        Err(error) => return complain(&error.into()),
    };
    let result = super::run(options, surroundings, &telemetry, &seams).await;
    telemetry.shutdown().await;
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a process that cannot go on")]
fn complain(error: &anyhow::Error) -> ExitCode {
    eprintln!("hermes-control-plane: {error:#}");
    ExitCode::FAILURE
}
