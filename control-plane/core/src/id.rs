//! Ids that people choose. An agent id is the only such text that touches a path, a metric label or a Kubernetes name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The agent that always exists.
pub const MAIN: &str = "main";

/// A registered agent's id: 1–40 characters, `[a-z0-9][a-z0-9_-]*`, the last one alphanumeric.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentId(String);

/// A text that is no agent id. The message quotes it (shortened, escaped) and states the grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{shown} is not an agent id: write 1 to 40 of a-z, 0-9, _ and -, first and last a letter or digit")]
pub struct InvalidAgentId {
    shown: String,
}

impl AgentId {
    /// Accepts exactly the grammar above.
    ///
    /// # Errors
    /// [`InvalidAgentId`], naming the text.
    pub fn parse(text: &str) -> Result<Self, InvalidAgentId> {
        let bytes = text.as_bytes();
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let inner = |b: &u8| alnum(*b) || *b == b'_' || *b == b'-';
        let ok = matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if alnum(*first) && alnum(*last))
            && bytes.len() <= 40
            && bytes.iter().all(inner);
        if ok {
            return Ok(Self(text.to_owned()));
        }
        let mut shown: String = text.chars().take(60).collect::<String>().escape_debug().collect();
        if text.chars().count() > 60 {
            shown.push('…');
        }
        Err(InvalidAgentId { shown: format!("\"{shown}\"") })
    }

    /// The agent `main`.
    pub fn main() -> Self {
        Self(MAIN.to_owned())
    }

    /// Whether this is `main`.
    pub fn is_main(&self) -> bool {
        self.0 == MAIN
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for AgentId {
    type Error = InvalidAgentId;
    fn try_from(text: String) -> Result<Self, InvalidAgentId> {
        Self::parse(&text)
    }
}

impl From<AgentId> for String {
    fn from(id: AgentId) -> Self {
        id.0
    }
}

impl std::borrow::Borrow<str> for AgentId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Names that must never become an id: paths, options, shell, SQL, look-alikes, controls, too long.
    pub(crate) const HOSTILE: [&str; 49] = [
        "",
        ".",
        "..",
        "../x",
        "..%2f",
        "%2e%2e/",
        "..\\x",
        "/etc/passwd",
        "C:\\x",
        "\\\\h\\s",
        "a/b",
        "a\0b",
        "-rf",
        "--help",
        "a b",
        " a",
        "a ",
        "a\n",
        "$(id)",
        "`id`",
        "${IFS}",
        ";id",
        "a'--",
        "a\" OR 1=1",
        "A",
        "\u{e9}",
        "e\u{301}",
        "\u{440}\u{430}ypal",
        "a\u{202e}b",
        "a\u{200d}b",
        "\u{130}",
        "\u{ff0e}\u{ff0e}\u{ff0f}",
        "\u{1f600}",
        "\u{fffd}",
        "\u{c0}\u{af}",
        "\u{ff}\u{fe}",
        "__proto__",
        "_x",
        "x_",
        "-x",
        "x-",
        "_",
        "-",
        "a.b",
        "a:b",
        "a,b",
        "0x10\n",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ];

    /// Names of the same lists that the grammar accepts: words to other programs, plain ids to us.
    pub(crate) const HARMLESS: [&str; 12] = [
        "con",
        "nul",
        "default",
        "system",
        "null",
        "true",
        "0x10",
        "on",
        "y",
        "0",
        "a--b",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ];

    #[test]
    fn the_grammar_is_exact() {
        for id in HOSTILE {
            let invalid = AgentId::parse(id).unwrap_err().to_string();
            assert!(invalid.contains("is not an agent id") && !invalid.chars().any(char::is_control), "{invalid}");
        }
        for id in HARMLESS {
            assert_eq!(AgentId::parse(id).unwrap().as_str(), id);
        }
        let long = AgentId::parse(&"x".repeat(1_000_000)).unwrap_err().to_string();
        assert!(long.len() < 200, "{} bytes", long.len());
        assert!(serde_json::from_str::<AgentId>("\"..\"").is_err());
        assert!(serde_json::from_str::<AgentId>("\"\\ud800\"").is_err(), "a lone surrogate is not text");
        assert!(AgentId::main().is_main());
    }
}
