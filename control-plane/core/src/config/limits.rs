//! Bounds of messages, turns and queues: what the key `limits` comes to.

use serde::{Deserialize, Serialize};

/// Bounds of what is accepted and shown to a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Largest accepted message, bytes of UTF-8. Default 262144.
    pub message_bytes: u64,
    /// Most history given to a model, bytes of text; a longer one is summed up, all but its newest turns. Default 65536, about 16,000 tokens: every turn
    /// pays for its history again.
    pub history_bytes: u64,
    /// How long one attempt at a turn may take, seconds; then the turn is ended and its chat told. Default 1800.
    pub turn_seconds: u64,
    /// How long a running turn may show no sign of progress (a model event, a step, text, a sign of life of a tool), seconds;
    /// then it is ended as above. Default 600.
    pub stall_seconds: u64,
    /// Most turns of one agent that wait; further messages are refused. Default 10000.
    pub queued_per_agent: u64,
    /// Most turns of one session that have not ended, the running one included; further messages are refused. Default 100.
    pub queued_per_session: u64,
    /// An agent of which a session has waited longer than this, seconds, takes no further messages from the APIs, whose callers can
    /// come back; 0: never mind. Default 600.
    pub shed_after_seconds: u64,
    /// Most messages that one platform account brings in a second, on average over five; more stay at the platform, or are
    /// told to come back. 0: no bound. Default 1000.
    pub inbound_per_second: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 262_144,
            history_bytes: 65_536,
            turn_seconds: 1800,
            stall_seconds: 600,
            queued_per_agent: 10_000,
            queued_per_session: 100,
            shed_after_seconds: 600,
            inbound_per_second: 1000,
        }
    }
}
