//! What every adapter must keep, run against each of them.
//!
//! One suite, many subjects: a platform is a [`Subject`] that can play its own sender and judge its own acknowledgement. An
//! adapter is done when it passes. The other side of the wire is [`platform::Platform`], which answers as scripted.

mod files;
mod platform;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt as _};
use hermes_core::attachment::{self, Attachment};
use hermes_core::config::{Rate, Streaming};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::platform::{Platform, Reaction};
use crate::telegram::{self, Telegram};
use crate::webhook::{self, Reply, Webhook};
use crate::{
    AccountState, Adapter, ChatRef, Edit, EditError, InboundMessage, InboundSink, NotKept, OutboundMessage, Receipt,
    SendError, Sent,
};

const SECRET: &str = "700:canary-of-the-contract";
const NOW: u64 = 1_800_000_000;
const SOON: Duration = Duration::from_secs(10);

/// One adapter with the platform it talks to.
struct Subject {
    platform: Platform,
    adapter: Box<dyn Adapter>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Telegram,
    Webhook,
}

impl Subject {
    async fn all() -> Vec<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut subjects = Vec::new();
        for kind in [Kind::Telegram, Kind::Webhook] {
            let platform = Platform::start().await;
            let adapter = kind.adapter(&platform.base);
            subjects.push(Self { platform, adapter, kind });
        }
        subjects
    }

    /// The platform delivers one event, once; answers whether it saw it acknowledged.
    async fn deliver(&self, sink: &dyn InboundSink) -> bool {
        match self.kind {
            Kind::Telegram => {
                let stop = CancellationToken::new();
                let polls = self.platform.count("getUpdates");
                let mut receiving = self.adapter.receive(sink, stop.clone()).fuse();
                let mut next = Box::pin(self.platform.wait_for("getUpdates", polls + 2)).fuse();
                futures_util::select_biased! {
                    () = receiving => panic!("receive ended"),
                    poll = next => poll.contains(r#""offset":11,"#),
                }
            }
            Kind::Webhook => {
                let body = br#"{"text":"hello","chat_id":"5"}"#;
                let request = http::Request::post("/webhooks/webhook/main")
                    .header(webhook::TIMESTAMP, NOW)
                    .header(webhook::SIGNATURE, webhook::sign(&SECRET.into(), NOW, body))
                    .body(bytes::Bytes::from_static(body))
                    .unwrap();
                self.adapter.webhook(request, sink).expect("it pushes").await.status().is_success()
            }
        }
    }

    async fn send(&self, reaction: Reaction, message: OutboundMessage) -> Result<Sent, SendError> {
        for path in ["sendMessage", "sendDocument", "/callback"] {
            self.platform.react(path, reaction.clone());
        }
        self.adapter.send(message).await
    }

    /// What it sends: a text, and a file if it takes one.
    fn messages(&self) -> Vec<OutboundMessage> {
        let file = self.adapter.takes(attachment::Kind::Document).then(|| files::message(attachment::Kind::Document));
        [Some(message()), file].into_iter().flatten().collect()
    }
}

impl Kind {
    fn adapter(self, base: &str) -> Box<dyn Adapter> {
        match self {
            Self::Telegram => Box::new(
                Telegram::new(telegram::Settings {
                    account: "main".to_owned(),
                    token: SECRET.into(),
                    api_base: Some(base.to_owned()),
                    allow_users: vec!["1".to_owned()],
                    allow_chats: Vec::new(),
                    allow_all: false,
                    strangers: false,
                    rate: Rate::Off,
                    streaming: Streaming::Edit,
                })
                .unwrap(),
            ),
            Self::Webhook => {
                let reply = Reply::Callback { url: format!("{base}/callback") };
                let settings = webhook::Settings { account: "main".to_owned(), secret: SECRET.into(), reply };
                Box::new(Webhook::new(settings, Arc::new(|| NOW)).unwrap())
            }
        }
    }

