//! Tools: what a model may ask for, what it asked for, and what a reply that asks is remembered as.
//!
//! Always true of the calls of a finished reply: ids are not empty and unlike all others of the input and the reply, names
//! can be sent back to any provider, arguments are not empty (though perhaps no JSON: they are the model's own words).

use std::collections::HashSet;

use hermes_core::turn::Usage;
use rand::Rng as _;
use rand::distr::Alphanumeric;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Message;

/// Longest name of a tool, bytes.
const MAX_NAME: usize = 64;
/// Longest id of a call, bytes.
pub const MAX_CALL_ID: usize = 256;
/// Longest arguments of one call, bytes.
pub const MAX_ARGUMENTS: usize = 384 << 10;
/// Most calls in one reply.
pub const MAX_CALLS: usize = 128;

/// A tool that the model may ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// 1 to 64 of letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// JSON Schema of the arguments, an object.
    pub parameters: Value,
}

/// A model's wish to have a tool called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The provider's, or made here.
    pub id: String,
    /// Which tool; there may be none of that name.
    pub name: String,
    /// JSON, as the model wrote it: it may be broken.
    pub arguments: String,
}

/// A finished reply that asks for tools, as it is journaled and replayed. Its bytes are the same for the same reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// What was said before the calls.
    pub text: String,
    /// The calls, in order.
    pub tool_calls: Vec<ToolCall>,
    /// What it used.
    pub usage: Usage,
    /// The provider's own word.
    pub finish_reason: String,
    /// What was thought before it, where its server wants that back.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reasoning: String,
}

impl Reply {
    /// As bytes for the journal.
    pub fn to_bytes(&self) -> Vec<u8> {
        // It holds nothing that JSON cannot.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From the journal's bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// Whether a tool may have this name.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Arguments as an object, as every provider wants them back; broken ones are shown to the model as the text they are.
pub(super) fn arguments_object(arguments: &str) -> Value {
    match serde_json::from_str(arguments) {
        Ok(Value::Object(object)) => Value::Object(object),
        _ => json!({ "arguments": arguments }),
    }
}

/// Makes the calls of a finished reply presentable; see the module.
pub(super) fn settle(calls: &mut [ToolCall], messages: &[Message]) {
    let earlier = messages.iter().flat_map(Message::calls).map(|call| call.id.clone());
    let mut known: HashSet<String> = earlier.collect();
    for call in calls {
        if call.arguments.trim().is_empty() {
            "{}".clone_into(&mut call.arguments);
        }
        if !is_name(&call.name) {
            let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
            call.name = call.name.chars().map(plain).take(MAX_NAME).collect();
            if call.name.is_empty() {
                "unnamed".clone_into(&mut call.name);
            }
        }
        if call.id.is_empty()
            || call.id.len() > MAX_CALL_ID
            || call.id.chars().any(|c| c.is_control() || c.is_whitespace())
            || known.contains(&call.id)
        {
            call.id = new_id(&call.id, &known);
        }
        known.insert(call.id.clone());
    }
}

/// An id that is not known. One of the form that the Gemini wire makes for calls without ids keeps it, since it is not sent back
/// then; any other is nine letters and digits, which is the one form that all providers take.
fn new_id(old: &str, known: &HashSet<String>) -> String {
    let counted = old.strip_prefix("call#").and_then(|rest| rest.rsplit_once('#'));
    if let Some((name, _)) = counted {
        let ids = (0_usize..=known.len()).map(|n| format!("call#{name}#{n}"));
        return ids.into_iter().find(|id| !known.contains(id)).unwrap_or_default();
    }
    loop {
        let id: String = rand::rng().sample_iter(Alphanumeric).take(9).map(char::from).collect();
        if !known.contains(&id) {
            return id;
        }
    }
}

/// Calls that arrive in pieces, on the wires that number or name them.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    calls: Vec<(Option<u64>, ToolCall)>,
    bytes: usize,
    /// More came than one reply may hold.
    overflow: bool,
}

/// A piece of a call.
#[derive(Debug, Default)]
pub(super) struct Fragment<'a> {
    pub(super) index: Option<u64>,
    pub(super) id: &'a str,
    pub(super) name: &'a str,
    pub(super) arguments: &'a str,
}

impl Assembly {
    /// Adds a piece. Servers number calls, or name them, or do both; some number all of them 0.
    pub(super) fn add(&mut self, piece: &Fragment<'_>) {
        self.bytes += piece.id.len() + piece.name.len() + piece.arguments.len();
        if self.bytes > MAX_CALLS * 1024 + 4 * MAX_ARGUMENTS {
            self.overflow = true;
        }
        if self.overflow {
            return;
        }
        let continues = |(index, call): &(Option<u64>, ToolCall)| {
            let same_id = piece.id.is_empty() || call.id.is_empty() || piece.id == call.id;
            match piece.index {
                Some(_) => *index == piece.index && same_id,
                None => same_id && (piece.name.is_empty() || !piece.id.is_empty() && piece.id == call.id),
            }
        };
        if let Some(at) = self.calls.iter().rposition(continues)
            && let Some((_, call)) = self.calls.get_mut(at)
        {
            if call.id.is_empty() {
                piece.id.clone_into(&mut call.id);
            }
            if call.name.is_empty() {
                piece.name.clone_into(&mut call.name);
            }
            call.arguments.push_str(piece.arguments);
            self.overflow |= call.arguments.len() > MAX_ARGUMENTS;
            return;
        }
        self.overflow |= self.calls.len() >= MAX_CALLS || piece.arguments.len() > MAX_ARGUMENTS;
        let call = ToolCall { id: piece.id.into(), name: piece.name.into(), arguments: piece.arguments.into() };
        self.calls.push((piece.index, call));
    }

