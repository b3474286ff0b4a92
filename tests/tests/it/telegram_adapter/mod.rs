//! The Telegram adapter against a Bot API server that behaves and misbehaves like the real one.

mod files;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_core::Source;
use hermes_core::attachment::{Attachment, Kind};
use hermes_core::config::{Rate, Streaming};
use hermes_platforms::telegram::{Settings, Telegram};
use hermes_platforms::{
    AccountState, Adapter as _, ChatRef, InboundMessage, InboundSink, NotKept, OutboundMessage, Receipt, SendError,
};
use hermes_tests::fake_telegram::{Bot, FakeTelegram, Fault};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const TOKEN: &str = "700:a-secret-of-the-bot";
const SOON: Duration = Duration::from_secs(10);

/// Keeps what it is offered and answers as scripted, Accepted when nothing is.
#[derive(Default)]
struct Sink {
    offered: Mutex<Vec<InboundMessage>>,
    scripted: Mutex<VecDeque<Receipt>>,
    states: Mutex<Vec<AccountState>>,
    /// So many files cannot be kept at the moment.
    unkept: Mutex<u32>,
    changed: Notify,
}

impl Sink {
    fn script(&self, receipts: impl IntoIterator<Item = Receipt>) {
        self.scripted.lock().unwrap().extend(receipts);
    }

    fn texts(&self) -> Vec<String> {
        self.offered.lock().unwrap().iter().map(|message| message.text.clone()).collect()
    }

    fn states(&self) -> Vec<AccountState> {
        self.states.lock().unwrap().clone()
    }

    async fn wait_until(&self, done: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if done(self) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(SOON, wait).await.is_err() {
            panic!("still waiting: offered {:?}, states {:?}", self.texts(), self.states());
        }
    }
}

impl InboundSink for Sink {
    fn accept(&self, messages: Vec<InboundMessage>) -> BoxFuture<'_, Vec<Receipt>> {
        let mut scripted = self.scripted.lock().unwrap();
        let mut offered = self.offered.lock().unwrap();
        let receipts = messages
            .into_iter()
            .map(|message| {
                let duplicate = offered.iter().any(|known| known.dedupe_key == message.dedupe_key);
                offered.push(message);
                scripted.pop_front().unwrap_or(Receipt::Accepted { duplicate })
            })
            .collect();
        self.changed.notify_waiters();
        Box::pin(std::future::ready(receipts))
    }

    fn hears<'a>(&'a self, _: &'a Source) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    fn keep<'a>(&'a self, kind: Kind, name: &'a str, content: &'a [u8]) -> BoxFuture<'a, Result<Attachment, NotKept>> {
        let mut unkept = self.unkept.lock().unwrap();
        let kept = match unkept.checked_sub(1) {
            Some(left) => {
                *unkept = left;
                Err(NotKept::Unavailable)
            }
            None => Ok(Attachment::new(kind, name, "image/png", content.len() as u64, "ab".repeat(32))),
        };
        Box::pin(std::future::ready(kept))
    }

    fn report(&self, platform: &str, account: &str, state: AccountState) {
        assert_eq!((platform, account), ("telegram", "main"));
        self.states.lock().unwrap().push(state);
        self.changed.notify_waiters();
    }
}

