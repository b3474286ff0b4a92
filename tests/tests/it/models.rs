//! The model broker against a provider that behaves and misbehaves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use hermes_control_plane::models::{
    Broker, FailureReason, MAX_CALLS, Message, ModelEvent, ModelFailure, ModelTarget, ProviderTarget, Request,
    Settings, Tool, ToolCall,
};
use hermes_core::AgentId;
use hermes_core::config::ProviderKind;
use hermes_core::turn::{Role, Usage};
use hermes_tests::mock_model::{Behaviour, Call, LAST_WORD, MockModel};
use serde_json::json;

const KEY: &str = "sk-test-0123456789";
const KINDS: [ProviderKind; 3] = [ProviderKind::Openai, ProviderKind::Anthropic, ProviderKind::Gemini];

/// Short enough for tests, long enough for a busy machine.
fn settings() -> Settings {
    Settings {
        connect: Duration::from_secs(5),
        first_token: Duration::from_secs(5),
        between_tokens: Duration::from_secs(5),
        backoff: Duration::from_millis(10),
        ..Settings::default()
    }
}

fn broker(settings: Settings) -> Broker {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let secrets = |name: &str| match name {
        "TEST_KEY" => Some(KEY.to_owned().into()),
        "BAD_KEY" => Some("two\nlines".to_owned().into()),
        _ => None,
    };
    Broker::new(settings, Arc::new(secrets)).unwrap()
}

fn target(kind: ProviderKind, mock: &MockModel) -> ProviderTarget {
    let base_url = if kind == ProviderKind::Gemini { mock.gemini_base_url() } else { mock.base_url() };
    ProviderTarget {
        provider: "local".to_owned(),
        kind,
        base_url: Some(base_url),
        api_key_env: Some("TEST_KEY".to_owned()),
        model: "mock-1".to_owned(),
        configured: "local/mock-1".to_owned(),
        price: None,
    }
}

fn said(role: Role, text: &str) -> Message {
    Message::Said { role, text: text.to_owned() }
}

struct Heard {
    deltas: Vec<String>,
    end: Result<(Usage, String), ModelFailure>,
}

impl Heard {
    fn text(&self) -> String {
        self.deltas.concat()
    }

    fn failure(&self) -> &ModelFailure {
        self.end.as_ref().unwrap_err()
    }
}

async fn ask(broker: &Broker, target: ModelTarget, messages: Vec<Message>) -> Heard {
    let mut events = broker.generate(target, &AgentId::main(), messages);
    let mut deltas = Vec::new();
    let end = loop {
        match tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap().expect("a last event") {
            ModelEvent::Delta(text) => {
                assert!(!text.is_empty());
                deltas.push(text);
            }
            ModelEvent::Done { usage, finish_reason, .. } => break Ok((usage, finish_reason)),
            ModelEvent::Failed(failure) => break Err(failure),
        }
    };
    assert!(events.next().await.is_none(), "nothing follows the last event");
    Heard { deltas, end }
}

async fn hello(broker: &Broker, target: ProviderTarget) -> Heard {
    ask(broker, ModelTarget::Provider(target), vec![said(Role::User, "hello")]).await
}

#[tokio::test]
async fn echo_repeats_the_text_and_names_the_agent_in_several_pieces() {
    let broker = broker(settings());
    let messages = vec![said(Role::System, "be kind"), said(Role::User, "hello there my friend")];
    let heard = ask(&broker, ModelTarget::Echo, messages).await;
    assert_eq!(heard.text(), "[main] hello there my friend");
    assert!((2..=4).contains(&heard.deltas.len()), "{:?}", heard.deltas);
    let (usage, finish_reason) = heard.end.unwrap();
    assert_eq!((usage.input_tokens, usage.output_tokens, usage.model.as_str()), (6, 5, "builtin/echo"));
    assert_eq!(finish_reason, "stop");
    assert_eq!(ask(&broker, ModelTarget::Echo, vec![said(Role::User, "")]).await.text(), "[main] ");
}

