//! OpenAI's chat completions, the wire that most servers speak: one attempt at a time.
//!
//! Read here and not through `genai`: a frame of this wire is mostly one token, `genai` makes a tree of maps and strings of
//! each and passes it through several buffers, and that was the largest part of the control plane's CPU under load. Here a
//! frame is read in place, and all frames that arrived together make one piece. Always true: text is passed on in the
//! order of the wire and without gaps; an end is `[DONE]`, or a finish reason before the body's end; fields of unknown
//! shapes are passed over, a frame that is no JSON is a failure. Other members of the wire are understood where servers
//! are known to use them: OpenRouter's price, Mistral's content in parts, reasoning beside the text (a sign of life, and
//! kept for the servers that want it back: [`reasoning`]).

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hermes_core::attachment::Medium;
use hermes_core::turn::{Role, Usage};
use http::header::CONTENT_TYPE;
use reqwest::Response;
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::events::Events;
use super::failure::{CallError, FailureReason, ModelFailure};
use super::provider::{base_url, masked, network_error};
use super::text::Text;
use super::tools::{Assembly, Fragment};
use super::{Call, ChatModel, Message, Piece, ProviderTarget, ShownFile, reasoning, retry, tools};

/// A piece of joined tokens is handed over at this size.
const PIECE_BYTES: usize = 16 << 10;
/// What stands around the text of a message of a request, about.
const MESSAGE_BYTES: usize = 40;
/// Most of an error's body that is read.
const ERROR_BYTES: usize = 64 << 10;

/// All servers of this wire.
pub(super) struct OpenAi {
    http: reqwest::Client,
}

impl OpenAi {
    pub(super) fn new(http: reqwest::Client) -> Self {
        Self { http }
    }
}

impl ChatModel for OpenAi {
    fn open(&self, call: &Call) -> BoxStream<'static, Result<Piece, CallError>> {
        let wanted = call.provider.as_deref().is_some_and(reasoning::is_wanted);
        let said = Answer { reasoning: wanted.then(String::new), ..Answer::default() };
        let attempt = Attempt { http: self.http.clone(), call: call.clone(), response: None, said };
        stream::unfold(attempt, |mut attempt| async move {
            let piece = attempt.next().await?;
            Some((piece.map_err(|error| masked(attempt.call.key.as_ref(), error)), attempt))
        })
        .boxed()
    }
}

struct Attempt {
    http: reqwest::Client,
    call: Call,
    response: Option<Response>,
    said: Answer,
}

impl Attempt {
    async fn next(&mut self) -> Option<Result<Piece, CallError>> {
        // The built-in model never comes here.
        let target = Arc::clone(self.call.provider.as_ref()?);
        let response = match &mut self.response {
            Some(response) => response,
            none => match send(&self.http, &self.call, &target).await {
                Ok(response) => none.insert(response),
                Err(error) => return Some(Err(error)),
            },
        };
        loop {
            if let Some(piece) = self.said.next(&target) {
                return Some(piece);
            }
            if self.said.events.is_closed() {
                return self.said.end_without_mark(&target);
            }
            match response.chunk().await {
                Ok(Some(bytes)) => self.said.events.feed(&bytes),
                Ok(None) => self.said.events.close(),
                Err(error) => return Some(Err(network_error(&error))),
            }
            if self.said.events.is_too_long() {
                return Some(Err(CallError::new(FailureReason::BrokenStream, false, "a frame is too long")));
            }
        }
    }
}

