//! What answers an agent's turns: the worker's own loop, or a program that speaks the Agent Client Protocol.
//!
//! A part of an agent's profile: read by [`crate::config`], stored with the revision, told to its workers. Always true of one without
//! [`Acp::faults`]: it has a program, and a secret stands in it by reference only. It starts nothing and resolves nothing.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::config::SecretRef;
use crate::mcp::{is_secret, is_variable, text_fault};

/// What [`Acp::start_timeout_seconds`] may be.
pub const START_TIMEOUT_SECONDS: RangeInclusive<u64> = 1..=600;
/// Most secrets of one program.
const MAX_SECRETS: usize = 32;
/// Most arguments or variables.
const MAX_ITEMS: usize = 128;
/// What it may take altogether, bytes: it goes to the agent's worker with each turn.
const MAX_BYTES: usize = 64 << 10;

/// What answers an agent's turns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Runtime {
    /// The worker's own loop of model and tool calls.
    #[default]
    Native,
    /// A program, with models and tools of its own.
    Acp(Acp),
}

impl Runtime {
    /// The name written in documents.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Acp(_) => "acp",
        }
    }
}

/// A program that speaks the Agent Client Protocol over its stdin and stdout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acp {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables beside the usual ones; no secrets.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Secrets for its environment alone, by variable.
    #[serde(default)]
    pub secrets: BTreeMap<String, SecretRef>,
    /// How long it may take to start, and to begin a session, seconds. Default: [`Acp::USUAL_START_TIMEOUT_SECONDS`].
    pub start_timeout_seconds: u64,
}

impl Acp {
    /// How long a start may take when nobody says otherwise, seconds.
    pub const USUAL_START_TIMEOUT_SECONDS: u64 = 60;

    /// What is wrong with it: the key below `runtime`, and what to write instead. References are judged by [`crate::config`].
    pub fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        if self.command.first().is_none_or(String::is_empty) {
            faults.push(("command".to_owned(), "write the program and its arguments as a list".to_owned()));
        }
        let counts = [
            ("command", self.command.len(), MAX_ITEMS),
            ("env", self.env.len(), MAX_ITEMS),
            ("secrets", self.secrets.len(), MAX_SECRETS),
        ];
        for (key, count, most) in counts {
            if count > most {
                faults.push((key.to_owned(), format!("at most {most} are allowed here")));
            }
        }
        for (index, argument) in self.command.iter().enumerate() {
            faults.extend(text_fault(argument).map(|fault| (format!("command[{index}]"), fault)));
        }
        for (name, value) in &self.env {
            let secret = is_secret(name)
                .then(|| "this names a secret; write where it is found under secrets, not here".to_owned());
            let fault = is_variable(name).err().or(secret).or_else(|| text_fault(value));
            faults.extend(fault.map(|fault| (format!("env.{name}"), fault)));
        }
        for name in self.secrets.keys() {
            let twice = self.env.contains_key(name).then(|| "this variable stands under env, too; keep one".to_owned());
            faults.extend(is_variable(name).err().or(twice).map(|fault| (format!("secrets.{name}"), fault)));
        }
        if !START_TIMEOUT_SECONDS.contains(&self.start_timeout_seconds) {
            let (least, most) = (START_TIMEOUT_SECONDS.start(), START_TIMEOUT_SECONDS.end());
            let remedy = format!("write a whole number from {least} to {most}");
            faults.push(("start_timeout_seconds".to_owned(), remedy));
        }
        let variables = self.env.iter().flat_map(|(name, value)| [name, value]);
        let bytes: usize = self.command.iter().chain(variables).map(|text| text.len() + 4).sum();
        if bytes > MAX_BYTES {
            faults.push((
                "command".to_owned(),
                format!("with env it takes {bytes} bytes; at most {MAX_BYTES} are allowed"),
            ));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acp() -> Acp {
        Acp {
            command: vec!["agent".to_owned(), "--acp".to_owned()],
            env: [("LOG_LEVEL".to_owned(), "info".to_owned())].into(),
            secrets: [("API_KEY".to_owned(), SecretRef::Env("CODER_KEY".to_owned()))].into(),
            start_timeout_seconds: Acp::USUAL_START_TIMEOUT_SECONDS,
        }
    }

    #[test]
    fn a_program_has_a_command_and_its_secrets_by_reference() {
        assert_eq!(acp().faults(), []);
        let env =
            |name: &str| Acp { env: [(name.to_owned(), "x".to_owned())].into(), secrets: BTreeMap::new(), ..acp() };
        let faulty = [
            (Acp { command: Vec::new(), ..acp() }, "command"),
            (Acp { command: vec!["a\0".to_owned()], ..acp() }, "command[0]"),
            (Acp { command: vec!["a".to_owned(); MAX_ITEMS + 1], ..acp() }, "command"),
            (Acp { command: vec!["x".repeat(4096); 17], ..acp() }, "command"),
            (env("GITHUB_TOKEN"), "env.GITHUB_TOKEN"),
            (env("1A"), "env.1A"),
            (Acp { secrets: [("A B".to_owned(), SecretRef::Env("X".to_owned()))].into(), ..acp() }, "secrets.A B"),
            (
                Acp { secrets: [("LOG_LEVEL".to_owned(), SecretRef::Env("X".to_owned()))].into(), ..acp() },
                "secrets.LOG_LEVEL",
            ),
            (Acp { start_timeout_seconds: 0, ..acp() }, "start_timeout_seconds"),
        ];
        for (acp, key) in faulty {
            let keys: Vec<_> = acp.faults().into_iter().map(|(key, _)| key).collect();
            assert_eq!(keys, [key]);
        }
    }

    #[test]
    fn a_stored_runtime_is_read_again() {
        for runtime in [Runtime::Native, Runtime::Acp(acp())] {
            let stored = serde_json::to_value(&runtime).expect("JSON");
            assert_eq!(stored["kind"], runtime.kind());
            assert_eq!(serde_json::from_value::<Runtime>(stored).expect("a runtime"), runtime);
        }
    }
}
