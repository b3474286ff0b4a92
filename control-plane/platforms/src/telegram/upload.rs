//! A file with its caption: which method takes it, and how long that may take.
//!
//! Called by the sends. Always true: a file goes as what it is only where Telegram shows that kind, else as a document, so that none is
//! refused for its kind; it goes once, and once more as a document only after Telegram has answered that the first form had no effect.

use std::time::Duration;

use hermes_core::attachment::Kind;
use serde_json::Value;

use super::Telegram;
use super::api::{CallError, Refusal};
use super::send::{ChatId, Keyboard, SEND_TIMEOUT};
use crate::multipart::Form;
use crate::{Button, Deadline, OutboundFile};

/// Longest caption, UTF-16 units.
pub(super) const CAPTION_LIMIT: usize = 1_024;
/// Largest photo, bytes; a larger one is sent as a document, up to 50 MB of which Telegram takes from a bot.
const PHOTO_BYTES: usize = 10 << 20;
/// The slowest line on which an upload still comes to its end, bytes a second.
const SLOWEST_LINE: u64 = 128 * 1024;
/// However large the file.
const LONGEST_UPLOAD: Duration = Duration::from_secs(240);
/// Telegram's refusals of a form that leave the file itself untouched: dimensions, a picture that it cannot read, a size, and a reader who
/// takes no voice messages.
const OTHER_FORM: [&str; 4] =
    ["photo_invalid_dimensions", "image_process_failed", "too big for a photo", "voice_messages_forbidden"];

/// A method, and the parameter of it that is the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Method {
    name: &'static str,
    parameter: &'static str,
}

const PHOTO: Method = Method { name: "sendPhoto", parameter: "photo" };
const VOICE: Method = Method { name: "sendVoice", parameter: "voice" };
const AUDIO: Method = Method { name: "sendAudio", parameter: "audio" };
const VIDEO: Method = Method { name: "sendVideo", parameter: "video" };
const DOCUMENT: Method = Method { name: "sendDocument", parameter: "document" };

/// By what it is to be shown as, and whether it is what Telegram shows so.
fn method_of(file: &OutboundFile) -> Method {
    match (file.kind(), file.media_type()) {
        (Kind::Image, "image/png" | "image/jpeg" | "image/webp") if file.bytes().len() <= PHOTO_BYTES => PHOTO,
        (Kind::Voice, "audio/ogg" | "audio/opus") => VOICE,
        // A voice message that Telegram does not play as one can still be listened to.
        (Kind::Voice | Kind::Audio, "audio/mpeg" | "audio/mp3" | "audio/mp4" | "audio/m4a" | "audio/x-m4a") => AUDIO,
        (Kind::Video, "video/mp4") => VIDEO,
        _ => DOCUMENT,
    }
}

/// What a text has, and the time for its bytes on the slowest line.
fn time_for(bytes: usize) -> Duration {
    let seconds = u64::try_from(bytes).unwrap_or(u64::MAX) / SLOWEST_LINE;
    SEND_TIMEOUT.saturating_add(Duration::from_secs(seconds)).min(LONGEST_UPLOAD)
}

impl Telegram {
    /// Sends the file with its caption, which may be empty.
    pub(super) async fn call_upload(
        &self,
        chat_id: &ChatId<'_>,
        thread: Option<i64>,
        (caption, buttons, file): (&str, &[Button], &OutboundFile),
        not_after: Option<&Deadline>,
    ) -> Result<Value, CallError> {
        let limit = time_for(file.bytes().len());
        let form = |method: Method| {
            let mut form = Form::new().text("chat_id", &chat_id.to_string());
            if let Some(thread) = thread {
                form = form.text("message_thread_id", &thread.to_string());
            }
            if !caption.is_empty() {
                form = form.text("caption", caption);
            }
            if let Some(keyboard) = Keyboard::of(buttons).and_then(|keyboard| serde_json::to_string(&keyboard).ok()) {
                form = form.text("reply_markup", &keyboard);
            }
            if method == DOCUMENT {
                // Else a document of a known type is shown as something else.
                form = form.text("disable_content_type_detection", "true");
            }
            form.file(method.parameter, file)
        };
        let method = method_of(file);
        match self.api.upload(method.name, form(method), limit, not_after).await {
            Err(CallError::Refused(refusal)) if method != DOCUMENT && wants_another_form(&refusal) => {
                let (account, name) = (&self.account, method.name);
                tracing::info!(account, name, why = refusal.description, "the file is sent as a document");
                self.api.upload(DOCUMENT.name, form(DOCUMENT), limit, not_after).await
            }
            answer => answer,
        }
    }
}

fn wants_another_form(refusal: &Refusal) -> bool {
    refusal.code == 400 && OTHER_FORM.iter().any(|words| refusal.says(words))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_file_goes_as_what_it_is_or_as_a_document() {
        let method = |kind, media_type, bytes| {
            method_of(&OutboundFile::new(kind, "a", media_type, Bytes::from(vec![0; bytes])).unwrap()).name
        };
        for media_type in ["image/png", "image/jpeg", "image/webp"] {
            assert_eq!(method(Kind::Image, media_type, PHOTO_BYTES), "sendPhoto");
            assert_eq!(method(Kind::Image, media_type, PHOTO_BYTES + 1), "sendDocument");
            assert_eq!(method(Kind::Document, media_type, 1), "sendDocument", "as it was asked for");
        }
        for (kind, media_type, name) in [
            (Kind::Image, "image/svg+xml", "sendDocument"),
            (Kind::Image, "image/gif", "sendDocument"),
            (Kind::Voice, "audio/ogg", "sendVoice"),
            (Kind::Voice, "audio/mpeg", "sendAudio"),
            (Kind::Voice, "audio/wav", "sendDocument"),
            (Kind::Audio, "audio/mpeg", "sendAudio"),
            (Kind::Audio, "audio/mp4", "sendAudio"),
            (Kind::Audio, "audio/ogg", "sendDocument"),
            (Kind::Video, "video/mp4", "sendVideo"),
            (Kind::Video, "video/x-matroska", "sendDocument"),
        ] {
            assert_eq!(method(kind, media_type, 1), name, "{kind:?} {media_type}");
        }
    }

    #[test]
    fn a_larger_file_has_more_time_and_never_without_end() {
        assert_eq!(time_for(0), SEND_TIMEOUT);
        assert_eq!(time_for(crate::MAX_FILE_BYTES), SEND_TIMEOUT + Duration::from_secs(160));
        assert_eq!(time_for(usize::MAX), LONGEST_UPLOAD);
    }
}
