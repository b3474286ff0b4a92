//! When the curator looks after the skills that an agent made by itself, and whether a model merges them.
//!
//! A part of an agent's profile: read by `hermes_core::config`, stored with the revision, told to its workers, which do it. Always true: a
//! skill goes stale before it goes into the archive. What the curator does to a skill is [`super::Usage::wanted`]'s.

use std::ops::RangeInclusive;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use super::hours;

/// What [`Settings::interval_hours`] may be: up to a year.
pub const INTERVAL_HOURS: RangeInclusive<u64> = 1..=8_760;
/// What [`Settings::min_idle_hours`] may be: up to 30 days.
pub const MIN_IDLE_HOURS: RangeInclusive<u64> = 0..=720;
/// What [`Settings::stale_after_days`] and [`Settings::archive_after_days`] may be: up to ten years.
pub const DAYS: RangeInclusive<u64> = 1..=3_650;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Whether it runs by itself. Default: true.
    pub enabled: bool,
    /// How long after a run the next one comes by itself. Default: 168, a week.
    pub interval_hours: u64,
    /// How long the agent does nothing before a run begins by itself. Default: 2.
    pub min_idle_hours: u64,
    /// How long a skill lies untouched until it is stale. Default: 30.
    pub stale_after_days: u64,
    /// How long until it goes into the archive. Default: 90.
    pub archive_after_days: u64,
    /// Whether a run, also one that is asked for, has the agent's model merge skills that overlap. Default: false.
    pub consolidate: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            interval_hours: 7 * 24,
            min_idle_hours: 2,
            stale_after_days: 30,
            archive_after_days: 90,
            consolidate: false,
        }
    }
}

impl Settings {
    /// As told, or, where what is told makes no sense, the default: a skill goes stale before it goes into the archive.
    #[must_use]
    pub fn or_usual(self) -> Self {
        let sane = self.interval_hours > 0 && (1..=self.archive_after_days).contains(&self.stale_after_days);
        let Self { enabled, consolidate, .. } = self;
        if sane { self } else { Self { enabled, consolidate, ..Self::default() } }
    }

    /// How long the agent does nothing before a run begins by itself.
    pub fn min_idle(&self) -> SignedDuration {
        hours(self.min_idle_hours)
    }

    /// What is wrong with one, beyond what `hermes_core::config` sees in its text: field and remedy.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let numbers = [
            ("interval_hours", self.interval_hours, INTERVAL_HOURS),
            ("min_idle_hours", self.min_idle_hours, MIN_IDLE_HOURS),
            ("stale_after_days", self.stale_after_days, DAYS),
            ("archive_after_days", self.archive_after_days, DAYS),
        ];
        let mut faults: Vec<_> = numbers
            .into_iter()
            .filter(|(_, value, range)| !range.contains(value))
            .map(|(key, _, range)| (key, format!("write a whole number from {} to {}", range.start(), range.end())))
            .collect();
        faults.extend(self.order_fault().map(|fault| ("archive_after_days", fault)));
        faults
    }

    /// What is wrong with its two ages together.
    pub fn order_fault(&self) -> Option<String> {
        let Self { stale_after_days: stale, archive_after_days: archive, .. } = self;
        (archive < stale).then(|| {
            format!("a skill would go into the archive after {archive} days and be stale after {stale}; write {stale} or more")
        })
    }
}
