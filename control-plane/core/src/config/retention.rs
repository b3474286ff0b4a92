//! How long what is over is kept.

use serde::{Deserialize, Serialize};

use super::Patch;
use super::fields::{Faults, Path, Section, integer};
use super::tree::{Content, Node};

/// Shortest time for which events stay known: longer than any platform repeats one.
pub const DEDUPE_DAYS_MIN: u64 = 8;
/// Longest time that can be written; longer is for ever.
pub const RETENTION_DAYS_MAX: u64 = 36_500;

/// Days after which what is over is removed. What a running, waiting or undelivered turn needs stays whatever is written here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// How long a platform's event is known again, so that a repeat runs nothing. At least 8, the default.
    pub dedupe_days: u64,
    /// Steps (tool calls and their results) of ended turns. Default 30.
    pub steps_days: u64,
    /// The record of deliveries that arrived. Default 90.
    pub deliveries_days: u64,
    /// Files that came with messages, after they came last. Default 30.
    #[serde(default = "attachments_days")]
    pub attachments_days: u64,
    /// Dead turns and dead deliveries. Default 365.
    pub dead_days: u64,
    /// Ended turns with their replies, and sessions of which no turn is left. Default: for ever. Never shorter than `dead_days` and a month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns_days: Option<u64>,
}

fn attachments_days() -> u64 {
    30
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            dedupe_days: DEDUPE_DAYS_MIN,
            steps_days: 30,
            deliveries_days: 90,
            attachments_days: attachments_days(),
            dead_days: 365,
            turns_days: None,
        }
    }
}

/// What a text says of it, key by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionPatch {
    pub(super) dedupe_days: Option<u64>,
    pub(super) steps_days: Option<u64>,
    pub(super) deliveries_days: Option<u64>,
    pub(super) attachments_days: Option<u64>,
    pub(super) dead_days: Option<u64>,
    /// `Some(None)` when the text says null, which keeps turns for ever.
    pub(super) turns_days: Option<Option<u64>>,
}

impl Retention {
    /// With what a text says.
    pub(super) fn patched(&mut self, patch: &RetentionPatch) {
        let RetentionPatch { dedupe_days, steps_days, deliveries_days, attachments_days, dead_days, turns_days } =
            patch;
        for (kept, said) in [
            (&mut self.dedupe_days, dedupe_days),
            (&mut self.steps_days, steps_days),
            (&mut self.deliveries_days, deliveries_days),
            (&mut self.attachments_days, attachments_days),
            (&mut self.dead_days, dead_days),
        ] {
            *kept = said.unwrap_or(*kept);
        }
        self.turns_days = turns_days.unwrap_or(self.turns_days);
    }
}

/// Reads the key `retention`.
pub(super) fn read(node: &Node, patch: &mut Patch, faults: &mut Faults) {
    let path = Path::Root.key("retention");
    let keys = ["dedupe_days", "steps_days", "deliveries_days", "attachments_days", "dead_days", "turns_days"];
    let section = Section::open(node, &path, &keys, faults);
    let mut days = |key: &str, least: u64| {
        section.optional(key, faults, |node, path, faults| integer(node, least..=RETENTION_DAYS_MAX, path, faults))
    };
    patch.retention = RetentionPatch {
        dedupe_days: days("dedupe_days", DEDUPE_DAYS_MIN),
        steps_days: days("steps_days", 1),
        deliveries_days: days("deliveries_days", 1),
        attachments_days: days("attachments_days", 1),
        dead_days: days("dead_days", 1),
        turns_days: match section.get("turns_days").map(|node| &node.content) {
            None => None,
            Some(Content::Null) => Some(None),
            Some(_) => days("turns_days", 1).map(Some),
        },
    };
}
