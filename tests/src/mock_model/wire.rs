//! The three wires: reading what matters of a request, writing answers frame by frame.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Call;

/// Tokens of every answer, the tag counted as one.
pub const TOKENS: usize = 50;
/// So much of the last user message is repeated.
pub const TAG_CHARS: usize = 64;
/// The last word of a complete answer.
pub const LAST_WORD: &str = "DONE50";

/// Whose protocol a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    OpenAi,
    Anthropic,
    Gemini,
}

impl Wire {
    pub(super) fn of(method: &Method, path: &str) -> Option<Self> {
        if method != Method::POST {
            None
        } else if path.ends_with("/chat/completions") {
            Some(Self::OpenAi)
        } else if path.ends_with("/messages") {
            Some(Self::Anthropic)
        } else if path.contains("/models/") && path.ends_with(":streamGenerateContent") {
            Some(Self::Gemini)
        } else {
            None
        }
    }

    /// An error body as this provider writes it.
    pub(super) fn error(self, kind: &str, message: &str) -> Bytes {
        let body = match self {
            Self::OpenAi => json!({"error": {"message": message, "type": kind, "param": null, "code": kind}}),
            Self::Anthropic => json!({"type": "error", "error": {"type": kind, "message": message}}),
            Self::Gemini => json!({"error": {"code": 500, "message": message, "status": kind}}),
        };
        Bytes::from(body.to_string())
    }

    pub(super) fn error_event(self, kind: &str) -> Bytes {
        let event = if self == Self::Anthropic { "event: error\n" } else { "" };
        let error = self.error(kind, "failed by script");
        Bytes::from(format!("{event}data: {}\n\n", String::from_utf8_lossy(&error)))
    }

