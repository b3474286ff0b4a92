//! What an agent's tools may see, reach and take, as the control plane says it with each turn.

use hermes_home::sandbox::{Level, Network, Sandbox};
use hermes_proto::v1;

/// What it leaves out, or this build does not know, is as strict as the default.
pub fn from_wire(sandbox: Option<&v1::Sandbox>) -> Sandbox {
    let usual = Sandbox::default();
    let Some(sandbox) = sandbox else { return usual };
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
    Sandbox {
        level,
        network,
        memory_mb: sandbox.memory_mb.unwrap_or(usual.memory_mb),
        pids: sandbox.pids.unwrap_or(usual.pids),
        cpu_seconds: sandbox.cpu_seconds.unwrap_or(usual.cpu_seconds),
        disk_mb: sandbox.disk_mb.unwrap_or(usual.disk_mb),
    }
}
