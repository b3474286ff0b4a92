//! The document, the agents and the route table, served from memory as immutable snapshots and changed in one way.
//!
//! Read by every part that decides something about a message; changed by the gRPC services and by `--config` at a start. It
//! owns the current [`Snapshot`] of this replica. Always true: a change is decided on a snapshot, judged whole by
//! `hermes-core`, and written only if nobody else was faster; a refused change changed nothing; readers keep the snapshot they
//! took, so one message is never judged by two versions. It does not know who asks.

mod edit;
mod snapshot;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hermes_core::AgentId;
use hermes_core::config::{Document, Fault, Provider};
use tokio::sync::watch;

pub use edit::{Edit, EditError, Edited};
pub use snapshot::{AgentEntry, Snapshot};
pub(crate) use snapshot::{paths_under, soul_preview};

use crate::doorbell::{Doorbell, Word};
use crate::store::{self, Store};

/// A database that is polled every second and has been silent for this long does not answer.
const SILENT: Duration = Duration::from_secs(8);

/// What the place where workers run says about homes.
pub trait Homes: Send + Sync {
    /// The home of an agent there, absolute.
    fn home_of(&self, agent: &AgentId, home_dir: Option<&str>) -> PathBuf;
    /// Faults of the agents' homes taken together (two agents with one home).
    fn check(&self, document: &Document) -> Vec<Fault>;
    /// Keeps workers out of a removed agent's home until the answer is called or dropped. Blocks for a few seconds while
    /// a worker is leaving; `WouldBlock` when it stays.
    fn hold(&self, home: &Path) -> io::Result<Delete>;
}

/// Deletes what an agent owned in its home. Blocking.
pub type Delete = Box<dyn FnOnce() -> io::Result<()> + Send>;

struct Inner {
    store: Store,
    homes: Arc<dyn Homes>,
    /// Providers that the process's environment defines, used while the document has none.
    fallback: BTreeMap<String, Provider>,
    current: RwLock<Arc<Snapshot>>,
    changed: watch::Sender<i64>,
    home_versions: Mutex<HashMap<i32, Arc<AtomicI64>>>,
    home_sum: AtomicI64,
    /// The database's last answer or failure, and when it answered last.
    database: Mutex<(Result<(), String>, Instant)>,
    bell: Doorbell,
}

/// Handle to the registry; cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("version", &self.current().version).finish_non_exhaustive()
    }
}

impl Registry {
    /// Loads the registry; makes `main` when it does not exist yet.
    ///
    /// # Errors
    /// [`store::Error`].
    pub async fn load(
        store: Store,
        homes: Arc<dyn Homes>,
        fallback: BTreeMap<String, Provider>,
    ) -> Result<Self, EditError> {
        let registry = Self {
            inner: Arc::new(Inner {
                store,
                homes,
                fallback,
                current: RwLock::new(Arc::new(Snapshot::default())),
                changed: watch::Sender::new(0),
                home_versions: Mutex::default(),
                home_sum: AtomicI64::new(-1),
                database: Mutex::new((Ok(()), Instant::now())),
                bell: Doorbell::default(),
            }),
        };
        registry.reload().await?;
        if registry.current().agent(&AgentId::main()).is_none() {
            // The document always holds `main`; an edit that changes nothing else writes it.
            registry.edit("hermes", |_, _| Ok(())).await?;
        }
        let snapshot = registry.current();
        registry.inner.store.restore_homes(snapshot.version, &edit::homes_of(&snapshot.document)).await?;
        Ok(registry)
    }

