//! How the processes that an agent's tools start are kept apart.
//!
//! A part of an agent's profile: read from the document, stored with the revision, told to its workers, which build the boundary or
//! refuse to begin. Always true: what nobody says is strict. It builds nothing and does not know what a machine can give.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// What [`Sandbox::memory_mb`] may be.
pub const MEMORY_MB: RangeInclusive<u64> = 16..=1_048_576;
/// What [`Sandbox::pids`] may be.
pub const PIDS: RangeInclusive<u64> = 4..=1_000_000;
/// What [`Sandbox::cpu_seconds`] may be.
pub const CPU_SECONDS: RangeInclusive<u64> = 1..=604_800;
/// What [`Sandbox::disk_mb`] may be.
pub const DISK_MB: RangeInclusive<u64> = 16..=1_073_741_824;

/// How much of the machine a tool sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The agent's own entries of its home: SOUL.md, memories, skills, scripts, workspace and the like.
    #[default]
    Strict,
    /// The whole home, what others put there (`.env`, other agents' homes) included.
    Home,
    /// Everything that the worker's user sees. Has to be said.
    Off,
}

/// Which network a tool has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// None but a loopback of its own.
    #[default]
    None,
    /// A loopback of its own, and there an HTTP proxy: what the control plane reaches on the web for `web_fetch`, and nothing else.
    Proxy,
    /// The machine's.
    Open,
}

impl Level {
    /// All levels, the strictest first.
    pub const ALL: [Self; 3] = [Self::Strict, Self::Home, Self::Off];

    /// The name written in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Home => "home",
            Self::Off => "off",
        }
    }

    /// The level of exactly this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == name)
    }
}

impl Network {
    /// All networks, the strictest first.
    pub const ALL: [Self; 3] = [Self::None, Self::Proxy, Self::Open];

    /// The name written in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Proxy => "proxy",
            Self::Open => "open",
        }
    }

    /// The network of exactly this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|network| network.as_str() == name)
    }
}

/// The boundary around an agent's tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// What they see. Default: [`Level::Strict`].
    pub level: Level,
    /// Whom they reach. Default: [`Network::None`].
    pub network: Network,
    /// Memory of all tool processes of one worker together, and of each alone, MiB. Default: 1024.
    pub memory_mb: u64,
    /// Processes and threads of all tools of one worker together. Default: 256.
    pub pids: u64,
    /// Processor time of each process, seconds. Default: 600.
    pub cpu_seconds: u64,
    /// What the agent's own entries of its home may take, MiB. Default: 10240.
    pub disk_mb: u64,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            level: Level::default(),
            network: Network::default(),
            memory_mb: 1024,
            pids: 256,
            cpu_seconds: 600,
            disk_mb: 10_240,
        }
    }
}

/// What is wrong with a proxy where there is no boundary.
pub const PROXY_WITHOUT_BOUNDARY: &str =
    "proxy wants a boundary, and level off has none; write open, or the level strict or home";

impl Sandbox {
    /// What is wrong with one that did not come as text: field and remedy.
    pub fn faults(&self) -> Vec<String> {
        let numbers = [
            ("memory_mb", self.memory_mb, MEMORY_MB),
            ("pids", self.pids, PIDS),
            ("cpu_seconds", self.cpu_seconds, CPU_SECONDS),
            ("disk_mb", self.disk_mb, DISK_MB),
        ];
        let wrong = numbers.into_iter().filter(|(_, number, range)| !range.contains(number));
        let wrong = wrong
            .map(|(name, _, range)| format!("{name}: write a whole number from {} to {}", range.start(), range.end()));
        let bare = self.level == Level::Off && self.network == Network::Proxy;
        wrong.chain(bare.then(|| format!("network: {PROXY_WITHOUT_BOUNDARY}"))).collect()
    }
}
