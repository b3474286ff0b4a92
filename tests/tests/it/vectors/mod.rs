//! Conformance rows: made by running the reference, one JSON object a line.
//!
//! Read from the folder in `HERMES_VECTORS_DIR` when it is set, else from the project's copy.

mod truncate_message;

use std::path::PathBuf;

use serde_json::Value;

/// The rows of `file`; panics when there are none, so that no test passes on nothing.
fn rows(file: &str) -> Vec<Value> {
    #[expect(clippy::disallowed_methods, reason = "the one knob of the conformance tests")]
    let folder = std::env::var("HERMES_VECTORS_DIR")
        .map_or_else(|_| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors"), PathBuf::from);
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    let rows: Vec<Value> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{file}: {error} in {line}")))
        .collect();
    assert!(!rows.is_empty(), "{file} has no rows");
    rows
}
