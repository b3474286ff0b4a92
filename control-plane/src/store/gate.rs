//! What a call of the store does when Postgres cannot be reached or does not answer.
//!
//! Connections are tried again after pauses that are jittered and doubling, at most a second long; no answer is waited for without
//! end. Always true: while connections work nobody waits here; when Postgres comes back, every caller has tried again within a
//! second, and not all in the same instant. The pool bounds how many.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Error, Result};

const FIRST: Duration = Duration::from_millis(25);
const MOST: Duration = Duration::from_secs(1);
const MOST_DOUBLINGS: u32 = 6;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gate {
    failures: AtomicU32,
}

impl Gate {
    /// Waits when the last connection could not be had.
    pub(super) async fn wait(&self) {
        let failures = self.failures.load(Ordering::Relaxed);
        if failures > 0 {
            tokio::time::sleep(pause(failures, rand::random())).await;
        }
    }

    /// Whether a connection was had.
    pub(super) fn note(&self, had: bool) {
        if had {
            // A store on the path of every call: written only when it changes.
            if self.failures.load(Ordering::Relaxed) != 0 {
                self.failures.store(0, Ordering::Relaxed);
            }
        } else {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One call on a connection of the pool. A connection that has not answered in time is closed and not used again: whoever had it
/// next would wait behind this call.
pub(super) async fn within<T>(
    limit: Duration,
    client: deadpool_postgres::Object,
    call: impl AsyncFnOnce(&deadpool_postgres::Object) -> std::result::Result<T, tokio_postgres::Error>,
) -> Result<T> {
    match tokio::time::timeout(limit, call(&client)).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            drop(deadpool_postgres::Object::take(client));
            Err(Error::Unavailable(format!("no answer within {} s", limit.as_secs())))
        }
    }
}

/// Anything up to the bound; `random` is in 0..1.
fn pause(failures: u32, random: f64) -> Duration {
    (FIRST * 2_u32.pow(failures.min(MOST_DOUBLINGS))).min(MOST).mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_end_with_success() {
        assert_eq!(pause(1, 1.0), FIRST * 2);
        assert_eq!(pause(u32::MAX, 1.0), MOST);
        assert_eq!(pause(5, 0.0), Duration::ZERO);
        let gate = Gate::default();
        gate.note(false);
        assert_eq!(gate.failures.load(Ordering::Relaxed), 1);
        gate.note(true);
        assert_eq!(gate.failures.load(Ordering::Relaxed), 0);
    }
}
