//! A control plane with fixed behaviour, served on a port of its own: what it answers follows from the request alone, and
//! it keeps what it was asked. It stands where a real control plane would need Postgres, and answers errors as the
//! contract says.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hermes_proto::v1;
use hermes_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use hermes_proto::v1::cron_service_server::CronServiceServer;
use hermes_proto::v1::message_service_server::{MessageService, MessageServiceServer};
use hermes_proto::v1::route_service_server::{RouteService, RouteServiceServer};
use hermes_proto::v1::system_service_server::{SystemService, SystemServiceServer};
use hermes_proto::v1::turn_event::Event;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

pub(crate) type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What it was asked.
#[derive(Default)]
pub(crate) struct Asked {
    /// The `authorization` of every call.
    pub authorization: Mutex<Vec<Option<String>>>,
    /// Every submitted message.
    pub submitted: Mutex<Vec<v1::SubmitRequest>>,
    /// Every removal.
    pub removed: Mutex<Vec<v1::RemoveAgentRequest>>,
    /// Every added agent.
    pub added: Mutex<Vec<v1::AddAgentRequest>>,
    /// Every added route.
    pub routes: Mutex<Vec<v1::AddRouteRequest>>,
    /// Every applied or compared document.
    pub documents: Mutex<Vec<String>>,
    /// Every job that was made.
    pub jobs: Mutex<Vec<v1::CreateJobRequest>>,
    /// Every change of a job.
    pub changes: Mutex<Vec<v1::UpdateJobRequest>>,
    /// Every removal of a job.
    pub gone: Mutex<Vec<v1::RemoveJobRequest>>,
    /// How often runs were looked at.
    pub looks: AtomicUsize,
    /// How many parts the last document came in.
    pub parts: Mutex<usize>,
    /// The turn `slow` goes on after this.
    pub go_on: Notify,
    refused_once: AtomicBool,
}

