//! The control plane: it holds the registry, the routes and the durable sessions, moves each turn from intake to a worker
//! and its reply to the chat.
//!
//! Run by `main.rs`; the tests drive it in process too. Always true: Postgres is the only truth and `store` the only SQL;
//! prost types stop at `grpc`; platform wire formats stop in `hermes-platforms`. It executes no tool but
//! its own few (`tools`), and never opens a path that a worker named.

pub mod accounts;
pub mod app;
pub mod attachments;
pub mod bodies;
pub mod budget;
pub mod cron;
pub mod dispatch;
pub mod doorbell;
pub mod egress;
pub mod failpoint;
pub mod grpc;
pub mod http;
pub mod identity;
pub mod intake;
pub mod judge;
pub mod local;
pub mod models;
pub mod outbox;
pub mod registry;
pub mod retention;
pub mod shares;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod tools;
