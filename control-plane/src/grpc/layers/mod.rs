//! The tower layers in front of every gRPC call, outermost first: principal, time limit, concurrency limit with load
//! shedding, tracing.
//!
//! The composition root makes one [`Layers`] per listener. Always true: a call that reaches a handler was allowed by the
//! table in `access`, carries its [`Principal`] in its extensions, holds a permit of its pace's budget, and is counted once
//! when its last byte is sent. An open stream never takes a permit from unary calls. Handlers hold no access rules; row-level
//! rules (whose turn, whose reply) are theirs.
//!
//! Refusals by the outer layers are counted and written to the log there; they have no span.

mod access;
mod limits;
mod trace;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hermes_core::AgentId;
use hermes_proto::Rpc;
use http::{Request, Response};
use secrecy::ExposeSecret as _;
use tonic::body::Body;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceBuilder};
use uuid::Uuid;

use super::status::{Reason, refuse};
use crate::identity::{Authority, Clock, Principal, ServerCertificate, Tokens};
use crate::telemetry::Metrics;

pub use access::{Requirement, required};
pub use limits::Limits;

/// Which listener a call came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// Bearer tokens: operators, viewers, API callers.
    Operator,
    /// Mutual TLS: workers; only Join may come without a certificate.
    Worker,
}

impl Listener {
    fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Worker => "worker",
        }
    }
}

/// The layers of one listener.
#[derive(Clone, Debug)]
pub struct Layers {
    principal: access::Principals,
    time: limits::TimeLimit,
    admission: limits::Admission,
    trace: trace::Trace,
}

impl Layers {
    /// The layers of `listener`. `tokens` serves the operator listener, `clock` judges certificates on the worker listener.
    pub fn new(listener: Listener, tokens: Tokens, clock: Clock, limits: Limits, metrics: Metrics) -> Self {
        Self {
            principal: access::Principals::new(listener, tokens, clock, metrics.clone()),
            time: limits::TimeLimit::new(&limits),
            admission: limits::Admission::new(&limits, metrics.clone()),
            trace: trace::Trace::new(metrics),
        }
    }
}

impl<S> Layer<S> for Layers
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Service = BoxCloneService<Request<Body>, Response<Body>, Infallible>;

    fn layer(&self, inner: S) -> Self::Service {
        BoxCloneService::new(
            ServiceBuilder::new()
                .layer(StepLayer(self.principal.clone()))
                .layer(StepLayer(self.time))
                .layer(StepLayer(self.admission.clone()))
                .layer(StepLayer(self.trace.clone()))
                .service(inner),
        )
    }
}

/// The caller of `request`; [`Principal::None`] when no layer ran.
pub fn principal<T>(request: &tonic::Request<T>) -> &Principal {
    request.extensions().get().unwrap_or(&Principal::None)
}

/// The agent and worker id of the calling worker.
///
/// # Errors
/// [`Reason::NotAllowed`] when the caller is no worker, which the table already excludes for worker RPCs.
pub fn worker<T>(request: &tonic::Request<T>) -> Result<(AgentId, Uuid), tonic::Status> {
    match principal(request) {
        Principal::Worker { agent, worker, .. } => Ok((agent.clone(), *worker)),
        _ => Err(refuse(Reason::NotAllowed, "only a worker with its certificate can make this call")),
    }
}

/// A server with the HTTP/2 bounds of both listeners (streams, headers, resets, keepalive).
pub fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(1024)
        .http2_max_header_list_size(16 << 10)
        .http2_max_pending_accept_reset_streams(Some(20))
        .http2_max_local_error_reset_streams(Some(1024))
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .tcp_nodelay(true)
}

/// TLS of the worker listener: a client certificate of `authority` is verified when one is shown. Join is called without
/// one, so the handshake allows that and the table does not, for any other call.
pub fn worker_tls(authority: &Authority, certificate: &ServerCertificate) -> ServerTlsConfig {
    ServerTlsConfig::new()
        .identity(Identity::from_pem(&certificate.certificate_pem, certificate.key_pem.expose_secret()))
        .client_ca_root(Certificate::from_pem(authority.certificate_pem()))
        .client_auth_optional(true)
        .timeout(Duration::from_secs(5))
}

/// What a request path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    Rpc(Rpc),
    HealthCheck,
    HealthWatch,
    Reflection,
}

impl Called {
    fn from_path(path: &str) -> Option<Self> {
        Rpc::from_path(path).map(Self::Rpc).or(match path {
            "/grpc.health.v1.Health/Check" => Some(Self::HealthCheck),
            "/grpc.health.v1.Health/Watch" => Some(Self::HealthWatch),
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo" => Some(Self::Reflection),
            _ => None,
        })
    }

    /// A name from a closed set, for spans, metrics and the log.
    fn name(self) -> &'static str {
        match self {
            Self::Rpc(rpc) => trace::rpc_name(rpc),
            Self::HealthCheck => "HealthCheck",
            Self::HealthWatch => "HealthWatch",
            Self::Reflection => "Reflection",
        }
    }
}

/// What the principal layer found out, for the layers behind it.
#[derive(Clone, Copy, Debug)]
struct Call(Called);

/// What one layer does with a call; [`StepService`] is the tower around it.
trait Step: Clone + Send + Sync + 'static {
    fn run<S: Inner>(&self, inner: S, request: Request<Body>) -> impl Future<Output = Response<Body>> + Send;
}

/// What is behind a layer: it answers, it does not fail.
trait Inner: Send + 'static {
    fn answer(self, request: Request<Body>) -> impl Future<Output = Response<Body>> + Send;
}

impl<S> Inner for S
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    async fn answer(mut self, request: Request<Body>) -> Response<Body> {
        match self.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

#[derive(Clone)]
struct StepLayer<T>(T);

#[derive(Clone)]
struct StepService<T, S> {
    step: T,
    inner: S,
}

impl<T: Clone, S> Layer<S> for StepLayer<T> {
    type Service = StepService<T, S>;

    fn layer(&self, inner: S) -> Self::Service {
        StepService { step: self.0.clone(), inner }
    }
}

impl<T, S> Service<Request<Body>> for StepService<T, S>
where
    T: Step,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The instance that was polled ready is the one that is called; its clone takes its place.
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        let step = self.step.clone();
        Box::pin(async move { Ok(step.run(inner, request).await) })
    }
}
