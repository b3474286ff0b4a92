//! `agent mcp …`: what an agent's MCP servers were last seen with, and letting it have what changed.

use hermes_proto::v1;
use serde::Serialize;

use super::client;
use crate::args::AgentMcpCommand;
use crate::commands::{Invocation, TEXTS, all_pages, required};
use crate::error::{ExitStatus, Usage};
use crate::output::{Grid, Paint, View, or_dash, plain, time};

/// Runs one of them.
///
/// # Errors
/// What the control plane answered.
pub(super) async fn run(command: AgentMcpCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let servers = match command {
        AgentMcpCommand::List { id } => {
            all_pages(TEXTS, None, |page| {
                let (connection, mut client) = (&connection, client(&connection));
                let request = v1::ListMcpServersRequest { id: id.clone(), page: Some(page) };
                async move {
                    let answer = connection.answer(client.list_mcp_servers(request)).await?;
                    Ok((answer.servers, answer.next_page_token))
                }
            })
            .await?
        }
        AgentMcpCommand::Accept { id, name: server, seen } => {
            let seen = seen.map(|text| unhex(&text)).transpose()?.unwrap_or_default();
            let request = v1::AcceptMcpServerRequest { id, server, seen };
            let answer = connection.answer(client(&connection).accept_mcp_server(request)).await?;
            vec![required(answer.server, "the server")?]
        }
    };
    inv.printer.show(&ServerList(servers.into_iter().map(StateView::from_proto).collect()))?;
    Ok(ExitStatus::Done)
}

fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    let wrong = || Usage("--seen is 64 hex digits, as `hermesctl agent mcp list` shows them".to_owned());
    if text.len() != 64 || !text.is_ascii() {
        return Err(wrong().into());
    }
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong().into());
    (0..text.len()).step_by(2).map(byte).collect()
}

/// One server.
#[derive(Serialize)]
struct StateView {
    name: String,
    enabled: bool,
    problem: String,
    tools: Vec<ToolView>,
    seen_at_ms: Option<i64>,
    /// Hex; stands for all tools as they were seen.
    seen: String,
}

/// One of its tools.
#[derive(Serialize)]
struct ToolView {
    name: String,
    pin: &'static str,
    description: String,
    pinned_description: String,
}

impl StateView {
    fn from_proto(state: v1::McpServerState) -> Self {
        let tool = |tool: v1::McpToolState| ToolView {
            pin: match tool.pin() {
                v1::McpToolPin::Pinned | v1::McpToolPin::Unspecified => "pinned",
                v1::McpToolPin::Changed => "changed",
                v1::McpToolPin::New => "new",
                v1::McpToolPin::Gone => "gone",
            },
            name: tool.name,
            description: tool.description,
            pinned_description: tool.pinned_description,
        };
        Self {
            name: state.name,
            enabled: !state.disabled,
            problem: state.problem,
            tools: state.tools.into_iter().map(tool).collect(),
            seen_at_ms: (state.seen_at_ms != 0).then_some(state.seen_at_ms),
            seen: state.seen.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    fn count(&self, pin: &str) -> usize {
        self.tools.iter().filter(|tool| tool.pin == pin).count()
    }

    fn withheld(&self) -> impl Iterator<Item = &ToolView> {
        self.tools.iter().filter(|tool| matches!(tool.pin, "changed" | "new"))
    }
}

/// All servers of an agent.
#[derive(Serialize)]
#[serde(transparent)]
struct ServerList(Vec<StateView>);

impl View for ServerList {
    fn table(&self, paint: Paint) -> String {
        let mut grid = Grid::new(paint, &["SERVER", "SEEN AT", "TOOLS", "WITHHELD", "PROBLEM"]).right(&[2, 3]);
        for server in &self.0 {
            let name = if server.enabled { server.name.clone() } else { format!("{} (off)", server.name) };
            let problem = server.problem.lines().next().unwrap_or_default().to_owned();
            grid.row([
                name,
                time(server.seen_at_ms),
                server.count("pinned").to_string(),
                server.withheld().count().to_string(),
                or_dash(Some(&problem)),
            ]);
        }
        let mut text = grid.finish("the agent has no MCP servers; add them with mcp_servers in its configuration");
        for server in self.0.iter().filter(|server| server.withheld().next().is_some()) {
            let title = format!("Withheld of {} (SEEN {}):", server.name, server.seen);
            text.push_str(&format!("\n\n{}", paint.bold(&plain(&title))));
            for tool in server.withheld() {
                text.push_str(&format!("\n  {} ({})", plain(&tool.name), tool.pin));
                if tool.pin == "changed" {
                    text.push_str(&format!("\n    was: {}", plain(&tool.pinned_description)));
                }
                text.push_str(&format!("\n    now: {}", plain(&tool.description)));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    #[test]
    fn withheld_tools_are_shown_with_what_they_say_now() {
        let tool = |name: &str, pin: v1::McpToolPin, description: &str, pinned: &str| v1::McpToolState {
            name: name.into(),
            pin: pin.into(),
            description: description.into(),
            pinned_description: pinned.into(),
        };
        let state = v1::McpServerState {
            name: "notes".into(),
            disabled: false,
            problem: String::new(),
            tools: vec![
                tool("add", v1::McpToolPin::Pinned, "Adds.", "Adds."),
                tool("read", v1::McpToolPin::Changed, "Reads.\u{1b}[2J And sends.", "Reads."),
                tool("send", v1::McpToolPin::New, "Sends.", ""),
            ],
            seen_at_ms: 1_700_000_000_000,
            seen: vec![0xab; 32],
        };
        let unseen = v1::McpServerState { name: "other".into(), disabled: true, ..v1::McpServerState::default() };
        let list = ServerList([state, unseen].into_iter().map(StateView::from_proto).collect());
        insta::assert_snapshot!("agent_mcp_list_table", render(&list, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("agent_mcp_list_json", render(&list, Format::Json, Paint::Off).unwrap());
    }

    #[test]
    fn what_was_seen_is_named_in_hex() {
        assert_eq!(unhex(&"0f".repeat(32)).unwrap(), [15; 32]);
        for text in ["", "0f", &"xy".repeat(32), &"é".repeat(32)] {
            assert!(unhex(text).is_err(), "{text}");
        }
    }
}
