//! The load through Telegram's protocol: each chat is a private chat with one bot of a Bot API server in this process.
//!
//! One [`chat`] per chat, spawned by `main`. A loop sends as the user and waits for the delivery that names its very
//! message; whatever else arrives in the chat is judged by the [`Ledger`].

use hermes_tests::fake_telegram::{Bot, Delivery};
use tokio::time::{Instant, timeout, timeout_at};

use crate::ledger::{Ledger, Verdict};
use crate::load::{GIVE_UP_AFTER, Load, SETTLE};

/// The token of the only bot.
pub(crate) const TOKEN: &str = "7000000001:hermes-bench-token";
/// User and chat id of chat 0: a private chat has its user's number.
const FIRST_CHAT_ID: i64 = 100_000;

/// Plays the user of chat `number` until the load ends.
pub(crate) async fn chat(bot: Bot, number: u32, load: Load) {
    let chat_id = FIRST_CHAT_ID + i64::from(number);
    let mut ledger = Ledger::new(u64::from(number));
    let mut seen = 0;
    while Instant::now() < load.until {
        let (message, text) = ledger.send();
        let sent = Instant::now();
        bot.push_text(chat_id, chat_id, &text);
        let mut answered = false;
        while !answered {
            let Ok(new) = timeout_at(sent + GIVE_UP_AFTER, bot.delivered_from(chat_id, seen)).await else {
                load.tally.lost();
                break;
            };
            seen += new.len();
            for delivery in &new {
                answered |= judge(&mut ledger, delivery, message, sent, &load);
            }
        }
    }
    while let Ok(new) = timeout(SETTLE, bot.delivered_from(chat_id, seen)).await {
        seen += new.len();
        for delivery in &new {
            judge(&mut ledger, delivery, 0, load.until, &load);
        }
    }
}

/// Counts one delivery; true when it answers `awaited`.
fn judge(ledger: &mut Ledger, delivery: &Delivery, awaited: u64, sent: Instant, load: &Load) -> bool {
    match ledger.reply(&delivery.text) {
        Some((message, Verdict::Answer)) if message == awaited => {
            load.tally.answered(sent, delivery.at.saturating_duration_since(sent.into_std()));
            true
        }
        Some((_, verdict)) => {
            load.tally.stray(verdict, &delivery.text);
            false
        }
        None => {
            load.tally.stray(Verdict::Unexpected, &delivery.text);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use hermes_tests::fake_telegram::FakeTelegram;
    use serde_json::{Value, json};
    use tokio::task::JoinSet;

    use super::*;
    use crate::tally::{Counts, Tally};

    /// A bot that answers every message with `replies(text)`, by the wire.
    async fn bot(base: String, replies: fn(&str) -> Vec<String>) {
        let client = reqwest::Client::new();
        let call = async |method: &str, body: Value| -> Value {
            let answer = client.post(format!("{base}/bot{TOKEN}/{method}")).json(&body).send().await.unwrap();
            answer.json().await.unwrap()
        };
        let mut offset = 0;
        loop {
            let updates = call("getUpdates", json!({"offset": offset, "timeout": 5})).await;
            for update in updates["result"].as_array().unwrap() {
                offset = update["update_id"].as_i64().unwrap() + 1;
                for text in replies(update["message"]["text"].as_str().unwrap()) {
                    let chat_id = &update["message"]["chat"]["id"];
                    call("sendMessage", json!({"chat_id": chat_id, "text": text})).await;
                }
            }
        }
    }

    async fn run(chats: u32, replies: fn(&str) -> Vec<String>) -> Arc<Tally> {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let server = FakeTelegram::start().await.unwrap();
        let user = server.bot(TOKEN);
        let mut bots = JoinSet::new();
        bots.spawn(bot(server.base(), replies));
        let tally = Arc::new(Tally::new(Instant::now()));
        let load = Load { tally: Arc::clone(&tally), until: Instant::now() + Duration::from_millis(300) };
        let mut users = JoinSet::new();
        for number in 0..chats {
            users.spawn(chat(user.clone(), number, load.clone()));
        }
        users.join_all().await;
        tally
    }

    #[tokio::test]
    async fn every_message_is_answered_by_its_own_reply() {
        let tally = run(4, |text| vec![format!("{text} word02 … DONE50")]).await;
        let answered = tally.counts().answered;
        assert!(answered >= 8, "{answered}");
        assert_eq!(tally.counts(), Counts { answered, ..Counts::default() });
        assert!(tally.percentiles().unwrap().max < 30_000.0);
    }

    #[tokio::test]
    async fn second_replies_and_foreign_ones_are_seen() {
        let tally = run(1, |text| vec!["the model failed".into(), text.to_owned(), text.to_owned()]).await;
        let counts = tally.counts();
        assert!(counts.answered >= 2);
        assert_eq!((counts.duplicates, counts.unexpected, counts.lost), (counts.answered, counts.answered, 0));
        assert_eq!(tally.first_fault().as_deref(), Some("Unexpected reply: the model failed"));
    }
}
