//! [`Proxy`]: a line between two processes that can be slowed down, silenced in one direction or both, half closed, or cut.
//!
//! Used by the chaos runs, one proxy per pair of peers whose line is to fail. It owns its listener and the connections
//! through it; all end when it is dropped. Always true: bytes are never changed, reordered or lost on a line that stays; a
//! silenced line keeps them and goes on where it stopped, as a network that heals does. It knows no protocol.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// So much is read at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// The far end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By TCP.
    Tcp(SocketAddr),
    /// By a Unix socket.
    Unix(PathBuf),
}

/// How a line behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// As a good one.
    Passes,
    /// Every chunk comes this much later, in both directions.
    Slow(Duration),
    /// What goes to the far end is kept back.
    SilentUp,
    /// What comes from the far end is kept back.
    SilentDown,
    /// Both.
    Silent,
    /// The far end hears that this end has nothing more to say; it can still answer.
    HalfClosed,
    /// Ended, both ways.
    Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Line {
    fn is_silent(self, way: Way) -> bool {
        match self {
            Self::Silent => true,
            Self::SilentUp => way == Way::Up,
            Self::SilentDown => way == Way::Down,
            Self::Passes | Self::Slow(_) | Self::HalfClosed | Self::Cut => false,
        }
    }

    fn is_closed(self, way: Way) -> bool {
        self == Self::HalfClosed && way == Way::Up
    }
}

impl Lines {
    fn tell_all(&self, line: Line) -> usize {
        for open in self.open.values() {
            open.send_replace(line);
        }
        self.open.len()
    }
}

/// Says where the far end is now; `None` while there is none.
pub type Aim = Arc<dyn Fn() -> Option<Target> + Send + Sync>;

/// A listener on 127.0.0.1 and the lines through it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    lines: Arc<Mutex<Lines>>,
    // Dropping it ends the listener and every connection.
    _accepting: JoinSet<()>,
}

#[derive(Debug)]
struct Lines {
    next: u64,
    /// How connections to come behave.
    fresh: Line,
    open: BTreeMap<u64, watch::Sender<Line>>,
}

impl Proxy {
    /// Listens on a free port; each connection goes where `aim` says at that moment.
    ///
    /// # Errors
    /// When the listener cannot be opened.
    pub async fn start(aim: Aim) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let lines = Arc::new(Mutex::new(Lines { next: 0, fresh: Line::Passes, open: BTreeMap::new() }));
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, aim, Arc::clone(&lines)));
        Ok(Self { address, lines, _accepting: accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.locked().open.len()
    }

    /// All connections behave like this from now on, those to come too; answers how many there were. With [`Line::Cut`] the
    /// open ones end and new ones are ended as they come.
    pub fn all(&self, line: Line) -> usize {
        let mut lines = self.locked();
        lines.fresh = line;
        lines.tell_all(line)
    }

    /// The connections that are open now behave like this, new ones well; answers how many there were.
    pub fn open_ones(&self, line: Line) -> usize {
        self.locked().tell_all(line)
    }

    /// One of the open connections behaves like this, the `nth` modulo their number; false when there is none.
    pub fn one(&self, nth: usize, line: Line) -> bool {
        let lines = self.locked();
        let nth = nth.checked_rem(lines.open.len()).unwrap_or_default();
        lines.open.values().nth(nth).map(|open| open.send_replace(line)).is_some()
    }

    fn locked(&self) -> MutexGuard<'_, Lines> {
        locked(&self.lines)
    }
}

fn locked(lines: &Mutex<Lines>) -> MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both kinds of far end.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

async fn accept(listener: TcpListener, aim: Aim, lines: Arc<Mutex<Lines>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((near, _)) => { connections.spawn(connection(near, Arc::clone(&aim), Arc::clone(&lines))); }
                // Too many open files: connections end and free some.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(near: TcpStream, aim: Aim, lines: Arc<Mutex<Lines>>) {
    let Some(far) = far_end(aim().as_ref()).await else { return };
    let _ = near.set_nodelay(true);
    let (number, line) = {
        let mut lines = locked(&lines);
        lines.next += 1;
        let number = lines.next;
        let (sender, line) = watch::channel(lines.fresh);
        lines.open.insert(number, sender);
        (number, line)
    };
    let near: Box<dyn Duplex> = Box::new(near);
    let ((near_out, near_in), (far_out, far_in)) = (tokio::io::split(near), tokio::io::split(far));
    let mut until_cut = line.clone();
    let both = async {
        tokio::join!(carry(near_out, far_in, Way::Up, line.clone()), carry(far_out, near_in, Way::Down, line.clone()))
    };
    tokio::select! {
        _ = both => {}
        _ = until_cut.wait_for(|line| *line == Line::Cut) => {}
    }
    locked(&lines).open.remove(&number);
}

