//! What an agent's tools may see, reach and take.
//!
//! Read from the agent's profile, which comes with each turn; the default is strict. What gives effect to it is its parent module.

use hermes_proto::v1;
use serde::{Deserialize, Serialize};

/// How much of the machine a tool may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The agent's own entries of its home.
    Strict,
    /// The whole home, what others put there included.
    Home,
    /// No boundary at all.
    Off,
}

/// Which network a tool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// None but its own loopback.
    None,
    /// Its own loopback, and there an HTTP proxy, at [`PROXY`].
    Proxy,
    /// The machine's.
    Open,
}

/// What an agent's tools may do; from its profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What they see.
    pub level: Level,
    /// Whom they reach.
    pub network: Network,
    /// Memory of all tool processes of this worker together, and of each alone, MiB.
    pub memory_mb: u64,
    /// Processes and threads of all tools of this worker together.
    pub pids: u64,
    /// Processor time of each process, seconds.
    pub cpu_seconds: u64,
    /// What the agent's own entries of its home may take, MiB.
    pub disk_mb: u64,
}

impl Policy {
    /// As the control plane says it; what it leaves out, or this build does not know, is as strict as the default.
    pub fn from_wire(sandbox: Option<&v1::Sandbox>) -> Self {
        let usual = Self::default();
        let Some(sandbox) = sandbox else {
            return usual;
        };
        let level = match sandbox.level() {
            v1::SandboxLevel::Home => Level::Home,
            v1::SandboxLevel::Off => Level::Off,
            v1::SandboxLevel::Strict | v1::SandboxLevel::Unspecified => Level::Strict,
        };
        let network = match sandbox.network() {
            v1::SandboxNetwork::Proxy => Network::Proxy,
            v1::SandboxNetwork::Open => Network::Open,
            v1::SandboxNetwork::None | v1::SandboxNetwork::Unspecified => Network::None,
        };
        Self {
            level,
            network,
            memory_mb: sandbox.memory_mb.unwrap_or(usual.memory_mb),
            pids: sandbox.pids.unwrap_or(usual.pids),
            cpu_seconds: sandbox.cpu_seconds.unwrap_or(usual.cpu_seconds),
            disk_mb: sandbox.disk_mb.unwrap_or(usual.disk_mb),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            level: Level::Strict,
            network: Network::None,
            memory_mb: 1024,
            pids: 256,
            cpu_seconds: 600,
            disk_mb: 10_240,
        }
    }
}
