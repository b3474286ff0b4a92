//! A text as a [`Patch`]: what one file says, nothing filled in.
//!
//! Called by `apply`, `diff` and `--config` in the control plane and by hermesctl's offline commands. Always true: either
//! every key of the text was understood or all of its faults are answered; nothing half read is ever applied. It
//! deliberately does not resolve references (an agent may be registered already and not be in this file);
//! [`super::check`] does, on the merged document.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use super::fields::{self, Faults, Path, Section, boolean, entries, integer, judged, list, text, texts};
use super::tree::{self, Node};
use super::{
    AgentSpec, Document, Fault, Jobs, Provider, ProviderKind, RetentionPatch, TelegramAccount, WebhookAccount,
    accounts, approvals, budget, busy, cron, curator, mcp, retention, runtime, sandbox, values, web,
};
use crate::AgentId;
use crate::approvals::Approvals;
use crate::budget::Budget;
use crate::busy::Busy;
use crate::egress::Web;
use crate::mcp::McpServers;
use crate::reset::{ResetMode, ResetPolicy};
use crate::routing::{InvalidRoute, MatchKey, Route};
use hermes_home::sandbox::Sandbox;

/// Top-level keys.
const KEYS: [&str; 25] = [
    "default_agent",
    "model",
    "fallback_models",
    "timezone",
    "group_sessions_per_user",
    "thread_sessions_per_user",
    "session_reset",
    "reset_by_type",
    "reset_by_platform",
    "busy",
    "limits",
    "retention",
    "sandbox",
    "approvals",
    "curator",
    "mcp_servers",
    "budget",
    "user_budget",
    "web",
    "providers",
    "default_provider",
    "platforms",
    "agents",
    "routes",
    "cron",
];
const AGENT_KEYS: [&str; 15] = [
    "model",
    "provider",
    "base_url",
    "api_key_env",
    "home_dir",
    "enabled_toolsets",
    "disabled_toolsets",
    "fallback_models",
    "budget",
    "sandbox",
    "approvals",
    "curator",
    "mcp_servers",
    "may_ask",
    "runtime",
];

/// What one text says: every key optional, named agents, providers and accounts as written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    /// Replaces the stored value when present; so do the other scalars.
    pub default_agent: Option<AgentId>,
    /// See [`super::Document::model`].
    pub model: Option<String>,
    /// Replaces the list.
    pub fallback_models: Option<Vec<String>>,
    /// See [`super::Document::timezone`].
    pub timezone: Option<String>,
    /// See [`super::Document::group_sessions_per_user`].
    pub group_sessions_per_user: Option<bool>,
    /// See [`super::Document::thread_sessions_per_user`].
    pub thread_sessions_per_user: Option<bool>,
    /// Replaces the policy as a whole.
    pub session_reset: Option<ResetPolicy>,
    /// Replaces all overrides by chat type.
    pub reset_by_type: Option<BTreeMap<String, ResetPolicy>>,
    /// Replaces all overrides by platform.
    pub reset_by_platform: Option<BTreeMap<String, ResetPolicy>>,
    /// Replaces mode, notice and rules as a whole.
    pub busy: Option<Busy>,
    /// See [`super::Document::sandbox`].
    pub sandbox: Option<Sandbox>,
    /// See [`super::Document::approvals`].
    pub approvals: Option<Approvals>,
    /// See [`super::Document::curator`].
    pub curator: Option<curator::Settings>,
    /// Replaces all servers.
    pub mcp_servers: Option<McpServers>,
    /// `limits`, key by key.
    pub limits: LimitsPatch,
    /// `retention`, key by key.
    pub retention: RetentionPatch,
    /// Replaces all limits as a whole.
    pub budget: Option<Budget>,
    /// Replaces all limits as a whole.
    pub user_budget: Option<Budget>,
    /// Replaces it as a whole.
    pub web: Option<Web>,
    /// Providers the text names.
    pub providers: BTreeMap<String, Provider>,
    /// `Some(None)` when the text says `default_provider: null`, which unsets it.
    pub default_provider: Option<Option<String>>,
    /// Telegram accounts the text names.
    pub telegram: IndexMap<String, TelegramAccount>,
    /// Webhook accounts the text names.
    pub webhook: IndexMap<String, WebhookAccount>,
    /// Agents the text names.
    pub agents: BTreeMap<AgentId, AgentSpec>,
    /// Replaces the whole table when present.
    pub routes: Option<Vec<Route>>,
    /// Jobs of agents that the text names.
    pub cron: Jobs,
    /// Where the text says what.
    pub positions: Positions,
}

