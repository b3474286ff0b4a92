//! What carries the protocol to a server behind a URL: streamable HTTP, each request of which the control plane sends, to the place that it
//! alone knows.
//!
//! Made by [`super::server`] for each greeting of a server, used by the protocol's client. Always true: a message is posted once, and
//! never again by itself; an answer's messages are bounded in size and number as a program's are, and only the answer that is waited
//! for is handed on; what a server asks for itself is refused; nobody waits for an answer that its caller no longer wants; a stream
//! that breaks off is gone on with where the server said how, a few times. It opens no connection and knows no secret. The protocol's
//! client is told how far a failed request came ([`Failed`]). This is our own and not the client library's transport, because that one posts
//! a call again by itself and reads messages before anybody has judged them.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hermes_proto::v1::mcp_http_chunk::Chunk;
use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_proto::v1::{self, McpHttpChunk, McpHttpFailed, McpHttpHead, McpHttpMethod, McpHttpRequest};
use rmcp::RoleClient;
use rmcp::model::{
    ClientJsonRpcMessage, ClientNotification, ClientRequest, JsonRpcMessage, RequestId, ServerJsonRpcMessage,
};
use rmcp::transport::Transport;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::super::child::State;
use super::super::child::cut;
use super::judge::{Judged, LIMITS, judge};
use crate::connection::Connection;

/// Longest message that is posted: one of gRPC with some room for what is around it.
const MAX_POST: usize = hermes_proto::MAX_MESSAGE_BYTES - (16 << 10);
/// Answers that wait for the client.
const QUEUE: usize = 16;
/// What a server may ask for while it answers one request.
const MAX_ASKED: u32 = 64;
/// How often a stream that broke off is gone on with.
const MAX_RESUMED: u32 = 5;
/// How long to wait before that, at most; a server says how long.
const MAX_RETRY: Duration = Duration::from_secs(5);
/// How long to wait where it does not say.
const USUAL_RETRY: Duration = Duration::from_secs(1);
/// What is read of an answer that says what went wrong, bytes.
const MAX_EXCUSE: usize = 8 << 10;
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why a request came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failed {
    /// The server did not take it, or did not get it: it had no effect.
    #[error("{0}")]
    Away(String),
    /// The server knows nothing of the session: it had no effect, and a new session may begin.
    #[error("it has forgotten this session")]
    Forgotten,
    /// Nobody knows how far it came.
    #[error("{0}")]
    Lost(String),
}

/// The way to the control plane.
#[derive(Clone)]
pub(super) struct Plane(pub(super) watch::Receiver<Connection>);

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Plane")
    }
}

/// What went wrong last, for whoever greets a server: the client says less.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    /// What it was, once.
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A session with one server.
#[derive(Debug)]
pub(super) struct Remote {
    session: Arc<Session>,
    answers: mpsc::Receiver<ServerJsonRpcMessage>,
}

/// What the requests of a session share.
#[derive(Debug)]
struct Session {
    server: String,
    remote: Vec<u8>,
    plane: Plane,
    state: Arc<State>,
    /// It says that it has other tools.
    changed: Arc<AtomicBool>,
    trouble: Trouble,
    /// What the server said in its greeting: its id for the session, and the version of the protocol.
    said: Mutex<(String, String)>,
    to_client: mpsc::Sender<ServerJsonRpcMessage>,
    /// Requests that are waited for.
    waiting: Mutex<HashMap<RequestId, CancellationToken>>,
}

impl Remote {
    /// With the server of that configuration; nothing is sent.
    pub(super) fn new(config: &v1::McpServer, plane: Plane) -> Self {
        let (to_client, answers) = mpsc::channel(QUEUE);
        let session = Session {
            server: config.name.clone(),
            remote: config.remote.clone(),
            plane,
            state: Arc::new(State::new(LIMITS)),
            changed: Arc::default(),
            trouble: Trouble::default(),
            said: Mutex::default(),
            to_client,
            waiting: Mutex::default(),
        };
        Self { session: Arc::new(session), answers }
    }

    /// What others may know of it.
    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.session.state)
    }

    /// Whether it has said that it has other tools.
    pub(super) fn changed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.session.changed)
    }

    /// What went wrong last.
    pub(super) fn trouble(&self) -> Trouble {
        self.session.trouble.clone()
    }
}

/// A request as it is answered.
struct Exchange {
    /// The answer that is waited for; none: a notification, which has none.
    id: Option<RequestId>,
    greets: bool,
    left: usize,
    asked: u32,
    events: Events,
}

/// What has come of an answer's stream.
enum Read {
    /// All that is wanted.
    Done,
    /// It has ended before that.
    Ended,
}

