//! The HTTP proxy that is all of the network that a tool of an agent with `network: proxy` has.
//!
//! Made by [`crate::app`] for the boundary, which runs it for each task on a listener inside the task's own network. Always true: this process
//! opens no connection to anywhere: each is a tunnel of the control plane (`OpenTunnel`), which judges where it may lead; a proxy
//! ends with its task, and all its connections with it; connections, heads and buffers are bounded, and whoever reads slowly holds up
//! nobody but itself. It reads the head of a request and nothing behind it.

use std::sync::Arc;
use std::time::Duration;

use hermes_proto::v1::tunnel_down::Part as Down;
use hermes_proto::v1::tunnel_up::Part as Up;
use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_proto::v1::{TunnelDown, TunnelRefused, TunnelTarget, TunnelUp};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::connection::Connection;
use crate::sandbox::WayOut;

/// Connections of one task at once; others wait to be accepted.
const AT_ONCE: usize = 32;
/// Longest head of a request, bytes.
const MAX_HEAD: usize = 16 << 10;
/// How long a head may take.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// Most bytes of a part.
const MAX_PART: usize = 64 << 10;
/// Parts on their way up.
const QUEUE: usize = 4;
/// Headers that are between a client and its proxy.
const OWN: [&str; 4] = ["proxy-connection", "proxy-authorization", "connection", "keep-alive"];

/// What serves the proxies of tasks, over whatever connection there is when one is used.
pub(crate) fn way_out(connection: watch::Receiver<Connection>) -> WayOut {
    Arc::new(move |listener| Box::pin(serve(listener, connection.clone())))
}

async fn serve(listener: TcpListener, connection: watch::Receiver<Connection>) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        while tasks.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { return };
        let connection = connection.clone();
        tasks.spawn(async move {
            // A client that goes away in between has nobody to tell.
            let _ = carried(stream, connection).await;
            drop(permit);
        });
    }
}

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    target: TunnelTarget,
    /// What is sent on of the head; none: the client itself speaks with the other side (CONNECT).
    head: Option<Vec<u8>>,
}

async fn carried(mut client: TcpStream, connection: watch::Receiver<Connection>) -> std::io::Result<()> {
    let head = match tokio::time::timeout(HEAD_WITHIN, head(&mut client)).await {
        Ok(head) => head?,
        Err(_) => return Ok(()),
    };
    let Some((head, rest)) = head else {
        return answer(&mut client, "431 Request Header Fields Too Large", "the head of the request is too long").await;
    };
    let asked = match asked(&head) {
        Ok(asked) => asked,
        Err(why) => return answer(&mut client, "400 Bad Request", why).await,
    };
    let (up, parts) = mpsc::channel(QUEUE);
    let down = match open(&connection, asked.target, &up, parts).await {
        Ok(down) => down,
        Err((status, why)) => return answer(&mut client, status, &why).await,
    };
    let first = match asked.head {
        None => {
            client.write_all(b"HTTP/1.1 200 Connection Established\r\n\r\n").await?;
            rest
        }
        Some(head) => [head, rest].concat(),
    };
    let (mut from, mut to) = client.into_split();
    let upwards = async move {
        let mut part = first;
        loop {
            if !part.is_empty() {
                let sent = std::mem::take(&mut part);
                for piece in sent.chunks(MAX_PART) {
                    if up.send(TunnelUp { part: Some(Up::Data(piece.to_vec())) }).await.is_err() {
                        return;
                    }
                }
            }
            part = vec![0; MAX_PART / 4];
            match from.read(&mut part).await {
                Ok(read @ 1..) => part.truncate(read),
                _ => return,
            }
        }
    };
    let downwards = async move {
        let mut down = down;
        while let Ok(Some(TunnelDown { part: Some(Down::Data(data)) })) = down.message().await {
            to.write_all(&data).await?;
        }
        to.shutdown().await
    };
    // The other side's end is the end; the client's is that of its direction.
    tokio::pin!(downwards);
    tokio::select! {
        ended = &mut downwards => ended,
        () = upwards => downwards.await,
    }
}

/// Opens a tunnel; else what the client is answered.
async fn open(
    connection: &watch::Receiver<Connection>,
    target: TunnelTarget,
    up: &mpsc::Sender<TunnelUp>,
    parts: mpsc::Receiver<TunnelUp>,
) -> Result<Streaming<TunnelDown>, (&'static str, String)> {
    const AWAY: &str = "502 Bad Gateway";
    const REFUSED: &str = "403 Forbidden";
    let channel = connection.borrow().channel.clone();
    let channel = channel.ok_or_else(|| (AWAY, "the control plane cannot be reached".to_owned()))?;
    // The queue is empty and open.
    let _ = up.send(TunnelUp { part: Some(Up::Open(target)) }).await;
    let answered = WorkerServiceClient::new(channel).open_tunnel(ReceiverStream::new(parts)).await;
    let mut down = match answered {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            return Err(match status.code() {
                Code::PermissionDenied | Code::InvalidArgument => (REFUSED, status.message().to_owned()),
                Code::ResourceExhausted => ("503 Service Unavailable", status.message().to_owned()),
                code => (AWAY, format!("the control plane opens no connection ({code:?})")),
            });
        }
    };
    match down.message().await {
        Ok(Some(TunnelDown { part: Some(Down::Opened(_)) })) => Ok(down),
        Ok(Some(TunnelDown { part: Some(Down::Refused(TunnelRefused { reason, allowed: false })) })) => {
            Err((REFUSED, reason))
        }
        Ok(Some(TunnelDown { part: Some(Down::Refused(TunnelRefused { reason, allowed: true })) })) => {
            Err((AWAY, reason))
        }
        _ => Err((AWAY, "the control plane did not say what came of it".to_owned())),
    }
}

