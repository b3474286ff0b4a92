//! Wakes the loops of other replicas, and those of this one when another rings.
//!
//! Rung by whoever committed something that another replica could act on at once; heard by the loops that look at the database.
//! It owns one connection beside the pool. Always true: it is a hint and never the truth, so a lost ring costs the rest of a
//! second until the next poll; nothing is rung inside a transaction that writes, nor by a replica that is alone; all that is to be
//! said within 10 ms is one NOTIFY; after every (re)connection everything is looked at once. Words that a build does not know
//! are looked at as [`Word::Look`]: an older and a newer build understand each other.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::store::Store;
use crate::tasks::Tasks;

/// All rings of this long are one.
const GATHER: Duration = Duration::from_millis(10);
const RECONNECT_MOST: Duration = Duration::from_secs(5);
/// More agents than this are told as [`Word::Look`].
const MAX_AGENTS: usize = 200;

/// What a replica tells the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// A session of this agent waits, and the teller had no slot for it.
    Ready(i32),
    /// A delivery is due.
    Outbox,
    /// Something else changed: poll now (documents, accounts, removed agents, signals, drains …).
    Look,
}

#[derive(Default)]
struct Inner {
    said: Mutex<BTreeSet<Word>>,
    rung: Notify,
    /// Somebody else is there to hear it.
    company: AtomicBool,
    /// There is a connection. Without one nothing is gathered either.
    open: AtomicBool,
}

/// Handle to the doorbell; cheap to clone.
#[derive(Clone, Default)]
pub struct Doorbell {
    inner: Arc<Inner>,
}

impl Doorbell {
    /// Spawns the loop that rings, and hears others with `heard`. Without this call rings go nowhere.
    pub fn start(&self, store: Store, heard: impl Fn(&[Word]) + Send + Sync + 'static, tasks: &Tasks) {
        tasks.spawn("doorbell", run(self.clone(), store, heard, tasks.stopping()));
    }

    /// Tells the other replicas, soon.
    pub fn ring(&self, word: Word) {
        if !self.inner.company.load(Ordering::Relaxed) || !self.inner.open.load(Ordering::Relaxed) {
            return;
        }
        self.inner.said.lock().unwrap_or_else(PoisonError::into_inner).insert(word);
        self.inner.rung.notify_one();
    }

    /// How many replicas there are, as the last poll saw it.
    pub fn replicas(&self, live: i64) {
        self.inner.company.store(live > 1, Ordering::Relaxed);
    }

    fn take(&self) -> BTreeSet<Word> {
        std::mem::take(&mut *self.inner.said.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn run(bell: Doorbell, store: Store, heard: impl Fn(&[Word]) + Send + Sync, stop: CancellationToken) {
    let mut pause = GATHER;
    loop {
        match stop.run_until_cancelled(store.doorbell()).await {
            None => return,
            Some(Ok((out, mut rung))) => {
                pause = GATHER;
                bell.inner.open.store(true, Ordering::Relaxed);
                // Whatever was rung while nobody listened.
                heard(&[Word::Look, Word::Outbox]);
                let ended = async {
                    while let Some(words) = rung.next().await {
                        heard(&read(&words));
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = ended => tracing::info!("the doorbell's connection ended; polling goes on"),
                    () = ring_gathered(&bell, &out) => {}
                }
                // What the last commits rang, for instance that this replica leaves.
                bell.inner.open.store(false, Ordering::Relaxed);
                bell.take();
            }
            Some(Err(error)) => tracing::debug!(%error, "the doorbell is not connected"),
        }
        pause = (pause * 2).min(RECONNECT_MOST);
        let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
        if stop.run_until_cancelled(tokio::time::sleep(jittered)).await.is_none() {
            return;
        }
    }
}

/// Rings what was gathered, again and again; ends when it cannot.
async fn ring_gathered(bell: &Doorbell, out: &crate::store::Bell) {
    loop {
        bell.inner.rung.notified().await;
        let words = bell.take();
        if words.is_empty() {
            continue;
        }
        if let Err(error) = out.ring(&written(&words)).await {
            tracing::debug!(%error, "the doorbell did not ring");
            return;
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Words separated by spaces; the agents of all [`Word::Ready`] in one: `ready:1,2 look`.
fn written(words: &BTreeSet<Word>) -> String {
    let agents: Vec<String> =
        words.iter().filter_map(|word| if let Word::Ready(no) = word { Some(no.to_string()) } else { None }).collect();
    let mut text = Vec::new();
    if agents.len() > MAX_AGENTS {
        text.push("look".to_owned());
    } else if !agents.is_empty() {
        text.push(format!("ready:{}", agents.join(",")));
    }
    for (word, name) in [(Word::Outbox, "outbox"), (Word::Look, "look")] {
        if words.contains(&word) {
            text.push(name.to_owned());
        }
    }
    text.join(" ")
}

fn read(text: &str) -> Vec<Word> {
    let word = |word: &str| match word.split_once(':').unwrap_or((word, "")) {
        ("ready", agents) => agents.split(',').filter_map(|no| no.parse().ok()).map(Word::Ready).collect(),
        ("outbox", _) => vec![Word::Outbox],
        _ => vec![Word::Look],
    };
    text.split_whitespace().flat_map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_unknown_is_looked_at() {
        let words = BTreeSet::from([Word::Ready(3), Word::Look, Word::Ready(12), Word::Outbox]);
        assert_eq!(written(&words), "ready:3,12 outbox look");
        assert_eq!(read(&written(&words)), [Word::Ready(3), Word::Ready(12), Word::Outbox, Word::Look]);
        assert_eq!(read("ready:x,4 news:of-tomorrow"), [Word::Ready(4), Word::Look]);
        let crowd: BTreeSet<Word> = (0..10_000).map(Word::Ready).collect();
        assert_eq!(written(&crowd), "look");
    }

    #[test]
    fn nobody_rings_alone() {
        let bell = Doorbell::default();
        bell.inner.open.store(true, Ordering::Relaxed);
        bell.ring(Word::Look);
        assert!(bell.take().is_empty());
        bell.replicas(2);
        bell.ring(Word::Ready(1));
        bell.ring(Word::Ready(1));
        assert_eq!(bell.take().len(), 1);
    }
}
