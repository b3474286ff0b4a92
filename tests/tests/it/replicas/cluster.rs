//! N replicas on one database and workers that find whichever is there.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hermes_proto::v1;
use hermes_tests::drill;
use hermes_tests::postgres::TestPostgres;
use hermes_tests::relay::{Relay, Target};
use hermes_tests::system::{Grpc, binary, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::SOON;

/// A file that only its owner may read.
fn secret_file(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn command(program: &str) -> Command {
    let mut command = Command::new(binary(program));
    command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// One running replica.
pub(super) struct Replica {
    child: Child,
    // Held open: whoever writes to a pipe without a reader is ended by it.
    _stdout: Lines<BufReader<ChildStdout>>,
    ready: String,
    token: String,
    token_file: PathBuf,
}

impl Replica {
    /// The `name=value` of the ready line.
    pub(super) fn said(&self, name: &str) -> &str {
        let mut words = self.ready.split(' ');
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).expect("the ready line has it")
    }

    pub(super) fn grpc(&self) -> Grpc {
        Grpc::at(self.said("grpc"), &self.token)
    }

    pub(super) fn json(&self, args: &[&str]) -> Value {
        let mut hermesctl = std::process::Command::new(binary("hermesctl"));
        hermesctl.env_clear().args(["--server", &format!("http://{}", self.said("grpc")), "--token-file"]);
        hermesctl.arg(&self.token_file).args(args).args(["-o", "json"]);
        run(hermesctl, b"", SOON).ok().json()
    }

    /// Its number.
    pub(super) fn number(&self) -> u64 {
        self.json(&["status"])["replica"].as_u64().unwrap()
    }

    /// Status and text of `/readyz`.
    pub(super) async fn readyz(&self) -> (u16, String) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let answer = reqwest::get(format!("http://{}/readyz", self.said("http"))).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Accepts a message of chat `chat`; answers its turn.
    pub(super) async fn submit(&self, chat: &str, number: usize) -> Result<String, tonic::Status> {
        let request = v1::SubmitRequest {
            source: Some(v1::Source { platform: "gateway".into(), chat_id: chat.into(), ..v1::Source::default() }),
            text: format!("<{chat}:{number}>"),
            dedupe_key: Some(format!("{chat}-{number}")),
            ..v1::SubmitRequest::default()
        };
        Ok(self.grpc().messages().submit(request).await?.into_inner().turn)
    }

    /// Waits for the end of a turn.
    pub(super) async fn ended(&self, turn: &str) -> v1::TurnEnded {
        let request = v1::GetTurnRequest { turn: turn.to_owned(), wait: true };
        let answer = tokio::time::timeout(SOON, self.grpc().messages().get_turn(request)).await.expect("it ends");
        answer.unwrap().into_inner().ended.unwrap()
    }

    pub(super) async fn kill9(mut self) {
        self.child.kill().await.unwrap();
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().expect("it runs")).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Ends it in order.
    pub(super) async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = tokio::time::timeout(SOON, self.child.wait()).await.expect("it ends").unwrap();
        assert!(status.success(), "{status}");
    }
}

/// See the module.
pub(super) struct Cluster {
    pub(super) database: TestPostgres,
    url: String,
    env: Vec<(&'static str, String)>,
    flags: Vec<&'static str>,
    /// Leads workers to replicas.
    pub(super) way: Relay,
    started: usize,
    dir: TempDir,
}

impl Cluster {
    /// Without any replica yet. `document` is applied by the first.
    pub(super) async fn new(document: &Value, env: &[(&'static str, &str)], flags: &[&'static str]) -> Self {
        let database = TestPostgres::empty().unwrap();
        let dir = tempfile::Builder::new().prefix("hermes-replicas-").tempdir_in("/tmp").unwrap();
        fs::write(dir.path().join("hermes.yaml"), document.to_string()).unwrap();
        let token = format!("hermes.v1.operator.{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
        secret_file(&dir.path().join("operator.token"), &token);
        Self {
            url: database.url().to_owned(),
            database,
            env: env.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
            flags: flags.to_vec(),
            way: Relay::start(Vec::new()).await.unwrap(),
            started: 0,
            dir,
        }
    }

    /// A relay that new replicas reach the database through.
    pub(super) async fn database_relay(&mut self) -> Relay {
        let (rest, socket_dir) = self.database.url().split_once("?host=").expect("a socket directory");
        let name = rest.rsplit('/').next().unwrap();
        let relay = Relay::start(vec![Target::Unix(Path::new(socket_dir).join(".s.PGSQL.5432"))]).await.unwrap();
        self.url = format!("postgres://hermes@{}/{name}", relay.address());
        relay
    }

    pub(super) async fn replica(&mut self) -> Replica {
        self.start("hermes-control-plane", &[]).await
    }

    /// A replica with drill rules for its points; answers the log of points that it reaches, too. `DIR` in the rules is the
    /// directory of that log.
    pub(super) async fn drilled_replica(&mut self, rules: &str) -> (Replica, PathBuf) {
        let log = self.dir.path().join("points");
        let rules = rules.replace("DIR", &self.dir.path().display().to_string());
        let env = [(drill::POINTS, rules), (drill::LOG, log.display().to_string())];
        (self.start("hermes-drill-control-plane", &env).await, log)
    }

    async fn start(&mut self, program: &str, env: &[(&str, String)]) -> Replica {
        self.started += 1;
        let token_file = self.dir.path().join("operator.token");
        let mut serve = command(program);
        serve.args(["serve", "--database-url", &self.url]).args(&self.flags);
        serve.arg("--config").arg(self.dir.path().join("hermes.yaml")).arg("--operator-token-file").arg(&token_file);
        for flag in ["--grpc-addr", "--http-addr", "--worker-addr"] {
            serve.args([flag, "127.0.0.1:0"]);
        }
        serve
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .envs(env.iter().map(|(name, value)| (name, value)));
        let log_file = self.dir.path().join(format!("serve-{}.log", self.started));
        let log = fs::File::create(&log_file).unwrap();
        let mut child = serve.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(SOON, stdout.next_line()).await;
        let Ok(Ok(Some(ready))) = line else {
            panic!("no ready line: {line:?}\n{}", fs::read_to_string(&log_file).unwrap_or_default())
        };
        let token = fs::read_to_string(&token_file).unwrap();
        Replica { child, _stdout: stdout, ready, token, token_file }
    }

    /// New connections of workers go to the first of these that is there.
    pub(super) fn lead_to(&self, replicas: &[&Replica]) {
        self.way.lead_to(replicas.iter().map(|replica| Target::Tcp(replica.said("worker").parse().unwrap())).collect());
    }

    /// A worker of `main` that is registered with `replica`.
    pub(super) async fn worker(&self, replica: &Replica, slots: &str) -> Child {
        self.worker_in("home", replica, slots).await
    }

    /// The same with a home of that name.
    pub(super) async fn worker_in(&self, home: &str, replica: &Replica, slots: &str) -> Child {
        let made =
            replica.json(&["token", "create", "--role", "worker", "--agent", "main", "--uses", "1", "--ttl", "1h"]);
        let join = self.dir.path().join("join.token");
        secret_file(&join, made["token"].as_str().unwrap());
        let mut worker = command("hermes-worker");
        worker.args(["--server", &format!("https://{}", self.way.address()), "--slots", slots]);
        worker.arg("--home").arg(self.dir.path().join(home)).arg("--join-token-file").arg(&join);
        let log = fs::File::create(self.dir.path().join("worker.log")).unwrap();
        let child = worker.stderr(log).spawn().unwrap();
        let there = async {
            while replica.json(&["worker", "list"]).as_array().unwrap().is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(SOON, there).await.unwrap_or_else(|_| panic!("no worker\n{}", self.logs()));
        child
    }

    /// One row of the database as text.
    pub(super) async fn look(&self, sql: &str) -> String {
        let (client, connection) = tokio_postgres::connect(self.database.url(), tokio_postgres::NoTls).await.unwrap();
        let ask = async {
            client.batch_execute("SET search_path = hermes").await.unwrap();
            let text =
                client.query_one(&format!("SELECT ({sql})::text"), &[]).await.unwrap().get::<_, Option<String>>(0);
            drop(client);
            text.unwrap_or_default()
        };
        tokio::join!(ask, connection).0
    }

    /// The ends of all logs.
    pub(super) fn logs(&self) -> String {
        let mut all = String::new();
        for entry in fs::read_dir(self.dir.path()).unwrap().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                all.push_str(&format!("--- {}\n", entry.file_name().display()));
                all.push_str(&lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n"));
                all.push('\n');
            }
        }
        all
    }
}
