//! What carries the protocol: a server's stdin and stdout, one JSON message in each line, and nothing that a server writes unbounded.
//!
//! Made by [`super::server`] for each start of a server, used by the protocol's client. Always true: a line, the values in it, and
//! all that comes without being asked for are bounded, and what is beyond ends the server; only answers are handed on, and
//! what a server asks for itself is refused here; a server that does not read holds up nobody but its own callers.
//! It starts and ends no process: it says that the server is broken, and its supervisor ends it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rmcp::RoleClient;
use rmcp::model::{ClientJsonRpcMessage, ErrorData, JsonRpcMessage, RequestId, ServerJsonRpcMessage};
use rmcp::transport::Transport;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Longest line, bytes.
const MAX_LINE: usize = 2 << 20;
/// Most values in a line: each takes a multiple of what it takes as text.
const MAX_VALUES: usize = 100_000;
/// Most that is written for one request, its answer included, bytes.
const MAX_FOR_ONE: usize = 8 << 20;
/// Messages that wait for a server to read them.
const QUEUE: usize = 16;

/// What is known of a pipe by those who do not hold it.
#[derive(Debug)]
pub(super) struct State {
    /// What may still be written before the next request.
    allowance: AtomicUsize,
    /// The server says that it has other tools.
    pub(super) changed: AtomicBool,
    /// Lines that were no messages.
    odd: AtomicUsize,
    /// Nothing comes any more.
    pub(super) closed: CancellationToken,
    reason: OnceLock<String>,
}

impl State {
    /// Why nothing comes any more, where that is not for the server's own end.
    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Lines that were no messages.
    pub(super) fn odd(&self) -> usize {
        self.odd.load(Ordering::Relaxed)
    }

    /// Ends it for that reason; the first one counts.
    pub(super) fn broken(&self, reason: String) {
        let _ = self.reason.set(reason);
        self.closed.cancel();
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = |left: usize| left.checked_sub(bytes);
        self.allowance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }
}

/// A server's stdout, and the way to its stdin.
pub(super) struct Pipe {
    output: BufReader<Receiver>,
    line: Vec<u8>,
    input: mpsc::Sender<Vec<u8>>,
    state: Arc<State>,
}

