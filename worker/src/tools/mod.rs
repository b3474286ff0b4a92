//! Tools: what a model may ask for, and the one way a call of one of this worker's own is run.
//!
//! Called by turns. A [`Toolbox`] is injected by the composition root and shared by all turns; it says of each tool what
//! repeating a call would do. [`Joined`] makes one of several; `mcp` is what programs of the profile's bring, `plane` what the
//! control plane runs instead of this worker; `offer` what one turn has of all, by its profile. Always true: a call ends within its tool's time limit, its output is
//! bounded, and neither a failure nor a panic inside a tool ends more than that call. It journals nothing and knows no lease:
//! whether a call may begin is the turn's decision.

mod call;
pub(crate) mod child;
mod guard;
pub mod local;
mod mcp;
mod offer;
mod plane;
mod redact;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_proto::v1::TurnRef;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::sandbox::Sandbox;

pub(crate) use call::{Ran, run};
pub(crate) use guard::{Ruling, rule};
pub(crate) use local::environment;
pub use local::files::Author;
pub use mcp::McpServers;
pub(crate) use mcp::Offered as McpOffered;
pub(crate) use offer::Offer;
pub use plane::PlaneTools;
pub(crate) use plane::{Error as PlaneError, ask as ask_plane, call as call_plane};
pub(crate) use redact::redacted;

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
    /// Nothing: the control plane does it and journals it, in one commit. No [`Toolbox`] is asked to.
    Journaled,
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
    /// What a profile turns on and off together.
    pub toolset: String,
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
    /// What the turn's profile lets tools do.
    pub policy: Sandbox,
    /// The folder below the agent's scratch where the turn's work begins; absent: the scratch.
    pub workdir: Option<String>,
    /// As who it changes skills.
    pub author: Author,
    /// Cancelled when the turn must end; a tool that can stop early does.
    pub cancel: CancellationToken,
}

/// What a tool answers: text for the model, or a sentence of what went wrong, also for the model.
pub type ToolResult = Result<String, String>;

/// The tools of a worker.
pub trait Toolbox: Send + Sync {
    /// All tools as of now, in the order they are offered. A turn takes them once, when it begins.
    fn specs(&self) -> Arc<[ToolSpec]>;

    /// Runs a call of one of [`Toolbox::specs`], those of now or of when a turn took them. The future never blocks its
    /// thread, and dropping it stops whatever it started.
    fn call(&self, call: ToolCall) -> BoxFuture<'_, ToolResult>;
}

/// A toolbox without tools.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTools;

impl Toolbox for NoTools {
    fn specs(&self) -> Arc<[ToolSpec]> {
        Arc::default()
    }

    fn call(&self, call: ToolCall) -> BoxFuture<'_, ToolResult> {
        Box::pin(async move { Err(format!("there is no tool {}", call.name)) })
    }
}

/// Several toolboxes as one: their tools in this order. Of two tools with one name the first counts.
pub struct Joined(pub Vec<Arc<dyn Toolbox>>);

impl Toolbox for Joined {
    fn specs(&self) -> Arc<[ToolSpec]> {
        let mut specs: Vec<ToolSpec> = Vec::new();
        for spec in self.0.iter().flat_map(|toolbox| toolbox.specs().to_vec()) {
            if !specs.iter().any(|known| known.name == spec.name) {
                specs.push(spec);
            }
        }
        specs.into()
    }

    fn call(&self, call: ToolCall) -> BoxFuture<'_, ToolResult> {
        let has = |toolbox: &&Arc<dyn Toolbox>| toolbox.specs().iter().any(|spec| spec.name == call.name);
        match self.0.iter().find(has) {
            Some(toolbox) => toolbox.call(call),
            // It went since the turn took its tools.
            None => Box::pin(async move { Err(format!("there is no tool {} any more", call.name)) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One(&'static str, &'static str);

    impl Toolbox for One {
        fn specs(&self) -> Arc<[ToolSpec]> {
            [spec(self.0, self.1)].into()
        }

        fn call(&self, _: ToolCall) -> BoxFuture<'_, ToolResult> {
            Box::pin(async { Ok(self.1.to_owned()) })
        }
    }

    fn spec(name: &str, toolset: &str) -> ToolSpec {
        ToolSpec {
            name: name.to_owned(),
            description: String::new(),
            parameters: "{}".to_owned(),
            toolset: toolset.to_owned(),
            effect: Effect::Pure,
            time_limit: Duration::from_secs(1),
            max_output: 100,
        }
    }

    fn call(name: &str) -> ToolCall {
        ToolCall {
            turn: TurnRef::default(),
            step: 0,
            name: name.to_owned(),
            arguments: Map::new(),
            idempotency_key: None,
            policy: Sandbox::default(),
            workdir: None,
            author: Author::default(),
            cancel: CancellationToken::new(),
        }
    }

    #[tokio::test]
    async fn several_toolboxes_are_one_and_the_first_of_a_name_counts() {
        let joined =
            Joined(vec![Arc::new(One("a", "first")), Arc::new(One("a", "second")), Arc::new(One("b", "third"))]);
        let names: Vec<_> = joined.specs().iter().map(|spec| (spec.name.clone(), spec.toolset.clone())).collect();
        assert_eq!(names, [("a", "first"), ("b", "third")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(joined.call(call("a")).await, Ok("first".to_owned()));
        assert_eq!(joined.call(call("b")).await, Ok("third".to_owned()));
        assert_eq!(joined.call(call("c")).await, Err("there is no tool c any more".to_owned()));
    }
}
