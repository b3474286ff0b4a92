//! Cutting a reply into the parts a platform takes.
//!
//! Called by the adapters' `split`. Owns nothing. Always true: both functions end for any input, are deterministic, and
//! drop nothing but white space at a cut. [`split`] is the rule that `truncate_message.jsonl` pins, [`fit`] adds the
//! promise that no part is longer than the limit. It knows no markup beyond code fences and inline code.
//!
//! The rule: a text that fits stays whole. Otherwise each part is cut at the last line break of what fits, or, when that
//! lies in its first half, at the last space, or hard; never inside an inline code span that a little less text would
//! keep whole. A fence that is open at the cut is closed in this part and opened again, with its language, in the next.
//! Every part ends with ` (i/n)`.

/// What the limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Unicode scalar values.
    Char,
    /// UTF-16 code units (Telegram).
    Utf16,
}

/// Room kept for the ` (i/n)` suffix.
const SUFFIX_ROOM: usize = 10;
const FENCE: &str = "```";
const FENCE_CLOSE: &str = "\n```";

impl Unit {
    fn of(self, c: char) -> usize {
        match self {
            Self::Char => 1,
            Self::Utf16 => c.len_utf16(),
        }
    }

    /// Length of `text` in this unit.
    pub fn len(self, text: &str) -> usize {
        text.chars().map(|c| self.of(c)).sum()
    }

    /// Whether `text` is at most `limit` long; looks at no more than it must.
    pub fn fits(self, text: &str, limit: usize) -> bool {
        let mut used = 0;
        text.chars().all(|c| {
            used += self.of(c);
            used <= limit
        })
    }

    /// The longest start of `text` within `limit`, but at least one character of a non-empty text.
    fn prefix(self, text: &str, limit: usize) -> &str {
        let mut used = 0;
        for (at, c) in text.char_indices() {
            used += self.of(c);
            if used > limit && at > 0 {
                return &text[..at];
            }
        }
        text
    }
}

/// Cuts `text` by the rule of the module. A part may exceed a limit that leaves no room for the rule's own marks (limits
/// below about 30, fence languages as long as the limit, 1,000 parts and more); see [`fit`].
pub fn split(text: &str, limit: usize, unit: Unit) -> Vec<String> {
    if unit.fits(text, limit) {
        return vec![text.to_owned()];
    }
    let mut parts = Vec::new();
    let mut rest = text;
    let mut open: Option<&str> = None;
    while !rest.is_empty() {
        let mut part = open.map(|language| format!("{FENCE}{language}\n")).unwrap_or_default();
        let reopened = unit.len(&part);
        if limit.checked_sub(SUFFIX_ROOM + reopened).is_some_and(|room| unit.fits(rest, room)) {
            part.push_str(rest);
            parts.push(part);
            break;
        }
        let room = match limit.saturating_sub(SUFFIX_ROOM + reopened + FENCE_CLOSE.len()) {
            0 => limit / 2,
            room => room,
        };
        let (body, after) = rest.split_at(cut(rest, room, unit));
        rest = after.trim_start_matches(is_space);
        part.push_str(body);
        open = fence_after(body, open);
        if open.is_some() {
            part.push_str(FENCE_CLOSE);
        }
        parts.push(part);
    }
    let total = parts.len();
    if total > 1 {
        for (at, part) in parts.iter_mut().enumerate() {
            part.push_str(&format!(" ({}/{total})", at + 1));
        }
    }
    parts
}

/// Like [`split`], but every part is at most `limit` long (`limit` ≥ 2): where the rule cannot keep that, the text is cut
/// plainly, without fences and numbers.
pub fn fit(text: &str, limit: usize, unit: Unit) -> Vec<String> {
    // A number of four or five digits is two or four longer than the room kept for it.
    for spare in [0, 2, 4] {
        let parts = split(text, limit.saturating_sub(spare), unit);
        if parts.iter().all(|part| unit.fits(part, limit)) {
            return parts;
        }
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let part = unit.prefix(rest, limit);
        parts.push(part.to_owned());
        rest = &rest[part.len()..];
    }
    parts
}

