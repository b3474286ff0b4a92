//! First match wins: the strict route table, its decision, its explanation and its shadow warnings (architecture §5).
//!
//! Called by intake for every message, by the registry when a table changes, and by hermesctl's offline `route explain`.
//! A compiled [`RouteTable`] owns its routes and is immutable; a change is a new table. Always true: the decision equals
//! a walk in the order written; its cost grows with the number of distinct key sets, not of routes, because routes are
//! grouped by their set of keys and each group is looked up by hash. It deliberately knows neither whether an agent is
//! registered (the document's check does) nor where a table is stored.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{AgentId, Source};

/// Most entries an [`Explanation`] lists.
pub const EXPLAIN_LIMIT: usize = 1000;

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

impl MatchKey {
    /// All keys in the canonical order.
    pub const ALL: [Self; 9] = [
        Self::Platform,
        Self::Account,
        Self::ChatId,
        Self::ThreadId,
        Self::ParentChatId,
        Self::ChatType,
        Self::UserId,
        Self::UserIdAlt,
        Self::GuildId,
    ];

    /// The name written in documents and on command lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Account => "account",
            Self::ChatId => "chat_id",
            Self::ThreadId => "thread_id",
            Self::ParentChatId => "parent_chat_id",
            Self::ChatType => "chat_type",
            Self::UserId => "user_id",
            Self::UserIdAlt => "user_id_alt",
            Self::GuildId => "guild_id",
        }
    }

    /// The key of exactly this name.
    ///
    /// # Errors
    /// [`InvalidRoute::UnknownKey`], with the nearest key.
    pub fn parse(name: &str) -> Result<Self, InvalidRoute> {
        Self::ALL
            .into_iter()
            .find(|key| key.as_str() == name)
            .ok_or_else(|| InvalidRoute::UnknownKey { shown: crate::config::shown(name), hint: key_hint(name) })
    }

    /// What the source says for this key; `None` when the platform did not say, which no route value equals.
    pub fn value(self, source: &Source) -> Option<&str> {
        match self {
            Self::Platform => Some(&source.platform),
            Self::Account => source.account.as_deref(),
            Self::ChatId => Some(&source.chat_id),
            Self::ThreadId => source.thread_id.as_deref(),
            Self::ParentChatId => source.parent_chat_id.as_deref(),
            Self::ChatType => Some(&source.chat_type),
            Self::UserId => source.user_id.as_deref(),
            Self::UserIdAlt => source.user_id_alt.as_deref(),
            Self::GuildId => source.guild_id.as_deref(),
        }
    }

    const fn bit(self) -> KeySet {
        1 << (self as u16)
    }
}

impl fmt::Display for MatchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What to write instead of an unknown match key.
fn key_hint(name: &str) -> String {
    let near = match name {
        "topic_id" | "topic" => Some("thread_id"),
        "scope_id" => Some("guild_id"),
        "bot" | "account_id" => Some("account"),
        other => crate::config::nearest(other, MatchKey::ALL.iter().map(|key| key.as_str())),
    };
    match near {
        Some(near) => format!("did you mean {near}?"),
        None => format!("the keys are {}", MatchKey::ALL.map(MatchKey::as_str).join(", ")),
    }
}

