//! The second stage: the first process inside, which builds the view, closes the door behind itself and does the task that it is
//! then told.
//!
//! Forked by [`super::enter`], or started for work on files on the level `off` by the boundary itself. As the first process of its
//! process namespace it is the parent of whatever loses its own, and all of them end with it. What it is told as its task it reads
//! inside.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::enter::{map_ids, said};
use super::{
    ENTRIES, FILE_MB, Inside, Level, NOT_BUILT, Network, SCRATCH, Task, filter, frame, root, rules, same_release,
};
use crate::tools::local::files;

/// Who the task is inside, whoever runs the worker.
const USER: u32 = 1000;

/// Runs the stage to its end; reasons for its failure go to stderr.
pub(super) fn main() -> ExitCode {
    let inside: Inside = match frame::take() {
        Ok(inside) => inside,
        Err(error) => return failed(&error),
    };
    let built = same_release(&inside.release).and_then(|()| match inside.level {
        Level::Off => Ok(()),
        Level::Strict | Level::Home => closed(&inside),
    });
    if let Err(error) = built {
        return failed(&error);
    }
    let task = match frame::take() {
        Ok(task) => task,
        Err(error) => return failed(&error),
    };
    match task {
        Task::Nothing => ExitCode::SUCCESS,
        Task::Files(request, folder) => answered(&files::run(&inside.home.join(SCRATCH), folder.as_deref(), request)),
        Task::Command { argv, cwd, env } => match run(&argv, &cwd, &env) {
            Ok(code) => ExitCode::from(code),
            Err(error) => failed(&error),
        },
    }
}

fn failed(error: &io::Error) -> ExitCode {
    // Nobody else hears it; a closed stderr leaves nobody to tell.
    let _ = writeln!(io::stderr(), "{error}");
    ExitCode::from(NOT_BUILT)
}

fn answered(answer: &files::Answer) -> ExitCode {
    match serde_json::to_writer(io::stdout().lock(), answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.into()),
    }
}

/// Builds the boundary around this process.
fn closed(inside: &Inside) -> io::Result<()> {
    let shown = root::build(&inside.home, &entries(inside.level), inside.memory_bytes / 4)?;
    if inside.network != Network::Open {
        loopback_up().map_err(|error| said("bring up loopback", &error))?;
    }
    // A second user namespace, in which the task has no power over the mounts of the first, and none at all once it is executed.
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| said("make the inner user namespace", &error.into()))?;
    map_ids(USER, 0, 0)?;
    let limits = [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_CPU, inside.cpu_seconds),
        (Resource::RLIMIT_DATA, inside.memory_bytes),
        (Resource::RLIMIT_NPROC, inside.pids),
        (Resource::RLIMIT_FSIZE, FILE_MB << 20),
        (Resource::RLIMIT_NOFILE, 1024),
        (Resource::RLIMIT_MEMLOCK, 1 << 20),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ];
    for (resource, limit) in limits {
        setrlimit(resource, limit, limit).map_err(|error| said("limit resources", &error.into()))?;
    }
    nix::sys::prctl::set_no_new_privs()?;
    rules::enforce(&shown)?;
    filter::enforce()
}

/// What of the home may be shown and written; empty: all of it.
fn entries(level: Level) -> Vec<&'static str> {
    match level {
        Level::Home => vec![""],
        Level::Strict | Level::Off => ENTRIES.into_iter().chain([SCRATCH]).collect(),
    }
}

/// The places of those, in a home whose own path has no links, that are there and lead nowhere else.
pub(super) fn owned(home: &Path, level: Level) -> Vec<PathBuf> {
    let is_here = |entry: &&str| {
        let steps = Path::new(entry).ancestors().filter(|step| !step.as_os_str().is_empty());
        steps.map(|step| std::fs::symlink_metadata(home.join(step))).all(|it| it.is_ok_and(|it| !it.is_symlink()))
    };
    let place = |entry: &str| if entry.is_empty() { home.to_owned() } else { home.join(entry) };
    entries(level).into_iter().filter(is_here).map(place).collect()
}

/// Tells the kernel that interface 1 is up: one request over netlink.
pub(super) fn loopback_up() -> io::Result<()> {
    const NEW_LINK: u16 = 16;
    const REQUEST: u16 = 1;
    const UP: u32 = 1;
    let link = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    // nlmsghdr: length, type, flags, sequence, port; ifinfomsg: family, pad, type, index, flags, change.
    let mut request = Vec::with_capacity(32);
    request.extend_from_slice(&32_u32.to_ne_bytes());
    request.extend_from_slice(&NEW_LINK.to_ne_bytes());
    request.extend_from_slice(&REQUEST.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(&1_i32.to_ne_bytes());
    request.extend_from_slice(&UP.to_ne_bytes());
    request.extend_from_slice(&UP.to_ne_bytes());
    use std::os::fd::AsRawFd as _;
    sendto(link.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

/// Runs the program and outlives every child; its exit code.
fn run(argv: &[String], cwd: &Path, env: &BTreeMap<String, String>) -> io::Result<u8> {
    let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("there is no command"))?;
    let child = Command::new(program)
        .args(arguments)
        .current_dir(cwd)
        .env_clear()
        .envs(env)
        .process_group(0)
        .spawn()
        .map_err(|error| said(&format!("run {program} in {}", cwd.display()), &error))?;
    let main = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == main => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => {
                return Ok(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
