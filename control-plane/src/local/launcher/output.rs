//! A worker's stdout and stderr, line by line into our log.
//!
//! Always true: a line of any length and any bytes costs bounded memory, and a worker never waits for a reader that is
//! gone. It ends with the last process that holds the pipe.

use hermes_core::id::AgentId;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// Longer lines are cut into pieces of this size.
const LINE_BYTES_MAX: usize = 16 * 1024;

pub(super) async fn copy(agent: AgentId, pipe: pipe::Receiver) {
    each_line(pipe, |line| tracing::info!(target: "worker", %agent, "{line}")).await;
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
