//! Which of the polled accounts this replica receives for: one replica at a time for each, by a lease in the database.
//!
//! The poll asks [`Leases::claims`] what to renew, take or give up and hands the answer to [`Leases::told`]; the composition root runs
//! each polled account's receiver through [`Leases::receive`]. It owns no connection and no task. Always true: a receiver makes no
//! step after its replica's monotonic clock says that four fifths of the lease are over, counted from before the database was
//! asked, so it has ended when another replica may take the account; a lease is given up only after the receiver has ended; a
//! replica keeps to its even share of the accounts while others want theirs. Accounts that are pushed to us need none of this.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use hermes_core::Source;
use hermes_core::attachment::{Attachment, Kind};
use hermes_platforms::{AccountState, Adapter, InboundMessage, InboundSink, NotKept, Receipt};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::store::{AccountClaim, AccountHeld};

/// An account whose platform has not answered a poll for this long is deaf.
pub const DEAF: Duration = Duration::from_secs(60);
/// What is shown of it.
pub const DEAF_DETAIL: &str = "no poll has succeeded for a minute";
/// How often a replica gives away one of the accounts it has beyond its share.
const GIVE_EVERY: Duration = Duration::from_secs(10);
/// How long an account that nobody else took is kept.
const KEEP: Duration = Duration::from_secs(600);

type Key = (String, String);

/// Held by the one receiver of an account.
#[expect(clippy::disallowed_types, reason = "it is held over the whole reception, which waits")]
type Alone = tokio::sync::Mutex<()>;

struct Seat {
    /// Configurations of this account that want it: two while one replaces the other.
    users: u32,
    /// Until when its receiver may run.
    until: watch::Sender<Option<Instant>>,
    /// One receiver at a time in this process, too.
    alone: Arc<Alone>,
    receiving: bool,
    /// It goes to another replica once its receiver has ended.
    giving: bool,
    given: Option<Instant>,
    state: AccountState,
    /// The platform's last answer, or when this replica got the account.
    heard: Option<Instant>,
    answered: bool,
}

impl Seat {
    fn is_deaf(&self) -> bool {
        self.until.borrow().is_some() && self.heard.is_some_and(|at| at.elapsed() > DEAF)
    }
}

#[derive(Default)]
struct State {
    seats: HashMap<Key, Seat>,
    last_given: Option<Instant>,
}

/// Handle to the accounts' leases; cheap to clone.
#[derive(Clone, Default)]
pub struct Leases {
    state: Arc<Mutex<State>>,
    /// A lease can be given up, or an account is wanted: worth a poll.
    changed: Arc<Notify>,
}

impl Leases {
    /// Receives for a polled account whenever this replica has its lease, until `stop`. An account that needs a person keeps
    /// its lease: no other replica would fare better.
    pub async fn receive(&self, adapter: &dyn Adapter, sink: &dyn InboundSink, stop: CancellationToken) {
        let key = (adapter.platform().to_owned(), adapter.account().to_owned());
        let (alone, mut until) = self.want(&key);
        let sink = Noting { sink, leases: self };
        let whole = async {
            // The receiver of the configuration before this one ends first.
            let _alone = alone.lock().await;
            loop {
                if until.wait_for(Option::is_some).await.is_err() {
                    return;
                }
                let receiving = Receiving::begin(self, &key);
                let ended = fenced(&mut until, adapter.receive(&sink, stop.child_token())).await;
                drop(receiving);
                if ended {
                    std::future::pending::<()>().await;
                }
                tracing::info!(
                    platform = key.0,
                    account = key.1,
                    "this replica does not receive for the account any more"
                );
            }
        };
        stop.run_until_cancelled(whole).await;
        self.unwant(&key);
    }

    /// What to tell the poll.
    pub fn claims(&self) -> Vec<AccountClaim> {
        let state = self.state();
        let claim = |((platform, account), seat): (&Key, &Seat)| {
            let (mut shown, mut detail) = match &seat.state {
                AccountState::Up => ("up", String::new()),
                AccountState::Down(why) => ("down", why.clone()),
                AccountState::Failed(why) => ("failed", why.clone()),
            };
            if shown == "up" && seat.is_deaf() {
                (shown, detail) = ("down", DEAF_DETAIL.to_owned());
            }
            AccountClaim {
                platform: platform.clone(),
                account: account.clone(),
                leave: !seat.receiving && (seat.users == 0 || seat.giving),
                state: shown,
                detail,
                silent: seat.heard.filter(|_| seat.answered).map(|at| at.elapsed()),
            }
        };
        state.seats.iter().map(claim).collect()
    }

    /// What the poll answered to `claims`, asked at `asked`: `held` is all this replica has, of leases that last `ttl`.
    pub fn told(&self, claims: &[AccountClaim], asked: Instant, held: &[AccountHeld], live: i64, ttl: Duration) {
        let mut state = self.state();
        for claim in claims {
            let key = (claim.platform.clone(), claim.account.clone());
            let Some(seat) = state.seats.get_mut(&key) else { continue };
            if claim.leave {
                seat.giving = false;
                if seat.users == 0 {
                    state.seats.remove(&key);
                }
                continue;
            }
            let lease = held.iter().find(|held| held.platform == claim.platform && held.account == claim.account);
            let until = lease.filter(|_| !seat.giving && seat.users > 0).and_then(|held| {
                // Stopped with a fifth of the time to live left, however late the answer came.
                asked.checked_add(held.left.saturating_sub(ttl / 5))
            });
            if until.is_some() && seat.until.borrow().is_none() {
                (seat.heard, seat.answered) = (Some(Instant::now()), false);
            }
            seat.until.send_replace(until);
        }
        give_away(&mut state, live);
    }

