//! The document: one YAML file with the seed's shape plus ours, used by `apply`, `diff`, `export` and `--config`.
//!
//! Read by the control plane (which stores it) and by hermesctl (offline). [`read`] turns text into a [`Patch`]
//! or its faults, [`Document::merged`] makes the document that would result, [`check`] judges it whole, [`diff`] and [`to_yaml`] show it.
//! Always true: a refused text changes nothing and every fault names line and path; equal documents export equal text.
//! Secrets appear by `*_env` or `*_file` reference only. It deliberately resolves no secret and opens no file.
//!
//! Merging: agents, providers, accounts and an agent's jobs that a text names become as written; all other keys replace the stored value
//! whole when present (`limits` key by key). Null counts as absent inside an agent, provider or account, and unsets
//! `default_provider`; elsewhere it is refused, because an empty `routes:` is more often a slip than a wish.

mod accounts;
mod approvals;
mod budget;
mod busy;
mod check;
mod cron;
mod curator;
mod export;
mod fields;
mod home_chats;
mod limits;
mod mcp;
mod merge;
mod models;
mod patch;
mod retention;
mod runtime;
mod sandbox;
mod tree;
mod values;
mod web;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use check::{check, check_compiled, check_spec, load_offline};
pub use cron::{Jobs, job_path};
pub use export::{agent_from_yaml, agent_to_yaml, to_yaml};
pub use home_chats::{HomeChat, NamedHome};
pub use limits::Limits;
pub use merge::{Change, ChangeKind, diff};
pub use models::{Endpoint, Model, Resolved, resolve_model, resolve_models, unserved_message, with_own_model};
pub use patch::{LimitsPatch, Patch, Positions, Reading, parse, read};
pub use retention::{DEDUPE_DAYS_MIN, RETENTION_DAYS_MAX, Retention, RetentionPatch};

use crate::AgentId;
use crate::approvals::Approvals;
use crate::budget::{Budget, Price};
use crate::busy::Busy;
use crate::command::AccessLists;
use crate::egress::Web;
use crate::mcp::McpServers;
use crate::reset::{ResetPolicy, ResetRules};
use crate::routing::Route;
use crate::runtime::{Acp, Runtime};
use crate::session_key::Isolation;
use hermes_home::sandbox::Sandbox;

/// The model that answers offline by repeating the text.
pub const ECHO_MODEL: &str = "builtin/echo";
/// Most that `limits.message_bytes` may be: a message travels in one protocol message of at most 1 MiB.
pub const MESSAGE_BYTES_MAX: u64 = 768 * 1024;
/// Most that `limits.turn_seconds` and `limits.stall_seconds` may be: a week.
pub const TURN_SECONDS_MAX: u64 = 7 * 86_400;
/// Most that `limits.history_bytes` may be.
pub const HISTORY_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Most that the bounds of queues may be.
pub const QUEUED_MAX: u64 = 1_000_000;

/// Everything that can be configured, with defaults filled in. Stored in Postgres; listeners, database URL, data dir and
/// secrets are not in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// The agent of messages that no route takes.
    pub default_agent: AgentId,
    /// The model of every agent that names none. Default `builtin/echo`.
    pub model: String,
    /// Models that are asked, in this order, when an agent's own cannot answer. Default: none.
    #[serde(default)]
    pub fallback_models: Vec<String>,
    /// IANA zone in which daily resets, days and months are judged. Default `UTC`.
    pub timezone: String,
    /// One session per user in group chats. Default true.
    pub group_sessions_per_user: bool,
    /// One session per user inside a thread. Default false.
    pub thread_sessions_per_user: bool,
    /// When sessions expire. Default mode `none`.
    pub session_reset: ResetPolicy,
    /// Overrides by chat type.
    pub reset_by_type: BTreeMap<String, ResetPolicy>,
    /// Overrides by platform; they win over the type's.
    pub reset_by_platform: BTreeMap<String, ResetPolicy>,
    /// What a message does to the turn that runs in its session. Default: it waits.
    pub busy: Busy,
    /// Bounds.
    pub limits: Limits,
    /// How long what is over is kept.
    #[serde(default)]
    pub retention: Retention,
    /// How the tools of every agent are kept apart that has no boundary of its own.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// When people are asked before what an agent does that has no rule of its own.
    #[serde(default)]
    pub approvals: Approvals,
    /// When the skills of every agent are looked after that says nothing of its own.
    #[serde(default)]
    pub curator: curator::Settings,
    /// MCP servers of every agent that has none of its own. Default: none.
    #[serde(default)]
    pub mcp_servers: McpServers,
    /// What each agent may use that has no budget of its own. Default: anything.
    #[serde(default)]
    pub budget: Budget,
    /// What each user of a platform may use, all agents together. Default: anything.
    #[serde(default)]
    pub user_budget: Budget,
    /// What agents may do on the web.
    #[serde(default)]
    pub web: Web,
    /// Model providers by name.
    pub providers: BTreeMap<String, Provider>,
    /// The provider of models without a configured prefix.
    pub default_provider: Option<String>,
    /// Platform accounts.
    pub platforms: Platforms,
    /// The registry without tombstones; `main` is always in it.
    pub agents: BTreeMap<AgentId, AgentSpec>,
    /// First match wins.
    pub routes: Vec<Route>,
    /// Jobs that people made. They are stored beside the document: filled in only where a text is applied or compared, or an export is made.
    #[serde(skip)]
    pub cron: Jobs,
}

