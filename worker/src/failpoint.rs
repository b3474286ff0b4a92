//! Named points in the flow at which a drill holds, ends or fails this process. A process as shipped has none.
//!
//! Reached by turns around model calls, effects and reports; set by the drill binary of the tests, through the seams of
//! `app`. Always true: without a drill a point costs one branch. It decides nothing.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

/// What a point tells the flow that reached it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As if it were not there.
    GoOn,
    /// Go on as if the other side were not reachable.
    Fail,
}

/// What a point does, in the end with a verdict.
pub type Acting = Pin<Box<dyn Future<Output = Verdict> + Send>>;

type Action = dyn Fn(&str) -> Acting + Send + Sync;

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
    pub fn new(action: impl Fn(&str) -> Acting + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(action)))
    }

    /// The flow is here.
    pub async fn reach(&self, point: &str) -> Verdict {
        match &self.0 {
            None => Verdict::GoOn,
            Some(action) => action(point).await,
        }
    }
}
