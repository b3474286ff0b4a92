//! `runtime` of an agent in a text, and in exports.
//!
//! Called by [`super::read`] and [`super::to_yaml`]. What it means is [`crate::runtime`]'s.

use std::collections::BTreeMap;

use super::export::{Entries, Shape, literal, named, text, texts as list_of};
use super::fields::{self, Faults, Path, Section, entries, integer, judged, texts};
use super::tree::{Content, Node};
use super::{Fault, SecretRef, shown, values};
use crate::runtime::{Acp, Runtime, START_TIMEOUT_SECONDS};

const KEYS: [&str; 6] = ["kind", "command", "args", "env", "secrets", "start_timeout_seconds"];

/// Reads what answers an agent's turns.
pub(super) fn read(node: &Node, path: Path<'_>, faults: &mut Faults) -> Runtime {
    let section = Section::open(node, &path, &KEYS, faults);
    let kind = section.optional("kind", faults, |node, path, faults| {
        let kind = fields::text(node, path, faults)?;
        if !matches!(kind, "native" | "acp") {
            faults.add(node.line, path, format!("{} is not a runtime; write native or acp", shown(kind)));
            return None;
        }
        Some(kind)
    });
    if section.get("kind").is_none() {
        faults.add(section.line(), path, "a runtime has its kind; write kind: native or kind: acp");
    }
    let any = |node: &Node, path: Path<'_>, faults: &mut Faults| fields::text(node, path, faults).map(str::to_owned);
    // Program and arguments in one list, or apart, as for MCP servers.
    let command = section.optional("command", faults, |node, path, faults| match &node.content {
        Content::List(_) => texts(node, path, faults, any),
        _ => any(node, path, faults).map(|program| vec![program]),
    });
    let arguments = section.optional("args", faults, |node, path, faults| texts(node, path, faults, any));
    let env = section.optional("env", faults, |node, path, faults| {
        let read = entries(node, path, faults).into_iter().filter_map(|entry| {
            if matches!(entry.value.content, Content::Map(_)) {
                let message = "write a plain value here; references to secrets stand under secrets";
                faults.add(entry.line, path.key(entry.key), message);
                return None;
            }
            Some((entry.key.to_owned(), fields::text(entry.value, path.key(entry.key), faults)?.to_owned()))
        });
        Some(read.collect())
    });
    let secrets = section.optional("secrets", faults, |node, path, faults| Some(secrets(node, path, faults)));
    let timeout = section.optional("start_timeout_seconds", faults, |node, path, faults| {
        integer(node, START_TIMEOUT_SECONDS, path, faults)
    });
    if kind != Some("acp") {
        for key in KEYS.iter().filter(|key| **key != "kind" && kind.is_some() && section.get(key).is_some()) {
            faults.add(section.line(), path.key(key), "only a runtime of kind acp has this; remove the key");
        }
        return Runtime::Native;
    }
    let acp = Acp {
        command: command.into_iter().chain(arguments).flatten().collect(),
        env: env.unwrap_or_default(),
        secrets: secrets.unwrap_or_default(),
        start_timeout_seconds: timeout.unwrap_or(Acp::USUAL_START_TIMEOUT_SECONDS),
    };
    for (key, message) in acp.faults() {
        faults.push(Fault { line: section.line(), path: format!("{path}.{key}"), message });
    }
    Runtime::Acp(acp)
}

/// `NAME: {env: VARIABLE}` and `NAME: {file: PATH}`. What stands in the wrong place may be the secret itself and is never quoted.
fn secrets(node: &Node, path: Path<'_>, faults: &mut Faults) -> BTreeMap<String, SecretRef> {
    let mut secrets = BTreeMap::new();
    for entry in entries(node, path, faults) {
        let path = path.key(entry.key);
        if !matches!(entry.value.content, Content::Map(_)) {
            let message = "a secret never stands in the document; write {env: VARIABLE} or {file: /absolute/path}";
            faults.add(entry.line, path, message);
            continue;
        }
        let section = Section::open(entry.value, &path, &["env", "file"], faults);
        let mut read = |key, judge: fn(&str) -> Result<(), String>| {
            section.optional(key, faults, |node, path, faults| judged(node, path, faults, judge))
        };
        let reference = match (read("env", values::env_name), read("file", values::secret_file)) {
            (Some(_), Some(_)) => Err("env and file exclude each other; keep one"),
            (Some(name), None) => Ok(SecretRef::Env(name)),
            (None, Some(file)) => Ok(SecretRef::File(file)),
            (None, None) if section.get("env").or(section.get("file")).is_some() => continue,
            (None, None) => Err("say where it is found: {env: VARIABLE} or {file: /absolute/path}"),
        };
        match reference {
            Ok(reference) => drop(secrets.insert(entry.key.to_owned(), reference)),
            Err(message) => faults.add(entry.line, path, message),
        }
    }
    secrets
}

/// What is wrong with the references of one that did not come as text.
pub(super) fn reference_faults(acp: &Acp) -> impl Iterator<Item = (String, String)> {
    acp.secrets.iter().filter_map(|(name, reference)| {
        let (key, fault) = match reference {
            SecretRef::Env(name) => ("env", values::env_name(name)),
            SecretRef::File(path) => ("file", values::secret_file(path)),
        };
        fault.err().map(|fault| (format!("secrets.{name}.{key}"), fault))
    })
}

/// As exports show it.
pub(super) fn shape(runtime: &Runtime) -> Shape {
    let entries = Entries::default().put("kind", text(runtime.kind()));
    let Runtime::Acp(acp) = runtime else { return entries.map() };
    let reference = |reference: &SecretRef| match reference {
        SecretRef::Env(name) => Entries::default().put("env", text(name)).map(),
        SecretRef::File(path) => Entries::default().put("file", text(path)).map(),
    };
    entries
        .put("command", list_of(&acp.command))
        .put("env", named(&acp.env, |value| text(value)))
        .put("secrets", named(&acp.secrets, reference))
        .put("start_timeout_seconds", literal(acp.start_timeout_seconds))
        .map()
}
