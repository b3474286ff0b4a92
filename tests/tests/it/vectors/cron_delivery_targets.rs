//! `cron_delivery_targets.jsonl`: the chats that a job's `deliver` comes to. Ours answers every row as the reference does.

use hermes_core::cron::{Deliver, Place};
use serde_json::{Value, json};

use super::{each_row, field, same};

/// The variables by which the rows name home chats; the variable of a home's thread is that with `_THREAD_ID`.
const HOME_VARIABLES: &[(&str, &str)] = &[
    ("TELEGRAM_HOME_CHANNEL", "telegram"),
    ("DISCORD_HOME_CHANNEL", "discord"),
    ("SLACK_HOME_CHANNEL", "slack"),
    ("MATRIX_HOME_ROOM", "matrix"),
    ("QQ_HOME_CHANNEL", "qqbot"),
];
/// Of Telegram's home the thread for jobs.
const TELEGRAM_JOBS: &str = "TELEGRAM_CRON_THREAD_ID";

#[test]
fn answers_go_where_the_rows_say() {
    each_row("cron_delivery_targets.jsonl", |row| {
        let input = &row["in"];
        let deliver: Deliver = serde_json::from_value(input["deliver"].clone()).map_err(|error| error.to_string())?;
        let homes = homes(&input["home_env"])?;
        let resolved = deliver.resolve(origin(&input["origin"]).as_ref(), &homes);
        let targets: Vec<Value> = resolved
            .targets
            .iter()
            .map(|place| json!({"platform": place.platform, "chat_id": place.chat_id, "thread_id": place.thread_id}))
            .collect();
        same("targets", &Value::Array(targets), &row["out"]["targets"])?;
        // The rows have no errors; the rule has (spec e.6): what comes to no chat is one, but for `local` and `origin` alone.
        let excused = deliver.is_local() || deliver.to_string() == "origin";
        if resolved.targets.is_empty() { same("an error", &resolved.error.is_some(), &!excused) } else { Ok(()) }
    });
}

/// The homes that the variables of a row name, and no variable left that says something else.
fn homes(variables: &Value) -> Result<Vec<Place>, String> {
    let variables = variables.as_object().ok_or("no variables")?;
    let text = |name: &str| variables.get(name).and_then(Value::as_str).map(str::to_owned);
    let thread = |name: &str| format!("{name}_THREAD_ID");
    for name in variables.keys() {
        let told = HOME_VARIABLES.iter().any(|(home, _)| name == home || *name == thread(home));
        if !told && name != TELEGRAM_JOBS {
            return Err(format!("the variable {name} has no translation"));
        }
    }
    let home = |(name, platform): &(&str, &str)| {
        let jobs = if *platform == "telegram" { text(TELEGRAM_JOBS) } else { None };
        let thread_id = jobs.or_else(|| text(&thread(name)));
        Some(Place { platform: (*platform).to_owned(), chat_id: text(name)?, thread_id })
    };
    Ok(HOME_VARIABLES.iter().filter_map(home).collect())
}

/// The origin of a row; what is no object is none.
fn origin(row: &Value) -> Option<Place> {
    Some(Place {
        platform: field(row, "platform")?,
        chat_id: field(row, "chat_id").unwrap_or_default(),
        thread_id: field(row, "thread_id"),
    })
}
