//! ModelService: model calls of turns that run, through the broker.
//!
//! Always true: only the worker that runs a turn under its fence gets a call; model, provider and key come from the document
//! and the agent's spec, never from the request; what a call used is noted with the running turn by this side.

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use hermes_core::config::{Resolved, resolve_model};
use hermes_core::turn::Role;
use hermes_proto::v1;
use hermes_proto::v1::generate_event::Event;
use hermes_proto::v1::model_service_server::{ModelService, ModelServiceServer};
use tonic::{Request, Response, Status, Streaming};

use super::convert::usage_to;
use super::status::{Reason, invalid, refuse};
use super::worker_api::{Caller, caller, turn_ref};
use crate::dispatch::Dispatcher;
use crate::models::{Broker, Message, ModelEvent, ModelTarget, ProviderTarget};
use crate::registry::{AgentEntry, Registry, Snapshot};
use crate::telemetry::{self, Metrics, TRACE};

/// Most input of one call, bytes of text.
const MAX_INPUT: usize = 32 << 20;

/// The service.
#[derive(Clone)]
pub struct ModelApi {
    registry: Registry,
    dispatcher: Dispatcher,
    broker: Broker,
    metrics: Metrics,
}

impl std::fmt::Debug for ModelApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ModelApi")
    }
}

impl ModelApi {
    /// As a tonic service.
    pub fn server(
        registry: Registry,
        dispatcher: Dispatcher,
        broker: Broker,
        metrics: Metrics,
    ) -> ModelServiceServer<Self> {
        ModelServiceServer::new(Self { registry, dispatcher, broker, metrics })
            .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
    }
}

/// Who answers for an agent.
fn target_of(snapshot: &Snapshot, entry: &AgentEntry) -> (&'static str, ModelTarget) {
    match resolve_model(&snapshot.models, &entry.spec) {
        Resolved::Echo => ("builtin", ModelTarget::Echo),
        Resolved::Unserved => ("none", ModelTarget::Unserved { model: snapshot.model_of(&entry.spec).to_owned() }),
        Resolved::Endpoint(endpoint) => (
            endpoint.kind.as_str(),
            ModelTarget::Provider(ProviderTarget {
                provider: endpoint.provider.unwrap_or_else(|| format!("agent {}", entry.id)),
                kind: endpoint.kind,
                base_url: endpoint.base_url,
                api_key_env: endpoint.api_key_env,
                model: endpoint.model,
                configured: snapshot.model_of(&entry.spec).to_owned(),
            }),
        ),
    }
}

async fn read(parts: &mut Streaming<v1::GenerateRequest>) -> Result<Vec<Message>, Status> {
    use v1::generate_request::Part;
    let mut input = Input::default();
    while let Some(part) = parts.message().await? {
        match part.part {
            Some(Part::Messages(part)) => part.messages.into_iter().try_for_each(|message| input.push(message))?,
            // A worker of protocol 1 sends them one by one.
            Some(Part::Message(message)) => input.push(message)?,
            _ => return Err(invalid("part", "only messages follow the header")),
        }
    }
    Ok(input.messages)
}

/// The model's input as it comes in.
#[derive(Default)]
struct Input {
    messages: Vec<Message>,
    /// Of text, so far.
    bytes: usize,
    /// The next message goes on with the last one's text.
    continued: bool,
}

impl Input {
    fn push(&mut self, message: v1::ModelMessage) -> Result<(), Status> {
        // An empty one takes room too.
        self.bytes += message.text.len() + size_of::<Message>();
        if self.bytes > MAX_INPUT {
            return Err(refuse(Reason::TooLarge, format!("the model's input is larger than {MAX_INPUT} bytes")));
        }
        let role = match message.role() {
            v1::ModelRole::System => Role::System,
            v1::ModelRole::User => Role::User,
            v1::ModelRole::Assistant => Role::Assistant,
            v1::ModelRole::Tool | v1::ModelRole::Unspecified => return Err(invalid("message.role", "it is missing")),
        };
        match self.messages.last_mut() {
            Some(last) if self.continued => last.text.push_str(&message.text),
            _ => self.messages.push(Message { role, text: message.text }),
        }
        self.continued = message.more;
        Ok(())
    }
}

#[tonic::async_trait]
impl ModelService for ModelApi {
    type GenerateStream = BoxStream<'static, Result<v1::GenerateEvent, Status>>;

    async fn generate(
        &self,
        request: Request<Streaming<v1::GenerateRequest>>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        use v1::generate_request::Part;
        let Caller { agent, worker } = caller(&request)?;
        let mut parts = request.into_inner();
        let Some(Part::Header(header)) = parts.message().await?.and_then(|part| part.part) else {
            return Err(invalid("part", "the first message must be the header"));
        };
        let (turn, epoch) = turn_ref(header.turn.as_ref())?;
        if self.dispatcher.fleet().running_by(worker, turn, epoch).is_none() {
            return Err(refuse(Reason::NotAllowed, "this worker does not run that turn"));
        }
        let messages = read(&mut parts).await?;
        let snapshot = self.registry.current();
        let entry = snapshot
            .agent_or_removed(&agent)
            .ok_or_else(|| refuse(Reason::NotFound, "the agent is not registered (any more)"))?;
        let (kind, target) = target_of(&snapshot, entry);
        let span = tracing::info_span!(target: TRACE, "model", %turn, %agent, kind);
        let span = telemetry::child_of(&header.traceparent, span);
        let started = std::time::Instant::now();
        let (dispatcher, metrics) = (self.dispatcher.clone(), self.metrics.clone());
        let events = self.broker.generate(target, &agent, messages).map(move |event| {
            let _ = &span; // the span lasts as long as the stream
            dispatcher.fleet().progressed(worker, turn, epoch);
            let event = match event {
                ModelEvent::Delta(text) => Event::TextDelta(text),
                ModelEvent::Done { usage, finish_reason } => {
                    metrics.model_call(kind, "done", started.elapsed());
                    metrics.model_tokens("input", usage.input_tokens);
                    metrics.model_tokens("output", usage.output_tokens);
                    dispatcher.fleet().note_usage(worker, turn, epoch, &usage);
                    Event::Done(v1::GenerateDone { usage: Some(usage_to(usage)), finish_reason, replayed: false })
                }
                ModelEvent::Failed(failure) => {
                    metrics.model_call(kind, failure.reason.as_str(), started.elapsed());
                    tracing::warn!(%turn, %agent, reason = failure.reason.as_str(), cause = failure.cause, "a model call failed");
                    Event::Failed(v1::GenerateFailed { message: failure.message, reason: failure.reason.as_str().to_owned() })
                }
            };
            Ok(v1::GenerateEvent { event: Some(event) })
        });
        Ok(Response::new(events.boxed()))
    }
}
