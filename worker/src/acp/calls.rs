//! What a program says that it does: its own tool calls, as they come.
//!
//! Kept by one turn. Pure. Always true: what is kept of a call is bounded, and so are the calls; a request for permission is put together from all that
//! was said of its call, and what a person would be shown is what its hash is made of; a command is looked for wherever programs write it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::tools::child::cut;

/// Calls that have not ended, at most; of more the oldest are forgotten.
const MAX_OPEN: usize = 64;
/// Longest title, characters; some are whole commands.
const MAX_TITLE: usize = 4000;
/// Longest title in a line, and longest path, characters.
const MAX_LINE: usize = 300;
/// Most places that a call names.
const MAX_PATHS: usize = 20;
/// Longest input that is kept of a call, bytes as JSON; longer ones cannot be asked about.
const MAX_INPUT: usize = 128 << 10;
/// How much of an input is noted when its call has ended, characters.
const NOTED_INPUT: usize = 2000;
/// Longest id that is passed on as it is, bytes.
const MAX_ID: usize = 64;

/// What is known of a call.
#[derive(Clone, Debug, Default, PartialEq)]
struct Call {
    title: String,
    kind: String,
    paths: Vec<String>,
    input: Value,
    content: Value,
    /// Something of it was too long to be kept.
    cut: bool,
    order: u64,
}

/// What an update says of a call.
#[derive(Debug, PartialEq)]
pub(crate) enum Change {
    /// It began.
    Began(String),
    /// It ended: what to note.
    Ended(Value),
    /// Neither.
    Goes,
}

/// The calls of a turn.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    open: HashMap<String, Call>,
    seen: u64,
}

/// What a program wants to be allowed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wish {
    /// Of its call; short.
    pub(crate) id: String,
    /// What it is.
    pub(crate) arguments: Map<String, Value>,
    /// In a line.
    pub(crate) title: String,
    /// There is more to it than a person could be shown.
    pub(crate) too_long: bool,
}

impl Calls {
    /// Takes in what is said of a call.
    pub(crate) fn take(&mut self, said: &Value) -> Change {
        let Some(id) = said.get("toolCallId").and_then(Value::as_str) else {
            return Change::Goes;
        };
        let id = short_id(id);
        let is_new = !self.open.contains_key(&id);
        if is_new && self.open.len() >= MAX_OPEN {
            let oldest = self.open.iter().min_by_key(|(_, call)| call.order).map(|(id, _)| id.clone());
            oldest.and_then(|id| self.open.remove(&id));
        }
        self.seen += 1;
        let call = self.open.entry(id.clone()).or_insert_with(|| Call { order: self.seen, ..Call::default() });
        call.take(said);
        let status = said.get("status").and_then(Value::as_str).unwrap_or_default();
        match status {
            "completed" | "failed" => {
                let noted = call.noted(status);
                self.open.remove(&id);
                Change::Ended(noted)
            }
            _ if is_new => Change::Began(call.shown()),
            _ => Change::Goes,
        }
    }

    /// What it asks for, of which it may have said some before.
    pub(crate) fn wish(&mut self, said: &Value) -> Wish {
        let _ = self.take(said);
        let id = short_id(said.get("toolCallId").and_then(Value::as_str).unwrap_or_default());
        let mut call = self.open.get(&id).cloned().unwrap_or_default();
        // Where it says that the call has ended, too, there is nothing before.
        call.take(said);
        let mut arguments = Map::new();
        arguments.insert("kind".to_owned(), call.kind.clone().into());
        arguments.insert("title".to_owned(), call.title.clone().into());
        if let Some(command) = call.command() {
            arguments.insert("command".to_owned(), command.into());
        }
        arguments.insert("paths".to_owned(), call.paths.clone().into());
        arguments.insert("input".to_owned(), call.input.clone());
        arguments.insert("content".to_owned(), call.content.clone());
        Wish { id, title: call.shown(), arguments, too_long: call.cut }
    }
}

impl Call {
    fn take(&mut self, said: &Value) {
        let text = |key: &str| said.get(key).and_then(Value::as_str);
        if let Some(title) = text("title") {
            self.title = cut(title, MAX_TITLE);
            self.cut |= title.chars().count() > MAX_TITLE;
        }
        if let Some(kind) = text("kind") {
            self.kind = cut(kind, 32);
        }
        if let Some(places) = said.get("locations").and_then(Value::as_array) {
            let paths = places.iter().filter_map(|place| place.get("path").and_then(Value::as_str));
            let paths: Vec<&str> = paths.collect();
            self.cut |= paths.len() > MAX_PATHS || paths.iter().any(|path| path.chars().count() > MAX_LINE);
            self.paths = paths.into_iter().take(MAX_PATHS).map(|path| cut(path, MAX_LINE)).collect();
        }
        for (key, kept) in [("rawInput", &mut self.input), ("content", &mut self.content)] {
            let Some(value) = said.get(key).filter(|value| !value.is_null()) else {
                continue;
            };
            let fits = value.to_string().len() <= MAX_INPUT;
            *kept = if fits { value.clone() } else { Value::Null };
            self.cut |= !fits;
        }
    }

    fn shown(&self) -> String {
        match (self.title.trim(), self.kind.as_str()) {
            ("", "") => "a call without a name".to_owned(),
            ("", kind) => kind.to_owned(),
            (title, _) => cut(&title.split_whitespace().collect::<Vec<_>>().join(" "), MAX_LINE),
        }
    }