/// Byte offset at which `rest`, which does not fit, is cut: a character boundary greater than 0.
fn cut(rest: &str, room: usize, unit: Unit) -> usize {
    let region = unit.prefix(rest, room);
    let half = region.chars().count() / 2;
    // Positions are compared in characters, as the rule counts them.
    let chars_to = |at: usize| region[..at].chars().count();
    let at = region
        .rfind('\n')
        .filter(|&at| chars_to(at) >= half)
        .or_else(|| region.rfind(' '))
        .filter(|&at| at > 0)
        .unwrap_or(region.len());
    let candidate = &region[..at];
    match open_span(candidate).and_then(|tick| candidate[..tick].rfind([' ', '\n'])) {
        Some(before) if chars_to(before) > room / 4 => before,
        _ => at,
    }
}

/// Offset of the back-tick that opens the inline code span in which `text` ends.
fn open_span(text: &str) -> Option<usize> {
    let ticks = text.matches('`').count() - text.matches("\\`").count();
    if ticks.is_multiple_of(2) {
        return None;
    }
    text.match_indices('`').map(|(at, _)| at).rev().find(|&at| !text[..at].ends_with('\\'))
}

/// The language of the fence that is open after `body`, given the one open before it.
fn fence_after<'a>(body: &'a str, before: Option<&'a str>) -> Option<&'a str> {
    body.split('\n').fold(before, |open, line| match (line.trim_matches(is_space).strip_prefix(FENCE), open) {
        (None, open) => open,
        (Some(_), Some(_)) => None,
        (Some(tag), None) => Some(tag.split(is_space).find(|word| !word.is_empty()).unwrap_or_default()),
    })
}

/// White space as the reference's language defines it: Unicode's and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::seq::IndexedRandom as _;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    /// No fence made of them has a language: a repeated language is text that is added on purpose.
    const ATOMS: [&str; 14] = [
        "alpha",
        " ",
        "  ",
        "\n",
        "\n\n",
        "é日本🚀",
        "`code` ",
        "`open",
        "\\` ",
        "\n```\n",
        "x = 1\n",
        "🚀🚀🚀",
        "\u{1c}",
        "\0",
    ];

    fn text(random: &mut StdRng) -> String {
        (0..random.random_range(0..200)).filter_map(|_| ATOMS.choose(random)).copied().collect()
    }

    /// What no cut may lose: everything but white space and the fences' own marks.
    fn substance(text: &str) -> String {
        text.chars().filter(|&c| !is_space(c) && c != '`').collect()
    }

    fn without_number(part: &str) -> &str {
        part.rfind(" (").map_or(part, |at| &part[..at])
    }

    #[test]
    fn any_text_at_any_limit_ends_and_loses_nothing() {
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..4_000 {
            let text = text(&mut random);
            let limit = random.random_range(0..200);
            let unit = if random.random() { Unit::Utf16 } else { Unit::Char };
            let parts = split(&text, limit, unit);
            let joined: String = match parts.as_slice() {
                [whole] => whole.clone(),
                parts => parts.iter().map(|part| without_number(part)).collect(),
            };
            assert_eq!(substance(&joined), substance(&text), "limit {limit}, {unit:?}, {text:?}");
            if limit >= 40 {
                assert!(parts.iter().all(|part| unit.fits(part, limit)), "limit {limit}, {unit:?}, {text:?}");
            }
        }
    }

    #[test]
    fn fit_keeps_every_part_within_the_limit_whatever_comes() {
        let mut random = StdRng::seed_from_u64(8);
        for _ in 0..2_000 {
            let text = text(&mut random);
            let limit = random.random_range(2..60);
            let parts = fit(&text, limit, Unit::Utf16);
            assert!(parts.iter().all(|part| Unit::Utf16.fits(part, limit)), "limit {limit}, {text:?}");
        }
        let language = format!("```{}\n{}\n```", "x".repeat(5_000), "line\n".repeat(2_000));
        assert_eq!(fit(&language, 4_096, Unit::Utf16).concat(), language);
        let long = "word ".repeat(900_000);
        let parts = fit(&long, 4_096, Unit::Utf16);
        assert!(parts.len() > 1_000 && parts.iter().all(|part| Unit::Utf16.fits(part, 4_096)));
    }

    #[test]
    fn a_fence_is_closed_and_opened_again_with_its_language() {
        let parts = split(&format!("```rust title\n{}```\nend", "let x = 1;\n".repeat(10)), 60, Unit::Char);
        assert!(parts.len() > 2);
        for part in &parts[1..parts.len() - 1] {
            assert!(part.starts_with("```rust\n") && without_number(part).ends_with("\n```"), "{part:?}");
        }
    }
}
