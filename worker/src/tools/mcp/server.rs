//! One server of an agent: started behind the boundary, or greeted where it is, when it is first needed, asked for its tools, called, and
//! started anew when it has ended.
//!
//! Owned by [`super::McpServers`], shared by all turns of the worker. Always true: at most one process of it runs, behind the
//! policy of the agent's profile, and it ends with this value, with all that it started; starting, listing and calling each
//! end within their time; what it ended for is said to whoever waits; a call starts it once at most, and starts that follow
//! each other come ever slower. It decides nothing about which tools may be offered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hermes_proto::v1;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ClientCapabilities, ClientConfig, ClientRequest, Implementation,
    ListToolsRequest, PaginatedRequestParams, PingRequest, ProtocolVersion, ServerResult,
};
use rmcp::service::{PeerRequestOptions, RunningService};
use rmcp::{RoleClient, ServiceError, ServiceExt as _};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::super::ToolResult;
use super::super::child::{self, Comeback, Process, SHOWN_ERRORS, cut};
use super::super::local::environment;
use super::answer;
use super::judge::LIMITS;
use super::listing::{Listing, Pin};
use super::pipe::Pipe;
use super::remote::{Failed, Plane, Remote};
use crate::sandbox::{Boundary, Sandbox, Task};

/// Pages of a list of tools, at most.
const MAX_PAGES: u32 = 32;
/// How long a server that did not answer a call may take to show that it lives.
const PONG: Duration = Duration::from_secs(3);
/// A server behind a URL is asked for its tools again by the first turn after so long: it says by itself that they changed only while it
/// answers something else.
const LISTED_FOR: Duration = Duration::from_secs(60);

/// Until when a listing is taken to be true.
#[derive(Debug)]
struct Fresh(Mutex<Instant>);

impl Fresh {
    fn new() -> Self {
        Self(Mutex::new(Instant::now() + LISTED_FOR))
    }

    /// Whether it was true for long enough; then it is for as long again.
    fn is_over(&self) -> bool {
        let (mut until, now) = (self.0.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        let over = *until <= now;
        if over {
            *until = now + LISTED_FOR;
        }
        over
    }
}

/// What became of a call.
pub(super) enum Called {
    /// This text for the model.
    Answered(ToolResult),
    /// It was begun, and nobody knows how far it came; what is known, for the model.
    Lost(String),
}

/// Why there is no running server.
#[derive(Clone, Debug)]
pub(super) struct Away {
    /// For people and the model.
    pub(super) why: String,
    /// It was tried just now, not only before.
    pub(super) tried: bool,
}

/// One server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) config: v1::McpServer,
    pub(super) policy: Sandbox,
    boundary: Boundary,
    scratch: PathBuf,
    plane: Plane,
    #[expect(clippy::disallowed_types, reason = "one starts it, and the others wait for that")]
    slot: tokio::sync::Mutex<Slot>,
}

/// The process, and those before it.
#[derive(Debug, Default)]
struct Slot {
    link: Option<Arc<Link>>,
    comeback: Comeback,
}

/// A running process, and the protocol spoken with it.
#[derive(Debug)]
pub(super) struct Link {
    client: RunningService<RoleClient, ClientConfig>,
    process: Process,
    /// It says that it has other tools.
    changed: Arc<AtomicBool>,
    /// Until when the listing is taken to be true; none: until the server says otherwise.
    fresh: Option<Fresh>,
    listing: Mutex<Arc<Listing>>,
    /// What of the listing may be offered, as the control plane last answered.
    pub(super) pinned: Mutex<Option<BTreeMap<String, Pin>>>,
}

impl Server {
    /// Of an agent with that scratch and boundary; nothing is started.
    pub(super) fn new(
        config: v1::McpServer,
        policy: Sandbox,
        boundary: Boundary,
        scratch: &Path,
        plane: Plane,
    ) -> Self {
        Self { config, policy, boundary, scratch: scratch.to_owned(), plane, slot: Default::default() }
    }

    /// The running process; starts it where there is none.
    pub(super) async fn link(&self) -> Result<Arc<Link>, Away> {
        let mut slot = self.slot.lock().await;
        if let Some(link) = &slot.link {
            let Some(why) = link.process.why_ended() else {
                return Ok(Arc::clone(link));
            };
            tracing::warn!(server = self.config.name, ?why, "an MCP server has ended");
            let lasted = link.process.lasted();
            slot.link = None;
            slot.comeback.ended(why, lasted);
        }
        if let Some(why) = slot.comeback.waits() {
            return Err(Away { why, tried: false });
        }
        let started = match self.config.remote.is_empty() {
            true => self.start().await,
            false => self.greet().await,
        };
        match started {
            Ok(link) => {
                let link = Arc::new(link);
                slot.link = Some(Arc::clone(&link));
                Ok(link)
            }
            Err(why) => {
                slot.comeback.failed(why.clone());
                Err(Away { why, tried: true })
            }
        }
    }

