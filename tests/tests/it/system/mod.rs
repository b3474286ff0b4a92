//! The whole system: the real `hermesctl up`, its Postgres, its workers, and hermesctl as people use it.

mod acp;
mod agents;
mod answers;
mod bad_input;
mod consolidation;
mod cron;
mod curator;
mod documents;
mod homes;
mod lifecycle;
mod mcp;
mod mcp_remote;
mod nothing_lost;
mod proxy;
mod readers;
mod removal;
mod sessions;
mod tools;

use std::time::Duration;

use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::system::{Options, Up, until};
use serde_json::{Value, json};

/// How long something may take that a person waits for.
const SOON: Duration = Duration::from_secs(20);

/// The example of the seed, unchanged.
const SEED: &str = r#"default_agent: main
agents:
  coder:
    model: "anthropic/claude-opus-4-6"
    home_dir: ~/.hermes/profiles/coder
  research:
    model: "anthropic/claude-sonnet-4-6"
routes:
  - match: { platform: telegram, chat_id: "-1001234", thread_id: "42" }
    agent: coder
  - match: { platform: slack, guild_id: "T0ABC" }
    agent: coder
"#;

/// An `up` whose default model is this server.
fn with_model(model: &MockModel) -> Up {
    Up::start(Options::config(model_document(model).to_string()))
}

fn model_document(model: &MockModel) -> Value {
    json!({"model": "mock/mock-1", "providers": {"mock": {"kind": "openai", "base_url": model.base_url()}}})
}

async fn personas() -> MockModel {
    let model = MockModel::start().await.unwrap();
    model.otherwise(Behaviour::Persona);
    model
}

/// Adds an agent with this SOUL.
#[track_caller]
fn add_with_soul(up: &Up, id: &str, soul: &str) -> Value {
    let file = up.file(&format!("{id}.soul.md"), soul);
    up.json(["agent", "add", id, "--soul-file", file.to_str().unwrap()])
}

/// `send --wait` of one text to a chat of `telegram`.
#[track_caller]
fn ask(up: &Up, chat: &str, text: &str) -> Value {
    up.json(["send", "--platform", "telegram", "--chat-id", chat, "--text", text, "--wait"])
}

/// `send` without waiting.
#[track_caller]
fn tell(up: &Up, chat: &str, text: &str) -> Value {
    up.json(["send", "--platform", "telegram", "--chat-id", chat, "--text", text])
}

/// `chat` with one text; answers stdout.
#[track_caller]
fn chat(up: &Up, agent: &str, text: &str) -> String {
    up.ctl(["chat", agent, text]).ok().out.trim_end().to_owned()
}

/// Waits until the turn of this answer of `send` has ended, and answers its end.
#[track_caller]
fn ended(up: &Up, turn: &Value) -> Value {
    let id = turn["turn"].as_str().unwrap();
    until(SOON, "the end of the turn", || {
        let session = up.json(["session", "show", turn["session_id"].as_str().unwrap()]);
        let turns = session["transcript"].as_array().unwrap().clone();
        turns.into_iter().find(|one| one["turn"] == id && one["ended_at_ms"].is_number())
    })
}

/// The workers of `worker list`, at least one of this agent among them.
#[track_caller]
fn worker_of(up: &Up, agent: &str) -> Value {
    until(SOON, "a worker", || {
        let workers = up.json(["worker", "list"]);
        workers.as_array().unwrap().iter().find(|worker| worker["agent"] == agent).cloned()
    })
}

#[track_caller]
fn agent_of(up: &Up, id: &str) -> Value {
    up.json(["agent", "show", id])
}

#[track_caller]
fn export(up: &Up) -> String {
    up.ctl(["export"]).ok().out
}
