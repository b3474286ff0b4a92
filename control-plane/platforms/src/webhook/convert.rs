//! The signed body as an [`InboundMessage`].
//!
//! Pure; called after the signature has been verified. Always true: unknown and duplicate keys are refused, ids are kept as
//! they are, the dedupe key is made from signed bytes alone.

use hermes_core::Source;
use serde::Deserialize;

use super::signature::Signed;
use crate::call::quoted;
use crate::{InboundMessage, ReplyTarget};

/// Platform name of every webhook source.
pub(super) const PLATFORM: &str = "webhook";

const DEFAULT_CHAT_TYPE: &str = "dm";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    text: String,
    chat_id: String,
    user_id: Option<String>,
    user_name: Option<String>,
    thread_id: Option<String>,
    message_id: Option<String>,
    chat_type: Option<String>,
}

/// Converts `body`, which `signed` vouches for; the error is a sentence for the sender.
pub(super) fn inbound(
    body: &[u8],
    signed: &Signed,
    account: &str,
    reply_to: Option<ReplyTarget>,
) -> Result<InboundMessage, String> {
    // Serde would also read the fields from an array, by position.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err("the body must be one JSON object".to_owned());
    }
    let body: Body =
        serde_json::from_slice(body).map_err(|error| quoted(&format!("the body is not as documented: {error}")))?;
    if body.text.is_empty() || body.chat_id.is_empty() {
        return Err("text and chat_id must not be empty".to_owned());
    }
    let ids = [Some(&body.chat_id), body.user_id.as_ref(), body.thread_id.as_ref(), body.message_id.as_ref()];
    if ids.into_iter().flatten().chain(&body.chat_type).any(|id| id.contains('\0')) {
        return Err("ids and chat_type must not contain U+0000".to_owned());
    }
    // Redelivery keeps the signed bytes and so their time; a message id may be signed again later.
    let (dedupe_key, event_time) = match &body.message_id {
        Some(id) => (format!("wh:{account}:id:{id}"), None),
        None => (format!("wh:{account}:sha256:{}", signed.digest), Some(signed.at)),
    };
    Ok(InboundMessage {
        stranger: false,
        source: Source {
            platform: PLATFORM.to_owned(),
            account: Some(account.to_owned()),
            chat_id: body.chat_id,
            chat_type: body.chat_type.unwrap_or_else(|| DEFAULT_CHAT_TYPE.to_owned()),
            thread_id: body.thread_id,
            user_id: body.user_id,
            user_name: body.user_name.map(|name| name.replace('\0', "\u{fffd}")),
            message_id: body.message_id,
            ..Source::default()
        },
        text: body.text.replace('\0', "\u{fffd}"),
        attachments: Vec::new(),
        dedupe_key,
        event_time,
        reply_to,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(body: &str) -> Result<InboundMessage, String> {
        inbound(body.as_bytes(), &Signed { at: 5, digest: "d1".into() }, "ci", None)
    }

    #[test]
    fn a_full_body_becomes_a_message() {
        let message = convert(
            r#"{"text":"a\u0000b","chat_id":"c","user_id":"u","user_name":"n","thread_id":"t","message_id":"m",
                "chat_type":"group"}"#,
        )
        .unwrap();
        assert_eq!(message.text, "a\u{fffd}b");
        assert_eq!((message.dedupe_key.as_str(), message.event_time), ("wh:ci:id:m", None));
        assert_eq!(
            message.source,
            Source {
                platform: "webhook".into(),
                account: Some("ci".into()),
                chat_id: "c".into(),
                chat_type: "group".into(),
                thread_id: Some("t".into()),
                user_id: Some("u".into()),
                user_name: Some("n".into()),
                message_id: Some("m".into()),
                ..Source::default()
            }
        );
        let least = convert(r#"{"text":"a","chat_id":"c"}"#).unwrap();
        assert_eq!((least.dedupe_key.as_str(), least.event_time), ("wh:ci:sha256:d1", Some(5)));
        assert_eq!(least.source.chat_type, "dm");
    }

    #[test]
    fn anything_else_is_refused_with_a_sentence() {
        for body in [
            "",
            "null",
            "[\"text\",\"chat\",null,null,null,null,null]",
            r#"{"text":"a"}"#,
            r#"{"text":"","chat_id":"c"}"#,
            r#"{"text":"a","chat_id":""}"#,
            r#"{"text":"a","chat_id":7}"#,
            r#"{"text":"a","chat_id":"c\u0000"}"#,
            r#"{"text":"a","chat_id":"c","user":"u"}"#,
            r#"{"text":"a","chat_id":"c","user_id":"u","user_id":"v"}"#,
            r#"{"text":"a","chat_id":"c"} x"#,
            r#"{"text":"a\ud800","chat_id":"c"}"#,
            "\u{feff}{\"text\":\"a\",\"chat_id\":\"c\"}",
        ] {
            assert!(!convert(body).unwrap_err().is_empty(), "{body}");
        }
        let long = format!(r#"{{"{}":1}}"#, "x".repeat(1_000_000));
        assert!(convert(&long).unwrap_err().len() < 1_000, "what a sender wrote comes back bounded");
        let signed = Signed { at: 5, digest: String::new() };
        assert!(inbound(b"{\"text\":\"\xff\xfe\",\"chat_id\":\"c\"}", &signed, "ci", None).is_err());
    }
}
