//! Files that a bot sends: the forms they come in, and what Telegram takes as a photo, a voice message and so on.

use std::collections::HashMap;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::answer::{Answer, Call, error};
use super::{Bot, SentFile};

/// Telegram's own bound on a caption, UTF-16 units.
const CAPTION_LIMIT: usize = 1_024;
const PHOTO_BYTES: usize = 10 * 1024 * 1024;
/// Of a file that a bot uploads.
pub(super) const FILE_BYTES: usize = 50 * 1024 * 1024;
/// Width and height of a photo together, pixels.
const PHOTO_SIDES: u64 = 10_000;
/// Of a photo's longer side to its shorter one.
const PHOTO_RATIO: u64 = 20;

/// A file of a form.
#[derive(Debug)]
pub(super) struct Part {
    name: String,
    media_type: String,
    content: Vec<u8>,
}

/// Texts and files of a `multipart/form-data` body, by the names of their parameters; nothing of a body that lacks its end.
pub(super) fn parts(content_type: &str, body: &[u8]) -> (HashMap<String, Value>, HashMap<String, Part>) {
    let (mut texts, mut files) = (HashMap::new(), HashMap::new());
    let Some(boundary) = content_type.split("boundary=").nth(1).map(|rest| rest.trim_matches('"')) else {
        return (texts, files);
    };
    let (first, next) = (format!("--{boundary}\r\n"), format!("\r\n--{boundary}"));
    let Some(mut rest) = body.strip_prefix(first.as_bytes()) else { return (texts, files) };
    while let (Some(head), Some(end)) = (find(rest, b"\r\n\r\n"), find(rest, next.as_bytes())) {
        let headers = String::from_utf8_lossy(&rest[..head]).into_owned();
        let content = rest.get(head + 4..end).unwrap_or_default();
        let header = |name: &str| {
            let line = headers.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let disposition = header("content-disposition").unwrap_or_default();
        let parameter = |name: &str| {
            let value = disposition.split(&format!("; {name}=\"")).nth(1)?;
            value.split('"').next().map(str::to_owned)
        };
        let name = parameter("name").unwrap_or_default();
        match parameter("filename") {
            Some(file) => {
                let media_type = header("content-type").unwrap_or_default();
                files.insert(name, Part { name: file, media_type, content: content.to_vec() });
            }
            None => {
                texts.insert(name, Value::from(String::from_utf8_lossy(content)));
            }
        }
        rest = &rest[end + next.len()..];
        match rest.strip_prefix(b"\r\n") {
            Some(more) => rest = more,
            None if rest.starts_with(b"--") => return (texts, files),
            None => break,
        }
    }
    (HashMap::new(), HashMap::new())
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    // A form of megabytes is looked through by its first byte.
    let first = what.first()?;
    let mut at = 0;
    loop {
        at += text.get(at..)?.iter().position(|byte| byte == first)?;
        if text[at..].starts_with(what) {
            return Some(at);
        }
        at += 1;
    }
}

impl Bot {
    /// `sendPhoto` and its siblings; `parameter` is the one that is the file.
    pub(super) fn send_file(&self, call: &Call, parameter: &str) -> Answer {
        let Some(part) = call.files.get(parameter) else {
            return error(400, &format!("Bad Request: there is no {parameter} in the request"), None);
        };
        let caption = call.get("caption").unwrap_or_default();
        if caption.encode_utf16().count() > CAPTION_LIMIT {
            return error(400, "Bad Request: message caption is too long", None);
        }
        let size = part.content.len();
        if size == 0 {
            return error(400, "Bad Request: file must be non-empty", None);
        }
        if size > FILE_BYTES {
            return error(413, "Request Entity Too Large", None);
        }
        if let Some(why) = (parameter == "photo").then(|| no_photo(&part.content)).flatten() {
            return error(400, &format!("Bad Request: {why}"), None);
        }
        let file = SentFile {
            method: call.method.clone(),
            name: part.name.clone(),
            media_type: part.media_type.clone(),
            bytes: size,
            sha256: hex::encode(Sha256::digest(&part.content)),
        };
        let shown = match parameter {
            "photo" => json!([{"file_id": file.sha256, "file_unique_id": file.sha256, "file_size": size}]),
            _ => {
                json!({"file_id": file.sha256, "file_unique_id": file.sha256, "file_size": size, "file_name": file.name})
            }
        };
        self.deliver(call, caption.clone(), Some(file), json!({parameter: shown, "caption": caption.trim()}))
    }
}

/// Why Telegram does not show this as a photo.
fn no_photo(content: &[u8]) -> Option<String> {
    let size = content.len();
    if size > PHOTO_BYTES {
        return Some(format!(
            "file of size {size} bytes is too big for a photo; the maximum size is {PHOTO_BYTES} bytes"
        ));
    }
    let known = content.starts_with(b"\xff\xd8\xff") || content.starts_with(b"RIFF");
    let sides = content.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR").and_then(|header| {
        let side = |at| Some(u64::from(u32::from_be_bytes(*header.get(at..)?.first_chunk()?)));
        Some((side(0)?, side(4)?))
    });
    match sides {
        None if known => None,
        Some((width, height)) if width.min(height) > 0 => {
            let too_much = width + height > PHOTO_SIDES || width.max(height) > PHOTO_RATIO * width.min(height);
            too_much.then(|| "PHOTO_INVALID_DIMENSIONS".to_owned())
        }
        _ => Some("IMAGE_PROCESS_FAILED".to_owned()),
    }
}
