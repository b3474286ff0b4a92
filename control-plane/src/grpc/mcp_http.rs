//! MCP servers behind a URL, for the workers of the agents that have them: one HTTP request each, and what comes of it.
//!
//! Called by [`super::worker_api`]. Always true: where a request goes, and which secrets go along, stands in the operator's document, and a
//! worker says no more than the server's name, under the configuration that its turn was told; a redirect is not followed; an answer
//! ends at its bounds of bytes and time; one worker has a bounded number of them under way; what a worker is told of a failure holds
//! neither URL nor secret. It repeats nothing, and reads nothing of the protocol.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hermes_core::config::SecretRef;
use hermes_core::mcp::{Header, McpServer, McpServers};
use hermes_proto::v1;
use hermes_proto::v1::mcp_http_chunk::Chunk;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use secrecy::ExposeSecret as _;
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use uuid::Uuid;

use super::mcp;
use super::status::{Reason, invalid, refuse};
use super::worker_api::Caller;
use crate::egress::{Answer, Egress, Failed};
use crate::tools::Secrets;

/// Requests of one worker under way at once: as many calls as a worker has tools for in a quarter of its slots.
const AT_ONCE: usize = 64;
/// Most bytes of one answer: the worker takes half of it, and says so.
const MAX_BYTES: usize = 16 << 20;
/// Most bytes of a part.
const MAX_PART: usize = 64 << 10;
/// Longest text of the protocol's own headers, bytes.
const MAX_HEADER: usize = 1024;
/// What a request may take beyond the time that the server has for starting and for a call.
const BESIDE: Duration = Duration::from_secs(5);

/// Who sends; cheap to clone.
#[derive(Clone)]
pub(super) struct Remotes {
    egress: Egress,
    secrets: Secrets,
    under_way: UnderWay,
}

impl std::fmt::Debug for Remotes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Remotes")
    }
}

/// How many of something each worker has under way; one that has none takes no room.
#[derive(Clone, Debug, Default)]
pub(super) struct UnderWay(Arc<Mutex<HashMap<Uuid, usize>>>);

/// A place among them, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    all: UnderWay,
    worker: Uuid,
}

impl UnderWay {
    /// One more of that worker, unless it has `most`.
    pub(super) fn enter(&self, worker: Uuid, most: usize) -> Option<Place> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.get(&worker).copied().unwrap_or(0);
        if count >= most {
            return None;
        }
        all.insert(worker, count + 1);
        Some(Place { all: self.clone(), worker })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&self.worker) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(all.remove(&self.worker)),
        }
    }
}

impl Remotes {
    pub(super) fn new(egress: Egress, secrets: Secrets) -> Self {
        Self { egress, secrets, under_way: UnderWay::default() }
    }

    /// Sends a request of `caller`, whose agent has these servers.
    pub(super) async fn send(
        &self,
        caller: &Caller,
        servers: &McpServers,
        request: v1::McpHttpRequest,
    ) -> Result<BoxStream<'static, Result<v1::McpHttpChunk, Status>>, Status> {
        let method = match request.method() {
            v1::McpHttpMethod::Post => Method::POST,
            v1::McpHttpMethod::Get => Method::GET,
            v1::McpHttpMethod::Delete => Method::DELETE,
            v1::McpHttpMethod::Unspecified => return Err(invalid("method", "it is missing")),
        };
        let known = servers.get(&request.server).filter(|server| server.enabled);
        let known = known.and_then(|server| Some((server, server.url.as_deref()?, mcp::remote(server)?)));
        let Some((server, url, remote)) = known else {
            return Err(refuse(Reason::NotFound, "the agent has no server of that name behind a URL (any more)"));
        };
        if remote != request.remote {
            let message = "the server was given another URL or other headers meanwhile; the agent's next turn has it as it is now";
            return Err(refuse(Reason::Conflict, message));
        }
        let Some(place) = self.under_way.enter(caller.worker, AT_ONCE) else {
            return Err(refuse(
                Reason::Overloaded,
                format!("this worker asks its MCP servers {AT_ONCE} things at once"),
            ));
        };
        let mut headers = own_headers(&request)?;
        if let Err(reason) = self.add(&mut headers, server) {
            tracing::warn!(agent = %caller.agent, server = request.server, reason, "an MCP server is not asked");
            return Ok(only(failed(reason, false)));
        }
        let seconds = server.timeout_seconds.saturating_add(server.connect_timeout_seconds);
        let deadline = Instant::now() + Duration::from_secs(seconds) + BESIDE;
        let sent = timeout_at(deadline, self.egress.send(method.clone(), url, headers, request.body)).await;
        let late = || Failed { reason: format!("it did not answer within {seconds} s"), begun: true };
        let response = sent.unwrap_or_else(|_| Err(late())).and_then(|response| judged(server, response));
        let response = match response {
            Ok(response) => response,
            Err(Failed { reason, begun }) => {
                tracing::warn!(agent = %caller.agent, server = request.server, %method, reason, begun, "an MCP server was asked in vain");
                return Ok(only(failed(reason, begun)));
            }
        };
        tracing::debug!(agent = %caller.agent, server = request.server, %method, status = response.status().as_u16(), "asked an MCP server");
        let head = head(&response);
        let body = Body { response, deadline, left: MAX_BYTES, rest: Vec::new(), late: late().reason, _place: place };
        let parts = stream::unfold(Some(body), |body| async move {
            let mut body = body?;
            let part = body.next().await?;
            let ended = matches!(part, Chunk::Failed(_));
            Some((part, (!ended).then_some(body)))
        });
        let chunk = |chunk| Ok(v1::McpHttpChunk { chunk: Some(chunk) });
        Ok(stream::iter([Chunk::Head(head)]).chain(parts).map(chunk).boxed())
    }

    /// Adds what the operator has sent along.
    fn add(&self, headers: &mut HeaderMap, server: &McpServer) -> Result<(), String> {
        for (name, header) in &server.headers {
            let (text, secret) = match header {
                Header::Plain(text) => (text.clone(), false),
                Header::Secret { prefix, reference } => {
                    let secret = (self.secrets)(reference).map_err(|why| format!("its header {name}: {why}"))?;
                    (format!("{prefix}{}", secret.expose_secret()), true)
                }
            };
            let unsendable =
                |_| format!("its header {name} cannot be sent: its text is not one line of printable ASCII");
            let mut value = HeaderValue::from_str(&text).map_err(unsendable)?;
            value.set_sensitive(secret);
            let unknown = |_| format!("its header {name} cannot be sent under that name");
            headers.insert(HeaderName::from_bytes(name.as_bytes()).map_err(unknown)?, value);
        }
        Ok(())
    }
}

