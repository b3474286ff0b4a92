//! What the composition root is given instead of making it itself: the tools, and places where a drill may step in.
//!
//! Production uses [`Seams::default`]: no tools yet, failpoints that cost a branch, every mechanism on. Nothing here reads
//! the environment or a flag, so a started worker cannot be told to be less careful.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::tools::{NoTools, Toolbox};

/// Everything that is injected.
#[derive(Clone)]
pub struct Seams {
    /// What models may call.
    pub toolbox: Arc<dyn Toolbox>,
    /// Where drills stop a turn.
    pub failpoints: Failpoints,
    /// Which mechanism a drill runs without.
    pub without: Without,
}

impl Default for Seams {
    fn default() -> Self {
        Self { toolbox: Arc::new(NoTools), failpoints: Failpoints::default(), without: Without::default() }
    }
}

/// Mechanisms that a drill switches off to see that it would notice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Without {
    /// Model calls and tools begin however long ago the control plane last answered.
    pub self_fence: bool,
    /// Tools are called without having their intent journaled.
    pub intent_row: bool,
}

/// Named places in a turn. What is at a place is awaited there: it may record, wait, or never go on.
#[derive(Clone, Default)]
pub struct Failpoints(Option<Arc<dyn Fn(&'static str) -> BoxFuture<'static, ()> + Send + Sync>>);

impl Failpoints {
    /// Calls `at` with each place that is reached.
    pub fn new(at: impl Fn(&'static str) -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(at)))
    }

    /// A turn has come to this place.
    pub async fn reach(&self, place: &'static str) {
        if let Some(at) = &self.0 {
            at(place).await;
        }
    }
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Failpoints").field(&self.0.is_some()).finish()
    }
}
