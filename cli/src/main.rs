//! hermesctl: the operator's commands over gRPC.
//!
//! Run by people and scripts. It owns nothing but its exit code: parse, run one command, say what went wrong. The
//! environment is read here and by the flags only.

mod args;
mod commands;
mod connect;
mod error;
mod output;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Cli;
use crate::commands::Invocation;
use crate::connect::Environment;
use crate::error::ExitStatus;
use crate::output::{Paint, Printer, Stream};

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(std::env::args_os()) {
        Ok(cli) => cli,
        Err(refusal) => {
            // Help that nobody reads any more is no failure.
            let _closed = refusal.print();
            return if refusal.use_stderr() { ExitStatus::Usage.into() } else { ExitStatus::Done.into() };
        }
    };
    let printer = Printer::new(cli.global.output, stdout(), stderr());
    let mut invocation = Invocation::new(cli.global, environment(), printer);
    let outcome = run(cli.command, &mut invocation);
    let status = outcome.unwrap_or_else(|error| {
        let (status, text) = error::report(&error);
        if let Some(text) = text {
            invocation.printer.error(&text);
        }
        status
    });
    status.into()
}

fn run(command: args::Command, invocation: &mut Invocation) -> anyhow::Result<ExitStatus> {
    // The first one installed stays; a second call would only say that there is one already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Box::pin(commands::run(command, invocation)))
}

fn environment() -> Environment {
    let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let editor = path("VISUAL").or_else(|| path("EDITOR")).map(PathBuf::into_os_string);
    Environment { home: path("HOME"), xdg_data_home: path("XDG_DATA_HOME"), path: std::env::var_os("PATH"), editor }
}

fn stdout() -> Stream {
    let terminal = io::stdout().is_terminal();
    Stream { to: Box::new(io::stdout()), terminal, paint: paint(terminal) }
}

fn stderr() -> Stream {
    let terminal = io::stderr().is_terminal();
    Stream { to: Box::new(io::stderr()), terminal, paint: paint(terminal) }
}

fn paint(terminal: bool) -> Paint {
    let asked_not_to = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM") == Some(OsString::from("dumb"));
    if terminal && !asked_not_to && !dumb { Paint::On } else { Paint::Off }
}
