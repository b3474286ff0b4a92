//! The characters of a command text: what hides in them, and where what begins in them ends.
//!
//! Pure. Called by [`super::shell`], which knows what they mean.

/// The text without what hides in it: escape sequences of terminals, characters that nobody sees, full-width forms of ASCII, line joins
/// and `$IFS`.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => match chars.peek() {
                Some('[') => {
                    chars.next();
                    while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
                }
                Some(']') => while chars.next().is_some_and(|c| c != '\u{7}' && c != '\u{1b}') {},
                _ => {}
            },
            '\u{ff01}'..='\u{ff5e}' => {
                plain.extend(char::from_u32(u32::from(c) - 0xfee0));
            }
            '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => plain.push(' '),
            '\u{2028}' | '\u{2029}' | '\r' => plain.push('\n'),
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' => {}
            '\\' if chars.peek() == Some(&'\n') => {
                chars.next();
            }
            c if c.is_control() && c != '\n' && c != '\t' => {}
            c => plain.push(c),
        }
    }
    for ifs in ["${IFS%%?}", "${IFS%?}", "${IFS}", "$IFS$9", "$IFS$1", "$IFS"] {
        plain = plain.replace(ifs, " ");
    }
    plain
}

/// Where the next `what` stands.
pub(super) fn find(chars: &[char], from: usize, what: char) -> Option<usize> {
    chars.iter().skip(from).position(|c| *c == what).map(|at| from + at)
}

/// Where the next `what` stands that has no backslash before it.
pub(super) fn find_unescaped(chars: &[char], from: usize, what: char) -> Option<usize> {
    let mut at = from;
    loop {
        match chars.get(at)? {
            '\\' => at += 2,
            c if *c == what => return Some(at),
            _ => at += 1,
        }
    }
}

/// Where the parenthesis at `open` is closed, quotes apart.
pub(super) fn closing(chars: &[char], open: usize) -> Option<usize> {
    let (mut at, mut depth, mut quote) = (open, 0_usize, None);
    loop {
        let c = *chars.get(at)?;
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None | Some('"'), '\\') => at += 1,
            (None, '(') => depth += 1,
            (None, ')') => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// Where a here-document's body ends, and where the text goes on.
pub(super) fn document_end(chars: &[char], from: usize, end: &str) -> (usize, usize) {
    let mut at = from;
    while at < chars.len() {
        let length = chars.iter().skip(at).take_while(|c| **c != '\n').count();
        let line: String = chars.iter().skip(at).take(length).collect();
        if line.trim_start_matches('\t') == end {
            return (at, (at + length + 1).min(chars.len()));
        }
        at += length + 1;
    }
    (chars.len(), chars.len())
}

/// The inside of `$'…'`.
pub(super) fn ansi_c(chars: &[char]) -> String {
    let mut text = String::new();
    let mut at = 0;
    while let Some(c) = chars.get(at) {
        at += 1;
        if *c != '\\' {
            text.push(*c);
            continue;
        }
        let Some(kind) = chars.get(at) else { break };
        at += 1;
        let mut number = |at: &mut usize, radix: u32, most: usize| {
            let digits: String = chars.iter().skip(*at).take(most).take_while(|c| c.is_digit(radix)).collect();
            *at += digits.len();
            text.extend(u32::from_str_radix(&digits, radix).ok().and_then(char::from_u32));
        };
        match kind {
            'x' => number(&mut at, 16, 2),
            'u' => number(&mut at, 16, 4),
            'U' => number(&mut at, 16, 8),
            '0'..='7' => {
                at -= 1;
                number(&mut at, 8, 3);
            }
            'n' => text.push('\n'),
            't' => text.push('\t'),
            other => text.push(*other),
        }
    }
    text
}
