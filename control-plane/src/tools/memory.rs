//! `memory`: what an agent notes for itself and of its user, as home documents.
//!
//! The rules of an edit are `hermes_home::memory`'s. Here it is done to the agent's document as it is at that moment, with the
//! agent's documents locked, so that edits of several sessions and workers follow each other. Always true: a call changes one
//! list, whole or not at all; a prompt shows it from the next session on. How often a turn failed in a row is kept as a note of
//! its session.

use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_home::memory::{Edit, Notes, Refused, Target, open};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Plan, Spec, Tool};
use crate::store::{self, CallEffect, CallScope};

/// The tool.
pub(super) struct Memory;

const DESCRIPTION: &str = "Keep a short note that every later session begins with. Targets: 'user' for who the user is (name, role, \
    preferences, how they want to be answered), 'memory' for your own notes (environment, conventions, lessons). Note what will \
    still matter next week and is not easily found again; not progress, not a log, no secrets. Space is small: every answer says \
    how full it is. Actions: add (content), replace (old_text names the entry by a unique part of it, content is the new entry), \
    remove (old_text). Several changes at once: operations, all done or none, and only their result has to fit. A change is \
    shown to you from the next session on.";

const PARAMETERS: &str = r#"{"type":"object","properties":{
"action":{"type":"string","enum":["add","replace","remove"],"description":"What to do, when it is one change."},
"target":{"type":"string","enum":["memory","user"],"description":"Which list: your own notes, or the user's profile. Default: memory."},
"content":{"type":"string","description":"The entry, for add and replace."},
"old_text":{"type":"string","description":"A part of the one entry that is meant, for replace and remove."},
"operations":{"type":"array","description":"Several changes of the target, instead of action.","items":{"type":"object","properties":{
"action":{"type":"string","enum":["add","replace","remove"]},"content":{"type":"string"},"old_text":{"type":"string"}},"required":["action"]}}}}"#;

/// Most changes of one call.
const MAX_OPERATIONS: usize = 64;
/// Under which the session keeps how often its turn failed.
const NOTE: &str = "memory";

impl Tool for Memory {
    fn spec(&self) -> Spec {
        Spec {
            name: "memory",
            description: DESCRIPTION,
            parameters: PARAMETERS,
            toolset: "memory",
            time_limit: Duration::from_secs(30),
            max_output: 32 << 10,
        }
    }

    fn plan(&self, arguments: Map<String, Value>) -> Result<Plan, String> {
        change(arguments).map(|change| Plan::Effect(Box::new(change) as Box<dyn CallEffect>))
    }
}

#[derive(Deserialize)]
struct Arguments {
    action: Option<String>,
    target: Option<Target>,
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    old_text: Option<String>,
    #[serde(default)]
    operations: Option<Vec<Operation>>,
}

#[derive(Deserialize)]
struct Operation {
    action: Option<String>,
    content: Option<String>,
    old_text: Option<String>,
}

impl Operation {
    fn edit(self) -> Result<Edit, String> {
        let (content, old_text) = (self.content.unwrap_or_default(), self.old_text.unwrap_or_default());
        match self.action.as_deref() {
            Some("add") => Ok(Edit::Add { content }),
            Some("replace") => Ok(Edit::Replace { old_text, content }),
            Some("remove") => Ok(Edit::Remove { old_text }),
            Some(other) => {
                Err(format!("Error: there is no action {}. Use add, replace or remove.", other.escape_debug()))
            }
            None => Err("Error: say an action (add, replace or remove), or operations.".to_owned()),
        }
    }
}

/// A judged call.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    target: Target,
    edits: Vec<Edit>,
}

fn change(arguments: Map<String, Value>) -> Result<Change, String> {
    let Arguments { action, target, content, old_text, operations } = serde_json::from_value(Value::Object(arguments))
        .map_err(|error| format!("Error: the arguments do not fit: {error}"))?;
    let operations = operations.filter(|operations| !operations.is_empty());
    let edits = match operations {
        Some(several) if several.len() > MAX_OPERATIONS => {
            return Err(format!("Error: one call takes at most {MAX_OPERATIONS} operations."));
        }
        Some(several) => several.into_iter().map(Operation::edit).collect::<Result<_, _>>()?,
        None => vec![Operation { action, content, old_text }.edit()?],
    };
    Ok(Change { target: target.unwrap_or(Target::Memory), edits })
}

/// How often a turn failed since its last edit that was done.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Failures {
    turn: i64,
    count: u32,
}

/// What an edit of a document comes to.
enum Edited {
    /// This is its next text.
    Changed(String, String),
    /// It was so already.
    Same(String),
    /// What the model is told, and whether it counts as a failure.
    Refused(Refused, Notes),
}

impl Change {
    /// The edit as done to this text.
    fn of(&self, text: Result<&str, ()>) -> Edited {
        let limit = self.target.limit();
        let notes = match text.map_err(|()| Refused::Drift("it is not text")).and_then(|text| open(text, limit)) {
            Ok(notes) => notes,
            Err(refused) => return Edited::Refused(refused, Notes::parse(text.unwrap_or_default())),
        };
        match notes.edited(&self.edits, limit) {
            Ok(edited) if edited == notes => Edited::Same(self.done(&edited)),
            Ok(edited) => Edited::Changed(edited.text(), self.done(&edited)),
            Err(refused) => Edited::Refused(refused, notes),
        }
    }