#[tokio::test]
async fn every_kind_streams_the_whole_answer_with_its_usage() {
    let broker = broker(settings());
    for (kind, finish) in KINDS.into_iter().zip(["stop", "end_turn", "STOP"]) {
        let mock = MockModel::start().await.unwrap();
        let messages = vec![
            said(Role::System, "you are a test"),
            said(Role::User, "first"),
            said(Role::Assistant, "answered"),
            said(Role::Assistant, ""),
            said(Role::User, "tag 17 \"quoted\" äöü"),
        ];
        let heard = ask(&broker, ModelTarget::Provider(target(kind, &mock)), messages).await;
        let text = heard.text();
        assert!(text.starts_with("tag 17 \"quoted\" äöü word02") && text.ends_with(LAST_WORD), "{kind:?}: {text}");
        assert!(heard.deltas.len() < 25, "{kind:?}: {} events for one write", heard.deltas.len());
        let (usage, finish_reason) = heard.end.unwrap();
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.cached_tokens), (100, 50, 40), "{kind:?}");
        assert_eq!(usage.model, "local/mock-1");
        assert_eq!(usage.cost_usd, (kind == ProviderKind::Openai).then_some(0.00125));
        assert_eq!(finish_reason, finish, "{kind:?}");
        let last = mock.last();
        let (path, key) = match kind {
            ProviderKind::Openai => ("/v1/chat/completions", last.bearer()),
            ProviderKind::Anthropic => {
                ("/v1/messages", last.headers.get("x-api-key").and_then(|key| key.to_str().ok()))
            }
            ProviderKind::Gemini => (
                "/v1beta/models/mock-1:streamGenerateContent?alt=sse",
                last.headers.get("x-goog-api-key").and_then(|key| key.to_str().ok()),
            ),
        };
        assert_eq!((last.path.as_str(), key), (path, Some(KEY)));
        let body = String::from_utf8_lossy(&last.body).into_owned();
        for part in ["you are a test", "first", "answered"] {
            assert!(body.contains(part), "{kind:?}: {part} is missing in {body}");
        }
        assert!(!body.contains("\"\""), "{kind:?}: no empty message is sent: {body}");
    }
}

#[tokio::test]
async fn without_a_key_no_key_is_sent_and_the_model_name_stays_whole() {
    let broker = broker(settings());
    for kind in KINDS {
        let mock = MockModel::start().await.unwrap();
        let mut target = target(kind, &mock);
        target.api_key_env = None;
        target.base_url = target.base_url.map(|url| url + "/");
        if kind == ProviderKind::Openai {
            target.model = "org/name::big-max".to_owned();
        }
        let heard = hello(&broker, target).await;
        assert!(heard.end.is_ok(), "{kind:?}: {:?}", heard.end);
        let last = mock.last();
        for header in ["authorization", "x-api-key", "x-goog-api-key"] {
            assert!(!last.headers.contains_key(header), "{kind:?}: {header}");
        }
        if kind == ProviderKind::Openai {
            let body = last.json();
            assert_eq!(body["model"], "org/name::big-max");
            assert_eq!(body["stream"], true);
            assert_eq!(body.get("reasoning_effort"), None);
        }
    }
}

#[tokio::test]
async fn tokens_are_passed_on_as_they_come() {
    let broker = broker(settings());
    let mock = MockModel::start().await.unwrap();
    mock.otherwise(Behaviour::HangAfter(3));
    let target = ModelTarget::Provider(target(ProviderKind::Openai, &mock));
    let mut events = broker.generate(target, &AgentId::main(), vec![said(Role::User, "hello")]);
    assert_eq!(events.next().await, Some(ModelEvent::Delta("hello word02 word03".to_owned())));
    drop(events);
    mock.until_gone(1).await;

    mock.otherwise(Behaviour::Slow(Duration::from_millis(2)));
    let heard = hello(&broker, self::target(ProviderKind::Openai, &mock)).await;
    assert!(heard.deltas.len() > 25, "{} events", heard.deltas.len());
    assert!(heard.text().ends_with(LAST_WORD));
}

