//! Named tasks with an owner: the only place of this package that calls `tokio::spawn`.
//!
//! The composition root makes one [`Tasks`]; every part that spawns holds a clone. Always true: each task has a name, all
//! of them see one stop token, and a task that panics stops the process (through [`Tasks::failed`]). It does not restart
//! anything: loops are written so that they do not end before the stop.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// Handle to the process's tasks; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    failed: watch::Sender<Option<&'static str>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { tracker: TaskTracker::new(), stop: CancellationToken::new(), failed: watch::Sender::new(None) }
    }
}

impl Tasks {
    /// Spawns `task` under `name`. It should end soon after [`Tasks::stopping`] fires.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let failed = self.failed.clone();
        let inner = tokio::spawn(task.instrument(tracing::Span::current()));
        self.tracker.spawn(async move {
            if let Err(error) = inner.await
                && error.is_panic()
            {
                tracing::error!(task = name, "task panicked, stopping the process");
                let _ = failed.send(Some(name));
            }
        });
    }

    /// Fires once when the process should stop.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Asks all tasks to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until a task has panicked and answers its name.
    pub async fn failed(&self) -> &'static str {
        let mut failed = self.failed.subscribe();
        loop {
            if let Some(name) = *failed.borrow_and_update() {
                return name;
            }
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Stops, then waits for all tasks at most `grace`; answers whether all ended.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}
