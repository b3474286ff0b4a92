//! When skills are looked after: read, refused, exported.

use super::{load, refused};
use crate::config::*;
use hermes_home::curator::Settings;

#[test]
fn curators_are_read_exported_and_an_agents_own_counts_as_a_whole() {
    let text = "curator: {interval_days: 2, stale_after_days: 10, archive_after_days: 20, consolidate: true}\n\
                agents:\n  coder: {curator: {enabled: false, interval_hours: 5, min_idle_hours: 0}}\n  other: {}\n";
    let document = load(text);
    let all = Settings {
        interval_hours: 48,
        stale_after_days: 10,
        archive_after_days: 20,
        consolidate: true,
        ..Settings::default()
    };
    let of = |id: &str| document.curator_of(&document.agents[id]);
    assert_eq!(of("other"), all);
    let own = Settings { enabled: false, interval_hours: 5, min_idle_hours: 0, ..Settings::default() };
    assert_eq!(of("coder"), own);
    assert_eq!(load(&to_yaml(&document)), document);
    assert_eq!(load("{}").curator, Settings::default());
}

#[test]
fn what_makes_no_sense_is_refused_with_its_remedy() {
    refused(
        "curator:\n  enabled: 7\n  interval_days: 1\n  interval_hours: 0\n  min_idle_hours: 721\n  consolidate: weekly\n  idle: 1\n",
        &[
            (2, "curator.enabled", "true or false"),
            (3, "curator.interval_days", "keep one"),
            (4, "curator.interval_hours", "1"),
            (5, "curator.min_idle_hours", "720"),
            (6, "curator.consolidate", "true or false"),
            (7, "curator.idle", "unknown key"),
        ],
    );
    refused(
        "agents:\n  coder:\n    curator:\n      stale_after_days: 91\n",
        &[(4, "agents.coder.curator.archive_after_days", "91 or more")],
    );
    refused(
        "curator: {stale_after_days: 5, archive_after_days: 4}\n",
        &[(1, "curator.archive_after_days", "5 or more")],
    );
}
