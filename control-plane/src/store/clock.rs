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

    /// The database said this just now. Answers how far its clock went back since the last time, beyond a second; nothing when
    /// it did not.
    pub fn set(&self, now: Timestamp) -> Option<SignedDuration> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let back = last.0.duration_since(now);
        *last = (now, Instant::now());
        (back > SignedDuration::from_secs(1)).then_some(back)
    }

    /// What it would say now.
    pub fn now(&self) -> Timestamp {
        let (at, since) = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = SignedDuration::try_from(since.elapsed()).unwrap_or(SignedDuration::ZERO);
        at.checked_add(passed).unwrap_or(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_back_is_noticed_once() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let clock = DatabaseClock::new(at(1000));
        assert_eq!(clock.set(at(1001)), None);
        assert_eq!(clock.set(at(1000)), None, "a second is within what an answer's way may take");
        assert_eq!(clock.set(at(4600)), None, "a jump forward is no jump back");
        assert_eq!(clock.set(at(1000)), Some(SignedDuration::from_hours(1)));
        assert_eq!(clock.set(at(1001)), None);
        assert!(clock.now() >= at(1001));
    }
}
