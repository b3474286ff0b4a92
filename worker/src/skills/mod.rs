//! Skills: folders with a `SKILL.md`, read for the index that the system prompt carries and for the tools that look after them.
//!
//! Called when a prompt is built, and inside the boundary by the skill tools. Always true: only well-formed skills are listed, sorted
//! and without duplicates, and a bad one costs a warning, never a turn. It reads below `skills/` only, follows no symlink, and runs
//! nothing.

pub(crate) mod curator;
pub mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::beneath::{self, Folder};

const MAX_SKILL_CHARS: usize = 100_000;
/// Four bytes a character, and a little for what counts as none.
const MAX_SKILL_BYTES: u64 = 500_000;
const MAX_DESCRIPTION_CHARS: usize = 1024;
const MAX_NAME_CHARS: usize = 64;
/// Folders looked at, at most: a home is no file system.
const MAX_FOLDERS: usize = 4096;
/// The category of a skill that lies in none.
pub(crate) const NO_CATEGORY: &str = "general";

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

/// The skills of a home by category, with the categories' own descriptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    categories: BTreeMap<String, Category>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Category {
    description: String,
    skills: BTreeMap<String, String>,
}

/// The skills of a home, well-formed or not, by category and name.
pub(crate) fn places(home: &Path) -> Vec<(String, String)> {
    let is_skill =
        |folder: &Folder| fs::symlink_metadata(folder.path("SKILL.md")).is_ok_and(|metadata| metadata.is_file());
    let open = |path: &str| Folder::open(home, path).ok().flatten();
    let mut places = Vec::new();
    let mut budget = MAX_FOLDERS;
    let Some(skills) = open("skills") else {
        return places;
    };
    for name in folders(&skills, &mut budget) {
        let Some(folder) = open(&format!("skills/{name}")) else {
            continue;
        };
        if is_skill(&folder) {
            places.push((NO_CATEGORY.to_owned(), name));
            continue;
        }
        for inner in folders(&folder, &mut budget) {
            if open(&format!("skills/{name}/{inner}")).is_some_and(|folder| is_skill(&folder)) {
                places.push((name.clone(), inner));
            }
        }
    }
    places
}

/// The folder of a skill, in its home.
pub(crate) fn place(category: &str, name: &str) -> String {
    if category == NO_CATEGORY { format!("skills/{name}") } else { format!("skills/{category}/{name}") }
}

impl Index {
    /// Reads `skills/` of a home, as a session sees it that has these tools. What is unreadable or malformed is left out with a warning.
    pub fn read(home: &Path, available: &Available) -> Self {
        let mut index = Self::default();
        for (category, name) in places(home) {
            index.add_place(home, &category, &name, available);
        }
        for (name, category) in &mut index.categories {
            category.description = category_description(home, name);
        }
        index
    }

    /// Adds a skill; the first of a name in a category stays.
    pub fn add(&mut self, category: &str, skill: Skill) {
        let category = self.categories.entry(category.to_owned()).or_default();
        category.skills.entry(skill.name).or_insert(skill.description);
    }

    /// The block for the system prompt; nothing when there is no skill.
    pub fn render(&self) -> Option<String> {
        if self.categories.is_empty() {
            return None;
        }
        let mut text = String::from("## Skills\n\n<available_skills>\n");
        for (name, category) in &self.categories {
            text.push_str("  ");
            text.push_str(name);
            text.push(':');
            if !category.description.is_empty() {
                text.push(' ');
                text.push_str(&category.description);
            }
            text.push('\n');
            for (name, description) in &category.skills {
                for piece in ["    - ", name, ": ", description, "\n"] {
                    text.push_str(piece);
                }
            }
        }
        text.push_str("</available_skills>");
        Some(text)
    }

    fn add_place(&mut self, home: &Path, category: &str, name: &str, available: &Available) {
        let file = format!("{}/SKILL.md", place(category, name));
        let Some(text) = beneath::text(home, &file, MAX_SKILL_BYTES) else {
            return;
        };
        match parse(&text, std::env::consts::OS, available) {
            Ok(skill) if skill.shown => self.add(category, skill),
            Ok(_) => {}
            Err(error) => tracing::warn!(file, %error, "a skill is left out"),
        }
    }
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

/// The frontmatter and what follows it.
fn split_frontmatter(text: &str) -> Option<(&str, &str)> {
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

pub(crate) fn is_name(name: &str) -> bool {
    let alnum = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= MAX_NAME_CHARS
        && name.bytes().next().is_some_and(alnum)
        && name.bytes().all(|byte| alnum(byte) || matches!(byte, b'-' | b'.' | b'_'))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a category's `DESCRIPTION.md` says in its frontmatter.
fn category_description(home: &Path, category: &str) -> String {
    #[derive(Deserialize)]
    struct Head {
        description: String,
    }
    let text = beneath::text(home, &format!("skills/{category}/DESCRIPTION.md"), MAX_SKILL_BYTES).unwrap_or_default();
    let head = split_frontmatter(&text).and_then(|(head, _)| serde_yaml::from_str::<Head>(head).ok());
    head.map(|head| one_line(&head.description)).unwrap_or_default()
}

/// The names of the folders in `folder` that fit the grammar, sorted.
fn folders(folder: &Folder, budget: &mut usize) -> Vec<String> {
    let mut found: Vec<String> = folder
        .entries()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().filter(|(name, is_folder)| *is_folder && is_name(name)))
        .map(|(name, _)| name)
        .take(*budget)
        .collect();
    *budget -= found.len();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::tests::with_files;

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

    #[test]
    fn the_index_is_sorted_by_category_and_name() {
        let skill = |name: &str| format!("---\nname: {name}\ndescription: about {name}\n---\nText\n");
        let dir = with_files(&[
            ("skills/web/zeta/SKILL.md", &skill("zeta")),
            ("skills/web/alpha/SKILL.md", &skill("alpha")),
            ("skills/web/again/SKILL.md", &skill("alpha")),
            ("skills/web/DESCRIPTION.md", "---\ndescription: The web\n---\n"),
            ("skills/alone/SKILL.md", &skill("alone")),
            ("skills/.archive/old/SKILL.md", &skill("old")),
            ("skills/bad/broken/SKILL.md", "nothing"),
        ]);
        std::os::unix::fs::symlink("/etc", dir.path().join("skills/web/link")).expect("symlink");
        let expected = "## Skills\n\n<available_skills>\n  general:\n    - alone: about alone\n  web: The web\n    - alpha: about alpha\n    - zeta: about zeta\n</available_skills>";
        assert_eq!(Index::read(dir.path(), &Available::default()).render().expect("skills"), expected);
        assert_eq!(Index::read(&dir.path().join("nowhere"), &Available::default()).render(), None);
    }
}
