//! One attempt at one delivery: its parts in order, each outcome committed.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use hermes_platforms::{Adapter, OutboundMessage, SendError, Sent};
use tracing::Instrument as _;

use super::Outbox;
use crate::store::{DeliveryOutcome, DueDelivery, SendResult};
use crate::telemetry::{self, TRACE};

/// Waits before the second, third … attempt (the schedule of a well-known webhook sender, with two quick tries in front);
/// after the last one the delivery is dead.
const SCHEDULE: [Duration; 9] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(5 * 3600),
    Duration::from_secs(10 * 3600),
    Duration::from_secs(10 * 3600),
];

/// What is said of a message on which the adapter panicked.
const ADAPTER_FAILED: &str = "the adapter failed on this message";

pub(super) async fn run(outbox: &Outbox, delivery: DueDelivery) {
    let span = tracing::info_span!(target: TRACE, "delivery", turn = %delivery.turn, lane = delivery.lane, attempt = delivery.attempt);
    let span = telemetry::child_of(delivery.traceparent.as_deref().unwrap_or_default(), span);
    send(outbox, delivery).instrument(span).await;
}

async fn send(outbox: &Outbox, mut delivery: DueDelivery) {
    let (adapter, chat) = match outbox.route(delivery.lane).await {
        Ok(found) => found,
        Err(cause) => return settle(outbox, "none", &delivery, retry(&delivery, false, &cause)).await,
    };
    // An attempt that took its process along counts as failed: what does so again and again is not tried for ever.
    if usize::try_from(delivery.failures).unwrap_or(0) > SCHEDULE.len() {
        let outcome = retry(&delivery, false, "its sender ended during the attempt");
        return settle(outbox, adapter.platform(), &delivery, outcome).await;
    }
    let Some(parts) = split(adapter.as_ref(), &String::from_utf8_lossy(&delivery.body)) else {
        return settle(outbox, adapter.platform(), &delivery, retry(&delivery, false, ADAPTER_FAILED)).await;
    };
    let first = usize::try_from(delivery.part).unwrap_or(0);
    let mut message_id = None;
    for (index, text) in parts.iter().enumerate().skip(first) {
        let message = OutboundMessage {
            chat: chat.clone(),
            text: text.clone(),
            maybe_duplicate: delivery.maybe_duplicate && index == first,
            idempotency_key: format!("{}-{}-{index}", delivery.lane, delivery.pos),
        };
        let failpoints = outbox.inner.store.failpoints();
        failpoints.reach("send.before").await;
        let sent = send_part(adapter.as_ref(), message).await;
        failpoints.reach("send.after").await;
        match sent {
            Ok(sent) => message_id = message_id.or(sent.message_id),
            Err(error) => {
                let outcome = match error {
                    SendError::RetryAfter { after, ref cause } => wait(&delivery, after, cause),
                    SendError::Retry(ref cause) => retry(&delivery, false, cause),
                    SendError::Ambiguous(ref cause) => retry(&delivery, true, cause),
                    SendError::ChatGone(reason) | SendError::Refused(reason) => SendResult::Dead { reason },
                };
                return settle(outbox, adapter.platform(), &delivery, outcome).await;
            }
        }
        delivery.part = i32::try_from(index + 1).unwrap_or(i32::MAX);
        // The mark was about the part that has just arrived.
        delivery.maybe_duplicate = false;
        if index + 1 < parts.len() && !settle_progress(outbox, &delivery).await {
            return;
        }
    }
    settle(outbox, adapter.platform(), &delivery, SendResult::Delivered { message_id }).await;
}

/// The parts of a text; `None` when the adapter panicked. One message must not stop the process, again at each start.
fn split(adapter: &dyn Adapter, text: &str) -> Option<Vec<String>> {
    std::panic::catch_unwind(AssertUnwindSafe(|| adapter.split(text))).ok()
}

/// Sends a part; where the adapter panics, nobody knows how far it came.
async fn send_part(adapter: &dyn Adapter, message: OutboundMessage) -> Result<Sent, SendError> {
    let sending = AssertUnwindSafe(async { adapter.send(message).await }).catch_unwind();
    sending.await.unwrap_or_else(|_| Err(SendError::Ambiguous(ADAPTER_FAILED.to_owned())))
}

fn retry(delivery: &DueDelivery, ambiguous: bool, cause: &str) -> SendResult {
    let failed = usize::try_from(delivery.failures).unwrap_or(0);
    let Some(planned) = SCHEDULE.get(failed) else {
        return SendResult::Dead { reason: format!("given up after {} attempts: {cause}", failed + 1) };
    };
    tracing::info!(cause, "a delivery will be tried again");
    let after = planned.mul_f64(rand::random_range(0.5..=1.0));
    // Parts of this attempt that arrived are committed already; a mark of an earlier attempt for the same part stays.
    SendResult::Retry { after, maybe_duplicate: ambiguous || delivery.maybe_duplicate }
}

