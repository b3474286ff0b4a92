//! `runtime` of agents in a document.

use super::*;
use crate::runtime::{Acp, Runtime};

const AGENTS: &str = r#"
agents:
  own: {runtime: {kind: native}}
  coder:
    runtime:
      kind: acp
      command: [/usr/local/bin/coder, --acp]
      env: {LOG_LEVEL: info}
      secrets:
        API_KEY: {env: CODER_KEY}
        OTHER: {file: /run/secrets/other}
      start_timeout_seconds: 90
  apart: {runtime: {kind: acp, command: node, args: [a.js]}}
"#;

#[test]
fn runtimes_are_read_and_exported() {
    let document = load(AGENTS);
    let coder = Acp {
        command: vec!["/usr/local/bin/coder".to_owned(), "--acp".to_owned()],
        env: [("LOG_LEVEL".to_owned(), "info".to_owned())].into(),
        secrets: [
            ("API_KEY".to_owned(), SecretRef::Env("CODER_KEY".to_owned())),
            ("OTHER".to_owned(), SecretRef::File("/run/secrets/other".to_owned())),
        ]
        .into(),
        start_timeout_seconds: 90,
    };
    assert_eq!(document.agents["coder"].runtime, Some(Runtime::Acp(coder)));
    assert_eq!(document.agents["own"].runtime, Some(Runtime::Native));
    let Some(Runtime::Acp(apart)) = &document.agents["apart"].runtime else { panic!("acp") };
    assert_eq!((apart.command.join(" "), apart.start_timeout_seconds), ("node a.js".to_owned(), 60));
    assert_eq!(load(&to_yaml(&document)), document);
    let changed = load(&AGENTS.replace("CODER_KEY", "OTHER_KEY"));
    assert_eq!(diff(&document, &changed)[0].path, "agents.coder.runtime.secrets.API_KEY.env");
}

#[test]
fn what_a_runtime_cannot_be_is_refused_where_it_stands() {
    refused(
        r#"agents:
  a: {runtime: {kind: other}}
  b: {runtime: {command: [x]}}
  c: {runtime: {kind: native, command: [x]}}
  d:
    runtime:
      kind: acp
      comand: [x]
      env:
        API_TOKEN: abc
      secrets:
        PLAIN: hunter2
        BOTH: {env: A, file: /a}
        NONE: {}
        RELATIVE: {file: a}
      start_timeout_seconds: 0
"#,
        &[
            (2, "agents.a.runtime.kind", "write native or acp"),
            (3, "agents.b.runtime", "has its kind"),
            (4, "agents.c.runtime.command", "only a runtime of kind acp"),
            (7, "agents.d.runtime.command", "write the program"),
            (7, "agents.d.runtime.env.API_TOKEN", "under secrets"),
            (8, "agents.d.runtime.comand", "did you mean command?"),
            (12, "agents.d.runtime.secrets.PLAIN", "never stands in the document"),
            (13, "agents.d.runtime.secrets.BOTH", "exclude each other"),
            (14, "agents.d.runtime.secrets.NONE", "say where it is found"),
            (15, "agents.d.runtime.secrets.RELATIVE.file", "absolute path"),
            (16, "agents.d.runtime.start_timeout_seconds", "1 to 600"),
        ],
    );
}
