//! The first stage: joins the control groups, makes the namespaces and forks the second stage as their first process.
//!
//! Started by [`super::Boundary`]. It stays as the parent outside, only to hand on the exit
//! code and to take the second stage with it when the worker dies. Always true: it has one thread, so its fork is a whole process.

use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getegid, geteuid, getppid};

use super::inside::{self, loopback_up};
use super::{Entering, NOT_BUILT, PROXY, frame, handover, same_release};

/// Runs the stage to its end; reasons for its failure go to stderr.
pub(super) fn main() -> ExitCode {
    match entered() {
        Ok(code) => code,
        Err(error) => {
            // Nobody else hears it; a closed stderr leaves nobody to tell.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(NOT_BUILT)
        }
    }
}

fn entered() -> io::Result<ExitCode> {
    let entering: Entering = frame::take()?;
    same_release(&entering.release)?;
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid().as_raw() != entering.worker {
        return Err(io::Error::other("the worker is gone"));
    }
    close_inherited();
    for group in &entering.groups {
        std::fs::write(group, "0").map_err(|error| said("join the control group", &error))?;
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
    // Held until this stage ends.
    let (mut alive, held) = io::pipe()?;
    // SAFETY: nothing in this process has started a thread, so the child finds no lock taken and nothing half done.
    #[expect(unsafe_code, reason = "the first process of a new process namespace can only be a fork")]
    let forked = unsafe { fork() };
    match forked.map_err(|error| said("start the first process inside", &error.into()))? {
        ForkResult::Child => {
            drop(held);
            set_pdeathsig(Signal::SIGKILL)?;
            // Where it died before, nothing comes of that: inside, a parent cannot be seen.
            fcntl(&alive, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            if alive.read(&mut [0]).is_ok() {
                return Err(io::Error::other("the first stage is gone"));
            }
            drop(alive);
            Ok(inside::main())
        }
        ForkResult::Parent { child } => {
            drop(alive);
            let code = ended(child);
            drop(held);
            Ok(ExitCode::from(code?))
        }
    }
}

/// How the second stage ended: its exit code, or 128 and the number of the signal.
fn ended(stage: Pid) -> io::Result<u8> {
    loop {
        match waitpid(stage, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
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
