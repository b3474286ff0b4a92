//! The model of a chaos run: it answers with the message's own tag, asks for tools on the way, and fails when told to.
//!
//! Owned by the run; the replicas call it over OpenAI's streaming wire. What it asks for and how long it thinks follow from
//! the seed and the message's number, so a turn that is begun again is asked the same. It offers only tools that the request
//! offers: without the drill tools every answer is a text at once. It records each request, and each result that it is
//! told is UNKNOWN. Dropping it ends its connections.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::record::{Asked, Recorder, tag, tagged};

/// The drill tools, by name.
const TOOLS: [&str; 3] = ["note_pure", "note_keyed", "note_once"];
/// How a result begins or says that nobody knows whether the call happened.
const UNKNOWN: &str = "UNKNOWN";
/// Who writes this wants an answer at once.
pub(crate) const QUICK: &str = "quick";
/// A hang lasts so long, then the connection ends.
const HANG: Duration = Duration::from_secs(7);

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Half an answer, nothing for a while, then the end of the connection.
    Hangs,
    /// Status 500.
    Error,
    /// Half an answer, then the end of the connection.
    Cut,
}

/// The running server.
#[derive(Debug)]
pub(crate) struct Model {
    base_url: String,
    shared: Arc<Shared>,
    // Dropping it ends the listener and with it the connections.
    _serving: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    thinks: (u64, u64),
    recorder: Recorder,
    trouble: Mutex<Vec<Trouble>>,
    calls: AtomicU64,
}

impl Model {
    /// Listens on a free port of 127.0.0.1. It thinks `thinks` (from, to) milliseconds about each reply.
    pub(crate) async fn start(seed: u64, thinks: (u64, u64), recorder: Recorder) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("start the model")?;
        let base_url = format!("http://{}/v1", listener.local_addr().context("start the model")?);
        let shared =
            Arc::new(Shared { seed, thinks, recorder, trouble: Mutex::default(), calls: AtomicU64::default() });
        let router = Router::new().route("/v1/chat/completions", post(complete)).with_state(Arc::clone(&shared));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            // It ends with the run; an error before that shows as answers that do not come.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { base_url, shared, _serving: serving })
    }

    /// For the provider's `base_url`.
    pub(crate) fn base_url(&self) -> &str {
        &self.base_url
    }

    /// The next requests go wrong like this.
    pub(crate) fn fail(&self, times: usize, trouble: Trouble) {
        self.shared.troubles().extend(std::iter::repeat_n(trouble, times));
    }

    /// How many such requests are still to come.
    pub(crate) fn pending(&self, trouble: Trouble) -> usize {
        self.shared.troubles().iter().filter(|one| **one == trouble).count()
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn heal(&self) {
        self.shared.troubles().clear();
    }
}

impl Shared {
    fn troubles(&self) -> std::sync::MutexGuard<'_, Vec<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the model knows of a turn from a request.
struct Turn {
    number: u64,
    /// Its replies so far.
    step: usize,
    /// Calls that have a result.
    called: usize,
    tools: Vec<String>,
    unknown: Vec<String>,
    is_quick: bool,
}

impl Turn {
    fn read(body: &[u8]) -> Option<Self> {
        let request: Value = serde_json::from_slice(body).ok()?;
        let messages = request["messages"].as_array()?;
        let role = |message: &Value, role: &str| message["role"] == role;
        let last = messages.iter().rposition(|message| role(message, "user"))?;
        let text = text_of(&messages.get(last)?["content"]);
        let since = messages.get(last + 1..).unwrap_or_default();
        let results = since.iter().filter(|message| role(message, "tool"));
        let unknown = results.clone().filter(|result| text_of(&result["content"]).contains(UNKNOWN));
        let offered: HashSet<&str> = request["tools"]
            .as_array()
            .map(|tools| tools.iter().filter_map(|tool| tool["function"]["name"].as_str()).collect())
            .unwrap_or_default();
        Some(Self {
            number: tagged(&text)?,
            step: since.iter().filter(|message| role(message, "assistant")).count(),
            called: results.clone().count(),
            unknown: unknown.filter_map(|result| result["tool_call_id"].as_str().map(str::to_owned)).collect(),
            tools: TOOLS.iter().filter(|tool| offered.contains(*tool)).map(|tool| (*tool).to_owned()).collect(),
            is_quick: text.contains(QUICK),
        })
    }

