//! Removes what is over, slowly, beside the work: rows older than the document's `retention` says.
//!
//! Run by every replica; the database lets one at a time work on one kind of rows. It owns nothing. Always true: a step is short
//! (its pages are halved when it took longer than [`STEP`]), and the pause after it is nine times as long, so it never takes more
//! than a tenth of one connection; a crash or a stop loses nothing but the place of the pass. What may go is decided by the
//! statement, under the document's days.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::registry::Registry;
use crate::store::RETAINED;
use crate::telemetry::Metrics;

/// Longest step that is aimed at.
const STEP: Duration = Duration::from_millis(50);
/// At about a hundred rows a page a step has at most 5,000.
const MOST_PAGES: i64 = 48;
const FEWEST_PAGES: i64 = 2;
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// How often it is looked at whether a pass is due.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// From the end of a pass to the next one.
const PASS_EVERY: Duration = Duration::from_secs(3600);

/// The loop. The first look comes soon after the start, at another moment in each replica.
pub async fn run(registry: Registry, metrics: Metrics, stop: CancellationToken) {
    let mut wait = Duration::from_secs(20).mul_f64(rand::random_range(0.5..1.5));
    while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        for what in RETAINED {
            if stop.run_until_cancelled(pass(&registry, &metrics, what)).await.is_none() {
                return;
            }
        }
        wait = LOOK_EVERY.mul_f64(rand::random_range(0.8..1.2));
    }
}

/// Steps through one kind until its pass is over, or another replica is at it.
async fn pass(registry: &Registry, metrics: &Metrics, what: &'static str) {
    let (mut pages, mut sum) = (MOST_PAGES, 0);
    loop {
        let days = registry.current().document.retention.clone();
        let begun = Instant::now();
        let step = match registry.store().retain(what, &days, pages, PASS_EVERY).await {
            Ok(step) => step,
            Err(error) => {
                tracing::warn!(what, %error, "could not remove what is over; later again");
                return;
            }
        };
        let took = begun.elapsed();
        metrics.retention_removed(what, u64::try_from(step.removed).unwrap_or(0));
        sum += step.removed;
        if !step.more {
            if sum > 0 {
                tracing::info!(what, rows = sum, "removed what is over");
            }
            return;
        }
        pages = next_pages(pages, took);
        tokio::time::sleep((took * 9).max(SHORTEST_PAUSE)).await;
    }
}

fn next_pages(pages: i64, took: Duration) -> i64 {
    let next = if took > STEP {
        pages / 2
    } else if took < STEP / 4 {
        pages * 2
    } else {
        pages
    };
    next.clamp(FEWEST_PAGES, MOST_PAGES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_shrink_when_they_are_slow_and_grow_back() {
        assert_eq!(next_pages(48, STEP * 2), 24);
        assert_eq!(next_pages(2, STEP * 2), FEWEST_PAGES);
        assert_eq!(next_pages(24, STEP / 2), 24);
        assert_eq!(next_pages(24, STEP / 10), MOST_PAGES);
        assert_eq!(next_pages(MOST_PAGES, STEP / 10), MOST_PAGES);
    }
}
