//! Whole-system, adapter and conformance tests: one binary, one module per subject.

#[cfg(test)]
mod models;
#[cfg(test)]
mod telegram_adapter;
#[cfg(test)]
mod vectors;
