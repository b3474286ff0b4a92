//! What a request's headers say: who calls, which conversation it belongs to, whether it may be a repetition.

use hermes_core::Source;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest as _, Sha256};

use super::error::ApiError;
use super::{Key, Turns};

/// The platform of everything that comes in here.
const PLATFORM: &str = "api_server";
/// A longer header is treated as absent.
const LONGEST_ID: usize = 1024;
const LONGEST_IDEMPOTENCY_KEY: usize = 255;

/// What the bearer key is good for.
///
/// # Errors
/// 401 without a key or with a wrong one.
pub(super) async fn key(turns: &dyn Turns, headers: &HeaderMap) -> Result<Key, ApiError> {
    let value = headers.get(AUTHORIZATION).ok_or_else(ApiError::key_missing)?;
    let value = value.to_str().map_err(|_| ApiError::key_unknown())?;
    let (scheme, key) = value.trim().split_once(' ').ok_or_else(ApiError::key_missing)?;
    let key = key.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || key.is_empty() {
        return Err(ApiError::key_missing());
    }
    turns.authorize(key).await.ok_or_else(ApiError::key_unknown)
}

/// Which conversation a call belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conversation {
    pub(super) source: Source,
    /// The session supplies the history.
    pub(super) continued: bool,
    /// What the caller may send as `X-Hermes-Session-Id` to go on from here.
    pub(super) handle: Option<String>,
}

impl Conversation {
    /// Reads the `X-Hermes-…` headers. `fresh` is the id of a conversation of its own, used when there is none of them.
    ///
    /// # Errors
    /// 400 when both a chat and a session are named.
    pub(super) fn of(headers: &HeaderMap, fresh: impl FnOnce() -> String) -> Result<Self, ApiError> {
        let chat_id = id(headers, "x-hermes-chat-id");
        let session_id = id(headers, "x-hermes-session-id");
        let user_id = id(headers, "x-hermes-user-id");
        let thread_id = id(headers, "x-hermes-thread-id");
        if chat_id.is_some() && session_id.is_some() {
            let message = "X-Hermes-Chat-Id and X-Hermes-Session-Id name two conversations; send one of them";
            return Err(ApiError::invalid("X-Hermes-Session-Id", message));
        }
        let continued = chat_id.is_some() || session_id.is_some() || user_id.is_some() || thread_id.is_some();
        let handle = if continued { session_id } else { Some(fresh()) };
        // Without a chat, the session key falls back to the user, then to the thread.
        let chat_id = chat_id.or_else(|| handle.clone()).unwrap_or_default();
        let source = Source {
            platform: PLATFORM.to_owned(),
            chat_id,
            chat_type: "dm".to_owned(),
            thread_id,
            user_id,
            ..Source::default()
        };
        Ok(Self { source, continued, handle })
    }
}

/// The handle of a new conversation. Whoever shows it may go on with the conversation, so it cannot be guessed.
pub(super) fn fresh_handle() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// A header's trimmed text; `None` when it is absent, empty, too long, no UTF-8, or holds a control character.
fn id(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = std::str::from_utf8(headers.get(name)?.as_bytes()).ok()?.trim();
    let usable = !text.is_empty() && text.chars().count() <= LONGEST_ID && !text.chars().any(char::is_control);
    usable.then(|| text.to_owned())
}

