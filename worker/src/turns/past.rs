//! What an earlier attempt journaled of a turn, read in the order in which the turn asks for it.
//!
//! Fetched once, before the first step. Always true: a step is answered from here only when number and kind are those
//! that the turn has come to, and whatever does not fit (a gap, an unknown kind, a body that cannot be read, another call
//! than the model asked for) is [`Unclear`]: a turn never guesses what was done.

use std::collections::VecDeque;

use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_proto::v1::{Effect, FetchJournalRequest, ModelRole, StepKind, StepPhase, ToolCall, TurnRef, Usage};
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;

use crate::model::Message;

/// The journal does not say what was done.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal cannot be understood at step {step}: {why}")]
pub(super) struct Unclear {
    step: u32,
    why: &'static str,
}

#[derive(Debug)]
struct Row {
    step: u32,
    phase: StepPhase,
    kind: StepKind,
    effect: Effect,
    idempotency_key: String,
    body: Vec<u8>,
}

/// The rows not asked for yet.
#[derive(Debug, Default)]
pub(super) struct Past {
    rows: VecDeque<Row>,
}

/// A model's reply as journaled.
#[derive(Debug, PartialEq)]
pub(super) struct PastReply {
    pub(super) text: String,
    pub(super) tool_calls: Vec<ToolCall>,
    pub(super) usage: Option<Usage>,
    pub(super) reasoning: String,
}

/// What is known of a tool call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PastCall {
    /// Nothing: it has not begun.
    New,
    /// It may have begun, and nothing is known of its end.
    Begun { effect: Effect, idempotency_key: String },
    /// It ended with this text for the model.
    Ended(String),
}

/// The call as an intent's body holds it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CallBody {
    id: String,
    name: String,
    arguments: String,
}

impl From<ToolCall> for CallBody {
    fn from(ToolCall { id, name, arguments }: ToolCall) -> Self {
        Self { id, name, arguments }
    }
}

impl From<CallBody> for ToolCall {
    fn from(CallBody { id, name, arguments }: CallBody) -> Self {
        Self { id, name, arguments }
    }
}

#[derive(Debug, Deserialize)]
struct ReplyBody {
    #[serde(default)]
    text: String,
    #[serde(default)]
    tool_calls: Vec<CallBody>,
    #[serde(default)]
    usage: Option<UsageBody>,
    #[serde(default)]
    reasoning: String,
}

#[derive(Debug, Deserialize)]
struct UsageBody {
    #[serde(default)]
    input_tokens: u64,
    #[serde(default)]
    output_tokens: u64,
    #[serde(default)]
    cached_tokens: u64,
    #[serde(default)]
    cost_usd: Option<f64>,
    #[serde(default)]
    model: String,
}

/// The reply whose body stands in a journal, as a part of the conversation; `None` where it cannot be read.
pub(crate) fn reply_that_asked(body: &[u8]) -> Option<Message> {
    let ReplyBody { text, tool_calls, .. } = serde_json::from_slice(body).ok()?;
    Some(Message {
        tool_calls: tool_calls.into_iter().map(ToolCall::from).collect(),
        ..Message::new(ModelRole::Assistant, text)
    })
}

/// What is known of the prompt of a program that answers the turn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PastPrompt {
    /// Nothing: it was not prompted.
    New,
    /// It was, and nothing is known of its end.
    Begun,
    /// It answered this.
    Answered(String),
}

/// The call that stands for the prompt of a program in the journal.
pub(super) const PROMPT: &str = "acp_prompt";

/// A message that was taken in while the turn ran.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SteeringBody {
    pub(super) text: String,
}

