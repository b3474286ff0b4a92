//! A document as YAML text that, applied again, is no change.
//!
//! Called by `export` and, for its shape, by `diff`. Always true: text that any YAML reader could take for something else
//! is quoted, characters that lines or terminals trip over are escaped, secrets appear as the references they are. Defaults
//! are written out, so that the text means the same on another server. serde_yaml's own writer is not used because it leaves
//! `yes`, `on` and `7:36` unquoted, which our strict reader refuses.

use std::fmt::{self, Write};

use indexmap::IndexMap;

use super::tree::is_odd;
use super::{
    AgentSpec, Document, Fault, Limits, Patch, Positions, Provider, Rate, Retention, SecretRef, Streaming,
    TelegramAccount, UnauthorizedDm, WebhookAccount, WebhookReply, approvals, budget, cron, curator, home_chats, mcp,
    parse, runtime, sandbox, web,
};
use crate::AgentId;
use crate::busy::{Busy, BusyPolicy, BusyRule};
use crate::command::AccessLists;
use crate::reset::ResetPolicy;
use crate::routing::Route;

/// A document's values in the order they are written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shape {
    /// Already spelled as YAML.
    Scalar(String),
    List(Vec<Shape>),
    Map(Vec<(String, Shape)>),
    /// A list whose items are told apart by the id they carry.
    Keyed(Vec<(String, Shape)>),
}

/// The document as text.
pub fn to_yaml(document: &Document) -> String {
    let mut out = String::new();
    if let Shape::Map(entries) = shape(document) {
        block(&mut out, 0, &entries);
    }
    out
}

/// One agent alone as a document, for an archive of it. Without its home, which belongs to a machine.
pub fn agent_to_yaml(id: &AgentId, spec: &AgentSpec) -> String {
    let spec = AgentSpec { home_dir: None, ..spec.clone() };
    let mut out = String::new();
    let agents = Shape::Map(vec![(id.to_string(), agent(&spec))]);
    block(&mut out, 0, &[("agents".to_owned(), agents)]);
    out
}

/// Reads what [`agent_to_yaml`] wrote, strictly: a document of one agent and nothing else.
///
/// # Errors
/// The faults of the text.
pub fn agent_from_yaml(yaml: &str) -> Result<(AgentId, AgentSpec), Vec<Fault>> {
    let mut patch = parse(yaml)?;
    patch.positions = Positions::default();
    let mut agents = std::mem::take(&mut patch.agents).into_iter();
    match (agents.next(), agents.next()) {
        (Some((id, spec)), None) if patch == Patch::default() && spec.home_dir.is_none() => Ok((id, spec)),
        _ => {
            let message = "it must name one agent without home_dir, and nothing else".to_owned();
            Err(vec![Fault { line: 0, path: "agents".to_owned(), message }])
        }
    }
}

/// One line: flow style.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scalar(text) => f.write_str(text),
            Self::List(items) => {
                f.write_char('[')?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
                }
                f.write_char(']')
            }
            Self::Keyed(items) => Self::List(items.iter().map(|(_, item)| item.clone()).collect()).fmt(f),
            Self::Map(entries) => {
                f.write_char('{')?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    write!(f, "{}{}: {value}", if index == 0 { "" } else { ", " }, scalar(key))?;
                }
                f.write_char('}')
            }
        }
    }
}

