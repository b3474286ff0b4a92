//! Between the wire and the domain: free functions, one direction each, errors name the field.

use std::collections::BTreeMap;

use hermes_core::approvals::{Approvals, Mode};
use hermes_core::budget::{Budget, Unpriced, Usd};
use hermes_core::config::{AgentSpec, Change, ChangeKind, Fault, Warning};
use hermes_core::routing::{MatchKey, Route};
use hermes_core::turn::{TurnState, Usage};
use hermes_core::{AgentId, Source};
use hermes_home::sandbox::{Level, Network, Sandbox};
use hermes_proto::v1;
use tonic::Status;

use super::runtime;
use super::status::{Reason, invalid, refuse};
use super::{curator, mcp};
use crate::registry::{EditError, Registry, Snapshot};
use crate::store::{self, TurnEnd};
use crate::{intake, registry};

const DEFAULT_PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;

/// Size and token of a page request.
pub(super) fn page(request: Option<v1::PageRequest>) -> Result<(u32, String), Status> {
    let request = request.unwrap_or_default();
    match request.page_size {
        0 => Ok((DEFAULT_PAGE, request.page_token)),
        size if size <= MAX_PAGE => Ok((size, request.page_token)),
        size => Err(invalid("page.page_size", format!("{size} is more than {MAX_PAGE}"))),
    }
}

/// A page token that is a number; absent: `first`.
pub(super) fn number_token(token: &str, first: i64) -> Result<i64, Status> {
    if token.is_empty() {
        return Ok(first);
    }
    token.parse().map_err(|_| invalid("page.page_token", "use the token of the previous answer"))
}

/// A slice of `all` behind the offset in `token`, and the next token.
pub(super) fn slice<'a, T>(all: &'a [T], size: u32, token: &str) -> Result<(usize, &'a [T], String), Status> {
    let start = usize::try_from(number_token(token, 0)?).unwrap_or(usize::MAX).min(all.len());
    let end = start.saturating_add(size as usize).min(all.len());
    let next = if end < all.len() { end.to_string() } else { String::new() };
    Ok((start, all.get(start..end).unwrap_or_default(), next))
}

pub(super) fn agent_id(field: &str, text: &str) -> Result<AgentId, Status> {
    AgentId::parse(text).map_err(|error| invalid(field, error.to_string()))
}

pub(super) fn spec_from(spec: v1::AgentSpec) -> AgentSpec {
    AgentSpec {
        model: spec.model,
        provider: spec.provider,
        base_url: spec.base_url,
        api_key_env: spec.api_key_env,
        home_dir: spec.home_dir,
        enabled_toolsets: spec.enabled_toolsets.map(|list| list.values),
        disabled_toolsets: spec.disabled_toolsets.map(|list| list.values),
        sandbox: spec.sandbox.map(sandbox_from),
        approvals: spec.approvals.map(approvals_from),
        curator: spec.curator.map(curator::settings_from),
        mcp_servers: spec.mcp_servers.map(|list| list.servers.into_iter().map(mcp::server_from).collect()),
        fallback_models: spec.fallback_models.map(|list| list.values),
        budget: spec.budget.map(budget_from),
        may_ask: spec.may_ask.map(|list| list.values),
        runtime: spec.runtime.map(runtime::from),
    }
}

fn sandbox_from(sandbox: v1::Sandbox) -> Sandbox {
    let usual = Sandbox::default();
    Sandbox {
        level: match sandbox.level() {
            v1::SandboxLevel::Strict | v1::SandboxLevel::Unspecified => Level::Strict,
            v1::SandboxLevel::Home => Level::Home,
            v1::SandboxLevel::Off => Level::Off,
        },
        network: match sandbox.network() {
            v1::SandboxNetwork::None | v1::SandboxNetwork::Unspecified => Network::None,
            v1::SandboxNetwork::Proxy => Network::Proxy,
            v1::SandboxNetwork::Open => Network::Open,
        },
        memory_mb: sandbox.memory_mb.unwrap_or(usual.memory_mb),
        pids: sandbox.pids.unwrap_or(usual.pids),
        cpu_seconds: sandbox.cpu_seconds.unwrap_or(usual.cpu_seconds),
        disk_mb: sandbox.disk_mb.unwrap_or(usual.disk_mb),
    }
}

fn approvals_from(approvals: v1::Approvals) -> Approvals {
    Approvals {
        mode: match approvals.mode() {
            v1::ApprovalMode::Manual | v1::ApprovalMode::Unspecified => Mode::Manual,
            v1::ApprovalMode::Smart => Mode::Smart,
            v1::ApprovalMode::Off => Mode::Off,
        },
        smart_model: approvals.smart_model,
        timeout_seconds: approvals.timeout_seconds.unwrap_or(Approvals::default().timeout_seconds),
        allow: approvals.allow,
        deny: approvals.deny,
    }
}

