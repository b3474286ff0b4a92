//! A document judged whole: references, and what is accepted but probably not meant.
//!
//! Called on the merged document by `apply`, `diff` and `--config`, after every change of the registry, and offline. Always
//! true: it reads the document alone; whether a variable is set, a file exists or two homes are one after symlinks is found
//! out where that is known.

use std::collections::BTreeMap;

use super::fields::{Faults, REPORT_LIMIT};
use super::models::{Resolved, resolve_models, unserved_message};
use super::{
    AgentSpec, Document, Fault, Positions, Warning, WebhookReply, account_path, budget, nearest, runtime, shown, values,
};
use crate::AgentId;
use crate::approvals::Approvals;
use crate::command;
use crate::mcp;
use crate::reset::{ResetMode, ResetPolicy};
use crate::routing::RouteTable;
use hermes_home::curator;
use hermes_home::sandbox::Sandbox;

/// Judges references of a document; `positions` are those of the text it came from, or the default.
///
/// Faults refuse the change. Warnings: routes that can never win, models that no provider serves, budgets that cannot hold or
/// let nothing in, reset fields without effect. At most 1,000 of each, and a count of the rest.
pub fn check(document: &Document, positions: &Positions) -> (Vec<Fault>, Vec<Warning>) {
    let table = RouteTable::compile(document.routes.as_slice().into());
    check_compiled(document, &table, positions)
}

/// [`check`] with the document's routes already compiled.
pub fn check_compiled(document: &Document, table: &RouteTable, positions: &Positions) -> (Vec<Fault>, Vec<Warning>) {
    let mut faults = Faults::default();
    name_agents(document, positions, &mut faults);
    check_providers(document, positions, &mut faults);
    check_targets(document, positions, &mut faults);
    check_homes(document, positions, &mut faults);
    let mut warnings = Warnings::default();
    warn_models(document, positions, &mut warnings);
    warn_budgets(document, positions, &mut warnings);
    warn_reset(document, positions, &mut warnings);
    warn_busy(document, positions, &mut warnings);
    warn_asks(document, positions, &mut warnings);
    warn_access(document, positions, &mut warnings);
    warn_runtimes(document, positions, &mut warnings);
    for (shadowed, by) in table.shadows() {
        let message = format!("can never win: route {by} covers it");
        warnings.add(positions.route(shadowed), format!("routes[{shadowed}]"), message);
    }
    (faults.into_list(), warnings.into_list())
}

/// Judges the fields of one spec that did not come as text; paths begin with `agents.<id>`, lines are 0.
pub fn check_spec(id: &AgentId, spec: &AgentSpec) -> Vec<Fault> {
    let mut faults = Faults::default();
    let mut judge = |field: &str, value: Option<&String>, judge: &dyn Fn(&str) -> Result<(), String>| {
        if let Some(Err(message)) = value.map(|value| judge(value)) {
            faults.push(Fault { line: 0, path: format!("agents.{id}.{field}"), message });
        }
    };
    judge("model", spec.model.as_ref(), &values::model);
    judge("provider", spec.provider.as_ref(), &|name| values::name(name, "a provider's name"));
    judge("base_url", spec.base_url.as_ref(), &values::url);
    judge("api_key_env", spec.api_key_env.as_ref(), &values::env_name);
    let smart_model = spec.approvals.as_ref().and_then(|approvals| approvals.smart_model.as_ref());
    judge("approvals.smart_model", smart_model, &values::model);
    judge("home_dir", spec.home_dir.as_ref(), &values::home_dir);
    for message in spec.budget.as_ref().map(budget::judge).unwrap_or_default() {
        judge("budget", Some(&message), &|message| Err(message.to_owned()));
    }
    for (index, model) in spec.fallback_models.iter().flatten().enumerate() {
        judge(&format!("fallback_models[{index}]"), Some(model), &values::model);
    }
    for (index, name) in spec.may_ask.iter().flatten().enumerate() {
        judge(&format!("may_ask[{index}]"), Some(name), &|name| {
            AgentId::parse(name).map(|_| ()).map_err(|invalid| invalid.to_string())
        });
    }
    for (field, toolsets) in
        [("enabled_toolsets", &spec.enabled_toolsets), ("disabled_toolsets", &spec.disabled_toolsets)]
    {
        for (index, toolset) in toolsets.iter().flatten().enumerate() {
            judge(&format!("{field}[{index}]"), Some(toolset), &values::toolset);
        }
    }
    for fault in spec.approvals.iter().flat_map(Approvals::faults) {
        faults.push(Fault { line: 0, path: format!("agents.{id}.approvals"), message: fault });
    }
    for (key, fault) in spec.curator.iter().flat_map(curator::Settings::faults) {
        faults.push(Fault { line: 0, path: format!("agents.{id}.curator.{key}"), message: fault });
    }
    for fault in spec.sandbox.iter().flat_map(Sandbox::faults) {
        faults.push(Fault { line: 0, path: format!("agents.{id}.sandbox"), message: fault });
    }
    for (name, server) in spec.mcp_servers.iter().flatten() {
        let path = format!("agents.{id}.mcp_servers.{name}");
        if let Some(message) = mcp::name_fault(name) {
            faults.push(Fault { line: 0, path: path.clone(), message });
        }
        for (key, message) in server.faults() {
            faults.push(Fault { line: 0, path: format!("{path}.{key}"), message });
        }
    }
    for (key, message) in
        spec.acp().into_iter().flat_map(|acp| acp.faults().into_iter().chain(runtime::reference_faults(acp)))
    {
        faults.push(Fault { line: 0, path: format!("agents.{id}.runtime.{key}"), message });
    }
    if let Some(message) = spec.mcp_servers.as_ref().and_then(mcp::fault_of_all) {
        faults.push(Fault { line: 0, path: format!("agents.{id}.mcp_servers"), message });
    }
    faults.into_list()
}

