//! Providers over HTTP, through `genai`, one attempt at a time.
//!
//! What `genai` leaves to us, and is done here: it needs a key even where a local server wants none (the request is then
//! given to it ready addressed); it cuts suffixes such as `-high` or `-max` off model names of OpenAI-compatible servers
//! (the name is put back); it loses the numbers of the pieces in which such servers send calls of tools; it ends without a word when such a server sends its finish reason but no `[DONE]`, and drops
//! the price that OpenRouter reports (all three are read from the raw frames); it makes a proper end out of a Gemini stream
//! that broke off (an end without a finish reason is none). Redirects are not followed, since keys in provider-specific
//! headers would go along.

use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use genai::adapter::AdapterKind;
use genai::chat::{
    ChatFrameSink, ChatMessage, ChatOptions, ChatRequest, ChatRole, ChatStream, ChatStreamEvent, ContentPart, FrameCtx,
    RawFrameRef, ReasoningEffort, StreamEnd, ToolResponse,
};
use genai::resolver::{AuthData, Endpoint};
use genai::{Headers, ModelIden, ServiceTarget};
use hermes_core::config::ProviderKind;
use hermes_core::turn::{Role, Usage};
use reqwest::Url;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::failure::{CallError, FailureReason, ModelFailure};
use super::tools::{Assembly, Fragment};
use super::{Call, ChatModel, Message, Piece, ProviderTarget, Settings, SetupError, ToolCall, retry, tools};

/// Most characters of a provider's words that reach the log.
const CAUSE_CHARS: usize = 600;

/// All remote models.
pub(super) struct GenaiModel {
    client: genai::Client,
}

impl GenaiModel {
    pub(super) fn new(settings: &Settings) -> Result<Self, SetupError> {
        let http = reqwest::Client::builder()
            .connect_timeout(settings.connect)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| SetupError(network_cause(&error)))?;
        let client =
            genai::Client::builder().with_reqwest(http).build().map_err(|error| SetupError(error.to_string()))?;
        Ok(Self { client })
    }
}

impl ChatModel for GenaiModel {
    fn open(&self, call: &Call) -> BoxStream<'static, Result<Piece, CallError>> {
        let attempt = Attempt {
            client: self.client.clone(),
            call: call.clone(),
            frames: Arc::default(),
            stream: None,
            calls: Assembly::default(),
        };
        stream::unfold(attempt, |mut attempt| async move {
            let piece = attempt.next().await?;
            Some((piece.map_err(|error| attempt.masked(error)), attempt))
        })
        .boxed()
    }
}

struct Attempt {
    client: genai::Client,
    call: Call,
    frames: Arc<Frames>,
    stream: Option<ChatStream>,
    /// Of the wires whose calls are read from `genai`'s events.
    calls: Assembly,
}

impl Attempt {
    async fn next(&mut self) -> Option<Result<Piece, CallError>> {
        // The built-in model never comes here.
        let target = Arc::clone(self.call.provider.as_ref()?);
        if self.stream.is_none() {
            match send(&self.client, &self.call, &self.frames, &target).await {
                Ok(stream) => self.stream = Some(stream),
                Err(error) => return Some(Err(error)),
            }
        }
        let stream = self.stream.as_mut()?;
        loop {
            match stream.next().await {
                Some(Ok(ChatStreamEvent::Chunk(chunk))) => return Some(Ok(Piece::Text(chunk.content))),
                Some(Ok(ChatStreamEvent::ReasoningChunk(_) | ChatStreamEvent::ThoughtSignatureChunk(_))) => {
                    return Some(Ok(Piece::Alive));
                }
                Some(Ok(ChatStreamEvent::ToolCallChunk(chunk))) => {
                    self.take_call(target.kind, &chunk.tool_call);
                    return Some(Ok(Piece::Alive));
                }
                // Neither says that the model works: the first comes before the request is sent, the second while it hangs.
                Some(Ok(ChatStreamEvent::Start | ChatStreamEvent::Heartbeat)) => {}
                Some(Ok(ChatStreamEvent::End(end))) => {
                    return Some(self.frames.end(&target, end).and_then(|end| self.with_calls(end)));
                }
                Some(Err(error)) => return Some(Err(call_error(&error))),
                None => return self.frames.end_without_mark(&target).map(|end| self.with_calls(end)),
            }
        }
    }

