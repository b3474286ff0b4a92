//! A running turn's text in its chat: one message that is edited while the text grows and that becomes the answer.
//!
//! Begun by dispatch for each turn of an account that streams; ended by the turn's delivery, which takes the message over. Always
//! true: the intent is committed before the first send and the message's id right after, so whoever ends the turn, here or on
//! another replica, edits that message and sends no second one; where nobody knows whether the first send arrived, the answer
//! is a message of its own with the mark; the last edit is sent after every passing one has ended, or its replica has.
//!
//! The lane: a message is begun only while nothing undelivered is in front of it, and it keeps its place in the chat. It does not
//! hold the lane: what other sessions say meanwhile comes below it, because a turn may run for an hour and a lane may be a
//! whole group. It keeps no text: what is lost with a process is written again by the next one.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use hermes_platforms::{Adapter, ChatRef, Edit, EditError, OutboundMessage, SendError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Outbox;
use super::tenure::Tenure;
use crate::store::{self, DueDelivery, PreviewBegin, PreviewEnd, TurnId};

/// Least time between two edits of one message.
const EVERY: Duration = Duration::from_millis(800);
/// Least growth that is worth an edit, characters.
const GROWTH: usize = 24;
/// How often a platform may ask to wait before a turn is shown no more.
const STRIKES: u32 = 3;
/// Stands behind a text that still grows.
const CURSOR: &str = " \u{2589}";

/// The turns shown by this replica.
pub(super) struct Previews {
    turns: Mutex<HashMap<TurnId, Shown>>,
    /// Some may have been begun by accounts that do not stream any more.
    left: AtomicBool,
}

#[derive(Clone)]
struct Shown {
    stop: CancellationToken,
    ended: watch::Receiver<bool>,
}

impl Default for Previews {
    fn default() -> Self {
        // Until the store has said that there are none.
        Self { turns: Mutex::default(), left: AtomicBool::new(true) }
    }
}

impl Previews {
    /// Whether the store has any.
    pub(super) fn are_left(&self, left: bool) {
        self.left.store(left, Ordering::Relaxed);
    }

    fn shown(&self, turn: TurnId) -> Option<Shown> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).get(&turn).cloned()
    }

    /// Nothing of this turn is sent or edited any more when this answers.
    async fn end(&self, turn: TurnId) {
        if let Some(mut shown) = self.shown(turn) {
            shown.stop.cancel();
            let _ = shown.ended.wait_for(|ended| *ended).await;
        }
    }
}

impl Outbox {
    /// Shows a running turn's text in its lane if that lane's account streams. `text` is the whole text so far, again whenever it has
    /// changed, and ends when the turn ends or leaves this replica. Costs nothing where no account streams.
    pub fn show(&self, turn: TurnId, lane: i64, text: impl FnOnce() -> BoxStream<'static, String>) {
        if !self.inner.adapters.any_streams() {
            return;
        }
        let earlier = self.inner.previews.shown(turn).inspect(|earlier| earlier.stop.cancel());
        let (ended, is_ended) = watch::channel(false);
        let shown = Shown { stop: self.inner.tasks.stopping().child_token(), ended: is_ended };
        let stop = shown.stop.clone();
        self.inner.previews.turns.lock().unwrap_or_else(PoisonError::into_inner).insert(turn, shown);
        let (outbox, text) = (self.clone(), text());
        self.inner.tasks.spawn("preview", async move {
            if let Some(mut earlier) = earlier {
                let _ = earlier.ended.wait_for(|ended| *ended).await;
            }
            Showing { outbox: &outbox, turn, lane, stop: &stop }.run(text).await;
            let mut turns = outbox.inner.previews.turns.lock().unwrap_or_else(PoisonError::into_inner);
            if turns.get(&turn).is_some_and(|known| known.ended.same_channel(&ended.subscribe())) {
                turns.remove(&turn);
            }
            drop(turns);
            let _ = ended.send(true);
        });
    }

    /// Whether a turn of this account may be shown by a message, from now or from before the account stopped to stream.
    pub(super) fn has_previews(&self, adapter: &dyn Adapter) -> bool {
        adapter.streams() || self.inner.previews.left.load(Ordering::Relaxed)
    }

    /// What the first part of a delivery must become.
    pub(super) async fn preview_of(&self, delivery: &DueDelivery, adapter: &dyn Adapter) -> store::Result<PreviewEnd> {
        if !self.has_previews(adapter) {
            return Ok(PreviewEnd::None);
        }
        self.inner.previews.end(delivery.turn).await;
        self.inner.store.preview_take(self.inner.replica, delivery.turn, &delivery.body).await
    }
}

/// One turn on its way into its chat.
struct Showing<'a> {
    outbox: &'a Outbox,
    turn: TurnId,
    lane: i64,
    stop: &'a CancellationToken,
}

/// What one step led to.
enum Step {
    /// The message with this id is there.
    There(String),
    /// Nothing yet; later perhaps.
    Later,
    /// The platform asked to wait, and the message is there or not.
    Strike(Option<String>),
    /// No more of this turn is shown.
    Over,
}

