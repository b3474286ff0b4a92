//! One attempt at one delivery: its parts in order, each outcome committed.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hermes_platforms::{Adapter, Button, ChatRef, Edit, EditError, OutboundMessage, SendError, Sent};
use tracing::Instrument as _;

use super::adapters::parking_key;
use super::files::{self, Part};
use super::tenure::Tenure;
use super::{Astray, Outbox};
use crate::store::{self, DeliveryOutcome, DueDelivery, PreviewEnd, SendResult};
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

/// How long a delivery waits that the store could not be asked about.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// How long it waits for another replica to let go of the message that showed it.
const HELD_PAUSE: Duration = Duration::from_millis(250);
/// What becomes of a message that showed a turn which ended without a word.
const ENDED_EMPTY: &str = "(ended without an answer)";

/// What is said of a message on which the adapter panicked.
const ADAPTER_FAILED: &str = "the adapter failed on this message";

/// What became of the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Its outcome is stored, or another replica stores it.
    Settled,
    /// This replica may not send it any more. Another one may be sending it; if none is, it is ours and nobody's.
    Left,
}

/// One attempt at a delivery that was taken over in this tenure.
pub(super) async fn run(outbox: &Outbox, delivery: DueDelivery, tenure: &Tenure) -> End {
    let span = tracing::info_span!(target: TRACE, "delivery", turn = %delivery.turn, lane = delivery.lane, attempt = delivery.attempt);
    outbox.inner.store.failpoints().reach("attempt.before").await;
    let span = telemetry::child_of(delivery.traceparent.as_deref().unwrap_or_default(), span);
    send(outbox, delivery, tenure).instrument(span).await
}

async fn send(outbox: &Outbox, mut delivery: DueDelivery, tenure: &Tenure) -> End {
    let (adapter, chat) = match outbox.route(delivery.lane).await {
        Ok(found) => found,
        Err(astray) => {
            settle(outbox, "none", &delivery, astray_result(&delivery, astray)).await;
            return End::Settled;
        }
    };
    let adapter = adapter.as_ref();
    let (platform, suspected) = (adapter.platform(), outbox.is_suspected(delivery.lane));
    match ask(outbox, &delivery).await {
        Ok(None) => {}
        Ok(Some(gone)) => {
            let reason = format!("not sent, the chat is gone: {gone}");
            let result = SendResult::Dead { reason, maybe_duplicate: delivery.maybe_duplicate };
            settle(outbox, platform, &delivery, result).await;
            return End::Settled;
        }
        Err(error) => {
            settle(outbox, platform, &delivery, wait(&delivery, STORE_PAUSE, &error.to_string())).await;
            return End::Settled;
        }
    }
    // An attempt that took its process along counts as failed: what does so again and again is not tried for ever.
    if usize::try_from(delivery.failures).unwrap_or(0) > SCHEDULE.len() {
        let outcome = retry(&delivery, false, "its sender ended during the attempt");
        settle(outbox, platform, &delivery, outcome).await;
        return End::Settled;
    }
    let result = match prepare(outbox, adapter, &mut delivery).await {
        Err(result) => result,
        Ok((parts, shown)) => match send_parts(outbox, adapter, &chat, &mut delivery, tenure, &parts, shown).await {
            Ok(message_id) => SendResult::Delivered { message_id, revived: suspected },
            Err(Ended::Elsewhere) => return End::Settled,
            Err(Ended::Failed(error, called)) => match error {
                SendError::RetryAfter { after, ref cause } => wait(&delivery, after, cause),
                SendError::Retry(ref cause) => retry(&delivery, false, cause),
                SendError::Expired => {
                    tracing::warn!(turn = %delivery.turn, lane = delivery.lane, "this replica's lease ended, a delivery is left to others");
                    return End::Left;
                }
                SendError::Ambiguous(ref cause) => retry(&delivery, true, cause),
                SendError::Refused(reason) => SendResult::Dead { reason, maybe_duplicate: delivery.maybe_duplicate },
                SendError::ChatGone(reason) => {
                    outbox.suspect(delivery.lane, true);
                    SendResult::Gone { reason, age: called.elapsed(), maybe_duplicate: delivery.maybe_duplicate }
                }
            },
        },
    };
    let over = matches!(result, SendResult::Delivered { .. } | SendResult::Dead { .. } | SendResult::Gone { .. });
    if suspected && matches!(result, SendResult::Delivered { .. }) {
        outbox.suspect(delivery.lane, false);
    }
    let stored = settle(outbox, platform, &delivery, result).await;
    if stored && over && outbox.has_previews(adapter) {
        // What fails here is swept up later.
        let _ = outbox.inner.store.preview_forget(delivery.turn).await;
    }
    End::Settled
}

