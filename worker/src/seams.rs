//! What the composition root is given instead of making it itself: the tools, and places where a drill may step in.
//!
//! Production uses [`Seams::default`]: the worker's own tools, failpoints that cost a branch, every mechanism on. Nothing here reads
//! the environment or a flag, so a started worker cannot be told to be less careful.

use std::sync::Arc;

use crate::failpoint::Failpoints;
use crate::tools::Toolbox;

/// Everything that is injected.
#[derive(Clone, Default)]
pub struct Seams {
    /// What models may call, instead of the worker's own tools.
    pub toolbox: Option<Arc<dyn Toolbox>>,
    /// Where drills stop a turn.
    pub failpoints: Failpoints,
    /// Which mechanism a drill runs without.
    pub without: Without,
}

impl Seams {
    /// A turn is at this point. It can only be held or ended here: what a turn does when the other side is not reachable,
    /// the connection shows.
    pub(crate) async fn point(&self, name: &str) {
        let _ = self.failpoints.reach(name).await;
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
