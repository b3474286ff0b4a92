//! Conformance vectors: rows of behaviour that ours must show, read from `HERMES_VECTORS_DIR` or the project's copy.
//!
//! Each test runs every row of its file and reports all rows that differ, so that one run shows the whole distance.

mod agent_ids;
mod attach_agent;
mod cron_delivery_targets;
mod cron_schedule;
mod cron_silence;
mod delivery_targets;
mod memory_ops;
mod reset_policy;
mod routing;
mod session_keys;
mod slash_access;
mod table;
mod truncate_message;

use std::path::PathBuf;

use serde_json::Value;

/// The folder with the vectors.
fn folder() -> PathBuf {
    match std::env::var_os("HERMES_VECTORS_DIR") {
        Some(folder) if !folder.is_empty() => folder.into(),
        _ => [env!("CARGO_MANIFEST_DIR"), "vectors"].iter().collect(),
    }
}

/// The text of one file of the folder.
fn text(name: &str) -> String {
    let path = folder().join(name);
    std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display())).expect("read vectors")
}

/// The rows of one file.
fn rows(name: &str) -> Vec<Value> {
    let text = text(name);
    let rows: Vec<Value> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .enumerate()
        .map(|(number, row)| serde_json::from_str(row).unwrap_or_else(|error| panic!("{name}:{}: {error}", number + 1)))
        .collect();
    assert!(!rows.is_empty(), "{name} has no rows");
    rows
}

/// Judges every row of a file; the judge answers what differs.
fn each_row(name: &str, judge: impl Fn(&Value) -> Result<(), String>) {
    let rows = rows(name);
    let mut wrong = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        if let Err(difference) = judge(row) {
            wrong.push(format!("{name}:{}: {difference}\n  {row}", number + 1));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows differ:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// Fails with both values when they differ.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, ours: &T, expected: &T) -> Result<(), String> {
    if ours == expected { Ok(()) } else { Err(format!("{what} is {ours:?}, expected {expected:?}")) }
}

/// A field that is text; `None` when null or absent.
fn field(row: &Value, name: &str) -> Option<String> {
    match row.get(name) {
        Some(Value::String(text)) => Some(text.clone()),
        // The reference turns numbers into text where it builds a source.
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    }
}

/// The source of a row. The reference's `scope_id` is our guild id and wins over `guild_id`.
fn source(row: &Value) -> hermes_core::Source {
    let row = &row["source"];
    hermes_core::Source {
        platform: field(row, "platform").unwrap_or_default(),
        account: field(row, "account"),
        chat_id: field(row, "chat_id").unwrap_or_default(),
        chat_type: field(row, "chat_type").unwrap_or_else(|| "dm".to_owned()),
        thread_id: field(row, "thread_id"),
        parent_chat_id: field(row, "parent_chat_id"),
        user_id: field(row, "user_id"),
        user_id_alt: field(row, "user_id_alt"),
        guild_id: field(row, "scope_id").or_else(|| field(row, "guild_id")),
        user_name: field(row, "user_name"),
        chat_name: field(row, "chat_name"),
        message_id: field(row, "message_id"),
    }
}
