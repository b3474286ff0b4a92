//! The model broker: the only part that talks to model providers, and the only one that ever holds their keys.
//!
//! Called by the gRPC `ModelService` for a turn that a worker runs, and by `judge`. It owns the HTTP client with its connection pool, the
//! time limits and the retry schedule; it keeps nothing per turn. Always true: a call is one stream of [`ModelEvent`] that
//! ends with exactly one `Done` or `Failed`; dropping the stream drops the provider's connection, because nothing is
//! spawned; nothing is tried again once a token was passed on; an answer that ends without its provider's end mark is a
//! failure, however much of it arrived; a key is in no event. It deliberately does not choose the models (the agent's
//! revision does; the next of them is asked when one cannot answer), record usage, check budgets or log a failure: the caller
//! does, with the turn at hand.
//!
//! Behind the small trait [`ChatModel`]: `openai.rs` for the wire that most servers speak, `provider.rs` with `genai` for the
//! others, and `builtin/echo`, which needs no network.

mod chain;
mod echo;
mod events;
mod failure;
mod openai;
mod provider;
mod reasoning;
mod retry;
mod run;
mod shown;
mod text;
mod tools;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use hermes_core::AgentId;
use hermes_core::budget::Price;
use hermes_core::config::{Model, ProviderKind, Resolved};
use hermes_core::turn::{Role, Usage};
use secrecy::{ExposeSecret as _, SecretString};

pub use failure::{FailureReason, ModelFailure};
pub use shown::{Refused, Room, Shown, ShownFile, carries};
pub use tools::{MAX_ARGUMENTS, MAX_CALL_ID, MAX_CALLS, Reply, Tool, ToolCall, is_name};

use failure::CallError;
use run::Run;

/// What of the wires' library goes into the log: it warns of much that is no fault.
pub const LOG_FILTER: &str = "genai=error";

/// The model id of the offline model.
pub const ECHO: &str = "builtin/echo";

/// Finds a secret by the name that the document gives it (for example `OPENAI_API_KEY`). Asked again for every call, so a
/// changed secret needs no restart of the broker.
pub type Secrets = Arc<dyn Fn(&str) -> Option<SecretString> + Send + Sync>;

/// Who answers, as resolved from the agent's revision and the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelTarget {
    /// `builtin/echo`.
    Echo,
    /// A configured provider.
    Provider(ProviderTarget),
    /// No configured provider serves this model id.
    Unserved {
        /// The id as configured.
        model: String,
    },
}

/// Kind of provider, for metrics.
pub fn kind_of(resolved: &Resolved) -> &'static str {
    match resolved {
        Resolved::Echo => "builtin",
        Resolved::Unserved => "none",
        Resolved::Endpoint(endpoint) => endpoint.kind.as_str(),
    }
}

impl ModelTarget {
    /// Who answers as this model of `agent`'s.
    pub fn of(model: Model, agent: &AgentId) -> Self {
        match model.resolved {
            Resolved::Echo => Self::Echo,
            Resolved::Unserved => Self::Unserved { model: model.id },
            Resolved::Endpoint(endpoint) => Self::Provider(ProviderTarget {
                provider: endpoint.provider.unwrap_or_else(|| format!("agent {agent}")),
                kind: endpoint.kind,
                base_url: endpoint.base_url,
                api_key_env: endpoint.api_key_env,
                model: endpoint.model,
                configured: model.id,
                price: endpoint.price,
            }),
        }
    }

    /// The model id as configured.
    pub fn id(&self) -> &str {
        match self {
            Self::Echo => ECHO,
            Self::Provider(target) => &target.configured,
            Self::Unserved { model } => model,
        }
    }
}

/// A model at a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderTarget {
    /// The provider's name in the document, for messages. An agent's own `base_url` has none there: any short text.
    pub provider: String,
    /// Wire protocol.
    pub kind: ProviderKind,
    /// Base URL up to and including the version, with or without a final slash; `None` means the provider's own.
    pub base_url: Option<String>,
    /// Name of the secret that holds the key; `None` means that no key is sent.
    pub api_key_env: Option<String>,
    /// What the provider calls the model.
    pub model: String,
    /// The model id as configured; goes into [`Usage::model`].
    pub configured: String,
    /// What it costs, where the document says; tells [`Usage::cost_usd`] where the provider does not.
    pub price: Option<Price>,
}

