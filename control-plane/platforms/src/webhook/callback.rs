//! One reply to the operator's callback URL, and what each answer means for it.
//!
//! Called by the webhook adapter's `send`. Owns its connections. Always true: signed over the very bytes that are sent;
//! redirects are answers, not instructions. Every try of one part carries the same idempotency key.

use std::time::Duration;

use http::StatusCode;
use http::header::CONTENT_TYPE;
use reqwest::{Client, Url};
use secrecy::SecretString;
use serde::Serialize;

use super::signature::{SIGNATURE, TIMESTAMP, sign};
use crate::call::{self, Fault};
use crate::{OutboundMessage, SendError, Sent};

const TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_PAUSE_SECONDS: u64 = 5;

#[derive(Serialize)]
struct Reply<'a> {
    chat_id: &'a str,
    thread_id: Option<&'a str>,
    text: &'a str,
    idempotency_key: &'a str,
}

/// The callback of one account.
pub(super) struct Callback {
    url: Url,
    secret: SecretString,
    client: Client,
}

impl Callback {
    /// Checks `url`; the error is a sentence for the operator.
    pub(super) fn new(url: &str, secret: SecretString) -> Result<Self, String> {
        let url = call::base_url(url).map_err(|error| format!("the callback url is refused: {error}"))?;
        let client = call::client(&url).map_err(|error| format!("cannot make an HTTP client: {error}"))?;
        Ok(Self { url, secret, client })
    }

    /// Posts one part, signed at `now` (Unix seconds).
    pub(super) async fn post(&self, message: &OutboundMessage, now: u64) -> Result<Sent, SendError> {
        let reply = Reply {
            chat_id: &message.chat.chat_id,
            thread_id: message.chat.thread_id.as_deref(),
            text: &message.text,
            idempotency_key: &message.idempotency_key,
        };
        let body = serde_json::to_vec(&reply).expect("four texts are always JSON");
        let request = self
            .client
            .post(self.url.clone())
            .timeout(TIMEOUT)
            .header(CONTENT_TYPE, "application/json")
            .header(TIMESTAMP, now)
            .header(SIGNATURE, sign(&self.secret, now, &body))
            .header("idempotency-key", &message.idempotency_key)
            .body(body);
        let response = request.send().await.map_err(Fault::of)?;
        let status = response.status();
        // The status is the whole answer; the body is not read.
        if status.is_success() {
            Ok(Sent { message_id: None })
        } else {
            Err(refused(status, call::retry_after(&response)))
        }
    }
}

/// What an error status means for the message.
fn refused(status: StatusCode, retry_after: Option<Duration>) -> SendError {
    let cause = format!("the callback answers {status}");
    match status.as_u16() {
        404 | 410 => SendError::ChatGone(cause),
        429 => SendError::RetryAfter { after: retry_after.unwrap_or(call::pause(DEFAULT_PAUSE_SECONDS)), cause },
        // A proxy gave up on the receiver, which may have taken it.
        502 | 504 => SendError::Ambiguous(cause),
        // Not authorised, timed out, too early: a person or a moment puts that right.
        401 | 403 | 408 | 425 => SendError::Retry(cause),
        500..=599 => SendError::Retry(cause),
        300..=399 => SendError::Refused(format!("{cause}; redirects are not followed, configure the final url")),
        _ => SendError::Refused(cause),
    }
}
