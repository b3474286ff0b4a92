//! WorkerService: one stream per worker, its session transcripts and its home documents.
//!
//! Always true: the caller's agent and worker id come from its certificate; a session or document is given out only to the
//! worker that runs a turn of it, or whose agent it belongs to; a stream that does not begin with Register ends.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use hermes_core::AgentId;
use hermes_proto::v1::control_message::Message as ToWire;
use hermes_proto::v1::worker_message::Message as FromWire;
use hermes_proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use hermes_proto::{WORKER_PROTOCOL_VERSION, v1};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::assignment;
use super::convert::{self, signed, store_status, unsigned};
use super::curator;
use super::files;
use super::history;
use super::layers::principal;
use super::mcp;
use super::mcp_http::Remotes;
use super::runtime;
use super::status::{Reason, invalid, refuse};
use super::steps::{self, Recording};
use super::{tools, tunnel, worker_home};
use crate::attachments::Attachments;
use crate::dispatch::{Arrival, CancelKind, DRAIN_GRACE, Dispatcher, HEARTBEAT, LEASE, Report, Running, ToWorker};
use crate::egress::Egress;
use crate::identity::Principal;
use crate::intake::{Intake, Wanted};
use crate::judge::Judge;
use crate::registry::{AgentEntry, Registry, Snapshot};
use crate::store::{Ended, SessionId, TurnId};
use crate::tasks::Tasks;
use crate::tools::{Secrets, Tools};

/// Slots a worker may offer.
const MAX_SLOTS: u32 = 1024;
/// Reports of one worker on their way into the store: one for each slot, and as many sent again.
const MAX_STORING: usize = 2 * MAX_SLOTS as usize;

/// The service.
#[derive(Clone, Debug)]
pub struct WorkerApi {
    registry: Registry,
    dispatcher: Dispatcher,
    tools: Tools,
    attachments: Attachments,
    judge: Judge,
    intake: Intake,
    remotes: Remotes,
    tunnels: tunnel::Tunnels,
    tasks: Tasks,
}

/// Who calls, from the certificate.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) agent: AgentId,
    pub(super) worker: Uuid,
}

pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    match principal(request) {
        Principal::Worker { agent, worker, .. } => Ok(Caller { agent: agent.clone(), worker: *worker }),
        _ => Err(refuse(Reason::Unauthenticated, "a worker certificate is needed")),
    }
}

fn registered<'a>(snapshot: &'a Snapshot, caller: &Caller) -> Result<&'a AgentEntry, Status> {
    let entry = snapshot.agent_or_removed(&caller.agent);
    entry.map(AsRef::as_ref).ok_or_else(|| refuse(Reason::NotFound, "the agent is not registered (any more)"))
}

pub(super) fn turn_ref(turn: Option<&v1::TurnRef>) -> Result<(TurnId, i64), Status> {
    let turn = turn.ok_or_else(|| invalid("turn", "it is missing"))?;
    let id =
        TurnId { session: SessionId(signed("turn.session_id", turn.session_id)?), seq: signed("turn.seq", turn.seq)? };
    Ok((id, signed("turn.epoch", turn.epoch)?))
}

pub(super) fn turn_to(turn: TurnId, epoch: i64) -> Option<v1::TurnRef> {
    Some(v1::TurnRef { session_id: unsigned(turn.session.0), seq: unsigned(turn.seq), epoch: unsigned(epoch) })
}

impl WorkerApi {
    /// As a tonic service.
    pub fn server(
        registry: Registry,
        intake: Intake,
        tools: Tools,
        attachments: Attachments,
        judge: Judge,
        outside: (Egress, Secrets),
        tasks: Tasks,
    ) -> WorkerServiceServer<Self> {
        let tunnels = tunnel::Tunnels::new(outside.0.clone(), tasks.clone());
        let remotes = Remotes::new(outside.0, outside.1);
        let dispatcher = intake.dispatcher().clone();
        WorkerServiceServer::new(Self {
            registry,
            dispatcher,
            tools,
            attachments,
            judge,
            intake,
            remotes,
            tunnels,
            tasks,
        })
        .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(2 * hermes_proto::MAX_MESSAGE_BYTES)
    }

