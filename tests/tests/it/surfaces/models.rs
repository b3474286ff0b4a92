//! A model provider behind a whole `up`: what a user at `hermesctl` sees of its good and its bad days.

use std::process::Stdio;
use std::time::{Duration, Instant};

use hermes_tests::mock_model::{Behaviour, LAST_WORD, MockModel};
use hermes_tests::system::Up;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::{SOON, start, stop, with_model};

/// The time limits of this `up`.
const LIMIT: Duration = Duration::from_secs(2);

fn up(mock: &MockModel) -> Up {
    let limit = LIMIT.as_millis().to_string();
    let env = [("HERMES_MODEL_FIRST_TOKEN_MS", limit.as_str()), ("HERMES_MODEL_BETWEEN_TOKENS_MS", limit.as_str())];
    start(&with_model(mock, json!({})), &env)
}

/// `send --wait` of one message: exit code and what it printed.
fn send(up: &Up, chat: &str, text: &str) -> (Option<i32>, Value) {
    let output = up.ctl(["send", "--platform", "telegram", "--chat-id", chat, "--text", text, "--wait", "-o", "json"]);
    (output.code, output.json())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_reach_the_terminal_as_they_come() {
    let mock = MockModel::start().await.unwrap();
    let up = up(&mock);

    // The rest is never sent, so what is seen was seen before it.
    mock.script([Behaviour::HangAfter(5)]);
    let mut chat = Command::from(up.command(["chat", "main", "tell me"]));
    let mut chat = chat.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = chat.stdout.take().unwrap();
    let mut seen = Vec::new();
    let first = async {
        while !String::from_utf8_lossy(&seen).contains("word04") {
            assert_ne!(
                stdout.read_buf(&mut seen).await.unwrap(),
                0,
                "it ended early: {}",
                String::from_utf8_lossy(&seen)
            );
        }
    };
    tokio::time::timeout(SOON, first).await.expect("the tokens that came are shown");
    assert!(chat.try_wait().unwrap().is_none(), "while it still waits for more");
    stdout.read_to_end(&mut seen).await.unwrap();
    let ended = chat.wait_with_output().await.unwrap();
    let (seen, error) = (String::from_utf8(seen).unwrap(), String::from_utf8(ended.stderr).unwrap());
    assert_eq!(ended.status.code(), Some(1), "{seen} {error}");
    assert!(seen.starts_with("tell me word02 word03 word04"), "{seen}");
    assert!(seen.contains("was silent for 2 s"), "the reason is said: {seen}");

    // A whole one, token by token.
    mock.script([Behaviour::Slow(Duration::from_millis(10))]);
    let text = up.ctl(["chat", "main", "and now all of it"]).ok().out;
    assert!(text.trim_end().ends_with(LAST_WORD), "{text}");
    assert_eq!(text.matches("word49").count(), 1, "shown once: {text}");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_model_gives_a_clear_sentence_and_the_next_message_is_answered() {
    let mock = MockModel::start().await.unwrap();
    let up = up(&mock);
    let failures = [
        (Behaviour::HangBeforeHeaders, "did not begin to answer within 2 s"),
        (Behaviour::HangAfter(5), "stopped in the middle of its answer"),
        (Behaviour::DieAfter(5), "broke off before its end"),
        (Behaviour::EndAfter(5), "broke off before its end"),
        (Behaviour::Status(401, None), "refused the key (HTTP 401)"),
        (Behaviour::Status(404, None), "does not know the model mock/mock-1"),
        (Behaviour::Status(429, Some("60")), "asks to wait 60 s (HTTP 429)"),
        (Behaviour::Status(500, None), "has trouble right now (HTTP 500)"),
    ];
    for (number, (behaviour, sentence)) in failures.into_iter().enumerate() {
        let chat = number.to_string();
        mock.otherwise(behaviour.clone());
        let (code, turn) = send(&up, &chat, "are you well?");
        assert_eq!((code, &turn["state"]), (Some(1), &json!("failed")), "{behaviour:?}: {turn}");
        let said = turn["reply"].as_str().unwrap();
        assert!(said.contains(sentence), "{behaviour:?}: {said}");
        assert!(said.chars().count() < 200 && !said.contains("refused by script"), "short, nothing raw: {said}");
        mock.otherwise(Behaviour::Answer);
        let (code, turn) = send(&up, &chat, "and now?");
        assert_eq!((code, &turn["state"]), (Some(0), &json!("succeeded")), "after {behaviour:?}: {turn}");
        assert!(turn["reply"].as_str().unwrap().ends_with(LAST_WORD), "{turn}");
    }

    // A provider that asks for a short pause is given it.
    mock.script([Behaviour::Status(429, Some("1"))]);
    let began = Instant::now();
    let (code, turn) = send(&up, "paused", "now or later");
    assert_eq!(code, Some(0), "{turn}");
    assert!(began.elapsed() >= Duration::from_secs(1), "retry-after is honoured");

    // What a turn used is with the turn.
    let session = up.json(["session", "show", turn["session_id"].as_str().unwrap()]);
    let recorded = &session["transcript"][0];
    let used = ["input_tokens", "output_tokens", "cached_tokens", "model"].map(|field| recorded[field].clone());
    assert_eq!(used, [json!(100), json!(50), json!(40), json!("mock/mock-1")], "{session}");
    stop(up);
}
