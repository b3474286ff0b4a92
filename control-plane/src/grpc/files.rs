//! Files on the wire: what callers upload, and what workers fetch of their turns.

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hermes_core::attachment::{Attachment, MAX_BYTES};
use hermes_proto::v1;
use tonic::{Status, Streaming};

use super::convert::store_status;
use super::status::{Reason, invalid, refuse};
use crate::attachments::{self, Attachments};

const HEADER_FIRST: &str = "the first message must be the header";

/// A file as it comes in: its name and its content.
pub(super) async fn received(mut parts: Streaming<v1::UploadAttachmentRequest>) -> Result<(String, Vec<u8>), Status> {
    use v1::upload_attachment_request::Part;
    let Some(Part::Header(header)) = parts.message().await?.and_then(|part| part.part) else {
        return Err(invalid("part", HEADER_FIRST));
    };
    let body = |request: v1::UploadAttachmentRequest| match request.part {
        Some(Part::Body(body)) => Some(body),
        _ => None,
    };
    Ok((header.name, content(&mut parts, body).await?))
}

/// What a file of a turn that comes in is for; its content follows.
pub(super) async fn put_header(
    parts: &mut Streaming<v1::PutAttachmentRequest>,
) -> Result<v1::PutAttachmentHeader, Status> {
    use v1::put_attachment_request::Part;
    match parts.message().await?.and_then(|part| part.part) {
        Some(Part::Header(header)) => Ok(header),
        _ => Err(invalid("part", HEADER_FIRST)),
    }
}

/// The content of a file of a turn.
pub(super) async fn put_content(parts: &mut Streaming<v1::PutAttachmentRequest>) -> Result<Vec<u8>, Status> {
    use v1::put_attachment_request::Part;
    let body = |request: v1::PutAttachmentRequest| match request.part {
        Some(Part::Body(body)) => Some(body),
        _ => None,
    };
    content(parts, body).await
}

/// All that follows a header.
async fn content<T>(parts: &mut Streaming<T>, body: impl Fn(T) -> Option<Vec<u8>>) -> Result<Vec<u8>, Status> {
    let mut content = Vec::new();
    while let Some(part) = parts.message().await? {
        let body = body(part).ok_or_else(|| invalid("part", "only the file's bytes follow the header"))?;
        if content.len() + body.len() > MAX_BYTES {
            return Err(refuse(Reason::TooLarge, format!("a file has at most {MAX_BYTES} bytes")));
        }
        content.extend_from_slice(&body);
    }
    Ok(content)
}

/// Why a file is not kept, for whoever brought it.
pub(super) fn unkept(error: attachments::Error) -> Status {
    match error {
        attachments::Error::Refused(why) => invalid("body", why),
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
