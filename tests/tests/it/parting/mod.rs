//! Parting: with workers, with replicas, with turns that take too long, and with what a backup brought back.
//!
//! Replicas are real processes on a database of their own. Workers are real ones, or scripted ones that speak the protocol by
//! hand where a real one would be too well behaved.

mod contract;
mod overrun;
mod restored;
mod rolling;
mod scripted;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hermes_tests::system::{Output, binary, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Longer than anything here takes; an error is shown then.
const SOON: Duration = Duration::from_secs(40);

/// One of the programs, with nothing of the environment of whoever runs the tests; it ends with its value.
fn command(program: &str) -> Command {
    let mut command = Command::new(binary(program));
    command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A file that only its owner may read.
fn secret_file(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A replica that starts no workers.
struct Plane {
    child: Child,
    // Held open: whoever writes to a pipe without a reader is ended by it.
    _stdout: Lines<BufReader<ChildStdout>>,
    ready: String,
    dir: TempDir,
}

impl Plane {
    /// Starts it and waits until it is ready.
    async fn start(database_url: &str, document: &Value, env: &[(&str, &str)]) -> Self {
        match Self::try_start(database_url, document, env).await {
            Ok(plane) => plane,
            Err(log) => panic!("no ready line:\n{log}"),
        }
    }

    /// The same with a listener for workers at this address.
    async fn start_at(database_url: &str, document: &Value, env: &[(&str, &str)], workers: &str) -> Self {
        match Self::begin(database_url, document, env, workers).await {
            Ok(plane) => plane,
            Err(log) => panic!("no ready line:\n{log}"),
        }
    }

    /// [`Plane::start`]; its log when it does not become ready.
    async fn try_start(database_url: &str, document: &Value, env: &[(&str, &str)]) -> Result<Self, String> {
        Self::begin(database_url, document, env, "127.0.0.1:0").await
    }

    async fn begin(database_url: &str, document: &Value, env: &[(&str, &str)], workers: &str) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("hermes-parting-").tempdir_in("/tmp").unwrap();
        let (config, token) = (dir.path().join("hermes.yaml"), dir.path().join("operator.token"));
        fs::write(&config, document.to_string()).unwrap();
        secret_file(&token, &format!("hermes.v1.operator.{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())));
        let mut serve = command("hermes-control-plane");
        serve.args(["serve", "--launcher", "external", "--database-url", database_url]);
        serve.arg("--config").arg(&config).arg("--operator-token-file").arg(&token);
        serve.args(["--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--worker-addr", workers]);
        serve.envs(env.iter().copied());
        let log = fs::File::create(dir.path().join("serve.log")).unwrap();
        let mut child = serve.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        match tokio::time::timeout(SOON, stdout.next_line()).await {
            Ok(Ok(Some(ready))) => Ok(Self { child, _stdout: stdout, ready, dir }),
            _ => Err(fs::read_to_string(dir.path().join("serve.log")).unwrap_or_default()),
        }
    }

    /// The `name=value` of the ready line.
    fn said(&self, name: &str) -> &str {
        let mut words = self.ready.split(' ');
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).expect("the ready line has it")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.file("serve.log")).unwrap_or_default()
    }

    /// hermesctl at this replica.
    fn ctl(&self, args: &[&str]) -> Output {
        run(self.hermesctl(args), b"", SOON)
    }

    fn hermesctl(&self, args: &[&str]) -> std::process::Command {
        let mut hermesctl = std::process::Command::new(binary("hermesctl"));
        hermesctl.env_clear().args(["--server", &format!("http://{}", self.said("grpc")), "--token-file"]);
        hermesctl.arg(self.file("operator.token")).args(args).args(["-o", "json"]);
        hermesctl
    }

    fn json(&self, args: &[&str]) -> Value {
        self.ctl(args).ok().json()
    }

    /// A message of this chat, without waiting for its answer.
    fn tell(&self, chat: &str, text: &str) -> Value {
        self.json(&["send", "--platform", "gateway", "--chat-id", chat, "--text", text])
    }

    /// The same with its answer, whatever that is; the exit code of a failed turn is 1.
    fn ask(&self, chat: &str, text: &str) -> tokio::task::JoinHandle<Value> {
        let asking = self.hermesctl(&["send", "--platform", "gateway", "--chat-id", chat, "--text", text, "--wait"]);
        tokio::task::spawn_blocking(move || run(asking, b"", SOON).json())
    }

    /// A join token for workers of `agent`.
    fn join_token(&self, agent: &str) -> String {
        let made = self.json(&["token", "create", "--role", "worker", "--agent", agent, "--uses", "9", "--ttl", "1h"]);
        made["token"].as_str().unwrap().to_owned()
    }

    /// Ends it in order.
    async fn stop(&mut self) {
        terminate(&self.child);
        let status = tokio::time::timeout(SOON, self.child.wait()).await.expect("it ends").unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }
}

fn terminate(process: &Child) {
    let pid = i32::try_from(process.id().expect("it runs")).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
}

/// An agent `main` that answers by itself, with these limits.
fn document(limits: Value) -> Value {
    json!({"agents": {"main": {}}, "limits": limits})
}

/// The first column of the first row, as text.
fn look(url: &str, sql: &str) -> String {
    let work = || {
        let mut client = postgres::Client::connect(url, postgres::NoTls).unwrap();
        let rows = client.simple_query(sql).unwrap();
        let text = rows.iter().find_map(|row| match row {
            postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        text.unwrap_or_default()
    };
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap()
}

/// Looks until the database says so.
async fn until(url: &str, what: &str, sql: &str, want: &str) {
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let got = look(url, sql);
        if got == want {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{what}: {got:?} instead of {want:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
