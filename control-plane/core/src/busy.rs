//! What a message does to the turn that already runs in its session.
//!
//! Called by intake, which hands the decision to the store in the message's own commit. It owns nothing. Always true: the
//! most specific rule decides, whatever the order in which rules were written. It deliberately does not know what runs: only
//! the commit does.

use serde::{Deserialize, Serialize};

use crate::AgentId;

/// What a message does to the running turn of its session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusyMode {
    /// Nothing: it waits for its turn.
    #[default]
    Queue,
    /// It ends the running turn as cancelled and goes next.
    Interrupt,
    /// It is offered to the running turn, which may take it in at its next step; else it waits for its turn.
    Steer,
}

impl BusyMode {
    /// All modes, in the order documents list them.
    pub const ALL: [Self; 3] = [Self::Queue, Self::Interrupt, Self::Steer];

    /// The name written in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Interrupt => "interrupt",
            Self::Steer => "steer",
        }
    }

    /// The mode of exactly this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == name)
    }

    /// What a chat is told of a message that met a running turn.
    pub const fn notice(self) -> &'static str {
        match self {
            Self::Queue => "I am still busy with your last message; this one is next.",
            Self::Interrupt => "I am stopping what I was doing; this message goes first.",
            Self::Steer => "I will take this into account at my next step.",
        }
    }
}

/// A mode, and whether the chat is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusyPolicy {
    /// What a message does.
    pub mode: BusyMode,
    /// Whether the chat gets a short acknowledgement. Default: not for `queue`.
    pub notice: bool,
}

impl BusyPolicy {
    /// A mode with the notice as written, or that mode's default.
    pub fn new(mode: BusyMode, notice: Option<bool>) -> Self {
        Self { mode, notice: notice.unwrap_or(mode != BusyMode::Queue) }
    }
}

/// A policy for the messages of one agent, one platform, or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusyRule {
    /// The agent that answers; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// The platform the message came from; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// What holds for them.
    #[serde(flatten)]
    pub policy: BusyPolicy,
}

/// The document's `busy` section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Busy {
    /// For messages that no rule names.
    #[serde(flatten)]
    pub policy: BusyPolicy,
    /// No two name the same agent and platform.
    pub rules: Vec<BusyRule>,
}

/// The platform name of calls that wait for their own answer over HTTP: they queue unless a rule names the platform.
const WAITING_CALLERS: &str = "api_server";

impl Busy {
    /// What holds for a message from `platform` to `agent`: the rule that names both, else the agent's, else the platform's,
    /// else the default. Calls of the HTTP API queue unless a rule names their platform.
    pub fn select(&self, agent: &AgentId, platform: &str) -> BusyPolicy {
        let matching = self.rules.iter().filter(|rule| {
            rule.agent.as_ref().is_none_or(|named| named == agent)
                && rule.platform.as_ref().is_none_or(|named| named == platform)
                && (platform != WAITING_CALLERS || rule.platform.is_some())
        });
        let weight = |rule: &&BusyRule| 2 * u8::from(rule.agent.is_some()) + u8::from(rule.platform.is_some());
        match matching.max_by_key(weight) {
            Some(rule) => rule.policy,
            None if platform == WAITING_CALLERS => BusyPolicy::default(),
            None => self.policy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_rule_wins_in_any_order() {
        let id = |text: &str| AgentId::parse(text).unwrap();
        let rule = |agent: Option<&str>, platform: Option<&str>, mode| BusyRule {
            agent: agent.map(id),
            platform: platform.map(str::to_owned),
            policy: BusyPolicy::new(mode, None),
        };
        let mut busy = Busy {
            policy: BusyPolicy::new(BusyMode::Interrupt, Some(false)),
            rules: vec![
                rule(None, Some("slack"), BusyMode::Queue),
                rule(Some("coder"), Some("slack"), BusyMode::Interrupt),
                rule(Some("coder"), None, BusyMode::Steer),
            ],
        };
        for _ in 0..2 {
            assert_eq!(busy.select(&id("coder"), "slack").mode, BusyMode::Interrupt);
            assert_eq!(busy.select(&id("coder"), "irc").mode, BusyMode::Steer);
            assert_eq!(busy.select(&id("main"), "slack").mode, BusyMode::Queue);
            assert_eq!(busy.select(&id("main"), "irc"), BusyPolicy { mode: BusyMode::Interrupt, notice: false });
            // Callers that wait for their answer are not interrupted by a general rule.
            assert_eq!(busy.select(&id("coder"), "api_server").mode, BusyMode::Queue);
            busy.rules.reverse();
        }
        busy.rules.push(rule(None, Some("api_server"), BusyMode::Steer));
        assert_eq!(busy.select(&id("coder"), "api_server").mode, BusyMode::Steer);
    }

    #[test]
    fn only_queueing_is_silent_unless_told() {
        assert!(!BusyPolicy::default().notice);
        let of = |mode| BusyPolicy::new(mode, None).notice;
        assert_eq!(BusyMode::ALL.map(of), [false, true, true]);
        assert!(BusyPolicy::new(BusyMode::Queue, Some(true)).notice);
    }
}
