//! [`World`]: replicas, workers and their Postgres as real processes, the lines between them, and what stands around them.
//!
//! Made and ended by each kind of run. It owns all of it. Always true: whatever ends is started again; every line between a
//! worker and a replica, and between a replica and Postgres, goes through a proxy of its own; nothing is left when it has
//! ended, however that happens. It decides nothing about faults and reads no table.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hermes_tests::cluster::{Cluster, ROLE};
use hermes_tests::fake_telegram::{Bot, FakeTelegram};
use hermes_tests::proxy::{Proxy, Target};
use rand::Rng as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::model::Model;
use super::process::{Process, Program};
use super::record::{Accepted, Record, Recorder, Shown};
use super::traffic::Written;

/// The account of the bot.
pub(crate) const ACCOUNT: &str = "drill";
const TOKEN: &str = "700:a-secret-of-the-bot";
/// From the first start to the ready line, and from a restart to it.
const READY_WITHIN: Duration = Duration::from_secs(90);
const COMMAND_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Time limits of the control plane's model calls, milliseconds.
const FIRST_TOKEN_MS: &str = "20000";
const BETWEEN_TOKENS_MS: &str = "5000";

/// Held while the server is stopped and started again.
#[expect(clippy::disallowed_types, reason = "whoever stops the server waits for it to be back")]
pub(crate) type Shared<T> = tokio::sync::Mutex<T>;

/// What is kept of the database for people who look for a cause.
const TABLES: [&str; 7] = ["sessions", "ready", "workers", "slots", "replicas", "lanes", "outbox"];

/// What to build.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Where the programs are.
    pub(crate) binaries: PathBuf,
    pub(crate) seed: u64,
    pub(crate) replicas: usize,
    pub(crate) agents: usize,
    pub(crate) workers_per_agent: usize,
    /// Sessions that a worker serves at the same time.
    pub(crate) slots: u32,
    /// Chats, numbered from 1; chat `n` is agent `n % agents`'s.
    pub(crate) chats: i64,
    /// How long the model thinks about a reply: from, to, milliseconds.
    pub(crate) thinks: (u64, u64),
    /// Most messages that may wait, for an agent and for a session; the control plane's own bounds where nothing is said.
    pub(crate) queued: Option<u64>,
}

/// One replica and its line to Postgres.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) process: Arc<Process>,
    pub(crate) database: Proxy,
}

/// One worker and its line to whatever replica is there.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) agent: usize,
    pub(crate) process: Process,
    pub(crate) line: Proxy,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) replicas: Vec<Replica>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) cluster: Arc<Shared<Cluster>>,
    pub(crate) bot: Bot,
    pub(crate) model: Model,
    pub(crate) recorder: Recorder,
    /// What was written to the bot, by update.
    pub(crate) written: Written,
    /// The operator token.
    pub(crate) token: String,
    telegram: FakeTelegram,
    // Last, so that it is removed after the processes are gone.
    dir: TempDir,
}

/// The program `name`, with the drills' failpoints and tools where that was built.
fn program(binaries: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let drill = binaries.join(name.replacen("hermes-", "hermes-drill-", 1));
    let found = [drill, binaries.join(name)].into_iter().find(|file| file.is_file());
    found.with_context(|| {
        format!(
            "{name} is missing in {}; build all with `cargo build --workspace`, or name --bin-dir",
            binaries.display()
        )
    })
}

/// A command with nothing of this environment but the way to system programs.
fn clean(program: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command
}

fn secret_file(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = fs::File::options();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).context("write a secret")?;
    file.write_all(text.as_bytes()).context("write a secret")
}

impl World {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// When a program is missing or something is not ready in time; with the end of its log.
    pub(crate) async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let mut builder = tempfile::Builder::new();
        let dir = builder.prefix("hermes-chaos-").permissions(fs::Permissions::from_mode(0o711)).tempdir()?;
        let recorder = Recorder::new();
        let telegram = FakeTelegram::start().await.context("start the Bot API server")?;
        let bot = telegram.bot(TOKEN);
        let model = Model::start(plan.seed, plan.thinks, recorder.clone()).await?;
        let cluster = Cluster::start().await?;
        let socket = cluster.socket();

        secret_file(&dir.path().join("bot-token"), TOKEN)?;
        let token = format!("hermes.v1.operator.{}", url_safe(&rand::rng().random::<[u8; 32]>()));
        secret_file(&dir.path().join("operator.token"), &token)?;
        let document = document(plan, dir.path(), &telegram.base(), model.base_url());
        fs::write(dir.path().join("hermes.yaml"), document.to_string()).context("write the document")?;

