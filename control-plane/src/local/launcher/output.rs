//! A worker's stdout and stderr, line by line into our log.
//!
//! Always true: a line of any length and any bytes costs bounded memory, and a worker never waits for a reader that is
//! gone; a log line of the worker keeps its level and is told once, with one timestamp. It ends with the last process that
//! holds the pipe.

use std::fmt::Write as _;

use hermes_core::id::AgentId;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// Longer lines are cut into pieces of this size.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// A log line as workers write it with `--log-format json`; its time is that of our own line.
#[derive(Deserialize)]
struct LogLine {
    level: String,
    fields: Map<String, Value>,
}

pub(super) async fn copy(agent: AgentId, pipe: pipe::Receiver) {
    each_line(pipe, |line| tell_log(&agent, line)).await;
}

/// Tells a log line at its level; anything else, such as the last words of a panic, as it is.
fn tell_log(agent: &AgentId, line: &str) {
    let (level, text) = parse(line).unwrap_or_else(|| ("INFO".to_owned(), line.to_owned()));
    match level.as_str() {
        "ERROR" => tracing::error!(target: "worker", %agent, "{text}"),
        "WARN" => tracing::warn!(target: "worker", %agent, "{text}"),
        "DEBUG" => tracing::debug!(target: "worker", %agent, "{text}"),
        "TRACE" => tracing::trace!(target: "worker", %agent, "{text}"),
        _ => tracing::info!(target: "worker", %agent, "{text}"),
    }
}

/// Level, and message with its fields.
fn parse(line: &str) -> Option<(String, String)> {
    let LogLine { level, fields } = serde_json::from_str(line).ok()?;
    let mut text = match fields.get("message") {
        Some(Value::String(message)) => message.clone(),
        other => other.map(Value::to_string).unwrap_or_default(),
    };
    // Not taken out of the map: in a map that keeps its order that would move the last field to the front.
    for (name, value) in fields.iter().filter(|(name, _)| *name != "message") {
        let _ = write!(text, " {name}={value}");
    }
    Some((level, text))
}

async fn each_line(mut pipe: impl tokio::io::AsyncRead + Unpin, mut tell: impl FnMut(&str)) {
    let mut pending: Vec<u8> = Vec::new();
    let mut chunk = vec![0; 4096];
    loop {
        let read = pipe.read(&mut chunk).await.unwrap_or(0);
        for piece in chunk.get(..read).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
            pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || pending.len() >= LINE_BYTES_MAX {
                tell_line(&mut pending, &mut tell);
            }
        }
        if read == 0 {
            tell_line(&mut pending, &mut tell);
            return;
        }
    }
}

fn tell_line(pending: &mut Vec<u8>, tell: &mut impl FnMut(&str)) {
    let line = String::from_utf8_lossy(pending);
    let line = line.trim_end();
    if !line.is_empty() {
        tell(line);
    }
    pending.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_keeps_level_message_and_fields_and_anything_else_is_no_log_line() {
        let line = r#"{"timestamp":"2026-01-01T00:00:00Z","level":"WARN","fields":{"message":"not connected","reason":"a \"b\"","running":2},"target":"hermes_worker::link"}"#;
        let said = r#"not connected reason="a \"b\"" running=2"#;
        assert_eq!(parse(line), Some(("WARN".to_owned(), said.to_owned())));
        for other in ["thread 'main' panicked at src/x.rs:1:2:", "{", "1", r#"{"level":"INFO"}"#] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn lines_are_told_whole_long_ones_in_pieces_and_the_last_without_its_end() {
        let long = "x".repeat(LINE_BYTES_MAX + 5000);
        let text = format!("one\r\n\ntwo \u{fffd}\n{long}\nlast");
        let mut lines = Vec::new();
        each_line(text.as_bytes(), |line| lines.push(line.to_owned())).await;
        assert_eq!(lines.first().unwrap(), "one");
        assert_eq!(lines.get(1).unwrap(), "two \u{fffd}");
        assert_eq!(lines.last().unwrap(), "last");
        let pieces = &lines[2..lines.len() - 1];
        assert_eq!(pieces.concat(), long);
        assert!(pieces.iter().all(|piece| piece.len() < LINE_BYTES_MAX + 4096));
    }
}
