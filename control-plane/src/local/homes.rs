//! Which directory is an agent's home on this machine.
//!
//! Asked by the composition root for each agent before it tells the launcher, and by the launcher for the set as a whole.
//! Always true: an agent without a `home_dir` gets a home of its own; two agents never get the same directory, symlinks
//! resolved. One home inside another is allowed. It creates nothing: the worker makes its
//! home; of a home it deletes only what the worker made and its agent owned, when the agent is purged.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use hermes_core::id::AgentId;

/// What a worker makes in a home and its agent owns; everything else there is somebody else's.
const OWNED: [&str; 5] = ["SOUL.md", "memories", "skills", "workspace", ".hermes-documents.json"];
/// The file by which a worker holds its home.
const LOCK: &str = ".hermes-worker.lock";
/// How long a worker that is told to leave may still hold it.
pub const LEAVING: Duration = Duration::from_secs(5);

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

/// A home that no worker can use while this lives.
#[derive(Debug)]
pub struct Held {
    home: PathBuf,
    _lock: File,
}

/// Waits at most `patience` for a worker that is leaving, then holds its home; `None` when no worker ever made one there.
/// Blocking.
///
/// # Errors
/// `WouldBlock` when a worker stays; otherwise what the system answered.
pub fn hold(home: &Path, patience: Duration) -> io::Result<Option<Held>> {
    let lock = match File::options().read(true).write(true).open(home.join(LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let asked = Instant::now();
    while let Err(refused) = lock.try_lock() {
        match refused {
            TryLockError::WouldBlock if asked.elapsed() < patience => std::thread::sleep(Duration::from_millis(10)),
            other => return Err(other.into()),
        }
    }
    Ok(Some(Held { home: home.to_owned(), _lock: lock }))
}

impl Held {
    /// Deletes what the agent owned there, and the directory when nothing else is in it. Blocking.
    ///
    /// # Errors
    /// What the system answered; some of it may be deleted then.
    pub fn delete(self) -> io::Result<()> {
        for name in OWNED.into_iter().chain([LOCK]) {
            let path = self.home.join(name);
            let deleted = match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(error) => Err(error),
            };
            match deleted {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match fs::remove_dir(&self.home) {
            Err(error) if ![io::ErrorKind::NotFound, io::ErrorKind::DirectoryNotEmpty].contains(&error.kind()) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

/// `path` with the symlinks of its existing part resolved; the missing rest is taken as written.
fn resolve(path: &Path) -> PathBuf {
    match fs::canonicalize(path) {
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
    fn a_held_home_is_deleted_without_what_somebody_else_put_there() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("coder");
        assert!(hold(&home, Duration::ZERO).unwrap().is_none(), "no worker was ever there");
        let make = || {
            for name in ["memories", "skills/maps", "workspace"] {
                fs::create_dir_all(home.join(name)).unwrap();
            }
            for name in ["SOUL.md", "memories/MEMORY.md", LOCK] {
                fs::write(home.join(name), "x").unwrap();
            }
        };
        make();
        std::os::unix::fs::symlink(dir.path(), home.join("workspace/out")).unwrap();
        hold(&home, Duration::ZERO).unwrap().unwrap().delete().unwrap();
        assert!(!home.try_exists().unwrap() && dir.path().try_exists().unwrap());

        make();
        fs::write(home.join(".env"), "mine").unwrap();
        hold(&home, Duration::ZERO).unwrap().unwrap().delete().unwrap();
        let left: Vec<_> = fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [".env"]);

        make();
        let worker = File::options().write(true).open(home.join(LOCK)).unwrap();
        worker.lock().unwrap();
        assert_eq!(hold(&home, Duration::ZERO).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(home.join("SOUL.md").try_exists().unwrap());
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
        fs::create_dir(root.join("real")).unwrap();
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
