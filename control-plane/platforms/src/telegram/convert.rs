//! A Telegram update as an [`InboundMessage`], and who may talk to the account.
//!
//! Pure. Called by the poll loop for each update. Always true: what the allow rule does not name is never converted, or marked as a
//! stranger's where those are handed on; no
//! text leaves here with U+0000 in it. A message has its text, or its caption and the file that is to be fetched; a sticker is its emoji; what is
//! none of these is ignored.
//!
//! Chat types follow the reference: a private chat is `dm`, groups and supergroups are `group`, a supergroup with topics is
//! `forum`, a channel is `channel`. `thread_id` is the topic, set for topic messages alone (Telegram also numbers plain reply
//! threads; those are no topics). A forum's General topic has no `thread_id`, since sending with its number fails.

use std::collections::HashSet;

use hermes_core::Source;
use hermes_core::attachment::Kind;

use super::api::MAX_FILE;
use super::wire::{Chat, File, Message, Pressed, Update, User};
use crate::InboundMessage;

/// Platform name of every Telegram source.
pub(super) const PLATFORM: &str = "telegram";

/// Who may talk to the account.
#[derive(Clone, Debug, Default)]
pub(super) struct AllowRule {
    pub(super) users: HashSet<String>,
    pub(super) chats: HashSet<String>,
    pub(super) all: bool,
    /// Whoever is not named may have paired, or may want to: their messages are handed on as strangers'.
    pub(super) strangers: bool,
}

impl AllowRule {
    /// Whether it lets anybody in at all.
    pub(super) fn is_empty(&self) -> bool {
        !self.all && !self.strangers && self.users.is_empty() && self.chats.is_empty()
    }

    fn permits(&self, source: &Source) -> bool {
        self.all
            || self.chats.contains(&source.chat_id)
            || source.user_id.as_ref().is_some_and(|user| self.users.contains(user))
    }
}

/// Why an update is acknowledged without becoming a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ignored {
    /// No new message in it (an edit, a membership change …).
    Kind,
    /// No text in it.
    NoText,
    /// Another bot wrote it; answering could loop.
    Bot,
    /// The allow rule does not name its sender or chat.
    Unauthorised,
}

/// A file of a message that is still to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) file_id: String,
    /// Bytes, where Telegram says so.
    pub(super) size: Option<u64>,
}

/// Converts one update of bot `bot_id` on `account`; with the file that is to be fetched for it.
pub(super) fn inbound(
    update: Update,
    account: &str,
    bot_id: i64,
    allow: &AllowRule,
) -> Result<(InboundMessage, Option<Wanted>), Ignored> {
    let message =
        update.message.or(update.channel_post).or(update.callback_query.and_then(said)).ok_or(Ignored::Kind)?;
    // An anonymous group admin is a bot by name, but speaks for the group (`sender_chat`).
    if message.sender_chat.is_none() && message.from.as_ref().is_some_and(|user| user.is_bot) {
        return Err(Ignored::Bot);
    }
    let source = source(&message, account);
    let stranger = !allow.permits(&source);
    if stranger && !(allow.strangers && source.user_id.is_some()) {
        return Err(Ignored::Unauthorised);
    }
    let wanted = wanted(&message);
    let said = message.text.or(message.caption).filter(|text| !text.is_empty());
    let said = said.or(message.sticker.and_then(|sticker| sticker.emoji));
    let text = match (said, &wanted) {
        (Some(text), _) => without_nul(&text),
        (None, Some(_)) => String::new(),
        (None, None) => return Err(Ignored::NoText),
    };
    let message = InboundMessage {
        source,
        stranger,
        text,
        attachments: Vec::new(),
        dedupe_key: format!("tg:{bot_id}:{}", update.update_id),
        event_time: None,
        reply_to: None,
    };
    Ok((message, wanted))
}