impl Default for Document {
    /// `main` exists and answers everything with the echo model.
    fn default() -> Self {
        Self {
            default_agent: AgentId::main(),
            model: ECHO_MODEL.to_owned(),
            fallback_models: Vec::new(),
            timezone: "UTC".to_owned(),
            group_sessions_per_user: Isolation::default().group_per_user,
            thread_sessions_per_user: Isolation::default().thread_per_user,
            session_reset: ResetPolicy::default(),
            reset_by_type: BTreeMap::new(),
            reset_by_platform: BTreeMap::new(),
            busy: Busy::default(),
            limits: Limits::default(),
            retention: Retention::default(),
            sandbox: Sandbox::default(),
            approvals: Approvals::default(),
            curator: curator::Settings::default(),
            mcp_servers: McpServers::new(),
            budget: Budget::default(),
            user_budget: Budget::default(),
            web: Web::default(),
            providers: BTreeMap::new(),
            default_provider: None,
            platforms: Platforms::default(),
            agents: BTreeMap::from([(AgentId::main(), AgentSpec::default())]),
            routes: Vec::new(),
            cron: Jobs::new(),
        }
    }
}

impl Document {
    /// The isolation flags, for session keys.
    pub fn isolation(&self) -> Isolation {
        Isolation { group_per_user: self.group_sessions_per_user, thread_per_user: self.thread_sessions_per_user }
    }

    /// The boundary around an agent's tools: its own as a whole, else the one of all.
    pub fn sandbox_of(&self, spec: &AgentSpec) -> Sandbox {
        spec.sandbox.unwrap_or(self.sandbox)
    }

    /// When an agent's skills are looked after: its own rule as a whole, else the one of all. Where a program answers no model is there that could
    /// merge them.
    pub fn curator_of(&self, spec: &AgentSpec) -> curator::Settings {
        let curator = spec.curator.unwrap_or(self.curator);
        curator::Settings { consolidate: curator.consolidate && spec.acp().is_none(), ..curator }
    }

    /// When people are asked before what an agent does: its own rule as a whole, else the one of all.
    pub fn approvals_of<'a>(&'a self, spec: &'a AgentSpec) -> &'a Approvals {
        spec.approvals.as_ref().unwrap_or(&self.approvals)
    }

    /// The MCP servers of an agent: its own as a whole, else those of all.
    pub fn mcp_servers_of<'a>(&'a self, spec: &'a AgentSpec) -> &'a McpServers {
        spec.mcp_servers.as_ref().unwrap_or(&self.mcp_servers)
    }

    /// The budget of an agent: its own as a whole, else the one of all.
    pub fn budget_of<'a>(&'a self, spec: &'a AgentSpec) -> &'a Budget {
        spec.budget.as_ref().unwrap_or(&self.budget)
    }

    /// The reset policies, for selection.
    pub fn reset_rules(&self) -> ResetRules<'_> {
        ResetRules { default: &self.session_reset, by_type: &self.reset_by_type, by_platform: &self.reset_by_platform }
    }
}

/// What an agent is: one profile revision. Absent fields fall back to the document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSpec {
    /// Model id such as `anthropic/claude-opus-4-6`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Provider name; wins over the model id's prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Base URL of an OpenAI-compatible server for this agent alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Name of the control plane's environment variable that holds this agent's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Home directory on the process launcher; `~` is expanded there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home_dir: Option<String>,
    /// Toolsets that replace the default ones; an empty list is an explicit "none".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled_toolsets: Option<Vec<String>>,
    /// Toolsets taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_toolsets: Option<Vec<String>>,
    /// The boundary around its tools, instead of the document's as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// When people are asked before what it does, instead of the document's as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<Approvals>,
    /// When its skills are looked after, instead of the document's as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curator: Option<curator::Settings>,
    /// Its MCP servers, instead of the document's as a whole; an empty map is an explicit "none".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp_servers: Option<McpServers>,
    /// Models that are asked when its own cannot answer; an empty list is an explicit "none".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_models: Option<Vec<String>>,
    /// What it may use, instead of the document's `budget` as a whole; one without limits is an explicit "anything".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Agents that it may ask by itself; absent or empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_ask: Option<Vec<String>>,
    /// What answers its turns; absent: the worker's own loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
}

