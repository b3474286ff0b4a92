//! Files that users sent, and how a bot fetches them: `getFile`, then a GET of the place that it answered.

use serde_json::json;

use super::Bot;
use super::answer::{Answer, error};

/// What a bot may fetch from Telegram's public server, bytes.
const LARGEST: usize = 20 * 1024 * 1024;
const FOLDER: &str = "documents/";

impl Bot {
    /// A file with this id is there.
    pub fn put_file(&self, file_id: &str, content: impl Into<Vec<u8>>) {
        self.locked().files.insert(file_id.to_owned(), content.into());
    }

    pub(super) fn place_of(&self, file_id: &str) -> Answer {
        match self.locked().files.get(file_id).map(Vec::len) {
            None => error(400, "Bad Request: wrong file_id or the file is temporarily unavailable", None),
            Some(size) if size > LARGEST => error(400, "Bad Request: file is too big", None),
            Some(size) => {
                let place = format!("{FOLDER}{file_id}");
                let file =
                    json!({"file_id": file_id, "file_unique_id": file_id, "file_size": size, "file_path": place});
                Answer::ok(&file.to_string())
            }
        }
    }

    pub(super) fn file(&self, place: &str) -> Option<Vec<u8>> {
        self.locked().files.get(place.strip_prefix(FOLDER)?).cloned()
    }
}