/// Why keys, values and an agent do not make a route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRoute {
    /// No key has this name.
    #[error("unknown match key {shown}; {hint}")]
    UnknownKey {
        /// The name, quoted.
        shown: String,
        /// What to write instead.
        hint: String,
    },
    /// A match without keys would take every message.
    #[error("an empty match would take every message; name at least one key, or set default_agent")]
    Empty,
    /// One key twice.
    #[error("match key {0} is written twice; keep one")]
    Repeated(MatchKey),
    /// The agent's id breaks the grammar.
    #[error(transparent)]
    Agent(#[from] crate::id::InvalidAgentId),
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

impl Route {
    /// A route from names and values as a command line or a request gives them.
    ///
    /// # Errors
    /// [`InvalidRoute`]: unknown, repeated or no keys, or an agent id that breaks the grammar.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>, agent: &str) -> Result<Self, InvalidRoute> {
        let mut keys: Vec<(MatchKey, String)> = Vec::new();
        for (name, value) in pairs {
            let key = MatchKey::parse(name)?;
            if keys.iter().any(|(known, _)| *known == key) {
                return Err(InvalidRoute::Repeated(key));
            }
            keys.push((key, value.to_owned()));
        }
        if keys.is_empty() {
            return Err(InvalidRoute::Empty);
        }
        Ok(Self { keys, agent: AgentId::parse(agent)? })
    }

    /// The first key, in the order written, that does not hold; `None` when the route matches.
    pub fn first_failed(&self, source: &Source) -> Option<MatchKey> {
        self.keys.iter().find(|(key, value)| key.value(source) != Some(value.as_str())).map(|(key, _)| *key)
    }

    fn key_set(&self) -> KeySet {
        self.keys.iter().fold(0, |set, (key, _)| set | key.bit())
    }

    fn value_of(&self, wanted: MatchKey) -> Option<&str> {
        self.keys.iter().find(|(key, _)| *key == wanted).map(|(_, value)| value.as_str())
    }
}

/// A set of match keys, one bit each.
type KeySet = u16;

/// The routes that name one and the same set of keys.
#[derive(Clone, Debug)]
struct Group {
    set: KeySet,
    keys: Vec<MatchKey>,
    /// Lowest index of the group.
    first: usize,
    /// Encoded values in canonical key order → lowest index with them.
    lowest: HashMap<Box<[u8]>, usize>,
}

/// An immutable route table compiled for lookup.
#[derive(Clone, Debug)]
pub struct RouteTable {
    routes: Arc<[Route]>,
    /// Ordered by `first`, so that a lookup can stop early.
    groups: Vec<Group>,
}

/// Appends one value so that no two different tuples encode alike.
fn encode(buffer: &mut Vec<u8>, value: &str) {
    buffer.extend_from_slice(&value.len().to_le_bytes());
    buffer.extend_from_slice(value.as_bytes());
}

impl RouteTable {
    /// Groups the routes. A route with an empty match, which strict loading refuses, never matches.
    pub fn compile(routes: Arc<[Route]>) -> Self {
        let mut by_set: HashMap<KeySet, Group> = HashMap::new();
        for (index, route) in routes.iter().enumerate() {
            let set = route.key_set();
            // A repeated key cannot hold two values; such a route is not indexed and so never matches.
            if set == 0 || usize::try_from(set.count_ones()) != Ok(route.keys.len()) {
                continue;
            }
            let group = by_set.entry(set).or_insert_with(|| Group {
                set,
                keys: MatchKey::ALL.into_iter().filter(|key| set & key.bit() != 0).collect(),
                first: index,
                lowest: HashMap::new(),
            });
            let mut values = Vec::with_capacity(24 * group.keys.len());
            for key in &group.keys {
                encode(&mut values, route.value_of(*key).unwrap_or_default());
            }
            group.lowest.entry(values.into_boxed_slice()).or_insert(index);
        }
        let mut groups: Vec<Group> = by_set.into_values().collect();
        groups.sort_unstable_by_key(|group| group.first);
        Self { routes, groups }
    }

    /// The routes in the order written.
    pub fn routes(&self) -> &Arc<[Route]> {
        &self.routes
    }

    /// Number of distinct key sets; the cost of [`Self::decide`] grows with it.
    pub fn key_sets(&self) -> usize {
        self.groups.len()
    }

    /// Index of the first route that matches.
    pub fn decide(&self, source: &Source) -> Option<usize> {
        self.lowest_before(usize::MAX, |key| key.value(source), |_| true)
    }

