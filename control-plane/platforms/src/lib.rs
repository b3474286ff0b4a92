//! Chat platforms behind one [`Adapter`] trait: what comes in becomes [`InboundMessage`], what goes out is one
//! [`OutboundMessage`] at a time.
//!
//! Built and driven by the control plane, which owns order, retries and durability. An adapter owns its connection, its
//! authorisation rule and its pacing. Always true: a platform is acknowledged only after [`InboundSink::accept`] said the
//! message is kept; wire formats never leave the adapter's own folder. It knows neither store, sessions, routes, workers
//! nor proto.

pub mod split;
pub mod telegram;
pub mod webhook;

mod backoff;
mod call;
#[cfg(test)]
mod contract;
mod file;
mod multipart;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hermes_core::Source;
use hermes_core::attachment::{Attachment, Kind};
use tokio_util::sync::CancellationToken;

pub use self::file::{MAX_FILE_BYTES, NotAFile, OutboundFile};

/// Why an account cannot start; names the setting to change, never a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("account {account}: {reason}")]
pub struct SettingsError {
    /// Account id.
    pub account: String,
    /// What is wrong and what to set instead.
    pub reason: String,
}

/// A chat of an account, as deliveries name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChatRef {
    /// The chat's id on the platform.
    pub chat_id: String,
    /// The topic or thread in it.
    pub thread_id: Option<String>,
}

/// Where a reply goes when not to the source's own chat.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplyTarget {
    /// Platform of the account.
    pub platform: String,
    /// Account id.
    pub account: String,
    /// The chat.
    pub chat: ChatRef,
}

/// One message from a platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundMessage {
    /// Where it came from.
    pub source: Source,
    /// No rule of the account names its sender or chat. It is nobody's message unless its sender has paired.
    pub stranger: bool,
    /// Its text; U+0000 has become U+FFFD.
    pub text: String,
    /// Files that came with it, kept by [`InboundSink::keep`] before.
    pub attachments: Vec<Attachment>,
    /// Semantic id of the event from authenticated bytes (reliability a.6), for example `tg:{bot_id}:{update_id}`.
    pub dedupe_key: String,
    /// The event's own authenticated time, Unix seconds, where the platform signs one that redelivery keeps.
    pub event_time: Option<u32>,
    /// Where the reply goes; `None` means back to the source's chat.
    pub reply_to: Option<ReplyTarget>,
}

/// What became of one inbound message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// Committed (now or, `duplicate`, before). The platform may be acknowledged.
    Accepted {
        /// It was known already.
        duplicate: bool,
    },
    /// It will never be accepted (too long, unknown agent …); acknowledge it and tell the sender this sentence.
    Refused {
        /// For the sender.
        reason: String,
    },
    /// Too much waits already: it was not kept. A platform whose sender can repeat it says so with a time; any other acknowledges it and
    /// tells the sender this sentence, unless it is empty (the chat was told just now).
    Busy {
        /// For the sender.
        reason: String,
        /// When it may be worth another try.
        after: Duration,
    },
    /// The account brings messages faster than it may: not kept; do not acknowledge, offer it again after this time.
    Later(Duration),
    /// Not kept; do not acknowledge, offer it again.
    Unavailable,
}

/// Why a file was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotKept {
    /// It never will be: say why in its place.
    Refused(String),
    /// Not now: do not acknowledge its message, fetch both again.
    Unavailable,
}

/// The way into the control plane.
pub trait InboundSink: Send + Sync {
    /// Answers in input order, after the commit. Messages of one call that belong to one session keep their order. The
    /// future may be dropped at the stop; what it committed by then is known as a duplicate when offered again.
    fn accept(&self, messages: Vec<InboundMessage>) -> BoxFuture<'_, Vec<Receipt>>;
    /// Whether a message of this stranger is anybody's: its files are fetched only then.
    fn hears<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, bool>;
    /// Keeps a file of a message that is about to be offered.
    fn keep<'a>(&'a self, kind: Kind, name: &'a str, content: &'a [u8]) -> BoxFuture<'a, Result<Attachment, NotKept>>;
    /// How the account stands, for people: "polling", "unauthorized: …". Called on every change.
    fn report(&self, platform: &str, account: &str, state: AccountState);
    /// The platform has just answered a poll. A receiver of an account that is polled calls it each time.
    fn heard(&self, platform: &str, account: &str) {
        let _ = (platform, account);
    }
}