impl Pipe {
    /// Over the pipes of a running server; and what writes to it, to be run beside.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn new(output: OwnedFd, mut stdin: ChildStdin) -> io::Result<(Self, impl Future<Output = ()>)> {
        let output = BufReader::with_capacity(16 << 10, Receiver::from_file(File::from(output))?);
        let (input, mut lines) = mpsc::channel::<Vec<u8>>(QUEUE);
        let state = Arc::new(State {
            allowance: AtomicUsize::new(MAX_FOR_ONE),
            changed: AtomicBool::new(false),
            odd: AtomicUsize::new(0),
            closed: CancellationToken::new(),
            reason: OnceLock::new(),
        });
        let writing = async move {
            while let Some(line) = lines.recv().await {
                // It ends, or has closed its stdin; its end or a time limit tells the caller.
                if stdin.write_all(&line).await.is_err() {
                    break;
                }
            }
        };
        Ok((Self { output, line: Vec::new(), input, state }, writing))
    }

    /// What others may know of it.
    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// Reads a line to its end into `self.line`, where an earlier call was dropped within it the rest. False: there is none.
    async fn read_line(&mut self) -> Result<bool, String> {
        loop {
            let read = self.output.fill_buf().await.map_err(|error| format!("its output cannot be read: {error}"))?;
            if read.is_empty() {
                return Ok(false);
            }
            let end = read.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(read.len(), |end| end + 1);
            if self.line.len() + taken > MAX_LINE {
                return Err(format!("it wrote a line longer than {} MiB", MAX_LINE >> 20));
            }
            if !self.state.take(taken) {
                return Err(format!("it wrote more than {} MiB without being asked", MAX_FOR_ONE >> 20));
            }
            self.line.extend_from_slice(&read[..taken]);
            self.output.consume(taken);
            if end.is_some() {
                return Ok(true);
            }
        }
    }

    /// What to hand on of a line.
    fn judge(&self, line: &[u8]) -> Result<Option<ServerJsonRpcMessage>, String> {
        let too_many = || Err(format!("it wrote a message of more than {MAX_VALUES} values"));
        if values(line) > MAX_VALUES {
            return too_many();
        }
        let Ok(shape) = serde_json::from_slice::<Shape>(line) else {
            // Programs print what they should not; it is none of our business until it is too much.
            if !line.trim_ascii().is_empty() {
                self.state.odd.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(None);
        };
        match (shape.method.as_deref(), shape.id) {
            (Some(method), Some(id)) => {
                let answer = match method {
                    "ping" => json!({"jsonrpc": "2.0", "id": id, "result": {}}),
                    _ => {
                        let error = json!({"code": -32601, "message": "this client answers no requests"});
                        json!({"jsonrpc": "2.0", "id": id, "error": error})
                    }
                };
                let queued = self.input.try_send(format!("{answer}\n").into_bytes());
                queued.map_err(|_| "it asks without reading the answers".to_owned())?;
                Ok(None)
            }
            (Some(method), None) => {
                if method == "notifications/tools/list_changed" {
                    self.state.changed.store(true, Ordering::Relaxed);
                }
                Ok(None)
            }
            (None, Some(id)) if shape.result.is_some() || shape.error.is_some() => {
                let unreadable = |_| {
                    let error = ErrorData::internal_error("its answer is none of the protocol", None);
                    JsonRpcMessage::error(error, Some(id))
                };
                Ok(Some(serde_json::from_slice(line).unwrap_or_else(unreadable)))
            }
            (None, _) => {
                self.state.odd.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
        }
    }
}

/// As much of a message as says what it is.
#[derive(Deserialize)]
struct Shape {
    #[serde(default)]
    id: Option<RequestId>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    result: Option<IgnoredAny>,
    #[serde(default)]
    error: Option<IgnoredAny>,
}

/// How many values a text of JSON has at most.
fn values(line: &[u8]) -> usize {
    let (mut count, mut quoted, mut escaped) = (1, false, false);
    for byte in line {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' | b'[' | b'{' if !quoted => count += 1,
            _ => {}
        }
    }
    count
}

impl Transport<RoleClient> for Pipe {
    type Error = io::Error;

    fn send(&mut self, item: ClientJsonRpcMessage) -> impl Future<Output = Result<(), io::Error>> + Send + 'static {
        if matches!(item, JsonRpcMessage::Request(_)) {
            self.state.allowance.store(MAX_FOR_ONE, Ordering::Relaxed);
        }
        let (input, line) = (self.input.clone(), serde_json::to_vec(&item));
        async move {
            let mut line = line?;
            line.push(b'\n');
            input.send(line).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
        }
    }

    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        loop {
            let judged = match self.read_line().await {
                Ok(true) => self.judge(&self.line),
                Ok(false) => {
                    self.state.closed.cancel();
                    return None;
                }
                Err(reason) => Err(reason),
            };
            // Nothing of a long line stays behind.
            self.line = Vec::new();
            match judged {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(reason) => {
                    self.state.broken(reason);
                    return None;
                }
            }
        }
    }

    async fn close(&mut self) -> Result<(), io::Error> {
        self.state.closed.cancel();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Write as _};
    use std::process::Stdio;

    use tokio::task::JoinSet;

    use super::*;

    /// A pipe whose other ends are a writer here, and a program that does not read.
    fn pipe() -> (Pipe, PipeWriter, tokio::process::Child, JoinSet<()>) {
        let (reader, writer) = io::pipe().unwrap();
        let mut reads_nothing =
            tokio::process::Command::new("sleep").arg("60").stdin(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let (pipe, writing) = Pipe::new(reader.into(), reads_nothing.stdin.take().unwrap()).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(writing);
        (pipe, writer, reads_nothing, tasks)
    }

    async fn fed(bytes: Vec<u8>) -> (Option<ServerJsonRpcMessage>, Arc<State>) {
        let (mut pipe, mut writer, _program, _writing) = pipe();
        let state = pipe.state();
        // Until the other side is gone.
        let feeding = std::thread::spawn(move || drop(writer.write_all(&bytes)));
        let received = pipe.receive().await;
        drop(pipe);
        feeding.join().unwrap();
        (received, state)
    }

    #[tokio::test]
    async fn only_answers_are_handed_on() {
        let lines = [
            "hello, I print things",
            "",
            "[1]",
            r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"x"}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"roots/list"}"#,
            r#"{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"fine"}]}}"#,
        ];
        let (received, state) = fed(format!("{}\n", lines.join("\n")).into_bytes()).await;
        assert!(matches!(received, Some(JsonRpcMessage::Response(answer)) if answer.id == RequestId::Number(7)));
        assert!(state.changed.load(Ordering::Relaxed) && state.reason().is_none());
        assert_eq!(state.odd(), 2);
    }

    #[tokio::test]
    async fn what_is_too_much_ends_it() {
        for (bytes, reason) in [
            (vec![b'x'; 64 << 20], "it wrote a line longer than 2 MiB"),
            (b"chatter and chatter\n".repeat(4 << 20), "it wrote more than 8 MiB without being asked"),
            (
                format!("{{\"id\":1,\"result\":[{}0]}}\n", "0,".repeat(MAX_VALUES)).into_bytes(),
                "it wrote a message of more than 100000 values",
            ),
            (b"{\"id\":1,\"method\":\"roots/list\"}\n".repeat(100_000), "it asks without reading the answers"),
        ] {
            let (received, state) = fed(bytes).await;
            assert_eq!((received.is_none(), state.reason()), (true, Some(reason)));
        }
        let (received, state) = fed(b"{\"id\":1,\"res".to_vec()).await;
        assert_eq!((received.is_none(), state.reason()), (true, None));
        assert!(state.closed.is_cancelled());
    }

    #[tokio::test]
    async fn an_answer_of_a_wrong_shape_is_an_error_for_its_caller() {
        let (received, _) = fed(b"{\"jsonrpc\":\"1.0\",\"id\":3,\"result\":7}\n".to_vec()).await;
        assert!(matches!(received, Some(JsonRpcMessage::Error(error)) if error.id == Some(RequestId::Number(3))));
    }

    #[test]
    fn values_in_texts_do_not_count() {
        assert_eq!(values(br#"{"a":[1,2,{"b":"x,y,[{\",\\"}]}"#), 6);
    }
}