/// Why the chat is gone, if the store says so.
async fn ask(outbox: &Outbox, delivery: &DueDelivery) -> store::Result<Option<String>> {
    if delivery.gone.is_some() || !delivery.ask {
        return Ok(delivery.gone.clone());
    }
    outbox.inner.store.lane_gone(delivery.lane, delivery.turn).await
}

/// The parts to send and the message that the first one must become; or how the attempt ends without a call.
async fn prepare(
    outbox: &Outbox,
    adapter: &dyn Adapter,
    delivery: &mut DueDelivery,
) -> Result<(Vec<Part>, Option<String>), SendResult> {
    let mut shown = None;
    if delivery.part == 0 {
        match outbox.preview_of(delivery, adapter).await {
            Ok(PreviewEnd::None) => {}
            Ok(PreviewEnd::Edit(message)) => shown = Some(message),
            Ok(PreviewEnd::Unknown) => delivery.maybe_duplicate = true,
            Ok(PreviewEnd::Held) => return Err(wait(delivery, HELD_PAUSE, "another replica still shows the answer")),
            Err(error) => return Err(wait(delivery, STORE_PAUSE, &error.to_string())),
        }
    }
    let text = String::from_utf8_lossy(&delivery.body);
    let text = match (text.trim().is_empty(), &shown) {
        (false, _) => text.as_ref(),
        (true, Some(_)) => ENDED_EMPTY,
        // Nothing to say and nothing shown: done without a word.
        (true, None) => return Err(SendResult::Delivered { message_id: None, revived: false }),
    };
    let parts = files::parts(outbox, adapter, delivery, text).await;
    let parts = parts.map_err(|error| wait(delivery, STORE_PAUSE, &error.to_string()))?;
    let parts = parts.ok_or_else(|| retry(delivery, false, ADAPTER_FAILED))?;
    Ok((parts, shown))
}

/// How sending ended before the last part.
enum Ended {
    /// Another replica has the delivery now.
    Elsewhere,
    /// The platform, or our own pacing, said so, to a call that began then.
    Failed(SendError, Instant),
}

