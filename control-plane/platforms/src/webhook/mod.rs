//! Webhook: a generic signed HTTP source; replies go to a callback URL or into a chat of another account.
//!
//! Built by the control plane for each configured account; its HTTP surface hands requests to [`Adapter::webhook`]. Owns
//! the secret and the callback's connections. Always true: nothing is parsed before the signature over the raw bytes is
//! verified; the sender gets its 202 only after the message is kept. The clock is a parameter. It bounds no body sizes (the
//! HTTP surface does) and follows no redirects.
//!
//! The wire, in: `POST` with `X-Hermes-Timestamp` (Unix seconds, ± 5 min), `X-Hermes-Signature: sha256=<hex>` (see
//! [`sign`]) and a JSON object `{"text", "chat_id", "user_id"?, "user_name"?, "thread_id"?, "message_id"?, "chat_type"?}`.
//! Out: 202 `{"accepted":true,"duplicate":false}`, 400 (body), 401 (signature), 405, 415, 422 (refused for good), 503 (not
//! kept, send it again). A callback is a `POST` of `{"chat_id","thread_id","text","idempotency_key"}`, signed the same way,
//! with `Idempotency-Key`; a retried callback carries the same key, so copies need no visible mark.

mod callback;
mod convert;
mod signature;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::callback::Callback;
use self::convert::PLATFORM;
pub use self::signature::{SIGNATURE, TIMESTAMP, sign};
use crate::{
    AccountState, Adapter, ChatRef, InboundSink, OutboundMessage, Receipt, ReplyTarget, SendError, Sent, SettingsError,
};

/// What an account needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Account id.
    pub account: String,
    /// The HMAC secret of both directions.
    pub secret: SecretString,
    /// Where replies go.
    pub reply: Reply,
}

/// Where the replies of a webhook account go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// POSTed to this http or https URL of the operator.
    Callback {
        /// The URL.
        url: String,
    },
    /// Into this chat of another account.
    Chat(ReplyTarget),
}

/// The wall clock: Unix seconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// One webhook account.
pub struct Webhook {
    account: String,
    secret: SecretString,
    clock: Clock,
    /// `None` when replies go into a chat.
    callback: Option<Callback>,
    reply_to: Option<ReplyTarget>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Webhook").field("account", &self.account).finish_non_exhaustive()
    }
}

impl Webhook {
    /// An account that judges timestamps by `clock`. Refused without a secret or with a callback that is no http(s) URL.
    pub fn new(settings: Settings, clock: Clock) -> Result<Self, SettingsError> {
        let refuse = |reason: String| SettingsError { account: settings.account.clone(), reason };
        if settings.secret.expose_secret().trim().is_empty() {
            return Err(refuse("its secret is empty; set secret_env or secret_file to a long random text".to_owned()));
        }
        let (callback, reply_to) = match settings.reply {
            Reply::Callback { url } => (Some(Callback::new(&url, settings.secret.clone()).map_err(refuse)?), None),
            Reply::Chat(target) => (None, Some(target)),
        };
        Ok(Self { account: settings.account, secret: settings.secret, clock, callback, reply_to })
    }

    async fn answer(&self, request: Request<Bytes>, sink: &dyn InboundSink) -> Response<Bytes> {
        let (head, body) = request.into_parts();
        if head.method != Method::POST {
            let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, "only POST");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return refused;
        }
        let Ok(signed) = signature::verify(&self.secret, &head.headers, &body, (self.clock)()) else {
            tracing::debug!(account = self.account, "a request without a valid signature");
            return error(StatusCode::UNAUTHORIZED, "unauthorized");
        };
        let is_json = head.headers.get(CONTENT_TYPE).is_none_or(|value| {
            let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
            essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
        });
        if !is_json || head.headers.contains_key(CONTENT_ENCODING) {
            return error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send plain application/json");
        }
        let message = match convert::inbound(&body, &signed, &self.account, self.reply_to.clone()) {
            Ok(message) => message,
            Err(reason) => return error(StatusCode::BAD_REQUEST, &reason),
        };
        match sink.accept(vec![message]).await.into_iter().next() {
            Some(Receipt::Accepted { duplicate }) => {
                json_response(StatusCode::ACCEPTED, &json!({"accepted": true, "duplicate": duplicate}))
            }
            Some(Receipt::Refused { reason }) => error(StatusCode::UNPROCESSABLE_ENTITY, &reason),
            Some(Receipt::Busy { after, .. } | Receipt::Later(after)) => {
                let mut busy =
                    error(StatusCode::TOO_MANY_REQUESTS, "too many messages are waiting, send it again later");
                busy.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
                busy
            }
            Some(Receipt::Unavailable) | None => {
                let mut later = error(StatusCode::SERVICE_UNAVAILABLE, "not kept, send it again");
                later.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                later
            }
        }
    }
}

impl Adapter for Webhook {
    fn platform(&self) -> &'static str {
        PLATFORM
    }

    fn account(&self) -> &str {
        &self.account
    }

    fn receive<'a>(&'a self, sink: &'a dyn InboundSink, stop: CancellationToken) -> BoxFuture<'a, ()> {
        sink.report(PLATFORM, &self.account, AccountState::Up);
        Box::pin(stop.cancelled_owned())
    }

    /// A callback takes a reply of any length.
    fn split(&self, text: &str) -> Vec<String> {
        vec![text.to_owned()]
    }

    fn send(&self, message: OutboundMessage) -> BoxFuture<'_, Result<Sent, SendError>> {
        Box::pin(async move {
            match &self.callback {
                Some(_) if message.attachment.is_some() => {
                    Err(SendError::Refused("files are not sent to callbacks; send their names".to_owned()))
                }
                Some(callback) => {
                    message.check()?;
                    callback.post(&message, (self.clock)()).await
                }
                None => Err(SendError::Refused("this account has no callback; its replies go into a chat".to_owned())),
            }
        })
    }

    /// Every callback carries its key.
    fn deduplicates(&self) -> bool {
        true
    }

    /// A callback has no such sign.
    fn typing(&self, _chat: ChatRef) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn webhook<'a>(
        &'a self,
        request: Request<Bytes>,
        sink: &'a dyn InboundSink,
    ) -> Option<BoxFuture<'a, Response<Bytes>>> {
        Some(Box::pin(self.answer(request, sink)))
    }
}

fn error(status: StatusCode, reason: &str) -> Response<Bytes> {
    json_response(status, &json!({ "error": reason }))
}

fn json_response(status: StatusCode, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
