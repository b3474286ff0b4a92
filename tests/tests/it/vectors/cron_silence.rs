//! `cron_silence.jsonl`: which answers of jobs say that there is nothing to say.

use hermes_core::cron::is_silent;

use super::{each_row, field, same};

#[test]
fn answers_are_silent_as_the_rows_say() {
    each_row("cron_silence.jsonl", |row| {
        let text = field(&row["in"], "text").ok_or("no text")?;
        same("silent", &Some(is_silent(&text)), &row["out"]["silent"].as_bool())
    });
}
