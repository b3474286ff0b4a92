//! AgentService: the registry of agents. Every call is an edit of the document or a look at its snapshot.

use hermes_core::AgentId;
use hermes_core::config::{AgentSpec, check_spec};
use hermes_proto::v1;
use hermes_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use tonic::{Request, Response, Status};

use super::convert::{self, agent_id, edit_status, spec_from, store_status, unsigned};
use super::curator;
use super::layers::principal;
use super::mcp;
use super::status::{Reason, invalid, refuse};
use crate::dispatch::{DRAIN_GRACE, Dispatcher};
use crate::registry::{AgentEntry, Edit, EditError, Registry, Snapshot, soul_preview};

const SOUL: &str = "SOUL.md";
/// Largest SOUL.md, bytes.
const MAX_SOUL: usize = 1 << 20;

/// The service.
#[derive(Clone, Debug)]
pub struct AgentApi {
    registry: Registry,
    dispatcher: Dispatcher,
}

impl AgentApi {
    /// As a tonic service.
    pub fn server(registry: Registry, dispatcher: Dispatcher) -> AgentServiceServer<Self> {
        AgentServiceServer::new(Self { registry, dispatcher })
            .max_decoding_message_size(2 * MAX_SOUL)
            .max_encoding_message_size(4 * hermes_proto::MAX_MESSAGE_BYTES)
    }

    async fn view(&self, snapshot: &Snapshot, entry: &AgentEntry) -> Result<v1::Agent, Status> {
        let routes: Vec<_> = snapshot.document.routes.iter().filter(|route| route.agent == entry.id).collect();
        let mut agent = convert::agent_to(&self.registry, snapshot, entry, &routes);
        let soul = self.registry.store().home_document(entry.no, SOUL).await.map_err(store_status)?;
        if let Some(soul) = soul {
            agent.soul_preview = soul_preview(&String::from_utf8_lossy(&soul.body));
        }
        Ok(agent)
    }

    /// Deletes what a removed agent left, with its home locked so that a worker on its way out brings nothing back.
    async fn purge(&self, id: &AgentId, no: i32) -> Result<(), Status> {
        let store = self.registry.store();
        let last = store.agent_revisions(no, i64::MAX, 1).await.map_err(store_status)?.into_iter().next();
        let spec: AgentSpec = last.and_then(|row| serde_json::from_value(row.spec).ok()).unwrap_or_default();
        let held = self.registry.hold_home(id, spec.home_dir.as_deref()).await;
        let delete = held.map_err(|error| home_left(id, &error))?;
        store.agent_purge(no).await.map_err(store_status)?;
        let deleted =
            tokio::task::spawn_blocking(delete).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        deleted.map_err(|error| home_left(id, &error))
    }

    async fn mcp_servers(&self, id: &AgentId) -> Result<Vec<v1::McpServerState>, Status> {
        let snapshot = self.registry.current();
        let entry = snapshot.agent(id).ok_or_else(|| unknown(id))?;
        mcp::states(self.registry.store(), entry.no, snapshot.document.mcp_servers_of(&entry.spec)).await
    }

    async fn view_of(&self, id: &AgentId) -> Result<v1::Agent, Status> {
        let snapshot = self.registry.current();
        let entry = snapshot.agent(id).ok_or_else(|| unknown(id))?;
        self.view(&snapshot, entry).await
    }
}

/// A purge that cannot be carried out whole is not begun.
fn busy(id: &AgentId, error: crate::store::Error) -> Status {
    match error {
        crate::store::Error::Conflict(why) => refuse(
            Reason::Conflict,
            format!("nothing was changed: {why}, or remove {id} without --purge first, which ends what waits"),
        ),
        error => store_status(error),
    }
}

fn home_left(id: &AgentId, error: &std::io::Error) -> Status {
    if error.kind() == std::io::ErrorKind::WouldBlock {
        let message = format!("a worker of {id} still runs; purge it again when its turns have ended");
        return refuse(Reason::Conflict, message);
    }
    tracing::error!(agent = %id, %error, "the home of a purged agent could not be deleted");
    refuse(Reason::Internal, format!("the home of {id} could not be deleted ({error}); purge it again"))
}

