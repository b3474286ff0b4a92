//! Tools: what a model may ask this worker to do, and the one way a call is run.
//!
//! Called by turns. A [`Toolbox`] is injected by the composition root and shared by all turns; it says of each tool what
//! repeating a call would do. Always true: a call ends within its tool's time limit, its output is bounded, and neither a
//! failure nor a panic inside a tool ends more than that call. It journals nothing and knows no lease: whether a call may
//! begin is the turn's decision.

mod call;

use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_proto::v1::TurnRef;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

pub(crate) use call::{Ran, run};

/// Largest output of any tool, in bytes.
pub const MAX_OUTPUT_BYTES: usize = 256 << 10;

/// What repeating a call of a tool would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it only looks.
    Pure,
    /// Nothing, when it is repeated under the same key.
    Idempotent,
    /// Nobody knows: it is never repeated unasked.
    AtMostOnce,
}

/// One tool as the model and the turn see it.
#[derive(Clone, Debug)]
pub struct ToolSpec {
    /// 1 to 64 of a-z, A-Z, 0-9, `_` and `-`; unique in its toolbox.
    pub name: String,
    /// For the model: what it does and when to use it.
    pub description: String,
    /// JSON Schema of the arguments, an object.
    pub parameters: String,
    /// What repeating a call would do.
    pub effect: Effect,
    /// A call that takes longer is dropped.
    pub time_limit: Duration,
    /// Longest output in bytes; what is beyond is cut and said so. Never more than [`MAX_OUTPUT_BYTES`].
    pub max_output: usize,
}

/// One call.
#[derive(Clone, Debug)]
pub struct ToolCall {
    /// The turn that asks.
    pub turn: TurnRef,
    /// Its step number in the turn.
    pub step: u32,
    /// The tool's name.
    pub name: String,
    /// The arguments as the model wrote them; that they fit the tool's schema is for the tool to check.
    pub arguments: Map<String, Value>,
    /// Of an idempotent tool: the same for every attempt of this call, and for no other call.
    pub idempotency_key: Option<String>,
    /// Cancelled when the turn must end; a tool that can stop early does.
    pub cancel: CancellationToken,
}

/// What a tool answers: text for the model, or a sentence of what went wrong, also for the model.
pub type ToolResult = Result<String, String>;

/// The tools of a worker.
pub trait Toolbox: Send + Sync {
    /// All tools, in the order they are offered.
    fn specs(&self) -> &[ToolSpec];

    /// Runs a call of one of [`Toolbox::specs`]. The future never blocks its thread, and dropping it stops whatever it
    /// started.
    fn call(&self, call: ToolCall) -> BoxFuture<'_, ToolResult>;
}

/// A toolbox without tools.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTools;

impl Toolbox for NoTools {
    fn specs(&self) -> &[ToolSpec] {
        &[]
    }

    fn call(&self, call: ToolCall) -> BoxFuture<'_, ToolResult> {
        Box::pin(async move { Err(format!("there is no tool {}", call.name)) })
    }
}
