//! The door for platforms that push: reads the bounded body and hands the request over as it came, signature and all.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::Request;

use super::Parts;
use super::error::ApiError;
use super::openai::bounded;

/// POST `/webhooks/{platform}/{account}`.
pub(super) async fn receive(
    State(parts): State<Arc<Parts>>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let Path((platform, account)) = path.map_err(|_| ApiError::no_such_path())?;
    let (head, body) = request.into_parts();
    let (body, _held) = bounded(&head.headers, body, &parts.settings, parts.settings.webhook_bytes, 0).await?;
    let request: Request<Bytes> = Request::from_parts(head, body);
    let response = (parts.webhooks)(platform, account, request).await.ok_or_else(ApiError::no_such_path)?;
    Ok(response.map(Body::from).into_response())
}
