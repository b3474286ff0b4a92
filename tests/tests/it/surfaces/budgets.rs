//! Budgets, pauses and lists of models behind a whole `up`: what a user at `hermesctl` and in a chat sees of them.

use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::system::Up;
use serde_json::{Value, json};

use super::{start, stop, with_model};

/// `send --wait` of one message of a user: whether the turn succeeded, and its reply.
fn say(up: &Up, user: &str, text: &str) -> (bool, String) {
    let args = [
        "send",
        "--platform",
        "telegram",
        "--chat-id",
        user,
        "--user-id",
        user,
        "--text",
        text,
        "--wait",
        "-o",
        "json",
    ];
    let output = up.ctl(args);
    let turn = output.json();
    assert_eq!(turn["state"], json!(if output.code == Some(0) { "succeeded" } else { "failed" }), "{turn}");
    (output.code == Some(0), turn["reply"].as_str().unwrap().to_owned())
}

fn apply(up: &Up, document: &Value) {
    up.ctl_with_input(["apply", "-f", "-"], document.to_string().as_bytes()).ok();
}

fn shown(up: &Up, args: &[&str]) -> Value {
    up.json([&["budget"], args].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_up_budget_says_so_and_a_raise_lets_the_next_message_through() {
    let mock = MockModel::start().await.unwrap();
    // An answer of the mock is 150 tokens; the input of a call is more.
    let document =
        json!({"timezone": "Europe/Berlin", "budget": {"tokens_per_day": 1_000_000, "max_output_tokens": 100}});
    let up = start(&with_model(&mock, document), &[]);
    assert!(say(&up, "7", "hello").0);
    let standing = shown(&up, &["show", "main"])[0].clone();
    assert_eq!((&standing["spent_today_tokens"], &standing["reserved_tokens"]), (&json!(150), &json!(0)), "{standing}");

    apply(&up, &json!({"budget": {"tokens_per_day": 200, "max_output_tokens": 100}}));
    let (good, said) = say(&up, "7", "and more?");
    assert!(
        !good && said.contains("the budget of agent main, 200 tokens a day, does not allow the next model call"),
        "{said}"
    );
    assert!(said.contains("00:00 CE") && said.contains("hermesctl budget raise main --tokens-per-day"), "{said}");
    assert!(!say(&up, "8", "me neither?").0);
    let standing = shown(&up, &["show", "main"])[0].clone();
    assert_eq!(standing["alerts"].as_array().unwrap().len(), 1, "{standing}");
    assert_eq!(mock.requests(), 1);

    let refused = up.ctl(["budget", "raise", "main", "--tokens-per-day", "199"]).refused(1);
    assert!(refused.contains("is as high already"), "{refused}");
    let refused = up.ctl(["budget", "raise", "main", "--usd-per-day", "5"]).refused(1);
    assert!(refused.contains("has no limit usd_per_day"), "{refused}");
    up.ctl(["budget", "raise", "main"]).refused(2);
    let raised = shown(&up, &["raise", "main", "--tokens-per-day", "1000000"])[0].clone();
    assert_eq!(raised["limits"]["tokens_per_day"], json!(1_000_000));
    assert_eq!(raised["raises"][0]["until_ms"], raised["day_ends_ms"], "until the day ends");
    assert!(say(&up, "7", "now?").0);
    let exported = up.ctl(["export"]).ok().out;
    assert!(exported.contains("tokens_per_day: 200"), "the document stays as it is: {exported}");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_agent_asks_no_model_until_it_is_resumed() {
    let mock = MockModel::start().await.unwrap();
    let up = start(&with_model(&mock, json!({"agents": {"other": {}}})), &[]);
    let paused = shown(&up, &["pause", "main"]);
    assert_eq!(paused, json!({"agent": "main", "paused": true, "was_paused": false}));
    assert_eq!(shown(&up, &["pause", "main"])["was_paused"], json!(true));
    let (good, said) = say(&up, "7", "hello");
    assert!(!good && said.contains("an operator has paused agent main"), "{said}");
    assert_eq!(mock.requests(), 0);
    assert!(shown(&up, &["show", "main"])[0]["paused_at_ms"].is_i64());
    assert!(up.ctl(["chat", "other", "hello"]).code == Some(0), "others are not paused");
    assert_eq!(shown(&up, &["resume", "main"])["was_paused"], json!(true));
    assert!(say(&up, "7", "hello again").0);
    assert_eq!(shown(&up, &["show", "main"])[0]["spent_today_tokens"], json!(0), "without a budget nothing is counted");
    let refused = up.ctl(["budget", "pause", "nobody"]).refused(1);
    assert!(refused.contains("agent nobody is not registered"), "{refused}");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_user_has_a_budget_of_their_own() {
    let mock = MockModel::start().await.unwrap();
    let document = json!({"user_budget": {"tokens_per_day": 1_000_000, "max_output_tokens": 100}});
    let up = start(&with_model(&mock, document), &[]);
    assert!(say(&up, "7", "hello").0);
    apply(&up, &json!({"user_budget": {"tokens_per_day": 1, "max_output_tokens": 1}}));
    let (good, said) = say(&up, "7", "more");
    assert!(!good && said.contains("your own budget, 1 tokens a day"), "{said}");
    // Enough for such a call, but not for somebody who has used 150 already.
    let words: Vec<&str> = said.split("up to ").nth(1).unwrap().split(' ').collect();
    let most = words[0].parse::<u64>().unwrap() + 100;
    apply(&up, &json!({"user_budget": {"tokens_per_day": most, "max_output_tokens": 1}}));
    assert!(!say(&up, "7", "more").0 && say(&up, "8", "more").0);
    let users = shown(&up, &["show", "--users"]);
    assert_eq!((&users[0]["user"], &users[0]["spent_today_tokens"]), (&json!("telegram:7"), &json!(150)), "{users}");
    assert_eq!(users[0]["alerts"].as_array().unwrap().len(), 1, "{users}");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_a_price_is_refused_under_dollars_unless_it_is_allowed() {
    let mock = MockModel::start().await.unwrap();
    let up = start(&with_model(&mock, json!({"budget": {"usd_per_day": 1}})), &[]);
    let (good, said) = say(&up, "7", "hello");
    assert!(!good && said.contains("no known price of mock/mock-1"), "{said}");
    let warned = up.ctl_with_input(["apply", "-f", "-"], b"budget: {usd_per_day: 2}").ok();
    assert!(warned.err.contains("no price is known for mock/mock-1"), "{}", warned.err);
    apply(&up, &json!({"budget": {"usd_per_day": 1, "unpriced": "allow"}}));
    assert!(say(&up, "7", "hello").0);
    // A price says what a turn cost where the provider does not, with or without a budget: 60 tokens read anew, 40 from the cache,
    // 50 written.
    let price = json!({"input_usd_per_mtok": 10, "output_usd_per_mtok": 20, "cached_usd_per_mtok": 1});
    let priced = json!({"kind": "anthropic", "base_url": mock.base_url(), "prices": {"mock-1": price}});
    apply(&up, &json!({"budget": {}, "providers": {"mock": priced}}));
    let args = ["send", "--platform", "telegram", "--chat-id", "9", "--text", "cost?", "--wait", "-o", "json"];
    let turn = up.ctl(args).ok().json();
    let session = up.json(["session", "show", turn["session_id"].as_str().unwrap()]);
    assert_eq!(session["transcript"][0]["cost_usd"], json!(0.00164), "{session}");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_model_of_the_list_answers_when_one_cannot() {
    let (bad, good) = (MockModel::start().await.unwrap(), MockModel::start().await.unwrap());
    let document = json!({
        "model": "bad/one",
        "fallback_models": ["gone/none", "keyless/two", "good/three"],
        "providers": {
            "bad": {"kind": "openai", "base_url": bad.base_url()},
            "keyless": {"kind": "openai", "base_url": bad.base_url(), "api_key_env": "NOT_SET_ANYWHERE"},
            "good": {"kind": "anthropic", "base_url": good.base_url(), "api_key_env": "GOOD_KEY"},
        },
    });
    let env = [("GOOD_KEY", "k"), ("HERMES_MODEL_FIRST_TOKEN_MS", "300"), ("HERMES_MODEL_BETWEEN_TOKENS_MS", "300")];
    let up = start(&document, &env);
    let failures = [
        Behaviour::Status(401, None),
        Behaviour::Status(403, None),
        Behaviour::Status(404, None),
        Behaviour::Status(429, Some("60")),
        Behaviour::Status(500, None),
        Behaviour::HangBeforeHeaders,
    ];
    for (number, behaviour) in failures.into_iter().enumerate() {
        bad.otherwise(behaviour.clone());
        let args = [
            "send",
            "--platform",
            "telegram",
            "--chat-id",
            &number.to_string(),
            "--text",
            "hello",
            "--wait",
            "-o",
            "json",
        ];
        let output = up.ctl(args);
        let turn = output.json();
        assert_eq!((output.code, &turn["state"]), (Some(0), &json!("succeeded")), "{behaviour:?}: {turn}");
        let session = up.json(["session", "show", turn["session_id"].as_str().unwrap()]);
        assert_eq!(session["transcript"][0]["model"], json!("good/three"), "{behaviour:?}: {session}");
    }
    // What no other model cures, and what was begun, stays with the first.
    let answered = good.requests();
    for (behaviour, sentence) in
        [(Behaviour::Status(400, None), "refused the request"), (Behaviour::HangAfter(5), "stopped in the middle")]
    {
        bad.otherwise(behaviour);
        let (succeeded, said) = say(&up, "last", "hello");
        assert!(!succeeded && said.contains(sentence), "{said}");
    }
    assert_eq!(good.requests(), answered);
    // All of them: the last one says why.
    bad.otherwise(Behaviour::Status(401, None));
    good.otherwise(Behaviour::Status(500, None));
    let (succeeded, said) = say(&up, "none", "hello");
    assert!(!succeeded && said.contains("provider good has trouble right now (HTTP 500)"), "{said}");
    stop(up);
}