    /// The turn that this worker runs under that fence.
    fn running(&self, caller: &Caller, turn: Option<&v1::TurnRef>) -> Result<(TurnId, Running), Status> {
        let (id, epoch) = turn_ref(turn)?;
        let running = self.dispatcher.fleet().running_by(caller.worker, id, epoch);
        running
            .map(|running| (id, running))
            .ok_or_else(|| refuse(Reason::StaleEpoch, "this worker does not run that turn"))
    }

    fn agent_no(&self, caller: &Caller) -> Result<i32, Status> {
        registered(&self.registry.current(), caller).map(|entry| entry.no)
    }
}

#[tonic::async_trait]
impl WorkerService for WorkerApi {
    type AttachStream = BoxStream<'static, Result<v1::ControlMessage, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = caller(&request)?;
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(Duration::from_secs(10), incoming.message()).await;
        let first = first.map_err(|_| refuse(Reason::TimeLimit, "no Register came within 10 s"))??;
        let Some(FromWire::Register(register)) = first.and_then(|message| message.message) else {
            return Err(invalid("message", "the first message must be Register"));
        };
        if !(hermes_proto::WORKER_PROTOCOL_OLDEST..=WORKER_PROTOCOL_VERSION).contains(&register.protocol_version) {
            return Ok(Response::new(refused(unspoken(register.protocol_version), false)));
        }
        if register.slots == 0 || register.slots > MAX_SLOTS {
            return Ok(Response::new(refused(format!("slots must be 1 to {MAX_SLOTS}"), false)));
        }
        let arrival = Arrival {
            agent: caller.agent.clone(),
            identity: caller.worker,
            pid: register.pid,
            home: shown(&register.home),
            build: shown(&register.build),
            slots: register.slots,
            protocol: register.protocol_version,
            curates: register.curates,
        };
        let attached = match self.dispatcher.attach(arrival).await {
            Ok(attached) => attached,
            Err(crate::store::Error::NotFound(reason)) => return Ok(Response::new(refused(reason, false))),
            Err(error) => return Err(store_status(error)),
        };
        let snapshot = self.registry.current();
        let entry = snapshot.agent(&caller.agent);
        let sandbox = entry.map(|entry| snapshot.document.sandbox_of(&entry.spec));
        let welcome = v1::Welcome {
            worker_id: unsigned(attached.worker_id),
            heartbeat_ms: u32::try_from(HEARTBEAT.as_millis()).unwrap_or(u32::MAX),
            lease_ms: u32::try_from(LEASE.as_millis()).unwrap_or(u32::MAX),
            agent: caller.agent.to_string(),
            protocol_version: WORKER_PROTOCOL_VERSION,
            sandbox: sandbox.as_ref().map(convert::sandbox_to),
            curator: self.dispatcher.curator_of(&caller.agent).map(curator::settings_to),
        };
        let link = Link {
            dispatcher: self.dispatcher.clone(),
            worker_id: attached.worker_id,
            identity: caller.worker,
            agent: caller.agent,
        };
        let stop = self.tasks.stopping();
        self.tasks.spawn("worker link", link.run(incoming, attached.hang_up, stop));
        let first = stream::once(async move { Ok(wire(ToWire::Welcome(welcome))) });
        let rest = ReceiverStream::new(attached.incoming).map(|message| Ok(wire(message_to(message))));
        Ok(Response::new(first.chain(rest).boxed()))
    }

    type FetchTranscriptStream = BoxStream<'static, Result<v1::TranscriptChunk, Status>>;

    async fn fetch_transcript(
        &self,
        request: Request<v1::FetchTranscriptRequest>,
    ) -> Result<Response<Self::FetchTranscriptStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let (id, _) = self.running(&caller, request.turn.as_ref())?;
        let limit = usize::try_from(self.registry.current().document.limits.history_bytes).unwrap_or(usize::MAX);
        let chunks = history::chunks(self.registry.store(), id, &request, limit).await?;
        Ok(Response::new(stream::iter(chunks.into_iter().map(Ok)).boxed()))
    }

    async fn put_summary(
        &self,
        request: Request<v1::PutSummaryRequest>,
    ) -> Result<Response<v1::PutSummaryResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let (turn, running) = self.running(&caller, request.turn.as_ref())?;
        let store = self.registry.store();
        Ok(Response::new(history::put_summary(store, (turn, running.epoch), request).await?))
    }

    type FetchJournalStream = BoxStream<'static, Result<v1::JournalChunk, Status>>;

    async fn fetch_journal(
        &self,
        request: Request<v1::FetchJournalRequest>,
    ) -> Result<Response<Self::FetchJournalStream>, Status> {
        let caller = caller(&request)?;
        let (turn, _) = self.running(&caller, request.into_inner().turn.as_ref())?;
        Ok(Response::new(steps::journal(self.registry.store().clone(), turn)))
    }

    type FetchAttachmentStream = BoxStream<'static, Result<v1::AttachmentChunk, Status>>;

    async fn fetch_attachment(
        &self,
        request: Request<v1::FetchAttachmentRequest>,
    ) -> Result<Response<Self::FetchAttachmentStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let (turn, running) = self.running(&caller, request.turn.as_ref())?;
        let number = usize::try_from(request.number).unwrap_or(usize::MAX);
        let file = self.attachments.of_turn(turn, &running.had, number).await.map_err(store_status)?;
        let file = file.ok_or_else(|| refuse(Reason::NotFound, "the turn has no such file"))?;
        Ok(Response::new(files::pieces(self.attachments.clone(), file)))
    }

    async fn put_attachment(
        &self,
        request: Request<Streaming<v1::PutAttachmentRequest>>,
    ) -> Result<Response<v1::PutAttachmentResponse>, Status> {
        let sender = principal(&request).caller();
        let caller = caller(&request)?;
        let _room = self.attachments.arrival(&sender).await;
        let mut file = files::brought(request.into_inner());
        let header = file.header().await?;
        let (turn, _) = self.running(&caller, header.turn.as_ref())?;
        let content = file.content().await?;
        self.attachments.keep_for(turn, &header.path, &content).await.map_err(files::unkept)?;
        Ok(Response::new(v1::PutAttachmentResponse {}))
    }

    async fn list_tools(
        &self,
        request: Request<v1::ListToolsRequest>,
    ) -> Result<Response<v1::ListToolsResponse>, Status> {
        caller(&request)?;
        Ok(Response::new(tools::list()))
    }

    async fn call_tool(&self, request: Request<v1::CallToolRequest>) -> Result<Response<v1::CallToolResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let (turn, running) = self.running(&caller, request.turn.as_ref())?;
        self.dispatcher.fleet().progressed(caller.worker, turn, running.epoch);
        Ok(Response::new(tools::call(&self.tools, caller.worker, &running, request).await?))
    }

    async fn ask_approval(
        &self,
        request: Request<v1::AskApprovalRequest>,
    ) -> Result<Response<v1::AskApprovalResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let (turn, running) = self.running(&caller, request.turn.as_ref())?;
        let call = tools::dangerous_call((turn, running.epoch), request)?;
        let agent_no = self.agent_no(&caller)?;
        let own_model = running.model.as_deref();
        let asked = self.dispatcher.permission(caller.worker, agent_no, own_model, &call, &self.judge).await;
        asked.map(|permission| Response::new(tools::permission_to(permission))).map_err(store_status)
    }

    async fn pin_mcp_tools(
        &self,
        request: Request<v1::PinMcpToolsRequest>,
    ) -> Result<Response<v1::PinMcpToolsResponse>, Status> {
        let caller = caller(&request)?;
        let snapshot = self.registry.current();
        let agent = registered(&snapshot, &caller)?;
        let servers = snapshot.document.mcp_servers_of(&agent.spec);
        Ok(Response::new(mcp::pin(self.registry.store(), agent.no, servers, request.into_inner()).await?))
    }

    async fn fetch_runtime_secrets(
        &self,
        request: Request<v1::FetchRuntimeSecretsRequest>,
    ) -> Result<Response<v1::FetchRuntimeSecretsResponse>, Status> {
        let caller = caller(&request)?;
        let (_, running) = self.running(&caller, request.into_inner().turn.as_ref())?;
        let (snapshot, store) = (self.registry.current(), self.registry.store());
        let agent = registered(&snapshot, &caller)?;
        Ok(Response::new(runtime::secrets(store, self.tools.secrets(), agent, running.revision).await?))
    }

    async fn list_job_skills(
        &self,
        request: Request<v1::ListJobSkillsRequest>,
    ) -> Result<Response<v1::ListJobSkillsResponse>, Status> {
        let agent = registered(&self.registry.current(), &caller(&request)?)?.no;
        let skills = self.registry.store().cron_skills(agent).await.map_err(store_status)?;
        Ok(Response::new(v1::ListJobSkillsResponse { skills }))
    }

    async fn consolidate_skills(
        &self,
        request: Request<v1::ConsolidateSkillsRequest>,
    ) -> Result<Response<v1::ConsolidateSkillsResponse>, Status> {
        let caller = caller(&request)?;
        let snapshot = self.registry.current();
        let agent = snapshot.agent(&caller.agent);
        let agent = agent.ok_or_else(|| refuse(Reason::NotFound, "the agent is not registered (any more)"))?;
        let curator = snapshot.document.curator_of(&agent.spec);
        let v1::ConsolidateSkillsRequest { order, skills } = request.into_inner();
        curator::mergeable(&skills)?;
        let wanted = match order {
            _ if !curator.consolidate => None,
            0 => curator.enabled.then_some(Wanted::Every(curator.interval_hours)),
            order => self.dispatcher.is_running(agent.no, order).then_some(Wanted::Order(order)),
        };
        let wanted = wanted.ok_or_else(|| {
            let why = "skills are merged where the agent's curator has `consolidate: true`, when its time has come or while the operator who asked for \
                a run waits: set it, and say `hermesctl curator run` once more";
            refuse(Reason::Conflict, why)
        })?;
        let turn = self.intake.consolidate(agent, skills, wanted).await.map_err(convert::intake_status)?;
        Ok(Response::new(v1::ConsolidateSkillsResponse { turn: turn.to_string() }))
    }

    type McpHttpStream = BoxStream<'static, Result<v1::McpHttpChunk, Status>>;

    async fn mcp_http(&self, request: Request<v1::McpHttpRequest>) -> Result<Response<Self::McpHttpStream>, Status> {
        let caller = caller(&request)?;
        let snapshot = self.registry.current();
        let agent = snapshot.agent_or_removed(&caller.agent);
        let agent = agent.ok_or_else(|| refuse(Reason::NotFound, "the agent is not registered (any more)"))?;
        let servers = snapshot.document.mcp_servers_of(&agent.spec);
        Ok(Response::new(self.remotes.send(&caller, servers, request.into_inner()).await?))
    }

    type OpenTunnelStream = BoxStream<'static, Result<v1::TunnelDown, Status>>;

    async fn open_tunnel(
        &self,
        request: Request<Streaming<v1::TunnelUp>>,
    ) -> Result<Response<Self::OpenTunnelStream>, Status> {
        let caller = caller(&request)?;
        let snapshot = self.registry.current();
        let agent = snapshot.agent(&caller.agent);
        let agent = agent.ok_or_else(|| refuse(Reason::NotFound, "the agent is not registered (any more)"))?;
        let network = snapshot.document.sandbox_of(&agent.spec).network;
        Ok(Response::new(self.tunnels.open(caller, network, request.into_inner()).await?))
    }

    type FetchHomeStream = BoxStream<'static, Result<v1::HomeChunk, Status>>;

    async fn fetch_home(
        &self,
        request: Request<v1::FetchHomeRequest>,
    ) -> Result<Response<Self::FetchHomeStream>, Status> {
        let caller = caller(&request)?;
        let agent_no = self.agent_no(&caller)?;
        Ok(Response::new(worker_home::fetch(self.registry.store(), agent_no, request.into_inner().have).await?))
    }

    async fn push_document(
        &self,
        request: Request<Streaming<v1::PushDocumentRequest>>,
    ) -> Result<Response<v1::PushDocumentResponse>, Status> {
        let caller = caller(&request)?;
        let agent_no = self.agent_no(&caller)?;
        let writer = format!("worker {}", caller.worker);
        let outcome = worker_home::push(self.registry.store(), agent_no, &writer, request.into_inner()).await?;
        self.registry.home_moved(agent_no, outcome.home_version);
        Ok(Response::new(v1::PushDocumentResponse {
            stored: outcome.stored,
            version: unsigned(outcome.version),
            home_version: unsigned(outcome.home_version),
        }))
    }
}

