//! Several replicas of the control plane on one database, with real processes.

mod accounts;
mod budgets;
mod cluster;
mod database;
mod sender;
mod turns;

use std::time::Duration;

/// Longer than anything here takes; an error is shown then.
const SOON: Duration = Duration::from_secs(60);
