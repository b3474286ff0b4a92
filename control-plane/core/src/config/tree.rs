//! YAML text to a tree of nodes that know their line and how they were spelled.
//!
//! Called by [`super::parse`] alone. Two readers look at the text: a survey of events, iterative and bounded, refuses what
//! a document must not contain (anchors, tags, depth, several documents) and notes line and spelling of every node; then
//! serde_yaml reads the values, each paired with its note. Always true: nothing is expanded, no recursion is deeper than
//! [`DEPTH_LIMIT`], and where the two readers disagree the text is refused. It deliberately does not know any key.

use std::borrow::Cow;
use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::Fault;
use super::fields::{Faults, Path};

/// Largest text, bytes.
pub(super) const TEXT_LIMIT: usize = 64 * 1024 * 1024;
/// Deepest nesting.
const DEPTH_LIMIT: usize = 32;
/// Most nodes.
const NODE_LIMIT: usize = 5_000_000;

/// One value of the text.
#[derive(Debug)]
pub(super) struct Node {
    /// 1-based line on which it begins.
    pub(super) line: u32,
    pub(super) content: Content,
}

/// What a value is.
#[derive(Debug)]
pub(super) enum Content {
    Null,
    Bool(bool),
    /// An integer written in plain decimal.
    Decimal(String),
    /// Unquoted text that some YAML readers take for a number or a boolean: `042`, `0x10`, `1_000`, `7:36`, `yes`.
    Odd(String),
    /// Any other number, as spelled.
    Float(f64, String),
    Text(String),
    List(Vec<Node>),
    /// Entries in the order written, repeated keys included.
    Map(Vec<(Node, Node)>),
}

/// What the survey noted about one node, in document order.
enum Note<'a> {
    Scalar { line: u32, text: Cow<'a, str>, plain: bool },
    List { line: u32 },
    Map { line: u32 },
}

/// Reads a text; `None` when it holds no value at all.
pub(super) fn read(text: &str) -> Result<Option<Node>, Vec<Fault>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    refuse_unreadable(text)?;
    let notes = survey(text)?;
    match notes.as_slice() {
        [] => return Ok(None),
        [Note::Scalar { text, plain: true, .. }] if matches!(&**text, "" | "~" | "null") => return Ok(None),
        _ => {}
    }
    let mut notes = notes.into_iter();
    let node = Reader { notes: &mut notes }.deserialize(serde_yaml::Deserializer::from_str(text));
    match node {
        Ok(node) if notes.next().is_none() => Ok(Some(node)),
        Ok(_) => Err(vec![fault(0, "the text reads in two ways; write it more plainly".to_owned())]),
        Err(error) => {
            let line = error.location().map_or(0, |place| line_number(place.line()));
            Err(vec![fault(line, format!("not readable as YAML: {error}"))])
        }
    }
}

fn fault(line: u32, message: String) -> Fault {
    Fault { line, path: String::new(), message }
}

