//! A list of models of which the first that can answer does.
//!
//! Called by the broker. Always true: one model is asked at a time, in the order of the list; once a model's first token was
//! passed on no other is asked; the last model's failure is the call's. Whether another model may cure a failure the failure
//! says ([`ModelFailure::elsewhere`]).

use std::collections::VecDeque;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};

use super::{ModelEvent, ModelFailure, ModelTarget};

struct Chain<F> {
    left: VecDeque<ModelTarget>,
    ask: F,
    events: Option<BoxStream<'static, ModelEvent>>,
    /// The current model has said something.
    begun: bool,
}

/// The events of the first of `targets` that can answer; `ask` begins a call.
pub(super) fn by_first(
    targets: Vec<ModelTarget>,
    ask: impl Fn(ModelTarget) -> BoxStream<'static, ModelEvent> + Send + 'static,
) -> BoxStream<'static, ModelEvent> {
    let chain = Chain { left: targets.into(), ask, events: None, begun: false };
    stream::unfold(chain, |mut chain| async move {
        loop {
            let events = match &mut chain.events {
                Some(events) => events,
                none => none.insert((chain.ask)(chain.left.pop_front()?)),
            };
            let event = events.next().await?;
            if let ModelEvent::Failed(failure) = &event
                && !chain.begun
                && moves_on(failure, &chain.left)
            {
                chain.events = None;
                continue;
            }
            chain.begun = true;
            return Some((event, chain));
        }
    })
    .boxed()
}

fn moves_on(failure: &ModelFailure, left: &VecDeque<ModelTarget>) -> bool {
    let next = left.front().filter(|_| failure.elsewhere);
    if let Some(next) = next {
        let (reason, cause) = (failure.reason.as_str(), failure.cause.as_str());
        tracing::warn!(reason, cause, next = next.id(), "a model cannot answer; the next one of the list is asked");
    }
    next.is_some()
}
