//! Every surface with real processes: `hermesctl up`, its workers, a Postgres, and stand-ins for what lies outside.

mod acp;
mod approvals;
mod asking;
mod budgets;
mod busy;
mod commands;
mod compression;
mod external;
mod files;
mod jobs;
mod memories;
mod messaging;
mod models;
mod own_jobs;
mod pairing;
mod sdk;
mod smart_approvals;
mod telegram;
mod telegram_faults;
mod traces;
mod uploads;
mod web;
mod webhook;
mod wire;

use std::time::Duration;

use hermes_tests::fake_telegram::{Bot, FakeTelegram};
use hermes_tests::mock_model::MockModel;
use hermes_tests::system::{Options, Up, until_gone};
use serde_json::{Value, json};

/// Longer than anything here takes; an error is shown then.
const SOON: Duration = Duration::from_secs(30);
/// From the signal to the end of everything, as promised.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// `document` with `mock` as the provider of every agent that names no model.
fn with_model(mock: &MockModel, mut document: Value) -> Value {
    document["model"] = json!("mock/mock-1");
    document["providers"] = json!({"mock": {"kind": "openai", "base_url": mock.base_url()}});
    document
}

/// A Telegram account at `fake` that talks to everybody, without pacing.
fn account(id: &str, token_env: &str, fake: &FakeTelegram) -> Value {
    json!({"id": id, "token_env": token_env, "api_base": fake.base(), "allow_all": true, "rate": "off"})
}

/// An `up` with this document (JSON is YAML) and these variables.
#[track_caller]
fn start(document: &Value, env: &[(&str, &str)]) -> Up {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
    Up::start(Options { env, ..Options::config(document.to_string()) })
}

/// Ends it as Ctrl-C does: in order, in time, with all it started.
#[track_caller]
fn stop(mut up: Up) {
    let (status, took, processes) = up.interrupt();
    assert!(status.success(), "{status}; its log ends with:\n{}", up.log_tail());
    assert!(took <= STOP_WITHIN, "the stop took {took:?}");
    until_gone(STOP_WITHIN, &processes);
}

/// URL of its HTTP listener, without a final slash.
fn http(up: &Up) -> String {
    format!("http://{}", up.endpoint().http)
}

/// Waits for `count` messages in `chat` and answers their texts.
async fn texts(bot: &Bot, chat: i64, count: usize) -> Vec<String> {
    let there = bot.wait_for(chat, count, SOON).await;
    let there = there.unwrap_or_else(|there| panic!("chat {chat} has {there:?}, expected {count}"));
    there.into_iter().map(|delivery| delivery.text).collect()
}
