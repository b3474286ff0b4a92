//! Domain types and pure decisions of the Hermes control plane.
//!
//! Called by the control plane, the platform adapters, hermesctl (its offline commands) and the tests. It owns no state.
//! Always true: nothing here reads a clock, the environment, a file or a socket; time and alias files are parameters. (A
//! zone's rules come from jiff: the system's time zone database where there is one, else the copy in the binary.)
//! It deliberately knows neither tokio, tonic, Postgres nor HTTP.

pub mod approvals;
pub mod attachment;
pub mod budget;
pub mod busy;
pub mod command;
pub mod config;
pub mod cron;
pub mod egress;
pub mod id;
pub mod mcp;
pub mod pairing;
pub mod reset;
pub mod routing;
pub mod runtime;
pub mod session_key;
pub mod source;
pub mod step;
pub mod target;
pub mod turn;

pub use id::AgentId;
pub use source::Source;
