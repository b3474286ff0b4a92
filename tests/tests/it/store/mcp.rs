//! Pins of MCP tools: the first list under a configuration, and what moves it.

use anyhow::{Result, ensure};
use hermes_control_plane::store::{Error, McpTool, McpTools};

use super::db::{Db, same};

fn tools(tools: &[(&str, &str)]) -> McpTools {
    let tool = |(name, hash): &(&str, &str)| {
        ((*name).to_owned(), McpTool { sha256: (*hash).to_owned(), description: format!("says {hash}") })
    };
    tools.iter().map(tool).collect()
}

fn seen(db: &Db, config: &[u8], listed: Option<&McpTools>, problem: &str) -> Result<McpTools> {
    Ok(db.wait(db.store.mcp_seen(1, "notes", config, listed, problem))?)
}

pub(super) fn what_a_server_is_first_seen_with_is_pinned_until_it_is_configured_anew(db: &mut Db) -> Result<()> {
    let (first, later) = (tools(&[("a", "1"), ("b", "1")]), tools(&[("a", "2"), ("c", "1")]));
    // One that could not be started pins nothing.
    same!(seen(db, b"x", None, "it ended")?, tools(&[]));
    same!(seen(db, b"x", Some(&first), "")?, first);
    same!(seen(db, b"x", Some(&later), "")?, first);
    same!(seen(db, b"x", None, "it ended again")?, first);
    let row = db.wait(db.store.mcp_servers(1))?.remove(0);
    same!(
        (row.server.as_str(), row.pinned, row.seen, row.problem.as_str()),
        ("notes", first, later.clone(), "it ended again")
    );
    same!(seen(db, b"y", Some(&later), "")?, later);
    same!(db.wait(db.store.mcp_servers(2))?.len(), 0);
    Ok(())
}

pub(super) fn an_operator_pins_what_was_looked_at_and_nothing_else(db: &mut Db) -> Result<()> {
    let (first, looked_at, moved) = (tools(&[("a", "1")]), tools(&[("a", "2")]), tools(&[("a", "3")]));
    for listed in [&first, &looked_at] {
        seen(db, b"x", Some(listed), "")?;
    }
    let before = db.wait(db.store.mcp_servers(1))?.remove(0).seen;
    same!(before, looked_at);
    let moving = "UPDATE mcp_pins SET seen = '{\"a\": {\"sha256\": \"3\", \"description\": \"says 3\"}}'";
    let (answer, waited) = db.race(moving, |db| Ok(db.wait(db.store.mcp_accept(1, "notes", &looked_at))))?;
    ensure!(waited && matches!(answer, Err(Error::Conflict(_))), "{answer:?}");
    same!(seen(db, b"x", Some(&moved), "")?, first);
    db.wait(db.store.mcp_accept(1, "notes", &moved))?;
    same!(seen(db, b"x", Some(&looked_at), "")?, moved);
    ensure!(matches!(db.wait(db.store.mcp_accept(1, "other", &moved)), Err(Error::Conflict(_))));
    Ok(())
}
