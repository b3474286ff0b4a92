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
