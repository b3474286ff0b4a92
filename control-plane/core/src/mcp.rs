//! Which MCP servers an agent has: programs that bring it tools, started by its worker behind the agent's boundary, and places
//! behind a URL, which the control plane asks for it.
//!
//! A part of an agent's profile: read by [`crate::config`], stored with the revision, told to its workers, but for where a place is and
//! what is sent along. Always true of one without [`McpServer::faults`]: it has a program or a URL, and holds no secret: a program gets
//! none, because secrets never go to workers, and a header refers to where its secret is found. It starts nothing and does not know
//! which tools a server has.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::config::{SecretRef, fault_of_reference, fault_of_url};

/// What [`McpServer::timeout_seconds`] may be.
pub const TIMEOUT_SECONDS: RangeInclusive<u64> = 1..=600;
/// What [`McpServer::connect_timeout_seconds`] may be.
pub const CONNECT_TIMEOUT_SECONDS: RangeInclusive<u64> = 1..=300;
/// Most servers of one agent.
const MAX_SERVERS: usize = 32;
/// What all servers of one agent may take, bytes: they go to its worker with each turn.
const MAX_BYTES: usize = 64 << 10;
/// Longest name of a server: it is a part of each of its tools' names.
const MAX_NAME: usize = 32;
/// Longest argument, value or tool name, bytes.
const MAX_TEXT: usize = 4096;
/// Most arguments, variables, or names of tools.
const MAX_ITEMS: usize = 128;
/// Most headers of one server.
const MAX_HEADERS: usize = 16;
/// Headers that the protocol, or HTTP, sets by itself; and those that say who asks for another one.
const RESERVED: [&str; 20] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "last-event-id",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
];

/// The servers of one agent by name.
pub type McpServers = BTreeMap<String, McpServer>;

/// What is sent along with each request to a server behind a URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Header {
    /// This text, which is no secret.
    Plain(String),
    /// A secret of the control plane.
    Secret {
        /// What stands before it, for example `Bearer ` with its blank. Default: nothing.
        #[serde(default)]
        prefix: String,
        /// Where it is found.
        reference: SecretRef,
    },
}

/// One server: a program, spoken to over its stdin and stdout, or a place, spoken to over streamable HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpServer {
    /// Program and arguments; empty for a place.
    pub command: Vec<String>,
    /// Where a place is: http or https. The control plane alone knows it, and reaches it wherever it is: an operator wrote it down.
    #[serde(default)]
    pub url: Option<String>,
    /// What is sent to a place beside the protocol's own headers, by name.
    #[serde(default)]
    pub headers: BTreeMap<String, Header>,
    /// Variables beside the usual ones; no secrets.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The only tools it gives, by its own names for them. Default: all.
    #[serde(default)]
    pub include: Option<Vec<String>>,
    /// Tools that it does not give.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// How long a call may take, seconds. Default: [`McpServer::USUAL_TIMEOUT_SECONDS`].
    pub timeout_seconds: u64,
    /// How long it may take to start and to say which tools it has, seconds. Default:
    /// [`McpServer::USUAL_CONNECT_TIMEOUT_SECONDS`].
    pub connect_timeout_seconds: u64,
    /// Whether it is there at all. Default: true.
    pub enabled: bool,
}

impl McpServer {
    /// How long a call may take when nobody says otherwise, seconds.
    pub const USUAL_TIMEOUT_SECONDS: u64 = 120;
    /// How long a start may take when nobody says otherwise, seconds.
    pub const USUAL_CONNECT_TIMEOUT_SECONDS: u64 = 30;

