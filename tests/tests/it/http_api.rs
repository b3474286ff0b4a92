//! The OpenAI-compatible API, health and webhooks over real HTTP, with a stand-in for intake.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use hermes_control_plane::http::{self as api, Key, Parts, Settings, Submit, SubmitError, Submitted, TurnEvent, Turns};
use hermes_core::AgentId;
use hermes_core::turn::{Role, TurnState, Usage};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Intake as the API sees it: answers "re: " and the text; some texts and keys ask for trouble.
#[derive(Default)]
struct FakeTurns {
    submits: Mutex<Vec<Submit>>,
    known: Mutex<HashMap<String, ([u8; 32], Submitted)>>,
    /// Texts of turns by their name, for `follow`.
    texts: Mutex<HashMap<String, String>>,
    /// Streams of `follow` that were dropped before their end.
    dropped: watch::Sender<usize>,
}

impl FakeTurns {
    fn last(&self) -> Submit {
        self.submits.lock().unwrap().last().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.submits.lock().unwrap().len()
    }
}

struct Dropped(watch::Sender<usize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count += 1);
    }
}

impl Turns for FakeTurns {
    fn submit(&self, submit: Submit) -> BoxFuture<'_, Result<Submitted, SubmitError>> {
        let result = match submit.text.as_str() {
            "too large" => Err(SubmitError::TooLarge { limit: 7 }),
            "overloaded" => Err(SubmitError::Overloaded),
            "unavailable" => Err(SubmitError::Unavailable("the database cannot be reached".to_owned())),
            "invalid" => Err(SubmitError::Invalid("this is not accepted".to_owned())),
            "removed" => Err(SubmitError::UnknownAgent("coder".to_owned())),
            text => {
                let mut known = self.known.lock().unwrap();
                let hash = submit.body_hash.unwrap_or_default();
                match submit.dedupe_key.as_ref().and_then(|key| known.get(key)) {
                    Some((first, _)) if *first != hash => Err(SubmitError::Conflict),
                    Some((_, first)) => Ok(Submitted { duplicate: true, ..first.clone() }),
                    None => {
                        let mut submits = self.submits.lock().unwrap();
                        submits.push(submit.clone());
                        let turn = format!("turn-{}", submits.len());
                        self.texts.lock().unwrap().insert(turn.clone(), text.to_owned());
                        let submitted = Submitted {
                            agent: submit.preset.unwrap_or_else(AgentId::main),
                            session_key: format!("agent:main:api_server:dm:{}", submit.source.chat_id),
                            session_id: "s-1".to_owned(),
                            turn,
                            duplicate: false,
                        };
                        if let Some(key) = submit.dedupe_key {
                            known.insert(key, (hash, submitted.clone()));
                        }
                        Ok(submitted)
                    }
                }
            }
        };
        async move { result }.boxed()
    }

    fn follow(&self, turn: &str) -> BoxStream<'static, TurnEvent> {
        let text = self.texts.lock().unwrap()[turn].clone();
        let delta = |text: &str| TurnEvent::Delta(text.to_owned());
        let usage = Usage { input_tokens: 7, output_tokens: 3, cached_tokens: 2, ..Usage::default() };
        let ended = |state, reply: &str| TurnEvent::Ended { state, reply: reply.to_owned(), usage: usage.clone() };
        let events = match text.as_str() {
            "fail" => vec![ended(TurnState::Failed, "provider local refused the key (HTTP 401)")],
            "fail later" => {
                vec![delta("so far"), ended(TurnState::Failed, "the model's answer broke off before its end")]
            }
            "cancel" => vec![ended(TurnState::Cancelled, "")],
            "die" => vec![ended(TurnState::Dead, "I gave up after three crashes")],
            "lossy" => vec![delta("one "), ended(TurnState::Succeeded, "one two three")],
            "moved" => vec![delta("one tw"), delta("other "), ended(TurnState::Succeeded, "other words")],
            "lost" => vec![delta("one")],
            "hang" => {
                let guard = Dropped(self.dropped.clone());
                let hang = async move {
                    let _guard = guard;
                    std::future::pending::<TurnEvent>().await
                };
                return stream::iter([delta("one")]).chain(stream::once(hang)).boxed();
            }
            text => vec![delta("re: "), delta(text), ended(TurnState::Succeeded, &format!("re: {text}"))],
        };
        stream::iter(events).boxed()
    }

    fn agents(&self) -> Vec<AgentId> {
        vec![AgentId::main(), AgentId::parse("coder").unwrap()]
    }

    fn authorize<'a>(&'a self, bearer: &'a str) -> BoxFuture<'a, Option<Key>> {
        let key = |name: &str| {
            let (name, agent) = name.split_once('@').map_or((name, None), |(name, agent)| (name, Some(agent)));
            Key { principal: format!("token:{name}"), agent: agent.map(|agent| AgentId::parse(agent).unwrap()) }
        };
        async move { bearer.strip_prefix("key-").map(key) }.boxed()
    }
}

