//! Busy sessions and full queues, end to end: stops, interruptions, bounds on every surface, and other agents undisturbed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hermes_proto::v1;
use hermes_tests::fake_telegram::{Bot, FakeTelegram};
use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::otlp::Collector;
use hermes_tests::postgres::TestPostgres;
use hermes_tests::system::{Grpc, Up, until};
use reqwest::Client;
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::external::{Plane, end, secret_file};
use super::{SOON, account, http, start, stop, texts, with_model};

const BOT: &str = "740:busy-secret";

/// One bot of the default agent, whose model is `mock`, and more of the document.
fn with_bot(fake: &FakeTelegram, mock: &MockModel, more: Value) -> (Up, Bot) {
    let bot = fake.bot(BOT);
    let mut document = json!({"platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", fake)]}}});
    for (key, value) in more.as_object().unwrap() {
        document[key] = value.clone();
    }
    (start(&with_model(mock, document), &[("FRONT_TOKEN", BOT)]), bot)
}

/// Waits until the model has been asked so often.
fn asked(mock: &MockModel, count: u64) {
    until(SOON, "the model's requests", || (mock.requests() >= count).then_some(()));
}

fn submit(chat: &str, text: &str) -> v1::SubmitRequest {
    let source =
        v1::Source { platform: "irc".into(), chat_id: chat.into(), chat_type: "dm".into(), ..v1::Source::default() };
    v1::SubmitRequest { source: Some(source), text: text.into(), ..v1::SubmitRequest::default() }
}

async fn send(grpc: &Grpc, chat: &str, text: &str) -> Result<v1::SubmitResponse, tonic::Status> {
    grpc.messages().submit(submit(chat, text)).await.map(tonic::Response::into_inner)
}

