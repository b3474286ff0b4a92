//! `hermes-control-plane`: parses, starts telemetry, runs the composition root.

use std::process::ExitCode;

use clap::Parser as _;
use hermes_control_plane::app::{self, LogFormat, Options, Surroundings};
use hermes_control_plane::telemetry;

fn main() -> ExitCode {
    // Before anything makes a TLS client or server.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = Options::parse();
    let surroundings = Surroundings::read();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(options, surroundings)),
        Err(error) => complain(&anyhow::Error::from(error).context("start the runtime")),
    }
}

async fn run(options: Options, surroundings: Surroundings) -> ExitCode {
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
    let result = app::run(options, surroundings, &telemetry).await;
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
