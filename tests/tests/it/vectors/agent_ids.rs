//! `agent_ids.jsonl`: ours is a subset of what the reference accepts, and exactly its own grammar.

use hermes_core::AgentId;

use super::{each_row, field, same};

#[test]
fn no_id_is_accepted_that_breaks_the_grammar_or_that_the_reference_refuses() {
    each_row("agent_ids.jsonl", |row| {
        let id = field(&row["in"], "id").ok_or("no id")?;
        let accepted = AgentId::parse(&id).is_ok();
        if accepted && row["out"]["agent_add_accepts"] == false {
            return Err("accepted, but the reference refuses it".to_owned());
        }
        let chars: Vec<char> = id.chars().collect();
        let alphanumeric = |c: Option<&char>| c.is_some_and(|c| matches!(c, 'a'..='z' | '0'..='9'));
        let grammar = chars.len() <= 40
            && alphanumeric(chars.first())
            && alphanumeric(chars.last())
            && chars.iter().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-'));
        same("accepted", &accepted, &grammar)
    });
}