/// One message of the model's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Something said.
    Said {
        /// Who says it.
        role: Role,
        /// What is said.
        text: String,
    },
    /// A reply of the model that asked for tools.
    Asked {
        /// What it said before; may be empty.
        text: String,
        /// What it asked for.
        calls: Vec<ToolCall>,
        /// What it thought, as [`ModelEvent::Done`] said it.
        reasoning: String,
    },
    /// What a call gave.
    Answered {
        /// Id of the call.
        call: String,
        /// What the model is shown of it; may be empty.
        text: String,
    },
}

impl Message {
    /// Continues it.
    pub fn extend(&mut self, more: &str, more_calls: Vec<ToolCall>) {
        if let Self::Said { role: Role::Assistant, text } = self
            && !more_calls.is_empty()
        {
            *self = Self::Asked { text: std::mem::take(text), calls: Vec::new(), reasoning: String::new() };
        }
        let (Self::Said { text, .. } | Self::Asked { text, .. } | Self::Answered { text, .. }) = self;
        text.push_str(more);
        if let Self::Asked { calls, .. } = self {
            calls.extend(more_calls);
        }
    }

    /// Remembers what was thought before it, if it asks for tools.
    pub fn thought(&mut self, thought: String) {
        if let Self::Asked { reasoning, .. } = self {
            *reasoning = thought;
        }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        let (Self::Said { text, .. } | Self::Asked { text, .. } | Self::Answered { text, .. }) = self;
        text
    }

    /// The calls that it asks for.
    pub fn calls(&self) -> &[ToolCall] {
        match self {
            Self::Asked { calls, .. } => calls,
            Self::Said { .. } | Self::Answered { .. } => &[],
        }
    }
}

/// The model's input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// What was said and done until now.
    pub messages: Vec<Message>,
    /// Files that came with one of them. A model that refuses them is asked without.
    pub shown: Shown,
    /// What the model may ask for.
    pub tools: Vec<Tool>,
    /// Largest answer, tokens; nothing: the provider's own limit.
    pub max_output_tokens: Option<u64>,
}

impl From<Vec<Message>> for Request {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

/// What a call answers.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelEvent {
    /// More text; never empty, at most 64 KiB. Tokens that arrived together come as one.
    Delta(String),
    /// The answer is complete. Last event.
    Done {
        /// What the call used; zeros where the provider did not say.
        usage: Usage,
        /// The provider's own word: `stop`, `end_turn`, `length` …
        finish_reason: String,
        /// What the model asks for; empty without tools.
        calls: Vec<ToolCall>,
        /// What it thought, for a server that wants it back with this reply; opaque.
        reasoning: String,
    },
    /// There is no complete answer. Last event.
    Failed(ModelFailure),
}

/// Time limits and retries; the default is meant for production.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Longest wait for a connection, TLS included. Default 10 s.
    pub connect: Duration,
    /// Longest wait for the first token of one attempt. Default 120 s.
    pub first_token: Duration,
    /// Longest silence after a token. Default 60 s.
    pub between_tokens: Duration,
    /// Attempts of one call, the first included. Default 4.
    pub attempts: u32,
    /// Upper bound of the first back-off; it doubles with each attempt up to 8 s. Default 500 ms.
    pub backoff: Duration,
    /// A provider that asks for a longer pause than this is not waited for. Default 30 s.
    pub longest_pause: Duration,
    /// No attempt begins later than this after the first one began. Default 60 s.
    pub retry_window: Duration,
    /// Most text of one answer, bytes; a longer one is a failure. Default 2 MiB.
    pub answer_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_token: Duration::from_secs(120),
            between_tokens: Duration::from_secs(60),
            attempts: 4,
            backoff: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            retry_window: Duration::from_secs(60),
            answer_bytes: 2 << 20,
        }
    }
}

/// One request to a model, shared by all its attempts.
#[derive(Clone, Debug)]
struct Call {
    agent: AgentId,
    messages: Arc<[Message]>,
    shown: Shown,
    tools: Arc<[Tool]>,
    /// `None` for the built-in model.
    provider: Option<Arc<ProviderTarget>>,
    max_output_tokens: Option<u64>,
    key: Option<SecretString>,
}

