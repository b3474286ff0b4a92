//! Files that go out through the Telegram adapter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use hermes_core::attachment::Kind;
use hermes_platforms::{Button, Deadline, MAX_FILE_BYTES, OutboundFile};
use hermes_tests::fake_telegram::{Delivery, SentFile};
use sha2::{Digest as _, Sha256};

use super::*;

/// The start of a PNG of that size; Telegram's own checks look no further.
fn png(width: u32, height: u32) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend(width.to_be_bytes());
    png.extend(height.to_be_bytes());
    png
}

fn with_file(chat_id: i64, text: &str, kind: Kind, media_type: &str, content: &[u8]) -> OutboundMessage {
    let file = OutboundFile::new(kind, "dir/a name.bin", media_type, Bytes::copy_from_slice(content)).unwrap();
    OutboundMessage { attachment: Some(file), ..outbound(chat_id, text) }
}

fn document(chat_id: i64, text: &str) -> OutboundMessage {
    with_file(chat_id, text, Kind::Document, "text/plain", b"content")
}

fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

fn file_of(delivery: &Delivery) -> &SentFile {
    delivery.file.as_ref().expect("a file")
}

#[tokio::test]
async fn each_kind_of_file_arrives_whole_by_its_method_with_its_caption() {
    let rig = Rig::new().await;
    // Whatever a boundary could be taken for.
    let odd: Vec<u8> = (0..=255).chain(*b"\r\n--\r\n--hermes-\r\n").cycle().take(300_000).collect();
    let cases: [(Kind, &str, &[u8], &str); 7] = [
        (Kind::Image, "image/png", &png(800, 600), "sendPhoto"),
        (Kind::Voice, "audio/ogg; codecs=opus", b"OggS", "sendVoice"),
        (Kind::Audio, "audio/mpeg", b"ID3", "sendAudio"),
        (Kind::Video, "video/mp4", b"ftyp", "sendVideo"),
        (Kind::Document, "image/png", &png(800, 600), "sendDocument"),
        (Kind::Video, "video/x-matroska", b"mkv", "sendDocument"),
        (Kind::Document, "no type at all", &odd, "sendDocument"),
    ];
    for (number, (kind, media_type, content, method)) in cases.iter().enumerate() {
        assert!(rig.telegram.takes(*kind));
        let sent = rig.telegram.send(with_file(1, "see\nthis", *kind, media_type, content)).await.unwrap();
        let delivered = rig.bot.delivered(1);
        let (arrived, file) = (&delivered[number], file_of(&delivered[number]));
        assert_eq!(sent.message_id, Some(arrived.message_id.to_string()));
        assert_eq!((file.method.as_str(), file.name.as_str()), (*method, "a name.bin"), "{kind:?} {media_type}");
        assert_eq!((file.bytes, &file.sha256), (content.len(), &sha256(content)), "{kind:?} {media_type}");
        assert_eq!(arrived.text, "see\nthis");
        assert!(!file.media_type.contains([';', ' ']), "{}", file.media_type);
    }
    rig.telegram.send(document(2, "")).await.unwrap();
    assert_eq!(rig.bot.delivered(2)[0].text, "", "a file needs no caption");
    let button = Button { label: "Yes".to_owned(), says: "/yes".to_owned() };
    rig.telegram.send(OutboundMessage { buttons: vec![button], ..document(3, "?") }).await.unwrap();
    assert_eq!(rig.bot.delivered(3)[0].buttons, ["/yes"]);
    rig.end().await;
}

#[tokio::test]
async fn the_largest_file_arrives() {
    let rig = Rig::new().await;
    let content: Vec<u8> = (0..=250).cycle().take(MAX_FILE_BYTES).collect();
    rig.telegram.send(with_file(1, "large", Kind::Document, "application/zip", &content)).await.unwrap();
    assert_eq!(file_of(&rig.bot.delivered(1)[0]).sha256, sha256(&content));
    rig.end().await;
}

