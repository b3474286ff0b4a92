//! Ids that people choose. An agent id is the only such text that touches a path, a metric label or a Kubernetes name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The agent that always exists.
pub const MAIN: &str = "main";

/// A registered agent's id: 1–40 characters, `[a-z0-9][a-z0-9_-]*`, the last one alphanumeric.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentId(String);

/// A text that is no agent id. The message quotes it (shortened, escaped) and states the grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{shown} is not an agent id: write 1 to 40 of a-z, 0-9, _ and -, first and last a letter or digit")]
pub struct InvalidAgentId {
    shown: String,
}

impl AgentId {
    /// Accepts exactly the grammar above.
    ///
    /// # Errors
    /// [`InvalidAgentId`], naming the text.
    pub fn parse(text: &str) -> Result<Self, InvalidAgentId> {
        let bytes = text.as_bytes();
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let inner = |b: &u8| alnum(*b) || *b == b'_' || *b == b'-';
        let ok = matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if alnum(*first) && alnum(*last))
            && bytes.len() <= 40
            && bytes.iter().all(inner);
        if ok {
            return Ok(Self(text.to_owned()));
        }
        let mut shown: String = text.chars().take(60).collect::<String>().escape_debug().collect();
        if text.chars().count() > 60 {
            shown.push('…');
        }
        Err(InvalidAgentId { shown: format!("\"{shown}\"") })
    }

    /// The agent `main`.
    pub fn main() -> Self {
        Self(MAIN.to_owned())
    }

    /// Whether this is `main`.
    pub fn is_main(&self) -> bool {
        self.0 == MAIN
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for AgentId {
    type Error = InvalidAgentId;
    fn try_from(text: String) -> Result<Self, InvalidAgentId> {
        Self::parse(&text)
    }
}

impl From<AgentId> for String {
    fn from(id: AgentId) -> Self {
        id.0
    }
}

impl std::borrow::Borrow<str> for AgentId {
    fn borrow(&self) -> &str {
        &self.0
    }
}
