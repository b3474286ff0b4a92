//! What a chat is shown of what an agent keeps: its notes and its skills. Words only.
//!
//! Called by [`super::commands`] with documents of the agent's home, which an agent has written and nobody may trust. Always true: an answer
//! fits one message of any platform; what is left out is counted.

use std::fmt::Write as _;

use hermes_core::approvals::is_hidden;
use hermes_home::memory::{Notes, Target};
use hermes_home::skill::{Available, is_name, one_line, parse, split_frontmatter};

use crate::store::Outcome;

/// Most skills that are looked at.
pub(super) const MOST_SKILLS: i64 = 200;
/// Most of an answer, in characters: with its heads and ends it fits the 4,096 of a message.
const MOST: usize = 3_000;
/// Most of one note or description in a list, in characters.
const MOST_OF_ONE: usize = 160;

/// What the agent has noted.
pub(super) fn notes(outcome: &Outcome) -> String {
    let Outcome::Documents(documents, _) = outcome else { return String::new() };
    let mut said = String::new();
    for (target, title) in
        [(Target::Memory, "What I keep in mind"), (Target::User, "What I know of the people I work for")]
    {
        let body = documents.iter().find(|(path, _)| path == target.path()).map(|(_, body)| body.as_slice());
        let notes = Notes::parse(&String::from_utf8_lossy(body.unwrap_or_default()));
        if !said.is_empty() {
            said.push_str("\n\n");
        }
        let _ = write!(said, "{title} ({}):", notes.usage(target.limit()));
        let room = MOST / 2;
        list(&mut said, room, notes.iter().enumerate().map(|(at, note)| format!("{}. {}", at + 1, short(note))));
        if notes.iter().next().is_none() {
            said.push_str("\nnothing yet");
        }
    }
    said
}

/// What the agent has learned to do, or one thing of it.
pub(super) fn skills(outcome: &Outcome, which: &str) -> String {
    let Outcome::Documents(documents, total) = outcome else { return String::new() };
    if documents.is_empty() {
        return "I have no skills yet.".to_owned();
    }
    let skills = documents.iter().map(|(path, body)| Shown::new(path, &String::from_utf8_lossy(body)));
    if !which.is_empty() {
        let found = skills.into_iter().find(|skill| skill.is(which));
        return found.map_or_else(
            || format!("I have no skill {}. /skills lists them.", shown(which, MOST_OF_ONE)),
            |skill| skill.whole(),
        );
    }
    let mut said = format!("Skills ({total}):");
    let lines: Vec<String> = skills.map(|skill| format!("{}: {}", skill.place, short(&skill.says()))).collect();
    let unseen = usize::try_from(*total).unwrap_or(usize::MAX).saturating_sub(lines.len());
    let left = list(&mut said, MOST, lines.into_iter());
    if left == 0 && unseen > 0 {
        let _ = write!(said, "\nand {unseen} more");
    }
    said.push_str("\n/skills <name> shows one.");
    said
}

/// A skill as people see it.
struct Shown {
    /// Where it lies, `category/name` or `name`.
    place: String,
    name: Option<String>,
    /// Its description, or why it is none.
    about: Result<String, String>,
    body: String,
}

impl Shown {
    fn new(path: &str, text: &str) -> Self {
        let place = path.trim_start_matches("skills/").trim_end_matches("/SKILL.md").to_owned();
        let skill = parse(text, "", &Available::default());
        let body = split_frontmatter(text).map_or(text, |(_, body)| body).trim().to_owned();
        match skill {
            Ok(skill) => Self { place, name: Some(skill.name), about: Ok(skill.description), body },
            Err(error) => Self { place, name: None, about: Err(error.to_string()), body },
        }
    }

    fn is(&self, which: &str) -> bool {
        let folder = self.place.rsplit('/').next();
        let name = self.name.as_deref();
        self.place == which || (is_name(which) && (name == Some(which) || folder == Some(which)))
    }

    fn says(&self) -> String {
        match &self.about {
            Ok(description) => description.clone(),
            Err(why) => format!("not in use, because {why}"),
        }
    }

    fn whole(&self) -> String {
        let about = shown(&one_line(&self.says()), 1024);
        format!("{}: {about}\n\n{}", shown(&self.place, MOST_OF_ONE), shown(&self.body, MOST - 1024 - MOST_OF_ONE))
    }
}

/// Adds lines while they fit into `room` characters, and how many more there are; that is what it answers.
fn list(said: &mut String, room: usize, lines: impl Iterator<Item = String>) -> usize {
    let (mut used, mut left) = (0, 0);
    for line in lines {
        used += line.chars().count() + 1;
        if left > 0 || used > room {
            left += 1;
        } else {
            said.push('\n');
            said.push_str(&line);
        }
    }
    if left > 0 {
        let _ = write!(said, "\nand {left} more");
    }
    left
}

/// On one line of a list.
fn short(text: &str) -> String {
    shown(&one_line(text), MOST_OF_ONE)
}

/// At most so many characters, without what would show as something else than it is.
fn shown(text: &str, most: usize) -> String {
    let mut chars = text.chars().filter(|c| !(is_hidden(*c) || c.is_control() && *c != '\n'));
    let mut shown: String = chars.by_ref().take(most).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(all: &[(&str, &str)]) -> Outcome {
        let all: Vec<_> = all.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect();
        let count = i64::try_from(all.len()).unwrap();
        Outcome::Documents(all, count)
    }

    #[test]
    fn notes_are_listed_with_how_full_they_are_and_always_fit() {
        let said = notes(&documents(&[("memories/MEMORY.md", "one\n§\ntwo\nlines\u{202e}")]));
        assert_eq!(
            said,
            "What I keep in mind (0% — 16/2,200 chars):\n1. one\n2. two lines\n\nWhat I know of the people I work for (0% — 0/1,375 \
             chars):\nnothing yet"
        );
        let many: Vec<String> = (0..400).map(|number| format!("{number} {}", "ä".repeat(300))).collect();
        let many = many.join("\n§\n");
        let said = notes(&documents(&[("memories/MEMORY.md", &many), ("memories/USER.md", &many)]));
        assert!(said.chars().count() < 3_500 && said.matches("\nand 391 more").count() == 2, "{said}");
    }

    #[test]
    fn skills_are_listed_and_one_is_shown_whatever_they_hold() {
        let deploy = "---\nname: deploy\ndescription: How to\n  deploy\n---\nFirst, breathe.\n";
        let all = documents(&[("skills/ops/deploy/SKILL.md", deploy), ("skills/odd/SKILL.md", "no head")]);
        let said = skills(&all, "");
        assert!(
            said.starts_with("Skills (2):\nops/deploy: How to deploy\nodd: not in use, because it must open"),
            "{said}"
        );
        for which in ["deploy", "ops/deploy"] {
            assert_eq!(skills(&all, which), "ops/deploy: How to deploy\n\nFirst, breathe.");
        }
        assert_eq!(skills(&all, "../x"), "I have no skill ../x. /skills lists them.");
        assert_eq!(skills(&documents(&[]), "deploy"), "I have no skills yet.");
        let long = format!("---\nname: long\ndescription: {}\n---\n{}", "d".repeat(1000), "b".repeat(9000));
        let many: Vec<(String, &str)> = (0..200).map(|n| (format!("skills/s{n:03}/SKILL.md"), long.as_str())).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let all = documents(&many);
        for which in ["", "long"] {
            assert!(skills(&all, which).chars().count() < 3_500, "{which}");
        }
        assert!(skills(&all, "").contains("more\n/skills <name>"));
    }
}
