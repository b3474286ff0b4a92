//! A replica: the worker's and the model's service over the simulated network, on the shared [`Store`](crate::store::Store).

use std::pin::Pin;
use std::time::Duration;

use hermes_proto::v1::model_service_server::{ModelService, ModelServiceServer};
use hermes_proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use hermes_proto::v1::*;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::net;
use crate::store::{HEARTBEAT, LEASE, Shared, script};

/// How often a replica looks at what lapsed and what waits.
const TICK: Duration = Duration::from_millis(100);

/// Since the start of the simulation.
pub(crate) fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

#[derive(Clone)]
struct Replica {
    number: usize,
    store: Shared,
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves until the host ends.
pub(crate) async fn serve(number: usize, store: Shared) -> turmoil::Result {
    let replica = Replica { number, store: store.clone() };
    let ticking = async move {
        loop {
            store.locked().tick(number, now());
            tokio::time::sleep(TICK).await;
        }
    };
    let serving = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .add_service(WorkerServiceServer::new(replica.clone()))
        .add_service(ModelServiceServer::new(replica))
        .serve_with_incoming(net::incoming().await?);
    tokio::select! {
        served = serving => Ok(served?),
        () = ticking => Ok(()),
    }
}

impl Replica {
    /// Answers one message of worker `number`; false when its stream ends.
    async fn heard(&self, number: u64, message: worker_message::Message, to: &Sender) -> bool {
        use worker_message::Message;
        let answer = match message {
            Message::Heartbeat(beat) => {
                let lease_lost = !self.store.locked().heard(number, now());
                control_message::Message::HeartbeatAck(HeartbeatAck {
                    sequence: beat.sequence,
                    lease_lost,
                    ..HeartbeatAck::default()
                })
            }
            Message::Step(report) => {
                let outcome = {
                    let mut store = self.store.locked();
                    let holds = store.holds(&report.turn.unwrap());
                    if holds { store.journal.record(&report) } else { StepOutcome::Fenced }
                };
                let (turn, step, phase) = (report.turn, report.step, report.phase);
                control_message::Message::StepAck(StepAck { turn, step, phase, outcome: outcome.into() })
            }
            Message::Completed(completed) => {
                let stored = self.store.locked().complete(&completed);
                control_message::Message::CompletedAck(CompletedAck { turn: completed.turn, stored })
            }
            Message::HandBack(back) => {
                let stored = self.store.locked().release(&back.turn.unwrap());
                control_message::Message::CompletedAck(CompletedAck { turn: back.turn, stored })
            }
            Message::GoingAway(_) => {
                self.store.locked().leaves(number);
                return true;
            }
            Message::Accepted(_) | Message::Progress(_) | Message::Curated(_) => return true,
            Message::Register(_) => return false,
        };
        to.send(Ok(ControlMessage { message: Some(answer) })).await.is_ok()
    }
}

type Sender = mpsc::Sender<Result<ControlMessage, Status>>;

#[tonic::async_trait]
impl WorkerService for Replica {
    type AttachStream = Out<ControlMessage>;

