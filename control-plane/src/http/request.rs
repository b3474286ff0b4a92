//! The body of a chat completion request: what is taken, what is ignored, what is refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hermes_core::attachment::MAX_FILES;
use hermes_core::turn::{HistoryMessage, Role};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::File;
use super::error::ApiError;

/// A request, understood.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ChatRequest {
    /// The agent's id as written; `None` leaves it to the routes.
    pub(super) model: Option<String>,
    /// All messages before the trailing user messages.
    pub(super) history: Vec<HistoryMessage>,
    /// The trailing user messages; blank only with files.
    pub(super) text: String,
    /// The files of the trailing user messages.
    pub(super) files: Vec<File>,
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
    let mut files = Vec::new();
    let first_trailing = body.messages.iter().rposition(|message| message.role != "user").map_or(0, |last| last + 1);
    for (index, message) in body.messages.into_iter().enumerate() {
        let (mut message, came) = understood(index, message)?;
        if index >= first_trailing {
            files.extend(came);
        } else if !came.is_empty() {
            // Shown when it came; a model is told of it, as of files in other histories.
            message
                .text
                .push_str(&format!("\n[{} came with this message and are not shown again]", counted(came.len())));
        }
        history.push(message);
    }
    let trailing = history.split_off(first_trailing);
    if trailing.is_empty() {
        return Err(ApiError::invalid("messages", "the last message must be of role user"));
    }
    let text = trailing.into_iter().map(|message| message.text).collect::<Vec<_>>().join("\n\n");
    if files.len() > MAX_FILES {
        return Err(ApiError::invalid("messages", format!("the last messages have more than {MAX_FILES} files")));
    }
    if text.trim().is_empty() && files.is_empty() {
        return Err(ApiError::invalid("messages", "the last user message is empty"));
    }
    Ok(ChatRequest {
        model: body.model.filter(|model| !model.is_empty()),
        history,
        text,
        files,
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

/// A message, and the files of one of the user.
fn understood(index: usize, message: RawMessage) -> Result<(HistoryMessage, Vec<File>), ApiError> {
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
    let mut files = Vec::new();
    let text = match message.content {
        Value::String(text) => text,
        Value::Array(parts) => parts_text(index, parts, (role == Role::User).then_some(&mut files))?,
        // An assistant that only called tools said nothing.
        Value::Null if role == Role::Assistant => String::new(),
        _ => {
            let message = "content is a text or an array of parts";
            return Err(ApiError::invalid(format!("messages[{index}].content"), message));
        }
    };
    Ok((HistoryMessage { role, text }, files))
}

/// The texts of a message's parts; its files go to `files`, where there may be some.
fn parts_text(index: usize, parts: Vec<Value>, mut files: Option<&mut Vec<File>>) -> Result<String, ApiError> {
    let mut texts = Vec::with_capacity(parts.len());
    for (part_index, mut part) in parts.into_iter().enumerate() {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let refused = |message: String| ApiError::invalid(format!("messages[{index}].content[{part_index}]"), message);
        match (kind.as_str(), part.get_mut("text").map(Value::take), &mut files) {
            ("text", Some(Value::String(text)), _) => texts.push(text),
            ("image_url" | "input_audio" | "file", _, Some(files)) => files.push(file(&kind, &part).map_err(refused)?),
            _ => {
                let shown: String = kind.chars().take(40).flat_map(char::escape_debug).collect();
                return Err(refused(format!(
                    "a part is of type text, and in the user's messages image_url, input_audio or file; this one is of type \"{shown}\""
                )));
            }
        }
    }
    Ok(texts.join("\n"))
}

fn counted(files: usize) -> String {
    if files == 1 { "A file".to_owned() } else { format!("{files} files") }
}

/// The file of a part, whose bytes stand in it.
fn file(kind: &str, part: &Value) -> Result<File, String> {
    let text = |path: &str| part.pointer(path).and_then(Value::as_str);
    let (data, name) = match kind {
        "image_url" => (text("/image_url/url"), "picture".to_owned()),
        "input_audio" => (text("/input_audio/data"), format!("audio.{}", text("/input_audio/format").unwrap_or("bin"))),
        _ => (text("/file/file_data"), text("/file/filename").unwrap_or("file").to_owned()),
    };
    let data = data.ok_or_else(|| format!("{kind} holds no data"))?;
    let encoded = match data.split_once(',') {
        Some((head, encoded)) if head.starts_with("data:") && head.ends_with(";base64") => encoded,
        None if kind != "image_url" => data,
        // Fetching what a caller names is not done here.
        _ => {
            return Err(format!("{kind} must hold its content, as data:image/png;base64,…; addresses are not fetched"));
        }
    };
    let content = STANDARD.decode(encoded).map_err(|_| format!("{kind} is no base64"))?;
    Ok(File { name, content })
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
