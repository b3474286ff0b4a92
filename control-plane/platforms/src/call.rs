//! One HTTP call to a platform: the client, bounded bodies, and what a transport fault says about the request.
//!
//! Called by every adapter that sends by HTTP. Owns nothing. Always true: no text made here holds a URL (tokens live in
//! URLs), redirects are not followed, nothing is sent twice by itself. It does not know any platform's answers.

use std::collections::VecDeque;
use std::error::Error as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use reqwest::{Client, Response, Url};

use crate::{Deadline, SendError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than common servers keep an idle connection, so that a request seldom meets a closing one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// As many as one busy account has sends on their way.
const IDLE_CONNECTIONS: usize = 128;
/// A body leaves in pieces of this size, and is looked at before each.
const PIECE_BYTES: usize = 64 * 1024;
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

/// A request's body that is handed out before a deadline or not wholly. A process may stand still between the decision to send and the
/// last moment before the bytes leave, and a large body leaves slowly: what it began must not reach the platform when somebody else has
/// sent it meanwhile. A body that lacks its end is no request.
pub(crate) struct Timely {
    rest: VecDeque<Bytes>,
    not_after: Option<Deadline>,
    leaving: Arc<Leaving>,
}

/// How far a [`Timely`] body has come. Its last piece leaves, or it is given up: never both.
#[derive(Debug, Default)]
pub(crate) struct Leaving(AtomicU8);

const UNDER_WAY: u8 = 0;
const GONE: u8 = 1;
const LATE: u8 = 2;

impl Leaving {
    /// Whether it was given up, so that the platform certainly has no whole request.
    pub(crate) fn is_late(&self) -> bool {
        self.0.load(Ordering::Acquire) == LATE
    }

    /// Gives it up, unless its last piece has left.
    pub(crate) fn give_up(&self) -> bool {
        self.ends_as(LATE)
    }

    fn ends_as(&self, end: u8) -> bool {
        match self.0.compare_exchange(UNDER_WAY, end, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(ended) => ended == end,
        }
    }
}

impl Timely {
    /// The body, piece by piece, and how far it has come.
    pub(crate) fn new(pieces: impl Into<VecDeque<Bytes>>, not_after: Option<Deadline>) -> (Self, Arc<Leaving>) {
        let mut rest = pieces.into();
        rest.retain(|piece| !piece.is_empty());
        let leaving = Arc::new(Leaving::default());
        (Self { rest, not_after, leaving: Arc::clone(&leaving) }, leaving)
    }

    fn next_piece(&mut self) -> Option<Bytes> {
        let first = self.rest.front_mut()?;
        if first.len() > PIECE_BYTES { Some(first.split_to(PIECE_BYTES)) } else { self.rest.pop_front() }
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
        let in_time = !self.not_after.as_ref().is_some_and(Deadline::is_over);
        let Some(piece) = self.next_piece() else { return Poll::Ready(None) };
        if !in_time || (self.rest.is_empty() && !self.leaving.ends_as(GONE)) {
            self.leaving.give_up();
            self.rest.clear();
            return Poll::Ready(Some(Err(TooLate)));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.iter().map(|piece| piece.len() as u64).sum())
    }
}

/// Sends `request`, whose body is `leaving`: [`Fault::Late`] as soon as it is too late and the body's end has not left, even when
/// the other side takes nothing more of it.
pub(crate) async fn send(
    request: reqwest::RequestBuilder,
    leaving: &Leaving,
    not_after: Option<&Deadline>,
) -> Result<Response, Fault> {
    let mut sending = std::pin::pin!(request.send());
    let sent = loop {
        let Some(deadline) = not_after else { break sending.await };
        match tokio::time::timeout_at(deadline.until().into(), &mut sending).await {
            Ok(sent) => break sent,
            // It has moved on.
            Err(_) if !deadline.is_over() => {}
            Err(_) if leaving.give_up() => return Err(Fault::Late),
            // All of it has left in time: the answer is worth the wait.
            Err(_) => break sending.await,
        }
    };
    sent.map_err(|error| if leaving.is_late() { Fault::Late } else { Fault::of(error) })
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
    use std::time::Instant;

    use super::*;

    fn first_frame(body: &mut Timely) -> Option<Result<Bytes, TooLate>> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match Pin::new(body).poll_frame(&mut context) {
            Poll::Ready(frame) => frame.map(|frame| frame.map(|frame| frame.into_data().unwrap())),
            Poll::Pending => panic!("it never waits"),
        }
    }

    fn after(wait: Duration) -> Deadline {
        (Instant::now() + wait).into()
    }

    #[test]
    fn a_body_leaves_in_time_or_not_at_all() {
        for not_after in [None, Some(after(Duration::from_secs(60)))] {
            let (mut body, leaving) = Timely::new([Bytes::from("text")], not_after);
            assert_eq!(body.size_hint().exact(), Some(4));
            assert_eq!(first_frame(&mut body).unwrap().unwrap(), "text");
            assert!(first_frame(&mut body).is_none() && body.is_end_stream() && !leaving.is_late());
            assert!(!leaving.give_up(), "its end has left");
        }
        let (mut body, leaving) = Timely::new([Bytes::from("text")], Some(after(Duration::ZERO)));
        assert!(first_frame(&mut body).unwrap().is_err());
        assert!(first_frame(&mut body).is_none() && leaving.is_late());
        assert_eq!(SendError::from(Fault::Late), SendError::Expired);
    }

    #[test]
    fn a_large_body_is_looked_at_before_each_piece_and_its_end_stays_when_it_is_late() {
        let file = Bytes::from(vec![7; 3 * PIECE_BYTES]);
        let whole = [Bytes::from("head"), file, Bytes::from("tail")];
        let (mut body, _) = Timely::new(whole.clone(), None);
        let size = body.size_hint().exact();
        let mut left = 0;
        while let Some(piece) = first_frame(&mut body) {
            left += piece.unwrap().len();
        }
        assert_eq!((left, size), (3 * PIECE_BYTES + 8, Some(left as u64)));

        let until = Arc::new(std::sync::Mutex::new(Instant::now() + Duration::from_secs(60)));
        let shared = Arc::clone(&until);
        let (mut body, leaving) = Timely::new(whole.clone(), Some(Deadline::moving(move || *shared.lock().unwrap())));
        assert!(first_frame(&mut body).unwrap().is_ok() && first_frame(&mut body).unwrap().is_ok());
        *until.lock().unwrap() = Instant::now();
        assert!(first_frame(&mut body).unwrap().is_err() && leaving.is_late() && first_frame(&mut body).is_none());

        let (mut body, leaving) = Timely::new(whole, None);
        assert!(first_frame(&mut body).unwrap().is_ok() && leaving.give_up());
        for _ in 0..3 {
            assert!(first_frame(&mut body).unwrap().is_ok());
        }
        assert!(first_frame(&mut body).unwrap().is_err(), "given up from outside: its end stays");
    }
}
