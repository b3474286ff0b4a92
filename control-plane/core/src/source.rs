//! Where a message came from: the one type that intake, routing, session keys and delivery share.
//!
//! Built by platform adapters and by the gRPC and HTTP surfaces. Always true: ids are the platform's own text, never
//! trimmed or case-folded (spec a.2); `None` means the platform did not say, an empty string is a value.

use serde::{Deserialize, Serialize};

/// The platform of a source that is another agent, which asks.
pub const AGENT: &str = "agent";
/// The platform of a source that is a scheduled job.
pub const CRON: &str = "cron";
/// The platform of a source that is the curator of an agent's skills.
pub const CURATOR: &str = "curator";
/// Platforms that no message from outside comes from: whoever could name them would speak in conversations that are nobody's chat.
pub const OWN_PLATFORMS: [&str; 3] = [AGENT, CRON, CURATOR];

/// The platforms that the reference knows, its own (spec a.1) and those of its bundled plugins. A source may name another one.
pub const PLATFORMS: &[&str] = &[
    "local",
    "telegram",
    "discord",
    "whatsapp",
    "whatsapp_cloud",
    "slack",
    "signal",
    "mattermost",
    "matrix",
    "homeassistant",
    "email",
    "sms",
    "dingtalk",
    "api_server",
    "webhook",
    "msgraph_webhook",
    "feishu",
    "wecom",
    "wecom_callback",
    "weixin",
    "bluebubbles",
    "qqbot",
    "yuanbao",
    "relay",
    "google_chat",
    "irc",
    "line",
    "ntfy",
    "photon",
    "raft",
    "simplex",
    "teams",
];

/// The origin of one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// Lower-case platform name: `telegram`, `slack`, `webhook`, `api_server` …
    pub platform: String,
    /// Which account (bot) on the platform received it.
    pub account: Option<String>,
    /// The chat's id.
    pub chat_id: String,
    /// `dm`, `group`, `channel`, `thread`, `forum` or any other text; only the exact `dm` is treated as a direct message.
    pub chat_type: String,
    /// Topic or thread inside the chat.
    pub thread_id: Option<String>,
    /// The chat this one hangs under (Discord threads, Slack threads).
    pub parent_chat_id: Option<String>,
    /// The sender.
    pub user_id: Option<String>,
    /// A second, more stable id of the sender; preferred in session keys.
    pub user_id_alt: Option<String>,
    /// Guild, workspace or team; the reference also calls it `scope_id`.
    pub guild_id: Option<String>,
    /// The sender's display name: shown, never trusted.
    pub user_name: Option<String>,
    /// The chat's display name.
    pub chat_name: Option<String>,
    /// The platform's id of this very message.
    pub message_id: Option<String>,
}
