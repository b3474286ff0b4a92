//! What stands around the measured processes besides Telegram: a model server, and a collector that hangs.
//!
//! Started by `main`. Always true: the model server is a process of its own, so that its CPU is told apart, and it ends
//! when the other end of its standard input is gone, however that happened.

use std::process::Stdio;

use anyhow::Context as _;
use hermes_tests::mock_model::MockModel;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

/// The subcommand that serves it.
pub(crate) const MODEL_SERVER: &str = "model-server";

/// The model server's process. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct ModelServer {
    base_url: String,
    pid: i32,
    // Holds its standard input open.
    _child: Child,
}

impl ModelServer {
    /// Starts this program once more, as the model server.
    ///
    /// # Errors
    /// When it does not say where it listens.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.arg(MODEL_SERVER).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        // Not in the terminal's group: a Ctrl-C must not end it before the processes that use it.
        let mut child = command.process_group(0).spawn().context("start the model server")?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).context("the model server has ended already")?;
        let stdout = child.stdout.take().context("the model server's stdout is not ours")?;
        let line = BufReader::new(stdout).lines().next_line().await.context("read the model server's address")?;
        let base_url = line.context("the model server has ended already")?;
        Ok(Self { base_url, pid, _child: child })
    }

    /// Base URL of its OpenAI-compatible API.
    pub(crate) fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }
}

/// Is the model server, until standard input ends.
///
/// # Errors
/// When it cannot listen or say where.
pub(crate) async fn serve_model() -> anyhow::Result<()> {
    let server = MockModel::start().await.context("start the model server")?;
    let mut stdout = tokio::io::stdout();
    stdout.write_all(format!("{}\n", server.base_url()).as_bytes()).await.context("say where it listens")?;
    stdout.flush().await.context("say where it listens")?;
    let mut byte = [0];
    // Nothing is ever sent: this ends when the other end is gone.
    let _ = tokio::io::stdin().read(&mut byte).await;
    Ok(())
}

/// A collector that accepts every connection, reads nothing and says nothing. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct HungCollector {
    url: String,
    _accepting: JoinSet<()>,
}

impl HungCollector {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When the listener cannot be opened.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("start the hung collector")?;
        let url = format!("http://{}", listener.local_addr().context("start the hung collector")?);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        Ok(Self { url, _accepting: accepting })
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_collector_takes_connections_and_never_answers() {
        let collector = HungCollector::start().await.unwrap();
        let mut stream = TcpStream::connect(collector.url().trim_start_matches("http://")).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\n").await.unwrap();
        let mut answer = [0];
        let read = timeout(Duration::from_millis(200), stream.read(&mut answer)).await;
        assert!(read.is_err(), "it answered {read:?}");
        drop(collector);
        assert!(!matches!(stream.read(&mut answer).await, Ok(1..)));
    }
}
