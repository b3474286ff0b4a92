//! Telegram, end to end: what users see when the Bot API or the database misbehaves.

use std::time::Duration;

use hermes_tests::fake_telegram::{Bot, FakeTelegram, Fault};
use hermes_tests::postgres::TestPostgres;
use hermes_tests::system::Up;
use serde_json::json;

use super::wire::Wire;
use super::{SOON, account, start, stop, texts};

const TOKEN: &str = "700:a-secret-of-the-bot";
const MARK: &str = "(may be a duplicate)\n";

fn up(fake: &FakeTelegram, more: &[(&str, &str)]) -> (Up, Bot) {
    let document = json!({"platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", fake)]}}});
    let bot = fake.bot(TOKEN);
    (start(&document, &[&[("FRONT_TOKEN", TOKEN)], more].concat()), bot)
}

/// User and chat `chat` says one, two, three.
fn say_three(bot: &Bot, chat: i64) {
    for text in ["one", "two", "three"] {
        bot.push_text(chat, chat, text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_a_send_nothing_is_lost_and_copies_are_marked() {
    let fake = FakeTelegram::start().await.unwrap();
    let (up, bot) = up(&fake, &[]);
    let all = ["[main] one", "[main] two", "[main] three"];
    let again = format!("{MARK}[main] one");

    // Before a byte of the request is read, for whoever is next: nobody else writes yet.
    bot.fail("sendMessage", 1, Fault::CutBeforeReading);
    say_three(&bot, 101);
    let cut_first = texts(&bot, 101, 3).await;
    assert_eq!(cut_first, [again.as_str(), all[1], all[2]], "it may have arrived, nobody knows");

    bot.fail_in(102, "sendMessage", 1, Fault::CutAfterApplying);
    bot.fail_in(103, "sendMessage", 1, Fault::CutMidResponse);
    bot.fail_in(104, "sendMessage", 1, Fault::Proxy(502));
    bot.fail_in(105, "sendMessage", 1, Fault::flood(2));
    bot.fail_in(106, "sendMessage", 2, Fault::answer(500, "Internal Server Error"));
    bot.fail_in(107, "sendMessage", u32::MAX, Fault::answer(403, "Forbidden: bot was blocked by the user"));
    // The second of three parts; what has arrived before it is not sent again.
    bot.fail_in(110, "sendMessage", 1, Fault::Pass);
    bot.fail_in(110, "sendMessage", 1, Fault::CutAfterApplying);
    bot.push_text(110, 110, &"long ".repeat(1_800));
    for chat in 102..=109 {
        say_three(&bot, chat);
    }
    for chat in [108, 109] {
        assert_eq!(texts(&bot, chat, 3).await, all, "chats without trouble");
    }
    for chat in [102, 103] {
        assert_eq!(texts(&bot, chat, 4).await, [all[0], again.as_str(), all[1], all[2]], "chat {chat}");
    }
    assert_eq!(texts(&bot, 104, 3).await, [again.as_str(), all[1], all[2]], "a proxy may have passed it on");
    assert_eq!(texts(&bot, 105, 3).await, all, "after a flood");
    assert_eq!(texts(&bot, 106, 3).await, all, "after two errors");
    let parts = texts(&bot, 110, 5).await;
    assert!(parts[0].starts_with("[main] long ") && parts[0].ends_with(" (1/3)"), "{parts:?}");
    assert!(parts[1].ends_with(" (2/3)") && parts[4].ends_with(" (3/3)"), "{parts:?}");
    assert_eq!((parts[2].as_str(), &parts[3]), ("(may be a duplicate)", &parts[1]), "no room for the mark in the part");
    let first = |chat: i64| bot.delivered(chat)[0].at;
    let waited = first(105).duration_since(first(108));
    assert!(waited >= Duration::from_millis(1_800), "retry_after is honoured, not {waited:?}");

    // The blocked chat has got nothing and held up nobody; unblocked, its user is answered again.
    assert!(bot.delivered(107).is_empty());
    bot.heal();
    bot.push_text(107, 107, "back again");
    let revived = bot.wait_for(107, 1, SOON).await.expect("an answer");
    assert_eq!(revived.last().unwrap().text, "[main] back again");
    for (chat, count) in
        [(101, 3), (102, 4), (103, 4), (104, 3), (105, 3), (106, 3), (107, 1), (108, 3), (109, 3), (110, 5)]
    {
        assert_eq!(bot.delivered(chat).len(), count, "chat {chat}: {:?}", bot.delivered(chat));
    }
    assert!(!up.log().contains("a-secret"), "no token is logged");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_a_poll_every_message_is_answered_once_and_in_order() {
    let fake = FakeTelegram::start().await.unwrap();
    let (up, bot) = up(&fake, &[]);
    let faults = [
        Fault::CutBeforeReading,
        Fault::CutAfterApplying,
        Fault::CutMidResponse,
        Fault::answer(500, "Internal Server Error"),
        Fault::answer(409, "Conflict: terminated by other getUpdates request"),
        Fault::Proxy(502),
        Fault::flood(1),
    ];
    let mut expected = Vec::new();
    let mut say = |bot: &Bot| {
        let text = expected.len().to_string();
        bot.push_text(21, 21, &text);
        expected.push(format!("[main] {text}"));
        expected.len()
    };
    for fault in faults {
        // The poll that waits now brings one message; the next one is struck, with a message on its way.
        assert!(bot.wait_until(SOON, |bot| bot.waiting_polls() == 1).await, "{fault:?}");
        let polls = bot.calls("getUpdates");
        bot.fail("getUpdates", 1, fault.clone());
        say(&bot);
        assert!(bot.wait_until(SOON, |bot| bot.calls("getUpdates") > polls).await, "{fault:?}");
        let count = say(&bot);
        texts(&bot, 21, count).await;
    }
    assert_eq!(texts(&bot, 21, expected.len()).await, expected);
    // The last message is confirmed too, so no copy is to come.
    assert!(bot.wait_until(SOON, |bot| bot.unconfirmed().is_empty()).await);
    assert_eq!(bot.delivered(21).len(), expected.len());
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_is_confirmed_only_after_its_message_is_committed() {
    let fake = FakeTelegram::start().await.unwrap();
    let database = TestPostgres::empty().unwrap();
    let wire = Wire::to(database.url());
    let (up, bot) = up(&fake, &[("DATABASE_URL", wire.url())]);
    bot.push_text(31, 31, "before");
    assert_eq!(texts(&bot, 31, 1).await, ["[main] before"]);
    assert!(bot.wait_until(SOON, |bot| bot.unconfirmed().is_empty() && bot.waiting_polls() == 1).await);

    wire.cut();
    let (offset, polls) = (bot.offset(), bot.calls("getUpdates"));
    let updates = ["one", "two", "three"].map(|text| bot.push_text(31, 31, text));
    assert!(bot.wait_until(SOON, |bot| bot.calls("getUpdates") >= polls + 2).await, "it asks for them again");
    assert_eq!((bot.offset(), bot.unconfirmed()), (offset, updates.to_vec()), "nothing is confirmed");

    wire.mend();
    let expected = ["[main] before", "[main] one", "[main] two", "[main] three"];
    assert_eq!(texts(&bot, 31, 4).await, expected);
    assert!(bot.wait_until(SOON, |bot| bot.unconfirmed().is_empty()).await);
    assert_eq!(bot.delivered(31).len(), 4, "and once");
    stop(up);
}