/// Writes entries, one a line, nested ones indented.
fn block(out: &mut String, indent: usize, entries: &[(String, Shape)]) {
    for (key, value) in entries {
        pad(out, indent);
        out.push_str(&scalar(key));
        out.push(':');
        value_after_key(out, indent, key, value);
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn value_after_key(out: &mut String, indent: usize, key: &str, value: &Shape) {
    match value {
        Shape::Map(entries) if !entries.is_empty() && key != "match" => {
            out.push('\n');
            block(out, indent + 2, entries);
        }
        Shape::List(items) if matches!(items.first(), Some(Shape::Map(_))) => items_block(out, indent, items.iter()),
        Shape::Keyed(items) if !items.is_empty() => items_block(out, indent, items.iter().map(|(_, item)| item)),
        other => {
            out.push(' ');
            out.push_str(&other.to_string());
            out.push('\n');
        }
    }
}

fn items_block<'a>(out: &mut String, indent: usize, items: impl Iterator<Item = &'a Shape>) {
    out.push('\n');
    for item in items {
        let Shape::Map(entries) = item else { continue };
        for (index, (key, value)) in entries.iter().enumerate() {
            pad(out, indent + 2);
            out.push_str(if index == 0 { "- " } else { "  " });
            out.push_str(&scalar(key));
            out.push(':');
            value_after_key(out, indent + 4, key, value);
        }
    }
}

/// Text as a YAML scalar: plain only where every reader agrees that it is text.
pub(super) fn scalar(text: &str) -> String {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') || text.starts_with("~/");
    let plain = first && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./~".contains(c));
    let word = matches!(text.to_ascii_lowercase().as_str(), "true" | "false" | "null" | "y" | "n");
    if plain && !word && !is_odd(text) { text.to_owned() } else { quoted(text) }
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        let invisible = matches!(u32::from(c),
            0x80..=0x9f | 0xad | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xffff);
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || invisible => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub(super) fn text(value: &str) -> Shape {
    Shape::Scalar(scalar(value))
}

pub(super) fn literal(value: impl fmt::Display) -> Shape {
    Shape::Scalar(value.to_string())
}

pub(super) fn texts(values: &[String]) -> Shape {
    Shape::List(values.iter().map(|value| text(value)).collect())
}

/// Collects entries, leaving out what is absent.
#[derive(Default)]
pub(super) struct Entries(Vec<(String, Shape)>);

impl Entries {
    pub(super) fn put(mut self, key: &str, value: Shape) -> Self {
        self.0.push((key.to_owned(), value));
        self
    }

    fn put_text(self, key: &str, value: Option<&String>) -> Self {
        match value {
            Some(value) => self.put(key, text(value)),
            None => self,
        }
    }

    fn put_texts(self, key: &str, values: Option<&Vec<String>>) -> Self {
        match values {
            Some(values) => self.put(key, texts(values)),
            None => self,
        }
    }

    pub(super) fn map(self) -> Shape {
        Shape::Map(self.0)
    }
}

pub(super) fn named<'a, K: fmt::Display + 'a, V: 'a>(
    all: impl IntoIterator<Item = (&'a K, &'a V)>,
    value: impl Fn(&V) -> Shape,
) -> Shape {
    Shape::Map(all.into_iter().map(|(key, item)| (key.to_string(), value(item))).collect())
}

/// The document's shape, every key but an unset `default_provider` or `turns_days` and empty `platforms` and `cron` written out.
pub(super) fn shape(document: &Document) -> Shape {
    let mut top = Entries::default()
        .put("default_agent", text(document.default_agent.as_str()))
        .put("model", text(&document.model))
        .put("fallback_models", texts(&document.fallback_models))
        .put("timezone", text(&document.timezone))
        .put("group_sessions_per_user", literal(document.group_sessions_per_user))
        .put("thread_sessions_per_user", literal(document.thread_sessions_per_user))
        .put("session_reset", policy(&document.session_reset))
        .put("reset_by_type", named(&document.reset_by_type, policy))
        .put("reset_by_platform", named(&document.reset_by_platform, policy))
        .put("busy", busy(&document.busy))
        .put("limits", limits(&document.limits))
        .put("retention", retention(&document.retention))
        .put("sandbox", sandbox::shape(&document.sandbox))
        .put("approvals", approvals::shape(&document.approvals))
        .put("curator", curator::shape(&document.curator))
        .put("mcp_servers", mcp::shape(&document.mcp_servers))
        .put("budget", budget::shape(&document.budget))
        .put("user_budget", budget::shape(&document.user_budget))
        .put("web", web::shape(&document.web))
        .put("providers", named(&document.providers, provider))
        .put_text("default_provider", document.default_provider.as_ref());
    let platforms = &document.platforms;
    if !platforms.telegram.is_empty() || !platforms.webhook.is_empty() {
        let platforms = Entries::default()
            .put("telegram", accounts(&platforms.telegram, telegram))
            .put("webhook", accounts(&platforms.webhook, webhook));
        top = top.put("platforms", platforms.map());
    }
    let routes = Shape::List(document.routes.iter().map(route).collect());
    let all = top.put("agents", named(&document.agents, agent)).put("routes", routes);
    if document.cron.is_empty() { all.map() } else { all.put("cron", cron::shape(&document.cron)).map() }
}

fn busy(busy: &Busy) -> Shape {
    let policy = |entries: Entries, policy: &BusyPolicy| {
        entries.put("mode", text(policy.mode.as_str())).put("notice", literal(policy.notice))
    };
    let rule = |rule: &BusyRule| {
        let entries = match &rule.agent {
            Some(agent) => Entries::default().put("agent", text(agent.as_str())),
            None => Entries::default(),
        };
        policy(entries.put_text("platform", rule.platform.as_ref()), &rule.policy).map()
    };
    let rules = busy.rules.iter().map(rule).collect();
    policy(Entries::default(), &busy.policy).put("rules", Shape::List(rules)).map()
}

fn limits(limits: &Limits) -> Shape {
    Entries::default()
        .put("message_bytes", literal(limits.message_bytes))
        .put("history_bytes", literal(limits.history_bytes))
        .put("turn_seconds", literal(limits.turn_seconds))
        .put("stall_seconds", literal(limits.stall_seconds))
        .put("queued_per_agent", literal(limits.queued_per_agent))
        .put("queued_per_session", literal(limits.queued_per_session))
        .put("shed_after_seconds", literal(limits.shed_after_seconds))
        .put("inbound_per_second", literal(limits.inbound_per_second))
        .map()
}

fn retention(retention: &Retention) -> Shape {
    let entries = Entries::default()
        .put("dedupe_days", literal(retention.dedupe_days))
        .put("steps_days", literal(retention.steps_days))
        .put("deliveries_days", literal(retention.deliveries_days))
        .put("attachments_days", literal(retention.attachments_days))
        .put("dead_days", literal(retention.dead_days));
    match retention.turns_days {
        Some(days) => entries.put("turns_days", literal(days)).map(),
        None => entries.map(),
    }
}

fn policy(policy: &ResetPolicy) -> Shape {
    Entries::default()
        .put("mode", text(policy.mode.as_str()))
        .put("at_hour", literal(policy.at_hour))
        .put("idle_minutes", literal(policy.idle_minutes))
        .map()
}

fn provider(provider: &Provider) -> Shape {
    let entries = Entries::default()
        .put("kind", text(provider.kind.as_str()))
        .put_text("base_url", provider.base_url.as_ref())
        .put_text("api_key_env", provider.api_key_env.as_ref());
    match provider.prices.is_empty() {
        true => entries.map(),
        false => entries.put("prices", budget::prices_shape(&provider.prices)).map(),
    }
}

fn agent(spec: &AgentSpec) -> Shape {
    let entries = Entries::default()
        .put_text("model", spec.model.as_ref())
        .put_text("provider", spec.provider.as_ref())
        .put_text("base_url", spec.base_url.as_ref())
        .put_text("api_key_env", spec.api_key_env.as_ref())
        .put_text("home_dir", spec.home_dir.as_ref())
        .put_texts("enabled_toolsets", spec.enabled_toolsets.as_ref())
        .put_texts("disabled_toolsets", spec.disabled_toolsets.as_ref())
        .put_texts("fallback_models", spec.fallback_models.as_ref())
        .put_texts("may_ask", spec.may_ask.as_ref());
    let entries = match &spec.sandbox {
        Some(own) => entries.put("sandbox", sandbox::shape(own)),
        None => entries,
    };
    let entries = match &spec.approvals {
        Some(own) => entries.put("approvals", approvals::shape(own)),
        None => entries,
    };
    let entries = match &spec.curator {
        Some(own) => entries.put("curator", curator::shape(own)),
        None => entries,
    };
    let entries = match &spec.mcp_servers {
        Some(own) => entries.put("mcp_servers", mcp::shape(own)),
        None => entries,
    };
    let entries = match &spec.runtime {
        Some(own) => entries.put("runtime", runtime::shape(own)),
        None => entries,
    };
    match &spec.budget {
        Some(own) => entries.put("budget", budget::shape(own)).map(),
        None => entries.map(),
    }
}

fn route(route: &Route) -> Shape {
    let keys = route.keys.iter().map(|(key, value)| (key.as_str().to_owned(), text(value))).collect();
    Entries::default().put("match", Shape::Map(keys)).put("agent", text(route.agent.as_str())).map()
}

fn accounts<V>(all: &IndexMap<String, V>, value: impl Fn(Entries, &V) -> Entries) -> Shape {
    let item =
        |(id, account): (&String, &V)| (id.clone(), value(Entries::default().put("id", text(id)), account).map());
    Entries::default().put("accounts", Shape::Keyed(all.iter().map(item).collect())).map()
}

fn secret(entries: Entries, what: &str, reference: &SecretRef) -> Entries {
    match reference {
        SecretRef::Env(name) => entries.put(&format!("{what}_env"), text(name)),
        SecretRef::File(path) => entries.put(&format!("{what}_file"), text(path)),
    }
}

fn telegram(entries: Entries, account: &TelegramAccount) -> Entries {
    let rate = match account.rate {
        Rate::Off => Shape::Scalar("off".to_owned()),
        Rate::Limited { per_chat_per_s, per_account_per_s } => Entries::default()
            .put("per_chat_per_s", literal(per_chat_per_s))
            .put("per_account_per_s", literal(per_account_per_s))
            .map(),
    };
    let entries = secret(entries, "token", &account.token)
        .put_text("api_base", account.api_base.as_ref())
        .put_texts("allow_users", listed(&account.allow_users).as_ref())
        .put_texts("allow_chats", listed(&account.allow_chats).as_ref())
        .put("allow_all", literal(account.allow_all))
        .put_text(
            "unauthorized_dm",
            account
                .unauthorized_dm
                .map(|does| match does {
                    UnauthorizedDm::Pair => "pair".to_owned(),
                    UnauthorizedDm::Ignore => "ignore".to_owned(),
                })
                .as_ref(),
        )
        .put("rate", rate)
        .put(
            "streaming",
            Shape::Scalar(
                match account.streaming {
                    Streaming::Off => "off",
                    Streaming::Edit => "edit",
                }
                .to_owned(),
            ),
        );
    let entries = match account.homes.is_empty() {
        true => entries,
        false => entries.put("homes", home_chats::shape(&account.homes)),
    };
    access(entries, &account.access)
}

fn listed(all: &[String]) -> Option<Vec<String>> {
    (!all.is_empty()).then(|| all.to_vec())
}

fn access(entries: Entries, lists: &AccessLists) -> Entries {
    entries
        .put_texts("allow_admin_from", listed(&lists.allow_admin_from).as_ref())
        .put_texts("user_allowed_commands", listed(&lists.user_allowed_commands).as_ref())
        .put_texts("group_allow_admin_from", listed(&lists.group_allow_admin_from).as_ref())
        .put_texts("group_user_allowed_commands", listed(&lists.group_user_allowed_commands).as_ref())
}

fn webhook(entries: Entries, account: &WebhookAccount) -> Entries {
    let entries = secret(entries, "secret", &account.secret);
    let entries = match &account.reply {
        WebhookReply::Callback { url } => entries.put("callback_url", text(url)),
        WebhookReply::Chat { platform, account, chat_id, thread_id } => entries.put(
            "deliver",
            Entries::default()
                .put("platform", text(platform))
                .put("account", text(account))
                .put("chat_id", text(chat_id))
                .put_text("thread_id", thread_id.as_ref())
                .map(),
        ),
    };
    access(entries, &account.access)
}
