//! How the listener of a task's proxy comes from the network of the task to the worker: sockets stay where they were made, whoever holds
//! them.
//!
//! Used by [`super::Boundary`] on the worker's side and by [`super::enter`] on the other. Always true: each start has a socket of its own,
//! reached by a name that nobody guesses, and a listener is taken only from whoever shows the token, which is in the stage's frame
//! alone; others on the machine can neither take it nor put theirs in its place.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;

/// How long a stage may take to hand it over: it makes namespaces before that, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one that does not show the token at once is looked at.
const GLANCE: Duration = Duration::from_secs(2);

/// What a stage needs to hand over a listener.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Invitation {
    name: String,
    token: String,
}

/// Waits for one.
#[derive(Debug)]
pub(super) struct Handover {
    socket: tokio::net::UnixListener,
    invitation: Invitation,
}

impl Handover {
    /// With a name and a token of its own.
    pub(super) fn new() -> io::Result<Self> {
        let random = || uuid::Uuid::new_v4().simple().to_string();
        let invitation = Invitation { name: format!("hermes-way-out-{}", random()), token: random() };
        let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&invitation.name)?)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: tokio::net::UnixListener::from_std(socket)?, invitation })
    }

    /// For the frame of the stage.
    pub(super) fn invitation(&self) -> Invitation {
        self.invitation.clone()
    }

    /// The listener, when it comes.
    pub(super) async fn taken(self) -> io::Result<tokio::net::TcpListener> {
        let taking = async {
            loop {
                let (stream, _) = self.socket.accept().await?;
                let shown = tokio::time::timeout(GLANCE, shown(&stream, &self.invitation.token)).await;
                if let Ok(Ok(Some(listener))) = shown {
                    let listener = TcpListener::from(listener);
                    listener.set_nonblocking(true)?;
                    return tokio::net::TcpListener::from_std(listener);
                }
            }
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "its proxy was not handed over in time");
        tokio::time::timeout(PATIENCE, taking).await.unwrap_or_else(|_| Err(late()))
    }
}

/// What somebody hands over who shows this token.
async fn shown(stream: &tokio::net::UnixStream, token: &str) -> io::Result<Option<OwnedFd>> {
    stream
        .async_io(Interest::READABLE, || {
            let mut text = [0; 64];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut text)];
            let read = rustix::net::recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
            let mut all = control.drain().flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(all) => all.collect(),
                _ => Vec::new(),
            });
            let first = all.next();
            Ok(first.filter(|_| text.get(..read) == Some(token.as_bytes())))
        })
        .await
}

/// The worker's side of an invitation, to be reached before there are namespaces.
pub(super) fn reach(invitation: &Invitation) -> io::Result<UnixStream> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(&invitation.name)?)
}

/// Hands over a listener.
pub(super) fn give(worker: &UnixStream, invitation: &Invitation, listener: &TcpListener) -> io::Result<()> {
    let all = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&all));
    let text = [IoSlice::new(invitation.token.as_bytes())];
    rustix::net::sendmsg(worker, &text, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_is_taken_from_whoever_shows_the_token_and_from_nobody_else() {
        let handover = Handover::new().unwrap();
        let right = handover.invitation();
        let wrong = Invitation { token: "0".repeat(32), ..right.clone() };
        let (theirs, own) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (liar, stage) = (reach(&right).unwrap(), reach(&right).unwrap());
        give(&liar, &wrong, &theirs).unwrap();
        give(&stage, &right, &own).unwrap();
        let taken = handover.taken().await.unwrap();
        assert_eq!(taken.local_addr().unwrap(), own.local_addr().unwrap());
    }
}
