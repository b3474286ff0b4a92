//! The line between the control plane and its Postgres, which a test can cut.
//!
//! It owns a socket directory, its listener and the connections through it; all end when it is dropped.

use std::path::PathBuf;

use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// libpq's name of a server's socket in its directory.
const SOCKET: &str = ".s.PGSQL.5432";

/// A line that works until it is cut.
pub(super) struct Wire {
    url: String,
    works: watch::Sender<bool>,
    _carrying: JoinSet<()>,
    _dir: TempDir,
}

impl Wire {
    /// A line to the database of `url`, which names a socket directory.
    pub(super) fn to(url: &str) -> Self {
        let (address, host) = url.split_once("?host=").expect("a test database is reached by its socket");
        let far = PathBuf::from(host).join(SOCKET);
        let dir = tempfile::Builder::new().prefix("hermes-wire-").tempdir_in("/tmp").unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let (works, working) = watch::channel(true);
        let mut carrying = JoinSet::new();
        carrying.spawn(accept(listener, far, working));
        Self { url: format!("{address}?host={}", dir.path().display()), works, _carrying: carrying, _dir: dir }
    }

    /// The database at this end.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Ends every connection, and every new one at once.
    pub(super) fn cut(&self) {
        self.works.send_replace(false);
    }

    /// New connections work again.
    pub(super) fn mend(&self) {
        self.works.send_replace(true);
    }
}

async fn accept(listener: UnixListener, far: PathBuf, working: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        let (far, mut working) = (far.clone(), working.clone());
        connections.spawn(async move {
            let carry = async {
                let mut far = UnixStream::connect(far).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            };
            tokio::select! {
                // Either end may close it at any time; that is not the test's business.
                _ = carry => {}
                _ = working.wait_for(|works| !works) => {}
            }
        });
    }
}