async fn ended(grpc: &Grpc, turn: &str) -> v1::TurnEnded {
    let request = v1::GetTurnRequest { turn: turn.to_owned(), wait: true };
    let answer = tokio::time::timeout(SOON, grpc.messages().get_turn(request)).await.expect("it ends");
    answer.unwrap().into_inner().ended.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_a_chat_ends_what_runs_and_a_redelivered_one_nothing_more() {
    let (fake, mock) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    mock.otherwise(Behaviour::Held);
    let (up, bot) = with_bot(&fake, &mock, json!({}));

    bot.push_text(1, 1, "one");
    asked(&mock, 1);
    bot.push_text(1, 1, "two");
    let update = bot.push_text(1, 1, "/Stop@hermes_bot");
    // The stopped turn says one line; what waits behind it runs.
    assert_eq!(texts(&bot, 1, 1).await, ["Stopped."]);
    asked(&mock, 2);
    // The same stop again, while the next one runs.
    let chat = json!({"id": 1, "type": "private", "first_name": "User 1"});
    let sender = json!({"id": 1, "is_bot": false, "first_name": "User 1"});
    let copy = json!({"message": {"message_id": 9, "date": 1, "chat": chat, "from": sender, "text": "/stop"}});
    bot.push_again(copy, update);
    // Something behind the copy has been taken: so has the copy.
    bot.push_text(2, 2, "after");
    asked(&mock, 3);
    mock.release(2);
    let said = texts(&bot, 1, 2).await;
    assert!(said[1].starts_with("two"), "{said:?}");
    texts(&bot, 2, 1).await;
    // Nothing runs any more.
    bot.push_text(1, 1, " /stop ");
    assert_eq!(texts(&bot, 1, 3).await[2], "Nothing is running.");
    let session = up.json(["session", "list"]);
    let session = session.as_array().unwrap().iter().find(|one| one["session_key"] == "agent:main:telegram:dm:1");
    let shown = up.json(["session", "show", session.unwrap()["session_id"].as_str().unwrap()]);
    let states: Vec<_> = shown["transcript"].as_array().unwrap().iter().map(|turn| turn["state"].clone()).collect();
    assert_eq!(states, ["cancelled", "succeeded"], "a stop is no turn");
    stop(up);
}

/// Stops at every moment of two turns in one session: what is cancelled is what was named, and nothing after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_moment_ends_the_turn_it_names_or_nothing() {
    let mock = MockModel::start().await.unwrap();
    mock.otherwise(Behaviour::Delay(Duration::from_millis(15)));
    let up = start(&with_model(&mock, json!({})), &[]);
    let grpc = up.grpc();
    // A worker is there.
    let first = send(&grpc, "warm", "up").await.unwrap();
    ended(&grpc, &first.turn).await;
    let mut named = BTreeMap::new();
    for round in 0..60_u64 {
        let chat = format!("c{round}");
        let (one, two) = (send(&grpc, &chat, "one").await.unwrap(), send(&grpc, &chat, "two").await.unwrap());
        // Not a wait for anything: which moment is met is what varies.
        tokio::time::sleep(Duration::from_micros(round * 1_000)).await;
        let stopped = if round % 2 == 0 {
            send(&grpc, &chat, "/stop").await.unwrap().turn
        } else {
            let request = v1::StopTurnRequest { turn: one.turn.clone(), ..v1::StopTurnRequest::default() };
            let answer = grpc.sessions().stop_turn(request).await.unwrap().into_inner();
            if answer.outcome() == v1::StopOutcome::Ended { String::new() } else { answer.turn }
        };
        let mut cancelled = Vec::new();
        for turn in [&one.turn, &two.turn] {
            match ended(&grpc, turn).await.state() {
                v1::TurnState::Cancelled => cancelled.push(turn.clone()),
                v1::TurnState::Succeeded => {}
                other => panic!("{turn} is {other:?}"),
            }
        }
        assert!(
            cancelled.iter().all(|turn| *turn == stopped),
            "round {round}: {stopped} was named, {cancelled:?} ended"
        );
        assert!(round % 2 == 0 || stopped.is_empty() || stopped == one.turn, "round {round}");
        let which = if cancelled.is_empty() {
            "none"
        } else if cancelled[0] == one.turn {
            "first"
        } else {
            "second"
        };
        *named.entry(which).or_insert(0) += 1;
    }
    // Every moment was met.
    assert!(named.contains_key("none") && named.contains_key("first"), "{named:?}");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_message_goes_first_where_that_is_asked_for() {
    let (fake, mock) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    mock.script([Behaviour::Held]);
    let busy = json!({"busy": {"rules": [{"platform": "telegram", "mode": "interrupt"}]}});
    let (up, bot) = with_bot(&fake, &mock, busy);

    bot.push_text(1, 1, "one");
    asked(&mock, 1);
    bot.push_text(1, 1, "two");
    let said = texts(&bot, 1, 2).await;
    let (notices, answers): (Vec<_>, Vec<_>) = said.iter().partition(|text| text.contains("goes first"));
    assert_eq!(notices.len(), 1, "{said:?}");
    assert!(answers.len() == 1 && answers[0].starts_with("two"), "{said:?}");
    // On other platforms messages wait.
    let grpc = up.grpc();
    mock.script([Behaviour::Held]);
    let before = mock.requests();
    let (first, second) = (send(&grpc, "x", "first").await.unwrap(), send(&grpc, "x", "second").await.unwrap());
    asked(&mock, before + 1);
    mock.release(1);
    for turn in [first.turn, second.turn] {
        assert_eq!(ended(&grpc, &turn).await.state(), v1::TurnState::Succeeded);
    }
    // Of several quick ones none is lost, and none overtakes another.
    mock.script([Behaviour::Held]);
    let before = mock.requests();
    bot.push_text(3, 3, "m0");
    asked(&mock, before + 1);
    for number in 1..=5 {
        bot.push_text(3, 3, &format!("m{number}"));
    }
    let last = |bot: &Bot| bot.delivered(3).iter().any(|delivery| delivery.text.starts_with("m5"));
    assert!(bot.wait_until(SOON, last).await, "{:?}", bot.delivered(3));
    let answers: Vec<String> =
        bot.delivered(3).into_iter().map(|one| one.text).filter(|text| text.starts_with('m')).collect();
    assert!(answers.is_sorted() && !answers.iter().any(|text| text.starts_with("m0")), "{answers:?}");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_session_is_refused_honestly_on_every_surface() {
    let (fake, mock) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    mock.otherwise(Behaviour::Held);
    let (up, bot) = with_bot(&fake, &mock, json!({"limits": {"queued_per_session": 2}}));
    let grpc = up.grpc();

    // gRPC: the third is refused, with a time to come back; another chat is not.
    let turns = [send(&grpc, "x", "1").await.unwrap().turn, send(&grpc, "x", "2").await.unwrap().turn];
    let refused = send(&grpc, "x", "3").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let details = refused.get_error_details();
    assert!(details.retry_info().is_some() && details.error_info().unwrap().reason == "QUEUE_FULL", "{refused:?}");
    send(&grpc, "y", "1").await.unwrap();

    // The HTTP API: 429 in OpenAI's shape.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let token = std::fs::read_to_string(up.data().join("operator.token")).unwrap();
    let client = Client::builder().no_proxy().build().unwrap();
    let call = |text: &str| {
        let body = json!({"messages": [{"role": "user", "content": text}], "stream": true});
        let call = client.post(format!("{}/v1/chat/completions", http(&up))).bearer_auth(token.trim());
        let call =
            call.header("content-type", "application/json").header("x-hermes-chat-id", "z").body(body.to_string());
        call.send()
    };
    let (first, second) = (call("1").await.unwrap(), call("2").await.unwrap());
    let refused = call("3").await.unwrap();
    assert_eq!(refused.status().as_u16(), 429);
    assert_eq!(
        (&refused.headers()["retry-after"], &refused.headers()["x-should-retry"]),
        (&"5".parse().unwrap(), &"true".parse().unwrap())
    );
    let body: Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
    assert_eq!(
        (&body["error"]["type"], &body["error"]["code"]),
        (&json!("rate_limit_error"), &json!("too_many_waiting"))
    );

    // A chat: one sentence, however many were refused.
    for number in 1..=5 {
        bot.push_text(1, 1, &format!("t{number}"));
    }
    let said = texts(&bot, 1, 1).await;
    assert!(said[0].contains("did not keep it"), "{said:?}");
    mock.release(20);
    texts(&bot, 1, 3).await;
    bot.push_text(1, 1, "t6");
    let said = texts(&bot, 1, 4).await;
    let (kept, notices): (Vec<_>, Vec<_>) = said.iter().partition(|text| text.starts_with('t'));
    assert_eq!((kept.len(), notices.len()), (3, 1), "{said:?}");
    assert!(kept[0].starts_with("t1") && kept[1].starts_with("t2") && kept[2].starts_with("t6"), "{said:?}");
    for turn in &turns {
        assert_eq!(ended(&grpc, turn).await.state(), v1::TurnState::Succeeded);
    }
    for answer in [first, second] {
        assert!(answer.text().await.unwrap().contains("[DONE]"));
    }
    stop(up);
}

/// Nobody answers for `coder`: its messages wait until they may not any more; `main` is not there for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_or_late_agent_refuses_its_own_messages_only() {
    let (fake, mock) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let (database, collector) = (TestPostgres::empty().unwrap(), Collector::start().await.unwrap());
    fake.bot("700:a-secret-of-the-bot");
    let document = json!({"agents": {"coder": {}, "idle": {}}, "limits": {"queued_per_agent": 3, "shed_after_seconds": 1},
        "routes": [{"match": {"chat_type": "group"}, "agent": "coder"}]});
    let mut plane = Plane::start(&database, &with_model(&mock, document), &collector).await;
    let send = |chat: String, agent: &str| {
        let args =
            ["send", "--platform", "irc", "--chat-type", "dm", "--chat-id", &chat, "--agent", agent, "--text", "x"];
        plane.try_json(&args)
    };
    for chat in 0..3 {
        send(format!("c{chat}"), "coder").unwrap();
    }
    let refused = send("c3".to_owned(), "coder").unwrap_err();
    assert!(refused.contains("queued_per_agent"), "{refused}");
    send("i1".to_owned(), "idle").unwrap();
    // Later they are too late for whoever can come back, although there is room; another agent is asked for in time.
    let late = async {
        loop {
            let refused = send("i2".to_owned(), "idle").err().unwrap_or_default();
            if refused.contains("shed_after_seconds") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, late).await.expect("it becomes late");
    send("m1".to_owned(), "main").unwrap();
    // With a worker the queue drains, and all is taken again.
    let made = plane.json(&["token", "create", "--role", "worker", "--agent", "coder", "--uses", "2", "--ttl", "1h"]);
    secret_file(&plane.file("join.token"), made["token"].as_str().unwrap());
    let mut worker = plane.worker("one");
    let drained = async {
        while send("c4".to_owned(), "coder").is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, drained).await.expect("it takes messages again");
    end(&mut worker).await;
    end(&mut plane.child).await;
}

/// An agent with hundreds of turns that do not end, and another one that answers as if it were alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_agents_backlog_is_not_anothers() {
    let mock = MockModel::start().await.unwrap();
    mock.otherwise(Behaviour::Held);
    let up = start(&with_model(&mock, json!({"agents": {"slow": {}, "quick": {"model": "builtin/echo"}}})), &[]);
    let grpc = up.grpc();
    let round_trip = async |chat: &str| {
        let begun = Instant::now();
        let request = v1::SubmitRequest { agent: Some("quick".into()), ..submit(chat, "hello") };
        let turn = grpc.messages().submit(request).await.unwrap().into_inner().turn;
        ended(&grpc, &turn).await;
        begun.elapsed()
    };
    let median = async |name: &str| {
        let mut times = Vec::new();
        for number in 0..15 {
            times.push(round_trip(&format!("{name}{number}")).await);
        }
        times.sort_unstable();
        times[7]
    };
    round_trip("first").await;
    let alone = median("alone").await;
    for chat in 0..400 {
        let request = v1::SubmitRequest { agent: Some("slow".into()), ..submit(&format!("s{chat}"), "wait") };
        grpc.messages().submit(request).await.unwrap();
    }
    let beside = median("beside").await;
    // Generous: what is forbidden is waiting for the other agent, which never ends here.
    assert!(beside < alone * 5 + Duration::from_millis(200), "alone {alone:?}, beside the backlog {beside:?}");
    mock.release(1000);
    stop(up);
}