struct Server {
    turns: Arc<FakeTurns>,
    addr: SocketAddr,
    ready: watch::Sender<Result<(), String>>,
    client: Client,
    _serving: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    async fn with(settings: Settings) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let turns = Arc::new(FakeTurns::default());
        let ready = watch::Sender::new(Ok(()));
        let is_ready = ready.clone();
        let parts = Parts {
            turns: Arc::clone(&turns) as Arc<dyn Turns>,
            ready: Arc::new(move || {
                is_ready.borrow().clone().map(|()| vec!["deaf: telegram account front".to_owned()])
            }),
            metrics: Arc::new(|| "hermes_turns_total 7\n".to_owned()),
            webhooks: Arc::new(|platform, account, request| webhook(platform, account, request).boxed()),
            now: Arc::new(|| 1_700_000_000),
            settings,
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, api::router(parts)).await.unwrap() });
        Self { turns, addr, ready, client: Client::new(), _serving: serving }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    async fn chat(&self, body: Value, headers: &[(&str, &str)]) -> Response {
        let mut request = self.client.post(self.url("/v1/chat/completions")).bearer_auth("key-a").json(&body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn say(&self, text: &str) -> Response {
        self.chat(said(text), &[]).await
    }
}

/// Answers with what it was given.
async fn webhook(platform: String, account: String, request: http::Request<Bytes>) -> Option<http::Response<Bytes>> {
    if platform != "webhook" || account != "ci" {
        return None;
    }
    let signature = request.headers()["x-signature"].to_str().unwrap().to_owned();
    let said =
        format!("{} {} {signature} {}", request.method(), request.uri(), String::from_utf8_lossy(request.body()));
    Some(http::Response::builder().status(202).body(Bytes::from(said)).unwrap())
}

fn said(text: &str) -> Value {
    json!({"model": "main", "messages": [{"role": "user", "content": text}]})
}

async fn error_of(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    let error = body["error"].clone();
    assert!(error["message"].is_string() && error["type"].is_string(), "{body}");
    (status, error)
}

/// The data of each event of a stream.
async fn events_of(response: Response) -> Vec<String> {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let events = text.split_terminator("\n\n").filter(|event| !event.starts_with(':'));
    events.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
}

fn json_of(event: &str) -> Value {
    serde_json::from_str(event).unwrap()
}

fn content_of(events: &[String]) -> String {
    let contents = events.iter().filter(|event| *event != "[DONE]").map(|event| json_of(event));
    contents.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_key_is_always_required() {
    let server = Server::start().await;
    for path in ["/v1/models", "/v1/models/main"] {
        for key in
            [None, Some("Bearer wrong"), Some("Bearer "), Some("Basic key-a"), Some("key-a"), Some("bearer key-a")]
        {
            let mut request = server.client.get(server.url(path));
            if let Some(key) = key {
                request = request.header("authorization", key);
            }
            let response = request.send().await.unwrap();
            if key == Some("bearer key-a") {
                assert_eq!(response.status(), StatusCode::OK);
                continue;
            }
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            let (status, error) = error_of(response).await;
            assert_eq!((status, error["code"].as_str()), (401, Some("invalid_api_key")), "{key:?}");
        }
    }
    // The key comes before the body: not even its size is judged without one.
    for length in [50, 1 << 30] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 401");
    }
    assert_eq!(server.turns.count(), 0);
}

#[tokio::test]
async fn every_agent_is_a_model() {
    let server = Server::start().await;
    let get = |path: &str| server.client.get(server.url(path)).bearer_auth("key-a").send();
    let models: Value = get("/v1/models").await.unwrap().json().await.unwrap();
    assert_eq!(models["object"], "list");
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["main", "coder"]);
    let model: Value = get("/v1/models/coder").await.unwrap().json().await.unwrap();
    assert_eq!((&model["id"], &model["object"]), (&json!("coder"), &json!("model")));
    let (status, error) = error_of(get("/v1/models/nobody").await.unwrap()).await;
    assert_eq!((status, error["code"].as_str()), (404, Some("model_not_found")));
}

