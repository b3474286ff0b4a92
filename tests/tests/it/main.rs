//! Tests over real sockets and processes, one module per behaviour.

#[cfg(test)]
mod http_api;
#[cfg(test)]
mod models;
