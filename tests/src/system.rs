//! [`Up`]: the real `hermesctl up` with everything it starts, in a temporary directory, for one test.
//!
//! Called by the whole-system tests. It owns the process, its directory and its log. Always true: ports are free ones, the
//! environment is built from nothing (the developer's keys and settings are not seen), and nothing outlives the test: a
//! dropped [`Up`] is killed and its children with it, and a killed test takes `up` along, because the kernel ends `up`
//! when the thread that started it ends (so do not start one from a thread that ends early). It fails by panicking, with
//! the end of the log, since only tests use it. It deliberately knows no expectation of any test.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a harness fails its test by panicking")]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use hermes_proto::v1;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

/// From the start to the ready line: a new Postgres cluster, migrations, a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long one command of hermesctl may take.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);
/// From the end of `up` to that of everything it started.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// How often a condition that nobody announces is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How much of the log a failure shows.
const LOG_LINES: usize = 40;

/// How to start.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The document for `--config`; written to a file of this `up` at each start.
    pub config: Option<String>,
    /// Further environment variables.
    pub env: Vec<(String, OsString)>,
    /// Further flags; one that names a listener replaces the free port.
    pub args: Vec<OsString>,
    /// The drill binaries instead of those that are shipped; the variables of [`crate::drill`] go into `env`.
    pub drill: bool,
}

impl Options {
    /// With this document.
    pub fn config(text: impl Into<String>) -> Self {
        Self { config: Some(text.into()), ..Self::default() }
    }

    /// And with this flag and its value.
    #[must_use]
    pub fn flag(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.args.extend([name.into(), value.as_ref().to_owned()]);
        self
    }
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// stdout.
    pub out: String,
    /// stderr.
    pub err: String,
    /// How long it ran.
    pub took: Duration,
}

impl Output {
    /// Itself, when the exit code is 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.code == Some(0), "failed with {:?}\nstdout: {}\nstderr: {}", self.code, self.out, self.err);
        self
    }

    /// stderr, when the exit code is this one and stdout is empty.
    #[track_caller]
    pub fn refused(self, code: i32) -> String {
        assert!(self.code == Some(code), "exit {:?}\nstdout: {}\nstderr: {}", self.code, self.out, self.err);
        assert!(!self.err.trim().is_empty(), "a refusal must say why");
        self.err
    }

    /// The end of `diff` on a document that is not what is stored.
    #[track_caller]
    pub fn differs(&self) {
        assert!(self.code == Some(1) && !self.out.is_empty(), "exit {:?}: {}{}", self.code, self.out, self.err);
    }

    /// stdout as JSON, whatever the exit code.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{error}\nstdout: {}\nstderr: {}", self.out, self.err))
    }
}

/// Where a ready `up` listens, and its database.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Endpoint {
    /// gRPC for operators.
    pub grpc: String,
    /// HTTP.
    pub http: String,
    /// The control plane's pid.
    pub pid: i32,
    /// Connection string.
    pub database_url: String,
}

/// A process, known by pid and start time, so that a reused pid is somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// The first word of what it runs.
    pub name: String,
    started: u64,
}

impl Process {
    /// Whether it still runs; a zombie does not.
    pub fn runs(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && stat.state != 'Z')
    }
}

/// A running `up`, or one that was ended and may be started again.
#[derive(Debug)]
pub struct Up {
    child: Option<Child>,
    // Behind a lock so that a test's threads can share this.
    stdout: Mutex<mpsc::Receiver<String>>,
    options: Options,
    // Last, so that it is removed when the processes are gone.
    root: TempDir,
}

impl Up {
    /// Starts it in a fresh directory and waits until it is ready.
    #[track_caller]
    pub fn start(options: Options) -> Self {
        let (_, stdout) = mpsc::channel();
        let mut up = Self { child: None, stdout: Mutex::new(stdout), options, root: root() };
        up.restart();
        up
    }

