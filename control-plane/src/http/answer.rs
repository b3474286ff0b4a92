//! Answers in OpenAI's shape: one completion, or a stream of chunks.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};
use hermes_core::turn::{TurnState, Usage};
use serde::Serialize;
use serde_json::{Value, json};

use super::TurnEvent;
use super::error::ApiError;

/// What all chunks of an answer, or the one completion, say of themselves.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// `chatcmpl-` and the turn.
    pub(super) id: String,
    /// Unix seconds.
    pub(super) created: i64,
    /// The agent that answers.
    pub(super) model: String,
}

fn usage_json(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens.saturating_add(usage.output_tokens),
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}

/// The whole answer at once.
pub(super) fn completion(head: &Head, reply: &str, usage: &Usage) -> Value {
    json!({
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": reply, "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": usage_json(usage),
    })
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: &'a [Choice<'a>],
    /// Only in streams that asked for it: null, and the numbers in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a Value>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// An answer on its way to the client.
struct Streaming {
    head: Head,
    include_usage: bool,
    repeatable: bool,
    keep_alive: Duration,
    events: BoxStream<'static, TurnEvent>,
    /// What the client has of the text.
    sent: String,
    ended: bool,
}

/// How an answer is streamed.
pub(super) struct Options {
    /// Usage was asked for.
    pub(super) include_usage: bool,
    /// The call has an idempotency key.
    pub(super) repeatable: bool,
    /// A comment after so much silence.
    pub(super) keep_alive: Duration,
}

/// The body of a streamed answer: the role, the text, the finish reason, the usage if asked for, `[DONE]`.
///
/// The events are lossy and may begin again when a turn moves to another worker, but the end carries the whole reply: what
/// is missing of it is sent then, and where the text so far is no beginning of it, the whole reply follows after a blank line.
pub(super) fn chunks(
    head: Head,
    events: BoxStream<'static, TurnEvent>,
    options: Options,
) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static {
    let Options { include_usage, repeatable, keep_alive } = options;
    let streaming =
        Streaming { head, include_usage, repeatable, keep_alive, events, sent: String::new(), ended: false };
    let mut first = Vec::new();
    streaming.chunk(&mut first, Delta { role: Some("assistant"), content: Some("") }, None);
    let rest = stream::unfold(streaming, |mut streaming| async move {
        if streaming.ended {
            return None;
        }
        let bytes = streaming.next().await;
        Some((Ok(bytes), streaming))
    });
    stream::once(std::future::ready(Ok(Bytes::from(first)))).chain(rest)
}

impl Streaming {
    async fn next(&mut self) -> Bytes {
        let mut out = Vec::new();
        match tokio::time::timeout(self.keep_alive, self.events.next()).await {
            Err(_) => out.extend_from_slice(b": still working\n\n"),
            Ok(Some(TurnEvent::Delta(text))) => {
                self.sent.push_str(&text);
                self.chunk(&mut out, Delta { content: Some(&text), ..Delta::default() }, None);
            }
            // A comment: nothing of the answer, and clients pass it over.
            Ok(Some(TurnEvent::Asked(question))) => {
                for line in question.lines() {
                    out.extend_from_slice(format!(": {line}\n").as_bytes());
                }
                out.extend_from_slice(b"\n");
            }
            Ok(Some(TurnEvent::Ended { state: TurnState::Succeeded, reply, usage })) => {
                self.ended = true;
                self.finish(&mut out, &reply, &usage);
            }
            Ok(Some(TurnEvent::Ended { state, reply, .. })) => self.fail(&mut out, &ApiError::turn(state, reply)),
            Ok(None) => self.fail(&mut out, &ApiError::follow_lost(self.repeatable)),
        }
        Bytes::from(out)
    }

    fn finish(&self, out: &mut Vec<u8>, reply: &str, usage: &Usage) {
        let again;
        let missing = match reply.strip_prefix(self.sent.as_str()) {
            Some(missing) => missing,
            None => {
                again = format!("\n\n{reply}");
                &again
            }
        };
        if !missing.is_empty() {
            self.chunk(out, Delta { content: Some(missing), ..Delta::default() }, None);
        }
        self.chunk(out, Delta::default(), Some("stop"));
        if self.include_usage {
            self.write(out, &[], Some(&usage_json(usage)));
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        self.ended = true;
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(error.json().as_bytes());
        out.extend_from_slice(b"\n\n");
    }

    fn chunk(&self, out: &mut Vec<u8>, delta: Delta<'_>, finish_reason: Option<&'static str>) {
        let choice = Choice { index: 0, delta, logprobs: None, finish_reason };
        self.write(out, &[choice], self.include_usage.then_some(&Value::Null));
    }

    fn write(&self, out: &mut Vec<u8>, choices: &[Choice<'_>], usage: Option<&Value>) {
        let Head { id, created, model } = &self.head;
        let chunk = Chunk { id, object: "chat.completion.chunk", created: *created, model, choices, usage };
        out.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut *out, &chunk).expect("writing to memory does not fail");
        out.extend_from_slice(b"\n\n");
    }
}

/// Waits for the end of a turn.
pub(super) async fn ended(
    mut events: BoxStream<'static, TurnEvent>,
    at_most: Duration,
    repeatable: bool,
) -> Result<(String, Usage), ApiError> {
    let end = async {
        while let Some(event) = events.next().await {
            if let TurnEvent::Ended { state, reply, usage } = event {
                return Some((state, reply, usage));
            }
        }
        None
    };
    match tokio::time::timeout(at_most, end).await {
        Err(_) => Err(ApiError::still_running(repeatable)),
        Ok(None) => Err(ApiError::follow_lost(repeatable)),
        Ok(Some((TurnState::Succeeded, reply, usage))) => Ok((reply, usage)),
        Ok(Some((state, reply, _))) => Err(ApiError::turn(state, reply)),
    }
}
