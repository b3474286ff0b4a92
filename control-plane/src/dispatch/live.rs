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
    /// It waits until somebody allows a call, or does not.
    Asked(Question),
    /// The last event.
    Ended(TurnEnd),
}

/// A question that a turn waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its number.
    pub id: i64,
    /// For people.
    pub text: String,
    /// How long it waits.
    pub left: Duration,
}

#[derive(Default)]
struct Text {
    /// A worker connected here has it.
    begun: bool,
    so_far: String,
    /// Moves whenever `so_far` does.
    version: u64,
    /// The last that it waited for.
    question: Option<Question>,
    ended: Option<TurnEnd>,
    /// It left this replica without an end: nothing more is written here.
    left: bool,
}

#[derive(Default)]
struct LiveTurn {
    text: Mutex<Text>,
    changed: Notify,
}

impl LiveTurn {
    /// Begun here and not ended yet: its end comes through this very entry, and the store need not be asked.
    fn is_begun(&self) -> bool {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).begun
    }
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

    /// A running turn waits for an answer. Followers are told once of each question.
    pub fn ask(&self, id: TurnId, question: Question) {
        let turn = self.turns.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        if let Some(turn) = turn {
            let mut text = turn.text.lock().unwrap_or_else(PoisonError::into_inner);
            if text.question.as_ref().is_some_and(|known| known.id == question.id) {
                return;
            }
            text.question = Some(question);
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

    /// The turn left this replica without an end. Its followers ask the store, and see what a worker here makes of it when it
    /// comes back.
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
        let turn = self.turn(id);
        let asked = turn.is_begun();
        let follower =
            Follower { live: self.clone(), turn, store, id, sent: 0, question: 0, pending: None, asked, done: false };
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
    /// Bytes of the text that were passed on.
    sent: usize,
    /// The last question that was passed on.
    question: i64,
    /// The end, while the last of the text goes before it.
    pending: Option<TurnEnd>,
    /// Whether it may wait now: the store was asked, or a worker here had the turn when this began to follow.
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
        loop {
            let turn = Arc::clone(&self.turn);
            let mut changed = std::pin::pin!(turn.changed.notified());
            changed.as_mut().enable();
            if let Some(event) = self.look() {
                return Some(event);
            }
            if turn.text.lock().unwrap_or_else(PoisonError::into_inner).left {
                self.turn = self.live.turn(self.id);
                self.asked = self.turn.is_begun();
                continue;
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
            let question = text.question.clone().filter(|question| question.id != self.question)?;
            drop(text);
            self.question = question.id;
            return Some(TurnEvent::Asked(question));
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

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use hermes_core::turn::{TurnState, Usage};

    use super::*;
    use crate::store::SessionId;

    const TURN: TurnId = TurnId { session: SessionId(1), seq: 1 };

    /// A store that never answers anything: what a follower sees then comes from its replica alone.
    fn no_store() -> Store {
        Store::new("postgres://nobody@127.0.0.1:1/none", 1).unwrap()
    }

    fn end(reply: &str) -> TurnEnd {
        TurnEnd { state: TurnState::Succeeded, reply: reply.to_owned(), usage: Usage::default() }
    }

    async fn events(followed: BoxStream<'static, TurnEvent>) -> Vec<TurnEvent> {
        tokio::time::timeout(Duration::from_secs(20), followed.collect()).await.expect("the turn's end is seen")
    }

    #[tokio::test]
    async fn a_turn_that_left_and_came_back_is_followed_to_its_end() {
        let live = Live::default();
        live.begin(TURN);
        let mut followed = live.follow(no_store(), TURN);
        live.append(TURN, "one");
        assert_eq!(followed.next().await, Some(TurnEvent::Delta("one".to_owned())));
        // The worker's stream broke, and it brought the turn along on its next one.
        live.forget(TURN);
        live.begin(TURN);
        live.append(TURN, "one two");
        let next = tokio::time::timeout(Duration::from_secs(20), followed.next()).await.expect("its text is seen");
        assert_eq!(next, Some(TurnEvent::Delta(" two".to_owned())));
        live.end(TURN, end("one two three"));
        let rest = events(followed).await;
        assert_eq!(rest, [TurnEvent::Delta(" three".to_owned()), TurnEvent::Ended(end("one two three"))]);
        assert!(live.turns.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn one_that_waits_sees_the_turn_come_back_too() {
        let live = Live::default();
        live.begin(TURN);
        let worker = async {
            tokio::task::yield_now().await;
            live.forget(TURN);
            tokio::task::yield_now().await;
            live.begin(TURN);
            live.end(TURN, end("done"));
        };
        let (seen, ()) = tokio::join!(events(live.follow(no_store(), TURN)), worker);
        assert_eq!(seen, [TurnEvent::Delta("done".to_owned()), TurnEvent::Ended(end("done"))]);
    }

    #[tokio::test]
    async fn a_follower_that_leaves_takes_its_entry_along_unless_the_turn_runs_here() {
        let live = Live::default();
        drop(live.follow(no_store(), TURN));
        assert!(live.turns.lock().unwrap().is_empty());
        let follower = live.follow(no_store(), TURN);
        live.begin(TURN);
        drop(follower);
        assert_eq!(live.turns.lock().unwrap().len(), 1);
    }
}
