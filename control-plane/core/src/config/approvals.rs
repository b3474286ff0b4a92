//! `approvals` in a text, and in exports.
//!
//! Called by [`super::read`] and [`super::to_yaml`]. What it means is [`crate::approvals`]'s.

use super::export::{Entries, Shape, literal, text};
use super::fields::{self, Faults, Path, Section, integer, judged, texts};
use super::tree::{Content, Node};
use super::{shown, values};
use crate::approvals::{Approvals, MAX_ENTRIES, Mode, TIMEOUT_SECONDS, allowed, denied};

const KEYS: [&str; 5] = ["mode", "smart_model", "timeout_seconds", "allow", "deny"];

/// Reads when people are asked; what it leaves out takes the default.
pub(super) fn read(node: &Node, path: Path<'_>, faults: &mut Faults) -> Approvals {
    if matches!(node.content, Content::Null) {
        faults.add(node.line, path, "a mapping is expected here; write {mode: manual}, or remove the key");
    }
    let section = Section::open(node, &path, &KEYS, faults);
    let usual = Approvals::default();
    let timeout =
        section.optional("timeout_seconds", faults, |node, path, faults| integer(node, TIMEOUT_SECONDS, path, faults));
    let mut entries = |key, judge: fn(&str) -> Result<(), String>| {
        let item = |node: &Node, path: Path<'_>, faults: &mut Faults| judged(node, path, faults, judge);
        let entries = section.optional(key, faults, |node, path, faults| {
            let entries = texts(node, path, faults, item)?;
            if entries.len() > MAX_ENTRIES {
                let count = entries.len();
                faults.add(node.line, path, format!("it has {count} entries; at most {MAX_ENTRIES} are allowed"));
            }
            Some(entries)
        });
        entries.unwrap_or_default()
    };
    let (allow, deny) = (entries("allow", allowed), entries("deny", denied));
    Approvals {
        mode: section.optional("mode", faults, mode).unwrap_or_default(),
        smart_model: section
            .optional("smart_model", faults, |node, path, faults| judged(node, path, faults, values::model)),
        timeout_seconds: timeout.unwrap_or(usual.timeout_seconds),
        allow,
        deny,
    }
}

/// `off`, which other readers of YAML take for false, is one whether it is quoted or not.
fn mode(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<Mode> {
    let word = match &node.content {
        Content::Odd(word) if word == "off" => word.as_str(),
        _ => fields::text(node, path, faults)?,
    };
    let known = Mode::parse(word);
    if known.is_none() {
        faults.add(node.line, path, format!("{} is not a mode; write manual, smart or off", shown(word)));
    }
    known
}

/// As exports show it: whole, so that it says what it is.
pub(super) fn shape(approvals: &Approvals) -> Shape {
    let entries = Entries::default().put("mode", text(approvals.mode.as_str()));
    let entries = match &approvals.smart_model {
        Some(model) => entries.put("smart_model", text(model)),
        None => entries,
    };
    entries
        .put("timeout_seconds", literal(approvals.timeout_seconds))
        .put("allow", Shape::List(approvals.allow.iter().map(|entry| text(entry)).collect()))
        .put("deny", Shape::List(approvals.deny.iter().map(|entry| text(entry)).collect()))
        .map()
}