/// The bounds that a text names; see [`super::Limits`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsPatch {
    /// `message_bytes`.
    pub message_bytes: Option<u64>,
    /// `history_bytes`.
    pub history_bytes: Option<u64>,
    /// `turn_seconds`.
    pub turn_seconds: Option<u64>,
    /// `stall_seconds`.
    pub stall_seconds: Option<u64>,
    /// `queued_per_agent`.
    pub queued_per_agent: Option<u64>,
    /// `queued_per_session`.
    pub queued_per_session: Option<u64>,
    /// `shed_after_seconds`.
    pub shed_after_seconds: Option<u64>,
    /// `inbound_per_second`.
    pub inbound_per_second: Option<u64>,
}

/// Lines of a text by path, for faults and warnings about the merged document. The default knows no line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    lines: BTreeMap<String, u32>,
    /// Line of each route and of its agent.
    routes: Vec<(u32, u32)>,
}

impl Positions {
    /// The 1-based line of a path such as `agents.coder.model`, or of the nearest parent that has one; 0 when unknown.
    pub fn line(&self, path: &str) -> u32 {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = path.get(..end).unwrap_or_default(),
                None => return 0,
            }
        }
    }

    /// The line of a route; 0 when unknown.
    pub fn route(&self, index: usize) -> u32 {
        self.routes.get(index).map_or(0, |(line, _)| *line)
    }

    /// The line of a route's agent; 0 when unknown.
    pub fn route_agent(&self, index: usize) -> u32 {
        self.routes.get(index).map_or(0, |(_, line)| *line)
    }

    pub(super) fn note(&mut self, path: impl Into<String>, line: u32) {
        self.lines.insert(path.into(), line);
    }
}

/// What reading a text gave. Without faults the patch is the whole text; with faults it is what could be understood, good
/// for finding further faults and for nothing else.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    patch: Patch,
    faults: Vec<Fault>,
}

impl Reading {
    /// The document that applying the text to `document` gives, and where its text says what.
    ///
    /// # Errors
    /// All faults of the text; agents that it names and that would not exist are among them, unless one of them may be
    /// registered under a key that could not be read.
    pub fn onto(&self, document: &Document, prune: bool) -> Result<(Document, Positions), Vec<Fault>> {
        let merged = document.merged(&self.patch, prune);
        if self.faults.is_empty() {
            return Ok((merged, self.patch.positions.clone()));
        }
        let mut faults = self.faults.clone();
        if faults.iter().all(|fault| fault.path != "agents") {
            faults.extend(super::check::check_agents(&merged, &self.patch.positions));
            faults.sort_by_key(|fault| if fault.line == 0 { u32::MAX } else { fault.line });
        }
        Err(faults)
    }
}

/// Reads a text strictly.
///
/// # Errors
/// All faults of the text, each with its 1-based line and path, at most 1,000 and a count of the rest.
pub fn parse(text: &str) -> Result<Patch, Vec<Fault>> {
    let Reading { patch, faults } = read(text);
    if faults.is_empty() { Ok(patch) } else { Err(faults) }
}

/// Reads a text as far as it can be understood.
pub fn read(text: &str) -> Reading {
    let root = match tree::read(text) {
        Ok(Some(root)) => root,
        Ok(None) => return Reading::default(),
        Err(faults) => return Reading { patch: Patch::default(), faults },
    };
    let mut faults = Faults::default();
    let mut patch = Patch::default();
    let top = Section::open(&root, &Path::Root, &KEYS, &mut faults);
    read_scalars(&top, &mut patch, &mut faults);
    read_reset(&top, &mut patch, &mut faults);
    if let Some(node) = top.get("busy") {
        patch.busy = Some(busy::read(node, &mut patch.positions, &mut faults));
    }
    if let Some(node) = top.get("limits") {
        read_limits(node, &mut patch, &mut faults);
    }
    if let Some(node) = top.get("retention") {
        retention::read(node, &mut patch, &mut faults);
    }
    if let Some(node) = top.get("sandbox") {
        patch.sandbox = Some(sandbox::read(node, Path::Root.key("sandbox"), &mut faults));
    }
    if let Some(node) = top.get("approvals") {
        patch.approvals = Some(approvals::read(node, Path::Root.key("approvals"), &mut faults));
    }
    if let Some(node) = top.get("curator") {
        patch.curator = Some(curator::read(node, Path::Root.key("curator"), &mut faults));
    }
    if let Some(node) = top.get("mcp_servers") {
        patch.mcp_servers = Some(mcp::read(node, Path::Root.key("mcp_servers"), &mut faults));
    }
    let budgets = [("budget", &mut patch.budget), ("user_budget", &mut patch.user_budget)];
    for (key, slot) in budgets {
        if let Some(node) = top.get(key) {
            patch.positions.note(key, node.line);
            *slot = Some(budget::read(node, Path::Root.key(key), &mut faults));
        }
    }
    if let Some(node) = top.get("web") {
        patch.web = Some(web::read(node, Path::Root.key("web"), &mut faults));
    }
    if let Some(node) = top.get("providers") {
        read_providers(node, &mut patch, &mut faults);
    }
    if let Some(node) = top.get("platforms") {
        accounts::read(node, &mut patch, &mut faults);
    }
    if let Some(node) = top.get("agents") {
        read_agents(node, &mut patch, &mut faults);
    }
    if let Some(node) = top.get("routes") {
        patch.routes = read_routes(node, &mut patch.positions, &mut faults);
    }
    if let Some(node) = top.get("cron") {
        cron::read(node, &mut patch, &mut faults);
    }
    Reading { patch, faults: faults.into_list() }
}

