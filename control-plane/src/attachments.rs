//! Files that come with messages: kept before the message is accepted, and given to the turn that has them.
//!
//! Called by the sink of the platforms, the gRPC and HTTP surfaces, the worker's and the model's services. Always true: what a file is, is told
//! from its content; a file is kept before the commit of its message, and never inside of it; only a turn whose input names a file is given
//! it; no caller holds more than its part of the memory for files on their way in, and no agent of that for files that models are shown. Which files
//! there are stands in the turn's input, their bytes in the store; what a running turn has asked for is kept with it ([`Had`]).

use std::sync::{Arc, Mutex, PoisonError};

use hermes_core::AgentId;
use hermes_core::attachment::{Attachment, Kind, MAX_BYTES};
use hermes_core::turn::TurnInput;
use tokio::sync::{OnceCell, Semaphore};
use uuid::Uuid;

use crate::models::{Refused, Room, ShownFile};
use crate::shares::{Share, Shares};
use crate::store::{self, Noted, Store, TurnId};

/// Files on their way into the store at the same time, at most: each is whole in memory.
const AT_ONCE: usize = 4;
/// Of one caller, of those that come at the caller's pace: the others wait.
const AT_ONCE_EACH: usize = 1;
/// Bytes that a caller has in uploads of the last day that no message names, and a turn in files that what it says names, at most. One message
/// can have ten files of 20 MiB.
const UNNAMED_BYTES: u64 = 10 * (20 << 20);
/// Bytes of all files that one model call shows, at most.
const CALL_BYTES: u64 = 12 << 20;
/// Of all model calls that are being made, KiB: as base64, and once more in the request, they take about three times that.
const SHOWN_KIB: usize = 48 << 10;
/// Of one agent's: one call's worth.
const SHOWN_KIB_EACH: usize = 12 << 10;
/// Of files that running turns keep for their next call, as base64, KiB.
const HAD_KIB: usize = 32 << 10;
/// Of one agent's.
const HAD_KIB_EACH: usize = 8 << 10;

/// Why a file was not kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It never will be.
    #[error("{0}")]
    Refused(String),
    /// Not while there are so many of the caller's that no message names.
    #[error("{0}")]
    Full(String),
    /// Not now.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What a running turn has asked for of its files; kept with the turn, and gone with it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Had(Arc<HadParts>);

#[derive(Debug, Default)]
struct HadParts {
    all: OnceCell<Vec<Attachment>>,
    /// Those that were shown, as far as there was room to keep them.
    shown: Mutex<Vec<(ShownFile, Share)>>,
    refused: Refused,
}

impl Had {
    fn find(&self, sha256: &str) -> Option<ShownFile> {
        let shown = self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.iter().find(|(file, _)| file.sha256 == sha256).map(|(file, _)| file.clone())
    }

    fn keep(&self, file: &ShownFile, room: Share) {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner).push((file.clone(), room));
    }

    /// Which models refused what of them.
    pub fn refused(&self) -> Refused {
        self.0.refused.clone()
    }
}

/// Handle to them; cheap to clone.
#[derive(Clone, Debug)]
pub struct Attachments {
    store: Store,
    /// Held for as long as the database takes, so first come, first served is fair enough.
    room: Arc<Semaphore>,
    arriving: Shares,
    shown: Shares,
    had: Shares,
}

