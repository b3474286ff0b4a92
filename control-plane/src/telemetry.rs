//! Logs, traces and metrics of this process.
//!
//! Started once by `main.rs` ([`Telemetry::start`]) and flushed by it at the stop; every other part only opens spans with
//! the target [`TRACE`], joins them by `traceparent` text, and counts through [`Metrics`]. Owns the export queues and the
//! metrics registry behind `/metrics`. Always true: logs go to stderr alone; exporting never blocks a caller (a full queue
//! drops spans), an export takes at most two seconds, the last flush half of one, whatever the collector does; without a collector
//! a span costs one flag test and no allocation. It deliberately exports no log lines and reads no environment itself
//! (the SDK honours the other `OTEL_` variables: sampler, headers, service name, resource attributes).

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hermes_core::AgentId;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, MeterProvider as _};
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{RetryPolicy, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::{FilterExt as _, Targets, dynamic_filter_fn};
use tracing_subscriber::layer::{Filter, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Target of the spans that make up traces (intake, claim, turn, model, delivery, rpc): write
/// `info_span!(target: TRACE, "turn", …)`. They are exported, and kept out of the log unless its filter names this target.
pub const TRACE: &str = "hermes_trace";

/// The log filter when nobody gives one.
pub const DEFAULT_FILTER: &str = "info";

/// Content type of [`Telemetry::render`].
pub const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4";

const SERVICE: &str = "hermes-control-plane";
/// Longest wait for an export; what it held is lost then.
pub const EXPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for the last spans and metrics. Short: it is the last part of a stop that takes less than five seconds.
pub const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
const COMPLAINTS_EVERY: Duration = Duration::from_secs(60);
const SPAN_DELAY: Duration = Duration::from_secs(1);
const METRICS_PERIOD: Duration = Duration::from_secs(15);
/// About 4 MB of spans; what does not fit is dropped and counted by the SDK.
const SPAN_QUEUE: usize = 8192;
/// Seconds; from a cached answer to a slow model.
const SECONDS: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Process settings of telemetry, immutable after the start.
#[derive(Clone, Debug)]
pub struct Options {
    /// An `EnvFilter` text such as `info,hermes_control_plane=debug`; empty means [`DEFAULT_FILTER`].
    pub filter: String,
    /// How log lines look.
    pub format: LogFormat,
    /// `http://host:port` of an OTLP gRPC collector; nothing: no traces, and metrics only on `/metrics`.
    pub otlp_endpoint: Option<String>,
}

/// Telemetry that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter does not parse.
    #[error("the log filter {0:?} does not parse, write for example \"info,hermes_control_plane=debug\"")]
    Filter(String, #[source] tracing_subscriber::filter::ParseError),
    /// The endpoint is not usable.
    #[error("the OTLP endpoint {0:?} is not usable, write http://host:port")]
    Endpoint(String, #[source] opentelemetry_otlp::ExporterBuildError),
    /// The registry behind `/metrics` failed.
    #[error("the metrics registry does not start")]
    Registry(#[source] opentelemetry_sdk::error::OTelSdkError),
}

/// The running exporters and the metrics registry.
#[derive(Debug)]
pub struct Telemetry {
    registry: prometheus::Registry,
    meters: SdkMeterProvider,
    tracers: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts exporting and builds the subscriber; `main` installs the returned dispatch as the global one. With an
    /// endpoint it must be called inside the tokio runtime that is to carry the export connection. Nothing is dialled yet:
    /// an absent collector is no error.
    ///
    /// # Errors
    /// A filter or an endpoint that does not parse.
    pub fn start(options: &Options) -> Result<(Self, tracing::Dispatch), Error> {
        let filter = log_filter(&options.filter)?.and(export_complaints());
        let registry = prometheus::Registry::new();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_target_info()
            .scope_info_enabled(false)
            .build()
            .map_err(Error::Registry)?;
        let mut meters = SdkMeterProvider::builder().with_resource(resource()).with_reader(reader);
        let mut tracers = None;
        if let Some(endpoint) = &options.otlp_endpoint {
            let metrics = opentelemetry_otlp::MetricExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .with_timeout(EXPORT_TIMEOUT)
                .with_retry_policy(RetryPolicy::disabled())
                .build()
                .map_err(|error| Error::Endpoint(endpoint.clone(), error))?;
            meters = meters.with_reader(PeriodicReader::builder(metrics).with_interval(METRICS_PERIOD).build());
            tracers = Some(span_export(endpoint)?);
        }
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let lines = match options.format {
            LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
            LogFormat::Text => {
                lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_filter(filter).boxed()
            }
        };
        // Two branches: an absent layer without a filter of its own would switch every span on.
        let dispatch = match &tracers {
            None => tracing::Dispatch::new(tracing_subscriber::registry().with(lines)),
            Some(tracers) => {
                let spans = tracing_opentelemetry::layer()
                    .with_tracer(tracers.tracer(SERVICE))
                    .with_location(false)
                    .with_threads(false)
                    .with_target(false)
                    .with_tracked_inactivity(false)
                    .with_filter(Targets::new().with_target(TRACE, LevelFilter::INFO));
                tracing::Dispatch::new(tracing_subscriber::registry().with(lines).with(spans))
            }
        };
        Ok((Self { registry, meters: meters.build(), tracers }, dispatch))
    }

    /// The instruments, reporting to `/metrics` and, when on, to the collector.
    pub fn metrics(&self) -> Metrics {
        Metrics::new(&self.meters.meter(SERVICE))
    }

    /// [`Telemetry::render`] for a part that outlives this borrow.
    pub fn renderer(&self) -> impl Fn() -> String + Send + Sync + 'static {
        let registry = self.registry.clone();
        move || render(&registry)
    }

    /// All metrics in Prometheus' text form.
    pub fn render(&self) -> String {
        render(&self.registry)
    }

    /// Sends what is queued, for at most half a second; answers whether that ended in time.
    pub async fn shutdown(self) -> bool {
        let (done, ended) = tokio::sync::oneshot::channel();
        // A thread of its own: these calls block, and a blocking task of the runtime would be waited for at exit.
        let flush = std::thread::Builder::new().name("telemetry-flush".to_owned()).spawn(move || {
            let spans = self.tracers.map(|tracers| tracers.shutdown_with_timeout(FLUSH_TIMEOUT));
            let metrics = self.meters.shutdown_with_timeout(FLUSH_TIMEOUT);
            let _ = done.send(spans.is_none_or(|result| result.is_ok()) && metrics.is_ok());
        });
        flush.is_ok() && matches!(tokio::time::timeout(FLUSH_TIMEOUT, ended).await, Ok(Ok(true)))
    }
}

fn log_filter(text: &str) -> Result<EnvFilter, Error> {
    let text = if text.trim().is_empty() { DEFAULT_FILTER } else { text };
    // What the filter itself says of a target comes later and wins.
    let whole = format!("{},{text}", crate::models::LOG_FILTER);
    let filter = EnvFilter::builder().parse(whole).map_err(|error| Error::Filter(text.to_owned(), error))?;
    if text.contains(TRACE) {
        return Ok(filter);
    }
    Ok(filter.add_directive(format!("{TRACE}=off").parse().expect("a target and a level are a directive")))
}

/// Lets one line a minute of the exporter's own complaints through: a dead collector is worth a line, not one a second.
fn export_complaints<S>() -> impl Filter<S> + Send + Sync + 'static
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let last = Mutex::new(None::<Instant>);
    dynamic_filter_fn(move |line, _| {
        if !line.target().starts_with("opentelemetry") {
            return true;
        }
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= COMPLAINTS_EVERY);
        if due {
            *last = Some(Instant::now());
        }
        due
    })
}

fn span_export(endpoint: &str) -> Result<SdkTracerProvider, Error> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .with_retry_policy(RetryPolicy::disabled())
        .build()
        .map_err(|error| Error::Endpoint(endpoint.to_owned(), error))?;
    let batch = BatchConfigBuilder::default().with_max_queue_size(SPAN_QUEUE).with_scheduled_delay(SPAN_DELAY).build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batch).build();
    // No sampler is set: the default follows the parent and records what has none, unless OTEL_TRACES_SAMPLER says otherwise.
    Ok(SdkTracerProvider::builder().with_resource(resource()).with_span_processor(processor).build())
}

