//! What nobody's event brings about: hand-overs whose answer was lost, deliveries whose account is back, marks of other replicas.
//!
//! Always true: a stray is found exactly, because the look excludes every call that hands over; so it was never begun here and
//! carries no mark of its own. A look happens as soon as the store answers again after a call that failed, when an account
//! appears, and now and then without a reason, as the net below both.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Attempt, Outbox, attempt_of};
use crate::store::{self, DueDelivery};

/// How often everything is looked at without a reason.
const PERIOD: Duration = Duration::from_secs(45);
/// Between two looks while the store does not answer.
const PAUSE: Duration = Duration::from_millis(500);
/// Parked deliveries made due by one call.
const UNPARK_ROWS: i32 = 1000;

/// The loop.
pub(super) async fn run(outbox: Outbox, stop: CancellationToken) {
    let mut all = true;
    loop {
        let (doubted, begun) = (outbox.inner.doubted.swap(false, Ordering::AcqRel), all);
        if doubted || begun {
            let looked = async {
                settle_doubts(&outbox).await?;
                if begun { look_around(&outbox).await } else { Ok(()) }
            };
            if let Err(error) = looked.await {
                tracing::warn!(%error, "could not look after the outbox");
                outbox.inner.doubted.store(true, Ordering::Release);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(PAUSE) => continue,
                }
            }
        }
        all = tokio::select! {
            () = stop.cancelled() => return,
            () = outbox.inner.doubt.notified() => false,
            () = outbox.inner.adapters.arrived() => true,
            () = tokio::time::sleep(PERIOD) => true,
        };
    }
}

/// Takes up what the store believes to be in our hands and what is not. Without this those lanes would stand still.
async fn settle_doubts(outbox: &Outbox) -> store::Result<()> {
    let _nothing_is_handed_over = outbox.inner.handing_over.write().await;
    let tenure = outbox.inner.tenures.current();
    let held = outbox.inner.store.outbox_held(outbox.inner.replica).await?;
    let found = strays(held, &outbox.attempts());
    for delivery in found {
        tracing::warn!(turn = %delivery.turn, lane = delivery.lane, "a delivery whose hand-over was lost is taken up");
        outbox.begin(delivery, &tenure);
    }
    Ok(())
}

async fn look_around(outbox: &Outbox) -> store::Result<()> {
    let inner = &outbox.inner;
    let accounts = inner.adapters.keys();
    while !accounts.is_empty() && inner.store.unpark(&accounts, UNPARK_ROWS).await? > 0 {
        outbox.nudge();
    }
    let dead: HashSet<i64> = inner.store.lanes_dead().await?.into_iter().collect();
    outbox.lanes(|lanes| lanes.dead.extend(dead));
    let left = inner.store.previews_sweep().await?;
    inner.previews.are_left(left);
    // A replica that was lost long ago may have come back for one more commit.
    outbox.nudge();
    Ok(())
}

/// Those of `held` that nobody sends.
fn strays(held: Vec<DueDelivery>, sending: &HashSet<Attempt>) -> Vec<DueDelivery> {
    held.into_iter().filter(|held| !sending.contains(&attempt_of(held))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SessionId, TurnId};

    #[test]
    fn a_stray_is_what_is_ours_and_nobody_sends_at_this_attempt() {
        let delivery = |lane, attempt| DueDelivery {
            lane,
            pos: 1,
            turn: TurnId { session: SessionId(1), seq: 1 },
            attempt,
            failures: 0,
            part: 0,
            maybe_duplicate: false,
            body: Vec::new(),
            traceparent: None,
            gone: None,
            ask: false,
        };
        let sending = HashSet::from([(1, 1, 1), (2, 1, 1)]);
        let found = strays(vec![delivery(1, 1), delivery(2, 2), delivery(3, 1)], &sending);
        let found: Vec<_> = found.iter().map(|stray| (stray.lane, stray.attempt, stray.maybe_duplicate)).collect();
        assert_eq!(found, [(2, 2, false), (3, 1, false)]);
    }
}
