//! Harness of the whole-system tests and of the benchmark: fakes of borders we do not own.
//!
//! Used by `tests/it` and by `hermes-bench`. Always true: a fake behaves like the real thing, its errors included, listens on
//! loopback only and ends with its value.

pub mod fake_telegram;
pub mod mock_model;
