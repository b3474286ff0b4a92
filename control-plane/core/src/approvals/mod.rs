//! When a person has to allow what an agent's model wants to do, and the words in which people answer.
//!
//! A part of an agent's profile: read by [`crate::config`], stored with the revision, told to its workers. The answers are read by
//! intake. Always true: what nobody says is asked for, and what is no answer is words for the agent. It does not know which calls are
//! dangerous (`hermes_home::danger` does), and asks nobody. What a model is asked about a call first is [`smart`]'s.

pub mod smart;

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::Source;

/// What [`Approvals::timeout_seconds`] may be.
pub const TIMEOUT_SECONDS: RangeInclusive<u64> = 1..=604_800;
/// Most entries of [`Approvals::allow`] and of [`Approvals::deny`].
pub const MAX_ENTRIES: usize = 256;
/// Longest entry of [`Approvals::deny`], bytes.
pub const MAX_GLOB: usize = 1024;

/// Whether people are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Whoever sent the message is asked before each dangerous call.
    #[default]
    Manual,
    /// A model judges each dangerous call first; whoever sent the message is asked about those that it does not decide.
    Smart,
    /// Nobody is asked. What nobody can allow and what `deny` names is refused all the same. Has to be said.
    Off,
}

impl Mode {
    /// The name written in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Smart => "smart",
            Self::Off => "off",
        }
    }

    /// The mode of exactly this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Manual, Self::Smart, Self::Off].into_iter().find(|mode| mode.as_str() == name)
    }
}

/// When a person has to allow an agent's calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Approvals {
    /// Default: [`Mode::Manual`].
    pub mode: Mode,
    /// The model that judges under [`Mode::Smart`], as `provider/model`. Default: the one that the agent works with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smart_model: Option<String>,
    /// How long a question waits for its answer, seconds; then it counts as denied. Default: 300.
    pub timeout_seconds: u64,
    /// Keys of patterns that nobody is asked about. Default: none.
    pub allow: Vec<String>,
    /// Globs (`*`, `?`) of commands that are refused. Default: none.
    pub deny: Vec<String>,
}

impl Default for Approvals {
    fn default() -> Self {
        Self { mode: Mode::default(), smart_model: None, timeout_seconds: 300, allow: Vec::new(), deny: Vec::new() }
    }
}

impl Approvals {
    /// What is wrong with one that did not come as text: field and remedy.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !TIMEOUT_SECONDS.contains(&self.timeout_seconds) {
            let (least, most) = (TIMEOUT_SECONDS.start(), TIMEOUT_SECONDS.end());
            faults.push(format!("timeout_seconds: write a whole number from {least} to {most}"));
        }
        for (name, list) in [("allow", &self.allow), ("deny", &self.deny)] {
            if list.len() > MAX_ENTRIES {
                faults.push(format!("{name}: it has {} entries; at most {MAX_ENTRIES} are allowed", list.len()));
            }
        }
        faults
            .extend(self.allow.iter().filter_map(|entry| allowed(entry).err().map(|fault| format!("allow: {fault}"))));
        faults.extend(self.deny.iter().filter_map(|entry| denied(entry).err().map(|fault| format!("deny: {fault}"))));
        faults
    }
}

/// Judges an entry of `allow`.
///
/// # Errors
/// What to write instead.
pub fn allowed(entry: &str) -> Result<(), String> {
    let is_key = !entry.is_empty() && entry.len() <= 64 && entry.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    if is_key {
        Ok(())
    } else {
        Err("write the key of a pattern as questions show it, for example git_discard".to_owned())
    }
}

/// Judges an entry of `deny`.
///
/// # Errors
/// What to write instead.
pub fn denied(entry: &str) -> Result<(), String> {
    let plain = !entry.trim().is_empty() && entry.len() <= MAX_GLOB && !entry.chars().any(char::is_control);
    if plain {
        Ok(())
    } else {
        Err(format!("write a glob of a command of at most {MAX_GLOB} bytes, for example \"git push*\""))
    }
}

/// Whether a character shows as nothing, or makes others show as something else than they are.
pub fn is_hidden(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// How far an answer reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This call alone may be made.
    Once,
    /// And no call with its patterns alone is asked for again in this session, for whoever was asked.
    Session,
    /// And in none of their conversations with this agent.
    Always,
    /// It may not be made.
    Deny,
}

