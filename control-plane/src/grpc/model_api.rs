//! ModelService: model calls of turns that run, through the broker.
//!
//! Always true: only the worker that runs a turn under its fence gets a call; model, provider and key come from the document,
//! the agent's spec and the session's own model, never from the request; a step whose reply is in the journal is answered from there, and no provider
//! is asked again, nor a budget; what a budget does not allow fails before any provider is asked.

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hermes_core::config::{resolve_models, with_own_model};
use hermes_core::turn::Role;
use hermes_proto::v1;
use hermes_proto::v1::model_service_server::{ModelService, ModelServiceServer};
use tonic::{Request, Response, Status, Streaming};

use super::convert::store_status;
use super::generation::{self, Asked};
use super::status::{Reason, invalid, refuse};
use super::steps::step_number;
use super::worker_api::{Caller, caller, turn_ref};
use crate::attachments::Attachments;
use crate::budget::{Admitted, Budgets, Refusal, Wish};
use crate::dispatch::Dispatcher;
use crate::models::{self, Broker, MAX_CALL_ID, Message, ModelEvent, ModelTarget, Shown, ShownFile, ToolCall};
use crate::registry::Registry;
use crate::telemetry::{self, Metrics, TRACE};

/// Most input of one call, bytes.
const MAX_INPUT: usize = 32 << 20;
/// What a message or call takes of it beside its content.
const OVERHEAD: usize = 64;
/// Most tools of one call.
const MAX_TOOLS: usize = 128;
/// Names, descriptions and schemas of all tools of one call, bytes.
const MAX_TOOL_BYTES: usize = 1 << 20;

/// The service.
#[derive(Clone)]
pub struct ModelApi {
    registry: Registry,
    dispatcher: Dispatcher,
    budgets: Budgets,
    broker: Broker,
    attachments: Attachments,
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
        budgets: Budgets,
        broker: Broker,
        attachments: Attachments,
        metrics: Metrics,
    ) -> ModelServiceServer<Self> {
        ModelServiceServer::new(Self { registry, dispatcher, budgets, broker, attachments, metrics })
            .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
    }
}

/// Reads the input: tools, then messages, long ones in pieces.
async fn read(parts: &mut Streaming<v1::GenerateRequest>) -> Result<Input, Status> {
    use v1::generate_request::Part;
    let mut input = Input::default();
    while let Some(part) = parts.message().await? {
        match part.part {
            Some(Part::Tool(tool)) => input.tool(tool)?,
            Some(Part::Message(message)) => input.message(message)?,
            Some(Part::Messages(batch)) => batch.messages.into_iter().try_for_each(|message| input.message(message))?,
            Some(Part::Header(_)) | None => {
                return Err(invalid("part", "only tools and messages follow the header"));
            }
        }
    }
    Ok(input)
}

/// Input as it comes in, with what it takes of its limits.
#[derive(Default)]
struct Input {
    request: models::Request,
    /// The next message continues the last one.
    continued: bool,
    bytes: usize,
    tool_bytes: usize,
    /// The message that the turn's files belong to.
    files_at: Option<usize>,
}

impl Input {
    fn tool(&mut self, tool: v1::ToolSpec) -> Result<(), Status> {
        let tools = &mut self.request.tools;
        if !self.request.messages.is_empty() {
            return Err(invalid("tool", "tools come before messages"));
        }
        if tools.len() >= MAX_TOOLS {
            return Err(refuse(Reason::TooLarge, format!("a model is offered at most {MAX_TOOLS} tools")));
        }
        self.tool_bytes += tool.name.len() + tool.description.len() + tool.parameters.len();
        if self.tool_bytes > MAX_TOOL_BYTES {
            return Err(refuse(Reason::TooLarge, format!("the tools are larger than {MAX_TOOL_BYTES} bytes")));
        }
        if !models::is_name(&tool.name) || tools.iter().any(|known| known.name == tool.name) {
            return Err(invalid("tool.name", "it is 1 to 64 letters, digits, _ and -, unlike the others"));
        }
        let parameters: serde_json::Value = serde_json::from_str(&tool.parameters)
            .map_err(|error| invalid("tool.parameters", format!("{}: {error}", tool.name)))?;
        if !parameters.is_object() {
            return Err(invalid("tool.parameters", format!("{}: it is no JSON Schema of an object", tool.name)));
        }
        tools.push(models::Tool { name: tool.name, description: tool.description, parameters });
        Ok(())
    }

