//! What happened in one run, counted by all chats together.
//!
//! Shared by the chats' loops; read by `main` at the start and at the end of the measured time. It owns the counters and
//! the latencies. Always true: every message that was sent ends in exactly one of answered, late and lost; messages
//! that were sent before the measured time leave no latency.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

use crate::ledger::Verdict;

/// Longest latency that is told apart, µs; longer ones count as this.
const LONGEST_US: u64 = 120_000_000;

/// The counters of one run.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Latencies of messages sent from here on are kept.
    measured_from: Instant,
    latencies: Mutex<Histogram<u64>>,
    answered: AtomicU64,
    lost: AtomicU64,
    late: AtomicU64,
    duplicates: AtomicU64,
    out_of_order: AtomicU64,
    unexpected: AtomicU64,
    /// What went wrong first, for people.
    first_fault: Mutex<Option<String>>,
}

/// A reading of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Messages with a reply in time.
    pub(crate) answered: u64,
    /// Messages without one.
    pub(crate) lost: u64,
    /// Lost messages whose reply came after all; they stay lost.
    pub(crate) late: u64,
    /// Further replies to a message that had one.
    pub(crate) duplicates: u64,
    /// Replies after the reply to a newer message.
    pub(crate) out_of_order: u64,
    /// Replies that name no message of their chat.
    pub(crate) unexpected: u64,
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Tally {
    /// An empty one.
    pub(crate) fn new(measured_from: Instant) -> Self {
        let latencies = Histogram::new_with_bounds(1, LONGEST_US, 3).expect("these bounds are valid");
        Self {
            measured_from,
            latencies: Mutex::new(latencies),
            answered: AtomicU64::default(),
            lost: AtomicU64::default(),
            late: AtomicU64::default(),
            duplicates: AtomicU64::default(),
            out_of_order: AtomicU64::default(),
            unexpected: AtomicU64::default(),
            first_fault: Mutex::default(),
        }
    }

    /// A message sent at `sent` was answered now.
    pub(crate) fn answered(&self, sent: Instant, latency: Duration) {
        self.answered.fetch_add(1, Relaxed);
        if sent >= self.measured_from {
            let micros = u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US);
            self.latencies.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(micros.max(1));
        }
    }

    /// A message was given up.
    pub(crate) fn lost(&self) {
        self.lost.fetch_add(1, Relaxed);
    }

    /// A reply that was not the awaited one.
    pub(crate) fn stray(&self, verdict: Verdict, text: &str) {
        let counter = match verdict {
            Verdict::Answer | Verdict::Late => &self.late,
            Verdict::OutOfOrder => &self.out_of_order,
            Verdict::Duplicate => &self.duplicates,
            Verdict::Unexpected => &self.unexpected,
        };
        counter.fetch_add(1, Relaxed);
        self.failed(&format!("{verdict:?} reply: {text}"));
    }

    /// Why something went wrong; the first is kept, cut to one short line.
    pub(crate) fn failed(&self, cause: &str) {
        let mut first = self.first_fault.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| cause.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect());
    }

    /// What went wrong first, if anything.
    pub(crate) fn first_fault(&self) -> Option<String> {
        self.first_fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The counters now.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            answered: self.answered.load(Relaxed),
            lost: self.lost.load(Relaxed),
            late: self.late.load(Relaxed),
            duplicates: self.duplicates.load(Relaxed),
            out_of_order: self.out_of_order.load(Relaxed),
            unexpected: self.unexpected.load(Relaxed),
        }
    }

    /// The latencies so far; `None` without any.
    pub(crate) fn percentiles(&self) -> Option<Percentiles> {
        let latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let ms = |micros: u64| Duration::from_micros(micros).as_secs_f64() * 1e3;
        (!latencies.is_empty()).then(|| Percentiles {
            p50: ms(latencies.value_at_quantile(0.50)),
            p95: ms(latencies.value_at_quantile(0.95)),
            p99: ms(latencies.value_at_quantile(0.99)),
            max: ms(latencies.max()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= b * 0.002
    }

    #[test]
    fn percentiles_are_those_of_the_measured_messages() {
        let from = Instant::now();
        let tally = Tally::new(from);
        // Sent before the measured time: counted, but without a latency.
        tally.answered(from - Duration::from_secs(1), Duration::from_secs(9));
        assert_eq!(tally.percentiles(), None);
        for ms in 1..=1000 {
            tally.answered(from, Duration::from_millis(ms));
        }
        let got = tally.percentiles().unwrap();
        assert!(
            close(got.p50, 500.0) && close(got.p95, 950.0) && close(got.p99, 990.0) && close(got.max, 1000.0),
            "{got:?}"
        );
        assert_eq!(tally.counts().answered, 1001);
    }

    #[test]
    fn a_latency_beyond_the_bounds_counts_as_the_longest() {
        let tally = Tally::new(Instant::now());
        tally.answered(Instant::now(), Duration::ZERO);
        tally.answered(Instant::now(), Duration::from_secs(100_000));
        assert!(close(tally.percentiles().unwrap().max, 120_000.0));
    }

    #[test]
    fn every_kind_has_its_counter() {
        let tally = Tally::new(Instant::now());
        tally.lost();
        for verdict in [Verdict::Late, Verdict::OutOfOrder, Verdict::Duplicate, Verdict::Duplicate, Verdict::Unexpected]
        {
            tally.stray(verdict, "hello\n1");
        }
        let expected = Counts { answered: 0, lost: 1, late: 1, duplicates: 2, out_of_order: 1, unexpected: 1 };
        assert_eq!(tally.counts(), expected);
        assert_eq!(tally.first_fault().as_deref(), Some("Late reply: hello 1"));
    }
}
