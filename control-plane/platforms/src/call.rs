//! One HTTP call to a platform: the client, bounded bodies, and what a transport fault says about the request.
//!
//! Called by every adapter that sends by HTTP. Owns nothing. Always true: no text made here holds a URL (tokens live in
//! URLs), redirects are not followed, nothing is sent twice by itself. It does not know any platform's answers.

use std::error::Error as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use reqwest::{Client, Response, Url};

use crate::SendError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than common servers keep an idle connection, so that a request seldom meets a closing one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// As many as one busy account has sends on their way.
const IDLE_CONNECTIONS: usize = 128;
const CAUSE_CHARS: usize = 300;
/// A platform cannot pause us for longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3_600);

/// A request that got no usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No connection came about: the platform has not seen the request.
    NotSent(String),
    /// The platform may have seen it.
    Unknown(String),
    /// It was too late to send it, and it was not.
    Late,
}

impl Fault {
    /// What transport error `error` says about the request. Only a failed connect is certain: every other fault, time-outs
    /// included, can come after the last byte left.
    pub(crate) fn of(error: reqwest::Error) -> Self {
        let not_sent = error.is_connect() || error.is_builder();
        let cause = cause(error);
        if not_sent { Self::NotSent(cause) } else { Self::Unknown(cause) }
    }
}

impl From<Fault> for SendError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NotSent(cause) => Self::Retry(cause),
            Fault::Unknown(cause) => Self::Ambiguous(cause),
            Fault::Late => Self::Expired,
        }
    }
}

/// A request's body that is handed out before an instant or not at all. A process may stand still between the decision to send and the
/// last moment before the bytes leave: what it began must not reach the platform when somebody else has sent it meanwhile.
pub(crate) struct Timely {
    body: Option<Bytes>,
    not_after: Option<Instant>,
    late: Arc<AtomicBool>,
}

impl Timely {
    /// The body, and whether it was too late for it.
    pub(crate) fn new(body: Vec<u8>, not_after: Option<Instant>) -> (Self, Arc<AtomicBool>) {
        let late = Arc::new(AtomicBool::new(false));
        (Self { body: Some(body.into()), not_after, late: Arc::clone(&late) }, late)
    }
}

/// See [`Timely`].
#[derive(Debug, thiserror::Error)]
#[error("it is too late to send this")]
pub(crate) struct TooLate;

impl Body for Timely {
    type Data = Bytes;
    type Error = TooLate;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TooLate>>> {
        if self.body.is_some() && self.not_after.is_some_and(|end| Instant::now() >= end) {
            self.body = None;
            self.late.store(true, Ordering::Release);
            return Poll::Ready(Some(Err(TooLate)));
        }
        Poll::Ready(self.body.take().map(|body| Ok(Frame::data(body))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.body.as_ref().map_or(0, |body| body.len() as u64))
    }
}

/// A client with its own connections. A loopback `base` is never reached through a proxy of the environment.
pub(crate) fn client(base: &Url) -> Result<Client, String> {
    let mut builder = Client::builder()
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false);
    if matches!(base.host_str(), Some("127.0.0.1" | "localhost" | "[::1]")) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(cause)
}

/// `text` as an http or https URL without credentials in it; the error says what to write instead.
pub(crate) fn base_url(text: &str) -> Result<Url, String> {
    let url =
        Url::parse(text).map_err(|error| format!("not a URL ({error}); write http://HOST:PORT or https://HOST"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("only http:// and https:// URLs with a host are allowed".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("remove the user name and password from the URL".to_owned());
    }
    Ok(url)
}

/// The body, refused beyond `limit` bytes.
pub(crate) async fn body(mut response: Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(cause)? {
        if body.len() + chunk.len() > limit {
            return Err(format!("the answer is longer than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The seconds of a `Retry-After` header.
pub(crate) fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(pause(seconds))
}

/// A pause of `seconds`, at least one and bounded.
pub(crate) fn pause(seconds: u64) -> Duration {
    Duration::from_secs(seconds.max(1)).min(LONGEST_PAUSE)
}

/// Text from outside, fit for a log line: one line, bounded.
pub(crate) fn quoted(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CAUSE_CHARS).collect()
}

/// The chain of causes of `error`, without its URL.
pub(crate) fn cause(error: reqwest::Error) -> String {
    let timed_out = error.is_timeout();
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    if timed_out && !text.contains("timed out") {
        text.push_str(": timed out");
    }
    quoted(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_frame(body: &mut Timely) -> Option<Result<Bytes, TooLate>> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match Pin::new(body).poll_frame(&mut context) {
            Poll::Ready(frame) => frame.map(|frame| frame.map(|frame| frame.into_data().unwrap())),
            Poll::Pending => panic!("it never waits"),
        }
    }

    #[test]
    fn a_body_leaves_in_time_or_not_at_all() {
        let soon = Instant::now() + Duration::from_secs(60);
        for not_after in [None, Some(soon)] {
            let (mut body, late) = Timely::new(b"text".to_vec(), not_after);
            assert_eq!(body.size_hint().exact(), Some(4));
            assert_eq!(first_frame(&mut body).unwrap().unwrap(), "text");
            assert!(first_frame(&mut body).is_none() && body.is_end_stream() && !late.load(Ordering::Acquire));
        }
        let (mut body, late) = Timely::new(b"text".to_vec(), Some(Instant::now()));
        assert!(first_frame(&mut body).unwrap().is_err());
        assert!(first_frame(&mut body).is_none() && late.load(Ordering::Acquire));
        assert_eq!(SendError::from(Fault::Late), SendError::Expired);
    }
}
