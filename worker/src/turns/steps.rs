//! The steps of a turn: model calls and tool calls in turn, each with a number, until the model answers without tools.
//!
//! Always true: steps are numbered from 0 without gaps, the same on every attempt; a tool that is not pure is called only
//! after its intent is stored, and the next step begins only after its result is; what an earlier attempt journaled stands
//! in for doing it again; a call that may or may not have happened is never repeated, and the model is told so; nothing
//! begins after the lease's fence. What the control plane runs it journals itself: of that nothing is reported here.

use std::sync::Arc;

use hermes_proto::v1::{self, GenerateHeader, ModelRole, StepKind, StepPhase, StepReport, ToolCall as Asked, Usage};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::consolidation;
use super::flow::{Course, Failure, Tries, bytes};
use super::orders::Halt;
use super::own::Own;
use super::past::{CallBody, PastCall, SteeringBody, Unclear};
use crate::model::{self, Message};
use crate::sandbox::{self, Sandbox};
use crate::telemetry;
use crate::tools::{Effect, Ran, Ruling, ToolCall, ToolSpec, ask_plane, call_plane, rule, run};

/// Model calls of one turn, at most.
const MAX_MODEL_CALLS: u32 = 90;
/// Steps of one turn, at most.
const MAX_STEPS: u32 = 10_000;
/// Tool calls of one model reply, at most.
const MAX_CALLS: u32 = 256;
/// The control plane's tool whose messages may name files.
const SENDS: &str = "send_message";
/// Calls made at the same time, at most.
const MAX_TOGETHER: usize = 8;
/// What the model is told of a call that only looked and was stopped.
const STOPPED: &str = "Error: the call was stopped.";
/// Longest arguments of a call, in bytes: quoted once more they fit into a step's body.
const MAX_ARGUMENT_BYTES: usize = 384 << 10;
/// Largest body of a step, in bytes.
const MAX_BODY_BYTES: usize = 900 << 10;
/// What the model is told of a call that was begun and whose end nobody knows.
pub(super) const UNKNOWN: &str = "UNKNOWN: this call was begun, and then its process ended. It may or may not have happened. \
     Check before you repeat it.";

impl From<Unclear> for Halt {
    fn from(unclear: Unclear) -> Self {
        tracing::error!(error = %unclear, "the turn cannot go on");
        let sentence = "I was interrupted, and I cannot read what I had already done. Please check it and ask again.";
        Self::Failed(sentence.to_owned())
    }
}

/// What a queued message holds for us.
#[derive(Deserialize)]
struct Steered {
    text: String,
}

/// A call that only looks, as it will be made.
struct Look<'a> {
    asked: &'a Asked,
    spec: ToolSpec,
    call: ToolCall,
}

/// What a tool call's step comes to.
pub(super) struct Outcome {
    text: String,
    effect: v1::Effect,
    /// Of an idempotent one.
    key: String,
    unknown: bool,
}

impl Outcome {
    /// A sentence for the model about a call that was not made.
    pub(super) fn refused(text: String) -> Self {
        Self { text, effect: v1::Effect::Pure, key: String::new(), unknown: false }
    }

    fn unknown(effect: v1::Effect, key: String) -> Self {
        Self { text: UNKNOWN.to_owned(), effect, key, unknown: true }
    }
}

fn on_the_wire(effect: Effect) -> v1::Effect {
    match effect {
        Effect::Pure => v1::Effect::Pure,
        Effect::Idempotent | Effect::Journaled => v1::Effect::Idempotent,
        Effect::AtMostOnce => v1::Effect::AtMostOnce,
    }
}

impl Course {
    /// Takes steps until the model answers; its reply.
    pub(super) async fn steps(&mut self) -> Result<String, Halt> {
        self.converse(MAX_MODEL_CALLS, false).await?.ok_or_else(|| {
            let steps = self.step;
            Halt::Failed(format!("I have taken {steps} steps for this message and am still not done, so I stop here."))
        })
    }

