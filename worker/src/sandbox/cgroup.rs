//! Control groups: what bounds the memory and the number of all tool processes of a worker together, where this process may
//! make groups.
//!
//! Owned by the boundary: one group for a worker, removed with it. Groups that a killed worker left are removed when the next
//! one starts. Knows both layouts: one tree (version 2), and a tree for each resource (version 1).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Sandbox;

const ROOT: &str = "/sys/fs/cgroup";
/// Followed by the worker's pid.
const NAME: &str = "hermes-tools-";

/// A worker's group.
#[derive(Debug)]
pub(super) struct Group {
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    One(PathBuf),
    Each { pids: PathBuf, memory: PathBuf },
}

impl Group {
    /// Makes the group of the worker with that pid, or takes it where it is there.
    pub(super) fn make(worker: u32) -> io::Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let root = Path::new(ROOT);
        if let Some(parent) = parent(root, &own, "")
            && let Ok(group) = make(&parent, worker)
        {
            let bounds =
                || Ok::<_, io::Error>(group.join("pids.max").try_exists()? && group.join("memory.max").try_exists()?);
            if !bounds()? {
                // Only where no process is in the parent itself, or at the very top.
                let _ = fs::write(parent.join("cgroup.subtree_control"), "+pids +memory");
            }
            if bounds()? {
                return Ok(Self { layout: Layout::One(group) });
            }
            let _ = fs::remove_dir(group);
        }
        let of = |resource: &str| {
            let parent = parent(&root.join(resource), &own, resource);
            parent.ok_or_else(|| io::Error::other(format!("no control groups for {resource} are mounted")))
        };
        let pids = make(&of("pids")?, worker)?;
        let memory = make(&of("memory")?, worker)?;
        Ok(Self { layout: Layout::Each { pids, memory } })
    }

    /// Which kind, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self.layout {
            Layout::One(_) => "control groups (version 2)",
            Layout::Each { .. } => "control groups (version 1)",
        }
    }

    /// Sets its bounds.
    pub(super) fn limit(&self, policy: &Sandbox) -> io::Result<()> {
        let bytes = policy.memory_mb << 20;
        match &self.layout {
            Layout::One(group) => {
                fs::write(group.join("pids.max"), policy.pids.to_string())?;
                fs::write(group.join("memory.max"), bytes.to_string())?;
                // Not every kernel accounts for swap.
                let _ = fs::write(group.join("memory.swap.max"), "0");
            }
            Layout::Each { pids, memory } => {
                fs::write(pids.join("pids.max"), policy.pids.to_string())?;
                fs::write(memory.join("memory.limit_in_bytes"), bytes.to_string())?;
            }
        }
        Ok(())
    }

    /// The files by which a process of one thread joins: it writes `0`.
    ///
    /// In version 1 that is `tasks`: by `cgroup.procs` a whole process would move, for which the kernel holds up all others, and that takes it about
    /// 10 ms each time (the grace period behind `cgroup_threadgroup_rwsem`).
    pub(super) fn entrances(&self) -> Vec<PathBuf> {
        let file = match &self.layout {
            Layout::One(_) => "cgroup.procs",
            Layout::Each { .. } => "tasks",
        };
        self.directories().iter().map(|directory| directory.join(file)).collect()
    }

    fn directories(&self) -> Vec<PathBuf> {
        match &self.layout {
            Layout::One(group) => vec![group.clone()],
            Layout::Each { pids, memory } => vec![pids.clone(), memory.clone()],
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for directory in self.directories() {
            // What still ends in it keeps it; the next worker removes it.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Where this process's own group of `resource` lies in the tree at `root`; empty: of version 2.
fn parent(root: &Path, own: &str, resource: &str) -> Option<PathBuf> {
    if resource.is_empty() && !root.join("cgroup.controllers").try_exists().unwrap_or(false) {
        return None;
    }
    let path = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|name| name == resource).then_some(path)
    })?;
    let nested = root.join(path.trim_start_matches('/'));
    // In a container the path may be the host's.
    [nested, root.to_owned()].into_iter().find(|path| path.join("cgroup.procs").try_exists().unwrap_or(false))
}

fn make(parent: &Path, worker: u32) -> io::Result<PathBuf> {
    for entry in fs::read_dir(parent)?.flatten() {
        let name = entry.file_name();
        let left = name.to_str().and_then(|name| name.strip_prefix(NAME)).and_then(|pid| pid.parse::<u32>().ok());
        if left
            .is_some_and(|pid| pid != worker && !Path::new("/proc").join(pid.to_string()).try_exists().unwrap_or(true))
        {
            let _ = fs::remove_dir(entry.path());
        }
    }
    let group = parent.join(format!("{NAME}{worker}"));
    match fs::create_dir(&group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(group),
    }
}
