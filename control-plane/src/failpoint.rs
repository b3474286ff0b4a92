//! Named points in the flow at which a drill holds, ends or fails this process. A process as shipped has none.
//!
//! Reached by the store (`<function>.before` and `.after` for every transition, for example `complete_batch.after`: committed,
//! not yet answered) and the outbox (around a platform call); set by the drill binaries of the tests, through
//! [`crate::app::Seams`]. Always true: without a drill a point costs one branch. It decides nothing.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

/// What a point tells the flow that reached it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As if it were not there.
    GoOn,
    /// Answer as if the other side were not reachable. After a commit this is the answer that got lost.
    Fail,
}

type Action = dyn Fn(&str) -> BoxFuture<'static, Verdict> + Send + Sync;

/// The points of one process; cheap to clone.
#[derive(Clone, Default)]
pub struct Failpoints(Option<Arc<Action>>);

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Failpoints(set)" } else { "Failpoints(none)" })
    }
}

impl Failpoints {
    /// Every point is answered by `action`.
    pub fn new(action: impl Fn(&str) -> BoxFuture<'static, Verdict> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(action)))
    }

    /// Whether there are any.
    pub fn are_set(&self) -> bool {
        self.0.is_some()
    }

    /// The flow is here.
    pub async fn reach(&self, point: &str) -> Verdict {
        match &self.0 {
            None => Verdict::GoOn,
            Some(action) => action(point).await,
        }
    }
}