async fn send(http: &reqwest::Client, call: &Call, target: &ProviderTarget) -> Result<Response, CallError> {
    let base = base_url(target)?;
    let mut url = base.join("chat/completions").map_err(|error| {
        CallError::new(FailureReason::BadRequest, false, format!("the base_url cannot be extended: {error}"))
    })?;
    url.set_query(base.query());
    // A history is long: written into what holds it, it is not moved again and again.
    let text: usize = call.messages.iter().map(|message| message.text().len() + MESSAGE_BYTES).sum();
    let mut body = Vec::with_capacity(text + text / 8 + MESSAGE_BYTES);
    serde_json::to_writer(&mut body, &Body::of(call, target)).map_err(|error| {
        CallError::new(FailureReason::BadRequest, false, format!("the request cannot be written: {error}"))
    })?;
    let request = http.post(url).header(CONTENT_TYPE, "application/json").body(body);
    let request = match call.key.as_ref().map(SecretString::expose_secret) {
        Some(key) => request.bearer_auth(key),
        None => request,
    };
    let mut response = request.send().await.map_err(|error| network_error(&error))?;
    if response.status().is_success() {
        return Ok(response);
    }
    let mut text = Vec::new();
    while text.len() < ERROR_BYTES
        && let Ok(Some(bytes)) = response.chunk().await
    {
        text.extend_from_slice(&bytes);
    }
    let pause = retry::asked_pause(response.headers());
    Err(CallError::status(response.status().as_u16(), pause, &String::from_utf8_lossy(&text)))
}

/// The request.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    stream: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<OfferedTool<'a>>,
    messages: Vec<Sent<'a>>,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u64>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
struct OfferedTool<'a> {
    r#type: &'static str,
    function: Offered<'a>,
}

#[derive(Serialize)]
struct Offered<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    parameters: &'a Value,
    strict: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(&'a str),
    Parts(Vec<Part<'a>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part<'a> {
    Text { text: &'a str },
    ImageUrl { image_url: ImageUrl },
    InputAudio { input_audio: InputAudio<'a> },
}

impl<'a> Part<'a> {
    fn of((file, form): (&'a ShownFile, &'static str)) -> Self {
        match file.medium {
            Medium::Picture => {
                Self::ImageUrl { image_url: ImageUrl { url: format!("data:{form};base64,{}", file.base64) } }
            }
            Medium::Audio => Self::InputAudio { input_audio: InputAudio { data: &file.base64, format: form } },
        }
    }
}

#[derive(Serialize)]
struct ImageUrl {
    url: String,
}

#[derive(Serialize)]
struct InputAudio<'a> {
    data: &'a str,
    /// `wav` or `mp3`.
    format: &'static str,
}

#[derive(Serialize)]
struct Sent<'a> {
    role: &'static str,
    content: Content<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<SentCall<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
}

#[derive(Serialize)]
struct SentCall<'a> {
    r#type: &'static str,
    id: &'a str,
    function: SentFunction<'a>,
}

#[derive(Serialize)]
struct SentFunction<'a> {
    name: &'a str,
    arguments: String,
}

impl<'a> Body<'a> {
    fn of(call: &'a Call, target: &'a ProviderTarget) -> Self {
        let tools = call.tools.iter().map(|tool| OfferedTool {
            r#type: "function",
            function: Offered {
                name: &tool.name,
                description: &tool.description,
                parameters: &tool.parameters,
                strict: false,
            },
        });
        let back = reasoning::is_wanted(target).then_some(target);
        // OpenAI's newer models refuse the old name, and most other servers know no new one.
        let newest = target.base_url.as_deref().is_none_or(|url| url.contains("://api.openai.com/"));
        Self {
            model: &target.model,
            stream: true,
            tools: tools.collect(),
            messages: call
                .messages
                .iter()
                .enumerate()
                .filter_map(|(at, message)| sent(message, call.shown.of(at, target.kind).map(Part::of).collect(), back))
                .collect(),
            stream_options: StreamOptions { include_usage: true },
            max_tokens: call.max_output_tokens.filter(|_| !newest),
            max_completion_tokens: call.max_output_tokens.filter(|_| newest),
        }
    }
}