impl AgentSpec {
    /// The program that answers its turns; `None`: the worker's own loop does.
    pub fn acp(&self) -> Option<&Acp> {
        match &self.runtime {
            Some(Runtime::Acp(acp)) => Some(acp),
            Some(Runtime::Native) | None => None,
        }
    }

    /// Whether it may ask this agent by itself.
    pub fn may_ask(&self, id: &AgentId) -> bool {
        self.may_ask.iter().flatten().any(|name| name == id.as_str())
    }
}

/// Which wire protocol a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// OpenAI chat completions, also OpenRouter, vLLM, Ollama, llama.cpp …
    Openai,
    /// Anthropic messages.
    Anthropic,
    /// Google Gemini.
    Gemini,
}

impl ProviderKind {
    /// The name written in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
        }
    }

    /// The kind of exactly this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Openai, Self::Anthropic, Self::Gemini].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// One model provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// Wire protocol.
    pub kind: ProviderKind,
    /// Base URL up to and including the version (`https://host/v1`); absent means the provider's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Name of the environment variable with the key; absent means no key is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// What its models cost, by the name that it calls them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prices: BTreeMap<String, Price>,
}

/// Platform accounts by platform.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Platforms {
    /// Telegram bots by account id, in the order written.
    #[serde(default)]
    pub telegram: IndexMap<String, TelegramAccount>,
    /// Signed HTTP sources by account id.
    #[serde(default)]
    pub webhook: IndexMap<String, WebhookAccount>,
}

/// The platforms that accounts can be on.
pub const PLATFORMS: &[&str] = &["telegram", "webhook"];

impl Platforms {
    /// Ids of the accounts on a platform.
    pub fn ids(&self, platform: &str) -> impl Iterator<Item = &str> {
        let telegram = self.telegram.keys().filter(move |_| platform == "telegram");
        telegram.chain(self.webhook.keys().filter(move |_| platform == "webhook")).map(String::as_str)
    }

    /// Who may give which commands on an account; of one that is not here everybody may.
    pub fn access(&self, platform: &str, account: &str) -> Option<&AccessLists> {
        match platform {
            "telegram" => self.telegram.get(account).map(|account| &account.access),
            "webhook" => self.webhook.get(account).map(|account| &account.access),
            _ => None,
        }
    }

    /// Whether a stranger who writes a direct message to an account gets a pairing code; see [`TelegramAccount::pairs`].
    pub fn pairs(&self, platform: &str, account: &str) -> bool {
        platform == "telegram" && self.telegram.get(account).is_some_and(TelegramAccount::pairs)
    }

    /// Every account's platform, id and access lists.
    pub(crate) fn all_access(&self) -> impl Iterator<Item = (&'static str, &String, &AccessLists)> {
        let telegram = self.telegram.iter().map(|(id, account)| ("telegram", id, &account.access));
        telegram.chain(self.webhook.iter().map(|(id, account)| ("webhook", id, &account.access)))
    }
}

/// Where a secret is found. Exactly one of the two in a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretRef {
    /// Name of an environment variable of the control plane.
    Env(String),
    /// Path of a file the control plane can read; its trimmed content is the secret.
    File(String),
}

/// What is wrong with a reference to a secret that did not come as text; what it holds is never quoted.
pub(crate) fn fault_of_reference(reference: &SecretRef) -> Option<String> {
    match reference {
        SecretRef::Env(name) => values::env_name(name).err(),
        SecretRef::File(path) => values::secret_file(path).err(),
    }
}

/// What is wrong with a URL that did not come as text.
pub(crate) fn fault_of_url(text: &str) -> Option<String> {
    values::url(text).err()
}

/// One Telegram bot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TelegramAccount {
    /// The bot token (`token_env` or `token_file` in the document).
    pub token: SecretRef,
    /// A self-hosted Bot API server, for example `http://127.0.0.1:8081`.
    pub api_base: Option<String>,
    /// User ids that may talk to it.
    pub allow_users: Vec<String>,
    /// Chat ids in which anybody may talk to it.
    pub allow_chats: Vec<String>,
    /// Everybody may; must be said.
    pub allow_all: bool,
    /// What becomes of a direct message of somebody who may not; `None`: [`TelegramAccount::pairs`] says.
    #[serde(default)]
    pub unauthorized_dm: Option<UnauthorizedDm>,
    /// Pacing of sends.
    pub rate: Rate,
    /// Whether chats see an answer while it is written.
    #[serde(default)]
    pub streaming: Streaming,
    /// Where its agents find their people, instead of what is said in a chat.
    #[serde(default)]
    pub homes: BTreeMap<AgentId, HomeChat>,
    /// Who may give which commands.
    #[serde(flatten)]
    pub access: AccessLists,
}

