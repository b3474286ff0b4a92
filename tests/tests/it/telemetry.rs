//! Traces and metrics reach a collector; one that hangs holds nobody up.

use std::time::{Duration, Instant};

use hermes_control_plane::grpc::layers::Limits;
use hermes_control_plane::identity::Role;
use hermes_control_plane::telemetry::{EXPORT_TIMEOUT, LogFormat, Options, TRACE, Telemetry, child_of, traceparent};
use hermes_core::AgentId;
use hermes_tests::otlp::{Collector, HungCollector, Span};
use tracing::{Dispatch, info_span};

use crate::identity::fixture::{Fixture, call};

fn start(endpoint: String) -> (Telemetry, Dispatch) {
    let options = Options { filter: "warn".into(), format: LogFormat::Json, otlp_endpoint: Some(endpoint) };
    Telemetry::start(&options).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn phases_that_only_share_a_text_form_one_trace_and_a_flush_delivers_them() {
    let collector = Collector::start().await.unwrap();
    let (telemetry, dispatch) = start(collector.endpoint());
    let stored = tracing::dispatcher::with_default(&dispatch, || {
        let intake = info_span!(target: TRACE, parent: None, "intake", agent = "main");
        let stored = intake.in_scope(|| traceparent(&tracing::Span::current())).unwrap();
        info_span!(target: "h2", "noise").in_scope(|| ());
        stored
    });
    for phase in 0..2 {
        let (stored, dispatch) = (stored.clone(), dispatch.clone());
        std::thread::spawn(move || {
            tracing::dispatcher::with_default(&dispatch, || {
                let span = match phase {
                    0 => info_span!(target: TRACE, parent: None, "turn"),
                    _ => info_span!(target: TRACE, parent: None, "delivery"),
                };
                child_of(&stored, span).in_scope(|| info_span!(target: TRACE, "inner").in_scope(|| ()));
            });
        })
        .join()
        .unwrap();
    }
    telemetry.metrics().turn_ended(&AgentId::main(), "succeeded", Duration::from_millis(1));
    assert!(telemetry.shutdown().await, "the flush ended in time");

    let spans = collector.wait_for(Duration::from_secs(10), |spans| spans.len() >= 5).await.unwrap();
    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let intake = named("intake");
    assert_eq!(intake.parent, "");
    assert_eq!(intake.attributes["agent"], "main");
    assert_eq!(stored, format!("00-{}-{}-01", intake.trace, intake.id));
    assert!(spans.iter().all(|span| span.trace == intake.trace && span.service == "hermes-control-plane"));
    assert_eq!((&named("turn").parent, &named("delivery").parent), (&intake.id, &intake.id));
    let inner: Vec<_> = spans.iter().filter(|span| span.name == "inner").map(|span| &span.parent).collect();
    assert!(inner.contains(&&named("turn").id) && inner.contains(&&named("delivery").id));
    assert_eq!(spans.len(), 5, "nothing of other targets is exported: {spans:?}");
    assert!(collector.metrics().contains("hermes_turns"), "{:?}", collector.metrics());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsampled_caller_is_followed() {
    let collector = Collector::start().await.unwrap();
    let (telemetry, dispatch) = start(collector.endpoint());
    tracing::dispatcher::with_default(&dispatch, || {
        let quiet = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let span = child_of(quiet, info_span!(target: TRACE, parent: None, "quiet"));
        assert!(traceparent(&span).unwrap().ends_with("-00"));
        child_of("nonsense", info_span!(target: TRACE, parent: None, "loud")).in_scope(|| ());
    });
    assert!(telemetry.shutdown().await);
    let spans = collector.wait_for(Duration::from_secs(10), |spans| !spans.is_empty()).await.unwrap();
    assert_eq!(spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["loud"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_collector_blocks_neither_spans_nor_the_stop() {
    let collector = HungCollector::start().await.unwrap();
    let (telemetry, dispatch) = start(collector.endpoint());
    let metrics = telemetry.metrics();
    tracing::dispatcher::with_default(&dispatch, || {
        // Five queues full.
        for turn in 0..40_000 {
            let began = Instant::now();
            info_span!(target: TRACE, parent: None, "turn").in_scope(|| ());
            metrics.turn_ended(&AgentId::main(), "succeeded", Duration::from_millis(1));
            // Whoever waits for an export, or for room in the queue, waits until it is given up.
            assert!(began.elapsed() < EXPORT_TIMEOUT / 2, "turn {turn} waited for the collector");
        }
    });
    assert!(telemetry.render().contains("hermes_turns_total{agent=\"main\",outcome=\"succeeded\"} 40000"));
    let stopping = Instant::now();
    assert!(!telemetry.shutdown().await, "nothing could be flushed");
    let took = stopping.elapsed();
    assert!(took < Duration::from_secs(4), "the stop took {took:?}");
    assert!(collector.connections() > 0, "the exporter did try");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_continues_its_callers_trace() {
    let collector = Collector::start().await.unwrap();
    let (telemetry, dispatch) = start(collector.endpoint());
    // The server's connection tasks see the global subscriber only; no other test sets it.
    tracing::dispatcher::set_global_default(dispatch).unwrap();
    let fixture = Fixture::probe(Limits::default()).await;
    let bearer = format!("Bearer {}", fixture.token(Role::Api).await);
    let caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("authorization", bearer.as_str()), ("traceparent", caller)];
    call(&fixture.operator(), "/hermes.v1.MessageService/Submit", &headers).await.unwrap();
    let ours = |span: &&Span| span.trace == "4bf92f3577b34da6a3ce929d0e0e4736";
    let spans = collector.wait_for(Duration::from_secs(10), |spans| spans.iter().any(|s| ours(&s))).await.unwrap();
    let span = spans.iter().find(ours).unwrap();
    assert_eq!((span.name.as_str(), span.parent.as_str()), ("rpc", "00f067aa0ba902b7"));
    for (key, value) in [("rpc.method", "MessageSubmit"), ("principal", "api"), ("rpc.grpc.status_code", "10")] {
        assert_eq!(span.attributes[key], value);
    }
    assert!(!format!("{spans:?}").contains(&bearer));
    telemetry.shutdown().await;
}
