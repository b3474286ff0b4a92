//! A control plane for one agent that behaves like the real one at the wire: mutual TLS with its own authority, join
//! tokens with a number of uses, compare-and-swap documents, and streams that the test itself answers.

mod attached;
mod identity;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hermes_proto::v1::identity_service_server::IdentityServiceServer;
use hermes_proto::v1::model_service_server::{ModelService, ModelServiceServer};
use hermes_proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use hermes_proto::v1::*;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::journal::{Journal, Line};
use crate::offered::Offered;
pub(crate) use attached::Attached;

pub(crate) const AGENT: &str = "coder";
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for something that must happen.
pub(crate) async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// A document as stored; `None` is deleted.
type Stored = (u64, Option<Vec<u8>>);

/// What is asked about calls, and the answers to come.
#[derive(Default)]
pub(crate) struct Approvals {
    pub(crate) asked: Vec<(u32, String)>,
    pub(crate) answers: std::collections::VecDeque<ApprovalState>,
    /// Said with each of them, as by a model.
    pub(crate) reason: String,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) joins_left: Mutex<u32>,
    pub(crate) joins: Mutex<u32>,
    pub(crate) renewals: Mutex<u32>,
    pub(crate) refuse_renewals: Mutex<bool>,
    /// Certificates in the order they were issued, and how many of the first ones are refused.
    issued: Mutex<Vec<Vec<u8>>>,
    pub(crate) refuse_first: Mutex<usize>,
    pub(crate) certificate_life: Mutex<Duration>,
    pub(crate) documents: Mutex<BTreeMap<String, Stored>>,
    pub(crate) home_version: Mutex<u64>,
    /// Sent with every fetch, whatever their paths.
    pub(crate) hostile: Mutex<Vec<(String, Vec<u8>)>>,
    pub(crate) transcript: Mutex<Vec<(u64, TranscriptRole, String)>>,
    /// Stored: by which turn, through which, and their texts.
    pub(crate) summaries: Mutex<Vec<(TurnRef, u64, String)>>,
    pub(crate) transcript_fetches: Mutex<Vec<u64>>,
    pub(crate) home_fetches: Mutex<u32>,
    /// Those of the turn's message.
    pub(crate) files: Mutex<Vec<Vec<u8>>>,
    pub(crate) journal: Mutex<Journal>,
    /// What the model says at each step, when it is to answer by itself; and what it was asked, as it saw it.
    pub(crate) script: Mutex<BTreeMap<u32, Line>>,
    asked: Mutex<Vec<(u32, Vec<String>)>>,
    told: Mutex<BTreeMap<u32, Vec<String>>>,
    /// What it runs itself.
    pub(crate) offered: Offered,
    pub(crate) approvals: Mutex<Approvals>,
}

impl State {
    /// Stores a document as another worker or a person would.
    pub(crate) fn put(&self, path: &str, body: Option<&str>) -> u64 {
        let mut home_version = self.home_version.lock().unwrap();
        *home_version += 1;
        let mut documents = self.documents.lock().unwrap();
        let entry = documents.entry(path.to_owned()).or_insert((0, None));
        *entry = (entry.0 + 1, body.map(|body| body.as_bytes().to_vec()));
        *home_version
    }

    /// The tools that the model was last told of at that step.
    pub(crate) fn tools_told(&self, step: u32) -> Vec<String> {
        self.told.lock().unwrap().get(&step).cloned().unwrap_or_default()
    }

    /// What the model was asked at that step, each time.
    pub(crate) fn asked(&self, step: u32) -> Vec<Vec<String>> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(at, _)| *at == step).map(|(_, view)| view.clone()).collect()
    }

    pub(crate) fn document(&self, path: &str) -> Option<(u64, Option<String>)> {
        let documents = self.documents.lock().unwrap();
        let (version, body) = documents.get(path)?;
        Some((*version, body.as_ref().map(|body| String::from_utf8(body.clone()).unwrap())))
    }
}

/// One model call as the test sees it.
pub(crate) struct ModelCall {
    pub(crate) header: GenerateHeader,
    /// Chunks already joined.
    pub(crate) messages: Vec<(ModelRole, String)>,
    /// The same for people, calls and results with their ids, without the system prompt.
    pub(crate) view: Vec<String>,
    pub(crate) tools: Vec<ToolSpec>,
    pub(crate) chunks: usize,
    state: Arc<State>,
    pub(crate) events: mpsc::Sender<Result<GenerateEvent, Status>>,
}