    /// The current snapshot.
    pub fn current(&self) -> Arc<Snapshot> {
        self.inner.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells when the snapshot has changed.
    pub fn changes(&self) -> watch::Receiver<i64> {
        self.inner.changed.subscribe()
    }

    /// Loads the stored registry and swaps the snapshot.
    ///
    /// # Errors
    /// [`store::Error`].
    pub async fn reload(&self) -> store::Result<()> {
        let rows = self.inner.store.registry_load().await?;
        let versions = {
            let mut known = self.inner.home_versions.lock().unwrap_or_else(PoisonError::into_inner);
            for agent in &rows.agents {
                let version = known.entry(agent.agent_no).or_default();
                version.fetch_max(agent.home_version, Ordering::Relaxed);
            }
            known.clone()
        };
        let snapshot = Snapshot::from_rows(rows, &versions, &self.inner.fallback)?;
        let version = snapshot.version;
        {
            let mut current = self.inner.current.write().unwrap_or_else(PoisonError::into_inner);
            if current.version > version {
                return Ok(());
            }
            *current = Arc::new(snapshot);
        }
        self.inner.changed.send_replace(version);
        Ok(())
    }

    /// Something beside the document was changed under its version: this replica and the others load it.
    ///
    /// # Errors
    /// [`store::Error`]: it is loaded with the next poll.
    pub async fn moved(&self) -> store::Result<()> {
        self.inner.bell.ring(Word::Look);
        self.reload().await
    }

    /// Learns of home documents that another replica stored: `sum` is the sum of all home versions.
    ///
    /// # Errors
    /// [`store::Error`].
    pub async fn follow_homes(&self, sum: i64) -> store::Result<()> {
        if self.inner.home_sum.swap(sum, Ordering::Relaxed) == sum {
            return Ok(());
        }
        for (agent_no, version) in self.inner.store.home_versions().await? {
            self.home_moved(agent_no, version);
        }
        Ok(())
    }

    /// A home document was stored.
    pub fn home_moved(&self, agent_no: i32, version: i64) {
        let known = self.inner.home_versions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&agent_no) {
            known.fetch_max(version, Ordering::Relaxed);
        }
    }

    /// Whether the database answers, and why not: it failed, or has said nothing for [`SILENT`].
    ///
    /// # Errors
    /// For people.
    pub fn database(&self) -> Result<(), String> {
        let (last, answered) = &*self.inner.database.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()?;
        if answered.elapsed() > SILENT {
            return Err(format!("the database has not answered for {} s", answered.elapsed().as_secs()));
        }
        Ok(())
    }

    /// The database did or did not answer.
    pub fn set_database(&self, state: Result<(), String>) {
        let mut database = self.inner.database.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_ok() {
            database.1 = Instant::now();
        }
        database.0 = state;
    }

    /// The way to wake the loops of other replicas.
    pub fn bell(&self) -> &Doorbell {
        &self.inner.bell
    }

    /// The home of an agent where workers run.
    pub fn home_of(&self, agent: &AgentId, home_dir: Option<&str>) -> PathBuf {
        self.inner.homes.home_of(agent, home_dir)
    }

    /// Keeps workers out of a removed agent's home; see [`Homes::hold`]. A home that another agent has by now is not
    /// touched.
    ///
    /// # Errors
    /// As [`Homes::hold`].
    pub async fn hold_home(&self, agent: &AgentId, home_dir: Option<&str>) -> io::Result<Delete> {
        let home = self.home_of(agent, home_dir);
        let current = self.current();
        if current.agents().iter().any(|entry| self.home_of(&entry.id, entry.spec.home_dir.as_deref()) == home) {
            return Ok(Box::new(|| Ok(())));
        }
        let homes = Arc::clone(&self.inner.homes);
        tokio::task::spawn_blocking(move || homes.hold(&home))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// The store behind it.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The providers that the environment defines and that are in use because the document has none.
    pub fn fallback_in_use(&self) -> Vec<String> {
        let unused = !self.current().document.providers.is_empty();
        self.inner.fallback.keys().filter(|_| !unused).cloned().collect()
    }
}

/// The document as models are resolved: without providers of its own it has those of the environment.
fn with_fallback(mut document: Document, fallback: &BTreeMap<String, Provider>) -> Document {
    if document.providers.is_empty() && !fallback.is_empty() {
        document.providers.clone_from(fallback);
        if document.default_provider.is_none() && fallback.contains_key("openrouter") {
            // It serves every vendor's models under their whole id.
            document.default_provider = Some("openrouter".to_owned());
        }
    }
    document
}
