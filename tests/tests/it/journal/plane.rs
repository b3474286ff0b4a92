//! A control plane with a database of its own, and workers that do exactly what a test says.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hermes_proto::v1;
use hermes_proto::v1::control_message::Message as Told;
use hermes_proto::v1::identity_service_client::IdentityServiceClient;
use hermes_proto::v1::model_service_client::ModelServiceClient;
use hermes_proto::v1::worker_message::Message as Says;
use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_tests::drill::{Mechanism, WITHOUT};
use hermes_tests::mock_model::MockModel;
use hermes_tests::postgres::TestPostgres;
use hermes_tests::system::{binary, run};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Status, Streaming};

use crate::identity::fixture::{identity, key_and_csr};

/// Longer than anything here takes; an error is shown then.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A control plane whose workers are those of the test. Agents: `coder`, who answers, and `other`.
pub(crate) struct Plane {
    _child: Child,
    // Held open: whoever writes to a pipe without a reader is ended by it.
    _stdout: Lines<BufReader<ChildStdout>>,
    ready: String,
    dir: TempDir,
    database: TestPostgres,
}

fn secret_file(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

impl Plane {
    /// As shipped.
    pub(crate) async fn start(mock: &MockModel) -> Self {
        Self::start_as("hermes-control-plane", &[], mock).await
    }

    /// With its seams opened, and without a mechanism.
    pub(crate) async fn drilled(without: Option<Mechanism>, mock: &MockModel) -> Self {
        let without: Vec<_> = without.iter().map(|mechanism| (WITHOUT, mechanism.name())).collect();
        Self::start_as("hermes-drill-control-plane", &without, mock).await
    }

    async fn start_as(program: &str, env: &[(&str, &str)], mock: &MockModel) -> Self {
        let database = TestPostgres::empty().unwrap();
        let dir = tempfile::Builder::new().prefix("hermes-journal-").tempdir_in("/tmp").unwrap();
        let (config, token) = (dir.path().join("hermes.yaml"), dir.path().join("operator.token"));
        let document = json!({
            "model": "mock/mock-1",
            "providers": {"mock": {"kind": "openai", "base_url": mock.base_url()}},
            "agents": {"coder": {}, "other": {}},
            "default_agent": "coder",
        });
        fs::write(&config, document.to_string()).unwrap();
        secret_file(&token, &format!("hermes.v1.operator.{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())));
        let mut serve = Command::new(binary(program));
        serve.env_clear().envs(env.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
        serve.args(["serve", "--launcher", "external", "--database-url", database.url()]);
        serve.arg("--config").arg(&config).arg("--operator-token-file").arg(&token);
        for flag in ["--grpc-addr", "--http-addr", "--worker-addr"] {
            serve.args([flag, "127.0.0.1:0"]);
        }
        let log = fs::File::create(dir.path().join("serve.log")).unwrap();
        let mut child = serve.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(SOON, stdout.next_line()).await;
        let log = || fs::read_to_string(dir.path().join("serve.log")).unwrap_or_default();
        let Ok(Ok(Some(ready))) = line else { panic!("no ready line: {line:?}\n{}", log()) };
        Self { _child: child, _stdout: stdout, ready, dir, database }
    }

    /// The `name=value` of the ready line.
    fn said(&self, name: &str) -> &str {
        let mut words = self.ready.split(' ');
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).expect("the ready line has it")
    }

    /// In its directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn hermesctl(&self, args: &[&str]) -> hermes_tests::system::Output {
        let mut hermesctl = std::process::Command::new(binary("hermesctl"));
        hermesctl.env_clear().args(["--server", &format!("http://{}", self.said("grpc")), "--token-file"]);
        hermesctl.arg(self.file("operator.token")).args(args);
        run(hermesctl, b"", SOON)
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        self.hermesctl(&[args, &["-o", "json"]].concat()).ok().json()
    }

    pub(crate) fn table(&self, args: &[&str]) -> String {
        self.hermesctl(args).ok().out
    }

    /// A message of one chat; answers its turn.
    pub(crate) fn tell(&self, text: &str) -> Value {
        self.tell_in("1", text)
    }

    /// A message of that chat.
    pub(crate) fn tell_in(&self, chat: &str, text: &str) -> Value {
        self.json(&["send", "--platform", "telegram", "--chat-id", chat, "--text", text])
    }

    /// `hermesctl turn show`.
    pub(crate) fn turn(&self, turn: &Value) -> Value {
        self.json(&["turn", "show", turn["turn"].as_str().unwrap()])
    }

    /// What `/metrics` says of this line's name and labels.
    pub(crate) async fn metric(&self, name: &str) -> Option<String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let text = reqwest::get(format!("http://{}/metrics", self.said("http"))).await.unwrap().text().await.unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))
    }

    /// A connection to its database.
    #[expect(clippy::disallowed_methods, reason = "it ends with its client")]
    pub(crate) async fn sql(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(self.database.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        client.batch_execute("SET search_path = hermes").await.unwrap();
        client
    }

    /// A registered worker of `agent` with one slot.
    pub(crate) async fn worker(&self, agent: &str) -> Worker {
        self.worker_with(agent, 1).await
    }

    /// One with so many slots.
    pub(crate) async fn worker_with(&self, agent: &str, slots: u32) -> Worker {
        let made = self.json(&["token", "create", "--role", "worker", "--agent", agent, "--uses", "1", "--ttl", "1h"]);
        let authority: Vec<u8> =
            self.sql().await.query_one("SELECT certificate FROM authorities", &[]).await.unwrap().get(0);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(pem(&authority)))
            .domain_name("hermes-control-plane");
        let endpoint = Endpoint::from_shared(format!("https://{}", self.said("worker"))).unwrap();
        let anonymous = endpoint.clone().tls_config(tls.clone()).unwrap().connect_lazy();
        let (key, csr_der) = key_and_csr(rcgen::CertificateParams::default());
        let request = v1::JoinRequest { token: made["token"].as_str().unwrap().to_owned(), csr_der };
        let joined = IdentityServiceClient::new(anonymous).join(request).await.unwrap().into_inner();
        let tls = tls.identity(identity(&joined.certificate_der, &key));
        Worker::attach(endpoint.tls_config(tls).unwrap().connect_lazy(), slots).await
    }
}