/// One worker's connection.
struct Link {
    dispatcher: Dispatcher,
    worker_id: i64,
    identity: Uuid,
    agent: AgentId,
}

impl Link {
    async fn run(
        self,
        mut incoming: Streaming<v1::WorkerMessage>,
        hang_up: CancellationToken,
        stop: CancellationToken,
    ) {
        let mut leaving = false;
        let mut storing: FuturesUnordered<BoxFuture<'static, ToWorker>> = FuturesUnordered::new();
        let mut recording = Recording::default();
        loop {
            tokio::select! {
                // Once all stops, a report that is not stored must not be told to be fenced: the worker sends it elsewhere.
                biased;
                () = stop.cancelled() => break,
                () = hang_up.cancelled() => break,
                Some(ack) = storing.next() => {
                    self.dispatcher.fleet().send(self.worker_id, ack);
                }
                Some(ack) = recording.next() => {
                    if let Some(ack) = ack {
                        self.dispatcher.fleet().send(self.worker_id, ack);
                    }
                }
                // A worker that reports more than it can have run is read no further until that is stored.
                message = incoming.message(), if storing.len() < MAX_STORING && recording.has_room() => match message {
                    Ok(Some(message)) => match self.handle(message, &mut storing, &mut recording) {
                        Ok(went) => leaving |= went,
                        Err(status) => {
                            tracing::warn!(worker = self.worker_id, reason = status.message(), "a worker broke the protocol");
                            break;
                        }
                    },
                    Ok(None) => break,
                    Err(status) => {
                        tracing::info!(worker = self.worker_id, code = ?status.code(), "a worker's stream broke");
                        leaving = false;
                        break;
                    }
                }
            }
        }
        // What was reported is stored even though nobody waits for the answer.
        while storing.next().await.is_some() {}
        while recording.next().await.is_some() {}
        self.dispatcher.detach(self.worker_id, leaving).await;
    }

