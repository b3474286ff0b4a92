//! The document: one YAML file with the seed's shape plus ours, used by `apply`, `diff`, `export` and `--config`.
//!
//! Read by the control plane (which stores it) and by hermesctl (offline). [`parse`](parse) turns text into a [`Patch`],
//! [`Document::merged`] makes the document that would result, [`check`] judges it whole. Always true: a refused text
//! changes nothing and every fault names line and path. Secrets appear by `*_env` or `*_file` reference only.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::AgentId;
use crate::reset::ResetPolicy;
use crate::routing::Route;

/// Everything that can be configured, with defaults filled in. Stored in Postgres; listeners, database URL, data dir and
/// secrets are not in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// The agent of messages that no route takes.
    pub default_agent: AgentId,
    /// The model of every agent that names none. Default `builtin/echo`.
    pub model: String,
    /// IANA zone in which daily resets are judged. Default `UTC`.
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
    /// Bounds.
    pub limits: Limits,
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
}

/// Bounds of what is accepted and shown to a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Largest accepted message, bytes of UTF-8. Default 262144.
    pub message_bytes: u64,
    /// Most history given to a model, bytes of text; older turns are left out whole. Default 262144.
    pub history_bytes: u64,
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

/// Where a secret is found. Exactly one of the two in a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretRef {
    /// Name of an environment variable of the control plane.
    Env(String),
    /// Path of a file the control plane can read; its trimmed content is the secret.
    File(String),
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
    /// Pacing of sends.
    pub rate: Rate,
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

/// One signed HTTP source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WebhookAccount {
    /// The HMAC secret (`secret_env` or `secret_file` in the document).
    pub secret: SecretRef,
    /// Where replies go.
    pub reply: WebhookReply,
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
