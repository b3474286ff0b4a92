//! Which directory is an agent's home on this machine.
//!
//! Asked by the composition root for each agent before it tells the launcher, and by the launcher for the set as a whole.
//! Always true: an agent without a `home_dir` gets a home of its own; two agents never get the same directory, symlinks
//! resolved. One home inside another is allowed. It creates nothing: the worker makes its home.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use hermes_core::id::AgentId;

/// Why an agent has no home here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `home_dir` is not a place this machine can name.
    #[error("home_dir {home_dir:?} of agent {agent} must be an absolute path or begin with ~/")]
    NotAbsolute {
        /// The agent.
        agent: AgentId,
        /// Its `home_dir` as configured.
        home_dir: String,
    },
    /// `home_dir` begins with `~` and nobody knows whose home that is.
    #[error("home_dir {home_dir:?} of agent {agent} needs HOME, which is not set; write the whole path")]
    NoUserHome {
        /// The agent.
        agent: AgentId,
        /// Its `home_dir` as configured.
        home_dir: String,
    },
    /// Another agent has the directory already.
    #[error("agents {first} and {second} share the home {}; give one of them another home_dir", home.display())]
    Shared {
        /// The agent that keeps it.
        first: AgentId,
        /// The agent that is refused.
        second: AgentId,
        /// The directory, symlinks resolved.
        home: PathBuf,
    },
}

impl Error {
    /// The agent that is refused.
    pub fn agent(&self) -> &AgentId {
        match self {
            Self::NotAbsolute { agent, .. } | Self::NoUserHome { agent, .. } | Self::Shared { second: agent, .. } => {
                agent
            }
        }
    }
}

/// What of the process's surroundings decides a home; read once at start.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Where homes without a `home_dir` lie: `<data>/homes`.
    pub homes: PathBuf,
    /// `HERMES_HOME`: the home of `main`, if set.
    pub hermes_home: Option<PathBuf>,
    /// `HOME`: what `~` stands for.
    pub user_home: Option<PathBuf>,
}

/// The home of `agent`: its `home_dir` (`~/` expanded), else for `main` the directory in `HERMES_HOME`, else `homes/<id>`.
///
/// # Errors
/// [`Error::NotAbsolute`], [`Error::NoUserHome`].
pub fn home_of(agent: &AgentId, home_dir: Option<&str>, surroundings: &Surroundings) -> Result<PathBuf, Error> {
    let Some(configured) = home_dir.filter(|text| !text.is_empty()) else {
        return Ok(match &surroundings.hermes_home {
            Some(home) if agent.is_main() && home.is_absolute() => home.clone(),
            _ => surroundings.homes.join(agent.as_str()),
        });
    };
    let home_dir = || configured.to_owned();
    let path = match configured.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => surroundings
            .user_home
            .as_deref()
            .filter(|home| home.is_absolute())
            .map(|home| home.join(rest.trim_start_matches('/')))
            .ok_or_else(|| Error::NoUserHome { agent: agent.clone(), home_dir: home_dir() })?,
        _ => PathBuf::from(configured),
    };
    if path.is_absolute() { Ok(path) } else { Err(Error::NotAbsolute { agent: agent.clone(), home_dir: home_dir() }) }
}

/// Refuses a home that an agent named earlier has. `main` keeps its home against all others, then the order decides.
pub fn shared<'a>(homes: impl IntoIterator<Item = (&'a AgentId, &'a Path)>) -> Vec<Error> {
    let mut homes: Vec<_> = homes.into_iter().collect();
    homes.sort_by_key(|(agent, _)| !agent.is_main());
    let mut taken: BTreeMap<PathBuf, &AgentId> = BTreeMap::new();
    let mut refused = Vec::new();
    for (agent, home) in homes {
        let home = resolve(home);
        if let Some(first) = taken.get(&home) {
            refused.push(Error::Shared { first: (*first).clone(), second: agent.clone(), home });
        } else {
            taken.insert(home, agent);
        }
    }
    refused
}

/// `path` with the symlinks of its existing part resolved; the missing rest is taken as written.
fn resolve(path: &Path) -> PathBuf {
    match std::fs::canonicalize(path) {
        Ok(resolved) => resolved,
        Err(error) if error.kind() == io::ErrorKind::NotFound => match (path.parent(), path.components().next_back()) {
            (Some(parent), Some(Component::ParentDir)) => {
                let mut resolved = resolve(parent);
                resolved.pop();
                resolved
            }
            (Some(parent), Some(last)) => resolve(parent).join(last),
            _ => path.to_path_buf(),
        },
        Err(_) => path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> AgentId {
        AgentId::parse(text).unwrap()
    }

    #[test]
    fn a_home_is_the_configured_one_then_hermes_home_for_main_then_its_own() {
        let mut surroundings =
            Surroundings { homes: "/data/homes".into(), hermes_home: None, user_home: Some("/home/u".into()) };
        let home = |agent: &str, dir: Option<&str>, s: &Surroundings| home_of(&id(agent), dir, s);
        assert_eq!(home("main", None, &surroundings).unwrap(), Path::new("/data/homes/main"));
        surroundings.hermes_home = Some("/mine".into());
        assert_eq!(home("main", None, &surroundings).unwrap(), Path::new("/mine"));
        assert_eq!(home("main", Some("/other"), &surroundings).unwrap(), Path::new("/other"));
        assert_eq!(home("coder", None, &surroundings).unwrap(), Path::new("/data/homes/coder"));
        assert_eq!(home("coder", Some(""), &surroundings).unwrap(), Path::new("/data/homes/coder"));
        let coder = home("coder", Some("~/.hermes/profiles/coder"), &surroundings).unwrap();
        assert_eq!(coder, Path::new("/home/u/.hermes/profiles/coder"));
        assert_eq!(home("coder", Some("~"), &surroundings).unwrap(), Path::new("/home/u"));
        for bad in ["relative", "./x", "~other/x"] {
            assert!(matches!(home("coder", Some(bad), &surroundings), Err(Error::NotAbsolute { .. })), "{bad}");
        }
        surroundings.user_home = None;
        assert!(matches!(home("coder", Some("~/x"), &surroundings), Err(Error::NoUserHome { .. })));
    }

    #[test]
    fn one_directory_has_one_agent_and_main_comes_first() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        let homes = [
            (id("a"), root.join("link/missing/../home")),
            (id("b"), root.join("real/home")),
            (id("c"), root.join("real/home/inside")),
            (id("d"), root.join("same")),
            (id("main"), root.join("same/")),
        ];
        let refused = shared(homes.iter().map(|(agent, home)| (agent, home.as_path())));
        let pairs: Vec<_> = refused
            .iter()
            .map(|error| match error {
                Error::Shared { first, second, .. } => (first.as_str(), second.as_str()),
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(pairs, [("a", "b"), ("main", "d")]);
    }
}