/// How an account stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountState {
    /// Connected and receiving.
    Up,
    /// Trying again; the text says why.
    Down(String),
    /// Needs a person (bad token …); the text says what to do.
    Failed(String),
}

/// One part of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundMessage {
    /// The chat.
    pub chat: ChatRef,
    /// One part as [`Adapter::split`] made it (of the account that sends it), or the last one of [`Adapter::split_with_file`], which
    /// may be empty.
    pub text: String,
    /// What goes with the text; only for an adapter that [takes](Adapter::takes) its kind.
    pub attachment: Option<OutboundFile>,
    /// A copy may have arrived already: the adapter marks the text visibly. Never said to one that deduplicates.
    pub maybe_duplicate: bool,
    /// Stable for one part of one delivery, for platforms with idempotency keys.
    pub idempotency_key: String,
    /// From then on somebody else may have it: the adapter looks right before it writes, after its own pacing, and with a file before each
    /// piece of it, and answers [`SendError::Expired`].
    pub not_after: Option<Deadline>,
    /// What its readers can press; only for an adapter that offers them.
    pub buttons: Vec<Button>,
}

/// Something to press under a message: whoever presses it says its words in that chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Button {
    /// What it shows.
    pub label: String,
    /// What pressing it says; at most 64 bytes.
    pub says: String,
}

impl OutboundMessage {
    /// Whether it may still be written.
    ///
    /// # Errors
    /// [`SendError::Expired`].
    pub fn check(&self) -> Result<(), SendError> {
        expired(self.not_after.as_ref())
    }
}

/// When somebody else may have what is being sent. It may move on meanwhile, as a lease does that is renewed.
#[derive(Clone)]
pub struct Deadline(Arc<dyn Fn() -> Instant + Send + Sync>);

impl Deadline {
    /// One that is where `until` says; asked often, so it must answer at once.
    pub fn moving(until: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self(Arc::new(until))
    }

    /// Where it is now.
    pub fn until(&self) -> Instant {
        (self.0)()
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        let until = self.until();
        Instant::now() >= until
    }
}

impl From<Instant> for Deadline {
    fn from(until: Instant) -> Self {
        Self::moving(move || until)
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.until().fmt(out)
    }
}

impl PartialEq for Deadline {
    fn eq(&self, other: &Self) -> bool {
        self.until() == other.until()
    }
}

impl Eq for Deadline {}

/// [`SendError::Expired`] from `not_after` on.
pub(crate) fn expired(not_after: Option<&Deadline>) -> Result<(), SendError> {
    if not_after.is_some_and(Deadline::is_over) { Err(SendError::Expired) } else { Ok(()) }
}

/// A part that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The platform's id of the message, where it gives one.
    pub message_id: Option<String>,
}

/// Why a part did not, or may not have arrived.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Certainly not sent: the platform said when to come back.
    #[error("the platform asks to wait {} s: {cause}", after.as_secs_f64())]
    RetryAfter {
        /// How long.
        after: Duration,
        /// For the log; never holds a secret.
        cause: String,
    },
    /// Certainly not sent; a later try may succeed.
    #[error("not sent: {0}")]
    Retry(String),
    /// The connection ended after the request left: it may have been sent.
    #[error("may have been sent: {0}")]
    Ambiguous(String),
    /// Certainly not sent: its time was over before it could be.
    #[error("not sent: somebody else may have it by now")]
    Expired,
    /// The whole chat is dead for this account (blocked, deleted).
    #[error("the chat is gone: {0}")]
    ChatGone(String),
    /// This message will never be accepted.
    #[error("refused for good: {0}")]
    Refused(String),
}

