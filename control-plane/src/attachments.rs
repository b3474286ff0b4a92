//! Files that come with messages: kept before the message is accepted, and given to the turn that has them.
//!
//! Called by the sink of the platforms, the gRPC and HTTP surfaces, the worker's and the model's services. Always true: what a file is, is told
//! from its content; a file is kept before the commit of its message, and never inside of it; only a turn whose input names a file is given
//! it. Which files there are stands in the turn's input, their bytes in the store.

use std::sync::Arc;

use hermes_core::attachment::{Attachment, Kind, MAX_BYTES};
use hermes_core::turn::TurnInput;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::models::{Picture, Room};
use crate::store::{self, Store, TurnId};

/// Files on their way into the store at the same time, at most: each is whole in memory.
const AT_ONCE: usize = 4;
/// Bytes of all pictures of one model call, at most.
const PICTURE_BYTES: u64 = 16 << 20;
/// Of all model calls that are being made, KiB: as base64, and once more in the request, they take about three times that.
const SHOWN_KIB: usize = 48 << 10;

/// Why a file was not kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It never will be.
    #[error("{0}")]
    Refused(String),
    /// Not now.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Handle to them; cheap to clone.
#[derive(Clone, Debug)]
pub struct Attachments {
    store: Store,
    room: Arc<Semaphore>,
    arriving: Arc<Semaphore>,
    shown: Arc<Semaphore>,
}

impl Attachments {
    /// Those of this store.
    pub fn new(store: Store) -> Self {
        let room = |permits| Arc::new(Semaphore::new(permits));
        Self { store, room: room(AT_ONCE), arriving: room(AT_ONCE), shown: room(SHOWN_KIB) }
    }

    /// Waits until a file may be taken into memory, from a caller who sends it at their own pace.
    pub async fn arrival(&self) -> Option<OwnedSemaphorePermit> {
        // Closed by nobody.
        Arc::clone(&self.arriving).acquire_owned().await.ok()
    }

    /// Keeps a file; what is known of it.
    ///
    /// # Errors
    /// [`Error::Refused`] for one that is empty or too large, [`Error::Store`].
    pub async fn keep(&self, kind: Kind, name: &str, content: &[u8]) -> Result<Attachment, Error> {
        if content.is_empty() || content.len() > MAX_BYTES {
            return Err(Error::Refused(format!("a file has 1 to {MAX_BYTES} bytes, this one {}", content.len())));
        }
        // Closed by nobody.
        let _room = self.room.acquire().await;
        let media_type = media_type(content);
        let sha256 = hex::encode(self.store.blob_put(content).await?);
        let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        Ok(Attachment::new(kind, name, media_type, bytes, sha256))
    }

    /// Keeps a file that a turn names by this path, to be sent with what it says.
    ///
    /// # Errors
    /// As [`Attachments::keep`].
    pub async fn keep_for(&self, turn: TurnId, path: &str, content: &[u8]) -> Result<(), Error> {
        let file = self.keep(Kind::Document, path, content).await?;
        Ok(self.store.turn_file_put(turn, path, &file).await?)
    }

    /// The files of a turn.
    ///
    /// # Errors
    /// [`store::Error::NotFound`], [`store::Error::Unavailable`].
    pub async fn of_turn(&self, turn: TurnId) -> store::Result<Vec<Attachment>> {
        let payload = self.store.turn_get(turn).await?.payload;
        Ok(serde_json::from_slice::<TurnInput>(&payload).unwrap_or_default().attachments)
    }

    /// A piece of a file, from 1; nothing behind the last.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`].
    pub async fn piece(&self, file: &Attachment, number: i32) -> store::Result<Option<Vec<u8>>> {
        self.store.blob_chunk(&file.sha256, number).await
    }

    /// The pictures of a turn that a model may be shown, as many as fit; one that is not kept any more is left out.
    ///
    /// # Errors
    /// [`store::Error::NotFound`], [`store::Error::Unavailable`].
    pub async fn pictures(&self, turn: TurnId) -> store::Result<(Vec<Picture>, Room)> {
        let mut left = PICTURE_BYTES;
        let fits = |file: &Attachment| match left.checked_sub(file.bytes) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        };
        let files: Vec<Attachment> =
            self.of_turn(turn).await?.into_iter().filter(Attachment::is_picture).take_while(fits).collect();
        let bytes: u64 = files.iter().map(|file| file.bytes).sum();
        if files.is_empty() {
            return Ok(Default::default());
        }
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).saturating_add(1);
        let room = Arc::clone(&self.shown).acquire_many_owned(kib).await.map(Room::from).unwrap_or_default();
        let mut pictures = Vec::with_capacity(files.len());
        for file in files {
            if let Some(content) = self.store.blob(&file.sha256).await? {
                pictures.push(Picture::new(file.media_type, &content));
            }
        }
        Ok((pictures, room))
    }
}

/// What a file is, by its content.
fn media_type(content: &[u8]) -> &'static str {
    match infer::get(content) {
        Some(kind) => kind.mime_type(),
        None if std::str::from_utf8(content).is_ok_and(|text| !text.contains('\0')) => "text/plain",
        None => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_says_what_it_is_and_names_do_not() {
        assert_eq!(media_type(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "image/png");
        assert_eq!(media_type(b"\xff\xd8\xff\xe0\0\x10JFIF"), "image/jpeg");
        assert_eq!(media_type(b"%PDF-1.7\n"), "application/pdf");
        assert_eq!(media_type(b"OggS\0\x02\0\0\0\0\0\0\0\0"), "audio/ogg");
        assert_eq!(media_type("grüße".as_bytes()), "text/plain");
        assert_eq!(media_type(b"a\0b"), "application/octet-stream");
    }
}