impl ModelCall {
    pub(crate) async fn say(&self, text: &str) {
        self.send(generate_event::Event::TextDelta(text.to_owned())).await;
    }

    /// A reply that asks for tools, journaled as the broker does it.
    pub(crate) async fn ask(self, line: &Line) {
        if !self.state.journal.lock().unwrap().reply(&self.header, line) {
            let fenced = Status::permission_denied("this worker does not run that turn");
            return self.events.send(Err(fenced)).await.expect("the worker reads");
        }
        self.say(&line.text).await;
        for call in &line.calls {
            self.send(generate_event::Event::ToolCall(call.clone())).await;
        }
        self.done().await;
    }

    pub(crate) async fn done(self) {
        let usage = Some(Usage { input_tokens: 3, output_tokens: 5, model: "fake/model".into(), ..Usage::default() });
        self.send(generate_event::Event::Done(GenerateDone {
            usage,
            finish_reason: "stop".into(),
            ..GenerateDone::default()
        }))
        .await;
    }

    pub(crate) async fn fail(self, sentence: &str) {
        let failed = GenerateFailed { message: sentence.to_owned(), reason: "unavailable".into() };
        self.send(generate_event::Event::Failed(failed)).await;
    }

    pub(crate) async fn send(&self, event: generate_event::Event) {
        self.events.send(Ok(GenerateEvent { event: Some(event) })).await.expect("the worker reads");
    }
}

pub(crate) fn turn(session_id: u64, seq: u64, epoch: u64) -> TurnRef {
    TurnRef { session_id, seq, epoch }
}

pub(crate) fn assignment(turn: TurnRef, input: &str) -> Assignment {
    Assignment {
        turn: Some(turn),
        profile: Some(ProfileRevision { revision: 1, ..ProfileRevision::default() }),
        input: input.as_bytes().to_vec(),
        transcript_version: turn.seq - 1,
        attempt: 1,
        history_bytes: 100_000,
        ..Assignment::default()
    }
}

pub(crate) fn says(text: &str) -> String {
    format!("{{\"text\":{text:?}}}")
}

pub(crate) struct Fake {
    pub(crate) state: Arc<State>,
    pub(crate) url: String,
    pub(crate) join_token: String,
    attached: mpsc::Receiver<Attached>,
    calls: mpsc::Receiver<ModelCall>,
    _server: JoinSet<()>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        // Several tests of one process get here; the first one installs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let names = rcgen::CertificateParams::new(vec!["hermes-control-plane".to_owned()]).unwrap();
        let certificate = names.signed_by(&key, &authority).unwrap();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate.pem(), key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(authority.pem()))
            .client_auth_optional(true);

        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap().with_nodelay(Some(true));
        let address = incoming.local_addr().unwrap();
        let authority_text = URL_SAFE_NO_PAD.encode(authority.der());
        let join_token = format!("hermes-join.v1.{}.{authority_text}", URL_SAFE_NO_PAD.encode([42_u8; 32]));
        let state = Arc::new(State::default());
        *state.joins_left.lock().unwrap() = 1;
        *state.certificate_life.lock().unwrap() = Duration::from_secs(3600);
        let (attached_tx, attached) = mpsc::channel(8);
        let (calls_tx, calls) = mpsc::channel(8);
        let service = Service {
            state: Arc::clone(&state),
            authority: Arc::new(authority),
            join_token: join_token.clone(),
            attached: attached_tx,
            calls: calls_tx,
        };
        let server = Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(IdentityServiceServer::new(service.clone()))
            .add_service(ModelServiceServer::new(service.clone()))
            .add_service(WorkerServiceServer::new(service));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { server.serve_with_incoming(incoming).await.expect("the fake serves") });
        Self { state, url: format!("https://{address}"), join_token, attached, calls, _server: tasks }
    }

    pub(crate) async fn attached(&mut self) -> Attached {
        soon("an Attach call", self.attached.recv()).await.expect("the fake runs")
    }

    pub(crate) async fn call(&mut self) -> ModelCall {
        soon("a Generate call", self.calls.recv()).await.expect("the fake runs")
    }

    /// Whether a model call is there already.
    pub(crate) fn no_call(&mut self) -> bool {
        self.calls.try_recv().is_err()
    }
}

