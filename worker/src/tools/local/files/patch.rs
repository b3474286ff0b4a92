//! `patch`: one text for another in a file, or a unified diff; answers with the diff that was made.

use super::{Answer, MAX_FILE, Patch, resolved, said, text, write};

/// Longest diff that is shown, bytes.
const MAX_DIFF: usize = 16 << 10;

pub(super) fn run(base: &super::Base<'_>, patch: &Patch) -> Answer {
    let path = resolved(base, &patch.path)?;
    let before = text(&path, &patch.path)?;
    let (after, places) = match (&patch.old_string, &patch.new_string, &patch.diff) {
        (Some(old), Some(new), None) => replaced(&before, old, new, patch.replace_all)?,
        (None, None, Some(diff)) => (applied(&before, diff)?, 1),
        _ => return Err("give either old_string and new_string, or diff".to_owned()),
    };
    if after == before {
        return Err("this changes nothing".to_owned());
    }
    if after.len() as u64 > MAX_FILE {
        return Err(format!("the file would be longer than {MAX_FILE} bytes"));
    }
    write::replace(&path, after.as_bytes()).map_err(|error| said(&patch.path, &error))?;
    let mut diff = diffy::create_patch(&before, &after).to_string();
    if diff.len() > MAX_DIFF {
        diff.truncate(diff.floor_char_boundary(MAX_DIFF));
        diff.push_str("\n[…]");
    }
    let times = if places == 1 { String::new() } else { format!(" in {places} places") };
    Ok(format!("Changed {}{times}:\n{diff}", patch.path))
}

/// The text with `old` replaced, and how often.
pub(super) fn replaced(text: &str, old: &str, new: &str, all: bool) -> Result<(String, usize), String> {
    if old.is_empty() {
        return Err("old_string is empty; write_file makes a file".to_owned());
    }
    match text.matches(old).count() {
        0 => {}
        1 => return Ok((text.replacen(old, new, 1), 1)),
        places if all => return Ok((text.replace(old, new), places)),
        places => {
            return Err(format!(
                "old_string stands in {places} places; give more of the lines around it, or replace_all"
            ));
        }
    }
    // Models often lose the spaces at the ends of lines.
    let loose = lines_alike(text, old);
    match loose.as_slice() {
        [] => Err("old_string is not in the file; read it again, it must be copied exactly".to_owned()),
        [(start, end)] => {
            let mut after = String::with_capacity(text.len() + new.len());
            after.push_str(&text[..*start]);
            after.push_str(new);
            if !new.ends_with('\n') && text[*start..*end].ends_with('\n') {
                after.push('\n');
            }
            after.push_str(&text[*end..]);
            Ok((after, 1))
        }
        places => Err(format!(
            "old_string is in {} places but for spaces at the ends of lines; copy it exactly",
            places.len()
        )),
    }
}

/// Where the lines of `old` stand in `text` but for spaces at their ends: ranges of bytes.
fn lines_alike(text: &str, old: &str) -> Vec<(usize, usize)> {
    let wanted: Vec<&str> = old.lines().map(str::trim_end).collect();
    let mut at = 0;
    let lines: Vec<(usize, &str)> = text
        .split_inclusive('\n')
        .map(|line| {
            let start = at;
            at += line.len();
            (start, line)
        })
        .collect();
    if wanted.is_empty() || wanted.iter().all(|line| line.is_empty()) {
        return Vec::new();
    }
    lines
        .windows(wanted.len())
        .filter(|window| window.iter().zip(&wanted).all(|((_, line), wanted)| line.trim_end() == *wanted))
        .filter_map(|window| Some((window.first()?.0, window.last().map(|(start, line)| start + line.len())?)))
        .collect()
}

fn applied(text: &str, diff: &str) -> Result<String, String> {
    let patch = diffy::Patch::from_str(diff).map_err(|error| format!("diff is no unified diff: {error}"))?;
    if patch.hunks().is_empty() {
        return Err("diff is no unified diff: it has no hunk (@@ -1,2 +1,2 @@ …)".to_owned());
    }
    diffy::apply(text, &patch).map_err(|error| format!("the diff does not fit the file: {error}; read it again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_is_replaced_and_several_are_not_guessed_between() {
        assert_eq!(replaced("a b a", "b", "c", false), Ok(("a c a".to_owned(), 1)));
        assert_eq!(replaced("a b a", "a", "c", true), Ok(("c b c".to_owned(), 2)));
        let several = replaced("a b a", "a", "c", false).expect_err("two");
        assert!(several.contains("2 places"), "{several}");
        assert!(replaced("a", "", "c", false).is_err() && replaced("a", "x", "c", false).is_err());
    }

    #[test]
    fn spaces_at_line_ends_are_forgiven_where_one_place_is_left() {
        let text = "fn a() {  \n    1\n}\nrest\n";
        assert_eq!(
            replaced(text, "fn a() {\n    1", "fn b() {\n    2", false),
            Ok(("fn b() {\n    2\n}\nrest\n".to_owned(), 1))
        );
        assert!(replaced("x \nx  \n", "x\n", "y\n", false).is_err());
    }

    #[test]
    fn a_diff_is_applied_or_refused() {
        let diff = diffy::create_patch("a\nb\nc\n", "a\nB\nc\n").to_string();
        assert_eq!(applied("a\nb\nc\n", &diff), Ok("a\nB\nc\n".to_owned()));
        assert!(applied("x\ny\n", &diff).expect_err("other file").contains("does not fit"));
        assert!(applied("x", "nonsense\n@@").is_err());
    }
}
