//! The first stage: joins the control groups, makes the namespaces and starts the second stage as their first process.
//!
//! Started by [`super::Boundary`] as this program with one argument. It stays as the parent outside, only to hand on the exit
//! code and to take the second stage with it when the worker dies.

use std::io::{self, Write as _};
use std::net::TcpListener;
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::{getegid, geteuid, getppid};

use super::inside::loopback_up;
use super::{Entering, INSIDE, NOT_BUILT, PROXY, frame, handover};

/// Runs the stage to its end; reasons for its failure go to stderr.
pub fn main() -> ExitCode {
    match entered() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Nobody else hears it; a closed stderr leaves nobody to tell.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(NOT_BUILT)
        }
    }
}

fn entered() -> io::Result<u8> {
    let entering: Entering = frame::take()?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid().as_raw() != entering.worker {
        return Err(io::Error::other("the worker is gone"));
    }
    close_inherited();
    for group in &entering.groups {
        std::fs::write(group.join("cgroup.procs"), "0").map_err(|error| said("join the control group", &error))?;
    }
    // Before the namespaces, in which the worker is not found.
    let socket = entering.way_out.as_ref().map(handover::reach).transpose();
    let socket = socket.map_err(|error| said("reach the worker for the proxy", &error))?;
    let (user, group) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    flags.set(CloneFlags::CLONE_NEWNET, entering.own_network);
    unshare(flags).map_err(|error| said("make namespaces (are user namespaces allowed here?)", &error.into()))?;
    map_ids(0, user.as_raw(), group.as_raw())?;
    if let (Some(invitation), Some(socket)) = (&entering.way_out, socket) {
        loopback_up().map_err(|error| said("bring up loopback", &error))?;
        let listener = TcpListener::bind(PROXY).map_err(|error| said("listen for the proxy", &error))?;
        handover::give(&socket, invitation, &listener).map_err(|error| said("hand over the proxy", &error))?;
    }
    let program = std::env::current_exe()?;
    let mut inside = Command::new(program).arg(INSIDE).env_clear().spawn()?;
    let status = inside.wait()?;
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Makes this process the user `inner` of its new user namespace.
pub(super) fn map_ids(inner: u32, user: u32, group: u32) -> io::Result<()> {
    let write = |path: &str, text: String| {
        std::fs::write(path, text).map_err(|error| said("map this user into the namespace", &error))
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{inner} {user} 1"))?;
    write("/proc/self/gid_map", format!("{inner} {group} 1"))
}

/// An error with what was tried.
pub(super) fn said(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what}: {error}"))
}

/// Closes what was inherited beside stdin, stdout and stderr.
fn close_inherited() {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<i32> =
        open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    for fd in open {
        // The one that listed them is closed already.
        let _ = nix::unistd::close(fd);
    }
}