    fn message(&mut self, message: v1::ModelMessage) -> Result<(), Status> {
        let calls =
            message.tool_calls.iter().map(|call| call.id.len() + call.name.len() + call.arguments.len() + OVERHEAD);
        self.bytes +=
            message.text.len() + message.reasoning.len() + message.tool_call_id.len() + calls.sum::<usize>() + OVERHEAD;
        if self.bytes > MAX_INPUT {
            return Err(refuse(Reason::TooLarge, format!("the model's input is larger than {MAX_INPUT} bytes")));
        }
        let role = message.role();
        if role != v1::ModelRole::Assistant && !message.tool_calls.is_empty() {
            return Err(invalid("message.tool_calls", "only the assistant asks for tools"));
        }
        let mut calls = Vec::with_capacity(message.tool_calls.len());
        for call in message.tool_calls {
            if call.id.is_empty() || call.id.len() > MAX_CALL_ID || !models::is_name(&call.name) {
                return Err(invalid("message.tool_calls", "a call has its id and a tool's name"));
            }
            calls.push(ToolCall { id: call.id, name: call.name, arguments: call.arguments });
        }
        let continued = std::mem::replace(&mut self.continued, message.more);
        if let Some(last) = self.request.messages.last_mut().filter(|_| continued) {
            last.extend(&message.text, calls);
            last.thought(message.reasoning);
            return Ok(());
        }
        if message.with_files {
            if role != v1::ModelRole::User || self.files_at.is_some() {
                return Err(invalid("message.with_files", "files come with one message of the user"));
            }
            self.files_at = Some(self.request.messages.len());
        }
        let text = message.text;
        self.request.messages.push(match role {
            v1::ModelRole::System => Message::Said { role: Role::System, text },
            v1::ModelRole::User => Message::Said { role: Role::User, text },
            v1::ModelRole::Assistant if calls.is_empty() => Message::Said { role: Role::Assistant, text },
            v1::ModelRole::Assistant => Message::Asked { text, calls, reasoning: message.reasoning },
            v1::ModelRole::Tool if message.tool_call_id.is_empty() => {
                return Err(invalid("message.tool_call_id", "a result names its call"));
            }
            v1::ModelRole::Tool => Message::Answered { call: message.tool_call_id, text },
            v1::ModelRole::Unspecified => return Err(invalid("message.role", "it is missing")),
        });
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
        let Some(running) = self.dispatcher.fleet().running_by(worker, turn, epoch) else {
            return Err(refuse(Reason::NotAllowed, "this worker does not run that turn"));
        };
        let step = step_number(header.step)?;
        let Input { mut request, mut bytes, tool_bytes, files_at, .. } = read(&mut parts).await?;
        let snapshot = self.registry.current();
        let entry = snapshot
            .agent_or_removed(&agent)
            .ok_or_else(|| refuse(Reason::NotFound, "the agent is not registered (any more)"))?;
        if entry.revision == running.revision && entry.spec.acp().is_some() {
            // A worker of before other runtimes would answer in the program's place.
            let message =
                "the runtime of this agent is acp, and its worker does not know that; bring its workers up to date";
            return Err(refuse(Reason::Conflict, message));
        }
        let spec = with_own_model(&snapshot.models, &entry.spec, running.model.as_deref());
        let models = resolve_models(&snapshot.models, &spec);
        let kind = models.first().map_or("none", |model| models::kind_of(&model.resolved));
        let span = tracing::info_span!(target: TRACE, "model", %turn, %agent, kind);
        let span = telemetry::child_of(&header.traceparent, span);
        let asked = Asked {
            dispatcher: self.dispatcher.clone(),
            metrics: self.metrics.clone(),
            agent: agent.clone(),
            worker,
            turn,
            epoch,
            step,
            kind,
            tools: !request.tools.is_empty(),
            span,
        };
        self.dispatcher.recall(turn, epoch).await.map_err(store_status)?;
        // The first call of a step in a turn that began here finds nothing, so it does not look.
        if self.dispatcher.fleet().asked(turn, epoch, header.step)
            && let Some(journaled) = self.dispatcher.journaled_reply(turn, step).await.map_err(store_status)?
        {
            return Ok(Response::new(generation::replayed(&asked, &journaled)));
        }
        if let Some(at) = files_at {
            let carried = |media_type: &str| models.iter().any(|model| models::carries(&model.resolved, media_type));
            let shown = self.attachments.shown(&agent, turn, &running.had, carried).await;
            let (files, room) = shown.map_err(store_status)?;
            bytes = bytes.saturating_add(files.iter().map(ShownFile::cost).sum());
            request.shown = Shown { at, files: files.into(), refused: running.had.refused(), room };
        }
        let input_bytes = u64::try_from(bytes.saturating_add(tool_bytes)).unwrap_or(u64::MAX);
        match self.budgets.admit(&snapshot, entry, models, Wish { turn, epoch, step, input_bytes }).await {
            Ok(Admitted { models, max_output_tokens, reservation }) => {
                request.max_output_tokens = max_output_tokens;
                let targets = models.into_iter().map(|model| ModelTarget::of(model, &agent)).collect();
                let events = self.broker.generate_by_first(targets, &agent, request);
                Ok(Response::new(generation::live(asked, events, reservation)))
            }
            Err(Refusal::Failure(failure)) => {
                let events = stream::once(std::future::ready(ModelEvent::Failed(failure))).boxed();
                Ok(Response::new(generation::live(asked, events, None)))
            }
            Err(Refusal::Fenced) => Err(refuse(Reason::StaleEpoch, "a later attempt of the turn makes this call")),
            Err(Refusal::Store(error)) => Err(store_status(error)),
        }
    }
}
