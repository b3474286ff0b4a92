//! Files that came with a turn's message, put where the agent's tools see them.
//!
//! Called by a turn before its first step. Always true: a file lies in `workspace/inbox` whole or not at all, under the name that the message's text
//! says; nothing is followed out of the home on the way there; one that is there is not fetched again, also by the next attempt. A
//! file that cannot be had is warned of, and the turn goes on: its text says that there was one, and the model is told that it is not there.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_proto::v1::{AttachmentChunk, FetchAttachmentRequest, TurnRef};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::beneath::{self, Folder};
use crate::connection::is_broken;

/// Where they lie.
const INBOX: &str = "workspace/inbox";
/// Largest file, bytes.
const MAX_BYTES: u64 = 20 << 20;

/// A file of a turn's input.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Attachment {
    bytes: u64,
    /// In the home.
    path: String,
    #[serde(default)]
    media_type: String,
}

impl Attachment {
    /// Whether a model may be given it: the control plane knows better.
    pub(crate) fn may_be_shown(&self) -> bool {
        ["image/", "audio/"].iter().any(|family| self.media_type.starts_with(family))
    }
}

/// Why a file is not here.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the control plane does not give it")]
    Call(#[source] Status),
    #[error("it cannot be written")]
    Io(#[from] io::Error),
    #[error("it came with another length")]
    Length,
}

/// Fetches what is not there yet. What is to be said of files that are missing after that: a line for each, with its line break before it.
///
/// # Errors
/// When the call broke and may be repeated, or the turn is not ours.
pub(crate) async fn fetch(
    channel: &Channel,
    turn: TurnRef,
    home: &Path,
    files: &[Attachment],
) -> Result<String, Status> {
    let mut missing = String::new();
    for (number, file) in (0..).zip(files) {
        match fetch_one(channel, turn, number, home, file).await {
            Ok(()) => {}
            Err(Error::Call(status)) if is_broken(&status) || status.code() == tonic::Code::PermissionDenied => {
                return Err(status);
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(file = file.path, %error, cause, "a file of the message is missing");
                let path = file.path.strip_prefix("workspace/").unwrap_or(&file.path);
                missing.push_str(&format!("\n[The file is not at {path}: {error}. Ask for it again if you need it.]"));
            }
        }
    }
    Ok(missing)
}

async fn fetch_one(channel: &Channel, turn: TurnRef, number: u32, home: &Path, file: &Attachment) -> Result<(), Error> {
    let name = file.path.strip_prefix(INBOX).and_then(|rest| rest.strip_prefix('/'));
    let name = name.filter(|name| !name.is_empty() && !name.contains('/') && !name.starts_with('.'));
    let name = name.ok_or_else(|| beneath::refused(&file.path))?;
    let folder = Folder::make(home, INBOX)?;
    let target = folder.path(name);
    if std::fs::symlink_metadata(&target).is_ok_and(|there| there.is_file() && there.len() == file.bytes) {
        return Ok(());
    }
    let request = FetchAttachmentRequest { turn: Some(turn), number };
    let mut client = WorkerServiceClient::new(channel.clone());
    let chunks = client.fetch_attachment(request).await.map_err(Error::Call)?.into_inner();
    let new = folder.path(&format!(".hermes-new-{}", uuid::Uuid::new_v4().simple()));
    let written = written(&new, chunks, file.bytes.min(MAX_BYTES)).await;
    let placed = written.and_then(|()| std::fs::rename(&new, &target).map_err(Error::Io));
    if placed.is_err() {
        // A temporary file left behind is hidden and harmless.
        let _ = std::fs::remove_file(&new);
    }
    placed
}

/// Writes exactly so many bytes.
async fn written(path: &Path, mut chunks: Streaming<AttachmentChunk>, bytes: u64) -> Result<(), Error> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut file = tokio::fs::File::from_std(file);
    let mut left = bytes;
    while let Some(AttachmentChunk { body }) = chunks.message().await.map_err(Error::Call)? {
        left = u64::try_from(body.len()).ok().and_then(|size| left.checked_sub(size)).ok_or(Error::Length)?;
        file.write_all(&body).await?;
    }
    file.flush().await?;
    if left == 0 { Ok(()) } else { Err(Error::Length) }
}
