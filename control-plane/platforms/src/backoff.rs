//! Waiting between tries to receive: exponential with jitter, from 0.2 s up to a bound.
//!
//! Owned by receive loops, one for each thing that can fail. It decides nothing about sends; the outbox has the schedule of those.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const MOST_DOUBLINGS: u32 = 8;

/// Counts failures in a row.
#[derive(Debug)]
pub(crate) struct Backoff {
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits at most `most`.
    pub(crate) fn up_to(most: Duration) -> Self {
        Self { most, failures: 0 }
    }

    /// The last try was good.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits after a failure; at least `least` when the platform named a time.
    pub(crate) async fn wait(&mut self, least: Option<Duration>) {
        tokio::time::sleep(self.next(rand::random()).max(least.unwrap_or_default())).await;
    }

    /// The wait after one more failure; `random` is in 0..1.
    fn next(&mut self, random: f64) -> Duration {
        let most = (FIRST * 2_u32.pow(self.failures.min(MOST_DOUBLINGS))).min(self.most);
        self.failures = self.failures.saturating_add(1);
        // Never below half: a server that is down is not asked in a tight loop.
        most.div_f64(2.0).mul_f64(1.0 + random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_a_bound_and_starts_over() {
        let mut backoff = Backoff::up_to(Duration::from_secs(30));
        assert_eq!(backoff.next(1.0), FIRST);
        assert_eq!(backoff.next(0.0), FIRST);
        for _ in 0..50 {
            backoff.next(0.5);
        }
        assert_eq!(backoff.next(1.0), Duration::from_secs(30));
        backoff.reset();
        assert_eq!(backoff.next(0.0), FIRST / 2);
    }
}
