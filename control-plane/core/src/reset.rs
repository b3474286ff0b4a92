//! When a session expires (spec a.5): which policy applies, and the two instants before which a session counts as expired.
//!
//! Called by intake inside its transaction: [`thresholds`] turns "now" of the database into instants that one statement can
//! compare. It owns nothing. Always true: comparisons are strict and idle is judged before daily. It deliberately does not
//! know about running work; a session with a running turn is the caller's exception.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use crate::Source;

/// What makes a session expire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResetMode {
    /// Never.
    #[default]
    None,
    /// Idle for longer than `idle_minutes`.
    Idle,
    /// Last used before the daily boundary at `at_hour`.
    Daily,
    /// Either, idle tested first.
    Both,
}

impl ResetMode {
    /// All modes, in the order documents list them.
    pub const ALL: [Self; 4] = [Self::None, Self::Idle, Self::Daily, Self::Both];

    /// The name written in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Idle => "idle",
            Self::Daily => "daily",
            Self::Both => "both",
        }
    }

    /// The mode of exactly this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == name)
    }
}

/// One reset policy; absent document fields take these defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetPolicy {
    /// What makes a session expire. Default `none`.
    pub mode: ResetMode,
    /// Hour of the daily boundary, 0–23, in the document's time zone. Default 4.
    pub at_hour: u8,
    /// Idle bound in minutes. Default 1440.
    pub idle_minutes: u32,
}

impl Default for ResetPolicy {
    fn default() -> Self {
        Self { mode: ResetMode::None, at_hour: 4, idle_minutes: 1440 }
    }
}

/// The policies of a document.
#[derive(Clone, Copy, Debug)]
pub struct ResetRules<'a> {
    /// For every source without an override.
    pub default: &'a ResetPolicy,
    /// Overrides by chat type.
    pub by_type: &'a BTreeMap<String, ResetPolicy>,
    /// Overrides by platform.
    pub by_platform: &'a BTreeMap<String, ResetPolicy>,
}

impl<'a> ResetRules<'a> {
    /// The policy of a source: its platform's, else its chat type's, else the default.
    pub fn select(&self, source: &Source) -> &'a ResetPolicy {
        let by_type = || self.by_type.get(&source.chat_type);
        self.by_platform.get(&source.platform).or_else(by_type).unwrap_or(self.default)
    }
}

/// Why a session ended by policy: the stable names are `idle` and `daily`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResetReason {
    /// Not used for too long.
    Idle,
    /// Last used before the daily boundary.
    Daily,
}

impl ResetReason {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Daily => "daily",
        }
    }
}

/// A session last used strictly before one of these has expired; `None` never expires anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Tested first; the reason is `idle`.
    pub idle_before: Option<Timestamp>,
    /// Tested second; the reason is `daily`.
    pub daily_before: Option<Timestamp>,
}

impl Thresholds {
    /// Why a session last used at `updated_at` has expired, if it has.
    pub fn expired(&self, updated_at: Timestamp) -> Option<ResetReason> {
        let before = |bound: Option<Timestamp>| bound.is_some_and(|bound| updated_at < bound);
        if before(self.idle_before) {
            Some(ResetReason::Idle)
        } else if before(self.daily_before) {
            Some(ResetReason::Daily)
        } else {
            None
        }
    }
}

/// The instants of a policy seen from `now`, whose zone is the document's `timezone`. The daily boundary is the last
/// time the clock showed `at_hour`:00; where a clock change removes that hour, the first instant after the gap.
pub fn thresholds(policy: &ResetPolicy, now: &Zoned) -> Thresholds {
    let (idle, daily) = match policy.mode {
        ResetMode::None => (false, false),
        ResetMode::Idle => (true, false),
        ResetMode::Daily => (false, true),
        ResetMode::Both => (true, true),
    };
    Thresholds {
        idle_before: if idle { idle_bound(policy, now) } else { None },
        daily_before: if daily { daily_bound(policy, now) } else { None },
    }
}

fn idle_bound(policy: &ResetPolicy, now: &Zoned) -> Option<Timestamp> {
    now.timestamp().checked_sub(SignedDuration::from_mins(i64::from(policy.idle_minutes))).ok()
}

fn daily_bound(policy: &ResetPolicy, now: &Zoned) -> Option<Timestamp> {
    let hour = i8::try_from(policy.at_hour).ok()?;
    let day = if now.hour() < hour { now.date().yesterday().ok()? } else { now.date() };
    let boundary = jiff::civil::Time::new(hour, 0, 0, 0).ok()?.on(day.year(), day.month(), day.day());
    now.time_zone().to_timestamp(boundary).ok()
}

