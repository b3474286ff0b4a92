//! The `busy` section of a text.
//!
//! Called by [`super::read`]. Always true of what it accepts: every rule names an agent, a platform or both, and no two name
//! the same. It deliberately does not know which agents are registered; a rule for none is a warning on the merged document.

use super::fields::{Faults, Path, Section, boolean, judged, list, text};
use super::patch::{Positions, agent_id};
use super::tree::Node;
use super::{shown, values};
use crate::busy::{Busy, BusyMode, BusyPolicy, BusyRule};

/// Reads `busy`.
pub(super) fn read(node: &Node, positions: &mut Positions, faults: &mut Faults) -> Busy {
    let path = Path::Root.key("busy");
    let section = Section::open(node, &path, &["mode", "notice", "rules"], faults);
    let policy = policy(&section, faults);
    let mut rules: Vec<BusyRule> = Vec::new();
    let items = section.get("rules").and_then(|node| list(node, path.key("rules"), faults));
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let parent = path.key("rules");
        let path = parent.index(index);
        positions.note(path.to_string(), item.line);
        let rule = rule(item, path, faults);
        if let Some(first) = rules.iter().position(|r| r.agent == rule.agent && r.platform == rule.platform) {
            faults.add(item.line, path, format!("rule {first} names the same messages; keep one"));
        }
        rules.push(rule);
    }
    Busy { policy, rules }
}

fn rule(node: &Node, path: Path<'_>, faults: &mut Faults) -> BusyRule {
    let section = Section::open(node, &path, &["agent", "platform", "mode", "notice"], faults);
    let agent = section.optional("agent", faults, agent_id);
    let platform =
        section.optional("platform", faults, |node, path, faults| judged(node, path, faults, values::some_text));
    if section.get("agent").is_none() && section.get("platform").is_none() {
        faults.add(node.line, path, "a rule names an agent, a platform or both");
    }
    if section.get("mode").is_none() {
        faults.add(node.line, path, "mode is missing; write queue, interrupt or steer");
    }
    BusyRule { agent, platform, policy: policy(&section, faults) }
}

fn policy(section: &Section<'_, '_>, faults: &mut Faults) -> BusyPolicy {
    let mode = section.optional("mode", faults, |node, path, faults| {
        let mode = text(node, path, faults)?;
        let known = BusyMode::parse(mode);
        if known.is_none() {
            faults.add(node.line, path, format!("{} is not a mode; write queue, interrupt or steer", shown(mode)));
        }
        known
    });
    let notice = section.optional("notice", faults, boolean);
    BusyPolicy::new(mode.unwrap_or_default(), notice)
}