#[tokio::test]
async fn what_is_no_photo_to_telegram_arrives_as_a_document() {
    let rig = Rig::new().await;
    let mut large = png(800, 600);
    large.resize(10 * 1024 * 1024 + 1, 0);
    let cases: [(Vec<u8>, &[&str]); 4] = [
        (large, &["sendDocument"]),
        (png(9_000, 2_000), &["sendPhoto", "sendDocument"]),
        (png(2_100, 100), &["sendPhoto", "sendDocument"]),
        (b"no picture".to_vec(), &["sendPhoto", "sendDocument"]),
    ];
    for (chat_id, (content, methods)) in (1..).zip(cases) {
        let calls = || ["sendPhoto", "sendDocument"].map(|method| rig.bot.calls(method));
        let before = calls();
        rig.telegram.send(with_file(chat_id, "look", Kind::Image, "image/png", &content)).await.unwrap();
        let made = [calls()[0] - before[0], calls()[1] - before[1]];
        assert_eq!(made, [u64::from(methods.contains(&"sendPhoto")), 1], "{methods:?}");
        let delivered = rig.bot.delivered(chat_id);
        assert_eq!((delivered.len(), delivered[0].text.as_str()), (1, "look"));
        assert_eq!(file_of(&delivered[0]).method, "sendDocument");
        assert_eq!(file_of(&delivered[0]).sha256, sha256(&content));
    }
    // Another refusal of a photo is no reason to send it in another form, nor is a refused document one to send it again.
    rig.bot.fail("sendPhoto", 1, Fault::answer(400, "Bad Request: wrong file identifier"));
    let photo = with_file(9, "", Kind::Image, "image/png", &png(1, 1));
    assert!(matches!(rig.telegram.send(photo).await, Err(SendError::Refused(_))));
    let documents = rig.bot.calls("sendDocument");
    rig.bot.fail("sendDocument", 1, Fault::answer(400, "Bad Request: IMAGE_PROCESS_FAILED"));
    assert!(matches!(rig.telegram.send(document(9, "")).await, Err(SendError::Refused(_))));
    assert_eq!((rig.bot.delivered(9).len(), rig.bot.calls("sendDocument")), (0, documents + 1));
    rig.end().await;
}

#[tokio::test]
async fn a_text_that_fits_is_the_caption_and_a_longer_one_goes_ahead_whole() {
    let rig = Rig::new().await;
    let fits = "🚀".repeat(512);
    let longer = format!("{fits}x");
    let words = "word ".repeat(2_000);
    for (text, before) in [("", 0), ("see", 0), (fits.as_str(), 0), (longer.as_str(), 1), (words.as_str(), 3)] {
        let parts = rig.telegram.split_with_file(text);
        assert_eq!((parts.len(), &parts), (before + 1, &rig.telegram.split_with_file(text)));
        let start = rig.bot.delivered(1).len();
        let (caption, ahead) = parts.split_last().unwrap();
        for part in ahead {
            rig.send(1, part).await.unwrap();
        }
        rig.telegram.send(document(1, caption)).await.expect("a caption that Telegram takes");
        let delivered = rig.bot.delivered(1).split_off(start);
        let (last, ahead) = delivered.split_last().unwrap();
        assert!(last.file.is_some() && ahead.iter().all(|message| message.file.is_none()));
        if before == 0 {
            assert_eq!(last.text, text);
        } else {
            assert_eq!(last.text, "");
            assert_eq!(ahead.iter().map(|message| message.text.clone()).collect::<Vec<_>>(), rig.telegram.split(text));
        }
    }
    let too_long = rig.telegram.send(document(2, &longer)).await;
    assert!(matches!(too_long, Err(SendError::Refused(why)) if why.contains("caption is too long")));
    rig.end().await;
}

#[tokio::test]
async fn a_copy_of_a_file_is_marked_in_its_caption() {
    let rig = Rig::new().await;
    let full = "x".repeat(1_024);
    for caption in ["hello", "", &full] {
        rig.telegram.send(OutboundMessage { maybe_duplicate: true, ..document(1, caption) }).await.unwrap();
    }
    let said: Vec<(String, bool)> =
        rig.bot.delivered(1).into_iter().map(|sent| (sent.text, sent.file.is_some())).collect();
    let mark = "(may be a duplicate)".to_owned();
    assert_eq!(said, [(format!("{mark}\nhello"), true), (mark.clone(), true), (mark, false), (full, true)]);
    rig.end().await;
}

