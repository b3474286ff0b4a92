//! One model call through the broker: the tools and the conversation out in chunks, the answer back as deltas and tool calls.
//!
//! Called by a turn. Always true: no message is larger than a chunk, text is cut between characters only, and dropping
//! the future cancels the provider's call. It knows no model, provider or key: the control plane takes them from the
//! turn's pinned revision. It does not retry.

use std::sync::Arc;
use std::time::Duration;

use hermes_proto::v1::model_service_client::ModelServiceClient;
use hermes_proto::v1::{
    GenerateDone, GenerateEvent, GenerateHeader, GenerateRequest, ModelMessage, ModelMessages, ModelRole, ToolCall,
    ToolSpec, generate_event, generate_request,
};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::connection::is_broken;

/// How long the other side may take to end a call after its last event.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// One message of the conversation; the text is shared with the caches it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who said it.
    pub role: ModelRole,
    /// What was said.
    pub text: Arc<str>,
    /// Of the assistant: what it asked for.
    pub tool_calls: Arc<[ToolCall]>,
    /// Of a tool: which call this answers.
    pub tool_call_id: Arc<str>,
    /// Of the assistant: what the reply that asked came with; opaque.
    pub reasoning: Arc<str>,
    /// Of the user: the control plane gives the model the pictures and the audio that came with the turn, if it takes them.
    pub with_files: bool,
}

impl Message {
    /// How much it tells, bytes of text and arguments.
    pub fn bytes(&self) -> usize {
        self.text.len() + self.tool_calls.iter().map(|call| call.arguments.len()).sum::<usize>()
    }

    /// Text only.
    pub fn new(role: ModelRole, text: impl Into<Arc<str>>) -> Self {
        Self {
            role,
            text: text.into(),
            tool_calls: Arc::default(),
            tool_call_id: Arc::default(),
            reasoning: Arc::default(),
            with_files: false,
        }
    }
}

/// What a model answered, beside the text that went to [`Deltas`].
#[derive(Debug)]
pub struct Generated {
    /// Its last event.
    pub done: GenerateDone,
    /// What it asks for, in its order; with none, the answer is complete.
    pub tool_calls: Vec<ToolCall>,
}

/// Why a call gave no reply.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The provider failed; the sentence is for the chat.
    #[error("the model call failed ({reason})")]
    Failed {
        /// One short, honest sentence.
        sentence: String,
        /// From the broker's closed set.
        reason: String,
    },
    /// This worker does not run that turn (any more).
    #[error("the control plane does not let this worker run the turn")]
    NotOurs,
    /// The call broke before its last event; it may be repeated.
    #[error("the model call broke off")]
    Broken(#[source] tonic::Status),
    /// The control plane judged the request and refused it.
    #[error("the control plane refused the model call")]
    Refused(#[source] tonic::Status),
}

/// Calls the model, offering it the tools, and feeds each piece of text to `deltas`. Returns after the last event, when the
/// call has ended: a call dropped before its end is reset, and a connection with many resets is given up by HTTP/2, with
/// everything that runs on it.
///
/// # Errors
/// [`Error`]; pieces that were already fed stay fed.
pub async fn generate(
    channel: Channel,
    header: GenerateHeader,
    tools: Vec<ToolSpec>,
    messages: Vec<Message>,
    deltas: &mut impl Deltas,
) -> Result<Generated, Error> {
    let mut tool_calls = Vec::new();
    let request = std::iter::once(generate_request::Part::Header(header))
        .chain(tools.into_iter().map(generate_request::Part::Tool))
        .chain(parts(messages))
        .map(|part| GenerateRequest { part: Some(part) });
    let mut client = ModelServiceClient::new(channel).max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES);
    let mut events = client.generate(tokio_stream::iter(request)).await.map_err(judge)?.into_inner();
    loop {
        let due = deltas.due();
        let event = tokio::select! {
            event = events.message() => event.map_err(judge)?,
            () = async { tokio::time::sleep_until(due.expect("the branch is off without a deadline")).await }, if due.is_some() => {
                deltas.flush();
                continue;
            }
        };
        let Some(event) = event else {
            return Err(Error::Broken(tonic::Status::unavailable("the stream ended without its last event")));
        };
        match event.event {
            Some(generate_event::Event::TextDelta(text)) => deltas.push(&text),
            Some(generate_event::Event::Done(done)) => {
                end(events).await;
                return Ok(Generated { done, tool_calls });
            }
            Some(generate_event::Event::Failed(failed)) => {
                end(events).await;
                return Err(Error::Failed { sentence: failed.message, reason: failed.reason });
            }
            Some(generate_event::Event::ToolCall(call)) => tool_calls.push(call),
            // An event of a later protocol is not for us.
            None => {}
        }
    }
}

