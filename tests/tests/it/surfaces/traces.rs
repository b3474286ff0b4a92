//! One message, one trace across both processes; and a collector that hangs, which nobody notices.

use std::collections::BTreeSet;

use hermes_tests::fake_telegram::{Bot, FakeTelegram, Fault};
use hermes_tests::mock_model::MockModel;
use hermes_tests::otlp::{Collector, HungCollector, Span};
use hermes_tests::system::Up;
use serde_json::json;

use super::{SOON, account, start, stop, texts, with_model};

const TOKEN: &str = "700:a-secret-of-the-bot";

fn up(fake: &FakeTelegram, mock: &MockModel, endpoint: &str) -> (Up, Bot) {
    let document = json!({"platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", fake)]}}});
    let bot = fake.bot(TOKEN);
    let env = [("FRONT_TOKEN", TOKEN), ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)];
    (start(&with_model(mock, document), &env), bot)
}

/// Spans without a parent among these.
fn roots(trace: &[Span]) -> Vec<&Span> {
    let ids: BTreeSet<&str> = trace.iter().map(|span| span.id.as_str()).collect();
    trace.iter().filter(|span| !ids.contains(span.parent.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_one_trace_from_intake_to_delivery_across_both_processes() {
    let (fake, mock) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let collector = Collector::start().await.unwrap();
    let (up, bot) = up(&fake, &mock, &collector.endpoint());
    bot.push_text(11, 11, "follow me");
    texts(&bot, 11, 1).await;
    bot.fail_in(12, "sendMessage", 1, Fault::answer(500, "Internal Server Error"));
    bot.push_text(12, 12, "and me, the second time");
    texts(&bot, 12, 1).await;
    let expected = [
        ("hermes-control-plane", "claim"),
        ("hermes-control-plane", "delivery"),
        ("hermes-control-plane", "intake"),
        ("hermes-control-plane", "model"),
        ("hermes-worker", "model"),
        ("hermes-worker", "turn"),
    ];
    // Spans arrive in the order of their ends, so the first of a kind is the first message's.
    let with = |spans: &[Span], name: &str, key: &str, value: &str| -> Vec<Span> {
        let is_it = |span: &&Span| span.name == name && (key.is_empty() || span.attributes[key] == value);
        let trace = spans.iter().find(is_it).map(|span| span.trace.clone());
        spans.iter().filter(|span| Some(&span.trace) == trace.as_ref()).cloned().collect()
    };
    let of_message = |spans: &[Span]| with(spans, "intake", "", "");
    let of_retry = |spans: &[Span]| with(spans, "delivery", "attempt", "2");
    let names = |spans: &[Span]| -> BTreeSet<(String, String)> {
        spans.iter().map(|span| (span.service.clone(), span.name.clone())).collect()
    };
    let wanted: BTreeSet<_> = expected.map(|(service, name)| (service.to_owned(), name.to_owned())).into();
    let all_there = |spans: &[Span]| {
        let whole = |trace: Vec<Span>| names(&trace).is_superset(&wanted) && roots(&trace).len() == 1;
        whole(of_message(spans)) && whole(of_retry(spans))
    };
    let spans = collector.wait_for(SOON, all_there).await.unwrap();
    stop(up);
    let retried = of_retry(&spans);
    let attempts: Vec<&str> =
        retried.iter().filter(|span| span.name == "delivery").map(|span| span.attributes["attempt"].as_str()).collect();
    assert_eq!(attempts, ["1", "2"], "a later attempt stays in its message's trace");
    let trace = of_message(&spans);

    // Who is whose child: everything hangs together, and the model call of the control plane is that of the worker's turn.
    let one = |service: &str, name: &str| {
        let mut found = trace.iter().filter(|span| span.service == service && span.name == name);
        let span = found.next().expect("it is there");
        assert_eq!(found.next(), None, "{service} {name} once");
        span
    };
    let intake = one("hermes-control-plane", "intake");
    let (turn, asked) = (one("hermes-worker", "turn"), one("hermes-worker", "model"));
    assert_eq!(intake.parent, "");
    assert_eq!(asked.parent, turn.id);
    assert_eq!(roots(&trace), [intake], "every other span has its parent in the trace");
    let answering = one("hermes-control-plane", "model");
    let mut above = answering.parent.as_str();
    while above != asked.id {
        above = &trace.iter().find(|span| span.id == above).expect("a way up to the worker's model call").parent;
    }
    for span in trace.iter().filter(|span| span.service == "hermes-control-plane") {
        let text = format!("{:?}", span.attributes);
        assert!(!text.contains("follow me") && !text.contains("secret"), "no message and no token in {span:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_holds_up_neither_answers_nor_the_stop() {
    let (fake, mock) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let collector = HungCollector::start().await.unwrap();
    let (up, bot) = up(&fake, &mock, &collector.endpoint());
    for number in 0..10 {
        for chat in 1..=10 {
            bot.push_text(chat, chat, &number.to_string());
        }
    }
    for chat in 1..=10 {
        let answers = texts(&bot, chat, 10).await;
        for (number, answer) in answers.iter().enumerate() {
            assert!(answer.starts_with(&format!("{number} ")), "chat {chat}: {answers:?}");
        }
    }
    // Within five seconds, or it fails.
    stop(up);
    assert!(collector.connections() > 0, "the collector was tried");
}
