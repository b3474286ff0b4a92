//! One server of an agent: started behind the boundary when it is first needed, asked for its tools, called, and started anew when
//! it has ended.
//!
//! Owned by [`super::McpServers`], shared by all turns of the worker. Always true: at most one process of it runs, behind the
//! policy of the agent's profile, and it ends with this value, with all that it started; starting, listing and calling each
//! end within their time; what it ended for is said to whoever waits; a call starts it once at most, and starts that follow
//! each other come ever slower. It decides nothing about which tools may be offered.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hermes_proto::v1;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ClientCapabilities, ClientConfig, ClientRequest, Implementation,
    ListToolsRequest, PaginatedRequestParams, PingRequest, ServerResult,
};
use rmcp::service::{PeerRequestOptions, RunningService};
use rmcp::{RoleClient, ServiceError, ServiceExt as _};
use serde_json::{Map, Value};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::super::ToolResult;
use super::super::local::{Captured, environment};
use super::super::redact::redacted;
use super::answer;
use super::listing::{Listing, Pin, cut};
use super::pipe::{Pipe, State};
use crate::sandbox::{Boundary, Policy, Running, Task};

/// Pages of a list of tools, at most.
const MAX_PAGES: u32 = 32;
/// What is kept of stderr, bytes.
const MAX_ERRORS: usize = 2 << 10;
/// What is told of stderr, characters.
const SHOWN_ERRORS: usize = 500;
/// How long a server whose output has ended may take to end itself.
const ENDING: Duration = Duration::from_millis(500);
/// How long a server that did not answer a call may take to show that it lives.
const PONG: Duration = Duration::from_secs(3);
/// A server that ran for so long ended for a new reason.
const LASTING: Duration = Duration::from_secs(60);
/// The longest time between two starts.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// How often stderr is read, a buffer each: what writes faster waits.
const ERRORS_PACE: Duration = Duration::from_millis(10);

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
    pub(super) policy: Policy,
    boundary: Boundary,
    scratch: PathBuf,
    #[expect(clippy::disallowed_types, reason = "one starts it, and the others wait for that")]
    slot: tokio::sync::Mutex<Slot>,
}

/// The process, and those before it.
#[derive(Debug, Default)]
struct Slot {
    link: Option<Arc<Link>>,
    /// Ends and failed starts in a row.
    failures: u32,
    /// Why there is none, and when it may be started again.
    away: Option<(String, Instant)>,
}

/// A running process, and the protocol spoken with it.
#[derive(Debug)]
pub(super) struct Link {
    client: RunningService<RoleClient, ClientConfig>,
    pipe: Arc<State>,
    ended: watch::Receiver<Option<String>>,
    begun: Instant,
    listing: Mutex<Arc<Listing>>,
    /// What of the listing may be offered, as the control plane last answered.
    pub(super) pinned: Mutex<Option<BTreeMap<String, Pin>>>,
    /// Watches over the process; ends it when dropped.
    _tasks: JoinSet<()>,
}

impl Server {
    /// Of an agent with that scratch and boundary; nothing is started.
    pub(super) fn new(config: v1::McpServer, policy: Policy, boundary: Boundary, scratch: &Path) -> Self {
        Self { config, policy, boundary, scratch: scratch.to_owned(), slot: Default::default() }
    }

    /// The running process; starts it where there is none.
    pub(super) async fn link(&self) -> Result<Arc<Link>, Away> {
        let mut slot = self.slot.lock().await;
        if let Some(link) = &slot.link {
            let Some(why) = link.why_ended() else {
                return Ok(Arc::clone(link));
            };
            tracing::warn!(server = self.config.name, ?why, "an MCP server has ended");
            let lasted = link.begun.elapsed() >= LASTING;
            slot.link = None;
            // The first time it is started again at once.
            let failures = if lasted { 0 } else { slot.failures };
            slot.failures = failures + 1;
            slot.away = Some((why, Instant::now() + pause(failures)));
        }
        if let Some((why, from)) = &slot.away
            && Instant::now() < *from
        {
            let wait = from.duration_since(Instant::now()).as_secs() + 1;
            return Err(Away { why: format!("{why}; it is started again in {wait} s at the earliest"), tried: false });
        }
        match self.start().await {
            Ok(link) => {
                let link = Arc::new(link);
                slot.link = Some(Arc::clone(&link));
                Ok(link)
            }
            Err(why) => {
                slot.failures += 1;
                slot.away = Some((why.clone(), Instant::now() + pause(slot.failures)));
                Err(Away { why, tried: true })
            }
        }
    }