    fn noted(&self, status: &str) -> Value {
        let input = match &self.input {
            Value::Null => Value::Null,
            input => cut(&input.to_string(), NOTED_INPUT).into(),
        };
        json!({"tool": self.title, "kind": self.kind, "status": status, "paths": self.paths, "input": input})
    }

    /// The command that it would run: of its input, or of what it is called where it says that it runs one.
    fn command(&self) -> Option<String> {
        let words = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Array(words) => {
                words.iter().map(Value::as_str).collect::<Option<Vec<_>>>().map(|words| words.join(" "))
            }
            _ => None,
        };
        let found = ["command", "cmd", "script"].iter().find_map(|key| self.input.get(key).and_then(words));
        let arguments = self.input.get("args").and_then(words).map(|words| format!(" {words}")).unwrap_or_default();
        let found = found.map(|command| format!("{command}{arguments}"));
        found.or_else(|| (self.kind == "execute").then(|| self.title.trim_matches('`').to_owned()))
    }
}

/// An id as it is where it is short, else what stands for it.
fn short_id(id: &str) -> String {
    if !id.is_empty() && id.len() <= MAX_ID && id.chars().all(|c| c.is_ascii_graphic()) {
        return id.to_owned();
    }
    Sha256::digest(id).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The answer to a request for permission: the option that stands for it, among those it was given with. Allowed without an option for this
/// one call alone is not allowed.
pub(crate) fn chosen(params: &Value, allowed: bool) -> Value {
    let options = params.get("options").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let of = |kind: &str| {
        let is_it = |option: &&Value| option.get("kind").and_then(Value::as_str) == Some(kind);
        options.iter().find(is_it).and_then(|option| option.get("optionId")).cloned()
    };
    let rejected = || of("reject_once").or_else(|| of("reject_always"));
    let option = if allowed { of("allow_once").or_else(rejected) } else { rejected() };
    match option {
        Some(id) => json!({"outcome": {"outcome": "selected", "optionId": id}}),
        None => json!({"outcome": {"outcome": "cancelled"}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_told_when_it_begins_and_noted_when_it_ends() {
        let mut calls = Calls::default();
        let began =
            calls.take(&json!({"toolCallId": "a", "title": "Read\nit", "kind": "read", "rawInput": {"path": "/x"}}));
        assert_eq!(began, Change::Began("Read it".to_owned()));
        assert_eq!(calls.take(&json!({"toolCallId": "a", "status": "in_progress"})), Change::Goes);
        let Change::Ended(noted) = calls.take(&json!({"toolCallId": "a", "status": "completed"})) else { panic!() };
        assert_eq!(
            (&noted["kind"], &noted["status"], &noted["input"]),
            (&json!("read"), &json!("completed"), &json!(r#"{"path":"/x"}"#))
        );
        let long = Value::from("y".repeat(MAX_INPUT));
        for id in 0..2 * MAX_OPEN {
            let title = "x".repeat(2 * MAX_TITLE);
            calls.take(&json!({"toolCallId": id.to_string(), "title": title, "rawInput": long}));
        }
        assert!(calls.open.len() <= MAX_OPEN);
        assert!(calls.open.values().all(|call| call.title.chars().count() <= MAX_TITLE && call.input.is_null()));
        assert_eq!(calls.take(&json!({"status": "completed"})), Change::Goes);
    }

    #[test]
    fn a_wish_is_put_together_from_all_that_was_said() {
        let mut calls = Calls::default();
        calls.take(&json!({"toolCallId": "a", "title": "Run it", "kind": "execute", "rawInput": {"command": ["rm", "-rf", "/"]}}));
        let wish = calls.wish(&json!({"toolCallId": "a"}));
        assert_eq!((wish.id.as_str(), wish.title.as_str(), wish.too_long), ("a", "Run it", false));
        assert_eq!(wish.arguments["command"], "rm -rf /");
        let other = calls.wish(&json!({"toolCallId": "a", "rawInput": {"command": "ls", "args": ["-l"]}}));
        assert_eq!(other.arguments["command"], "ls -l");
        let titled = calls.wish(&json!({"toolCallId": "b", "title": "`rm -rf /`", "kind": "execute"}));
        assert_eq!(titled.arguments["command"], "rm -rf /");
        let edit = calls.wish(&json!({"toolCallId": "c", "title": "Edit", "kind": "edit"}));
        assert!(!edit.arguments.contains_key("command"));
        assert!(calls.wish(&json!({"toolCallId": "d", "rawInput": "y".repeat(1 << 20)})).too_long);
        assert_eq!(calls.wish(&json!({"toolCallId": "x".repeat(100)})).id.len(), 32);
    }

    #[test]
    fn a_permission_is_for_one_call_or_none() {
        let options = |kinds: &[&str]| {
            let option = |kind: &&str| json!({"kind": kind, "optionId": format!("the-{kind}")});
            json!({"options": kinds.iter().map(option).collect::<Vec<_>>()})
        };
        let all = options(&["allow_always", "allow_once", "reject_once", "reject_always"]);
        assert_eq!(chosen(&all, true)["outcome"]["optionId"], "the-allow_once");
        assert_eq!(chosen(&all, false)["outcome"]["optionId"], "the-reject_once");
        assert_eq!(
            chosen(&options(&["allow_always", "reject_always"]), true)["outcome"]["optionId"],
            "the-reject_always"
        );
        for nothing in [options(&["allow_once"]), json!({}), json!({"options": 3})] {
            assert_eq!(chosen(&nothing, false)["outcome"]["outcome"], "cancelled");
        }
    }
}
