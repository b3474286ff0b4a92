//! Every surface with real processes: `hermesctl up`, its workers, a Postgres, and stand-ins for what lies outside.

mod external;
mod models;
mod sdk;
mod telegram;
mod telegram_faults;
mod traces;
mod up;
mod webhook;
mod wire;

use std::time::Duration;

use hermes_tests::fake_telegram::FakeTelegram;
use hermes_tests::mock_model::MockModel;
use serde_json::{Value, json};

/// Longer than anything here takes; an error is shown then.
const SOON: Duration = Duration::from_secs(30);

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
