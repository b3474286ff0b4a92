//! What an agent sends to chats by itself, end to end.

use hermes_tests::fake_telegram::FakeTelegram;
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use serde_json::{Value, json};

use super::{account, start, stop, texts, with_model};

const BOT: &str = "760:messaging-secret";

/// A model that calls `send_message` with what it is told, if that is an object, as often as its `times` says, and then says what came
/// of the last call.
async fn obedient() -> MockModel {
    let mock = MockModel::start().await.unwrap();
    mock.respond(|body| {
        let last = body["messages"].as_array().unwrap().last().unwrap().clone();
        let text = last["content"].as_str().unwrap_or_default();
        match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(mut arguments)) if last["role"] == "user" => {
                let times = arguments.remove("times").and_then(|times| times.as_u64()).unwrap_or(1);
                let arguments = Value::Object(arguments).to_string();
                let calls = (0..times).map(|n| Call::new(&format!("call-{n}"), "send_message", &arguments));
                Behaviour::Ask(String::new(), calls.collect())
            }
            _ => Behaviour::Say(format!("re {text}")),
        }
    });
    mock
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_writes_to_chats_that_know_it_and_to_no_stranger() {
    let fake = FakeTelegram::start().await.unwrap();
    let mock = obedient().await;
    let bot = fake.bot(BOT);
    let document = json!({"platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", &fake)]}}});
    let up = start(&with_model(&mock, document), &[("FRONT_TOKEN", BOT)]);
    let said = |id: i64, what: &Value| bot.push_text(id, id, &what.to_string());

    // Nobody has written from chat 2, and no chat is home.
    said(1, &json!({"target": "telegram:2", "message": "psst"}));
    let heard = texts(&bot, 1, 1).await;
    assert!(heard[0].contains("You may not write to telegram:2"), "{heard:?}");
    assert!(heard[0].contains(r#""targets":["telegram:1"]"#), "{heard:?}");
    said(1, &json!({"target": "telegram", "message": "psst"}));
    let heard = texts(&bot, 1, 2).await;
    assert!(heard[1].contains("no home chat on telegram"), "{heard:?}");
    assert!(bot.delivered(2).is_empty());

    bot.push_text(2, 2, "/sethome");
    texts(&bot, 2, 1).await;
    said(1, &json!({"target": "Telegram", "message": "to the home"}));
    assert_eq!(texts(&bot, 2, 2).await[1], "to the home");
    said(1, &json!({"target": "telegram:2", "message": "to a chat"}));
    assert_eq!(texts(&bot, 2, 3).await[2], "to a chat");
    let heard = texts(&bot, 1, 4).await;
    assert_eq!(heard[3], r#"re {"success":true,"target":"telegram:2","state":"on its way"}"#);
    said(1, &json!({"action": "list"}));
    let listed = texts(&bot, 1, 5).await.pop().unwrap();
    let targets: Value = serde_json::from_str(listed.strip_prefix("re ").unwrap()).unwrap();
    assert_eq!(
        targets["targets"],
        json!([{"target": "telegram:1", "account": "front", "origin": true}, {"target": "telegram:2", "account": "front", "home": true}])
    );

    // A turn ends somewhere; what it sends to its own chat comes before its answer.
    said(1, &json!({"message": "again", "times": 21}));
    let heard = texts(&bot, 1, 26).await.split_off(5);
    assert!(heard[..20].iter().all(|text| text == "again"), "{heard:?}");
    assert!(heard[20].contains("has sent 20 messages"), "{heard:?}");
    said(1, &json!({"message": "next turn"}));
    assert_eq!(texts(&bot, 1, 28).await[26], "next turn");
    assert_eq!(bot.delivered(2).len(), 3);
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_up_budget_is_told_to_the_home_chat_once() {
    let fake = FakeTelegram::start().await.unwrap();
    let mock = MockModel::start().await.unwrap();
    let bot = fake.bot(BOT);
    let document = json!({
        "platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", &fake)]}},
        "budget": {"tokens_per_day": 1, "max_output_tokens": 100},
    });
    let up = start(&with_model(&mock, document), &[("FRONT_TOKEN", BOT)]);
    bot.push_text(2, 2, "/sethome");
    texts(&bot, 2, 1).await;
    for (count, chat) in [(1, 1), (2, 1), (1, 3)] {
        bot.push_text(chat, chat, "hello");
        assert!(texts(&bot, chat, count).await.pop().unwrap().contains("does not allow the next model call"));
    }
    // What is said to the home now comes behind every alert.
    bot.push_text(2, 2, "hello");
    let told = texts(&bot, 2, 3).await;
    let alert = "Budget alert: the budget of agent main, 1 tokens a day, is used up, and model calls are refused;";
    assert!(told[1].starts_with(alert) && told[1].contains("hermesctl budget raise main --tokens-per-day"), "{told:?}");
    assert!(told[2].contains("does not allow the next model call"), "{told:?}");
    stop(up);
}
