//! Until when this replica may send what is committed as `attempting` in its name.
//!
//! The poll says when it renewed the replica's lease; each send asks right before it. Always true: with the lease over, or about
//! to be, nothing is sent, because another replica may have taken the delivery up and sent it, and this copy would not
//! say that it is one. A process that stood still finds out when it goes on: only this process's own clock is asked.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub(super) struct Hold {
    until: Mutex<Instant>,
}

impl Hold {
    /// As if renewed now.
    pub(super) fn new(lease: Duration) -> Self {
        Self { until: Mutex::new(end(Instant::now(), lease)) }
    }

    /// The lease was renewed by a call that began at `asked`.
    pub(super) fn renewed(&self, asked: Instant, lease: Duration) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = end(asked, lease).max(*until);
    }

    /// Whether something may be sent at `now`.
    pub(super) fn holds(&self, now: Instant) -> bool {
        now < *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fifth of the lease is left for what is on its way to the platform.
fn end(asked: Instant, lease: Duration) -> Instant {
    asked + lease * 4 / 5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_before_the_lease_and_never_earlier_than_known() {
        let (lease, start) = (Duration::from_secs(10), Instant::now());
        let hold = Hold::new(lease);
        assert!(hold.holds(start + Duration::from_secs(7)));
        assert!(!hold.holds(start + Duration::from_secs(9)));
        let asked = start + Duration::from_secs(20);
        hold.renewed(asked, lease);
        // An answer that was overtaken.
        hold.renewed(start, lease);
        assert!(hold.holds(asked + Duration::from_millis(7_999)) && !hold.holds(asked + Duration::from_secs(8)));
    }
}
