//! MCP servers: programs and places behind a URL that an agent's profile names, and the tools that they bring.
//!
//! Called by turns, for what a turn may call ([`McpServers::offered`]) and for each call ([`Offered::run`]). Owns the running
//! servers. Always true: a server is taken to be as hostile as what a model runs, and runs behind the same boundary; it is
//! started by the first turn that may have its tools, and ended when the profile no longer names it as it is; a tool is
//! offered only as the control plane has it pinned, whatever the server says of it now; every call is at most once, whatever
//! a server says of its tools; a server that is away, or lies, costs a turn its tools and nothing else. It never answers
//! what a server asks for.
//!
//! `server` starts and calls, `pipe` and `remote` carry, `judge` says what of that is handed on, `listing` judges what a server says of its tools, `answer` what it answers.

mod answer;
mod judge;
mod listing;
mod pipe;
mod remote;
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_proto::v1::{self, PinMcpToolsRequest, ProfileRevision};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::call::{Ran, run};
use super::child::cut;
use super::offer::is_on;
use super::{Effect, ToolCall, ToolResult, ToolSpec, Toolbox};
use crate::connection::{Connection, is_broken};
use crate::sandbox::{self, Boundary, SCRATCH};
use listing::{Known, Listing, Pin, told_name};
use remote::Plane;
use server::{Away, Called, Link, Server};

/// Tools of all servers in one turn, at most: a model is offered 128, and has others.
const MAX_TOOLS: usize = 80;
/// What they take together, at most, bytes.
const MAX_BYTES: usize = 256 << 10;
/// What a call takes beside the time that the server has for it: looking whether it lives, and putting the answer together.
const BESIDE: Duration = Duration::from_secs(15);
/// Longest problem that the control plane is told, characters.
const MAX_PROBLEM: usize = 1000;

/// All servers of a worker.
#[derive(Debug)]
pub struct McpServers {
    boundary: Boundary,
    scratch: PathBuf,
    plane: Plane,
    servers: Mutex<BTreeMap<String, Arc<Server>>>,
}

/// What one turn has of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offered {
    /// The tools.
    pub(crate) specs: Vec<ToolSpec>,
    routes: BTreeMap<String, Route>,
    /// Why others are not there, by the names that they would have.
    withheld: BTreeMap<String, String>,
}

/// Where a tool is.
#[derive(Clone, Debug)]
struct Route {
    server: Arc<Server>,
    tool: String,
    pin: Pin,
}

impl McpServers {
    /// For `home` (absolute, symlinks resolved), behind `boundary`; those behind a URL are asked over `connection`. Nothing is started.
    pub fn new(boundary: Boundary, home: &Path, connection: watch::Receiver<Connection>) -> Self {
        Self { boundary, scratch: home.join(SCRATCH), plane: Plane(connection), servers: Mutex::default() }
    }

    /// What a turn of that profile may call; starts what is not running. A server that cannot be had is left out, and the
    /// control plane told why.
    ///
    /// # Errors
    /// The status of a call that may be repeated.
    pub(crate) async fn offered(
        &self,
        profile: Option<&ProfileRevision>,
        channel: &Channel,
    ) -> Result<Offered, Status> {
        let servers = self.of(profile);
        let looks = join_all(servers.iter().map(|server| look(server, channel))).await;
        let mut offered = Offered::default();
        let mut bytes = 0;
        for (server, looked) in servers.iter().zip(looks) {
            let Some((listing, pinned)) = looked? else {
                continue;
            };
            for (tool, known) in listing.tools.iter().filter(|(_, known)| known.fault.is_none()) {
                let name = told_name(&server.config.name, tool, |name| offered.routes.contains_key(name));
                let size = name.len() + known.description.len() + known.parameters.len();
                let why_not = if pinned.get(tool) != Some(&known.pin) {
                    Some(format!(
                        "{tool} of the MCP server {} is not what it was when it was first seen, so it is withheld until an operator \
                         lets it in: hermesctl agent mcp list shows what it says now, and hermesctl agent mcp accept lets it in",
                        server.config.name
                    ))
                } else if offered.specs.len() >= MAX_TOOLS || bytes + size > MAX_BYTES {
                    let why = "the MCP servers of this agent have too many tools, or say too much of them";
                    Some(format!("{tool} is left out: {why}"))
                } else {
                    None
                };
                match why_not {
                    Some(why) => drop(offered.withheld.insert(name, why)),
                    None => {
                        bytes += size;
                        offered.specs.push(spec(server, &name, tool, known));
                        let route = Route { server: Arc::clone(server), tool: tool.clone(), pin: known.pin };
                        offered.routes.insert(name, route);
                    }
                }
            }
        }
        Ok(offered)
    }

    /// Those that the profile names and has on, as it names them; others end when nobody calls them any more.
    fn of(&self, profile: Option<&ProfileRevision>) -> Vec<Arc<Server>> {
        let policy = sandbox::from_wire(profile.and_then(|profile| profile.sandbox.as_ref()));
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = BTreeMap::new();
        for config in profile.iter().flat_map(|profile| &profile.mcp_servers) {
            if config.disabled || !is_on(profile, &toolset(&config.name)) {
                continue;
            }
            let known = servers.remove(&config.name);
            let same = known.filter(|server| server.config == *config && server.policy == policy);
            let server = same.unwrap_or_else(|| {
                let boundary = self.boundary.clone();
                Arc::new(Server::new(config.clone(), policy, boundary, &self.scratch, self.plane.clone()))
            });
            wanted.insert(config.name.clone(), server);
        }
        *servers = wanted;
        servers.values().cloned().collect()
    }
}