/// The default document with a text applied and checked: what offline commands work on.
///
/// # Errors
/// All faults of the text and of its references.
pub fn load_offline(text: &str) -> Result<(Document, Vec<Warning>), Vec<Fault>> {
    let (document, positions) = super::read(text).onto(&Document::default(), false)?;
    let (faults, warnings) = check(&document, &positions);
    if faults.is_empty() { Ok((document, warnings)) } else { Err(faults) }
}

fn not_registered(id: &AgentId, document: &Document) -> String {
    match nearest(id.as_str(), document.agents.keys().map(AgentId::as_str)) {
        Some(near) => format!("agent {id} is not registered; did you mean {near}?"),
        None => format!("agent {id} is not registered; add it under agents or name another"),
    }
}

/// References to agents alone, also in a document that was only understood in part.
pub(super) fn check_agents(document: &Document, positions: &Positions) -> Vec<Fault> {
    let mut faults = Faults::default();
    name_agents(document, positions, &mut faults);
    faults.into_list()
}

fn name_agents(document: &Document, positions: &Positions, faults: &mut Faults) {
    if !document.agents.contains_key(&document.default_agent) {
        let path = "default_agent".to_owned();
        let message = not_registered(&document.default_agent, document);
        faults.push(Fault { line: positions.line(&path), path, message });
    }
    for home in document.platforms.homes().filter(|home| !document.agents.contains_key(home.agent)) {
        faults.push_with(|| {
            let path = home.path();
            Fault { line: positions.line(&path), path, message: not_registered(home.agent, document) }
        });
    }
    for agent in document.cron.keys().filter(|agent| !document.agents.contains_key(*agent)) {
        let path = format!("cron.{agent}");
        faults.push(Fault { line: positions.line(&path), path, message: not_registered(agent, document) });
    }
    for (index, route) in document.routes.iter().enumerate() {
        if !document.agents.contains_key(&route.agent) {
            faults.push_with(|| Fault {
                line: positions.route_agent(index),
                path: format!("routes[{index}].agent"),
                message: not_registered(&route.agent, document),
            });
        }
    }
}

fn check_providers(document: &Document, positions: &Positions, faults: &mut Faults) {
    let mut known = |path: String, name: &String| {
        if !document.providers.contains_key(name) {
            let message = match nearest(name, document.providers.keys().map(String::as_str)) {
                Some(near) => format!("provider {} does not exist; did you mean {near}?", shown(name)),
                None => format!("provider {} does not exist; add it under providers", shown(name)),
            };
            faults.push(Fault { line: positions.line(&path), path, message });
        }
    };
    if let Some(name) = &document.default_provider {
        known("default_provider".to_owned(), name);
    }
    for (id, spec) in &document.agents {
        if let Some(name) = &spec.provider {
            known(format!("agents.{id}.provider"), name);
        }
    }
}