    async fn attach(&self, request: Request<Streaming<WorkerMessage>>) -> Result<Response<Self::AttachStream>, Status> {
        let mut from = request.into_inner();
        let Some(worker_message::Message::Register(register)) = from.message().await?.and_then(|one| one.message)
        else {
            return Err(Status::invalid_argument("Register comes first"));
        };
        let (to, messages) = mpsc::channel(256);
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap();
        // Before anything that registering assigns.
        let welcome = Welcome {
            worker_id: 0,
            heartbeat_ms: millis(HEARTBEAT),
            lease_ms: millis(LEASE),
            agent: crate::AGENT.into(),
            protocol_version: hermes_proto::WORKER_PROTOCOL_VERSION,
            ..Welcome::default()
        };
        let welcome = ControlMessage { message: Some(control_message::Message::Welcome(welcome)) };
        to.send(Ok(welcome)).await.map_err(|_| Status::unavailable("gone"))?;
        let number = self.store.locked().register(&register.home, self.number, to.clone(), now());
        let replica = self.clone();
        net::spawn(async move {
            while let Ok(Some(message)) = from.message().await {
                let Some(message) = message.message else { break };
                if !replica.heard(number, message, &to).await {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    type FetchAttachmentStream = Out<AttachmentChunk>;

    async fn put_attachment(
        &self,
        _: Request<Streaming<PutAttachmentRequest>>,
    ) -> Result<Response<PutAttachmentResponse>, Status> {
        Err(Status::unimplemented("no reply has files here"))
    }

    async fn fetch_attachment(
        &self,
        _: Request<FetchAttachmentRequest>,
    ) -> Result<Response<Self::FetchAttachmentStream>, Status> {
        Err(Status::unimplemented("no message has files here"))
    }

    async fn list_tools(&self, _: Request<ListToolsRequest>) -> Result<Response<ListToolsResponse>, Status> {
        Err(Status::unimplemented("a control plane of before its own tools"))
    }

    async fn call_tool(&self, _: Request<CallToolRequest>) -> Result<Response<CallToolResponse>, Status> {
        Err(Status::unimplemented("a control plane of before its own tools"))
    }

    async fn ask_approval(&self, _: Request<AskApprovalRequest>) -> Result<Response<AskApprovalResponse>, Status> {
        Err(Status::unimplemented("its tools do nothing that anybody is asked about"))
    }

    type FetchTranscriptStream = Out<TranscriptChunk>;

    async fn put_summary(&self, _: Request<PutSummaryRequest>) -> Result<Response<PutSummaryResponse>, Status> {
        Err(Status::unimplemented("nothing is summed up here"))
    }

    type OpenTunnelStream = Out<TunnelDown>;

    async fn open_tunnel(&self, _: Request<Streaming<TunnelUp>>) -> Result<Response<Self::OpenTunnelStream>, Status> {
        Err(Status::unimplemented("a control plane of before tunnels"))
    }

    type McpHttpStream = Out<McpHttpChunk>;

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
        _: Request<FetchTranscriptRequest>,
    ) -> Result<Response<Self::FetchTranscriptStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }

    type FetchJournalStream = Out<JournalChunk>;

    async fn fetch_journal(
        &self,
        request: Request<FetchJournalRequest>,
    ) -> Result<Response<Self::FetchJournalStream>, Status> {
        let turn = request.into_inner().turn.unwrap();
        let store = self.store.locked();
        if !store.holds(&turn) {
            return Err(Status::permission_denied("this worker does not run that turn"));
        }
        let chunks = store.journal.chunks(&turn);
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks.into_iter().map(Ok)))))
    }

    type FetchHomeStream = Out<HomeChunk>;

    async fn fetch_home(&self, _: Request<FetchHomeRequest>) -> Result<Response<Self::FetchHomeStream>, Status> {
        let manifest = HomeManifest::default();
        let chunk = HomeChunk { chunk: Some(home_chunk::Chunk::Manifest(manifest)) };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(chunk)]))))
    }

    async fn push_document(
        &self,
        _: Request<Streaming<PushDocumentRequest>>,
    ) -> Result<Response<PushDocumentResponse>, Status> {
        Err(Status::unimplemented("nobody edits these homes"))
    }
}

#[tonic::async_trait]
impl ModelService for Replica {
    type GenerateStream = Out<GenerateEvent>;

    async fn generate(
        &self,
        request: Request<Streaming<GenerateRequest>>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let mut parts = request.into_inner();
        let Some(generate_request::Part::Header(header)) = parts.message().await?.and_then(|part| part.part) else {
            return Err(Status::invalid_argument("the header comes first"));
        };
        while parts.message().await?.is_some() {}
        let turn = header.turn.unwrap();
        let refused = || Status::permission_denied("this worker does not run that turn");
        if !self.store.locked().holds(&turn) {
            return Err(refused());
        }
        let (store, (to, events)) = (self.store.clone(), mpsc::channel(16));
        net::spawn(async move {
            // Longer for some than for others, the same on every attempt.
            let thinks = 40 * (1 + (turn.session_id + turn.seq * 5 + u64::from(header.step)) % 9);
            tokio::time::sleep(Duration::from_millis(thinks)).await;
            let line = script(&turn, header.step);
            let may = {
                let mut store = store.locked();
                store.holds(&turn) && (line.calls.is_empty() || store.journal.reply(&header, &line))
            };
            if !may {
                let _ = to.send(Err(refused())).await;
                return;
            }
            let text = (!line.text.is_empty()).then(|| generate_event::Event::TextDelta(line.text.clone()));
            let calls = line.calls.into_iter().map(generate_event::Event::ToolCall);
            let done = GenerateDone { finish_reason: "stop".into(), ..GenerateDone::default() };
            for event in text.into_iter().chain(calls).chain([generate_event::Event::Done(done)]) {
                if to.send(Ok(GenerateEvent { event: Some(event) })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }
}
