//! `slash_access.jsonl`: who may give which command where.

use hermes_core::command::{Access, AccessLists, listed};
use serde_json::Value;

use super::{each_row, field, same};

/// A list as the reference takes it: a list, one text with commas, or one value.
fn list(row: &Value, name: &str) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match row.get(name) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items.iter().map(text).collect(),
        Some(scalar) => listed(&text(scalar)).map(str::to_owned).collect(),
    }
}

#[test]
fn commands_are_for_whom_the_rows_say() {
    each_row("slash_access.jsonl", |row| {
        let (input, out) = (&row["in"], &row["out"]);
        let lists = AccessLists {
            allow_admin_from: list(&input["extra"], "allow_admin_from"),
            user_allowed_commands: list(&input["extra"], "user_allowed_commands"),
            group_allow_admin_from: list(&input["extra"], "group_allow_admin_from"),
            group_user_allowed_commands: list(&input["extra"], "group_user_allowed_commands"),
        };
        let (chat, user) = (field(input, "chat_type").unwrap_or_default(), field(input, "user_id"));
        let command = field(input, "command").unwrap_or_default();
        let access = Access::decide(&chat, user.as_deref(), &command, &lists);
        same("scope", &Some(access.scope.as_str()), &out["scope"].as_str())?;
        same("enabled", &Some(access.gated), &out["enabled"].as_bool())?;
        same("is_admin", &Some(access.admin), &out["is_admin"].as_bool())?;
        same("can_run", &Some(access.allowed), &out["can_run"].as_bool())
    });
}