    /// The answer that says the chat is dead.
    fn gone(self) -> Reaction {
        match self {
            Self::Telegram => Reaction::json(403, r#"{"ok":false,"error_code":403,"description":"Forbidden: kicked"}"#),
            Self::Webhook => Reaction::json(410, "{}"),
        }
    }
}

fn message() -> OutboundMessage {
    OutboundMessage {
        chat: ChatRef { chat_id: "5".to_owned(), thread_id: None },
        text: "hello".to_owned(),
        attachment: None,
        maybe_duplicate: false,
        idempotency_key: "part-1".to_owned(),
        not_after: None,
        buttons: Vec::new(),
    }
}

/// Answers as scripted, Accepted when nothing is, each time after a permit.
struct Sink {
    offered: Mutex<Vec<InboundMessage>>,
    receipts: Mutex<VecDeque<Receipt>>,
    permits: Semaphore,
    entered: Semaphore,
}

impl Sink {
    fn new(receipts: impl IntoIterator<Item = Receipt>, permits: usize) -> Self {
        Self {
            offered: Mutex::default(),
            receipts: Mutex::new(receipts.into_iter().collect()),
            permits: Semaphore::new(permits),
            entered: Semaphore::new(0),
        }
    }

    fn keys(&self) -> Vec<String> {
        self.offered.lock().unwrap().iter().map(|message| message.dedupe_key.clone()).collect()
    }
}

impl InboundSink for Sink {
    fn accept(&self, messages: Vec<InboundMessage>) -> BoxFuture<'_, Vec<Receipt>> {
        Box::pin(async move {
            self.offered.lock().unwrap().extend(messages.iter().cloned());
            self.entered.add_permits(1);
            self.permits.acquire().await.unwrap().forget();
            let mut receipts = self.receipts.lock().unwrap();
            messages.iter().map(|_| receipts.pop_front().unwrap_or(Receipt::Accepted { duplicate: false })).collect()
        })
    }