pub(super) fn unknown(id: &AgentId) -> Status {
    refuse(Reason::NotFound, format!("agent {id} is not registered; `hermesctl agent list` shows the registered ones"))
}

fn judge(id: &AgentId, spec: &AgentSpec) -> Result<(), EditError> {
    let faults = check_spec(id, spec);
    if faults.is_empty() { Ok(()) } else { Err(EditError::Faults(faults)) }
}

fn soul_text(soul: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, Status> {
    if let Some(soul) = &soul {
        if soul.len() > MAX_SOUL {
            return Err(invalid("soul", format!("it is {} bytes; at most {MAX_SOUL} are accepted", soul.len())));
        }
        if std::str::from_utf8(soul).is_err() {
            return Err(invalid("soul", "it is not UTF-8 text"));
        }
    }
    Ok(soul)
}

/// Who calls, as it is written down beside a change.
pub(super) fn by<T>(request: &Request<T>) -> String {
    match principal(request) {
        crate::identity::Principal::Operator { token_id } => format!("operator {token_id}"),
        other => other.kind().to_owned(),
    }
}

#[tonic::async_trait]
impl AgentService for AgentApi {
    async fn add_agent(&self, request: Request<v1::AddAgentRequest>) -> Result<Response<v1::AddAgentResponse>, Status> {
        let by = by(&request);
        let request = request.into_inner();
        let id = agent_id("id", &request.id)?;
        let from = request.from_agent.as_deref().map(|from| agent_id("from_agent", from)).transpose()?;
        let soul = soul_text(request.soul)?;
        let spec = spec_from(request.spec.unwrap_or_default());
        let edit = |snapshot: &Snapshot, edit: &mut Edit| {
            if snapshot.agent(&id).is_some() {
                return Err(EditError::Exists(format!(
                    "agent {id} exists already; change it with `hermesctl agent update {id}`"
                )));
            }
            let mut whole = spec.clone();
            if let Some(from) = &from {
                let Some(source) = snapshot.agent(from) else {
                    return Err(EditError::NotFound(format!("agent {from} is not registered, so it cannot be copied")));
                };
                // A home belongs to one agent; everything else is copied.
                whole = convert::spec_over(AgentSpec { home_dir: None, ..source.spec.clone() }, whole);
                edit.home_copy = Some((from.to_string(), id.to_string()));
            }
            judge(&id, &whole)?;
            edit.document.agents.insert(id.clone(), whole);
            edit.touch.push(id.to_string());
            if let Some(soul) = &soul {
                edit.home_documents.push((id.to_string(), SOUL.to_owned(), soul.clone()));
            }
            Ok(())
        };
        self.registry.edit(&by, edit).await.map_err(edit_status)?;
        let agent = self.view_of(&id).await?;
        let warnings = agent.warnings.clone();
        Ok(Response::new(v1::AddAgentResponse { agent: Some(agent), warnings }))
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let (size, token) = convert::page(request.into_inner().page)?;
        let snapshot = self.registry.current();
        let all = snapshot.agents();
        let (_, page, next_page_token) = convert::slice(&all, size, &token)?;
        let by_agent = convert::routes_by_agent(&snapshot);
        let mut agents = Vec::with_capacity(page.len());
        for entry in page {
            let routes = by_agent.get(&entry.id).map(Vec::as_slice).unwrap_or_default();
            let mut agent = convert::agent_to(&self.registry, &snapshot, entry, routes);
            let soul = self.registry.store().home_document(entry.no, SOUL).await.map_err(store_status)?;
            agent.soul_preview =
                soul.map(|soul| soul_preview(&String::from_utf8_lossy(&soul.body))).unwrap_or_default();
            agents.push(agent);
        }
        Ok(Response::new(v1::ListAgentsResponse { agents, next_page_token }))
    }

    async fn get_agent(&self, request: Request<v1::GetAgentRequest>) -> Result<Response<v1::GetAgentResponse>, Status> {
        let id = agent_id("id", &request.into_inner().id)?;
        Ok(Response::new(v1::GetAgentResponse { agent: Some(self.view_of(&id).await?) }))
    }

    async fn update_agent(
        &self,
        request: Request<v1::UpdateAgentRequest>,
    ) -> Result<Response<v1::UpdateAgentResponse>, Status> {
        let by = by(&request);
        let request = request.into_inner();
        let id = agent_id("id", &request.id)?;
        let soul = soul_text(request.soul)?;
        let over = spec_from(request.spec.unwrap_or_default());
        convert::spec_cleared(AgentSpec::default(), &request.clear)?;
        let edit = |snapshot: &Snapshot, edit: &mut Edit| {
            let entry =
                snapshot.agent(&id).ok_or_else(|| EditError::NotFound(format!("agent {id} is not registered")))?;
            if let Some(expected) = request.expected_revision
                && expected != unsigned(entry.revision)
            {
                return Err(EditError::Store(crate::store::Error::Conflict(format!(
                    "agent {id} is at revision {} by now, not {expected}; look at it again",
                    entry.revision
                ))));
            }
            let cleared = convert::spec_cleared(entry.spec.clone(), &request.clear)
                .map_err(|status| EditError::Invalid(status.message().to_owned()))?;
            let whole = convert::spec_over(cleared, over.clone());
            judge(&id, &whole)?;
            edit.document.agents.insert(id.clone(), whole);
            if let Some(soul) = &soul {
                edit.home_documents.push((id.to_string(), SOUL.to_owned(), soul.clone()));
            }
            Ok(())
        };
        self.registry.edit(&by, edit).await.map_err(edit_status)?;
        let agent = self.view_of(&id).await?;
        let warnings = agent.warnings.clone();
        Ok(Response::new(v1::UpdateAgentResponse { agent: Some(agent), warnings }))
    }

    async fn remove_agent(
        &self,
        request: Request<v1::RemoveAgentRequest>,
    ) -> Result<Response<v1::RemoveAgentResponse>, Status> {
        let by = by(&request);
        let request = request.into_inner();
        let id = agent_id("id", &request.id)?;
        let reroute = request.reroute_to.as_deref().map(|to| agent_id("reroute_to", to)).transpose()?;
        if id.is_main() {
            return Err(refuse(Reason::Conflict, "main is never removed: messages that nothing else takes go to it"));
        }
        let gone = self
            .registry
            .current()
            .agent(&id)
            .map(|entry| entry.no)
            .or_else(|| self.registry.current().removed(id.as_str()));
        let registered = self.registry.current().agent(&id).is_some();
        let (mut routes_changed, mut jobs_stopped) = (0, 0);
        if registered {
            let jobs = self.registry.store().cron_list(gone, 0, i64::MAX).await.map_err(store_status)?;
            jobs_stopped = jobs.iter().filter(|job| job.stopped.is_none()).count() as u64;
            if request.purge
                && let Some(no) = gone
            {
                self.registry.store().agent_idle(no).await.map_err(|error| busy(&id, error))?;
            }
            let edit = |snapshot: &Snapshot, edit: &mut Edit| {
                remove(snapshot, edit, &id, request.drop_routes, reroute.as_ref(), jobs_stopped)
            };
            routes_changed = self.registry.edit(&by, edit).await.map_err(edit_status)?.answer;
            self.dispatcher.drain(|worker| worker.agent == id, DRAIN_GRACE).await;
            self.dispatcher.nudge();
        } else if gone.is_none() || !request.purge {
            return Err(unknown(&id));
        }
        let turns_cancelled =
            self.registry.store().removed_cancel(crate::dispatch::REMOVED_NOTICE).await.map_err(store_status)?;
        if request.purge
            && let Some(no) = gone
        {
            self.purge(&id, no).await?;
        }
        Ok(Response::new(v1::RemoveAgentResponse {
            routes_changed,
            turns_cancelled: unsigned(turns_cancelled),
            jobs_stopped,
        }))
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListRevisionsRequest>,
    ) -> Result<Response<v1::ListRevisionsResponse>, Status> {
        let request = request.into_inner();
        let id = agent_id("id", &request.id)?;
        let (size, token) = convert::page(request.page)?;
        let before = convert::number_token(&token, i64::MAX)?;
        let snapshot = self.registry.current();
        let entry = snapshot.agent(&id).ok_or_else(|| unknown(&id))?;
        let rows =
            self.registry.store().agent_revisions(entry.no, before, i64::from(size)).await.map_err(store_status)?;
        let next_page_token = match rows.last() {
            Some(last) if rows.len() == size as usize && last.revision > 1 => last.revision.to_string(),
            _ => String::new(),
        };
        let revisions = rows.into_iter().map(|row| {
            let spec: AgentSpec = serde_json::from_value(row.spec).unwrap_or_default();
            v1::Revision {
                revision: unsigned(row.revision),
                spec: Some(convert::spec_to(&spec)),
                created_at_ms: row.created_at.as_millisecond(),
                created_by: row.created_by,
            }
        });
        Ok(Response::new(v1::ListRevisionsResponse { revisions: revisions.collect(), next_page_token }))
    }

    async fn list_mcp_servers(
        &self,
        request: Request<v1::ListMcpServersRequest>,
    ) -> Result<Response<v1::ListMcpServersResponse>, Status> {
        let request = request.into_inner();
        let (size, token) = convert::page(request.page)?;
        let all = self.mcp_servers(&agent_id("id", &request.id)?).await?;
        let (_, page, next_page_token) = convert::slice(&all, size.min(1), &token)?;
        Ok(Response::new(v1::ListMcpServersResponse { servers: page.to_vec(), next_page_token }))
    }

    async fn accept_mcp_server(
        &self,
        request: Request<v1::AcceptMcpServerRequest>,
    ) -> Result<Response<v1::AcceptMcpServerResponse>, Status> {
        let request = request.into_inner();
        let id = agent_id("id", &request.id)?;
        let no = self.registry.current().agent(&id).ok_or_else(|| unknown(&id))?.no;
        mcp::accept(self.registry.store(), no, &request.server, &request.seen).await?;
        let servers = self.mcp_servers(&id).await?;
        let server = servers.into_iter().find(|server| server.name == request.server);
        Ok(Response::new(v1::AcceptMcpServerResponse { server }))
    }

    async fn curate_skills(
        &self,
        request: Request<v1::CurateSkillsRequest>,
    ) -> Result<Response<v1::CurateSkillsResponse>, Status> {
        let request = request.into_inner();
        let id = agent_id("id", &request.id)?;
        let order = curator::order_from(&request)?;
        let snapshot = self.registry.current();
        let agent = snapshot.agent(&id).ok_or_else(|| unknown(&id))?;
        let settings = snapshot.document.curator_of(&agent.spec);
        let curated = self.dispatcher.curate(agent.no, order, settings).await;
        Ok(Response::new(curator::answer(id.as_str(), curated, settings)?))
    }

    async fn rollback_agent(
        &self,
        request: Request<v1::RollbackAgentRequest>,
    ) -> Result<Response<v1::RollbackAgentResponse>, Status> {
        let by = by(&request);
        let request = request.into_inner();
        let id = agent_id("id", &request.id)?;
        let revision = convert::signed("revision", request.revision)?;
        let no = self.registry.current().agent(&id).ok_or_else(|| unknown(&id))?.no;
        let rows =
            self.registry.store().agent_revisions(no, revision.saturating_add(1), 1).await.map_err(store_status)?;
        let row = rows.into_iter().find(|row| row.revision == revision).ok_or_else(|| {
            refuse(
                Reason::NotFound,
                format!("agent {id} has no revision {revision}; `hermesctl agent history {id}` shows them"),
            )
        })?;
        let spec: AgentSpec = serde_json::from_value(row.spec)
            .map_err(|_| refuse(Reason::Internal, "that revision cannot be read by this build"))?;
        let edit = |snapshot: &Snapshot, edit: &mut Edit| {
            if snapshot.agent(&id).is_none() {
                return Err(EditError::NotFound(format!("agent {id} is not registered")));
            }
            edit.document.agents.insert(id.clone(), spec.clone());
            edit.touch.push(id.to_string());
            Ok(())
        };
        self.registry.edit(&by, edit).await.map_err(edit_status)?;
        let agent = self.view_of(&id).await?;
        let warnings = agent.warnings.clone();
        Ok(Response::new(v1::RollbackAgentResponse { agent: Some(agent), warnings }))
    }
}

/// Takes an agent out of the document; answers how many routes changed. `jobs`: how many of its scheduled jobs that stops.
fn remove(
    snapshot: &Snapshot,
    edit: &mut Edit,
    id: &AgentId,
    drop: bool,
    reroute: Option<&AgentId>,
    jobs: u64,
) -> Result<u64, EditError> {
    if snapshot.agent(id).is_none() {
        return Err(EditError::NotFound(format!("agent {id} is not registered")));
    }
    let document = &mut edit.document;
    let named: Vec<usize> =
        document.routes.iter().enumerate().filter(|(_, route)| route.agent == *id).map(|(index, _)| index).collect();
    let is_default = document.default_agent == *id;
    let homes: Vec<String> =
        document.platforms.homes().filter(|home| home.agent == id).map(|home| home.path()).collect();
    match reroute {
        Some(to) if to == id => return Err(EditError::Invalid("reroute_to names the agent itself".to_owned())),
        Some(to) if snapshot.agent(to).is_none() => {
            return Err(EditError::NotFound(format!("agent {to} is not registered, so nothing can be rerouted to it")));
        }
        Some(to) => {
            for route in document.routes.iter_mut().filter(|route| route.agent == *id) {
                route.agent = to.clone();
            }
            if is_default {
                document.default_agent = to.clone();
            }
            document.platforms.rehome(id, Some(to));
        }
        None if drop => {
            document.routes.retain(|route| route.agent != *id);
            if is_default {
                document.default_agent = AgentId::main();
            }
            document.platforms.rehome(id, None);
        }
        None if !named.is_empty() || is_default || !homes.is_empty() => {
            let what = what_names(&named, is_default, &homes);
            let stops = match jobs {
                0 => String::new(),
                jobs => format!(", and {jobs} of its scheduled jobs would run no more"),
            };
            return Err(EditError::Precondition(format!(
                "{what} still name agent {id}{stops}: say --yes to drop them, or --reroute-to another agent"
            )));
        }
        None if jobs > 0 => {
            return Err(EditError::Precondition(format!(
                "{jobs} scheduled jobs of agent {id} would run no more: say --yes to stop them"
            )));
        }
        None => {}
    }
    document.agents.remove(id);
    Ok(named.len() as u64)
}

/// The places of a document that name an agent, for people: at most ten routes and ten homes, and how many more there are.
fn what_names(routes: &[usize], is_default: bool, homes: &[String]) -> String {
    const MOST: usize = 10;
    let mut parts = Vec::new();
    if !routes.is_empty() {
        let shown: Vec<String> = routes.iter().take(MOST).map(|index| format!("routes[{index}]")).collect();
        parts.push(shown.join(", "));
    }
    if routes.len() > MOST {
        parts.push(format!("{} more routes", routes.len() - MOST));
    }
    if is_default {
        parts.push("default_agent".to_owned());
    }
    parts.extend(homes.iter().take(MOST).cloned());
    if homes.len() > MOST {
        parts.push(format!("{} more homes", homes.len() - MOST));
    }
    parts.join(" and ")
}
