//! A TCP relay that tests put between two processes: it leads to the first target that takes a connection, counts, freezes and cuts.
//!
//! Used for a database that falls silent or goes away, and for workers that must find whichever replica is there. It owns its
//! listener and connections; they end with it. Always true: frozen, not a byte passes in either direction and new connections are
//! accepted without an answer; cut, all connections are ended and new ones are refused until it is mended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Where connections lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    Frozen,
    Cut,
}

#[derive(Debug)]
struct Shared {
    targets: Mutex<Vec<Target>>,
    mode: watch::Sender<Mode>,
    now: AtomicUsize,
    most: AtomicUsize,
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

impl Relay {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When the listener cannot be opened.
    pub async fn start(targets: Vec<Target>) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            targets: Mutex::new(targets),
            mode: watch::Sender::new(Mode::Open),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, _accepting: accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads new connections there, in this order of preference.
    pub fn lead_to(&self, targets: Vec<Target>) {
        *self.shared.targets.lock().unwrap_or_else(PoisonError::into_inner) = targets;
    }

    /// Nothing passes any more; nobody is told.
    pub fn freeze(&self) {
        self.shared.mode.send_replace(Mode::Frozen);
    }

    /// All connections end, new ones are ended at once.
    pub fn cut(&self) {
        self.shared.mode.send_replace(Mode::Cut);
    }

    /// Everything passes again.
    pub fn mend(&self) {
        self.shared.mode.send_replace(Mode::Open);
    }

    /// Connections that lead somewhere now.
    pub fn connections(&self) -> usize {
        self.shared.now.load(SeqCst)
    }

    /// Most of them at a time since the last call.
    pub fn most_connections(&self) -> usize {
        self.shared.most.swap(self.shared.now.load(SeqCst), SeqCst)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let _ = stream.set_nodelay(true);
                connections.spawn(connection(stream, Arc::clone(&shared)));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(client: TcpStream, shared: Arc<Shared>) {
    let mut mode = shared.mode.subscribe();
    if mode.wait_for(|mode| *mode != Mode::Frozen).await.map_or(Mode::Cut, |mode| *mode) == Mode::Cut {
        return;
    }
    let targets = shared.targets.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for target in targets {
        match target {
            Target::Tcp(address) => {
                if let Ok(server) = TcpStream::connect(address).await {
                    let _ = server.set_nodelay(true);
                    return pass_on(client, server, &shared).await;
                }
            }
            Target::Unix(path) => {
                if let Ok(server) = UnixStream::connect(path).await {
                    return pass_on(client, server, &shared).await;
                }
            }
        }
    }
}

async fn pass_on(client: TcpStream, server: impl AsyncRead + AsyncWrite, shared: &Shared) {
    let now = shared.now.fetch_add(1, SeqCst) + 1;
    shared.most.fetch_max(now, SeqCst);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = tokio::io::split(server);
    let mut cut = shared.mode.subscribe();
    tokio::select! {
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
        () = copy(from_client, to_server, shared.mode.subscribe()) => {}
        () = copy(from_server, to_client, shared.mode.subscribe()) => {}
    }
    shared.now.fetch_sub(1, SeqCst);
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read) = from.read(&mut buffer).await else { return };
        if mode.wait_for(|mode| *mode != Mode::Frozen).await.is_err() {
            return;
        }
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return };
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}