    /// True: the worker said that it is leaving.
    fn handle(
        &self,
        message: v1::WorkerMessage,
        storing: &mut FuturesUnordered<BoxFuture<'static, ToWorker>>,
        recording: &mut Recording,
    ) -> Result<bool, Status> {
        match message.message {
            Some(FromWire::Heartbeat(heartbeat)) => {
                self.dispatcher.fleet().heard(self.worker_id);
                let (sequence, curator) = (heartbeat.sequence, self.dispatcher.curator_of(&self.agent));
                let ack = ToWorker::HeartbeatAck { sequence, lease_lost: false, curator };
                self.dispatcher.fleet().send(self.worker_id, ack);
            }
            Some(FromWire::Accepted(accepted)) => {
                let (turn, epoch) = turn_ref(accepted.turn.as_ref())?;
                tracing::debug!(worker = self.worker_id, %turn, epoch, "turn accepted");
                self.dispatcher.fleet().accepted(self.worker_id, turn, epoch);
            }
            Some(FromWire::Progress(progress)) => {
                let (turn, epoch) = turn_ref(progress.turn.as_ref())?;
                // Without text too: a tool that takes long shows so that it still works.
                if self.dispatcher.fleet().progressed(self.identity, turn, epoch) {
                    self.dispatcher.live().append(turn, &progress.text_delta);
                }
            }
            Some(FromWire::Completed(completed)) => storing.push(self.completed(completed)?),
            Some(FromWire::GoingAway(going)) => {
                tracing::info!(worker = self.worker_id, reason = shown(&going.reason), "a worker is leaving");
                let worker_id = self.worker_id;
                let dispatcher = self.dispatcher.clone();
                storing.push(Box::pin(async move {
                    dispatcher.drain(|worker| worker.worker_id == worker_id, DRAIN_GRACE).await;
                    ToWorker::Drain(DRAIN_GRACE)
                }));
                return Ok(true);
            }
            Some(FromWire::HandBack(back)) => {
                let (turn, epoch) = turn_ref(back.turn.as_ref())?;
                let (dispatcher, worker_id) = (self.dispatcher.clone(), self.worker_id);
                storing.push(Box::pin(async move {
                    let stored = dispatcher.release(worker_id, turn, epoch).await;
                    ToWorker::CompletedAck { turn, epoch, stored }
                }));
            }
            Some(FromWire::Step(report)) => {
                let row = steps::read(report)?;
                self.dispatcher.fleet().progressed(self.identity, row.turn, row.epoch);
                recording.push(&self.dispatcher, self.worker_id, row);
            }
            Some(FromWire::Curated(curated)) => {
                self.dispatcher.curated(self.worker_id, curated.id, curator::curated_from(&curated));
            }
            Some(FromWire::Register(_)) => return Err(invalid("message", "Register comes once")),
            None => return Err(invalid("message", "it is empty or of a kind this build does not know")),
        }
        Ok(false)
    }

