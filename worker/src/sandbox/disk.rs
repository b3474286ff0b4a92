//! How much of the disk an agent's own entries may take: watched while its tools run.
//!
//! A file's size is bounded by the kernel, their sum is not: no quota works on every file system. So the free room of the file
//! system, which costs nothing to ask for, is looked at often, and only when it has shrunk much are the agent's files counted. What
//! was there before a task began is not held against it: a full agent may still tidy up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::statvfs;

/// How often the free room is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Counted again when so much more is taken, by whomever, bytes.
const WORTH_COUNTING: u64 = 128 << 20;
/// The same in files.
const FILES_WORTH_COUNTING: u64 = 20_000;
/// Files for each MiB that may be taken.
const FILES_A_MB: u64 = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    bytes: u64,
    files: u64,
}

/// Ends when `owned` takes more than `most_mb` MiB (or 64 files for each of them) and more than it did at first; how much it takes then,
/// for people. Never where the file system does not say how full it is.
pub(super) async fn overflow(owned: Vec<PathBuf>, most_mb: u64) -> String {
    let most = Taken { bytes: most_mb << 20, files: most_mb.saturating_mul(FILES_A_MB) };
    let Some(mut counted_at) = owned.last().and_then(|path| free(path)) else {
        return std::future::pending().await;
    };
    let mut first: Option<Taken> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(now) = owned.last().and_then(|path| free(path)) else {
            continue;
        };
        let shrunk = counted_at.bytes.saturating_sub(now.bytes) >= WORTH_COUNTING
            || counted_at.files.saturating_sub(now.files) >= FILES_WORTH_COUNTING;
        if !shrunk {
            continue;
        }
        let paths = owned.clone();
        let Ok(taken) = tokio::task::spawn_blocking(move || taken(&paths)).await else {
            continue;
        };
        counted_at = now;
        let before = *first.get_or_insert(Taken {
            bytes: taken.bytes.saturating_sub(WORTH_COUNTING),
            files: taken.files.saturating_sub(FILES_WORTH_COUNTING),
        });
        let over = |taken: u64, most: u64, before: u64| taken > most && taken > before;
        if over(taken.bytes, most.bytes, before.bytes) || over(taken.files, most.files, before.files) {
            return format!("{} MiB in {} files of {most_mb} MiB", taken.bytes >> 20, taken.files);
        }
    }
}

/// What is free on the file system of `path`.
fn free(path: &Path) -> Option<Taken> {
    let stat = statvfs(path).ok()?;
    Some(Taken { bytes: stat.blocks_free() * stat.fragment_size(), files: stat.files_free() })
}

/// What the files beneath the paths take. Blocks.
fn taken(paths: &[PathBuf]) -> Taken {
    use std::os::unix::fs::MetadataExt as _;
    let mut taken = Taken::default();
    let mut waiting: Vec<PathBuf> = paths.to_vec();
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        taken.files += 1;
        taken.bytes += metadata.blocks() * 512;
        if metadata.is_dir()
            && let Ok(entries) = std::fs::read_dir(&path)
        {
            waiting.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_what_the_disk_holds_of_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a");
        std::fs::write(&path, vec![1; 1 << 20]).expect("write");
        // Sparse: nothing is stored.
        std::fs::File::create(dir.path().join("b")).expect("create").set_len(1 << 30).expect("length");
        let found = taken(&[dir.path().to_owned()]);
        assert_eq!(found.files, 3);
        assert!((1 << 20..2 << 20).contains(&found.bytes), "{found:?}");
        assert_eq!(taken(&[dir.path().join("none")]), Taken::default());
    }
}
