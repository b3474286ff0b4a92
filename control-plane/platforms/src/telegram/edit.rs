//! New text for a message that is in a chat already.
//!
//! Called through the adapter by the outbox: passing edits while an answer grows, one last edit when it is whole. Always true:
//! a passing edit takes no place that a message could need (see `pacing`) and is never waited for; an answer of Telegram's that
//! says the message shows this text already is a success, so that an edit may be repeated whatever became of the first try.

use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use super::Telegram;
use super::api::{CallError, Refusal};
use super::send::{ChatId, SEND_TIMEOUT, chat_id_of, send_error};
use crate::{Edit, EditError, SendError, expired};

#[derive(Serialize)]
struct EditMessageText<'a> {
    chat_id: ChatId<'a>,
    message_id: i64,
    text: &'a str,
}

impl Telegram {
    /// See [`crate::Adapter::edit`].
    pub(super) async fn edit_text(&self, edit: Edit) -> Result<(), EditError> {
        let Ok(message_id) = edit.message_id.parse() else {
            return Err(EditError::Lost("a telegram message id is a number".to_owned()));
        };
        let chat_id = edit.chat.chat_id.as_str();
        if !edit.passing {
            self.wait_for_turn(chat_id).await?;
        } else if !self.pacing.edit_turn(chat_id, Instant::now()) {
            return Err(EditError::NotNow);
        }
        expired(edit.not_after.as_ref())?;
        let body = EditMessageText { chat_id: chat_id_of(chat_id), message_id, text: &edit.text };
        match self.api.call::<Value>("editMessageText", &body, SEND_TIMEOUT, edit.not_after.as_ref()).await {
            Ok(_) => Ok(()),
            Err(CallError::Fault(fault)) => Err(SendError::from(fault).into()),
            Err(CallError::Refused(refusal)) => {
                if let Some(after) = refusal.retry_after {
                    self.pacing.pause(chat_id, after, Instant::now());
                }
                edit_error(refusal)
            }
        }
    }
}

/// What an error answer means for the edit.
fn edit_error(refusal: Refusal) -> Result<(), EditError> {
    if refusal.code == 400 && refusal.says("message is not modified") {
        return Ok(());
    }
    Err(match send_error(refusal) {
        // Deleted, too old, in a group that moved, or something new: it is not this text that the chat shows.
        SendError::Refused(cause) => EditError::Lost(cause),
        other => other.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn refused(code: u16, description: &str) -> Result<(), EditError> {
        let retry_after = (code == 429).then_some(Duration::from_secs(7));
        edit_error(Refusal { code, description: description.to_owned(), retry_after, migrated_to: None })
    }

    #[test]
    fn every_error_answer_has_its_meaning() {
        let same =
            "Bad Request: message is not modified: specified new message content and reply markup are exactly the same";
        assert_eq!(refused(400, same), Ok(()));
        for lost in ["Bad Request: message to edit not found", "Bad Request: message can't be edited"] {
            assert!(matches!(refused(400, lost), Err(EditError::Lost(_))), "{lost}");
        }
        let blocked = refused(403, "Forbidden: bot was blocked by the user");
        assert!(matches!(blocked, Err(EditError::Failed(SendError::ChatGone(_)))));
        let Err(EditError::Failed(SendError::RetryAfter { after, .. })) = refused(429, "Too Many Requests") else {
            panic!("a flood")
        };
        assert_eq!(after, Duration::from_secs(7));
        assert!(matches!(refused(500, ""), Err(EditError::Failed(SendError::Retry(_)))));
    }
}