/// `shown`: what the message is shown with. `back`: a server that wants reasoning back.
fn sent<'a>(message: &'a Message, shown: Vec<Part<'a>>, back: Option<&ProviderTarget>) -> Option<Sent<'a>> {
    let plain = |role, text| Sent {
        role,
        content: Content::Text(text),
        tool_calls: Vec::new(),
        tool_call_id: None,
        reasoning_content: None,
    };
    Some(match message {
        // A turn without an answer leaves an empty message in a history; some providers refuse those.
        Message::Said { text, .. } if text.is_empty() => return None,
        Message::Said { role: Role::System, text } => plain("system", text),
        Message::Said { role: Role::User, text } if !shown.is_empty() => {
            let parts = std::iter::once(Part::Text { text }).chain(shown);
            Sent { content: Content::Parts(parts.collect()), ..plain("user", text) }
        }
        Message::Said { role: Role::User, text } => plain("user", text),
        Message::Said { role: Role::Assistant, text } => plain("assistant", text),
        Message::Asked { text, calls, reasoning } => {
            let calls = calls.iter().map(|call| SentCall {
                r#type: "function",
                id: &call.id,
                function: SentFunction {
                    name: &call.name,
                    arguments: tools::arguments_object(&call.arguments).to_string(),
                },
            });
            let reasoning_content = back.map(|target| reasoning::opened(target, reasoning));
            Sent { tool_calls: calls.collect(), reasoning_content, ..plain("assistant", text) }
        }
        Message::Answered { call, text } => Sent { tool_call_id: Some(call), ..plain("tool", text) },
    })
}

/// What was read of the answer and not passed on yet.
#[derive(Default)]
struct Answer {
    events: Events,
    finish_reason: Option<String>,
    usage: Option<WireUsage>,
    calls: Assembly,
    /// What was thought; nothing where nobody wants it back.
    reasoning: Option<String>,
    /// `[DONE]` came, or a fault: nothing is read behind it.
    last: Option<Result<(), CallError>>,
}

impl Answer {
    /// The next piece of what is here; nothing when more must come first.
    fn next(&mut self, target: &ProviderTarget) -> Option<Result<Piece, CallError>> {
        let (mut text, mut alive) = (String::new(), false);
        while self.last.is_none()
            && text.len() < PIECE_BYTES
            && let Some(data) = self.events.next()
        {
            if data == b"[DONE]" {
                self.last = Some(Ok(()));
                break;
            }
            match serde_json::from_slice::<Chunk<'_>>(data) {
                Ok(Chunk { error: Some(error), .. }) => self.last = Some(Err(CallError::in_stream(&error.to_string()))),
                Ok(chunk) => {
                    let usage = chunk.usage.and_then(|usage| serde_json::from_value(usage).ok());
                    self.usage = usage.or(self.usage);
                    if let Some(choice) = chunk.choices.into_iter().flatten().next() {
                        if !choice.finish_reason.text.is_empty() {
                            self.finish_reason = Some(choice.finish_reason.text.into_owned());
                        }
                        let delta = choice.delta.unwrap_or_default();
                        text.push_str(&delta.content.text);
                        if let Some(thought) = &mut self.reasoning {
                            let (one, other) = (&delta.reasoning_content.text, &delta.reasoning.text);
                            thought.push_str(if one.is_empty() { other } else { one });
                        }
                        alive |= delta.content.thinking
                            || !delta.reasoning_content.text.is_empty()
                            || !delta.reasoning.text.is_empty();
                        for call in delta.tool_calls.into_iter().flatten() {
                            alive = true;
                            call.add_to(&mut self.calls);
                        }
                    }
                }
                // JSON of another shape is not for us.
                Err(_) if serde_json::from_slice::<IgnoredAny>(data).is_ok() => {}
                Err(error) => {
                    let cause = format!("a frame is not JSON: {error}");
                    self.last = Some(Err(CallError::new(FailureReason::BrokenStream, false, cause)));
                }
            }
        }
        if !text.is_empty() {
            return Some(Ok(Piece::Text(text)));
        }
        match self.last.take() {
            Some(Ok(())) => Some(self.end(target)),
            Some(Err(error)) => Some(Err(error)),
            None => alive.then_some(Ok(Piece::Alive)),
        }
    }

    fn end(&mut self, target: &ProviderTarget) -> Result<Piece, CallError> {
        let calls = self.calls.take().ok_or_else(ModelFailure::calls_too_long)?;
        let finish_reason = self.finish_reason.take().unwrap_or_else(|| "stop".to_owned());
        let reasoning = reasoning::sealed(target, self.reasoning.as_deref().unwrap_or_default());
        Ok(Piece::End { usage: usage_of(self.usage.unwrap_or_default(), target), finish_reason, calls, reasoning })
    }

    /// The end of a stream whose server says why it finished but leaves the last mark out.
    fn end_without_mark(&mut self, target: &ProviderTarget) -> Option<Result<Piece, CallError>> {
        self.finish_reason.is_some().then(|| self.end(target))
    }
}

