//! Signed webhooks, end to end: a reply to a callback, a reply into another account's chat, and everything that is refused.

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use hermes_tests::fake_telegram::FakeTelegram;
use hermes_tests::system::Up;
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{SOON, account, http, start, stop, texts};

const SECRET: &str = "a long secret of the test";
const TOKEN: &str = "700:a-secret-of-the-bot";

/// HMAC-SHA256 over `{timestamp}.{body}`, as the documentation has it.
fn sign(secret: &str, timestamp: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// The sender's own server, which replies come back to. It refuses what is not signed.
struct Sender {
    url: String,
    calls: Arc<Mutex<Vec<Call>>>,
    count: watch::Receiver<usize>,
    _server: JoinSet<()>,
}

#[derive(Clone, Debug, PartialEq)]
struct Call {
    body: Value,
    idempotency_key: String,
    answered: StatusCode,
}

#[derive(Clone)]
struct Receiving {
    calls: Arc<Mutex<Vec<Call>>>,
    count: watch::Sender<usize>,
}

async fn receive(State(receiving): State<Receiving>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let timestamp = header("x-hermes-timestamp");
    let fresh = timestamp.parse().is_ok_and(|at: i64| (now() - at).abs() <= 300);
    let mut calls = receiving.calls.lock().unwrap();
    let answered = if !fresh || header("x-hermes-signature") != sign(SECRET, &timestamp, &body) {
        StatusCode::UNAUTHORIZED
    } else if calls.is_empty() {
        // The first one finds the server in trouble.
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    let body = serde_json::from_slice(&body).unwrap_or_default();
    calls.push(Call { body, idempotency_key: header("idempotency-key"), answered });
    receiving.count.send_replace(calls.len());
    answered
}

impl Sender {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/replies", listener.local_addr().unwrap());
        let calls = Arc::<Mutex<Vec<Call>>>::default();
        let (count, counted) = watch::channel(0);
        let router = axum::Router::new()
            .route("/replies", post(receive))
            .with_state(Receiving { calls: Arc::clone(&calls), count });
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, calls, count: counted, _server: server }
    }

    /// The calls, as soon as there are `count`.
    async fn calls(&self, count: usize) -> Vec<Call> {
        let mut counted = self.count.clone();
        let there = tokio::time::timeout(SOON, counted.wait_for(|there| *there >= count)).await;
        let calls = self.calls.lock().unwrap().clone();
        assert!(there.is_ok(), "{count} calls were expected, not {calls:?}");
        calls
    }
}

struct Source {
    client: Client,
    up: Up,
}

impl Source {
    async fn post(&self, account: &str, timestamp: &str, signature: &str, body: &str) -> Response {
        let request = self.client.post(format!("{}/webhooks/webhook/{account}", http(&self.up)));
        let request = request.header("x-hermes-timestamp", timestamp).header("x-hermes-signature", signature);
        request.header("content-type", "application/json").body(body.to_owned()).send().await.unwrap()
    }

    /// A body signed now.
    async fn signed(&self, account: &str, body: &Value) -> Value {
        let (timestamp, body) = (now().to_string(), body.to_string());
        let answer = self.post(account, &timestamp, &sign(SECRET, &timestamp, body.as_bytes()), &body).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        answer.json().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signed_messages_are_answered_where_the_account_says_and_nothing_else_is_taken() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (fake, sender) = (FakeTelegram::start().await.unwrap(), Sender::start().await);
    let bot = fake.bot(TOKEN);
    let target = json!({"platform": "telegram", "account": "front", "chat_id": "-100", "thread_id": "42"});
    let document = json!({
        "agents": {"coder": {}},
        "routes": [{"match": {"platform": "webhook", "account": "alerts"}, "agent": "coder"}],
        "platforms": {
            "telegram": {"accounts": [account("front", "FRONT_TOKEN", &fake)]},
            "webhook": {"accounts": [
                {"id": "ci", "secret_env": "CI_SECRET", "callback_url": sender.url},
                {"id": "alerts", "secret_env": "CI_SECRET", "deliver": target},
            ]},
        },
    });
    let up = start(&document, &[("FRONT_TOKEN", TOKEN), ("CI_SECRET", SECRET)]);
    let source = Source { up, client: Client::builder().no_proxy().build().unwrap() };

    // A reply to the callback: signed, and with the same key when it has to come again.
    let accepted = source.signed("ci", &json!({"text": "build 7 failed", "chat_id": "builds", "user_id": "ci"})).await;
    assert_eq!(accepted, json!({"accepted": true, "duplicate": false}));
    let calls = sender.calls(2).await;
    assert_eq!(calls[0].answered, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(calls[1], Call { answered: StatusCode::OK, ..calls[0].clone() });
    assert_eq!(
        (&calls[1].body["chat_id"], &calls[1].body["text"]),
        (&json!("builds"), &json!("[main] build 7 failed"))
    );
    assert_eq!(calls[1].body["idempotency_key"], json!(calls[1].idempotency_key));

    // A reply into a topic of another account's chat, by the agent of the route.
    source.signed("alerts", &json!({"text": "disk full", "chat_id": "hosts", "message_id": "a-1"})).await;
    assert_eq!(texts(&bot, -100, 1).await, ["[coder] disk full"]);
    assert_eq!(bot.delivered(-100)[0].thread_id, Some(42));

    // The same again is known: the same bytes, or another signature under the same message id.
    let again = source.signed("alerts", &json!({"text": "disk full!", "chat_id": "hosts", "message_id": "a-1"})).await;
    assert_eq!(again, json!({"accepted": true, "duplicate": true}));
    let (at, body) = (now().to_string(), json!({"text": "replayed", "chat_id": "builds"}).to_string());
    let signature = sign(SECRET, &at, body.as_bytes());
    for duplicate in [false, true, true] {
        let answer = source.post("ci", &at, &signature, &body).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        assert_eq!(answer.json::<Value>().await.unwrap()["duplicate"], duplicate);
    }

    // Everything else is refused.
    let old = (now() - 301).to_string();
    let refused = [
        ("ci", at.as_str(), sign("another secret", &at, body.as_bytes()), body.as_str(), 401),
        ("ci", at.as_str(), sign(SECRET, &at, b"another body"), body.as_str(), 401),
        ("ci", at.as_str(), String::new(), body.as_str(), 401),
        ("ci", old.as_str(), sign(SECRET, &old, body.as_bytes()), body.as_str(), 401),
        ("ci", at.as_str(), sign(SECRET, &at, b"{}"), "{}", 400),
        ("nobody", at.as_str(), sign(SECRET, &at, body.as_bytes()), body.as_str(), 404),
    ];
    for (account, at, signature, body, status) in refused {
        let answer = source.post(account, at, &signature, body).await;
        assert_eq!(answer.status().as_u16(), status, "{account} {at} {signature}");
    }

    // Its answer is the last of all, so there were no others.
    source.signed("ci", &json!({"text": "done", "chat_id": "builds"})).await;
    source.signed("alerts", &json!({"text": "done", "chat_id": "hosts"})).await;
    let calls = sender.calls(4).await;
    let said: Vec<&str> = calls.iter().filter_map(|call| call.body["text"].as_str()).collect();
    assert_eq!(said, ["[main] build 7 failed", "[main] build 7 failed", "[main] replayed", "[main] done"]);
    assert_eq!(texts(&bot, -100, 2).await, ["[coder] disk full", "[coder] done"]);
    stop(source.up);
}
