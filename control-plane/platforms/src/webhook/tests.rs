//! What the sender of a webhook sees.

use std::sync::Mutex;

use hermes_core::attachment::{Attachment, Kind};

use super::*;
use crate::{InboundMessage, NotKept};

const NOW: u64 = 1_800_000_000;
const SECRET: &str = "a secret of the test";
const BODY: &str = r#"{"text":"hello","chat_id":"c"}"#;

struct Sink {
    receipt: Receipt,
    offered: Mutex<Vec<InboundMessage>>,
}

impl InboundSink for Sink {
    fn accept(&self, messages: Vec<InboundMessage>) -> BoxFuture<'_, Vec<Receipt>> {
        let receipts = messages.iter().map(|_| self.receipt.clone()).collect();
        self.offered.lock().unwrap().extend(messages);
        Box::pin(std::future::ready(receipts))
    }

    fn hears<'a>(&'a self, _: &'a hermes_core::Source) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    fn keep<'a>(&'a self, _: Kind, _: &'a str, _: &'a [u8]) -> BoxFuture<'a, Result<Attachment, NotKept>> {
        Box::pin(std::future::ready(Err(NotKept::Unavailable)))
    }
    fn report(&self, _platform: &str, _account: &str, _state: AccountState) {}
}

fn chat() -> ReplyTarget {
    ReplyTarget {
        platform: "telegram".to_owned(),
        account: "main".to_owned(),
        chat: ChatRef { chat_id: "-100".to_owned(), thread_id: Some("42".to_owned()) },
    }
}

fn webhook(secret: &str, reply: Reply) -> Result<Webhook, SettingsError> {
    let settings = Settings { account: "ci".to_owned(), secret: secret.into(), reply };
    assert!(!format!("{settings:?}").contains(SECRET));
    Webhook::new(settings, Arc::new(|| NOW))
}

fn signed(body: &str) -> http::request::Builder {
    Request::post("/webhooks/webhook/ci")
        .header(TIMESTAMP, NOW)
        .header(SIGNATURE, sign(&SECRET.into(), NOW, body.as_bytes()))
}

/// The status and body that `request` gets, and what the sink was offered.
async fn answer(request: Request<Bytes>, receipt: Receipt) -> (u16, Value, Vec<InboundMessage>) {
    let sink = Sink { receipt, offered: Mutex::default() };
    let webhook = webhook(SECRET, Reply::Chat(chat())).unwrap();
    let response = webhook.webhook(request, &sink).unwrap().await;
    let body = serde_json::from_slice(response.body()).unwrap();
    (response.status().as_u16(), body, sink.offered.into_inner().unwrap())
}

#[tokio::test]
async fn each_receipt_has_its_answer() {
    let cases = [
        (Receipt::Accepted { duplicate: false }, 202, json!({"accepted": true, "duplicate": false})),
        (Receipt::Accepted { duplicate: true }, 202, json!({"accepted": true, "duplicate": true})),
        (Receipt::Refused { reason: "too long".to_owned() }, 422, json!({"error": "too long"})),
        (
            Receipt::Busy { reason: "busy".to_owned(), after: std::time::Duration::from_secs(5) },
            429,
            json!({"error": "too many messages are waiting, send it again later"}),
        ),
        (
            Receipt::Later(std::time::Duration::from_millis(20)),
            429,
            json!({"error": "too many messages are waiting, send it again later"}),
        ),
        (Receipt::Unavailable, 503, json!({"error": "not kept, send it again"})),
    ];
    for (receipt, status, body) in cases {
        let (got, answer, offered) = answer(signed(BODY).body(BODY.into()).unwrap(), receipt).await;
        assert_eq!((got, answer), (status, body));
        assert_eq!(offered[0].reply_to, Some(chat()));
        assert!(offered[0].dedupe_key.starts_with("wh:ci:sha256:"), "{}", offered[0].dedupe_key);
    }
}

#[tokio::test]
async fn nothing_that_is_not_as_documented_reaches_the_sink() {
    let twice = r#"{"text":"a","chat_id":"c","user_id":"u","user_id":"v"}"#;
    let get = Request::get("/webhooks/webhook/ci").body(Bytes::new()).unwrap();
    let requests = [
        (405, get),
        (401, Request::post("/").body(BODY.into()).unwrap()),
        (401, signed(BODY).body("{\"text\":\"other\",\"chat_id\":\"c\"}".into()).unwrap()),
        // A fault of the signature is told before any other.
        (401, Request::post("/").header(CONTENT_TYPE, "text/plain").body("{".into()).unwrap()),
        (415, signed(BODY).header(CONTENT_TYPE, "text/plain").body(BODY.into()).unwrap()),
        (415, signed(BODY).header(CONTENT_ENCODING, "gzip").body(BODY.into()).unwrap()),
        (400, signed(twice).body(twice.into()).unwrap()),
        (400, signed("{").body("{".into()).unwrap()),
    ];
    for (status, request) in requests {
        let shown = format!("{request:?}");
        let (got, body, offered) = answer(request, Receipt::Accepted { duplicate: false }).await;
        assert_eq!((got, offered.len()), (status, 0), "{shown}");
        if status == 401 {
            assert_eq!(body, json!({"error": "unauthorized"}), "no detail");
        }
    }
    let json = signed(BODY).header(CONTENT_TYPE, "application/json; charset=utf-8").body(BODY.into()).unwrap();
    assert_eq!(answer(json, Receipt::Accepted { duplicate: false }).await.0, 202);
}

#[tokio::test]
async fn the_same_bytes_have_the_same_key_and_other_bytes_another() {
    let key = async |body: &'static str, at: u64| {
        let request = Request::post("/")
            .header(TIMESTAMP, at)
            .header(SIGNATURE, sign(&SECRET.into(), at, body.as_bytes()))
            .body(Bytes::from_static(body.as_bytes()))
            .unwrap();
        answer(request, Receipt::Accepted { duplicate: false }).await.2.remove(0).dedupe_key
    };
    assert_eq!(key(BODY, NOW).await, key(BODY, NOW).await);
    assert_ne!(key(BODY, NOW).await, key(BODY, NOW + 1).await);
    let named = r#"{"text":"a","chat_id":"c","message_id":"m1"}"#;
    assert_eq!(key(named, NOW).await, key(named, NOW + 1).await, "a message id outlives a new signature");
}

#[tokio::test]
async fn an_account_without_a_secret_or_with_an_odd_callback_does_not_start() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for secret in ["", "  \n"] {
        assert!(webhook(secret, Reply::Chat(chat())).unwrap_err().to_string().contains("secret_env"));
    }
    for url in ["file:///etc/passwd", "gopher://host", "localhost:80", "http://me:pw@host/", "https://", ""] {
        let error = webhook(SECRET, Reply::Callback { url: url.to_owned() }).unwrap_err();
        assert!(error.to_string().contains("the callback url is"), "{url}: {error}");
    }
    let into_chat = webhook(SECRET, Reply::Chat(chat())).unwrap();
    let part = OutboundMessage {
        chat: ChatRef { chat_id: "c".to_owned(), thread_id: None },
        text: "hello".to_owned(),
        attachment: None,
        maybe_duplicate: false,
        idempotency_key: "k".to_owned(),
        not_after: None,
        buttons: Vec::new(),
    };
    assert!(matches!(into_chat.send(part).await, Err(SendError::Refused(_))));
    assert!(!format!("{into_chat:?}").contains(SECRET));
}