    /// OpenAI's wire numbers the pieces of calls, and the number is only in the raw frames.
    fn take_call(&mut self, kind: ProviderKind, call: &genai::chat::ToolCall) {
        let arguments = match &call.fn_arguments {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Null => String::new(),
            other => other.to_string(),
        };
        match kind {
            ProviderKind::Openai => {}
            ProviderKind::Anthropic => self.calls.replace(&call.call_id, &call.fn_name, &arguments),
            ProviderKind::Gemini => self.calls.push(&call.call_id, &call.fn_name, &arguments),
        }
    }

    /// The end with the calls that came before it.
    fn with_calls(&mut self, end: Piece) -> Result<Piece, CallError> {
        let Piece::End { usage, finish_reason, .. } = end else { return Ok(end) };
        let taken = self.calls.take().zip(self.frames.take_calls());
        let (mut calls, numbered) = taken.ok_or_else(ModelFailure::calls_too_long)?;
        calls.extend(numbered);
        Ok(Piece::End { usage, finish_reason, calls })
    }

    /// Shortens the cause and makes sure that the key is not in it, should the other side have repeated it.
    fn masked(&self, mut error: CallError) -> CallError {
        if let Some(key) = self.call.key.as_ref().map(|key| key.expose_secret()).filter(|key| !key.is_empty()) {
            error.cause = error.cause.replace(key, "[key]");
        }
        if let Some((end, _)) = error.cause.char_indices().nth(CAUSE_CHARS) {
            error.cause.truncate(end);
            error.cause.push('…');
        }
        error
    }
}

/// Begins the request. Not a method: the open stream in the attempt may not be shared between threads.
async fn send(
    client: &genai::Client,
    call: &Call,
    frames: &Arc<Frames>,
    target: &ProviderTarget,
) -> Result<ChatStream, CallError> {
    let mut request = ChatRequest::new(chat_messages(&call.messages));
    if !call.tools.is_empty() {
        let tools = call.tools.iter().map(|tool| {
            let made = genai::chat::Tool::new(tool.name.as_str()).with_schema(tool.parameters.clone());
            if tool.description.is_empty() { made } else { made.with_description(tool.description.as_str()) }
        });
        request = request.with_tools(tools.collect::<Vec<_>>());
    }
    let mut options = ChatOptions::default().with_capture_usage(true);
    if target.kind == ProviderKind::Openai {
        // A budget means nothing on this wire and is left out of the request, but it keeps the model's name whole.
        options = options
            .with_reasoning_effort(ReasoningEffort::Budget(0))
            .with_extra_body(serde_json::json!({ "model": target.model }))
            .with_raw_frame_sink_arc(Arc::clone(frames) as Arc<dyn ChatFrameSink>);
    }
    let address = service_target(target, call.key.as_ref())?;
    let response = client.exec_chat_stream(address, request, Some(&options)).await;
    response.map(|response| response.stream).map_err(|error| call_error(&error))
}

/// The input as `genai` takes it. What several calls of one reply gave is one message: Anthropic's wire wants it so.
fn chat_messages(messages: &[Message]) -> Vec<ChatMessage> {
    let mut made: Vec<ChatMessage> = Vec::with_capacity(messages.len());
    for message in messages {
        match message {
            // A turn without an answer leaves an empty message in a history; some providers refuse those.
            Message::Said { text, .. } if text.is_empty() => {}
            Message::Said { role: Role::System, text } => made.push(ChatMessage::system(text.as_str())),
            Message::Said { role: Role::User, text } => made.push(ChatMessage::user(text.as_str())),
            Message::Said { role: Role::Assistant, text } => made.push(ChatMessage::assistant(text.as_str())),
            Message::Asked { text, calls } => {
                let text = (!text.is_empty()).then(|| ContentPart::Text(text.clone()));
                let calls = calls.iter().map(|call| {
                    ContentPart::ToolCall(genai::chat::ToolCall {
                        call_id: call.id.clone(),
                        fn_name: call.name.clone(),
                        fn_arguments: tools::arguments_object(&call.arguments),
                        thought_signatures: None,
                    })
                });
                made.push(ChatMessage::assistant(text.into_iter().chain(calls).collect::<Vec<_>>()));
            }
            Message::Answered { call, text } => {
                let answer = ContentPart::ToolResponse(ToolResponse::new(call.as_str(), text.as_str()));
                match made.last_mut() {
                    Some(last) if last.role == ChatRole::Tool => last.content.push(answer),
                    _ => made.push(ChatMessage::tool(vec![answer])),
                }
            }
        }
    }
    made
}

