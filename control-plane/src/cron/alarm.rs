//! When the loops of scheduled jobs have something to do.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Set by the poll, rung by time.
#[derive(Debug, Default)]
pub struct Alarm {
    due: Mutex<Option<Instant>>,
    moved: Notify,
    ended: Notify,
}

impl Alarm {
    /// A job is due after so long, or none is. Whatever was said before does not count any more.
    pub fn set(&self, due: Option<Duration>) {
        let at = due.map(|left| Instant::now() + left);
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = at;
        self.moved.notify_one();
    }

    /// A run may have ended, here or elsewhere, or one waits to begin.
    pub fn ended_somewhere(&self) {
        self.ended.notify_one();
    }

    /// Until something is due, once for each time that was set.
    pub(super) async fn rings(&self) {
        loop {
            let due = *self.due.lock().unwrap_or_else(PoisonError::into_inner);
            let rung = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.moved.notified() => {}
                () = rung => {
                    let mut now = self.due.lock().unwrap_or_else(PoisonError::into_inner);
                    if *now == due {
                        *now = None;
                    }
                    return;
                }
            }
        }
    }

    /// Until [`Self::ended_somewhere`].
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_rings_once_at_the_time_that_was_set_last() {
        let alarm = Alarm::default();
        let begun = Instant::now();
        alarm.set(Some(Duration::from_secs(60)));
        alarm.set(Some(Duration::from_millis(700)));
        alarm.rings().await;
        assert_eq!(begun.elapsed(), Duration::from_millis(700));
        let again = tokio::time::timeout(Duration::from_secs(600), alarm.rings()).await;
        assert!(again.is_err(), "nothing was set since");
        alarm.set(None);
        alarm.set(Some(Duration::ZERO));
        alarm.rings().await;
    }
}
