//! How agents and their revisions look. Called by the agent commands; pure.

use std::collections::BTreeMap;

use hermes_proto::v1;
use serde::Serialize;

use super::runtime::RuntimeView;
use crate::commands::route::RouteView;
use crate::output::{Grid, Paint, View, or_dash, pairs, plain, time, warnings};

/// What was written about an agent; absent fields fall back to the document.
#[derive(Default, Serialize)]
pub(crate) struct SpecView {
    model: Option<String>,
    provider: Option<String>,
    base_url: Option<String>,
    api_key_env: Option<String>,
    home_dir: Option<String>,
    enabled_toolsets: Option<Vec<String>>,
    disabled_toolsets: Option<Vec<String>>,
    sandbox: Option<SandboxView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approvals: Option<ApprovalsView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback_models: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mcp_servers: Option<Vec<ServerView>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    may_ask: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<RuntimeView>,
}

/// When people are asked before what an agent does.
#[derive(Serialize)]
struct ApprovalsView {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    smart_model: Option<String>,
    timeout_seconds: Option<u64>,
    allow: Vec<String>,
    deny: Vec<String>,
}

impl ApprovalsView {
    fn from_proto(approvals: v1::Approvals) -> Self {
        Self {
            mode: match approvals.mode() {
                v1::ApprovalMode::Manual | v1::ApprovalMode::Unspecified => "manual",
                v1::ApprovalMode::Smart => "smart",
                v1::ApprovalMode::Off => "off",
            },
            smart_model: approvals.smart_model,
            timeout_seconds: approvals.timeout_seconds,
            allow: approvals.allow,
            deny: approvals.deny,
        }
    }
}

/// How an agent's tools are kept apart; absent fields take the defaults.
#[derive(Serialize)]
struct SandboxView {
    level: &'static str,
    network: &'static str,
    memory_mb: Option<u64>,
    pids: Option<u64>,
    cpu_seconds: Option<u64>,
    disk_mb: Option<u64>,
}

impl SandboxView {
    fn from_proto(sandbox: v1::Sandbox) -> Self {
        Self {
            level: match sandbox.level() {
                v1::SandboxLevel::Strict | v1::SandboxLevel::Unspecified => "strict",
                v1::SandboxLevel::Home => "home",
                v1::SandboxLevel::Off => "off",
            },
            network: match sandbox.network() {
                v1::SandboxNetwork::None | v1::SandboxNetwork::Unspecified => "none",
                v1::SandboxNetwork::Proxy => "proxy",
                v1::SandboxNetwork::Open => "open",
            },
            memory_mb: sandbox.memory_mb,
            pids: sandbox.pids,
            cpu_seconds: sandbox.cpu_seconds,
            disk_mb: sandbox.disk_mb,
        }
    }

    /// In a word or two.
    fn short(&self) -> String {
        match self.network {
            "open" => format!("{}, network", self.level),
            "proxy" => format!("{}, proxy", self.level),
            _ => self.level.to_owned(),
        }
    }
}

/// One MCP server of an agent.
#[derive(Serialize)]
struct ServerView {
    name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    command: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, HeaderView>,
    env: BTreeMap<String, String>,
    include: Option<Vec<String>>,
    exclude: Vec<String>,
    timeout_seconds: u32,
    connect_timeout_seconds: u32,
    enabled: bool,
}

/// What is sent along to a server behind a URL: a text, or where a secret is found.
#[derive(Serialize)]
#[serde(untagged)]
enum HeaderView {
    Plain(String),
    Env { env: String, prefix: String },
    File { file: String, prefix: String },
}

impl HeaderView {
    fn from_proto(header: v1::mcp_server::Header) -> (String, Self) {
        let v1::mcp_server::Header { name, text, env, file } = header;
        let view = match (env.is_empty(), file.is_empty()) {
            (true, true) => Self::Plain(text),
            (false, _) => Self::Env { env, prefix: text },
            (true, false) => Self::File { file, prefix: text },
        };
        (name, view)
    }
}

fn servers(servers: Vec<v1::McpServer>) -> Vec<ServerView> {
    let view = |server: v1::McpServer| ServerView {
        name: server.name,
        command: server.command,
        url: Some(server.url).filter(|url| !url.is_empty()),
        headers: server.headers.into_iter().map(HeaderView::from_proto).collect(),
        env: server.env.into_iter().map(|variable| (variable.name, variable.value)).collect(),
        include: server.include.map(|list| list.values),
        exclude: server.exclude,
        timeout_seconds: server.timeout_seconds,
        connect_timeout_seconds: server.connect_timeout_seconds,
        enabled: !server.disabled,
    };
    servers.into_iter().map(view).collect()
}

