//! How fast each platform account brings messages: a bucket of tokens each, filled steadily, five seconds' worth at most.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many seconds' worth may come at once.
const BURST_SECONDS: u64 = 5;

#[derive(Debug, Default)]
pub(super) struct Pace {
    buckets: Mutex<HashMap<(String, String), Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Pace {
    /// How many of `wanted` messages of an account are taken now, and when another one may be; `per_second` 0 takes all.
    pub(super) fn take(
        &self,
        platform: &str,
        account: &str,
        wanted: usize,
        per_second: u64,
        now: Instant,
    ) -> (usize, Duration) {
        if per_second == 0 || wanted == 0 {
            return (wanted, Duration::ZERO);
        }
        #[expect(clippy::cast_precision_loss, reason = "rates are far below 2^52")]
        let (rate, most) = (per_second as f64, (per_second * BURST_SECONDS) as f64);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (platform.to_owned(), account.to_owned());
        let bucket = buckets.entry(key).or_insert(Bucket { tokens: most, at: now });
        bucket.tokens = (bucket.tokens + now.duration_since(bucket.at).as_secs_f64() * rate).min(most);
        bucket.at = now;
        let mut taken = 0;
        while taken < wanted && bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            taken += 1;
        }
        (taken, Duration::from_secs_f64(((1.0 - bucket.tokens) / rate).clamp(0.0, 3600.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_brings_a_burst_and_then_its_rate_and_slows_nobody_else() {
        let (pace, begin) = (Pace::default(), Instant::now());
        let take = |account, wanted, ms| pace.take("telegram", account, wanted, 10, begin + Duration::from_millis(ms));
        assert_eq!(take("a", 70, 0).0, 50);
        assert_eq!(take("a", 5, 0), (0, Duration::from_millis(100)));
        assert_eq!(take("b", 5, 0).0, 5);
        assert_eq!(take("a", 5, 250).0, 2);
        assert_eq!(take("a", 100, 60_000).0, 50);
        assert_eq!(pace.take("telegram", "a", 1000, 0, begin).0, 1000);
    }
}
