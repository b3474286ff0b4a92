//! `todo`: the tasks of a session, as its model writes them down.
//!
//! Kept as a note of the session, so the next turn reads what the last one left, whatever worker runs it, and a new session begins
//! without. Always true: a list is written whole or not at all, ids are unique in it, and its length is bounded.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Plan, Spec, Tool};
use crate::store::{self, CallEffect, CallScope};

/// The tool.
pub(super) struct Todo;

const DESCRIPTION: &str = "Your task list of this session. Use it for work of three steps or more, or for several requests at once. Call it \
    without arguments to read the list. With todos: replaces the list; with merge true: changes the items with these ids and adds \
    new ones. Keep one item in_progress, mark items completed at once, cancelled when they are off. Answers the whole list.";

const PARAMETERS: &str = r#"{"type":"object","properties":{
"todos":{"type":"array","description":"The list, most important first. Leave out to read.","items":{"type":"object","properties":{
"id":{"type":"string"},"content":{"type":"string"},"status":{"type":"string","enum":["pending","in_progress","completed","cancelled"]}},"required":["id"]}},
"merge":{"type":"boolean","description":"Change and add by id instead of replacing the list. Default: false."}}}"#;

/// Most items.
const MAX_ITEMS: usize = 100;
/// Longest id and content, characters.
const MAX_ID: usize = 64;
const MAX_CONTENT: usize = 500;
/// Under which the session keeps its list.
const NOTE: &str = "todo";

impl Tool for Todo {
    fn spec(&self) -> Spec {
        Spec {
            name: "todo",
            description: DESCRIPTION,
            parameters: PARAMETERS,
            toolset: "todo",
            time_limit: Duration::from_secs(30),
            max_output: 128 << 10,
        }
    }

    fn plan(&self, arguments: Map<String, Value>) -> Result<Plan, String> {
        change(arguments).map(|change| Plan::Effect(Box::new(change) as Box<dyn CallEffect>))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    #[default]
    Pending,
    InProgress,
    Completed,
    Cancelled,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Item {
    id: String,
    content: String,
    status: Status,
}

/// What a call says of an item.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Said {
    id: String,
    content: Option<String>,
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Arguments {
    todos: Option<Vec<Said>>,
    #[serde(default)]
    merge: Option<bool>,
}

/// A judged call.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Read,
    Write(Vec<Said>),
    Merge(Vec<Said>),
}

fn change(arguments: Map<String, Value>) -> Result<Change, String> {
    let Arguments { todos, merge } = serde_json::from_value(Value::Object(arguments))
        .map_err(|error| format!("Error: the arguments do not fit: {error}"))?;
    let Some(todos) = todos else { return Ok(Change::Read) };
    if todos.len() > MAX_ITEMS {
        return Err(format!("Error: the list holds at most {MAX_ITEMS} items."));
    }
    let mut ids = std::collections::HashSet::new();
    for said in &todos {
        let content = said.content.as_deref().unwrap_or_default();
        if said.id.trim().is_empty() || said.id.chars().count() > MAX_ID || content.chars().count() > MAX_CONTENT {
            return Err(format!(
                "Error: an item has an id of 1 to {MAX_ID} characters and a content of at most {MAX_CONTENT}."
            ));
        }
        if !ids.insert(said.id.as_str()) {
            return Err(format!("Error: the id {} comes twice.", said.id.escape_debug()));
        }
    }
    Ok(if merge == Some(true) { Change::Merge(todos) } else { Change::Write(todos) })
}

impl Change {
    /// The list after it; or what is wrong.
    fn of(&self, before: Vec<Item>) -> Result<Vec<Item>, String> {
        let (mut items, said) = match self {
            Self::Read => return Ok(before),
            Self::Write(said) => (Vec::new(), said),
            Self::Merge(said) => (before, said),
        };
        for one in said {
            let content = one.content.as_deref().map(str::trim).filter(|content| !content.is_empty());
            match items.iter_mut().find(|item| item.id == one.id) {
                Some(item) => {
                    item.content = content.unwrap_or(&item.content).to_owned();
                    item.status = one.status.unwrap_or(item.status);
                }
                None => {
                    let content =
                        content.ok_or_else(|| format!("Error: the item {} needs a content.", one.id.escape_debug()))?;
                    let status = one.status.unwrap_or_default();
                    items.push(Item { id: one.id.clone(), content: content.to_owned(), status });
                }
            }
        }
        if items.len() > MAX_ITEMS {
            return Err(format!(
                "Error: the list would hold more than {MAX_ITEMS} items. Write it anew without those that are done."
            ));
        }
        Ok(items)
    }