#[tokio::test]
async fn a_key_of_one_agent_reaches_no_other() {
    let server = Server::start().await;
    let get = |path: &str| server.client.get(server.url(path)).bearer_auth("key-a@coder").send();
    let models: Value = get("/v1/models").await.unwrap().json().await.unwrap();
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["coder"]);
    let say = |body: Value| {
        server.client.post(server.url("/v1/chat/completions")).bearer_auth("key-a@coder").json(&body).send()
    };
    let (there, not_there) = (say(said("hi")).await.unwrap(), get("/v1/models/main").await.unwrap());
    assert_eq!(error_of(there).await, error_of(not_there).await, "as if there were no main");
    assert_eq!(server.turns.count(), 0);
    let unnamed = json!({"messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(say(unnamed).await.unwrap().status(), StatusCode::OK);
    assert_eq!(server.turns.last().preset, Some(AgentId::parse("coder").unwrap()), "not left to the routes");
}

#[tokio::test]
async fn a_plain_call_gets_one_completion() {
    let server = Server::start().await;
    let response = server
        .chat(json!({"model": "coder", "temperature": 1, "messages": [{"role": "user", "content": "hi"}]}), &[])
        .await;
    assert_eq!(response.headers()["x-request-id"], "turn-1");
    let answer: Value = response.json().await.unwrap();
    assert_eq!(
        answer,
        json!({
            "id": "chatcmpl-turn-1", "object": "chat.completion", "created": 1_700_000_000, "model": "coder",
            "choices": [{
                "index": 0, "message": {"role": "assistant", "content": "re: hi", "refusal": null},
                "logprobs": null, "finish_reason": "stop",
            }],
            "usage": {
                "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 2},
            },
        })
    );
    let submit = server.turns.last();
    assert_eq!(submit.preset.as_ref().map(AgentId::as_str), Some("coder"));
    assert_eq!((submit.text.as_str(), submit.dedupe_key, submit.body_hash), ("hi", None, None));
}

#[tokio::test]
async fn a_stream_has_role_text_finish_usage_and_done() {
    let server = Server::start().await;
    let mut body = said("hi");
    body["stream"] = true.into();
    let events = events_of(server.chat(body.clone(), &[]).await).await;
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|event| json_of(event)).collect();
    let deltas: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["delta"].clone()).collect();
    assert_eq!(
        deltas,
        [json!({"role": "assistant", "content": ""}), json!({"content": "re: "}), json!({"content": "hi"}), json!({})]
    );
    for (index, chunk) in chunks.iter().enumerate() {
        assert_eq!((&chunk["object"], &chunk["id"]), (&json!("chat.completion.chunk"), &json!("chatcmpl-turn-1")));
        assert_eq!(chunk.get("usage"), None);
        let finish = if index == 3 { json!("stop") } else { Value::Null };
        assert_eq!(chunk["choices"][0]["finish_reason"], finish);
    }
    body["stream_options"] = json!({"include_usage": true});
    let events = events_of(server.chat(body, &[]).await).await;
    let usage = json_of(&events[events.len() - 2]);
    assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(10)));
    assert_eq!(json_of(&events[1]).get("usage"), Some(&Value::Null));
}

