//! The reply as it grows, and its progress on the way to the chat.
//!
//! Always true: at most one progress message is on its way, they are at least 50 ms apart, and text that cannot be sent
//! waits for the next one. Progress is lossy and tells of every model call of the turn; the reply is the text of the last
//! one only, cut at 900 KiB.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hermes_proto::v1::{Progress, TurnRef};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::connection::Connection;
use crate::model::Deltas;

/// Longest reply, in bytes; what is beyond is cut and said so.
pub(super) const MAX_REPLY_BYTES: usize = 900 << 10;
const CUT_NOTE: &str = "\n\n[The reply was longer than 900 KiB and ends here.]";
/// Time between two progress messages of a turn, and before its first.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);
/// Time between two signs of life.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// Between the texts of two model calls.
const BREAK: &str = "\n\n";

pub(super) struct Reply {
    turn: TurnRef,
    connection: watch::Receiver<Connection>,
    /// Of the newest model call that said anything.
    text: String,
    cut: bool,
    /// The next piece of text is a new call's.
    fresh: bool,
    /// Not yet sent as progress.
    waiting: String,
    /// Whether any text of the present call was sent or waits behind an earlier call's.
    told: bool,
    in_flight: Arc<AtomicBool>,
    due: Option<Instant>,
    /// After a repeated call the text begins anew, which deltas cannot say: no more of them.
    silent: bool,
    /// Whether anything was said before the present call.
    spoken: bool,
    /// When it was last said that the turn goes on.
    alive: Option<Instant>,
}

impl Reply {
    pub(super) fn new(turn: TurnRef, connection: watch::Receiver<Connection>) -> Self {
        Self {
            turn,
            connection,
            text: String::new(),
            cut: false,
            fresh: true,
            waiting: String::new(),
            told: false,
            in_flight: Arc::default(),
            due: None,
            silent: false,
            spoken: false,
            alive: None,
        }
    }

    /// One that nobody is told of as it grows.
    pub(super) fn aside(turn: TurnRef, connection: watch::Receiver<Connection>) -> Self {
        Self { silent: true, ..Self::new(turn, connection) }
    }

    /// A model call begins; what the last one said stays until this one says something.
    pub(super) fn begin(&mut self) {
        self.fresh = true;
        self.told = false;
        self.spoken |= !self.text.is_empty();
    }

    /// The present call broke and will be made again.
    pub(super) fn restart(&mut self) {
        self.silent |= self.told;
        if !self.fresh {
            self.text.clear();
        }
        self.fresh = true;
        self.cut = false;
        self.told = false;
    }

    /// A model call's text that is known already: nobody is told of its progress.
    pub(super) fn replayed(&mut self, text: &str) {
        if !text.is_empty() {
            text.clone_into(&mut self.text);
            self.cut = false;
        }
    }

    /// A line that is told as progress alone, between what is said.
    pub(super) fn note(&mut self, line: &str) {
        if self.silent {
            return;
        }
        if self.spoken || !self.fresh || !self.waiting.is_empty() {
            self.waiting.push_str(BREAK);
        }
        self.waiting.push_str(line);
        self.spoken = true;
        if self.due.is_none() {
            self.due = Some(Instant::now() + PROGRESS_EVERY);
        }
    }

    /// Says that the turn goes on, where nothing else was said for a while.
    pub(super) fn alive(&mut self) {
        let now = Instant::now();
        let is_due = self.alive.is_none_or(|last| now >= last + ALIVE_EVERY);
        if is_due && self.waiting.is_empty() && !self.in_flight.load(Ordering::Acquire) {
            self.alive = Some(now);
            let progress = Progress { turn: Some(self.turn), text_delta: String::new() };
            // Lossy, as all progress is.
            let _ = self.connection.borrow().offer(progress, &self.in_flight);
        }
    }

    /// What the present call said; empty when it said nothing.
    pub(super) fn said(&self) -> &str {
        if self.fresh { "" } else { &self.text }
    }

    /// The present call is over and was the last: its text.
    pub(super) fn finish(&mut self) -> String {
        if self.fresh {
            return String::new();
        }
        self.so_far()
    }

    /// The newest text there is.
    pub(super) fn so_far(&mut self) -> String {
        let mut text = std::mem::take(&mut self.text);
        if self.cut {
            text.push_str(CUT_NOTE);
        }
        text
    }
}

impl Deltas for Reply {
    fn push(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.fresh {
            self.fresh = false;
            self.cut = false;
            self.text.clear();
            if self.spoken {
                self.waiting.push_str(BREAK);
            }
        }
        if self.cut {
            return;
        }
        let room = MAX_REPLY_BYTES - CUT_NOTE.len() - self.text.len();
        let taken = text.floor_char_boundary(room);
        self.cut = taken < text.len();
        let taken = text.get(..taken).unwrap_or_default();
        self.text.push_str(taken);
        if self.silent {
            return;
        }
        self.told = true;
        self.waiting.push_str(taken);
        if self.due.is_none() {
            self.due = Some(Instant::now() + PROGRESS_EVERY);
        }
    }

    fn due(&self) -> Option<Instant> {
        self.due
    }

    fn flush(&mut self) {
        let end = self.waiting.floor_char_boundary(hermes_proto::CHUNK_BYTES);
        let delta = self.waiting.get(..end).unwrap_or_default();
        let free = !self.in_flight.load(Ordering::Acquire);
        let progress = || Progress { turn: Some(self.turn), text_delta: delta.to_owned() };
        if !delta.is_empty() && free && self.connection.borrow().offer(progress(), &self.in_flight) {
            self.waiting.drain(..end);
        }
        self.due = (!self.waiting.is_empty()).then(|| Instant::now() + PROGRESS_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> Reply {
        Reply::new(TurnRef::default(), watch::channel(Connection::none()).1)
    }

    #[test]
    fn an_endless_reply_is_cut_and_says_so() {
        let mut reply = reply();
        for _ in 0..1000 {
            reply.push(&"é".repeat(1000));
        }
        let text = reply.finish();
        assert!(text.len() <= MAX_REPLY_BYTES && text.len() > MAX_REPLY_BYTES - 8);
        assert!(text.ends_with(CUT_NOTE));
    }

    #[test]
    fn the_last_call_is_the_reply_and_all_calls_are_progress() {
        let mut reply = reply();
        reply.begin();
        reply.push("I look.");
        reply.begin();
        assert_eq!(reply.said(), "");
        assert_eq!(reply.text, "I look.", "until the next call says something");
        reply.push("Fo");
        reply.push("und.");
        assert_eq!(reply.waiting, "I look.\n\nFound.");
        assert_eq!(reply.finish(), "Found.");
        reply.begin();
        assert_eq!(reply.finish(), "", "a call without text");
    }

    #[test]
    fn a_broken_call_leaves_nothing_in_the_reply_and_ends_progress() {
        let mut reply = reply();
        reply.begin();
        reply.push("half");
        reply.restart();
        reply.push("whole");
        assert_eq!((reply.waiting.as_str(), reply.silent), ("half", true));
        assert_eq!(reply.finish(), "whole");
    }
}
