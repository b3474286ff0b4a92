//! gRPC over the simulated network: connections in, connections out.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hermes_worker::identity;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};
use turmoil::net::{TcpListener, TcpStream};

/// Where every replica listens.
const PORT: u16 = 7071;
/// As the worker has them for TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A task of the host that calls; the host's end is its end.
#[expect(clippy::disallowed_methods, reason = "a simulated host owns whatever runs in its runtime")]
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// What a replica accepts.
pub(crate) async fn incoming() -> io::Result<ReceiverStream<io::Result<Line>>> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let (to, lines) = mpsc::channel(8);
    spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if to.send(Ok(Line(stream))).await.is_err() {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(lines))
}

/// A connection to that replica.
pub(crate) async fn connect(replica: String) -> Result<Channel, identity::Error> {
    let unreachable = |error: tonic::transport::Error| identity::Error::Unreachable(Box::new(error));
    let endpoint = Endpoint::from_shared(format!("http://{replica}:{PORT}"))
        .map_err(unreachable)?
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    let line = tower::service_fn(move |_: Uri| {
        let replica = replica.clone();
        async move {
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((replica, PORT))).await??;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(line)).await;
    connected.map_err(|elapsed| identity::Error::Unreachable(Box::new(elapsed)))?.map_err(unreachable)
}

/// A connection as tonic's server wants it.
pub(crate) struct Line(TcpStream);

impl Connected for Line {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
