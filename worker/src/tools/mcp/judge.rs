//! What is done about a message of a server, by whatever it came. Pure, but for what it notes in the connection's [`State`].
//!
//! Called by [`super::pipe`] and [`super::remote`]. Always true: nothing but answers is handed on, whole messages of bounded size and number
//! of values; what a server asks for itself is refused; what is no message is counted and otherwise ignored.

use std::sync::atomic::{AtomicBool, Ordering};

use rmcp::model::{ErrorData, JsonRpcMessage, RequestId, ServerJsonRpcMessage};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::super::child::{Limits, State, values};

/// What a server may write: 8 MiB for one request, its answer included. Each value takes a multiple of what it takes as text.
pub(super) const LIMITS: Limits = Limits { line: 2 << 20, values: 100_000, unasked: 8 << 20 };

/// What a message comes to.
#[derive(Debug)]
pub(super) enum Judged {
    /// Nothing.
    Nothing,
    /// It answers a request.
    Answer(Box<ServerJsonRpcMessage>),
    /// It asks for something, and is to be answered this.
    Reply(String),
}

/// What to do about a message.
///
/// # Errors
/// Why the server has to be ended.
pub(super) fn judge(line: &[u8], state: &State, changed: &AtomicBool) -> Result<Judged, String> {
    let too_many = || Err(format!("it wrote a message of more than {} values", LIMITS.values));
    if values(line) > LIMITS.values {
        return too_many();
    }
    let Ok(shape) = serde_json::from_slice::<Shape>(line) else {
        // Programs print what they should not; it is none of our business until it is too much.
        if !line.trim_ascii().is_empty() {
            state.was_odd();
        }
        return Ok(Judged::Nothing);
    };
    match (shape.method.as_deref(), shape.id) {
        (Some(method), Some(id)) => {
            let answer = match method {
                "ping" => json!({"jsonrpc": "2.0", "id": id, "result": {}}),
                _ => {
                    let error = json!({"code": -32601, "message": "this client answers no requests"});
                    json!({"jsonrpc": "2.0", "id": id, "error": error})
                }
            };
            Ok(Judged::Reply(answer.to_string()))
        }
        (Some(method), None) => {
            if method == "notifications/tools/list_changed" {
                changed.store(true, Ordering::Relaxed);
            }
            Ok(Judged::Nothing)
        }
        (None, Some(id)) if shape.result.is_some() || shape.error.is_some() => {
            let unreadable = |_| {
                let error = ErrorData::internal_error("its answer is none of the protocol", None);
                JsonRpcMessage::error(error, Some(id))
            };
            Ok(Judged::Answer(Box::new(serde_json::from_slice(line).unwrap_or_else(unreadable))))
        }
        (None, _) => {
            state.was_odd();
            Ok(Judged::Nothing)
        }
    }
}

/// As much of a message as says what it is.
#[derive(Deserialize)]
struct Shape {
    #[serde(default)]
    id: Option<RequestId>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    result: Option<IgnoredAny>,
    #[serde(default)]
    error: Option<IgnoredAny>,
}
