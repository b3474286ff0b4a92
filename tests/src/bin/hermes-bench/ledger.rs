//! Which message a reply answers, and whether it should have come now.
//!
//! Pure. Owned by one chat's loop. Always true: every reply gets exactly one [`Verdict`], and only the first reply to a
//! message is ever an answer. It knows no clock; the loop decides when a message is given up.

use std::collections::BTreeSet;

/// What a reply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The first reply to the newest message.
    Answer,
    /// The first reply to a message that was given up, before anything newer was answered.
    Late,
    /// The first reply to a message, after a newer one was answered.
    OutOfOrder,
    /// Another reply to a message that has one.
    Duplicate,
    /// It names a message of another chat, or one that was never sent.
    Unexpected,
}

/// The messages of one chat. They are numbered from 1.
#[derive(Debug)]
pub(crate) struct Ledger {
    chat: u64,
    sent: u64,
    newest_answered: u64,
    unanswered: BTreeSet<u64>,
}

impl Ledger {
    /// An empty one.
    pub(crate) fn new(chat: u64) -> Self {
        Self { chat, sent: 0, newest_answered: 0, unanswered: BTreeSet::new() }
    }

    /// Number and text of the next message.
    pub(crate) fn send(&mut self) -> (u64, String) {
        self.sent += 1;
        self.unanswered.insert(self.sent);
        (self.sent, format!("hello {} from chat {}", self.sent, self.chat))
    }

    /// Judges a reply; `None` when it names no message at all.
    pub(crate) fn reply(&mut self, text: &str) -> Option<(u64, Verdict)> {
        let (message, chat) = named(text)?;
        let verdict = if chat != self.chat || message == 0 || message > self.sent {
            Verdict::Unexpected
        } else if !self.unanswered.remove(&message) {
            Verdict::Duplicate
        } else if message < self.newest_answered {
            Verdict::OutOfOrder
        } else if message == self.sent {
            Verdict::Answer
        } else {
            Verdict::Late
        };
        if matches!(verdict, Verdict::Answer | Verdict::Late) {
            self.newest_answered = message;
        }
        Some((message, verdict))
    }
}

/// The message and the chat that a text names, wherever in the text: `hello SEQ from chat C`.
pub(crate) fn named(text: &str) -> Option<(u64, u64)> {
    let (_, after) = text.split_once("hello ")?;
    let (message, after) = after.split_once(" from chat ")?;
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    Some((message.parse().ok()?, after.get(..digits)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_names_its_message_wherever_it_stands() {
        assert_eq!(named("hello 7 from chat 3"), Some((7, 3)));
        assert_eq!(named("main says: hello 7 from chat 31 word02 … DONE50"), Some((7, 31)));
        assert_eq!(named("hello there"), None);
        assert_eq!(named("hello -7 from chat 3"), None);
        assert_eq!(named("hello 7 from chat x"), None);
        assert_eq!(named("sorry, the model failed"), None);
    }

    #[test]
    fn answers_in_order_are_answers() {
        let mut ledger = Ledger::new(5);
        for _ in 0..3 {
            let (number, text) = ledger.send();
            assert_eq!(ledger.reply(&text), Some((number, Verdict::Answer)));
        }
    }

    #[test]
    fn a_second_reply_is_a_duplicate_however_late() {
        let mut ledger = Ledger::new(5);
        let (_, first) = ledger.send();
        ledger.reply(&first);
        assert_eq!(ledger.reply(&first), Some((1, Verdict::Duplicate)));
        let (_, second) = ledger.send();
        ledger.reply(&second);
        assert_eq!(ledger.reply(&first), Some((1, Verdict::Duplicate)));
    }

    #[test]
    fn a_reply_after_a_newer_one_is_out_of_order_and_before_it_only_late() {
        let mut ledger = Ledger::new(5);
        let (_, first) = ledger.send();
        let (_, second) = ledger.send();
        let (_, third) = ledger.send();
        assert_eq!(ledger.reply(&second), Some((2, Verdict::Late)));
        assert_eq!(ledger.reply(&first), Some((1, Verdict::OutOfOrder)));
        assert_eq!(ledger.reply(&third), Some((3, Verdict::Answer)));
        assert_eq!(ledger.reply(&first), Some((1, Verdict::Duplicate)));
    }

    #[test]
    fn replies_of_other_chats_and_to_nothing_are_unexpected() {
        let mut ledger = Ledger::new(5);
        let (_, text) = ledger.send();
        assert_eq!(ledger.reply("hello 1 from chat 6"), Some((1, Verdict::Unexpected)));
        assert_eq!(ledger.reply("hello 2 from chat 5"), Some((2, Verdict::Unexpected)));
        assert_eq!(ledger.reply("hello 0 from chat 5"), Some((0, Verdict::Unexpected)));
        assert_eq!(ledger.reply("sorry"), None);
        assert_eq!(ledger.reply(&text), Some((1, Verdict::Answer)));
    }
}
