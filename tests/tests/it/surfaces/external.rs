//! Workers that somebody else starts: two processes of one agent, joined by a token file as the manifests do it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hermes_tests::fake_telegram::FakeTelegram;
use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::otlp::{Collector, Span};
use hermes_tests::postgres::TestPostgres;
use hermes_tests::system::{Output, binary, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::{SOON, STOP_WITHIN, account, with_model};

const BOT: &str = "700:a-secret-of-the-bot";
const CHATS: i64 = 20;
const EACH: i64 = 10;

/// A file that only its owner may read.
pub(super) fn secret_file(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// One of the programs, with nothing of the environment of whoever runs the tests; it ends with its value.
fn command(program: &str) -> Command {
    let mut command = Command::new(binary(program));
    command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A control plane that starts no workers, and its operator.
pub(super) struct Plane {
    pub(super) child: Child,
    // Held open: whoever writes to a pipe without a reader is ended by it.
    _stdout: Lines<BufReader<ChildStdout>>,
    ready: String,
    dir: TempDir,
}

impl Plane {
    pub(super) async fn start(database: &TestPostgres, document: &Value, collector: &Collector) -> Self {
        let dir = tempfile::Builder::new().prefix("hermes-external-").tempdir_in("/tmp").unwrap();
        let (config, token) = (dir.path().join("hermes.yaml"), dir.path().join("operator.token"));
        fs::write(&config, document.to_string()).unwrap();
        secret_file(&token, &format!("hermes.v1.operator.{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())));
        let mut serve = command("hermes-control-plane");
        serve.args(["serve", "--launcher", "external", "--database-url", database.url()]);
        serve.arg("--config").arg(&config).arg("--operator-token-file").arg(&token);
        for flag in ["--grpc-addr", "--http-addr", "--worker-addr"] {
            serve.args([flag, "127.0.0.1:0"]);
        }
        serve.env("FRONT_TOKEN", BOT).env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
        let log = fs::File::create(dir.path().join("serve.log")).unwrap();
        let mut child = serve.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(SOON, stdout.next_line()).await;
        let log = || fs::read_to_string(dir.path().join("serve.log")).unwrap_or_default();
        let Ok(Ok(Some(ready))) = line else { panic!("no ready line: {line:?}\n{}", log()) };
        Self { child, _stdout: stdout, ready, dir }
    }

    /// The `name=value` of the ready line.
    pub(super) fn said(&self, name: &str) -> &str {
        let mut words = self.ready.split(' ');
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).expect("the ready line has it")
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn json(&self, args: &[&str]) -> Value {
        self.run(args).ok().json()
    }

    /// What a command answers, or why it was refused.
    pub(super) fn try_json(&self, args: &[&str]) -> Result<Value, String> {
        let output = self.run(args);
        if output.code == Some(0) { Ok(output.json()) } else { Err(output.err) }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut hermesctl = std::process::Command::new(binary("hermesctl"));
        hermesctl.env_clear().args(["--server", &format!("http://{}", self.said("grpc")), "--token-file"]);
        hermesctl.arg(self.file("operator.token")).args(args).args(["-o", "json"]);
        run(hermesctl, b"", SOON)
    }

    /// The connected workers of the agent, as soon as there are `count`.
    pub(super) async fn workers(&self, count: usize) -> Vec<Value> {
        let look = async {
            loop {
                let listed = self.json(&["worker", "list"]);
                let workers = listed.as_array().unwrap();
                if workers.len() == count {
                    return workers.clone();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(SOON, look).await.unwrap_or_else(|_| panic!("there are not {count} workers"))
    }

    /// A worker as the manifests start it, with its own home.
    pub(super) fn worker(&self, name: &str) -> Child {
        let mut worker = command("hermes-worker");
        worker.args(["--server", &format!("https://{}", self.said("worker"))]);
        worker.arg("--home").arg(self.file(name)).arg("--join-token-file").arg(self.file("join.token"));
        worker.stderr(fs::File::create(self.file(&format!("{name}.log"))).unwrap()).spawn().unwrap()
    }
}

/// Ends a process in order; answers how long it took.
pub(super) async fn end(process: &mut Child) -> Duration {
    let asked = Instant::now();
    terminate(process);
    let status = tokio::time::timeout(SOON, process.wait()).await.expect("it ends").unwrap();
    assert!(status.success(), "{status}");
    asked.elapsed()
}

fn terminate(process: &Child) {
    let pid = i32::try_from(process.id().expect("it runs")).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
}

/// Which worker each turn was given to, from the control plane's own spans.
pub(super) fn claims(spans: &[Span]) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut claims = BTreeMap::<_, BTreeSet<_>>::new();
    for span in spans.iter().filter(|span| span.name == "claim") {
        claims.entry(span.attributes["worker"].as_str()).or_default().insert(span.attributes["turn"].as_str());
    }
    claims
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_share_an_agents_turns_and_one_goes_on_alone() {
    let (fake, mock) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let (database, collector) = (TestPostgres::empty().unwrap(), Collector::start().await.unwrap());
    // Long enough for turns to be running when one worker is stopped.
    mock.otherwise(Behaviour::Delay(Duration::from_millis(100)));
    let accounts = [account("front", "FRONT_TOKEN", &fake)];
    let document =
        json!({"agents": {"coder": {}}, "default_agent": "coder", "platforms": {"telegram": {"accounts": accounts}}});
    let bot = fake.bot(BOT);
    let mut plane = Plane::start(&database, &with_model(&mock, document), &collector).await;

    let made = plane.json(&["token", "create", "--role", "worker", "--agent", "coder", "--uses", "2", "--ttl", "1h"]);
    secret_file(&plane.file("join.token"), made["token"].as_str().unwrap());
    let mut leaving = plane.worker("one");
    let mut staying = plane.worker("two");
    let workers = plane.workers(2).await;
    let pids: BTreeSet<_> = workers.iter().filter_map(|worker| worker["pid"].as_u64()).collect();
    assert_eq!(pids, BTreeSet::from([leaving.id().unwrap().into(), staying.id().unwrap().into()]));
    assert!(workers.iter().all(|worker| worker["agent"] == "coder"), "{workers:?}");

    // The token is used up.
    let mut third = plane.worker("three");
    let refused = tokio::time::timeout(SOON, third.wait()).await.expect("it does not stay").unwrap();
    assert_eq!(refused.code(), Some(1));

    for number in 0..EACH {
        for chat in 1..=CHATS {
            bot.push_text(chat, chat, &number.to_string());
        }
    }
    let total = usize::try_from(CHATS * EACH).unwrap();
    assert!(bot.wait_until(SOON, |bot| bot.deliveries().len() >= total * 2 / 5).await, "{}", bot.deliveries().len());
    end(&mut leaving).await;
    assert!(bot.deliveries().len() < total, "it was stopped in the middle");

    for chat in 1..=CHATS {
        let there = bot.wait_for(chat, usize::try_from(EACH).unwrap(), SOON).await;
        let there = there.unwrap_or_else(|there| panic!("chat {chat} has only {there:?}"));
        let numbers: Vec<&str> = there.iter().filter_map(|delivery| delivery.text.split(' ').next()).collect();
        let expected: Vec<String> = (0..EACH).map(|number| number.to_string()).collect();
        assert_eq!(numbers, expected, "chat {chat}");
    }
    let remaining = plane.workers(1).await;
    assert_eq!(remaining[0]["pid"].as_u64(), staying.id().map(u64::from));

    let stopped = end(&mut plane.child).await;
    assert!(stopped <= STOP_WITHIN, "the stop took {stopped:?}");
    // Without a control plane too; how it went is not the point.
    terminate(&staying);
    tokio::time::timeout(SOON, staying.wait()).await.expect("it ends").unwrap();
    assert_eq!(bot.deliveries().len(), total, "none lost, none twice");

    let count = |spans: &[Span]| claims(spans).values().map(BTreeSet::len).sum::<usize>();
    let spans = collector.wait_for(SOON, |spans| count(spans) >= total).await.unwrap();
    let claims = claims(&spans);
    let ids: BTreeSet<String> = workers.iter().map(|worker| text(&worker["worker_id"])).collect();
    assert_eq!(claims.keys().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>(), ids, "both had turns");
    assert!(claims.values().all(|turns| turns.len() >= 10), "each its share: {:?}", claims.values().map(BTreeSet::len));
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
