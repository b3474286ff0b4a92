//! How many bytes of message bodies this process holds at once, and whether it takes more.
//!
//! Asked by the HTTP side while a body arrives and by intake before a message waits for its commit. Always true: what is
//! taken is given back when the [`Held`] is dropped, however that comes; nobody waits for room, since a caller that is
//! refused at once costs nothing. It bounds bodies on their way in, not what runs.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bodies on their way in, bytes.
pub const BODIES: usize = 64 << 20;
/// What is counted; a body costs one more than it fills.
const UNIT: usize = 1 << 10;

/// See the module; cheap to clone.
#[derive(Clone, Debug)]
pub struct Room {
    units: Arc<Semaphore>,
}

/// Room that is taken.
#[derive(Debug)]
pub struct Held {
    of: Room,
    bytes: usize,
    permit: OwnedSemaphorePermit,
}

impl Default for Room {
    fn default() -> Self {
        Self::new(BODIES)
    }
}

impl Room {
    /// Room for so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { units: Arc::new(Semaphore::new((bytes / UNIT).max(1))) }
    }

    /// Room for `bytes`, if there is.
    pub fn take(&self, bytes: usize) -> Option<Held> {
        let permit = self.permits(units(bytes))?;
        Some(Held { of: self.clone(), bytes, permit })
    }

    fn permits(&self, units: usize) -> Option<OwnedSemaphorePermit> {
        self.units.clone().try_acquire_many_owned(u32::try_from(units).ok()?).ok()
    }
}

impl Held {
    /// Room for `bytes` more. False: there is none, and nothing more is held than before.
    pub fn more(&mut self, bytes: usize) -> bool {
        let (before, after) = (units(self.bytes), units(self.bytes.saturating_add(bytes)));
        if after > before {
            let Some(permit) = self.of.permits(after - before) else { return false };
            self.permit.merge(permit);
        }
        self.bytes = self.bytes.saturating_add(bytes);
        true
    }
}

fn units(bytes: usize) -> usize {
    bytes / UNIT + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_large_bodies_hold_no_more_than_there_is_room_for() {
        let room = Room::new(16 << 20);
        let mut held = Vec::new();
        for _ in 0..1000 {
            // They arrive piece by piece, all at once.
            let Some(mut body) = room.take(0) else { continue };
            let pieces = (0..64).take_while(|_| body.more(64 << 10)).count();
            held.push((body, pieces));
        }
        let bytes: usize = held.iter().map(|(_, pieces)| pieces * (64 << 10)).sum();
        assert!(bytes <= 16 << 20 && bytes > 15 << 20, "{bytes}");
        assert!(room.take(1 << 20).is_none());
        drop(held);
        assert!(room.take((16 << 20) - 1).is_some(), "all of it came back");
    }
}
