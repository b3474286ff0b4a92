//! Telegram: one bot account by the Bot API, received by long polling.
//!
//! Built by the control plane for each configured account and driven through [`Adapter`]. Owns the token, the connections
//! and the pacing of the account. Always true: without an allow rule it cannot be built; an update is confirmed only after
//! it is kept (`receive`); a `retry_after` is honoured whatever the rate. Text goes out plain, without a parse mode, so that
//! no markup of a model can make Telegram refuse it. It keeps nothing durable and has no webhook mode.

mod api;
mod convert;
mod edit;
mod fetch;
mod pacing;
mod receive;
mod send;
mod upload;
mod wire;

use std::fmt;

use futures_util::future::BoxFuture;
use hermes_core::attachment::Kind;
use hermes_core::config::{Rate, Streaming};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use self::api::Api;
use self::convert::{AllowRule, PLATFORM};
use self::pacing::Pacing;
use self::send::TEXT_LIMIT;
use self::upload::CAPTION_LIMIT;
use crate::split::{self, Unit};
use crate::{Adapter, ChatRef, Edit, EditError, InboundSink, OutboundMessage, SendError, Sent, SettingsError};

/// What an account needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Account id.
    pub account: String,
    /// The bot token of @BotFather.
    pub token: SecretString,
    /// A self-hosted Bot API server, for example `http://127.0.0.1:8081`; `None` is Telegram's own.
    pub api_base: Option<String>,
    /// User ids that may talk to it.
    pub allow_users: Vec<String>,
    /// Chat ids in which anybody may talk to it.
    pub allow_chats: Vec<String>,
    /// Everybody may.
    pub allow_all: bool,
    /// Messages of those who may not are handed on as strangers': some of them may have paired.
    pub strangers: bool,
    /// Pacing of sends; [`Rate::Off`] only with `api_base`.
    pub rate: Rate,
    /// Whether chats see an answer while it is written.
    pub streaming: Streaming,
}

/// Telegram's published limits: one message a second in one chat, 30 on the account (and 20 a minute in one group, which
/// always holds unless the rate is off).
pub const PUBLISHED_RATE: Rate = Rate::Limited { per_chat_per_s: 1.0, per_account_per_s: 30.0 };

/// One bot account.
pub struct Telegram {
    account: String,
    api: Api,
    allow: AllowRule,
    pacing: Pacing,
    streaming: Streaming,
}

impl fmt::Debug for Telegram {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Telegram").field("account", &self.account).field("api", &self.api).finish_non_exhaustive()
    }
}

impl Telegram {
    /// An account that has not connected yet. Refused without an allow rule, with a token that cannot be one, a base that
    /// is no http(s) URL, or a rate that cannot be kept.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let refuse = |reason: String| SettingsError { account: settings.account.clone(), reason };
        let allow = AllowRule {
            users: settings.allow_users.iter().cloned().collect(),
            chats: settings.allow_chats.iter().cloned().collect(),
            all: settings.allow_all,
            strangers: settings.strangers,
        };
        if allow.is_empty() {
            return Err(refuse(
                "nobody may talk to it; set allow_users, allow_chats, allow_all: true or unauthorized_dm: pair"
                    .to_owned(),
            ));
        }
        match settings.rate {
            Rate::Off if settings.api_base.is_none() => {
                return Err(refuse("rate: off needs an api_base of your own".to_owned()));
            }
            Rate::Limited { per_chat_per_s, per_account_per_s }
                if ![per_chat_per_s, per_account_per_s].iter().all(|rate| rate.is_finite() && *rate > 0.0) =>
            {
                return Err(refuse("rate must be numbers greater than 0".to_owned()));
            }
            Rate::Off | Rate::Limited { .. } => {}
        }
        let base = settings.api_base.as_deref().unwrap_or(api::PUBLIC_BASE);
        let api = Api::new(settings.token.clone(), base).map_err(refuse)?;
        let (pacing, streaming) = (Pacing::new(settings.rate), settings.streaming);
        Ok(Self { account: settings.account, api, allow, pacing, streaming })
    }

    fn cut(&self, text: &str) -> Vec<String> {
        split::fit(text, TEXT_LIMIT, Unit::Utf16)
    }
}

impl Adapter for Telegram {
    fn platform(&self) -> &'static str {
        PLATFORM
    }

    fn account(&self) -> &str {
        &self.account
    }

    fn polls(&self) -> bool {
        true
    }

    fn share(&self, senders: u32) {
        self.pacing.share(senders);
    }

    fn receive<'a>(&'a self, sink: &'a dyn InboundSink, stop: CancellationToken) -> BoxFuture<'a, ()> {
        Box::pin(self.run(sink, stop))
    }

    fn split(&self, text: &str) -> Vec<String> {
        self.cut(text)
    }

    /// What Telegram does not show as its kind goes as a document.
    fn takes(&self, _: Kind) -> bool {
        true
    }

    /// A text that fits is the caption.
    fn split_with_file(&self, text: &str) -> Vec<String> {
        if Unit::Utf16.fits(text, CAPTION_LIMIT) {
            return vec![text.to_owned()];
        }
        let mut parts = self.cut(text);
        parts.push(String::new());
        parts
    }

    fn send(&self, message: OutboundMessage) -> BoxFuture<'_, Result<Sent, SendError>> {
        Box::pin(self.send_part(message))
    }

    fn offers_buttons(&self) -> bool {
        true
    }

    fn streams(&self) -> bool {
        self.streaming == Streaming::Edit
    }

    fn edit(&self, edit: Edit) -> BoxFuture<'_, Result<(), EditError>> {
        Box::pin(self.edit_text(edit))
    }

    fn typing(&self, chat: ChatRef) -> BoxFuture<'_, ()> {
        Box::pin(self.show_typing(chat))
    }
}
