//! Connections for what the tools of an agent with `network: proxy` run.
//!
//! Called by [`super::worker_api`]. Always true: a connection is opened only where a page could be fetched from, by the agent's worker and for
//! an agent whose sandbox has a network at all; one worker has a bounded number; a connection over which nothing goes for a while
//! ends; bytes are handed on as they are asked for, and none is kept. Of each connection host, port and counts are logged, and never
//! what went over it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use hermes_home::sandbox::Network;
use hermes_proto::v1;
use hermes_proto::v1::tunnel_down::Part as Down;
use hermes_proto::v1::tunnel_up::Part as Up;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::mcp_http::UnderWay;
use super::status::{Reason, invalid, refuse};
use super::worker_api::{Caller, shown};
use crate::egress::{Egress, Unopened};
use crate::tasks::Tasks;

/// Connections of one worker at once.
const AT_ONCE: usize = 128;
/// How long the first message may take.
const FIRST: Duration = Duration::from_secs(10);
/// How long nothing may go over a connection.
const IDLE: Duration = Duration::from_secs(300);
/// Most bytes of a part.
const MAX_PART: usize = 64 << 10;
/// Parts that wait for a worker.
const QUEUE: usize = 4;

/// Who opens them; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Tunnels {
    egress: Egress,
    tasks: Tasks,
    under_way: UnderWay,
}

impl Tunnels {
    pub(super) fn new(egress: Egress, tasks: Tasks) -> Self {
        Self { egress, tasks, under_way: UnderWay::default() }
    }

    /// Opens what the first message names.
    pub(super) async fn open(
        &self,
        caller: Caller,
        network: Network,
        mut up: Streaming<v1::TunnelUp>,
    ) -> Result<BoxStream<'static, Result<v1::TunnelDown, Status>>, Status> {
        if network == Network::None {
            let message = "the agent's tools have no network (sandbox.network of the operator's document)";
            return Err(refuse(Reason::NotAllowed, message));
        }
        let Some(place) = self.under_way.enter(caller.worker, AT_ONCE) else {
            return Err(refuse(Reason::Overloaded, format!("this worker has {AT_ONCE} connections open")));
        };
        let first = timeout(FIRST, up.message()).await;
        let first = first.map_err(|_| refuse(Reason::TimeLimit, "nothing came within 10 s"))??;
        let Some(Up::Open(v1::TunnelTarget { host, port })) = first.and_then(|message| message.part) else {
            return Err(invalid("part", "the first message must say where to"));
        };
        let port = u16::try_from(port).map_err(|_| invalid("open.port", "it is no port"))?;
        let down = |part| v1::TunnelDown { part: Some(part) };
        let stream = match self.egress.dial(&host, port).await {
            Ok(stream) => stream,
            Err(Unopened { reason, allowed }) => {
                tracing::info!(agent = %caller.agent, host = shown(&host), port, reason = shown(&reason), "no connection for a tool");
                let refused = Down::Refused(v1::TunnelRefused { reason, allowed });
                return Ok(futures_util::stream::iter([Ok(down(refused))]).boxed());
            }
        };
        let (to_worker, parts) = mpsc::channel(QUEUE);
        let stop = self.tasks.stopping();
        self.tasks.spawn("tunnel", async move {
            let (begun, traffic) = (Instant::now(), Traffic::new());
            tokio::select! {
                () = stop.cancelled() => {}
                () = carry(stream, up, to_worker, &traffic) => {}
            }
            drop(place);
            let (sent, received) = (traffic.sent.into_inner(), traffic.received.into_inner());
            let seconds = begun.elapsed().as_secs();
            tracing::info!(agent = %caller.agent, host = shown(&host), port, sent, received, seconds, "a tool's connection has ended");
        });
        let opened = futures_util::stream::iter([Ok(down(Down::Opened(v1::TunnelOpened {})))]);
        Ok(opened.chain(ReceiverStream::new(parts).map(move |data| Ok(down(Down::Data(data))))).boxed())
    }
}

/// What has gone over a connection, and when something last did.
struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
    last: Mutex<Instant>,
}

impl Traffic {
    fn new() -> Self {
        Self { sent: AtomicU64::new(0), received: AtomicU64::new(0), last: Mutex::new(Instant::now()) }
    }

    fn moved(&self, of: &AtomicU64, bytes: usize) {
        of.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Ends when nothing has gone over it for long.
    async fn idle(&self) {
        loop {
            let end = *self.last.lock().unwrap_or_else(PoisonError::into_inner) + IDLE;
            if Instant::now() >= end {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// Hands bytes on both ways until the other side or the worker has ended, or nothing has gone over it for long. Neither way waits for
/// the other.
async fn carry(
    stream: TcpStream,
    mut up: Streaming<v1::TunnelUp>,
    to_worker: mpsc::Sender<Vec<u8>>,
    traffic: &Traffic,
) {
    let (mut from, mut to) = stream.into_split();
    let downwards = async {
        let mut buffer = vec![0; MAX_PART];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            traffic.moved(&traffic.received, read);
            if to_worker.send(buffer[..read].to_vec()).await.is_err() {
                return;
            }
        }
    };
    let upwards = async {
        while let Ok(Some(v1::TunnelUp { part: Some(Up::Data(data)) })) = up.message().await {
            traffic.moved(&traffic.sent, data.len());
            if to.write_all(&data).await.is_err() {
                return;
            }
        }
        // A half that has nothing to say any more may still listen; a worker that is gone does not.
        let _ = to.shutdown().await;
        to_worker.closed().await;
    };
    tokio::select! {
        () = downwards => {}
        () = upwards => {}
        () = to_worker.closed() => {}
        () = traffic.idle() => {}
    }
}