impl Past {
    /// Fetches the turn's journal.
    ///
    /// # Errors
    /// The status of the call, or data loss when a row changes between its chunks.
    pub(super) async fn fetch(channel: Channel, turn: TurnRef) -> Result<Self, tonic::Status> {
        let mut client = WorkerServiceClient::new(channel).max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES);
        let mut chunks = client.fetch_journal(FetchJournalRequest { turn: Some(turn) }).await?.into_inner();
        let mut rows = VecDeque::new();
        let mut open: Option<Row> = None;
        while let Some(chunk) = chunks.message().await? {
            let (phase, kind, effect) = (chunk.phase(), chunk.kind(), chunk.effect());
            let row = match open.take() {
                Some(row) if row.step != chunk.step || row.phase != phase => {
                    return Err(tonic::Status::data_loss("a journaled row changed between its chunks"));
                }
                Some(mut row) => {
                    row.body.extend_from_slice(&chunk.body);
                    row
                }
                None => {
                    let (step, idempotency_key) = (chunk.step, chunk.idempotency_key);
                    Row { step, phase, kind, effect, idempotency_key, body: chunk.body }
                }
            };
            if chunk.more {
                open = Some(row);
            } else {
                rows.push_back(row);
            }
        }
        if open.is_some() {
            return Err(tonic::Status::unavailable("the journal broke off inside a row"));
        }
        Ok(Self { rows })
    }

    /// The model's reply that is step `step`; `None` when the journal ends before it.
    pub(super) fn model_reply(&mut self, step: u32) -> Result<Option<PastReply>, Unclear> {
        let Some(row) = self.rows.pop_front() else {
            return Ok(None);
        };
        if (row.step, row.kind, row.phase) != (step, StepKind::ModelReply, StepPhase::Result) {
            return Err(Unclear { step, why: "a model's reply should be here" });
        }
        let unreadable = Unclear { step, why: "the model's reply cannot be read" };
        let body: ReplyBody = serde_json::from_slice(&row.body).map_err(|_| unreadable)?;
        let usage = body.usage.map(|usage| Usage {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cached_tokens: usage.cached_tokens,
            cost_usd: usage.cost_usd,
            model: usage.model,
        });
        let tool_calls = body.tool_calls.into_iter().map(ToolCall::from).collect();
        Ok(Some(PastReply { text: body.text, tool_calls, usage, reasoning: body.reasoning }))
    }

    /// Whether step `step` is a tool call whose beginning or end is known.
    pub(super) fn is_tool_call(&self, step: u32) -> bool {
        self.rows.front().is_some_and(|row| row.step == step && row.kind == StepKind::ToolCall)
    }

    /// What is known of `call`, which is step `step`.
    pub(super) fn tool_call(&mut self, step: u32, call: &ToolCall) -> Result<PastCall, Unclear> {
        match self.rows.front() {
            None => return Ok(PastCall::New),
            Some(row) if row.step == step && row.kind == StepKind::ToolCall => {}
            Some(_) => return Err(Unclear { step, why: "a tool call should be here" }),
        }
        let mut intent = None;
        if let Some(row) = self.rows.pop_front_if(|row| row.phase == StepPhase::Intent) {
            let same = serde_json::from_slice(&row.body).is_ok_and(|body: CallBody| body == call.clone().into());
            if !same {
                return Err(Unclear { step, why: "the tool call is not the one that the model asked for" });
            }
            intent = Some(row);
        }
        if let Some(row) = self.rows.pop_front_if(|row| row.step == step && row.kind == StepKind::ToolCall) {
            if row.phase != StepPhase::Result {
                return Err(Unclear { step, why: "a tool call's result should be here" });
            }
            return Ok(PastCall::Ended(String::from_utf8_lossy(&row.body).into_owned()));
        }
        match intent {
            Some(row) if self.rows.is_empty() => {
                Ok(PastCall::Begun { effect: row.effect, idempotency_key: row.idempotency_key })
            }
            _ => Err(Unclear { step, why: "steps follow a tool call without a result" }),
        }
    }

    /// What is known of the prompt of the program that answers the turn, which is step `step`; what it did meanwhile are the steps behind.
    pub(super) fn prompt(&self, step: u32) -> Result<PastPrompt, Unclear> {
        let Some(first) = self.rows.front() else {
            return Ok(PastPrompt::New);
        };
        let is_prompt = |body: CallBody| body.name == PROMPT;
        let begins = (first.step, first.kind, first.phase) == (step, StepKind::ToolCall, StepPhase::Intent)
            && serde_json::from_slice(&first.body).is_ok_and(is_prompt);
        if !begins {
            return Err(Unclear { step, why: "the prompt of a program should be here" });
        }
        let answer = self.rows.iter().find(|row| row.step == step && row.phase == StepPhase::Result);
        Ok(answer
            .map_or(PastPrompt::Begun, |row| PastPrompt::Answered(String::from_utf8_lossy(&row.body).into_owned())))
    }

    /// The message that was taken in as step `step`; `None` when that step is none.
    pub(super) fn steering(&mut self, step: u32) -> Result<Option<String>, Unclear> {
        let Some(row) = self.rows.pop_front_if(|row| row.step == step && row.kind == StepKind::Steering) else {
            return Ok(None);
        };
        let body: Result<SteeringBody, _> = serde_json::from_slice(&row.body);
        body.map(|body| Some(body.text))
            .map_err(|_| Unclear { step, why: "a message that was taken in cannot be read" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u32, kind: StepKind, phase: StepPhase, body: &str) -> Row {
        let (effect, idempotency_key) = (Effect::AtMostOnce, "key".to_owned());
        Row { step, phase, kind, effect, idempotency_key, body: body.as_bytes().to_vec() }
    }

    fn past(rows: impl IntoIterator<Item = Row>) -> Past {
        Past { rows: rows.into_iter().collect() }
    }

    fn call() -> ToolCall {
        ToolCall { id: "a".into(), name: "read".into(), arguments: "{}".into() }
    }

    const REPLY: &str = r#"{"text":"I look","tool_calls":[{"id":"a","name":"read","arguments":"{}"}],"usage":{"input_tokens":3,"later":1}}"#;
    const CALL: &str = r#"{"id":"a","name":"read","arguments":"{}"}"#;

    #[test]
    fn a_whole_turn_is_read_step_by_step() {
        use {StepKind as Kind, StepPhase as Phase};
        let mut past = past([
            row(0, Kind::ModelReply, Phase::Result, REPLY),
            row(1, Kind::ToolCall, Phase::Intent, CALL),
            row(1, Kind::ToolCall, Phase::Result, "found"),
            row(2, Kind::Steering, Phase::Result, r#"{"text":"and now"}"#),
            row(3, Kind::ModelReply, Phase::Result, REPLY),
            row(4, Kind::ToolCall, Phase::Intent, CALL),
        ]);
        let reply = past.model_reply(0).unwrap().unwrap();
        assert_eq!((reply.text.as_str(), reply.tool_calls.as_slice()), ("I look", &[call()][..]));
        assert_eq!(reply.usage.unwrap().input_tokens, 3);
        assert_eq!(past.tool_call(1, &call()), Ok(PastCall::Ended("found".into())));
        assert_eq!(past.steering(2), Ok(Some("and now".into())));
        assert_eq!(past.steering(3), Ok(None));
        assert!(past.model_reply(3).unwrap().is_some());
        let begun = PastCall::Begun { effect: Effect::AtMostOnce, idempotency_key: "key".into() };
        assert_eq!(past.tool_call(4, &call()), Ok(begun));
        assert_eq!(past.tool_call(5, &call()), Ok(PastCall::New));
        assert_eq!(past.model_reply(6), Ok(None));
    }

    #[test]
    fn a_prompt_of_a_program_is_known_by_its_first_step() {
        use {StepKind as Kind, StepPhase as Phase};
        let intent = || row(0, Kind::ToolCall, Phase::Intent, r#"{"id":"p","name":"acp_prompt","arguments":"{}"}"#);
        let did = || row(1, Kind::ToolCall, Phase::Result, "{}");
        assert_eq!(past([]).prompt(0), Ok(PastPrompt::New));
        assert_eq!(past([intent(), did()]).prompt(0), Ok(PastPrompt::Begun));
        let answered = past([intent(), row(0, Kind::ToolCall, Phase::Result, "done"), did()]);
        assert_eq!(answered.prompt(0), Ok(PastPrompt::Answered("done".into())));
        assert!(past([row(0, Kind::ToolCall, Phase::Intent, CALL)]).prompt(0).is_err());
        assert!(past([row(0, Kind::ModelReply, Phase::Result, REPLY)]).prompt(0).is_err());
    }

    #[test]
    fn what_does_not_fit_is_not_guessed() {
        use {StepKind as Kind, StepPhase as Phase};
        assert!(past([row(1, Kind::ModelReply, Phase::Result, REPLY)]).model_reply(0).is_err(), "a gap");
        assert!(past([row(0, Kind::Unspecified, Phase::Result, REPLY)]).model_reply(0).is_err(), "an unknown kind");
        assert!(past([row(0, Kind::ModelReply, Phase::Intent, REPLY)]).model_reply(0).is_err());
        assert!(past([row(0, Kind::ModelReply, Phase::Result, "{")]).model_reply(0).is_err());
        let other = ToolCall { arguments: r#"{"path":"/"}"#.into(), ..call() };
        assert!(past([row(1, Kind::ToolCall, Phase::Intent, CALL)]).tool_call(1, &other).is_err());
        assert!(past([row(2, Kind::ToolCall, Phase::Result, "x")]).tool_call(1, &call()).is_err());
        let hole = [row(1, Kind::ToolCall, Phase::Intent, CALL), row(2, Kind::ToolCall, Phase::Result, "x")];
        assert!(past(hole).tool_call(1, &call()).is_err());
        assert!(past([row(1, Kind::Steering, Phase::Result, "hello")]).steering(1).is_err());
    }
}
