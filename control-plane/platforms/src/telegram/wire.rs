//! The Bot API's JSON, as far as we read it.
//!
//! Used by this adapter alone. Unknown fields and unknown kinds of updates are ignored: Telegram adds some every month.

use serde::Deserialize;

/// Every answer.
#[derive(Debug, Deserialize)]
pub(super) struct Envelope<T> {
    pub(super) ok: bool,
    pub(super) result: Option<T>,
    pub(super) error_code: Option<u16>,
    pub(super) description: Option<String>,
    pub(super) parameters: Option<Parameters>,
}

/// Hints of an error answer.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Parameters {
    /// Seconds.
    pub(super) retry_after: Option<u64>,
    pub(super) migrate_to_chat_id: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Update {
    pub(super) update_id: i64,
    pub(super) message: Option<Message>,
    pub(super) channel_post: Option<Message>,
    pub(super) callback_query: Option<Pressed>,
}

/// A button of one of our messages was pressed.
#[derive(Debug, Deserialize)]
pub(super) struct Pressed {
    pub(super) from: User,
    /// The message with the button; absent or without a date when it is too old.
    pub(super) message: Option<Message>,
    pub(super) data: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Message {
    pub(super) message_id: i64,
    pub(super) message_thread_id: Option<i64>,
    #[serde(default)]
    pub(super) is_topic_message: bool,
    pub(super) from: Option<User>,
    pub(super) sender_chat: Option<Chat>,
    pub(super) chat: Chat,
    pub(super) text: Option<String>,
    pub(super) caption: Option<String>,
    /// The same picture in several sizes, the smallest first.
    #[serde(default)]
    pub(super) photo: Vec<File>,
    pub(super) document: Option<File>,
    pub(super) voice: Option<File>,
    pub(super) audio: Option<File>,
    pub(super) video: Option<File>,
    pub(super) video_note: Option<File>,
    pub(super) sticker: Option<Sticker>,
}

/// A file that can be fetched, as each kind of message names it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct File {
    pub(super) file_id: String,
    pub(super) file_name: Option<String>,
    pub(super) file_size: Option<u64>,
}

/// Shown as its emoji.
#[derive(Debug, Deserialize)]
pub(super) struct Sticker {
    pub(super) emoji: Option<String>,
}

/// The answer to `getFile`.
#[derive(Debug, Deserialize)]
pub(super) struct Place {
    pub(super) file_path: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct User {
    pub(super) id: i64,
    #[serde(default)]
    pub(super) is_bot: bool,
    #[serde(default)]
    pub(super) first_name: String,
    pub(super) last_name: Option<String>,
    pub(super) username: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Chat {
    pub(super) id: i64,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) title: Option<String>,
    pub(super) first_name: Option<String>,
    pub(super) last_name: Option<String>,
    #[serde(default)]
    pub(super) is_forum: bool,
}

/// The answer to `getMe`.
#[derive(Debug, Deserialize)]
pub(super) struct Me {
    pub(super) id: i64,
}
