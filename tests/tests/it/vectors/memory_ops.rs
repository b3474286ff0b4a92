//! `memory_ops.jsonl`: edits of both lists, one after the other in one turn.

use std::collections::BTreeMap;

use hermes_home::memory::{Edit, Notes, Refused, Target, block, open};
use serde_json::Value;

use super::{each_row, same};

/// What a row says of an error is its beginning.
const HEAD_CHARS: usize = 60;

#[test]
fn memory_edits_do_what_they_did() {
    each_row("memory_ops.jsonl", |row| {
        let limit = usize::try_from(row["in"]["char_limit"].as_u64().unwrap()).unwrap();
        let mut files: BTreeMap<&str, String> = BTreeMap::new();
        let mut failures = 0;
        let steps = row["out"]["steps"].as_array().unwrap();
        for (number, (op, step)) in row["in"]["ops"].as_array().unwrap().iter().zip(steps).enumerate() {
            let target: Target = serde_json::from_value(op["target"].clone()).unwrap();
            let edit: Edit = serde_json::from_value(op.clone()).unwrap();
            let text = files.get(target.path()).cloned().unwrap_or_default();
            let edited = open(&text, limit).and_then(|notes| notes.edited(&[edit], limit));
            let (error, usage) = match edited {
                Ok(notes) => {
                    failures = 0;
                    files.insert(target.path(), notes.text());
                    (None, Some(notes.usage(limit).to_string()))
                }
                Err(refused) => {
                    failures += u32::from(refused.counts());
                    let usage = match &refused {
                        Refused::OverLimit { usage, .. } => Some(usage.short()),
                        _ => None,
                    };
                    (Some(refused.after(failures).to_string()), usage)
                }
            };
            let head = error.as_ref().map(|error| error.chars().take(HEAD_CHARS).collect::<String>());
            let expected = |name: &str| step[name].as_str().map(str::to_owned);
            same(&format!("the error of step {number}"), &head, &expected("error_head"))?;
            same(&format!("the usage of step {number}"), &usage, &expected("usage"))?;
            for target in [Target::Memory, Target::User] {
                let file = step["files"][target.path().trim_start_matches("memories/")].as_str().map(str::to_owned);
                same(&format!("{target:?} after step {number}"), &files.get(target.path()).cloned(), &file)?;
            }
        }
        let notes = Notes::parse(files.get(Target::Memory.path()).map_or("", String::as_str));
        let expected = &row["out"]["next_session_block_memory"];
        same("the block", &block(Target::Memory, &notes, limit).map_or(Value::Null, Value::from), expected)
    });
}
