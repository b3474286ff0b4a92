//! A turn: one input and its answer. What intake stores, what the worker is given, and how a turn can end.

use serde::{Deserialize, Serialize};

/// Who said a message of a history that came with the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions of the caller.
    System,
    /// The human side.
    User,
    /// The agent's side.
    Assistant,
}

/// One message of a history that came with the input (stateless API calls).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryMessage {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub text: String,
}

/// The body of a turn, stored as JSON bytes and handed to the worker as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnInput {
    /// What the user said; in a shared session it already carries the `[name] ` prefix.
    pub text: String,
    /// Messages before `text`. When present they are the whole history and the session's own transcript is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Vec<HistoryMessage>>,
    /// What the agent may know of where this came from; absent for plain API calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<crate::Source>,
}

impl TurnInput {
    /// Several inputs as one: the first, with the texts of the others behind its own.
    pub fn joined(all: impl IntoIterator<Item = Self>) -> Option<Self> {
        all.into_iter().reduce(|mut one, next| {
            one.text.push_str("\n\n");
            one.text.push_str(&next.text);
            one
        })
    }
}

/// How a turn stands. The first two follow from its session; the others are recorded when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TurnState {
    /// Accepted, not begun.
    Queued,
    /// A worker has it.
    Running,
    /// Answered.
    Succeeded,
    /// The agent or its model failed; the reply says so.
    Failed,
    /// Cancelled, with a notice.
    Cancelled,
    /// Given up after repeated crashes; the chat was told.
    Dead,
}

impl TurnState {
    /// Whether the turn has ended.
    pub fn is_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// The stable name that surfaces show.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Dead => "dead",
        }
    }
}

/// What a turn's model calls used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read, cached ones included.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Tokens read from the provider's cache.
    pub cached_tokens: u64,
    /// US dollars, where known.
    pub cost_usd: Option<f64>,
    /// The model that answered, as configured.
    pub model: String,
}
