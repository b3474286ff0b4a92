//! Files on the wire: what callers upload, and what workers fetch of their turns.

use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};
use hermes_core::attachment::{Attachment, MAX_BYTES};
use hermes_proto::v1;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::convert::store_status;
use super::status::{Reason, invalid, refuse};
use crate::attachments::{self, Attachments};

/// A sender has so long before a pace is asked for.
const START: Duration = Duration::from_secs(10);
/// The least pace after that, bytes a second: the largest file then comes within the time of an upload.
const LEAST_PACE: u32 = 64 << 10;

/// A part of a file that comes in.
enum Piece<H> {
    Header(H),
    Body(Vec<u8>),
}

/// A file that comes in: what it is, then its bytes, at its sender's pace, if that is not too slow.
pub(super) struct Incoming<S, T, H> {
    parts: S,
    read: fn(T) -> Option<Piece<H>>,
    began: Instant,
    bytes: usize,
}

/// A file that a caller uploads; it begins now.
pub(super) fn uploaded(
    parts: Streaming<v1::UploadAttachmentRequest>,
) -> Incoming<Streaming<v1::UploadAttachmentRequest>, v1::UploadAttachmentRequest, v1::UploadHeader> {
    use v1::upload_attachment_request::Part;
    Incoming::new(parts, |request: v1::UploadAttachmentRequest| {
        request.part.map(|part| match part {
            Part::Header(header) => Piece::Header(header),
            Part::Body(body) => Piece::Body(body),
        })
    })
}

/// A file that a worker brings for a turn; it begins now.
pub(super) fn brought(
    parts: Streaming<v1::PutAttachmentRequest>,
) -> Incoming<Streaming<v1::PutAttachmentRequest>, v1::PutAttachmentRequest, v1::PutAttachmentHeader> {
    use v1::put_attachment_request::Part;
    Incoming::new(parts, |request: v1::PutAttachmentRequest| {
        request.part.map(|part| match part {
            Part::Header(header) => Piece::Header(header),
            Part::Body(body) => Piece::Body(body),
        })
    })
}

impl<S: Stream<Item = Result<T, Status>> + Unpin, T, H> Incoming<S, T, H> {
    fn new(parts: S, read: fn(T) -> Option<Piece<H>>) -> Self {
        Self { parts, read, began: Instant::now(), bytes: 0 }
    }

    /// What stands before the bytes.
    ///
    /// # Errors
    /// When something else comes first, or nothing in time.
    pub(super) async fn header(&mut self) -> Result<H, Status> {
        match self.next().await? {
            Some(Some(Piece::Header(header))) => Ok(header),
            _ => Err(invalid("part", "the first message must be the header")),
        }
    }

    /// All that follows the header.
    ///
    /// # Errors
    /// When it is too large, comes too slowly, breaks off, or is something else.
    pub(super) async fn content(mut self) -> Result<Vec<u8>, Status> {
        let mut content = Vec::new();
        while let Some(piece) = self.next().await? {
            let Some(Piece::Body(body)) = piece else {
                return Err(invalid("part", "only the file's bytes follow the header"));
            };
            if content.len() + body.len() > MAX_BYTES {
                return Err(refuse(Reason::TooLarge, format!("a file has at most {MAX_BYTES} bytes")));
            }
            content.extend_from_slice(&body);
            self.bytes = content.len();
        }
        Ok(content)
    }

    /// The next part; nothing behind the last one.
    async fn next(&mut self) -> Result<Option<Option<Piece<H>>>, Status> {
        let earned =
            Duration::from_secs_f64(f64::from(u32::try_from(self.bytes).unwrap_or(u32::MAX)) / f64::from(LEAST_PACE));
        match tokio::time::timeout_at(self.began + START + earned, self.parts.next()).await {
            Ok(part) => Ok(part.transpose()?.map(self.read)),
            Err(_) => {
                let (start, pace) = (START.as_secs(), LEAST_PACE >> 10);
                let message = format!(
                    "the file comes too slowly: after {start} s it must have come with at least {pace} KiB a second; nothing was kept, upload it again"
                );
                Err(refuse(Reason::TooSlow, message))
            }
        }
    }
}

/// Why a file is not kept, for whoever brought it.
pub(super) fn unkept(error: attachments::Error) -> Status {
    match error {
        attachments::Error::Refused(why) => invalid("body", why),
        attachments::Error::Full(why) => refuse(Reason::Conflict, why),
        attachments::Error::Store(error) => store_status(error),
    }
}

/// A file on its way to a worker.
pub(super) fn pieces(
    attachments: Attachments,
    file: Attachment,
) -> BoxStream<'static, Result<v1::AttachmentChunk, Status>> {
    let piece = move |number| {
        let (attachments, file) = (attachments.clone(), file.clone());
        async move {
            let piece = attachments.piece(&file, number).await.map_err(store_status)?;
            if piece.is_none() && number == 1 {
                return Err(refuse(Reason::NotFound, format!("{} is not kept any more", file.name)));
            }
            Ok(piece.map(|body| (v1::AttachmentChunk { body }, number + 1)))
        }
    };
    stream::try_unfold(1, piece).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends so many bytes at once, then as many in each second.
    fn sends(bytes: usize, seconds: usize) -> impl Stream<Item = Result<Option<usize>, Status>> + Unpin {
        let bodies = stream::unfold(0, move |sent| async move {
            if sent > 0 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            (sent < seconds).then_some((Ok(Some(bytes)), sent + 1))
        });
        Box::pin(stream::once(async { Ok(None) }).chain(bodies))
    }

    async fn taken(parts: impl Stream<Item = Result<Option<usize>, Status>> + Unpin) -> Result<usize, Reason> {
        let mut file =
            Incoming::new(parts, |part| Some(part.map_or(Piece::Header(()), |bytes| Piece::Body(vec![0; bytes]))));
        let slow = |status: Status| {
            assert!(status.message().contains("at least 64 KiB a second"), "{status:?}");
            Reason::TooSlow
        };
        file.header().await.map_err(slow)?;
        file.content().await.map(|content| content.len()).map_err(slow)
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_below_the_least_pace_is_cut_off() {
        assert_eq!(taken(sends(65 << 10, 200)).await, Ok(200 * (65 << 10)));
        let began = Instant::now();
        assert_eq!(taken(sends(32 << 10, 200)).await, Err(Reason::TooSlow));
        assert_eq!(began.elapsed().as_secs(), 20, "it fell behind by what it has to start with");
        let began = Instant::now();
        assert_eq!(
            taken(stream::once(async { Ok(None) }).chain(stream::pending()).boxed()).await,
            Err(Reason::TooSlow)
        );
        assert_eq!(taken(stream::pending()).await, Err(Reason::TooSlow));
        assert_eq!(began.elapsed(), 2 * START);
    }
}