#[tokio::test]
async fn a_stateless_call_brings_its_whole_history_and_shares_its_session_with_none() {
    let server = Server::start().await;
    let body = json!({"model": "main", "messages": [
        {"role": "system", "content": "be kind"}, {"role": "user", "content": "one"},
        {"role": "assistant", "content": "first"}, {"role": "user", "content": "two"}]});
    let first = server.chat(body.clone(), &[]).await;
    let handle = first.headers()["x-hermes-session-id"].to_str().unwrap().to_owned();
    assert!(handle.len() == 32 && handle.chars().all(|c| c.is_ascii_hexdigit()), "128 bits: {handle}");
    let submit = server.turns.last();
    let history = submit.history.unwrap();
    let history: Vec<_> = history.iter().map(|message| (message.role, message.text.as_str())).collect();
    assert_eq!(history, [(Role::System, "be kind"), (Role::User, "one"), (Role::Assistant, "first")]);
    assert_eq!(
        (submit.text.as_str(), submit.source.platform.as_str(), &submit.source.chat_id),
        ("two", "api_server", &handle)
    );
    server.say("alone").await;
    let second = server.turns.last();
    assert_eq!(second.history, Some(Vec::new()), "an empty history is a history");
    assert_ne!(second.source.chat_id, handle);
    // The session that was named goes on when it is named.
    let third = server.chat(body, &[("X-Hermes-Session-Id", handle.as_str())]).await;
    assert_eq!(third.headers()["x-hermes-session-id"], handle.as_str());
    let third = server.turns.last();
    assert_eq!((third.history, third.text.as_str(), third.source.chat_id), (None, "two", handle));
}

#[tokio::test]
async fn headers_that_name_a_chat_let_the_session_supply_the_history() {
    let server = Server::start().await;
    let body = json!({"model": "main", "messages": [
        {"role": "user", "content": "one"}, {"role": "assistant", "content": "first"},
        {"role": "user", "content": "two"}, {"role": "user", "content": "three"}]});
    let headers = [("X-Hermes-Chat-Id", " -1001 "), ("X-Hermes-Thread-Id", "42"), ("X-Hermes-User-Id", "ü")];
    let response = server.chat(body.clone(), &headers).await;
    assert_eq!(response.headers().get("x-hermes-session-id"), None);
    let submit = server.turns.last();
    assert_eq!((submit.history, submit.text.as_str()), (None, "two\n\nthree"));
    assert_eq!((submit.source.chat_id.as_str(), submit.source.chat_type.as_str()), ("-1001", "dm"));
    assert_eq!((submit.source.thread_id.as_deref(), submit.source.user_id.as_deref()), (Some("42"), Some("ü")));
    let long = "x".repeat(1025);
    server.chat(body.clone(), &[("X-Hermes-Chat-Id", "a\tb"), ("X-Hermes-User-Id", long.as_str())]).await;
    assert!(server.turns.last().history.is_some(), "unusable headers count as absent");
    let both = [("X-Hermes-Chat-Id", "a"), ("X-Hermes-Session-Id", "b")];
    assert_eq!(error_of(server.chat(body, &both).await).await.0, 400);
    let routed = server.chat(json!({"messages": [{"role": "user", "content": "hi"}]}), &[]).await;
    assert_eq!((routed.status(), server.turns.last().preset), (StatusCode::OK, None));
}