fn line_number(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

/// Size, and characters that YAML forbids or on which readers disagree (some end lines, some end the text).
fn refuse_unreadable(text: &str) -> Result<(), Vec<Fault>> {
    if text.len() > TEXT_LIMIT {
        let message = format!("the text has {} bytes; at most {TEXT_LIMIT} are read", text.len());
        return Err(vec![fault(0, message)]);
    }
    let mut faults = Faults::default();
    let mut line = 1_u32;
    for c in text.chars() {
        match c {
            '\n' => line = line.saturating_add(1),
            '\t' | '\r' | ' '..='~' => {}
            '\u{2028}' | '\u{2029}' | '\u{feff}' => refuse_char(&mut faults, line, c),
            _ if c.is_control() => refuse_char(&mut faults, line, c),
            _ => {}
        }
    }
    faults.into_result(())
}

fn refuse_char(faults: &mut Faults, line: u32, c: char) {
    let code = u32::from(c);
    faults.add(line, Path::Root, format!("U+{code:04X} may not stand here; write \\u{code:04X} in double quotes"));
}

/// Notes every node, or all that a document must not contain.
fn survey(text: &str) -> Result<Vec<Note<'_>>, Vec<Fault>> {
    let mut notes = Vec::new();
    let mut faults = Faults::default();
    let (mut depth, mut documents) = (0_usize, 0_usize);
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = match event {
            Ok(next) => next,
            Err(error) => {
                let line = line_number(error.marker().line());
                faults.add(line, Path::Root, format!("not YAML: {}", error.info()));
                break;
            }
        };
        let line = line_number(span.start.line());
        match event {
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    faults.add(line, Path::Root, "a second document begins here; write one document only");
                    break;
                }
            }
            Event::Alias(_) => faults.add(line, Path::Root, "an alias (*name) is not supported; write the value out"),
            Event::Scalar(value, style, anchor, tag) => {
                refuse_decoration(&mut faults, line, anchor, tag.as_deref());
                notes.push(Note::Scalar { line, text: value, plain: style == ScalarStyle::Plain });
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_decoration(&mut faults, line, anchor, tag.as_deref());
                notes.push(Note::List { line });
                depth += 1;
            }
            Event::MappingStart(anchor, tag) => {
                refuse_decoration(&mut faults, line, anchor, tag.as_deref());
                notes.push(Note::Map { line });
                depth += 1;
            }
            Event::SequenceEnd | Event::MappingEnd => depth = depth.saturating_sub(1),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        if let Some(message) = over_budget(depth, notes.len()) {
            faults.add(line, Path::Root, message);
            break;
        }
    }
    faults.into_result(notes)
}

fn over_budget(depth: usize, nodes: usize) -> Option<String> {
    if depth > DEPTH_LIMIT {
        return Some(format!("nested deeper than {DEPTH_LIMIT} levels; no key of this document is"));
    }
    (nodes > NODE_LIMIT).then(|| format!("more than {NODE_LIMIT} values; split the document"))
}

fn refuse_decoration(faults: &mut Faults, line: u32, anchor: usize, tag: Option<&Tag>) {
    if anchor != 0 {
        faults.add(line, Path::Root, "an anchor (&name) is not supported; write the value out where it is needed");
    }
    if let Some(tag) = tag {
        let tag = super::shown(&tag.to_string());
        faults.add(line, Path::Root, format!("the tag {tag} is not supported; quote text instead of tagging it"));
    }
}

/// Reads the next node as serde_yaml resolves it and pairs it with the next note.
struct Reader<'n, 'a> {
    notes: &'n mut std::vec::IntoIter<Note<'a>>,
}

impl<'de> DeserializeSeed<'de> for Reader<'_, '_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Text between the two readers that differs.
const DISAGREE: &str = "this value reads in two ways; quote it or write it more plainly";

impl Reader<'_, '_> {
    fn scalar<E: serde::de::Error>(self, resolved: Content) -> Result<Node, E> {
        let Some(Note::Scalar { line, text, plain }) = self.notes.next() else {
            return Err(E::custom(DISAGREE));
        };
        if let Content::Text(read) = &resolved
            && *read != text
        {
            return Err(E::custom(DISAGREE));
        }
        let content = match resolved {
            Content::Text(text) if !plain => Content::Text(text),
            _ if !plain => return Err(E::custom(DISAGREE)),
            _ if is_decimal(&text) => Content::Decimal(text.into_owned()),
            _ if is_odd(&text) => Content::Odd(text.into_owned()),
            Content::Float(value, _) => Content::Float(value, text.into_owned()),
            // Beyond a double's range serde_yaml answers text; other readers answer infinity.
            Content::Text(text) => match text.parse::<f64>() {
                Ok(value) if text.contains(|c: char| c.is_ascii_digit()) => Content::Float(value, text),
                _ => Content::Text(text),
            },
            other => other,
        };
        Ok(Node { line, content })
    }
}