    fn hears<'a>(&'a self, _: &'a hermes_core::Source) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    fn keep<'a>(&'a self, _: attachment::Kind, _: &'a str, _: &'a [u8]) -> BoxFuture<'a, Result<Attachment, NotKept>> {
        Box::pin(std::future::ready(Err(NotKept::Unavailable)))
    }
    fn report(&self, _platform: &str, _account: &str, state: AccountState) {
        assert!(!format!("{state:?}").contains("canary"), "{state:?}");
    }
}

#[tokio::test]
async fn an_event_is_acknowledged_only_after_it_is_kept() {
    for subject in Subject::all().await {
        let sink = Sink::new([], 0);
        let mut delivering = Box::pin(subject.deliver(&sink)).fuse();
        let mut entered = Box::pin(sink.entered.acquire()).fuse();
        futures_util::select_biased! {
            acknowledged = delivering => panic!("{:?} came back ({acknowledged}) before the sink answered", subject.kind),
            permit = entered => permit.unwrap().forget(),
        }
        assert!((&mut delivering).now_or_never().is_none(), "{:?} acknowledges before the sink answered", subject.kind);
        sink.permits.add_permits(1);
        assert!(tokio::time::timeout(SOON, delivering).await.unwrap(), "{:?} acknowledges what is kept", subject.kind);
        assert_eq!(sink.keys().len(), 1);
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_acknowledged_and_comes_again_with_the_same_key() {
    for subject in Subject::all().await {
        let sink = Sink::new([Receipt::Unavailable], 9);
        assert!(!subject.deliver(&sink).await, "{:?} acknowledges what is lost", subject.kind);
        assert!(subject.deliver(&sink).await, "{:?}", subject.kind);
        let keys = sink.keys();
        assert!(keys.len() >= 2 && keys.windows(2).all(|pair| pair[0] == pair[1]), "{keys:?}");
    }
}

#[tokio::test]
async fn parts_lose_no_text_are_never_empty_and_always_the_same() {
    for subject in Subject::all().await {
        for text in ["x", &"word ".repeat(3_000), &"🚀".repeat(5_000), &"line\n".repeat(3_000), " ", "\0"] {
            let parts = subject.adapter.split(text);
            assert_eq!(parts, subject.adapter.split(text));
            assert!(!parts.is_empty() && parts.iter().all(|part| !part.is_empty()));
            let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
            let numbers: usize = match parts.len() {
                1 => 0,
                total => (1..=total).map(|at| letters(&format!(" ({at}/{total})"))).sum(),
            };
            assert_eq!(parts.iter().map(|part| letters(part)).sum::<usize>(), letters(text) + numbers);
        }
    }
}

#[tokio::test]
async fn what_somebody_else_may_have_by_now_is_not_sent() {
    for subject in Subject::all().await {
        for message in subject.messages() {
            let before = subject.platform.requests();
            let late = OutboundMessage { not_after: Some(Instant::now().into()), ..message };
            assert_eq!(subject.adapter.send(late).await, Err(SendError::Expired), "{:?}", subject.kind);
            assert_eq!(subject.platform.requests(), before, "{:?}", subject.kind);
        }
    }
}

#[tokio::test]
async fn every_outcome_of_a_send_has_its_meaning_and_leaks_no_secret() {
    type Expected = fn(&Result<Sent, SendError>) -> bool;
    let echo = format!(r#"{{"ok":false,"error_code":500,"description":"cannot serve /bot{SECRET}/x"}}"#);
    let outcomes: [(Reaction, Expected); 10] = [
        (Reaction::json(200, r#"{"ok":true,"result":{"message_id":3}}"#), Result::is_ok),
        (Reaction::json(500, &echo), |sent| matches!(sent, Err(SendError::Retry(_)))),
        (Reaction::json(500, SECRET), |sent| matches!(sent, Err(SendError::Retry(_)))),
        (Reaction::json(401, SECRET), |sent| matches!(sent, Err(SendError::Retry(_)))),
        (Reaction::json(422, SECRET), |sent| matches!(sent, Err(SendError::Refused(_)))),
        (Reaction::json(504, SECRET), |sent| matches!(sent, Err(SendError::Ambiguous(_)))),
        (Reaction::Redirect, |sent| matches!(sent, Err(SendError::Refused(_) | SendError::Retry(_)))),
        (Reaction::CloseUnread, |sent| matches!(sent, Err(SendError::Ambiguous(_)))),
        (Reaction::Close, |sent| matches!(sent, Err(SendError::Ambiguous(_)))),
        (
            Reaction::RetryAfter(7),
            |sent| matches!(sent, Err(SendError::RetryAfter { after, .. }) if *after == Duration::from_secs(7)),
        ),
    ];
    for subject in Subject::all().await {
        let gone: (Reaction, Expected) = (subject.kind.gone(), |sent| matches!(sent, Err(SendError::ChatGone(_))));
        for (number, message) in subject.messages().into_iter().enumerate() {
            // A chat of its own: what a reaction to one asks for must not hold up the other.
            let chat = ChatRef { chat_id: format!("5{number}"), thread_id: None };
            let message = OutboundMessage { chat, ..message };
            for (reaction, expected) in [gone.clone()].iter().chain(&outcomes) {
                let before = subject.platform.requests();
                let sent = subject.send(reaction.clone(), message.clone()).await;
                assert!(expected(&sent), "{:?}: {reaction:?} became {sent:?} for {message:?}", subject.kind);
                assert!(!format!("{sent:?}").contains("canary"), "{sent:?}");
                assert_eq!(subject.platform.requests(), before + 1, "{:?}: {reaction:?} was sent again", subject.kind);
            }
        }
        let messages = subject.messages();
        let Subject { platform, kind, .. } = subject;
        let base = platform.base.clone();
        platform.end().await;
        for message in messages {
            let sent = kind.adapter(&base).send(message).await;
            assert!(matches!(sent, Err(SendError::Retry(_))), "{kind:?}: nobody listens, but {sent:?}");
            assert!(!format!("{sent:?}").contains("canary"), "{sent:?}");
        }
    }
}

#[tokio::test]
async fn every_outcome_of_an_edit_has_its_meaning_and_leaks_no_secret() {
    type Expected = fn(&Result<(), EditError>) -> bool;
    let same = r#"{"ok":false,"error_code":400,"description":"Bad Request: message is not modified: same"}"#;
    let deleted = r#"{"ok":false,"error_code":400,"description":"Bad Request: message to edit not found"}"#;
    let outcomes: [(Reaction, Expected); 7] = [
        (Reaction::json(200, r#"{"ok":true,"result":{"message_id":3}}"#), Result::is_ok),
        (Reaction::json(400, same), Result::is_ok),
        (Reaction::json(400, deleted), |edited| matches!(edited, Err(EditError::Lost(_)))),
        (Reaction::json(500, SECRET), |edited| matches!(edited, Err(EditError::Failed(SendError::Retry(_))))),
        (Reaction::json(504, SECRET), |edited| matches!(edited, Err(EditError::Failed(SendError::Ambiguous(_))))),
        (Reaction::Close, |edited| matches!(edited, Err(EditError::Failed(SendError::Ambiguous(_))))),
        (
            Reaction::RetryAfter(7),
            |edited| matches!(edited, Err(EditError::Failed(SendError::RetryAfter { after, .. })) if *after == Duration::from_secs(7)),
        ),
    ];
    for subject in Subject::all().await {
        for (number, (reaction, expected)) in outcomes.iter().enumerate() {
            subject.platform.react("editMessageText", reaction.clone());
            let before = subject.platform.requests();
            // A chat of its own: what one reaction asks for must not hold up the next edit.
            let chat = ChatRef { chat_id: (50 + number).to_string(), thread_id: Some("7".to_owned()) };
            let text = format!("text {number}");
            let edit = Edit { chat, message_id: "3".to_owned(), text, passing: false, not_after: None };
            let edited = subject.adapter.edit(edit.clone()).await;
            assert!(!format!("{edited:?}").contains("canary"), "{edited:?}");
            if !subject.adapter.streams() {
                assert_eq!(edited, Err(EditError::Unsupported), "{:?} says that it does not edit", subject.kind);
                assert_eq!(subject.platform.requests(), before);
                continue;
            }
            assert!(expected(&edited), "{:?}: {reaction:?} became {edited:?}", subject.kind);
            assert_eq!(subject.platform.requests(), before + 1, "{:?}: {reaction:?} was sent again", subject.kind);
            if number == 0 {
                let late = Edit { not_after: Some(Instant::now().into()), ..edit };
                let refused = subject.adapter.edit(late).await;
                assert_eq!(refused, Err(EditError::Failed(SendError::Expired)), "{:?}", subject.kind);
                assert_eq!(subject.platform.requests(), before + 1, "{:?}: written too late", subject.kind);
            }
            let (_, body) = subject.platform.last();
            assert!(body.contains("\"message_id\":3") && body.contains(&format!("text {number}")), "{body}");
        }
    }
}

#[tokio::test]
async fn a_copy_is_marked_unless_the_other_side_knows_it_by_its_key() {
    for subject in Subject::all().await {
        let ok = Reaction::json(200, r#"{"ok":true,"result":{"message_id":3}}"#);
        for message in subject.messages() {
            subject.send(ok.clone(), OutboundMessage { maybe_duplicate: true, ..message }).await.unwrap();
            let (head, body) = subject.platform.last();
            let keyed = head.to_ascii_lowercase().contains("idempotency-key: part-1");
            assert_eq!(keyed, subject.adapter.deduplicates(), "{:?}: {head}", subject.kind);
            assert_eq!(body.contains("may be a duplicate"), !keyed, "{:?}: {body}", subject.kind);
        }
    }
}

#[tokio::test]
async fn a_webhook_reply_is_signed_and_keyed() {
    let subjects = Subject::all().await;
    let subject = subjects.iter().find(|subject| subject.kind == Kind::Webhook).unwrap();
    subject.send(Reaction::json(202, ""), message()).await.unwrap();
    let (head, body) = subject.platform.last();
    assert_eq!(body, r#"{"chat_id":"5","thread_id":null,"text":"hello","idempotency_key":"part-1"}"#);
    let signature = webhook::sign(&SECRET.into(), NOW, body.as_bytes());
    for line in [
        format!("{}: {NOW}", webhook::TIMESTAMP),
        format!("{}: {signature}", webhook::SIGNATURE),
        "idempotency-key: part-1".to_owned(),
        "content-type: application/json".to_owned(),
    ] {
        assert!(head.contains(&line), "{line} is not in {head}");
    }
}