/// Reads a call to its end; nothing that comes there matters.
async fn end(mut events: Streaming<GenerateEvent>) {
    let ended = async { while let Ok(Some(_)) = events.message().await {} };
    if tokio::time::timeout(END_TIMEOUT, ended).await.is_err() {
        tracing::debug!("a model call did not end after its last event");
    }
}

/// What takes the pieces of an answer as they come.
pub trait Deltas {
    /// A piece of text.
    fn push(&mut self, text: &str);
    /// When [`Deltas::flush`] wants to be called; `None`: nothing waits.
    fn due(&self) -> Option<tokio::time::Instant>;
    /// The deadline passed.
    fn flush(&mut self);
}

fn judge(status: tonic::Status) -> Error {
    match status.code() {
        tonic::Code::PermissionDenied => Error::NotOurs,
        _ if is_broken(&status) => Error::Broken(status),
        _ => Error::Refused(status),
    }
}

/// The conversation in as few parts as hold it: each of at most [`hermes_proto::CHUNK_BYTES`] of text, with what stands
/// around it far below the protocol's bound.
fn parts(messages: Vec<Message>) -> impl Iterator<Item = generate_request::Part> {
    let mut chunks = messages.into_iter().flat_map(chunks).peekable();
    std::iter::from_fn(move || {
        let mut part = ModelMessages::default();
        let mut left = hermes_proto::CHUNK_BYTES;
        while let Some(chunk) = chunks.next_if(|chunk| cost(chunk) <= left || part.messages.is_empty()) {
            left = left.saturating_sub(cost(&chunk));
            part.messages.push(chunk);
        }
        (!part.messages.is_empty()).then_some(generate_request::Part::Messages(part))
    })
}

/// What a chunk takes of a part, bytes.
fn cost(chunk: &ModelMessage) -> usize {
    let calls = chunk.tool_calls.iter().map(|call| call.arguments.len() + call.name.len() + call.id.len() + 32);
    chunk.text.len() + chunk.reasoning.len() + chunk.tool_call_id.len() + 32 + calls.sum::<usize>()
}

/// A message in chunks of at most [`hermes_proto::CHUNK_BYTES`] of text, at least one; its tool calls come after its text,
/// as many in one chunk as fit twice that, and its reasoning with the last of them.
fn chunks(message: Message) -> impl Iterator<Item = ModelMessage> {
    let mut start = Some(0);
    let mut calls = 0;
    std::iter::from_fn(move || {
        let from = start?;
        let rest = message.text.get(from..).unwrap_or_default();
        let length = rest.floor_char_boundary(hermes_proto::CHUNK_BYTES);
        let text = rest.get(..length).unwrap_or_default().to_owned();
        let whole = length == rest.len();
        let tool_calls = if whole { fitting(message.tool_calls.get(calls..).unwrap_or_default()) } else { &[] };
        calls += tool_calls.len();
        let more = !whole || calls < message.tool_calls.len();
        start = more.then_some(from + length);
        Some(ModelMessage {
            role: message.role.into(),
            text,
            more,
            tool_calls: tool_calls.to_vec(),
            tool_call_id: message.tool_call_id.to_string(),
            with_files: message.with_files && from == 0,
            reasoning: if more { String::new() } else { message.reasoning.to_string() },
        })
    })
}

