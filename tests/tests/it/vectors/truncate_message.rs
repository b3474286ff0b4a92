//! Splitting a reply for a platform's limit, row by row.

use hermes_platforms::split::{Unit, fit, split};

use super::rows;

struct Row {
    content: String,
    limit: usize,
    unit: Unit,
    chunks: Vec<String>,
}

fn all() -> Vec<Row> {
    let read = |row: serde_json::Value| Row {
        content: row["in"]["content"].as_str().expect("content").to_owned(),
        limit: row["in"]["max_length"].as_u64().and_then(|limit| limit.try_into().ok()).expect("max_length"),
        unit: if row["in"]["utf16"].as_bool().expect("utf16") { Unit::Utf16 } else { Unit::Char },
        chunks: serde_json::from_value(row["out"]["chunks"].clone()).expect("chunks"),
    };
    rows("truncate_message.jsonl").into_iter().map(read).collect()
}

#[test]
fn vectors_every_row_is_split_as_the_reference_does() {
    for (number, row) in all().into_iter().enumerate() {
        assert_eq!(split(&row.content, row.limit, row.unit), row.chunks, "row {}", number + 1);
    }
}

#[test]
fn vectors_the_bounded_split_differs_only_where_the_reference_exceeds_the_limit() {
    for (number, row) in all().into_iter().enumerate().filter(|(_, row)| row.limit >= 2) {
        let parts = fit(&row.content, row.limit, row.unit);
        if row.chunks.iter().all(|chunk| row.unit.fits(chunk, row.limit)) {
            assert_eq!(parts, row.chunks, "row {}", number + 1);
        } else {
            assert!(parts.iter().all(|part| row.unit.fits(part, row.limit)), "row {}", number + 1);
        }
    }
}
