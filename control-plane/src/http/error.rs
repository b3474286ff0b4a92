//! Errors as OpenAI's clients expect them. The only place that chooses a status.

use axum::Json;
use axum::response::{IntoResponse, Response};
use hermes_core::turn::TurnState;
use http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, StatusCode};
use serde::Serialize;

use super::SubmitError;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// A refused or failed call.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    /// What SDKs are told about repeating the call; they guess from the status otherwise.
    retry: Option<bool>,
}

/// The body, also used inside a stream.
#[derive(Serialize)]
struct Shape<'a> {
    error: Fields<'a>,
}

#[derive(Serialize)]
struct Fields<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind, code, param: None, message: message.into(), retry: None }
    }

    fn refused(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", code, message)
    }

    /// The request is not what it should be; `param` names the field.
    pub(super) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::refused(StatusCode::BAD_REQUEST, None, message) }
    }

    pub(super) fn not_json(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, None, message)
    }

    pub(super) fn key_missing() -> Self {
        let message = "an API key is required: send it as \"Authorization: Bearer KEY\"";
        Self::refused(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
    }

    pub(super) fn key_unknown() -> Self {
        let message = "the API key is not valid; make one with: hermesctl token create --role api";
        Self::refused(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
    }

    pub(super) fn unknown_model(model: &str) -> Self {
        let shown: String = model.chars().take(80).flat_map(char::escape_debug).collect();
        let message = format!("the model \"{shown}\" does not exist: a model is an agent's id, see /v1/models");
        let error = Self::refused(StatusCode::NOT_FOUND, Some("model_not_found"), message);
        Self { param: Some("model".to_owned()), ..error }
    }

    pub(super) fn body_too_large(limit: usize) -> Self {
        let message = format!("the request body is larger than {limit} bytes");
        Self::refused(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message)
    }

    pub(super) fn body_too_slow() -> Self {
        let message = "the request body did not arrive in time";
        Self { retry: Some(true), ..Self::refused(StatusCode::REQUEST_TIMEOUT, Some("request_timeout"), message) }
    }

    pub(super) fn body_cut_off() -> Self {
        Self::refused(StatusCode::BAD_REQUEST, None, "the request body was cut off")
    }

    pub(super) fn no_such_path() -> Self {
        Self::refused(StatusCode::NOT_FOUND, Some("unknown_url"), "there is nothing at this address")
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "this address does not take this method";
        Self::refused(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), message)
    }

    /// The turn ended without success; `reply` is the sentence that says why.
    pub(super) fn turn(state: TurnState, reply: String) -> Self {
        let (code, otherwise) = match state {
            TurnState::Cancelled => ("turn_cancelled", "the turn was cancelled"),
            TurnState::Dead => ("turn_dead", "the turn was given up after repeated crashes"),
            TurnState::Failed | TurnState::Queued | TurnState::Running | TurnState::Succeeded => {
                ("turn_failed", "the turn failed")
            }
        };
        let message = if reply.trim().is_empty() { otherwise.to_owned() } else { reply };
        Self { retry: Some(false), ..Self::new(StatusCode::BAD_GATEWAY, "api_error", Some(code), message) }
    }

    /// The turn goes on, but the answer is not waited for any longer.
    pub(super) fn still_running(repeatable: bool) -> Self {
        let message = if repeatable {
            "the turn is still running; repeat the call with the same Idempotency-Key to wait for its answer"
        } else {
            "the turn is still running; its answer is kept with the session"
        };
        let error = Self::new(StatusCode::GATEWAY_TIMEOUT, "api_error", Some("turn_running"), message);
        Self { retry: Some(repeatable), ..error }
    }

    /// This replica can follow the turn no longer.
    pub(super) fn follow_lost(repeatable: bool) -> Self {
        let message = if repeatable {
            "the connection to the turn was lost; repeat the call with the same Idempotency-Key to get its answer"
        } else {
            "the connection to the turn was lost; the turn itself goes on"
        };
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "api_error", Some("unavailable"), message);
        Self { retry: Some(repeatable), ..error }
    }

    /// `{"error": {…}}`.
    pub(super) fn json(&self) -> String {
        let fields = Fields { message: &self.message, kind: self.kind, param: self.param.as_deref(), code: self.code };
        serde_json::to_string(&Shape { error: fields }).expect("texts always serialise")
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::TooLarge { .. } => {
                Self::refused(StatusCode::PAYLOAD_TOO_LARGE, Some("message_too_large"), message)
            }
            SubmitError::UnknownAgent(agent) => Self::unknown_model(&agent),
            SubmitError::Conflict => {
                let error = Self::refused(StatusCode::CONFLICT, Some("idempotency_conflict"), message);
                Self { retry: Some(false), ..error }
            }
            SubmitError::Overloaded => {
                let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "api_error", Some("overloaded"), message);
                Self { retry: Some(true), ..error }
            }
            SubmitError::Full(_) => {
                let kind = "rate_limit_error";
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, kind, Some("too_many_waiting"), message);
                Self { retry: Some(true), ..error }
            }
            SubmitError::Late(_) => {
                let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "api_error", Some("agent_late"), message);
                Self { retry: Some(true), ..error }
            }
            SubmitError::Unavailable(_) => {
                let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "api_error", Some("unavailable"), message);
                Self { retry: Some(true), ..error }
            }
            SubmitError::Invalid(_) => Self::refused(StatusCode::BAD_REQUEST, None, message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let fields = Fields { message: &self.message, kind: self.kind, param: self.param.as_deref(), code: self.code };
        let mut response = (self.status, Json(Shape { error: fields })).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(retry) = self.retry {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(if retry { "true" } else { "false" }));
            let after = match (self.status, self.code) {
                (StatusCode::TOO_MANY_REQUESTS, _) | (_, Some("agent_late")) => Some("5"),
                (StatusCode::SERVICE_UNAVAILABLE, _) => Some("1"),
                _ => None,
            };
            if let Some(after) = after.filter(|_| retry) {
                headers.insert(RETRY_AFTER, HeaderValue::from_static(after));
            }
        }
        response
    }
}
