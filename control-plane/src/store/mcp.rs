//! Pins of MCP tools: what each server of an agent was first seen with, and last.
//!
//! Always true: under one configuration of a server the first list that is seen is pinned, and nothing but an operator changes that;
//! another configuration begins anew. What differs, and what that means, is for the callers.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Error, Result, Store};

/// A tool as a server told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpTool {
    /// Hash of all that a model is told of it, hex.
    pub sha256: String,
    /// For people; may be cut.
    pub description: String,
}

/// Tools by the server's names for them.
pub type McpTools = BTreeMap<String, McpTool>;

/// What is known of one server of an agent.
#[derive(Clone, Debug)]
pub struct McpRow {
    /// Its name.
    pub server: String,
    /// What may be offered.
    pub pinned: McpTools,
    /// What it was last seen with.
    pub seen: McpTools,
    /// Why it last gave no tools, or not all.
    pub problem: String,
    /// When a worker last said so.
    pub seen_at: Timestamp,
}

impl Store {
    /// Notes what a worker saw of a server (no tools: it gave no list), and answers what is pinned.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn mcp_seen(
        &self,
        agent_no: i32,
        server: &str,
        config: &[u8],
        tools: Option<&McpTools>,
        problem: &str,
    ) -> Result<McpTools> {
        let seen = tools.map(serde_json::to_value).transpose().map_err(|error| Error::Schema(error.to_string()))?;
        let sql = "INSERT INTO mcp_pins AS p (agent_no, server, config, pinned, seen, problem) VALUES ($1,$2,$3,$4,$4,$5) \
                   ON CONFLICT (agent_no, server) DO UPDATE SET \
                     pinned = CASE WHEN p.config = excluded.config THEN coalesce(p.pinned, excluded.pinned) ELSE excluded.pinned END, \
                     seen = CASE WHEN p.config = excluded.config THEN coalesce(excluded.seen, p.seen) ELSE excluded.seen END, \
                     config = excluded.config, problem = excluded.problem, seen_at = clock_timestamp() RETURNING pinned";
        let rows = self.query(sql, &[&agent_no, &server, &config, &seen, &problem]).await?;
        rows.first().map_or_else(|| Ok(McpTools::new()), |row| tools_of(row.get(0)))
    }

    /// All that is known of an agent's servers, by name.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn mcp_servers(&self, agent_no: i32) -> Result<Vec<McpRow>> {
        let sql = "SELECT server, pinned, seen, problem, seen_at FROM mcp_pins WHERE agent_no = $1 ORDER BY server";
        let rows = self.query(sql, &[&agent_no]).await?;
        let row = |row: &tokio_postgres::Row| {
            Ok(McpRow {
                server: row.get(0),
                pinned: tools_of(row.get(1))?,
                seen: tools_of(row.get(2))?,
                problem: row.get(3),
                seen_at: row.get(4),
            })
        };
        rows.iter().map(row).collect()
    }

    /// Pins what was last seen, if that is still `seen`.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is not; [`Error::Unavailable`].
    pub async fn mcp_accept(&self, agent_no: i32, server: &str, seen: &McpTools) -> Result<()> {
        let seen = serde_json::to_value(seen).map_err(|error| Error::Schema(error.to_string()))?;
        let sql = "UPDATE mcp_pins SET pinned = seen WHERE agent_no = $1 AND server = $2 AND seen = $3 RETURNING 1";
        let rows = self.query(sql, &[&agent_no, &server, &seen]).await?;
        match rows.is_empty() {
            false => Ok(()),
            true => {
                Err(Error::Conflict(format!("the tools of {server} have changed again meanwhile; look at them anew")))
            }
        }
    }
}

fn tools_of(value: Option<Value>) -> Result<McpTools> {
    let read = value.map(serde_json::from_value).transpose();
    read.map(Option::unwrap_or_default).map_err(|error| Error::Schema(format!("pins of MCP tools: {error}")))
}
