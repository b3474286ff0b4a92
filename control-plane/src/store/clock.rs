//! The database's clock as this process knows it: the last answer plus monotonic time since.
//!
//! Fed by every poll. Always true: it never reads this host's wall clock, so a host whose clock is wrong judges resets like
//! every other.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

/// See the module.
#[derive(Debug)]
pub struct DatabaseClock {
    last: Mutex<(Timestamp, Instant)>,
}

impl DatabaseClock {
    /// Starts from an answer of the database.
    pub fn new(now: Timestamp) -> Self {
        Self { last: Mutex::new((now, Instant::now())) }
    }

    /// The database said this just now.
    pub fn set(&self, now: Timestamp) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = (now, Instant::now());
    }

    /// What it would say now.
    pub fn now(&self) -> Timestamp {
        let (at, since) = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = SignedDuration::try_from(since.elapsed()).unwrap_or(SignedDuration::ZERO);
        at.checked_add(passed).unwrap_or(at)
    }
}
