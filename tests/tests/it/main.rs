//! Tests over real sockets and processes, one module per behaviour.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helper functions too")]

mod chaos;
mod deploy_examples;
mod drills;
mod http_api;
mod identity;
mod isolation;
mod journal;
mod model_files;
mod models;
mod node;
mod parting;
mod replicas;
mod store;
mod surfaces;
mod system;
mod telegram_adapter;
mod telemetry;
mod tidy;
mod vectors;
