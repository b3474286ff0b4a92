//! Skills: folders with a `SKILL.md`, read for the index that the system prompt carries and for the tools that look after them.
//!
//! Called when a prompt is built, and inside the boundary by the skill tools. Always true: only well-formed skills are listed, sorted
//! and without duplicates, and a bad one costs a warning, never a turn. It reads below `skills/` only, follows no symlink, and runs
//! nothing.

pub(crate) mod curator;
pub mod usage;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hermes_home::skill::{one_line, split_frontmatter};
use serde::Deserialize;

pub use hermes_home::skill::{Available, Skill, is_name, parse};

use crate::beneath::{self, Folder};

/// Four bytes a character, and a little for what counts as none.
pub(crate) const MAX_SKILL_BYTES: u64 = 500_000;
/// Folders looked at, at most: a home is no file system.
const MAX_FOLDERS: usize = 4096;
/// The category of a skill that lies in none.
pub(crate) const NO_CATEGORY: &str = "general";

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