impl SpecView {
    fn from_proto(spec: v1::AgentSpec) -> Self {
        Self {
            model: spec.model,
            provider: spec.provider,
            base_url: spec.base_url,
            api_key_env: spec.api_key_env,
            home_dir: spec.home_dir,
            enabled_toolsets: spec.enabled_toolsets.map(|list| list.values),
            disabled_toolsets: spec.disabled_toolsets.map(|list| list.values),
            sandbox: spec.sandbox.map(SandboxView::from_proto),
            approvals: spec.approvals.map(ApprovalsView::from_proto),
            may_ask: spec.may_ask.map(|list| list.values),
            fallback_models: spec.fallback_models.map(|list| list.values),
            mcp_servers: spec.mcp_servers.map(|list| servers(list.servers)),
            runtime: spec.runtime.map(RuntimeView::from_proto),
        }
    }
}

/// One agent.
#[derive(Serialize)]
pub(crate) struct AgentView {
    id: String,
    spec: SpecView,
    revision: u64,
    /// Whether `default_agent` names it.
    pub is_default: bool,
    effective_model: String,
    home: String,
    /// The first of the routes that name it.
    pub routes: Vec<RouteView>,
    /// How many routes name it.
    pub route_count: u64,
    soul_preview: String,
    /// What is probably not meant.
    pub warnings: Vec<String>,
    /// The warnings are already on stderr.
    #[serde(skip)]
    pub warnings_told: bool,
    created_at_ms: i64,
    memory_path: String,
    skills_path: String,
    sessions_path: String,
    /// After defaults.
    sandbox: Option<SandboxView>,
    /// After defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    approvals: Option<ApprovalsView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mcp_servers: Vec<ServerView>,
}

impl AgentView {
    /// From the wire.
    pub(crate) fn from_proto(agent: v1::Agent) -> Self {
        Self {
            id: agent.id,
            spec: SpecView::from_proto(agent.spec.unwrap_or_default()),
            revision: agent.revision,
            is_default: agent.is_default,
            effective_model: agent.effective_model,
            home: agent.home,
            routes: agent.routes.into_iter().map(RouteView::from_proto).collect(),
            route_count: agent.route_count,
            soul_preview: agent.soul_preview,
            warnings: agent.warnings,
            warnings_told: false,
            created_at_ms: agent.created_at_ms,
            memory_path: agent.memory_path,
            skills_path: agent.skills_path,
            sessions_path: agent.sessions_path,
            sandbox: agent.sandbox.map(SandboxView::from_proto),
            approvals: agent.approvals.map(ApprovalsView::from_proto),
            mcp_servers: servers(agent.mcp_servers),
        }
    }

    fn sandbox_short(&self) -> String {
        self.sandbox.as_ref().map_or_else(|| "-".to_owned(), SandboxView::short)
    }

    fn model(&self) -> String {
        if let Some(runtime) = self.spec.runtime.as_ref().filter(|runtime| runtime.is_foreign()) {
            return format!("({})", runtime.short());
        }
        match &self.spec.model {
            Some(model) => model.clone(),
            None if self.effective_model.is_empty() => "(default)".to_owned(),
            None => format!("{} (default)", self.effective_model),
        }
    }
}

fn or_default(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("(default)").to_owned()
}

fn toolsets(list: Option<&Vec<String>>) -> String {
    match list {
        None => "(default)".to_owned(),
        Some(list) if list.is_empty() => "(none)".to_owned(),
        Some(list) => list.join(", "),
    }
}

