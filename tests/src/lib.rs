//! What the whole-system tests and the benchmark share.

pub mod otlp;
