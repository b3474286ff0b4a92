//! Strict reading of a node tree: places of faults, known keys, typed values.
//!
//! Called by the section readers of [`super::patch`] and [`super::accounts`]. Owns the list of faults while a text is read.
//! Always true: reading goes on after a fault, so that all of a text's faults are reported together; a value under a key
//! that may hold a secret is never quoted. It deliberately has no key names of its own beyond remedies for common slips.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;

use super::tree::{Content, Node};
use super::{Fault, nearest, shown};
use crate::routing::InvalidValue;

/// Most faults or warnings reported one by one; the rest is counted.
pub(super) const REPORT_LIMIT: usize = 1000;

/// Where a value stands; printed as `routes[3].match.chat_id`.
#[derive(Clone, Copy)]
pub(super) enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl<'a> Path<'a> {
    pub(super) fn key(&'a self, key: &'a str) -> Self {
        Self::Key(self, key)
    }

    pub(super) fn index(&'a self, index: usize) -> Self {
        Self::Index(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Key(Path::Root, key) => f.write_str(&path_key(key)),
            Path::Key(parent, key) => write!(f, "{parent}.{}", path_key(key)),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A key as a path shows it: quoted unless it is a plain word.
fn path_key(key: &str) -> String {
    let word = !key.is_empty() && key.len() <= 60 && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    if word { key.to_owned() } else { shown(key) }
}

/// The faults found so far.
#[derive(Default)]
pub(super) struct Faults {
    list: Vec<Fault>,
    omitted: usize,
}

impl Faults {
    pub(super) fn add(&mut self, line: u32, path: Path<'_>, message: impl Into<String>) {
        self.push(Fault { line, path: path.to_string(), message: message.into() });
    }

    pub(super) fn push(&mut self, fault: Fault) {
        self.push_with(|| fault);
    }

    /// Adds what `fault` makes, which is not called for faults that are only counted: a hint may be dear.
    pub(super) fn push_with(&mut self, fault: impl FnOnce() -> Fault) {
        if self.list.len() < REPORT_LIMIT {
            self.list.push(fault());
        } else {
            self.omitted += 1;
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.list.len() + self.omitted
    }

    /// The value when nothing is wrong, else all faults in the order of their lines.
    pub(super) fn into_result<T>(self, value: T) -> Result<T, Vec<Fault>> {
        let faults = self.into_list();
        if faults.is_empty() { Ok(value) } else { Err(faults) }
    }

    pub(super) fn into_list(mut self) -> Vec<Fault> {
        self.list.sort_by_key(|fault| fault.line);
        if self.omitted > 0 {
            let message = format!("{} more faults are not listed", self.omitted);
            self.list.push(Fault { line: 0, path: String::new(), message });
        }
        self.list
    }
}

/// The name of what a node is, for messages.
fn kind(node: &Node) -> &'static str {
    match &node.content {
        Content::Null => "nothing",
        Content::Bool(_) => "a boolean",
        Content::Decimal(_) => "a number",
        Content::Float(..) => "a number with a fraction or exponent",
        Content::Odd(_) => "text that YAML readers take for different values",
        Content::Text(_) => "text",
        Content::List(_) => "a list",
        Content::Map(_) => "a mapping",
    }
}

/// One mapping entry with a text key.
pub(super) struct Entry<'n> {
    pub(super) key: &'n str,
    pub(super) line: u32,
    pub(super) value: &'n Node,
}

/// The entries of a mapping whose keys the user chooses, in the order written; faulty and repeated keys are reported and
/// left out. Null counts as an empty mapping.
pub(super) fn entries<'n>(node: &'n Node, path: Path<'_>, faults: &mut Faults) -> Vec<Entry<'n>> {
    let all = match &node.content {
        Content::Map(all) => all,
        Content::Null => return Vec::new(),
        _ => {
            faults.add(node.line, path, format!("a mapping is expected here, not {}", kind(node)));
            return Vec::new();
        }
    };
    let mut first: HashMap<&str, u32> = HashMap::with_capacity(all.len());
    let mut kept = Vec::with_capacity(all.len());
    for (key, value) in all {
        let name = match &key.content {
            Content::Text(name) => name.as_str(),
            Content::Decimal(text) | Content::Odd(text) | Content::Float(_, text) => {
                faults.add(key.line, path, format!("a key is text; write {} in quotes", shown(text)));
                continue;
            }
            _ => {
                faults.add(key.line, path, format!("a key is text, not {}; write it in quotes", kind(key)));
                continue;
            }
        };
        if let Some(line) = first.get(name) {
            faults.add(key.line, path.key(name), format!("this key was written before, on line {line}; keep one"));
            continue;
        }
        first.insert(name, key.line);
        kept.push(Entry { key: name, line: key.line, value });
    }
    kept
}

/// A mapping with fixed keys.
pub(super) struct Section<'n, 'p> {
    path: &'p Path<'p>,
    line: u32,
    entries: Vec<Entry<'n>>,
}

impl<'n, 'p> Section<'n, 'p> {
    /// Reports unknown and repeated keys.
    pub(super) fn open(node: &'n Node, path: &'p Path<'p>, known: &[&str], faults: &mut Faults) -> Self {
        let mut entries = entries(node, *path, faults);
        entries.retain(|entry| {
            let ok = known.contains(&entry.key);
            if !ok {
                faults.add(entry.line, path.key(entry.key), unknown_key(entry.key, known));
            }
            ok
        });
        Self { path, line: node.line, entries }
    }

    /// The section's own line.
    pub(super) fn line(&self) -> u32 {
        self.line
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| entry.value)
    }

    /// The value of an optional key, read by `read`; null counts as absent.
    pub(super) fn optional<T>(
        &self,
        key: &str,
        faults: &mut Faults,
        read: impl FnOnce(&'n Node, Path<'_>, &mut Faults) -> Option<T>,
    ) -> Option<T> {
        let node = self.get(key)?;
        if matches!(node.content, Content::Null) { None } else { read(node, self.path.key(key), faults) }
    }
}

/// What to write instead of an unknown key.
fn unknown_key(key: &str, known: &[&str]) -> String {
    let name = shown(key);
    if key == "<<" {
        return "merge keys (<<) are not supported; write the keys out".to_owned();
    }
    let secret = |suffix: &str| known.iter().find(|k| k.ends_with(suffix)).copied();
    if matches!(key, "token" | "bot_token" | "api_key" | "apikey" | "key" | "secret" | "password") {
        let places: Vec<&str> = [secret("_env"), secret("_file")].into_iter().flatten().collect();
        if !places.is_empty() {
            let places = places.join(" or ");
            return format!("a secret never stands in the document; name where it is found with {places}");
        }
    }
    match nearest(key, known.iter().copied()) {
        Some(near) => format!("unknown key {name}; did you mean {near}?"),
        None => format!("unknown key {name}; the keys here are {}", known.join(", ")),
    }
}

/// The items of a list.
pub(super) fn list<'n>(node: &'n Node, path: Path<'_>, faults: &mut Faults) -> Option<&'n [Node]> {
    match &node.content {
        Content::List(items) => Some(items),
        Content::Null => {
            faults.add(node.line, path, "a list is expected here; write [] for none, or remove the key");
            None
        }
        _ => {
            faults.add(node.line, path, format!("a list is expected here, not {}", kind(node)));
            None
        }
    }
}

/// Text.
pub(super) fn text<'n>(node: &'n Node, path: Path<'_>, faults: &mut Faults) -> Option<&'n str> {
    let message = match &node.content {
        Content::Text(text) => return Some(text),
        Content::Null => "text is expected here; write a value or remove the key".to_owned(),
        Content::List(_) | Content::Map(_) => format!("text is expected here, not {}", kind(node)),
        _ => format!("text is expected here, not {}; quote it if it is meant", kind(node)),
    };
    faults.add(node.line, path, message);
    None
}

/// Text that passes `judge`, which says what is wrong with it.
pub(super) fn judged(
    node: &Node,
    path: Path<'_>,
    faults: &mut Faults,
    judge: impl FnOnce(&str) -> Result<(), String>,
) -> Option<String> {
    let text = text(node, path, faults)?;
    match judge(text) {
        Ok(()) => Some(text.to_owned()),
        Err(message) => {
            faults.add(node.line, path, message);
            None
        }
    }
}

/// An id of a platform: text, or an integer in plain decimal, kept as its decimal text.
pub(super) fn platform_id(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<String> {
    let message = match &node.content {
        Content::Text(text) if text.contains('\0') => InvalidValue.to_string(),
        Content::Text(text) | Content::Decimal(text) => return Some(text.clone()),
        Content::Odd(text) | Content::Float(_, text) => {
            format!("YAML readers take this for different values; quote it: {}", shown(text))
        }
        Content::Bool(value) => format!("a value is text or an integer, not a boolean; quote it: \"{value}\""),
        Content::Null => "a value is text or an integer, not nothing; write \"\" for an empty text".to_owned(),
        Content::List(_) | Content::Map(_) => {
            format!("a value is text or an integer, not {}; write one route per value", kind(node))
        }
    };
    faults.add(node.line, path, message);
    None
}

/// `true` or `false`.
pub(super) fn boolean(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<bool> {
    if let Content::Bool(value) = node.content {
        return Some(value);
    }
    faults.add(node.line, path, format!("write true or false here, not {}", kind(node)));
    None
}

/// A whole number within a range.
pub(super) fn integer(node: &Node, range: RangeInclusive<u64>, path: Path<'_>, faults: &mut Faults) -> Option<u64> {
    let value = match &node.content {
        Content::Decimal(text) => text.parse::<u64>().ok().filter(|value| range.contains(value)),
        _ => None,
    };
    if value.is_none() {
        faults.add(node.line, path, format!("write a whole number from {} to {}", range.start(), range.end()));
    }
    value
}

/// A number above 0, at most 1,000,000.
pub(super) fn rate_number(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<f64> {
    let value = match &node.content {
        Content::Decimal(text) => text.parse::<f64>().ok(),
        Content::Float(value, _) => Some(*value),
        _ => None,
    };
    let value = value.filter(|value| *value > 0.0 && *value <= 1_000_000.0);
    if value.is_none() {
        faults.add(node.line, path, "write a number above 0, at most 1000000");
    }
    value
}

/// A list of texts that each pass `read`.
pub(super) fn texts(
    node: &Node,
    path: Path<'_>,
    faults: &mut Faults,
    read: impl Fn(&Node, Path<'_>, &mut Faults) -> Option<String>,
) -> Option<Vec<String>> {
    let items = list(node, path, faults)?;
    Some(items.iter().enumerate().filter_map(|(index, item)| read(item, path.index(index), faults)).collect())
}
