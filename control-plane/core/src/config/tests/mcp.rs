//! MCP servers in a document.

use super::*;
use crate::mcp::{Header, McpServer};

const SERVERS: &str = r#"
mcp_servers:
  notes: {command: [notes, --all]}
  other:
    command: node
    args: [x.js, "1"]
    env: {LOG_LEVEL: info, N: "1"}
    tools: {include: [a], exclude: [b, c]}
    timeout_seconds: 7
    connect_timeout_seconds: 8
    enabled: false
  far:
    url: "https://mcp.example.org/mcp"
    headers:
      Authorization: {env: NOTES_TOKEN, prefix: "Bearer "}
      X-Api-Key: {file: /run/secrets/notes}
      X-Team: platform
agents:
  own: {mcp_servers: {mine: {command: mine}}}
  none: {mcp_servers: {}}
  all: {}
"#;

#[test]
fn servers_are_read_exported_and_an_agents_own_replace_those_of_all() {
    let document = load(SERVERS);
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let other = McpServer {
        command: texts(&["node", "x.js", "1"]),
        url: None,
        headers: Default::default(),
        env: [("LOG_LEVEL", "info"), ("N", "1")].map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        include: Some(texts(&["a"])),
        exclude: texts(&["b", "c"]),
        timeout_seconds: 7,
        connect_timeout_seconds: 8,
        enabled: false,
    };
    assert_eq!(document.mcp_servers["other"], other);
    let far = &document.mcp_servers["far"];
    assert_eq!(far.url.as_deref(), Some("https://mcp.example.org/mcp"));
    let secret = |prefix: &str, reference| Header::Secret { prefix: prefix.to_owned(), reference };
    let headers = [
        ("Authorization", secret("Bearer ", SecretRef::Env("NOTES_TOKEN".to_owned()))),
        ("X-Api-Key", secret("", SecretRef::File("/run/secrets/notes".to_owned()))),
        ("X-Team", Header::Plain("platform".to_owned())),
    ];
    assert_eq!(far.headers, headers.map(|(name, header)| (name.to_owned(), header)).into());
    let notes = &document.mcp_servers["notes"];
    assert_eq!((notes.command.len(), notes.timeout_seconds, notes.connect_timeout_seconds), (2, 120, 30));
    assert!(notes.enabled && notes.include.is_none());
    let names = |agent: &str| {
        let servers = document.mcp_servers_of(&document.agents[agent]);
        servers.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(
        (names("own"), names("none"), names("all")),
        (texts(&["mine"]), texts(&[]), texts(&["far", "notes", "other"]))
    );
    assert_eq!(load(&to_yaml(&document)), document);
    let changed = load(&SERVERS.replace("timeout_seconds: 7", "timeout_seconds: 9"));
    assert_eq!(diff(&document, &changed)[0].path, "mcp_servers.other.timeout_seconds");
}

#[test]
fn what_a_server_cannot_be_is_refused_where_it_stands() {
    refused(
        r#"mcp_servers:
  Bad_: {command: x}
  far: {url: "example.org/mcp"}
  empty: {}
  secret:
    command: x
    env: {GITHUB_TOKEN: abc, DB_env: X}
  odd: {command: x, timeout_seconds: 0, tools: {only: [a]}, comand: y}
agents:
  a:
    mcp_servers:
      both: {url: "https://example.org/mcp", command: x}
      headers:
        url: https://example.org/mcp
        headers:
          Authorization: Bearer abc
          X-One: {env: A, file: /b}
          X-Two: {value: abc}
          X-Three: {env: "no name"}
"#,
        &[
            (2, "mcp_servers.Bad_", "a server's name is"),
            (3, "mcp_servers.far.url", "begins with http"),
            (4, "mcp_servers.empty.command", "write the program"),
            (6, "mcp_servers.secret.env.GITHUB_TOKEN", "secrets never go to workers"),
            (7, "mcp_servers.secret.env.DB_env", "is not followed here"),
            (8, "mcp_servers.odd.comand", "did you mean command?"),
            (8, "mcp_servers.odd.tools.only", "unknown key"),
            (8, "mcp_servers.odd.timeout_seconds", "1 to 600"),
            (12, "agents.a.mcp_servers.both.command", "keep one of both"),
            (16, "agents.a.mcp_servers.headers.headers.Authorization", "a secret never stands"),
            (17, "agents.a.mcp_servers.headers.headers.X-One", "exclude each other"),
            (18, "agents.a.mcp_servers.headers.headers.X-Two.value", "unknown key"),
            (18, "agents.a.mcp_servers.headers.headers.X-Two", "write env"),
            (19, "agents.a.mcp_servers.headers.headers.X-Three", "name of an environment variable"),
        ],
    );
}