/// One frame.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<Value>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    finish_reason: Text<'a>,
}

#[derive(Default, Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Text<'a>,
    #[serde(borrow, default)]
    reasoning_content: Text<'a>,
    #[serde(borrow, default)]
    reasoning: Text<'a>,
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
    arguments: Option<Value>,
}

impl WireCall {
    fn add_to(self, calls: &mut Assembly) {
        let WireFunction { name, arguments } = self.function.unwrap_or_default();
        let arguments = match arguments {
            Some(Value::String(text)) => text,
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        };
        calls.add(&Fragment {
            index: self.index,
            id: self.id.as_deref().unwrap_or_default(),
            name: name.as_deref().unwrap_or_default(),
            arguments: &arguments,
        });
    }
}

/// `usage`; `cost` is OpenRouter's, in US dollars.
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

fn usage_of(usage: WireUsage, target: &ProviderTarget) -> Usage {
    Usage {
        input_tokens: usage.prompt_tokens.unwrap_or(0),
        output_tokens: usage.completion_tokens.unwrap_or(0),
        cached_tokens: usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0),
        cost_usd: usage.cost.filter(|cost| cost.is_finite() && *cost >= 0.0),
        model: target.configured.clone(),
    }
}

#[cfg(test)]
mod tests {
    use hermes_core::config::ProviderKind;

    use super::super::Shown;
    use super::*;

    fn target() -> ProviderTarget {
        ProviderTarget {
            provider: "p".to_owned(),
            kind: ProviderKind::Openai,
            base_url: None,
            api_key_env: None,
            model: "m".to_owned(),
            configured: "p/m".to_owned(),
            price: None,
        }
    }

    /// All pieces of a body that came at once and ended.
    fn pieces(body: &str) -> Vec<String> {
        let mut answer = Answer::default();
        answer.events.feed(body.as_bytes());
        let mut seen = Vec::new();
        loop {
            match answer.next(&target()) {
                Some(Ok(Piece::Text(text))) => seen.push(text),
                Some(Ok(Piece::Alive)) => seen.push("(alive)".to_owned()),
                Some(Ok(end @ Piece::End { .. })) => {
                    seen.push(format!("{end:?}"));
                    return seen;
                }
                Some(Err(error)) => {
                    seen.push(error.cause);
                    return seen;
                }
                None if answer.events.is_closed() => {
                    seen.push(format!("{:?}", answer.end_without_mark(&target()).map(|end| end.is_ok())));
                    return seen;
                }
                None => answer.events.close(),
            }
        }
    }

    fn frame(delta: &str, finish_reason: &str) -> String {
        format!(
            "data: {{\"id\":\"x\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish_reason}}}]}}\n\n"
        )
    }

