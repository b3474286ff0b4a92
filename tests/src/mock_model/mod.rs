//! A model provider on this machine: OpenAI's, Anthropic's and Gemini's streaming wires, with every way to misbehave.
//!
//! Used by the tests of the broker, by whole-system tests and by the benchmark (it answers well over 5,000 requests a
//! second). It owns one listener on 127.0.0.1 and its connections; dropping it closes them. Always true: an answer whose
//! text is not scripted has [`TOKENS`] tokens and begins with the first [`TAG_CHARS`] characters of the last user message, so that a driver can
//! tell which message is answered, and ends with [`LAST_WORD`]. It does not check keys: a script says when one is refused.

mod wire;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

pub use wire::{LAST_WORD, TAG_CHARS, TOKENS};

use wire::{Answer, Wire};

/// What the server does with one request for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Answers at once, all tokens in one write.
    Answer,
    /// Answers after this time.
    Delay(Duration),
    /// Answers exactly this text instead of [`TOKENS`] tokens.
    Say(String),
    /// Takes the request and says nothing, until the client goes away.
    HangBeforeHeaders,
    /// Sends this many tokens, then nothing.
    HangAfter(usize),
    /// Sends this many tokens, then cuts the connection.
    DieAfter(usize),
    /// Sends this many tokens, then ends the response properly but without finish reason and end mark.
    EndAfter(usize),
    /// Sends everything but the end mark (`[DONE]`, `message_stop`); Gemini has none.
    NoEndMark,
    /// Sends each token by itself with this pause before it.
    Slow(Duration),
    /// Refuses with this status, an error body of the provider's shape, and `retry-after` if given.
    Status(u16, Option<&'static str>),
    /// HTTP 200 and an event stream that is not the protocol.
    Garbage,
    /// HTTP 200, this many tokens, then an error event of the provider's shape with this error type.
    ErrorAfter(usize, &'static str),
    /// A proper answer without any text.
    Empty,
    /// Answers as whom the system prompt names: its first line stands before the tag, as `first line | tag`.
    Persona,
    /// Answers when [`MockModel::release`] lets it.
    Held,
    /// Says this (nothing when it is empty) and asks for tools, in pieces as the wire sends them.
    Ask(String, Vec<Call>),
}

/// A tool that the model asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Its id; empty: the wire sends none (Anthropic's always does). Gemini's has none anyway.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON; on Gemini's wire it must be an object.
    pub arguments: String,
}

impl Call {
    /// A call with an id.
    pub fn new(id: &str, name: &str, arguments: &str) -> Self {
        Self { id: id.to_owned(), name: name.to_owned(), arguments: arguments.to_owned() }
    }
}

/// Decides by the request's body (JSON as sent) how it is answered.
type Responder = Arc<dyn Fn(&serde_json::Value) -> Behaviour + Send + Sync>;

/// The running server.
#[derive(Debug)]
pub struct MockModel {
    addr: SocketAddr,
    shared: Arc<Shared>,
    // Dropping it ends the listener and with it the connections.
    _accepting: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    script: Mutex<Script>,
    requests: AtomicU64,
    models_requests: AtomicU64,
    gone: AtomicU64,
    gone_changed: Notify,
    last: Mutex<LastRequest>,
    held: Semaphore,
}

struct Script {
    next: VecDeque<Behaviour>,
    then: Behaviour,
    responder: Option<Responder>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").field("next", &self.next).field("then", &self.then).finish_non_exhaustive()
    }
}

/// The last request for an answer.
#[derive(Clone, Debug, Default)]
pub struct LastRequest {
    /// Path and query.
    pub path: String,
    /// Headers.
    pub headers: HeaderMap,
    /// Body as sent.
    pub body: Bytes,
}

type Body = Either<Full<Bytes>, StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>>>;

