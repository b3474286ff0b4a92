//! What the client connects to, and what not, over real sockets.

use std::sync::atomic::{AtomicUsize, Ordering};

use hermes_core::egress::Block;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

fn install() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A server on loopback that answers each connection with these bytes; how often it was connected to, and its port.
async fn server(tasks: &mut JoinSet<()>, answer: impl Fn(u16) -> String + Send + 'static) -> (Arc<AtomicUsize>, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (met, port) = (Arc::new(AtomicUsize::new(0)), listener.local_addr().unwrap().port());
    let count = Arc::clone(&met);
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer(port).as_bytes()).await;
        }
    });
    (met, port)
}

fn says(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn egress(web: Web, lookup: Lookup) -> Egress {
    install();
    Egress::new(Arc::new(move || web.clone()), lookup).unwrap()
}

/// Answers these addresses one after the other, the last one for ever.
fn answers(all: &'static [&'static str]) -> Lookup {
    let asked = Arc::new(AtomicUsize::new(0));
    Arc::new(move |_| {
        let at = asked.fetch_add(1, Ordering::SeqCst).min(all.len() - 1);
        let addresses = all[at].split(' ').map(|address| address.parse().unwrap()).collect();
        Box::pin(async move { Ok(addresses) })
    })
}

#[tokio::test]
async fn no_spelling_of_an_inner_address_is_connected_to() {
    let mut tasks = JoinSet::new();
    let (met, port) = server(&mut tasks, |_| says("secret")).await;
    let egress = egress(Web { ports: vec![port], ..Web::default() }, answers(&["127.0.0.1"]));
    for host in [
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "127.0.0.1.",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "localtest.me",
        "metadata.google.internal",
        "１２７.０.０.１",
        "127。0。0。1",
        "①②⑦.0.0.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:7f00:0001]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1%25lo]",
        "[fd00::1]",
        "169.254.169.254",
        "0xa9fea9fe",
        "[::ffff:169.254.169.254]",
        "100.100.100.200",
        "10.0.0.1",
        "192.168.0.1",
        "a@127.0.0.1",
        "1.1.1.1:80@127.0.0.1",
        "127.0.0.1%2f.example.org",
        "xn--lcalhost-54a",
        "bücher.example",
    ] {
        let url = format!("http://{host}:{port}/");
        assert!(egress.get(&url).await.is_err(), "{url}");
    }
    for url in [
        "ftp://1.1.1.1/",
        "file:///etc/passwd",
        "gopher://1.1.1.1/",
        "http://1.1.1.1:22/",
        "https://1.1.1.1:5432/",
        "",
        "//1.1.1.1",
        "data:,x",
    ] {
        assert!(egress.get(url).await.is_err(), "{url}");
    }
    assert_eq!(met.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_name_that_turns_inward_or_hides_an_inner_address_is_not_connected_to() {
    let mut tasks = JoinSet::new();
    let (met, port) = server(&mut tasks, |_| says("secret")).await;
    // One that is public when it is first asked for, and one that is both.
    for lookup in
        [answers(&["192.0.2.1", "127.0.0.1"]), answers(&["127.0.0.1 1.1.1.1"]), answers(&["::ffff:127.0.0.1"])]
    {
        let egress = egress(Web { ports: vec![port], ..Web::default() }, lookup);
        for _ in 0..3 {
            let refused = egress.get(&format!("http://rebinds.example:{port}/")).await.unwrap_err();
            assert!(refused.contains("rebinds.example is a"), "{refused}");
        }
    }
    assert_eq!(met.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_connection_is_opened_to_nothing_but_what_a_page_may_be_fetched_from() {
    let mut tasks = JoinSet::new();
    let (met, port) = server(&mut tasks, |_| says("secret")).await;
    let web = || Web { ports: vec![port], ..Web::default() };
    for host in ["127.0.0.1", "::1", "169.254.169.254", "::ffff:127.0.0.1", "10.0.0.1", "", "a b", "rebinds.example"] {
        let unopened = egress(web(), answers(&["1.1.1.1 127.0.0.1"])).dial(host, port).await.unwrap_err();
        assert!(!unopened.allowed, "{host}: {unopened:?}");
    }
    // Judged and dialled is one answer of the name, not a later one.
    let turning = egress(web(), answers(&["127.0.0.1", "8.8.8.8"])).dial("turns.example", port).await.unwrap_err();
    assert!(!turning.allowed && turning.reason.contains("a loopback address"), "{turning:?}");
    let written = Web { allow_private: vec![Block::parse("127.0.0.1").unwrap()], ..web() };
    let egress = egress(written, answers(&["127.0.0.1"]));
    let closed = egress.dial("site.example", port + 1).await.unwrap_err();
    assert!(closed.reason.contains("web.ports"), "{closed:?}");
    assert!(egress.dial("site.example", port).await.is_ok());
    tokio::time::timeout(TIME_LIMIT, async {
        while met.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_place_of_the_operator_is_reached_inside_but_not_where_a_machine_asks_for_itself_and_leads_nowhere_else() {
    let mut tasks = JoinSet::new();
    let (hidden, inner) = server(&mut tasks, |_| says("secret")).await;
    let moved = format!(
        "HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:{inner}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    let (met, port) = server(&mut tasks, move |_| moved.clone()).await;
    let named = |addresses: &'static [&'static str]| egress(Web::default(), answers(addresses));
    let send = async |egress: Egress| {
        let headers = header::HeaderMap::from_iter([(header::AUTHORIZATION, sensitive("secret").unwrap())]);
        egress.send(Method::POST, &format!("http://mcp.example:{port}/"), headers, b"{}".to_vec()).await
    };
    for turned in [&["169.254.169.254"] as &[_], &["127.0.0.1 169.254.169.254"], &["fd00:ec2::254"], &["0.0.0.0"]] {
        let failed = send(named(turned)).await.unwrap_err();
        assert!(!failed.begun && failed.reason.contains("mcp.example is a"), "{failed:?}");
        assert!(!failed.reason.contains("secret"));
    }
    assert_eq!(met.load(Ordering::SeqCst), 0);
    assert_eq!(send(named(&["127.0.0.1"])).await.unwrap().status().as_u16(), 307);
    assert_eq!((met.load(Ordering::SeqCst), hidden.load(Ordering::SeqCst)), (1, 0));
}

#[tokio::test]
async fn what_an_operator_allows_is_fetched_and_every_redirect_is_judged_anew() {
    let mut tasks = JoinSet::new();
    let (inner, hidden) = server(&mut tasks, |_| says("secret")).await;
    let to = move |place: &str| {
        format!("HTTP/1.1 302 Found\r\nlocation: {place}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    };
    let (_, good) = server(&mut tasks, |_| says("a page")).await;
    let (_, on) = server(&mut tasks, move |_| to(&format!("http://site.example:{good}/x"))).await;
    let (_, inward) = server(&mut tasks, move |_| to(&format!("http://127.0.0.2:{hidden}/"))).await;
    let (_, metadata) = server(&mut tasks, move |_| to("http://169.254.169.254/latest/")).await;
    let (_, scheme) = server(&mut tasks, move |_| to("file:///etc/passwd")).await;
    let (turns, round) = server(&mut tasks, move |port| to(&format!("http://site.example:{port}/"))).await;
    let (_, packed) =
        server(&mut tasks, |_| says("x").replace("content-type", "content-encoding: gzip\r\ncontent-type")).await;
    let (_, large) = server(&mut tasks, |_| says(&"x".repeat(MAX_PAGE + 10))).await;
    let ports = vec![good, on, inward, metadata, scheme, round, packed, large, hidden];
    let web = Web { allow_private: vec![Block::parse("127.0.0.1").unwrap()], ports, ..Web::default() };
    let egress = egress(web, answers(&["127.0.0.1"]));
    let get = async |port: u16| egress.get(&format!("http://site.example:{port}/")).await;
    let page = get(on).await.unwrap();
    assert_eq!((page.body.as_slice(), page.url), (b"a page".as_slice(), format!("http://site.example:{good}/x")));
    assert!(get(inward).await.unwrap_err().contains("127.0.0.2 is a loopback address"));
    assert!(get(metadata).await.unwrap_err().contains("169.254.169.254 is a link-local or metadata address"));
    assert!(get(scheme).await.unwrap_err().contains("only http and https"));
    assert!(get(round).await.unwrap_err().contains("redirects more than 5 times"));
    assert_eq!(turns.load(Ordering::SeqCst), 6);
    assert!(get(packed).await.unwrap_err().contains("packed"));
    let page = get(large).await.unwrap();
    assert!(page.cut && page.body.len() == MAX_PAGE);
    assert_eq!(inner.load(Ordering::SeqCst), 0);
}