    /// What is wrong with it: the key below the server's, and what to write instead.
    pub fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        match &self.url {
            Some(url) => {
                faults.extend(fault_of_url(url).map(|fault| ("url".to_owned(), fault)));
                for (key, given) in [("command", !self.command.is_empty()), ("env", !self.env.is_empty())] {
                    if given {
                        faults.push((
                            key.to_owned(),
                            "a server behind a url has no program; keep one of both".to_owned(),
                        ));
                    }
                }
            }
            None if self.command.first().is_none_or(String::is_empty) => {
                let message = "write the program and its arguments as a list, or where the server is with url";
                faults.push(("command".to_owned(), message.to_owned()));
            }
            None => {}
        }
        if self.url.is_none() && !self.headers.is_empty() {
            faults.push(("headers".to_owned(), "only a server behind a url has headers".to_owned()));
        }
        if self.headers.len() > MAX_HEADERS {
            faults.push(("headers".to_owned(), format!("at most {MAX_HEADERS} headers are allowed here")));
        }
        for (name, header) in &self.headers {
            faults.extend(header_fault(name, header).map(|fault| (format!("headers.{name}"), fault)));
        }
        let lists = [
            ("command", self.command.as_slice()),
            ("tools.include", self.include.as_deref().unwrap_or_default()),
            ("tools.exclude", self.exclude.as_slice()),
        ];
        for (key, items) in lists {
            if items.len() > MAX_ITEMS {
                faults.push((key.to_owned(), format!("at most {MAX_ITEMS} items are allowed here")));
            }
            for (index, item) in items.iter().enumerate() {
                faults.extend(text_fault(item).map(|fault| (format!("{key}[{index}]"), fault)));
            }
        }
        if self.env.len() > MAX_ITEMS {
            faults.push(("env".to_owned(), format!("at most {MAX_ITEMS} variables are allowed here")));
        }
        for (name, value) in &self.env {
            let fault = variable_fault(name).or_else(|| text_fault(value));
            faults.extend(fault.map(|fault| (format!("env.{name}"), fault)));
        }
        let times = [
            ("timeout_seconds", self.timeout_seconds, TIMEOUT_SECONDS),
            ("connect_timeout_seconds", self.connect_timeout_seconds, CONNECT_TIMEOUT_SECONDS),
        ];
        for (key, seconds, allowed) in times {
            if !allowed.contains(&seconds) {
                let (least, most) = (allowed.start(), allowed.end());
                faults.push((key.to_owned(), format!("write a whole number from {least} to {most}")));
            }
        }
        faults
    }
}

/// What is wrong with all servers of an agent together.
pub fn fault_of_all(servers: &McpServers) -> Option<String> {
    if servers.len() > MAX_SERVERS {
        return Some(format!("these are {} servers; at most {MAX_SERVERS} are allowed", servers.len()));
    }
    let of = |(name, server): (&String, &McpServer)| {
        let lists = [&server.command, server.include.as_ref().unwrap_or(&server.exclude), &server.exclude];
        let texts = lists.into_iter().flatten().chain(server.env.iter().flat_map(|(name, value)| [name, value]));
        let texts = texts.chain(&server.url).chain(server.headers.iter().flat_map(|(name, header)| match header {
            Header::Plain(text) => [name, text, name],
            Header::Secret { prefix, reference: SecretRef::Env(place) | SecretRef::File(place) } => {
                [name, prefix, place]
            }
        }));
        name.len() + texts.map(|text| text.len() + 4).sum::<usize>()
    };
    let bytes: usize = servers.iter().map(of).sum();
    (bytes > MAX_BYTES).then(|| format!("these servers take {bytes} bytes; at most {MAX_BYTES} are allowed"))
}

/// What is wrong with a server's name.
pub fn name_fault(name: &str) -> Option<String> {
    let end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let plain = name.chars().all(|c| end(c) || matches!(c, '-' | '_'));
    let fits = (1..=MAX_NAME).contains(&name.len()) && name.starts_with(end) && name.ends_with(end);
    let message = "a server's name is 1 to 32 of a-z, 0-9, _ and -, first and last a letter or digit";
    (!plain || !fits).then(|| message.to_owned())
}

/// What is wrong with an argument, or the value of a variable.
pub(crate) fn text_fault(text: &str) -> Option<String> {
    if text.len() > MAX_TEXT {
        return Some(format!("it has {} bytes; at most {MAX_TEXT} are allowed", text.len()));
    }
    text.contains('\0').then(|| "it contains a NUL character; remove it".to_owned())
}

/// Whether a name says that a secret is behind it, its words apart from each other.
fn names_secret(name: &str) -> bool {
    let words = ["KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS"];
    name.to_ascii_uppercase().split(['_', '-']).any(|word| words.contains(&word))
}

