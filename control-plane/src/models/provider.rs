//! Providers of Anthropic's and Gemini's wires, through `genai`, one attempt at a time; and what all wires share.
//!
//! What `genai` leaves to us, and is done here: it needs a key even where a local server wants none (the request is then
//! given to it ready addressed); it makes a proper end out of a Gemini stream that broke off (an end without a finish
//! reason is none). Redirects are not followed, since keys in provider-specific headers would go along.

use std::error::Error as _;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use genai::adapter::AdapterKind;
use genai::chat::{
    ChatMessage, ChatOptions, ChatRequest, ChatRole, ChatStream, ChatStreamEvent, ContentPart, StreamEnd, ToolResponse,
};
use genai::resolver::{AuthData, Endpoint};
use genai::{Headers, ModelIden, ServiceTarget};
use hermes_core::config::ProviderKind;
use hermes_core::turn::{Role, Usage};
use reqwest::Url;
use secrecy::{ExposeSecret as _, SecretString};

use super::failure::{CallError, FailureReason, ModelFailure};
use super::tools::Assembly;
use super::{Call, ChatModel, Message, Piece, ProviderTarget, Settings, SetupError, Shown, retry, tools};

/// Most characters of a provider's words that reach the log.
const CAUSE_CHARS: usize = 600;

/// The connections to all providers.
pub(super) fn http_client(settings: &Settings) -> Result<reqwest::Client, SetupError> {
    reqwest::Client::builder()
        .connect_timeout(settings.connect)
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| SetupError(network_cause(&error)))
}

/// The models that are reached through `genai`.
pub(super) struct GenaiModel {
    client: genai::Client,
}

impl GenaiModel {
    pub(super) fn new(http: reqwest::Client) -> Result<Self, SetupError> {
        let client =
            genai::Client::builder().with_reqwest(http).build().map_err(|error| SetupError(error.to_string()))?;
        Ok(Self { client })
    }
}

impl ChatModel for GenaiModel {
    fn open(&self, call: &Call) -> BoxStream<'static, Result<Piece, CallError>> {
        let attempt =
            Attempt { client: self.client.clone(), call: call.clone(), stream: None, calls: Assembly::default() };
        stream::unfold(attempt, |mut attempt| async move {
            let piece = attempt.next().await?;
            Some((piece.map_err(|error| masked(attempt.call.key.as_ref(), error)), attempt))
        })
        .boxed()
    }
}

struct Attempt {
    client: genai::Client,
    call: Call,
    stream: Option<ChatStream>,
    calls: Assembly,
}

impl Attempt {
    async fn next(&mut self) -> Option<Result<Piece, CallError>> {
        // The built-in model never comes here.
        let target = Arc::clone(self.call.provider.as_ref()?);
        if self.stream.is_none() {
            match send(&self.client, &self.call, &target).await {
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
                    return Some(self.end(&target, end));
                }
                Some(Err(error)) => return Some(Err(call_error(&error))),
                None => return None,
            }
        }
    }

    /// Anthropic's pieces repeat what came of their call before.
    fn take_call(&mut self, kind: ProviderKind, call: &genai::chat::ToolCall) {
        let arguments = match &call.fn_arguments {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Null => String::new(),
            other => other.to_string(),
        };
        if kind == ProviderKind::Anthropic {
            self.calls.replace(&call.call_id, &call.fn_name, &arguments);
        } else {
            self.calls.push(&call.call_id, &call.fn_name, &arguments);
        }
    }

    /// The end with the calls that came before it.
    fn end(&mut self, target: &ProviderTarget, end: StreamEnd) -> Result<Piece, CallError> {
        let finish_reason = match end.captured_stop_reason {
            Some(reason) => reason.raw().to_owned(),
            None if target.kind == ProviderKind::Gemini => {
                return Err(CallError::broken("the stream ended without a finish reason"));
            }
            None => "stop".to_owned(),
        };
        let calls = self.calls.take().ok_or_else(ModelFailure::calls_too_long)?;
        let usage = usage_of(end.captured_usage.unwrap_or_default(), target);
        Ok(Piece::End { usage, finish_reason, calls, reasoning: String::new() })
    }
}

/// Shortens the cause and makes sure that the key is not in it, should the other side have repeated it.
pub(super) fn masked(key: Option<&SecretString>, mut error: CallError) -> CallError {
    if let Some(key) = key.map(SecretString::expose_secret).filter(|key| !key.is_empty()) {
        error.cause = error.cause.replace(key, "[key]");
    }
    if let Some((end, _)) = error.cause.char_indices().nth(CAUSE_CHARS) {
        error.cause.truncate(end);
        error.cause.push('…');
    }
    error
}

/// Begins the request. Not a method: the open stream in the attempt may not be shared between threads.
async fn send(client: &genai::Client, call: &Call, target: &ProviderTarget) -> Result<ChatStream, CallError> {
    let mut request = ChatRequest::new(chat_messages(&call.messages, &call.shown, target.kind));
    if !call.tools.is_empty() {
        let tools = call.tools.iter().map(|tool| {
            let made = genai::chat::Tool::new(tool.name.as_str()).with_schema(tool.parameters.clone());
            if tool.description.is_empty() { made } else { made.with_description(tool.description.as_str()) }
        });
        request = request.with_tools(tools.collect::<Vec<_>>());
    }
    let mut options = ChatOptions::default().with_capture_usage(true);
    if let Some(most) = call.max_output_tokens {
        options = options.with_max_tokens(u32::try_from(most).unwrap_or(u32::MAX));
    }
    let address = service_target(target, call.key.as_ref())?;
    let response = client.exec_chat_stream(address, request, Some(&options)).await;
    response.map(|response| response.stream).map_err(|error| call_error(&error))
}

/// The input as `genai` takes it. What several calls of one reply gave is one message: Anthropic's wire wants it so.
fn chat_messages(messages: &[Message], shown: &Shown, kind: ProviderKind) -> Vec<ChatMessage> {
    let mut made: Vec<ChatMessage> = Vec::with_capacity(messages.len());
    for (at, message) in messages.iter().enumerate() {
        match message {
            // A turn without an answer leaves an empty message in a history; some providers refuse those.
            Message::Said { text, .. } if text.is_empty() => {}
            Message::Said { role: Role::System, text } => made.push(ChatMessage::system(text.as_str())),
            Message::Said { role: Role::User, text } if shown.of(at, kind).next().is_some() => {
                let files = shown.of(at, kind).map(|(file, media_type)| {
                    ContentPart::from_binary_base64(media_type, Arc::clone(&file.base64), None)
                });
                // They come first: Anthropic's models see pictures better so.
                let parts = files.chain(std::iter::once(ContentPart::Text(text.clone())));
                made.push(ChatMessage::user(parts.collect::<Vec<_>>()));
            }
            Message::Said { role: Role::User, text } => made.push(ChatMessage::user(text.as_str())),
            Message::Said { role: Role::Assistant, text } => made.push(ChatMessage::assistant(text.as_str())),
            Message::Asked { text, calls, .. } => {
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
pub(super) fn base_url(target: &ProviderTarget) -> Result<Url, CallError> {
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

pub(super) fn network_error(error: &reqwest::Error) -> CallError {
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

fn usage_of(usage: genai::chat::Usage, target: &ProviderTarget) -> Usage {
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
            price: None,
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
}
