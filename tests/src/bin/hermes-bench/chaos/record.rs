//! [`Record`]: what the stand-ins saw, in the order they saw it. The checker reads this and nothing else.
//!
//! Written by the traffic (what was said and what was acknowledged), by the model stand-in, by the fake Bot API and by the
//! drill tools; read once, when everything is quiet. Always true: entries are only added, times are seconds since the
//! start of the run by one monotonic clock, and no entry comes from the control plane's own tables or words.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// A message that somebody wrote.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Said {
    /// Its number; numbers of a chat grow in the order in which they are written.
    pub(crate) number: u64,
    /// In which chat.
    pub(crate) chat: i64,
    /// Which agent it is for.
    pub(crate) agent: usize,
    /// When it was written.
    pub(crate) at: f64,
}

/// A message that the platform takes as arrived: its update was confirmed, or the call that brought it was answered with OK.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Accepted {
    /// Which.
    pub(crate) number: u64,
    /// When.
    pub(crate) at: f64,
}

/// A message that the platform took from us and shows in a chat.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Shown {
    /// In which chat.
    pub(crate) chat: i64,
    /// Its text.
    pub(crate) text: String,
    /// When.
    pub(crate) at: f64,
}

/// A request that the model got.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Asked {
    /// About which message.
    pub(crate) number: u64,
    /// How many of its replies it was shown already.
    pub(crate) step: usize,
    /// Whether it did not answer as asked.
    pub(crate) failed: bool,
    /// When.
    pub(crate) at: f64,
}

/// A worker that was ended without a word while all else was well.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Killed {
    /// Whose.
    pub(crate) agent: usize,
    /// When.
    pub(crate) at: f64,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Record {
    pub(crate) said: Vec<Said>,
    pub(crate) accepted: Vec<Accepted>,
    pub(crate) shown: Vec<Shown>,
    pub(crate) asked: Vec<Asked>,
    pub(crate) killed: Vec<Killed>,
    /// Calls whose result was shown to the model as UNKNOWN: message and call id.
    pub(crate) unknown: BTreeSet<(u64, String)>,
    /// Lines of the drill tools: class, call id, idempotency key or `-`, argument.
    pub(crate) effects: Vec<String>,
    /// What should never be said to a caller, whatever fails.
    pub(crate) refused: Vec<String>,
}

/// The record while it is written. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    start: Instant,
    record: Arc<Mutex<Record>>,
}

impl Recorder {
    /// An empty record that begins now.
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), record: Arc::default() }
    }

    /// Seconds from the start of the run to then.
    pub(crate) fn at(&self, then: Instant) -> f64 {
        then.saturating_duration_since(self.start).as_secs_f64()
    }

    /// Seconds since the start of the run.
    pub(crate) fn now(&self) -> f64 {
        self.at(Instant::now())
    }

    /// What was recorded so far, to read or to add to.
    pub(crate) fn locked(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands in a text for message `number`; the model repeats it.
pub(crate) fn tag(number: u64) -> String {
    format!("<{number}>")
}

/// The message that a text names.
pub(crate) fn tagged(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once('<')?;
    rest.split_once('>')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_again() {
        assert_eq!(tagged(&format!("(may be a duplicate)\necho {} yes", tag(7))), Some(7));
        assert_eq!(tagged("something went wrong"), None);
        assert_eq!(tagged("<b>bold</b>"), None);
    }
}