impl MockModel {
    /// Listens on a free port of 127.0.0.1; every request is answered until a script says otherwise.
    ///
    /// # Errors
    /// When the listener cannot be opened.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            script: Mutex::new(Script { next: VecDeque::new(), then: Behaviour::Answer, responder: None }),
            requests: AtomicU64::new(0),
            models_requests: AtomicU64::new(0),
            gone: AtomicU64::new(0),
            gone_changed: Notify::new(),
            last: Mutex::default(),
            held: Semaphore::new(0),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { addr, shared, _accepting: accepting })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Base URL of the OpenAI and Anthropic wires, without a final slash.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// Base URL of the Gemini wire, without a final slash.
    pub fn gemini_base_url(&self) -> String {
        format!("http://{}/v1beta", self.addr)
    }

    /// The next requests behave like these, one each.
    pub fn script(&self, behaviours: impl IntoIterator<Item = Behaviour>) {
        self.shared.script.lock().unwrap_or_else(PoisonError::into_inner).next.extend(behaviours);
    }

    /// Requests without a script behave like this.
    pub fn otherwise(&self, behaviour: Behaviour) {
        self.shared.script.lock().unwrap_or_else(PoisonError::into_inner).then = behaviour;
    }

    /// Requests without a script behave as `responder` says; it sees the body as JSON. It wins over [`MockModel::otherwise`].
    pub fn respond(&self, responder: impl Fn(&serde_json::Value) -> Behaviour + Send + Sync + 'static) {
        self.shared.script.lock().unwrap_or_else(PoisonError::into_inner).responder = Some(Arc::new(responder));
    }

    /// Lets this many held answers go, those to come included.
    pub fn release(&self, count: usize) {
        self.shared.held.add_permits(count);
    }

    /// Requests for an answer so far, on any wire.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Relaxed)
    }

    /// Requests for the list of models so far.
    pub fn models_requests(&self) -> u64 {
        self.shared.models_requests.load(Relaxed)
    }

    /// The last request for an answer.
    pub fn last(&self) -> LastRequest {
        self.shared.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the client has gone away from `count` hanging answers in total.
    pub async fn until_gone(&self, count: u64) {
        loop {
            let changed = self.shared.gone_changed.notified();
            if self.shared.gone.load(Relaxed) >= count {
                return;
            }
            changed.await;
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { connections.spawn(serve(stream, Arc::clone(&shared))); }
                // Too many open files: connections end and free some.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // Without it a small answer waits for the acknowledgement of the one before; failing only costs that time.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(request, &shared).await) }
    });
    // A client that goes away, or an answer that is cut on purpose, ends here as an error of the connection.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, shared: &Arc<Shared>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if parts.method == Method::GET && path.ends_with("/models") {
        shared.models_requests.fetch_add(1, Relaxed);
        return full(StatusCode::OK, "application/json", wire::models());
    }
    let Some(wire) = Wire::of(&parts.method, path) else {
        return full(StatusCode::NOT_FOUND, "application/json", Wire::OpenAi.error("not_found", "no such path"));
    };
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return full(StatusCode::BAD_REQUEST, "application/json", wire.error("invalid_request_error", "body cut off"));
    };
    shared.requests.fetch_add(1, Relaxed);
    *shared.last.lock().unwrap_or_else(PoisonError::into_inner) = LastRequest {
        path: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        headers: parts.headers,
        body: body.clone(),
    };
    let Ok(answer) = Answer::to(wire, &body) else {
        return full(
            StatusCode::BAD_REQUEST,
            "application/json",
            wire.error("invalid_request_error", "not the protocol"),
        );
    };
    let behaviour = {
        let mut script = shared.script.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, responder, then) = (script.next.pop_front(), script.responder.clone(), script.then.clone());
        drop(script);
        next.unwrap_or_else(|| match responder {
            Some(responder) => responder(&serde_json::from_slice(&body).unwrap_or_default()),
            None => then,
        })
    };
    behave(behaviour, answer, shared).await
}

async fn behave(behaviour: Behaviour, answer: Answer, shared: &Arc<Shared>) -> Response<Body> {
    let events = "text/event-stream";
    match behaviour {
        Behaviour::Answer => whole(&answer),
        Behaviour::Delay(time) => {
            tokio::time::sleep(time).await;
            whole(&answer)
        }
        Behaviour::Say(text) => match answer.plain_of(&text) {
            Some(body) => full(StatusCode::OK, "application/json", body),
            None => full(StatusCode::OK, events, answer.whole_of(&text)),
        },
        Behaviour::Ask(text, calls) => full(StatusCode::OK, events, answer.asking(&text, &calls)),
        Behaviour::HangBeforeHeaders => {
            let _gone = Gone(Arc::clone(shared));
            std::future::pending().await
        }
        Behaviour::HangAfter(tokens) => {
            let gone = Gone(Arc::clone(shared));
            let hang = stream::once(async move {
                let _gone = gone;
                std::future::pending::<Result<Frame<Bytes>, std::io::Error>>().await
            });
            streamed(vec![answer.begin(tokens)], Duration::ZERO, hang.boxed())
        }
        Behaviour::DieAfter(tokens) => {
            // Hyper may drop what it has not written when the body fails: a short wait lets the tokens leave first.
            let die = stream::once(async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(std::io::Error::other("cut on purpose"))
            });
            streamed(vec![answer.begin(tokens)], Duration::ZERO, die.boxed())
        }
        Behaviour::EndAfter(tokens) => full(StatusCode::OK, events, answer.begin(tokens)),
        Behaviour::NoEndMark => full(StatusCode::OK, events, answer.without_end_mark()),
        Behaviour::Slow(pause) => streamed(answer.frames(), pause, stream::empty().boxed()),
        Behaviour::Status(status, retry_after) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response =
                full(status, "application/json", answer.wire.error("scripted_error", "refused by script"));
            if let Some(after) = retry_after {
                response.headers_mut().insert(RETRY_AFTER, http::HeaderValue::from_static(after));
            }
            response
        }
        Behaviour::Garbage => full(StatusCode::OK, events, Bytes::from_static(b"data: <html>not {json\n\n")),
        Behaviour::ErrorAfter(tokens, kind) => {
            let mut body = answer.begin(tokens).to_vec();
            body.extend_from_slice(&answer.wire.error_event(kind));
            full(StatusCode::OK, events, Bytes::from(body))
        }
        Behaviour::Empty => full(StatusCode::OK, events, answer.empty()),
        Behaviour::Persona => whole(&answer.in_persona()),
        Behaviour::Held => {
            if let Ok(permit) = shared.held.acquire().await {
                permit.forget();
            }
            whole(&answer)
        }
    }
}

fn whole(answer: &Answer) -> Response<Body> {
    match answer.plain() {
        Some(body) => full(StatusCode::OK, "application/json", body),
        None => full(StatusCode::OK, "text/event-stream", answer.whole()),
    }
}

fn full(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

fn streamed(
    frames: Vec<Bytes>,
    pause: Duration,
    rest: stream::BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>,
) -> Response<Body> {
    let frames = stream::iter(frames).then(move |frame| async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Ok(Frame::data(frame))
    });
    let mut response = Response::new(Either::Right(StreamBody::new(frames.chain(rest).boxed())));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/event-stream"));
    response
}

/// Counts when it is dropped: hyper drops a response that hangs when its client goes away.
struct Gone(Arc<Shared>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.gone.fetch_add(1, Relaxed);
        self.0.gone_changed.notify_waiters();
    }
}

impl LastRequest {
    /// The bearer key, if one was sent.
    pub fn bearer(&self) -> Option<&str> {
        self.headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
    }

    /// The body as JSON; `Null` when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}