impl Session {
    fn request(&self, method: McpHttpMethod, body: Vec<u8>) -> McpHttpRequest {
        let (session_id, protocol_version) = self.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        McpHttpRequest {
            server: self.server.clone(),
            remote: self.remote.clone(),
            method: method.into(),
            session_id,
            protocol_version,
            last_event_id: String::new(),
            body,
        }
    }

    /// Posts a message, and reads what comes until the answer with that id.
    async fn exchange(&self, body: Vec<u8>, id: Option<RequestId>, greets: bool) -> Result<(), Failed> {
        if body.len() > MAX_POST {
            return Err(Failed::Away(format!("its arguments take more than {} KiB", MAX_POST >> 10)));
        }
        let mut exchange = Exchange { id, greets, left: LIMITS.unasked, asked: 0, events: Events::default() };
        let request = self.request(McpHttpMethod::Post, body);
        let had_session = !request.session_id.is_empty();
        let (head, body) = self.open(request, had_session).await?;
        let mut read = Box::pin(self.read(head, body, &mut exchange)).await?;
        let mut resumed = 0;
        // The call has begun: whatever happens now, nobody knows how far it came.
        let lost = |failed: Failed| Failed::Lost(failed.to_string());
        while matches!(read, Read::Ended) && exchange.id.is_some() {
            let broke_off = || Failed::Lost("it ended its answer before it was whole".to_owned());
            let after = exchange.events.last_id.clone().filter(|_| resumed < MAX_RESUMED).ok_or_else(broke_off)?;
            resumed += 1;
            tokio::time::sleep(exchange.events.retry.unwrap_or(USUAL_RETRY).min(MAX_RETRY)).await;
            exchange.events.begin_anew();
            let request = McpHttpRequest { last_event_id: after, ..self.request(McpHttpMethod::Get, Vec::new()) };
            let (head, body) = self.open(request, had_session).await.map_err(lost)?;
            read = Box::pin(self.read(head, body, &mut exchange)).await.map_err(lost)?;
        }
        Ok(())
    }

    /// Has a request sent, and looks at what begins to come.
    async fn open(
        &self,
        request: McpHttpRequest,
        had_session: bool,
    ) -> Result<(McpHttpHead, Streaming<McpHttpChunk>), Failed> {
        let channel = self.plane.0.borrow().channel.clone();
        let channel = channel.ok_or_else(|| Failed::Away("the control plane cannot be reached".to_owned()))?;
        let mut client = WorkerServiceClient::new(channel);
        let mut body = client.mcp_http(request).await.map_err(|status| refused(&status))?.into_inner();
        let head = match body.message().await.map_err(|status| broken(&status))?.and_then(|chunk| chunk.chunk) {
            Some(Chunk::Head(head)) => head,
            Some(Chunk::Failed(McpHttpFailed { reason, begun: false })) => return Err(Failed::Away(reason)),
            Some(Chunk::Failed(McpHttpFailed { reason, begun: true })) => return Err(Failed::Lost(reason)),
            Some(Chunk::Body(_)) | None => {
                return Err(Failed::Lost("the control plane did not say what came of it".to_owned()));
            }
        };
        match head.status {
            200..=299 => Ok((head, body)),
            404 if had_session => Err(Failed::Forgotten),
            status => {
                let why = format!("it answers with HTTP status {status}{}", excuse(&head, &mut body).await);
                Err(if status >= 500 { Failed::Lost(why) } else { Failed::Away(why) })
            }
        }
    }

    async fn read(
        &self,
        head: McpHttpHead,
        mut body: Streaming<McpHttpChunk>,
        exchange: &mut Exchange,
    ) -> Result<Read, Failed> {
        if exchange.greets && !head.session_id.is_empty() {
            self.said.lock().unwrap_or_else(PoisonError::into_inner).0 = head.session_id;
        }
        if exchange.id.is_none() {
            return Ok(Read::Done);
        }
        let streams = match head.content_type.as_str() {
            "text/event-stream" => true,
            "application/json" => false,
            "" => return Err(Failed::Lost(format!("it answers with HTTP status {} and no message", head.status))),
            other => {
                let kind = cut(other, 80);
                return Err(Failed::Lost(format!("it answers with {kind} instead of messages: is this its URL?")));
            }
        };
        let mut whole = Vec::new();
        loop {
            let part = match body.message().await.map_err(|status| broken(&status))?.and_then(|chunk| chunk.chunk) {
                Some(Chunk::Body(part)) => part,
                Some(Chunk::Failed(McpHttpFailed { reason, .. })) => return Err(Failed::Lost(reason)),
                Some(Chunk::Head(_)) => return Err(Failed::Lost("the control plane answers twice".to_owned())),
                None => break,
            };
            let too_much = || Failed::Lost(format!("it sent more than {} MiB for one request", LIMITS.unasked >> 20));
            exchange.left = exchange.left.checked_sub(part.len()).ok_or_else(too_much)?;
            if streams {
                for message in exchange.events.push(&part)? {
                    if self.take(&message, exchange).await? {
                        return Ok(Read::Done);
                    }
                }
            } else if whole.len() + part.len() > LIMITS.line {
                return Err(too_long());
            } else {
                whole.extend_from_slice(&part);
            }
        }
        if streams {
            return Ok(Read::Ended);
        }
        match self.take(&whole, exchange).await? {
            true => Ok(Read::Done),
            false => Err(Failed::Lost("its answer is no answer of the protocol".to_owned())),
        }
    }