/// New text for a message that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The chat.
    pub chat: ChatRef,
    /// The message, as [`Sent::message_id`] named it.
    pub message_id: String,
    /// The whole new text: one part as [`Adapter::split`] made it.
    pub text: String,
    /// The text still grows: the next edit makes up for this one, so it yields to messages and waits for nothing.
    pub passing: bool,
    /// As [`OutboundMessage::not_after`].
    pub not_after: Option<Deadline>,
}

/// Why a message does not show its new text, or may not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// This platform or account does not edit.
    #[error("messages are not edited here")]
    Unsupported,
    /// Our own pacing has no room for a passing edit; the platform was not asked.
    #[error("no room for a passing edit now")]
    NotNow,
    /// The message cannot be edited (any more) and does not show this text: send it as a new one.
    #[error("the message cannot be edited: {0}")]
    Lost(String),
    /// As for a send; an edit is idempotent, so an ambiguous one is tried again without a mark.
    #[error(transparent)]
    Failed(#[from] SendError),
}

/// An account of a platform.
pub trait Adapter: Send + Sync {
    /// Platform name, lower case.
    fn platform(&self) -> &'static str;
    /// Account id.
    fn account(&self) -> &str;
    /// Whether [`Adapter::receive`] may run in one process at a time only, because the platform serves one receiver.
    fn polls(&self) -> bool {
        false
    }
    /// How many processes send for this account, this one included: each takes its part of what the platform allows the account.
    fn share(&self, senders: u32) {
        let _ = senders;
    }
    /// Receives until `stop`, or until the future is dropped; reconnects by itself with backoff. Returns early only with a fault that needs a person.
    fn receive<'a>(&'a self, sink: &'a dyn InboundSink, stop: CancellationToken) -> BoxFuture<'a, ()>;
    /// Cuts a reply into the parts the platform takes; never empty for a non-empty text, deterministic.
    fn split(&self, text: &str) -> Vec<String>;
    /// Whether messages can have a file of this kind. To an adapter that does not take it the caller sends a sentence with the file's name
    /// instead; a message with such a file is refused.
    fn takes(&self, kind: Kind) -> bool {
        let _ = kind;
        false
    }
    /// Cuts a text that goes with a file: the last part is what the message with the file says, perhaps nothing; those before it are
    /// messages of their own, as [`Adapter::split`] makes them. So each part is one message, and what has arrived is known by the number of
    /// parts as for a text alone. A text that does not fit under a file goes whole before it. Never empty, deterministic.
    fn split_with_file(&self, text: &str) -> Vec<String> {
        let mut parts = if text.is_empty() { Vec::new() } else { self.split(text) };
        parts.push(String::new());
        parts
    }
    /// Sends one part, waiting for the account's own pacing first.
    fn send(&self, message: OutboundMessage) -> BoxFuture<'_, Result<Sent, SendError>>;
    /// Whether a copy of a part with the same `idempotency_key` is recognised by the other side, so that it needs no mark.
    fn deduplicates(&self) -> bool {
        false
    }
    /// Whether messages can have buttons.
    fn offers_buttons(&self) -> bool {
        false
    }
    /// Whether the text of a running turn is shown by a message that is edited until the turn ends.
    fn streams(&self) -> bool {
        false
    }
    /// Replaces the text of a message, waiting for the account's own pacing first unless the edit is a passing one. A message
    /// that shows the text already is a success.
    fn edit(&self, edit: Edit) -> BoxFuture<'_, Result<(), EditError>> {
        let _ = edit;
        Box::pin(std::future::ready(Err(EditError::Unsupported)))
    }
    /// Shows that an answer is being written. Best effort, bounded by the adapter, errors are swallowed.
    fn typing(&self, chat: ChatRef) -> BoxFuture<'_, ()>;
    /// Answers a POST to `/webhooks/{platform}/{account}`; `None` when the platform does not push.
    fn webhook<'a>(
        &'a self,
        request: http::Request<Bytes>,
        sink: &'a dyn InboundSink,
    ) -> Option<BoxFuture<'a, http::Response<Bytes>>> {
        let _ = (request, sink);
        None
    }
}
