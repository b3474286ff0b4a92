//! Whole-system, adapter and conformance tests: one binary, one module per subject.

mod models;
mod telegram_adapter;
mod vectors;
