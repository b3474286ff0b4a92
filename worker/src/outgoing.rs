//! Files that what a turn says names by tags, brought to the control plane before it is said.
//!
//! Called by a turn with its reply, and with each message that it sends. Always true: only files of the workspace and of a job's output leave the home,
//! whatever a text names, and no link is followed on the way; a file is brought whole, as it is then. What cannot be brought is said by
//! whoever delivers the text. The rules of tags are `hermes_home::media`'s.

use std::path::Path;

use hermes_home::media::Reply;
use hermes_proto::v1::put_attachment_request::Part;
use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_proto::v1::{PutAttachmentHeader, PutAttachmentRequest, TurnRef};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::beneath;
use crate::connection::is_broken;

/// Largest file, bytes.
const MAX_BYTES: u64 = 20 << 20;
/// What may leave the home.
const LEAVES: [&str; 2] = ["workspace/", "cron/output/"];

/// Brings the files that the text names.
///
/// # Errors
/// When the call broke and may be repeated, or the turn is not ours.
pub(crate) async fn bring(channel: &Channel, turn: TurnRef, home: &Path, text: &str) -> Result<(), Status> {
    if !text.contains("MEDIA:") {
        return Ok(());
    }
    for file in Reply::read(text).files {
        let content = match in_home(home, &file.path).map(|path| beneath::read(home, &path, MAX_BYTES)) {
            Some(Ok(Some((content, _)))) => content,
            Some(Err(error)) => {
                tracing::warn!(file = file.path, %error, "a file that was to be sent cannot be read");
                continue;
            }
            Some(Ok(None)) | None => {
                tracing::info!(file = file.path, "a file that was to be sent is missing, too large or elsewhere");
                continue;
            }
        };
        match put(channel, turn, &file.path, &content).await {
            Ok(()) => {}
            Err(status) if is_broken(&status) || status.code() == Code::PermissionDenied => return Err(status),
            Err(status) => tracing::warn!(file = file.path, message = status.message(), "a file was not taken"),
        }
    }
    Ok(())
}

/// The path in the home that a tag means; nothing for one that may not leave it.
fn in_home(home: &Path, path: &str) -> Option<String> {
    let relative = match path.strip_prefix('/') {
        Some(_) => Path::new(path).strip_prefix(home).ok()?.to_str()?.to_owned(),
        None => format!("workspace/{}", path.strip_prefix("./").unwrap_or(path)),
    };
    let is_plain = relative.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    (is_plain && LEAVES.iter().any(|leaves| relative.starts_with(leaves))).then_some(relative)
}

async fn put(channel: &Channel, turn: TurnRef, path: &str, content: &[u8]) -> Result<(), Status> {
    let header = PutAttachmentHeader { turn: Some(turn), path: path.to_owned() };
    let parts: Vec<PutAttachmentRequest> = std::iter::once(Part::Header(header))
        .chain(content.chunks(hermes_proto::CHUNK_BYTES).map(|part| Part::Body(part.to_vec())))
        .map(|part| PutAttachmentRequest { part: Some(part) })
        .collect();
    WorkerServiceClient::new(channel.clone()).put_attachment(tokio_stream::iter(parts)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_agents_to_give_leaves_the_home() {
        let home = Path::new("/h/main");
        for (path, means) in [
            ("a.png", Some("workspace/a.png")),
            ("./out/a.png", Some("workspace/out/a.png")),
            ("/h/main/workspace/a.png", Some("workspace/a.png")),
            ("/h/main/cron/output/j/a.md", Some("cron/output/j/a.md")),
            ("/h/main/.env.txt", None),
            ("/h/main/memories/MEMORY.md", None),
            ("/h/mainly/workspace/a.png", None),
            ("/etc/passwd.txt", None),
            ("../.env.txt", None),
            ("x/../../SOUL.md", None),
            ("~/a.png", Some("workspace/~/a.png")),
        ] {
            assert_eq!(in_home(home, path).as_deref(), means, "{path}");
        }
    }
}
