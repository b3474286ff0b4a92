use std::sync::atomic::{AtomicU32, Ordering};

use hermes_platforms::{ChatRef, OutboundMessage, SendError, Sent};

use super::*;

const TTL: Duration = Duration::from_secs(15);

/// Counts its receivers.
#[derive(Default)]
struct Polled {
    now: AtomicU32,
    begun: AtomicU32,
}

struct Nowhere;

impl InboundSink for Nowhere {
    fn accept(&self, messages: Vec<InboundMessage>) -> BoxFuture<'_, Vec<Receipt>> {
        Box::pin(async move { messages.iter().map(|_| Receipt::Unavailable).collect() })
    }
    fn hears<'a>(&'a self, _: &'a Source) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    fn keep<'a>(&'a self, _: Kind, _: &'a str, _: &'a [u8]) -> BoxFuture<'a, Result<Attachment, NotKept>> {
        Box::pin(std::future::ready(Err(NotKept::Unavailable)))
    }
    fn report(&self, _: &str, _: &str, _: AccountState) {}
}

struct Counted<'a>(&'a AtomicU32);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Adapter for Polled {
    fn platform(&self) -> &'static str {
        "telegram"
    }
    fn account(&self) -> &str {
        "front"
    }
    fn receive<'a>(&'a self, _: &'a dyn InboundSink, _: CancellationToken) -> BoxFuture<'a, ()> {
        Box::pin(async {
            self.now.fetch_add(1, Ordering::Relaxed);
            self.begun.fetch_add(1, Ordering::Relaxed);
            let _counted = Counted(&self.now);
            std::future::pending::<()>().await;
        })
    }
    fn split(&self, text: &str) -> Vec<String> {
        vec![text.to_owned()]
    }
    fn send(&self, _: OutboundMessage) -> BoxFuture<'_, Result<Sent, SendError>> {
        Box::pin(async { Ok(Sent { message_id: None }) })
    }
    fn typing(&self, _: ChatRef) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

fn held(left: Duration) -> Vec<AccountHeld> {
    vec![AccountHeld { platform: "telegram".to_owned(), account: "front".to_owned(), epoch: 1, left }]
}

fn tell(leases: &Leases, held: &[AccountHeld], live: i64) {
    leases.told(&leases.claims(), Instant::now(), held, live, TTL);
}

async fn until(what: impl Fn() -> bool) {
    let look = async {
        while !what() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), look).await.expect("it happens");
}

#[tokio::test]
async fn a_receiver_runs_with_the_lease_and_never_past_its_fence() {
    let (leases, polled, stop) = (Leases::default(), Polled::default(), CancellationToken::new());
    let running = leases.receive(&polled, &Nowhere, stop.clone());
    let drive = async {
        until(|| !leases.claims().is_empty()).await;
        tokio::task::yield_now().await;
        assert_eq!(polled.begun.load(Ordering::Relaxed), 0, "nobody receives without a lease");
        // Half a second more than what must be left over.
        tell(&leases, &held(TTL / 5 + Duration::from_millis(500)), 1);
        until(|| polled.now.load(Ordering::Relaxed) == 1).await;
        assert!(!leases.claims()[0].leave);
        // No renewal comes.
        let told = Instant::now();
        until(|| polled.now.load(Ordering::Relaxed) == 0).await;
        assert!(told.elapsed() < TTL / 5, "it ended before the lease did");
        // An answer that comes when the fence is over starts nobody.
        leases.told(&leases.claims(), Instant::now() - TTL, &held(TTL), 1, TTL);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(polled.begun.load(Ordering::Relaxed), 1);
        tell(&leases, &held(TTL), 1);
        until(|| polled.now.load(Ordering::Relaxed) == 1).await;
        stop.cancel();
        until(|| polled.now.load(Ordering::Relaxed) == 0).await;
        until(|| leases.claims()[0].leave).await;
        tell(&leases, &[], 1);
        assert!(leases.claims().is_empty(), "forgotten once the database knows");
    };
    tokio::join!(running, drive);
}

#[tokio::test]
async fn what_is_beyond_the_share_is_given_away_once_its_receiver_has_ended() {
    let (leases, polled, stop) = (Leases::default(), Polled::default(), CancellationToken::new());
    // Another account that this replica does not have: its share of two is one, of which it has one.
    leases.want(&("telegram".to_owned(), "other".to_owned()));
    let running = leases.receive(&polled, &Nowhere, stop.clone());
    let drive = async {
        until(|| leases.claims().len() == 2).await;
        tell(&leases, &held(TTL), 2);
        until(|| polled.now.load(Ordering::Relaxed) == 1).await;
        assert!(leases.claims().iter().all(|claim| !claim.leave));
        let both = [held(TTL), vec![AccountHeld { account: "other".to_owned(), ..held(TTL).remove(0) }]].concat();
        tell(&leases, &both, 2);
        until(|| leases.claims().iter().any(|claim| claim.leave)).await;
        assert_eq!(leases.claims().iter().filter(|claim| claim.leave).count(), 1, "one at a time");
        stop.cancel();
    };
    tokio::join!(running, drive);
}

#[tokio::test]
async fn an_account_whose_platform_is_silent_is_deaf() {
    let (leases, polled, stop) = (Leases::default(), Polled::default(), CancellationToken::new());
    let running = leases.receive(&polled, &Nowhere, stop.clone());
    let drive = async {
        until(|| !leases.claims().is_empty()).await;
        tell(&leases, &held(TTL), 1);
        until(|| polled.now.load(Ordering::Relaxed) == 1).await;
        leases.note("telegram", "front", |seat| seat.state = AccountState::Up);
        assert!(leases.deaf().is_empty() && leases.claims()[0].state == "up");
        leases.note("telegram", "front", |seat| seat.heard = Instant::now().checked_sub(DEAF + TTL));
        assert_eq!((leases.deaf().len(), leases.claims()[0].state), (1, "down"));
        Noting { sink: &Nowhere, leases: &leases }.heard("telegram", "front");
        assert!(leases.deaf().is_empty() && leases.claims()[0].silent.is_some());
        stop.cancel();
    };
    tokio::join!(running, drive);
}