/// On the wire, whole.
pub(super) fn approvals_to(approvals: &Approvals) -> v1::Approvals {
    let mode = match approvals.mode {
        Mode::Manual => v1::ApprovalMode::Manual,
        Mode::Smart => v1::ApprovalMode::Smart,
        Mode::Off => v1::ApprovalMode::Off,
    };
    v1::Approvals {
        mode: mode.into(),
        smart_model: approvals.smart_model.clone(),
        timeout_seconds: Some(approvals.timeout_seconds),
        allow: approvals.allow.clone(),
        deny: approvals.deny.clone(),
    }
}

/// On the wire, whole.
pub(super) fn sandbox_to(sandbox: &Sandbox) -> v1::Sandbox {
    let level = match sandbox.level {
        Level::Strict => v1::SandboxLevel::Strict,
        Level::Home => v1::SandboxLevel::Home,
        Level::Off => v1::SandboxLevel::Off,
    };
    let network = match sandbox.network {
        Network::None => v1::SandboxNetwork::None,
        Network::Proxy => v1::SandboxNetwork::Proxy,
        Network::Open => v1::SandboxNetwork::Open,
    };
    v1::Sandbox {
        level: level.into(),
        network: network.into(),
        memory_mb: Some(sandbox.memory_mb),
        pids: Some(sandbox.pids),
        cpu_seconds: Some(sandbox.cpu_seconds),
        disk_mb: Some(sandbox.disk_mb),
    }
}

fn budget_from(budget: v1::Budget) -> Budget {
    Budget {
        usd_per_day: budget.usd_per_day.map(usd_from),
        usd_per_month: budget.usd_per_month.map(usd_from),
        tokens_per_day: budget.tokens_per_day,
        max_output_tokens: budget.max_output_tokens,
        unpriced: if budget.allow_unpriced { Unpriced::Allow } else { Unpriced::Refuse },
    }
}

/// Dollars; what is no amount becomes one that is refused wherever amounts are judged.
pub(super) fn usd_from(dollars: f64) -> Usd {
    if dollars >= 0.0 { Usd::from(dollars) } else { Usd::from_nanos(u64::MAX) }
}

pub(super) fn budget_to(budget: &Budget) -> v1::Budget {
    v1::Budget {
        usd_per_day: budget.usd_per_day.map(Usd::dollars),
        usd_per_month: budget.usd_per_month.map(Usd::dollars),
        tokens_per_day: budget.tokens_per_day,
        max_output_tokens: budget.max_output_tokens,
        allow_unpriced: budget.unpriced == Unpriced::Allow,
    }
}

pub(super) fn spec_to(spec: &AgentSpec) -> v1::AgentSpec {
    let list = |values: &Option<Vec<String>>| values.clone().map(|values| v1::StringList { values });
    v1::AgentSpec {
        model: spec.model.clone(),
        provider: spec.provider.clone(),
        base_url: spec.base_url.clone(),
        api_key_env: spec.api_key_env.clone(),
        home_dir: spec.home_dir.clone(),
        enabled_toolsets: list(&spec.enabled_toolsets),
        disabled_toolsets: list(&spec.disabled_toolsets),
        sandbox: spec.sandbox.as_ref().map(sandbox_to),
        approvals: spec.approvals.as_ref().map(approvals_to),
        curator: spec.curator.map(curator::settings_to),
        mcp_servers: spec.mcp_servers.as_ref().map(|all| v1::McpServers { servers: mcp::servers_to(all) }),
        fallback_models: list(&spec.fallback_models),
        budget: spec.budget.as_ref().map(budget_to),
        may_ask: list(&spec.may_ask),
        runtime: spec.runtime.as_ref().map(runtime::to),
    }
}

/// Lays the fields that are set over `base`.
pub(super) fn spec_over(base: AgentSpec, over: AgentSpec) -> AgentSpec {
    AgentSpec {
        model: over.model.or(base.model),
        provider: over.provider.or(base.provider),
        base_url: over.base_url.or(base.base_url),
        api_key_env: over.api_key_env.or(base.api_key_env),
        home_dir: over.home_dir.or(base.home_dir),
        enabled_toolsets: over.enabled_toolsets.or(base.enabled_toolsets),
        disabled_toolsets: over.disabled_toolsets.or(base.disabled_toolsets),
        sandbox: over.sandbox.or(base.sandbox),
        approvals: over.approvals.or(base.approvals),
        curator: over.curator.or(base.curator),
        mcp_servers: over.mcp_servers.or(base.mcp_servers),
        fallback_models: over.fallback_models.or(base.fallback_models),
        budget: over.budget.or(base.budget),
        may_ask: over.may_ask.or(base.may_ask),
        runtime: over.runtime.or(base.runtime),
    }
}