#[tokio::test]
async fn an_upload_fails_as_a_text_does() {
    type Expected = fn(&SendError) -> bool;
    let rig = Rig::new().await;
    let kinds: [(Fault, usize, Expected); 13] = [
        (Fault::answer(500, "Internal Server Error"), 0, |e| matches!(e, SendError::Retry(_))),
        (Fault::Proxy(503), 0, |e| matches!(e, SendError::Retry(_))),
        (Fault::answer(401, "Unauthorized"), 0, |e| matches!(e, SendError::Retry(_))),
        (Fault::answer(403, "Forbidden: bot was blocked by the user"), 0, |e| matches!(e, SendError::ChatGone(_))),
        (Fault::answer(400, "Bad Request: chat not found"), 0, |e| matches!(e, SendError::ChatGone(_))),
        (Fault::answer(400, "Bad Request: file is too big"), 0, |e| matches!(e, SendError::Refused(_))),
        (Fault::answer(413, "Request Entity Too Large"), 0, |e| matches!(e, SendError::Refused(_))),
        (Fault::Proxy(413), 0, |e| matches!(e, SendError::Refused(_))),
        (Fault::Proxy(502), 0, |e| matches!(e, SendError::Ambiguous(_))),
        (Fault::CutBeforeReading, 0, |e| matches!(e, SendError::Ambiguous(_))),
        (Fault::CutWhileReading, 0, |e| matches!(e, SendError::Ambiguous(_))),
        (Fault::CutAfterApplying, 1, |e| matches!(e, SendError::Ambiguous(_))),
        (Fault::CutMidResponse, 1, |e| matches!(e, SendError::Ambiguous(_))),
    ];
    let content = vec![7; 8 * 1024 * 1024];
    for (chat_id, (fault, arrived, expected)) in (1..).zip(kinds) {
        rig.bot.fail("sendDocument", 1, fault.clone());
        let message = with_file(chat_id, "hello", Kind::Document, "application/zip", &content);
        let error = rig.telegram.send(message).await.unwrap_err();
        assert!(expected(&error), "{fault:?} became {error:?}");
        assert!(!format!("{error} {error:?}").contains("a-secret"), "{error:?}");
        assert_eq!(rig.bot.delivered(chat_id).len(), arrived, "{fault:?}: sent once at most");
        assert_eq!(rig.bot.calls("sendDocument"), u64::try_from(chat_id).unwrap(), "{fault:?}: not again by itself");
    }
    rig.end().await;
}

#[tokio::test]
async fn a_retry_after_of_an_upload_pauses_its_chat_for_texts_and_files() {
    let rig = Rig::new().await;
    rig.bot.fail_in(1, "sendDocument", 1, Fault::flood(30));
    let paused =
        |error: SendError| matches!(error, SendError::RetryAfter { after, .. } if after > Duration::from_secs(29));
    assert!(paused(rig.telegram.send(document(1, "")).await.unwrap_err()));
    assert!(paused(rig.telegram.send(document(1, "")).await.unwrap_err()));
    assert!(paused(rig.send(1, "text").await.unwrap_err()));
    assert_eq!((rig.bot.calls("sendDocument"), rig.bot.calls("sendMessage")), (1, 0), "Telegram is left alone");
    rig.telegram.send(document(2, "")).await.unwrap();
    rig.end().await;

    let limited = Rate::Limited { per_chat_per_s: 4.0, per_account_per_s: 30.0 };
    let rig = Rig::with(|settings| settings.rate = limited).await;
    let started = Instant::now();
    for _ in 0..3 {
        rig.telegram.send(document(1, "")).await.unwrap();
    }
    rig.send(1, "text").await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(750), "{:?}", started.elapsed());
    rig.end().await;
}

#[tokio::test]
async fn files_go_into_their_topic_and_follow_their_group() {
    let rig = Rig::new().await;
    let mut message = with_file(-100, "", Kind::Image, "image/png", b"no picture");
    message.chat.thread_id = Some("42".to_owned());
    rig.telegram.send(message.clone()).await.unwrap();
    rig.bot.remove_topic(-100, 42);
    rig.telegram.send(message).await.unwrap();
    let threads: Vec<Option<i64>> = rig.bot.delivered(-100).into_iter().map(|delivery| delivery.thread_id).collect();
    assert_eq!(threads, [Some(42), None]);
    rig.bot.migrate(-5, -1005);
    rig.telegram.send(document(-5, "")).await.unwrap();
    assert_eq!((rig.bot.delivered(-5).len(), rig.bot.delivered(-1005).len()), (0, 1));
    rig.end().await;
}

