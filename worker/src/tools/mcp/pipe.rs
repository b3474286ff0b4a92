//! What carries the protocol: a server's stdin and stdout, one JSON message in each line, and nothing that a server writes unbounded.
//!
//! Made by [`super::server`] for each start of a server, used by the protocol's client. Always true: a line, the values in it, and
//! all that comes without being asked for are bounded (`tools::child`); only answers are handed on, and
//! what a server asks for itself is refused here.
//! It starts and ends no process: it says that the server is broken, and its supervisor ends it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rmcp::RoleClient;
use rmcp::model::{ClientJsonRpcMessage, JsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::sync::mpsc;

use super::super::child::{Lines, State};
use super::judge::{Judged, judge};

/// A server's stdout, and the way to its stdin.
pub(super) struct Pipe {
    lines: Lines,
    input: mpsc::Sender<Vec<u8>>,
    state: Arc<State>,
    /// The server says that it has other tools.
    changed: Arc<AtomicBool>,
}

impl Pipe {
    /// Over the pipes of a running server; `changed` is set when it says that it has other tools.
    pub(super) fn new(lines: Lines, input: mpsc::Sender<Vec<u8>>, state: Arc<State>, changed: Arc<AtomicBool>) -> Self {
        Self { lines, input, state, changed }
    }

    /// What to hand on of a line.
    fn judge(&self, line: &[u8]) -> Result<Option<ServerJsonRpcMessage>, String> {
        match judge(line, &self.state, &self.changed)? {
            Judged::Nothing => Ok(None),
            Judged::Answer(message) => Ok(Some(*message)),
            Judged::Reply(reply) => {
                let queued = self.input.try_send(format!("{reply}\n").into_bytes());
                queued.map_err(|_| "it asks without reading the answers".to_owned())?;
                Ok(None)
            }
        }
    }
}

impl Transport<RoleClient> for Pipe {
    type Error = io::Error;

    fn send(&mut self, item: ClientJsonRpcMessage) -> impl Future<Output = Result<(), io::Error>> + Send + 'static {
        if matches!(item, JsonRpcMessage::Request(_)) {
            self.state.allow();
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
            let judged = match self.lines.next().await {
                Ok(Some(line)) => self.judge(&line),
                Ok(None) => {
                    self.state.closed.cancel();
                    return None;
                }
                Err(reason) => Err(reason),
            };
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

    use std::sync::atomic::Ordering;

    use rmcp::model::RequestId;
    use tokio::task::JoinSet;

    use super::super::judge::LIMITS;
    use super::*;
    use crate::tools::child::pipes;

    /// A pipe whose other ends are a writer here, and a program that does not read.
    fn pipe() -> (Pipe, PipeWriter, tokio::process::Child, JoinSet<()>) {
        let (reader, writer) = io::pipe().unwrap();
        let mut reads_nothing =
            tokio::process::Command::new("sleep").arg("60").stdin(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let stdin = reads_nothing.stdin.take().unwrap();
        let (lines, input, state, writing) = pipes(reader.into(), stdin, LIMITS).unwrap();
        let pipe = Pipe::new(lines, input, state, Arc::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(writing);
        (pipe, writer, reads_nothing, tasks)
    }

    async fn fed(bytes: Vec<u8>) -> (Option<ServerJsonRpcMessage>, Arc<State>, bool) {
        let (mut pipe, mut writer, _program, _writing) = pipe();
        let (state, changed) = (Arc::clone(&pipe.state), Arc::clone(&pipe.changed));
        // Until the other side is gone.
        let feeding = std::thread::spawn(move || drop(writer.write_all(&bytes)));
        let received = pipe.receive().await;
        drop(pipe);
        feeding.join().unwrap();
        (received, state, changed.load(Ordering::Relaxed))
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
        let (received, state, changed) = fed(format!("{}\n", lines.join("\n")).into_bytes()).await;
        assert!(matches!(received, Some(JsonRpcMessage::Response(answer)) if answer.id == RequestId::Number(7)));
        assert!(changed && state.reason().is_none());
        assert_eq!(state.odd(), 2);
    }

    #[tokio::test]
    async fn what_is_too_much_ends_it() {
        for (bytes, reason) in [
            (vec![b'x'; 64 << 20], "it wrote a line longer than 2 MiB"),
            (b"chatter and chatter\n".repeat(4 << 20), "it wrote more than 8 MiB without being asked"),
            (
                format!("{{\"id\":1,\"result\":[{}0]}}\n", "0,".repeat(LIMITS.values)).into_bytes(),
                "it wrote a message of more than 100000 values",
            ),
            (b"{\"id\":1,\"method\":\"roots/list\"}\n".repeat(100_000), "it asks without reading the answers"),
        ] {
            let (received, state, _) = fed(bytes).await;
            assert_eq!((received.is_none(), state.reason()), (true, Some(reason)));
        }
        let (received, state, _) = fed(b"{\"id\":1,\"res".to_vec()).await;
        assert_eq!((received.is_none(), state.reason()), (true, None));
        assert!(state.closed.is_cancelled());
    }

    #[tokio::test]
    async fn an_answer_of_a_wrong_shape_is_an_error_for_its_caller() {
        let (received, ..) = fed(b"{\"jsonrpc\":\"1.0\",\"id\":3,\"result\":7}\n".to_vec()).await;
        assert!(matches!(received, Some(JsonRpcMessage::Error(error)) if error.id == Some(RequestId::Number(3))));
    }
}
