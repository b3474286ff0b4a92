//! One part to one chat, and what each failure means for it.
//!
//! Called through the adapter by the outbox and for notices of refused messages. Always true: [`SendError::Ambiguous`] is
//! said whenever the message may be in the chat, and nothing is sent a second time by itself unless Telegram has answered
//! that the first try had no effect.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::Telegram;
use super::api::{CallError, Refusal};
use super::pacing::Pacing;
use super::upload::CAPTION_LIMIT;
use crate::split::Unit;
use crate::{Button, ChatRef, Deadline, OutboundFile, OutboundMessage, SendError, Sent, expired};

/// Longest text of one message, UTF-16 units.
pub(super) const TEXT_LIMIT: usize = 4_096;
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const TYPING_TIMEOUT: Duration = Duration::from_millis(1_500);
const DUPLICATE_MARK: &str = "(may be a duplicate)";

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum ChatId<'a> {
    Number(i64),
    /// `@name` of a public channel.
    Name(&'a str),
}

impl fmt::Display for ChatId<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(out),
            Self::Name(name) => name.fmt(out),
        }
    }
}

/// What one message shows.
#[derive(Clone, Copy)]
struct Shown<'a> {
    /// Its text, or the caption of its file.
    text: &'a str,
    buttons: &'a [Button],
    file: Option<&'a OutboundFile>,
}

#[derive(Serialize)]
struct SendMessage<'a> {
    chat_id: &'a ChatId<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_thread_id: Option<i64>,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_markup: Option<Keyboard<'a>>,
}

#[derive(Serialize)]
pub(super) struct Keyboard<'a> {
    /// One row for each two buttons.
    inline_keyboard: Vec<Vec<Key<'a>>>,
}

#[derive(Serialize)]
struct Key<'a> {
    text: &'a str,
    callback_data: &'a str,
}

impl<'a> Keyboard<'a> {
    /// `None` without buttons.
    pub(super) fn of(buttons: &'a [Button]) -> Option<Self> {
        let key = |button: &'a Button| Key { text: &button.label, callback_data: &button.says };
        let rows: Vec<Vec<Key<'a>>> = buttons.chunks(2).map(|row| row.iter().map(key).collect()).collect();
        (!rows.is_empty()).then_some(Self { inline_keyboard: rows })
    }
}

#[derive(Serialize)]
struct AnswerCallbackQuery<'a> {
    callback_query_id: &'a str,
}

#[derive(Serialize)]
struct SendChatAction<'a> {
    chat_id: ChatId<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_thread_id: Option<i64>,
    action: &'static str,
}

impl Telegram {
    /// See [`crate::Adapter::send`].
    pub(super) async fn send_part(&self, message: OutboundMessage) -> Result<Sent, SendError> {
        let thread = thread_number(&message.chat)?;
        let mut text = message.text;
        let not_after = message.not_after.as_ref();
        let limit = if message.attachment.is_some() { CAPTION_LIMIT } else { TEXT_LIMIT };
        if message.maybe_duplicate {
            let marked = if text.is_empty() { DUPLICATE_MARK.to_owned() } else { format!("{DUPLICATE_MARK}\n{text}") };
            if Unit::Utf16.fits(&marked, limit) {
                text = marked;
            } else {
                // No room for the mark: it goes ahead of the part as a message of its own.
                let mark = Shown { text: DUPLICATE_MARK, buttons: &[], file: None };
                self.send_shown(&message.chat.chat_id, thread, mark, not_after).await?;
            }
        }
        let shown = Shown { text: &text, buttons: &message.buttons, file: message.attachment.as_ref() };
        self.send_shown(&message.chat.chat_id, thread, shown, not_after).await
    }

    async fn send_shown(
        &self,
        chat_id: &str,
        thread: Option<i64>,
        shown: Shown<'_>,
        not_after: Option<&Deadline>,
    ) -> Result<Sent, SendError> {
        self.wait_for_turn(chat_id).await?;
        expired(not_after)?;
        let mut answer = self.call_send(chat_id_of(chat_id), thread, shown, not_after).await;
        // Both answers say that nothing was sent and where the message can go instead.
        match &answer {
            Err(CallError::Refused(refusal)) if thread.is_some() && refusal.says("message thread not found") => {
                tracing::info!(account = self.account, chat_id, "the topic is gone, answering in the chat itself");
                answer = self.call_send(chat_id_of(chat_id), None, shown, not_after).await;
            }
            Err(CallError::Refused(Refusal { migrated_to: Some(moved), .. })) => {
                tracing::info!(account = self.account, chat_id, moved, "the group has become a supergroup");
                answer = self.call_send(ChatId::Number(*moved), thread, shown, not_after).await;
            }
            _ => {}
        }
        match answer {
            // `ok: true` is the whole answer; a message without an id is sent all the same.
            Ok(sent) => {
                Ok(Sent { message_id: sent.get("message_id").and_then(Value::as_i64).map(|id| id.to_string()) })
            }
            Err(CallError::Fault(fault)) => Err(fault.into()),
            Err(CallError::Refused(refusal)) => {
                if let Some(after) = refusal.retry_after {
                    self.pacing.pause(chat_id, after, Instant::now());
                }
                Err(send_error(refusal))
            }
        }
    }

