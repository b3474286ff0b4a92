//! The HTTP side: an OpenAI-compatible API, health, metrics and the door for platform webhooks.
//!
//! Built and served by the composition root on the client listener; intake stands behind [`Turns`]. It owns nothing but
//! its settings. Always true: a key is checked before a body is read; a request is answered only after its turn was
//! committed; a client that goes away ends its own connection and never the turn; every error of `/v1` has OpenAI's shape.
//! It deliberately knows no store, no session rules and no model.
//!
//! # What of OpenAI's chat completions is taken
//!
//! - `model` is an agent's id; without one the routes decide.
//! - Without an `X-Hermes-…` header a call is stateless: its trailing user messages are the input, all before them is the
//!   whole history, and its session is used by no other call. With `X-Hermes-Chat-Id`, `-User-Id`, `-Thread-Id` or
//!   `X-Hermes-Session-Id` the session supplies the history and only the trailing user messages are taken. The answer of a
//!   stateless call names its session in `X-Hermes-Session-Id`; sent back, it goes on from there. It is 128 random bits, so
//!   only who was told it can go on; a chat that callers name themselves is shared by all keys that name it.
//! - `content` is a text or an array of text parts. Sampling fields (`temperature`, `top_p`, `max_tokens`, `stop`, `user` …)
//!   are accepted and not used: the agent's profile decides. What would change the shape of the answer is refused rather
//!   than ignored: `n` above 1, `tools` and `functions` (an agent runs its own), a `response_format` other than text, audio.
//! - `Idempotency-Key` makes a call repeatable: same key and same request follow the first turn, another request is a 409.
//!
//! # How a turn that did not succeed is answered
//!
//! Plain calls get 502 with code `turn_failed`, `turn_dead` or `turn_cancelled` and the agent's honest sentence as message;
//! a stream that has begun gets the same object as an error event and no `[DONE]`, which SDKs raise as an API error. The SDKs
//! repeat calls on 409, 429 and 5xx by themselves; `x-should-retry: false` keeps them from starting the work again once a
//! turn exists, and 503 and 429 (nothing was kept) say `true` and when to come back: 429 where too much waits for the agent or in
//! the session, 503 where it waits too long or the store is not there.

mod answer;
mod caller;
mod error;
mod openai;
mod request;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use hermes_core::turn::{HistoryMessage, TurnState, Usage};
use hermes_core::{AgentId, Source};
use http::StatusCode;

use crate::bodies::Room;
use error::ApiError;

/// What a bearer key is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Whose it is.
    pub principal: String,
    /// The one agent that it reaches; `None`: all of them.
    pub agent: Option<AgentId>,
}

/// A message for intake.
#[derive(Clone, Debug, PartialEq)]
pub struct Submit {
    /// Whose key it came with, as [`Turns::authorize`] answered.
    pub principal: String,
    /// Where it comes from; platform `api_server`.
    pub source: Source,
    /// What the user says; empty only with files.
    pub text: String,
    /// Files that came with it.
    pub files: Vec<File>,
    /// The whole history of a stateless call; `None` means that the session supplies it.
    pub history: Option<Vec<HistoryMessage>>,
    /// The agent that the caller chose; `None` leaves it to the routes.
    pub preset: Option<AgentId>,
    /// Already namespaced by the caller's principal.
    pub dedupe_key: Option<String>,
    /// Set with `dedupe_key`: the same key with another hash is [`SubmitError::Conflict`].
    pub body_hash: Option<[u8; 32]>,
}

/// A file that came with a request, whole.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// What the caller calls it.
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "File({:?}, {} bytes)", self.name, self.content.len())
    }
}

/// A committed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// Who answers.
    pub agent: AgentId,
    /// The session's key.
    pub session_key: String,
    /// The session's id.
    pub session_id: String,
    /// The turn, to be followed.
    pub turn: String,
    /// The message was known already; `turn` is the first one's.
    pub duplicate: bool,
}