/// Where a call goes and with which key.
fn service_target(target: &ProviderTarget, key: Option<&SecretString>) -> Result<ServiceTarget, CallError> {
    let kind = match target.kind {
        ProviderKind::Openai => AdapterKind::OpenAI,
        ProviderKind::Anthropic => AdapterKind::Anthropic,
        ProviderKind::Gemini => AdapterKind::Gemini,
    };
    let base = base_url(target)?;
    let auth = match key {
        Some(key) => AuthData::from_single(key.expose_secret()),
        None => without_key(target, &base)?,
    };
    Ok(ServiceTarget {
        endpoint: Endpoint::from_owned(base.as_str()),
        auth,
        model: ModelIden::new(kind, target.model.as_str()),
    })
}

/// The base URL with a final slash, so that the service's path is put behind the last part instead of replacing it.
fn base_url(target: &ProviderTarget) -> Result<Url, CallError> {
    let text = target.base_url.as_deref().unwrap_or(match target.kind {
        ProviderKind::Openai => "https://api.openai.com/v1/",
        ProviderKind::Anthropic => "https://api.anthropic.com/v1/",
        ProviderKind::Gemini => "https://generativelanguage.googleapis.com/v1beta/",
    });
    let wrong = |why: &str| {
        let sentence = format!("the base_url of provider {} is not an http or https address", target.provider);
        CallError::misconfigured(sentence, format!("base_url is unusable: {why}"))
    };
    let mut url = Url::parse(text.trim()).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("another scheme"));
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// A request with its address and headers ready, for servers that want no key.
fn without_key(target: &ProviderTarget, base: &Url) -> Result<AuthData, CallError> {
    let (path, headers) = match target.kind {
        ProviderKind::Openai => ("chat/completions".to_owned(), Headers::default()),
        ProviderKind::Anthropic => ("messages".to_owned(), Headers::from(("anthropic-version", "2023-06-01"))),
        ProviderKind::Gemini => (format!("models/{}:streamGenerateContent?alt=sse", target.model), Headers::default()),
    };
    let mut url = base.join(&path).map_err(|error| {
        CallError::new(FailureReason::BadRequest, false, format!("model {} fits no address: {error}", target.model))
    })?;
    if target.kind == ProviderKind::Openai {
        url.set_query(base.query());
    }
    Ok(AuthData::RequestOverride { url: url.into(), headers })
}

/// Reads `genai`'s error. Its own text is not used where it holds an address.
fn call_error(error: &genai::Error) -> CallError {
    match error {
        genai::Error::WebStream { error: inner, .. } => {
            if let Some(inner) = inner.downcast_ref::<genai::Error>() {
                return call_error(inner);
            }
            match inner.downcast_ref::<reqwest::Error>() {
                Some(network) => network_error(network),
                None => CallError::new(FailureReason::BrokenStream, false, inner.to_string()),
            }
        }
        genai::Error::HttpError { status, body, headers, .. } => {
            CallError::status(status.as_u16(), retry::asked_pause(headers), body)
        }
        genai::Error::ChatResponse { body, .. } => CallError::in_stream(&body.to_string()),
        genai::Error::StreamParse { serde_error, .. } => {
            CallError::new(FailureReason::BrokenStream, false, format!("a frame is not JSON: {serde_error}"))
        }
        other => CallError::new(FailureReason::BadRequest, false, other.to_string()),
    }
}

