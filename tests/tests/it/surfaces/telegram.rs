//! Telegram, end to end: what users see when everything works.

use std::time::Duration;

use hermes_tests::fake_telegram::{Bot, Delivery, FakeTelegram};
use hermes_tests::mock_model::{Behaviour, LAST_WORD, MockModel};
use hermes_tests::system::{Up, until};
use serde_json::{Value, json};

use super::{SOON, account, start, stop, texts, with_model};

/// Tokens of the bots.
const FRONT: &str = "710:front-secret";
const BACK: &str = "720:back-secret";

/// Keys of all sessions.
fn session_keys(up: &Up) -> Vec<String> {
    let sessions = up.json(["session", "list"]);
    let key = |session: &Value| session["session_key"].as_str().unwrap().to_owned();
    let mut keys: Vec<String> = sessions.as_array().unwrap().iter().map(key).collect();
    keys.sort();
    keys
}

/// Two bots of two agents, and two accounts that cannot start.
fn two_bots(fake: &FakeTelegram) -> (Up, Bot, Bot) {
    let (front, back) = (fake.bot(FRONT), fake.bot(BACK));
    let mut strict = account("back", "BACK_TOKEN", fake);
    strict.as_object_mut().unwrap().remove("allow_all");
    strict["allow_users"] = json!(["1"]);
    strict["allow_chats"] = json!(["-500"]);
    let accounts = [
        account("front", "FRONT_TOKEN", fake),
        strict,
        account("missing", "NOBODY_SET_THIS_TOKEN", fake),
        account("revoked", "REVOKED_TOKEN", fake),
    ];
    let document = json!({
        "agents": {"coder": {}},
        "routes": [{"match": {"platform": "telegram", "account": "back"}, "agent": "coder"}],
        "platforms": {"telegram": {"accounts": accounts}},
    });
    let env = [("FRONT_TOKEN", FRONT), ("BACK_TOKEN", BACK), ("REVOKED_TOKEN", "730:no-such-bot")];
    (start(&document, &env), front, back)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_bots_answer_as_their_agents_and_keep_chats_users_and_topics_apart() {
    let fake = FakeTelegram::start().await.unwrap();
    let (up, front, back) = two_bots(&fake);

    // Each account's own agent, users outside the allowlist unheard, its chats open to anybody.
    front.push_text(11, 11, "hello front");
    back.push_text(2, 2, "let me in");
    back.push_text(1, 1, "hello back");
    back.push_text(-500, 3, "hello group");
    assert_eq!(texts(&front, 11, 1).await, ["[main] hello front"]);
    assert_eq!(texts(&back, 1, 1).await, ["[coder] hello back"]);
    assert_eq!(texts(&back, -500, 1).await, ["[coder] hello group"]);
    assert!(back.delivered(2).is_empty(), "a stranger gets no answer");

    // An update that comes again, in the same answer and long after, is one message.
    let update = front.push_text(12, 12, "once");
    front.duplicate(update);
    assert_eq!(texts(&front, 12, 1).await, ["[main] once"]);
    let chat = json!({"id": 12, "type": "private", "first_name": "User 12"});
    let sender = json!({"id": 12, "is_bot": false, "first_name": "User 12"});
    let copy = json!({"message": {"message_id": 1, "date": 1, "chat": chat, "from": sender, "text": "once"}});
    front.push_again(copy, update);
    front.push_text(12, 12, "and no more");
    assert_eq!(texts(&front, 12, 2).await, ["[main] once", "[main] and no more"]);

    // Answers go to the topic that was asked in; a topic is a session, users of a group have one each.
    for thread in [42, 43] {
        front.push_topic_text(-100, thread, 1, &format!("in {thread}"));
    }
    front.push_text(-200, 1, "from one");
    front.push_text(-200, 2, "from two");
    texts(&front, -200, 2).await;
    texts(&front, -100, 2).await;
    let mut topics = front.delivered(-100);
    topics.sort_by_key(|delivery| delivery.thread_id);
    let seen = |delivery: &Delivery| (delivery.thread_id, delivery.text.split(' ').next_back().unwrap().to_owned());
    let seen: Vec<_> = topics.iter().map(seen).collect();
    assert_eq!(seen, [(Some(42), "42".to_owned()), (Some(43), "43".to_owned())]);
    assert!(front.delivered(-200).iter().all(|delivery| delivery.thread_id.is_none()));
    let expected = [
        "agent:coder:telegram:dm:1",
        "agent:coder:telegram:group:-500:3",
        "agent:main:telegram:dm:11",
        "agent:main:telegram:dm:12",
        "agent:main:telegram:forum:-100:42",
        "agent:main:telegram:forum:-100:43",
        "agent:main:telegram:group:-200:1",
        "agent:main:telegram:group:-200:2",
    ];
    assert_eq!(session_keys(&up), expected);

    // A burst in one chat is answered in its order.
    for number in 0..20 {
        front.push_text(13, 13, &number.to_string());
    }
    let expected: Vec<String> = (0..20).map(|number| format!("[main] {number}")).collect();
    assert_eq!(texts(&front, 13, 20).await, expected);

    // The accounts that cannot start say what they need and have stopped nobody. What a replica receives for it says once a second.
    let is_up = |account: &Value| account["state"] == "up";
    let status = until(SOON, "two accounts that are up", || {
        let status = up.json(["status"]);
        let up = status["accounts"].as_array().unwrap().iter().filter(|account| is_up(account)).count();
        (up == 2).then_some(status)
    });
    let standing = |name: &str| {
        let accounts = status["accounts"].as_array().unwrap();
        let found = accounts.iter().find(|account| account["account"] == name);
        let found = found.unwrap_or_else(|| panic!("{name} is not in {status}"));
        (found["state"].as_str().unwrap().to_owned(), found["detail"].as_str().unwrap().to_owned())
    };
    assert_eq!(standing("front").0, "up");
    assert_eq!(standing("back").0, "up");
    let (state, detail) = standing("missing");
    assert!(state == "failed" && detail.contains("NOBODY_SET_THIS_TOKEN"), "{state}: {detail}");
    let (state, detail) = standing("revoked");
    assert!(state == "failed" && detail.contains("BotFather"), "{state}: {detail}");
    let log = up.log();
    assert!(!log.contains("-secret") && !log.contains("no-such-bot"), "no token is logged");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_answer_shows_typing_and_a_long_one_is_split_in_order() {
    let (fake, mock) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let bot = fake.bot(FRONT);
    let document = json!({"platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", &fake)]}}});
    let up = start(&with_model(&mock, document), &[("FRONT_TOKEN", FRONT)]);

    let words: String = (0..700).map(|number| format!("wörd{number:03} ")).collect();
    let long = words.trim_end().chars().take(5_000).collect::<String>();
    assert_eq!(long.chars().count(), 5_000);
    mock.script([Behaviour::Say(long.clone())]);
    bot.push_text(21, 21, "a long one");
    let parts = texts(&bot, 21, 2).await;
    let unnumbered: Vec<&str> = parts
        .iter()
        .enumerate()
        .map(|(at, part)| part.strip_suffix(&format!(" ({}/{})", at + 1, parts.len())).expect("a number"))
        .collect();
    assert_eq!(unnumbered.join(" "), long);
    assert!(parts.iter().all(|part| part.encode_utf16().count() <= 4_096));

    // A topic, so that the sign goes there too.
    assert_eq!(bot.calls("sendChatAction"), 0, "an answer at once needs no sign");
    mock.script([Behaviour::Delay(Duration::from_secs(3))]);
    bot.push_topic_text(-100, 42, 22, "take your time");
    assert!(bot.wait_until(SOON, |bot| bot.calls("sendChatAction") > 0).await, "typing is shown");
    assert!(bot.delivered(-100).is_empty(), "before the answer");
    assert!(texts(&bot, -100, 1).await[0].ends_with(LAST_WORD));
    stop(up);
}
