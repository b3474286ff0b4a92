//! Child processes that cannot outlive us: the only place of this package that forks.
//!
//! Called by [`super::postgres`] and [`super::launcher`]. It owns one long-lived thread per [`Spawner`], from which every
//! child is started, because the kernel sends the parent-death signal when the spawning *thread* ends; each [`Child`]
//! keeps that thread alive. Always true of a child: its own process group, a parent-death signal, no descriptor but
//! stdin (null), stdout, stderr and the secret's, an environment built from nothing, and it is reaped exactly once by a
//! thread of its own, never through SIGCHLD. A signal never reaches a reused pid: signalling and reaping share a lock.
//! A dropped [`Child`] is killed. It deliberately does not restart, log or interpret anything. Linux only.
#![expect(unsafe_code, reason = "the audited module: pre_exec and the two system calls that have no safe wrapper")]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeReader, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
pub use nix::sys::signal::Signal;
use nix::sys::signal::{kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid, getppid};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};

/// Longest secret in bytes: what every pipe holds without a reader.
const SECRET_BYTES_MAX: usize = 4096;
/// Stack of the spawning and reaping threads; they call nothing deep.
const STACK_BYTES: usize = 128 * 1024;

/// Why a child could not be started. No process is left behind in any case.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is missing, not executable, or the system refused the process.
    #[error("cannot start {}", program.display())]
    Start {
        /// What was to be executed.
        program: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The spawning thread could not be started, or it ended.
    #[error("cannot run the thread that starts processes")]
    Thread(#[source] io::Error),
}

/// Where a child's stdout and stderr go, both to the same place.
#[derive(Debug)]
pub enum Output {
    /// Nowhere.
    Null,
    /// To this file.
    File(File),
    /// To us: [`Child::take_output`].
    Pipe,
}

/// What to start and how. Built by the caller as a plain value.
#[derive(Debug)]
pub struct ChildSpec {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments. Never a secret: other users can read them.
    pub args: Vec<OsString>,
    /// The whole environment; nothing is inherited. Never a secret.
    pub environment: Vec<(OsString, OsString)>,
    /// User and group id to become, without supplementary groups; `None` stays who we are. Needs root.
    pub user: Option<(u32, u32)>,
    /// The signal the child gets when we die, however we die.
    pub death_signal: Signal,
    /// Where its output goes.
    pub output: Output,
    /// A flag and a secret: the child gets the flag followed by the number of a descriptor to read the secret from.
    pub secret: Option<(&'static str, SecretString)>,
}

/// Handle to the spawning thread; cheap to clone.
#[derive(Clone, Debug)]
pub struct Spawner {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    spec: ChildSpec,
    reply: oneshot::Sender<Result<Child, Error>>,
    spawner: Spawner,
}

/// A running or ended child process. Dropping it kills its process group.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    /// `true` once reaped: from then on the pid may belong to somebody else.
    reaped: Arc<Mutex<bool>>,
    exit: watch::Receiver<Option<ExitStatus>>,
    output: Option<PipeReader>,
    /// Keeps the thread alive whose end would kill the child.
    _spawner: Spawner,
}

impl Spawner {
    /// Starts the spawning thread. It ends when the last handle and the last child are gone.
    ///
    /// # Errors
    /// [`Error::Thread`] when the system has no thread for us.
    pub fn start() -> Result<Self, Error> {
        let (requests, mut queue) = mpsc::channel::<Request>(16);
        std::thread::Builder::new()
            .name("spawner".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                while let Some(Request { spec, reply, spawner }) = queue.blocking_recv() {
                    // A caller that gave up drops the child, which kills it.
                    let _ = reply.send(start(spec, spawner));
                }
            })
            .map_err(Error::Thread)?;
        Ok(Self { requests })
    }

    /// Starts a child.
    ///
    /// # Errors
    /// [`Error::Start`] when it could not be executed.
    pub async fn spawn(&self, spec: ChildSpec) -> Result<Child, Error> {
        let gone = || Error::Thread(io::Error::other("the spawning thread ended"));
        let (reply, answer) = oneshot::channel();
        let request = Request { spec, reply, spawner: self.clone() };
        self.requests.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Child {
    /// The host's process id, which is also its process group.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Waits until the child has ended. May be dropped and called again.
    pub async fn wait(&mut self) -> ExitStatus {
        match self.exit.wait_for(Option::is_some).await.map(|status| *status) {
            Ok(Some(status)) => status,
            // The reaping thread always sends before it ends, so this is not reached; waiting would be the safe answer.
            _ => std::future::pending().await,
        }
    }

    /// How the child ended, or `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Sends `signal` to the child alone; nothing happens once it has ended.
    pub fn signal(&self, signal: Signal) {
        self.unless_reaped(|| kill(self.pid, signal));
    }

    /// Sends `signal` to the child's process group; nothing happens once the child has ended.
    pub fn signal_group(&self, signal: Signal) {
        self.unless_reaped(|| killpg(self.pid, signal));
    }

    /// Stops the child: each step's signal, then its wait; SIGKILL to the whole group at last. Answers when it has ended.
    pub async fn stop(&mut self, steps: &[(Signal, Duration)]) -> ExitStatus {
        for (signal, patience) in steps {
            self.signal(*signal);
            if let Ok(status) = tokio::time::timeout(*patience, self.wait()).await {
                return status;
            }
        }
        self.signal_group(Signal::SIGKILL);
        self.wait().await
    }

    /// The child's stdout and stderr, once, if they were piped. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch the pipe.
    pub fn take_output(&mut self) -> io::Result<Option<pipe::Receiver>> {
        self.output.take().map(|reader| pipe::Receiver::from_owned_fd(OwnedFd::from(reader))).transpose()
    }

    fn unless_reaped(&self, send: impl FnOnce() -> nix::Result<()>) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped {
            // ESRCH cannot happen (an unreaped child keeps its pid), EPERM only after the child became somebody else.
            let _ = send();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal_group(Signal::SIGKILL);
    }
}

/// Runs on the spawning thread.
fn start(spec: ChildSpec, spawner: Spawner) -> Result<Child, Error> {
    let program = spec.program.clone();
    start_inner(spec, spawner).map_err(|source| Error::Start { program, source })
}

fn start_inner(spec: ChildSpec, spawner: Spawner) -> io::Result<Child> {
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).env_clear().envs(spec.environment).current_dir("/").process_group(0).stdin(Stdio::null());
    if let Some((uid, gid)) = spec.user {
        command.uid(uid).gid(gid);
    }
    let mut output = None;
    match spec.output {
        Output::Null => command.stdout(Stdio::null()).stderr(Stdio::null()),
        Output::File(file) => command.stdout(file.try_clone()?).stderr(file),
        Output::Pipe => {
            let (reader, writer) = io::pipe()?;
            output = Some(reader);
            command.stdout(writer.try_clone()?).stderr(writer)
        }
    };
    let secret = match spec.secret {
        Some((flag, secret)) => {
            let reader = filled_pipe(&secret)?;
            command.arg(flag).arg(reader.as_raw_fd().to_string());
            Some(reader)
        }
        None => None,
    };
    let kept = secret.as_ref().map(std::os::fd::AsRawFd::as_raw_fd);
    let (parent, death_signal) = (getpid(), spec.death_signal);
    // SAFETY: the closure runs in the forked child of a threaded process, where only async-signal-safe calls are allowed.
    // `before_exec` makes system calls only: it takes no lock, allocates nothing, and its captures are plain numbers.
    unsafe { command.pre_exec(move || before_exec(parent, death_signal, kept)) };
    let process = command.spawn()?;
    // `command` holds our copies of the pipe's writing ends; without them the reader sees the child's end.
    drop(command);
    drop(secret);

    let pid = Pid::from_raw(i32::try_from(process.id()).map_err(io::Error::other)?);
    let reaped = Arc::new(Mutex::new(false));
    let (exited, exit) = watch::channel(None);
    let child = Child { pid, reaped: Arc::clone(&reaped), exit, output, _spawner: spawner };
    // On failure `child` is dropped, which kills the process; it then stays a zombie until we end.
    std::thread::Builder::new()
        .name("reaper".into())
        .stack_size(STACK_BYTES)
        .spawn(move || reap(process, pid, &reaped, &exited))?;
    Ok(child)
}

/// A pipe that already holds `secret` and then ends.
fn filled_pipe(secret: &SecretString) -> io::Result<PipeReader> {
    let bytes = secret.expose_secret().as_bytes();
    if bytes.len() > SECRET_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the secret is longer than 4096 bytes"));
    }
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(bytes)?;
    Ok(reader)
}

