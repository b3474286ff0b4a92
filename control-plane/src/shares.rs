//! Places that many callers have together, of which each may hold a part and no more.
//!
//! Asked by the gRPC layers before an upload runs, and by `attachments` before a file is taken into memory. Owns the places and who holds how many. Always
//! true: all callers together never hold more than there are; one caller never holds, nor keeps others from, more than its part, so whoever holds none
//! waits at most for what others are doing, and not behind what one of them has queued; who waits is served in order; what is taken is given back when the
//! [`Share`] is dropped. It does not know what a place is, nor who is a caller: a name says that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// See the module; cheap to clone.
#[derive(Clone, Debug)]
pub struct Shares {
    places: Arc<Semaphore>,
    each: usize,
    /// Of those who hold or wait for some.
    callers: Arc<Mutex<HashMap<String, Weak<Semaphore>>>>,
}

/// Places that are taken.
#[derive(Debug)]
pub struct Share {
    // Closed by nobody, so there always are two.
    _held: [Option<OwnedSemaphorePermit>; 2],
}

impl Shares {
    /// So many places, and so many of them for one caller at most.
    pub fn new(places: usize, each: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), each: each.min(places), callers: Arc::default() }
    }

    /// Waits for `count` places, or for all that a caller may have when that is less.
    pub async fn take(&self, caller: &str, count: usize) -> Share {
        let count = self.at_most(count);
        // First of the caller's own: who waits for those stands in nobody's way.
        let own = self.of(caller).acquire_many_owned(count).await.ok();
        let place = Arc::clone(&self.places).acquire_many_owned(count).await.ok();
        Share { _held: [own, place] }
    }

    /// `count` places if they are free, and the caller may have them.
    pub fn try_take(&self, caller: &str, count: usize) -> Option<Share> {
        if count > self.each {
            return None;
        }
        let count = self.at_most(count);
        let own = self.of(caller).try_acquire_many_owned(count).ok()?;
        let place = Arc::clone(&self.places).try_acquire_many_owned(count).ok()?;
        Some(Share { _held: [Some(own), Some(place)] })
    }

    fn at_most(&self, count: usize) -> u32 {
        u32::try_from(count.min(self.each)).unwrap_or(u32::MAX)
    }

    /// A caller's own places. They are forgotten once nobody holds or waits for one.
    fn of(&self, caller: &str) -> Arc<Semaphore> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = callers.get(caller).and_then(Weak::upgrade) {
            return own;
        }
        callers.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(self.each));
        callers.insert(caller.to_owned(), Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_holds_all_of_its_own_waits_and_everybody_else_does_not() {
        let shares = Shares::new(4, 2);
        let held = [shares.take("greedy", 1).await, shares.take("greedy", 1).await];
        let mut queued: Vec<_> = (0..8).map(|_| Box::pin(shares.take("greedy", 1))).collect();
        assert!(queued.iter_mut().all(|one| one.now_or_never().is_none()), "it has its part");
        assert!(shares.try_take("greedy", 1).is_none());
        let other = shares.take("other", 2).now_or_never().expect("others have places");
        assert!(shares.take("third", 1).now_or_never().is_none(), "there are four");
        drop(other);
        assert!(shares.take("third", 1).now_or_never().is_some());
        drop(held);
        assert!(queued.into_iter().take(2).all(|one| one.now_or_never().is_some()), "it goes on in order");
    }

    #[tokio::test]
    async fn who_is_gone_is_forgotten() {
        let shares = Shares::new(4, 2);
        for caller in 0..1_000 {
            drop(shares.take(&caller.to_string(), 1).await);
        }
        assert!(shares.callers.lock().unwrap().len() <= 2);
        assert!(shares.try_take("large", 3).is_none(), "it is more than one may have");
        drop(shares.take("large", 3).await);
    }
}
