//! The gRPC surface: the layers in front of every call, the statuses, and one file per service.
//!
//! Called by the composition root, which serves the operator listener (bearer tokens) and the worker listener (mutual TLS).
//! Always true: handlers read the caller from [`layers::principal`] and from nowhere else, every refusal is built in
//! [`status`], and prost types go no further than this module. It holds no decisions of its own beyond who may call what.

pub mod agent_api;
pub mod approval_api;
mod assignment;
pub mod budget_api;
mod convert;
pub mod cron_api;
mod curator;
pub mod delivery_api;
mod files;
mod generation;
mod history;
pub mod home_api;
pub mod identity_api;
pub mod layers;
mod mcp;
mod mcp_http;
pub mod message_api;
pub mod model_api;
pub mod pairing_api;
pub mod route_api;
mod runtime;
pub mod session_api;
pub mod status;
mod steps;
pub mod system_api;
mod tools;
mod tunnel;
pub mod worker_api;
mod worker_home;