    /// Starts it, and asks for its tools.
    async fn start(&self) -> Result<Link, String> {
        let mut env = environment(&self.scratch, self.policy.level);
        env.extend(self.config.env.iter().map(|variable| (variable.name.clone(), variable.value.clone())));
        let task = Task::Command { argv: self.config.command.clone(), cwd: self.scratch.clone(), env };
        let begun = Instant::now();
        let mut running = self
            .boundary
            .start_apart(&self.policy, task)
            .await
            .map_err(|error| format!("it cannot be started: {error}"))?;
        let (Some(output), Some(errors), Some(input)) =
            (running.output.take(), running.errors.take(), running.input.take())
        else {
            return Err("it has no pipes".to_owned());
        };
        let (pipe, writing) = Pipe::new(output, input).map_err(|error| format!("its pipes cannot be used: {error}"))?;
        let errors =
            Receiver::from_file(File::from(errors)).map_err(|error| format!("its stderr cannot be read: {error}"))?;
        let state = pipe.state();
        let (end, mut ended) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(writing);
        let full = {
            let (boundary, policy) = (self.boundary.clone(), self.policy.clone());
            async move { boundary.overflow(&policy).await }
        };
        tasks.spawn(supervise(running, errors, Arc::clone(&state), full, end));
        let patience = Duration::from_secs(self.config.connect_timeout_seconds.max(1).into());
        let ready = async {
            let info = ClientConfig::new(
                ClientCapabilities::default(),
                Implementation::new("hermes-worker", env!("CARGO_PKG_VERSION")),
            );
            // With what is wrong, whether its output had ended by then.
            let closed = |why: String| (why, state.closed.is_cancelled());
            let client = info.serve(pipe).await.map_err(|error| closed(cut(&error.to_string(), SHOWN_ERRORS)))?;
            let listing = list(&client, &self.config).await.map_err(closed)?;
            Ok::<_, (String, bool)>((client, listing))
        };
        let (why, closed) = match timeout(patience, ready).await {
            Ok(Ok((client, listing))) => {
                return Ok(Link {
                    client,
                    pipe: state,
                    ended,
                    begun,
                    listing: Mutex::new(Arc::new(listing)),
                    pinned: Mutex::default(),
                    _tasks: tasks,
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
            true => timeout(ENDING * 2, ended.wait_for(Option::is_some)).await.ok().and_then(Result::ok),
            false => None,
        };
        Err(end.and_then(|end| end.clone()).unwrap_or_else(|| format!("it does not speak the protocol: {why}")))
    }

    /// Calls a tool that was offered with that pin.
    pub(super) async fn call(
        &self,
        tool: &str,
        pin: &Pin,
        arguments: Map<String, Value>,
        cancel: &CancellationToken,
    ) -> Called {
        let name = &self.config.name;
        let link = tokio::select! {
            link = self.link() => link,
            () = cancel.cancelled() => return Called::Answered(Err("the call was stopped before it began".to_owned())),
        };
        let link = match link {
            Ok(link) => link,
            Err(Away { why, .. }) => {
                return Called::Answered(Err(format!("the MCP server {name} cannot be used: {why}")));
            }
        };
        if link.listing().tools.get(tool).is_none_or(|known| known.pin != *pin) {
            return Called::Answered(Err(format!(
                "{tool} of the MCP server {name} is not what it was when it was offered"
            )));
        }
        let patience = Duration::from_secs(self.config.timeout_seconds.max(1).into());
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        // Dropped before its end, the server is told that nobody waits any more.
        let calling = timeout(patience, link.client.peer().call_tool_once(params));
        let answered = tokio::select! {
            answered = calling => answered,
            () = cancel.cancelled() => {
                return Called::Lost(format!("UNKNOWN: the call of the MCP server {name} was stopped. It may or may not have happened."));
            }
        };
        match answered {
            Ok(Ok(CallToolResponse::Complete(result))) => Called::Answered(answer::text(&result)),
            Ok(Ok(_)) => Called::Answered(Err(format!(
                "the MCP server {name} asks for more instead of answering, and is given none"
            ))),
            Ok(Err(ServiceError::TransportClosed | ServiceError::TransportSend(_))) => {
                let why = link.end().await;
                Called::Lost(format!(
                    "UNKNOWN: the MCP server {name} ended in the middle of this call: {why}. It may or may not have \
                     happened. Check before you repeat it."
                ))
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
        }
    }
}

/// How long after that many failures it is not started.
fn pause(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        _ => Duration::from_secs(1_u64 << (failures - 1).min(6)).min(MAX_PAUSE),
    }
}

impl Link {
    /// The tools as last told.
    pub(super) fn listing(&self) -> Arc<Listing> {
        Arc::clone(&self.listing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks for the tools again where the server said that they changed.
    pub(super) async fn refresh(&self, config: &v1::McpServer) {
        if !self.pipe.changed.swap(false, Ordering::Relaxed) {
            return;
        }
        let patience = Duration::from_secs(config.connect_timeout_seconds.max(1).into());
        let listed = timeout(patience, list(&self.client, config)).await;
        match listed.unwrap_or_else(|_| Err("it does not say which tools it has now".to_owned())) {
            Ok(listing) => {
                *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(listing);
                *self.pinned.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            Err(why) => self.pipe.broken(why),
        }
    }

    /// Why it runs no more; none while it does.
    fn why_ended(&self) -> Option<String> {
        if !self.pipe.closed.is_cancelled() && self.ended.has_changed().is_ok() {
            return None;
        }
        let ended = self.ended.borrow().clone();
        ended.or_else(|| self.pipe.reason().map(str::to_owned)).or_else(|| Some("it closed its output".to_owned()))
    }

    /// Waits for why it ended.
    async fn end(&self) -> String {
        let mut ended = self.ended.clone();
        let _ = timeout(ENDING * 2, ended.wait_for(Option::is_some)).await;
        self.why_ended().unwrap_or_else(|| "its pipes broke".to_owned())
    }

    /// Whether it answers at all; it is ended where not.
    async fn lives(&self) -> bool {
        let ping = ClientRequest::PingRequest(PingRequest::default());
        let pong = timeout(PONG, self.client.peer().send_request(ping)).await;
        let lives = matches!(pong, Ok(Ok(_) | Err(ServiceError::McpError(_))));
        if !lives {
            self.pipe.broken("it did not answer any more".to_owned());
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

/// Reads stderr, and ends the process for what it has to be ended for; tells why it ended.
async fn supervise(
    mut running: Running,
    mut errors: Receiver,
    pipe: Arc<State>,
    full: impl Future<Output = String>,
    end: watch::Sender<Option<String>>,
) {
    let mut captured = Captured::new(MAX_ERRORS);
    let mut buffer = vec![0; 16 << 10];
    let why = {
        let reading = async {
            while let Ok(read @ 1..) = errors.read(&mut buffer).await {
                captured.push(&buffer[..read]);
                tokio::time::sleep(ERRORS_PACE).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::pin!(reading, full);
        let ended = |code: std::io::Result<i32>| match code {
            Ok(code) => format!("it ended with exit code {code}"),
            Err(error) => format!("it ended: {error}"),
        };
        let why = tokio::select! {
            () = &mut reading => String::new(),
            code = running.wait() => ended(code),
            taken = &mut full => format!("it was ended because the disk is full: {taken}"),
            () = pipe.closed.cancelled() => match pipe.reason() {
                Some(reason) => {
                    running.kill();
                    end.send_replace(Some(reason.to_owned()));
                    return;
                }
                None => match timeout(ENDING, running.wait()).await {
                    Ok(code) => ended(code),
                    Err(_) => "it closed its output".to_owned(),
                },
            },
        };
        // What it said last, and nothing that others hold open.
        let _ = timeout(Duration::from_millis(100), &mut reading).await;
        why
    };
    running.kill();
    let said = captured.text();
    let said = cut(redacted(said.trim()).as_ref(), SHOWN_ERRORS);
    let why = if said.is_empty() { why } else { format!("{why} (on stderr: {said})") };
    end.send_replace(Some(why));
    pipe.closed.cancel();
}