/// Why a message was not kept. Nothing happened in any case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too long.
    #[error("the message is larger than {limit} bytes")]
    TooLarge {
        /// The bound, bytes of UTF-8.
        limit: u64,
    },
    /// No such agent.
    #[error("there is no agent {0}")]
    UnknownAgent(String),
    /// The dedupe key was used with another body.
    #[error("this idempotency key was used for another request")]
    Conflict,
    /// Too much is waiting; try again later.
    #[error("too many messages are waiting")]
    Overloaded,
    /// As many messages wait for the agent, or in the session, as may; try again later. The text is for the caller.
    #[error("{0}")]
    Full(String),
    /// The agent's messages wait for too long already; try again later. The text is for the caller.
    #[error("{0}")]
    Late(String),
    /// The store cannot be reached; try again later. The text is for the caller.
    #[error("{0}")]
    Unavailable(String),
    /// The message will never be accepted. The text is for the caller.
    #[error("{0}")]
    Invalid(String),
}

/// What happens to a turn that is followed.
#[derive(Clone, Debug, PartialEq)]
pub enum TurnEvent {
    /// More text of the answer; lossy.
    Delta(String),
    /// It waits until somebody allows a call, or does not; the question, for people.
    Asked(String),
    /// Last event.
    Ended {
        /// How it ended.
        state: TurnState,
        /// The whole reply, or the sentence that says what went wrong.
        reply: String,
        /// What its model calls used.
        usage: Usage,
    },
}

/// The way into the control plane.
pub trait Turns: Send + Sync + 'static {
    /// Answers after the commit. The future is dropped when the client goes away: the message is then kept or not, never half.
    fn submit(&self, submit: Submit) -> BoxFuture<'_, Result<Submitted, SubmitError>>;
    /// What happens to a turn from now on; a turn that has ended yields its end at once. Dropping the stream changes nothing.
    fn follow(&self, turn: &str) -> BoxStream<'static, TurnEvent>;
    /// The registered agents.
    fn agents(&self) -> Vec<AgentId>;
    /// Who may use the API with this bearer key; `None` refuses.
    fn authorize<'a>(&'a self, bearer: &'a str) -> BoxFuture<'a, Option<Key>>;
}

/// Answers a POST to `/webhooks/{platform}/{account}`; `None` when there is no such account or its platform does not push.
pub type Webhooks = Arc<
    dyn Fn(String, String, http::Request<Bytes>) -> BoxFuture<'static, Option<http::Response<Bytes>>> + Send + Sync,
>;

/// Bounds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest body of an API call, bytes. Default 4 MiB.
    pub body_bytes: usize,
    /// Largest body of a webhook, bytes. Default 1 MiB.
    pub webhook_bytes: usize,
    /// Longest wait for a body that arrives slowly. Default 30 s.
    pub body_time: Duration,
    /// Longest wait of a plain call for its turn. Default 10 min, as long as the SDKs wait.
    pub answer_time: Duration,
    /// Bodies that arrive or wait for their commit hold their bytes here; over it calls are refused. Default 64 MiB.
    pub bodies: Room,
    /// A stream without news sends a comment after this time, so that proxies keep it. Default 15 s.
    pub keep_alive: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            webhook_bytes: 1 << 20,
            body_time: Duration::from_secs(30),
            answer_time: Duration::from_secs(600),
            bodies: Room::default(),
            keep_alive: Duration::from_secs(15),
        }
    }
}

/// What the HTTP side is made of.
#[derive(Clone)]
pub struct Parts {
    /// Intake.
    pub turns: Arc<dyn Turns>,
    /// Whether this replica can take messages, and lines of what else a person should know; if not, why.
    pub ready: Arc<dyn Fn() -> Result<Vec<String>, String> + Send + Sync>,
    /// The metrics in Prometheus' text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// The platform adapters' door.
    pub webhooks: Webhooks,
    /// Unix time in seconds, shown as `created`.
    pub now: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Bounds.
    pub settings: Settings,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// All routes of the HTTP side.
pub fn router(parts: Parts) -> Router {
    Router::new()
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{model}", get(openai::model))
        .route("/v1/chat/completions", post(openai::chat_completions))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/webhooks/{platform}/{account}", post(webhook::receive))
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .fallback(|| async { ApiError::no_such_path() })
        .with_state(Arc::new(parts))
}

async fn readyz(State(parts): State<Arc<Parts>>) -> Response {
    match (parts.ready)() {
        Ok(notes) => {
            let lines: Vec<String> = std::iter::once("ready".to_owned()).chain(notes).collect();
            format!("{}\n", lines.join("\n")).into_response()
        }
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

async fn metrics(State(parts): State<Arc<Parts>>) -> Response {
    ([(http::header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (parts.metrics)()).into_response()
}