/// A tool as models and turns see it.
fn spec(server: &Server, name: &str, tool: &str, known: &Known) -> ToolSpec {
    let config = &server.config;
    let seconds = config.timeout_seconds.max(1).saturating_add(config.connect_timeout_seconds.max(1));
    let description = match known.description.as_str() {
        "" => format!("{} of the MCP server {}.", cut(tool, 64), config.name),
        said => said.to_owned(),
    };
    ToolSpec {
        name: name.to_owned(),
        description,
        parameters: known.parameters.clone(),
        toolset: toolset(&config.name),
        effect: Effect::AtMostOnce,
        time_limit: Duration::from_secs(seconds.into()) + BESIDE,
        max_output: answer::MAX_TEXT,
    }
}

/// What a profile turns the tools of a server on and off by.
fn toolset(server: &str) -> String {
    format!("mcp-{server}")
}

/// The tools of a server, and which of them may be offered; none where it cannot be had.
async fn look(server: &Server, channel: &Channel) -> Result<Option<(Arc<Listing>, BTreeMap<String, Pin>)>, Status> {
    let link = match server.link().await {
        Ok(link) => link,
        Err(Away { why, tried }) => {
            if tried {
                tracing::warn!(server = server.config.name, ?why, "an MCP server cannot be used");
                let request =
                    PinMcpToolsRequest { problem: cut(&why, MAX_PROBLEM).replace('\0', " "), ..request(server) };
                pin(channel, request).await?;
            }
            return Ok(None);
        }
    };
    link.refresh(&server.config).await;
    let listing = link.listing();
    if let Some(pinned) = all_known(&link, &listing) {
        return Ok(Some((listing, pinned)));
    }
    let problem = listing.problem();
    if !problem.is_empty() {
        tracing::warn!(server = server.config.name, ?problem, "not all of an MCP server's tools can be used");
    }
    let request = PinMcpToolsRequest { listed: true, tools: listing.told(), problem, ..request(server) };
    let Some(answer) = pin(channel, request).await? else {
        return Ok(None);
    };
    let pinned: BTreeMap<String, Pin> =
        answer.pinned.into_iter().filter_map(|tool| Some((tool.name, tool.sha256.try_into().ok()?))).collect();
    *link.pinned.lock().unwrap_or_else(PoisonError::into_inner) = Some(pinned.clone());
    Ok(Some((listing, pinned)))
}

/// The pins that are known, where nothing is withheld by them: what is, an operator may have let in meanwhile.
fn all_known(link: &Link, listing: &Listing) -> Option<BTreeMap<String, Pin>> {
    let pinned = link.pinned.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
    listing.tools.iter().all(|(name, known)| pinned.get(name) == Some(&known.pin)).then_some(pinned)
}

fn request(server: &Server) -> PinMcpToolsRequest {
    let v1::McpServer { name, command, env, include, exclude, remote, .. } = &server.config;
    let env: Vec<_> = env.iter().map(|variable| (&variable.name, &variable.value)).collect();
    let mut what = vec![json!(command), json!(env), json!(include.as_ref().map(|list| &list.values)), json!(exclude)];
    if !remote.is_empty() {
        what.push(json!(remote));
    }
    let what = serde_json::Value::from(what);
    PinMcpToolsRequest {
        server: name.clone(),
        config_sha256: Sha256::digest(what.to_string()).to_vec(),
        ..PinMcpToolsRequest::default()
    }
}

/// Tells the control plane; none where it does not take that, so that nothing can be offered.
async fn pin(channel: &Channel, request: PinMcpToolsRequest) -> Result<Option<v1::PinMcpToolsResponse>, Status> {
    match WorkerServiceClient::new(channel.clone()).pin_mcp_tools(request).await {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if is_broken(&status) || status.code() == Code::DeadlineExceeded => Err(status),
        Err(status) => {
            tracing::error!(code = ?status.code(), message = status.message(), "going on without the tools of an MCP server");
            Ok(None)
        }
    }
}

impl Offered {
    /// Whether it is one of its tools.
    pub(crate) fn has(&self, spec: &ToolSpec) -> bool {
        self.routes.get(&spec.name).is_some_and(|route| toolset(&route.server.config.name) == spec.toolset)
    }

    /// Why a tool of that name is not there, where that is known; for the model.
    pub(crate) fn withheld(&self, name: &str) -> Option<&str> {
        self.withheld.get(name).map(String::as_str)
    }

    /// Runs a call of one of its tools, as [`run`] does of others.
    pub(crate) async fn run(&self, spec: &ToolSpec, call: ToolCall, stopped: impl Future<Output = ()>) -> Ran {
        let one = One { route: self.routes.get(&call.name), lost: AtomicBool::new(false) };
        match run(&one, spec, call, stopped).await {
            Ran::Finished(text) if one.lost.load(Ordering::Relaxed) => Ran::Lost(text),
            ran => ran,
        }
    }
}

/// A call of a server's tool.
struct One<'a> {
    route: Option<&'a Route>,
    /// Nobody knows how far it came.
    lost: AtomicBool,
}

impl Toolbox for One<'_> {
    fn specs(&self) -> Arc<[ToolSpec]> {
        Arc::default()
    }

    fn call(&self, call: ToolCall) -> BoxFuture<'_, ToolResult> {
        Box::pin(async move {
            let Some(Route { server, tool, pin }) = self.route else {
                return Err(format!("there is no tool {}", call.name));
            };
            match server.call(tool, pin, call.arguments, &call.cancel).await {
                Called::Answered(result) => result,
                Called::Lost(sentence) => {
                    self.lost.store(true, Ordering::Relaxed);
                    Ok(sentence)
                }
            }
        })
    }
}