        let mut world = Self {
            replicas: Vec::new(),
            workers: Vec::new(),
            cluster: Arc::new(Shared::new(cluster)),
            written: Written::default(),
            bot,
            model,
            recorder,
            token,
            telegram,
            dir,
        };
        for index in 0..plan.replicas {
            let target = Target::Unix(socket.clone());
            let database = Proxy::start(Arc::new(move || Some(target.clone()))).await.context("start a proxy")?;
            let start = world.replica(plan, &database)?;
            let logs = world.dir.path().to_owned();
            let process = Arc::new(Process::start(Program { name: format!("replica-{index}"), start, logs }));
            // The first one migrates; the others find it done.
            until_ready(&process).await.with_context(|| world.tails())?;
            world.replicas.push(Replica { process, database });
        }
        world.start_workers(plan).await?;
        Ok(world)
    }

    fn replica(&self, plan: &Plan, database: &Proxy) -> anyhow::Result<super::process::Start> {
        let serve = program(&plan.binaries, "hermes-control-plane")?;
        let dir = self.dir.path().to_owned();
        let url = format!("postgres://{ROLE}@{}/{ROLE}", database.address());
        Ok(Box::new(move || {
            let mut command = clean(&serve);
            command.args(["serve", "--launcher", "external", "--config"]).arg(dir.join("hermes.yaml"));
            command.arg("--operator-token-file").arg(dir.join("operator.token"));
            for flag in ["--grpc-addr", "--http-addr", "--worker-addr"] {
                command.args([flag, "127.0.0.1:0"]);
            }
            command.env("DATABASE_URL", &url);
            command.env("HERMES_MODEL_FIRST_TOKEN_MS", FIRST_TOKEN_MS);
            command.env("HERMES_MODEL_BETWEEN_TOKENS_MS", BETWEEN_TOKENS_MS);
            command
        }))
    }

    async fn start_workers(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let binary = program(&plan.binaries, "hermes-worker")?;
        let processes: Vec<_> = self.replicas.iter().map(|replica| Arc::clone(&replica.process)).collect();
        for agent in 0..plan.agents {
            let join = self.dir.path().join(format!("{}.join", agent_id(agent)));
            let id = agent_id(agent);
            let token = ["token", "create", "--role", "worker", "--agent", &id, "--uses", "10000", "--ttl", "24h"];
            let replica = self.addresses("grpc").into_iter().flatten().next().context("no replica is ready")?;
            let made = self.ask(plan, replica, &token).await?;
            secret_file(&join, made["token"].as_str().context("a join token")?)?;
            for number in 0..plan.workers_per_agent {
                let (processes, next) = (processes.clone(), AtomicUsize::new(self.workers.len()));
                // Each connection goes to the next replica that is there, as behind a balancer.
                let aim = move || {
                    let first = next.fetch_add(1, Relaxed);
                    let around =
                        (0..processes.len()).filter_map(|step| processes.get((first + step) % processes.len()));
                    around.filter_map(|process| address(process, "worker")).next().map(Target::Tcp)
                };
                let line = Proxy::start(Arc::new(aim)).await.context("start a proxy")?;
                let name = format!("{}-{number}", agent_id(agent));
                let (binary, join, dir) = (binary.clone(), join.clone(), self.dir.path().to_owned());
                let (server, home) = (format!("https://{}", line.address()), dir.join(format!("home-{name}")));
                let (slots, effects) = (plan.slots.to_string(), self.effects_file());
                let start: super::process::Start = Box::new(move || {
                    let mut command = clean(&binary);
                    command.args(["--server", &server, "--slots", &slots, "--home"]).arg(&home);
                    command.arg("--join-token-file").arg(&join).env("HERMES_DRILL_EFFECTS", &effects);
                    command.env("HOME", &dir);
                    command
                });
                let process = Process::start(Program { name, start, logs: self.dir.path().to_owned() });
                self.workers.push(Worker { agent, process, line });
            }
        }
        self.until_connected(plan).await
    }

    /// Waits until every worker is registered.
    ///
    /// # Errors
    /// When that takes too long.
    pub(crate) async fn until_connected(&self, plan: &Plan) -> anyhow::Result<()> {
        let end = Instant::now() + READY_WITHIN;
        loop {
            let mut count = 0;
            // Each replica lists those that are connected to it.
            for address in self.addresses("grpc").into_iter().flatten() {
                let listed = self.ask(plan, address, &["worker", "list"]).await;
                count += listed.ok().and_then(|workers| workers.as_array().map(Vec::len)).unwrap_or_default();
            }
            if count >= self.workers.len() {
                return Ok(());
            }
            if Instant::now() >= end {
                bail!("only {count} of {} workers are connected\n{}", self.workers.len(), self.tails());
            }
            sleep(LOOK_EVERY * 4).await;
        }
    }

    /// hermesctl's answer as JSON, from this replica.
    async fn ask(&self, plan: &Plan, replica: SocketAddr, args: &[&str]) -> anyhow::Result<Value> {
        let mut command = clean(&plan.binaries.join("hermesctl"));
        command.args(["--server", &format!("http://{replica}"), "--token-file"]);
        command.arg(self.dir.path().join("operator.token")).args(args).args(["-o", "json"]);
        let mut command = tokio::process::Command::from(command);
        let output = timeout(COMMAND_WITHIN, command.kill_on_drop(true).output()).await.context("hermesctl hangs")?;
        let output = output.context("run hermesctl")?;
        if !output.status.success() {
            bail!("hermesctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("read hermesctl's answer")
    }

    /// [`World::ask`] of any replica that is ready.
    ///
    /// # Errors
    /// When hermesctl fails.
    pub(crate) async fn command(&self, plan: &Plan, args: &[&str]) -> anyhow::Result<Value> {
        let replica = self.addresses("grpc").into_iter().flatten().next().context("no replica is ready")?;
        self.ask(plan, replica, args).await
    }

    /// Where each replica listens for `name`; `None` for one that is not ready.
    pub(crate) fn addresses(&self, name: &str) -> Vec<Option<SocketAddr>> {
        self.replicas.iter().map(|replica| address(&replica.process, name)).collect()
    }

    fn effects_file(&self) -> PathBuf {
        self.dir.path().join("effects")
    }

    /// Everything that the stand-ins saw so far.
    pub(crate) fn record(&self) -> Record {
        let mut record = self.recorder.locked().clone();
        let written = self.written.locked();
        for (at, update) in self.bot.confirmed() {
            if let Some(number) = written.get(&update) {
                record.accepted.push(Accepted { number: *number, at: self.recorder.at(at) });
            }
        }
        for shown in self.bot.deliveries() {
            let chat = shown.chat_id.parse().unwrap_or_default();
            record.shown.push(Shown { chat, text: shown.text, at: self.recorder.at(shown.at) });
        }
        let effects = fs::read(self.effects_file()).unwrap_or_default();
        record.effects = String::from_utf8_lossy(&effects).lines().map(str::to_owned).collect();
        record
    }

    /// Ends of processes that nobody asked for, and panics in their logs.
    pub(crate) fn surprises(&self) -> Vec<String> {
        let mut all: Vec<String> = self.processes().flat_map(Process::surprises).collect();
        for process in self.processes() {
            let log = fs::read(self.log(process.name())).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let panics = log.lines().filter(|line| line.contains("panicked"));
            all.extend(panics.map(|line| format!("{}: {line}", process.name())));
        }
        all
    }

    /// Replicas, then workers.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        let replicas = self.replicas.iter().map(|replica| replica.process.as_ref());
        replicas.chain(self.workers.iter().map(|worker| &worker.process))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// The end of every log.
    pub(crate) fn tails(&self) -> String {
        let mut text = String::new();
        let entries = fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        let mut logs: Vec<_> =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
        logs.sort();
        for log in logs {
            let content = fs::read(&log).unwrap_or_default();
            let content = String::from_utf8_lossy(&content);
            let lines: Vec<&str> = content.lines().collect();
            let end = lines.get(lines.len().saturating_sub(8)..).unwrap_or_default().join("\n");
            text.push_str(&format!("{}:\n{end}\n", log.file_name().unwrap_or_default().to_string_lossy()));
        }
        text
    }

    /// Copies the logs, and writes the record and what the database holds there as JSON.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) async fn keep(&self, to: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
        for entry in fs::read_dir(self.dir.path()).context("list the logs")?.flatten() {
            let path = entry.path();
            let is_log = path.extension().is_some_and(|end| end == "log") || path.ends_with("effects");
            if let (true, Some(name)) = (is_log, path.file_name()) {
                fs::copy(&path, to.join(name)).with_context(|| format!("copy {}", path.display()))?;
            }
        }
        for table in TABLES {
            // For whoever looks for a cause; the verdict does not know it. Without a database there is none.
            let rows = self.rows(table).await.unwrap_or_else(|error| format!("{error:#}"));
            fs::write(to.join(format!("{table}.jsonl")), rows).context("write what the database holds")?;
        }
        let record = serde_json::to_vec(&self.record()).context("write the record")?;
        fs::write(to.join("record.json"), record).context("write the record")
    }

    async fn rows(&self, table: &str) -> anyhow::Result<String> {
        let client = self.cluster.lock().await.connect().await?;
        let rows = client.query(&format!("SELECT row_to_json(one)::text FROM hermes.{table} AS one"), &[]).await?;
        let lines = rows.iter().map(|row| row.try_get::<_, String>(0)).collect::<Result<Vec<_>, _>>()?;
        Ok(lines.join("\n"))
    }

    /// Ends everything in order.
    pub(crate) async fn end(self) {
        let Self { replicas, workers, telegram, cluster, .. } = self;
        let ends = workers.into_iter().map(|worker| worker.process.end());
        futures_util::future::join_all(ends).await;
        for replica in replicas {
            if let Some(process) = Arc::into_inner(replica.process) {
                process.end().await;
            }
        }
        telegram.stop().await;
        if let Some(cluster) = Arc::into_inner(cluster) {
            let _ = cluster.into_inner().stop_immediately().await;
        }
    }
}