    /// Takes steps until the model answers or asks the user; what is said then, and nothing after so many calls of the model. `task`: it is a part
    /// of a turn, and ends also where an earlier attempt noted its result.
    pub(super) async fn converse(&mut self, model_calls: u32, task: bool) -> Result<Option<String>, Halt> {
        for _ in 0..model_calls {
            if task && self.past.is_tool_call(self.step) {
                break;
            }
            let asked = self.model_step().await?;
            if asked.is_empty() {
                return Ok(Some(self.reply.finish()));
            }
            if asked.len() > bytes(MAX_CALLS) {
                let sentence = "My model asked for too many things at once, so I stopped. Please try again.";
                return Err(Halt::Failed(sentence.to_owned()));
            }
            let mut rest = asked.as_ref();
            while let Some((call, later)) = rest.split_first() {
                let looks = self.looks(rest);
                if looks.len() > 1 {
                    rest = rest.get(looks.len()..).unwrap_or_default();
                    self.look_together(looks).await?;
                    continue;
                }
                let text = self.tool_step(call).await?;
                self.answered(call, text);
                rest = later;
            }
            if let Some(question) = self.question.take() {
                let said = self.reply.finish();
                return Ok(Some(if said.trim().is_empty() { question } else { format!("{said}\n\n{question}") }));
            }
            if !task {
                self.steering_steps().await?;
            }
            if self.step >= MAX_STEPS - MAX_CALLS {
                break;
            }
        }
        Ok(None)
    }

    /// The step of a call is over: its result is part of the conversation.
    fn answered(&mut self, call: &Asked, text: String) {
        self.step += 1;
        let answer = Message::new(ModelRole::Tool, text);
        self.messages.push(Message { tool_call_id: call.id.as_str().into(), ..answer });
    }

