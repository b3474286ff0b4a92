//! First match wins: the strict route table, its decision, its explanation and its shadow warnings (architecture §5).

use serde::{Deserialize, Serialize};

use crate::AgentId;

/// A property of a source that a route may name, in the canonical order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchKey {
    /// Platform name.
    Platform,
    /// Account id.
    Account,
    /// Chat id.
    ChatId,
    /// Thread id.
    ThreadId,
    /// Parent chat id.
    ParentChatId,
    /// Chat type.
    ChatType,
    /// User id.
    UserId,
    /// Alternative user id.
    UserIdAlt,
    /// Guild id.
    GuildId,
}

/// One row of the table: all keys must hold, compared exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Keys and values in the order written; no key twice; never empty.
    #[serde(rename = "match")]
    pub keys: Vec<(MatchKey, String)>,
    /// Who answers.
    pub agent: AgentId,
}
