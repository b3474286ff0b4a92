//! `network: proxy` in real turns: what a tool reaches through the control plane, and that there is no other way.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use futures_util::{StreamExt as _, stream};
use hermes_tests::mock_model::MockModel;
use hermes_tests::system::{Options, Up, until};
use http::Uri;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::SOON;
use super::mcp::{caller, calls, home, plant};

/// A site with pages, and one that never ends.
#[derive(Default)]
struct Site {
    met: AtomicUsize,
    open: AtomicUsize,
}

/// Counts an endless answer for as long as somebody reads it.
struct Reading(Arc<Site>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Site {
    async fn start(tasks: &mut JoinSet<()>, at: &str) -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = Arc::new(Self::default());
        let router = Router::new().fallback(page).with_state(Arc::clone(&this));
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        (this, address)
    }
}

async fn page(State(site): State<Arc<Site>>, uri: Uri) -> Response {
    site.met.fetch_add(1, Ordering::SeqCst);
    if uri.path() != "/endless" {
        return format!("the page {}", uri.path()).into_response();
    }
    site.open.fetch_add(1, Ordering::SeqCst);
    let reading = Reading(Arc::clone(&site));
    let ticks = stream::unfold(reading, async |reading| {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        Some((Ok::<_, Infallible>("tick\n"), reading))
    });
    Body::from_stream(ticks.boxed()).into_response()
}

fn document(model: &MockModel, site: SocketAddr, network: &str, servers: &Value) -> String {
    json!({
        "model": "mock/mock-1",
        "providers": {"mock": {"kind": "openai", "base_url": model.base_url()}},
        "sandbox": {"network": network},
        "web": {"allow_private": ["127.0.0.1"], "ports": [site.port()]},
        "approvals": {"mode": "off"},
        "mcp_servers": servers,
    })
    .to_string()
}

fn apply(up: &Up, document: String) {
    let file = up.file("network.yaml", document);
    up.ctl(["apply".as_ref(), "-f".as_ref(), file.as_os_str()]).ok();
}