fn check_targets(document: &Document, positions: &Positions, faults: &mut Faults) {
    for (id, account) in &document.platforms.webhook {
        let WebhookReply::Chat { platform, account: target, .. } = &account.reply else { continue };
        if platform != "telegram" || !document.platforms.telegram.contains_key(target) {
            let path = format!("{}.deliver.account", account_path("webhook", id));
            let message = format!("there is no {} account {}; add it under platforms", shown(platform), shown(target));
            faults.push(Fault { line: positions.line(&path), path, message });
        }
    }
}

/// A home as text, without the differences that never name another directory.
fn lexical(home: &str) -> String {
    let parts: Vec<&str> = home.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let root = if home.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

fn check_homes(document: &Document, positions: &Positions, faults: &mut Faults) {
    let mut owners: BTreeMap<String, &AgentId> = BTreeMap::new();
    for (id, spec) in &document.agents {
        let Some(home) = &spec.home_dir else { continue };
        if let Some(owner) = owners.get(&lexical(home)) {
            let path = format!("agents.{id}.home_dir");
            let message = format!("{} is the home of {owner}; two agents never share one", shown(home));
            faults.push(Fault { line: positions.line(&path), path, message });
        } else {
            owners.insert(lexical(home), id);
        }
    }
}

#[derive(Default)]
struct Warnings {
    list: Vec<Warning>,
    omitted: usize,
}

impl Warnings {
    fn add(&mut self, line: u32, path: String, message: String) {
        if self.list.len() < REPORT_LIMIT {
            self.list.push(Warning { line, path, message });
        } else {
            self.omitted += 1;
        }
    }

    fn into_list(mut self) -> Vec<Warning> {
        if self.omitted > 0 {
            let message = format!("{} more warnings are not listed", self.omitted);
            self.list.push(Warning { line: 0, path: String::new(), message });
        }
        self.list
    }
}

fn warn_models(document: &Document, positions: &Positions, warnings: &mut Warnings) {
    for (id, spec) in document.agents.iter().filter(|(_, spec)| spec.acp().is_none()) {
        let unserved = resolve_models(document, spec).into_iter().enumerate();
        for (index, model) in unserved.filter(|(_, model)| model.resolved == Resolved::Unserved) {
            let key = if index == 0 { "model" } else { "fallback_models" };
            let path = format!("agents.{id}.{key}");
            let line = match positions.line(&path) {
                0 => positions.line(key),
                line => line,
            };
            warnings.add(line, path, unserved_message(&model.id));
        }
    }
    let of_agents =
        document.agents.iter().map(|(id, spec)| (format!("agents.{id}.approvals"), spec.approvals.as_ref()));
    for (path, approvals) in of_agents.chain([("approvals".to_owned(), Some(&document.approvals))]) {
        let Some(model) = approvals.and_then(|approvals| approvals.smart_model.clone()) else { continue };
        let spec = AgentSpec { model: Some(model.clone()), ..AgentSpec::default() };
        if resolve_models(document, &spec).first().is_some_and(|model| model.resolved == Resolved::Unserved) {
            let line = positions.line(&path);
            warnings.add(line, format!("{path}.smart_model"), unserved_message(&model));
        }
    }
}

fn warn_budgets(document: &Document, positions: &Positions, warnings: &mut Warnings) {
    for (id, spec) in &document.agents {
        for message in budget::warnings(document, spec) {
            let path = format!("agents.{id}.budget");
            let line = match positions.line(&path) {
                0 => positions.line("budget"),
                line => line,
            };
            warnings.add(line, path, message);
        }
    }
}

fn warn_asks(document: &Document, positions: &Positions, warnings: &mut Warnings) {
    for (id, spec) in &document.agents {
        for (index, name) in spec.may_ask.iter().flatten().enumerate() {
            let message = match AgentId::parse(name) {
                Ok(asked) if asked == *id => "has no effect: an agent does not ask itself".to_owned(),
                Ok(asked) if !document.agents.contains_key(&asked) => {
                    format!("has no effect: {}", not_registered(&asked, document))
                }
                _ => continue,
            };
            let path = format!("agents.{id}.may_ask[{index}]");
            warnings.add(positions.line(&path), path, message);
        }
    }
}

fn warn_runtimes(document: &Document, positions: &Positions, warnings: &mut Warnings) {
    for (id, spec) in document.agents.iter().filter(|(_, spec)| spec.acp().is_some()) {
        let idle = [
            ("model", spec.model.is_some()),
            ("provider", spec.provider.is_some()),
            ("base_url", spec.base_url.is_some()),
            ("api_key_env", spec.api_key_env.is_some()),
            ("fallback_models", spec.fallback_models.is_some()),
            ("budget", spec.budget.is_some()),
            ("enabled_toolsets", spec.enabled_toolsets.is_some()),
            ("disabled_toolsets", spec.disabled_toolsets.is_some()),
            ("mcp_servers", spec.mcp_servers.is_some()),
            ("may_ask", spec.may_ask.is_some()),
        ];
        for (key, _) in idle.into_iter().filter(|(_, set)| *set) {
            let path = format!("agents.{id}.{key}");
            let message = "has no effect with runtime acp: the program has models and tools of its own".to_owned();
            warnings.add(positions.line(&path), path, message);
        }
    }
}

fn warn_busy(document: &Document, positions: &Positions, warnings: &mut Warnings) {
    for (index, rule) in document.busy.rules.iter().enumerate() {
        let Some(agent) = &rule.agent else { continue };
        if !document.agents.contains_key(agent) {
            let path = format!("busy.rules[{index}]");
            let message = format!("has no effect: {}", not_registered(agent, document));
            warnings.add(positions.line(&path), path, message);
        }
    }
}

fn warn_access(document: &Document, positions: &Positions, warnings: &mut Warnings) {
    for (platform, id, lists) in document.platforms.all_access() {
        let account = account_path(platform, id);
        let line = positions.line(&account);
        for (key, commands) in [
            ("user_allowed_commands", &lists.user_allowed_commands),
            ("group_user_allowed_commands", &lists.group_user_allowed_commands),
        ] {
            for (index, written) in commands.iter().enumerate() {
                let name = written.trim_start_matches('/');
                if command::find(name).is_some() {
                    continue;
                }
                let near = nearest(name, command::TABLE.iter().map(|spec| spec.name));
                let hint = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
                let message = format!("{} is no command{hint}", shown(written));
                warnings.add(line, format!("{account}.{key}[{index}]"), message);
            }
        }
        let (dm, group) = (&lists.allow_admin_from, &lists.group_allow_admin_from);
        // The list of groups holds for direct chats too, where those have none of their own.
        let idle = [
            ("user_allowed_commands", &lists.user_allowed_commands, dm.is_empty(), "allow_admin_from"),
            (
                "group_user_allowed_commands",
                &lists.group_user_allowed_commands,
                group.is_empty() && (dm.is_empty() || !lists.user_allowed_commands.is_empty()),
                "group_allow_admin_from",
            ),
        ];
        for (key, commands, ungated, admins) in idle {
            if ungated && !commands.is_empty() {
                let message = format!("has no effect without {admins}: everybody may give every command");
                warnings.add(line, format!("{account}.{key}"), message);
            }
        }
    }
}

fn warn_reset(document: &Document, positions: &Positions, warnings: &mut Warnings) {
    let named = [("reset_by_type", &document.reset_by_type), ("reset_by_platform", &document.reset_by_platform)];
    let overrides = named.iter().flat_map(|(section, all)| {
        all.iter().map(move |(key, policy)| (format!("{section}.{}", super::export::scalar(key)), policy))
    });
    for (path, policy) in std::iter::once(("session_reset".to_owned(), &document.session_reset)).chain(overrides) {
        let default = ResetPolicy::default();
        let idle = policy.idle_minutes != default.idle_minutes;
        let hour = policy.at_hour != default.at_hour;
        let unused = match policy.mode {
            ResetMode::None if idle => "idle_minutes",
            ResetMode::None | ResetMode::Idle if hour => "at_hour",
            ResetMode::Daily if idle => "idle_minutes",
            _ => continue,
        };
        let message = format!("{unused} has no effect with mode {}", policy.mode.as_str());
        warnings.add(positions.line(&path), path, message);
    }
}