    fn token(self, text: &str) -> String {
        let text = Value::from(text);
        match self {
            Self::OpenAi => openai_chunk(&format!(r#"{{"content":{text}}}"#), "null"),
            Self::Anthropic => anthropic(
                "content_block_delta",
                &format!(r#","index":0,"delta":{{"type":"text_delta","text":{text}}}"#),
            ),
            Self::Gemini => format!(
                "data: {{\"candidates\":[{{\"content\":{{\"parts\":[{{\"text\":{text}}}],\"role\":\"model\"}},\"index\":0}}],\"modelVersion\":\"mock-1\"}}\r\n\r\n"
            ),
        }
    }

    fn head(self) -> String {
        match self {
            Self::OpenAi => openai_chunk(r#"{"role":"assistant","content":""}"#, "null"),
            Self::Anthropic => {
                anthropic(
                    "message_start",
                    r#","message":{"id":"msg_mock","type":"message","role":"assistant","content":[],"model":"mock-1","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":60,"cache_creation_input_tokens":0,"cache_read_input_tokens":40,"output_tokens":1}}"#,
                ) + &anthropic("content_block_start", r#","index":0,"content_block":{"type":"text","text":""}"#)
                    + &anthropic("ping", "")
            }
            Self::Gemini => String::new(),
        }
    }

    /// Finish reason and usage.
    fn tail(self) -> String {
        match self {
            Self::OpenAi => {
                openai_chunk("{}", "\"stop\"")
                    + "data: {\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"mock-1\",\"choices\":[],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":50,\"total_tokens\":150,\"prompt_tokens_details\":{\"cached_tokens\":40},\"cost\":0.00125}}\n\n"
            }
            Self::Anthropic => {
                anthropic("content_block_stop", r#","index":0"#)
                    + &anthropic(
                        "message_delta",
                        r#","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":50}"#,
                    )
            }
            Self::Gemini => "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\"}],\"role\":\"model\"},\"finishReason\":\"STOP\",\"index\":0}],\"usageMetadata\":{\"promptTokenCount\":100,\"candidatesTokenCount\":50,\"totalTokenCount\":150,\"cachedContentTokenCount\":40},\"modelVersion\":\"mock-1\"}\r\n\r\n".to_owned(),
        }
    }

    /// A call in pieces; `place` is its number in the reply.
    fn call(self, place: usize, call: &Call) -> String {
        let name = Value::from(call.name.as_str());
        let middle = call.arguments.floor_char_boundary(call.arguments.len() / 2);
        let pieces = [&call.arguments[..middle], &call.arguments[middle..]].map(Value::from);
        match self {
            Self::OpenAi => {
                let id = if call.id.is_empty() {
                    String::new()
                } else {
                    format!(r#""id":{},"#, Value::from(call.id.as_str()))
                };
                let first = format!(
                    r#"{{"tool_calls":[{{"index":{place},{id}"type":"function","function":{{"name":{name},"arguments":""}}}}]}}"#
                );
                let rest = pieces.map(|piece| {
                    let delta = format!(r#"{{"tool_calls":[{{"index":{place},"function":{{"arguments":{piece}}}}}]}}"#);
                    openai_chunk(&delta, "null")
                });
                openai_chunk(&first, "null") + &rest.concat()
            }
            Self::Anthropic => {
                let (id, index) = (Value::from(call.id.as_str()), place + 1);
                let begin = format!(
                    r#","index":{index},"content_block":{{"type":"tool_use","id":{id},"name":{name},"input":{{}}}}"#
                );
                let rest = pieces.map(|piece| {
                    let delta =
                        format!(r#","index":{index},"delta":{{"type":"input_json_delta","partial_json":{piece}}}"#);
                    anthropic("content_block_delta", &delta)
                });
                anthropic("content_block_start", &begin)
                    + &rest.concat()
                    + &anthropic("content_block_stop", &format!(r#","index":{index}"#))
            }
            Self::Gemini => format!(
                "data: {{\"candidates\":[{{\"content\":{{\"parts\":[{{\"functionCall\":{{\"name\":{name},\"args\":{}}}}}],\"role\":\"model\"}},\"index\":0}}],\"modelVersion\":\"mock-1\"}}\r\n\r\n",
                call.arguments
            ),
        }
    }

    fn end_mark(self) -> String {
        match self {
            Self::OpenAi => "data: [DONE]\n\n".to_owned(),
            Self::Anthropic => anthropic("message_stop", ""),
            Self::Gemini => String::new(),
        }
    }
}

fn openai_chunk(delta: &str, finish_reason: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"mock-1\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish_reason}}}]}}\n\n"
    )
}

fn anthropic(event: &str, fields: &str) -> String {
    format!("event: {event}\ndata: {{\"type\":\"{event}\"{fields}}}\n\n")
}

/// The list of models.
pub(super) fn models() -> Bytes {
    let model = json!({"id": "mock-1", "object": "model", "created": 1_700_000_000, "owned_by": "mock"});
    Bytes::from(json!({"object": "list", "data": [model]}).to_string())
}

/// One answer in the making.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) wire: Wire,
    streamed: bool,
    tag: String,
    /// First line of the system prompt; OpenAI's wire only.
    persona: String,
}

#[derive(Deserialize)]
struct OpenAiRequest<'a> {
    #[serde(default)]
    stream: bool,
    #[serde(borrow)]
    messages: Vec<OpenAiMessage<'a>>,
}

#[derive(Deserialize)]
struct OpenAiMessage<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<Content<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(String),
    #[serde(borrow)]
    Parts(Vec<Part<'a>>),
}

impl Content<'_> {
    fn text(&self) -> String {
        match self {
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => joined(parts),
        }
    }
}

#[derive(Deserialize)]
struct GeminiRequest<'a> {
    #[serde(borrow)]
    contents: Vec<GeminiContent<'a>>,
}

#[derive(Deserialize)]
struct GeminiContent<'a> {
    #[serde(borrow)]
    role: Option<Cow<'a, str>>,
    #[serde(borrow)]
    parts: Vec<Part<'a>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Cow<'a, str>,
}

impl Answer {
    /// # Errors
    /// When the body is not a request of this wire.
    pub(super) fn to(wire: Wire, body: &[u8]) -> Result<Self, serde_json::Error> {
        let mut persona = String::new();
        let (streamed, said) = match wire {
            Wire::OpenAi | Wire::Anthropic => {
                let request: OpenAiRequest<'_> = serde_json::from_slice(body)?;
                let of = |role: &str, message: &OpenAiMessage<'_>| {
                    if message.role != role {
                        return None;
                    }
                    Some(message.content.as_ref().map_or_else(String::new, Content::text))
                };
                let system = request.messages.iter().find_map(|message| of("system", message)).unwrap_or_default();
                persona = system.lines().next().unwrap_or_default().to_owned();
                let said = request.messages.iter().rev().find_map(|message| of("user", message)).unwrap_or_default();
                (request.stream, said)
            }
            Wire::Gemini => {
                let request: GeminiRequest<'_> = serde_json::from_slice(body)?;
                let is_user = |content: &&GeminiContent<'_>| content.role.as_deref() == Some("user");
                let last = request.contents.iter().rev().find(is_user);
                (true, last.map_or_else(String::new, |content| joined(&content.parts)))
            }
        };
        Ok(Self { wire, streamed, tag: said.chars().take(TAG_CHARS).collect(), persona })
    }

    /// The same answer, given by the one whom the system prompt names.
    pub(super) fn in_persona(self) -> Self {
        let tag = format!("{} | {}", self.persona, self.tag);
        Self { tag, ..self }
    }

    fn words(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let middle = (2..TOKENS).map(|n| Cow::Owned(format!(" word{n:02}")));
        std::iter::once(Cow::Borrowed(self.tag.as_str()))
            .chain(middle)
            .chain(std::iter::once(Cow::Owned(format!(" {LAST_WORD}"))))
    }

    /// The first `tokens` tokens.
    pub(super) fn begin(&self, tokens: usize) -> Bytes {
        let mut body = self.wire.head();
        for word in self.words().take(tokens) {
            body.push_str(&self.wire.token(&word));
        }
        Bytes::from(body)
    }

    /// Every frame by itself.
    pub(super) fn frames(&self) -> Vec<Bytes> {
        let mut frames = vec![self.wire.head()];
        frames.extend(self.words().map(|word| self.wire.token(&word)));
        frames.push(self.wire.tail());
        frames.push(self.wire.end_mark());
        frames.into_iter().filter(|frame| !frame.is_empty()).map(Bytes::from).collect()
    }

    pub(super) fn without_end_mark(&self) -> Bytes {
        let mut body = self.begin(TOKENS).to_vec();
        body.extend_from_slice(self.wire.tail().as_bytes());
        Bytes::from(body)
    }

    pub(super) fn empty(&self) -> Bytes {
        Bytes::from(self.wire.head() + &self.wire.tail() + &self.wire.end_mark())
    }

    /// The complete stream. Only the first token differs between answers, so the rest is made once.
    pub(super) fn whole(&self) -> Bytes {
        static RESTS: [std::sync::OnceLock<(String, String)>; 3] = [const { std::sync::OnceLock::new() }; 3];
        let slot = match self.wire {
            Wire::OpenAi => &RESTS[0],
            Wire::Anthropic => &RESTS[1],
            Wire::Gemini => &RESTS[2],
        };
        let (head, rest) = slot.get_or_init(|| {
            let mut rest = String::new();
            for word in self.words().skip(1) {
                rest.push_str(&self.wire.token(&word));
            }
            rest.push_str(&self.wire.tail());
            rest.push_str(&self.wire.end_mark());
            (self.wire.head(), rest)
        });
        let first = self.wire.token(&self.tag);
        let mut body = String::with_capacity(head.len() + first.len() + rest.len());
        body.push_str(head);
        body.push_str(&first);
        body.push_str(rest);
        Bytes::from(body)
    }

    /// The complete stream of `text`, cut before its words.
    pub(super) fn whole_of(&self, text: &str) -> Bytes {
        let mut body = self.wire.head();
        for word in text.split_inclusive(' ') {
            body.push_str(&self.wire.token(word));
        }
        body.push_str(&self.wire.tail());
        body.push_str(&self.wire.end_mark());
        Bytes::from(body)
    }

    /// The complete stream of `text` and then the calls.
    pub(super) fn asking(&self, text: &str, calls: &[Call]) -> Bytes {
        let mut body = self.wire.head();
        for word in text.split_inclusive(' ') {
            body.push_str(&self.wire.token(word));
        }
        // Anthropic's text block ends before the first call's begins, and the tail would end it once more.
        if self.wire == Wire::Anthropic {
            body.push_str(&anthropic("content_block_stop", r#","index":0"#));
        }
        for (place, call) in calls.iter().enumerate() {
            body.push_str(&self.wire.call(place, call));
        }
        let tail = self.wire.tail();
        let tail = match self.wire {
            Wire::OpenAi => tail.replace("\"stop\"", "\"tool_calls\""),
            Wire::Anthropic => {
                tail.replace("end_turn", "tool_use").replace(&anthropic("content_block_stop", r#","index":0"#), "")
            }
            Wire::Gemini => tail,
        };
        body.push_str(&tail);
        body.push_str(&self.wire.end_mark());
        Bytes::from(body)
    }

    /// The answer to a request that did not ask for a stream.
    pub(super) fn plain(&self) -> Option<Bytes> {
        let mut text = String::new();
        for word in self.words() {
            let _ = write!(text, "{word}");
        }
        self.plain_of(&text)
    }

    /// As [`Answer::plain`], saying `text`.
    pub(super) fn plain_of(&self, text: &str) -> Option<Bytes> {
        if self.streamed {
            return None;
        }
        let body = match self.wire {
            Wire::OpenAi => json!({
                "id": "chatcmpl-mock", "object": "chat.completion", "created": 1_700_000_000, "model": "mock-1",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": null, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150, "prompt_tokens_details": {"cached_tokens": 40}},
            }),
            Wire::Anthropic | Wire::Gemini => json!({
                "id": "msg_mock", "type": "message", "role": "assistant", "model": "mock-1",
                "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": null,
                "usage": {"input_tokens": 60, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 40, "output_tokens": 50},
            }),
        };
        Some(Bytes::from(body.to_string()))
    }
}

fn joined(parts: &[Part<'_>]) -> String {
    parts.iter().map(|part| part.text.as_ref()).collect()
}