    /// Names and arguments of the calls it asks for now; none when it answers.
    fn calls(&self, seed: u64) -> Vec<(String, String)> {
        let mut dice = StdRng::seed_from_u64(seed ^ self.number);
        let (wanted, at_once) = (dice.random_range(0..=3_usize), dice.random_bool(0.4));
        let mut calls = Vec::new();
        for call in 0..wanted {
            let pick = dice.random_range(0..TOOLS.len());
            let Some(tool) = self.tools.get(pick.checked_rem(self.tools.len()).unwrap_or_default()) else { break };
            calls.push((tool.clone(), format!("{}.{call}", self.number)));
        }
        let left = calls.into_iter().skip(self.called);
        if at_once { left.collect() } else { left.take(1).collect() }
    }
}

fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

/// What every run of a scheduled job is told, before its name.
const SCHEDULED: &str = "This is a run of the scheduled job \"";

/// Job and slot that a run's message is about, as the control plane says it.
fn scheduled(body: &[u8]) -> Option<(String, String)> {
    let request: Value = serde_json::from_slice(body).ok()?;
    let messages = request["messages"].as_array()?;
    let last = messages.iter().rfind(|message| message["role"] == "user")?;
    let text = text_of(&last["content"]);
    let (job, rest) = text.split_once(SCHEDULED)?.1.split_once("\", for ")?;
    let (slot, _) = rest.split_once(". ")?;
    Some((job.to_owned(), slot.to_owned()))
}

/// Job and slot that an answer to such a message names.
pub(crate) fn named_slot(text: &str) -> Option<(&str, &str)> {
    text.split_once('{')?.1.split_once('}')?.0.split_once(" @ ")
}

async fn complete(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    if let Some((job, slot)) = scheduled(&body) {
        let said = frame(&json!({"role": "assistant", "content": format!("{{{job} @ {slot}}}")}), None);
        let body = [said, frame(&json!({}), Some("stop")), "data: [DONE]\n\n".to_owned()].concat();
        return ([(CONTENT_TYPE, "text/event-stream")], body).into_response();
    }
    let Some(turn) = Turn::read(&body) else {
        return (StatusCode::BAD_REQUEST, "no message of this run").into_response();
    };
    let trouble = shared.troubles().pop();
    {
        let at = shared.recorder.now();
        let mut record = shared.recorder.locked();
        record.asked.push(Asked { number: turn.number, step: turn.step, failed: trouble.is_some(), at });
        record.unknown.extend(turn.unknown.iter().map(|call| (turn.number, call.clone())));
    }
    let mut dice =
        StdRng::seed_from_u64(shared.seed.rotate_left(17) ^ turn.number ^ u64::try_from(turn.step).unwrap_or(0));
    let (from, to) = if turn.is_quick { (0, 0) } else { shared.thinks };
    let thinks = Duration::from_millis(dice.random_range(from..=to));
    if trouble == Some(Trouble::Error) {
        let body = json!({"error": {"message": "failed by plan", "type": "server_error", "code": null}});
        return (StatusCode::INTERNAL_SERVER_ERROR, axum::Json(body)).into_response();
    }
    let frames = answer(&turn, &shared);
    let half = frames.len().div_ceil(2);
    // Half of the thinking comes before the first word, half in the middle, so that an end can hit either.
    let pause = thinks / 2;
    let (first, second): (String, String) =
        (frames.iter().take(half).cloned().collect(), frames.iter().skip(half).cloned().collect());
    let body = match trouble {
        None | Some(Trouble::Error) => streamed(stream::iter([(pause, Ok(first)), (pause, Ok(second))]).boxed()),
        Some(Trouble::Cut) => streamed(stream::iter([(pause, Ok(first)), (pause, Err(()))]).boxed()),
        Some(Trouble::Hangs) => streamed(stream::iter([(pause, Ok(first)), (HANG, Err(()))]).boxed()),
    };
    ([(CONTENT_TYPE, "text/event-stream")], body).into_response()
}

fn streamed(frames: stream::BoxStream<'static, (Duration, Result<String, ()>)>) -> Body {
    Body::from_stream(frames.then(|(pause, frame)| async move {
        tokio::time::sleep(pause).await;
        frame.map(Bytes::from).map_err(|()| std::io::Error::other("cut by plan"))
    }))
}

fn answer(turn: &Turn, shared: &Shared) -> Vec<String> {
    let calls = turn.calls(shared.seed);
    let mut frames = vec![frame(&json!({"role": "assistant", "content": ""}), None)];
    if calls.is_empty() {
        for word in ["echo ", &tag(turn.number), " yes", " done"] {
            frames.push(frame(&json!({"content": word}), None));
        }
        frames.push(frame(&json!({}), Some("stop")));
    } else {
        for (index, (tool, text)) in calls.iter().enumerate() {
            // A real model never gives an id twice, not even when it is asked the same again.
            let id = format!("call_{}_{}", text.replace('.', "_"), shared.calls.fetch_add(1, Relaxed));
            let arguments = json!({ "text": text }).to_string();
            let call = json!({"index": index, "id": id, "type": "function",
                "function": {"name": tool, "arguments": arguments}});
            frames.push(frame(&json!({ "tool_calls": [call] }), None));
        }
        frames.push(frame(&json!({}), Some("tool_calls")));
    }
    let usage = json!({"id": "chaos", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "mock-1",
        "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}});
    frames.push(format!("data: {usage}\n\n"));
    frames.push("data: [DONE]\n\n".to_owned());
    frames
}

fn frame(delta: &Value, finish: Option<&str>) -> String {
    let chunk = json!({"id": "chaos", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "mock-1",
        "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]});
    format!("data: {chunk}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(messages: &Value) -> Vec<u8> {
        let tools: Vec<_> = TOOLS.iter().map(|name| json!({"type": "function", "function": {"name": name}})).collect();
        json!({"messages": messages, "tools": tools}).to_string().into_bytes()
    }

    #[tokio::test]
    async fn every_turn_ends_with_its_tag_after_the_calls_it_asked_for() {
        let mut most = 0;
        for number in 1..40 {
            let mut messages = vec![
                json!({"role": "user", "content": "<900> before"}),
                json!({"role": "assistant", "content": "echo <900>"}),
                json!({"role": "user", "content": format!("{} please", tag(number))}),
            ];
            let mut made = Vec::new();
            loop {
                let turn = Turn::read(&request(&Value::from(messages.clone()))).unwrap();
                assert_eq!(turn.number, number);
                let calls = turn.calls(3);
                if calls.is_empty() {
                    break;
                }
                messages.push(json!({"role": "assistant", "content": null, "tool_calls": []}));
                for call in calls {
                    messages.push(json!({"role": "tool", "tool_call_id": call.1, "content": "UNKNOWN: check"}));
                    made.push(call.1);
                }
                let seen = Turn::read(&request(&Value::from(messages.clone()))).unwrap();
                assert_eq!(seen.unknown, made);
            }
            let expected: Vec<_> = (0..made.len()).map(|call| format!("{number}.{call}")).collect();
            assert_eq!(made, expected);
            most = most.max(made.len());
        }
        assert_eq!(most, 3);
    }

    #[test]
    fn a_run_of_a_job_is_answered_with_its_slot() {
        let text =
            "[This is a run of the scheduled job \"job-7\", for 2027-01-31T09:00:00Z. Nobody is here.]\n\nsay it";
        let body = json!({"messages": [{"role": "user", "content": text}]}).to_string();
        let (job, slot) = scheduled(body.as_bytes()).unwrap();
        assert_eq!(named_slot(&format!("{{{job} @ {slot}}}")), Some(("job-7", "2027-01-31T09:00:00Z")));
    }

    #[test]
    fn without_tools_it_answers_at_once() {
        let body = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "<5>"}]}]}).to_string();
        let turn = Turn::read(body.as_bytes()).unwrap();
        assert_eq!((turn.number, turn.step, turn.calls(3)), (5, 0, vec![]));
    }
}