/// Unsets the named fields.
pub(super) fn spec_cleared(mut spec: AgentSpec, fields: &[String]) -> Result<AgentSpec, Status> {
    for field in fields {
        match field.as_str() {
            "model" => spec.model = None,
            "provider" => spec.provider = None,
            "base_url" => spec.base_url = None,
            "api_key_env" => spec.api_key_env = None,
            "home_dir" => spec.home_dir = None,
            "enabled_toolsets" => spec.enabled_toolsets = None,
            "disabled_toolsets" => spec.disabled_toolsets = None,
            "sandbox" => spec.sandbox = None,
            "approvals" => spec.approvals = None,
            "curator" => spec.curator = None,
            "mcp_servers" => spec.mcp_servers = None,
            "fallback_models" => spec.fallback_models = None,
            "budget" => spec.budget = None,
            "may_ask" => spec.may_ask = None,
            "runtime" => spec.runtime = None,
            _ => return Err(invalid("clear", format!("{field:?} is not a field of an agent"))),
        }
    }
    Ok(spec)
}

pub(super) fn route_to(route: &Route) -> v1::Route {
    let key =
        |(key, value): &(MatchKey, String)| v1::route::Match { key: key.as_str().to_owned(), value: value.clone() };
    v1::Route { r#match: route.keys.iter().map(key).collect(), agent: route.agent.to_string() }
}

pub(super) fn route_from(route: Option<v1::Route>) -> Result<Route, Status> {
    let route = route.ok_or_else(|| invalid("route", "it is missing"))?;
    let agent = agent_id("route.agent", &route.agent)?;
    let keys = route.r#match.iter().map(|entry| (entry.key.as_str(), entry.value.as_str()));
    Route::new(keys, agent.as_str()).map_err(|error| invalid("route.match", error.to_string()))
}

pub(super) fn source_from(source: Option<v1::Source>) -> Result<Source, Status> {
    let source = source.ok_or_else(|| invalid("source", "it is missing"))?;
    Ok(Source {
        platform: source.platform,
        account: source.account,
        chat_id: source.chat_id,
        chat_type: if source.chat_type.is_empty() { "dm".to_owned() } else { source.chat_type },
        thread_id: source.thread_id,
        parent_chat_id: source.parent_chat_id,
        user_id: source.user_id,
        user_id_alt: source.user_id_alt,
        guild_id: source.guild_id,
        user_name: source.user_name,
        chat_name: source.chat_name,
        message_id: source.message_id,
    })
}

/// The routes that name each agent, in table order.
pub(super) fn routes_by_agent(snapshot: &Snapshot) -> BTreeMap<&AgentId, Vec<&Route>> {
    let mut by_agent: BTreeMap<&AgentId, Vec<&Route>> = BTreeMap::new();
    for route in &snapshot.document.routes {
        by_agent.entry(&route.agent).or_default().push(route);
    }
    by_agent
}

/// An agent as people see it, without its SOUL.
pub(super) fn agent_to(
    registry: &Registry,
    snapshot: &Snapshot,
    entry: &registry::AgentEntry,
    routes: &[&Route],
) -> v1::Agent {
    let home = registry.home_of(&entry.id, entry.spec.home_dir.as_deref());
    let [memory_path, skills_path, sessions_path] = registry::paths_under(&home);
    let warnings = match hermes_core::config::resolve_model(&snapshot.models, &entry.spec) {
        hermes_core::config::Resolved::Unserved if entry.spec.acp().is_none() => {
            vec![hermes_core::config::unserved_message(snapshot.model_of(&entry.spec))]
        }
        _ => Vec::new(),
    };
    v1::Agent {
        id: entry.id.to_string(),
        spec: Some(spec_to(&entry.spec)),
        revision: unsigned(entry.revision),
        is_default: snapshot.document.default_agent == entry.id,
        effective_model: snapshot.model_of(&entry.spec).to_owned(),
        home: home.display().to_string(),
        routes: routes.iter().take(100).map(|route| route_to(route)).collect(),
        route_count: routes.len() as u64,
        soul_preview: String::new(),
        warnings,
        created_at_ms: entry.created_at.as_millisecond(),
        memory_path,
        skills_path,
        sessions_path,
        sandbox: Some(sandbox_to(&snapshot.document.sandbox_of(&entry.spec))),
        approvals: Some(approvals_to(snapshot.document.approvals_of(&entry.spec))),
        mcp_servers: mcp::servers_to(snapshot.document.mcp_servers_of(&entry.spec)),
    }
}

pub(super) fn fault_to(fault: &Fault) -> v1::Fault {
    v1::Fault { line: fault.line, path: fault.path.clone(), message: fault.message.clone() }
}

pub(super) fn warning_to(warning: &Warning) -> v1::Warning {
    v1::Warning { line: warning.line, path: warning.path.clone(), message: warning.message.clone() }
}

pub(super) fn change_to(change: &Change) -> v1::Change {
    let kind = match change.kind {
        ChangeKind::Add => v1::ChangeKind::Add,
        ChangeKind::Change => v1::ChangeKind::Change,
        ChangeKind::Remove => v1::ChangeKind::Remove,
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    v1::Change {
        kind: kind.into(),
        path: change.path.clone(),
        before: text(&change.before),
        after: text(&change.after),
    }
}

pub(super) fn turn_state_to(state: TurnState) -> v1::TurnState {
    match state {
        TurnState::Queued => v1::TurnState::Queued,
        TurnState::Running => v1::TurnState::Running,
        TurnState::Succeeded => v1::TurnState::Succeeded,
        TurnState::Failed => v1::TurnState::Failed,
        TurnState::Cancelled => v1::TurnState::Cancelled,
        TurnState::Dead => v1::TurnState::Dead,
    }
}

pub(super) fn end_to(end: TurnEnd) -> v1::TurnEnded {
    v1::TurnEnded {
        state: turn_state_to(end.state).into(),
        reply: end.reply,
        input_tokens: end.usage.input_tokens,
        output_tokens: end.usage.output_tokens,
        cached_tokens: end.usage.cached_tokens,
        cost_usd: end.usage.cost_usd,
        model: end.usage.model,
    }
}

pub(super) fn usage_from(usage: Option<v1::Usage>) -> Usage {
    let usage = usage.unwrap_or_default();
    Usage {
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cached_tokens: usage.cached_tokens,
        cost_usd: usage.cost_usd,
        model: usage.model,
    }
}

pub(super) fn usage_to(usage: Usage) -> v1::Usage {
    v1::Usage {
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cached_tokens: usage.cached_tokens,
        cost_usd: usage.cost_usd,
        model: usage.model,
    }
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(super) fn signed(field: &str, number: u64) -> Result<i64, Status> {
    i64::try_from(number).map_err(|_| invalid(field, "the number is too large"))
}

/// Log the cause, tell the caller what to do.
pub(super) fn store_status(error: store::Error) -> Status {
    match error {
        store::Error::NotFound(message) => refuse(Reason::NotFound, message),
        store::Error::Conflict(message) => refuse(Reason::Conflict, message),
        store::Error::Unavailable(cause) => {
            tracing::warn!(cause, "a call failed because the database is unavailable");
            refuse(Reason::StoreUncertain, "the database is unavailable; try again")
        }
        store::Error::Schema(message) => refuse(Reason::Internal, message),
        error @ store::Error::Refused { .. } => {
            tracing::error!(%error, "the database refused a statement");
            refuse(Reason::Internal, "the control plane could not do this; its log says why")
        }
    }
}

pub(super) fn edit_status(error: EditError) -> Status {
    match error {
        EditError::Faults(faults) => {
            super::status::invalid_all(faults.into_iter().map(|fault| (fault.path, fault.message)).collect())
        }
        EditError::NotFound(message) => refuse(Reason::NotFound, message),
        EditError::Exists(message) => refuse(Reason::AlreadyExists, message),
        EditError::Precondition(message) => refuse(Reason::Conflict, message),
        EditError::Invalid(message) => invalid("request", message),
        EditError::Store(error) => store_status(error),
    }
}

pub(super) fn intake_status(error: intake::Error) -> Status {
    match &error {
        intake::Error::TooLarge { .. } => refuse(Reason::TooLarge, error.to_string()),
        intake::Error::UnknownAgent(_) => refuse(Reason::NotFound, error.to_string()),
        intake::Error::Invalid { field, message } => invalid(field, message.clone()),
        intake::Error::Conflict => refuse(Reason::AlreadyExists, error.to_string()),
        intake::Error::Overloaded => refuse(Reason::Overloaded, error.to_string()),
        intake::Error::Busy(intake::BusyReason::Late) => refuse(Reason::AgentLate, error.to_string()),
        intake::Error::Busy(_) => refuse(Reason::QueueFull, error.to_string()),
        intake::Error::Unavailable(cause) => {
            tracing::warn!(cause, "a message could not be stored");
            refuse(Reason::StoreUncertain, "the message could not be stored; send it again with the same key")
        }
    }
}