/// Sends what has not arrived yet, part by part, and answers the id of the first one.
async fn send_parts(
    outbox: &Outbox,
    adapter: &dyn Adapter,
    chat: &ChatRef,
    delivery: &mut DueDelivery,
    tenure: &Tenure,
    parts: &[Part],
    shown: Option<String>,
) -> Result<Option<String>, Ended> {
    let first = usize::try_from(delivery.part).unwrap_or(0);
    let mut message_id = None;
    let buttons = buttons(outbox, adapter, delivery).await;
    for (index, part) in parts.iter().enumerate().skip(first) {
        let edited = match &shown {
            Some(message) if index == 0 => {
                let called = Instant::now();
                let edited = edit_part(outbox, adapter, chat, tenure, message, &part.text).await;
                edited.map_err(|error| Ended::Failed(error, called))?
            }
            _ => false,
        };
        if edited {
            message_id.clone_from(&shown);
        } else {
            // Closed by nobody.
            let _room = match &part.file {
                Some(_) => outbox.inner.files.acquire().await.ok(),
                None => None,
            };
            let loaded = part.loaded(outbox).await;
            let (text, attachment) = loaded.map_err(|error| {
                Ended::Failed(SendError::RetryAfter { after: STORE_PAUSE, cause: error.to_string() }, Instant::now())
            })?;
            let message = OutboundMessage {
                chat: chat.clone(),
                text,
                attachment,
                maybe_duplicate: delivery.maybe_duplicate && index == first && !adapter.deduplicates(),
                idempotency_key: format!("{}-{}-{index}", delivery.lane, delivery.pos),
                not_after: Some(tenure.deadline()),
                // Under the last part, where a reader is done.
                buttons: if index + 1 == parts.len() { buttons.clone() } else { Vec::new() },
            };
            let failpoints = outbox.inner.store.failpoints();
            failpoints.reach("send.before").await;
            let called = Instant::now();
            let sent = send_part(adapter, message).await;
            failpoints.reach("send.after").await;
            message_id = message_id.or(sent.map_err(|error| Ended::Failed(error, called))?.message_id);
        }
        delivery.part = i32::try_from(index + 1).unwrap_or(i32::MAX);
        // The mark was about the part that has just arrived.
        delivery.maybe_duplicate = false;
        if index + 1 < parts.len() && !settle_progress(outbox, delivery).await {
            return Err(Ended::Elsewhere);
        }
    }
    Ok(message_id)
}

/// What a question about a call offers to press. Without them it is answered in words, so a store that cannot be asked costs no message.
async fn buttons(outbox: &Outbox, adapter: &dyn Adapter, delivery: &DueDelivery) -> Vec<Button> {
    if !adapter.offers_buttons() || delivery.turn.seq != 0 {
        return Vec::new();
    }
    let asks = outbox.inner.store.approval_of_delivery(delivery.lane, delivery.pos).await.unwrap_or_default();
    let choices = [
        ("Allow once", "approve", "once"),
        ("This conversation", "approve", "session"),
        ("Always", "approve", "always"),
        ("Deny", "deny", ""),
    ];
    let button = |id, (label, command, reach): (&str, &str, &str)| Button {
        label: label.to_owned(),
        says: format!("/{command} {id} {reach}").trim_end().to_owned(),
    };
    asks.map(|id| choices.map(|choice| button(id, choice)).to_vec()).unwrap_or_default()
}

/// Brings the message that showed the turn to its final text. False: that message cannot show it. What is ambiguous is tried
/// again without a mark: the same edit twice is one.
async fn edit_part(
    outbox: &Outbox,
    adapter: &dyn Adapter,
    chat: &ChatRef,
    tenure: &Tenure,
    message: &str,
    text: &str,
) -> Result<bool, SendError> {
    let edit = Edit {
        chat: chat.clone(),
        message_id: message.to_owned(),
        text: text.to_owned(),
        passing: false,
        not_after: Some(tenure.deadline()),
    };
    let failpoints = outbox.inner.store.failpoints();
    failpoints.reach("edit.before").await;
    let edited = AssertUnwindSafe(async { adapter.edit(edit).await }).catch_unwind().await;
    failpoints.reach("edit.after").await;
    match edited {
        Ok(Ok(())) => Ok(true),
        Ok(Err(EditError::Lost(cause))) => {
            tracing::info!(cause, "the message that showed the answer is lost, it is sent as a new one");
            Ok(false)
        }
        Ok(Err(EditError::Unsupported)) => Ok(false),
        Ok(Err(EditError::Failed(SendError::Ambiguous(cause)))) => Err(SendError::Retry(cause)),
        Ok(Err(EditError::Failed(error))) => Err(error),
        Ok(Err(EditError::NotNow)) => Err(SendError::Retry("no room for an edit".to_owned())),
        Err(_) => Err(SendError::Retry(ADAPTER_FAILED.to_owned())),
    }
}