#[tokio::test]
async fn an_idempotency_key_makes_a_call_repeatable() {
    let server = Server::start().await;
    let key = [("Idempotency-Key", "k-1")];
    let first: Value = server.chat(said("hi"), &key).await.json().await.unwrap();
    let second: Value = server.chat(said("hi"), &key).await.json().await.unwrap();
    assert_eq!(first, second);
    assert_eq!(server.turns.count(), 1);
    let response = server.chat(said("other"), &key).await;
    assert_eq!(response.headers()["x-should-retry"], "false");
    let (status, error) = error_of(response).await;
    assert_eq!((status, error["code"].as_str()), (409, Some("idempotency_conflict")));
    // Another caller's key of the same name is another key.
    let request = server.client.post(server.url("/v1/chat/completions")).bearer_auth("key-b").json(&said("other"));
    assert_eq!(request.header("Idempotency-Key", "k-1").send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(error_of(server.chat(said("hi"), &[("Idempotency-Key", "")]).await).await.0, 400);
}

#[tokio::test]
async fn refusals_have_openais_shape_and_the_right_status() {
    let server = Server::start().await;
    for (text, status, code, retry) in [
        ("too large", 413, "message_too_large", None),
        ("overloaded", 503, "overloaded", Some("true")),
        ("unavailable", 503, "unavailable", Some("true")),
        ("removed", 404, "model_not_found", None),
        ("fail", 502, "turn_failed", Some("false")),
        ("cancel", 502, "turn_cancelled", Some("false")),
        ("die", 502, "turn_dead", Some("false")),
        ("lost", 503, "unavailable", Some("false")),
    ] {
        let response = server.say(text).await;
        let said_retry = response.headers().get("x-should-retry").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(said_retry.as_deref(), retry, "{text}");
        let (got, error) = error_of(response).await;
        assert_eq!((got, error["code"].as_str()), (status, Some(code)), "{text}");
    }
    let (_, error) = error_of(server.say("fail").await).await;
    assert_eq!(error["message"], "provider local refused the key (HTTP 401)");
    let (status, error) = error_of(server.say("invalid").await).await;
    assert_eq!((status, error["message"].as_str()), (400, Some("this is not accepted")));
    let unknown = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]});
    let (status, error) = error_of(server.chat(unknown, &[]).await).await;
    assert_eq!(
        (status, error["code"].as_str(), error["param"].as_str()),
        (404, Some("model_not_found"), Some("model"))
    );
    for (method, path, status) in [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/models/%ff", 404),
        ("GET", "/", 404),
    ] {
        let request = server.client.request(method.parse().unwrap(), server.url(path)).bearer_auth("key-a");
        assert_eq!(error_of(request.send().await.unwrap()).await.0, status, "{method} {path}");
    }
    let raw =
        |body: Vec<u8>| server.client.post(server.url("/v1/chat/completions")).bearer_auth("key-a").body(body).send();
    for body in [&b""[..], b"{", b"\xff\xfe", b"{\"messages\":[{\"role\":\"user\",\"content\":\"\xc0\xaf\"}]}"] {
        assert_eq!(error_of(raw(body.to_vec()).await.unwrap()).await.0, 400);
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_announced_or_not() {
    let server = Server::with(Settings { body_bytes: 1000, webhook_bytes: 100, ..Settings::default() }).await;
    let (status, error) = error_of(server.say(&"x".repeat(1000)).await).await;
    assert_eq!((status, error["code"].as_str()), (413, Some("request_too_large")));
    let pieces = stream::iter((0..20).map(|_| Ok::<_, std::io::Error>("x".repeat(100))));
    let body = reqwest::Body::wrap_stream(pieces);
    let request = server.client.post(server.url("/v1/chat/completions")).bearer_auth("key-a").body(body);
    assert_eq!(error_of(request.send().await.unwrap()).await.0, 413);
    // A client that is still sending gets its answer, too.
    assert_eq!(error_of(server.say(&"x".repeat(8 << 20)).await).await.0, 413);
    let request = server.client.post(server.url("/webhooks/webhook/ci")).body("x".repeat(101));
    assert_eq!(error_of(request.send().await.unwrap()).await.0, 413);
    assert_eq!(server.say(&"x".repeat(500)).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_not_waited_for() {
    let server = Server::with(Settings { body_time: Duration::from_millis(100), ..Settings::default() }).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let head =
        "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer key-a\r\ncontent-length: 50\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn a_stream_ends_with_the_whole_reply_whatever_was_lost_on_the_way() {
    let server = Server::start().await;
    for (text, content) in [("lossy", "one two three"), ("moved", "one twother \n\nother words")] {
        let mut body = said(text);
        body["stream"] = true.into();
        let events = events_of(server.chat(body, &[]).await).await;
        assert_eq!(content_of(&events), content);
        assert_eq!(events.last().unwrap(), "[DONE]");
    }
    for (text, code, content) in [("fail later", "turn_failed", "so far"), ("lost", "unavailable", "one")] {
        let mut body = said(text);
        body["stream"] = true.into();
        let events = events_of(server.chat(body, &[]).await).await;
        assert_eq!(content_of(&events), content);
        assert_eq!(json_of(events.last().unwrap())["error"]["code"], code, "no [DONE] after a failure");
    }
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_and_a_client_that_leaves_ends_only_its_own_stream() {
    let server = Server::with(Settings { keep_alive: Duration::from_millis(50), ..Settings::default() }).await;
    let mut body = said("hang");
    body["stream"] = true.into();
    let response = server.chat(body, &[]).await;
    let mut bytes = response.bytes_stream();
    let mut seen = String::new();
    while !seen.contains(": still working\n\n") {
        let next = tokio::time::timeout(Duration::from_secs(10), bytes.next()).await.unwrap();
        seen.push_str(std::str::from_utf8(&next.unwrap().unwrap()).unwrap());
    }
    assert!(seen.contains(r#""content":"one""#), "{seen}");
    assert_eq!(*server.turns.dropped.borrow(), 0);
    drop(bytes);
    let mut dropped = server.turns.dropped.subscribe();
    tokio::time::timeout(Duration::from_secs(10), dropped.wait_for(|count| *count == 1)).await.unwrap().unwrap();
    assert_eq!(server.turns.count(), 1, "the turn itself was submitted once and is not taken back");
}

#[tokio::test]
async fn a_plain_call_is_not_held_for_ever() {
    let server = Server::with(Settings { answer_time: Duration::from_millis(50), ..Settings::default() }).await;
    let (status, error) = error_of(server.say("hang").await).await;
    assert_eq!((status, error["code"].as_str()), (504, Some("turn_running")));
    let response = server.chat(said("hang"), &[("Idempotency-Key", "k")]).await;
    assert_eq!(response.headers()["x-should-retry"], "true");
}

#[tokio::test]
async fn health_readiness_and_metrics_need_no_key() {
    let server = Server::start().await;
    let get = |path: &str| server.client.get(server.url(path)).send();
    assert_eq!(get("/healthz").await.unwrap().status(), StatusCode::OK);
    assert_eq!(get("/readyz").await.unwrap().status(), StatusCode::OK);
    let _ = server.ready.send_replace(Err("the database cannot be reached".to_owned()));
    let response = get("/readyz").await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.text().await.unwrap(), "not ready: the database cannot be reached\n");
    assert_eq!(get("/healthz").await.unwrap().status(), StatusCode::OK);
    let metrics = get("/metrics").await.unwrap();
    assert!(metrics.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    assert_eq!(metrics.text().await.unwrap(), "hermes_turns_total 7\n");
}

#[tokio::test]
async fn webhooks_are_handed_over_as_they_came() {
    let server = Server::start().await;
    let post = |path: &str| server.client.post(server.url(path)).header("x-signature", "abc").body("{\"a\": 1}").send();
    let response = post("/webhooks/webhook/ci?x=1").await.unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    assert_eq!(response.text().await.unwrap(), "POST /webhooks/webhook/ci?x=1 abc {\"a\": 1}");
    for path in [
        "/webhooks/webhook/other",
        "/webhooks/telegram/ci",
        "/webhooks/webhook",
        "/webhooks//ci",
        "/webhooks/webhook/ci/x",
        "/webhooks/%ff/ci",
    ] {
        assert_eq!(post(path).await.unwrap().status(), StatusCode::NOT_FOUND, "{path}");
    }
    let get = server.client.get(server.url("/webhooks/webhook/ci")).send().await.unwrap();
    assert_eq!(get.status(), StatusCode::METHOD_NOT_ALLOWED);
}
