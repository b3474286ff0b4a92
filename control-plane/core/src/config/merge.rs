//! What applying a patch would make of a document, and how two documents differ.
//!
//! Called by `apply`, `diff` and `--config`. Always true: what a text names becomes as written, what it does not name
//! stays unless pruned, `main` exists in every result. It deliberately checks nothing; [`super::check`] judges the result.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use super::export::{Shape, shape};
use super::{AgentSpec, Document, Patch, cron};
use crate::AgentId;

impl Document {
    /// The document that applying `patch` gives. With `prune`, agents, providers and accounts that the patch does not
    /// name are dropped; `main` never is. So are jobs of an agent whose jobs the patch names, and no others.
    #[must_use]
    pub fn merged(&self, patch: &Patch, prune: bool) -> Self {
        let mut merged = self.clone();
        let patch = patch.clone();
        set(&mut merged.default_agent, patch.default_agent);
        set(&mut merged.model, patch.model);
        set(&mut merged.fallback_models, patch.fallback_models);
        set(&mut merged.budget, patch.budget);
        set(&mut merged.user_budget, patch.user_budget);
        set(&mut merged.web, patch.web);
        set(&mut merged.timezone, patch.timezone);
        set(&mut merged.group_sessions_per_user, patch.group_sessions_per_user);
        set(&mut merged.thread_sessions_per_user, patch.thread_sessions_per_user);
        set(&mut merged.session_reset, patch.session_reset);
        set(&mut merged.reset_by_type, patch.reset_by_type);
        set(&mut merged.reset_by_platform, patch.reset_by_platform);
        set(&mut merged.busy, patch.busy);
        set(&mut merged.sandbox, patch.sandbox);
        set(&mut merged.approvals, patch.approvals);
        set(&mut merged.curator, patch.curator);
        set(&mut merged.mcp_servers, patch.mcp_servers);
        set(&mut merged.limits.message_bytes, patch.limits.message_bytes);
        set(&mut merged.limits.history_bytes, patch.limits.history_bytes);
        set(&mut merged.limits.queued_per_agent, patch.limits.queued_per_agent);
        set(&mut merged.limits.queued_per_session, patch.limits.queued_per_session);
        set(&mut merged.limits.shed_after_seconds, patch.limits.shed_after_seconds);
        set(&mut merged.limits.inbound_per_second, patch.limits.inbound_per_second);
        set(&mut merged.limits.turn_seconds, patch.limits.turn_seconds);
        set(&mut merged.limits.stall_seconds, patch.limits.stall_seconds);
        merged.retention.patched(&patch.retention);
        set(&mut merged.default_provider, patch.default_provider);
        set(&mut merged.routes, patch.routes);
        merge_map(&mut merged.providers, patch.providers, prune);
        merge_accounts(&mut merged.platforms.telegram, patch.telegram, prune);
        merge_accounts(&mut merged.platforms.webhook, patch.webhook, prune);
        let main = merged.agents.get(crate::id::MAIN).cloned().unwrap_or_else(AgentSpec::default);
        merge_map(&mut merged.agents, patch.agents, prune);
        merged.agents.entry(AgentId::main()).or_insert(main);
        // An agent's jobs go with it.
        let Document { agents, cron: jobs, .. } = &mut merged;
        jobs.retain(|agent, _| agents.contains_key(agent));
        cron::merge(jobs, patch.cron, prune, agents);
        merged
    }
}

fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

fn merge_map<K: Ord, V>(stored: &mut BTreeMap<K, V>, named: BTreeMap<K, V>, prune: bool) {
    if prune {
        *stored = named;
    } else {
        stored.extend(named);
    }
}

fn merge_accounts<V>(stored: &mut IndexMap<String, V>, named: IndexMap<String, V>, prune: bool) {
    if prune {
        *stored = named;
    } else {
        stored.extend(named);
    }
}

/// What happens to one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It appears.
    Add,
    /// It gets another value.
    Change,
    /// It goes.
    Remove,
}

/// One difference between two documents. Values are one-line YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happens.
    pub kind: ChangeKind,
    /// For example `agents.coder.model`, `routes[3]` or `platforms.telegram.accounts[bot1].rate`.
    pub path: String,
    /// The value before; `None` when the path appears.
    pub before: Option<String>,
    /// The value after; `None` when the path goes.
    pub after: Option<String>,
}

/// What turns `before` into `after`, in the order of the exported text; empty when they are equal.
pub fn diff(before: &Document, after: &Document) -> Vec<Change> {
    let mut changes = Vec::new();
    if before != after {
        compare(&mut changes, String::new(), &shape(before), &shape(after));
    }
    changes
}

fn compare(changes: &mut Vec<Change>, path: String, before: &Shape, after: &Shape) {
    match (before, after) {
        (Shape::Map(old), Shape::Map(new)) => compare_named(changes, old, new, |key| match path.as_str() {
            "" => key.to_owned(),
            parent => format!("{parent}.{key}"),
        }),
        (Shape::Keyed(old), Shape::Keyed(new)) => {
            compare_named(changes, old, new, |key| format!("{path}[{key}]"));
        }
        (Shape::List(old), Shape::List(new)) => compare_lists(changes, &path, old, new),
        (old, new) if old == new => {}
        (old, new) => changes.push(change(path, Some(old), Some(new))),
    }
}

fn change(path: String, before: Option<&Shape>, after: Option<&Shape>) -> Change {
    let kind = match (before, after) {
        (None, _) => ChangeKind::Add,
        (_, None) => ChangeKind::Remove,
        _ => ChangeKind::Change,
    };
    Change { kind, path, before: before.map(ToString::to_string), after: after.map(ToString::to_string) }
}

fn compare_named(
    changes: &mut Vec<Change>,
    old: &[(String, Shape)],
    new: &[(String, Shape)],
    path: impl Fn(&str) -> String,
) {
    let by_name = |all: &'_ [(String, Shape)]| -> BTreeMap<String, usize> {
        all.iter().enumerate().map(|(index, (key, _))| (key.clone(), index)).collect()
    };
    let (old_at, new_at) = (by_name(old), by_name(new));
    for (key, value) in old {
        match new_at.get(key).and_then(|index| new.get(*index)) {
            Some((_, other)) => compare(changes, path(key), value, other),
            None => changes.push(change(path(key), Some(value), None)),
        }
    }
    for (key, value) in new.iter().filter(|(key, _)| !old_at.contains_key(key)) {
        changes.push(change(path(key), None, Some(value)));
    }
}

/// Lists are ordered: the equal head and tail are skipped, what lies between is compared by position. Indices are those of
/// the new list, of the old one for what goes.
fn compare_lists(changes: &mut Vec<Change>, path: &str, old: &[Shape], new: &[Shape]) {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old, new) = (old.get(head..).unwrap_or_default(), new.get(head..).unwrap_or_default());
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
    let old = old.get(..old.len() - tail).unwrap_or_default();
    let new = new.get(..new.len() - tail).unwrap_or_default();
    for index in 0..old.len().max(new.len()) {
        changes.push(change(format!("{path}[{}]", head + index), old.get(index), new.get(index)));
    }
}
