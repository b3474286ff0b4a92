//! `sandbox` in a text, and in exports.
//!
//! Called by [`super::read`] and [`super::to_yaml`]. What it means is [`hermes_home::sandbox`]'s.

use super::export::{Entries, Shape, literal, text};
use super::fields::{self, Faults, Path, Section, integer};
use super::shown;
use super::tree::{Content, Node};
use hermes_home::sandbox::{CPU_SECONDS, DISK_MB, Level, MEMORY_MB, Network, PIDS, PROXY_WITHOUT_BOUNDARY, Sandbox};

const KEYS: [&str; 6] = ["level", "network", "memory_mb", "pids", "cpu_seconds", "disk_mb"];

/// Reads a sandbox; what it leaves out takes the default.
pub(super) fn read(node: &Node, path: Path<'_>, faults: &mut Faults) -> Sandbox {
    if matches!(node.content, Content::Null) {
        faults.add(node.line, path, "a mapping is expected here; write {level: strict}, or remove the key");
    }
    let section = Section::open(node, &path, &KEYS, faults);
    let usual = Sandbox::default();
    let mut number =
        |key, range| section.optional(key, faults, |node, path, faults| integer(node, range, path, faults));
    let memory_mb = number("memory_mb", MEMORY_MB).unwrap_or(usual.memory_mb);
    let pids = number("pids", PIDS).unwrap_or(usual.pids);
    let cpu_seconds = number("cpu_seconds", CPU_SECONDS).unwrap_or(usual.cpu_seconds);
    let disk_mb = number("disk_mb", DISK_MB).unwrap_or(usual.disk_mb);
    let level = section.optional("level", faults, |node, path, faults| {
        word(node, path, faults, Level::parse, "a level; write strict, home or off")
    });
    let network = section.optional("network", faults, |node, path, faults| {
        word(node, path, faults, Network::parse, "a network; write none, proxy or open")
    });
    if level == Some(Level::Off) && network == Some(Network::Proxy) {
        let line = section.get("network").map_or(section.line(), |node| node.line);
        faults.add(line, path.key("network"), PROXY_WITHOUT_BOUNDARY);
    }
    Sandbox {
        level: level.unwrap_or_default(),
        network: network.unwrap_or_default(),
        memory_mb,
        pids,
        cpu_seconds,
        disk_mb,
    }
}

/// One of a few words. `off`, which other readers of YAML take for false, is one whether it is quoted or not.
fn word<T>(
    node: &Node,
    path: Path<'_>,
    faults: &mut Faults,
    parse: impl Fn(&str) -> Option<T>,
    expected: &str,
) -> Option<T> {
    let word = match &node.content {
        Content::Odd(word) if word == "off" => word.as_str(),
        _ => fields::text(node, path, faults)?,
    };
    let known = parse(word);
    if known.is_none() {
        faults.add(node.line, path, format!("{} is not {expected}", shown(word)));
    }
    known
}

/// As exports show it: whole, so that it says what it is.
pub(super) fn shape(sandbox: &Sandbox) -> Shape {
    Entries::default()
        .put("level", text(sandbox.level.as_str()))
        .put("network", text(sandbox.network.as_str()))
        .put("memory_mb", literal(sandbox.memory_mb))
        .put("pids", literal(sandbox.pids))
        .put("cpu_seconds", literal(sandbox.cpu_seconds))
        .put("disk_mb", literal(sandbox.disk_mb))
        .map()
}