    /// Starts it again in the same directory and waits until it is ready.
    #[track_caller]
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let mut command = command(self.root.path(), &self.options);
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        self.child = Some(child);
        let said = receiver.recv_timeout(READY_WITHIN);
        self.stdout = Mutex::new(receiver);
        match said {
            Ok(line) if line.starts_with("ready ") => {}
            other => panic!("not ready: {other:?}; its log ends with:\n{}", self.log_tail()),
        }
    }

    /// Starts it again with other options.
    #[track_caller]
    pub fn restart_with(&mut self, options: Options) {
        self.options = options;
        self.restart();
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// The directory around it: a place for the test's files; `HOME` is `home` in it.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A file with this content in [`Up::root`].
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.root.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// What it wrote to stderr so far, over all starts.
    pub fn log(&self) -> String {
        fs::read(self.log_file()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Further lines on stdout since the ready line.
    pub fn said(&self) -> Vec<String> {
        self.stdout.lock().unwrap().try_iter().collect()
    }

    /// Where it listens.
    #[track_caller]
    pub fn endpoint(&self) -> Endpoint {
        serde_json::from_slice(&fs::read(self.data().join("endpoint.json")).unwrap()).unwrap()
    }

    /// Pid of the control plane.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    /// It and all its descendants, now.
    #[track_caller]
    pub fn processes(&self) -> Vec<Process> {
        tree(self.pid())
    }

    /// The hermesctl that finds this `up` by `HERMES_DATA_DIR`.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(binary("hermesctl"));
        clean(&mut command, self.root.path());
        command.env("HERMES_DATA_DIR", self.data()).args(args);
        command
    }

    /// Runs hermesctl.
    #[track_caller]
    pub fn ctl<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        run(self.command(args), b"", COMMAND_WITHIN)
    }

    /// Runs hermesctl with this on stdin.
    #[track_caller]
    pub fn ctl_with_input<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>, input: &[u8]) -> Output {
        run(self.command(args), input, COMMAND_WITHIN)
    }

    /// Runs hermesctl with `-o json`, which must succeed.
    #[track_caller]
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned()).chain(["-o".into(), "json".into()]);
        self.ctl(args).ok().json()
    }

    /// `up` once more on the same directory, until it ends by itself.
    #[track_caller]
    pub fn second(&self, options: &Options, limit: Duration) -> Output {
        run(command(self.root.path(), options), b"", limit)
    }

    /// gRPC with the operator token.
    #[track_caller]
    pub fn grpc(&self) -> Grpc {
        self.grpc_as(&fs::read_to_string(self.data().join("operator.token")).unwrap())
    }

    /// gRPC with this token.
    #[track_caller]
    pub fn grpc_as(&self, token: &str) -> Grpc {
        Grpc::at(&self.endpoint().grpc, token)
    }

    /// Its database. The client must not be used inside a tokio runtime: see [`Up::sql`].
    #[track_caller]
    pub fn sql(&self, text: &str) {
        let url = self.endpoint().database_url;
        let work = || postgres::Client::connect(&url, postgres::NoTls).unwrap().batch_execute(text).unwrap();
        thread::scope(|scope| scope.spawn(work).join()).unwrap();
    }

    /// SIGKILL to the control plane alone; answers who ran, to be watched.
    #[track_caller]
    pub fn kill9(&mut self) -> Vec<Process> {
        let processes = self.processes();
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        processes
    }

    /// Waits until the control plane has ended by itself, and all that it started.
    #[track_caller]
    pub fn until_it_ends(&mut self) {
        let mut child = self.child.take().unwrap();
        let mut processes = Vec::new();
        until(COMMAND_WITHIN, "the end of up", || {
            let now = tree(i32::try_from(child.id()).unwrap());
            if now.len() > 1 {
                processes = now;
            }
            child.try_wait().unwrap()
        });
        until_gone(GONE_WITHIN, &processes);
    }

    /// SIGINT, as Ctrl-C at a terminal; answers how it ended, after how long, and who ran before.
    #[track_caller]
    pub fn interrupt(&mut self) -> (ExitStatus, Duration, Vec<Process>) {
        let processes = self.processes();
        let mut child = self.child.take().unwrap();
        let asked = Instant::now();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
        let status = until(COMMAND_WITHIN, "the end of up", || child.try_wait().unwrap());
        (status, asked.elapsed(), processes)
    }

    fn log_file(&self) -> PathBuf {
        self.root.path().join("up.log")
    }

    /// The end of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let processes = i32::try_from(child.id()).map(tree).unwrap_or_default();
        // Its children end with it; what they leave in the directory is removed after they are gone.
        let _ = child.kill();
        let _ = child.wait();
        let end = Instant::now() + GONE_WITHIN;
        while processes.iter().any(Process::runs) && Instant::now() < end {
            thread::sleep(LOOK_EVERY);
        }
        if thread::panicking() {
            let mut stderr = std::io::stderr().lock();
            let _ = writeln!(stderr, "the log of up ends with:\n{}", self.log_tail());
        }
    }
}

/// Clients of the control plane's services.
#[derive(Clone, Debug)]
pub struct Grpc {
    channel: Channel,
    bearer: Bearer,
}

/// Puts the token into each call.
#[derive(Clone, Debug)]
pub struct Bearer(MetadataValue<Ascii>);

/// What the clients talk through.
pub type Transport = InterceptedService<Channel, Bearer>;

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl Grpc {
    /// Of the control plane at this address, with this token.
    #[track_caller]
    pub fn at(address: &str, token: &str) -> Self {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self { channel: endpoint.connect_lazy(), bearer: Bearer(format!("Bearer {}", token.trim()).parse().unwrap()) }
    }

    /// What a client of any service talks through.
    pub fn transport(&self) -> Transport {
        InterceptedService::new(self.channel.clone(), self.bearer.clone())
    }

    /// MessageService.
    pub fn messages(&self) -> v1::message_service_client::MessageServiceClient<Transport> {
        v1::message_service_client::MessageServiceClient::new(self.transport())
    }

    /// ApprovalService.
    pub fn approvals(&self) -> v1::approval_service_client::ApprovalServiceClient<Transport> {
        v1::approval_service_client::ApprovalServiceClient::new(self.transport())
    }

    /// CronService.
    pub fn cron(&self) -> v1::cron_service_client::CronServiceClient<Transport> {
        v1::cron_service_client::CronServiceClient::new(self.transport())
    }

    /// AgentService.
    pub fn agents(&self) -> v1::agent_service_client::AgentServiceClient<Transport> {
        v1::agent_service_client::AgentServiceClient::new(self.transport())
    }

    /// RouteService.
    pub fn routes(&self) -> v1::route_service_client::RouteServiceClient<Transport> {
        v1::route_service_client::RouteServiceClient::new(self.transport())
    }

    /// SessionService.
    pub fn sessions(&self) -> v1::session_service_client::SessionServiceClient<Transport> {
        v1::session_service_client::SessionServiceClient::new(self.transport())
    }

    /// SystemService.
    pub fn system(&self) -> v1::system_service_client::SystemServiceClient<Transport> {
        v1::system_service_client::SystemServiceClient::new(self.transport())
    }
}