    /// Does what there is to do about a message; true: it was the answer.
    async fn take(&self, message: &[u8], exchange: &mut Exchange) -> Result<bool, Failed> {
        match judge(message, &self.state, &self.changed).map_err(Failed::Lost)? {
            Judged::Nothing => Ok(false),
            Judged::Answer(answer) => {
                let of = match answer.as_ref() {
                    JsonRpcMessage::Response(response) => Some(&response.id),
                    JsonRpcMessage::Error(error) => error.id.as_ref(),
                    _ => None,
                };
                if of != exchange.id.as_ref() {
                    return Ok(false);
                }
                if exchange.greets {
                    let version = serde_json::from_slice::<Value>(message).ok();
                    let version = version.and_then(|all| Some(all["result"]["protocolVersion"].as_str()?.to_owned()));
                    self.said.lock().unwrap_or_else(PoisonError::into_inner).1 = version.unwrap_or_default();
                }
                // Without a client nobody waits.
                let _ = self.to_client.send(*answer).await;
                Ok(true)
            }
            Judged::Reply(reply) => {
                exchange.asked += 1;
                if exchange.asked > MAX_ASKED {
                    return Err(Failed::Lost("it asks again and again instead of answering".to_owned()));
                }
                let request = self.request(McpHttpMethod::Post, reply.into_bytes());
                let had_session = !request.session_id.is_empty();
                // A server that does not take its answer goes without.
                let _ = self.open(request, had_session).await;
                Ok(false)
            }
        }
    }

    fn wait_for(&self, id: &RequestId) -> CancellationToken {
        let token = CancellationToken::new();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), token.clone());
        token
    }

    fn forget(&self, id: &RequestId) -> Option<CancellationToken> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(id)
    }
}

fn too_long() -> Failed {
    Failed::Lost(format!("it sent a message longer than {} MiB", LIMITS.line >> 20))
}

/// A call that the control plane answered with a status: it sends nothing then, unless the line to it broke.
fn refused(status: &tonic::Status) -> Failed {
    use tonic::Code;
    match status.code() {
        Code::NotFound
        | Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::ResourceExhausted
        | Code::PermissionDenied => Failed::Away(status.message().to_owned()),
        Code::Unimplemented => {
            Failed::Away("this control plane asks no servers behind a URL: upgrade it before its workers".to_owned())
        }
        _ => broken(status),
    }
}

fn broken(status: &tonic::Status) -> Failed {
    Failed::Lost(format!("the line to the control plane broke ({:?})", status.code()))
}

/// What a server says of its refusal.
async fn excuse(head: &McpHttpHead, body: &mut Streaming<McpHttpChunk>) -> String {
    if head.content_type != "application/json" {
        return String::new();
    }
    let mut said = Vec::new();
    while let Ok(Some(McpHttpChunk { chunk: Some(Chunk::Body(part)) })) = body.message().await {
        said.extend_from_slice(&part);
        if said.len() > MAX_EXCUSE {
            return String::new();
        }
    }
    let message = serde_json::from_slice::<Value>(&said).ok();
    let message = message.and_then(|said| Some(cut(said["error"]["message"].as_str()?, 200)));
    message.map(|message| format!(": {message}")).unwrap_or_default()
}

/// The messages of an event stream, put together from its parts.
#[derive(Debug, Default)]
struct Events {
    line: Vec<u8>,
    data: Vec<u8>,
    /// The last byte ended a line, and a line feed after it belongs to that.
    returned: bool,
    /// Where the server would go on.
    last_id: Option<String>,
    /// How long it wants to be left alone before that.
    retry: Option<Duration>,
}