async fn far_end(target: Option<&Target>) -> Option<Box<dyn Duplex>> {
    match target? {
        Target::Tcp(address) => {
            let stream = TcpStream::connect(address).await.ok()?;
            let _ = stream.set_nodelay(true);
            Some(Box::new(stream))
        }
        Target::Unix(path) => Some(Box::new(UnixStream::connect(path).await.ok()?)),
    }
}

/// Carries one direction until its end; then the reader's peer has been told as far as it goes.
async fn carry(
    mut from: ReadHalf<Box<dyn Duplex>>,
    mut to: WriteHalf<Box<dyn Duplex>>,
    way: Way,
    mut line: watch::Receiver<Line>,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = tokio::select! {
            read = from.read(&mut chunk) => read.unwrap_or_default(),
            _ = line.wait_for(|line| line.is_closed(way)) => 0,
        };
        let now = *line.borrow();
        if let Line::Slow(by) = now {
            tokio::time::sleep(by).await;
        }
        // An end is news as well: nothing is heard of it on a silent line.
        if line.wait_for(|line| !line.is_silent(way)).await.is_err() {
            return;
        }
        let text = chunk.get(..count).unwrap_or_default();
        if text.is_empty() || to.write_all(text).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line to somebody who says everything back until it hears the end, and then says goodbye.
    async fn line() -> (Proxy, TcpStream, JoinSet<()>) {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::Tcp(echo.local_addr().unwrap());
        let mut answering = JoinSet::new();
        answering.spawn(async move {
            let mut answers = JoinSet::new();
            while let Ok((mut stream, _)) = echo.accept().await {
                answers.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                    let _ = to.write_all(b"bye").await;
                });
            }
        });
        let proxy = Proxy::start(Arc::new(move || Some(target.clone()))).await.unwrap();
        let mut near = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(said(&mut near, b"hi").await, b"hi");
        (proxy, near, answering)
    }

    async fn said(near: &mut TcpStream, text: &[u8]) -> Vec<u8> {
        near.write_all(text).await.unwrap();
        heard(near, text.len()).await.unwrap()
    }

    async fn heard(near: &mut TcpStream, count: usize) -> Option<Vec<u8>> {
        let mut answer = vec![0; count];
        let read = tokio::time::timeout(Duration::from_secs(20), near.read_exact(&mut answer)).await.unwrap();
        read.ok().map(|_| answer)
    }

    /// Nothing comes for a while; more would only make a broken proxy fail later.
    async fn nothing(near: &mut TcpStream) {
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_millis(100), near.read(&mut byte)).await;
        assert!(read.is_err(), "{read:?}");
    }

    #[tokio::test]
    async fn a_silent_line_keeps_what_is_said_until_it_heals() {
        let (proxy, mut near, _answering) = line().await;
        for silent in [Line::Silent, Line::SilentUp, Line::SilentDown] {
            assert_eq!(proxy.all(silent), 1);
            near.write_all(b"kept").await.unwrap();
            nothing(&mut near).await;
            proxy.all(Line::Passes);
            assert_eq!(heard(&mut near, 4).await.unwrap(), b"kept", "{silent:?}");
        }
    }

    #[tokio::test]
    async fn a_half_closed_line_still_answers() {
        let (proxy, mut near, _answering) = line().await;
        assert!(proxy.one(5, Line::HalfClosed));
        assert_eq!(heard(&mut near, 3).await.unwrap(), b"bye");
    }

    #[tokio::test]
    async fn a_cut_ends_what_is_open_and_what_comes() {
        let (proxy, mut near, _answering) = line().await;
        proxy.all(Line::Cut);
        assert_eq!(heard(&mut near, 1).await, None);
        let mut late = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(heard(&mut late, 1).await, None);
        proxy.all(Line::Passes);
        let mut well = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(said(&mut well, b"again").await, b"again");
        assert_eq!(proxy.open_ones(Line::Cut), 1);
        assert_eq!(heard(&mut well, 1).await, None);
    }

    #[tokio::test]
    async fn a_slow_line_is_late_and_complete() {
        let (proxy, mut near, _answering) = line().await;
        let by = Duration::from_millis(50);
        proxy.all(Line::Slow(by));
        let asked = std::time::Instant::now();
        assert_eq!(said(&mut near, b"slowly").await, b"slowly");
        assert!(asked.elapsed() >= by * 2);
    }
}