    fn completed(&self, completed: v1::Completed) -> Result<BoxFuture<'static, ToWorker>, Status> {
        let (turn, epoch) = turn_ref(completed.turn.as_ref())?;
        let ended = match completed.outcome() {
            v1::Outcome::Succeeded => Ended::Succeeded,
            v1::Outcome::Failed => Ended::Failed,
            v1::Outcome::Cancelled => Ended::Cancelled,
            v1::Outcome::Unspecified => return Err(invalid("outcome", "it is missing")),
        };
        let report = Report {
            turn,
            epoch,
            ended,
            reply: String::from_utf8_lossy(&completed.reply).into_owned(),
            usage: convert::usage_from(completed.usage),
        };
        let (dispatcher, worker_id, agent) = (self.dispatcher.clone(), self.worker_id, self.agent.clone());
        Ok(Box::pin(async move {
            let stored = dispatcher.complete(worker_id, &agent, report).await;
            ToWorker::CompletedAck { turn, epoch, stored }
        }))
    }
}

/// Why a worker that speaks this is not served, and who must be upgraded.
fn unspoken(theirs: u32) -> String {
    let oldest = hermes_proto::WORKER_PROTOCOL_OLDEST;
    let remedy = if theirs < oldest {
        "start the worker from a newer release"
    } else {
        "upgrade the control plane before its workers"
    };
    format!(
        "this control plane speaks worker protocols {oldest} to {WORKER_PROTOCOL_VERSION}, the worker {theirs}: {remedy}"
    )
}