#[tokio::test]
async fn an_upload_goes_on_while_its_deadline_moves_on_and_ends_with_it() {
    let rig = Rig::new().await;
    let content = vec![7; 8 * 1024 * 1024];
    let message = with_file(1, "", Kind::Document, "application/zip", &content);
    let asked = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&asked);
    let renewed = Deadline::moving(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Instant::now() + SOON
    });
    rig.telegram.send(OutboundMessage { not_after: Some(renewed), ..message.clone() }).await.unwrap();
    assert!(asked.load(Ordering::Relaxed) > 100, "before each of 128 pieces");
    // Renewed ten times, then no more.
    let asked = AtomicU64::new(0);
    let lost = Deadline::moving(move || match asked.fetch_add(1, Ordering::Relaxed) {
        0..10 => Instant::now() + SOON,
        _ => Instant::now(),
    });
    let sent = rig.telegram.send(OutboundMessage { not_after: Some(lost), ..message }).await;
    assert_eq!(sent, Err(SendError::Expired));
    rig.telegram.send(document(2, "")).await.unwrap();
    assert_eq!(rig.bot.delivered(1).len(), 1, "what lacks its end is no message");
    rig.end().await;
}

#[tokio::test]
async fn the_fake_keeps_telegrams_own_rules_for_files() {
    let rig = Rig::new().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = async |method: &str, parts: &[(&str, Option<&str>, &[u8])], end: &str| {
        let mut body = Vec::new();
        for (name, file, content) in parts {
            let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
            let head = format!("--b0\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
            body.extend([head.as_bytes(), content, b"\r\n"].concat());
        }
        body.extend(end.as_bytes());
        let url = format!("{}/bot{TOKEN}/{method}", rig.fake.base());
        let request = client.post(url).header("content-type", "multipart/form-data; boundary=b0").body(body);
        let answer: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
        answer["description"].as_str().unwrap_or("ok").to_owned()
    };
    let (chat, end) = (("chat_id", None, b"5".as_slice()), "--b0--\r\n");
    let caption = "x".repeat(1_025);
    let (photo, large) = (png(10, 10), vec![0; 50 * 1024 * 1024 + 1]);
    for (method, parts, expected) in [
        ("sendDocument", vec![chat, ("document", Some("a"), b"a")], "ok"),
        ("sendPhoto", vec![chat, ("photo", Some("a"), &photo)], "ok"),
        ("sendDocument", vec![("document", Some("a"), b"a")], "Bad Request: chat_id is empty"),
        ("sendDocument", vec![chat, ("photo", Some("a"), b"a")], "Bad Request: there is no document in the request"),
        ("sendDocument", vec![chat, ("document", Some("a"), b"")], "Bad Request: file must be non-empty"),
        ("sendDocument", vec![chat, ("document", Some("a"), &large)], "Request Entity Too Large"),
        (
            "sendPhoto",
            vec![chat, ("photo", Some("a"), &large[..10_485_761])],
            "Bad Request: file of size 10485761 bytes is too big for a photo; the maximum size is 10485760 bytes",
        ),
        (
            "sendVoice",
            vec![chat, ("caption", None, caption.as_bytes()), ("voice", Some("a"), b"a")],
            "Bad Request: message caption is too long",
        ),
    ] {
        assert_eq!(post(method, &parts, end).await, expected, "{method}");
    }
    let unfinished = post("sendDocument", &[chat, ("document", Some("a"), b"a")], "").await;
    assert_eq!(unfinished, "Bad Request: there is no document in the request");
    assert_eq!(rig.bot.delivered(5).len(), 2);
    rig.bot.limit_chats(Some(1));
    rig.telegram.send(document(6, "")).await.unwrap();
    assert!(matches!(rig.telegram.send(document(6, "")).await, Err(SendError::RetryAfter { .. })));
    rig.end().await;
}
