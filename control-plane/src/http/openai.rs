//! The handlers of `/v1`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hermes_core::AgentId;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, HeaderName};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::answer::{self, Head};
use super::caller::{self, Conversation};
use super::error::ApiError;
use super::{Key, Parts, Settings, Submit, SubmitError, request};
use crate::bodies::Held;

/// Names the turn; the SDKs show it as the request's id.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SESSION_ID: HeaderName = HeaderName::from_static("x-hermes-session-id");
/// So much of a body that is too large is taken from a caller with a key.
const DISCARDED: usize = 16 << 20;

/// The registered agents as a list of models.
pub(super) async fn models(State(parts): State<Arc<Parts>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let key = caller::key(&*parts.turns, &headers).await?;
    let data: Vec<Value> = agents(&parts, &key).map(|agent| model_json(&agent)).collect();
    Ok(Json(json!({"object": "list", "data": data})).into_response())
}

/// One agent as a model.
pub(super) async fn model(
    State(parts): State<Arc<Parts>>,
    model: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = caller::key(&*parts.turns, &headers).await?;
    let Path(model) = model.map_err(|_| ApiError::no_such_path())?;
    Ok(Json(model_json(&agent(&parts, &key, &model)?)).into_response())
}

/// `created` is a required number there; when an agent was registered is nothing that clients need.
fn model_json(agent: &AgentId) -> Value {
    json!({"id": agent.as_str(), "object": "model", "created": 0, "owned_by": "hermes"})
}

/// The agents that a key reaches.
fn agents(parts: &Parts, key: &Key) -> impl Iterator<Item = AgentId> {
    let only = key.agent.clone();
    parts.turns.agents().into_iter().filter(move |agent| only.as_ref().is_none_or(|only| only == agent))
}

fn agent(parts: &Parts, key: &Key, model: &str) -> Result<AgentId, ApiError> {
    let known = agents(parts, key).find(|agent| agent.as_str() == model);
    known.ok_or_else(|| ApiError::unknown_model(model))
}

/// One message to an agent and its answer.
pub(super) async fn chat_completions(
    State(parts): State<Arc<Parts>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let key = caller::key(&*parts.turns, &headers).await?;
    let (body, held) = bounded(&headers, body, &parts.settings, parts.settings.body_bytes, DISCARDED).await?;
    let request = request::parse(&body)?;
    let conversation = Conversation::of(&headers, caller::fresh_handle)?;
    let preset = request.model.as_deref().map(|model| agent(&parts, &key, model)).transpose()?;
    let Key { principal, agent: own } = key;
    let preset = preset.or(own);
    let (dedupe_key, body_hash) = caller::idempotency(&headers, &principal, &conversation, &body)?.unzip();
    drop(body);
    let repeatable = dedupe_key.is_some();
    let Conversation { source, continued, handle } = conversation;
    let history = (!continued).then_some(request.history);
    let (text, files) = (request.text, request.files);
    let submit = Submit { principal, source, text, files, history, preset, dedupe_key, body_hash };
    let submitted = parts.turns.submit(submit).await?;
    drop(held);

    let head = Head {
        id: format!("chatcmpl-{}", submitted.turn),
        created: (parts.now)(),
        model: submitted.agent.as_str().to_owned(),
    };
    let events = parts.turns.follow(&submitted.turn);
    let mut response = if request.stream {
        let options =
            answer::Options { include_usage: request.include_usage, repeatable, keep_alive: parts.settings.keep_alive };
        streamed(answer::chunks(head, events, options))
    } else {
        match answer::ended(events, parts.settings.answer_time, repeatable).await {
            Ok((reply, usage)) => Json(answer::completion(&head, &reply, &usage)).into_response(),
            Err(error) => error.into_response(),
        }
    };
    // A repeated stateless call is answered from the first one's session, whose id is not known here.
    let handle = handle.filter(|_| continued || !submitted.duplicate);
    for (name, value) in [(REQUEST_ID, Some(submitted.turn)), (SESSION_ID, handle)] {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

fn streamed<S>(chunks: S) -> Response
where
    S: futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static,
{
    let mut response = Body::from_stream(chunks).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies of the nginx family collect an answer otherwise.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// Reads a body of at most `limit` bytes in time, as long as there is room for it. Of a larger one up to `discard` bytes more are read and dropped:
/// closing a connection on a client that is still sending may destroy the answer on its way.
///
/// # Errors
/// 413, 408, 503 or, for a body that was cut off, 400.
pub(super) async fn bounded(
    headers: &HeaderMap,
    body: Body,
    settings: &Settings,
    limit: usize,
    discard: usize,
) -> Result<(Bytes, Held), ApiError> {
    let most = limit.saturating_add(discard);
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > most)) {
        return Err(ApiError::body_too_large(limit));
    }
    let read = async {
        let full = || ApiError::from(SubmitError::Overloaded);
        let mut held = settings.bodies.take(0).ok_or_else(full)?;
        let mut body = body;
        let mut kept = Vec::new();
        let mut seen = 0_usize;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| ApiError::body_cut_off())?.into_data() else { continue };
            seen = seen.saturating_add(data.len());
            if seen > most {
                break;
            } else if seen > limit {
                kept = Vec::new();
            } else if held.more(data.len()) {
                kept.extend_from_slice(&data);
            } else {
                return Err(full());
            }
        }
        if seen > limit { Err(ApiError::body_too_large(limit)) } else { Ok((Bytes::from(kept), held)) }
    };
    tokio::time::timeout(settings.body_time, read).await.unwrap_or_else(|_| Err(ApiError::body_too_slow()))
}