fn render(registry: &prometheus::Registry) -> String {
    let mut text = String::new();
    if let Err(error) = prometheus::TextEncoder::new().encode_utf8(&registry.gather(), &mut text) {
        tracing::warn!(%error, "metrics could not be rendered");
    }
    text
}

fn resource() -> Resource {
    Resource::builder()
        .with_service_name(SERVICE)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

/// The W3C `traceparent` of `span`, for the turn's row, an assignment or a request header. Nothing when the span is not
/// traced.
pub fn traceparent(span: &Span) -> Option<String> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let parent = context.span().span_context().clone();
    parent
        .is_valid()
        .then(|| format!("00-{}-{}-{:02x}", parent.trace_id(), parent.span_id(), parent.trace_flags().to_u8()))
}

/// Makes a new, not yet entered `span` part of the trace that `traceparent` names, so that phases which run in separate
/// tasks and processes form one trace. Empty or malformed text leaves the span as it is.
pub fn child_of(traceparent: &str, span: Span) -> Span {
    if !span.is_disabled()
        && let Some(parent) = parse_traceparent(traceparent)
    {
        // Without an exporter the span has no place for a parent; that is no fault.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
    span
}

/// `00-<32 lower hex>-<16 lower hex>-<2 hex>`; later versions may append fields, all-zero ids are invalid.
fn parse_traceparent(text: &str) -> Option<SpanContext> {
    let mut fields = text.split('-');
    let (version, trace, span, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let lower_hex = |field: &str, len: usize| {
        field.len() == len && field.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let shaped = lower_hex(version, 2) && lower_hex(trace, 32) && lower_hex(span, 16) && lower_hex(flags, 2);
    if !shaped || version == "ff" || (version == "00" && fields.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        flags,
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

/// The instruments. Cheap to clone. Labels come from closed sets or are agent ids, so their number is bounded. Names as
/// `/metrics` shows them stand beside each; times are seconds.
#[derive(Clone, Debug)]
pub struct Metrics {
    intake: Histogram<f64>,
    inbound: Counter<u64>,
    queue_wait: Histogram<f64>,
    turns: Counter<u64>,
    turn_time: Histogram<f64>,
    model_time: Histogram<f64>,
    model_tokens: Counter<u64>,
    steps: Counter<u64>,
    steps_unknown: Counter<u64>,
    reports_fenced: Counter<u64>,
    turns_diverged: Counter<u64>,
    budget_alerts: Counter<u64>,
    deliveries: Counter<u64>,
    delivery_time: Histogram<f64>,
    queue_size: Gauge<u64>,
    workers: Gauge<u64>,
    rpcs: Counter<u64>,
    rpc_time: Histogram<f64>,
    refusals: Counter<u64>,
    clock_back: Counter<u64>,
    overruns: Counter<u64>,
    accounts_deaf: Gauge<u64>,
    oldest_transaction: Gauge<f64>,
    retained: Counter<u64>,
}

impl Metrics {
    fn new(meter: &Meter) -> Self {
        let counter = |name, about| meter.u64_counter(name).with_description(about).build();
        let gauge = |name, about| meter.u64_gauge(name).with_description(about).build();
        let seconds = |name, about| {
            meter.f64_histogram(name).with_unit("s").with_description(about).with_boundaries(SECONDS.to_vec()).build()
        };
        Self {
            intake: seconds("hermes_intake", "from a message's arrival to its commit"),
            inbound: counter("hermes_inbound", "messages by platform and result"),
            queue_wait: seconds("hermes_queue_wait", "from a turn's acceptance to its start"),
            turns: counter("hermes_turns", "ended turns by agent and outcome"),
            turn_time: seconds("hermes_turn", "from a turn's start to its end"),
            model_time: seconds("hermes_model_call", "model calls by provider kind and outcome"),
            model_tokens: counter("hermes_model_tokens", "model tokens by kind"),
            steps: counter("hermes_steps", "finished steps of turns, as journaled, by kind and effect"),
            steps_unknown: counter("hermes_steps_unknown", "tool calls of which nobody knows whether they happened"),
            reports_fenced: counter(
                "hermes_reports_fenced",
                "reports of workers that no longer have the turn, by report",
            ),
            budget_alerts: counter("hermes_budget_alerts", "limits of budgets that were hit"),
            turns_diverged: counter(
                "hermes_turns_diverged",
                "turns given up because an attempt differed from the journal",
            ),
            deliveries: counter("hermes_deliveries", "delivery attempts by platform and outcome"),
            delivery_time: seconds("hermes_delivery", "from a turn's end to the platform's acknowledgement"),
            queue_size: gauge("hermes_queue_size", "entries waiting, by queue"),
            workers: gauge("hermes_workers", "workers connected to this replica, by agent"),
            rpcs: counter("hermes_rpcs", "gRPC calls by rpc and code"),
            rpc_time: seconds("hermes_rpc", "gRPC calls from request to the last byte of the answer"),
            refusals: counter("hermes_refusals", "gRPC calls refused before their handler, by reason"),
            clock_back: counter(
                "hermes_database_clock_back",
                "how often the database's clock went back by more than a second",
            ),
            overruns: counter("hermes_overruns", "turns that took too long or stood still, by reason"),
            accounts_deaf: gauge("hermes_accounts_deaf", "accounts this replica receives for whose platform is silent"),
            oldest_transaction: meter
                .f64_gauge("hermes_database_oldest_transaction")
                .with_unit("s")
                .with_description("age of the database's oldest transaction or snapshot, seen once a minute")
                .build(),
            retained: counter("hermes_retention_removed", "rows that retention removed, by what they were"),
        }
    }

    /// Instruments that nobody reads, for parts that are tested alone.
    pub fn unread() -> Self {
        Self::new(&SdkMeterProvider::default().meter(SERVICE))
    }

    /// `hermes_inbound_total{platform,result}` and `hermes_intake_seconds`. `platform` is an adapter's name, `result` one of
    /// accepted, duplicate, refused.
    pub fn inbound(&self, platform: &'static str, result: &'static str, took: Duration) {
        self.inbound.add(1, &[KeyValue::new("platform", platform), KeyValue::new("result", result)]);
        self.intake.record(took.as_secs_f64(), &[]);
    }

    /// `hermes_queue_wait_seconds`.
    pub fn turn_started(&self, waited: Duration) {
        self.queue_wait.record(waited.as_secs_f64(), &[]);
    }

    /// `hermes_turns_total{agent,outcome}` and `hermes_turn_seconds`. `outcome` is a terminal turn state.
    pub fn turn_ended(&self, agent: &AgentId, outcome: &'static str, took: Duration) {
        self.turns.add(1, &[KeyValue::new("agent", agent.as_str().to_owned()), KeyValue::new("outcome", outcome)]);
        self.turn_time.record(took.as_secs_f64(), &[]);
    }

    /// `hermes_model_call_seconds{kind,outcome}`: `kind` of provider (openai, anthropic, gemini, echo).
    pub fn model_call(&self, kind: &'static str, outcome: &'static str, took: Duration) {
        self.model_time.record(took.as_secs_f64(), &[KeyValue::new("kind", kind), KeyValue::new("outcome", outcome)]);
    }

    /// `hermes_model_tokens_total{kind}`: input, output, cached.
    pub fn model_tokens(&self, kind: &'static str, tokens: u64) {
        self.model_tokens.add(tokens, &[KeyValue::new("kind", kind)]);
    }

    /// `hermes_budget_alerts_total{agent,limit}`: once an agent or user, limit and period.
    pub fn budget_alert(&self, agent: &str, limit: &'static str) {
        self.budget_alerts.add(1, &[KeyValue::new("agent", agent.to_owned()), KeyValue::new("limit", limit)]);
    }

    /// `hermes_steps_total{kind,effect}`: `kind` is model_reply, tool_call or steering, `effect` pure, idempotent, at_most_once or
    /// none. And `hermes_steps_unknown_total`, when nobody knows whether the call happened.
    pub fn step(&self, kind: &'static str, effect: &'static str, unknown: bool) {
        self.steps.add(1, &[KeyValue::new("kind", kind), KeyValue::new("effect", effect)]);
        if unknown {
            self.steps_unknown.add(1, &[]);
        }
    }

    /// `hermes_reports_fenced_total{report}`: step, end. More than none proves that the fence was needed.
    pub fn report_fenced(&self, report: &'static str) {
        self.reports_fenced.add(1, &[KeyValue::new("report", report)]);
    }

    /// `hermes_turns_diverged_total`.
    pub fn turn_diverged(&self) {
        self.turns_diverged.add(1, &[]);
    }

    /// `hermes_deliveries_total{platform,outcome}`: delivered, retry, dead.
    pub fn delivery(&self, platform: &'static str, outcome: &'static str) {
        self.deliveries.add(1, &[KeyValue::new("platform", platform), KeyValue::new("outcome", outcome)]);
    }

    /// `hermes_delivery_seconds`.
    pub fn delivered(&self, took: Duration) {
        self.delivery_time.record(took.as_secs_f64(), &[]);
    }

    /// `hermes_queue_size{queue}`: turns, deliveries.
    pub fn queue_size(&self, queue: &'static str, entries: u64) {
        self.queue_size.record(entries, &[KeyValue::new("queue", queue)]);
    }

    /// `hermes_workers{agent}`.
    pub fn workers(&self, agent: &AgentId, connected: u64) {
        self.workers.record(connected, &[KeyValue::new("agent", agent.as_str().to_owned())]);
    }

    /// `hermes_rpcs_total{rpc,code}` and `hermes_rpc_seconds{rpc}`.
    pub fn rpc(&self, rpc: &'static str, code: &'static str, took: Duration) {
        self.rpcs.add(1, &[KeyValue::new("rpc", rpc), KeyValue::new("code", code)]);
        self.rpc_time.record(took.as_secs_f64(), &[KeyValue::new("rpc", rpc)]);
    }

    /// `hermes_accounts_deaf`.
    pub fn accounts_deaf(&self, accounts: u64) {
        self.accounts_deaf.record(accounts, &[]);
    }

    /// `hermes_database_oldest_transaction_seconds`.
    pub fn oldest_transaction(&self, age: Duration) {
        self.oldest_transaction.record(age.as_secs_f64(), &[]);
    }

    /// `hermes_retention_removed_total{what}`: the table.
    pub fn retention_removed(&self, what: &'static str, rows: u64) {
        self.retained.add(rows, &[KeyValue::new("what", what)]);
    }

    /// `hermes_refusals_total{reason}`: refused by a layer; such calls are not in `hermes_rpcs_total`.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// `hermes_database_clock_back_total`.
    pub fn database_clock_went_back(&self) {
        self.clock_back.add(1, &[]);
    }

    /// `hermes_overruns_total{reason}`: deadline, stalled.
    pub fn overrun(&self, reason: &'static str) {
        self.overruns.add(1, &[KeyValue::new("reason", reason)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn traceparents_are_read_strictly() {
        let context = parse_traceparent(GOOD).unwrap();
        assert!(context.is_sampled() && context.is_remote());
        assert!(parse_traceparent("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later").is_some());
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(parse_traceparent(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn without_a_collector_spans_are_off_and_metrics_are_rendered() {
        let options = Options { filter: String::new(), format: LogFormat::Text, otlp_endpoint: None };
        let (telemetry, dispatch) = Telemetry::start(&options).unwrap();
        tracing::dispatcher::with_default(&dispatch, || {
            let span = child_of(GOOD, tracing::info_span!(target: TRACE, "turn"));
            assert!(span.is_disabled());
            assert_eq!(traceparent(&span), None);
            assert!(!tracing::info_span!("of the log").is_disabled());
        });
        let metrics = telemetry.metrics();
        metrics.turn_ended(&AgentId::main(), "succeeded", Duration::from_millis(3));
        metrics.inbound("telegram", "accepted", Duration::from_millis(3));
        metrics.queue_size("turns", 4);
        let text = telemetry.render();
        for line in [
            "hermes_turns_total{agent=\"main\",outcome=\"succeeded\"} 1",
            "hermes_inbound_total{platform=\"telegram\",result=\"accepted\"} 1",
            "hermes_intake_seconds_bucket{le=\"0.005\"} 1",
            "hermes_queue_size{queue=\"turns\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_dead_collector_is_one_line_and_others_are_all_there() {
        let lines = std::sync::Arc::new(Mutex::new(Vec::new()));
        let writer = std::sync::Arc::clone(&lines);
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || Lines(std::sync::Arc::clone(&writer)))
            .with_filter(log_filter("info").unwrap().and(export_complaints()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for _ in 0..5 {
                tracing::debug!(target: "opentelemetry_sdk", "chatter");
                tracing::error!(target: "opentelemetry_sdk", "export failed");
                tracing::info!("ours");
            }
        });
        let text = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
        let count = |what| text.matches(what).count();
        assert_eq!((count("chatter"), count("export failed"), count("ours")), (0, 1, 5), "{text}");
    }

    struct Lines(std::sync::Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn settings_that_do_not_parse_are_refused() {
        let with = |filter: &str| Options { filter: filter.into(), format: LogFormat::Json, otlp_endpoint: None };
        assert!(Telemetry::start(&with("info,hermes_control_plane=debug")).is_ok());
        assert!(matches!(Telemetry::start(&with("a=b=c")), Err(Error::Filter(..))));
    }
}
