//! Which files of a home are documents.
//!
//! Called by whoever takes a document's name from elsewhere, on either side. Always true: what it accepts names nothing outside the
//! home, and it is the one place that turns a name into a path.

use std::fmt;
use std::path::{Path, PathBuf};

const MAX_BYTES: usize = 512;
const MAX_SEGMENT_BYTES: usize = 200;
const MAX_SEGMENTS: usize = 10;

/// The relative name of a document: `SOUL.md`, `memories/<name>.md` or a path below `skills/`. Never absolute, without
/// `.` and `..`, hidden names, control characters and backslashes, so it cannot name anything outside the home.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentPath(String);

impl DocumentPath {
    /// Accepts exactly the grammar above.
    pub fn parse(text: &str) -> Option<Self> {
        let segments: Vec<&str> = text.split('/').collect();
        let plain = text.len() <= MAX_BYTES && segments.len() <= MAX_SEGMENTS && segments.iter().all(|s| is_plain(s));
        let known = match segments.as_slice() {
            ["SOUL.md"] => true,
            ["memories", name] => name.len() > 3 && name.ends_with(".md"),
            ["skills", _, ..] => true,
            _ => false,
        };
        (plain && known && !segments.last().is_some_and(|name| is_conflict_copy(name))).then(|| Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names of the folders it lies in, outermost first.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        let folders = self.0.rsplit_once('/').map(|(folders, _)| folders);
        folders.into_iter().flat_map(|folders| folders.split('/'))
    }

    /// Its place in a home.
    pub fn under(&self, home: &Path) -> PathBuf {
        home.join(&self.0)
    }
}

impl fmt::Display for DocumentPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_plain(segment: &str) -> bool {
    !segment.is_empty()
        && segment.len() <= MAX_SEGMENT_BYTES
        && !segment.starts_with('.')
        && !segment.chars().any(|character| character.is_control() || character == '\\')
}

/// `<file>.conflict-<n>`: a local edit that lost, kept for people and never uploaded.
fn is_conflict_copy(name: &str) -> bool {
    name.rsplit_once(".conflict-")
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_documents_of_a_home() {
        for text in
            ["SOUL.md", "memories/MEMORY.md", "memories/ü.md", "skills/a/SKILL.md", "skills/c/a/references/x.py"]
        {
            assert_eq!(DocumentPath::parse(text).expect(text).as_str(), text);
        }
    }

    #[test]
    fn refuses_everything_else() {
        let long = format!("skills/{}", "a".repeat(201));
        let deep = format!("skills/{}", ["a"; 10].join("/"));
        for text in [
            "",
            ".",
            "..",
            "/",
            "/etc/passwd",
            "SOUL.md/",
            "/SOUL.md",
            "../SOUL.md",
            "soul.md",
            ".env",
            "auth.json",
            "memories",
            "memories/",
            "memories/.md",
            "memories/a",
            "memories/a/b.md",
            "memories/../SOUL.md",
            "skills",
            "skills/",
            "skills/..",
            "skills/../.env",
            "skills/a/../../x",
            "skills//a",
            "skills/./a",
            "skills/.usage.json",
            "skills/a\0b",
            "skills/a\nb",
            "skills\\a",
            "skills/a\\..\\b",
            "workspace/x",
            "SOUL.md.conflict-1",
            "skills/a/SKILL.md.conflict-12",
            &long,
            &deep,
        ] {
            assert!(DocumentPath::parse(text).is_none(), "{text:?}");
        }
    }
}