impl Showing<'_> {
    async fn run(&self, mut texts: BoxStream<'static, String>) {
        let Ok((adapter, chat)) = self.outbox.route(self.lane).await else { return };
        if !adapter.streams() {
            return;
        }
        let mut tenure = self.outbox.inner.tenures.current();
        let (mut message, mut seen, mut strikes, mut asked) = (None, 0, 0, false);
        while let Some(Some(text)) = self.stop.run_until_cancelled(texts.next()).await {
            let length = text.chars().count();
            // A text that became shorter was begun anew.
            if text.trim().is_empty() || length.abs_diff(seen) < GROWTH {
                continue;
            }
            let Some((view, full)) = view(adapter.as_ref(), &text) else { break };
            asked = true;
            let step = match message.take() {
                None => {
                    tenure = self.outbox.inner.tenures.current();
                    self.begin(adapter.as_ref(), &chat, &tenure, view).await
                }
                Some(message) => self.edit(adapter.as_ref(), &chat, &tenure, message, view).await,
            };
            match step {
                Step::There(id) => (message, seen) = (Some(id), length),
                Step::Later => {}
                Step::Strike(id) => (message, strikes) = (id, strikes + 1),
                Step::Over => break,
            }
            if (full && message.is_some()) || strikes >= STRIKES {
                break;
            }
            if self.stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                break;
            }
        }
        if asked {
            self.release().await;
        }
    }

    /// The first send, or the message of an earlier run of this turn.
    async fn begin(&self, adapter: &dyn Adapter, chat: &ChatRef, tenure: &Tenure, view: String) -> Step {
        let (store, replica) = (&self.outbox.inner.store, self.outbox.inner.replica);
        match store.preview_begin(replica, self.lane, self.turn).await {
            Ok(PreviewBegin::Send) => {}
            Ok(PreviewBegin::Edit(message)) => return self.edit(adapter, chat, tenure, message, view).await,
            Ok(PreviewBegin::NotNow) => return Step::Later,
            Ok(PreviewBegin::Never) => return Step::Over,
            Err(error) => {
                tracing::debug!(turn = %self.turn, %error, "an answer is not shown while it is written");
                return Step::Over;
            }
        }
        let message = OutboundMessage {
            chat: chat.clone(),
            text: view,
            attachment: None,
            maybe_duplicate: false,
            idempotency_key: format!("{}-preview", self.turn),
            not_after: Some(tenure.deadline()),
            buttons: Vec::new(),
        };
        store.failpoints().reach("preview.before").await;
        let sent = AssertUnwindSafe(async { adapter.send(message).await }).catch_unwind().await;
        store.failpoints().reach("preview.after").await;
        match sent {
            Ok(Ok(sent)) => match sent.message_id {
                Some(id) => self.keep(id).await,
                None => Step::Over,
            },
            Ok(Err(SendError::Ambiguous(_))) | Err(_) => Step::Over,
            Ok(Err(error)) => {
                // Nothing is there: the answer will be a message like any other.
                if let Err(error) = store.preview_unsent(replica, self.turn).await {
                    tracing::debug!(turn = %self.turn, %error, "a preview that was not sent could not be forgotten");
                    return Step::Over;
                }
                match error {
                    SendError::RetryAfter { .. } => Step::Strike(None),
                    SendError::Retry(_) => Step::Later,
                    _ => Step::Over,
                }
            }
        }
    }

    /// Stores the id of the message that was just sent, for as long as it takes: without it the answer comes a second time.
    async fn keep(&self, id: String) -> Step {
        loop {
            match self.outbox.inner.store.preview_sent(self.outbox.inner.replica, self.turn, &id).await {
                Ok(true) => return Step::There(id),
                Ok(false) => return Step::Over,
                Err(error) => {
                    tracing::warn!(turn = %self.turn, %error, "could not store which message shows an answer")
                }
            }
            if self.outbox.inner.tasks.stopping().is_cancelled() {
                return Step::Over;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn edit(
        &self,
        adapter: &dyn Adapter,
        chat: &ChatRef,
        tenure: &Tenure,
        message_id: String,
        view: String,
    ) -> Step {
        let edit = Edit {
            chat: chat.clone(),
            message_id: message_id.clone(),
            text: view,
            passing: true,
            not_after: Some(tenure.deadline()),
        };
        let failpoints = self.outbox.inner.store.failpoints();
        failpoints.reach("passing.before").await;
        let edited = AssertUnwindSafe(async { adapter.edit(edit).await }).catch_unwind().await;
        failpoints.reach("passing.after").await;
        match edited {
            // What did not get through is made up for by the next edit.
            Ok(Ok(()) | Err(EditError::NotNow | EditError::Failed(SendError::Retry(_) | SendError::Ambiguous(_)))) => {
                Step::There(message_id)
            }
            Ok(Err(EditError::Failed(SendError::RetryAfter { .. }))) => Step::Strike(Some(message_id)),
            Ok(Err(_)) | Err(_) => Step::Over,
        }
    }

    async fn release(&self) {
        if let Err(error) = self.outbox.inner.store.preview_release(self.outbox.inner.replica, self.turn).await {
            // It is ours until this replica ends; whoever has the turn waits that long.
            tracing::warn!(turn = %self.turn, %error, "could not hand over the message that shows an answer");
        }
    }
}

/// The text as one message, and whether that is full.
fn view(adapter: &dyn Adapter, text: &str) -> Option<(String, bool)> {
    let text = format!("{}{CURSOR}", text.trim_end());
    let mut parts = super::attempt::split(adapter, &text)?.into_iter();
    let first = parts.next()?;
    Some((first, parts.next().is_some()))
}