/// A lane that leads nowhere right now is nobody's failure.
fn astray_result(delivery: &DueDelivery, astray: Astray) -> SendResult {
    let maybe_duplicate = delivery.maybe_duplicate;
    match astray {
        Astray::NoAccount(key) => {
            tracing::info!(platform = key.platform, account = key.account, "a delivery waits for its account");
            SendResult::Parked { account: parking_key(&key.platform, &key.account), maybe_duplicate }
        }
        Astray::Unavailable(cause) => wait(delivery, STORE_PAUSE, &cause),
        Astray::NoLane(reason) => SendResult::Dead { reason, maybe_duplicate },
    }
}

/// The parts of a text; `None` when the adapter panicked. One message must not stop the process, again at each start.
pub(super) fn split(adapter: &dyn Adapter, text: &str) -> Option<Vec<String>> {
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
        return SendResult::Dead {
            reason: format!("given up after {} attempts: {cause}", failed + 1),
            maybe_duplicate: ambiguous || delivery.maybe_duplicate,
        };
    };
    tracing::info!(cause, "a delivery will be tried again");
    let after = planned.mul_f64(rand::random_range(0.5..=1.0));
    // Parts of this attempt that arrived are committed already; a mark of an earlier attempt for the same part stays.
    SendResult::Retry { after, maybe_duplicate: ambiguous || delivery.maybe_duplicate, cause: cause.to_owned() }
}

/// What the platform asks for is honoured to the letter, with a little room, and as often as it asks: a chat that is busy for
/// long loses nothing.
fn wait(delivery: &DueDelivery, after: Duration, cause: &str) -> SendResult {
    tracing::info!(cause, "a delivery waits as it was asked to");
    let after = after + Duration::from_millis(50);
    SendResult::Wait { after, maybe_duplicate: delivery.maybe_duplicate, cause: cause.to_owned() }
}

async fn settle_progress(outbox: &Outbox, delivery: &DueDelivery) -> bool {
    let outcome = outcome_of(delivery, SendResult::Progress);
    outbox.record(outcome).await
}

/// Commits how the attempt ended. False: it is not ours any more.
async fn settle(outbox: &Outbox, platform: &'static str, delivery: &DueDelivery, result: SendResult) -> bool {
    match &result {
        SendResult::Dead { reason, .. } | SendResult::Gone { reason, .. } => {
            tracing::warn!(reason, "a delivery was given up")
        }
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
        SendResult::Delivered { .. } | SendResult::Parked { .. } | SendResult::Progress => {}
    }
    let kind = match &result {
        SendResult::Delivered { .. } => "delivered",
        SendResult::Dead { .. } | SendResult::Gone { .. } => "dead",
        SendResult::Parked { .. } => "parked",
        SendResult::Retry { .. } | SendResult::Wait { .. } => "retry",
        SendResult::Progress => "progress",
    };
    outbox.inner.metrics.delivery(platform, kind);
    let stored = outbox.record(outcome_of(delivery, result)).await;
    if !stored {
        tracing::info!(lane = delivery.lane, pos = delivery.pos, "a delivery was taken over by another replica");
    }
    stored
}

fn outcome_of(delivery: &DueDelivery, result: SendResult) -> DeliveryOutcome {
    DeliveryOutcome { lane: delivery.lane, pos: delivery.pos, attempt: delivery.attempt, part: delivery.part, result }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use hermes_platforms::InboundSink;
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
            attachment: None,
            maybe_duplicate: false,
            idempotency_key: String::new(),
            not_after: None,
            buttons: Vec::new(),
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
            gone: None,
            ask: false,
        };
        let asked = Duration::from_secs(40);
        assert!(matches!(wait(&delivery(1000, 0), asked, "busy"), SendResult::Wait { after, .. } if after >= asked));
        assert!(matches!(retry(&delivery(1000, 8), false, "500"), SendResult::Retry { .. }));
        let SendResult::Dead { reason, .. } = retry(&delivery(10, 9), false, "500") else { panic!() };
        assert_eq!(reason, "given up after 10 attempts: 500");
    }
}
