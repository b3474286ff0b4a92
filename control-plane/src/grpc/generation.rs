//! One model call on its way to a worker: the events of the broker, with the reply journaled before the worker can act on it.
//!
//! Called by the model's service. Always true: a call of a tool leaves only when the reply that asks for it is in the journal; a
//! journaled reply is passed on as it is, byte for byte; what a call used is counted once, whoever asks again; a call under a
//! budget is settled before its end is passed on.

use std::collections::VecDeque;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hermes_core::AgentId;
use hermes_core::turn::Usage;
use hermes_proto::v1;
use hermes_proto::v1::generate_event::Event;
use tonic::Status;
use tracing::Span;
use uuid::Uuid;

use super::convert::usage_to;
use super::status::{Reason, refuse};
use crate::budget::{CallEnd, Reservation};
use crate::dispatch::{Dispatcher, ReplyAnswer};
use crate::models::{ModelEvent, Reply};
use crate::store::TurnId;
use crate::telemetry::Metrics;

/// Text of a replayed reply in one event, bytes.
const DELTA_BYTES: usize = 64 << 10;

/// What is asked, and for whom.
pub(super) struct Asked {
    pub(super) dispatcher: Dispatcher,
    pub(super) metrics: Metrics,
    pub(super) agent: AgentId,
    /// The worker's certificate.
    pub(super) worker: Uuid,
    pub(super) turn: TurnId,
    pub(super) epoch: i64,
    pub(super) step: i32,
    /// Kind of provider, for metrics.
    pub(super) kind: &'static str,
    /// The model may ask for tools.
    pub(super) tools: bool,
    /// Lasts as long as the call.
    pub(super) span: Span,
}

/// The events of a call as the worker sees them.
type Events = BoxStream<'static, Result<v1::GenerateEvent, Status>>;

struct Generation {
    asked: Asked,
    events: BoxStream<'static, ModelEvent>,
    started: Instant,
    /// What a budget has reserved for it.
    reservation: Option<Reservation>,
    /// Text was passed on.
    begun: bool,
    /// The text so far, where it may have to be journaled.
    text: String,
    ready: VecDeque<Result<Event, Status>>,
    ended: bool,
}

/// Passes on what the model says.
pub(super) fn live(asked: Asked, events: BoxStream<'static, ModelEvent>, reservation: Option<Reservation>) -> Events {
    let generation = Generation {
        asked,
        events,
        started: Instant::now(),
        reservation,
        begun: false,
        text: String::new(),
        ready: VecDeque::new(),
        ended: false,
    };
    stream::unfold(generation, |mut generation| async move {
        let event = generation.next().await?;
        Some((event.map(|event| v1::GenerateEvent { event: Some(event) }), generation))
    })
    .boxed()
}

/// Passes on what the journal says the model said.
pub(super) fn replayed(asked: &Asked, journaled: &[u8]) -> Events {
    let events = asked.replay(journaled);
    stream::iter(events).map(|event| event.map(|event| v1::GenerateEvent { event: Some(event) })).boxed()
}

impl Asked {
    /// The step as the fleet counts it.
    fn step(&self) -> u32 {
        u32::try_from(self.step).unwrap_or(u32::MAX)
    }

    fn count(&self, used: &Usage, journaled: Option<u32>) {
        self.dispatcher.fleet().note_usage(self.turn, self.epoch, used, journaled);
    }

    /// The last events of a reply; one that asks for tools is in the journal when this answers.
    async fn end(&self, reply: Reply) -> Vec<Result<Event, Status>> {
        if reply.tool_calls.is_empty() {
            // It is written by the turn's end; a crash before that asks again.
            self.count(&reply.usage, None);
            return ending(reply, false).collect();
        }
        match self.dispatcher.record_reply(self.turn, self.epoch, self.step, reply.to_bytes()).await {
            ReplyAnswer::Stored => {
                self.count(&reply.usage, Some(self.step()));
                ending(reply, false).collect()
            }
            // Asked twice at once, here and where the turn ran before. What was asked in vain is paid for all the same.
            ReplyAnswer::Journaled(journaled) => {
                self.count(&reply.usage, None);
                if reply.text.is_empty() {
                    self.replay(&journaled)
                } else {
                    // The text that left already is another one's.
                    vec![Err(refuse(Reason::StoreUncertain, "another reply was journaled first; ask again"))]
                }
            }
            ReplyAnswer::Fenced => {
                vec![Err(refuse(Reason::StaleEpoch, "this worker does not run that turn (any more)"))]
            }
            ReplyAnswer::Uncertain => {
                vec![Err(refuse(Reason::StoreUncertain, "the reply could not be journaled; ask again"))]
            }
        }
    }