impl TelegramAccount {
    /// Whether a stranger who writes a direct message gets a pairing code. What is said holds; an account that names nobody pairs, one with a
    /// list does not, and where everybody may talk there are no strangers. Those who were approved are heard in any case.
    pub fn pairs(&self) -> bool {
        let named = !self.allow_users.is_empty() || !self.allow_chats.is_empty();
        let default = if named { UnauthorizedDm::Ignore } else { UnauthorizedDm::Pair };
        !self.allow_all && self.unauthorized_dm.unwrap_or(default) == UnauthorizedDm::Pair
    }
}

/// What becomes of a direct message of somebody who may not talk to the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnauthorizedDm {
    /// They get a code that an operator can approve.
    Pair,
    /// Nothing.
    Ignore,
}

/// Whether the chats of an account see an answer while it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Streaming {
    /// They see it whole.
    #[default]
    Off,
    /// One message is edited while the text grows and becomes the answer.
    Edit,
}

/// Pacing of sends on one account, messages per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rate {
    /// No pacing of our own; `retry_after` is still honoured. Only with `api_base`.
    Off,
    /// At most these.
    Limited {
        /// In one chat.
        per_chat_per_s: f64,
        /// On the whole account.
        per_account_per_s: f64,
    },
}

impl Rate {
    /// Telegram's published bound for one chat.
    pub const PER_CHAT_PER_S: f64 = 1.0;
    /// Telegram's published bound for one bot.
    pub const PER_ACCOUNT_PER_S: f64 = 30.0;
}

impl Default for Rate {
    fn default() -> Self {
        Self::Limited { per_chat_per_s: Self::PER_CHAT_PER_S, per_account_per_s: Self::PER_ACCOUNT_PER_S }
    }
}

/// One signed HTTP source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WebhookAccount {
    /// The HMAC secret (`secret_env` or `secret_file` in the document).
    pub secret: SecretRef,
    /// Where replies go.
    pub reply: WebhookReply,
    /// Who may give which commands.
    #[serde(flatten)]
    pub access: AccessLists,
}

/// Where the reply to a webhook message goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebhookReply {
    /// POSTed, signed with the same secret.
    Callback {
        /// http or https.
        url: String,
    },
    /// Into a chat of another account.
    Chat {
        /// Its platform, for example `telegram`.
        platform: String,
        /// Its account id.
        account: String,
        /// The chat.
        chat_id: String,
        /// The topic, if any.
        thread_id: Option<String>,
    },
}

/// One fault of a document or change. Its place is the 1-based line of the text (0 when there is no text) and a path such
/// as `routes[3].match.chat_id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// 1-based line, 0 when unknown.
    pub line: u32,
    /// Path of the field.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// Something accepted that probably is not what its author meant; placed like a [`Fault`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// 1-based line, 0 when unknown.
    pub line: u32,
    /// Path of the field.
    pub path: String,
    /// What it means.
    pub message: String,
}

/// `line 4: agents.coder: what is wrong`, without the parts that are unknown.
fn placed(f: &mut fmt::Formatter<'_>, line: u32, path: &str, message: &str) -> fmt::Result {
    if line > 0 {
        write!(f, "line {line}: ")?;
    }
    if !path.is_empty() {
        write!(f, "{path}: ")?;
    }
    f.write_str(message)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        placed(f, self.line, &self.path, &self.message)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        placed(f, self.line, &self.path, &self.message)
    }
}

/// Path of an account in faults about a merged document and in changes.
fn account_path(platform: &str, id: &str) -> String {
    format!("platforms.{platform}.accounts[{id}]")
}

/// Text from outside as a message shows it: quoted, escaped, shortened.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(60).collect::<String>().escape_debug().collect();
    if text.chars().nth(60).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

/// Most known words compared for one hint.
const HINT_CANDIDATES: usize = 10_000;

/// The known word that was probably meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.is_empty() || word.len() > 60 {
        return None;
    }
    let lower = word.to_lowercase().replace('-', "_");
    known
        .into_iter()
        .take(HINT_CANDIDATES)
        .filter(|candidate| candidate.len().abs_diff(word.len()) <= 3)
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.replace('-', "_")), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().min(word.len()) / 3).clamp(1, 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
