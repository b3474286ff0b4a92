//! What turns may know of the connection: the channel to call, what the other side speaks, and until when the lease allows
//! model calls and tools.
//!
//! Owned and published by [`crate::link`], watched by running turns. Always true: `fence` is before `lease_end`, both on
//! the monotonic clock and counted from when the last answered heartbeat was *sent*, so this process stops before the
//! control plane may give its turns away. It opens no connection itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hermes_proto::v1::{Progress, WorkerMessage, worker_message};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::transport::Channel;

/// The worker protocol since which steps are reported and turns handed back.
pub(crate) const STEPS_SINCE: u32 = 2;

/// One message on its way out, with the flag that its sender waits on.
pub(crate) struct Outgoing {
    message: worker_message::Message,
    in_flight: Option<Arc<AtomicBool>>,
}

impl Outgoing {
    pub(crate) fn new(message: worker_message::Message) -> Self {
        Self { message, in_flight: None }
    }

    /// The message for the wire; from here on its sender may send the next.
    pub(crate) fn into_message(self) -> WorkerMessage {
        if let Some(flag) = &self.in_flight {
            flag.store(false, Ordering::Release);
        }
        WorkerMessage { message: Some(self.message) }
    }
}

/// The connection as of now.
#[derive(Clone)]
pub struct Connection {
    /// Where to call; `None` while disconnected.
    pub channel: Option<Channel>,
    /// The worker protocol that both sides speak; the last one's while disconnected, 0 before the first registration.
    pub protocol: u32,
    /// New model calls and tool calls start only before this.
    pub fence: Instant,
    /// After this the control plane may have given the running turns away.
    pub lease_end: Instant,
    pub(crate) outbound: Option<mpsc::Sender<Outgoing>>,
    /// Counts registrations. Within one nothing is given away that this process is not told of.
    pub(crate) registration: u64,
}

impl Connection {
    /// Before the first registration.
    pub fn none() -> Self {
        let now = Instant::now();
        Self { channel: None, protocol: 0, fence: now, lease_end: now, outbound: None, registration: 0 }
    }

    /// Offers a progress message; answers whether it was taken. Never waits. `in_flight` is set until it is on the wire.
    pub(crate) fn offer(&self, progress: Progress, in_flight: &Arc<AtomicBool>) -> bool {
        let Some(permit) = self.outbound.as_ref().and_then(|outbound| outbound.try_reserve().ok()) else {
            return false;
        };
        in_flight.store(true, Ordering::Release);
        permit.send(Outgoing {
            message: worker_message::Message::Progress(progress),
            in_flight: Some(Arc::clone(in_flight)),
        });
        true
    }
}

/// Waits until a model call or a tool may begin and answers the channel; `None` when the lease ended first. What it allows
/// must begin without another wait in between.
pub async fn ready(connection: &mut watch::Receiver<Connection>) -> Option<Channel> {
    loop {
        let lease_end = {
            let now = connection.borrow_and_update();
            if let Some(channel) = &now.channel
                && Instant::now() < now.fence
            {
                return Some(channel.clone());
            }
            now.lease_end
        };
        match tokio::time::timeout_at(lease_end, connection.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return None,
        }
    }
}

/// Whether a call may succeed when repeated: the connection or the other side broke, nobody judged the request.
pub fn is_broken(status: &tonic::Status) -> bool {
    use tonic::Code;
    matches!(
        status.code(),
        // An expired certificate is replaced by the next connection.
        Code::Unauthenticated
            | Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::Aborted
            | Code::ResourceExhausted
    )
}
