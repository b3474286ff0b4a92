//! An OTLP gRPC collector inside the test process: it keeps what it receives, or hangs on purpose.
//!
//! Used by the telemetry tests and, as the peer of real processes, by the system tests. It owns its listener and tasks;
//! dropping it closes both. It judges nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A span as it arrived. Ids are lower hex; `parent` is empty for a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// `service.name` of the process that sent it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// 32 hex digits.
    pub trace: String,
    /// 16 hex digits.
    pub id: String,
    /// 16 hex digits or nothing.
    pub parent: String,
    /// Its attributes as text.
    pub attributes: BTreeMap<String, String>,
}

#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    metrics: BTreeSet<String>,
}

/// A collector that works.
pub struct Collector {
    addr: SocketAddr,
    received: Arc<Mutex<Received>>,
    arrived: watch::Receiver<u64>,
    _server: JoinSet<()>,
}

impl Collector {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind the collector")?;
        let addr = listener.local_addr().context("ask for the collector's address")?;
        let (arrivals, arrived) = watch::channel(0);
        let received = Arc::<Mutex<Received>>::default();
        let intake = Intake { received: Arc::clone(&received), arrivals: Arc::new(arrivals) };
        let mut server = JoinSet::new();
        server.spawn(async move {
            // An error here is the end of the listener; the test then misses its spans and says so.
            let _ = tonic::transport::Server::builder()
                .add_service(TraceServiceServer::new(intake.clone()))
                .add_service(MetricsServiceServer::new(intake))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await;
        });
        Ok(Self { addr, received, arrived, _server: server })
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.received.lock().expect("no test panics while holding it").spans.clone()
    }

    /// The names of all metrics so far.
    pub fn metrics(&self) -> BTreeSet<String> {
        self.received.lock().expect("no test panics while holding it").metrics.clone()
    }

    /// Waits until the spans satisfy `enough`, at most `limit`; the error lists what came instead.
    pub async fn wait_for(&self, limit: Duration, enough: impl Fn(&[Span]) -> bool) -> anyhow::Result<Vec<Span>> {
        let mut arrived = self.arrived.clone();
        let wait = async {
            loop {
                arrived.borrow_and_update();
                let spans = self.spans();
                if enough(&spans) || arrived.changed().await.is_err() {
                    return spans;
                }
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(spans) => Ok(spans),
            Err(_) => {
                let names: Vec<String> =
                    self.spans().into_iter().map(|span| format!("{}/{}", span.service, span.name)).collect();
                anyhow::bail!("the expected spans did not arrive in {limit:?}, only {names:?}")
            }
        }
    }
}

#[derive(Clone)]
struct Intake {
    received: Arc<Mutex<Received>>,
    arrivals: Arc<watch::Sender<u64>>,
}

impl Intake {
    fn keep(&self, change: impl FnOnce(&mut Received)) {
        change(&mut self.received.lock().expect("no test panics while holding it"));
        self.arrivals.send_modify(|count| *count += 1);
    }
}

#[tonic::async_trait]
impl TraceService for Intake {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.keep(|received| {
            for resource in request.into_inner().resource_spans {
                let attributes = resource.resource.map(|resource| texts(resource.attributes)).unwrap_or_default();
                let service = attributes.get("service.name").cloned().unwrap_or_default();
                for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                    received.spans.push(Span {
                        service: service.clone(),
                        name: span.name,
                        trace: hex::encode(span.trace_id),
                        id: hex::encode(span.span_id),
                        parent: hex::encode(span.parent_span_id),
                        attributes: texts(span.attributes),
                    });
                }
            }
        });
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Intake {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.keep(|received| {
            let scopes = request.into_inner().resource_metrics.into_iter().flat_map(|all| all.scope_metrics);
            received.metrics.extend(scopes.flat_map(|scope| scope.metrics).map(|metric| metric.name));
        });
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value| match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(yes) => yes.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().filter_map(|attribute| Some((attribute.key, text(attribute.value?.value?)))).collect()
}

/// A collector that accepts connections and never says a word, so that every export runs into its time limit.
pub struct HungCollector {
    addr: SocketAddr,
    accepted: watch::Receiver<usize>,
    _server: JoinSet<()>,
}

impl HungCollector {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind the hung collector")?;
        let addr = listener.local_addr().context("ask for the hung collector's address")?;
        let (count, accepted) = watch::channel(0);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut open = Vec::new();
            while let Ok((socket, _)) = listener.accept().await {
                open.push(socket);
                count.send_replace(open.len());
            }
        });
        Ok(Self { addr, accepted, _server: server })
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        *self.accepted.borrow()
    }
}