fn read_scalars(top: &Section<'_, '_>, patch: &mut Patch, faults: &mut Faults) {
    for key in ["default_agent", "model", "timezone", "default_provider"] {
        if let Some(node) = top.get(key) {
            patch.positions.note(key, node.line);
        }
    }
    let path = Path::Root;
    if let Some(node) = top.get("default_agent") {
        patch.default_agent = agent_id(node, path.key("default_agent"), faults);
    }
    if let Some(node) = top.get("model") {
        patch.model = judged(node, path.key("model"), faults, values::model);
    }
    if let Some(node) = top.get("fallback_models") {
        patch.positions.note("fallback_models", node.line);
        patch.fallback_models = budget::read_models(node, path.key("fallback_models"), faults);
    }
    if let Some(node) = top.get("timezone") {
        patch.timezone = judged(node, path.key("timezone"), faults, values::timezone);
    }
    if let Some(node) = top.get("group_sessions_per_user") {
        patch.group_sessions_per_user = boolean(node, path.key("group_sessions_per_user"), faults);
    }
    if let Some(node) = top.get("thread_sessions_per_user") {
        patch.thread_sessions_per_user = boolean(node, path.key("thread_sessions_per_user"), faults);
    }
    if top.get("default_provider").is_some() {
        patch.default_provider = Some(top.optional("default_provider", faults, provider_name));
    }
}