fn wire(message: ToWire) -> v1::ControlMessage {
    v1::ControlMessage { message: Some(message) }
}

fn refused(reason: String, retry: bool) -> BoxStream<'static, Result<v1::ControlMessage, Status>> {
    tracing::warn!(reason, "a worker was refused");
    stream::once(async move { Ok(wire(ToWire::Refused(v1::Refused { reason, retry }))) }).boxed()
}

fn message_to(message: ToWorker) -> ToWire {
    match message {
        ToWorker::Assign(assignment) => ToWire::Assignment(assignment::to(*assignment)),
        ToWorker::CompletedAck { turn, epoch, stored } => {
            ToWire::CompletedAck(v1::CompletedAck { turn: turn_to(turn, epoch), stored })
        }
        ToWorker::StepAck { turn, epoch, step, phase, answer } => {
            ToWire::StepAck(steps::ack_to(turn, epoch, step, phase, answer))
        }
        ToWorker::HeartbeatAck { sequence, lease_lost, curator: of } => {
            let curator = of.map(curator::settings_to);
            ToWire::HeartbeatAck(v1::HeartbeatAck { sequence, lease_lost, curator })
        }
        ToWorker::Cancel { turn, epoch, kind, reason } => {
            let kind = match kind {
                CancelKind::Stopped => v1::CancelKind::Stopped,
                CancelKind::Interrupted => v1::CancelKind::Interrupted,
                CancelKind::Overdue => v1::CancelKind::Overdue,
                CancelKind::Abandoned => v1::CancelKind::Abandoned,
            };
            ToWire::Cancel(v1::Cancel { turn: turn_to(turn, epoch), reason, kind: kind.into() })
        }
        ToWorker::Steer { turn, epoch, seq, input } => {
            ToWire::Steer(v1::Steer { turn: turn_to(turn, epoch), seq: unsigned(seq), input })
        }
        ToWorker::Curate { id, order, settings } => ToWire::Curate(curator::order_to(id, &order, settings)),
        ToWorker::Drain(grace) => {
            // Zero would leave it to the worker.
            ToWire::Drain(v1::Drain { grace_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX).max(1) })
        }
    }
}

/// What a worker says of itself is shown to people: shortened, one line.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(1024).collect()
}
