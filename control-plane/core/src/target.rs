//! Where a message goes that is no reply: a target as a model or a job writes it.
//!
//! Called by the tools that send. Always true: ids stay as they are written, only the platform is folded to lower case (spec f);
//! every text is some target. It deliberately does not know which chats there are, nor who may write to them.

use std::fmt;

/// A target as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The chat of the turn.
    Origin,
    /// Nowhere but here.
    Local,
    /// The chat that is home on a platform.
    Home {
        /// The platform's name.
        platform: String,
    },
    /// One chat.
    Chat {
        /// The platform's name.
        platform: String,
        /// The chat's id, which may be empty.
        chat_id: String,
        /// The thread in it, where one is written.
        thread_id: Option<String>,
    },
}

impl Target {
    /// `origin`, `local`, `platform`, `platform:chat` or `platform:chat:thread`; `known` says which platforms there are, and what
    /// names no such one is local.
    pub fn parse(text: &str, known: impl Fn(&str) -> bool) -> Self {
        let text = text.trim();
        if text.eq_ignore_ascii_case("origin") {
            return Self::Origin;
        }
        let mut parts = text.splitn(3, ':');
        let platform = parts.next().unwrap_or_default().to_lowercase();
        if platform == "local" || !known(&platform) {
            return Self::Local;
        }
        match parts.next() {
            None => Self::Home { platform },
            Some(chat) => Self::Chat { platform, chat_id: chat.to_owned(), thread_id: parts.next().map(str::to_owned) },
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Origin => f.write_str("origin"),
            Self::Local => f.write_str("local"),
            Self::Home { platform } => f.write_str(platform),
            // Without a chat a thread says nothing.
            Self::Chat { platform, chat_id, .. } if chat_id.is_empty() => f.write_str(platform),
            Self::Chat { platform, chat_id, thread_id } => {
                write!(f, "{platform}:{chat_id}")?;
                match thread_id.as_deref() {
                    None | Some("") => Ok(()),
                    Some(thread) => write!(f, ":{thread}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_and_written_alike() {
        for text in
            ["origin", "local", "telegram", "telegram:-100123", "slack:C1:1700.01", "matrix:!Room:example.org:8448"]
        {
            assert_eq!(Target::parse(text, |_| true).to_string(), text);
        }
        assert_eq!(Target::parse("nowhere:1", |platform| platform == "telegram"), Target::Local);
    }
}