impl Call {
    fn new(agent: &AgentId, request: Request) -> Self {
        let Request { messages, shown, tools, max_output_tokens } = request;
        let (messages, tools) = (messages.into(), tools.into());
        Self { agent: agent.clone(), messages, shown, tools, provider: None, max_output_tokens, key: None }
    }
}

/// What one attempt yields.
#[derive(Debug)]
enum Piece {
    Text(String),
    /// The model works (it reasons), but there is nothing to show.
    Alive,
    /// Last piece.
    End {
        usage: Usage,
        finish_reason: String,
        calls: Vec<ToolCall>,
        reasoning: String,
    },
}

/// One attempt of a call, streamed. After an error or [`Piece::End`] the stream is not polled again; a stream that ends
/// without either counts as broken.
trait ChatModel: Send + Sync {
    fn open(&self, call: &Call) -> BoxStream<'static, Result<Piece, CallError>>;
}

/// The broker could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the HTTP client for model calls: {0}")]
pub struct SetupError(String);

/// Makes model calls. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    settings: Arc<Settings>,
    secrets: Secrets,
    echo: Arc<dyn ChatModel>,
    openai: Arc<dyn ChatModel>,
    others: Arc<dyn ChatModel>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Broker {
    /// A broker with its own connection pool. The process's rustls provider must be installed before.
    ///
    /// # Errors
    /// [`SetupError`] when the TLS roots or the proxy settings of this system cannot be used.
    pub fn new(settings: Settings, secrets: Secrets) -> Result<Self, SetupError> {
        let http = provider::http_client(&settings)?;
        Ok(Self {
            settings: Arc::new(settings),
            secrets,
            echo: Arc::new(echo::Echo),
            openai: Arc::new(openai::OpenAi::new(http.clone())),
            others: Arc::new(provider::GenaiModel::new(http)?),
        })
    }

    /// Asks `target` to answer `request` for `agent`. Nothing happens before the stream is polled; dropping it cancels
    /// the provider call.
    pub fn generate(
        &self,
        target: ModelTarget,
        agent: &AgentId,
        request: impl Into<Request>,
    ) -> BoxStream<'static, ModelEvent> {
        self.run(target, Call::new(agent, request.into()))
    }

    /// As [`Broker::generate`], of the first of `targets` that can answer: the next one is asked when one fails before its
    /// first token in a way that another may not. Without any target there is no event.
    pub fn generate_by_first(
        &self,
        targets: Vec<ModelTarget>,
        agent: &AgentId,
        request: Request,
    ) -> BoxStream<'static, ModelEvent> {
        let call = Call::new(agent, request);
        let broker = self.clone();
        chain::by_first(targets, move |target| broker.run(target, call.clone()))
    }

    fn run(&self, target: ModelTarget, mut call: Call) -> BoxStream<'static, ModelEvent> {
        let settings = Arc::clone(&self.settings);
        let run = match target {
            ModelTarget::Echo => Run::new(Arc::clone(&self.echo), call, settings),
            ModelTarget::Unserved { model } => {
                Run::failed(ModelFailure::no_provider(&model), &self.echo, call, settings)
            }
            ModelTarget::Provider(target) => match self.key_of(&target) {
                Err(failure) => Run::failed(failure, &self.echo, call, settings),
                Ok(key) => {
                    let model = match target.kind {
                        ProviderKind::Openai => &self.openai,
                        ProviderKind::Anthropic | ProviderKind::Gemini => &self.others,
                    };
                    call.key = key;
                    call.without_refused(&target);
                    call.provider = Some(Arc::new(target));
                    Run::new(Arc::clone(model), call, settings)
                }
            },
        };
        run.into_stream()
    }

    fn key_of(&self, target: &ProviderTarget) -> Result<Option<SecretString>, ModelFailure> {
        let Some(name) = &target.api_key_env else { return Ok(None) };
        match (self.secrets)(name) {
            Some(key) if http::HeaderValue::from_str(key.expose_secret()).is_ok() => Ok(Some(key)),
            Some(_) => Err(ModelFailure::key_malformed(&target.provider, name)),
            None => Err(ModelFailure::key_missing(&target.provider, name)),
        }
    }
}
