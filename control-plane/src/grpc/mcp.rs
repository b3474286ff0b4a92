//! MCP servers on the wire: what agents have, what their workers see of it, and what operators are told and accept.

use std::collections::BTreeMap;

use hermes_core::config::SecretRef;
use hermes_core::mcp::{Header, McpServer, McpServers};
use hermes_proto::v1;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::convert::store_status;
use super::status::{Reason, invalid, refuse};
use crate::store::{McpRow, McpTool, McpTools, Store};

/// Most tools of one server.
const MAX_TOOLS: usize = 128;
/// Longest name of a tool, bytes.
const MAX_NAME: usize = 128;
/// Longest description that is kept for people, characters.
const MAX_DESCRIPTION: usize = 500;
/// Longest problem, bytes.
const MAX_PROBLEM: usize = 4096;

pub(super) fn server_from(server: v1::McpServer) -> (String, McpServer) {
    let or = |seconds: u32, usual: u64| if seconds == 0 { usual } else { seconds.into() };
    let domain = McpServer {
        command: server.command,
        url: Some(server.url).filter(|url| !url.is_empty()),
        headers: server.headers.into_iter().map(header_from).collect(),
        env: server.env.into_iter().map(|variable| (variable.name, variable.value)).collect(),
        include: server.include.map(|list| list.values),
        exclude: server.exclude,
        timeout_seconds: or(server.timeout_seconds, McpServer::USUAL_TIMEOUT_SECONDS),
        connect_timeout_seconds: or(server.connect_timeout_seconds, McpServer::USUAL_CONNECT_TIMEOUT_SECONDS),
        enabled: !server.disabled,
    };
    (server.name, domain)
}

fn header_from(header: v1::mcp_server::Header) -> (String, Header) {
    let v1::mcp_server::Header { name, text, env, file } = header;
    let domain = match (env.is_empty(), file.is_empty()) {
        (true, true) => Header::Plain(text),
        (false, _) => Header::Secret { prefix: text, reference: SecretRef::Env(env) },
        (true, false) => Header::Secret { prefix: text, reference: SecretRef::File(file) },
    };
    (name, domain)
}

fn header_to((name, header): (&String, &Header)) -> v1::mcp_server::Header {
    let (text, env, file) = match header.clone() {
        Header::Plain(text) => (text, String::new(), String::new()),
        Header::Secret { prefix, reference: SecretRef::Env(env) } => (prefix, env, String::new()),
        Header::Secret { prefix, reference: SecretRef::File(file) } => (prefix, String::new(), file),
    };
    v1::mcp_server::Header { name: name.clone(), text, env, file }
}

/// What stands for where a server behind a URL is and what is sent there; none for a program.
pub(super) fn remote(server: &McpServer) -> Option<Vec<u8>> {
    let url = server.url.as_ref()?;
    let what = serde_json::json!([url, server.headers]);
    Some(Sha256::digest(what.to_string()).to_vec())
}

/// As workers are told: not where servers are, nor what is sent there.
pub(super) fn servers_for_worker(servers: &McpServers) -> Vec<v1::McpServer> {
    let mut told = servers_to(servers);
    for server in &mut told {
        server.remote = servers.get(&server.name).and_then(remote).unwrap_or_default();
        server.url.clear();
        server.headers.clear();
    }
    told
}

/// Variables of a program.
pub(super) fn variables_to(env: &BTreeMap<String, String>) -> Vec<v1::mcp_server::Variable> {
    let variable =
        |(name, value): (&String, &String)| v1::mcp_server::Variable { name: name.clone(), value: value.clone() };
    env.iter().map(variable).collect()
}

pub(super) fn servers_to(servers: &McpServers) -> Vec<v1::McpServer> {
    let server = |(name, server): (&String, &McpServer)| v1::McpServer {
        name: name.clone(),
        command: server.command.clone(),
        url: server.url.clone().unwrap_or_default(),
        headers: server.headers.iter().map(header_to).collect(),
        remote: Vec::new(),
        env: variables_to(&server.env),
        include: server.include.clone().map(|values| v1::StringList { values }),
        exclude: server.exclude.clone(),
        timeout_seconds: u32::try_from(server.timeout_seconds).unwrap_or(u32::MAX),
        connect_timeout_seconds: u32::try_from(server.connect_timeout_seconds).unwrap_or(u32::MAX),
        disabled: !server.enabled,
    };
    servers.iter().map(server).collect()
}

/// Notes what a worker saw of one of its agent's `servers`; answers what it may offer.
pub(super) async fn pin(
    store: &Store,
    agent_no: i32,
    servers: &McpServers,
    request: v1::PinMcpToolsRequest,
) -> Result<v1::PinMcpToolsResponse, Status> {
    if !servers.contains_key(&request.server) {
        return Err(invalid("server", "the agent has no server of that name any more"));
    }
    if request.config_sha256.len() != 32 {
        return Err(invalid("config_sha256", "it is not a SHA-256"));
    }
    if request.tools.len() > MAX_TOOLS {
        return Err(invalid("tools", format!("at most {MAX_TOOLS} are taken")));
    }
    if request.problem.len() > MAX_PROBLEM || request.problem.contains('\0') {
        return Err(invalid("problem", format!("at most {MAX_PROBLEM} bytes of text are taken")));
    }
    let mut tools = McpTools::new();
    for tool in request.tools {
        let fits = tool.name.len() <= MAX_NAME && tool.description.chars().count() <= MAX_DESCRIPTION;
        if !fits || tool.sha256.len() != 32 || [&tool.name, &tool.description].iter().any(|text| text.contains('\0')) {
            return Err(invalid("tools", "a name, hash or description does not fit"));
        }
        let known = McpTool { sha256: hex::encode(&tool.sha256), description: tool.description };
        if tools.insert(tool.name, known).is_some() {
            return Err(invalid("tools", "two have one name"));
        }
    }
    let tools = request.listed.then_some(&tools);
    let seen = store.mcp_seen(agent_no, &request.server, &request.config_sha256, tools, &request.problem).await;
    let pinned = seen.map_err(store_status)?.into_iter().map(|(name, tool)| v1::McpTool {
        name,
        sha256: hex::decode(&tool.sha256).unwrap_or_default(),
        description: String::new(),
    });
    Ok(v1::PinMcpToolsResponse { pinned: pinned.collect() })
}

