//! One span and one count per call.
//!
//! The span begins the trace or continues the caller's (`traceparent` in the metadata), and ends with the last byte of the
//! answer; its status is the one in the trailers. A call whose caller hung up before the end counts as CANCELLED.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Instant;

use hermes_proto::Rpc;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use tonic::Code;
use tonic::body::Body;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use super::{Call, Inner, Step};
use crate::identity::Principal;
use crate::telemetry::{Metrics, TRACE, child_of};

/// The tracing layer.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    metrics: Metrics,
}

impl Trace {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }
}

impl Step for Trace {
    async fn run<S: Inner>(&self, inner: S, request: Request<Body>) -> Response<Body> {
        let rpc = request.extensions().get::<Call>().map_or("unknown", |call| call.0.name());
        let principal = request.extensions().get::<Principal>().map_or("none", Principal::kind);
        let span = info_span!(
            target: TRACE,
            parent: None,
            "rpc",
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.method = rpc,
            principal,
            rpc.grpc.status_code = Empty,
            otel.status_code = Empty,
        );
        let parent = request.headers().get("traceparent").and_then(|text| text.to_str().ok()).unwrap_or_default();
        let span = child_of(parent, span);
        let mut end =
            End { span: span.clone(), metrics: self.metrics.clone(), rpc, started: Instant::now(), code: None };
        let response = inner.answer(request).instrument(span).await;
        end.saw(response.headers());
        response.map(|body| {
            if end.code.is_some() {
                return body;
            }
            Body::new(body.map_frame(move |frame| {
                if let Some(trailers) = frame.trailers_ref() {
                    end.saw(trailers);
                }
                frame
            }))
        })
    }
}

/// Counts the call and closes its span when dropped: after the last byte, or when the caller is gone.
struct End {
    span: Span,
    metrics: Metrics,
    rpc: &'static str,
    started: Instant,
    code: Option<Code>,
}

impl End {
    /// A method, so that the closure in the body owns all of `self` and not the one field.
    fn saw(&mut self, headers: &HeaderMap) {
        self.code = headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()));
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        self.metrics.rpc(self.rpc, code_name(code), self.started.elapsed());
        self.span.record("rpc.grpc.status_code", i64::from(i32::from(code)));
        if !matches!(code, Code::Ok | Code::Cancelled) {
            self.span.record("otel.status_code", "ERROR");
        }
    }
}

/// The variant's name; kept for the life of the process so that counting allocates nothing.
pub(super) fn rpc_name(rpc: Rpc) -> &'static str {
    static NAMES: LazyLock<HashMap<Rpc, String>> =
        LazyLock::new(|| Rpc::ALL.iter().map(|rpc| (*rpc, format!("{rpc:?}"))).collect());
    NAMES.get(&rpc).map_or("unknown", String::as_str)
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use tonic::Status;

    use super::super::Called;
    use super::*;
    use crate::telemetry::{LogFormat, Options, Telemetry};

    /// An answer that says `code` in its trailers, behind one empty message.
    fn streamed(code: Code) -> Response<Body> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", i32::from(code).into());
        let frames: [Result<_, Infallible>; 2] =
            [Ok(Frame::data(bytes::Bytes::from_static(&[0; 5]))), Ok(Frame::trailers(trailers))];
        Response::new(Body::new(StreamBody::new(futures_util::stream::iter(frames))))
    }

    #[tokio::test]
    async fn each_call_is_counted_once_with_the_code_it_really_ended_with() {
        let options = Options { filter: "off".into(), format: LogFormat::Text, otlp_endpoint: None };
        let (telemetry, _) = Telemetry::start(&options).unwrap();
        let step = Trace::new(telemetry.metrics());
        let run = async |answer: fn() -> Response<Body>| {
            let mut request = Request::new(Body::empty());
            request.extensions_mut().insert(Call(Called::Rpc(Rpc::MessageSubmit)));
            let inner = tower::service_fn(move |_| std::future::ready(Ok::<_, Infallible>(answer())));
            step.run(inner, request).await
        };
        let of = |code: &str| {
            let line = format!("hermes_rpcs_total{{code=\"{code}\",rpc=\"MessageSubmit\"}} ");
            telemetry.render().lines().find_map(|l| l.strip_prefix(&line).map(str::to_owned))
        };

        drop(run(|| Status::not_found("").into_http()).await);
        assert_eq!(of("NOT_FOUND").as_deref(), Some("1"), "the status is in the head");

        let open = run(|| streamed(Code::Ok)).await;
        assert_eq!(of("OK"), None, "not counted before its last byte");
        drop(open.into_body().collect().await.unwrap());
        assert_eq!(of("OK").as_deref(), Some("1"));

        drop(run(|| streamed(Code::Internal)).await.into_body().collect().await.unwrap());
        assert_eq!(of("INTERNAL").as_deref(), Some("1"), "the status is in the trailers");

        drop(run(|| streamed(Code::Ok)).await);
        assert_eq!(of("CANCELLED").as_deref(), Some("1"), "the caller hung up");
        assert_eq!(of("OK").as_deref(), Some("1"));
    }

    #[test]
    fn all_rpcs_have_names() {
        assert_eq!(rpc_name(Rpc::AgentAddAgent), "AgentAddAgent");
        assert!(Rpc::ALL.iter().all(|rpc| rpc_name(*rpc) != "unknown"));
    }
}