/// What `look` finds, asked again and again until there is something.
#[track_caller]
pub fn until<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        thread::sleep(LOOK_EVERY);
    }
}

/// Waits until none of them runs.
#[track_caller]
pub fn until_gone(limit: Duration, processes: &[Process]) {
    let left = || processes.iter().filter(|process| process.runs()).collect::<Vec<_>>();
    let end = Instant::now() + limit;
    while !left().is_empty() {
        assert!(Instant::now() < end, "still running after {limit:?}: {:?}", left());
        thread::sleep(LOOK_EVERY);
    }
}

/// An `up` that ends by itself, in a directory of its own.
#[track_caller]
pub fn up_to_its_end(options: &Options, limit: Duration) -> Output {
    run(command(root().path(), options), b"", limit)
}

/// Runs a command to its end with this on stdin.
#[track_caller]
pub fn run(mut command: Command, input: &[u8], limit: Duration) -> Output {
    let asked = Instant::now();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
    thread::scope(|scope| {
        // A command that refuses early does not read everything.
        scope.spawn(move || stdin.write_all(input));
        let out = scope.spawn(move || read(&mut stdout));
        let err = scope.spawn(move || read(&mut stderr));
        let end = asked + limit;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() >= end {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            thread::sleep(LOOK_EVERY);
        };
        let took = asked.elapsed();
        let (out, err) = (out.join().unwrap(), err.join().unwrap());
        let Some(status) = status else { panic!("{command:?} did not end within {limit:?}\nstderr: {err}") };
        assert!(!err.contains("panicked at"), "{err}");
        Output { code: status.code(), out, err, took }
    })
}

fn read(from: &mut impl std::io::Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn root() -> TempDir {
    // Under root Postgres is another user: it may pass through, but not look around.
    let root = tempfile::Builder::new()
        .prefix("hermes-system-")
        .permissions(Permissions::from_mode(0o711))
        .tempdir_in("/tmp")
        .unwrap();
    fs::create_dir(root.path().join("home")).unwrap();
    root
}

/// `up` in `root`, bound to the life of the calling thread.
fn command(root: &Path, options: &Options) -> Command {
    // The kernel keeps the signal over the following executions, of hermesctl and of the control plane it becomes.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if options.drill {
        // What `hermesctl up` becomes.
        command.arg(binary("hermes-drill-control-plane")).arg("dev");
    } else {
        command.arg(binary("hermesctl")).arg("up");
    }
    command.arg("--data-dir").arg(root.join("data"));
    for flag in ["--grpc-addr", "--http-addr", "--worker-addr"] {
        if !options.args.iter().any(|arg| arg == flag) {
            command.args([flag, "127.0.0.1:0"]);
        }
    }
    if let Some(text) = &options.config {
        let file = root.join("hermes.yaml");
        fs::write(&file, text).unwrap();
        command.arg("--config").arg(file);
    }
    clean(&mut command, root);
    command.args(&options.args).envs(options.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).process_group(0);
    command
}

fn clean(command: &mut Command, root: &Path) {
    command.env_clear().env("HOME", root.join("home"));
    for name in ["PATH", "HERMES_PG_BIN", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
}

/// A program of this build, beside the directory of the running test.
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let dir = own.ancestors().nth(2).unwrap();
    for program in ["hermesctl", "hermes-control-plane", "hermes-worker", "hermes-sandbox"] {
        let file = dir.join(program);
        assert!(file.is_file(), "{} is missing; build all with `cargo build --workspace`", file.display());
    }
    dir.join(name)
}

struct Stat {
    name: String,
    state: char,
    parent: i32,
    started: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may hold anything.
    let (head, tail) = text.rsplit_once(')')?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    Some(Stat {
        name: head.split_once('(')?.1.to_owned(),
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

fn tree(top: i32) -> Vec<Process> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let all: Vec<(i32, Stat)> = pids.filter_map(|pid| Some((pid, stat(pid)?))).collect();
    let mut found = vec![top];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(all.iter().filter(|(_, stat)| stat.parent == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    let process = |pid: i32| {
        let (_, stat) = all.iter().find(|(known, _)| *known == pid)?;
        Some(Process { pid, name: stat.name.clone(), started: stat.started })
    };
    found.into_iter().filter_map(process).collect()
}