#[derive(Clone)]
struct Service {
    state: Arc<State>,
    authority: Arc<rcgen::CertifiedIssuer<'static, rcgen::KeyPair>>,
    join_token: String,
    attached: mpsc::Sender<Attached>,
    calls: mpsc::Sender<ModelCall>,
}

type Answers<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

fn answers<T: Send + 'static>(items: Vec<T>) -> Response<Answers<T>> {
    Response::new(Box::pin(tokio_stream::iter(items.into_iter().map(Ok))))
}

impl Service {
    fn certified<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let certificates = request.peer_certs().unwrap_or_default();
        let Some(certificate) = certificates.first() else {
            return Err(Status::unauthenticated("a worker certificate is needed"));
        };
        let refused = *self.state.refuse_first.lock().unwrap();
        match self.state.issued.lock().unwrap().iter().position(|issued| issued == certificate.as_ref()) {
            Some(index) if index >= refused => Ok(()),
            _ => Err(Status::unauthenticated("the certificate has expired")),
        }
    }

    fn sign(&self, csr_der: Vec<u8>) -> Result<(Vec<u8>, i64), Status> {
        let mut csr = rcgen::CertificateSigningRequestParams::from_der(&csr_der.into())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        csr.params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = csr.signed_by(&self.authority).map_err(|error| Status::internal(error.to_string()))?;
        self.state.issued.lock().unwrap().push(certificate.der().to_vec());
        let life = *self.state.certificate_life.lock().unwrap();
        let expires = jiff::Timestamp::now() + life;
        Ok((certificate.der().to_vec(), expires.as_millisecond()))
    }
}

#[tonic::async_trait]
impl ModelService for Service {
    type GenerateStream = ReceiverStream<Result<GenerateEvent, Status>>;