/// What the platform asks for is honoured to the letter, with a little room, and as often as it asks: a chat that is busy for
/// long loses nothing.
fn wait(delivery: &DueDelivery, after: Duration, cause: &str) -> SendResult {
    tracing::info!(cause, "a delivery waits as it was asked to");
    SendResult::Wait { after: after + Duration::from_millis(50), maybe_duplicate: delivery.maybe_duplicate }
}

async fn settle_progress(outbox: &Outbox, delivery: &DueDelivery) -> bool {
    let outcome = outcome_of(delivery, SendResult::Progress);
    outbox.record(outcome).await
}

async fn settle(outbox: &Outbox, platform: &'static str, delivery: &DueDelivery, result: SendResult) {
    match &result {
        SendResult::Dead { reason } => tracing::warn!(reason, "a delivery was given up"),
        SendResult::Retry { after, .. } | SendResult::Wait { after, .. } => {
            // The second is the truth; this only makes a short wait exact.
            let (outbox, after) = (outbox.clone(), *after);
            let tasks = outbox.inner.tasks.clone();
            if after < Duration::from_secs(60) {
                tasks.clone().spawn("retry timer", async move {
                    tokio::select! {
                        () = tasks.stopping().cancelled_owned() => {}
                        () = tokio::time::sleep(after + Duration::from_millis(5)) => outbox.nudge(),
                    }
                });
            }
        }
        SendResult::Delivered { .. } | SendResult::Progress => {}
    }
    let kind = match &result {
        SendResult::Delivered { .. } => "delivered",
        SendResult::Dead { .. } => "dead",
        SendResult::Retry { .. } | SendResult::Wait { .. } => "retry",
        SendResult::Progress => "progress",
    };
    outbox.inner.metrics.delivery(platform, kind);
    if !outbox.record(outcome_of(delivery, result)).await {
        tracing::info!(lane = delivery.lane, pos = delivery.pos, "a delivery was taken over by another replica");
    }
}

fn outcome_of(delivery: &DueDelivery, result: SendResult) -> DeliveryOutcome {
    DeliveryOutcome { lane: delivery.lane, pos: delivery.pos, attempt: delivery.attempt, part: delivery.part, result }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use hermes_platforms::{ChatRef, InboundSink};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::store::{SessionId, TurnId};

    struct Fragile;

    impl Adapter for Fragile {
        fn platform(&self) -> &'static str {
            "fragile"
        }
        fn account(&self) -> &'static str {
            "one"
        }
        fn receive<'a>(&'a self, _: &'a dyn InboundSink, _: CancellationToken) -> BoxFuture<'a, ()> {
            std::future::ready(()).boxed()
        }
        fn split(&self, text: &str) -> Vec<String> {
            assert!(text != "uncuttable", "no place to cut");
            vec![text.to_owned()]
        }
        fn send(&self, message: OutboundMessage) -> BoxFuture<'_, Result<Sent, SendError>> {
            assert!(message.text != "refused at once", "before the future");
            async move {
                assert!(message.text != "refused later", "within the future");
                Ok(Sent { message_id: None })
            }
            .boxed()
        }
        fn typing(&self, _: ChatRef) -> BoxFuture<'_, ()> {
            std::future::ready(()).boxed()
        }
    }

    #[tokio::test]
    async fn a_panic_of_an_adapter_is_a_failed_attempt() {
        let message = |text: &str| OutboundMessage {
            chat: ChatRef { chat_id: "1".to_owned(), thread_id: None },
            text: text.to_owned(),
            maybe_duplicate: false,
            idempotency_key: String::new(),
        };
        assert_eq!(split(&Fragile, "uncuttable"), None);
        assert_eq!(split(&Fragile, "fine").unwrap(), ["fine"]);
        for text in ["refused at once", "refused later"] {
            let failed = send_part(&Fragile, message(text)).await;
            assert_eq!(failed, Err(SendError::Ambiguous(ADAPTER_FAILED.to_owned())), "{text}");
        }
        assert_eq!(send_part(&Fragile, message("fine")).await, Ok(Sent { message_id: None }));
    }

    #[test]
    fn only_failures_count_towards_giving_up() {
        let turn = TurnId { session: SessionId(1), seq: 1 };
        let delivery = |attempt, failures| DueDelivery {
            lane: 1,
            pos: 1,
            turn,
            attempt,
            failures,
            part: 0,
            traceparent: None,
            maybe_duplicate: false,
            body: Vec::new(),
        };
        let asked = Duration::from_secs(40);
        assert!(matches!(wait(&delivery(1000, 0), asked, "busy"), SendResult::Wait { after, .. } if after >= asked));
        assert!(matches!(retry(&delivery(1000, 8), false, "500"), SendResult::Retry { .. }));
        let SendResult::Dead { reason } = retry(&delivery(10, 9), false, "500") else { panic!() };
        assert_eq!(reason, "given up after 10 attempts: 500");
    }
}
