//! `--runtime`, and how what answers an agent's turns looks. Called by the agent commands; pure.

use std::collections::BTreeMap;

use hermes_proto::v1;
use serde::Serialize;

use crate::error::Usage;

/// `kind=acp,command=coder --acp,secret.API_KEY=env:CODER_KEY`.
///
/// # Errors
/// What to write instead.
pub(super) fn read(text: &str) -> anyhow::Result<v1::Runtime> {
    let mut runtime = v1::Runtime::default();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| Usage(format!("--runtime: {pair:?} is not KEY=VALUE, for example kind=acp")))?;
        match (key, key.split_once('.')) {
            ("kind", _) => runtime.set_kind(match value {
                "native" => v1::RuntimeKind::Native,
                "acp" => v1::RuntimeKind::Acp,
                _ => return Err(Usage(format!("--runtime: {value:?} is not a runtime; write native or acp")).into()),
            }),
            ("command", _) => runtime.command = value.split_whitespace().map(str::to_owned).collect(),
            ("start_timeout_seconds", _) => {
                let number = value.parse::<u32>();
                runtime.start_timeout_seconds =
                    number.map_err(|_| Usage(format!("--runtime: {key} is a whole number, not {value:?}")))?;
            }
            (_, Some(("env", name))) => {
                runtime.env.push(v1::mcp_server::Variable { name: name.to_owned(), value: value.to_owned() });
            }
            (_, Some(("secret", name))) => {
                let from = match value.split_once(':') {
                    Some(("env", variable)) => v1::runtime_secret::From::Env(variable.to_owned()),
                    Some(("file", path)) => v1::runtime_secret::From::File(path.to_owned()),
                    // It may be the secret itself.
                    _ => {
                        let message =
                            format!("--runtime: {key} says where the secret is found: env:VARIABLE or file:PATH");
                        return Err(Usage(message).into());
                    }
                };
                runtime.secrets.push(v1::RuntimeSecret {
                    name: name.to_owned(),
                    from: Some(from),
                    reference: Vec::new(),
                });
            }
            _ => {
                let keys = "kind, command, start_timeout_seconds, env.NAME and secret.NAME";
                return Err(Usage(format!("--runtime: there is no key {key:?}; the keys are {keys}")).into());
            }
        }
    }
    match runtime.kind() {
        v1::RuntimeKind::Unspecified => {
            Err(Usage("--runtime: say which: kind=native or kind=acp,command=PROGRAM".to_owned()).into())
        }
        v1::RuntimeKind::Native if runtime != (v1::Runtime { kind: runtime.kind, ..v1::Runtime::default() }) => {
            Err(Usage("--runtime: only kind=acp has a command, variables or secrets".to_owned()).into())
        }
        v1::RuntimeKind::Native | v1::RuntimeKind::Acp => Ok(runtime),
    }
}

/// What answers an agent's turns.
#[derive(Serialize)]
pub(super) struct RuntimeView {
    kind: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    command: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    /// Where each is found.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    secrets: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_timeout_seconds: Option<u32>,
}

impl RuntimeView {
    pub(super) fn from_proto(runtime: v1::Runtime) -> Self {
        let kind = match runtime.kind() {
            v1::RuntimeKind::Native | v1::RuntimeKind::Unspecified => "native",
            v1::RuntimeKind::Acp => "acp",
        };
        let secret = |secret: v1::RuntimeSecret| {
            let from = match secret.from {
                Some(v1::runtime_secret::From::Env(variable)) => format!("env:{variable}"),
                Some(v1::runtime_secret::From::File(path)) => format!("file:{path}"),
                None => String::new(),
            };
            (secret.name, from)
        };
        Self {
            kind,
            command: runtime.command,
            env: runtime.env.into_iter().map(|variable| (variable.name, variable.value)).collect(),
            secrets: runtime.secrets.into_iter().map(secret).collect(),
            start_timeout_seconds: Some(runtime.start_timeout_seconds).filter(|seconds| *seconds != 0),
        }
    }

    /// In a line.
    pub(super) fn short(&self) -> String {
        format!("{} {}", self.kind, self.command.join(" ")).trim_end().to_owned()
    }

    /// Whether another program than the worker answers.
    pub(super) fn is_foreign(&self) -> bool {
        self.kind != "native"
    }

    /// Secrets and where they are found, in a line.
    pub(super) fn secrets(&self) -> Option<String> {
        let shown: Vec<_> = self.secrets.iter().map(|(name, from)| format!("{name} from {from}")).collect();
        (!shown.is_empty()).then(|| shown.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_read_key_by_key_and_what_is_wrong_is_named() {
        let text = "kind=acp,command=/bin/coder --acp, env.A=1,secret.KEY=env:CODER,secret.K2=file:/run/k,start_timeout_seconds=9";
        let view = RuntimeView::from_proto(read(text).unwrap());
        assert_eq!((view.short().as_str(), view.start_timeout_seconds), ("acp /bin/coder --acp", Some(9)));
        assert_eq!(view.secrets().as_deref(), Some("K2 from file:/run/k, KEY from env:CODER"));
        assert_eq!(view.env["A"], "1");
        assert_eq!(read("kind=native").unwrap().kind(), v1::RuntimeKind::Native);
        for (text, part) in [
            ("acp", "not KEY=VALUE"),
            ("kind=other", "native or acp"),
            ("command=x", "say which"),
            ("kind=native,command=x", "only kind=acp"),
            ("kind=acp,secret.KEY=hunter2", "env:VARIABLE or file:PATH"),
            ("kind=acp,start_timeout_seconds=x", "whole number"),
            ("kind=acp,colour=1", "no key"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("hunter2"), "{text}: {error}");
        }
    }
}
