//! The other side of the wire: a plain HTTP/1 server that records what it gets and reacts as scripted.
//!
//! Written on a bare socket because half of what it must do is what no HTTP server does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What one request gets.
#[derive(Clone, Debug)]
pub(super) enum Reaction {
    Json {
        status: u16,
        body: String,
    },
    RetryAfter(u64),
    /// To a place that would accept everything.
    Redirect,
    /// The connection ends before the body is read.
    CloseUnread,
    /// The connection ends after the body was read.
    Close,
    /// Nothing of the body is read until [`Platform::resume`]; then what comes of it, and the connection ends.
    Stall,
}

impl Reaction {
    pub(super) fn json(status: u16, body: &str) -> Self {
        Self::Json { status, body: body.to_owned() }
    }

    fn head(&self) -> Option<(u16, String, &str)> {
        match self {
            Self::Json { status, body } => Some((*status, String::new(), body)),
            Self::RetryAfter(seconds) => Some((429, format!("retry-after: {seconds}\r\n"), "")),
            Self::Redirect => Some((302, "location: /elsewhere\r\n".to_owned(), "")),
            Self::CloseUnread | Self::Close | Self::Stall => None,
        }
    }
}

#[derive(Default)]
struct State {
    seen: Vec<(String, String)>,
    reactions: HashMap<String, Reaction>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    seen: Notify,
    resumed: Notify,
}

pub(super) struct Platform {
    pub(super) base: String,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Platform {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&shared)));
        let platform = Self { base, shared, tasks };
        platform.react("getMe", Reaction::json(200, r#"{"ok":true,"result":{"id":700}}"#));
        let update = r#"{"ok":true,"result":[{"update_id":10,"message":{"message_id":1,"text":"hello",
            "chat":{"id":5,"type":"private"},"from":{"id":1,"first_name":"U"}}}]}"#;
        platform.react("getUpdates", Reaction::json(200, update));
        platform
    }

    /// Requests whose path ends with `path` get `reaction` from now on.
    pub(super) fn react(&self, path: &str, reaction: Reaction) {
        self.shared.state.lock().unwrap().reactions.insert(path.to_owned(), reaction);
    }

    pub(super) fn requests(&self) -> usize {
        self.shared.state.lock().unwrap().seen.len()
    }

    pub(super) fn last(&self) -> (String, String) {
        self.shared.state.lock().unwrap().seen.last().cloned().unwrap()
    }

    pub(super) fn count(&self, path: &str) -> usize {
        self.bodies(path).len()
    }

    /// The body of the `number`-th request (from 1) to `path`, as soon as there is one.
    pub(super) async fn wait_for(&self, path: &str, number: usize) -> String {
        let wait = async {
            loop {
                let seen = self.shared.seen.notified();
                tokio::pin!(seen);
                seen.as_mut().enable();
                if let Some(body) = self.bodies(path).into_iter().nth(number - 1) {
                    return body;
                }
                seen.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap()
    }

    /// The body that stalls is read.
    pub(super) fn resume(&self) {
        self.shared.resumed.notify_one();
    }

    fn bodies(&self, path: &str) -> Vec<String> {
        let state = self.shared.state.lock().unwrap();
        let to = |head: &str| head.split(' ').nth(1).is_some_and(|target| target.ends_with(path));
        state.seen.iter().filter(|(head, _)| to(head)).map(|(_, body)| body.clone()).collect()
    }

    /// Closes the port.
    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(connection(stream, Arc::clone(&shared)));
    }
}

async fn connection(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut buffer = Vec::new();
    loop {
        let Some(end) = fill(&mut stream, &mut buffer, |seen| {
            seen.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
        })
        .await
        else {
            return;
        };
        let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
        let target = head.split(' ').nth(1).unwrap();
        let reaction = {
            let state = shared.state.lock().unwrap();
            state
                .reactions
                .iter()
                .find(|(path, _)| target.ends_with(path.as_str()))
                .map(|(_, reaction)| reaction.clone())
        };
        let reaction = reaction.unwrap_or_else(|| Reaction::json(200, "{}"));
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
        let whole = |seen: &[u8]| (seen.len() >= length).then_some(length);
        let body = match reaction {
            Reaction::CloseUnread => Vec::new(),
            Reaction::Stall => {
                shared.resumed.notified().await;
                let _ = fill(&mut stream, &mut buffer, whole).await;
                std::mem::take(&mut buffer)
            }
            _ => {
                fill(&mut stream, &mut buffer, whole).await.unwrap();
                buffer.drain(..length).collect()
            }
        };
        let body = String::from_utf8(body).unwrap();
        shared.state.lock().unwrap().seen.push((head, body));
        shared.seen.notify_waiters();
        let Some((status, more, body)) = reaction.head() else { return };
        let answer = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: {}\r\n{more}\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Reads until `enough` finds an end in the buffer; `None` when the client left.
async fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>, enough: impl Fn(&[u8]) -> Option<usize>) -> Option<usize> {
    loop {
        if let Some(end) = enough(buffer) {
            return Some(end);
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
