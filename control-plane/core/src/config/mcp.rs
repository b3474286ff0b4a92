//! `mcp_servers` in a text, and in exports.
//!
//! Called by [`super::read`] and [`super::to_yaml`]. What it means is [`crate::mcp`]'s.

use std::ops::RangeInclusive;

use super::export::{Entries, Shape, literal, named, text, texts as list_of};
use super::fields::{self, Faults, Path, Section, boolean, entries, integer, texts};
use super::tree::{Content, Node};
use super::{Fault, SecretRef};
use crate::mcp::{CONNECT_TIMEOUT_SECONDS, Header, McpServer, McpServers, TIMEOUT_SECONDS, fault_of_all, name_fault};

const KEYS: [&str; 9] =
    ["command", "args", "url", "headers", "env", "tools", "timeout_seconds", "connect_timeout_seconds", "enabled"];

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
    let section = Section::open(node, &path, &KEYS, faults);
    let any = |node: &Node, path: Path<'_>, faults: &mut Faults| fields::text(node, path, faults).map(str::to_owned);
    // Program and arguments in one list, or apart, as other clients of the protocol write them.
    let command = section.optional("command", faults, |node, path, faults| match &node.content {
        Content::List(_) => texts(node, path, faults, any),
        _ => any(node, path, faults).map(|program| vec![program]),
    });
    let arguments = section.optional("args", faults, |node, path, faults| texts(node, path, faults, any));
    let url = section.optional("url", faults, any);
    let headers = section.optional("headers", faults, |node, path, faults| {
        let read = entries(node, path, faults).into_iter();
        let read =
            read.filter_map(|entry| Some((entry.key.to_owned(), header(entry.value, path.key(entry.key), faults)?)));
        Some(read.collect())
    });
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
        url,
        headers: headers.unwrap_or_default(),
        env: env.unwrap_or_default(),
        include,
        exclude,
        timeout_seconds: timeout.unwrap_or(McpServer::USUAL_TIMEOUT_SECONDS),
        connect_timeout_seconds: connect_timeout.unwrap_or(McpServer::USUAL_CONNECT_TIMEOUT_SECONDS),
        enabled: enabled.unwrap_or(true),
    };
    for (key, message) in server.faults() {
        // Of headers, the line of the header itself; that its text is wrong was said already.
        let line = key.strip_prefix("headers.").and_then(|name| line_of(section.get("headers")?, name));
        faults.push(Fault { line: line.unwrap_or(section.line()), path: format!("{path}.{key}"), message });
    }
    server
}

fn line_of(node: &Node, key: &str) -> Option<u32> {
    let Content::Map(all) = &node.content else { return None };
    all.iter().find(|(name, _)| matches!(&name.content, Content::Text(text) if text == key)).map(|(name, _)| name.line)
}

/// A text, or where a secret is found.
fn header(node: &Node, path: Path<'_>, faults: &mut Faults) -> Option<Header> {
    if !matches!(node.content, Content::Map(_)) {
        return fields::text(node, path, faults).map(|text| Header::Plain(text.to_owned()));
    }
    let section = Section::open(node, &path, &["env", "file", "prefix"], faults);
    let mut read =
        |key| section.optional(key, faults, |node, path, faults| fields::text(node, path, faults).map(str::to_owned));
    let reference = match (read("env"), read("file")) {
        (Some(name), None) => SecretRef::Env(name),
        (None, Some(place)) => SecretRef::File(place),
        (Some(_), Some(_)) => {
            faults.add(node.line, path, "env and file exclude each other; keep one");
            return None;
        }
        (None, None) => {
            faults.add(node.line, path, "write env, the name of a variable, or file, an absolute path");
            return None;
        }
    };
    Some(Header::Secret { prefix: read("prefix").unwrap_or_default(), reference })
}

fn header_shape(header: &Header) -> Shape {
    match header {
        Header::Plain(plain) => text(plain),
        Header::Secret { prefix, reference } => {
            let entries = match reference {
                SecretRef::Env(name) => Entries::default().put("env", text(name)),
                SecretRef::File(place) => Entries::default().put("file", text(place)),
            };
            if prefix.is_empty() { entries.map() } else { entries.put("prefix", text(prefix)).map() }
        }
    }
}

/// As exports show them.
pub(super) fn shape(servers: &McpServers) -> Shape {
    named(servers, |server| {
        let mut tools = Entries::default();
        if let Some(include) = &server.include {
            tools = tools.put("include", list_of(include));
        }
        let tools = tools.put("exclude", list_of(&server.exclude));
        let entries = match &server.url {
            None => Entries::default().put("command", list_of(&server.command)),
            Some(url) => Entries::default().put("url", text(url)).put("headers", named(&server.headers, header_shape)),
        };
        let entries = match &server.url {
            None => entries.put("env", named(&server.env, |value| text(value))),
            Some(_) => entries,
        };
        entries
            .put("tools", tools.map())
            .put("timeout_seconds", literal(server.timeout_seconds))
            .put("connect_timeout_seconds", literal(server.connect_timeout_seconds))
            .put("enabled", literal(server.enabled))
            .map()
    })
}