/// The first of these calls, at least one where there is one.
fn fitting(calls: &[ToolCall]) -> &[ToolCall] {
    let mut room = 2 * hermes_proto::CHUNK_BYTES;
    let fitting = calls.iter().take_while(|call| {
        let size = call.id.len() + call.name.len() + call.arguments.len();
        let fits = size <= room;
        room = room.saturating_sub(size);
        fits
    });
    let count = fitting.count().max(1).min(calls.len());
    calls.get(..count).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunked(text: &str) -> Vec<ModelMessage> {
        chunks(Message::new(ModelRole::User, text)).collect()
    }

    #[test]
    fn long_text_is_cut_between_characters_and_complete() {
        let text = "é€𝄞x".repeat(100_000);
        let chunks = chunked(&text);
        assert!(chunks.len() > 3);
        assert!(chunks.iter().all(|chunk| chunk.text.len() <= hermes_proto::CHUNK_BYTES));
        assert_eq!(chunks.iter().map(|chunk| chunk.text.as_str()).collect::<String>(), text);
        let (last, before) = chunks.split_last().expect("not empty");
        assert!(!last.more && before.iter().all(|chunk| chunk.more));
    }

    #[test]
    fn short_and_empty_texts_are_one_message() {
        for text in ["", "hello"] {
            let chunks = chunked(text);
            assert_eq!(chunks.len(), 1);
            assert_eq!((chunks[0].text.as_str(), chunks[0].more), (text, false));
        }
    }

    #[test]
    fn reasoning_goes_with_the_last_part_of_its_message() {
        let call = ToolCall { id: "c".to_owned(), name: "f".to_owned(), arguments: "x".repeat(300 << 10) };
        let message = Message {
            tool_calls: vec![call.clone(), call].into(),
            reasoning: "p\nso".into(),
            ..Message::new(ModelRole::Assistant, "")
        };
        let chunks: Vec<ModelMessage> = chunks(message).collect();
        let seen: Vec<_> = chunks.iter().map(|chunk| (chunk.more, chunk.reasoning.as_str())).collect();
        assert_eq!(seen, [(true, ""), (false, "p\nso")]);
    }

    #[test]
    fn a_conversation_is_few_parts_in_order_and_none_is_too_large() {
        let message = |text: String| Message::new(ModelRole::User, text);
        let parts = |messages| -> Vec<ModelMessages> {
            let part = |part| match part {
                generate_request::Part::Messages(part) => part,
                other => panic!("{other:?}"),
            };
            parts(messages).map(part).collect()
        };
        let text = |parts: &[ModelMessages]| -> String {
            parts.iter().flat_map(|part| &part.messages).map(|chunk| chunk.text.as_str()).collect()
        };
        let largest =
            |parts: &[ModelMessages]| parts.iter().map(|part| part.messages.iter().map(cost).sum::<usize>()).max();
        assert!(parts(Vec::new()).is_empty());
        let short = parts((0..100).map(|number| message(format!("{number} "))).collect());
        assert_eq!(short.len(), 1);
        assert_eq!(text(&short), (0..100).map(|number| format!("{number} ")).collect::<String>());
        let many = parts((0..50_000).map(|_| message("x".to_owned())).collect());
        assert_eq!(text(&many).len(), 50_000);
        assert!(many.len() > 5 && largest(&many).is_some_and(|largest| largest <= hermes_proto::CHUNK_BYTES));
        let long = parts(vec![message("a".into()), message("é".repeat(300_000)), message("b".into())]);
        assert_eq!(text(&long), format!("a{}b", "é".repeat(300_000)));
        assert!(largest(&long).is_some_and(|largest| largest < 512 << 10));
    }

    #[test]
    fn many_long_tool_calls_follow_the_text_in_chunks_of_their_own() {
        let call = |id: usize| ToolCall { id: id.to_string(), name: "read".into(), arguments: "x".repeat(200_000) };
        let calls: Vec<_> = (0..7).map(call).collect();
        let text = "y".repeat(300_000);
        let message = Message { tool_calls: calls.clone().into(), ..Message::new(ModelRole::Assistant, text.as_str()) };
        let chunks = chunks(message).collect::<Vec<_>>();
        assert_eq!(chunks.iter().map(|chunk| chunk.tool_calls.len()).collect::<Vec<_>>(), [0, 2, 2, 2, 1]);
        assert_eq!(chunks.iter().map(|chunk| chunk.text.as_str()).collect::<String>(), text);
        assert_eq!(chunks.iter().flat_map(|chunk| chunk.tool_calls.clone()).collect::<Vec<_>>(), calls);
        assert!(chunks.iter().all(|chunk| prost_len(chunk) < hermes_proto::MAX_MESSAGE_BYTES));
        assert_eq!(chunks.iter().map(|chunk| chunk.more).collect::<Vec<_>>(), [true, true, true, true, false]);
    }

    fn prost_len(chunk: &ModelMessage) -> usize {
        chunk.text.len() + chunk.tool_calls.iter().map(|call| call.arguments.len() + 64).sum::<usize>()
    }
}
