//! The harness of the tests: what they need around the code under test.
//!
//! Used by everything below `tests/` and by the benchmark; nothing of the product depends on it.

pub mod postgres;
