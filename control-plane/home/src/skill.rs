//! What a `SKILL.md` says of its skill.
//!
//! Called by the worker, for its prompts and its tools, and by the control plane, for people. Pure. Always true: what is not well-formed is
//! no skill, and the error says what is wrong with it. It opens no file and does not know where a skill lies.

use std::collections::BTreeSet;

use serde::Deserialize;

const MAX_SKILL_CHARS: usize = 100_000;
const MAX_DESCRIPTION_CHARS: usize = 1024;
const MAX_NAME_CHARS: usize = 64;

/// The head of a `SKILL.md`, as far as the index needs it.
#[derive(Debug, Deserialize)]
struct Frontmatter {
    name: String,
    description: String,
    #[serde(default)]
    platforms: Option<Vec<String>>,
    #[serde(default)]
    metadata: Option<Metadata>,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    hermes: Option<Needs>,
}

/// Which tools hide a skill by their absence (`requires_*`) or by their presence (`fallback_for_*`).
#[derive(Debug, Default, Deserialize)]
struct Needs {
    #[serde(default)]
    requires_tools: Option<Vec<String>>,
    #[serde(default)]
    requires_toolsets: Option<Vec<String>>,
    #[serde(default)]
    fallback_for_tools: Option<Vec<String>>,
    #[serde(default)]
    fallback_for_toolsets: Option<Vec<String>>,
    #[serde(default)]
    tags: Option<Vec<String>>,
}

/// The tools of a session, as far as skills ask for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Available {
    /// Their names.
    pub tools: BTreeSet<String>,
    /// Their toolsets.
    pub toolsets: BTreeSet<String>,
}

impl Available {
    /// Tells it from others, within this process.
    pub fn fingerprint(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

impl Needs {
    fn met_by(&self, available: &Available) -> bool {
        let all = |needed: &Option<Vec<String>>, there: &BTreeSet<String>| {
            needed.iter().flatten().all(|name| there.contains(name))
        };
        let none = |against: &Option<Vec<String>>, there: &BTreeSet<String>| {
            !against.iter().flatten().any(|name| there.contains(name))
        };
        all(&self.requires_tools, &available.tools)
            && all(&self.requires_toolsets, &available.toolsets)
            && none(&self.fallback_for_tools, &available.tools)
            && none(&self.fallback_for_toolsets, &available.toolsets)
    }
}

/// Why a file is no skill.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No `---` block at the start, or it does not end.
    #[error("it must open with a block between two lines of ---")]
    NoFrontmatter,
    /// The block is no mapping with the fields it needs.
    #[error("its frontmatter is not a mapping with name and description: {0}")]
    BadFrontmatter(String),
    /// The name is outside the grammar.
    #[error("its name must be 1 to 64 of a-z, 0-9, -, . and _, the first a letter or digit")]
    BadName,
    /// The description is empty or too long.
    #[error("its description must have 1 to 1024 characters")]
    BadDescription,
    /// Nothing follows the frontmatter.
    #[error("it has no text after the frontmatter")]
    NoBody,
    /// The file is too long.
    #[error("it is longer than 100000 characters")]
    TooLong,
}

/// A skill as the index shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skill {
    /// Its name.
    pub name: String,
    /// One line about it.
    pub description: String,
    /// Words by which it may be found.
    pub tags: Vec<String>,
    /// Whether it is for this platform and its tools are there.
    pub shown: bool,
}

/// Reads a `SKILL.md`.
///
/// # Errors
/// [`Error`], what is wrong with it.
pub fn parse(text: &str, os: &str, available: &Available) -> Result<Skill, Error> {
    if text.chars().count() > MAX_SKILL_CHARS {
        return Err(Error::TooLong);
    }
    let (head, body) = split_frontmatter(text).ok_or(Error::NoFrontmatter)?;
    let head: Frontmatter = serde_yaml::from_str(head).map_err(|error| Error::BadFrontmatter(error.to_string()))?;
    if !is_name(&head.name) {
        return Err(Error::BadName);
    }
    let description = one_line(&head.description);
    if description.is_empty() || head.description.chars().count() > MAX_DESCRIPTION_CHARS {
        return Err(Error::BadDescription);
    }
    if body.trim().is_empty() {
        return Err(Error::NoBody);
    }
    let here = head.platforms.is_none_or(|platforms| platforms.is_empty() || platforms.iter().any(|name| name == os));
    let needs = head.metadata.and_then(|metadata| metadata.hermes).unwrap_or_default();
    let shown = here && needs.met_by(available);
    Ok(Skill { name: head.name, description, tags: needs.tags.unwrap_or_default(), shown })
}

