//! The tests that cross package borders, one module per behaviour.

mod identity;
mod telemetry;