/// Why a session last used at `updated_at` has expired at `now`, if it has.
pub fn expired(policy: &ResetPolicy, updated_at: Timestamp, now: &Zoned) -> Option<ResetReason> {
    thresholds(policy, now).expired(updated_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(mode: ResetMode, at_hour: u8, idle_minutes: u32) -> ResetPolicy {
        ResetPolicy { mode, at_hour, idle_minutes }
    }

    fn at(text: &str) -> Zoned {
        text.parse().unwrap()
    }

    fn reason(policy: ResetPolicy, updated_at: &str, now: &str) -> Option<&'static str> {
        expired(&policy, at(updated_at).timestamp(), &at(now)).map(ResetReason::as_str)
    }

    #[test]
    fn both_comparisons_are_strict_and_idle_comes_first() {
        let both = policy(ResetMode::Both, 4, 60);
        let now = "2026-03-10T05:00:00[UTC]";
        assert_eq!(reason(both, "2026-03-10T04:00:00[UTC]", now), None);
        assert_eq!(reason(both, "2026-03-10T03:59:59.999[UTC]", now), Some("idle"));
        let daily = policy(ResetMode::Daily, 4, 60);
        assert_eq!(reason(daily, "2026-03-10T04:00:00[UTC]", now), None);
        assert_eq!(reason(daily, "2026-03-10T03:59:59.999[UTC]", now), Some("daily"));
        assert_eq!(reason(policy(ResetMode::None, 4, 1), "2020-01-01T00:00:00[UTC]", now), None);
    }

    #[test]
    fn before_the_hour_yesterdays_boundary_counts() {
        let daily = policy(ResetMode::Daily, 4, 60);
        let now = "2026-03-01T03:59:59[UTC]";
        assert_eq!(reason(daily, "2026-02-28T04:00:00[UTC]", now), None);
        assert_eq!(reason(daily, "2026-02-28T03:59:59[UTC]", now), Some("daily"));
    }

    #[test]
    fn the_boundary_is_local_and_survives_clock_changes() {
        let at_two = policy(ResetMode::Daily, 2, 60);
        // 02:00 does not exist in New York on this day; the first instant after the gap is 03:00 EDT.
        let now = "2026-03-08T09:00:00-04:00[America/New_York]";
        assert_eq!(reason(at_two, "2026-03-08T03:00:00-04:00[America/New_York]", now), None);
        assert_eq!(reason(at_two, "2026-03-08T01:59:59-05:00[America/New_York]", now), Some("daily"));
        // 01:00 happens twice on this day; its first occurrence counts, seen from either.
        let at_one = policy(ResetMode::Daily, 1, 60);
        for now in ["2026-11-01T01:30:00-04:00[America/New_York]", "2026-11-01T01:30:00-05:00[America/New_York]"] {
            assert_eq!(reason(at_one, "2026-11-01T01:00:00-04:00[America/New_York]", now), None);
            assert_eq!(reason(at_one, "2026-11-01T00:59:59-04:00[America/New_York]", now), Some("daily"));
        }
    }

    #[test]
    fn platform_overrides_beat_type_overrides_beat_the_default() {
        let (default, typed, platform) =
            (policy(ResetMode::None, 1, 1), policy(ResetMode::Idle, 2, 2), policy(ResetMode::Both, 3, 3));
        let by_type = BTreeMap::from([("group".to_owned(), typed)]);
        let by_platform = BTreeMap::from([("slack".to_owned(), platform)]);
        let rules = ResetRules { default: &default, by_type: &by_type, by_platform: &by_platform };
        let pick = |platform: &str, chat_type: &str| {
            *rules.select(&Source { platform: platform.into(), chat_type: chat_type.into(), ..Source::default() })
        };
        assert_eq!(pick("slack", "group"), platform);
        assert_eq!(pick("telegram", "group"), typed);
        assert_eq!(pick("telegram", "dm"), default);
    }

    #[test]
    fn absurd_bounds_expire_nothing_instead_of_failing() {
        let now = at("-009000-01-01T00:00:00[UTC]");
        assert_eq!(thresholds(&policy(ResetMode::Idle, 4, u32::MAX), &now).idle_before, None);
        assert_eq!(thresholds(&policy(ResetMode::Daily, 24, 1), &now).daily_before, None);
    }
}
