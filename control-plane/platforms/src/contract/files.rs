//! What every adapter must keep with files, those that take none included.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use hermes_core::attachment::Kind;

use super::*;
use crate::{Deadline, OutboundFile};

/// Larger than what sockets and clients hold back.
const LARGE: usize = 18 << 20;

fn with(kind: Kind, content: impl Into<Bytes>) -> OutboundMessage {
    let media_type = match kind {
        Kind::Image => "image/png",
        Kind::Voice => "audio/ogg",
        Kind::Audio => "audio/mpeg",
        Kind::Video => "video/mp4",
        Kind::Document => "text/plain",
    };
    let file = OutboundFile::new(kind, "/srv/a name.txt", media_type, content.into()).unwrap();
    OutboundMessage { attachment: Some(file), ..super::message() }
}

/// With a caption and a small file.
pub(super) fn message(kind: Kind) -> OutboundMessage {
    with(kind, "the content of the file")
}

#[tokio::test]
async fn a_file_is_sent_with_its_caption_or_refused_before_anything_is() {
    for subject in Subject::all().await {
        for kind in Kind::ALL {
            let before = subject.platform.requests();
            let path = match kind {
                Kind::Image => "sendPhoto",
                Kind::Voice => "sendVoice",
                Kind::Audio => "sendAudio",
                Kind::Video => "sendVideo",
                Kind::Document => "sendDocument",
            };
            subject.platform.react(path, Reaction::json(200, r#"{"ok":true,"result":{"message_id":3}}"#));
            let sent = subject.adapter.send(message(kind)).await;
            if !subject.adapter.takes(kind) {
                assert!(matches!(sent, Err(SendError::Refused(_))), "{:?}: {kind:?} became {sent:?}", subject.kind);
                assert_eq!(subject.platform.requests(), before, "{:?}", subject.kind);
                continue;
            }
            assert!(sent.is_ok(), "{:?}: {kind:?} became {sent:?}", subject.kind);
            assert_eq!(subject.platform.requests(), before + 1, "{:?}", subject.kind);
            let (_, body) = subject.platform.last();
            for part in ["the content of the file", "\"a name.txt\"", "hello"] {
                assert!(body.contains(part), "{:?}: no {part} in {body}", subject.kind);
            }
        }
    }
}

#[tokio::test]
async fn the_parts_beside_a_file_lose_no_text_and_are_always_the_same() {
    for subject in Subject::all().await {
        let adapter = &subject.adapter;
        for text in ["", "x", " ", &"word ".repeat(250), &"word ".repeat(3_000), &"🚀".repeat(5_000)] {
            let parts = adapter.split_with_file(text);
            assert_eq!(parts, adapter.split_with_file(text));
            let (caption, ahead) = parts.split_last().expect("never empty");
            assert!(ahead.iter().all(|part| !part.is_empty()));
            // All of it goes one way: under the file, or ahead of it as it would without one.
            if ahead.is_empty() {
                assert_eq!(caption, text, "{:?}", subject.kind);
            } else {
                assert_eq!((ahead, caption.as_str()), (adapter.split(text).as_slice(), ""), "{:?}", subject.kind);
            }
        }
    }
}

#[tokio::test]
async fn an_upload_that_nobody_reads_ends_with_its_deadline_and_stays_without_its_end() {
    for subject in Subject::all().await.into_iter().filter(|subject| subject.adapter.takes(Kind::Document)) {
        let looks = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&looks);
        let start = Instant::now();
        let deadline = Deadline::moving(move || {
            asked.fetch_add(1, Ordering::Relaxed);
            start + Duration::from_millis(300)
        });
        subject.platform.react("sendDocument", Reaction::Stall);
        let message = OutboundMessage { not_after: Some(deadline), ..with(Kind::Document, vec![b'x'; LARGE]) };
        let sent =
            tokio::time::timeout(SOON, subject.adapter.send(message)).await.expect("it does not wait for a reader");
        assert_eq!(sent, Err(SendError::Expired), "{:?}", subject.kind);
        assert!(looks.load(Ordering::Relaxed) > 3, "it was looked at before each piece");
        subject.platform.resume();
        let body = subject.platform.wait_for("sendDocument", 1).await;
        assert!(!body.is_empty() && body.len() < LARGE, "{:?}: {} bytes came", subject.kind, body.len());
    }
}

#[tokio::test]
async fn an_upload_that_is_read_slowly_goes_on_while_its_deadline_moves_on() {
    for subject in Subject::all().await.into_iter().filter(|subject| subject.adapter.takes(Kind::Document)) {
        let (renewed, renewals) = tokio::sync::watch::channel(0);
        // It is always near, and never there.
        let deadline = Deadline::moving(move || {
            renewed.send_modify(|count| *count += 1);
            Instant::now() + Duration::from_millis(20)
        });
        subject.platform.react("sendDocument", Reaction::Stall);
        let message = OutboundMessage { not_after: Some(deadline), ..with(Kind::Document, vec![b'x'; LARGE]) };
        let (platform, mut renewals) = (&subject.platform, renewals);
        let resume = async {
            // More often than there are pieces: it was waited for again and again.
            renewals.wait_for(|count| *count > 1_000).await.unwrap();
            platform.resume();
        };
        let (sent, ()) = tokio::join!(subject.adapter.send(message), resume);
        assert!(matches!(sent, Err(SendError::Ambiguous(_))), "all of it was read, nothing answered: {sent:?}");
        let body = subject.platform.wait_for("sendDocument", 1).await;
        assert!(body.len() > LARGE && body.ends_with("--\r\n"), "{} bytes came", body.len());
    }
}
