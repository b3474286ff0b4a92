//! A step of a turn: one model reply, one tool call or one message taken in, as the journal keeps it.

use serde::{Deserialize, Serialize};

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// A model's reply that asks for tools.
    ModelReply,
    /// A call of a tool.
    ToolCall,
    /// A message that the running turn took in.
    Steering,
}

impl StepKind {
    /// The stable name that surfaces and metrics show.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ModelReply => "model_reply",
            Self::ToolCall => "tool_call",
            Self::Steering => "steering",
        }
    }
}

/// Before or after what a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// What is about to be done.
    Intent,
    /// What came of it.
    Result,
}

impl Phase {
    /// The stable name that surfaces show.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Result => "result",
        }
    }
}

/// What repeating a call would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Nothing.
    Pure,
    /// Nothing, under the same key.
    Idempotent,
    /// Nobody knows: it is never repeated.
    AtMostOnce,
}

impl Effect {
    /// The stable name that surfaces and metrics show.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Idempotent => "idempotent",
            Self::AtMostOnce => "at_most_once",
        }
    }
}
