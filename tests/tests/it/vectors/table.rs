//! A row's route table as the document a user would have written, and what the strict loader must say of it.

use std::collections::{BTreeMap, BTreeSet};

use hermes_core::AgentId;
use hermes_core::config::{Document, Fault, load_offline};
use hermes_core::routing::{MatchKey, RouteTable};
use serde_json::{Value, json};

/// Loads `routes` and `default` of a row through the loader that documents use, every agent the row names registered.
/// `yaml` is the table's own text where the row gives one.
pub(super) fn load(routes: &Value, yaml: Option<&str>, default: &Value) -> Result<(Document, RouteTable), Vec<Fault>> {
    let ids = routes.as_array().into_iter().flatten().filter_map(|route| route.get("agent")?.as_str());
    let ids = ids.chain(default.as_str()).filter(|id| AgentId::parse(id).is_ok());
    let agents: BTreeMap<&str, Value> = ids.map(|id| (id, json!({}))).collect();
    let mut text = format!("agents: {}\n", json!(agents));
    if !default.is_null() {
        text.push_str(&format!("default_agent: {default}\n"));
    }
    match yaml {
        Some(yaml) => text.push_str(&format!("routes:\n{yaml}\n")),
        None => text.push_str(&format!("routes: {routes}\n")),
    }
    let (document, _) = load_offline(&text)?;
    let table = RouteTable::compile(document.routes.as_slice().into());
    Ok((document, table))
}

/// Which routes break the strict rules, judged from the row alone.
pub(super) fn offending(routes: &Value) -> BTreeSet<usize> {
    let bad_value = |value: &Value| !(value.is_string() || value.is_i64() || value.is_u64());
    let bad_match = |keys: &Value| match keys.as_object() {
        Some(keys) => {
            keys.is_empty() || keys.iter().any(|(key, value)| MatchKey::parse(key).is_err() || bad_value(value))
        }
        None => true,
    };
    let bad_agent = |agent: &Value| agent.as_str().is_none_or(|id| AgentId::parse(id).is_err());
    let bad = |route: &Value| match route.as_object() {
        Some(route) => {
            route.keys().any(|key| key != "match" && key != "agent")
                || bad_match(route.get("match").unwrap_or(&Value::Null))
                || bad_agent(route.get("agent").unwrap_or(&Value::Null))
        }
        None => true,
    };
    routes
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
        .filter(|(_, route)| bad(route))
        .map(|(index, _)| index)
        .collect()
}

/// The indices of the routes that faults name.
pub(super) fn named(faults: &[Fault]) -> BTreeSet<usize> {
    let index = |fault: &Fault| fault.path.strip_prefix("routes[")?.split(']').next()?.parse().ok();
    faults.iter().filter_map(index).collect()
}

/// A row that must be refused was: with a fault for exactly the offending routes, or, where no route is at fault, one for
/// the table or the default agent.
pub(super) fn refused(faults: &[Fault], routes: &Value) -> Result<(), String> {
    let offending = offending(routes);
    super::same("the set of refused routes", &named(faults), &offending)?;
    let elsewhere = |fault: &Fault| fault.path == "routes" || fault.path == "default_agent";
    if offending.is_empty() && !faults.iter().any(elsewhere) {
        return Err(format!("refused for another reason: {faults:?}"));
    }
    if let Some(fault) = faults.iter().find(|fault| fault.line == 0 || fault.message.is_empty()) {
        return Err(format!("a fault without line or reason: {fault:?}"));
    }
    Ok(())
}