    /// The lowest index below `bound` whose keys all have the given values, looking only into admitted groups.
    fn lowest_before<'a>(
        &self,
        bound: usize,
        value: impl Fn(MatchKey) -> Option<&'a str>,
        admitted: impl Fn(&Group) -> bool,
    ) -> Option<usize> {
        let mut best = bound;
        let mut tuple = Vec::with_capacity(128);
        for group in &self.groups {
            if group.first >= best {
                break;
            }
            if !admitted(group) {
                continue;
            }
            tuple.clear();
            let complete = group.keys.iter().all(|key| value(*key).map(|text| encode(&mut tuple, text)).is_some());
            if complete && let Some(index) = group.lowest.get(tuple.as_slice()) {
                best = best.min(*index);
            }
        }
        (best < bound).then_some(best)
    }

    /// The first earlier route that takes every message this one could take; `None` for an unknown index too.
    pub fn shadow_of(&self, index: usize) -> Option<usize> {
        let route = self.routes.get(index)?;
        let set = route.key_set();
        self.lowest_before(index, |key| route.value_of(key), |group| group.set & !set == 0)
    }

    /// Every route that can never win with the first route that covers it, by the index: `(shadowed, by)`.
    pub fn shadows(&self) -> Vec<(usize, usize)> {
        (0..self.routes.len()).filter_map(|index| self.shadow_of(index).map(|by| (index, by))).collect()
    }
}

/// What settled who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecidedBy {
    /// The agent was already set on the source.
    Preset,
    /// The `select_agent` hook.
    Hook,
    /// A route.
    Route,
    /// Nothing else did: `default_agent`, which is `main` unless configured.
    Default,
}

impl DecidedBy {
    /// The stable name that surfaces show.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preset => "preset",
            Self::Hook => "hook",
            Self::Route => "route",
            Self::Default => "default",
        }
    }
}

/// Who answers a message and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteDecision {
    /// Who answers.
    pub agent: AgentId,
    /// What settled it.
    pub decided_by: DecidedBy,
    /// The route, exactly when a route settled it.
    pub route_index: Option<usize>,
}

/// Applies the precedence: preset, then hook, then route, then `default_agent`.
pub fn resolve(
    table: &RouteTable,
    default_agent: &AgentId,
    preset: Option<&AgentId>,
    hook: Option<&AgentId>,
    source: &Source,
) -> RouteDecision {
    let set = |agent: &AgentId, decided_by| RouteDecision { agent: agent.clone(), decided_by, route_index: None };
    if let Some(agent) = preset {
        return set(agent, DecidedBy::Preset);
    }
    if let Some(agent) = hook {
        return set(agent, DecidedBy::Hook);
    }
    match table.decide(source).and_then(|index| table.routes.get(index).map(|route| (index, route))) {
        Some((index, route)) => RouteDecision { route_index: Some(index), ..set(&route.agent, DecidedBy::Route) },
        None => set(default_agent, DecidedBy::Default),
    }
}

/// How one route stands towards a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteVerdict {
    /// Index in the table.
    pub index: usize,
    /// Whether all its keys hold.
    pub matched: bool,
    /// The first key, in the order written, that does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_key: Option<MatchKey>,
}

/// A decision with every route's verdict; serialises as `route explain -o json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The decision.
    #[serde(flatten)]
    pub decision: RouteDecision,
    /// At most [`EXPLAIN_LIMIT`] verdicts in table order, the first matching route always among them.
    pub routes: Vec<RouteVerdict>,
    /// Whether routes were left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// Answers for a source without sending anything; the arguments are those of [`resolve`].
pub fn explain(
    table: &RouteTable,
    default_agent: &AgentId,
    preset: Option<&AgentId>,
    hook: Option<&AgentId>,
    source: &Source,
) -> Explanation {
    let winner = table.decide(source);
    let total = table.routes.len();
    let truncated = total > EXPLAIN_LIMIT;
    let mut indices: Vec<usize> = (0..total.min(EXPLAIN_LIMIT)).collect();
    if let (Some(winner), Some(last)) = (winner, indices.last_mut())
        && winner > *last
    {
        *last = winner;
    }
    let verdict = |index: usize| {
        let failed_key = table.routes.get(index)?.first_failed(source);
        Some(RouteVerdict { index, matched: failed_key.is_none(), failed_key })
    };
    Explanation {
        decision: resolve(table, default_agent, preset, hook, source),
        routes: indices.into_iter().filter_map(verdict).collect(),
        truncated,
    }
}

#[cfg(test)]
mod tests;
