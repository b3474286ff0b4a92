//! Server-sent events: the data of each, however its lines end and its bytes are cut into chunks.
//!
//! Called by the wires that are read here. Always true: data is handed out in place, in order, and once; what a body ends
//! with counts as an event too. It keeps what has not been asked for yet, and its caller watches that this stays small.

/// Longest frame.
const FRAME_BYTES: usize = 4 << 20;

/// See the module.
#[derive(Default)]
pub(super) struct Events {
    buffer: Vec<u8>,
    /// Read up to here.
    at: usize,
    /// No end of a line is before this.
    searched: usize,
    /// The last line ended with CR: an LF right behind it belongs to it.
    after_cr: bool,
    /// Nothing more comes: what is left is the last line.
    closed: bool,
    data: Vec<u8>,
    /// `data` was handed out.
    handed_out: bool,
}

impl Events {
    /// More of the body.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.searched -= self.at;
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The body has ended.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// More than any frame of a sane server waits for its end.
    pub(super) fn is_too_long(&self) -> bool {
        self.buffer.len() + self.data.len() > FRAME_BYTES
    }

    /// The data of the next whole event.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        if std::mem::take(&mut self.handed_out) {
            self.data.clear();
        }
        loop {
            let Some(line) = self.line() else {
                self.handed_out = self.closed && !self.data.is_empty();
                return self.handed_out.then_some(self.data.as_slice());
            };
            let line = self.buffer.get(line).unwrap_or_default();
            if line.is_empty() && !self.data.is_empty() {
                self.handed_out = true;
                return Some(&self.data);
            }
            if let Some(data) = line.strip_prefix(b"data:") {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(data.trim_ascii());
            }
        }
    }

    /// Where the next whole line is, without its end.
    fn line(&mut self) -> Option<std::ops::Range<usize>> {
        if self.after_cr && self.at < self.buffer.len() {
            self.after_cr = false;
            if self.buffer.get(self.at) == Some(&b'\n') {
                self.at += 1;
                self.searched = self.searched.max(self.at);
            }
        }
        let begin = self.at;
        let rest = self.buffer.get(self.searched..).unwrap_or_default();
        if let Some(length) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let end = self.searched + length;
            self.after_cr = rest.get(length) == Some(&b'\r');
            self.at = end + 1;
            self.searched = self.at;
            return Some(begin..end);
        }
        self.searched = self.buffer.len();
        if self.closed && begin < self.buffer.len() {
            self.at = self.buffer.len();
            return Some(begin..self.at);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(chunks: &[&[u8]]) -> Vec<String> {
        let mut events = Events::default();
        let mut seen = Vec::new();
        for chunk in chunks {
            events.feed(chunk);
            while let Some(data) = events.next() {
                seen.push(String::from_utf8(data.to_vec()).unwrap());
            }
        }
        events.close();
        while let Some(data) = events.next() {
            seen.push(String::from_utf8(data.to_vec()).unwrap());
        }
        seen
    }

    #[test]
    fn events_are_the_same_however_their_lines_end_and_their_bytes_are_cut() {
        let text = ": hello\n\ndata: one\n\nevent: x\nid: 7\ndata:two\ndata: lines\n\n\n\ndata: é漢\n\ndata: last";
        for ending in ["\n", "\r\n", "\r"] {
            let bytes = text.replace('\n', ending).into_bytes();
            for size in 1..bytes.len() {
                let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
                assert_eq!(events(&chunks), ["one", "two\nlines", "é漢", "last"], "{ending:?} {size}");
            }
        }
    }
}