    /// Starts it, and asks for its tools.
    async fn start(&self) -> Result<Link, String> {
        let mut env = environment(&self.scratch, self.policy.level);
        env.extend(self.config.env.iter().map(|variable| (variable.name.clone(), variable.value.clone())));
        let task = Task::Command { argv: self.config.command.clone(), cwd: self.scratch.clone(), env };
        let (lines, input, process) = child::start(&self.boundary, &self.policy, task, LIMITS, Vec::new()).await?;
        let (state, changed) = (Arc::clone(process.state()), Arc::<AtomicBool>::default());
        let pipe = Pipe::new(lines, input, Arc::clone(&state), Arc::clone(&changed));
        let patience = Duration::from_secs(self.config.connect_timeout_seconds.max(1).into());
        let ready = async {
            // With what is wrong, whether its output had ended by then.
            let closed = |why: String| (why, state.closed.is_cancelled());
            let client = myself().serve(pipe).await.map_err(|error| closed(cut(&error.to_string(), SHOWN_ERRORS)))?;
            let listing = list(&client, &self.config).await.map_err(closed)?;
            Ok::<_, (String, bool)>((client, listing))
        };
        let (why, closed) = match timeout(patience, ready).await {
            Ok(Ok((client, listing))) => {
                return Ok(Link {
                    client,
                    process,
                    changed,
                    fresh: None,
                    listing: Mutex::new(Arc::new(listing)),
                    pinned: Mutex::default(),
                });
            }
            Ok(Err(why)) => why,
            Err(_) => {
                let odd = state.odd();
                let said =
                    if odd > 0 { format!(" ({odd} lines of its output were no messages)") } else { String::new() };
                return Err(format!("it was not ready within {} s{said}", patience.as_secs()));
            }
        };
        // Its end says more than what the protocol saw of it.
        let end = match closed {
            true => process.told().await,
            false => None,
        };
        Err(end.unwrap_or_else(|| format!("it does not speak the protocol: {why}")))
    }

    /// Greets one behind a URL, and asks for its tools.
    async fn greet(&self) -> Result<Link, String> {
        let patience = Duration::from_secs(self.config.connect_timeout_seconds.max(1).into());
        let remote = Remote::new(&self.config, self.plane.clone());
        let (state, changed, trouble) = (remote.state(), remote.changed(), remote.trouble());
        let ready = async {
            // What `remote` carries; later versions want more of each request.
            let myself = myself().with_protocol_version(ProtocolVersion::V_2025_11_25);
            let client = myself.serve(remote).await.map_err(|error| cut(&error.to_string(), SHOWN_ERRORS))?;
            let listing = list(&client, &self.config).await?;
            Ok::<_, String>((client, listing))
        };
        let (client, listing) = match timeout(patience, ready).await {
            Ok(Ok(ready)) => ready,
            Ok(Err(why)) => return Err(trouble.take().unwrap_or(why)),
            Err(_) => return Err(format!("it was not ready within {} s", patience.as_secs())),
        };
        let (process, fresh) = (Process::elsewhere(state), Some(Fresh::new()));
        let listing = Mutex::new(Arc::new(listing));
        Ok(Link { client, process, changed, fresh, listing, pinned: Mutex::default() })
    }

    /// Calls a tool that was offered with that pin. A server that has forgotten its session has done nothing, and is greeted and called
    /// once more.
    pub(super) async fn call(
        &self,
        tool: &str,
        pin: &Pin,
        arguments: Map<String, Value>,
        cancel: &CancellationToken,
    ) -> Called {
        match self.call_once(tool, pin, arguments.clone(), cancel).await {
            Some(called) => called,
            None => self.call_once(tool, pin, arguments, cancel).await.unwrap_or_else(|| {
                let name = &self.config.name;
                Called::Answered(Err(format!("the MCP server {name} forgets each session as soon as it has begun")))
            }),
        }
    }