    #[test]
    fn tokens_that_came_together_are_one_piece_with_what_follows_behind_it() {
        let body = frame(r#"{"role":"assistant","content":""}"#, "null")
            + &frame(r#"{"content":"He said \"é\\n\""}"#, "null")
            + &frame(r#"{"content":" twice","logprobs":null}"#, "null")
            + &frame("{}", "\"length\"")
            + "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5,\"cost\":0.5}}\n\ndata: [DONE]\n\n";
        let seen = pieces(&body);
        assert_eq!(seen[0], "He said \"é\\n\" twice");
        assert_eq!(seen.len(), 2);
        for part in ["input_tokens: 3", "output_tokens: 5", "cost_usd: Some(0.5)", "\"length\"", "model: \"p/m\""] {
            assert!(seen[1].contains(part), "{part} is not in {}", seen[1]);
        }
    }

    #[test]
    fn an_end_is_a_mark_or_a_finish_reason() {
        assert_eq!(pieces(&frame(r#"{"content":"a"}"#, "null")), ["a", "None"]);
        assert_eq!(pieces(&frame(r#"{"content":"a"}"#, "\"stop\"")), ["a", "Some(true)"]);
    }

    #[test]
    fn reasoning_is_a_sign_of_life_and_content_may_come_in_parts() {
        let body = frame(r#"{"reasoning_content":"hm"}"#, "null");
        assert_eq!(pieces(&body), ["(alive)", "None"]);
        let body = frame(r#"{"content":[{"type":"thinking","thinking":[{"type":"text","text":"if"}]}]}"#, "null");
        assert_eq!(pieces(&body), ["(alive)", "None"]);
        let body =
            frame(r#"{"content":[{"type":"text","text":"N"},{"type":"text","text":"o"}],"reasoning":"x"}"#, "null");
        assert_eq!(pieces(&body), ["No", "None"]);
    }

    #[test]
    fn what_was_thought_goes_back_with_the_reply_that_asks_where_it_is_wanted() {
        let deepseek = ProviderTarget { provider: "deepseek".to_owned(), ..target() };
        let mut answer = Answer { reasoning: Some(String::new()), ..Answer::default() };
        let body = frame(r#"{"reasoning_content":"so "}"#, "null")
            + &frame(r#"{"reasoning_content":"be it","reasoning":"so be it"}"#, "null")
            + &frame(
                r#"{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{}"}}]}"#,
                "\"tool_calls\"",
            )
            + "data: [DONE]\n\n";
        answer.events.feed(body.as_bytes());
        let Some(Ok(Piece::End { calls, reasoning, .. })) = answer.next(&deepseek) else { panic!("it ends") };
        let call = |reasoning: &str| {
            let asked = Message::Asked { text: String::new(), calls: calls.clone(), reasoning: reasoning.to_owned() };
            Call {
                shown: Shown::default(),
                agent: hermes_core::AgentId::main(),
                messages: [asked].into(),
                tools: [].into(),
                provider: None,
                max_output_tokens: Some(9),
                key: None,
            }
        };
        let sent = |target: &ProviderTarget, reasoning: &str| {
            serde_json::to_value(Body::of(&call(reasoning), target)).unwrap()
        };
        assert_eq!(sent(&deepseek, &reasoning)["messages"][0]["reasoning_content"], "so be it");
        assert_eq!(sent(&deepseek, "")["messages"][0]["reasoning_content"], " ", "never missing, never empty");
        let kimi = ProviderTarget { provider: "kimi-coding".to_owned(), ..target() };
        assert_eq!(sent(&kimi, &reasoning)["messages"][0]["reasoning_content"], " ", "another provider's stays here");
        let plain = sent(&target(), &reasoning);
        assert!(plain["messages"][0].get("reasoning_content").is_none(), "{plain}");
        // The bound of an answer has the name that the server knows.
        assert_eq!((&plain["max_completion_tokens"], plain.get("max_tokens")), (&Value::from(9), None));
        let other = ProviderTarget { base_url: Some("http://h/v1".to_owned()), ..target() };
        assert_eq!(sent(&other, "")["max_tokens"], Value::from(9));
    }

    #[test]
    fn unknown_shapes_are_passed_over_and_what_is_no_json_is_a_failure() {
        let odd = "data: 7\n\ndata: {\"choices\":{}}\n\ndata: {\"choices\":null,\"usage\":[1],\"error\":null}\n\n";
        let body = odd.to_owned()
            + &frame(r#"{"content":5}"#, "null")
            + &frame(r#"{"content":"a"}"#, "9")
            + "data: [DONE]\n\n";
        let seen = pieces(&body);
        assert_eq!((seen.len(), seen[0].as_str()), (2, "a"));
        let broken = pieces(&(frame(r#"{"content":"a"}"#, "null") + "data: <html>not {json\n\ndata: [DONE]\n\n"));
        assert!(broken[0] == "a" && broken[1].starts_with("a frame is not JSON"), "{broken:?}");
        let failed = pieces("data: {\"error\":{\"type\":\"server_error\"}}\n\ndata: [DONE]\n\n");
        assert!(failed.len() == 1 && failed[0].contains("server_error"), "{failed:?}");
    }
}
