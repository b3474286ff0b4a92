//! Makes a new cluster's files durable, side by side.
//!
//! initdb would do it one file after another, which takes as long as all its other work; syncing the whole file system
//! instead would wait for everything else that is being written, such as a build.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Enough for the file system to commit many at once.
const THREADS: usize = 16;

/// Syncs every file and directory below `root`, and `root` itself.
pub(super) fn sync_tree(root: &Path) -> io::Result<()> {
    let mut paths = vec![root.to_path_buf()];
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
            }
            if kind.is_dir() || kind.is_file() {
                paths.push(entry.path());
            }
        }
    }
    let sync = |paths: &[PathBuf]| paths.iter().try_for_each(|path| File::open(path)?.sync_all());
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            paths.chunks(paths.len().div_ceil(THREADS)).map(|part| scope.spawn(move || sync(part))).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(io::Error::other("a sync panicked"))))
    })
}
