//! Files that come with a message: what is known of one, where its agent finds it, and what is said of it.
//!
//! Built by intake's callers from what came in, kept with the turn's input, read by whoever gives a turn its files. Pure. Always true: a file is
//! named by the hash of its content; the name that its sender gave is shown and never a path; what the text says of a file says
//! where it lies, so that later turns, searches and people see the same.

use serde::{Deserialize, Serialize};

/// Largest file, bytes.
pub const MAX_BYTES: usize = 20 << 20;
/// Most files of one message.
pub const MAX_FILES: usize = 10;
/// Largest picture that is shown to a model, bytes: in base64 it takes 5 MiB, Anthropic's limit and the smallest of the known ones.
pub const MAX_PICTURE_BYTES: u64 = (5 << 20) / 4 * 3;
/// Largest audio file that a model is played, bytes: in base64, with what is said besides, it stays within the 20 MB that Gemini takes in a request.
pub const MAX_AUDIO_BYTES: u64 = 10 << 20;
/// Where files lie, in the home.
pub const INBOX: &str = "workspace/inbox";
/// Longest name that is shown, characters and bytes: with the hash before it, it is the name of a file.
const MAX_NAME_CHARS: usize = 80;
const MAX_NAME_BYTES: usize = 200;
/// So much of the hash stands before the name of a file, characters.
const HASH_CHARS: usize = 12;

/// What a file is to people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A picture.
    Image,
    /// Something said.
    Voice,
    /// Music and the like.
    Audio,
    /// Moving pictures.
    Video,
    /// Anything else.
    #[default]
    Document,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Image, Self::Voice, Self::Audio, Self::Video, Self::Document];

    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "picture",
            Self::Voice => "voice message",
            Self::Audio => "audio file",
            Self::Video => "video",
            Self::Document => "file",
        }
    }

    /// The same with its article.
    pub fn one(self) -> &'static str {
        match self {
            Self::Image => "a picture",
            Self::Voice => "a voice message",
            Self::Audio => "an audio file",
            Self::Video => "a video",
            Self::Document => "a file",
        }
    }

    /// What a file of this kind is, when its content is of that media type: a picture that is none is a document.
    #[must_use]
    pub fn of_content(self, media_type: &str) -> Self {
        let family = media_type.split_once('/').map_or(media_type, |(family, _)| family);
        match (self, family) {
            (Self::Image | Self::Document, "image") => Self::Image,
            (Self::Voice | Self::Audio, "audio") => self,
            (_, "audio") => Self::Audio,
            // Voice messages come in containers that are told from videos by their streams only.
            (Self::Voice | Self::Audio, "video") => self,
            (_, "video") => Self::Video,
            _ => Self::Document,
        }
    }
}

/// A file of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What it is to people.
    pub kind: Kind,
    /// What it is called; see [`shown_name`].
    pub name: String,
    /// By its content, not by what its sender says.
    pub media_type: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content, 64 hexadecimal digits in lower case.
    pub sha256: String,
    /// Where it lies in the home of its agent, `/` separated: below [`INBOX`], one part.
    pub path: String,
}

impl Attachment {
    /// A file with that content, by the hash of which it is known, and of that media type.
    pub fn new(kind: Kind, given_name: &str, media_type: &str, bytes: u64, sha256: String) -> Self {
        let name = shown_name(given_name);
        let hash = sha256.get(..HASH_CHARS).unwrap_or_default();
        let path = format!("{INBOX}/{hash}-{}", name.replace(' ', "_"));
        Self { kind: kind.of_content(media_type), name, media_type: media_type.to_owned(), bytes, sha256, path }
    }

    /// What it is to a model that is given the file itself; nothing for one that no model is given.
    pub fn medium(&self) -> Option<Medium> {
        let (medium, most) = match self.media_type.as_str() {
            "image/png" | "image/jpeg" | "image/webp" | "image/gif" => (Medium::Picture, MAX_PICTURE_BYTES),
            "audio/x-wav" | "audio/mpeg" | "audio/ogg" | "audio/opus" | "audio/x-flac" | "audio/aac"
            | "audio/x-aiff" => (Medium::Audio, MAX_AUDIO_BYTES),
            _ => return None,
        };
        (self.bytes <= most).then_some(medium)
    }
}