impl Attachments {
    /// Those of this store.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            room: Arc::new(Semaphore::new(AT_ONCE)),
            arriving: Shares::new(AT_ONCE, AT_ONCE_EACH),
            shown: Shares::new(SHOWN_KIB, SHOWN_KIB_EACH),
            had: Shares::new(HAD_KIB, HAD_KIB_EACH),
        }
    }

    /// Waits until a file may be taken into memory, from a caller who sends it at their own pace.
    pub async fn arrival(&self, caller: &str) -> Share {
        self.arriving.take(caller, 1).await
    }

    /// Keeps a file of a message that is being accepted; what is known of it.
    ///
    /// # Errors
    /// [`Error::Refused`] for one that is empty or too large, [`Error::Store`].
    pub async fn keep(&self, kind: Kind, name: &str, content: &[u8]) -> Result<Attachment, Error> {
        let file = described(kind, name, content)?;
        // Closed by nobody.
        let _room = self.room.acquire().await;
        self.store.blob_put(content).await?;
        Ok(file)
    }

    /// Keeps a file for a caller, who may name it in a message by the id.
    ///
    /// # Errors
    /// As [`Attachments::keep`], and [`Error::Full`].
    pub async fn keep_upload(&self, caller: &str, name: &str, content: &[u8]) -> Result<(Uuid, Attachment), Error> {
        let file = described(Kind::Document, name, content)?;
        let _room = self.room.acquire().await;
        match self.store.upload_put(caller, &file, content, UNNAMED_BYTES).await? {
            Noted::Yes(id) => Ok((id, file)),
            Noted::Full { left } => Err(Error::Full(format!(
                "your uploads of the last 24 hours that no message names have {} of at most {UNNAMED_BYTES} bytes, so there is no \
                 room for {} more; send messages that name them, or upload this one later",
                UNNAMED_BYTES.saturating_sub(left),
                file.bytes
            ))),
        }
    }

    /// Keeps a file that a turn names by this path, to be sent with what it says.
    ///
    /// # Errors
    /// As [`Attachments::keep_upload`].
    pub async fn keep_for(&self, turn: TurnId, path: &str, content: &[u8]) -> Result<(), Error> {
        let file = described(Kind::Document, path, content)?;
        let _room = self.room.acquire().await;
        match self.store.turn_file_put(turn, path, &file, content, UNNAMED_BYTES).await? {
            Noted::Yes(_) => Ok(()),
            Noted::Full { .. } => {
                Err(Error::Full(format!("the files that one turn sends have at most {UNNAMED_BYTES} bytes together")))
            }
        }
    }

    /// A file of a running turn, by its place among them; nothing when there is none.
    ///
    /// # Errors
    /// [`store::Error::NotFound`], [`store::Error::Unavailable`].
    pub async fn of_turn(&self, turn: TurnId, had: &Had, number: usize) -> store::Result<Option<Attachment>> {
        Ok(self.all(turn, had).await?.get(number).cloned())
    }

    /// The files of a turn; its row is read once.
    async fn all<'a>(&self, turn: TurnId, had: &'a Had) -> store::Result<&'a [Attachment]> {
        let read = || async {
            let payload = self.store.turn_get(turn).await?.payload;
            Ok(serde_json::from_slice::<TurnInput>(&payload).unwrap_or_default().attachments)
        };
        had.0.all.get_or_try_init(read).await.map(Vec::as_slice)
    }

    /// A piece of a file, from 1; nothing behind the last.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`].
    pub async fn piece(&self, file: &Attachment, number: i32) -> store::Result<Option<Vec<u8>>> {
        self.store.blob_chunk(&file.sha256, number).await
    }

    /// The files of a running turn that a model is shown, as many as fit; one that is not kept any more is left out. `carried` says whether a
    /// model of the call can be given files of a media type at all.
    ///
    /// # Errors
    /// [`store::Error::NotFound`], [`store::Error::Unavailable`].
    pub async fn shown(
        &self,
        agent: &AgentId,
        turn: TurnId,
        had: &Had,
        carried: impl Fn(&str) -> bool,
    ) -> store::Result<(Vec<ShownFile>, Room)> {
        let mut bytes = 0;
        let files = self.all(turn, had).await?.iter().filter(|file| carried(&file.media_type));
        let files = files.filter_map(|file| Some((file, file.medium()?))).take_while(|(file, _)| {
            bytes += file.bytes;
            bytes <= CALL_BYTES
        });
        let files: Vec<_> = files.collect();
        if files.is_empty() {
            return Ok(Default::default());
        }
        let room = self.shown.take(agent.as_str(), kib(files.iter().map(|(file, _)| file.bytes).sum())).await;
        let mut shown = Vec::with_capacity(files.len());
        for (file, medium) in files {
            if let Some(one) = had.find(&file.sha256) {
                shown.push(one);
            } else if let Some(content) = self.store.blob(&file.sha256).await? {
                let one = ShownFile::new(medium, file, &content);
                // Without room the next call reads it again.
                if let Some(room) = self.had.try_take(agent.as_str(), kib(file.bytes / 3 * 4)) {
                    had.keep(&one, room);
                }
                shown.push(one);
            }
        }
        Ok((shown, Room::from(room)))
    }
}

fn kib(bytes: u64) -> usize {
    usize::try_from(bytes >> 10).unwrap_or(usize::MAX).saturating_add(1)
}

/// What is known of a file that comes in.
fn described(kind: Kind, name: &str, content: &[u8]) -> Result<Attachment, Error> {
    if content.is_empty() || content.len() > MAX_BYTES {
        return Err(Error::Refused(format!("a file has 1 to {MAX_BYTES} bytes, this one {}", content.len())));
    }
    let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
    Ok(Attachment::new(kind, name, media_type(content), bytes, hex::encode(store::hash_of(content))))
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