/// The file of a message. A message has one: an album comes as several.
fn wanted(message: &Message) -> Option<Wanted> {
    let largest = message.photo.iter().rev().find(|photo| photo.file_size.is_none_or(|size| size <= MAX_FILE)).cloned();
    let (kind, name, file) = match message {
        Message { photo, .. } if !photo.is_empty() => (Kind::Image, "photo.jpg", largest),
        Message { voice: Some(file), .. } => (Kind::Voice, "voice.ogg", Some(file.clone())),
        Message { audio: Some(file), .. } => (Kind::Audio, "audio.mp3", Some(file.clone())),
        Message { video: Some(file), .. } => (Kind::Video, "video.mp4", Some(file.clone())),
        Message { video_note: Some(file), .. } => (Kind::Video, "video.mp4", Some(file.clone())),
        Message { document: Some(file), .. } => (Kind::Document, "document", Some(file.clone())),
        _ => return None,
    };
    let File { file_id, file_name, file_size } = file.or_else(|| message.photo.first().cloned())?;
    let name = file_name.as_deref().map_or_else(|| name.to_owned(), without_nul);
    Some(Wanted { kind, name, file_id, size: file_size })
}

/// Pressing a button is saying its words where it stands. Only messages of ours have buttons, so the words are ours.
fn said(pressed: Pressed) -> Option<Message> {
    let Pressed { from, message, data, .. } = pressed;
    message.map(|message| Message { from: Some(from), sender_chat: None, text: data, caption: None, ..message })
}

fn source(message: &Message, account: &str) -> Source {
    let topic = message.message_thread_id.filter(|_| message.is_topic_message);
    Source {
        platform: PLATFORM.to_owned(),
        account: Some(account.to_owned()),
        chat_id: message.chat.id.to_string(),
        chat_type: chat_type(&message.chat, topic.is_some()).to_owned(),
        thread_id: topic.map(|id| id.to_string()),
        parent_chat_id: None,
        user_id: message.from.as_ref().map(|user| user.id.to_string()),
        user_id_alt: None,
        guild_id: None,
        user_name: message.from.as_ref().map(user_name),
        chat_name: chat_name(&message.chat),
        message_id: Some(message.message_id.to_string()),
    }
}

fn chat_type(chat: &Chat, topic: bool) -> &str {
    match chat.kind.as_str() {
        "private" => "dm",
        "supergroup" | "group" if chat.is_forum || topic => "forum",
        "supergroup" | "group" => "group",
        // `channel`, and whatever Telegram invents: never mistaken for a direct message.
        "dm" => "other",
        other => other,
    }
}

fn user_name(user: &User) -> String {
    let name = full_name(Some(&user.first_name), user.last_name.as_deref());
    name.or_else(|| user.username.as_deref().map(without_nul)).unwrap_or_default()
}

fn chat_name(chat: &Chat) -> Option<String> {
    chat.title.as_deref().map(without_nul).or_else(|| full_name(chat.first_name.as_deref(), chat.last_name.as_deref()))
}

fn full_name(first: Option<&str>, last: Option<&str>) -> Option<String> {
    let parts: Vec<&str> = first.into_iter().chain(last).filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| without_nul(&parts.join(" ")))
}

