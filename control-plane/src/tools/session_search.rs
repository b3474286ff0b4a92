//! `session_search`: what was said before in the caller's own dialogue.
//!
//! Whose past it is decides the store: sessions of the same agent under the same session key, this one and those before it, and no
//! other. So another agent, another chat, and, where a chat has a session for each person, another person see nothing of it.
//! Always true: a call looks through a bounded number of the newest turns, and within a bounded time; what cannot be read as text
//! is read as well as it can be. It deliberately does not know the turn that asks: that one has not ended.

use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_core::turn::TurnInput;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Plan, Read, Spec, Tool};
use crate::store::{self, Caller, Match, PastTurn, Store};

/// The tool.
pub(super) struct SessionSearch;

const DESCRIPTION: &str = "Search what was said before in this conversation, earlier sessions of it included, when the user refers to \
    something that you do not see. Words all have to occur; \"quoted words\" side by side; OR and -word work. Answers passages, best \
    first.";

const PARAMETERS: &str = r#"{"type":"object","properties":{
"query":{"type":"string","description":"What to look for."},
"limit":{"type":"integer","minimum":1,"maximum":10,"description":"Most passages, default 5."}},"required":["query"]}"#;

/// Longest query, characters.
const MAX_QUERY: usize = 512;
/// What is looked through at most: turns, and bytes of them.
const MAX_TURNS: i64 = 1_000;
const MAX_BYTES: i64 = 4 << 20;
/// How much of one input or reply is looked through, bytes.
const MAX_TEXT: usize = 64 << 10;
/// How long the database may take to look.
const LOOKS: Duration = Duration::from_secs(10);

impl Tool for SessionSearch {
    fn spec(&self) -> Spec {
        Spec {
            name: "session_search",
            description: DESCRIPTION,
            parameters: PARAMETERS,
            toolset: "session_search",
            time_limit: Duration::from_secs(20),
            max_output: 32 << 10,
        }
    }

    fn plan(&self, arguments: Map<String, Value>) -> Result<Plan, String> {
        query(arguments).map(|query| Plan::Read(Box::new(query) as Box<dyn Read>))
    }
}

#[derive(Deserialize)]
struct Arguments {
    #[serde(default)]
    query: String,
    limit: Option<i64>,
}

/// A judged call.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    words: String,
    most: i64,
}

fn query(arguments: Map<String, Value>) -> Result<Query, String> {
    let Arguments { query, limit } = serde_json::from_value(Value::Object(arguments))
        .map_err(|error| format!("Error: the arguments do not fit: {error}"))?;
    let words = clean(query.trim());
    if words.trim().is_empty() {
        return Err("Error: say what to look for in query.".to_owned());
    }
    if words.chars().count() > MAX_QUERY {
        return Err(format!("Error: a query has at most {MAX_QUERY} characters."));
    }
    Ok(Query { words, most: limit.unwrap_or(5).clamp(1, 10) })
}

/// As the database takes text.
fn clean(text: &str) -> String {
    text.replace('\0', " ")
}

/// The beginning of it.
fn head(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    clean(&text)
}

/// What was said and what was answered; nothing of a turn that only changed the history.
fn sides(turn: &PastTurn) -> [String; 2] {
    let input: TurnInput = serde_json::from_slice(&turn.payload).unwrap_or_default();
    if input.compress.is_some() {
        return Default::default();
    }
    [head(input.text), head(String::from_utf8_lossy(&turn.reply).into_owned())]
}

fn shown(turns: &[PastTurn], found: &[Match]) -> String {
    let result = |found: &Match| {
        let turn = turns.get(found.index / 2)?;
        let who = if found.index.is_multiple_of(2) { "user" } else { "assistant" };
        Some(
            json!({"when": turn.at.to_string(), "session": turn.turn.session.to_string(), "turn": turn.turn.seq, "who": who, "text": found.excerpt}),
        )
    };
    let results: Vec<Value> = found.iter().filter_map(result).collect();
    json!({"success": true, "looked_through": turns.len(), "results": results}).to_string()
}

impl Query {
    async fn run(&self, store: &Store, caller: Caller) -> store::Result<String> {
        let turns = store.past_of_dialogue(caller, MAX_TURNS, MAX_BYTES).await?;
        let texts: Vec<String> = turns.iter().flat_map(sides).collect();
        match store.matches(&self.words, &texts, self.most, LOOKS).await {
            Ok(found) => Ok(shown(&turns, &found)),
            // Repeated, it would take as long again. When there is no database at all, this cannot be journaled either.
            Err(error) => {
                tracing::warn!(turn = %caller.turn, %error, "a search did not end");
                Ok("Error: the search could not be done. Go on without it, or look for less.".to_owned())
            }
        }
    }
}

impl Read for Query {
    fn run<'a>(&'a self, store: &'a Store, caller: Caller) -> BoxFuture<'a, store::Result<String>> {
        Box::pin(self.run(store, caller))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::store::{SessionId, TurnId};

    fn judged(arguments: Value) -> Result<Query, String> {
        query(arguments.as_object().unwrap().clone())
    }

    #[test]
    fn a_query_is_judged_before_anything_is_read() {
        assert_eq!(judged(json!({"query": " tea\0 "})), Ok(Query { words: "tea ".to_owned(), most: 5 }));
        assert_eq!(judged(json!({"query": "tea", "limit": 99})).unwrap().most, 10);
        for wrong in
            [json!({}), json!({"query": " \0"}), json!({"query": 7}), json!({"query": "x".repeat(MAX_QUERY + 1)})]
        {
            assert!(judged(wrong.clone()).is_err_and(|sentence| sentence.starts_with("Error: ")), "{wrong}");
        }
    }

    #[test]
    fn whatever_bytes_there_are_they_are_text() {
        let turn = PastTurn {
            turn: TurnId { session: SessionId(1), seq: 1 },
            at: Timestamp::UNIX_EPOCH,
            payload: br#"{"text":"a\u0000b"}"#.to_vec(),
            reply: [b"x\0".as_slice(), &[0xff], "é".repeat(MAX_TEXT).as_bytes()].concat(),
        };
        let [input, reply] = sides(&turn);
        assert_eq!(input, "a b");
        assert!(reply.starts_with("x \u{fffd}é") && reply.len() <= MAX_TEXT && !reply.contains('\0'));
        let [input, _] = sides(&PastTurn { payload: b"{".to_vec(), ..turn });
        assert_eq!(input, "");
    }
}
