//! Jobs that an agent schedules by itself, end to end.

use hermes_tests::fake_telegram::FakeTelegram;
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use serde_json::{Value, json};

use super::{account, start, stop, texts, with_model};

const BOT: &str = "761:jobs-secret";
/// What the job's run is told.
const PROMPT: &str = "Look at the pot.";

/// A model that calls `cronjob` with what it is told, if that is an object, and says what came of it. In a run of the job it wants another job.
async fn scheduling() -> MockModel {
    let mock = MockModel::start().await.unwrap();
    mock.respond(|body| {
        let messages = body["messages"].as_array().unwrap();
        let (last, text) = (&messages[messages.len() - 1], |one: &Value| one["content"].as_str().unwrap_or_default().to_owned());
        let call = |arguments: &str| Behaviour::Ask(String::new(), vec![Call::new("call-1", "cronjob", arguments)]);
        let is_run = messages.iter().any(|one| one["role"] == "user" && text(one).contains(PROMPT) && !text(one).starts_with('{'));
        match (last["role"] == "user", is_run) {
            (true, true) => call(&json!({"action": "create", "name": "second", "schedule": "every 1m", "prompt": "x", "deliver": "local"}).to_string()),
            (false, true) => Behaviour::Say("The pot is warm.".to_owned()),
            (true, false) => call(&text(last)),
            (false, false) => Behaviour::Say(text(last)),
        }
    });
    mock
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_schedules_a_job_whose_answer_comes_to_the_chat_that_it_was_made_in() {
    let fake = FakeTelegram::start().await.unwrap();
    let mock = scheduling().await;
    let bot = fake.bot(BOT);
    let document = json!({
        "timezone": "Europe/Berlin",
        "platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", &fake)]}},
    });
    let up = start(&with_model(&mock, document), &[("FRONT_TOKEN", BOT)]);
    let say = |id: i64, what: &Value| bot.push_text(id, id, &what.to_string());

    say(1, &json!({"action": "create", "name": "pot", "schedule": "0 9 * * *", "prompt": PROMPT}));
    let made: Value = serde_json::from_str(&texts(&bot, 1, 1).await[0]).unwrap();
    assert_eq!(
        (&made["job"]["deliver"], &made["job"]["timezone"]),
        (&json!("origin"), &json!("Europe/Berlin")),
        "{made}"
    );
    // From another chat: the answer comes to where the job was made all the same.
    say(2, &json!({"action": "run", "job": "pot"}));
    let heard = texts(&bot, 1, 2).await;
    assert!(heard[1].contains("The pot is warm."), "{heard:?}");
    say(1, &json!({"action": "runs", "job": "pot"}));
    let heard: Value = serde_json::from_str(&texts(&bot, 1, 3).await[2]).unwrap();
    let run = &heard["runs"][0];
    assert_eq!((&run["state"], &run["answer"]), (&json!("ran"), &json!("The pot is warm.")), "{heard}");
    assert_eq!(run["delivered"][0]["target"], "telegram:1", "{heard}");
    say(1, &json!({"action": "list"}));
    let listed: Value = serde_json::from_str(&texts(&bot, 1, 4).await[3]).unwrap();
    let names: Vec<&Value> = listed["jobs"].as_array().unwrap().iter().map(|job| &job["name"]).collect();
    assert_eq!(names, ["pot"], "a run makes no job");
    stop(up);
}
