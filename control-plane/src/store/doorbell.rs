//! The doorbell between replicas: NOTIFY on a connection of its own, beside the pool.
//!
//! Used by `crate::doorbell`, which decides when to ring and what a ring wakes. Always true: nothing is ever written through this
//! connection; what is rung may be lost, doubled or late, and the poll finds the same.

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Error, Result, Store};

pub(super) const CHANNEL: &str = "hermes_doorbell";
/// Postgres takes less than 8000 bytes.
const MAX_WORDS: usize = 7_000;

/// How to connect beside the pool.
pub(super) struct Direct {
    config: Config,
}

impl Direct {
    pub(super) fn new(config: Config) -> Self {
        Self { config }
    }

    /// With `sslmode=require` certificates of the public authorities are trusted.
    pub(super) fn tls(&self) -> Option<MakeRustlsConnect> {
        (self.config.get_ssl_mode() == tokio_postgres::config::SslMode::Require).then(|| {
            let mut roots = rustls::RootCertStore::empty();
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
            MakeRustlsConnect::new(tls)
        })
    }
}

type Messages = BoxStream<'static, std::result::Result<AsyncMessage, tokio_postgres::Error>>;

/// What other replicas say.
pub struct Rung {
    messages: Messages,
    own: i32,
}

/// The way to tell them.
pub struct Bell {
    client: Client,
    notify: Statement,
}

impl Rung {
    /// The words of the next ring of another replica; nothing when the connection has ended. It must be awaited all the time: it
    /// carries [`Bell::ring`], too.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            match self.messages.next().await? {
                Ok(AsyncMessage::Notification(rung)) if rung.process_id() != self.own => {
                    return Some(rung.payload().to_owned());
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "the doorbell's connection failed");
                    return None;
                }
            }
        }
    }
}

impl Bell {
    /// Tells every other replica these words.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn ring(&self, words: &str) -> Result<()> {
        let words = words.get(..words.len().min(MAX_WORDS)).unwrap_or_default();
        self.client.execute(&self.notify, &[&CHANNEL, &words]).await?;
        Ok(())
    }
}

impl Store {
    /// Connects beside the pool and listens. What was rung before is not told: look at everything once.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn doorbell(&self) -> Result<(Bell, Rung)> {
        let config = &self.direct.config;
        let (client, mut messages) = match self.direct.tls() {
            Some(tls) => {
                let (client, connection) = config.connect(tls).await?;
                (client, messages_of(connection))
            }
            None => {
                let (client, connection) = config.connect(NoTls).await?;
                (client, messages_of(connection))
            }
        };
        // A ring that a crash of the server forgets is no loss, so nobody waits for its flush.
        let setup = format!("SET synchronous_commit = off; LISTEN {CHANNEL}");
        let asked = async {
            client.batch_execute(&setup).await?;
            let notify = client.prepare("SELECT pg_notify($1, $2)").await?;
            let own = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
            Ok::<_, tokio_postgres::Error>((own, notify))
        };
        // The connection moves only while somebody asks it for messages; nothing comes before LISTEN, and what comes right after
        // it is made good by the look at everything.
        let mut asked = Box::pin(asked);
        let (own, notify) = loop {
            tokio::select! {
                told = &mut asked => break told?,
                message = messages.next() => match message {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error.into()),
                    None => return Err(Error::Unavailable("the connection ended".to_owned())),
                },
            }
        };
        drop(asked);
        Ok((Bell { client, notify }, Rung { messages, own }))
    }
}

fn messages_of<S, T>(mut connection: tokio_postgres::Connection<S, T>) -> Messages
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio_postgres::tls::TlsStream + Unpin + Send + 'static,
{
    futures_util::stream::poll_fn(move |cx| connection.poll_message(cx)).boxed()
}