fn network_error(error: &reqwest::Error) -> CallError {
    let (reason, retry) = if error.is_builder() {
        (FailureReason::BadRequest, false)
    } else if error.is_body() || error.is_decode() {
        (FailureReason::BrokenStream, true)
    } else {
        (FailureReason::Unavailable, true)
    };
    CallError::new(reason, retry, network_cause(error))
}

/// The chain of causes without the first text, which holds the address (and some put secrets into addresses).
fn network_cause(error: &reqwest::Error) -> String {
    let mut text = if error.is_connect() {
        "cannot connect".to_owned()
    } else if error.is_timeout() {
        "timed out".to_owned()
    } else {
        "request failed".to_owned()
    };
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What the raw frames of an OpenAI-compatible stream said beside the text.
#[derive(Debug, Default)]
struct Frames(Mutex<Tail>);

#[derive(Debug, Default)]
struct Tail {
    finish_reason: Option<String>,
    usage: Option<WireUsage>,
    calls: Assembly,
}

/// A frame that holds pieces of calls.
#[derive(Deserialize)]
struct WireChunk {
    #[serde(default)]
    choices: Vec<WireChoice>,
}

#[derive(Deserialize)]
struct WireChoice {
    #[serde(default)]
    delta: WireDelta,
}

#[derive(Default, Deserialize)]
struct WireDelta {
    #[serde(default)]
    tool_calls: Option<Vec<WireCall>>,
}

#[derive(Deserialize)]
struct WireCall {
    index: Option<u64>,
    id: Option<String>,
    function: Option<WireFunction>,
}

#[derive(Default, Deserialize)]
struct WireFunction {
    name: Option<String>,
    /// Text; some servers send the object itself.
    arguments: Option<serde_json::Value>,
}

/// `usage` of the OpenAI wire; `cost` is OpenRouter's, in US dollars.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct WireUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<WireDetails>,
    cost: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct WireDetails {
    cached_tokens: Option<u64>,
}

impl ChatFrameSink for Frames {
    fn on_frame(&self, _: &FrameCtx, frame: RawFrameRef<'_>) {
        let finish_reason = value_of(frame.data, "\"finish_reason\"").and_then(first_of::<String>);
        let usage = value_of(frame.data, "\"usage\"").and_then(first_of::<WireUsage>);
        let calls = if frame.data.contains("\"tool_calls\"") { calls_of(frame.data) } else { Vec::new() };
        if finish_reason.is_none() && usage.is_none() && calls.is_empty() {
            return;
        }
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.finish_reason = finish_reason.or(tail.finish_reason.take());
        tail.usage = usage.or(tail.usage);
        for call in calls {
            let WireFunction { name, arguments } = call.function.unwrap_or_default();
            let arguments = match arguments {
                Some(serde_json::Value::String(text)) => text,
                Some(serde_json::Value::Null) | None => String::new(),
                Some(other) => other.to_string(),
            };
            tail.calls.add(&Fragment {
                index: call.index,
                id: call.id.as_deref().unwrap_or_default(),
                name: name.as_deref().unwrap_or_default(),
                arguments: &arguments,
            });
        }
    }
}

/// The pieces of calls in a frame of the OpenAI wire; of the first choice, the only one that is asked for.
fn calls_of(data: &str) -> Vec<WireCall> {
    let chunk = serde_json::from_str::<WireChunk>(data).ok();
    chunk.and_then(|chunk| chunk.choices.into_iter().next()?.delta.tool_calls).unwrap_or_default()
}

impl Frames {
    /// What was said beside text and calls.
    fn tail(&self) -> Tail {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = std::mem::take(&mut tail.calls);
        std::mem::replace(&mut *tail, Tail { calls, ..Tail::default() })
    }

    fn take_calls(&self) -> Option<Vec<ToolCall>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).calls.take()
    }

    fn end(&self, target: &ProviderTarget, end: StreamEnd) -> Result<Piece, CallError> {
        let tail = self.tail();
        let said = end.captured_stop_reason.map(|reason| reason.raw().to_owned()).or(tail.finish_reason);
        let finish_reason = match said {
            Some(reason) => reason,
            None if target.kind == ProviderKind::Gemini => {
                return Err(CallError::broken("the stream ended without a finish reason"));
            }
            None => "stop".to_owned(),
        };
        let usage = match tail.usage {
            Some(usage) => usage_from_wire(usage, target),
            None => usage_from_genai(end.captured_usage.unwrap_or_default(), target),
        };
        Ok(Piece::End { usage, finish_reason, calls: Vec::new() })
    }

    /// The end of a stream whose server says why it finished but leaves the last mark out.
    fn end_without_mark(&self, target: &ProviderTarget) -> Option<Piece> {
        let tail = self.tail();
        let finish_reason = tail.finish_reason?;
        let usage = usage_from_wire(tail.usage.unwrap_or_default(), target);
        Some(Piece::End { usage, finish_reason, calls: Vec::new() })
    }
}

