//! The three sockets the control plane listens on.
//!
//! Bound by the composition root before the store is opened, so that a taken port is told at once. Always true: an address
//! the user gave is used exactly or refused by its flag's name; a default that is taken moves to a free port on the same
//! address. It deliberately does not accept anything.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Default port of the workers' mutual-TLS listener, on 127.0.0.1.
pub const WORKER_PORT: u16 = 7443;
/// Default port of gRPC for operators and clients, on 127.0.0.1.
pub const GRPC_PORT: u16 = 7070;
/// Default port of the HTTP API, on 127.0.0.1.
pub const HTTP_PORT: u16 = 8080;

/// A listener that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {flag}; choose another address, or leave the flag out for a free port")]
pub struct Error {
    flag: &'static str,
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// What the user asked for; `None` means the default. Port 0 means any free port.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// `--grpc-addr`
    pub grpc: Option<SocketAddr>,
    /// `--http-addr`
    pub http: Option<SocketAddr>,
    /// `--worker-addr`
    pub worker: Option<SocketAddr>,
}

/// The bound listeners, non-blocking.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC for operators and clients.
    pub grpc: Listener,
    /// The HTTP API.
    pub http: Listener,
    /// The workers' own.
    pub worker: Listener,
}

/// One bound socket and the address it really has.
#[derive(Debug)]
pub struct Listener {
    /// The address, its port never 0.
    pub address: SocketAddr,
    /// The socket.
    pub socket: TcpListener,
}

impl Listener {
    /// The socket for tokio.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn into_tokio(self) -> io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.socket)
    }
}

/// Binds all three.
///
/// # Errors
/// [`Error`], naming flag and address; none stays bound then.
pub fn bind(addresses: Addresses) -> Result<Listeners, Error> {
    Ok(Listeners {
        grpc: one("--grpc-addr", addresses.grpc, GRPC_PORT)?,
        http: one("--http-addr", addresses.http, HTTP_PORT)?,
        worker: one("--worker-addr", addresses.worker, WORKER_PORT)?,
    })
}

fn one(flag: &'static str, explicit: Option<SocketAddr>, default_port: u16) -> Result<Listener, Error> {
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let bound = match explicit {
        Some(address) => listen(address).map_err(|source| Error { flag, address, source }),
        None => listen(at(default_port)).or_else(|taken| {
            tracing::info!(flag, port = default_port, cause = %taken, "default port is not free, taking another");
            listen(at(0)).map_err(|source| Error { flag, address: at(0), source })
        }),
    };
    bound.inspect(|listener| tracing::debug!(flag, address = %listener.address, "listening"))
}

fn listen(address: SocketAddr) -> io::Result<Listener> {
    let socket = TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(Listener { address: socket.local_addr()?, socket })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_default_moves_and_a_taken_explicit_address_is_refused_by_name() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = taken.local_addr().unwrap();

        let moved = one("--http-addr", None, address.port()).unwrap();
        assert_ne!(moved.address.port(), address.port());
        assert_eq!(moved.address.ip(), Ipv4Addr::LOCALHOST);

        let error = one("--http-addr", Some(address), HTTP_PORT).unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot listen on {address} for --http-addr")), "{error}");
        drop(taken);
        assert_eq!(one("--http-addr", Some(address), HTTP_PORT).unwrap().address, address);
    }

    #[tokio::test]
    async fn all_three_are_bound_and_accept() {
        let any = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let listeners = bind(Addresses { grpc: any, http: any, worker: any }).unwrap();
        for listener in [listeners.grpc, listeners.http, listeners.worker] {
            let address = listener.address;
            let socket = listener.into_tokio().unwrap();
            let (client, server) = tokio::join!(tokio::net::TcpStream::connect(address), socket.accept());
            assert_eq!(client.unwrap().local_addr().unwrap(), server.unwrap().1);
        }
    }
}
