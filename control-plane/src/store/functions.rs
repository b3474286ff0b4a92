//! The transition functions: their text, and the schema of the database that is named after it.
//!
//! Used by [`super::Store`] for its search path and by `migrate`, which creates the set. Always true: a set is never
//! changed once it is made, so builds that differ in a function can share a database. What the functions do is written
//! in `control-plane/functions`.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

const SOURCES: &[&str] = &[
    include_str!("../../functions/accept.sql"),
    include_str!("../../functions/claim.sql"),
    include_str!("../../functions/journal.sql"),
    include_str!("../../functions/complete.sql"),
    include_str!("../../functions/previews.sql"),
    include_str!("../../functions/deliveries.sql"),
    include_str!("../../functions/leases.sql"),
    include_str!("../../functions/giving_up.sql"),
    include_str!("../../functions/retention.sql"),
    include_str!("../../functions/busy.sql"),
    include_str!("../../functions/commands.sql"),
    include_str!("../../functions/transcript.sql"),
    include_str!("../../functions/budget.sql"),
    include_str!("../../functions/approvals.sql"),
    include_str!("../../functions/asks.sql"),
    include_str!("../../functions/homes.sql"),
    include_str!("../../functions/pairing.sql"),
    include_str!("../../functions/blobs.sql"),
    include_str!("../../functions/cron.sql"),
];

/// One set of transition functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Functions {
    text: String,
    schema: String,
}

impl Default for Functions {
    /// The set of this build.
    fn default() -> Self {
        Self::from_text(SOURCES.concat())
    }
}

impl Functions {
    /// A set with this text. Other text than the default is for drills that show what a missing mechanism costs.
    pub fn from_text(text: String) -> Self {
        let digest = Sha256::digest(text.as_bytes());
        let mut schema = "hermes_fn_".to_owned();
        for byte in digest.iter().take(4) {
            let _ = write!(schema, "{byte:02x}");
        }
        Self { text, schema }
    }

    /// SQL that creates the functions.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The schema they lie in: `hermes_fn_` and 8 hex digits.
    pub fn schema(&self) -> &str {
        &self.schema
    }
}