/// Waits until its newest instance is ready.
///
/// # Errors
/// When that takes too long.
pub(crate) async fn until_ready(process: &Process) -> anyhow::Result<()> {
    let look = async {
        while process.ready().is_none() {
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(READY_WITHIN, look).await.with_context(|| format!("{} is not ready", process.name()))
}

/// The `name=address` of a replica's ready line.
fn address(process: &Process, name: &str) -> Option<SocketAddr> {
    let line = process.ready()?;
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?.parse().ok()
}

/// The id of agent `number`.
pub(crate) fn agent_id(number: usize) -> String {
    format!("agent{number}")
}

/// The document: one bot that talks to everybody, and a route for each chat.
fn document(plan: &Plan, dir: &Path, api_base: &str, model: &str) -> Value {
    let agents: serde_json::Map<String, Value> = (0..plan.agents).map(|agent| (agent_id(agent), json!({}))).collect();
    let routes: Vec<Value> = (1..=plan.chats)
        .map(|chat| {
            let agent = agent_id(agent_of(chat, plan.agents));
            json!({"match": {"platform": "telegram", "chat_id": chat.to_string()}, "agent": agent})
        })
        .collect();
    let mut document = json!({
        "model": "mock/mock-1",
        "providers": {"mock": {"kind": "openai", "base_url": model}},
        "agents": agents,
        "routes": routes,
        "platforms": {"telegram": {"accounts": [{
            "id": ACCOUNT, "token_file": dir.join("bot-token"), "api_base": api_base, "allow_all": true, "rate": "off",
        }]}},
    });
    if let Some(most) = plan.queued {
        document["limits"] = json!({"queued_per_agent": most, "queued_per_session": most});
    }
    document
}

/// Whose chat it is.
pub(crate) fn agent_of(chat: i64, agents: usize) -> usize {
    usize::try_from(chat).unwrap_or_default().checked_rem(agents).unwrap_or_default()
}

fn url_safe(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..=chunk.len() {
            let index = usize::try_from(bits >> (18 - 6 * place) & 63).unwrap_or_default();
            text.push(ALPHABET.get(index).copied().map_or('A', char::from));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_a_valid_one() {
        let plan = Plan {
            binaries: PathBuf::new(),
            seed: 1,
            replicas: 2,
            agents: 3,
            workers_per_agent: 2,
            slots: 4,
            chats: 6,
            thinks: (1, 2),
            queued: Some(500),
        };
        let text = document(&plan, Path::new("/x"), "http://127.0.0.1:1", "http://127.0.0.1:2/v1").to_string();
        let (document, warnings) = hermes_core::config::load_offline(&text).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(document.platforms.telegram[ACCOUNT].rate, hermes_core::config::Rate::Off);
        assert_eq!((agent_of(1, 3), agent_of(3, 3)), (1, 0));
    }

    #[test]
    fn a_token_of_32_bytes_has_43_characters() {
        assert_eq!(url_safe(&[0xff; 32]).len(), 43);
        assert_eq!(url_safe(b"Man"), "TWFu");
    }
}