/// An account on a fake, not receiving yet.
struct Rig {
    fake: FakeTelegram,
    bot: Bot,
    telegram: Arc<Telegram>,
    sink: Arc<Sink>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Rig {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let fake = FakeTelegram::start().await.unwrap();
        let mut settings = settings(&fake.base());
        change(&mut settings);
        Self {
            bot: fake.bot(TOKEN),
            fake,
            telegram: Arc::new(Telegram::new(settings).unwrap()),
            sink: Arc::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    fn receive(&self) {
        let (telegram, sink, stop) = (Arc::clone(&self.telegram), Arc::clone(&self.sink), self.stop.clone());
        self.tasks.spawn(async move { telegram.receive(sink.as_ref(), stop).await });
    }

    async fn send(&self, chat_id: i64, text: &str) -> Result<Option<String>, SendError> {
        self.telegram.send(outbound(chat_id, text)).await.map(|sent| sent.message_id)
    }

    async fn confirmed(&self, offset: i64) {
        let in_time = self.bot.wait_until(SOON, |bot| bot.offset() == offset).await;
        assert!(in_time, "offset is {}, expected {offset}", self.bot.offset());
    }

    /// Waits until a poll waits at the fake. The first one does not; it only learns how the account stands.
    async fn long_poll(&self) {
        assert!(self.bot.wait_until(SOON, |bot| bot.calls("getUpdates") > 1 && bot.waiting_polls() == 1).await);
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(SOON, self.tasks.wait()).await.expect("receive ends at the stop");
        self.fake.stop().await;
    }
}

fn settings(base: &str) -> Settings {
    Settings {
        account: "main".to_owned(),
        token: TOKEN.into(),
        api_base: Some(base.to_owned()),
        allow_users: vec!["1".to_owned()],
        allow_chats: vec!["-100".to_owned()],
        allow_all: false,
        strangers: false,
        rate: Rate::Off,
        streaming: Streaming::Off,
    }
}

fn outbound(chat_id: i64, text: &str) -> OutboundMessage {
    OutboundMessage {
        chat: ChatRef { chat_id: chat_id.to_string(), thread_id: None },
        text: text.to_owned(),
        attachment: None,
        maybe_duplicate: false,
        idempotency_key: "d1:0".to_owned(),
        not_after: None,
        buttons: Vec::new(),
    }
}

#[tokio::test]
async fn authorised_messages_are_offered_in_order_and_all_are_confirmed() {
    let rig = Rig::new().await;
    rig.bot.push_text(1, 1, "one");
    rig.bot.push_text(2, 2, "a stranger's");
    rig.bot.push_text(-100, 3, "two");
    rig.bot.push_topic_text(-100, 42, 1, "three");
    rig.bot.push_update(json!({"edited_message": {"unread": true}}));
    rig.bot.push_update(json!({"message": "of no known shape"}));
    rig.receive();
    rig.sink.wait_until(|sink| sink.texts() == ["one", "two", "three"]).await;
    rig.confirmed(7).await;
    assert!(rig.bot.unconfirmed().is_empty());
    let third = rig.sink.offered.lock().unwrap()[2].clone();
    assert_eq!((third.source.thread_id.as_deref(), third.source.chat_type.as_str()), (Some("42"), "forum"));
    assert_eq!(third.dedupe_key, "tg:700:4");
    assert_eq!(rig.sink.states(), [AccountState::Up]);
    rig.bot.push_text(1, 1, "four");
    rig.sink.wait_until(|sink| sink.texts().len() == 4).await;
    assert!(rig.bot.deliveries().is_empty(), "strangers get no answer");
    rig.end().await;
}

#[tokio::test]
async fn what_the_sink_cannot_keep_is_offered_again_and_never_confirmed() {
    let rig = Rig::new().await;
    for text in ["one", "two", "three"] {
        rig.bot.push_text(1, 1, text);
    }
    rig.sink.script([Receipt::Accepted { duplicate: false }, Receipt::Unavailable, Receipt::Unavailable]);
    rig.sink.script([Receipt::Unavailable]);
    rig.receive();
    rig.sink.wait_until(|sink| sink.texts() == ["one", "two", "three", "two", "three", "two", "three"]).await;
    rig.confirmed(4).await;
    let states = rig.sink.states();
    assert!(matches!(states.as_slice(), [AccountState::Down(_), AccountState::Up]), "{states:?}");
    rig.end().await;
}

#[tokio::test]
async fn an_account_that_brings_more_than_it_may_is_slowed_down_and_not_called_down() {
    let rig = Rig::new().await;
    for text in ["one", "two", "three"] {
        rig.bot.push_text(1, 1, text);
    }
    let later = Duration::from_millis(120);
    rig.sink.script([Receipt::Accepted { duplicate: false }, Receipt::Later(later), Receipt::Later(later)]);
    rig.sink.script([Receipt::Accepted { duplicate: false }, Receipt::Later(later)]);
    let started = std::time::Instant::now();
    rig.receive();
    rig.sink.wait_until(|sink| sink.texts() == ["one", "two", "three", "two", "three", "three"]).await;
    rig.confirmed(4).await;
    assert!(started.elapsed() >= later * 2);
    assert_eq!(rig.sink.states(), [AccountState::Up]);
    rig.end().await;
}

#[tokio::test]
async fn duplicate_updates_carry_the_same_key_and_do_not_move_the_offset_back() {
    let rig = Rig::new().await;
    let first = rig.bot.push_text(1, 1, "one");
    rig.bot.duplicate(first);
    rig.bot.push_text(1, 1, "two");
    rig.receive();
    rig.sink.wait_until(|sink| sink.texts().len() == 3).await;
    rig.confirmed(3).await;
    let chat = json!({"id": 1, "type": "private"});
    let copy = json!({"message": {"message_id": 1, "chat": chat, "from": {"id": 1, "first_name": "U"}, "text": "one"}});
    rig.bot.push_again(copy, first);
    rig.sink.wait_until(|sink| sink.texts() == ["one", "one", "two", "one"]).await;
    let keys: Vec<String> = rig.sink.offered.lock().unwrap().iter().map(|message| message.dedupe_key.clone()).collect();
    assert_eq!(keys, ["tg:700:1", "tg:700:1", "tg:700:2", "tg:700:1"]);
    rig.confirmed(3).await;
    rig.end().await;
}

#[tokio::test]
async fn a_refused_message_is_confirmed_and_its_sender_told_why() {
    let rig = Rig::new().await;
    rig.bot.push_text(1, 1, "much too long");
    rig.bot.fail("sendMessage", 1, Fault::flood(1));
    rig.sink.script([Receipt::Refused { reason: "the message is too long".to_owned() }]);
    rig.receive();
    let told = rig.bot.wait_for(1, 1, SOON).await.expect("a notice");
    assert_eq!(told[0].text, "the message is too long");
    rig.confirmed(2).await;
    rig.end().await;
}

#[tokio::test]
async fn a_bad_or_revoked_token_ends_receiving_with_what_to_do() {
    let rig = Rig::new().await;
    rig.fake.revoke(TOKEN);
    tokio::time::timeout(SOON, rig.telegram.receive(rig.sink.as_ref(), rig.stop.clone())).await.expect("it ends");
    let states = rig.sink.states();
    let [AccountState::Failed(what)] = states.as_slice() else { panic!("{states:?}") };
    assert!(what.contains("BotFather") && !what.contains("a-secret"), "{what}");

    let rig = Rig::new().await;
    rig.receive();
    rig.sink.wait_until(|sink| sink.states() == [AccountState::Up]).await;
    rig.long_poll().await;
    rig.fake.revoke(TOKEN);
    rig.sink
        .wait_until(|sink| matches!(sink.states().last(), Some(AccountState::Failed(_) | AccountState::Down(_))))
        .await;
    rig.sink.wait_until(|sink| matches!(sink.states().last(), Some(AccountState::Failed(_)))).await;
    rig.end().await;
}

#[tokio::test]
async fn receiving_comes_back_after_every_kind_of_failed_poll() {
    let faults = [
        Fault::answer(500, "Internal Server Error"),
        Fault::answer(409, "Conflict: terminated by other getUpdates request"),
        Fault::Proxy(502),
        Fault::CutBeforeReading,
        Fault::CutAfterApplying,
        Fault::CutMidResponse,
    ];
    for fault in faults {
        let rig = Rig::new().await;
        rig.bot.push_text(1, 1, "one");
        rig.bot.fail("getMe", 1, fault.clone());
        rig.bot.fail("getUpdates", 1, fault.clone());
        rig.receive();
        rig.confirmed(2).await;
        assert_eq!(rig.sink.texts(), ["one"], "{fault:?}");
        let states = rig.sink.states();
        assert!(
            matches!(states.first(), Some(AccountState::Down(_))) && states.last() == Some(&AccountState::Up),
            "{fault:?}: {states:?}"
        );
        rig.end().await;
    }
}

#[tokio::test]
async fn a_second_poller_is_noticed_and_outlived() {
    let rig = Rig::new().await;
    rig.receive();
    rig.long_poll().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.get(format!("{}/bot{TOKEN}/getUpdates?timeout=0", rig.fake.base())).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    rig.sink.wait_until(|sink| matches!(sink.states().as_slice(), [AccountState::Up, AccountState::Down(why), AccountState::Up] if why.contains("another program"))).await;
    rig.bot.push_text(1, 1, "still here");
    rig.sink.wait_until(|sink| sink.texts() == ["still here"]).await;
    rig.end().await;
}

#[tokio::test]
async fn a_poll_honours_retry_after() {
    let rig = Rig::new().await;
    rig.bot.push_text(1, 1, "one");
    rig.bot.fail("getUpdates", 1, Fault::flood(1));
    let started = std::time::Instant::now();
    rig.receive();
    rig.sink.wait_until(|sink| sink.texts() == ["one"]).await;
    assert!(started.elapsed() >= Duration::from_secs(1));
    rig.end().await;
}

#[tokio::test]
async fn a_long_reply_arrives_whole_in_parts_that_telegram_takes() {
    let rig = Rig::new().await;
    let words: Vec<String> = (0..).map(|n| format!("word{n}🚀")).take(900).collect();
    let text = words.join(" ");
    assert!(text.chars().count() > 5_000);
    let parts = rig.telegram.split(&text);
    for part in &parts {
        rig.send(1, part).await.expect("within Telegram's limit");
    }
    let delivered = rig.bot.delivered(1);
    assert!(delivered.windows(2).all(|pair| pair[0].message_id < pair[1].message_id));
    let numbered = delivered.iter().enumerate().map(|(at, delivery)| {
        let suffix = format!(" ({}/{})", at + 1, parts.len());
        delivery.text.strip_suffix(&suffix).expect("a number").to_owned()
    });
    assert_eq!(numbered.collect::<Vec<_>>().join(" "), text);
    rig.end().await;
}

#[tokio::test]
async fn error_answers_are_classified_and_leave_no_message() {
    let rig = Rig::new().await;
    type Expected = fn(&SendError) -> bool;
    let kinds: [(Fault, Expected); 9] = [
        (Fault::answer(500, "Internal Server Error"), |e| matches!(e, SendError::Retry(_))),
        (Fault::Proxy(503), |e| matches!(e, SendError::Retry(_))),
        (Fault::Proxy(502), |e| matches!(e, SendError::Ambiguous(_))),
        (Fault::answer(403, "Forbidden: bot was blocked by the user"), |e| matches!(e, SendError::ChatGone(_))),
        (Fault::answer(400, "Bad Request: chat not found"), |e| matches!(e, SendError::ChatGone(_))),
        (Fault::answer(400, "Bad Request: user is deactivated"), |e| matches!(e, SendError::ChatGone(_))),
        (Fault::answer(400, "Bad Request: can't parse entities"), |e| matches!(e, SendError::Refused(_))),
        (Fault::answer(401, "Unauthorized"), |e| matches!(e, SendError::Retry(_))),
        (Fault::Proxy(413), |e| matches!(e, SendError::Refused(_))),
    ];
    for (fault, expected) in kinds {
        rig.bot.fail("sendMessage", 1, fault.clone());
        let error = rig.send(1, "hello").await.unwrap_err();
        assert!(expected(&error), "{fault:?} became {error:?}");
        assert!(!format!("{error} {error:?}").contains("a-secret"), "{error:?}");
    }
    assert!(matches!(rig.send(1, " ").await, Err(SendError::Refused(_))));
    assert!(matches!(rig.send(1, &"x".repeat(4_097)).await, Err(SendError::Refused(_))));
    assert!(rig.bot.deliveries().is_empty());
    assert_eq!(rig.send(1, "hello").await, Ok(Some("1".to_owned())));
    rig.end().await;
}

#[tokio::test]
async fn a_connection_that_ends_after_the_request_left_is_ambiguous_in_every_phase() {
    let rig = Rig::new().await;
    let phases = [(Fault::CutBeforeReading, 0), (Fault::CutAfterApplying, 1), (Fault::CutMidResponse, 1)];
    for (chat_id, (fault, arrived)) in (1..).zip(phases) {
        for warm in [false, true] {
            let before = rig.bot.delivered(chat_id).len();
            if warm {
                rig.send(9, "a connection to use again").await.unwrap();
            }
            rig.bot.fail("sendMessage", 1, fault.clone());
            let error = rig.send(chat_id, "hello").await.unwrap_err();
            assert!(matches!(error, SendError::Ambiguous(_)), "{fault:?} became {error:?}");
            assert!(!error.to_string().contains("a-secret"), "{error}");
            assert_eq!(rig.bot.delivered(chat_id).len() - before, arrived, "{fault:?}: sent once at most");
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_certainly_not_sent() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let rig = Rig::with(|settings| settings.api_base = Some(base)).await;
    let error = rig.send(1, "hello").await.unwrap_err();
    assert!(matches!(error, SendError::Retry(_)), "{error:?}");
    assert!(!error.to_string().contains("a-secret"), "{error}");
    rig.end().await;
}

#[tokio::test]
async fn a_retry_after_pauses_its_chat_alone_until_a_second_chat_gets_one() {
    let rig = Rig::new().await;
    rig.bot.fail_in(1, "sendMessage", 1, Fault::flood(30));
    let paused =
        |error: SendError| matches!(error, SendError::RetryAfter { after, .. } if after > Duration::from_secs(29));
    assert!(paused(rig.send(1, "one").await.unwrap_err()));
    let calls = rig.bot.calls("sendMessage");
    assert!(paused(rig.send(1, "one").await.unwrap_err()));
    rig.telegram.typing(ChatRef { chat_id: "1".to_owned(), thread_id: None }).await;
    assert_eq!((rig.bot.calls("sendMessage"), rig.bot.calls("sendChatAction")), (calls, 0), "Telegram is left alone");
    rig.send(2, "two").await.unwrap();
    rig.bot.fail_in(2, "sendMessage", 1, Fault::flood(40));
    assert!(paused(rig.send(2, "two").await.unwrap_err()));
    assert!(paused(rig.send(3, "three").await.unwrap_err()), "the account is paused now");
    rig.end().await;
}

#[tokio::test]
async fn the_rate_keeps_below_what_one_chat_takes() {
    let limited = Rate::Limited { per_chat_per_s: 4.0, per_account_per_s: 30.0 };
    let rig = Rig::with(|settings| settings.rate = limited).await;
    let started = std::time::Instant::now();
    for _ in 0..4 {
        rig.send(1, "hello").await.unwrap();
    }
    assert!(started.elapsed() >= Duration::from_millis(750), "{:?}", started.elapsed());
    rig.end().await;
}

#[tokio::test]
async fn a_copy_is_marked_with_or_without_room_for_the_mark() {
    let rig = Rig::new().await;
    for text in ["hello".to_owned(), "x".repeat(4_096)] {
        let message = OutboundMessage { maybe_duplicate: true, ..outbound(1, &text) };
        rig.telegram.send(message).await.unwrap();
    }
    let texts: Vec<String> = rig.bot.delivered(1).into_iter().map(|delivery| delivery.text).collect();
    assert_eq!(texts, ["(may be a duplicate)\nhello", "(may be a duplicate)", &"x".repeat(4_096)]);
    rig.end().await;
}

#[tokio::test]
async fn replies_go_into_their_topic_and_into_the_chat_when_it_is_gone() {
    let rig = Rig::new().await;
    let mut message = outbound(-100, "hello");
    message.chat.thread_id = Some("42".to_owned());
    rig.telegram.send(message.clone()).await.unwrap();
    rig.bot.remove_topic(-100, 42);
    rig.telegram.send(message).await.unwrap();
    let threads: Vec<Option<i64>> = rig.bot.delivered(-100).into_iter().map(|delivery| delivery.thread_id).collect();
    assert_eq!(threads, [Some(42), None]);
    rig.end().await;
}

#[tokio::test]
async fn replies_follow_a_group_that_became_a_supergroup() {
    let rig = Rig::new().await;
    rig.bot.migrate(-5, -1005);
    rig.send(-5, "hello").await.unwrap();
    assert_eq!((rig.bot.delivered(-5).len(), rig.bot.delivered(-1005).len()), (0, 1));
    rig.end().await;
}

#[tokio::test]
async fn a_poll_that_waits_does_not_hold_up_a_send_and_typing_is_bounded() {
    let rig = Rig::new().await;
    rig.receive();
    rig.long_poll().await;
    let chat = ChatRef { chat_id: "1".to_owned(), thread_id: None };
    rig.bot.fail("sendChatAction", 1, Fault::Hang);
    let started = std::time::Instant::now();
    tokio::join!(rig.telegram.typing(chat.clone()), async {
        rig.send(1, "hello").await.unwrap();
        assert!(started.elapsed() < SOON, "it did not wait for the poll");
    });
    assert!(started.elapsed() < SOON, "the sign is given up");
    rig.telegram.typing(chat).await;
    assert_eq!(rig.bot.calls("sendChatAction"), 1, "not again within seconds");
    rig.end().await;
}

#[tokio::test]
async fn an_account_without_an_allow_rule_or_with_a_wrong_setting_does_not_start() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let refused = |change: fn(&mut Settings)| {
        let mut settings = settings("http://127.0.0.1:1");
        change(&mut settings);
        let shown = format!("{settings:?}");
        let error = Telegram::new(settings).expect_err("must be refused").to_string();
        assert!(!error.contains("a-secret") && !shown.contains("a-secret"), "{error}");
        error
    };
    assert!(refused(|s| (s.allow_users.clear(), s.allow_chats.clear()).0).contains("allow_all"));
    assert!(refused(|s| s.token = "700:a-secret/../x".into()).contains("BotFather"));
    assert!(refused(|s| s.token = "".into()).contains("BotFather"));
    assert!(refused(|s| s.api_base = None).contains("api_base"));
    assert!(refused(|s| s.api_base = Some("ftp://host".to_owned())).contains("http"));
    assert!(refused(|s| s.api_base = Some("http://me:pw@host".to_owned())).contains("password"));
    assert!(refused(|s| s.rate = Rate::Limited { per_chat_per_s: 0.0, per_account_per_s: f64::NAN }).contains("rate"));
    let shown = format!("{:?}", Telegram::new(settings("http://127.0.0.1:1")).unwrap());
    assert!(!shown.contains("a-secret"), "{shown}");
}

#[tokio::test]
async fn the_fake_keeps_telegrams_own_rules() {
    let rig = Rig::new().await;
    rig.bot.limit_chats(Some(1));
    assert!(rig.send(1, "one").await.is_ok());
    assert!(matches!(rig.send(1, "two").await, Err(SendError::RetryAfter { .. })));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = |method: &str| format!("{}/bot{TOKEN}/{method}", rig.fake.base());
    let form = client.post(url("sendMessage")).header("content-type", "application/x-www-form-urlencoded");
    let sent: serde_json::Value = form.body("chat_id=5&text=a%20b%2Bc+d").send().await.unwrap().json().await.unwrap();
    assert_eq!(sent["result"]["text"], "a b+c d");
    let query = client.get(url("sendMessage?chat_id=6&text=hi")).send().await.unwrap();
    assert_eq!(query.status(), 200);
    let unknown = client.get(format!("{}/bot1:x/getMe", rig.fake.base())).send().await.unwrap();
    assert_eq!(unknown.status(), 401);
    let methods = client.get(url("getNothing")).send().await.unwrap();
    assert_eq!(methods.status(), 404);
    rig.bot.push_text(1, 1, "kept");
    for _ in 0..2 {
        let updates: serde_json::Value = client.get(url("getUpdates")).send().await.unwrap().json().await.unwrap();
        assert_eq!(updates["result"][0]["message"]["text"], "kept");
    }
    let updates: serde_json::Value = client.get(url("getUpdates?offset=2")).send().await.unwrap().json().await.unwrap();
    assert_eq!(updates["result"], json!([]));
    rig.end().await;
}

#[tokio::test]
async fn a_message_whose_file_cannot_be_kept_comes_again_with_those_behind_it() {
    let rig = Rig::new().await;
    *rig.sink.unkept.lock().unwrap() = 2;
    rig.bot.put_file("photo", vec![1; 5_000]);
    let photo = |id: &str| json!({"chat": {"id": 1, "type": "private"}, "from": {"id": 1, "first_name": "A"}, "caption": "with", "photo": [{"file_id": id}]});
    rig.bot.push_text(1, 1, "before");
    rig.bot.push_message(photo("photo"));
    rig.bot.push_text(1, 1, "after");
    rig.receive();
    rig.sink.wait_until(|sink| sink.texts().len() >= 3).await;
    assert_eq!(rig.sink.texts(), ["before", "with", "after"]);
    let sizes: Vec<Vec<u64>> = rig
        .sink
        .offered
        .lock()
        .unwrap()
        .iter()
        .map(|message| message.attachments.iter().map(|file| file.bytes).collect())
        .collect();
    assert_eq!(sizes, [vec![], vec![5_000], vec![]]);
    // One that Telegram does not give stops nobody.
    rig.bot.push_message(photo("unknown"));
    rig.bot.push_text(1, 1, "last");
    rig.sink.wait_until(|sink| sink.texts().len() >= 5).await;
    let texts = rig.sink.texts();
    assert_eq!(texts[3], "with\n[The user sent a picture that could not be fetched: Telegram does not give it]");
    assert_eq!(texts[4], "last");
    rig.end().await;
}