/// Waits for the child's end, kills what is left of its process group while the pid is still ours, then reaps it.
fn reap(mut process: std::process::Child, pid: Pid, reaped: &Mutex<bool>, exited: &watch::Sender<Option<ExitStatus>>) {
    while let Err(Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {}
    let mut reaped = reaped.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = killpg(pid, Signal::SIGKILL);
    *reaped = true;
    let status = process.wait().unwrap_or_default();
    exited.send_replace(Some(status));
}

/// Runs between fork and exec: async-signal-safe calls only. The user was changed before (that clears the signal).
fn before_exec(parent: Pid, death_signal: Signal, kept: Option<RawFd>) -> io::Result<()> {
    prctl::set_pdeathsig(death_signal)?;
    // We may have died between the fork and the line above; then nobody sends the signal any more.
    if getppid() != parent {
        return Err(Errno::ESRCH.into());
    }
    close_on_exec_from(3)?;
    if let Some(fd) = kept {
        // SAFETY: a system call on a descriptor number; `fd` is open, our parent holds it until the exec is done.
        Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
    }
    Ok(())
}

/// Marks every descriptor from `first` on close-on-exec, which leaves std's own pipe usable until then.
fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: a system call on numbers; the flag CLOEXEC closes nothing now, so no descriptor in use is affected.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 {
        return Ok(());
    }
    // Kernels before 5.11, and filters that do not know the call.
    for fd in first..65_536 {
        // SAFETY: a system call on a number; a closed descriptor answers EBADF, which is what we want to skip.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    fn sh(script: &str) -> ChildSpec {
        ChildSpec {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            environment: vec![("ONLY".into(), "this".into())],
            user: None,
            death_signal: Signal::SIGKILL,
            output: Output::Pipe,
            secret: None,
        }
    }

    async fn output_of(child: &mut Child) -> String {
        let mut text = String::new();
        child.take_output().unwrap().unwrap().read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_child_gets_only_the_given_environment_descriptors_and_secret() {
        let leaked = File::open("/dev/null").unwrap();
        // SAFETY: clears the close-on-exec flag of a descriptor this test owns.
        unsafe { libc::fcntl(leaked.as_raw_fd(), libc::F_SETFD, 0) };
        let mut spec = sh(
            "env | grep -v -e ^PWD= -e ^SHLVL= -e ^_=; ls /proc/self/fd | wc -l; cat /proc/self/fd/$2; echo; echo $$ $(cut -d' ' -f5 /proc/$$/stat)",
        );
        spec.args.push("sh".into());
        spec.secret = Some(("--secret-fd", "s3cret".to_owned().into()));
        let mut child = Spawner::start().unwrap().spawn(spec).await.unwrap();
        let pid = child.pid();
        let text = output_of(&mut child).await;
        let lines: Vec<&str> = text.lines().collect();
        // Three standard descriptors, the secret's, and the one `ls` has open on the directory.
        assert_eq!(lines, ["ONLY=this", "5", "s3cret", &format!("{pid} {pid}")], "{text}");
        assert!(child.wait().await.success());
        drop(leaked);
    }

    #[tokio::test]
    async fn a_missing_program_is_an_error_that_names_it() {
        let mut spec = sh("");
        spec.program = "/nonexistent/worker".into();
        let error = Spawner::start().unwrap().spawn(spec).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot start /nonexistent/worker");
    }

    #[tokio::test]
    async fn stopping_climbs_to_sigkill_and_takes_the_whole_group() {
        let mut child = Spawner::start()
            .unwrap()
            .spawn(sh("trap '' TERM; sleep 600 & echo $!; wait; wait; sleep 600"))
            .await
            .unwrap();
        let mut reader = child.take_output().unwrap().unwrap();
        // The line says that both are there and the signal is ignored.
        assert_ne!(reader.read(&mut [0; 16]).await.unwrap(), 0);
        let status = child.stop(&[(Signal::SIGTERM, Duration::from_millis(50))]).await;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        // The pipe ends when the grandchild, its last writer, is gone.
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.unwrap();
    }

    #[tokio::test]
    async fn a_dropped_child_is_killed() {
        let mut child = Spawner::start().unwrap().spawn(sh("sleep 600")).await.unwrap();
        let mut reader = child.take_output().unwrap().unwrap();
        drop(child);
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "the pipe ends with its last writer");
    }

    /// The part of the next test that runs in a process of its own.
    #[test]
    #[ignore = "started by a_child_dies_with_its_parent"]
    fn parent_of_a_sleeper() {
        if std::env::var_os("TEST_SLEEPER").is_none() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut spec = sh("exec sleep 600");
            spec.output = Output::File(File::from(nix::unistd::dup(io::stderr()).unwrap()));
            let child = Spawner::start().unwrap().spawn(spec).await.unwrap();
            eprintln!("sleeper {}", child.pid());
            std::future::pending::<()>().await;
        });
    }

    #[test]
    fn a_child_dies_with_its_parent() {
        use std::io::{BufRead as _, BufReader, Read as _};
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "local::spawn::tests::parent_of_a_sleeper", "--nocapture"])
            .env("TEST_SLEEPER", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(parent.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("sleeper ") {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "the parent ended early");
        }
        parent.kill().unwrap();
        parent.wait().unwrap();
        // The sleeper holds the pipe's last writing end: its end is the sleeper's end.
        stderr.read_to_end(&mut Vec::new()).unwrap();
    }
}