/// What follows `key` and its colon. A quote inside a JSON text is escaped, so `key` with its quotes is only found as a key.
fn value_of<'a>(data: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = data.split_once(key)?;
    let value = rest.trim_start().strip_prefix(':')?.trim_start();
    (!value.starts_with("null")).then_some(value)
}

/// The JSON value at the start of `text`.
fn first_of<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    serde_json::Deserializer::from_str(text).into_iter::<T>().next()?.ok()
}

fn usage_from_wire(usage: WireUsage, target: &ProviderTarget) -> Usage {
    Usage {
        input_tokens: usage.prompt_tokens.unwrap_or(0),
        output_tokens: usage.completion_tokens.unwrap_or(0),
        cached_tokens: usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0),
        cost_usd: usage.cost.filter(|cost| cost.is_finite() && *cost >= 0.0),
        model: target.configured.clone(),
    }
}

fn usage_from_genai(usage: genai::chat::Usage, target: &ProviderTarget) -> Usage {
    let count = |tokens: Option<i32>| tokens.and_then(|tokens| u64::try_from(tokens).ok()).unwrap_or(0);
    Usage {
        input_tokens: count(usage.prompt_tokens),
        output_tokens: count(usage.completion_tokens),
        cached_tokens: count(usage.prompt_tokens_details.and_then(|details| details.cached_tokens)),
        cost_usd: None,
        model: target.configured.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(kind: ProviderKind, base_url: Option<&str>) -> ProviderTarget {
        ProviderTarget {
            provider: "p".to_owned(),
            kind,
            base_url: base_url.map(str::to_owned),
            api_key_env: None,
            model: "m".to_owned(),
            configured: "p/m".to_owned(),
        }
    }

    #[test]
    fn a_base_url_works_with_and_without_a_final_slash() {
        for (given, expected) in [
            ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1/"),
            ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080/v1/"),
            ("http://localhost:11434", "http://localhost:11434/"),
            (" https://h/api/v1?version=2", "https://h/api/v1/?version=2"),
        ] {
            assert_eq!(base_url(&target(ProviderKind::Openai, Some(given))).unwrap().as_str(), expected);
        }
        for wrong in ["", "localhost:8080/v1", "/v1", "ftp://h/v1", "http://"] {
            let error = base_url(&target(ProviderKind::Openai, Some(wrong))).unwrap_err();
            assert_eq!(error.reason, FailureReason::BadRequest, "{wrong}");
        }
    }

    #[test]
    fn the_tail_of_a_stream_is_read_from_keys_and_not_from_text() {
        assert_eq!(value_of(r#"{"finish_reason":null}"#, "\"finish_reason\""), None);
        assert_eq!(value_of(r#"{"delta":{"content":"say \"finish_reason\": \"stop\""}}"#, "\"finish_reason\""), None);
        let frame =
            r#"{"choices":[{"finish_reason" : "length","x":1}],"usage": {"prompt_tokens":3,"cost":0.25,"new":[]}}"#;
        let reason = value_of(frame, "\"finish_reason\"").and_then(first_of::<String>);
        assert_eq!(reason.as_deref(), Some("length"));
        let usage = value_of(frame, "\"usage\"").and_then(first_of::<WireUsage>).unwrap();
        let usage = usage_from_wire(usage, &target(ProviderKind::Openai, None));
        assert_eq!((usage.input_tokens, usage.cost_usd, usage.model.as_str()), (3, Some(0.25), "p/m"));
    }
}
