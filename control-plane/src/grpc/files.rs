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
const BODY_ONLY: &str = "only the file's bytes follow the header";

/// A file as it comes in: its name and its content.
pub(super) async fn received(mut parts: Streaming<v1::UploadAttachmentRequest>) -> Result<(String, Vec<u8>), Status> {
    use v1::upload_attachment_request::Part;
    let Some(Part::Header(header)) = parts.message().await?.and_then(|part| part.part) else {
        return Err(invalid("part", HEADER_FIRST));
    };
    let mut content = Vec::new();
    while let Some(part) = parts.message().await? {
        let Some(Part::Body(body)) = part.part else { return Err(invalid("part", BODY_ONLY)) };
        extend(&mut content, &body)?;
    }
    Ok((header.name, content))
}

/// A file of a turn as it comes in: what it is for, and its content.
pub(super) async fn put(
    mut parts: Streaming<v1::PutAttachmentRequest>,
) -> Result<(v1::PutAttachmentHeader, Vec<u8>), Status> {
    use v1::put_attachment_request::Part;
    let Some(Part::Header(header)) = parts.message().await?.and_then(|part| part.part) else {
        return Err(invalid("part", HEADER_FIRST));
    };
    let mut content = Vec::new();
    while let Some(part) = parts.message().await? {
        let Some(Part::Body(body)) = part.part else { return Err(invalid("part", BODY_ONLY)) };
        extend(&mut content, &body)?;
    }
    Ok((header, content))
}

fn extend(content: &mut Vec<u8>, body: &[u8]) -> Result<(), Status> {
    if content.len() + body.len() > MAX_BYTES {
        return Err(refuse(Reason::TooLarge, format!("a file has at most {MAX_BYTES} bytes")));
    }
    content.extend_from_slice(body);
    Ok(())
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
