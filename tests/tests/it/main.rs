//! Tests over real sockets and processes, one module per behaviour.

mod models;
mod vectors;
