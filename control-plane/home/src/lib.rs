//! What lies in an agent's home, and what may be done to it: the rules that the control plane, which keeps the documents, and
//! the worker, which shows them to a model, must not have twice.
//!
//! Called by both. It owns no file and no state. Always true: nothing here reads a clock, the environment, a file or a socket;
//! patterns are compiled when the first text is looked at, so whoever never looks pays nothing for them. It deliberately does
//! not know who edits, nor where the texts lie.

pub mod admission;
pub mod curator;
pub mod danger;
pub mod media;
pub mod memory;
mod path;
pub mod sandbox;
pub mod skill;
pub mod threats;

pub use path::DocumentPath;
