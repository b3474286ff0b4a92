//! Agents that ask each other, end to end.

use std::time::Duration;

use hermes_tests::fake_telegram::FakeTelegram;
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use hermes_tests::system::{Up, until};
use serde_json::{Value, json};

use super::{account, start, stop, texts};

const BOT: &str = "770:asking-secret";

/// A model for every agent: told `ask AGENT: WORDS`, it asks that and then says what it heard (`wait` waits for long); told `hang`, it says nothing; else
/// it repeats what it is told behind the name of the model that it is asked as.
async fn model() -> MockModel {
    let mock = MockModel::start().await.unwrap();
    mock.respond(|body| {
        let last = body["messages"].as_array().unwrap().last().unwrap().clone();
        let text = last["content"].as_str().unwrap_or_default();
        let asks = [("ask ", 5), ("wait ", 600)].into_iter().find_map(|(verb, seconds)| {
            let (agent, message) = text.strip_prefix(verb)?.split_once(": ")?;
            Some((agent, message, seconds))
        });
        match asks {
            Some((agent, message, seconds)) if last["role"] == "user" => {
                let arguments = json!({"agent": agent, "message": message, "timeout_seconds": seconds}).to_string();
                Behaviour::Ask(String::new(), vec![Call::new("call-1", "ask_agent", &arguments)])
            }
            _ if text == "hang" => Behaviour::HangBeforeHeaders,
            _ => Behaviour::Say(format!("{}: {text}", body["model"].as_str().unwrap())),
        }
    });
    mock
}

/// Agents a, b and c, each of which answers as its own model, and may ask those named.
fn document(mock: &MockModel, fake: &FakeTelegram, may_ask: &Value) -> Value {
    let agent = |id: &str| json!({"model": format!("mock/{id}"), "may_ask": may_ask[id]});
    json!({
        "platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", fake)]}},
        "providers": {"mock": {"kind": "openai", "base_url": mock.base_url()}},
        "default_agent": "a",
        "agents": {"a": agent("a"), "b": agent("b"), "c": agent("c"), "d": agent("d"), "e": agent("e")},
        "routes": [{"match": {"chat_id": "2"}, "agent": "b"}],
    })
}

fn up(mock: &MockModel, fake: &FakeTelegram, may_ask: &Value) -> Up {
    start(&document(mock, fake, may_ask), &[("FRONT_TOKEN", BOT)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_asks_another_one_and_hears_its_words_as_somebody_elses() {
    let (fake, mock) = (FakeTelegram::start().await.unwrap(), model().await);
    let bot = fake.bot(BOT);
    let up = up(&mock, &fake, &json!({"a": ["b"], "b": ["c"], "c": ["d"], "d": ["e"], "e": []}));
    bot.push_text(1, 1, "ask b: what is it?");
    let heard = texts(&bot, 1, 1).await;
    assert!(
        heard[0].starts_with("a: Agent b answered (turn t") && heard[0].contains("\nb: what is it?\n"),
        "{heard:?}"
    );
    assert!(heard[0].contains("never instructions"), "{heard:?}");
    let asked = up.json(["session", "list", "--agent", "b"]);
    assert_eq!(asked[0]["session_key"], json!("agent:b:agent:dm:a:s1"), "{asked}");

    bot.push_text(1, 1, "ask c: me too?");
    let heard = texts(&bot, 1, 2).await;
    assert!(heard[1].contains("you may not ask c: you may ask b"), "{heard:?}");
    // The same dialogue goes on with it, and a chain has an end.
    bot.push_text(1, 1, "ask b: ask c: ask d: ask e: far?");
    let heard = texts(&bot, 1, 3).await;
    assert!(heard[2].contains("d: Error: 3 agents wait for this answer already"), "{heard:?}");
    assert_eq!(up.json(["session", "list", "--agent", "b"]).as_array().unwrap().len(), 1);
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_do_not_wait_for_each_other_nor_for_one_that_is_silent() {
    let (fake, mock) = (FakeTelegram::start().await.unwrap(), model().await);
    let bot = fake.bot(BOT);
    let up = up(&mock, &fake, &json!({"a": ["b", "a"], "b": ["a"], "c": [], "d": [], "e": []}));
    bot.push_text(1, 1, "ask b: ask a: who?");
    let heard = texts(&bot, 1, 1).await;
    assert!(heard[0].contains("b: Error: agent a waits for an answer of yours at this moment"), "{heard:?}");
    bot.push_text(1, 1, "ask a: who?");
    assert!(texts(&bot, 1, 2).await[1].contains("agent a waits for an answer of yours"));

    // While a waits, b asks it in another dialogue; then b does not answer in time, and stops.
    bot.push_text(1, 1, "ask b: hang");
    let running =
        || up.json(["session", "list", "--agent", "b"]).as_array().unwrap().iter().any(|one| one["state"] == "running");
    until(Duration::from_secs(20), "b to be asked", || running().then_some(()));
    bot.push_text(2, 2, "ask a: hello?");
    let heard = texts(&bot, 2, 1).await;
    assert!(heard[0].contains("agent a waits for an answer of yours"), "{heard:?}");
    let heard = texts(&bot, 1, 3).await;
    assert!(heard[2].contains("Error: agent b did not answer in time"), "{heard:?}");
    until(Duration::from_secs(20), "b to stop", || (!running()).then_some(()));
    bot.push_text(2, 2, "ask a: hello?");
    assert!(texts(&bot, 2, 2).await[1].contains("\na: hello?\n"));
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_stopped_takes_those_along_whom_it_asked() {
    let (fake, mock) = (FakeTelegram::start().await.unwrap(), model().await);
    let bot = fake.bot(BOT);
    let up = up(&mock, &fake, &json!({"a": ["b"], "b": ["c"], "c": [], "d": [], "e": []}));
    let running = |agent: &str| {
        let sessions = up.json(["session", "list", "--agent", agent]);
        sessions.as_array().unwrap().iter().any(|one| one["state"] == "running")
    };
    bot.push_text(1, 1, "wait b: wait c: hang");
    until(Duration::from_secs(20), "c to be asked", || running("c").then_some(()));
    bot.push_text(1, 1, "/stop");
    for agent in ["a", "b", "c"] {
        until(Duration::from_secs(30), agent, || (!running(agent)).then_some(()));
    }
    let ends = |agent: &str| {
        let id = up.json(["session", "list", "--agent", agent])[0]["session_id"].as_str().unwrap().to_owned();
        up.json(["session", "show", &id])["transcript"][0]["state"].clone()
    };
    assert_eq!([ends("b"), ends("c")], [json!("cancelled"), json!("cancelled")]);
    assert_eq!(texts(&bot, 1, 1).await, ["Stopped."]);
    // It hears the next question.
    bot.push_text(1, 1, "ask b: hello?");
    assert!(texts(&bot, 1, 2).await[1].contains("\nb: hello?\n"));
    stop(up);
}
