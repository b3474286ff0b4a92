//! `hermes-worker doctor`: what this machine can give to keep agents apart, found by trying it.
//!
//! For whoever installs workers. It changes nothing and needs no control plane. Exit code 0: a worker with the default policy
//! starts here; 1: it would refuse, and the reason is in the answer.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;

use crate::sandbox::{Ability, Sandbox};

/// The argument by which this program answers instead of serving.
pub const NAME: &str = "doctor";

/// Say what this machine gives to keep an agent's tools behind their boundary.
#[derive(clap::Parser)]
#[command(
    name = "hermes-worker doctor",
    bin_name = "hermes-worker doctor",
    after_help = "Examples:\n  hermes-worker doctor\n  hermes-worker doctor --home /var/lib/hermes/homes/coder --output json"
)]
struct Args {
    /// Try it with this home instead of an empty one; it must be there
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// How the answer looks
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Runs it with the arguments behind its name.
pub async fn run(args: impl IntoIterator<Item = OsString>, temporary: PathBuf) -> ExitCode {
    let args = match Args::try_parse_from(std::iter::once(OsString::from(NAME)).chain(args)) {
        Ok(args) => args,
        Err(error) => {
            // Help is an answer; a closed stderr leaves nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match examined(&args, temporary).await {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cannot find out: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn examined(args: &Args, temporary: PathBuf) -> std::io::Result<ExitCode> {
    let made = temporary.join(format!("hermes-doctor-{}", std::process::id()));
    let home = match &args.home {
        Some(home) => home.canonicalize()?,
        None => {
            std::fs::create_dir(&made)?;
            made.canonicalize()?
        }
    };
    let ability = Ability::probe(&std::env::current_exe()?, &home).await;
    if args.home.is_none() {
        std::fs::remove_dir(&made)?;
    }
    let policy = Sandbox::default();
    let fine = ability.boundary.is_ok() && ability.limits.is_ok();
    let mut out = std::io::stdout().lock();
    let rows = [
        ("boundary", "namespaces, Landlock, seccomp", ability.boundary.map(|()| "built and tried")),
        (
            "proxy",
            "a listener made inside and handed over, for network: proxy",
            ability.proxy.map(|()| "built and tried"),
        ),
        ("limits", "processes and memory of tools", ability.limits),
    ];
    match args.output {
        Output::Json => {
            let checks: Vec<_> = rows
                .iter()
                .map(|(name, what, found)| {
                    let (Ok(detail) | Err(detail)) = found.as_ref().map(|found| *found).map_err(String::as_str);
                    serde_json::json!({"check": name, "what": what, "ok": found.is_ok(), "detail": detail})
                })
                .collect();
            writeln!(out, "{}", serde_json::json!({"ok": fine, "default_policy": policy, "checks": checks}))?;
        }
        Output::Text => {
            for (name, what, found) in &rows {
                let (mark, detail) = match found {
                    Ok(detail) => ("ok  ", *detail),
                    Err(reason) => ("FAIL", reason.as_str()),
                };
                writeln!(out, "{mark}  {name:<9} {what}: {detail}")?;
            }
            let verdict = if fine {
                "A worker with the default policy (sandbox: {level: strict, network: none}) starts here."
            } else {
                "A worker with the default policy refuses to start here."
            };
            writeln!(out, "{verdict}")?;
        }
    }
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
