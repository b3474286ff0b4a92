//! Where the control plane may be reached: each address of each server that was named, one after the other.
//!
//! Called by [`crate::identity`] for each new connection. Always true: names are resolved again when all their addresses
//! were tried, in an order of chance, so that workers spread over the replicas and a dead one costs an attempt only; the
//! address tried last is not the next one where there is another. It connects nothing itself.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use rand::seq::SliceRandom as _;
use tonic::transport::Uri;

/// One address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// What was named, an `https` URL.
    pub url: Uri,
    /// Where it is.
    pub address: SocketAddr,
}

#[derive(Debug, Default)]
struct Tried {
    untried: Vec<Server>,
    last: Option<Server>,
}

/// The servers of this process.
#[derive(Debug)]
pub struct Servers {
    urls: Vec<Uri>,
    tried: Mutex<Tried>,
}

impl Servers {
    /// Nothing is resolved yet.
    pub fn new(urls: Vec<Uri>) -> Self {
        Self { urls, tried: Mutex::default() }
    }

    /// The next address to try.
    ///
    /// # Errors
    /// When no name can be resolved.
    pub async fn another(&self) -> io::Result<Server> {
        if let Some(server) = self.take() {
            return Ok(server);
        }
        let mut found = Vec::new();
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "no server has an address");
        for url in &self.urls {
            match resolved(url).await {
                Ok(servers) => found.extend(servers),
                Err(error) => {
                    tracing::debug!(server = %url, %error, "a server's name is not known");
                    failure = error;
                }
            }
        }
        found.shuffle(&mut rand::rng());
        {
            let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
            // They are taken from the end.
            if found.len() > 1 && found.last() == tried.last.as_ref() {
                found.rotate_right(1);
            }
            tried.untried = found;
        }
        self.take().ok_or(failure)
    }

    fn take(&self) -> Option<Server> {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let server = tried.untried.pop()?;
        tried.last = Some(server.clone());
        Some(server)
    }
}

async fn resolved(url: &Uri) -> io::Result<Vec<Server>> {
    let host = url.host().unwrap_or_default();
    let port = url.port_u16().unwrap_or(443);
    let addresses = tokio::net::lookup_host(format!("{host}:{port}")).await?;
    Ok(addresses.map(|address| Server { url: url.clone(), address }).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn servers(urls: &[&str]) -> Servers {
        Servers::new(urls.iter().map(|url| url.parse().expect("url")).collect())
    }

    async fn addresses(servers: &Servers, count: usize) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for _ in 0..count {
            addresses.push(servers.another().await.expect("an address").address);
        }
        addresses
    }

    #[tokio::test]
    async fn every_server_is_tried_before_any_is_tried_again_and_never_twice_running() {
        let servers = servers(&["https://127.0.0.1:1", "https://127.0.0.2:2", "https://[::1]:3", "https://no.invalid"]);
        for _ in 0..20 {
            let tried = addresses(&servers, 6).await;
            assert_eq!(tried[..3].iter().collect::<BTreeSet<_>>().len(), 3, "{tried:?}");
            assert_eq!(tried[3..].iter().collect::<BTreeSet<_>>().len(), 3, "{tried:?}");
            assert!(tried.windows(2).all(|pair| pair[0] != pair[1]), "{tried:?}");
        }
    }

    #[tokio::test]
    async fn one_server_is_tried_again_and_no_server_is_an_error() {
        assert_eq!(addresses(&servers(&["https://127.0.0.1:1"]), 2).await.len(), 2);
        assert!(servers(&["https://no.invalid:1"]).another().await.is_err());
    }
}