#[tokio::test]
async fn dropping_the_stream_cancels_the_provider_call_in_every_phase() {
    let broker = broker(settings());
    let mock = MockModel::start().await.unwrap();
    for (count, behaviour) in
        [(1, Behaviour::HangBeforeHeaders), (2, Behaviour::HangAfter(0)), (3, Behaviour::HangAfter(2))]
    {
        mock.otherwise(behaviour.clone());
        let target = ModelTarget::Provider(target(ProviderKind::Anthropic, &mock));
        let mut events = broker.generate(target, &AgentId::main(), vec![said(Role::User, "hello")]);
        let requests = mock.requests();
        while mock.requests() == requests {
            let _ = tokio::time::timeout(Duration::from_millis(20), events.next()).await;
        }
        drop(events);
        tokio::time::timeout(Duration::from_secs(5), mock.until_gone(count))
            .await
            .unwrap_or_else(|_| panic!("{behaviour:?}"));
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_failure_and_not_repeated() {
    let broker = broker(settings());
    for kind in KINDS {
        for behaviour in [Behaviour::DieAfter(5), Behaviour::EndAfter(5)] {
            let mock = MockModel::start().await.unwrap();
            mock.script([behaviour.clone()]);
            let heard = hello(&broker, target(kind, &mock)).await;
            assert_eq!(heard.text(), "hello word02 word03 word04 word05", "{kind:?} {behaviour:?}");
            assert_eq!(heard.failure().reason, FailureReason::BrokenStream, "{kind:?} {behaviour:?}");
            assert_eq!(heard.failure().message, "the model's answer broke off before its end");
            assert_eq!(mock.requests(), 1, "text was passed on, so nothing is tried again");
            // The next message of the session is answered.
            assert!(hello(&broker, target(kind, &mock)).await.end.is_ok());
        }
    }
}

#[tokio::test]
async fn a_stream_that_breaks_before_its_first_token_is_tried_again() {
    let broker = broker(settings());
    for kind in KINDS {
        let mock = MockModel::start().await.unwrap();
        mock.script([Behaviour::DieAfter(0), Behaviour::EndAfter(0)]);
        let heard = hello(&broker, target(kind, &mock)).await;
        assert!(heard.end.is_ok(), "{kind:?}: {:?}", heard.end);
        assert_eq!(mock.requests(), 3);
    }
}

#[tokio::test]
async fn a_finish_reason_without_done_is_a_complete_openai_answer_but_a_broken_anthropic_one() {
    let broker = broker(settings());
    let mock = MockModel::start().await.unwrap();
    mock.otherwise(Behaviour::NoEndMark);
    let heard = hello(&broker, target(ProviderKind::Openai, &mock)).await;
    let (usage, finish_reason) = heard.end.unwrap();
    assert_eq!((finish_reason.as_str(), usage.output_tokens, usage.cached_tokens), ("stop", 50, 40));
    let heard = hello(&broker, target(ProviderKind::Anthropic, &mock)).await;
    assert_eq!(heard.failure().reason, FailureReason::BrokenStream);
}

#[tokio::test]
async fn a_silent_server_runs_into_the_limit_of_its_phase() {
    let limits =
        Settings { first_token: Duration::from_millis(300), between_tokens: Duration::from_millis(200), ..settings() };
    let broker = broker(limits);
    let mock = MockModel::start().await.unwrap();
    for (behaviour, text, message) in [
        (Behaviour::HangBeforeHeaders, "", "the model did not begin to answer within 1 s"),
        (Behaviour::HangAfter(0), "", "the model did not begin to answer within 1 s"),
        (
            Behaviour::HangAfter(2),
            "hello word02",
            "the model stopped in the middle of its answer and was silent for 1 s",
        ),
    ] {
        for kind in KINDS {
            mock.script([behaviour.clone()]);
            let heard = hello(&broker, target(kind, &mock)).await;
            assert_eq!(heard.text(), text, "{kind:?} {behaviour:?}");
            assert_eq!(heard.failure().reason, FailureReason::Timeout);
            assert_eq!(heard.failure().message, message);
        }
    }
    assert_eq!(mock.requests(), 9, "a server that hangs is not asked again");
    // Slow, but each token comes within its limit: longer in total than any limit.
    mock.script([Behaviour::Slow(Duration::from_millis(10))]);
    let began = Instant::now();
    let heard = hello(&broker, target(ProviderKind::Openai, &mock)).await;
    assert!(heard.end.is_ok() && began.elapsed() > Duration::from_millis(300), "{:?}", heard.end);
}

#[tokio::test]
async fn refusals_become_one_sentence_and_only_passing_ones_are_tried_again() {
    let limits = Settings { attempts: 3, ..settings() };
    let broker = broker(limits);
    for (status, reason, attempts, message) in [
        (401, FailureReason::Auth, 1, "provider local refused the key (HTTP 401)"),
        (403, FailureReason::Auth, 1, "provider local refused the key (HTTP 403)"),
        (
            404,
            FailureReason::BadRequest,
            1,
            "provider local does not know the model local/mock-1, or its base_url is wrong (HTTP 404)",
        ),
        (400, FailureReason::BadRequest, 1, "provider local refused the request (HTTP 400)"),
        (307, FailureReason::BadRequest, 1, "provider local refused the request (HTTP 307)"),
        (
            429,
            FailureReason::RateLimited,
            3,
            "provider local answers that there are too many requests (HTTP 429); try again soon",
        ),
        (500, FailureReason::Unavailable, 3, "provider local has trouble right now (HTTP 500)"),
        (529, FailureReason::Unavailable, 3, "provider local has trouble right now (HTTP 529)"),
    ] {
        for kind in KINDS {
            let mock = MockModel::start().await.unwrap();
            mock.otherwise(Behaviour::Status(status, None));
            let heard = hello(&broker, target(kind, &mock)).await;
            let failure = heard.failure();
            assert_eq!((failure.reason, failure.message.as_str()), (reason, message), "{kind:?}");
            assert!(failure.cause.contains(&format!("HTTP {status}")) && failure.cause.contains("refused by script"));
            assert_eq!(mock.requests(), attempts, "{kind:?} {status}");
            mock.otherwise(Behaviour::Answer);
            assert!(hello(&broker, target(kind, &mock)).await.end.is_ok(), "the next call is answered");
        }
    }
}

#[tokio::test]
async fn a_passing_refusal_is_overcome_and_retry_after_is_honoured() {
    let broker = broker(settings());
    let mock = MockModel::start().await.unwrap();
    mock.script([Behaviour::Status(500, None), Behaviour::Status(503, None), Behaviour::Status(429, Some("0"))]);
    assert!(hello(&broker, target(ProviderKind::Openai, &mock)).await.end.is_ok());
    assert_eq!(mock.requests(), 4);

    mock.script([Behaviour::Status(429, Some("1"))]);
    let began = Instant::now();
    assert!(hello(&broker, target(ProviderKind::Openai, &mock)).await.end.is_ok());
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());

    mock.script([Behaviour::Status(429, Some("600"))]);
    let began = Instant::now();
    let heard = hello(&broker, target(ProviderKind::Openai, &mock)).await;
    assert_eq!(heard.failure().message, "provider local asks to wait 600 s (HTTP 429)");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn an_error_inside_a_stream_is_retried_only_before_the_first_token() {
    let broker = broker(settings());
    for kind in [ProviderKind::Openai, ProviderKind::Anthropic] {
        let mock = MockModel::start().await.unwrap();
        mock.script([Behaviour::ErrorAfter(0, "overloaded_error")]);
        assert!(hello(&broker, target(kind, &mock)).await.end.is_ok());
        assert_eq!(mock.requests(), 2, "{kind:?}");
        for (error, reason) in [
            ("overloaded_error", FailureReason::Unavailable),
            ("rate_limit_error", FailureReason::RateLimited),
            ("invalid_request_error", FailureReason::BadRequest),
        ] {
            mock.script([Behaviour::ErrorAfter(2, error)]);
            let heard = hello(&broker, target(kind, &mock)).await;
            assert_eq!(heard.text(), "hello word02");
            assert_eq!(heard.failure().reason, reason, "{kind:?} {error}");
            assert!(heard.failure().cause.contains("failed by script"), "{}", heard.failure().cause);
        }
        assert_eq!(mock.requests(), 5);
    }
}

#[tokio::test]
async fn garbage_and_emptiness_are_failures() {
    let broker = broker(settings());
    for kind in [ProviderKind::Openai, ProviderKind::Gemini] {
        let mock = MockModel::start().await.unwrap();
        mock.otherwise(Behaviour::Garbage);
        let heard = hello(&broker, target(kind, &mock)).await;
        assert_eq!(heard.failure().reason, FailureReason::BrokenStream, "{kind:?}");
        assert_eq!(mock.requests(), 1);
    }
    for kind in KINDS {
        let mock = MockModel::start().await.unwrap();
        mock.otherwise(Behaviour::Empty);
        let heard = hello(&broker, target(kind, &mock)).await;
        assert!(heard.failure().message.starts_with("the model gave an empty answer ("), "{:?}", heard.end);
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_unavailable_and_a_wrong_address_is_said() {
    let broker = broker(settings());
    let mock = MockModel::start().await.unwrap();
    let gone = target(ProviderKind::Openai, &mock);
    drop(mock);
    let heard = hello(&broker, gone.clone()).await;
    assert_eq!(heard.failure().reason, FailureReason::Unavailable);
    assert_eq!(heard.failure().message, "provider local cannot be reached right now");
    assert!(heard.failure().cause.contains("refused"), "{}", heard.failure().cause);

    let heard = hello(&broker, ProviderTarget { base_url: Some("localhost:1/v1".to_owned()), ..gone }).await;
    assert_eq!(heard.failure().message, "the base_url of provider local is not an http or https address");
}

#[tokio::test]
async fn a_server_that_takes_the_connection_but_not_the_handshake_runs_into_the_connect_limit() {
    let broker = broker(Settings { connect: Duration::from_millis(200), attempts: 2, ..settings() });
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mock = MockModel::start().await.unwrap();
    let base_url = Some(format!("https://{}/v1", listener.local_addr().unwrap()));
    let began = Instant::now();
    let heard = hello(&broker, ProviderTarget { base_url, ..target(ProviderKind::Openai, &mock) }).await;
    assert_eq!(heard.failure().message, "provider local cannot be reached right now");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(5), "two attempts took {took:?}");
}

#[tokio::test]
async fn missing_providers_and_keys_are_named() {
    let broker = broker(settings());
    let mock = MockModel::start().await.unwrap();
    let model = "anthropic/claude-opus-4-6".to_owned();
    let heard = ask(&broker, ModelTarget::Unserved { model }, vec![said(Role::User, "hello")]).await;
    assert_eq!(heard.failure().reason, FailureReason::NoProvider);
    assert_eq!(
        heard.failure().message,
        "no provider is configured for anthropic/claude-opus-4-6; set providers.anthropic or default_provider"
    );
    let without = ProviderTarget { api_key_env: Some("NO_SUCH_KEY".to_owned()), ..target(ProviderKind::Openai, &mock) };
    let heard = hello(&broker, without).await;
    assert_eq!(heard.failure().message, "the key for provider local is not set (NO_SUCH_KEY)");
    assert_eq!(heard.failure().reason, FailureReason::Auth);
    let malformed = ProviderTarget { api_key_env: Some("BAD_KEY".to_owned()), ..target(ProviderKind::Openai, &mock) };
    assert_eq!(hello(&broker, malformed).await.failure().reason, FailureReason::Auth);
    assert_eq!(mock.requests(), 0);
}

#[tokio::test]
async fn a_key_that_the_provider_repeats_does_not_reach_the_cause() {
    let app = axum::Router::new().fallback(|headers: http::HeaderMap| async move {
        let said = format!("Incorrect API key provided: {:?}", headers.get("authorization"));
        (http::StatusCode::UNAUTHORIZED, said)
    });
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let base_url = Some(format!("http://{}/v1", listener.local_addr().unwrap()));
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move { axum::serve(listener, app).await.unwrap() });
    let mock = MockModel::start().await.unwrap();
    let heard = hello(&broker(settings()), ProviderTarget { base_url, ..target(ProviderKind::Openai, &mock) }).await;
    let cause = &heard.failure().cause;
    assert!(cause.contains("Bearer [key]") && !cause.contains(KEY), "{cause}");
}

fn act() -> Tool {
    Tool {
        name: "act".to_owned(),
        description: "Acts.".to_owned(),
        parameters: json!({"type": "object", "properties": {"n": {"type": "integer"}}}),
    }
}

/// The calls of a reply that ends well.
async fn calls(broker: &Broker, target: ProviderTarget, request: Request) -> (String, Vec<ToolCall>, String) {
    let events = broker.generate(ModelTarget::Provider(target), &AgentId::main(), request);
    let events: Vec<ModelEvent> = tokio::time::timeout(Duration::from_secs(20), events.collect()).await.unwrap();
    let mut text = String::new();
    for event in events {
        match event {
            ModelEvent::Delta(delta) => text.push_str(&delta),
            ModelEvent::Done { calls, finish_reason, .. } => return (text, calls, finish_reason),
            ModelEvent::Failed(failure) => panic!("{failure:?}"),
        }
    }
    panic!("no end");
}

#[tokio::test]
async fn every_kind_asks_for_tools_and_is_told_what_they_gave() {
    let broker = broker(settings());
    for (kind, finish) in KINDS.into_iter().zip(["tool_calls", "tool_use", "STOP"]) {
        let mock = MockModel::start().await.unwrap();
        let given = [Call::new("call_a", "act", "{\"n\":1}"), Call::new("call_b", "act", "{\"n\":2}")];
        for said in ["", "one moment please"] {
            mock.script([Behaviour::Ask(said.to_owned(), given.to_vec())]);
            let hello =
                Request { messages: vec![self::said(Role::User, "hello")], tools: vec![act()], ..Request::default() };
            let (text, mut calls, reason) = calls(&broker, target(kind, &mock), hello).await;
            assert_eq!((text.as_str(), reason.as_str()), (said, finish), "{kind:?}");
            let asked: Vec<_> = calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect();
            assert_eq!(asked, [("act", "{\"n\":1}"), ("act", "{\"n\":2}")], "{kind:?}");
            assert_ne!(calls[0].id, calls[1].id, "{kind:?}");
            if kind != ProviderKind::Gemini {
                assert_eq!((calls[0].id.as_str(), calls[1].id.as_str()), ("call_a", "call_b"));
            }
            assert!(String::from_utf8_lossy(&mock.last().body).contains("Acts."), "{kind:?}: the tool is offered");

            // The results go back, the broken arguments of a call as an object, and the next calls have ids of their own.
            calls[1].arguments = "{\"n\":".to_owned();
            let first = calls[0].id.clone();
            let results = calls.iter().enumerate().map(|(n, call)| Message::Answered {
                call: call.id.clone(),
                text: if n == 0 { "gave one".to_owned() } else { String::new() },
            });
            let results: Vec<_> = results.collect();
            let mut messages = vec![
                self::said(Role::User, "hello"),
                Message::Asked { text: text.clone(), calls, reasoning: String::new() },
            ];
            messages.extend(results);
            mock.script([Behaviour::Ask(String::new(), given.to_vec())]);
            let (_, next, _) = self::calls(
                &broker,
                target(kind, &mock),
                Request { messages, tools: vec![act()], ..Request::default() },
            )
            .await;
            assert!(next.iter().all(|call| call.id != first), "{kind:?}: {next:?}");
            let sent = mock.last().json().to_string();
            assert!(sent.contains("gave one") && sent.contains("hello"), "{kind:?}: {sent}");
            assert_eq!(sent.contains("one moment please"), !said.is_empty(), "{kind:?}: {sent}");
            if kind == ProviderKind::Anthropic {
                let body = mock.last().json();
                let last = body["messages"].as_array().unwrap().last().unwrap().clone();
                assert_eq!(last["content"].as_array().map(Vec::len), Some(2), "both results in one message: {last}");
                assert!(body["messages"][1]["content"].to_string().contains("\"input\":{\"arguments\":"), "{body}");
            }
        }
    }
}

#[tokio::test]
async fn calls_that_nobody_offered_are_none_and_too_many_are_no_reply() {
    let broker = broker(settings());
    for kind in KINDS {
        let mock = MockModel::start().await.unwrap();
        let call = Call::new("call_a", "act", "{}");
        mock.script([Behaviour::Ask("words".to_owned(), vec![call.clone()])]);
        let unasked: Request = vec![said(Role::User, "hello")].into();
        let (text, none, _) = calls(&broker, target(kind, &mock), unasked).await;
        assert_eq!((text.as_str(), none.len()), ("words", 0), "{kind:?}");
        let many = (0..=MAX_CALLS).map(|n| Call { id: format!("call_{n}"), ..call.clone() }).collect();
        mock.script([Behaviour::Ask(String::new(), many)]);
        let request = Request { messages: vec![said(Role::User, "hello")], tools: vec![act()], ..Request::default() };
        let events = broker.generate(ModelTarget::Provider(target(kind, &mock)), &AgentId::main(), request);
        let events: Vec<ModelEvent> = events.collect().await;
        assert!(
            matches!(events.as_slice(), [ModelEvent::Failed(failure)] if failure.reason == FailureReason::BrokenStream),
            "{kind:?}: {events:?}"
        );
        assert_eq!(mock.requests(), 2, "{kind:?}: it is not asked again");
    }
}