impl<'de> Visitor<'de> for Reader<'_, '_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without a tag")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Node, E> {
        self.scalar(Content::Bool(value))
    }

    // The spelling decides what an integer is (see `scalar`), so its value is not kept here.
    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Node, E> {
        self.scalar(Content::Odd(value.to_string()))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Node, E> {
        self.scalar(Content::Odd(value.to_string()))
    }

    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<Node, E> {
        self.scalar(Content::Odd(value.to_string()))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Node, E> {
        self.scalar(Content::Odd(value.to_string()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        self.scalar(Content::Float(value, String::new()))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Node, E> {
        self.scalar(Content::Text(value.to_owned()))
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Node, E> {
        self.scalar(Content::Text(value))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Node, E> {
        self.scalar(Content::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Node, E> {
        self.scalar(Content::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let Some(Note::List { line }) = self.notes.next() else {
            return Err(A::Error::custom(DISAGREE));
        };
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Reader { notes: &mut *self.notes })? {
            items.push(item);
        }
        Ok(Node { line, content: Content::List(items) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let Some(Note::Map { line }) = self.notes.next() else {
            return Err(A::Error::custom(DISAGREE));
        };
        let mut entries = Vec::new();
        while let Some(key) = access.next_key_seed(Reader { notes: &mut *self.notes })? {
            let value = access.next_value_seed(Reader { notes: &mut *self.notes })?;
            entries.push((key, value));
        }
        Ok(Node { line, content: Content::Map(entries) })
    }
}

/// Whether a plain scalar is an integer in its one canonical decimal spelling, of any length.
fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    match digits.as_bytes() {
        [] => false,
        [b'0'] => text.len() == 1,
        [b'0', ..] => false,
        all => all.iter().all(u8::is_ascii_digit),
    }
}

/// Whether YAML readers differ on a plain scalar: other integer spellings, and YAML 1.1's words for booleans.
pub(super) fn is_odd(text: &str) -> bool {
    if matches!(text.to_ascii_lowercase().as_str(), "yes" | "no" | "on" | "off") {
        return true;
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let Some(rest) = unsigned.strip_prefix(|c: char| c.is_ascii_digit()) else {
        return false;
    };
    let only = |text: &str, allowed: fn(char) -> bool| !text.is_empty() && text.chars().all(allowed);
    let radix = unsigned.strip_prefix('0').is_some_and(|rest| {
        rest.strip_prefix(['x', 'X']).is_some_and(|rest| only(rest, |c| c.is_ascii_hexdigit() || c == '_'))
            || rest
                .strip_prefix(['o', 'O', 'b', 'B'])
                .is_some_and(|rest| only(rest, |c| c.is_ascii_digit() || c == '_'))
    });
    // `042`, `-0`, `+5`, `1_000`; then `7:36` and `1:30.5`.
    let digits = rest.chars().all(|c| c.is_ascii_digit() || c == '_') && !is_decimal(text);
    let sexagesimal = text.contains(':')
        && !rest.ends_with(':')
        && rest.chars().all(|c| c.is_ascii_digit() || matches!(c, '_' | ':' | '.'));
    let underscored = text.contains('_') && only(rest, |c| c.is_ascii_digit() || matches!(c, '_' | '.'));
    radix || digits || sexagesimal || underscored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_are_told_apart() {
        for text in ["0", "7", "-1001234", "9007199254740993", "340282366920938463463374607431768211456000"] {
            assert!(is_decimal(text) && !is_odd(text), "{text}");
        }
        for text in [
            "042", "-0", "+5", "0x10", "-0x2A", "0o7", "0b11", "1_000", "7:36", "1:30.5", "yes", "No", "ON", "off",
            "00",
        ] {
            assert!(!is_decimal(text) && is_odd(text), "{text}");
        }
        for text in ["", "-", "y", "n", "true", "a:1", "1a", "!r:ex.org", "1.0", "1e3", "2026-01-01", "0xyz", "12:"] {
            assert!(!is_decimal(text) && !is_odd(text), "{text}");
        }
    }

    #[test]
    fn lines_and_order_survive_duplicates() {
        let node = read("a: 1\nb:\n  - x\n  - {c: 'd'}\na: 2\n").unwrap().unwrap();
        let Content::Map(entries) = node.content else { panic!("{node:?}") };
        assert_eq!(entries.iter().map(|(key, _)| key.line).collect::<Vec<_>>(), [1, 2, 5]);
        let Content::List(items) = &entries[1].1.content else { panic!("{entries:?}") };
        assert_eq!(items.iter().map(|item| item.line).collect::<Vec<_>>(), [3, 4]);
    }
}
