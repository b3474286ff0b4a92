//! What a turn says while it runs: the text so far, kept for whoever follows it on this replica.
//!
//! Written by worker links (progress) and by the completer; read by surfaces that stream. Always true: a follower sees text
//! in order and without gaps of its own making (a slow one gets it in larger pieces), and exactly one end. It is memory
//! only: the reply of record is in the store, which followers ask too when the turn runs elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::BoxStream;
use tokio::sync::Notify;

use crate::store::{Store, TurnEnd, TurnId};

/// Most text kept of a running turn, bytes.
const MAX_TEXT: usize = 1 << 20;

/// What a follower sees.
#[derive(Clone, Debug, PartialEq)]
pub enum TurnEvent {
    /// More text.
    Delta(String),
    /// The last event.
    Ended(TurnEnd),
}

#[derive(Default)]
struct Text {
    /// A worker connected here has it.
    begun: bool,
    so_far: String,
    /// Moves whenever `so_far` does.
    version: u64,
    ended: Option<TurnEnd>,
    /// It left this replica without an end.
    left: bool,
}

#[derive(Default)]
struct LiveTurn {
    text: Mutex<Text>,
    changed: Notify,
}

/// The running and followed turns of this replica; cheap to clone.
#[derive(Clone, Default)]
pub struct Live {
    turns: Arc<Mutex<HashMap<TurnId, Arc<LiveTurn>>>>,
}

impl Live {
    fn turn(&self, id: TurnId) -> Arc<LiveTurn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(id).or_default().clone()
    }

    /// A worker begins the turn (again): what an earlier attempt said is forgotten.
    pub fn begin(&self, id: TurnId) {
        let turn = self.turn(id);
        let mut text = turn.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.begun = true;
        text.so_far.clear();
        text.version += 1;
    }

    /// More text of a running turn. A turn that nobody began here is passed over.
    pub fn append(&self, id: TurnId, delta: &str) {
        let turn = self.turns.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        if let Some(turn) = turn {
            let mut text = turn.text.lock().unwrap_or_else(PoisonError::into_inner);
            // No reply is longer; the end brings the whole of it anyway.
            if text.so_far.len() + delta.len() > MAX_TEXT {
                return;
            }
            text.so_far.push_str(delta);
            text.version += 1;
            drop(text);
            turn.changed.notify_waiters();
        }
    }

    /// The turn ended and is stored.
    pub fn end(&self, id: TurnId, end: TurnEnd) {
        let turn = self.turns.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(turn) = turn {
            turn.text.lock().unwrap_or_else(PoisonError::into_inner).ended = Some(end);
            turn.changed.notify_waiters();
        }
    }

    /// The turn left this replica without an end: followers go on by asking the store.
    pub fn forget(&self, id: TurnId) {
        let turn = self.turns.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(turn) = turn {
            turn.text.lock().unwrap_or_else(PoisonError::into_inner).left = true;
            turn.changed.notify_waiters();
        }
    }

    /// The whole text so far of a turn that runs here, again whenever it has changed since it was last taken. Ends with the turn, or
    /// when that leaves this replica.
    pub fn texts(&self, id: TurnId) -> BoxStream<'static, String> {
        Box::pin(futures_util::stream::unfold((self.turn(id), 0), |(turn, seen)| async move {
            loop {
                let mut changed = std::pin::pin!(turn.changed.notified());
                changed.as_mut().enable();
                let now = {
                    let text = turn.text.lock().unwrap_or_else(PoisonError::into_inner);
                    if text.ended.is_some() || text.left {
                        return None;
                    }
                    (text.version != seen).then(|| (text.so_far.clone(), text.version))
                };
                if let Some((text, version)) = now {
                    return Some((text, (turn.clone(), version)));
                }
                changed.await;
            }
        }))
    }

    /// Follows a turn to its end, wherever it runs.
    pub fn follow(&self, store: Store, id: TurnId) -> BoxStream<'static, TurnEvent> {
        let follower = Follower {
            live: self.clone(),
            turn: self.turn(id),
            store,
            id,
            sent: 0,
            pending: None,
            asked: false,
            done: false,
        };
        Box::pin(futures_util::stream::unfold(follower, |mut follower| async move {
            follower.next().await.map(|event| (event, follower))
        }))
    }
}

struct Follower {
    live: Live,
    turn: Arc<LiveTurn>,
    store: Store,
    id: TurnId,
    sent: usize,
    pending: Option<TurnEnd>,
    asked: bool,
    done: bool,
}

/// A follower that leaves early takes the entry along unless the turn runs here or somebody else follows it.
impl Drop for Follower {
    fn drop(&mut self) {
        let mut turns = self.live.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = self.turn.text.lock().unwrap_or_else(PoisonError::into_inner).begun;
        let alone = Arc::strong_count(&self.turn) == 2;
        if !begun && alone && turns.get(&self.id).is_some_and(|turn| Arc::ptr_eq(turn, &self.turn)) {
            turns.remove(&self.id);
        }
    }
}

/// How long a follower trusts silence before it asks the store: the bound for turns that end on another replica.
const ASK_STORE: Duration = Duration::from_secs(1);

impl Follower {
    async fn next(&mut self) -> Option<TurnEvent> {
        if let Some(end) = self.pending.take() {
            self.done = true;
            return Some(TurnEvent::Ended(end));
        }
        if self.done {
            return None;
        }
        let turn = self.turn.clone();
        loop {
            let mut changed = std::pin::pin!(turn.changed.notified());
            changed.as_mut().enable();
            if let Some(event) = self.look() {
                return Some(event);
            }
            if !self.asked {
                // It may have ended before anybody followed it.
                self.asked = true;
            } else if tokio::time::timeout(ASK_STORE, changed).await.is_ok() {
                continue;
            }
            if let Some(end) = self.ask().await {
                self.live.forget(self.id);
                return Some(self.finish(end));
            }
        }
    }

    fn look(&mut self) -> Option<TurnEvent> {
        let text = self.turn.text.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = text.ended.clone() {
            drop(text);
            return Some(self.finish(end));
        }
        // A new attempt starts the text over; what was shown cannot be unsaid, so only what goes beyond it is added.
        let delta = text.so_far.get(self.sent..).unwrap_or_default();
        if delta.is_empty() {
            return None;
        }
        let delta = delta.to_owned();
        drop(text);
        self.sent += delta.len();
        Some(TurnEvent::Delta(delta))
    }

    /// The rest of the reply first, then the end.
    fn finish(&mut self, end: TurnEnd) -> TurnEvent {
        let rest = end.reply.get(self.sent..).unwrap_or_default().to_owned();
        if rest.is_empty() {
            self.done = true;
            return TurnEvent::Ended(end);
        }
        self.sent = end.reply.len();
        self.pending = Some(end);
        TurnEvent::Delta(rest)
    }

    async fn ask(&self) -> Option<TurnEnd> {
        match self.store.turn_get(self.id).await {
            Ok(row) => row.end(),
            Err(error) => {
                tracing::debug!(turn = %self.id, %error, "could not ask for a turn's end");
                None
            }
        }
    }
}
