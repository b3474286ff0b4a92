//! A file that goes out with a message.
//!
//! Built by whoever sends, read by the adapters. Always true: it is within the bound that every adapter may rely on; its name is for show
//! and its media type for the wire, and neither can say more than that, whatever an agent wrote.

use std::fmt;

use bytes::Bytes;
use hermes_core::attachment::Kind;

/// Largest file, bytes: what attachments are kept up to.
pub const MAX_FILE_BYTES: usize = 20 << 20;
/// Longest name, characters.
const NAME_CHARS: usize = 128;
/// Longest ending of a name that is kept where the name is cut, its dot included.
const ENDING_CHARS: usize = 16;
const UNNAMED: &str = "file";
/// What a media type is that nobody can read.
const ANY_TYPE: &str = "application/octet-stream";

/// Why bytes cannot be sent as a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a file of {bytes} bytes is too large to be sent, the most is {MAX_FILE_BYTES}")]
pub struct NotAFile {
    /// Its size.
    pub bytes: usize,
}

/// See the module. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct OutboundFile {
    kind: Kind,
    name: String,
    media_type: String,
    bytes: Bytes,
}

impl OutboundFile {
    /// A file of this name and media type as they are given: of a path the last part is its name, what cannot be shown is left out, and a
    /// media type loses its parameters.
    ///
    /// # Errors
    /// [`NotAFile`] beyond [`MAX_FILE_BYTES`].
    pub fn new(kind: Kind, name: &str, media_type: &str, bytes: Bytes) -> Result<Self, NotAFile> {
        if bytes.len() > MAX_FILE_BYTES {
            return Err(NotAFile { bytes: bytes.len() });
        }
        Ok(Self { kind, name: shown(name), media_type: essence(media_type), bytes })
    }

    /// What it is shown as, where the platform can.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it is called: 1 to 128 characters, no path, no control characters, no quotes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `type/subtype`, in lower case.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// Its content.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl fmt::Debug for OutboundFile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, media_type, bytes } = self;
        write!(out, "{kind:?} {name:?} ({media_type}, {} bytes)", bytes.len())
    }
}

fn shown(given: &str) -> String {
    let last = given.rsplit(['/', '\\']).next().unwrap_or_default();
    // Marks of direction show an ending that the name does not have.
    let unseen = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let name: String = last.chars().filter(|&c| !unseen(c)).map(|c| if c == '"' { '\'' } else { c }).collect();
    let name = name.trim_matches(|c: char| c == '.' || c.is_whitespace());
    let count = name.chars().count();
    if count == 0 {
        return UNNAMED.to_owned();
    }
    if count <= NAME_CHARS {
        return name.to_owned();
    }
    let ending = name.rfind('.').map_or("", |at| &name[at..]);
    let ending = if ending.chars().count() <= ENDING_CHARS { ending } else { "" };
    name.chars().take(NAME_CHARS - ending.chars().count()).chain(ending.chars()).collect()
}

fn essence(given: &str) -> String {
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_token =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "!#$&^_.+-".contains(c));
    match essence.split_once('/') {
        Some((family, kind)) if is_token(family) && is_token(kind) && essence.len() <= NAME_CHARS => essence,
        _ => ANY_TYPE.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, media_type: &str) -> OutboundFile {
        OutboundFile::new(Kind::Document, name, media_type, Bytes::new()).unwrap()
    }

    #[test]
    fn a_name_is_for_show_alone() {
        for (given, name) in [
            ("report.pdf", "report.pdf"),
            ("/etc/passwd", "passwd"),
            ("..\\..\\x\\Report (1).pdf", "Report (1).pdf"),
            ("a\"; name=\"chat_id\r\n\r\n7.txt", "a'; name='chat_id7.txt"),
            ("ärger\u{202e}gpj.exe", "ärgergpj.exe"),
            ("a/..", "file"),
            (".bashrc", "bashrc"),
            ("", "file"),
        ] {
            assert_eq!(file(given, "").name(), name, "{given:?}");
        }
        for long in [format!("{}.png", "é".repeat(500)), format!("x.{}", "y".repeat(500))] {
            assert_eq!(file(&long, "").name().chars().count(), NAME_CHARS);
        }
        assert!(file(&format!("{}.png", "é".repeat(500)), "").name().ends_with("é.png"));
    }

    #[test]
    fn a_media_type_is_one() {
        for (given, media_type) in [
            ("audio/ogg; codecs=opus", "audio/ogg"),
            ("Image/PNG", "image/png"),
            ("image/svg+xml", "image/svg+xml"),
            ("text/plain\r\nx: y", ANY_TYPE),
            ("png", ANY_TYPE),
            ("", ANY_TYPE),
        ] {
            assert_eq!(file("a", given).media_type(), media_type, "{given:?}");
        }
    }

    #[test]
    fn what_is_too_large_is_refused_and_content_stays_out_of_logs() {
        let most = OutboundFile::new(Kind::Image, "a", "", Bytes::from(vec![0; MAX_FILE_BYTES])).unwrap();
        assert!(format!("{most:?}").len() < 100);
        let more = OutboundFile::new(Kind::Image, "a", "", Bytes::from(vec![0; MAX_FILE_BYTES + 1]));
        assert!(more.unwrap_err().to_string().contains("20971521 bytes is too large"));
    }
}
