//! Files that a model is given itself: pictures to see, audio to hear.
//!
//! Made by `attachments`, told by the wires, left out by the broker. Always true: each wire is given what it can carry and nothing else; what it cannot is
//! only where the message's text says; a model that refuses what it is given is asked without, first without audio, then without pictures,
//! and told so; what it refused once it is not given again in that turn. Whether a model takes them its provider alone knows, so it is asked.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use hermes_core::attachment::{Attachment, Medium};
use hermes_core::config::{ProviderKind, Resolved};

use super::{Call, ProviderTarget};
use crate::shares::Share;

/// What a picture counts in a budget, as bytes of text: some 2,000 tokens, as the wires charge for large ones.
const PICTURE_COST: usize = 8 << 10;
/// Of what audio has, so many bytes count as one of text. 32 tokens a second, the dearest known: what is not compressed has at least 8 KB a
/// second, the rest 1 KB.
const PLAIN_AUDIO: usize = 64;
const COMPRESSED_AUDIO: usize = 8;

/// A file for a model that takes it.
#[derive(Clone, PartialEq, Eq)]
pub struct ShownFile {
    /// What it is to the model.
    pub medium: Medium,
    /// By its content, as [`Attachment::media_type`].
    pub media_type: String,
    /// SHA-256 of its content, as [`Attachment::sha256`].
    pub sha256: String,
    /// Its bytes in base64, as every wire wants them.
    pub base64: Arc<str>,
}

impl ShownFile {
    /// That file, with this content.
    pub fn new(medium: Medium, file: &Attachment, content: &[u8]) -> Self {
        let base64 = base64::engine::general_purpose::STANDARD.encode(content).into();
        Self { medium, media_type: file.media_type.clone(), sha256: file.sha256.clone(), base64 }
    }

    /// What it counts in a budget, as bytes of text.
    pub fn cost(&self) -> usize {
        let bytes = self.base64.len() / 4 * 3;
        match (self.medium, self.media_type.as_str()) {
            (Medium::Picture, _) => PICTURE_COST,
            (Medium::Audio, "audio/x-wav" | "audio/x-aiff") => bytes / PLAIN_AUDIO,
            (Medium::Audio, _) => bytes / COMPRESSED_AUDIO,
        }
    }
}

impl std::fmt::Debug for ShownFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShownFile({}, {} characters)", self.media_type, self.base64.len())
    }
}

/// Whether a file of this media type can be given to that model at all.
pub fn carries(model: &Resolved, media_type: &str) -> bool {
    match model {
        Resolved::Endpoint(endpoint) => form(endpoint.kind, media_type).is_some(),
        Resolved::Echo | Resolved::Unserved => false,
    }
}

/// What a wire calls a media type; nothing for one that it cannot carry.
fn form(kind: ProviderKind, media_type: &str) -> Option<&'static str> {
    use ProviderKind::{Gemini, Openai};
    Some(match (kind, media_type) {
        (_, "image/png") => "image/png",
        (_, "image/jpeg") => "image/jpeg",
        (_, "image/webp") => "image/webp",
        (_, "image/gif") => "image/gif",
        (Openai, "audio/x-wav") => "wav",
        (Openai, "audio/mpeg") => "mp3",
        (Gemini, "audio/x-wav") => "audio/wav",
        (Gemini, "audio/mpeg") => "audio/mp3",
        (Gemini, "audio/ogg" | "audio/opus") => "audio/ogg",
        (Gemini, "audio/x-flac") => "audio/flac",
        (Gemini, "audio/aac") => "audio/aac",
        (Gemini, "audio/x-aiff") => "audio/aiff",
        _ => return None,
    })
}

/// Files, and the message that they came with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Its place among the messages; what is said by a user.
    pub at: usize,
    /// None of them: nothing is shown.
    pub files: Arc<[ShownFile]>,
    /// Which models refused what of them.
    pub refused: Refused,
    /// What they take of the memory that all calls have for such files.
    pub room: Room,
}

impl Shown {
    /// Those of the message at this place that the wire can carry, with what it calls their media types.
    pub(super) fn of(&self, at: usize, kind: ProviderKind) -> impl Iterator<Item = (&ShownFile, &'static str)> {
        let files = if at == self.at { &*self.files } else { &[] };
        files.iter().filter_map(move |file| Some((file, form(kind, &file.media_type)?)))
    }

    fn has(&self, medium: Medium, kind: ProviderKind) -> bool {
        self.of(self.at, kind).any(|(file, _)| file.medium == medium)
    }
}

/// Which models refused what of a turn's files, shared by all calls of that turn. It makes no two things different.
#[derive(Clone, Debug, Default)]
pub struct Refused(Arc<Mutex<HashSet<(String, Medium)>>>);

impl PartialEq for Refused {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Refused {}

/// A part of something that is given back when nobody has it any more. It makes no two things different.
#[derive(Clone, Debug, Default)]
pub struct Room {
    _held: Option<Arc<Share>>,
}

impl From<Share> for Room {
    fn from(share: Share) -> Self {
        Self { _held: Some(Arc::new(share)) }
    }
}

impl PartialEq for Room {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Room {}

impl Call {
    /// Leaves out what this model refused before.
    pub(super) fn without_refused(&mut self, target: &ProviderTarget) {
        for medium in [Medium::Audio, Medium::Picture] {
            let key = (target.configured.clone(), medium);
            let refused = self.shown.refused.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&key);
            if refused && self.shown.has(medium, target.kind) {
                self.without(medium);
            }
        }
    }

    /// Leaves out what the provider that refused the call may have refused it for, and remembers that; nothing when there is nothing to leave out.
    pub(super) fn without_next(&mut self) -> Option<Medium> {
        let target = self.provider.clone()?;
        let medium = [Medium::Audio, Medium::Picture].into_iter().find(|&one| self.shown.has(one, target.kind))?;
        let key = (target.configured.clone(), medium);
        self.shown.refused.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        self.without(medium);
        Some(medium)
    }

    /// Leaves out files, and says so where they were.
    fn without(&mut self, medium: Medium) {
        self.shown.files = self.shown.files.iter().filter(|file| file.medium != medium).cloned().collect();
        let mut messages = self.messages.to_vec();
        if let Some(message) = messages.get_mut(self.shown.at) {
            let note = match medium {
                Medium::Picture => "\n[You cannot see pictures, so they are not shown to you.]",
                Medium::Audio => "\n[You cannot hear audio, so it is not played to you.]",
            };
            message.extend(note, Vec::new());
        }
        self.messages = messages.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wire_is_given_what_it_can_carry() {
        use ProviderKind::{Anthropic, Gemini, Openai};
        for (media_type, forms) in [
            ("image/webp", [Some("image/webp"); 3]),
            ("audio/x-wav", [Some("wav"), None, Some("audio/wav")]),
            ("audio/mpeg", [Some("mp3"), None, Some("audio/mp3")]),
            ("audio/opus", [None, None, Some("audio/ogg")]),
            ("audio/x-flac", [None, None, Some("audio/flac")]),
            ("audio/midi", [None; 3]),
            ("application/pdf", [None; 3]),
        ] {
            assert_eq!([Openai, Anthropic, Gemini].map(|kind| form(kind, media_type)), forms, "{media_type}");
        }
    }
}