    /// As [`Server::call`]; none: the server has forgotten its session.
    async fn call_once(
        &self,
        tool: &str,
        pin: &Pin,
        arguments: Map<String, Value>,
        cancel: &CancellationToken,
    ) -> Option<Called> {
        let name = &self.config.name;
        let link = tokio::select! {
            link = self.link() => link,
            () = cancel.cancelled() => {
                return Some(Called::Answered(Err("the call was stopped before it began".to_owned())));
            }
        };
        let link = match link {
            Ok(link) => link,
            Err(Away { why, .. }) => {
                return Some(Called::Answered(Err(format!("the MCP server {name} cannot be used: {why}"))));
            }
        };
        if link.listing().tools.get(tool).is_none_or(|known| known.pin != *pin) {
            return Some(Called::Answered(Err(format!(
                "{tool} of the MCP server {name} is not what it was when it was offered"
            ))));
        }
        let patience = Duration::from_secs(self.config.timeout_seconds.max(1).into());
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        // Dropped before its end, the server is told that nobody waits any more.
        let calling = timeout(patience, link.client.peer().call_tool_once(params));
        let answered = tokio::select! {
            answered = calling => answered,
            () = cancel.cancelled() => {
                return Some(Called::Lost(format!("UNKNOWN: the call of the MCP server {name} was stopped. It may or may not have happened.")));
            }
        };
        let broke_off = |why: &str| {
            Called::Lost(format!(
                "UNKNOWN: the MCP server {name} ended in the middle of this call: {why}. It may or may not have \
                 happened. Check before you repeat it."
            ))
        };
        if let Ok(Err(ServiceError::TransportSend(error))) = &answered
            && let Some(failed) = error.error.downcast_ref::<Failed>()
        {
            return match failed {
                Failed::Forgotten => {
                    link.process.state().broken(failed.to_string());
                    None
                }
                Failed::Away(why) => {
                    Some(Called::Answered(Err(format!("the MCP server {name} cannot be used: {why}"))))
                }
                Failed::Lost(why) => Some(broke_off(why)),
            };
        }
        Some(match answered {
            Ok(Ok(CallToolResponse::Complete(result))) => Called::Answered(answer::text(&result)),
            Ok(Ok(_)) => Called::Answered(Err(format!(
                "the MCP server {name} asks for more instead of answering, and is given none"
            ))),
            Ok(Err(ServiceError::TransportClosed | ServiceError::TransportSend(_))) => {
                broke_off(&link.process.end().await)
            }
            Ok(Err(ServiceError::McpError(error))) => Called::Answered(Err(format!(
                "the MCP server {name} answers: {}",
                cut(&error.message, answer::MAX_TEXT)
            ))),
            Ok(Err(error)) => {
                let error = cut(&error.to_string(), SHOWN_ERRORS);
                Called::Answered(Err(format!("the answer of the MCP server {name} cannot be used: {error}")))
            }
            Err(_) => {
                let ended = if link.lives().await { "" } else { " It answered nothing else either, and is ended." };
                Called::Answered(Err(format!(
                    "the MCP server {name} did not answer within {} s.{ended} What it did until then may have had an effect.",
                    patience.as_secs()
                )))
            }
        })
    }
}

/// Who asks, as servers are told.
fn myself() -> ClientConfig {
    let name = Implementation::new("hermes-worker", env!("CARGO_PKG_VERSION"));
    ClientConfig::new(ClientCapabilities::default(), name)
}

impl Link {
    /// The tools as last told.
    pub(super) fn listing(&self) -> Arc<Listing> {
        Arc::clone(&self.listing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks for the tools again where the server said that they changed, or could not have said it.
    pub(super) async fn refresh(&self, config: &v1::McpServer) {
        if !self.changed.swap(false, Ordering::Relaxed) && !self.fresh.as_ref().is_some_and(Fresh::is_over) {
            return;
        }
        let patience = Duration::from_secs(config.connect_timeout_seconds.max(1).into());
        let listed = timeout(patience, list(&self.client, config)).await;
        match listed.unwrap_or_else(|_| Err("it does not say which tools it has now".to_owned())) {
            Ok(listing) => {
                *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(listing);
                *self.pinned.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            Err(why) => self.process.state().broken(why),
        }
    }

    /// Whether it answers at all; it is ended where not.
    async fn lives(&self) -> bool {
        let ping = ClientRequest::PingRequest(PingRequest::default());
        let pong = timeout(PONG, self.client.peer().send_request(ping)).await;
        let lives = matches!(pong, Ok(Ok(_) | Err(ServiceError::McpError(_))));
        if !lives {
            self.process.state().broken("it did not answer any more".to_owned());
        }
        lives
    }
}

/// All tools of a server that its configuration lets it give.
async fn list(client: &RunningService<RoleClient, ClientConfig>, config: &v1::McpServer) -> Result<Listing, String> {
    let (mut listing, mut cursor) = (Listing::default(), None);
    for _ in 0..MAX_PAGES {
        let params = PaginatedRequestParams::default().with_cursor(cursor);
        let request = ClientRequest::ListToolsRequest(ListToolsRequest::with_param(params));
        let asked = client.peer().send_request_with_option(request, PeerRequestOptions::no_options());
        let answer = match asked.await {
            Ok(asked) => asked.await_response().await,
            Err(error) => Err(error),
        };
        let page = match answer {
            Ok(ServerResult::ListToolsResult(page)) => page,
            Ok(_) => return Err("its list of tools cannot be read".to_owned()),
            Err(error) => {
                return Err(format!("it gave no list of its tools: {}", cut(&error.to_string(), SHOWN_ERRORS)));
            }
        };
        for tool in &page.tools {
            listing.add(config, tool);
        }
        cursor = page.next_cursor.filter(|_| !listing.full);
        if cursor.is_none() {
            return Ok(listing);
        }
    }
    Err(format!("its list of tools has more than {MAX_PAGES} pages"))
}
#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_listing_is_asked_for_again_once_a_minute_and_no_more_often() {
        let fresh = Fresh::new();
        assert!(!fresh.is_over());
        tokio::time::advance(LISTED_FOR).await;
        assert!(fresh.is_over() && !fresh.is_over());
    }
}
