//! `cron_schedule.jsonl`: what is a schedule, and when it runs.

use hermes_core::cron::{Kind, Schedule};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::{each_row, field, same};

#[test]
fn schedules_are_read_and_run_as_the_rows_say() {
    each_row("cron_schedule.jsonl", |row| {
        let input = &row["in"];
        let zone = TimeZone::get(&field(input, "tz").unwrap_or_default()).map_err(|error| error.to_string())?;
        let now: Timestamp =
            field(input, "now").unwrap_or_default().parse().map_err(|error| format!("now: {error}"))?;
        let read = Schedule::parse(&field(input, "schedule").unwrap_or_default(), now, &zone);
        // The quirks are those of the reference.
        match (row["quirk"].as_str(), row["error"] == true) {
            (Some("grammar"), _) => {
                return read.and_then(|schedule| schedule.admit(now)).map(drop).map_err(|error| error.to_string());
            }
            (Some("refused"), _) => {
                return same("refused", &read.and_then(|schedule| schedule.admit(now)).is_err(), &true);
            }
            (_, true) => return same("refused", &read.is_err(), &true),
            _ => {}
        }
        let (schedule, out) = (read.map_err(|error| error.to_string())?, &row["out"]);
        let mut parsed = json!({"display": schedule.to_string()});
        match schedule.kind() {
            Kind::Once(at) => {
                let written: Timestamp =
                    field(&out["parsed"], "run_at").unwrap_or_default().parse().map_err(|error| format!("{error}"))?;
                same("run_at", at, &written)?;
                parsed["kind"] = "once".into();
                parsed["run_at"] = out["parsed"]["run_at"].clone();
            }
            Kind::Every(minutes) => {
                parsed["kind"] = "interval".into();
                parsed["minutes"] = (*minutes).into();
            }
            Kind::Cron(_) => {
                parsed["kind"] = "cron".into();
                parsed["expr"] = schedule.to_string().into();
            }
        }
        same("parsed", &parsed, &out["parsed"])?;
        if row["quirk"] == "dst" {
            return Ok(());
        }
        let expected: Vec<Timestamp> = out["next"].as_array().into_iter().flatten().map(instant).collect();
        let next: Vec<Timestamp> = schedule.upcoming(now).take(3).map(|slot| slot.at).collect();
        same("next", &next, &expected)?;
        same("grace_seconds", &json!(schedule.grace_seconds(now)), &out["grace_seconds"])
    });
}

fn instant(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).expect("a time")
}
