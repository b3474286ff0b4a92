//! `reset_policy.jsonl`: when a session expires.

use std::collections::BTreeMap;

use hermes_core::Source;
use hermes_core::reset::{ResetMode, ResetPolicy, ResetReason, ResetRules, expired};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::{each_row, field, same};

/// A policy of a row. A document of ours refuses an unknown mode; the reference treats it as never.
fn policy(row: &Value) -> Result<ResetPolicy, String> {
    let default = ResetPolicy::default();
    let mode = field(row, "mode").map(|mode| ResetMode::parse(&mode).unwrap_or(ResetMode::None));
    let number = |name: &str, default: u64| row.get(name).and_then(Value::as_u64).unwrap_or(default);
    Ok(ResetPolicy {
        mode: mode.unwrap_or(default.mode),
        at_hour: number("at_hour", default.at_hour.into()).try_into().map_err(|_| "at_hour is out of range")?,
        idle_minutes: number("idle_minutes", default.idle_minutes.into()).try_into().map_err(|_| "idle_minutes")?,
    })
}

fn policies(row: Option<&Value>) -> Result<BTreeMap<String, ResetPolicy>, String> {
    let all = row.and_then(Value::as_object).into_iter().flatten();
    all.map(|(name, row)| Ok((name.clone(), policy(row)?))).collect()
}

#[test]
fn sessions_expire_when_the_rows_say() {
    each_row("reset_policy.jsonl", |row| {
        let (input, config) = (&row["in"], &row["in"]["config"]);
        let default = config.get("default_reset_policy").map(policy).transpose()?.unwrap_or_default();
        let by_type = policies(config.get("reset_by_type"))?;
        let by_platform = policies(config.get("reset_by_platform"))?;
        let rules = ResetRules { default: &default, by_type: &by_type, by_platform: &by_platform };
        let source = Source {
            platform: field(input, "platform").unwrap_or_default(),
            chat_type: field(input, "chat_type").unwrap_or_default(),
            ..Source::default()
        };
        // Naive local times: a zone without clock changes has the same arithmetic.
        let at = |name: &str| -> Result<_, String> {
            let text = field(input, name).ok_or("a time is missing")?;
            let naive: DateTime = text.parse().map_err(|error| format!("{text}: {error}"))?;
            naive.to_zoned(TimeZone::UTC).map_err(|error| error.to_string())
        };
        let reason = expired(rules.select(&source), at("updated_at")?.timestamp(), &at("now")?);
        same("expired", &Some(reason.is_some()), &row["out"]["expired"].as_bool())?;
        same("reason", &reason.map(ResetReason::as_str), &row["out"]["reason"].as_str())
    });
}