/// A running fake; it stops when dropped.
pub(crate) struct Fake {
    /// Its URL.
    pub url: String,
    /// What it was asked.
    pub asked: Arc<Asked>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fake {
    /// Starts one on a free port.
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap())
    }

    /// Stops at once, as if killed, and starts another one at the same address.
    pub(crate) fn restart(self) -> Self {
        let address = self.url.trim_start_matches("http://").parse().unwrap();
        drop(self);
        Self::start_at(address)
    }

    fn start_at(address: SocketAddr) -> Self {
        let asked = Arc::new(Asked::default());
        let service = Service(asked.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, bound) = std::sync::mpsc::channel::<SocketAddr>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind(address).await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                let serve = tonic::transport::Server::builder()
                    .add_service(AgentServiceServer::new(service.clone()))
                    .add_service(RouteServiceServer::new(service.clone()))
                    .add_service(MessageServiceServer::new(service.clone()))
                    .add_service(CronServiceServer::new(service.clone()))
                    .add_service(SystemServiceServer::new(service))
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::select! {
                    served = serve => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        let url = format!("http://{}", bound.recv().unwrap());
        Self { url, asked, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// What answers all services.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Asked>);

impl Service {
    /// Keeps the token of a call.
    pub(crate) fn seen<T>(&self, request: &Request<T>) {
        let value = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        self.0.authorization.lock().unwrap().push(value);
    }
}

fn pair(key: &str, value: &str) -> v1::route::Match {
    v1::route::Match { key: key.into(), value: value.into() }
}

fn agent(id: &str) -> v1::Agent {
    let route =
        v1::Route { r#match: vec![pair("platform", "telegram"), pair("chat_id", "-1001234")], agent: id.into() };
    let named = id == "coder";
    v1::Agent {
        id: id.into(),
        spec: Some(v1::AgentSpec::default()),
        revision: 1,
        is_default: id == "main",
        effective_model: "builtin/echo".into(),
        home: format!("/homes/{id}"),
        routes: if named { vec![route] } else { vec![] },
        route_count: u64::from(named),
        ..v1::Agent::default()
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    async fn add_agent(&self, request: Request<v1::AddAgentRequest>) -> Answer<v1::AddAgentResponse> {
        self.seen(&request);
        let request = request.into_inner();
        self.0.added.lock().unwrap().push(request.clone());
        if request.id == "coder" {
            return Err(Status::already_exists("agent coder is registered already; change it with `agent update`"));
        }
        let warnings = vec!["no provider is configured for x/y; set providers.x or default_provider".to_owned()];
        Ok(Response::new(v1::AddAgentResponse { agent: Some(agent(&request.id)), warnings }))
    }

    async fn list_agents(&self, request: Request<v1::ListAgentsRequest>) -> Answer<v1::ListAgentsResponse> {
        self.seen(&request);
        // Two agents a page, whatever the caller would like.
        let ids = ["coder", "main", "research"];
        let page = request.into_inner().page.unwrap_or_default();
        let from: usize = page.page_token.parse().unwrap_or(0);
        let most = usize::try_from(page.page_size).unwrap().min(2);
        let agents: Vec<_> = ids.iter().skip(from).take(most).map(|id| agent(id)).collect();
        let next = from + agents.len();
        let next_page_token = if next < ids.len() { next.to_string() } else { String::new() };
        Ok(Response::new(v1::ListAgentsResponse { agents, next_page_token }))
    }

    async fn get_agent(&self, request: Request<v1::GetAgentRequest>) -> Answer<v1::GetAgentResponse> {
        let id = request.into_inner().id;
        match id.as_str() {
            "coder" | "main" => Ok(Response::new(v1::GetAgentResponse { agent: Some(agent(&id)) })),
            _ => Err(Status::not_found(format!("agent {id:?} is not registered; see `agent list`"))),
        }
    }

    async fn update_agent(&self, request: Request<v1::UpdateAgentRequest>) -> Answer<v1::UpdateAgentResponse> {
        let agent = agent(&request.into_inner().id);
        Ok(Response::new(v1::UpdateAgentResponse { agent: Some(agent), warnings: vec![] }))
    }

    async fn remove_agent(&self, request: Request<v1::RemoveAgentRequest>) -> Answer<v1::RemoveAgentResponse> {
        let request = request.into_inner();
        self.0.removed.lock().unwrap().push(request.clone());
        if !request.drop_routes && request.reroute_to.is_none() {
            return Err(Status::failed_precondition(format!("1 route names agent {}", request.id)));
        }
        Ok(Response::new(v1::RemoveAgentResponse { routes_changed: 1, turns_cancelled: 0, jobs_stopped: 0 }))
    }

    async fn list_revisions(&self, _request: Request<v1::ListRevisionsRequest>) -> Answer<v1::ListRevisionsResponse> {
        Ok(Response::new(v1::ListRevisionsResponse::default()))
    }

    async fn list_mcp_servers(
        &self,
        request: Request<v1::ListMcpServersRequest>,
    ) -> Answer<v1::ListMcpServersResponse> {
        self.seen(&request);
        Ok(Response::new(v1::ListMcpServersResponse::default()))
    }

    async fn accept_mcp_server(
        &self,
        request: Request<v1::AcceptMcpServerRequest>,
    ) -> Answer<v1::AcceptMcpServerResponse> {
        self.seen(&request);
        let state = v1::McpServerState { name: request.into_inner().server, ..v1::McpServerState::default() };
        Ok(Response::new(v1::AcceptMcpServerResponse { server: Some(state) }))
    }

    async fn curate_skills(&self, request: Request<v1::CurateSkillsRequest>) -> Answer<v1::CurateSkillsResponse> {
        self.seen(&request);
        Ok(Response::new(v1::CurateSkillsResponse::default()))
    }

    async fn rollback_agent(&self, request: Request<v1::RollbackAgentRequest>) -> Answer<v1::RollbackAgentResponse> {
        let agent = agent(&request.into_inner().id);
        Ok(Response::new(v1::RollbackAgentResponse { agent: Some(agent), warnings: vec![] }))
    }
}

#[tonic::async_trait]
impl RouteService for Service {
    async fn list_routes(&self, _request: Request<v1::ListRoutesRequest>) -> Answer<v1::ListRoutesResponse> {
        Ok(Response::new(v1::ListRoutesResponse { default_agent: "main".into(), ..v1::ListRoutesResponse::default() }))
    }

    async fn add_route(&self, request: Request<v1::AddRouteRequest>) -> Answer<v1::AddRouteResponse> {
        let request = request.into_inner();
        self.0.routes.lock().unwrap().push(request.clone());
        let warning =
            v1::Warning { line: 0, path: "routes[1]".into(), message: "can never win: route 0 covers it".into() };
        Ok(Response::new(v1::AddRouteResponse { index: request.at.unwrap_or(1), version: 2, warnings: vec![warning] }))
    }

    async fn remove_route(&self, _request: Request<v1::RemoveRouteRequest>) -> Answer<v1::RemoveRouteResponse> {
        Err(Status::out_of_range("there is no route 7; see `route list`"))
    }

    async fn explain_route(&self, request: Request<v1::ExplainRouteRequest>) -> Answer<v1::ExplainRouteResponse> {
        let source = request.into_inner().source.unwrap();
        let matched = source.chat_id == "-1001234";
        let decided_by = if matched { v1::DecidedBy::Route } else { v1::DecidedBy::Default };
        let failed_key = (!matched).then(|| "chat_id".to_owned());
        Ok(Response::new(v1::ExplainRouteResponse {
            agent: if matched { "coder" } else { "main" }.into(),
            decided_by: decided_by.into(),
            route_index: matched.then_some(0),
            routes: vec![v1::RouteVerdict { index: 0, matched, failed_key }],
            truncated: false,
        }))
    }
}

fn accepted(request: &v1::SubmitRequest) -> v1::SubmitResponse {
    let state = match request.text.as_str() {
        "unspecified" => v1::TurnState::Unspecified,
        _ => v1::TurnState::Queued,
    };
    v1::SubmitResponse {
        agent: request.agent.clone().unwrap_or_else(|| "main".into()),
        session_key: "agent:main:x:dm:1".into(),
        session_id: "17".into(),
        turn: request.text.clone(),
        duplicate: request.text == "again",
        state: state.into(),
        notice: String::new(),
    }
}

fn ended(text: &str) -> v1::TurnEnded {
    let (state, reply) = match text {
        "fail" => (v1::TurnState::Failed, "no provider is configured for x".to_owned()),
        "dead" => (v1::TurnState::Dead, String::new()),
        _ => (v1::TurnState::Succeeded, format!("echo: {text}")),
    };
    v1::TurnEnded { state: state.into(), reply, ..v1::TurnEnded::default() }
}

#[tonic::async_trait]
impl MessageService for Service {
    async fn upload_attachment(
        &self,
        request: Request<Streaming<v1::UploadAttachmentRequest>>,
    ) -> Answer<v1::UploadAttachmentResponse> {
        self.seen(&request);
        Err(Status::unimplemented("no files here"))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Answer<v1::SubmitResponse> {
        self.seen(&request);
        let request = request.into_inner();
        self.0.submitted.lock().unwrap().push(request.clone());
        if request.text == "busy once" && !self.0.refused_once.swap(true, Ordering::SeqCst) {
            return Err(Status::unavailable("the database is restarting"));
        }
        if request.deliver {
            return Err(Status::failed_precondition("platform x has no account; add it or leave out deliver"));
        }
        Ok(Response::new(accepted(&request)))
    }

    type SubmitAndStreamStream = Events<v1::TurnEvent>;

    async fn submit_and_stream(&self, request: Request<v1::SubmitRequest>) -> Answer<Self::SubmitAndStreamStream> {
        self.seen(&request);
        let request = request.into_inner();
        self.0.submitted.lock().unwrap().push(request.clone());
        let (events, stream) = mpsc::channel(8);
        let asked = self.0.clone();
        let tell = async move {
            let event = |event| Ok(v1::TurnEvent { event: Some(event) });
            events.send(event(Event::Accepted(accepted(&request)))).await.unwrap();
            if request.text == "cut" {
                events.send(Err(Status::unavailable("this replica stops"))).await.unwrap();
                return;
            }
            events.send(event(Event::TextDelta("echo: ".into()))).await.unwrap();
            if request.text == "slow" {
                asked.go_on.notified().await;
            }
            events.send(event(Event::Ended(ended(&request.text)))).await.unwrap();
        };
        // The reader may leave before the end; the stream's own task then has nobody to tell.
        let stream = tokio_stream::StreamExt::merge(
            ReceiverStream::new(stream),
            futures_util::StreamExt::filter_map(futures_util::stream::once(tell), |()| async { None }),
        );
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_turn(&self, request: Request<v1::GetTurnRequest>) -> Answer<v1::GetTurnResponse> {
        let request = request.into_inner();
        assert!(request.wait);
        Ok(Response::new(v1::GetTurnResponse { accepted: None, ended: Some(ended(&request.turn)) }))
    }
}

impl Service {
    fn judge(&self, parts: Vec<String>) -> (Vec<v1::Fault>, Vec<v1::Change>) {
        let text = parts.concat();
        *self.0.parts.lock().unwrap() = parts.len();
        self.0.documents.lock().unwrap().push(text.clone());
        if text.contains("bad") {
            let fault =
                |line, path: &str, message: &str| v1::Fault { line, path: path.into(), message: message.into() };
            let faults = vec![
                fault(2, "agents.coder.modle", "is unknown; did you mean model?"),
                fault(7, "routes[0].match", "is empty"),
            ];
            return (faults, vec![]);
        }
        if text.contains("same") {
            return (vec![], vec![]);
        }
        let change = v1::Change {
            kind: v1::ChangeKind::Add.into(),
            path: "agents.coder".into(),
            before: String::new(),
            after: "{}".into(),
        };
        (vec![], vec![change])
    }
}

#[tonic::async_trait]
impl SystemService for Service {
    async fn get_status(&self, request: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        self.seen(&request);
        if request.metadata().get("authorization").is_none() {
            return Err(Status::unauthenticated("this call needs a bearer token"));
        }
        Ok(Response::new(v1::GetStatusResponse { version: "0.1.0".into(), ..v1::GetStatusResponse::default() }))
    }

    async fn apply(&self, request: Request<Streaming<v1::ApplyRequest>>) -> Answer<v1::ApplyResponse> {
        let mut stream = request.into_inner();
        let mut parts = Vec::new();
        while let Some(part) = stream.message().await? {
            parts.push(part.text);
        }
        let (faults, changes) = self.judge(parts);
        Ok(Response::new(v1::ApplyResponse { faults, warnings: vec![], changes, version: 5 }))
    }

    async fn diff(&self, request: Request<Streaming<v1::DiffRequest>>) -> Answer<v1::DiffResponse> {
        let mut stream = request.into_inner();
        let mut parts = Vec::new();
        while let Some(part) = stream.message().await? {
            parts.push(part.text);
        }
        let (faults, changes) = self.judge(parts);
        Ok(Response::new(v1::DiffResponse { faults, warnings: vec![], changes }))
    }

    type ExportStream = Events<v1::ExportChunk>;

    async fn export(&self, _request: Request<v1::ExportRequest>) -> Answer<Self::ExportStream> {
        let chunks = ["default_agent: main\nagents:\n", "  main: {}\n"];
        let stream = tokio_stream::iter(chunks.map(|text| Ok(v1::ExportChunk { text: text.into() })));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn list_workers(&self, _request: Request<v1::ListWorkersRequest>) -> Answer<v1::ListWorkersResponse> {
        Ok(Response::new(v1::ListWorkersResponse::default()))
    }

    async fn drain_workers(&self, _request: Request<v1::DrainWorkersRequest>) -> Answer<v1::DrainWorkersResponse> {
        Ok(Response::new(v1::DrainWorkersResponse::default()))
    }
}
