//! The parts of a delivery: its text as the platform takes it, and the files that it names by tags.
//!
//! Called by an attempt. Always true: the parts of a delivery are the same at every attempt, so what has arrived is known by their number; a
//! file is one that the delivery's own turn, or for a text from beside a turn its session, has brought; what cannot be sent is said in
//! the text. A reply's files follow its text, each by itself, since the text may become the message that showed the turn; a
//! text from beside a turn is the first file's caption where it fits. Few files are in memory at a time.

use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use hermes_core::attachment::{Attachment, Kind};
use hermes_home::media::{self, Reply};
use hermes_platforms::{Adapter, OutboundFile};
use uuid::Uuid;

use super::Outbox;
use crate::store::{self, DueDelivery, turn_file_id};

/// What the path of a tag begins with, in a text from beside a turn: the id of the file follows.
const BY_ID: &str = "upload-";

/// One message.
pub(super) struct Part {
    /// May be empty where there is a file.
    pub(super) text: String,
    pub(super) file: Option<Attachment>,
}

/// A text that names, by their ids, the files that a turn names by their paths; for a delivery from beside the turn.
pub(crate) fn by_id(turn: store::TurnId, text: &str) -> String {
    let Reply { text, files } = Reply::read(text);
    let mut named = text;
    for file in files {
        let ending = file.path.rsplit_once('.').map_or("", |(_, ending)| ending);
        let shown = match file.kind {
            media::Kind::Voice => "[[audio_as_voice]]",
            media::Kind::Document => "[[as_document]]",
            media::Kind::Photo | media::Kind::Audio | media::Kind::Video => "",
        };
        named.push_str(&format!("\nMEDIA:{BY_ID}{}.{ending} {shown}", turn_file_id(turn, &file.path)));
    }
    named.trim_start().to_owned()
}

/// The parts of a text; `None` when the adapter panicked.
///
/// # Errors
/// [`store::Error::Unavailable`].
pub(super) async fn parts(
    outbox: &Outbox,
    adapter: &dyn Adapter,
    delivery: &DueDelivery,
    text: &str,
) -> store::Result<Option<Vec<Part>>> {
    let beside = delivery.turn.seq == 0;
    let tag = if beside { "MEDIA:upload-" } else { "MEDIA:" };
    if !text.contains(tag) {
        return Ok(super::attempt::split(adapter, text).map(|parts| parts.into_iter().map(Part::said).collect()));
    }
    let Reply { mut text, files: named } = Reply::read(text);
    let mut files = Vec::new();
    for named in named {
        let id = match beside {
            true => named.path.strip_prefix(BY_ID).and_then(|rest| rest.split('.').next()?.parse::<Uuid>().ok()),
            false => Some(turn_file_id(delivery.turn, &named.path)),
        };
        let found = match id {
            Some(id) => outbox.inner.store.turn_file(delivery.turn.session, id).await?,
            None => None,
        };
        match found {
            None => say(
                &mut text,
                &format!("[The file {} could not be sent: it is not in the workspace, or too large.]", named.path),
            ),
            Some(file) => {
                let file = Attachment { kind: kind_of(named.kind, &file.media_type), ..file };
                if adapter.takes(file.kind) {
                    files.push(file);
                } else {
                    let Attachment { name, bytes, .. } = file;
                    say(&mut text, &format!("[The file {name} ({bytes} bytes) cannot be sent here.]"));
                }
            }
        }
    }
    if text.trim().is_empty() && !beside {
        text = files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>().join(", ");
    }
    let mut files = files.into_iter();
    let mut parts: Vec<Part> = if beside && let Some(first) = files.next() {
        let split = std::panic::catch_unwind(AssertUnwindSafe(|| adapter.split_with_file(&text)));
        let Ok(split) = split else { return Ok(None) };
        let mut parts: Vec<Part> = split.into_iter().map(Part::said).collect();
        match parts.last_mut() {
            Some(last) => last.file = Some(first),
            None => parts.push(Part { text: String::new(), file: Some(first) }),
        }
        parts
    } else {
        let Some(split) = super::attempt::split(adapter, &text) else { return Ok(None) };
        split.into_iter().map(Part::said).collect()
    };
    parts.extend(files.map(|file| Part { text: String::new(), file: Some(file) }));
    Ok(Some(parts))
}

impl Part {
    fn said(text: String) -> Self {
        Self { text, file: None }
    }

    /// The part as it is sent: its text, with its file; what is not kept any more is said.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`].
    pub(super) async fn loaded(&self, outbox: &Outbox) -> store::Result<(String, Option<OutboundFile>)> {
        let Some(file) = &self.file else { return Ok((self.text.clone(), None)) };
        let content = outbox.inner.store.blob(&file.sha256).await?;
        let loaded = content
            .and_then(|content| OutboundFile::new(file.kind, &file.name, &file.media_type, Bytes::from(content)).ok());
        let mut text = self.text.clone();
        if loaded.is_none() {
            say(&mut text, &format!("[The file {} is not kept any more.]", file.name));
        }
        Ok((text, loaded))
    }
}

fn say(text: &mut String, sentence: &str) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(sentence);
}

/// What a file is sent as: what its tag wants, as far as its content is that.
fn kind_of(wanted: media::Kind, media_type: &str) -> Kind {
    match wanted {
        media::Kind::Photo => Kind::Image.of_content(media_type),
        media::Kind::Voice => Kind::Voice.of_content(media_type),
        media::Kind::Audio => Kind::Audio.of_content(media_type),
        media::Kind::Video => Kind::Video.of_content(media_type),
        media::Kind::Document => Kind::Document,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SessionId, TurnId};

    #[test]
    fn a_text_beside_a_turn_names_its_files_by_id() {
        let turn = TurnId { session: SessionId(7), seq: 3 };
        let text = by_id(turn, "see MEDIA:a.png and MEDIA:b.pdf");
        let ids: Vec<_> = ["a.png", "b.pdf"].map(|path| turn_file_id(turn, path)).into();
        assert_eq!(text, format!("see and\nMEDIA:upload-{}.png \nMEDIA:upload-{}.pdf [[as_document]]", ids[0], ids[1]));
        let read = Reply::read(&text);
        assert_eq!(read.files.len(), 2);
        assert_eq!(by_id(turn, "nothing [[as_document]] here MEDIA:x"), "nothing here MEDIA:x");
    }
}