fn pem(der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

/// A worker that says what a test has it say. It heartbeats by itself.
pub(crate) struct Worker {
    channel: Channel,
    pub(crate) says: mpsc::Sender<v1::WorkerMessage>,
    told: Streaming<v1::ControlMessage>,
    /// What came while something else was waited for.
    passed_over: VecDeque<Told>,
    _heart: JoinSet<()>,
}

impl Worker {
    async fn attach(channel: Channel, slots: u32) -> Self {
        let (says, messages) = mpsc::channel(16);
        let register = v1::Register {
            protocol_version: hermes_proto::WORKER_PROTOCOL_VERSION,
            slots,
            pid: 1,
            home: "/nowhere".to_owned(),
            build: "scripted".to_owned(),
            curates: false,
        };
        says.send(message(Says::Register(register))).await.unwrap();
        let told = WorkerServiceClient::new(channel.clone()).attach(ReceiverStream::new(messages)).await;
        let mut heart = JoinSet::new();
        let beats = says.clone();
        heart.spawn(async move {
            for sequence in 1.. {
                tokio::time::sleep(Duration::from_secs(2)).await;
                if beats.send(message(Says::Heartbeat(v1::Heartbeat { sequence }))).await.is_err() {
                    return;
                }
            }
        });
        let mut worker =
            Self { channel, says, told: told.unwrap().into_inner(), passed_over: VecDeque::new(), _heart: heart };
        worker
            .told("Welcome", |told| if let Told::Welcome(welcome) = told { Some(welcome.clone()) } else { None })
            .await;
        worker
    }

    pub(crate) async fn say(&self, said: Says) {
        self.says.send(message(said)).await.unwrap();
    }

    /// The next message that `pick` takes; the others are kept for later.
    pub(crate) async fn told<T>(&mut self, what: &str, pick: impl Fn(&Told) -> Option<T>) -> T {
        if let Some(at) = self.passed_over.iter().position(|told| pick(told).is_some()) {
            return self.passed_over.remove(at).as_ref().and_then(&pick).unwrap();
        }
        let look = async {
            loop {
                let told =
                    self.told.message().await.unwrap().unwrap_or_else(|| panic!("the stream ended before {what}"));
                let told = told.message.expect("a message");
                match pick(&told) {
                    Some(found) => return found,
                    None => self.passed_over.push_back(told),
                }
            }
        };
        tokio::time::timeout(SOON, look).await.unwrap_or_else(|_| panic!("no {what} came"))
    }

    /// The stream ends.
    pub(crate) async fn hung_up(&mut self) {
        let end = async { while let Ok(Some(_)) = self.told.message().await {} };
        tokio::time::timeout(SOON, end).await.expect("the stream ends");
    }

    /// What it may have the control plane do.
    pub(crate) fn tool(&self) -> Tool {
        Tool(WorkerServiceClient::new(self.channel.clone()))
    }

    /// The next assignment, accepted.
    pub(crate) async fn assignment(&mut self) -> v1::Assignment {
        let given =
            self.told("Assignment", |told| if let Told::Assignment(given) = told { Some(given.clone()) } else { None });
        let given = given.await;
        self.say(Says::Accepted(v1::Accepted { turn: given.turn })).await;
        given
    }

    /// What becomes of this step.
    pub(crate) async fn step(&mut self, report: v1::StepReport) -> v1::StepOutcome {
        let (turn, step, phase) = (report.turn, report.step, report.phase);
        self.say(Says::Step(report)).await;
        let ack = self.told("StepAck", |told| match told {
            Told::StepAck(ack) if (ack.turn, ack.step, ack.phase) == (turn, step, phase) => Some(*ack),
            _ => None,
        });
        ack.await.outcome()
    }

    /// The turn succeeds with this reply; whether that was stored.
    pub(crate) async fn complete(&mut self, turn: Option<v1::TurnRef>, reply: &str) -> bool {
        let completed =
            v1::Completed { turn, outcome: v1::Outcome::Succeeded.into(), reply: reply.into(), usage: None };
        self.say(Says::Completed(completed)).await;
        self.told("CompletedAck", |told| if let Told::CompletedAck(ack) = told { Some(*ack) } else { None })
            .await
            .stored
    }

    /// Says goodbye and gives its turn back.
    pub(crate) async fn hand_back(&mut self, turn: Option<v1::TurnRef>) {
        self.say(Says::GoingAway(v1::GoingAway { reason: "the test says so".to_owned() })).await;
        self.told("Drain", |told| if let Told::Drain(drain) = told { Some(*drain) } else { None }).await;
        self.say(Says::HandBack(v1::HandBack { turn })).await;
        self.told("CompletedAck", |told| if let Told::CompletedAck(ack) = told { Some(*ack) } else { None }).await;
    }

    /// Asks for a model's reply, offering the tool `act`.
    pub(crate) async fn generate(
        &self,
        turn: Option<v1::TurnRef>,
        step: u32,
        text: &str,
    ) -> Result<Streaming<v1::GenerateEvent>, Status> {
        use v1::generate_request::Part;
        let tool = v1::ToolSpec {
            name: "act".into(),
            description: "Acts.".into(),
            parameters: "{\"type\":\"object\"}".into(),
        };
        let said =
            v1::ModelMessage { role: v1::ModelRole::User.into(), text: text.into(), ..v1::ModelMessage::default() };
        let parts = [
            Part::Header(v1::GenerateHeader { turn, step, traceparent: String::new() }),
            Part::Tool(tool),
            Part::Messages(v1::ModelMessages { messages: vec![said] }),
        ];
        let parts = tokio_stream::iter(parts.map(|part| v1::GenerateRequest { part: Some(part) }));
        ModelServiceClient::new(self.channel.clone()).generate(parts).await.map(tonic::Response::into_inner)
    }

    /// All events of a model's reply.
    pub(crate) async fn reply(&self, turn: Option<v1::TurnRef>, step: u32, text: &str) -> Reply {
        let mut events = self.generate(turn, step, text).await.unwrap();
        let mut reply = Reply::default();
        let read = async {
            while let Some(event) = events.message().await.unwrap() {
                reply.take(event);
            }
        };
        tokio::time::timeout(SOON, read).await.expect("the reply ends");
        reply
    }

    /// The secrets of the program that answers a turn, as (name, value).
    pub(crate) async fn secrets(&self, turn: Option<v1::TurnRef>) -> Result<Vec<(String, String)>, Status> {
        let request = v1::FetchRuntimeSecretsRequest { turn };
        let answer = WorkerServiceClient::new(self.channel.clone()).fetch_runtime_secrets(request).await?;
        Ok(answer.into_inner().secrets.into_iter().map(|secret| (secret.name, secret.value)).collect())
    }

    /// The journal of a turn, as (step, phase, kind, body, unknown), chunks joined.
    pub(crate) async fn journal(&self, turn: Option<v1::TurnRef>) -> Result<Vec<v1::JournalChunk>, Status> {
        let request = v1::FetchJournalRequest { turn };
        let mut chunks = WorkerServiceClient::new(self.channel.clone()).fetch_journal(request).await?.into_inner();
        let (mut rows, mut continued) = (Vec::<v1::JournalChunk>::new(), false);
        while let Some(chunk) = chunks.message().await? {
            let more = chunk.more;
            match rows.last_mut() {
                Some(last) if continued => last.body.extend(chunk.body),
                _ => rows.push(chunk),
            }
            continued = more;
        }
        Ok(rows)
    }
}

/// The tools that the control plane runs for a worker; cheap to clone.
#[derive(Clone)]
pub(crate) struct Tool(WorkerServiceClient<Channel>);

impl Tool {
    pub(crate) async fn list(&self) -> Vec<v1::OfferedTool> {
        self.0.clone().list_tools(v1::ListToolsRequest {}).await.unwrap().into_inner().tools
    }

    pub(crate) async fn call(
        &self,
        turn: Option<v1::TurnRef>,
        step: u32,
        call: v1::ToolCall,
    ) -> Result<v1::CallToolResponse, Status> {
        let request = v1::CallToolRequest { turn, step, call: Some(call) };
        self.0.clone().call_tool(request).await.map(tonic::Response::into_inner)
    }

    /// Wants its agent to merge these skills; the turn.
    pub(crate) async fn consolidate(&self, order: u64, skills: &[&str]) -> Result<String, Status> {
        let skills = skills.iter().map(|skill| (*skill).to_owned()).collect();
        let answer = self.0.clone().consolidate_skills(v1::ConsolidateSkillsRequest { order, skills }).await?;
        Ok(answer.into_inner().turn)
    }

    /// Whether the call may be made.
    pub(crate) async fn permission(
        &self,
        turn: Option<v1::TurnRef>,
        step: u32,
        call: v1::ToolCall,
    ) -> Result<v1::AskApprovalResponse, Status> {
        let request = v1::AskApprovalRequest { turn, step, call: Some(call) };
        self.0.clone().ask_approval(request).await.map(tonic::Response::into_inner)
    }
}

/// A model's reply as its worker saw it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reply {
    pub(crate) text: String,
    pub(crate) calls: Vec<v1::ToolCall>,
    pub(crate) done: Option<v1::GenerateDone>,
}

impl Reply {
    pub(crate) fn take(&mut self, event: v1::GenerateEvent) {
        use v1::generate_event::Event;
        match event.event.expect("an event") {
            Event::TextDelta(text) => self.text.push_str(&text),
            Event::ToolCall(call) => self.calls.push(call),
            Event::Done(done) => self.done = Some(done),
            Event::Failed(failed) => panic!("{failed:?}"),
        }
    }
}

fn message(said: Says) -> v1::WorkerMessage {
    v1::WorkerMessage { message: Some(said) }
}
