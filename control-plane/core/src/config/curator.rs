//! `curator` in a text, and in exports.
//!
//! Called by [`super::read`] and [`super::to_yaml`]. What it means is [`hermes_home::curator`]'s.

use super::export::{Entries, Shape, literal};
use super::fields::{self, Faults, Path, Section, integer};
use super::tree::{Content, Node};
use hermes_home::curator::{DAYS, INTERVAL_HOURS, MIN_IDLE_HOURS};

pub(super) use hermes_home::curator::Settings;

const KEYS: [&str; 7] = [
    "enabled",
    "interval_days",
    "interval_hours",
    "min_idle_hours",
    "stale_after_days",
    "archive_after_days",
    "consolidate",
];

/// Reads when skills are looked after; what it leaves out takes the default.
pub(super) fn read(node: &Node, path: Path<'_>, faults: &mut Faults) -> Settings {
    if matches!(node.content, Content::Null) {
        faults.add(node.line, path, "a mapping is expected here; write {enabled: true}, or remove the key");
    }
    let section = Section::open(node, &path, &KEYS, faults);
    let usual = Settings::default();
    let enabled = section.optional("enabled", faults, fields::boolean);
    let consolidate = section.optional("consolidate", faults, fields::boolean);
    if let (Some(node), Some(_)) = (section.get("interval_days"), section.get("interval_hours")) {
        faults.add(node.line, path.key("interval_days"), "interval_hours says it, too; keep one of the two");
    }
    let mut number =
        |key, range| section.optional(key, faults, |node, path, faults| integer(node, range, path, faults));
    let interval_days = number("interval_days", 1..=INTERVAL_HOURS.end() / 24).map(|days| days * 24);
    let curator = Settings {
        enabled: enabled.unwrap_or(usual.enabled),
        interval_hours: number("interval_hours", INTERVAL_HOURS).or(interval_days).unwrap_or(usual.interval_hours),
        min_idle_hours: number("min_idle_hours", MIN_IDLE_HOURS).unwrap_or(usual.min_idle_hours),
        stale_after_days: number("stale_after_days", DAYS).unwrap_or(usual.stale_after_days),
        archive_after_days: number("archive_after_days", DAYS).unwrap_or(usual.archive_after_days),
        consolidate: consolidate.unwrap_or(usual.consolidate),
    };
    if let Some(fault) = curator.order_fault() {
        let at = section.get("archive_after_days").or_else(|| section.get("stale_after_days"));
        faults.add(at.map_or(node.line, |node| node.line), path.key("archive_after_days"), fault);
    }
    curator
}

/// As exports show it: whole, so that it says what it is.
pub(super) fn shape(curator: &Settings) -> Shape {
    Entries::default()
        .put("enabled", literal(curator.enabled))
        .put("interval_hours", literal(curator.interval_hours))
        .put("min_idle_hours", literal(curator.min_idle_hours))
        .put("stale_after_days", literal(curator.stale_after_days))
        .put("archive_after_days", literal(curator.archive_after_days))
        .put("consolidate", literal(curator.consolidate))
        .map()
}