    /// Fires when a poll would change something.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The accounts this replica receives for whose platform has not answered for a minute.
    pub fn deaf(&self) -> Vec<(String, String)> {
        let state = self.state();
        let mut deaf: Vec<Key> =
            state.seats.iter().filter(|(_, seat)| seat.is_deaf()).map(|(key, _)| key.clone()).collect();
        deaf.sort();
        deaf
    }

    fn want(&self, key: &Key) -> (Arc<Alone>, watch::Receiver<Option<Instant>>) {
        let mut state = self.state();
        let seat = state.seats.entry(key.clone()).or_insert_with(|| Seat {
            users: 0,
            until: watch::Sender::new(None),
            alone: Arc::default(),
            receiving: false,
            giving: false,
            given: None,
            state: AccountState::Down("starting".to_owned()),
            heard: None,
            answered: false,
        });
        seat.users += 1;
        let wanted = (seat.alone.clone(), seat.until.subscribe());
        drop(state);
        self.changed.notify_one();
        wanted
    }

    fn unwant(&self, key: &Key) {
        if let Some(seat) = self.state().seats.get_mut(key) {
            seat.users = seat.users.saturating_sub(1);
            if seat.users == 0 {
                // Whoever wants it again asks again: by then the lease may be given up.
                seat.until.send_replace(None);
            }
        }
        self.changed.notify_one();
    }

    fn note(&self, platform: &str, account: &str, note: impl FnOnce(&mut Seat)) {
        if let Some(seat) = self.state().seats.get_mut(&(platform.to_owned(), account.to_owned())) {
            note(seat);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One account a time goes to others while this replica has more than its share. One that comes back, because nobody else took
/// it, stays.
fn give_away(state: &mut State, live: i64) {
    let wanted = state.seats.values().filter(|seat| seat.users > 0).count();
    let share = wanted.div_ceil(usize::try_from(live).unwrap_or(1).max(1));
    let held = state.seats.values().filter(|seat| seat.until.borrow().is_some()).count();
    let due = state.last_given.is_none_or(|at| at.elapsed() >= GIVE_EVERY);
    if held <= share || !due {
        return;
    }
    let mut can_go = state
        .seats
        .values_mut()
        .filter(|seat| seat.until.borrow().is_some() && seat.given.is_none_or(|at| at.elapsed() >= KEEP));
    if let Some(seat) = can_go.next() {
        (seat.giving, seat.given) = (true, Some(Instant::now()));
        seat.until.send_replace(None);
        state.last_given = Some(Instant::now());
    }
}

/// A receiver that runs, until it is dropped.
struct Receiving<'a> {
    leases: &'a Leases,
    key: &'a Key,
}

impl<'a> Receiving<'a> {
    fn begin(leases: &'a Leases, key: &'a Key) -> Self {
        leases.note(&key.0, &key.1, |seat| seat.receiving = true);
        Self { leases, key }
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.leases.note(&self.key.0, &self.key.1, |seat| seat.receiving = false);
        self.leases.changed.notify_one();
    }
}

/// Runs `receiving` while the lease holds; true when it ended by itself. It is not polled once after that, also not by a process
/// that was stopped in between: the clock is looked at before each step.
async fn fenced(until: &mut watch::Receiver<Option<Instant>>, mut receiving: BoxFuture<'_, ()>) -> bool {
    loop {
        let Some(end) = *until.borrow_and_update() else { return false };
        let step = poll_fn(|cx| {
            if Instant::now() >= end {
                return Poll::Ready(false);
            }
            receiving.as_mut().poll(cx).map(|()| true)
        });
        tokio::select! {
            biased;
            changed = until.changed() => if changed.is_err() { return false },
            ended = step => return ended,
            () = tokio::time::sleep_until(end.into()) => return false,
        }
    }
}

/// A sink that remembers what is said of the account.
struct Noting<'a> {
    sink: &'a dyn InboundSink,
    leases: &'a Leases,
}

impl InboundSink for Noting<'_> {
    fn accept(&self, messages: Vec<InboundMessage>) -> BoxFuture<'_, Vec<Receipt>> {
        self.sink.accept(messages)
    }

    fn hears<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, bool> {
        self.sink.hears(source)
    }

    fn keep<'a>(&'a self, kind: Kind, name: &'a str, content: &'a [u8]) -> BoxFuture<'a, Result<Attachment, NotKept>> {
        self.sink.keep(kind, name, content)
    }

    fn report(&self, platform: &str, account: &str, state: AccountState) {
        self.leases.note(platform, account, |seat| seat.state = state.clone());
        self.sink.report(platform, account, state);
    }

    fn heard(&self, platform: &str, account: &str) {
        self.leases.note(platform, account, |seat| (seat.heard, seat.answered) = (Some(Instant::now()), true));
    }
}

#[cfg(test)]
mod tests;
