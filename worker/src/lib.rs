//! A Hermes worker: one process, one agent, one home directory.
//!
//! It dials in to the control plane with a certificate bought by a join token, takes assignments of its one agent,
//! answers each through the model broker and reports. Started by a launcher or by hand; see `README.md` beside this
//! crate for flags, the home's layout and the invariants. It knows no database, no route, no chat platform, no provider
//! key and no other home.

pub mod acp;
pub mod app;
pub mod beneath;
pub mod config;
pub mod connection;
pub mod context;
mod cron;
pub mod curator;
pub mod doctor;
pub mod documents;
pub mod failpoint;
pub mod home;
pub mod identity;
mod inbox;
pub mod link;
pub mod model;
mod outgoing;
pub mod prompt;
mod proxy;
pub mod sandbox;
pub mod seams;
pub mod servers;
pub mod skills;
pub mod telemetry;
pub mod tools;
pub mod transcript;
pub mod turns;