    async fn generate(
        &self,
        request: Request<Streaming<GenerateRequest>>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        self.certified(&request)?;
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|request| request.part);
        let Some(generate_request::Part::Header(header)) = first else {
            return Err(Status::invalid_argument("the first part is not the header"));
        };
        let (mut messages, mut view, mut chunks, mut open) = (Vec::<(ModelRole, String)>::new(), Vec::new(), 0, false);
        let mut tools = Vec::new();
        while let Some(request) = parts.message().await? {
            let pieces = match request.part {
                Some(generate_request::Part::Messages(part)) => part.messages,
                Some(generate_request::Part::Tool(tool)) => {
                    assert!(messages.is_empty(), "tools come first");
                    tools.push(tool);
                    continue;
                }
                _ => return Err(Status::invalid_argument("only tools and messages follow the header")),
            };
            let bytes: usize = pieces.iter().map(|message| message.text.len()).sum();
            assert!(bytes <= hermes_proto::CHUNK_BYTES);
            for message in pieces {
                chunks += 1;
                if !open {
                    messages.push((message.role(), String::new()));
                    let id = Some(&message.tool_call_id).filter(|id| !id.is_empty());
                    let name = message.role().as_str_name().trim_start_matches("MODEL_ROLE_").to_lowercase();
                    view.push(id.map_or_else(|| format!("{name}: "), |id| format!("{name} {id}: ")));
                }
                let ((role, text), line) = messages.last_mut().zip(view.last_mut()).unwrap();
                assert_eq!(*role, message.role());
                text.push_str(&message.text);
                line.push_str(&message.text);
                for call in &message.tool_calls {
                    line.push_str(&format!(" {}={}({})", call.id, call.name, call.arguments));
                }
                open = message.more;
            }
        }
        assert!(!open, "the last message is unfinished");
        // As long as the longest answer of a script, which is written before it is read.
        let (events, stream) = mpsc::channel(64);
        view.remove(0);
        let state = Arc::clone(&self.state);
        if !state.journal.lock().unwrap().runs(header.turn.as_ref()) {
            return Err(Status::permission_denied("this worker does not run that turn"));
        }
        let call = ModelCall { header, messages, view, tools, chunks, events, state };
        let line = self.state.script.lock().unwrap().get(&call.header.step).cloned();
        if let Some(line) = line {
            self.state.asked.lock().unwrap().push((call.header.step, call.view.clone()));
            let names = call.tools.iter().map(|tool| tool.name.clone()).collect();
            self.state.told.lock().unwrap().insert(call.header.step, names);
            if line.calls.is_empty() {
                call.say(&line.text).await;
                call.done().await;
            } else {
                call.ask(&line).await;
            }
            return Ok(Response::new(ReceiverStream::new(stream)));
        }
        self.calls.send(call).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl WorkerService for Service {
    type AttachStream = ReceiverStream<Result<ControlMessage, Status>>;
    type FetchTranscriptStream = Answers<TranscriptChunk>;
    type FetchHomeStream = Answers<HomeChunk>;
    type FetchJournalStream = Answers<JournalChunk>;
    type FetchAttachmentStream = Answers<AttachmentChunk>;

    async fn put_attachment(
        &self,
        request: Request<Streaming<PutAttachmentRequest>>,
    ) -> Result<Response<PutAttachmentResponse>, Status> {
        self.certified(&request)?;
        Err(Status::unimplemented("nothing is sent from here"))
    }

    async fn fetch_attachment(
        &self,
        request: Request<FetchAttachmentRequest>,
    ) -> Result<Response<Self::FetchAttachmentStream>, Status> {
        self.certified(&request)?;
        let number = usize::try_from(request.into_inner().number).unwrap();
        let files = self.state.files.lock().unwrap();
        let file = files.get(number).ok_or_else(|| Status::not_found("it is not kept any more"))?;
        Ok(answers(file.chunks(1000).map(|body| AttachmentChunk { body: body.to_vec() }).collect()))
    }

    async fn fetch_journal(
        &self,
        request: Request<FetchJournalRequest>,
    ) -> Result<Response<Self::FetchJournalStream>, Status> {
        self.certified(&request)?;
        let turn = request.into_inner().turn;
        let journal = self.state.journal.lock().unwrap();
        if !journal.runs(turn.as_ref()) {
            return Err(Status::permission_denied("this worker does not run that turn"));
        }
        Ok(answers(journal.chunks(&turn.unwrap())))
    }

    async fn attach(&self, request: Request<Streaming<WorkerMessage>>) -> Result<Response<Self::AttachStream>, Status> {
        self.certified(&request)?;
        let (to_worker, stream) = mpsc::channel(16);
        let attached = Attached { from_worker: request.into_inner(), to_worker };
        self.attached.send(attached).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list_tools(&self, request: Request<ListToolsRequest>) -> Result<Response<ListToolsResponse>, Status> {
        self.certified(&request)?;
        self.state.offered.list().map(Response::new)
    }

    async fn call_tool(&self, request: Request<CallToolRequest>) -> Result<Response<CallToolResponse>, Status> {
        self.certified(&request)?;
        self.state.offered.call(&self.state.journal, request.into_inner()).map(Response::new)
    }

    async fn put_summary(&self, request: Request<PutSummaryRequest>) -> Result<Response<PutSummaryResponse>, Status> {
        self.certified(&request)?;
        let PutSummaryRequest { turn, through_seq, text } = request.into_inner();
        let mut summaries = self.state.summaries.lock().unwrap();
        summaries.push((turn.unwrap(), through_seq, String::from_utf8(text).unwrap()));
        Ok(Response::new(PutSummaryResponse { history_rewinds: u32::try_from(summaries.len()).unwrap() }))
    }

    async fn ask_approval(
        &self,
        request: Request<AskApprovalRequest>,
    ) -> Result<Response<AskApprovalResponse>, Status> {
        self.certified(&request)?;
        let request = request.into_inner();
        let mut approvals = self.state.approvals.lock().unwrap();
        approvals.asked.push((request.step, request.call.unwrap_or_default().arguments));
        let state = approvals.answers.pop_front().ok_or_else(|| Status::internal("nobody answers"))?;
        let reason = approvals.reason.clone();
        Ok(Response::new(AskApprovalResponse { state: state.into(), reason }))
    }

    type OpenTunnelStream = Answers<TunnelDown>;

    async fn open_tunnel(&self, _: Request<Streaming<TunnelUp>>) -> Result<Response<Self::OpenTunnelStream>, Status> {
        Err(Status::unimplemented("a control plane of before tunnels"))
    }

    type McpHttpStream = Answers<McpHttpChunk>;

    async fn mcp_http(&self, _: Request<McpHttpRequest>) -> Result<Response<Self::McpHttpStream>, Status> {
        Err(Status::unimplemented("a control plane of before MCP servers behind a URL"))
    }

    async fn pin_mcp_tools(&self, _: Request<PinMcpToolsRequest>) -> Result<Response<PinMcpToolsResponse>, Status> {
        Err(Status::unimplemented("a control plane of before MCP servers"))
    }

    async fn list_job_skills(
        &self,
        _: Request<ListJobSkillsRequest>,
    ) -> Result<Response<ListJobSkillsResponse>, Status> {
        Ok(Response::new(ListJobSkillsResponse::default()))
    }

    async fn consolidate_skills(
        &self,
        _: Request<ConsolidateSkillsRequest>,
    ) -> Result<Response<ConsolidateSkillsResponse>, Status> {
        Err(Status::unimplemented("a control plane of before turns that merge skills"))
    }

    async fn fetch_runtime_secrets(
        &self,
        _: Request<FetchRuntimeSecretsRequest>,
    ) -> Result<Response<FetchRuntimeSecretsResponse>, Status> {
        Err(Status::unimplemented("a control plane of before other runtimes"))
    }

    async fn fetch_transcript(
        &self,
        request: Request<FetchTranscriptRequest>,
    ) -> Result<Response<Self::FetchTranscriptStream>, Status> {
        self.certified(&request)?;
        let after_seq = request.into_inner().after_seq;
        self.state.transcript_fetches.lock().unwrap().push(after_seq);
        let mut chunks = Vec::new();
        for (seq, role, text) in self.state.transcript.lock().unwrap().iter().filter(|(seq, ..)| *seq > after_seq) {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(hermes_proto::CHUNK_BYTES).collect();
            for (index, piece) in pieces.iter().enumerate() {
                let more = index + 1 < pieces.len();
                chunks.push(TranscriptChunk { seq: *seq, role: (*role).into(), text: piece.to_vec(), more });
            }
        }
        Ok(answers(chunks))
    }

    async fn fetch_home(&self, request: Request<FetchHomeRequest>) -> Result<Response<Self::FetchHomeStream>, Status> {
        self.certified(&request)?;
        *self.state.home_fetches.lock().unwrap() += 1;
        let have: BTreeMap<String, u64> =
            request.into_inner().have.into_iter().map(|document| (document.path, document.version)).collect();
        let (mut manifest, mut bodies) = (Vec::new(), Vec::new());
        let documents = self.state.documents.lock().unwrap();
        let hostile = self.state.hostile.lock().unwrap();
        let hostile = hostile.iter().map(|(path, body)| (path.clone(), (1, Some(body.clone()))));
        for (path, (version, body)) in documents.clone().into_iter().chain(hostile) {
            let known = have.get(&path) == Some(&version);
            let sha256 = body.as_ref().map(|body| Sha256::digest(body).to_vec()).unwrap_or_default();
            let document = DocumentVersion { path, version, sha256, deleted: body.is_none() };
            manifest.push(document.clone());
            if let Some(body) = body.filter(|_| !known) {
                bodies.push(home_chunk::Chunk::Document(document));
                bodies.extend(
                    body.chunks(hermes_proto::CHUNK_BYTES).map(|piece| home_chunk::Chunk::Body(piece.to_vec())),
                );
            }
        }
        let home_version = *self.state.home_version.lock().unwrap();
        let manifest = HomeManifest { home_version, documents: manifest, more: false };
        let chunks = std::iter::once(home_chunk::Chunk::Manifest(manifest)).chain(bodies);
        Ok(answers(chunks.map(|chunk| HomeChunk { chunk: Some(chunk) }).collect()))
    }

    async fn push_document(
        &self,
        request: Request<Streaming<PushDocumentRequest>>,
    ) -> Result<Response<PushDocumentResponse>, Status> {
        self.certified(&request)?;
        let mut parts = request.into_inner();
        let (mut header, mut body) = (None, Vec::new());
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(push_document_request::Part::Header(first)) if header.is_none() => header = Some(first),
                Some(push_document_request::Part::Body(piece)) => body.extend(piece),
                _ => return Err(Status::invalid_argument("not a header and bodies")),
            }
        }
        let header = header.ok_or_else(|| Status::invalid_argument("no header"))?;
        let mut home_version = self.state.home_version.lock().unwrap();
        let mut documents = self.state.documents.lock().unwrap();
        let current = documents.get(&header.path).map_or(0, |(version, _)| *version);
        let stored = current == header.base_version;
        if stored {
            *home_version += 1;
            documents.insert(header.path, (current + 1, (!header.deleted).then_some(body)));
        }
        let version = if stored { current + 1 } else { current };
        Ok(Response::new(PushDocumentResponse { stored, version, home_version: *home_version }))
    }
}
