//! Homes as the place where workers run sees them.

use std::path::{Path, PathBuf};

use hermes_core::AgentId;
use hermes_core::config::{Document, Fault};

use crate::local::homes::{self, Surroundings};
use crate::registry::{Delete, Homes};

/// Homes on this host (process launcher).
pub(super) struct LocalHomes(pub(super) Surroundings);

impl Homes for LocalHomes {
    fn home_of(&self, agent: &AgentId, home_dir: Option<&str>) -> PathBuf {
        homes::home_of(agent, home_dir, &self.0).unwrap_or_else(|_| self.0.homes.join(agent.as_str()))
    }

    fn check(&self, document: &Document) -> Vec<Fault> {
        let fault = |error: homes::Error| Fault {
            line: 0,
            path: format!("agents.{}.home_dir", error.agent()),
            message: error.to_string(),
        };
        let mut faults = Vec::new();
        let mut places = Vec::new();
        for (agent, spec) in &document.agents {
            match homes::home_of(agent, spec.home_dir.as_deref(), &self.0) {
                Ok(home) => places.push((agent, home)),
                Err(error) => faults.push(fault(error)),
            }
        }
        let shared = homes::shared(places.iter().map(|(agent, home)| (*agent, home.as_path())));
        faults.extend(shared.into_iter().map(fault));
        faults
    }

    fn hold(&self, home: &Path) -> std::io::Result<Delete> {
        let held = homes::hold(home, homes::LEAVING)?;
        Ok(Box::new(move || held.map_or(Ok(()), homes::Held::delete)))
    }
}

/// Homes on hosts we do not see: shown as configured, judged there.
pub(super) struct ExternalHomes;

impl Homes for ExternalHomes {
    fn home_of(&self, agent: &AgentId, home_dir: Option<&str>) -> PathBuf {
        home_dir.map_or_else(|| PathBuf::from("homes").join(agent.as_str()), PathBuf::from)
    }

    fn check(&self, _: &Document) -> Vec<Fault> {
        Vec::new()
    }

    fn hold(&self, _: &Path) -> std::io::Result<Delete> {
        Ok(Box::new(|| Ok(())))
    }
}
