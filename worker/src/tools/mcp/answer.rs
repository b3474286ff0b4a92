//! What a server answered to a call, as text for the model. Pure.

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};

use super::super::ToolResult;

/// Longest text of an answer that is put together, bytes; beyond it nothing is added.
pub(super) const MAX_TEXT: usize = 64 << 10;

const UNKNOWN_KIND: &str = "[content of a kind that is not known here]";

/// The text of an answer: texts as they are, of everything else what it is. An answer that says it is an error is one.
pub(super) fn text(result: &CallToolResult) -> ToolResult {
    let mut text = String::new();
    for block in &result.content {
        if !text.is_empty() {
            text.push('\n');
        }
        let left_out = |kind: &str, mime: &str, size: usize| {
            let mime = super::super::child::cut(mime, 80);
            format!("[{kind} ({mime}), {size} characters of base64, not shown]")
        };
        let described;
        let added = match block {
            ContentBlock::Text(block) => &block.text,
            ContentBlock::Image(image) => {
                described = left_out("an image", &image.mime_type, image.data.len());
                &described
            }
            ContentBlock::Audio(audio) => {
                described = left_out("a recording", &audio.mime_type, audio.data.len());
                &described
            }
            ContentBlock::Resource(embedded) => match &embedded.resource {
                ResourceContents::TextResourceContents { uri, text, .. } => {
                    described = format!("{uri}:\n{text}");
                    &described
                }
                ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                    described =
                        format!("{uri}: {}", left_out("a file", mime_type.as_deref().unwrap_or("?"), blob.len()));
                    &described
                }
                _ => UNKNOWN_KIND,
            },
            ContentBlock::ResourceLink(resource) => {
                described = format!("[{}: {}]", resource.name, resource.uri);
                &described
            }
            _ => UNKNOWN_KIND,
        };
        text.push_str(added);
        if text.len() > MAX_TEXT {
            break;
        }
    }
    if let (true, Some(value)) = (text.is_empty(), &result.structured_content) {
        text = value.to_string();
    }
    if text.is_empty() {
        "(the answer is empty)".clone_into(&mut text);
    }
    if result.is_error == Some(true) { Err(text) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: serde_json::Value) -> ToolResult {
        text(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn texts_are_told_and_everything_else_is_named() {
        let answer = read(json!({"content": [
            {"type": "text", "text": "one"},
            {"type": "image", "data": "AAAA", "mimeType": "image/png"},
            {"type": "audio", "data": "AAAAAA", "mimeType": "audio/wav"},
            {"type": "resource", "resource": {"uri": "demo://x", "text": "two"}},
            {"type": "resource", "resource": {"uri": "demo://y", "blob": "AA", "mimeType": "application/zip"}},
            {"type": "resource_link", "uri": "demo://z", "name": "zed"},
        ]}));
        let lines = [
            "one",
            "[an image (image/png), 4 characters of base64, not shown]",
            "[a recording (audio/wav), 6 characters of base64, not shown]",
            "demo://x:",
            "two",
            "demo://y: [a file (application/zip), 2 characters of base64, not shown]",
            "[zed: demo://z]",
        ];
        assert_eq!(answer, Ok(lines.join("\n")));
        assert_eq!(read(json!({"content": [{"type": "text", "text": "no"}], "isError": true})), Err("no".to_owned()));
        assert_eq!(read(json!({"content": [], "structuredContent": {"a": 1}})), Ok(r#"{"a":1}"#.to_owned()));
        assert_eq!(read(json!({"content": []})), Ok("(the answer is empty)".to_owned()));
    }

    #[test]
    fn an_answer_is_not_put_together_beyond_its_bound() {
        let block = json!({"type": "text", "text": "x".repeat(1 << 10)});
        let answer = read(json!({"content": vec![block; 1000]})).unwrap();
        assert!(answer.len() <= MAX_TEXT + (1 << 10) + 2, "{}", answer.len());
    }
}
