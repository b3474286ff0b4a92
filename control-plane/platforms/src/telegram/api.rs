//! Bot API calls: one POST, one envelope, one [`CallError`].
//!
//! Used by this adapter's polling and sending. Owns the token and the connections: one client for the long poll, one for
//! everything else, so that a poll never delays a send. Always true: the token is in the request path and nowhere else,
//! in no error, log line or `Debug`, even when the server echoes it.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use reqwest::Client;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::Envelope;
use crate::Deadline;
use crate::call::{self, Fault, Timely};
use crate::multipart::Form;

/// 100 updates with their entities stay far below.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;
const DEFAULT_PAUSE_SECONDS: u64 = 5;

/// Largest file that a bot can fetch, bytes; Telegram's own bound for its public server.
pub(super) const MAX_FILE: u64 = 20 << 20;

/// Where Telegram itself answers.
pub(super) const PUBLIC_BASE: &str = "https://api.telegram.org";

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// Telegram answered with an error: the call had no effect.
    Refused(Refusal),
    /// No answer of Telegram's came back.
    Fault(Fault),
}

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The code, an HTTP status.
    pub(super) code: u16,
    /// Telegram's sentence, one bounded line without the token.
    pub(super) description: String,
    /// Set when the code is 429.
    pub(super) retry_after: Option<Duration>,
    /// The chat lives under this id now.
    pub(super) migrated_to: Option<i64>,
}

impl Refusal {
    fn of(code: u16, description: &str) -> Self {
        Self { code, description: description.to_owned(), retry_after: None, migrated_to: None }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => write!(out, "telegram says {} {}", refusal.code, refusal.description),
            Self::Fault(Fault::NotSent(cause)) => write!(out, "cannot reach telegram: {cause}"),
            Self::Fault(Fault::Unknown(cause)) => write!(out, "no answer from telegram: {cause}"),
            Self::Fault(Fault::Late) => write!(out, "it was too late to call telegram"),
        }
    }
}

/// The Bot API of one account.
pub(super) struct Api {
    token: SecretString,
    /// Without a trailing slash.
    base: String,
    poll: Client,
    other: Client,
}