impl View for AgentView {
    fn table(&self, paint: Paint) -> String {
        let mark = if self.is_default { " *" } else { "" };
        let mut rows = vec![
            ("Agent", format!("{}{mark}", self.id)),
            ("Revision", format!("{} (registered {})", self.revision, time(Some(self.created_at_ms)))),
            ("Model", self.model()),
            ("Provider", or_default(self.spec.provider.as_deref())),
        ];
        let mut optional = |name, value: &Option<String>| {
            if let Some(value) = value {
                rows.push((name, value.clone()));
            }
        };
        optional("Base URL", &self.spec.base_url);
        optional("API key from", &self.spec.api_key_env);
        optional("Runtime", &self.spec.runtime.as_ref().map(RuntimeView::short));
        optional("Secrets", &self.spec.runtime.as_ref().and_then(RuntimeView::secrets));
        rows.extend([
            ("Toolsets", toolsets(self.spec.enabled_toolsets.as_ref())),
            (
                "Toolsets off",
                self.spec.disabled_toolsets.as_ref().map_or_else(|| "-".to_owned(), |list| list.join(", ")),
            ),
            ("Sandbox", self.sandbox_short()),
            ("Approvals", self.approvals.as_ref().map_or("-", |approvals| approvals.mode).to_owned()),
            ("Home", or_default(Some(&self.home))),
            ("Memory", or_dash(Some(&self.memory_path))),
            ("Skills", or_dash(Some(&self.skills_path))),
            ("Sessions", or_dash(Some(&self.sessions_path))),
        ]);
        if !self.mcp_servers.is_empty() {
            let off = |server: &ServerView| if server.enabled { "" } else { " (off)" };
            let names: Vec<_> =
                self.mcp_servers.iter().map(|server| format!("{}{}", server.name, off(server))).collect();
            rows.push(("MCP servers", names.join(", ")));
        }
        if let Some(may_ask) = self.spec.may_ask.as_ref().filter(|list| !list.is_empty()) {
            rows.push(("May ask", may_ask.join(", ")));
        }
        let mut text = pairs(paint, &rows);
        text.push_str(&format!("\n\n{}", paint.bold(&format!("Routes ({}):", self.route_count))));
        for route in &self.routes {
            text.push_str(&format!("\n  {}", plain(&route.shown())));
        }
        let shown = u64::try_from(self.routes.len()).unwrap_or(u64::MAX);
        if self.route_count > shown {
            text.push_str(&format!("\n  … and {} more; see `hermesctl route list`", self.route_count - shown));
        }
        if !self.soul_preview.is_empty() {
            text.push_str(&format!("\n\n{}\n  {}", paint.bold("SOUL:"), plain(&self.soul_preview)));
        }
        if !self.warnings_told {
            text.push_str(&warnings(paint, &self.warnings));
        }
        text
    }
}

/// All agents.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct AgentList(pub Vec<AgentView>);

impl View for AgentList {
    fn table(&self, paint: Paint) -> String {
        let mut grid = Grid::new(paint, &["ID", "MODEL", "ROUTES", "SANDBOX", "HOME"]).right(&[2]);
        let mut all_warnings = Vec::new();
        for agent in &self.0 {
            let mark = if agent.is_default { " *" } else { "" };
            let id = format!("{}{mark}", agent.id);
            let routes = agent.route_count.to_string();
            grid.row([id, agent.model(), routes, agent.sandbox_short(), or_default(Some(&agent.home))]);
            all_warnings.extend(agent.warnings.iter().map(|text| about(&agent.id, text)));
        }
        let mut text = grid.finish("no agent is registered; add one with `hermesctl agent add ID`");
        if self.0.iter().any(|agent| agent.is_default) {
            text.push_str("\n\n* answers whatever no route takes (default_agent)");
        }
        text.push_str(&warnings(paint, &all_warnings));
        text
    }
}

/// A warning that says which agent it is about.
fn about(id: &str, text: &str) -> String {
    if text.contains(id) { text.to_owned() } else { format!("{id}: {text}") }
}

/// The revisions of one agent.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct RevisionList(Vec<RevisionView>);

#[derive(Serialize)]
struct RevisionView {
    revision: u64,
    spec: SpecView,
    created_at_ms: i64,
    created_by: String,
}

impl RevisionList {
    /// From the wire.
    pub(crate) fn from_proto(revisions: Vec<v1::Revision>) -> Self {
        let view = |revision: v1::Revision| RevisionView {
            revision: revision.revision,
            spec: SpecView::from_proto(revision.spec.unwrap_or_default()),
            created_at_ms: revision.created_at_ms,
            created_by: revision.created_by,
        };
        Self(revisions.into_iter().map(view).collect())
    }
}

impl View for RevisionList {
    fn table(&self, paint: Paint) -> String {
        let mut grid =
            Grid::new(paint, &["REVISION", "AT", "BY", "MODEL", "PROVIDER", "HOME", "TOOLSETS", "TOOLSETS OFF"]);
        for revision in &self.0 {
            let spec = &revision.spec;
            grid.row([
                revision.revision.to_string(),
                time(Some(revision.created_at_ms)),
                or_dash(Some(&revision.created_by)),
                or_default(spec.model.as_deref()),
                or_default(spec.provider.as_deref()),
                or_default(spec.home_dir.as_deref()),
                toolsets(spec.enabled_toolsets.as_ref()),
                spec.disabled_toolsets.as_ref().map_or_else(|| "-".to_owned(), |list| list.join(", ")),
            ]);
        }
        grid.finish("no revision is kept")
    }
}

