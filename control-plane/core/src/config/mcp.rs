//! `mcp_servers` in a text, and in exports.
//!
//! Called by [`super::read`] and [`super::to_yaml`]. What it means is [`crate::mcp`]'s.

use std::ops::RangeInclusive;

use super::Fault;
use super::export::{Entries, Shape, literal, named, text, texts as list_of};
use super::fields::{self, Faults, Path, Section, boolean, entries, integer, texts};
use super::tree::{Content, Node};
use crate::mcp::{CONNECT_TIMEOUT_SECONDS, McpServer, McpServers, TIMEOUT_SECONDS, fault_of_all, name_fault};

const KEYS: [&str; 7] = ["command", "args", "env", "tools", "timeout_seconds", "connect_timeout_seconds", "enabled"];

/// Reads all servers of an agent, or of every agent that has none of its own.
pub(super) fn read(node: &Node, path: Path<'_>, faults: &mut Faults) -> McpServers {
    if matches!(node.content, Content::Null) {
        faults.add(node.line, path, "a mapping is expected here; write {} for none, or remove the key");
    }
    let mut servers = McpServers::new();
    for entry in entries(node, path, faults) {
        let path = path.key(entry.key);
        if let Some(message) = name_fault(entry.key) {
            faults.add(entry.line, path, message);
        }
        servers.insert(entry.key.to_owned(), server(entry.value, path, faults));
    }
    if let Some(message) = fault_of_all(&servers) {
        faults.add(node.line, path, message);
    }
    servers
}

fn server(node: &Node, path: Path<'_>, faults: &mut Faults) -> McpServer {
    if let Content::Map(all) = &node.content
        && let Some((key, _)) = all.iter().find(|(key, _)| matches!(&key.content, Content::Text(key) if key == "url"))
    {
        let message = "servers behind a URL cannot be had yet; name a program with command";
        faults.add(key.line, path.key("url"), message);
    }
    let mut known = KEYS.to_vec();
    // It was answered above.
    known.push("url");
    let section = Section::open(node, &path, &known, faults);
    let any = |node: &Node, path: Path<'_>, faults: &mut Faults| fields::text(node, path, faults).map(str::to_owned);
    // Program and arguments in one list, or apart, as other clients of the protocol write them.
    let command = section.optional("command", faults, |node, path, faults| match &node.content {
        Content::List(_) => texts(node, path, faults, any),
        _ => any(node, path, faults).map(|program| vec![program]),
    });
    let arguments = section.optional("args", faults, |node, path, faults| texts(node, path, faults, any));
    let env = section.optional("env", faults, |node, path, faults| {
        let read = entries(node, path, faults).into_iter().filter_map(|entry| {
            if matches!(entry.value.content, Content::Map(_)) || entry.key.ends_with("_env") {
                let message =
                    "a reference to a secret is not followed here: secrets never go to workers; write a plain value";
                faults.add(entry.line, path.key(entry.key), message);
                return None;
            }
            Some((entry.key.to_owned(), fields::text(entry.value, path.key(entry.key), faults)?.to_owned()))
        });
        Some(read.collect())
    });
    let filter = section.optional("tools", faults, |node, path, faults| {
        let section = Section::open(node, &path, &["include", "exclude"], faults);
        let mut list = |key| section.optional(key, faults, |node, path, faults| texts(node, path, faults, any));
        Some((list("include"), list("exclude").unwrap_or_default()))
    });
    let mut seconds = |key, allowed: RangeInclusive<u64>| {
        section.optional(key, faults, |node, path, faults| integer(node, allowed, path, faults))
    };
    let timeout = seconds("timeout_seconds", TIMEOUT_SECONDS);
    let connect_timeout = seconds("connect_timeout_seconds", CONNECT_TIMEOUT_SECONDS);
    let enabled = section.optional("enabled", faults, boolean);
    let (include, exclude) = filter.unwrap_or_default();
    let server = McpServer {
        command: command.into_iter().chain(arguments).flatten().collect(),
        env: env.unwrap_or_default(),
        include,
        exclude,
        timeout_seconds: timeout.unwrap_or(McpServer::USUAL_TIMEOUT_SECONDS),
        connect_timeout_seconds: connect_timeout.unwrap_or(McpServer::USUAL_CONNECT_TIMEOUT_SECONDS),
        enabled: enabled.unwrap_or(true),
    };
    // A URL instead of a program was answered above.
    if section.get("url").is_none() {
        for (key, message) in server.faults() {
            faults.push(Fault { line: section.line(), path: format!("{path}.{key}"), message });
        }
    }
    server
}

/// As exports show them.
pub(super) fn shape(servers: &McpServers) -> Shape {
    named(servers, |server| {
        let mut tools = Entries::default();
        if let Some(include) = &server.include {
            tools = tools.put("include", list_of(include));
        }
        let tools = tools.put("exclude", list_of(&server.exclude));
        Entries::default()
            .put("command", list_of(&server.command))
            .put("env", named(&server.env, |value| text(value)))
            .put("tools", tools.map())
            .put("timeout_seconds", literal(server.timeout_seconds))
            .put("connect_timeout_seconds", literal(server.connect_timeout_seconds))
            .put("enabled", literal(server.enabled))
            .map()
    })
}