/// A request's head, and what came behind it; none: it is too long, or ended.
async fn head(client: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut read = Vec::with_capacity(1024);
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return Ok(Some((read, rest)));
        }
        if read.len() > MAX_HEAD || client.read_buf(&mut read).await? == 0 {
            return Ok(None);
        }
    }
}

/// What a head asks for, else what is wrong with it.
fn asked(head: &[u8]) -> Result<Asked, &'static str> {
    let text = std::str::from_utf8(head).map_err(|_| "the head of the request is no text")?;
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("the first line of the request is none");
    };
    if !version.starts_with("HTTP/1.") {
        return Err("this proxy speaks HTTP/1.1");
    }
    if method == "CONNECT" {
        return Ok(Asked { target: place(target, None)?, head: None });
    }
    let rest = target.strip_prefix("http://").ok_or("write a whole http:// URL, or use CONNECT for https")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut told = format!("{method} {path} HTTP/1.1\r\n");
    for line in lines.filter(|line| !line.is_empty()) {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if !OWN.contains(&name.as_str()) {
            told.push_str(line);
            told.push_str("\r\n");
        }
    }
    // One request for each connection: the next one may be for another place.
    told.push_str("connection: close\r\n\r\n");
    Ok(Asked { target: place(authority, Some(80))?, head: Some(told.into_bytes()) })
}

/// A host and a port.
fn place(authority: &str, usual: Option<u32>) -> Result<TunnelTarget, &'static str> {
    const WRONG: &str = "write host:port";
    if authority.contains('@') {
        return Err("a user name or a password in a URL is not sent");
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => v6.split_once(']').ok_or(WRONG)?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => port.parse::<u16>().map_err(|_| WRONG)?.into(),
        None if port.is_empty() => usual.ok_or(WRONG)?,
        _ => return Err(WRONG),
    };
    if host.is_empty() { Err(WRONG) } else { Ok(TunnelTarget { host: host.to_owned(), port }) }
}

async fn answer(client: &mut TcpStream, status: &str, why: &str) -> std::io::Result<()> {
    let why = format!("{why}\n");
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        why.len()
    );
    client.write_all(format!("{head}{why}").as_bytes()).await?;
    client.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(host: &str, port: u32) -> TunnelTarget {
        TunnelTarget { host: host.to_owned(), port }
    }

    #[test]
    fn what_a_client_asks_for_is_read_strictly_and_sent_on_without_what_is_between_the_two() {
        let connect = asked(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n").unwrap();
        assert_eq!(connect, Asked { target: target("example.org", 443), head: None });
        assert_eq!(asked(b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n").unwrap().target, target("::1", 443));
        let got = asked(
            b"GET http://example.org:8080?a HTTP/1.1\r\nHost: example.org\r\nProxy-Authorization: Basic x\r\nconnection: keep-alive\r\n\r\n",
        )
        .unwrap();
        assert_eq!(got.target, target("example.org", 8080));
        let head = String::from_utf8(got.head.unwrap()).unwrap();
        assert_eq!(head, "GET /?a HTTP/1.1\r\nHost: example.org\r\nconnection: close\r\n\r\n");
        assert_eq!(asked(b"GET http://example.org HTTP/1.1\r\n\r\n").unwrap().target, target("example.org", 80));
        for wrong in [
            "GET / HTTP/1.1",
            "GET https://example.org/ HTTP/1.1",
            "GET http://u:p@example.org/ HTTP/1.1",
            "GET http:// HTTP/1.1",
            "CONNECT example.org HTTP/1.1",
            "CONNECT example.org:99999 HTTP/1.1",
            "CONNECT example.org:+1 HTTP/1.1",
            "CONNECT :443 HTTP/1.1",
            "CONNECT [::1:443 HTTP/1.1",
            "CONNECT a:1 HTTP/2",
            "",
        ] {
            assert!(asked(format!("{wrong}\r\n\r\n").as_bytes()).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_head_without_an_end_is_read_no_further_than_its_bound() {
        let long = vec![b'x'; 1 << 20];
        let mut rest = long.as_slice();
        assert_eq!(head(&mut rest).await.unwrap(), None);
        assert!(rest.len() > long.len() - 4 * MAX_HEAD);
        let mut both = b"GET / HTTP/1.1\r\n\r\nbody".as_slice();
        let (head, rest) = head(&mut both).await.unwrap().unwrap();
        assert_eq!((head.len(), rest.as_slice()), (18, b"body".as_slice()));
    }
}