/// What a removal did.
#[derive(Serialize)]
pub(crate) struct RemovedView {
    /// The agent.
    pub id: String,
    /// Its documents and sessions are deleted too.
    pub purged: bool,
    /// Routes dropped or pointed elsewhere.
    pub routes_changed: u64,
    /// Turns that will not run.
    pub turns_cancelled: u64,
    /// Scheduled jobs that run no more.
    pub jobs_stopped: u64,
}

impl View for RemovedView {
    fn table(&self, _paint: Paint) -> String {
        let kept =
            if self.purged { "its home documents and sessions are deleted" } else { "its home and sessions are kept" };
        format!(
            "removed {}: {} routes changed, {} queued turns cancelled, {} scheduled jobs stopped; {kept}",
            plain(&self.id),
            self.routes_changed,
            self.turns_cancelled,
            self.jobs_stopped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    fn coder() -> v1::Agent {
        let pair = |key: &str, value: &str| v1::route::Match { key: key.into(), value: value.into() };
        v1::Agent {
            id: "coder".into(),
            spec: Some(v1::AgentSpec {
                model: Some("anthropic/claude-opus-4-6".into()),
                enabled_toolsets: Some(v1::StringList { values: vec![] }),
                disabled_toolsets: Some(v1::StringList { values: vec!["web".into(), "files".into()] }),
                api_key_env: Some("CODER_KEY".into()),
                may_ask: Some(v1::StringList { values: vec!["research".into(), "poet".into()] }),
                ..v1::AgentSpec::default()
            }),
            revision: 3,
            is_default: false,
            effective_model: "anthropic/claude-opus-4-6".into(),
            home: "/var/lib/hermes/homes/coder".into(),
            routes: vec![v1::Route {
                r#match: vec![pair("thread_id", "42"), pair("chat_id", "-1001234"), pair("platform", "telegram")],
                agent: "coder".into(),
            }],
            route_count: 2,
            soul_preview: "You write code.\u{1b}[2J".into(),
            warnings: vec!["no provider is configured for anthropic/claude-opus-4-6".into()],
            created_at_ms: 1_700_000_000_000,
            memory_path: "/var/lib/hermes/homes/coder/memories".into(),
            skills_path: "/var/lib/hermes/homes/coder/skills".into(),
            sessions_path: "/var/lib/hermes/homes/coder/sessions".into(),
            approvals: None,
            sandbox: Some(v1::Sandbox { level: v1::SandboxLevel::Off.into(), ..v1::Sandbox::default() }),
            mcp_servers: Vec::new(),
        }
    }

    fn main_agent() -> v1::Agent {
        v1::Agent {
            id: "main".into(),
            is_default: true,
            effective_model: "builtin/echo".into(),
            home: "/var/lib/hermes/homes/main".into(),
            revision: 1,
            ..v1::Agent::default()
        }
    }

    #[test]
    fn agents_are_listed_with_model_routes_home_and_default_mark() {
        let list = AgentList(vec![AgentView::from_proto(coder()), AgentView::from_proto(main_agent())]);
        insta::assert_snapshot!("agent_list_table", render(&list, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("agent_list_json", render(&list, Format::Json, Paint::Off).unwrap());
        insta::assert_snapshot!("agent_list_yaml", render(&list, Format::Yaml, Paint::Off).unwrap());
    }

    #[test]
    fn an_agent_is_shown_with_paths_routes_and_soul() {
        let view = AgentView::from_proto(coder());
        insta::assert_snapshot!("agent_show_table", render(&view, Format::Table, Paint::Off).unwrap());
        let main = AgentView::from_proto(main_agent());
        insta::assert_snapshot!("agent_show_main_table", render(&main, Format::Table, Paint::Off).unwrap());
    }

    #[test]
    fn revisions_and_removals_are_shown() {
        let revision = v1::Revision {
            revision: 2,
            spec: coder().spec,
            created_at_ms: 1_700_000_000_000,
            created_by: "operator".into(),
        };
        let list = RevisionList::from_proto(vec![revision]);
        insta::assert_snapshot!("agent_history_table", render(&list, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("agent_history_json", render(&list, Format::Json, Paint::Off).unwrap());
        let removed =
            RemovedView { id: "coder".into(), purged: false, routes_changed: 2, turns_cancelled: 1, jobs_stopped: 3 };
        insta::assert_snapshot!(render(&removed, Format::Table, Paint::Off).unwrap(), @"removed coder: 2 routes changed, 1 queued turns cancelled, 3 scheduled jobs stopped; its home and sessions are kept");
        insta::assert_snapshot!(render(&removed, Format::Json, Paint::Off).unwrap(), @r#"
        {
          "id": "coder",
          "purged": false,
          "routes_changed": 2,
          "turns_cancelled": 1,
          "jobs_stopped": 3
        }
        "#);
    }
}