/// A header that cannot be one, is not the operator's to set, or holds a secret. Its text is never quoted: it may be one.
fn header_fault(name: &str, header: &Header) -> Option<String> {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.is_empty() || name.len() > 100 || !name.chars().all(token) {
        return Some("a header's name is letters, digits and -".to_owned());
    }
    let lower = name.to_ascii_lowercase();
    if RESERVED.contains(&lower.as_str()) || lower.starts_with("mcp-") {
        return Some("this header is set by the protocol itself; remove it".to_owned());
    }
    let sendable = |text: &str| text.chars().all(|c| matches!(c, ' '..='~'));
    match header {
        Header::Plain(_) if matches!(lower.as_str(), "authorization" | "cookie") || names_secret(name) => Some(
            "a secret never stands in the document; write {env: NAME} or {file: PATH}, where it is found".to_owned(),
        ),
        Header::Plain(text) if text.is_empty() || text.trim() != text => {
            Some("a header's text is not empty and has no blanks at its ends".to_owned())
        }
        Header::Plain(text) if !sendable(text) || text.len() > MAX_TEXT => {
            Some(format!("a header's text is at most {MAX_TEXT} printable ASCII characters"))
        }
        Header::Secret { prefix, .. } if !sendable(prefix) || prefix.len() > 100 || prefix.starts_with(' ') => {
            Some("prefix is at most 100 printable ASCII characters, for example \"Bearer \"".to_owned())
        }
        Header::Secret { reference, .. } => fault_of_reference(reference),
        Header::Plain(_) => None,
    }
}

/// A variable that cannot be one, or is named as secrets are.
fn variable_fault(name: &str) -> Option<String> {
    let secret =
        || "this names a secret, and secrets never go to workers; a server here has to do without it".to_owned();
    is_variable(name).err().or_else(|| is_secret(name).then(secret))
}

/// Whether a variable may be called so.
///
/// # Errors
/// What it may be called.
pub(crate) fn is_variable(name: &str) -> Result<(), String> {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !first || name.len() > 200 || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err("a variable's name is letters, digits and _, not beginning with a digit".to_owned());
    }
    Ok(())
}

