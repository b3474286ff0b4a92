//! Skills: folders with a `SKILL.md`, read for the index that the system prompt carries.
//!
//! Called when a prompt is built. Always true: only well-formed skills are listed, sorted and without duplicates, and a
//! bad one costs a warning, never a turn. It reads below `skills/` only, follows no symlink, and neither runs nor shows
//! a skill's body.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

const MAX_SKILL_CHARS: usize = 100_000;
const MAX_DESCRIPTION_CHARS: usize = 1024;
const MAX_NAME_CHARS: usize = 64;
/// Folders looked at, at most: a home is no file system.
const MAX_FOLDERS: usize = 4096;
/// The category of a skill that lies in none.
const NO_CATEGORY: &str = "general";

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

/// Which tools hide a skill by their absence. `fallback_for_*` hides by presence, and no tool is present.
#[derive(Debug, Default, Deserialize)]
struct Needs {
    #[serde(default)]
    requires_tools: Option<Vec<String>>,
    #[serde(default)]
    requires_toolsets: Option<Vec<String>>,
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

impl Index {
    /// Reads `skills/` of a home. What is unreadable or malformed is left out with a warning.
    pub fn read(home: &Path) -> Self {
        let mut index = Self::default();
        let mut budget = MAX_FOLDERS;
        for (name, path) in folders(&home.join("skills"), &mut budget) {
            if index.add_folder(NO_CATEGORY, &path) {
                continue;
            }
            for (_, inner) in folders(&path, &mut budget) {
                index.add_folder(&name, &inner);
            }
            if let Some(category) = index.categories.get_mut(&name) {
                category.description = category_description(&path);
            }
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

    /// Answers whether the folder is a skill's folder at all, well-formed or not.
    fn add_folder(&mut self, category: &str, folder: &Path) -> bool {
        let file = folder.join("SKILL.md");
        if !fs::symlink_metadata(&file).is_ok_and(|metadata| metadata.is_file()) {
            return false;
        }
        match fs::read_to_string(&file) {
            Ok(text) => match parse(&text, std::env::consts::OS) {
                Ok(Some(skill)) => self.add(category, skill),
                Ok(None) => {}
                Err(error) => tracing::warn!(file = %file.display(), %error, "a skill is left out"),
            },
            Err(error) => tracing::warn!(file = %file.display(), %error, "a skill cannot be read"),
        }
        true
    }
}

/// Reads a `SKILL.md`; `None`: well-formed, but not for this platform or not without tools.
///
/// # Errors
/// [`Error`], what is wrong with it.
pub fn parse(text: &str, os: &str) -> Result<Option<Skill>, Error> {
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
    let needs_tools = [needs.requires_tools, needs.requires_toolsets].iter().flatten().any(|list| !list.is_empty());
    Ok((here && !needs_tools).then_some(Skill { name: head.name, description }))
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

fn is_name(name: &str) -> bool {
    let alnum = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= MAX_NAME_CHARS
        && name.bytes().next().is_some_and(alnum)
        && name.bytes().all(|byte| alnum(byte) || matches!(byte, b'-' | b'.' | b'_'))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a category's `DESCRIPTION.md` says in its frontmatter.
fn category_description(folder: &Path) -> String {
    #[derive(Deserialize)]
    struct Head {
        description: String,
    }
    let file = folder.join("DESCRIPTION.md");
    if !fs::symlink_metadata(&file).is_ok_and(|metadata| metadata.is_file()) {
        return String::new();
    }
    let text = fs::read_to_string(&file).unwrap_or_default();
    let head = split_frontmatter(&text).and_then(|(head, _)| serde_yaml::from_str::<Head>(head).ok());
    head.map(|head| one_line(&head.description)).unwrap_or_default()
}

/// The real folders in `path` with a name of the grammar, sorted.
fn folders(path: &Path, budget: &mut usize) -> Vec<(String, std::path::PathBuf)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(path) else {
        return found;
    };
    for entry in entries.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder
            && let Ok(name) = entry.file_name().into_string()
            && is_name(&name)
            && *budget > 0
        {
            *budget -= 1;
            found.push((name, entry.path()));
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skill(head: &str) -> Result<Option<Skill>, Error> {
        parse(&format!("---\n{head}---\nBody\n"), "linux")
    }

    #[test]
    fn reads_a_skill_with_bom_and_windows_lines() {
        let text = "\u{feff}---\r\nname: deploy-app\r\ndescription: How to\r\n  deploy\r\n---\r\nDo it.";
        let skill = parse(text, "linux").expect("valid").expect("shown");
        assert_eq!((skill.name.as_str(), skill.description.as_str()), ("deploy-app", "How to deploy"));
    }

    #[test]
    fn refuses_what_is_no_skill() {
        assert_eq!(parse("name: a", "linux"), Err(Error::NoFrontmatter));
        assert_eq!(parse("---\nname: a\ndescription: b\n", "linux"), Err(Error::NoFrontmatter));
        assert_eq!(parse("---\nname: a\ndescription: b\n---\n \n", "linux"), Err(Error::NoBody));
        assert!(matches!(skill("- a\n"), Err(Error::BadFrontmatter(_))));
        assert!(matches!(skill("name: a\n"), Err(Error::BadFrontmatter(_))));
        assert_eq!(skill("name: ../a\ndescription: b\n"), Err(Error::BadName));
        assert_eq!(skill("name: a\ndescription: ''\n"), Err(Error::BadDescription));
        assert_eq!(skill(&format!("name: a\ndescription: {}\n", "x".repeat(1025))), Err(Error::BadDescription));
        assert_eq!(parse(&format!("---\nname: a\n---\n{}", "x".repeat(100_000)), "linux"), Err(Error::TooLong));
    }

    #[test]
    fn other_platforms_and_missing_tools_hide_a_skill() {
        let head = "name: a\ndescription: b\n";
        assert!(skill(&format!("{head}platforms: [linux, macos]\n")).expect("valid").is_some());
        assert!(skill(&format!("{head}platforms: [windows]\n")).expect("valid").is_none());
        let tools = format!("{head}metadata: {{hermes: {{requires_tools: [terminal]}}}}\n");
        assert!(skill(&tools).expect("valid").is_none());
        let fallback = format!("{head}metadata: {{hermes: {{tags: [x], fallback_for_tools: [terminal]}}}}\n");
        assert!(skill(&fallback).expect("valid").is_some());
    }

    #[test]
    fn the_index_is_sorted_by_category_and_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let write = |path: &str, text: &str| {
            let path = dir.path().join("skills").join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::write(path, text).expect("write");
        };
        let skill = |name: &str| format!("---\nname: {name}\ndescription: about {name}\n---\nText\n");
        write("web/zeta/SKILL.md", &skill("zeta"));
        write("web/alpha/SKILL.md", &skill("alpha"));
        write("web/again/SKILL.md", &skill("alpha"));
        write("web/DESCRIPTION.md", "---\ndescription: The web\n---\n");
        write("alone/SKILL.md", &skill("alone"));
        write(".archive/old/SKILL.md", &skill("old"));
        write("bad/broken/SKILL.md", "nothing");
        std::os::unix::fs::symlink("/etc", dir.path().join("skills/web/link")).expect("symlink");
        let expected = "## Skills\n\n<available_skills>\n  general:\n    - alone: about alone\n  web: The web\n    - alpha: about alpha\n    - zeta: about zeta\n</available_skills>";
        assert_eq!(Index::read(dir.path()).render().expect("skills"), expected);
        assert_eq!(Index::read(&dir.path().join("nowhere")).render(), None);
    }
}