impl fmt::Debug for Api {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Api").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Api {
    /// Checks `token` and `base` by their form; the error says what to write instead and never shows the token.
    pub(super) fn new(token: SecretString, base: &str) -> Result<Self, String> {
        let is_path_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | '-' | '.');
        if token.expose_secret().is_empty() || !token.expose_secret().chars().all(is_path_safe) {
            return Err("the token is empty or has other characters than letters, digits, `:`, `_` and `-`; \
                        copy it from @BotFather"
                .to_owned());
        }
        let url = call::base_url(base).map_err(|error| format!("api_base is refused: {error}"))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err("api_base must end before any `?` or `#`".to_owned());
        }
        let client = || call::client(&url).map_err(|error| format!("cannot make an HTTP client: {error}"));
        Ok(Self { token, base: url.as_str().trim_end_matches('/').to_owned(), poll: client()?, other: client()? })
    }

    /// Calls `method` within `limit`; its body leaves before `not_after` or not at all ([`Fault::Late`]).
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        body: &impl Serialize,
        limit: Duration,
        not_after: Option<&Deadline>,
    ) -> Result<T, CallError> {
        let body = [json(body)?];
        self.call_by(&self.other, method, "application/json", body.into(), limit, not_after).await
    }

    /// Like [`Api::call`], with a file.
    pub(super) async fn upload<T: DeserializeOwned>(
        &self,
        method: &str,
        form: Form,
        limit: Duration,
        not_after: Option<&Deadline>,
    ) -> Result<T, CallError> {
        let (content_type, body) = form.finish();
        self.call_by(&self.other, method, &content_type, body, limit, not_after).await
    }

    /// Like [`Api::call`], on the poll's own connection.
    pub(super) async fn poll<T: DeserializeOwned>(
        &self,
        method: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, CallError> {
        let body = [json(body)?];
        self.call_by(&self.poll, method, "application/json", body.into(), limit, None).await
    }

    async fn call_by<T: DeserializeOwned>(
        &self,
        client: &Client,
        method: &str,
        content_type: &str,
        body: VecDeque<Bytes>,
        limit: Duration,
        not_after: Option<&Deadline>,
    ) -> Result<T, CallError> {
        let (body, leaving) = Timely::new(body, not_after.cloned());
        let url = format!("{}/bot{}/{method}", self.base, self.token.expose_secret());
        let request =
            client.post(url).timeout(limit).header(CONTENT_TYPE, content_type).body(reqwest::Body::wrap(body));
        let response = call::send(request, &leaving, not_after).await;
        let response = response.map_err(|fault| CallError::Fault(self.redacted(fault)))?;
        let status = response.status();
        let header_pause = call::retry_after(&response);
        let unknown = |cause: String| CallError::Fault(Fault::Unknown(self.redact(&cause)));
        let body = match call::body(response, ANSWER_BYTES).await {
            Ok(body) => body,
            // The status alone is Telegram's answer unless it says that the call was carried out.
            Err(cause) if status.is_success() => return Err(unknown(cause)),
            Err(_) => Vec::new(),
        };
        match serde_json::from_slice::<Envelope<T>>(&body) {
            Ok(Envelope { ok: true, result: Some(result), .. }) if status.is_success() => Ok(result),
            Ok(envelope) if !envelope.ok => {
                let code = envelope.error_code.unwrap_or(status.as_u16());
                let parameters = envelope.parameters.unwrap_or_default();
                let asked = parameters.retry_after.map(call::pause).or(header_pause);
                Err(CallError::Refused(Refusal {
                    code,
                    description: self.redact(&envelope.description.unwrap_or_default()),
                    retry_after: (code == 429).then(|| asked.unwrap_or(call::pause(DEFAULT_PAUSE_SECONDS))),
                    migrated_to: parameters.migrate_to_chat_id,
                }))
            }
            // A proxy in between gave up or talks nonsense: Telegram may have carried out the call.
            _ if status.is_success() || matches!(status.as_u16(), 502 | 504) => {
                Err(unknown(format!("HTTP {} without a Bot API answer", status.as_u16())))
            }
            _ => Err(CallError::Refused(Refusal {
                code: status.as_u16(),
                description: "without a Bot API answer; check api_base".to_owned(),
                retry_after: (status.as_u16() == 429)
                    .then(|| header_pause.unwrap_or(call::pause(DEFAULT_PAUSE_SECONDS))),
                migrated_to: None,
            })),
        }
    }

    /// The file at the place that `getFile` answered; an error when it is larger than [`MAX_FILE`].
    pub(super) async fn file(&self, place: &str, limit: Duration) -> Result<Vec<u8>, CallError> {
        let is_path_safe = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        if place.contains("..") || !place.chars().all(is_path_safe) {
            return Err(CallError::Refused(Refusal::of(400, "with a place of a file that is none")));
        }
        let url = format!("{}/file/bot{}/{place}", self.base, self.token.expose_secret());
        let fault = |error| CallError::Fault(self.redacted(Fault::of(error)));
        let response = self.other.get(url).timeout(limit).send().await.map_err(fault)?;
        let status = response.status();
        if !status.is_success() {
            return Err(CallError::Refused(Refusal::of(status.as_u16(), "to the fetch of a file")));
        }
        let most = usize::try_from(MAX_FILE).unwrap_or(usize::MAX);
        call::body(response, most).await.map_err(|cause| CallError::Fault(Fault::Unknown(self.redact(&cause))))
    }

    fn redacted(&self, fault: Fault) -> Fault {
        match fault {
            Fault::NotSent(cause) => Fault::NotSent(self.redact(&cause)),
            Fault::Unknown(cause) => Fault::Unknown(self.redact(&cause)),
            Fault::Late => Fault::Late,
        }
    }

    /// One bounded line of `text` without the token.
    fn redact(&self, text: &str) -> String {
        call::quoted(&text.replace(self.token.expose_secret(), "…"))
    }
}

fn json(body: &impl Serialize) -> Result<Bytes, CallError> {
    let unwritable = |error| CallError::Fault(Fault::NotSent(format!("the request cannot be written: {error}")));
    serde_json::to_vec(body).map(Bytes::from).map_err(unwritable)
}