/// Whether a variable is named as secrets are.
pub(crate) fn is_secret(name: &str) -> bool {
    names_secret(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(command: &[&str], env: &[(&str, &str)]) -> McpServer {
        McpServer {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            url: None,
            headers: BTreeMap::new(),
            env: env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
            include: None,
            exclude: Vec::new(),
            timeout_seconds: McpServer::USUAL_TIMEOUT_SECONDS,
            connect_timeout_seconds: McpServer::USUAL_CONNECT_TIMEOUT_SECONDS,
            enabled: true,
        }
    }

    #[test]
    fn a_server_has_a_program_and_no_secrets() {
        assert_eq!(server(&["node", "x.js"], &[("LOG_LEVEL", "info"), ("MONKEY", "1")]).faults(), []);
        let faulty: Vec<String> = [
            server(&[], &[]),
            server(&[""], &[]),
            server(&["a", "b\0"], &[]),
            server(&["a"], &[("GITHUB_TOKEN", "x")]),
            server(&["a"], &[("api_key", "x")]),
            server(&["a"], &[("1A", "x")]),
            McpServer { timeout_seconds: 0, ..server(&["a"], &[]) },
            McpServer { connect_timeout_seconds: 301, ..server(&["a"], &[]) },
            McpServer { exclude: vec!["x".repeat(MAX_TEXT + 1)], ..server(&["a"], &[]) },
        ]
        .iter()
        .flat_map(|server| server.faults().into_iter().map(|(key, _)| key))
        .collect();
        let keys = [
            "command",
            "command",
            "command[1]",
            "env.GITHUB_TOKEN",
            "env.api_key",
            "env.1A",
            "timeout_seconds",
            "connect_timeout_seconds",
            "tools.exclude[0]",
        ];
        assert_eq!(faulty, keys);
    }

    #[test]
    fn a_place_has_a_url_and_headers_that_hold_no_secret() {
        let place = |url: &str, name: &str, header: Header| McpServer {
            url: Some(url.to_owned()),
            headers: [(name.to_owned(), header)].into(),
            ..server(&[], &[])
        };
        let at = |name: &str, header: Header| place("https://mcp.example.org/mcp?tenant=1", name, header);
        let plain = |text: &str| Header::Plain(text.to_owned());
        let env = |prefix: &str, name: &str| Header::Secret {
            prefix: prefix.to_owned(),
            reference: SecretRef::Env(name.to_owned()),
        };
        let file = |path: &str| Header::Secret { prefix: String::new(), reference: SecretRef::File(path.to_owned()) };
        for good in [
            at("Authorization", env("Bearer ", "NOTES_TOKEN")),
            at("X-Api-Key", file("/run/secrets/notes")),
            at("X-Team", plain("platform one")),
            place("http://127.0.0.1:3000/", "X-Monkey", plain("1")),
        ] {
            assert_eq!(good.faults(), [], "{good:?}");
        }
        for (key, faulty) in [
            ("url", place("ftp://example.org/", "X-Team", plain("a"))),
            ("url", place("https://me:pass@example.org/", "X-Team", plain("a"))),
            ("headers.Authorization", at("Authorization", plain("Bearer abc"))),
            ("headers.cookie", at("cookie", plain("a=b"))),
            ("headers.X-Api-Key", at("X-Api-Key", plain("abc"))),
            ("headers.Authorization", at("Authorization", env("", "not a name"))),
            ("headers.Authorization", at("Authorization", file("relative"))),
            ("headers.Authorization", at("Authorization", env("Bearer\n", "A"))),
            ("headers.X-Team", at("X-Team", plain("a\r\nHost: b"))),
            ("headers.X-Team", at("X-Team", plain(""))),
            ("headers.Host", at("Host", plain("a"))),
            ("headers.Mcp-Session-Id", at("Mcp-Session-Id", plain("a"))),
            ("headers.a b", at("a b", plain("a"))),
            ("command", McpServer { command: vec!["x".to_owned()], ..at("X-Team", plain("a")) }),
            ("env", McpServer { env: [("A".to_owned(), "b".to_owned())].into(), ..at("X-Team", plain("a")) }),
            ("headers", McpServer { url: None, command: vec!["x".to_owned()], ..at("X-Team", plain("a")) }),
        ] {
            let faults = faulty.faults();
            assert!(faults.len() == 1 && faults[0].0 == key, "{key}: {faults:?}");
            assert!(!faults[0].1.contains("abc"), "{faults:?}");
        }
    }

    #[test]
    fn servers_of_one_agent_fit_into_what_its_worker_is_told_with_each_turn() {
        let named =
            |count: usize, server: &McpServer| (0..count).map(|at| (format!("s{at}"), server.clone())).collect();
        assert_eq!(fault_of_all(&named(MAX_SERVERS, &server(&["a"], &[]))), None);
        assert!(fault_of_all(&named(MAX_SERVERS + 1, &server(&["a"], &[]))).is_some());
        let long = "x".repeat(MAX_TEXT);
        for large in [
            server(&[long.as_str(); 8], &[]),
            server(&["a"], &[("A", &long), ("B", &long), ("C", &long), ("D", &long)]),
            McpServer { include: Some(vec![long.clone(); 8]), ..server(&["a"], &[]) },
            McpServer { exclude: vec![long.clone(); 8], ..server(&["a"], &[]) },
            McpServer {
                url: Some("https://example.org/".to_owned()),
                headers: (0..8).map(|at| (format!("X-{at}"), Header::Plain(long.clone()))).collect(),
                ..server(&[], &[])
            },
        ] {
            assert!(large.faults().is_empty() && fault_of_all(&named(8, &large)).is_some());
        }
    }

    #[test]
    fn names_of_servers_fit_into_names_of_tools() {
        for name in ["a", "everything", "git-hub_2"] {
            assert_eq!(name_fault(name), None, "{name}");
        }
        for name in ["", "A", "-a", "a_", "a.b", &"a".repeat(33)] {
            assert!(name_fault(name).is_some(), "{name}");
        }
    }
}
