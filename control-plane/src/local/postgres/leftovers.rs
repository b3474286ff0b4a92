//! What a server that was not stopped leaves behind, and how the next start gets past it.
//!
//! Called with the data directory locked, so whatever still uses the cluster has lost its owner. A server whose owner was
//! killed is shutting down already: it is waited for, then pressed. A dead server's lock files name a pid; Postgres
//! clears them itself unless the number now belongs to somebody else, which is why that case is cleared here, and only
//! when no process of the cluster is left: shared memory may be in use without the server itself.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::super::data_dir::io_error;
use super::Error;

/// From when on which signal is sent. A fast shutdown writes a checkpoint, which can take its time.
const PRESSURE: [(Duration, Signal); 3] = [
    (Duration::ZERO, Signal::SIGINT),
    (Duration::from_secs(5), Signal::SIGQUIT),
    (Duration::from_secs(8), Signal::SIGKILL),
];
const GIVE_UP: Duration = Duration::from_secs(10);

pub(super) async fn clear(cluster: &Path, socket: &Path) -> Result<(), Error> {
    let lock = cluster.join("postmaster.pid");
    let Some(server) = pid_in(&lock) else { return remove_socket_lock(socket) };
    let began = Instant::now();
    let mut pressed = 0;
    loop {
        let alive = processes_of(cluster);
        if alive.is_empty() {
            break;
        }
        if began.elapsed() >= GIVE_UP {
            return Err(Error::StillRunning { dir: cluster.to_path_buf(), pids: alive });
        }
        if let Some((_, signal)) = PRESSURE.get(pressed).filter(|(from, _)| began.elapsed() >= *from) {
            tracing::info!(?alive, %signal, "an earlier postgres still runs, ending it");
            // The server ends its processes; only orphans of a dead server, and stubborn ones, are told themselves.
            let told = alive.iter().filter(|pid| !alive.contains(&server) || **pid == server || pressed == 2);
            for pid in told {
                let _ = kill(Pid::from_raw(*pid), *signal);
            }
            pressed += 1;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if lock_names_a_stranger(server) {
        match fs::remove_file(&lock) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error("remove", &lock)(error).into());
            }
            _ => {}
        }
    }
    remove_socket_lock(socket)
}

/// Nobody uses the socket any more: only the server of this cluster does, and it is gone.
fn remove_socket_lock(socket: &Path) -> Result<(), Error> {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    let lock = Path::new(&name);
    match fs::remove_file(lock) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", lock)(error).into()),
        _ => Ok(()),
    }
}

/// The pid in the first line; the number is negative for a single-user server.
fn pid_in(lock: &Path) -> Option<i32> {
    fs::read_to_string(lock).ok()?.lines().next()?.trim().parse::<i32>().ok()?.checked_abs()
}

fn lock_names_a_stranger(pid: i32) -> bool {
    !matches!(kill(Pid::from_raw(pid), None), Err(Errno::ESRCH))
}

/// The Postgres processes of this cluster: each works in the cluster's directory.
fn processes_of(cluster: &Path) -> Vec<i32> {
    let Ok(cluster) = fs::canonicalize(cluster) else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let link = |name| fs::read_link(format!("/proc/{pid}/{name}"));
            let is_postgres = |exe: std::path::PathBuf| {
                exe.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("postgres"))
            };
            link("exe").is_ok_and(is_postgres) && link("cwd").is_ok_and(|cwd| cwd == cluster)
        })
        .collect()
}
