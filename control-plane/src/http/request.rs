//! The body of a chat completion request: what is taken, what is ignored, what is refused.

use hermes_core::turn::{HistoryMessage, Role};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::error::ApiError;

/// A request, understood.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ChatRequest {
    /// The agent's id as written; `None` leaves it to the routes.
    pub(super) model: Option<String>,
    /// All messages before the trailing user messages.
    pub(super) history: Vec<HistoryMessage>,
    /// The trailing user messages; never blank.
    pub(super) text: String,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

/// Fields that matter; others are ignored.
#[derive(Deserialize)]
struct Body {
    model: Option<String>,
    messages: Vec<RawMessage>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u64>,
    tools: Option<Vec<IgnoredAny>>,
    functions: Option<Vec<IgnoredAny>>,
    response_format: Option<ResponseFormat>,
    modalities: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct RawMessage {
    role: String,
    #[serde(default)]
    content: Value,
}

/// Reads a body.
///
/// # Errors
/// 400, naming the field.
pub(super) fn parse(body: &[u8]) -> Result<ChatRequest, ApiError> {
    let body: Body = serde_json::from_slice(body)
        .map_err(|error| ApiError::not_json(format!("the body is not a chat completion request: {error}")))?;
    refuse_what_is_not_done(&body)?;
    let mut history = Vec::with_capacity(body.messages.len());
    for (index, message) in body.messages.into_iter().enumerate() {
        history.push(understood(index, message)?);
    }
    let first_trailing = history.iter().rposition(|message| message.role != Role::User).map_or(0, |last| last + 1);
    let trailing = history.split_off(first_trailing);
    if trailing.is_empty() {
        return Err(ApiError::invalid("messages", "the last message must be of role user"));
    }
    let text = trailing.into_iter().map(|message| message.text).collect::<Vec<_>>().join("\n\n");
    if text.trim().is_empty() {
        return Err(ApiError::invalid("messages", "the last user message is empty"));
    }
    Ok(ChatRequest {
        model: body.model.filter(|model| !model.is_empty()),
        history,
        text,
        stream: body.stream.unwrap_or(false),
        include_usage: body.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
    })
}

fn refuse_what_is_not_done(body: &Body) -> Result<(), ApiError> {
    if body.n.is_some_and(|n| n != 1) {
        return Err(ApiError::invalid("n", "an agent gives one answer: n must be 1"));
    }
    let own_tools = "an agent runs its own tools; tools of the caller are not supported";
    if body.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
        return Err(ApiError::invalid("tools", own_tools));
    }
    if body.functions.as_ref().is_some_and(|functions| !functions.is_empty()) {
        return Err(ApiError::invalid("functions", own_tools));
    }
    if body.response_format.as_ref().is_some_and(|format| format.kind != "text") {
        return Err(ApiError::invalid("response_format", "an agent answers in text: response_format must be text"));
    }
    if body.modalities.as_ref().is_some_and(|modalities| modalities.iter().any(|modality| modality != "text")) {
        return Err(ApiError::invalid("modalities", "an agent answers in text: modalities must be [\"text\"]"));
    }
    Ok(())
}

fn understood(index: usize, message: RawMessage) -> Result<HistoryMessage, ApiError> {
    let role = match message.role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => {
            let message = "an agent runs its own tools; results of the caller's tools are not supported";
            return Err(ApiError::invalid(format!("messages[{index}].role"), message));
        }
        _ => {
            let message = "a role is one of system, developer, user, assistant";
            return Err(ApiError::invalid(format!("messages[{index}].role"), message));
        }
    };
    let text = match message.content {
        Value::String(text) => text,
        Value::Array(parts) => parts_text(index, parts)?,
        // An assistant that only called tools said nothing.
        Value::Null if role == Role::Assistant => String::new(),
        _ => {
            let message = "content is a text or an array of text parts";
            return Err(ApiError::invalid(format!("messages[{index}].content"), message));
        }
    };
    Ok(HistoryMessage { role, text })
}

fn parts_text(index: usize, parts: Vec<Value>) -> Result<String, ApiError> {
    let mut texts = Vec::with_capacity(parts.len());
    for (part_index, mut part) in parts.into_iter().enumerate() {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        match (kind.as_str(), part.get_mut("text").map(Value::take)) {
            ("text", Some(Value::String(text))) => texts.push(text),
            _ => {
                let param = format!("messages[{index}].content[{part_index}]");
                let shown: String = kind.chars().take(40).flat_map(char::escape_debug).collect();
                let message = format!("only text parts are supported, this one is of type \"{shown}\"");
                return Err(ApiError::invalid(param, message));
            }
        }
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> Value {
        serde_json::from_str(&parse(body.as_bytes()).unwrap_err().json()).unwrap()
    }

    #[test]
    fn trailing_user_messages_are_the_text_and_all_before_is_history() {
        let body = r#"{"model":"main","temperature":0.5,"unknown":{"a":[1]},"n":1,"tools":[],"messages":[
            {"role":"developer","content":"be kind"},{"role":"user","content":"one"},
            {"role":"assistant","content":null,"tool_calls":[{}]},
            {"role":"user","content":"two"},{"role":"user","name":"x","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}"#;
        let request = parse(body.as_bytes()).unwrap();
        let history: Vec<_> = request.history.iter().map(|message| (message.role, message.text.as_str())).collect();
        assert_eq!(history, [(Role::System, "be kind"), (Role::User, "one"), (Role::Assistant, "")]);
        assert_eq!(request.text, "two\n\na\nb");
        assert_eq!((request.model.as_deref(), request.stream, request.include_usage), (Some("main"), false, false));
        let only = parse(
            br#"{"messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}}"#,
        );
        let only = only.unwrap();
        assert_eq!((only.model, only.history.len(), only.stream, only.include_usage), (None, 0, true, true));
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_its_place() {
        let deep = format!("{{\"messages\":{}", "[".repeat(100_000));
        for (body, param) in [
            ("", Value::Null),
            ("[]", Value::Null),
            ("{}", Value::Null),
            (r#"{"messages":"hi"}"#, Value::Null),
            (r#"{"messages":[{"role":"user","content":"a"}],"messages":[]}"#, Value::Null),
            (deep.as_str(), Value::Null),
            (r#"{"messages":[]}"#, "messages".into()),
            (r#"{"messages":[{"role":"user","content":" \n"}]}"#, "messages".into()),
            (r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#, "messages".into()),
            (r#"{"messages":[{"role":"tool","content":"a"}]}"#, "messages[0].role".into()),
            (r#"{"messages":[{"role":"User","content":"a"}]}"#, "messages[0].role".into()),
            (r#"{"messages":[{"role":"user"}]}"#, "messages[0].content".into()),
            (r#"{"messages":[{"role":"user","content":7}]}"#, "messages[0].content".into()),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{}}]}]}"#,
                "messages[0].content[1]".into(),
            ),
            (r#"{"messages":[{"role":"user","content":[7]}]}"#, "messages[0].content[0]".into()),
            (r#"{"n":2,"messages":[]}"#, "n".into()),
            (r#"{"tools":[{}],"messages":[]}"#, "tools".into()),
            (r#"{"functions":[{}],"messages":[]}"#, "functions".into()),
            (r#"{"response_format":{"type":"json_object"},"messages":[]}"#, "response_format".into()),
            (r#"{"modalities":["text","audio"],"messages":[]}"#, "modalities".into()),
        ] {
            let error = refused(body);
            assert_eq!(error["error"]["param"], param, "{}", &body[..body.len().min(80)]);
            assert_eq!(error["error"]["type"], "invalid_request_error");
        }
    }
}