    fn done(&self, notes: &Notes) -> String {
        let usage = notes.usage(self.target.limit()).to_string();
        json!({"success": true, "done": true, "target": self.target, "usage": usage, "entry_count": notes.iter().count()})
            .to_string()
    }

    fn refused(&self, refused: Refused, notes: &Notes) -> String {
        let mut said = json!({"success": false, "target": self.target, "error": refused.to_string()});
        match refused {
            Refused::NoMatch { .. } | Refused::Ambiguous { .. } | Refused::OverLimit { .. } => {
                said["usage"] = notes.usage(self.target.limit()).short().into();
                said["current_entries"] = notes.iter().collect();
            }
            Refused::Hopeless(_) => said["done"] = true.into(),
            _ => {}
        }
        said.to_string()
    }

    async fn run(&self, scope: &mut CallScope<'_>) -> store::Result<String> {
        let turn = scope.caller().turn.seq;
        let document = scope.open_document(self.target.path()).await?;
        let edited = self.of(std::str::from_utf8(&document.body).map_err(|_| ()));
        let before = scope.note(NOTE).await?.and_then(|body| serde_json::from_slice::<Failures>(&body).ok());
        let before = before.filter(|failures| failures.turn == turn).map_or(0, |failures| failures.count);
        let (said, failures) = match edited {
            Edited::Changed(text, said) => {
                scope.write_document(document, text.as_bytes()).await?;
                (said, 0)
            }
            Edited::Same(said) => (said, 0),
            Edited::Refused(refused, notes) => {
                let failures = before.saturating_add(u32::from(refused.counts()));
                (self.refused(refused.after(failures), &notes), failures)
            }
        };
        if failures != before {
            let failures = Failures { turn, count: failures };
            scope.set_note(NOTE, &serde_json::to_vec(&failures).unwrap_or_default()).await?;
        }
        Ok(said)
    }
}

impl CallEffect for Change {
    fn run<'a>(&'a self, scope: &'a mut CallScope<'_>) -> BoxFuture<'a, store::Result<String>> {
        Box::pin(self.run(scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(arguments: Value) -> Result<Change, String> {
        change(arguments.as_object().unwrap().clone())
    }

    #[test]
    fn one_change_or_several_are_read_as_they_are_written() {
        let add = Edit::Add { content: "tea".to_owned() };
        let one = judged(json!({"action": "add", "content": "tea", "operations": []})).unwrap();
        assert_eq!(one, Change { target: Target::Memory, edits: vec![add.clone()] });
        let remove = Edit::Remove { old_text: "coffee".to_owned() };
        let several = json!({"target": "user", "operations": [{"action": "remove", "old_text": "coffee"}, {"action": "add", "content": "tea"}]});
        assert_eq!(judged(several).unwrap(), Change { target: Target::User, edits: vec![remove, add] });
        for wrong in [
            json!({}),
            json!({"action": "forget"}),
            json!({"action": "add", "target": "soul", "content": "x"}),
            json!({"action": "add", "content": 7}),
            json!({"operations": [{"content": "x"}]}),
            json!({"operations": vec![json!({"action": "add", "content": "x"}); MAX_OPERATIONS + 1]}),
        ] {
            let sentence = judged(wrong.clone()).expect_err(&wrong.to_string());
            assert!(sentence.starts_with("Error: "), "{sentence}");
        }
    }

    #[test]
    fn what_is_done_says_how_full_it_is_and_what_is_not_shows_what_there_is() {
        let change = judged(json!({"action": "add", "content": " tea "})).unwrap();
        let Edited::Changed(text, said) = change.of(Ok("milk")) else { panic!("changed") };
        assert_eq!(text, "milk\n§\ntea");
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(
            (&said["success"], &said["usage"], &said["entry_count"]),
            (&json!(true), &json!("0% — 10/2,200 chars"), &json!(2))
        );
        assert!(matches!(change.of(Ok("tea")), Edited::Same(_)));

        let change = judged(json!({"action": "remove", "old_text": "coffee"})).unwrap();
        let Edited::Refused(refused, notes) = change.of(Ok("milk\n§\ntea")) else { panic!("refused") };
        let said: Value = serde_json::from_str(&change.refused(refused.clone(), &notes)).unwrap();
        assert_eq!((&said["success"], &said["current_entries"]), (&json!(false), &json!(["milk", "tea"])));
        let said: Value = serde_json::from_str(&change.refused(refused.after(4), &notes)).unwrap();
        assert_eq!((&said["done"], &said["current_entries"]), (&json!(true), &Value::Null));
    }

    #[test]
    fn a_document_that_an_edit_would_destroy_is_left_alone() {
        let change = judged(json!({"action": "add", "content": "tea"})).unwrap();
        for text in [Ok("a\n§\n\n§\nb"), Err(())] {
            let Edited::Refused(refused, notes) = change.of(text) else { panic!("refused") };
            let said = change.refused(refused, &notes);
            assert!(said.contains("changed by hand") && said.contains("Ask the user"), "{said}");
        }
    }
}
