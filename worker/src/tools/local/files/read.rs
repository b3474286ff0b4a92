//! `read_file`: numbered lines of a text file.

use std::fmt::Write as _;

use super::{Answer, Read, resolved, text};

/// Most lines of one answer.
pub(super) const MAX_LINES: usize = 2000;
/// Longest line that is shown whole, characters.
const MAX_LINE_CHARS: usize = 2000;
/// Longest answer, bytes.
const MAX_BYTES: usize = 96 << 10;

pub(super) fn run(base: &super::Base<'_>, read: &Read) -> Answer {
    let path = resolved(base, &read.path)?;
    let content = text(&path, &read.path)?;
    let total = content.lines().count();
    if content.is_empty() {
        return Ok(format!("[{} is empty]", read.path));
    }
    let first = read.offset.max(1);
    if first > total {
        return Err(format!("{} has {total} lines; offset {first} is beyond its end", read.path));
    }
    let mut answer = String::new();
    let mut next = first;
    for line in content.lines().skip(first - 1).take(read.limit.clamp(1, MAX_LINES)) {
        let cut = line.char_indices().nth(MAX_LINE_CHARS).map(|(end, _)| end);
        let shown = cut.map_or(line, |end| &line[..end]);
        let more = if cut.is_some() { " […]" } else { "" };
        if answer.len() + shown.len() > MAX_BYTES {
            break;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(answer, "{next:>6}|{shown}{more}");
        next += 1;
    }
    if next <= total {
        let _ = write!(answer, "[lines {first} to {} of {total}; go on with offset={next}]", next - 1);
    }
    Ok(answer)
}