/// What commands print, each run in a turn of its own.
fn sh(up: &Up, model: &MockModel, command: &str) -> String {
    calls(up, model, &[("terminal", json!({"command": command, "timeout": 30}))]).remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_with_a_proxy_reaches_what_the_document_allows_and_nothing_else() {
    let mut tasks = JoinSet::new();
    let (site, at) = Site::start(&mut tasks, "127.0.0.1:0").await;
    // The same port at an address that nobody wrote down.
    let (neighbour, _) = Site::start(&mut tasks, &format!("127.0.0.2:{}", at.port())).await;
    let model = caller().await;
    let up = Up::start(Options::config(document(&model, at, "proxy", &json!({}))));
    for (command, expected) in [
        (format!("curl -sS http://{at}/one"), "the page /one"),
        (format!("curl -sS -p http://{at}/two"), "the page /two"),
        (
            format!("python3 -c \"import urllib.request as u; print(u.urlopen('http://{at}/three').read().decode())\""),
            "the page /three",
        ),
    ] {
        let said = sh(&up, &model, &command);
        assert!(said.starts_with(expected), "{command}: {said}");
    }
    assert_eq!(site.met.load(Ordering::SeqCst), 3);

    let endpoint = up.endpoint();
    let http = endpoint.http.rsplit(':').next().unwrap().to_owned();
    let grpc = endpoint.grpc.rsplit(':').next().unwrap().to_owned();
    for (url, expected) in [
        ("http://169.254.169.254/latest/meta-data/".to_owned(), "a link-local or metadata address"),
        ("http://[::ffff:169.254.169.254]/".to_owned(), "a link-local or metadata address"),
        (format!("http://127.0.0.1:{http}/"), "web.ports of the operator's document"),
        (format!("http://127.0.0.1:{grpc}/"), "web.ports of the operator's document"),
        (format!("http://127.0.0.2:{}/", at.port()), "a loopback address, which is not allowed (web.allow_private"),
        (format!("http://127.2:{}/", at.port()), "which is not allowed (web.allow_private"),
    ] {
        let said = sh(&up, &model, &format!("curl -sS -g -w '%{{http_code}}' '{url}'"));
        assert!(said.contains(expected) && said.contains("403"), "{url}: {said}");
        let said = sh(&up, &model, &format!("curl -sS -g -p '{url}'"));
        assert!(said.contains("403"), "{url}: {said}");
    }
    for direct in [
        format!("curl -sS --noproxy '*' --max-time 5 http://{at}/direct"),
        "curl -sS --noproxy '*' --max-time 5 http://1.1.1.1/".to_owned(),
        "python3 -c \"import socket; print(socket.getaddrinfo('example.org', 80))\"".to_owned(),
    ] {
        let said = sh(&up, &model, &direct);
        assert!(!said.contains("[exit code 0]"), "{direct}: {said}");
    }
    assert_eq!((site.met.load(Ordering::SeqCst), neighbour.met.load(Ordering::SeqCst)), (3, 0));
    assert!(up.log().contains("a tool's connection has ended") && !up.log().contains("/three"), "{}", up.log());

    // A connection ends with the process that has it.
    let kept = calls(
        &up,
        &model,
        &[("terminal", json!({"command": format!("curl -sN http://{at}/endless > got.txt"), "background": true}))],
    );
    until(SOON, "the connection", || (site.open.load(Ordering::SeqCst) == 1).then_some(()));
    let got = home(&up).join("workspace/got.txt");
    until(SOON, "what comes over it", || fs::read(&got).ok().filter(|text| text.len() > 20));
    let id = kept[0]
        .split(|c: char| !(c.is_ascii_alphanumeric() || "_-".contains(c)))
        .find(|word| word.starts_with("bg-"))
        .map(str::to_owned);
    let id = id.unwrap_or_else(|| panic!("{kept:?}"));
    calls(&up, &model, &[("process", json!({"action": "kill", "id": id}))]);
    until(SOON, "the end of the connection", || (site.open.load(Ordering::SeqCst) == 0).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_has_the_same_proxy_and_a_document_that_takes_the_network_away_closes_it() {
    let mut tasks = JoinSet::new();
    let (site, at) = Site::start(&mut tasks, "127.0.0.1:0").await;
    let model = caller().await;
    let up = Up::start(Options::config(document(&model, at, "proxy", &json!({}))));
    let server = json!({"good": {"command": "python3", "args": [plant(&home(&up)), "well"]}});
    apply(&up, document(&model, at, "proxy", &server));
    let fetch = |url: &str| ("mcp_good_fetch", json!({"url": url}));
    let told = calls(&up, &model, &[fetch(&format!("http://{at}/mine")), fetch("http://169.254.169.254/")]);
    assert!(told[0] == "the page /mine" && told[1].contains("403"), "{told:?}");

    // What still runs under the policy of before is refused what the document no longer allows.
    let looping = format!("while true; do curl -s http://{at}/again; sleep 0.1; done > heard.txt");
    calls(&up, &model, &[("terminal", json!({"command": looping, "background": true}))]);
    let heard = home(&up).join("workspace/heard.txt");
    let hears = |what: &str| fs::read_to_string(&heard).ok().filter(|text| text.ends_with(what));
    until(SOON, "a page", || hears("the page /again"));
    apply(&up, document(&model, at, "none", &json!({})));
    until(SOON, "the refusal", || {
        hears("the agent's tools have no network (sandbox.network of the operator's document)\n")
    });
    let said = sh(&up, &model, &format!("env | grep -ci proxy; curl -sS --max-time 5 http://{at}/none"));
    assert!(said.starts_with("0\n") && !said.contains("the page"), "{said}");
    assert!(site.met.load(Ordering::SeqCst) > 1);
}
