//! The harness of the whole-system tests and of the benchmark.
//!
//! Used by `tests/it`, `hermes-bench` and the drill binaries. It holds what stands in for the parts of the world that are not ours; those
//! stand-ins behave like the real thing, errors included.

pub mod cluster;
pub mod drill;
pub mod fake_telegram;
pub mod mock_model;
pub mod otlp;
pub mod postgres;
pub mod proxy;
pub mod relay;
pub mod system;