pub(super) fn agent_id(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<AgentId> {
    let id = text(node, path, faults)?;
    AgentId::parse(id).map_err(|invalid| faults.add(node.line, path, invalid.to_string())).ok()
}

fn provider_name(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<String> {
    judged(node, path, faults, |name| values::name(name, "a provider's name"))
}

fn read_reset(top: &Section<'_, '_>, patch: &mut Patch, faults: &mut Faults) {
    if let Some(node) = top.get("session_reset") {
        patch.positions.note("session_reset", node.line);
        patch.session_reset = Some(reset_policy(node, Path::Root.key("session_reset"), faults));
    }
    for key in ["reset_by_type", "reset_by_platform"] {
        let Some(node) = top.get(key) else { continue };
        let path = Path::Root.key(key);
        if matches!(node.content, tree::Content::Null) {
            faults.add(node.line, path, "a mapping is expected here; write {} for none, or remove the key");
        }
        let mut policies = BTreeMap::new();
        for entry in entries(node, path, faults) {
            let path = path.key(entry.key);
            if let Err(message) = values::some_text(entry.key) {
                faults.add(entry.line, path, message);
            }
            patch.positions.note(path.to_string(), entry.line);
            policies.insert(entry.key.to_owned(), reset_policy(entry.value, path, faults));
        }
        if key == "reset_by_type" {
            patch.reset_by_type = Some(policies);
        } else {
            patch.reset_by_platform = Some(policies);
        }
    }
}

fn reset_policy(node: &Node, path: Path<'_>, faults: &mut Faults) -> ResetPolicy {
    if matches!(node.content, tree::Content::Null) {
        faults.add(node.line, path, "a policy is expected here; write for example {mode: none}, or remove the key");
    }
    let section = Section::open(node, &path, &["mode", "at_hour", "idle_minutes"], faults);
    let default = ResetPolicy::default();
    let mode = section.optional("mode", faults, |node, path, faults| {
        let mode = text(node, path, faults)?;
        let known = ResetMode::parse(mode);
        if known.is_none() {
            let message = format!("{} is not a reset mode; write none, idle, daily or both", super::shown(mode));
            faults.add(node.line, path, message);
        }
        known
    });
    let at_hour = section.optional("at_hour", faults, |node, path, faults| integer(node, 0..=23, path, faults));
    let idle = section
        .optional("idle_minutes", faults, |node, path, faults| integer(node, 1..=u64::from(u32::MAX), path, faults));
    ResetPolicy {
        mode: mode.unwrap_or(default.mode),
        at_hour: at_hour.and_then(|hour| u8::try_from(hour).ok()).unwrap_or(default.at_hour),
        idle_minutes: idle.and_then(|minutes| u32::try_from(minutes).ok()).unwrap_or(default.idle_minutes),
    }
}

fn read_limits(node: &Node, patch: &mut Patch, faults: &mut Faults) {
    let path = Path::Root.key("limits");
    let keys = [
        "message_bytes",
        "history_bytes",
        "turn_seconds",
        "stall_seconds",
        "queued_per_agent",
        "queued_per_session",
        "shed_after_seconds",
        "inbound_per_second",
    ];
    let section = Section::open(node, &path, &keys, faults);
    let mut read = |key, range| section.optional(key, faults, |node, path, faults| integer(node, range, path, faults));
    patch.limits = LimitsPatch {
        message_bytes: read("message_bytes", 1..=super::MESSAGE_BYTES_MAX),
        history_bytes: read("history_bytes", 0..=super::HISTORY_BYTES_MAX),
        turn_seconds: read("turn_seconds", 1..=super::TURN_SECONDS_MAX),
        stall_seconds: read("stall_seconds", 1..=super::TURN_SECONDS_MAX),
        queued_per_agent: read("queued_per_agent", 1..=super::QUEUED_MAX),
        queued_per_session: read("queued_per_session", 1..=super::QUEUED_MAX),
        shed_after_seconds: read("shed_after_seconds", 0..=u64::from(u32::MAX)),
        inbound_per_second: read("inbound_per_second", 0..=super::QUEUED_MAX),
    };
}

fn read_providers(node: &Node, patch: &mut Patch, faults: &mut Faults) {
    let top = Path::Root.key("providers");
    for entry in entries(node, top, faults) {
        let path = top.key(entry.key);
        if let Err(message) = values::name(entry.key, "a provider's name") {
            faults.add(entry.line, path, message);
        } else if entry.key == "builtin" {
            faults.add(entry.line, path, "builtin is taken by the built-in model; choose another name");
        }
        let section = Section::open(entry.value, &path, &["kind", "base_url", "api_key_env", "prices"], faults);
        let kind = section.optional("kind", faults, |node, path, faults| {
            let name = text(node, path, faults)?;
            let kind = ProviderKind::parse(name);
            if kind.is_none() {
                let message =
                    format!("{} is not a kind of provider; write openai, anthropic or gemini", super::shown(name));
                faults.add(node.line, path, message);
            }
            kind
        });
        let kind = kind.or_else(|| {
            // A provider named after a kind is of that kind.
            let named = ProviderKind::parse(entry.key).filter(|_| section.get("kind").is_none());
            if named.is_none() && section.get("kind").is_none() {
                faults.add(section.line(), path.key("kind"), "kind is missing; write openai, anthropic or gemini");
            }
            named
        });
        let url = |node, path: Path<'_>, faults: &mut Faults| judged(node, path, faults, values::url);
        let env = |node, path: Path<'_>, faults: &mut Faults| judged(node, path, faults, values::env_name);
        let provider = Provider {
            kind: kind.unwrap_or(ProviderKind::Openai),
            base_url: section.optional("base_url", faults, url),
            api_key_env: section.optional("api_key_env", faults, env),
            prices: section.optional("prices", faults, budget::read_prices).unwrap_or_default(),
        };
        patch.positions.note(path.to_string(), entry.line);
        patch.providers.insert(entry.key.to_owned(), provider);
    }
}

fn read_agents(node: &Node, patch: &mut Patch, faults: &mut Faults) {
    let top = Path::Root.key("agents");
    for entry in entries(node, top, faults) {
        let path = top.key(entry.key);
        let id = AgentId::parse(entry.key).map_err(|invalid| faults.add(entry.line, path, invalid.to_string()));
        let section = Section::open(entry.value, &path, &AGENT_KEYS, faults);
        let spec = agent_spec(&section, faults);
        let Ok(id) = id else { continue };
        patch.positions.note(path.to_string(), entry.line);
        for key in ["model", "provider", "home_dir", "budget", "fallback_models", "may_ask", "runtime"] {
            if let Some(node) = section.get(key) {
                patch.positions.note(path.key(key).to_string(), node.line);
            }
        }
        patch.agents.insert(id, spec);
    }
}

fn agent_spec(section: &Section<'_, '_>, faults: &mut Faults) -> AgentSpec {
    let mut judged_text = |key: &str, judge: fn(&str) -> Result<(), String>| {
        section.optional(key, faults, |node, path, faults| judged(node, path, faults, judge))
    };
    let model = judged_text("model", values::model);
    let provider = judged_text("provider", |name| values::name(name, "a provider's name"));
    let base_url = judged_text("base_url", values::url);
    let api_key_env = judged_text("api_key_env", values::env_name);
    let home_dir = judged_text("home_dir", values::home_dir);
    let mut toolsets = |key: &str| {
        let item = |node: &Node, path: Path<'_>, faults: &mut Faults| judged(node, path, faults, values::toolset);
        section.optional(key, faults, |node, path, faults| texts(node, path, faults, item))
    };
    let enabled_toolsets = toolsets("enabled_toolsets");
    let disabled_toolsets = toolsets("disabled_toolsets");
    let sandbox = section.optional("sandbox", faults, |node, path, faults| Some(sandbox::read(node, path, faults)));
    let approvals =
        section.optional("approvals", faults, |node, path, faults| Some(approvals::read(node, path, faults)));
    let curator = section.optional("curator", faults, |node, path, faults| Some(curator::read(node, path, faults)));
    let mcp_servers = section.optional("mcp_servers", faults, |node, path, faults| Some(mcp::read(node, path, faults)));
    AgentSpec {
        sandbox,
        approvals,
        curator,
        mcp_servers,
        model,
        provider,
        base_url,
        api_key_env,
        home_dir,
        enabled_toolsets,
        disabled_toolsets,
        fallback_models: section.optional("fallback_models", faults, budget::read_models),
        budget: section.optional("budget", faults, |node, path, faults| Some(budget::read(node, path, faults))),
        may_ask: section.optional("may_ask", faults, |node, path, faults| {
            texts(node, path, faults, |node, path, faults| agent_id(node, path, faults).map(|id| id.to_string()))
        }),
        runtime: section.optional("runtime", faults, |node, path, faults| Some(runtime::read(node, path, faults))),
    }
}

fn read_routes(node: &Node, positions: &mut Positions, faults: &mut Faults) -> Option<Vec<Route>> {
    let top = Path::Root.key("routes");
    let items = list(node, top, faults)?;
    let mut routes = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let path = top.index(index);
        if !matches!(item.content, tree::Content::Map(_)) {
            faults.add(item.line, path, "a route is a mapping of match and agent");
            positions.routes.push((item.line, item.line));
            routes.push(Route { keys: Vec::new(), agent: AgentId::main() });
            continue;
        }
        let section = Section::open(item, &path, &["match", "agent"], faults);
        let agent = match section.get("agent") {
            Some(node) => agent_id(node, path.key("agent"), faults).map(|id| (id, node.line)),
            None => {
                faults.add(item.line, path.key("agent"), "agent is missing; name the agent that answers");
                None
            }
        };
        let keys = match section.get("match") {
            Some(node) => match_keys(node, path.key("match"), faults),
            None => {
                faults.add(item.line, path.key("match"), "match is missing; name at least one key");
                Vec::new()
            }
        };
        // A faulty route keeps its place, so that the index of those behind it is theirs.
        let (agent, line) = agent.unwrap_or_else(|| (AgentId::main(), item.line));
        positions.routes.push((item.line, line));
        routes.push(Route { keys, agent });
    }
    Some(routes)
}

fn match_keys(node: &Node, path: Path<'_>, faults: &mut Faults) -> Vec<(MatchKey, String)> {
    let tree::Content::Map(all) = &node.content else {
        let message = match node.content {
            tree::Content::Null => InvalidRoute::Empty.to_string(),
            _ => "match is a mapping of keys and values".to_owned(),
        };
        faults.add(node.line, path, message);
        return Vec::new();
    };
    if all.is_empty() {
        faults.add(node.line, path, InvalidRoute::Empty.to_string());
    }
    let mut keys = Vec::with_capacity(all.len());
    for entry in entries(node, path, faults) {
        let path = path.key(entry.key);
        let value = fields::platform_id(entry.value, path, faults);
        match MatchKey::parse(entry.key) {
            Ok(key) => keys.extend(value.map(|value| (key, value))),
            Err(invalid) => faults.add(entry.line, path, invalid.to_string()),
        }
    }
    keys
}