/// The dedupe key of a call with an `Idempotency-Key`, and the hash by which a repetition is told from another request.
///
/// # Errors
/// 400 for a key that is empty, too long or not plain ASCII.
pub(super) fn idempotency(
    headers: &HeaderMap,
    principal: &str,
    conversation: &Conversation,
    body: &[u8],
) -> Result<Option<(String, [u8; 32])>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().map(str::trim).unwrap_or_default();
    if key.is_empty() || key.len() > LONGEST_IDEMPOTENCY_KEY {
        let message = format!("an Idempotency-Key has 1 to {LONGEST_IDEMPOTENCY_KEY} plain characters");
        return Err(ApiError::invalid("Idempotency-Key", message));
    }
    let mut hash = Sha256::new();
    if conversation.continued {
        let source = &conversation.source;
        for part in [Some(&source.chat_id), source.thread_id.as_ref(), source.user_id.as_ref()] {
            // No id holds a control character, so the parts cannot run into each other.
            hash.update(part.map_or("\u{1}", String::as_str));
            hash.update([0]);
        }
    }
    hash.update([0]);
    hash.update(body);
    // The length keeps one principal's keys apart from another's, whatever characters either holds.
    let key = format!("api:{}:{principal}:{key}", principal.len());
    Ok(Some((key, hash.finalize().into())))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let value = |value: &str| HeaderValue::from_bytes(value.as_bytes()).unwrap();
        pairs.iter().map(|(name, text)| (HeaderName::from_static(name), value(text))).collect()
    }

    fn conversation(pairs: &[(&'static str, &str)]) -> Conversation {
        Conversation::of(&headers(pairs), || "fresh".to_owned()).unwrap()
    }

    #[test]
    fn without_a_header_a_call_has_a_conversation_of_its_own() {
        let own = conversation(&[]);
        assert_eq!((own.continued, own.handle.as_deref()), (false, Some("fresh")));
        assert_eq!((own.source.platform.as_str(), own.source.chat_type.as_str()), ("api_server", "dm"));
        assert_eq!(own.source.chat_id, "fresh");
        let long = "x".repeat(1025);
        for unusable in ["", "   ", "a\tb", long.as_str()] {
            assert_eq!(
                conversation(&[("x-hermes-chat-id", unusable), ("x-hermes-user-id", unusable)]),
                own,
                "{unusable:?}"
            );
        }
    }

    #[test]
    fn headers_name_the_conversation() {
        let named = conversation(&[
            ("x-hermes-chat-id", "  -100 äö "),
            ("x-hermes-thread-id", "42"),
            ("x-hermes-user-id", "u"),
        ]);
        assert!(named.continued);
        assert_eq!((named.source.chat_id.as_str(), named.source.thread_id.as_deref()), ("-100 äö", Some("42")));
        assert_eq!((named.source.user_id.as_deref(), named.handle), (Some("u"), None));
        let by_user = conversation(&[("x-hermes-user-id", "u")]);
        assert_eq!((by_user.continued, by_user.source.chat_id.as_str()), (true, ""));
        let by_session = conversation(&[("x-hermes-session-id", "fresh")]);
        assert_eq!((by_session.continued, by_session.source.chat_id.as_str()), (true, "fresh"));
        assert_eq!(
            by_session.source,
            conversation(&[]).source,
            "a session id that was answered leads back to its session"
        );
        let longest = "x".repeat(1024);
        assert!(conversation(&[("x-hermes-chat-id", longest.as_str())]).continued);
        let both = headers(&[("x-hermes-chat-id", "a"), ("x-hermes-session-id", "b")]);
        assert!(Conversation::of(&both, || "fresh".to_owned()).is_err());
    }

    #[test]
    fn idempotency_keys_are_the_callers_own_and_bound_to_the_request() {
        let key = headers(&[("idempotency-key", "k")]);
        let own = conversation(&[]);
        let of = |principal: &str, conversation: &Conversation, body: &str| {
            idempotency(&key, principal, conversation, body.as_bytes()).unwrap().unwrap()
        };
        let first = of("p", &own, "{}");
        assert_eq!(first, of("p", &own, "{}"));
        assert_eq!(first, of("p", &Conversation { handle: Some("other".to_owned()), ..own.clone() }, "{}"));
        assert_ne!(first.0, of("q", &own, "{}").0);
        assert_eq!(first.0, of("p", &own, "{ }").0);
        assert_ne!(first.1, of("p", &own, "{ }").1);
        assert_ne!(first.1, of("p", &conversation(&[("x-hermes-chat-id", "c")]), "{}").1);
        assert_ne!(
            of("p", &conversation(&[("x-hermes-thread-id", "c")]), "{}").1,
            of("p", &conversation(&[("x-hermes-user-id", "c")]), "{}").1,
        );
        let long = "k".repeat(256);
        for unusable in ["", "  ", "ä", long.as_str()] {
            assert!(idempotency(&headers(&[("idempotency-key", unusable)]), "p", &own, b"").is_err(), "{unusable:?}");
        }
        assert_eq!(idempotency(&HeaderMap::new(), "p", &own, b"").unwrap(), None);
    }
}
