//! How long what is in this replica's hands stays its own.
//!
//! The poller renews the replica's lease; whoever takes deliveries over from the store notes the tenure before it asks. Always
//! true: a tenure only grows while it has not ended, so a lease that comes back after a gap gives nothing back that another
//! replica may have taken in between. Without that, a process that stood still would go on sending what it held, under the
//! lease that it took when it woke up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hermes_platforms::Deadline;

/// An unbroken stretch of this replica's lease.
#[derive(Clone, Debug)]
pub(super) struct Tenure(Arc<Mutex<Instant>>);

impl Tenure {
    fn new(until: Instant) -> Self {
        Self(Arc::new(Mutex::new(until)))
    }

    /// From when on another replica may have what was taken over in it. Moves on with each renewal.
    pub(super) fn until(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, for what takes long to send.
    pub(super) fn deadline(&self) -> Deadline {
        let tenure = self.clone();
        Deadline::moving(move || tenure.until())
    }
}

/// The tenure there is now.
pub(super) struct Tenures(Mutex<Tenure>);

impl Tenures {
    pub(super) fn new(until: Instant) -> Self {
        Self(Mutex::new(Tenure::new(until)))
    }

    pub(super) fn current(&self) -> Tenure {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The lease was renewed, as is known `now`, and lasts `until`. A tenure that had ended by now is not continued: when the store
    /// renewed is not known, only that the answer has come too late to say that nobody was before it.
    pub(super) fn renewed(&self, now: Instant, until: Instant) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut end = current.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now < *end {
            *end = until.max(*end);
            return;
        }
        drop(end);
        *current = Tenure::new(until);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_taken_over_before_a_gap_stays_lost() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let tenures = Tenures::new(at(10));
        let first = tenures.current();
        tenures.renewed(at(5), at(15));
        assert_eq!((first.until(), tenures.current().until()), (at(15), at(15)));
        // Asked in time, answered too late.
        tenures.renewed(at(15), at(20));
        assert_eq!((first.until(), tenures.current().until()), (at(15), at(20)));
        tenures.renewed(at(16), at(30));
        assert_eq!((first.until(), tenures.current().until()), (at(15), at(30)));
        // Answers out of order take nothing away.
        tenures.renewed(at(17), at(29));
        assert_eq!(tenures.current().until(), at(30));
    }
}