    async fn run(&self, scope: &mut CallScope<'_>) -> store::Result<String> {
        let kept = scope.note(NOTE).await?;
        // A list that another build wrote in another form is begun anew.
        let before: Vec<Item> = kept.and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
        let items = match self.of(before) {
            Ok(items) => items,
            Err(sentence) => return Ok(sentence),
        };
        if *self != Self::Read {
            scope.set_note(NOTE, &serde_json::to_vec(&items).unwrap_or_default()).await?;
        }
        Ok(shown(&items))
    }
}

fn shown(items: &[Item]) -> String {
    let count = |status| items.iter().filter(|item| item.status == status).count();
    let summary = json!({
        "total": items.len(),
        "pending": count(Status::Pending),
        "in_progress": count(Status::InProgress),
        "completed": count(Status::Completed),
        "cancelled": count(Status::Cancelled),
    });
    json!({"todos": items, "summary": summary}).to_string()
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

    fn after(before: Vec<Item>, arguments: Value) -> Result<Vec<Item>, String> {
        judged(arguments).and_then(|change| change.of(before))
    }

    fn item(id: &str, content: &str, status: Status) -> Item {
        Item { id: id.to_owned(), content: content.to_owned(), status }
    }

    #[test]
    fn a_list_is_written_whole_or_changed_by_id() {
        let whole =
            json!({"todos": [{"id": "1", "content": " dig ", "status": "in_progress"}, {"id": "2", "content": "sow"}]});
        let list = after(vec![item("9", "old", Status::Completed)], whole).unwrap();
        assert_eq!(list, [item("1", "dig", Status::InProgress), item("2", "sow", Status::Pending)]);
        assert_eq!(after(list.clone(), json!({})).unwrap(), list);
        let merge =
            json!({"merge": true, "todos": [{"id": "1", "status": "completed"}, {"id": "3", "content": "water"}]});
        let merged = after(list, merge).unwrap();
        assert_eq!(merged[0], item("1", "dig", Status::Completed));
        assert_eq!(merged.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
        assert!(
            shown(&merged).contains(r#""summary":{"total":3,"pending":2,"in_progress":0,"completed":1,"cancelled":0}"#)
        );
        assert_eq!(after(merged, json!({"todos": []})).unwrap(), []);
    }

    #[test]
    fn what_does_not_fit_is_a_sentence() {
        let many: Vec<_> = (0..=MAX_ITEMS).map(|id| json!({"id": id.to_string(), "content": "x"})).collect();
        let full: Vec<_> = (0..MAX_ITEMS).map(|id| item(&id.to_string(), "x", Status::Pending)).collect();
        for (before, wrong) in [
            (vec![], json!({"todos": many})),
            (full, json!({"merge": true, "todos": [{"id": "new", "content": "x"}]})),
            (vec![], json!({"todos": [{"id": "1"}]})),
            (vec![], json!({"todos": [{"id": " ", "content": "x"}]})),
            (vec![], json!({"todos": [{"id": "1", "content": "x"}, {"id": "1", "content": "y"}]})),
            (vec![], json!({"todos": [{"id": "1", "content": "x".repeat(MAX_CONTENT + 1)}]})),
            (vec![], json!({"todos": [{"id": "1", "content": "x", "status": "done"}]})),
            (vec![], json!({"todos": "all of them"})),
        ] {
            let sentence = after(before, wrong.clone()).expect_err(&wrong.to_string());
            assert!(sentence.starts_with("Error: "), "{sentence}");
        }
    }
}
