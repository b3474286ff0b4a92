//! Files that a model is given itself, on each wire.

use std::sync::Arc;

use futures_util::StreamExt as _;
use hermes_control_plane::models::{
    Broker, Message, ModelEvent, ModelTarget, ProviderTarget, Refused, Request, Room, Settings, Shown, ShownFile,
};
use hermes_core::AgentId;
use hermes_core::attachment::{Attachment, Kind};
use hermes_core::config::ProviderKind;
use hermes_core::turn::Role;
use hermes_tests::mock_model::{Behaviour, MockModel};
use serde_json::{Value, json};

/// Its first and its last message are the user's; the files are the last one's.
fn request(media_types: &[&str], refused: &Refused) -> Request {
    let files = media_types.iter().map(|media_type| {
        let file = Attachment::new(Kind::Document, "a", media_type, 3, "ab".repeat(32));
        ShownFile::new(file.medium().unwrap(), &file, b"abc")
    });
    let said = |role, text: &str| Message::Said { role, text: text.to_owned() };
    let messages = vec![said(Role::User, "before"), said(Role::Assistant, "yes"), said(Role::User, "listen")];
    let shown = Shown { at: 2, files: files.collect(), refused: refused.clone(), room: Room::default() };
    Request { messages, shown, ..Request::default() }
}

/// Asks for an answer, which comes.
async fn ask(mock: &MockModel, kind: ProviderKind, model: &str, request: Request) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let broker = Broker::new(Settings::default(), Arc::new(|_: &str| None)).unwrap();
    let base_url = if kind == ProviderKind::Gemini { mock.gemini_base_url() } else { mock.base_url() };
    let target = ProviderTarget {
        provider: "local".to_owned(),
        kind,
        base_url: Some(base_url),
        api_key_env: None,
        model: model.to_owned(),
        configured: format!("local/{model}"),
        price: None,
    };
    let events: Vec<_> = broker.generate(ModelTarget::Provider(target), &AgentId::main(), request).collect().await;
    assert!(matches!(events.last(), Some(ModelEvent::Done { .. })), "{events:?}");
}

/// What the last message has beside its text.
fn files(mock: &MockModel, kind: ProviderKind) -> Vec<Value> {
    let body = mock.last().json();
    let (messages, parts) = match kind {
        ProviderKind::Gemini => ("contents", "parts"),
        ProviderKind::Openai | ProviderKind::Anthropic => ("messages", "content"),
    };
    let parts = body[messages].as_array().unwrap().last().unwrap()[parts].as_array().cloned().unwrap_or_default();
    parts.into_iter().filter(|part| part.get("text").is_none()).collect()
}

#[tokio::test]
async fn each_wire_is_given_the_files_that_it_can_carry() {
    let mock = MockModel::start().await.unwrap();
    let all = ["image/png", "audio/x-wav", "audio/mpeg", "audio/opus", "audio/x-flac"];
    for (kind, expected) in [
        (
            ProviderKind::Openai,
            json!([
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,YWJj"}},
                {"type": "input_audio", "input_audio": {"data": "YWJj", "format": "wav"}},
                {"type": "input_audio", "input_audio": {"data": "YWJj", "format": "mp3"}},
            ]),
        ),
        (
            ProviderKind::Anthropic,
            json!([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "YWJj"}}]),
        ),
        (
            ProviderKind::Gemini,
            json!([
                {"inline_data": {"mime_type": "image/png", "data": "YWJj"}},
                {"inline_data": {"mime_type": "audio/wav", "data": "YWJj"}},
                {"inline_data": {"mime_type": "audio/mp3", "data": "YWJj"}},
                {"inline_data": {"mime_type": "audio/ogg", "data": "YWJj"}},
                {"inline_data": {"mime_type": "audio/flac", "data": "YWJj"}},
            ]),
        ),
    ] {
        ask(&mock, kind, "mock-1", request(&all, &Refused::default())).await;
        assert_eq!(json!(files(&mock, kind)), expected, "{kind:?}");
    }
    assert_eq!(mock.requests(), 3, "nothing was tried and refused");
}

#[tokio::test]
async fn what_a_model_refuses_is_left_out_and_not_tried_again() {
    let mock = MockModel::start().await.unwrap();
    let kind = ProviderKind::Openai;
    mock.respond(|body| match body.to_string().contains("input_audio") && body["model"] == "deaf" {
        true => Behaviour::Status(400, None),
        false => Behaviour::Answer,
    });
    let (refused, all) = (Refused::default(), ["image/png", "audio/mpeg"]);
    // Audio goes first, and pictures stay when that was it.
    ask(&mock, kind, "deaf", request(&all, &refused)).await;
    assert_eq!((mock.requests(), files(&mock, kind).len()), (2, 1));
    let body = mock.last().json().to_string();
    assert!(body.contains("image_url") && body.contains("listen\\n[You cannot hear audio"), "{body}");
    // The next call of the turn says the same at once; another model's is asked.
    ask(&mock, kind, "deaf", request(&all, &refused)).await;
    assert_eq!((mock.requests(), mock.last().json().to_string()), (3, body));
    ask(&mock, kind, "hears", request(&all, &refused)).await;
    assert_eq!((mock.requests(), files(&mock, kind).len()), (4, 2));
    // A model that takes neither, and one that is told nothing of what its wire could not carry anyway.
    mock.respond(|body| match body.to_string().contains("image_url") {
        true => Behaviour::Status(400, None),
        false => Behaviour::Answer,
    });
    ask(&mock, kind, "neither", request(&all, &refused)).await;
    let body = mock.last().json().to_string();
    assert!(mock.requests() == 7 && body.contains("cannot hear") && body.contains("cannot see"), "{body}");
    ask(&mock, kind, "neither", request(&["audio/ogg"], &refused)).await;
    assert!(!mock.last().json().to_string().contains("cannot"));
}