/// Postgres text and most terminals cannot hold U+0000.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn convert(message: Value, allow: &AllowRule) -> Result<InboundMessage, Ignored> {
        let update = serde_json::from_value(json!({"update_id": 9, "message": message, "novelty": [1]})).unwrap();
        inbound(update, "main", 77, allow).map(|(message, _)| message)
    }

    fn everybody() -> AllowRule {
        AllowRule { all: true, ..AllowRule::default() }
    }

    fn message(chat: Value, more: Value) -> Value {
        let mut message = json!({"message_id": 5, "date": 1, "chat": chat, "text": "hi",
            "from": {"id": 42, "is_bot": false, "first_name": "Ann", "last_name": "Lee", "username": "al"}});
        message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        message
    }

    #[test]
    fn a_private_message_becomes_a_dm() {
        let chat = json!({"id": 42, "type": "private", "first_name": "Ann"});
        let inbound = convert(message(chat, json!({"text": "a\u{0}b"})), &everybody()).unwrap();
        assert_eq!(inbound.dedupe_key, "tg:77:9");
        assert_eq!(inbound.text, "a\u{fffd}b");
        assert_eq!(
            inbound.source,
            Source {
                platform: "telegram".into(),
                account: Some("main".into()),
                chat_id: "42".into(),
                chat_type: "dm".into(),
                user_id: Some("42".into()),
                user_name: Some("Ann Lee".into()),
                chat_name: Some("Ann".into()),
                message_id: Some("5".into()),
                ..Source::default()
            }
        );
    }

    #[test]
    fn groups_topics_and_channels_get_their_chat_type_and_only_topics_a_thread() {
        let cases = [
            (json!({"id": -1, "type": "group", "title": "G"}), json!({}), "group", None),
            (json!({"id": -2, "type": "supergroup"}), json!({"message_thread_id": 4}), "group", None),
            (
                json!({"id": -3, "type": "supergroup", "is_forum": true}),
                json!({"message_thread_id": 42, "is_topic_message": true}),
                "forum",
                Some("42"),
            ),
            (json!({"id": -3, "type": "supergroup", "is_forum": true}), json!({}), "forum", None),
            (json!({"id": -4, "type": "channel"}), json!({"from": null}), "channel", None),
            (
                json!({"id": 8, "type": "private"}),
                json!({"message_thread_id": 3, "is_topic_message": true}),
                "dm",
                Some("3"),
            ),
            (json!({"id": 8, "type": "dm"}), json!({}), "other", None),
        ];
        for (chat, more, chat_type, thread) in cases {
            let source = convert(message(chat.clone(), more), &everybody()).unwrap().source;
            assert_eq!((source.chat_type.as_str(), source.thread_id.as_deref()), (chat_type, thread), "{chat}");
        }
    }

    #[test]
    fn only_the_named_users_and_chats_are_let_in() {
        let users = AllowRule { users: ["42".to_owned()].into(), ..AllowRule::default() };
        let chats = AllowRule { chats: ["-1".to_owned()].into(), ..AllowRule::default() };
        let private = json!({"id": 42, "type": "private"});
        let group = json!({"id": -1, "type": "group"});
        assert!(convert(message(private.clone(), json!({})), &users).is_ok());
        assert!(convert(message(group.clone(), json!({})), &users).is_ok());
        assert!(convert(message(group.clone(), json!({})), &chats).is_ok());
        assert_eq!(convert(message(private, json!({})), &chats), Err(Ignored::Unauthorised));
        let stranger = json!({"from": {"id": 43, "first_name": "42"}});
        assert_eq!(convert(message(group, stranger), &users), Err(Ignored::Unauthorised));
        assert!(AllowRule::default().is_empty());
    }

    #[test]
    fn where_strangers_are_handed_on_they_are_marked() {
        let open = AllowRule { users: ["42".to_owned()].into(), strangers: true, ..AllowRule::default() };
        let chat = json!({"id": 42, "type": "private"});
        assert!(!convert(message(chat.clone(), json!({})), &open).unwrap().stranger);
        let eve = json!({"from": {"id": 43, "first_name": "Eve"}});
        assert!(convert(message(chat, eve), &open).unwrap().stranger);
        let channel = json!({"id": -4, "type": "channel"});
        assert_eq!(convert(message(channel, json!({"from": null})), &open), Err(Ignored::Unauthorised));
        assert!(!AllowRule { strangers: true, ..AllowRule::default() }.is_empty());
    }

    #[test]
    fn a_pressed_button_is_said_by_whoever_pressed_it() {
        let ours = json!({"message_id": 5, "from": {"id": 7, "is_bot": true, "first_name": "B"},
            "chat": {"id": 42, "type": "private"}, "text": "Question 3: may I?"});
        let pressed = json!({"update_id": 9, "callback_query": {"id": "q", "from": {"id": 42, "first_name": "Ada"},
            "message": ours, "data": "/approve 3 once"}});
        let (message, _) = inbound(serde_json::from_value(pressed).unwrap(), "main", 7, &everybody()).unwrap();
        assert_eq!((message.text.as_str(), message.source.user_id.as_deref()), ("/approve 3 once", Some("42")));
        assert_eq!((message.source.chat_id.as_str(), message.dedupe_key.as_str()), ("42", "tg:7:9"));
        let stranger = json!({"update_id": 9, "callback_query": {"id": "q", "from": {"id": 43, "first_name": "Eve"},
            "message": {"message_id": 5, "chat": {"id": -1, "type": "group"}}, "data": "/approve 3"}});
        let only = AllowRule { users: ["42".to_owned()].into(), ..AllowRule::default() };
        let stranger = inbound(serde_json::from_value(stranger).unwrap(), "main", 7, &only);
        assert_eq!(stranger, Err(Ignored::Unauthorised));
    }

    #[test]
    fn captions_count_as_text_and_the_rest_is_ignored() {
        let chat = json!({"id": 42, "type": "private"});
        let photo = message(chat.clone(), json!({"text": null, "caption": "look"}));
        assert_eq!(convert(photo, &everybody()).unwrap().text, "look");
        let nothing = message(chat.clone(), json!({"text": null}));
        assert_eq!(convert(nothing, &everybody()), Err(Ignored::NoText));
        let sticker = message(chat.clone(), json!({"text": null, "sticker": {"file_id": "s", "emoji": "👍"}}));
        assert_eq!(convert(sticker, &everybody()).unwrap().text, "👍");
        let bot = message(chat, json!({"from": {"id": 1, "is_bot": true, "first_name": "B"}}));
        assert_eq!(convert(bot, &everybody()), Err(Ignored::Bot));
        let edit = serde_json::from_value(json!({"update_id": 1, "edited_message": {}})).unwrap();
        assert_eq!(inbound(edit, "main", 7, &everybody()), Err(Ignored::Kind));
    }

    #[test]
    fn a_message_has_the_file_that_is_fetched_for_it() {
        let chat = json!({"id": 42, "type": "private"});
        let wants = |more: Value, allow: &AllowRule| {
            let mut message = message(chat.clone(), json!({"text": null}));
            message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let update = serde_json::from_value(json!({"update_id": 9, "message": message})).unwrap();
            inbound(update, "main", 77, allow).map(|(message, wanted)| {
                (message.text, wanted.map(|wanted| (wanted.kind, wanted.name, wanted.file_id, wanted.size)))
            })
        };
        let photo = json!({"caption": "look", "photo": [
            {"file_id": "s", "file_size": 9}, {"file_id": "l", "file_size": 900}, {"file_id": "xl", "file_size": 30_000_000}]});
        let large = (Kind::Image, "photo.jpg".to_owned(), "l".to_owned(), Some(900));
        assert_eq!(wants(photo.clone(), &everybody()), Ok(("look".to_owned(), Some(large))));
        let document = json!({"document": {"file_id": "d", "file_name": "../a\u{0}.pdf", "mime_type": "image/png"}});
        let wanted = (Kind::Document, "../a\u{fffd}.pdf".to_owned(), "d".to_owned(), None);
        assert_eq!(wants(document, &everybody()), Ok((String::new(), Some(wanted))));
        for (name, kind) in
            [("voice", Kind::Voice), ("audio", Kind::Audio), ("video", Kind::Video), ("video_note", Kind::Video)]
        {
            let (text, wanted) = wants(json!({name: {"file_id": "f"}}), &everybody()).unwrap();
            assert_eq!((text.as_str(), wanted.unwrap().0), ("", kind), "{name}");
        }
        // Whether a stranger's is fetched, the sink knows.
        let pairs = AllowRule { strangers: true, ..AllowRule::default() };
        assert!(wants(photo, &pairs).unwrap().1.is_some());
    }
}