impl Verdict {
    /// All verdicts.
    pub const ALL: [Self; 4] = [Self::Once, Self::Session, Self::Always, Self::Deny];

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Session => "session",
            Self::Always => "always",
            Self::Deny => "deny",
        }
    }

    /// The verdict of exactly this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.as_str() == name)
    }

    /// What a message that is nothing but an answer says: `yes`, `No.`, `👍`.
    pub fn of_message(text: &str) -> Option<Self> {
        let word = text.trim().trim_end_matches(['.', '!']).trim_end();
        if word.len() > 16 {
            return None;
        }
        match word.to_lowercase().as_str() {
            "approve" | "yes" | "ok" | "okay" | "confirm" | "y" | "👍" => Some(Self::Once),
            "session" => Some(Self::Session),
            "always" => Some(Self::Always),
            "deny" | "no" | "reject" | "cancel" | "n" | "👎" => Some(Self::Deny),
            _ => None,
        }
    }
}

/// Who sent a message, as questions about its turn are bound to it: whoever brought it, and the sender as the platform names them. Ids
/// hold no tab.
pub fn asker(source: &Source, submitter: Option<&str>) -> String {
    let part = |id: Option<&str>| id.unwrap_or_default().replace('\t', " ");
    let parts = [submitter, Some(&source.platform), source.account.as_deref(), source.user_id.as_deref()];
    parts.map(part).join("\t")
}

/// The arguments of `/approve` and `/deny`: which question, if said, and how far the answer reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Number of the question; `None`: the one that waits in this conversation.
    pub id: Option<i64>,
    /// What is answered.
    pub verdict: Verdict,
}

/// Reads the arguments of `/approve`.
///
/// # Errors
/// A sentence for the chat.
pub fn approve(arguments: &str) -> Result<Answer, String> {
    let mut answer = Answer { id: None, verdict: Verdict::Once };
    for word in arguments.split_whitespace() {
        match (word.parse::<i64>(), Verdict::parse(&word.to_lowercase())) {
            (Ok(id), _) if answer.id.is_none() => answer.id = Some(id),
            (_, Some(verdict)) if verdict != Verdict::Deny => answer.verdict = verdict,
            _ => {
                return Err("Write /approve, with the number of the question and once, session or always if you like."
                    .to_owned());
            }
        }
    }
    Ok(answer)
}

/// Reads the arguments of `/deny`: a number, then whatever was said about it.
pub fn deny(arguments: &str) -> Answer {
    let id = arguments.split_whitespace().next().and_then(|word| word.parse().ok());
    Answer { id, verdict: Verdict::Deny }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_message_that_is_nothing_else_answers() {
        for (text, verdict) in [
            ("yes", Verdict::Once),
            (" OK! ", Verdict::Once),
            ("👍", Verdict::Once),
            ("Always", Verdict::Always),
            ("session", Verdict::Session),
            ("No.", Verdict::Deny),
            ("cancel", Verdict::Deny),
        ] {
            assert_eq!(Verdict::of_message(text), Some(verdict), "{text}");
        }
        for text in ["yes please do", "", "no way", "approve 3", "yesterday", "."] {
            assert_eq!(Verdict::of_message(text), None, "{text}");
        }
    }

    #[test]
    fn a_command_says_which_question_and_how_far() {
        let answer = |id, verdict| Ok(Answer { id, verdict });
        assert_eq!(approve(""), answer(None, Verdict::Once));
        assert_eq!(approve("17"), answer(Some(17), Verdict::Once));
        assert_eq!(approve("17 Always"), answer(Some(17), Verdict::Always));
        assert_eq!(approve("session 17"), answer(Some(17), Verdict::Session));
        for text in ["deny", "17 18", "everything", "1.5"] {
            assert!(approve(text).is_err(), "{text}");
        }
        assert_eq!(deny("17 that is my home"), Answer { id: Some(17), verdict: Verdict::Deny });
        assert_eq!(deny("too dangerous"), Answer { id: None, verdict: Verdict::Deny });
    }

    #[test]
    fn faults_name_the_field() {
        let wrong = Approvals {
            timeout_seconds: 0,
            allow: vec!["Rm -rf".to_owned()],
            deny: vec![" ".to_owned()],
            ..Approvals::default()
        };
        let faults = wrong.faults();
        assert!(
            ["timeout_seconds", "allow", "deny"]
                .iter()
                .all(|field| faults.iter().any(|fault| fault.starts_with(field)))
        );
        assert!(Approvals::default().faults().is_empty());
    }
}
