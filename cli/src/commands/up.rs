//! `up`: becomes `hermes-control-plane dev`. It only finds that binary and hands its flags over; everything `up` does is
//! done there, in this very process, so signals and exit codes need no forwarding.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::Invocation;
use crate::args::UpArgs;
use crate::connect::data_dir;
use crate::error::ExitStatus;

const BINARY: &str = "hermes-control-plane";

/// Replaces this process; returns only when that failed.
///
/// # Errors
/// When the binary is not found or cannot be executed.
pub(crate) fn run(args: &UpArgs, inv: &Invocation) -> anyhow::Result<ExitStatus> {
    let dir = data_dir(inv.global.data_dir.as_deref(), &inv.env)?;
    let own = std::env::current_exe().ok();
    let Some(binary) = find(own.as_deref(), inv.env.path.as_deref().unwrap_or_default()) else {
        bail!(
            "{BINARY} is neither beside hermesctl nor on PATH; install it there, or build it with `cargo build --release`"
        );
    };
    let failed = Command::new(&binary).args(flags(args, &dir)).exec();
    Err(failed).with_context(|| format!("start {}", binary.display()))
}

/// The sibling of this executable, else the first on PATH.
fn find(own: Option<&Path>, path: &std::ffi::OsStr) -> Option<PathBuf> {
    let beside = own.and_then(Path::parent).map(Path::to_owned);
    let is_file = |file: &PathBuf| file.metadata().is_ok_and(|meta| meta.is_file());
    beside.into_iter().chain(std::env::split_paths(path)).map(|dir| dir.join(BINARY)).find(is_file)
}

fn flags(args: &UpArgs, data_dir: &Path) -> Vec<OsString> {
    let mut flags: Vec<OsString> = vec!["dev".into(), "--data-dir".into(), data_dir.into()];
    let mut add = |name: &str, value: Option<OsString>| {
        if let Some(value) = value {
            flags.push(name.into());
            flags.push(value);
        }
    };
    add("--config", args.config.clone().map(PathBuf::into_os_string));
    add("--database-url", args.database_url.clone());
    add("--grpc-addr", args.grpc_addr.clone());
    add("--http-addr", args.http_addr.clone());
    add("--worker-addr", args.worker_addr.clone());
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_handed_over_and_the_data_directory_is_always_said() {
        let args = UpArgs {
            config: Some("h.yaml".into()),
            database_url: None,
            grpc_addr: Some("127.0.0.1:0".into()),
            http_addr: None,
            worker_addr: None,
        };
        let expected =
            ["dev", "--data-dir", "/d", "--config", "h.yaml", "--grpc-addr", "127.0.0.1:0"].map(OsString::from);
        assert_eq!(flags(&args, Path::new("/d")), expected);
    }

    #[test]
    fn the_sibling_wins_over_path() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp/hermesctl-find");
        for dir in ["beside", "path"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
            std::fs::write(root.join(dir).join(BINARY), "").unwrap();
        }
        let path = root.join("path");
        assert_eq!(
            find(Some(&root.join("beside/hermesctl")), path.as_os_str()),
            Some(root.join("beside").join(BINARY))
        );
        assert_eq!(find(Some(&root.join("nowhere/hermesctl")), path.as_os_str()), Some(path.join(BINARY)));
        assert_eq!(find(None, root.join("nowhere").as_os_str()), None);
    }
}