/// The servers of an agent, with what is known of them.
pub(super) async fn states(
    store: &Store,
    agent_no: i32,
    servers: &McpServers,
) -> Result<Vec<v1::McpServerState>, Status> {
    let rows = store.mcp_servers(agent_no).await.map_err(store_status)?;
    let mut rows: BTreeMap<String, McpRow> = rows.into_iter().map(|row| (row.server.clone(), row)).collect();
    let state = |(name, server): (&String, &McpServer)| match rows.remove(name) {
        Some(row) => v1::McpServerState {
            name: name.clone(),
            disabled: !server.enabled,
            tools: tools(&row),
            seen_at_ms: row.seen_at.as_millisecond(),
            seen: digest(&row.seen),
            problem: row.problem,
        },
        None => v1::McpServerState { name: name.clone(), disabled: !server.enabled, ..v1::McpServerState::default() },
    };
    Ok(servers.iter().map(state).collect())
}

fn tools(row: &McpRow) -> Vec<v1::McpToolState> {
    let said = |tool: Option<&McpTool>| tool.map(|tool| tool.description.clone()).unwrap_or_default();
    let mut names: Vec<&String> = row.seen.keys().chain(row.pinned.keys()).collect();
    names.sort();
    names.dedup();
    let tool = |name: &String| {
        let (pinned, seen) = (row.pinned.get(name), row.seen.get(name));
        let pin = match (pinned, seen) {
            (Some(pinned), Some(seen)) if pinned.sha256 == seen.sha256 => v1::McpToolPin::Pinned,
            (Some(_), Some(_)) => v1::McpToolPin::Changed,
            (None, _) => v1::McpToolPin::New,
            (Some(_), None) => v1::McpToolPin::Gone,
        };
        v1::McpToolState {
            name: name.clone(),
            pin: pin.into(),
            description: said(seen),
            pinned_description: said(pinned),
        }
    };
    names.into_iter().map(tool).collect()
}

/// Pins what was last seen of a server; with `digest` only if that is what it stands for.
pub(super) async fn accept(store: &Store, agent_no: i32, server: &str, wanted: &[u8]) -> Result<(), Status> {
    let rows = store.mcp_servers(agent_no).await.map_err(store_status)?;
    let Some(row) = rows.into_iter().find(|row| row.server == server) else {
        let message =
            format!("no worker has started an MCP server {server:?} of this agent yet, so there is nothing to accept");
        return Err(refuse(Reason::NotFound, message));
    };
    if !wanted.is_empty() && digest(&row.seen) != wanted {
        let message = format!("the tools of {server} are others than those you looked at; look at them anew");
        return Err(refuse(Reason::Conflict, message));
    }
    store.mcp_accept(agent_no, server, &row.seen).await.map_err(store_status)
}

fn digest(tools: &McpTools) -> Vec<u8> {
    let mut hash = Sha256::new();
    for (name, tool) in tools {
        // A NUL is in no name.
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(tool.sha256.as_bytes());
    }
    hash.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_told_neither_where_a_server_is_nor_what_is_sent_there_and_an_operator_is() {
        let reference = SecretRef::File("/run/secrets/notes".to_owned());
        let server = McpServer {
            command: Vec::new(),
            url: Some("https://mcp.example.org/mcp".to_owned()),
            headers: [
                ("Authorization".to_owned(), Header::Secret { prefix: "Bearer ".to_owned(), reference }),
                ("X-Team".to_owned(), Header::Plain("platform".to_owned())),
            ]
            .into(),
            env: BTreeMap::new(),
            include: None,
            exclude: Vec::new(),
            timeout_seconds: 7,
            connect_timeout_seconds: 8,
            enabled: true,
        };
        let servers = McpServers::from([("notes".to_owned(), server.clone())]);
        let told = servers_for_worker(&servers).remove(0);
        assert!(told.url.is_empty() && told.headers.is_empty() && told.remote.len() == 32, "{told:?}");
        let shown = servers_to(&servers).remove(0);
        assert_eq!(server_from(shown), ("notes".to_owned(), server.clone()));
        // What stands for it moves with all that it stands for.
        let elsewhere = McpServer { url: Some("https://mcp.example.org/other".to_owned()), ..server.clone() };
        let bare = McpServer { headers: BTreeMap::new(), ..server };
        assert_ne!(remote(&elsewhere), Some(told.remote.clone()));
        assert_ne!(remote(&bare), Some(told.remote));
    }
}
