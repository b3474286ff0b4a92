//! A boundary that stands ready: built around nothing while the model thinks, so that the next task need not wait for one.
//!
//! Called by [`Boundary::start`], and by [`Running::wait`] when a task has ended. It owns at most one. Always true: one is given to a
//! single task, of the policy that it was built for, and only while a fresh one would show the same files and folders (by device and
//! inode: what was replaced meanwhile, a fresh one shows); one that nobody takes within [`KEPT`] is ended, so that an idle worker
//! has none. What the machine mounts or unmounts meanwhile it does not see; that is why it is not kept for longer. A boundary with a proxy is
//! always built for its task.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

use super::{Boundary, Level, Network, Running, Sandbox, Task, inside, root};

/// How long one stands ready.
const KEPT: Duration = Duration::from_secs(30);
/// Fewest processes that a policy admits where one stands ready: two of them are its stages.
const FEWEST_PIDS: u64 = 32;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Spares {
    ready: Arc<Mutex<Option<Spare>>>,
    /// What builds the next one, and ends it when its time is over.
    keeper: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Spare {
    running: Running,
    policy: Sandbox,
    view: View,
}

/// What is at each place that a boundary shows: the entry itself, and where it leads.
type View = Vec<(Option<[u64; 4]>, PathBuf)>;

impl Spares {
    /// Whether such a task may be given one.
    pub(super) fn serve(policy: &Sandbox, task: &Task) -> bool {
        let fits = policy.level != Level::Off && policy.network != Network::Proxy && policy.pids >= FEWEST_PIDS;
        fits && matches!(task, Task::Command { .. } | Task::Files(..))
    }

    /// The one that stands ready, if it is as a fresh one for that policy would be.
    pub(super) async fn take(&self, policy: &Sandbox, home: &Path) -> Option<Running> {
        let spare = lock(&self.ready).take()?;
        let mut spare = Some(spare).filter(|spare| spare.policy == *policy)?;
        let view = view(home, policy.level).await?;
        (view == spare.view && spare.running.is_there()).then_some(spare.running)
    }

    /// Has one built for that policy, unless one stands ready; one of another policy gives way.
    pub(super) fn prepare(&self, boundary: &Boundary, policy: &Sandbox) {
        if lock(&self.ready).as_ref().is_some_and(|spare| spare.policy == *policy) {
            return;
        }
        // Of its own spares it has none, so that these end with whoever uses them.
        let boundary = Boundary { spares: Arc::default(), ..boundary.clone() };
        let (ready, policy) = (Arc::clone(&self.ready), *policy);
        let mut keeper = lock(&self.keeper);
        *keeper = JoinSet::new();
        keeper.spawn(async move {
            // Before it is built: what changes in between, it is not taken for.
            let Some(view) = view(&boundary.home, policy.level).await else { return };
            match boundary.spare(&policy).await {
                Ok(running) => *lock(&ready) = Some(Spare { running, policy, view }),
                // Whoever needs one says so.
                Err(error) => tracing::debug!(%error, "no boundary stands ready"),
            }
            tokio::time::sleep(KEPT).await;
            lock(&ready).take();
        });
    }
}

/// What a fresh one would show now. Looked at elsewhere: a file system that hangs must not hold up the worker.
async fn view(home: &Path, level: Level) -> Option<View> {
    let home = home.to_owned();
    let look = move || {
        let shown = root::SYSTEM.iter().map(PathBuf::from).chain(inside::owned(&home, level));
        shown.map(|path| (identity(&path), path)).collect()
    };
    tokio::task::spawn_blocking(look).await.ok()
}

/// Device and inode of the entry and of where it leads.
fn identity(path: &Path) -> Option<[u64; 4]> {
    let entry = fs::symlink_metadata(path).ok()?;
    let target = if entry.is_symlink() { fs::metadata(path).ok()? } else { entry.clone() };
    Some([entry.dev(), entry.ino(), target.dev(), target.ino()])
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}
