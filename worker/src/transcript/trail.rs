//! What an ended turn did between its message and its answer, as later turns are told of it: the calls of its tools and how their results began.
//!
//! Called when a turn is noted or fetched. Pure. Always true: a call is told of with its result or not at all, for providers refuse the one without
//! the other; texts and arguments are short; of a long turn the newest calls are told. The same turn comes to the same messages whether it
//! was noted when it ended or fetched later.

use std::sync::Arc;

use hermes_proto::v1::{ModelRole, ToolCall};
use serde_json::Value;

use crate::model::Message;

/// How much of a turn's calls and results is told, bytes.
const MAX_TRAIL_BYTES: usize = 8 << 10;
/// How much of a result is told, bytes; the control plane sends more than that of each.
const MAX_RESULT_BYTES: usize = 1000;
/// Longest text inside of a call's arguments, bytes.
const MAX_ARGUMENT_BYTES: usize = 300;
/// What stands for the rest of a text.
const CUT: &str = " [… shortened]";

/// The messages of a turn between its first and its last.
pub(super) fn condensed(between: Vec<Message>) -> Vec<Message> {
    let mut left = MAX_TRAIL_BYTES;
    let mut told: Vec<Message> = Vec::new();
    let mut results: Vec<Message> = Vec::new();
    // From the new end; what was said is told whatever it takes, for it was said.
    for message in between.into_iter().rev() {
        match message.role {
            ModelRole::Tool => results.push(Message { text: shortened(&message.text, MAX_RESULT_BYTES), ..message }),
            ModelRole::Assistant => {
                let asks = short(message);
                let mut group: Vec<Message> = results.drain(..).rev().collect();
                let answered = asks.tool_calls.len() == group.len()
                    && asks.tool_calls.iter().zip(&group).all(|(call, result)| *call.id == *result.tool_call_id);
                if !answered || group.is_empty() {
                    continue;
                }
                let bytes = asks.bytes() + group.iter().map(Message::bytes).sum::<usize>();
                let rest = left.checked_sub(bytes);
                // With one left out, older ones are left out, too.
                left = rest.unwrap_or(0);
                if rest.is_some() {
                    group.reverse();
                    told.extend(group);
                    told.push(asks);
                }
            }
            ModelRole::User | ModelRole::System | ModelRole::Unspecified => told.push(message),
        }
    }
    told.reverse();
    told
}

fn short(message: Message) -> Message {
    let short = |call: &ToolCall| ToolCall { arguments: short_arguments(&call.arguments), ..call.clone() };
    Message {
        text: shortened(&message.text, MAX_RESULT_BYTES),
        tool_calls: message.tool_calls.iter().map(short).collect(),
        // It is for the turn that it came in.
        reasoning: Arc::default(),
        ..message
    }
}

fn shortened(text: &Arc<str>, most: usize) -> Arc<str> {
    if text.len() <= most {
        return Arc::clone(text);
    }
    format!("{}{CUT}", text.get(..text.floor_char_boundary(most)).unwrap_or_default()).into()
}

/// Arguments whose texts are short; what is no JSON object is none.
fn short_arguments(arguments: &str) -> String {
    if arguments.len() <= MAX_ARGUMENT_BYTES {
        return arguments.to_owned();
    }
    let mut value: Value = serde_json::from_str(arguments).unwrap_or_default();
    shorten(&mut value);
    let short = value.to_string();
    if value.is_object() && short.len() <= 8 * MAX_ARGUMENT_BYTES { short } else { "{}".to_owned() }
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > MAX_ARGUMENT_BYTES => {
            text.truncate(text.floor_char_boundary(MAX_ARGUMENT_BYTES));
            text.push_str(CUT);
        }
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Object(values) => values.values_mut().for_each(shorten),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(ids: &[&str], arguments: &str) -> Message {
        let call = |id: &&str| ToolCall { id: (*id).to_owned(), name: "f".to_owned(), arguments: arguments.to_owned() };
        let tool_calls = ids.iter().map(call).collect();
        Message { tool_calls, reasoning: "thought".into(), ..Message::new(ModelRole::Assistant, "") }
    }

    fn result(id: &str, text: &str) -> Message {
        Message { tool_call_id: id.into(), ..Message::new(ModelRole::Tool, text) }
    }

    fn user(text: &str) -> Message {
        Message::new(ModelRole::User, text)
    }

    /// Roles, ids and lengths.
    fn shape(messages: &[Message]) -> String {
        let one = |message: &Message| match message.role {
            ModelRole::Tool => format!("{}={}", message.tool_call_id, message.text.len()),
            ModelRole::Assistant => {
                format!("?{}", message.tool_calls.iter().map(|call| call.id.as_str()).collect::<Vec<_>>().join("+"))
            }
            _ => message.text.to_string(),
        };
        messages.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn calls_are_told_with_their_results() {
        let between = vec![
            asks(&["a", "b"], "{}"),
            result("a", "x"),
            result("b", "yy"),
            user("wait"),
            asks(&["c"], "{}"),
            result("c", ""),
        ];
        let told = condensed(between);
        assert_eq!(shape(&told), "?a+b a=1 b=2 wait ?c c=0");
        assert_eq!(&*told[0].reasoning, "");
        assert_eq!(condensed(told.clone()), told);
    }

    #[test]
    fn a_call_without_its_result_is_not_told() {
        let missing =
            vec![asks(&["a", "b"], "{}"), result("a", "x"), user("wait"), asks(&["c"], "{}"), result("c", "z")];
        assert_eq!(shape(&condensed(missing)), "wait ?c c=1");
        assert_eq!(shape(&condensed(vec![result("a", "x"), asks(&["b"], "{}"), result("b", "z")])), "?b b=1");
        assert_eq!(shape(&condensed(vec![asks(&["a"], "{}"), result("z", "x")])), "");
    }

    #[test]
    fn long_texts_are_short_and_of_many_calls_the_newest_are_told() {
        let long = "é".repeat(5000);
        let arguments = serde_json::json!({"path": "a", "deep": [{"content": long}]}).to_string();
        let told = condensed(vec![asks(&["a"], &arguments), result("a", &long)]);
        assert!(told[1].text.ends_with(CUT) && told[1].text.len() <= MAX_RESULT_BYTES + CUT.len());
        let kept: Value = serde_json::from_str(&told[0].tool_calls[0].arguments).expect("JSON");
        assert!(kept["path"] == "a" && kept["deep"][0]["content"].as_str().is_some_and(|text| text.ends_with(CUT)));
        assert_eq!(short_arguments(&format!("[{}]", "1,".repeat(400))), "{}");

        let ids: Vec<String> = (0..50).map(|id| id.to_string()).collect();
        let between =
            ids.iter().flat_map(|id| [asks(&[id], "{}"), result(id, &"x".repeat(700))]).chain([user("u")]).collect();
        let told = condensed(between);
        assert!(
            told.iter().map(Message::bytes).sum::<usize>() <= MAX_TRAIL_BYTES && told.len() == 23,
            "{}",
            told.len()
        );
        assert!(shape(&told).ends_with("?49 49=700 u"));
    }
}