    fn replay(&self, journaled: &[u8]) -> Vec<Result<Event, Status>> {
        let Some(reply) = Reply::from_bytes(journaled) else {
            tracing::error!(turn = %self.turn, step = self.step, "a journaled reply cannot be read");
            return vec![Err(refuse(Reason::Internal, "the journaled reply cannot be read"))];
        };
        tracing::info!(turn = %self.turn, step = self.step, "a model's reply is replayed from the journal");
        self.dispatcher.fleet().note_replayed(self.turn, self.epoch, self.step(), &reply.usage);
        let mut events = Vec::new();
        let mut rest = reply.text.as_str();
        while !rest.is_empty() {
            let (delta, more) = rest.split_at(rest.floor_char_boundary(DELTA_BYTES));
            events.push(Ok(Event::TextDelta(delta.to_owned())));
            rest = more;
        }
        events.extend(ending(reply, true));
        events
    }
}

/// The calls and the end of a reply.
fn ending(reply: Reply, replayed: bool) -> impl Iterator<Item = Result<Event, Status>> {
    let calls = reply
        .tool_calls
        .into_iter()
        .map(|call| Ok(Event::ToolCall(v1::ToolCall { id: call.id, name: call.name, arguments: call.arguments })));
    let done = v1::GenerateDone {
        usage: Some(usage_to(reply.usage)),
        finish_reason: reply.finish_reason,
        replayed,
        reasoning: reply.reasoning,
    };
    calls.chain(std::iter::once(Ok(Event::Done(done))))
}

impl Generation {
    async fn next(&mut self) -> Option<Result<Event, Status>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            let event = self.events.next().await?;
            self.asked.dispatcher.fleet().progressed(self.asked.worker, self.asked.turn, self.asked.epoch);
            match event {
                ModelEvent::Delta(text) => {
                    self.begun = true;
                    if self.asked.tools {
                        self.text.push_str(&text);
                    }
                    return Some(Ok(Event::TextDelta(text)));
                }
                ModelEvent::Done { usage, finish_reason, calls, reasoning } => {
                    let (kind, metrics) = (self.asked.kind, &self.asked.metrics);
                    metrics.model_call(kind, "done", self.started.elapsed());
                    metrics.model_tokens("input", usage.input_tokens);
                    metrics.model_tokens("output", usage.output_tokens);
                    if let Some(reservation) = self.reservation.take() {
                        reservation.settle(CallEnd::Answered(&usage)).await;
                    }
                    let text = std::mem::take(&mut self.text);
                    let reply = Reply { text, tool_calls: calls, usage, finish_reason, reasoning };
                    let end = self.asked.end(reply).await;
                    self.ready.extend(end);
                    self.ended = true;
                }
                ModelEvent::Failed(failure) => {
                    if let Some(reservation) = self.reservation.take() {
                        let billed = failure.may_be_billed(self.begun);
                        reservation.settle(if billed { CallEnd::MaybeBilled } else { CallEnd::Free }).await;
                    }
                    let Asked { turn, agent, kind, metrics, .. } = &self.asked;
                    let reason = failure.reason.as_str();
                    metrics.model_call(kind, reason, self.started.elapsed());
                    let _within = self.asked.span.enter();
                    tracing::warn!(%turn, %agent, reason, cause = failure.cause, "a model call failed");
                    self.ended = true;
                    let failed = v1::GenerateFailed { message: failure.message, reason: reason.to_owned() };
                    return Some(Ok(Event::Failed(failed)));
                }
            }
        }
    }
}
