//! When a session expires (spec a.5): which policy applies, and the two instants before which a session counts as expired.

use serde::{Deserialize, Serialize};

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