    async fn call_send(
        &self,
        chat_id: ChatId<'_>,
        thread: Option<i64>,
        Shown { text, buttons, file }: Shown<'_>,
        not_after: Option<&Deadline>,
    ) -> Result<Value, CallError> {
        if let Some(file) = file {
            return self.call_upload(&chat_id, thread, (text, buttons, file), not_after).await;
        }
        let reply_markup = Keyboard::of(buttons);
        let body = SendMessage { chat_id: &chat_id, message_thread_id: thread, text, reply_markup };
        self.api.call("sendMessage", &body, SEND_TIMEOUT, not_after).await
    }

    /// Waits for the chat's turn, then for the account's.
    pub(super) async fn wait_for_turn(&self, chat_id: &str) -> Result<(), SendError> {
        let too_long = |after| SendError::RetryAfter { after, cause: "the account's own pacing".to_owned() };
        for turn in [Pacing::chat_turn, Pacing::account_turn] {
            let waiting = turn(&self.pacing, chat_id, Instant::now()).map_err(too_long)?;
            if !waiting.is_zero() {
                tokio::time::sleep(waiting).await;
            }
        }
        Ok(())
    }

    /// Lets the client of whoever pressed a button stop waiting. Best effort: the answer in the chat is what counts.
    pub(super) async fn stop_waiting(&self, pressed: &str) {
        let body = AnswerCallbackQuery { callback_query_id: pressed };
        if let Err(error) = self.api.call::<Value>("answerCallbackQuery", &body, TYPING_TIMEOUT, None).await {
            tracing::debug!(account = self.account, %error, "a pressed button could not be acknowledged");
        }
    }

    /// See [`crate::Adapter::typing`].
    pub(super) async fn show_typing(&self, chat: ChatRef) {
        let Ok(message_thread_id) = thread_number(&chat) else { return };
        if !self.pacing.typing_turn(&chat.chat_id, Instant::now()) {
            return;
        }
        let body = SendChatAction { chat_id: chat_id_of(&chat.chat_id), message_thread_id, action: "typing" };
        match self.api.call::<Value>("sendChatAction", &body, TYPING_TIMEOUT, None).await {
            Ok(_) => {}
            Err(CallError::Refused(Refusal { retry_after: Some(after), .. })) => {
                self.pacing.pause(&chat.chat_id, after, Instant::now());
            }
            Err(error) => tracing::debug!(account = self.account, chat_id = chat.chat_id, %error, "no typing sign"),
        }
    }
}

impl Refusal {
    /// Telegram's sentences are its only finer codes; their case has changed over time.
    pub(super) fn says(&self, words: &str) -> bool {
        self.description.to_ascii_lowercase().contains(words)
    }
}

/// What an error answer means for the message. All of them say that it was not sent.
pub(super) fn send_error(refusal: Refusal) -> SendError {
    const GONE: [&str; 10] = [
        "chat not found",
        "user not found",
        "user is deactivated",
        "bot was kicked",
        "bot was blocked",
        "bot is not a member",
        "group chat was deactivated",
        "peer_id_invalid",
        "chat_write_forbidden",
        "not enough rights to send",
    ];
    let cause = format!("telegram says {} {}", refusal.code, refusal.description);
    match refusal.code {
        429 => SendError::RetryAfter { after: refusal.retry_after.unwrap_or(Duration::from_secs(1)), cause },
        403 => SendError::ChatGone(cause),
        400 if GONE.iter().any(|words| refusal.says(words)) => SendError::ChatGone(cause),
        // The token is wrong or was revoked: a person puts that right, the message can wait.
        401 | 404 => SendError::Retry(cause),
        400..=499 => SendError::Refused(cause),
        _ => SendError::Retry(cause),
    }
}

pub(super) fn chat_id_of(chat_id: &str) -> ChatId<'_> {
    chat_id.parse().map_or(ChatId::Name(chat_id), ChatId::Number)
}

fn thread_number(chat: &ChatRef) -> Result<Option<i64>, SendError> {
    let Some(thread) = chat.thread_id.as_deref().filter(|thread| !thread.is_empty()) else { return Ok(None) };
    let number = thread.parse().map_err(|_| SendError::Refused("a telegram topic is a number".to_owned()))?;
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: u16, description: &str) -> SendError {
        let retry_after = (code == 429).then_some(Duration::from_secs(7));
        send_error(Refusal { code, description: description.to_owned(), retry_after, migrated_to: None })
    }

    #[test]
    fn every_error_answer_has_its_meaning() {
        assert!(matches!(refusal(403, "Forbidden: bot was blocked by the user"), SendError::ChatGone(_)));
        assert!(matches!(refusal(400, "Bad Request: chat not found"), SendError::ChatGone(_)));
        assert!(matches!(refusal(400, "Bad Request: message is too long"), SendError::Refused(_)));
        assert!(matches!(refusal(401, "Unauthorized"), SendError::Retry(_)));
        assert!(matches!(refusal(500, "Internal Server Error"), SendError::Retry(_)));
        assert!(matches!(refusal(302, ""), SendError::Retry(_)));
        let SendError::RetryAfter { after, .. } = refusal(429, "Too Many Requests: retry after 7") else { panic!() };
        assert_eq!(after, Duration::from_secs(7));
    }

    #[test]
    fn a_topic_is_a_number_or_the_message_is_refused() {
        let chat = |thread: Option<&str>| ChatRef { chat_id: "1".into(), thread_id: thread.map(Into::into) };
        assert_eq!(thread_number(&chat(Some("42"))), Ok(Some(42)));
        assert_eq!(thread_number(&chat(None)), Ok(None));
        assert!(matches!(thread_number(&chat(Some("4x"))), Err(SendError::Refused(_))));
    }
}