/// The protocol's own headers.
fn own_headers(request: &v1::McpHttpRequest) -> Result<HeaderMap, Status> {
    let mut headers = HeaderMap::new();
    headers.insert("accept", HeaderValue::from_static("application/json, text/event-stream"));
    if !request.body.is_empty() {
        headers.insert("content-type", HeaderValue::from_static("application/json"));
    }
    let said = [
        ("session_id", "mcp-session-id", &request.session_id),
        ("protocol_version", "mcp-protocol-version", &request.protocol_version),
        ("last_event_id", "last-event-id", &request.last_event_id),
    ];
    for (field, name, text) in said {
        if text.is_empty() {
            continue;
        }
        let value = HeaderValue::from_str(text).ok().filter(|_| text.len() <= MAX_HEADER);
        headers.insert(name, value.ok_or_else(|| invalid(field, "it is no header's text"))?);
    }
    Ok(headers)
}

/// An answer that is worth handing on; of others, what an operator can do about it.
fn judged(server: &McpServer, response: Answer) -> Result<Answer, Failed> {
    let status = response.status();
    let reason = match status.as_u16() {
        401 | 403 => format!("it answers {status}: {}", references(server)),
        300..=399 => format!("it answers {status}, and redirects are not followed; write in url where it leads"),
        _ => return Ok(response),
    };
    Err(Failed { reason, begun: false })
}

/// Which references an operator has to look at when a server lets nobody in.
fn references(server: &McpServer) -> String {
    let of = |(name, header): (&String, &Header)| match header {
        Header::Plain(_) => None,
        Header::Secret { reference: SecretRef::Env(variable), .. } => {
            Some(format!("{name} (the control plane's variable {variable})"))
        }
        Header::Secret { reference: SecretRef::File(path), .. } => {
            Some(format!("{name} (the control plane's file {path})"))
        }
    };
    let all: Vec<String> = server.headers.iter().filter_map(of).collect();
    match all.is_empty() {
        true => "nothing secret is sent to it; name it in headers".to_owned(),
        false => format!("check what its headers refer to: {}", all.join(", ")),
    }
}

fn head(response: &Answer) -> v1::McpHttpHead {
    let text = |name| response.header(name).filter(|text| text.len() <= MAX_HEADER).unwrap_or_default();
    let kind = text("content-type").split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let session_id = text("mcp-session-id").to_owned();
    v1::McpHttpHead { status: response.status().as_u16().into(), content_type: kind, session_id }
}

fn failed(reason: String, begun: bool) -> Chunk {
    Chunk::Failed(v1::McpHttpFailed { reason, begun })
}

fn only(chunk: Chunk) -> BoxStream<'static, Result<v1::McpHttpChunk, Status>> {
    stream::iter([Ok(v1::McpHttpChunk { chunk: Some(chunk) })]).boxed()
}

/// A body as it comes.
struct Body {
    response: Answer,
    deadline: Instant,
    left: usize,
    /// What came and is not handed on yet.
    rest: Vec<u8>,
    late: String,
    _place: Place,
}

impl Body {
    /// Its next part; none: it has ended.
    async fn next(&mut self) -> Option<Chunk> {
        if self.rest.is_empty() {
            self.rest = match timeout_at(self.deadline, self.response.next()).await {
                Ok(Ok(Some(bytes))) => bytes,
                Ok(Ok(None)) => return None,
                Ok(Err(why)) => return Some(failed(why, true)),
                Err(_) => return Some(failed(self.late.clone(), true)),
            };
        }
        if self.rest.len() > self.left {
            return Some(failed(format!("it answers more than {} MiB", MAX_BYTES >> 20), true));
        }
        let rest = self.rest.split_off(self.rest.len().min(MAX_PART));
        let part = std::mem::replace(&mut self.rest, rest);
        self.left -= part.len();
        Some(Chunk::Body(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_so_many_under_way_and_gives_each_place_back() {
        let (all, one, other) = (UnderWay::default(), Uuid::new_v4(), Uuid::new_v4());
        let first = all.enter(one, 2).unwrap();
        let second = all.enter(one, 2).unwrap();
        assert!(all.enter(one, 2).is_none() && all.enter(other, 2).is_some());
        drop(first);
        assert!(all.enter(one, 2).is_some());
        drop(second);
        assert!(all.0.lock().unwrap().is_empty());
    }
}
