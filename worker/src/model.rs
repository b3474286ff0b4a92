//! One model call through the broker: the tools and the conversation out in chunks, the answer back as deltas and tool calls.
//!
//! Called by a turn. Always true: no message is larger than a chunk, text is cut between characters only, and dropping
//! the future cancels the provider's call. It knows no model, provider or key: the control plane takes them from the
//! turn's pinned revision. It does not retry.

use std::sync::Arc;

use hermes_proto::v1::model_service_client::ModelServiceClient;
use hermes_proto::v1::{
    GenerateDone, GenerateHeader, GenerateRequest, ModelMessage, ModelRole, ToolCall, ToolSpec, generate_event,
    generate_request,
};
use tonic::transport::Channel;

use crate::connection::is_broken;

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
}

impl Message {
    /// Text only.
    pub fn new(role: ModelRole, text: impl Into<Arc<str>>) -> Self {
        Self { role, text: text.into(), tool_calls: Arc::default(), tool_call_id: Arc::default() }
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

/// Calls the model, offering it the tools, and feeds each piece of text to `deltas`. Returns at the last event.
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
        .chain(messages.into_iter().flat_map(parts))
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
            Some(generate_event::Event::Done(done)) => return Ok(Generated { done, tool_calls }),
            Some(generate_event::Event::Failed(failed)) => {
                return Err(Error::Failed { sentence: failed.message, reason: failed.reason });
            }
            Some(generate_event::Event::ToolCall(call)) => tool_calls.push(call),
            // An event of a later protocol is not for us.
            None => {}
        }
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

/// A message in chunks of at most [`hermes_proto::CHUNK_BYTES`] of text, at least one; its tool calls come after its text,
/// as many in one chunk as fit twice that.
fn parts(message: Message) -> impl Iterator<Item = generate_request::Part> {
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
        Some(generate_request::Part::Message(ModelMessage {
            role: message.role.into(),
            text,
            more,
            tool_calls: tool_calls.to_vec(),
            tool_call_id: message.tool_call_id.to_string(),
        }))
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

    fn chunks(text: &str) -> Vec<ModelMessage> {
        chunks_of(Message::new(ModelRole::User, text))
    }

    fn chunks_of(message: Message) -> Vec<ModelMessage> {
        let part = |part| match part {
            generate_request::Part::Message(message) => message,
            _ => panic!("only messages here"),
        };
        parts(message).map(part).collect()
    }

    #[test]
    fn long_text_is_cut_between_characters_and_complete() {
        let text = "é€𝄞x".repeat(100_000);
        let chunks = chunks(&text);
        assert!(chunks.len() > 3);
        assert!(chunks.iter().all(|chunk| chunk.text.len() <= hermes_proto::CHUNK_BYTES));
        assert_eq!(chunks.iter().map(|chunk| chunk.text.as_str()).collect::<String>(), text);
        let (last, before) = chunks.split_last().expect("not empty");
        assert!(!last.more && before.iter().all(|chunk| chunk.more));
    }

    #[test]
    fn short_and_empty_texts_are_one_message() {
        for text in ["", "hello"] {
            let chunks = chunks(text);
            assert_eq!(chunks.len(), 1);
            assert_eq!((chunks[0].text.as_str(), chunks[0].more), (text, false));
        }
    }

    #[test]
    fn many_long_tool_calls_follow_the_text_in_chunks_of_their_own() {
        let call = |id: usize| ToolCall { id: id.to_string(), name: "read".into(), arguments: "x".repeat(200_000) };
        let calls: Vec<_> = (0..7).map(call).collect();
        let text = "y".repeat(300_000);
        let message = Message { tool_calls: calls.clone().into(), ..Message::new(ModelRole::Assistant, text.as_str()) };
        let chunks = chunks_of(message);
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