    /// Those of these calls, from the first on, that only look, here, and so may be made at the same time.
    fn looks<'a>(&self, calls: &'a [Asked]) -> Vec<Look<'a>> {
        let steps = self.step..;
        steps.zip(calls).take(MAX_TOGETHER).map_while(|(step, asked)| self.looking(step, asked)).collect()
    }

    /// The call of that step, where it only looks, here, and nobody has to allow it.
    fn looking<'a>(&self, step: u32, asked: &'a Asked) -> Option<Look<'a>> {
        let spec = self.tools.find(&asked.name)?;
        let arguments = arguments(&asked.arguments).ok()?;
        let policy = self.policy();
        let is_allowed = rule(&asked.name, &arguments, &policy, self.assignment.profile.as_ref()) == Ruling::Allowed;
        let looks = spec.effect == Effect::Pure && Own::named(&spec.name).is_none() && !self.mcp.has(spec);
        (looks && is_allowed).then(|| {
            let call = ToolCall { step, ..self.made(asked, arguments, String::new(), policy) };
            Look { asked, spec: spec.clone(), call }
        })
    }

    pub(super) fn policy(&self) -> Sandbox {
        sandbox::from_wire(self.assignment.profile.as_ref().and_then(|profile| profile.sandbox.as_ref()))
    }

    /// A call of this step.
    fn made(&self, call: &Asked, arguments: Map<String, Value>, key: String, policy: Sandbox) -> ToolCall {
        ToolCall {
            turn: self.turn,
            step: self.step,
            name: call.name.clone(),
            arguments,
            idempotency_key: Some(key).filter(|key| !key.is_empty()),
            policy,
            workdir: self.workdir.clone(),
            author: self.author.clone(),
            cancel: CancellationToken::new(),
        }
    }

    /// Makes calls that only look at the same time, those that no earlier attempt made, and stores their results in their order.
    async fn look_together(&mut self, looks: Vec<Look<'_>>) -> Result<(), Halt> {
        let mut looks = looks.into_iter().peekable();
        while let Some(Look { asked, .. }) = looks.peek()
            && let PastCall::Ended(text) = self.past.tool_call(self.step, asked)?
        {
            self.answered(asked, text);
            looks.next();
        }
        if looks.peek().is_none() {
            return Ok(());
        }
        if let Some(halt) = self.inbox.halt() {
            return Err(halt);
        }
        let shared = Arc::clone(&self.shared);
        shared.seams.point("effect.before").await;
        self.may_act().await?;
        let seen = looks.map(|Look { asked, spec, call }| {
            let (shared, stopped) = (Arc::clone(&shared), self.inbox.ended());
            let span =
                tracing::info_span!("tool", tool = spec.name, session = self.turn.session_id, turn = self.turn.seq);
            async move { (asked, run(shared.toolbox.as_ref(), &spec, call, stopped).await) }.instrument(span)
        });
        let seen = futures_util::future::join_all(seen).await;
        shared.seams.point("effect.after").await;
        for (asked, ran) in seen {
            let text = match ran {
                Ran::Finished(text) | Ran::Lost(text) => text,
                Ran::Dropped => STOPPED.to_owned(),
            };
            self.store_result(Outcome::refused(text.clone())).await?;
            self.answered(asked, text);
        }
        Ok(())
    }

    /// Asks the model, or reads what it answered; what it asks for, already part of the conversation.
    async fn model_step(&mut self) -> Result<Arc<[Asked]>, Halt> {
        if let Some(halt) = self.inbox.halt() {
            return Err(halt);
        }
        self.make_room_in_turn();
        self.reply.begin();
        let (text, asked, reasoning): (Arc<str>, Arc<[Asked]>, String) = match self.past.model_reply(self.step)? {
            Some(past) => {
                self.reply.replayed(&past.text);
                self.count(past.usage);
                (past.text.into(), past.tool_calls.into(), past.reasoning)
            }
            None => {
                let (asked, reasoning) = self.ask_model().await?;
                (self.reply.said().into(), asked.into(), reasoning)
            }
        };
        if !asked.is_empty() {
            self.step += 1;
            let message = Message::new(ModelRole::Assistant, text);
            self.messages.push(Message { tool_calls: Arc::clone(&asked), reasoning: reasoning.into(), ..message });
        }
        Ok(asked)
    }

    /// What the model asks for, and what it thought.
    async fn ask_model(&mut self) -> Result<(Vec<Asked>, String), Halt> {
        let shared = Arc::clone(&self.shared);
        shared.seams.point("model.before").await;
        let mut tries = Tries::default();
        let generated = loop {
            let channel = self.ready().await?;
            let span = tracing::info_span!(
                "model",
                otel.kind = "client",
                session = self.turn.session_id,
                turn = self.turn.seq,
                step = self.step
            );
            let traceparent = telemetry::traceparent(&span, &self.assignment.traceparent);
            let header = GenerateHeader { turn: Some(self.turn), step: self.step, traceparent };
            let tools = if self.steps_are_taken() { self.tools.told() } else { Vec::new() };
            let offers = !tools.is_empty();
            let call = model::generate(channel, header, tools, self.messages.clone(), &mut self.reply).instrument(span);
            match self.inbox.unless_stopped(call).await?.map_err(Failure::from) {
                // Whoever is offered nothing cannot ask for anything.
                Ok(generated) if !offers => break model::Generated { tool_calls: Vec::new(), ..generated },
                Ok(generated) => break generated,
                Err(failure) => {
                    tries.again(&self.inbox, failure).await?;
                    self.reply.restart();
                }
            }
        };
        shared.seams.point("model.after").await;
        self.count(generated.done.usage);
        Ok((generated.tool_calls, generated.done.reasoning))
    }

    /// Adds to what the turn used.
    pub(super) fn count(&mut self, usage: Option<Usage>) {
        let Some(usage) = usage else {
            return;
        };
        let total = self.usage.get_or_insert_default();
        total.input_tokens = total.input_tokens.saturating_add(usage.input_tokens);
        total.output_tokens = total.output_tokens.saturating_add(usage.output_tokens);
        total.cached_tokens = total.cached_tokens.saturating_add(usage.cached_tokens);
        total.cost_usd = match (total.cost_usd, usage.cost_usd) {
            (Some(before), Some(now)) => Some(before + now),
            (before, now) => before.or(now),
        };
        total.model = usage.model;
    }

    /// Makes the call, or finds out what became of it; the text for the model, stored as the step's result.
    async fn tool_step(&mut self, call: &Asked) -> Result<String, Halt> {
        let spec = self.tools.find(&call.name).cloned();
        let own = spec.as_ref().and_then(|spec| Own::named(&spec.name));
        let done = match own {
            // Its steps come before its result.
            Some(Own::Delegate) => Some(self.delegated(call).await?),
            Some(Own::Clarify) => Some(self.clarified(call)),
            None => None,
        };
        let past = self.past.tool_call(self.step, call)?;
        if let PastCall::Ended(text) = past {
            return Ok(self.merged_before(call, text).await);
        }
        if let Some(halt) = self.inbox.halt() {
            return Err(halt);
        }
        if let Some(text) = done {
            return self.store_result(Outcome::refused(text)).await;
        }
        let is_theirs = spec.as_ref().is_some_and(|spec| spec.effect == Effect::Journaled);
        // What an earlier attempt began with a tool of this name was another tool's.
        if is_theirs && past == PastCall::New && call.arguments.len() <= MAX_ARGUMENT_BYTES {
            return match call.name == consolidation::TOOL {
                true => Box::pin(self.merging_step(call)).await,
                false => self.journaled_step(call).await,
            };
        }
        let outcome = self.call_tool(spec.as_ref(), call, past).await?;
        self.store_result(outcome).await
    }

    /// Stores what the step of a call came to; the text.
    pub(super) async fn store_result(&mut self, outcome: Outcome) -> Result<String, Halt> {
        let shared = Arc::clone(&self.shared);
        shared.seams.point("result.before").await;
        let report = StepReport {
            body: outcome.text.as_bytes().to_vec(),
            idempotency_key: outcome.key,
            unknown: outcome.unknown,
            ..self.report(StepPhase::Result, outcome.effect)
        };
        self.store(report).await?;
        shared.seams.point("result.after").await;
        Ok(outcome.text)
    }

    /// Has the control plane make the call and journal it; the text for the model.
    pub(super) async fn journaled_step(&mut self, call: &Asked) -> Result<String, Halt> {
        let shared = Arc::clone(&self.shared);
        shared.seams.point("effect.before").await;
        if call.name == SENDS {
            let said = arguments(&call.arguments).ok().and_then(|mut told| told.remove("message"));
            self.bring(said.as_ref().and_then(Value::as_str).unwrap_or_default()).await?;
        }
        let mut tries = Tries::default();
        let text = loop {
            let channel = self.ready().await?;
            let request = v1::CallToolRequest { turn: Some(self.turn), step: self.step, call: Some(call.clone()) };
            // Given up, it is done whole or not at all, and the journal says which.
            match self.inbox.unless_stopped(call_plane(channel, request)).await? {
                Ok(text) => break text,
                Err(error) => tries.again(&self.inbox, error.into()).await?,
            }
        };
        shared.seams.point("effect.after").await;
        Ok(text)
    }

    /// Makes the call, unless it was begun before and may not be repeated.
    pub(super) async fn call_tool(
        &mut self,
        spec: Option<&ToolSpec>,
        call: &Asked,
        past: PastCall,
    ) -> Result<Outcome, Halt> {
        let begun = match past {
            PastCall::Begun { effect, idempotency_key } => {
                let may_repeat = |spec: &ToolSpec| matches!(spec.effect, Effect::Pure | Effect::Idempotent);
                let again =
                    effect == v1::Effect::Pure || effect == v1::Effect::Idempotent && spec.is_some_and(may_repeat);
                if !again {
                    tracing::warn!(
                        tool = call.name,
                        step = self.step,
                        "a call was begun before; nobody knows whether it happened"
                    );
                    return Ok(Outcome::unknown(effect, idempotency_key));
                }
                Some(idempotency_key)
            }
            PastCall::New | PastCall::Ended(_) => None,
        };
        let Some(spec) = spec else {
            return Ok(Outcome::refused(match self.mcp.withheld(&call.name) {
                Some(why) => format!("Error: {why}."),
                None => format!("Error: there is no tool {}.", call.name.escape_debug()),
            }));
        };
        let arguments = match arguments(&call.arguments) {
            Ok(arguments) => arguments,
            Err(sentence) => return Ok(Outcome::refused(sentence)),
        };
        let policy = self.policy();
        // What was begun had been allowed.
        if begun.is_none()
            && let Err(sentence) = self.allowed(call, &arguments, &policy).await?
        {
            return Ok(Outcome::refused(sentence));
        }
        let effect = on_the_wire(spec.effect);
        let key = match (&begun, spec.effect) {
            (Some(key), Effect::Idempotent) => key.clone(),
            (None, Effect::Idempotent) => format!("{}.{}.{}", self.turn.session_id, self.turn.seq, self.step),
            (_, Effect::Pure | Effect::AtMostOnce | Effect::Journaled) => String::new(),
        };
        let shared = Arc::clone(&self.shared);
        let keeps_intents = spec.effect != Effect::Pure && !shared.seams.without.intent_row;
        let mut is_stored = begun.is_some();
        let mut before = self.connection.borrow().registration;
        loop {
            if keeps_intents && !is_stored {
                shared.seams.point("intent.before").await;
                let body = serde_json::to_vec(&CallBody::from(call.clone())).unwrap_or_default();
                let report =
                    StepReport { body, idempotency_key: key.clone(), ..self.report(StepPhase::Intent, effect) };
                self.store(report).await?;
                before = self.connection.borrow().registration;
                shared.seams.point("intent.after").await;
            }
            shared.seams.point("effect.before").await;
            self.may_act().await?;
            // Registered anew meanwhile, the turn may be somebody else's: the same intent asks.
            if !keeps_intents || self.connection.borrow().registration == before {
                break;
            }
            is_stored = false;
        }
        let call = self.made(call, arguments, key.clone(), policy);
        let span = tracing::info_span!("tool", tool = spec.name, session = self.turn.session_id, turn = self.turn.seq);
        let stopped = self.inbox.ended();
        let ran = async {
            match self.mcp.has(spec) {
                true => Box::pin(self.mcp.run(spec, call, stopped)).await,
                false => run(shared.toolbox.as_ref(), spec, call, stopped).await,
            }
        };
        let ran = ran.instrument(span).await;
        shared.seams.point("effect.after").await;
        Ok(match ran {
            Ran::Finished(text) => Outcome { text, effect, key, unknown: false },
            Ran::Dropped if spec.effect == Effect::Pure => Outcome::refused(STOPPED.to_owned()),
            Ran::Dropped => Outcome::unknown(effect, key),
            Ran::Lost(text) => Outcome { text, effect, key, unknown: true },
        })
    }

    /// Waits until somebody has said whether a call may be made, where somebody has to; else what the model is told instead of its
    /// result. Nothing is held meanwhile but the turn's slot.
    async fn allowed(
        &mut self,
        call: &Asked,
        arguments: &Map<String, Value>,
        policy: &Sandbox,
    ) -> Result<Result<(), String>, Halt> {
        match rule(&call.name, arguments, policy, self.assignment.profile.as_ref()) {
            Ruling::Allowed => return Ok(Ok(())),
            Ruling::Refused(sentence) => return Ok(Err(sentence)),
            Ruling::Ask => {}
        }
        let shared = Arc::clone(&self.shared);
        shared.seams.point("approval.before").await;
        let mut tries = Tries::default();
        let (state, reason) = loop {
            let channel = self.ready().await?;
            let request = v1::AskApprovalRequest { turn: Some(self.turn), step: self.step, call: Some(call.clone()) };
            match self.inbox.unless_stopped(ask_plane(channel, request)).await? {
                Ok((v1::ApprovalState::Pending, _)) => tries = Tries::default(),
                Ok(answer) => break answer,
                Err(error) => tries.again(&self.inbox, error.into()).await?,
            }
        };
        shared.seams.point("approval.after").await;
        let sentence = match state {
            v1::ApprovalState::Allowed => return Ok(Ok(())),
            v1::ApprovalState::Denied if !reason.is_empty() => {
                return Ok(Err(format!(
                    "Denied: a model that reviews what you do did not let this pass, and no person was asked. It says: {reason:?}. It was not \
                     done. Do not try it in another way; say what you wanted to do, and why."
                )));
            }
            _ if !self.attended => {
                "Denied: this is a run of a scheduled job, and nobody is there who could allow it. It was not done. Do not try it in \
                 another way; say in your answer what you wanted to do, and why."
            }
            v1::ApprovalState::Expired => {
                "Denied: a person was asked whether this may be done, and nobody answered in time. It was not done. Do not try it \
                 in another way."
            }
            _ => {
                "Denied: a person was asked whether this may be done, and it may not. It was not done. Do not try it in another \
                 way."
            }
        };
        Ok(Err(sentence.to_owned()))
    }

    /// Waits until a tool may begin. Its intent may be stored already, so a hand-back waits until it has ended.
    pub(super) async fn may_act(&mut self) -> Result<(), Halt> {
        let ready = crate::connection::ready(&mut self.connection);
        self.inbox.unless_ended(ready).await?.ok_or(Halt::Left)?;
        self.inbox.end().map_or(Ok(()), Err)
    }

    /// Takes in what was said meanwhile, each message as a step of its own.
    async fn steering_steps(&mut self) -> Result<(), Halt> {
        while let Some(text) = self.past.steering(self.step)? {
            self.take_in(text);
        }
        while let Some(steer) = self.inbox.steer() {
            let Ok(Steered { text }) = serde_json::from_slice(&steer.input) else {
                tracing::error!(queued = steer.seq, "a queued message cannot be read; it will run by itself");
                continue;
            };
            let body = SteeringBody { text };
            let bytes = serde_json::to_vec(&body).unwrap_or_default();
            if bytes.len() > MAX_BODY_BYTES {
                tracing::info!(
                    queued = steer.seq,
                    "a queued message is too long to be taken in; it will run by itself"
                );
                continue;
            }
            let report = StepReport {
                kind: StepKind::Steering.into(),
                body: bytes,
                absorbs: steer.seq,
                ..self.report(StepPhase::Result, v1::Effect::Unspecified)
            };
            if self.store(report).await? {
                self.take_in(body.text);
            }
        }
        Ok(())
    }

    fn take_in(&mut self, text: String) {
        self.step += 1;
        self.messages.push(Message::new(ModelRole::User, text));
    }

    fn report(&self, phase: StepPhase, effect: v1::Effect) -> StepReport {
        StepReport {
            step: self.step,
            phase: phase.into(),
            kind: StepKind::ToolCall.into(),
            effect: effect.into(),
            ..StepReport::default()
        }
    }

    /// Reports and waits for the answer, unless the turn has to end; a hand-back waits.
    async fn store(&mut self, report: StepReport) -> Result<bool, Halt> {
        if !self.steps_are_taken() {
            return Err(Halt::Failed(super::NOT_TAKEN.to_owned()));
        }
        let stored = self.reports.send(report);
        self.inbox.unless_ended(stored).await?
    }
}

/// The arguments of a call; else what is wrong with them, for the model.
fn arguments(text: &str) -> Result<Map<String, Value>, String> {
    if text.len() > MAX_ARGUMENT_BYTES {
        return Err(format!("Error: the arguments are longer than {MAX_ARGUMENT_BYTES} bytes."));
    }
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(text).map_err(|error| format!("Error: the arguments are not a JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_arguments_are_a_sentence_for_the_model() {
        assert_eq!(arguments(" "), Ok(Map::new()));
        assert_eq!(arguments(r#"{"a":1}"#).map(|map| map.len()), Ok(1));
        for text in ["{", "[1]", "null", r#"{"a":"#] {
            let sentence = arguments(text).expect_err(text);
            assert!(sentence.starts_with("Error: the arguments are not a JSON object"), "{sentence}");
        }
        assert!(arguments(&" ".repeat(MAX_ARGUMENT_BYTES + 1)).is_err());
    }
}
