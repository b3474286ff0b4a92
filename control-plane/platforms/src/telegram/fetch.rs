//! The files of a batch of messages: fetched and kept before the messages are offered.
//!
//! Called by the poll loop. Always true: a message is offered with its file kept, or with a sentence in its place that says why not; one whose file
//! cannot be kept at the moment is not offered, nor is any behind it; the order stays. It takes its time once a batch: what is not
//! fetched by then comes with the next poll. A file that is too large costs no fetch.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use serde::Serialize;
use tokio::time::Instant;

use super::Telegram;
use super::api::{CallError, MAX_FILE};
use super::convert::Wanted;
use super::wire::Place;
use crate::{InboundMessage, InboundSink, NotKept};

/// Files fetched at the same time.
const AT_ONCE: usize = 4;
/// After this long no further message of a batch waits for its file.
const BATCH_TIME: Duration = Duration::from_secs(20);
/// Longest fetch of one file, tries included.
const FILE_TIME: Duration = Duration::from_secs(60);
const CALL_TIME: Duration = Duration::from_secs(10);
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An update: its id, and its message with the file that it still wants.
pub(super) type Update = (i64, Option<(InboundMessage, Option<Wanted>)>);

#[derive(Serialize)]
struct GetFile<'a> {
    file_id: &'a str,
}

/// Why there is no file.
enum Missing {
    /// For good: the sentence that stands in its place.
    Never(String),
    /// It could not be kept.
    NotNow,
}

impl Telegram {
    /// The updates, from the first on, whose files are here, and whether they are all that can be offered for now: the next one's file
    /// could not be kept.
    pub(super) async fn with_files(
        &self,
        updates: Vec<Update>,
        sink: &dyn InboundSink,
    ) -> (Vec<(i64, Option<InboundMessage>)>, bool) {
        let deadline = Instant::now() + BATCH_TIME;
        let mut ready = Vec::with_capacity(updates.len());
        let fetches = stream::iter(updates).map(|(id, update)| async move {
            match update {
                Some((message, Some(wanted))) => (id, self.with_file(message, wanted, sink).await.map(Some)),
                Some((message, None)) => (id, Some(Some(message))),
                None => (id, Some(None)),
            }
        });
        let mut fetched = std::pin::pin!(fetches.buffered(AT_ONCE));
        loop {
            let next = if ready.is_empty() {
                fetched.next().await
            } else {
                // Whoever is not ready by then is fetched again with the next batch.
                match tokio::time::timeout_at(deadline, fetched.next()).await {
                    Ok(next) => next,
                    Err(_) => return (ready, false),
                }
            };
            match next {
                Some((id, Some(message))) => ready.push((id, message)),
                Some((_, None)) => return (ready, true),
                None => return (ready, false),
            }
        }
    }

    /// A message with its file, or what stands in its place; nothing when it cannot be kept now.
    async fn with_file(
        &self,
        mut message: InboundMessage,
        wanted: Wanted,
        sink: &dyn InboundSink,
    ) -> Option<InboundMessage> {
        if message.stranger && !sink.hears(&message.source).await {
            return Some(message);
        }
        let missing = match tokio::time::timeout(FILE_TIME, self.fetched(&wanted)).await {
            Ok(Ok(content)) => match sink.keep(wanted.kind, &wanted.name, &content).await {
                Ok(file) => {
                    message.attachments.push(file);
                    return Some(message);
                }
                Err(NotKept::Refused(reason)) => Missing::Never(reason),
                Err(NotKept::Unavailable) => Missing::NotNow,
            },
            Ok(Err(reason)) => Missing::Never(reason),
            Err(_) => Missing::Never("it took too long".to_owned()),
        };
        let Missing::Never(reason) = missing else { return None };
        tracing::warn!(account = self.account, kind = wanted.kind.as_str(), reason, "a file was not fetched");
        if !message.text.is_empty() {
            message.text.push('\n');
        }
        message.text.push_str(&format!("[The user sent {} that could not be fetched: {reason}]", wanted.kind.one()));
        Some(message)
    }

    /// The file's content; else why there is none.
    async fn fetched(&self, wanted: &Wanted) -> Result<Vec<u8>, String> {
        let too_large = || format!("it is larger than the {} MiB that a bot may fetch", MAX_FILE >> 20);
        if wanted.size.is_some_and(|size| size > MAX_FILE) {
            return Err(too_large());
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.fetched_once(wanted).await {
                Ok(content) => return Ok(content),
                Err(error) => error,
            };
            let pause = match &error {
                CallError::Refused(refusal) if refusal.description.contains("too big") => return Err(too_large()),
                CallError::Refused(refusal) if refusal.code == 429 || refusal.code >= 500 => {
                    refusal.retry_after.unwrap_or(PAUSE)
                }
                CallError::Refused(_) => return Err("Telegram does not give it".to_owned()),
                CallError::Fault(_) => PAUSE,
            };
            tracing::info!(account = self.account, %error, "a file could not be fetched");
            if tries >= TRIES || pause > LONGEST_PAUSE {
                return Err("Telegram did not answer in time".to_owned());
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn fetched_once(&self, wanted: &Wanted) -> Result<Vec<u8>, CallError> {
        let place: Place = self.api.call("getFile", &GetFile { file_id: &wanted.file_id }, CALL_TIME, None).await?;
        self.api.file(place.file_path.as_deref().unwrap_or_default(), FILE_TIME).await
    }
}
