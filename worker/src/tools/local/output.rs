//! What a task writes, kept within bounds while it is written.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

use crate::sandbox::Running;

/// How long after a task's end its output may take to end: longer only when something else holds it open.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// The beginning and the end of an output; what is between them is counted.
#[derive(Debug)]
pub(in crate::tools) struct Captured {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    /// Bytes that `head` and `tail` hold at most.
    head_bytes: usize,
    tail_bytes: usize,
    total: u64,
}

impl Captured {
    /// Keeps at most `bytes`: two fifths of the beginning, the rest of the end, where results mostly stand.
    pub(in crate::tools) fn new(bytes: usize) -> Self {
        let head_bytes = bytes / 5 * 2;
        Self { head: Vec::new(), tail: VecDeque::new(), head_bytes, tail_bytes: bytes - head_bytes, total: 0 }
    }

    /// Takes more.
    pub(in crate::tools) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (first, rest) = bytes.split_at(bytes.len().min(self.head_bytes - self.head.len()));
        self.head.extend_from_slice(first);
        let rest = &rest[rest.len().saturating_sub(self.tail_bytes)..];
        let over = (self.tail.len() + rest.len()).saturating_sub(self.tail_bytes);
        self.tail.drain(..over);
        self.tail.extend(rest);
    }

    /// All that was written, in bytes.
    pub(in crate::tools) fn total(&self) -> u64 {
        self.total
    }

    /// The text, saying what is left out.
    pub(in crate::tools) fn text(&self) -> String {
        let kept = (self.head.len() + self.tail.len()) as u64;
        let (front, back) = self.tail.as_slices();
        let tail = [front, back].concat();
        if kept == self.total {
            return String::from_utf8_lossy(&[self.head.as_slice(), &tail].concat()).into_owned();
        }
        let (head, tail) = (String::from_utf8_lossy(&self.head), String::from_utf8_lossy(&tail));
        format!("{head}\n[… {} bytes left out …]\n{tail}", self.total - kept)
    }
}

/// Reads to the end and waits for it; the exit code.
pub(super) async fn read_all(running: &mut Running, captured: &mut Captured) -> io::Result<i32> {
    let mut pipe = receiver(running)?;
    let mut buffer = vec![0; 16 << 10];
    let code = loop {
        tokio::select! {
            read = pipe.read(&mut buffer) => match read? {
                0 => return running.wait().await,
                read => captured.push(&buffer[..read]),
            },
            code = running.wait() => break code?,
        }
    };
    let rest = async {
        loop {
            match pipe.read(&mut buffer).await {
                Ok(0) => break Ok(()),
                Ok(read) => captured.push(&buffer[..read]),
                Err(error) => break Err(error),
            }
        }
    };
    // Without an end somebody outside the boundary holds it; what came until now is the answer.
    tokio::time::timeout(AFTERWARDS, rest).await.unwrap_or(Ok(()))?;
    Ok(code)
}

/// As [`read_all`], with what it writes to stderr kept apart.
pub(super) async fn read_apart(
    running: &mut Running,
    captured: &mut Captured,
    errors: &mut Captured,
) -> io::Result<i32> {
    let pipe = running.errors.take().ok_or_else(|| io::Error::other("its stderr was taken"))?;
    let mut pipe = Receiver::from_file(File::from(pipe))?;
    let mut buffer = vec![0; 4 << 10];
    let beside = async {
        while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
            errors.push(&buffer[..read]);
        }
    };
    tokio::pin!(beside);
    let mut is_over = false;
    let code = {
        let reading = read_all(running, captured);
        tokio::pin!(reading);
        loop {
            tokio::select! {
                code = &mut reading => break code?,
                () = &mut beside, if !is_over => is_over = true,
            }
        }
    };
    if !is_over {
        // As there: what is held open elsewhere is not waited for.
        let _ = tokio::time::timeout(AFTERWARDS, beside).await;
    }
    Ok(code)
}

/// The task's output, to be read as it comes.
pub(super) fn receiver(running: &mut Running) -> io::Result<Receiver> {
    let output = running.output.take().ok_or_else(|| io::Error::other("the output was taken"))?;
    Receiver::from_file(File::from(output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_are_kept_and_the_middle_is_counted() {
        let mut captured = Captured::new(10);
        captured.push(b"abc");
        assert_eq!(captured.text(), "abc");
        captured.push(b"defghij");
        assert_eq!(captured.text(), "abcdefghij");
        captured.push(b"0123456789");
        assert_eq!(captured.text(), "abcd\n[… 10 bytes left out …]\n456789");
        assert_eq!(captured.total(), 20);
        for _ in 0..1000 {
            captured.push(&[b'x'; 4096]);
        }
        assert!(captured.head.len() + captured.tail.len() == 10 && captured.tail.capacity() < 64);
    }
}
