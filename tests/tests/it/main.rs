//! Tests over real sockets and processes, one module per behaviour.

#[cfg(test)]
mod models;