impl Events {
    /// The messages that are whole now.
    fn push(&mut self, part: &[u8]) -> Result<Vec<Vec<u8>>, Failed> {
        let mut messages = Vec::new();
        for byte in part {
            match byte {
                b'\n' if std::mem::take(&mut self.returned) => {}
                b'\n' | b'\r' => {
                    self.returned = *byte == b'\r';
                    messages.extend(self.end_line());
                }
                byte => {
                    self.returned = false;
                    if self.line.len() + self.data.len() >= LIMITS.line {
                        return Err(too_long());
                    }
                    self.line.push(*byte);
                }
            }
        }
        Ok(messages)
    }

    /// Another stream begins.
    fn begin_anew(&mut self) {
        let last_id = self.last_id.take();
        *self = Self { last_id, retry: self.retry, ..Self::default() };
    }

    fn end_line(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return Some(std::mem::take(&mut self.data)).filter(|data| !data.is_empty());
        }
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (field, value) = (&line[..at], line.get(at + 1..).unwrap_or_default());
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"id" => {
                self.last_id =
                    std::str::from_utf8(value).ok().filter(|id| !id.is_empty() && id.len() <= 1024).map(str::to_owned);
            }
            b"retry" => {
                let millis = std::str::from_utf8(value).ok().and_then(|millis| millis.parse().ok());
                self.retry = millis.map(Duration::from_millis).or(self.retry);
            }
            _ => {}
        }
        None
    }
}

impl Transport<RoleClient> for Remote {
    type Error = Failed;

    fn send(&mut self, item: ClientJsonRpcMessage) -> impl Future<Output = Result<(), Failed>> + Send + 'static {
        let (id, greets) = match &item {
            JsonRpcMessage::Request(request) => {
                (Some(request.id.clone()), matches!(request.request, ClientRequest::InitializeRequest(_)))
            }
            JsonRpcMessage::Notification(one) => {
                if let ClientNotification::CancelledNotification(cancelled) = &one.notification
                    && let Some(token) = cancelled.params.request_id.as_ref().and_then(|id| self.session.forget(id))
                {
                    token.cancel();
                }
                (None, false)
            }
            _ => (None, false),
        };
        let (session, body) = (Arc::clone(&self.session), serde_json::to_vec(&item));
        let wanted = id.as_ref().map(|id| session.wait_for(id)).unwrap_or_default();
        async move {
            let body = body.map_err(|error| Failed::Away(error.to_string()))?;
            let done = tokio::select! {
                done = session.exchange(body, id.clone(), greets) => done,
                () = wanted.cancelled() => Ok(()),
            };
            if let Some(id) = &id {
                session.forget(id);
            }
            if let Err(failed) = &done {
                *session.trouble.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failed.to_string());
            }
            done
        }
    }

    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        tokio::select! {
            biased;
            () = self.session.state.closed.cancelled() => None,
            answer = self.answers.recv() => answer,
        }
    }

    async fn close(&mut self) -> Result<(), Failed> {
        self.session.state.closed.cancel();
        let request = self.session.request(McpHttpMethod::Delete, Vec::new());
        if !request.session_id.is_empty() {
            // One that does not hear it forgets the session by itself.
            let _ = tokio::time::timeout(GOODBYE, self.session.open(request, true)).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_however_they_are_cut() {
        let stream =
            ": hello\nid: 7\nretry: 20\ndata: {\"a\":\r\ndata:1}\r\n\r\nevent: x\ndata: b\n\nid\n\ndata: cut off";
        for size in [1, 2, 3, 1000] {
            let mut events = Events::default();
            let mut messages = Vec::new();
            let mut ids = Vec::new();
            for part in stream.as_bytes().chunks(size) {
                messages.extend(events.push(part).unwrap());
                ids.push(events.last_id.clone());
            }
            assert_eq!(messages, [b"{\"a\":\n1}".to_vec(), b"b".to_vec()], "{size}");
            assert_eq!(events.retry, Some(Duration::from_millis(20)));
            assert!(size == 1000 || ids.contains(&Some("7".to_owned())));
            assert_eq!(events.last_id, None);
        }
    }

    #[test]
    fn an_event_without_an_end_ends_at_its_bound() {
        let mut events = Events::default();
        let part = vec![b'x'; 64 << 10];
        let taken = (0..100).take_while(|_| events.push(&part).is_ok()).count();
        assert_eq!(taken, LIMITS.line / part.len());
        let mut events = Events::default();
        let taken = (0..100).take_while(|_| events.push(&[b"data:", part.as_slice(), b"\n"].concat()).is_ok()).count();
        assert!(taken < 40, "{taken}");
    }
}