    /// A piece that repeats what came of its call before, as the Anthropic wire's are given to us.
    pub(super) fn replace(&mut self, id: &str, name: &str, arguments: &str) {
        match self.calls.iter_mut().rev().find(|(_, call)| call.id == id) {
            Some((_, call)) => {
                arguments.clone_into(&mut call.arguments);
                self.overflow |= arguments.len() > MAX_ARGUMENTS;
            }
            None => self.push(id, name, arguments),
        }
    }

    /// A whole call.
    pub(super) fn push(&mut self, id: &str, name: &str, arguments: &str) {
        self.overflow |= self.calls.len() >= MAX_CALLS || arguments.len() > MAX_ARGUMENTS;
        if !self.overflow {
            let call = ToolCall { id: id.into(), name: name.into(), arguments: arguments.into() };
            self.calls.push((None, call));
        }
    }

    /// The calls; nothing when they are more or longer than one reply may hold.
    pub(super) fn take(&mut self) -> Option<Vec<ToolCall>> {
        let Self { calls, overflow, .. } = std::mem::take(self);
        (!overflow).then(|| calls.into_iter().map(|(_, call)| call).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
        ToolCall { id: id.to_owned(), name: name.to_owned(), arguments: arguments.to_owned() }
    }

    fn piece<'a>(index: Option<u64>, id: &'a str, name: &'a str, arguments: &'a str) -> Fragment<'a> {
        Fragment { index, id, name, arguments }
    }

    fn assembled(pieces: &[Fragment<'_>]) -> Vec<ToolCall> {
        let mut assembly = Assembly::default();
        pieces.iter().for_each(|piece| assembly.add(piece));
        assembly.take().unwrap()
    }

    #[test]
    fn pieces_are_put_together_however_a_server_marks_them() {
        let whole = [call("x", "read", "{\"a\":1}"), call("y", "list", "{}")];
        // Numbered and interleaved, as OpenAI does.
        let (zero, one) = (Some(0), Some(1));
        let numbered = [
            piece(zero, "x", "read", ""),
            piece(one, "y", "list", "{"),
            piece(zero, "", "", "{\"a\""),
            piece(one, "", "", "}"),
            piece(zero, "", "", ":1}"),
        ];
        assert_eq!(assembled(&numbered), whole);
        // All numbered 0, told apart by their ids.
        let zeros = [piece(zero, "x", "read", "{\"a\":1}"), piece(zero, "y", "list", "{}")];
        assert_eq!(assembled(&zeros), whole);
        // Not numbered, the id with every piece.
        let named =
            [piece(None, "x", "read", "{\"a\""), piece(None, "x", "read", ":1}"), piece(None, "y", "list", "{}")];
        assert_eq!(assembled(&named), whole);
        // Neither: a name begins a call.
        let bare = [piece(None, "", "read", "{\"a\""), piece(None, "", "", ":1}"), piece(None, "", "list", "{}")];
        assert_eq!(assembled(&bare), [call("", "read", "{\"a\":1}"), call("", "list", "{}")]);
    }

    #[test]
    fn more_than_a_reply_may_hold_is_no_reply() {
        let mut many = Assembly::default();
        for number in 0..=MAX_CALLS as u64 {
            many.add(&piece(Some(number), "", "read", "{}"));
        }
        assert_eq!(many.take(), None);
        let mut long = Assembly::default();
        let part = "x".repeat(MAX_ARGUMENTS / 2 + 1);
        long.add(&piece(Some(0), "x", "read", &part));
        long.add(&piece(Some(0), "", "", &part));
        assert_eq!(long.take(), None);
        assert_eq!(long.take(), Some(Vec::new()));
    }

    #[test]
    fn ids_are_unlike_all_others_and_names_can_be_sent_back() {
        let earlier = [Message::Asked {
            text: String::new(),
            calls: vec![call("call_0", "read", "{}")],
            reasoning: String::new(),
        }];
        let mut calls = vec![
            call("call_0", "read", ""),
            call("", "functions.read", "{}"),
            call("fine", "", "{}"),
            call("fine", "read", "{}"),
        ];
        settle(&mut calls, &earlier);
        let ids: HashSet<&str> = calls.iter().map(|call| call.id.as_str()).collect();
        assert_eq!(ids.len(), 4, "{calls:?}");
        assert!(ids.contains("fine") && !ids.contains("call_0") && !ids.contains(""), "{ids:?}");
        assert!(calls[0].id.len() == 9 && calls[0].arguments == "{}");
        assert_eq!((calls[1].name.as_str(), calls[2].name.as_str()), ("functions_read", "unnamed"));
        let mut unnumbered = vec![call("call#read#0", "read", "{}"), call("call#read#0", "read", "{}")];
        settle(&mut unnumbered, &[]);
        assert_eq!((unnumbered[0].id.as_str(), unnumbered[1].id.as_str()), ("call#read#0", "call#read#1"));
    }

    #[test]
    fn arguments_go_back_as_an_object_whatever_they_are() {
        assert_eq!(arguments_object("{\"a\":[1]}"), json!({"a": [1]}));
        for broken in ["{\"a\":", "[1]", "null", ""] {
            assert_eq!(arguments_object(broken), json!({ "arguments": broken }));
        }
    }
}
