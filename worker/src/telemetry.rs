//! Logs and traces of this process: set up once, and the W3C text that ties both sides of a turn into one trace.
//!
//! Called by `app` at start and end; turns use [`adopt`] and [`traceparent`]. Always true: exporting never waits on the
//! collector (spans queue in a bounded buffer of the exporter's own thread and are dropped when it is full), and without
//! an endpoint no trace machinery runs. It writes to stderr only.

use std::time::Duration;

use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::LogFormat;

/// What is logged unless `RUST_LOG` says otherwise. What MCP servers say is their own matter, and may be anything.
const DEFAULT_FILTER: &str = "info,rmcp=off";
/// How long the last spans may take to leave; the control plane waits for it when everything stops.
const FLUSH: Duration = Duration::from_millis(500);

/// Keeps the exporter; [`Telemetry::shutdown`] sends what is left.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts logging to stderr, and span export when `otlp_endpoint` is set. Call inside the runtime, once.
    ///
    /// # Errors
    /// When the endpoint is no URL or a subscriber is already installed.
    pub fn start(format: LogFormat, otlp_endpoint: Option<&str>) -> anyhow::Result<Self> {
        let provider = otlp_endpoint.map(exporter).transpose()?;
        let traces = provider.as_ref().map(|provider| {
            let only_ours = Targets::new().with_target("hermes_worker", tracing::Level::INFO);
            tracing_opentelemetry::layer().with_tracer(provider.tracer("hermes-worker")).with_filter(only_ours)
        });
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let lines = match format {
            LogFormat::Text => lines.with_ansi(false).boxed(),
            LogFormat::Json => lines.json().boxed(),
        };
        tracing_subscriber::registry().with(traces).with(lines.with_filter(filter)).try_init()?;
        Ok(Self { provider })
    }

    /// Sends what is left, for at most half a second. The exporter's connection lives on this runtime, so it must go on
    /// while the exporter's thread is waited for.
    pub async fn shutdown(self) {
        if let Some(provider) = self.provider
            && let Ok(Err(error)) = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH)).await
        {
            tracing::debug!(%error, "the last spans were not exported");
        }
    }
}

fn exporter(endpoint: &str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let resource = opentelemetry_sdk::Resource::builder().with_service_name("hermes-worker").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// Makes `span` a child of the span that `traceparent` names; an unreadable text changes nothing.
pub(crate) fn adopt(span: &Span, traceparent: &str) {
    if let Some(parent) = parse(traceparent) {
        // Fails only without an exporter, when there is nothing to tie together.
        let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(parent));
    }
}

/// The W3C text of `span`, or `otherwise` when spans are not exported.
pub(crate) fn traceparent(span: &Span, otherwise: &str) -> String {
    let context = span.context();
    let span = context.span();
    let span = span.span_context();
    if span.is_valid() {
        format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8())
    } else {
        otherwise.to_owned()
    }
}

fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version.len() != 2 || version == "ff" || trace.len() != 32 || span.len() != 16 || flags.len() != 2 {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let trace = TraceId::from_hex(trace).ok()?;
    let span = SpanId::from_hex(span).ok()?;
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_only_a_whole_traceparent() {
        let good = parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").expect("valid");
        assert!(good.is_sampled() && good.is_remote());
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-zz",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