/// What a file is to a model that is given it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Medium {
    /// Something to see.
    Picture,
    /// Something to hear.
    Audio,
}

/// A text with a line for each of its files.
pub fn told(text: &str, files: &[Attachment]) -> String {
    let mut told = text.to_owned();
    for file in files {
        if !told.is_empty() {
            told.push('\n');
        }
        let Attachment { kind, name, media_type, bytes, path, .. } = file;
        let path = path.strip_prefix("workspace/").unwrap_or(path);
        told.push_str(&format!(
            "[The user sent {}: {name} ({media_type}, {bytes} bytes). It is in your workspace at {path}]",
            kind.one()
        ));
    }
    told
}

/// A name as it may be shown and be the end of a file's name: its last part, without what is neither letter, digit nor one of ` ._-()`.
pub fn shown_name(given: &str) -> String {
    let last = given.rsplit(['/', '\\']).next().unwrap_or_default();
    let allowed = |c: char| c.is_alphanumeric() || " ._-()".contains(c);
    let name: String = last.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    let name = name.trim_matches(|c: char| c == '.' || c == ' ');
    // The end says what it is.
    let too_many = name.chars().count().saturating_sub(MAX_NAME_CHARS);
    let name: String = name.chars().skip(too_many).collect();
    let name = name.get(name.ceil_char_boundary(name.len().saturating_sub(MAX_NAME_BYTES))..).unwrap_or_default();
    if name.is_empty() { "file".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> Attachment {
        Attachment::new(Kind::Document, name, "text/plain", 3, "ab".repeat(32))
    }

    #[test]
    fn a_name_is_never_a_path() {
        for (given, shown) in [
            ("../../.bashrc", "bashrc"),
            ("/etc/passwd", "passwd"),
            ("C:\\x\\Report (1).pdf", "Report (1).pdf"),
            ("a\n[The user sent", "a__The user sent"),
            ("ärger\u{202e}gpj.exe", "ärger_gpj.exe"),
            ("..", "file"),
            ("", "file"),
        ] {
            assert_eq!(shown_name(given), shown, "{given:?}");
        }
        let long = shown_name(&format!("{}.png", "x".repeat(500)));
        assert_eq!((long.chars().count(), long.ends_with(".png")), (80, true));
        let styled = shown_name(&format!("{}.png", "𝓯".repeat(500)));
        assert_eq!((styled.len(), styled.ends_with("𝓯.png")), (200, true));
        assert_eq!(file("my notes.txt").path, "workspace/inbox/abababababab-my_notes.txt");
    }

    #[test]
    fn a_text_says_what_came_with_it() {
        let line =
            "[The user sent a file: a.txt (text/plain, 3 bytes). It is in your workspace at inbox/abababababab-a.txt]";
        assert_eq!(told("see", &[file("a.txt")]), format!("see\n{line}"));
        assert_eq!(told("", &[file("a.txt")]), line);
        assert_eq!(told("see", &[]), "see");
    }

    #[test]
    fn content_decides_what_a_file_is() {
        assert_eq!(Kind::Image.of_content("image/png"), Kind::Image);
        assert_eq!(Kind::Image.of_content("text/html"), Kind::Document);
        assert_eq!(Kind::Document.of_content("image/gif"), Kind::Image);
        assert_eq!(Kind::Voice.of_content("audio/ogg"), Kind::Voice);
        assert_eq!(Kind::Document.of_content("audio/mpeg"), Kind::Audio);
        let large = Attachment { media_type: "image/png".to_owned(), bytes: MAX_PICTURE_BYTES + 1, ..file("a.png") };
        assert_eq!((large.medium(), Attachment { bytes: 9, ..large }.medium()), (None, Some(Medium::Picture)));
        let of = |media_type: &str| Attachment { media_type: media_type.to_owned(), ..file("a") }.medium();
        assert_eq!(
            (of("audio/mpeg"), of("audio/opus"), of("audio/midi")),
            (Some(Medium::Audio), Some(Medium::Audio), None)
        );
    }
}
