//! Short words to a chat about what became of its message: that it waits, that it was not kept. At most one of a kind in
//! [`QUIET`] per chat, best effort: none is repeated, and a replica does not know what another one said.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::outbox::Outbox;
use crate::store::{LaneKey, Store, TurnId};
use crate::tasks::Tasks;

/// How long a chat is not told the same kind of thing again.
const QUIET: Duration = Duration::from_secs(30);
/// Chats remembered; beyond that the memory starts afresh.
const MAX_CHATS: usize = 50_000;

#[derive(Clone)]
pub(super) struct Notices {
    store: Store,
    outbox: Outbox,
    tasks: Tasks,
    acknowledged: Arc<Mutex<HashMap<i64, Instant>>>,
    refused: Arc<Mutex<HashMap<LaneKey, Instant>>>,
}

impl Notices {
    pub(super) fn new(store: Store, outbox: Outbox, tasks: Tasks) -> Self {
        Self { store, outbox, tasks, acknowledged: Arc::default(), refused: Arc::default() }
    }

    /// Tells a chat, behind what waits for it already, that its message met a running turn.
    pub(super) fn acknowledge(&self, lane: i64, turn: TurnId, text: &'static str) {
        if !first(&self.acknowledged, lane, Instant::now()) {
            return;
        }
        let (store, outbox) = (self.store.clone(), self.outbox.clone());
        self.tasks.spawn("busy notice", async move {
            match store.notice(lane, turn, text).await {
                Ok(()) => outbox.nudge(),
                Err(error) => tracing::debug!(%turn, %error, "a chat was not told that its message waits"),
            }
        });
    }

    /// Whether a chat is to be told that its message was not kept.
    pub(super) fn refuse(&self, lane: &LaneKey) -> bool {
        first(&self.refused, lane.clone(), Instant::now())
    }
}

/// Whether nothing of the kind was said to `whom` within [`QUIET`]; then it is now.
fn first<K: Hash + Eq>(said: &Mutex<HashMap<K, Instant>>, whom: K, now: Instant) -> bool {
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    if said.get(&whom).is_some_and(|at| now.duration_since(*at) < QUIET) {
        return false;
    }
    if said.len() >= MAX_CHATS {
        said.clear();
    }
    said.insert(whom, now);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chat_is_told_once_in_a_while() {
        let (said, begin) = (Mutex::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let told = [(1, 0), (1, 29), (2, 29), (1, 30), (1, 31)].map(|(chat, when)| first(&said, chat, at(when)));
        assert_eq!(told, [true, false, true, true, false]);
    }
}