/// The frontmatter of a `SKILL.md` and what follows it.
pub fn split_frontmatter(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rest = text.strip_prefix("---\n").or_else(|| text.strip_prefix("---\r\n"))?;
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some((rest.get(..at)?, rest.get(at + line.len()..)?));
        }
        at += line.len();
    }
    None
}

/// Whether it is the name of a skill or a category.
pub fn is_name(name: &str) -> bool {
    let alnum = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= MAX_NAME_CHARS
        && name.bytes().next().is_some_and(alnum)
        && name.bytes().all(|byte| alnum(byte) || matches!(byte, b'-' | b'.' | b'_'))
}

/// A text on one line, words apart by one space.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skill(head: &str) -> Result<Skill, Error> {
        parse(&format!("---\n{head}---\nBody\n"), "linux", &Available::default())
    }

    #[test]
    fn reads_a_skill_with_bom_and_windows_lines() {
        let text = "\u{feff}---\r\nname: deploy-app\r\ndescription: How to\r\n  deploy\r\n---\r\nDo it.";
        let skill = parse(text, "linux", &Available::default()).expect("valid");
        assert_eq!((skill.name.as_str(), skill.description.as_str()), ("deploy-app", "How to deploy"));
    }

    #[test]
    fn refuses_what_is_no_skill() {
        let parse = |text: &str| parse(text, "linux", &Available::default());
        assert_eq!(parse("name: a"), Err(Error::NoFrontmatter));
        assert_eq!(parse("---\nname: a\ndescription: b\n"), Err(Error::NoFrontmatter));
        assert_eq!(parse("---\nname: a\ndescription: b\n---\n \n"), Err(Error::NoBody));
        assert!(matches!(skill("- a\n"), Err(Error::BadFrontmatter(_))));
        assert!(matches!(skill("name: a\n"), Err(Error::BadFrontmatter(_))));
        assert_eq!(skill("name: ../a\ndescription: b\n"), Err(Error::BadName));
        assert_eq!(skill("name: a\ndescription: ''\n"), Err(Error::BadDescription));
        assert_eq!(skill(&format!("name: a\ndescription: {}\n", "x".repeat(1025))), Err(Error::BadDescription));
        assert_eq!(parse(&format!("---\nname: a\n---\n{}", "x".repeat(100_000))), Err(Error::TooLong));
    }

    #[test]
    fn other_platforms_and_missing_tools_hide_a_skill() {
        let head = "name: a\ndescription: b\n";
        assert!(skill(&format!("{head}platforms: [linux, macos]\n")).expect("valid").shown);
        assert!(!skill(&format!("{head}platforms: [windows]\n")).expect("valid").shown);
        let text = |needs: &str| format!("---\n{head}metadata: {{hermes: {{tags: [x], {needs}}}}}\n---\nBody\n");
        let there = Available { tools: ["terminal".to_owned()].into(), toolsets: ["file".to_owned()].into() };
        for (needs, without, with) in [
            ("requires_tools: [terminal]", false, true),
            ("requires_toolsets: [file]", false, true),
            ("requires_tools: [terminal, browser]", false, false),
            ("fallback_for_tools: [terminal]", true, false),
            ("fallback_for_toolsets: [web]", true, true),
        ] {
            let shown = |available: &Available| parse(&text(needs), "linux", available).expect("valid").shown;
            assert_eq!((shown(&Available::default()), shown(&there)), (without, with), "{needs}");
        }
        assert_eq!(parse(&text("requires_tools: []"), "linux", &there).expect("valid").tags, ["x"]);
    }
}
