//! Files of a home, reached without following a link anywhere below it, whatever its agent does meanwhile.
//!
//! The agent's tools own parts of the home and may put a link in the place of a file or folder between two looks at it, while this
//! process sees more than they do. So the kernel walks the path in one call that refuses links (`openat2`), and what is done with a
//! folder is done through the folder that was opened, not through its name. Called by whoever reads or writes the home in the worker.
//! Always true: nothing outside the home is read or written; a file is a regular one, and no larger than was said. It deliberately
//! does not know what the files are. Everything here blocks.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// A folder that is held open.
#[derive(Debug)]
pub struct Folder {
    held: OwnedFd,
}

impl Folder {
    /// The folder `relative` of `home`; empty: the home itself. `None` when it is missing.
    ///
    /// # Errors
    /// `InvalidInput` when it is none, or lies behind a link; else what the system answers.
    pub fn open(home: &Path, relative: &str) -> io::Result<Option<Self>> {
        let root = File::open(home)?;
        let how =
            OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(
                ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS,
            );
        let relative = if relative.is_empty() { "." } else { relative };
        loop {
            return match openat2(&root, relative, how) {
                Ok(held) => Ok(Some(Self { held })),
                Err(Errno::ENOENT) => Ok(None),
                // Something was renamed meanwhile.
                Err(Errno::EAGAIN) => continue,
                Err(Errno::ELOOP | Errno::ENOTDIR | Errno::EXDEV) => Err(refused(relative)),
                Err(error) => Err(error.into()),
            };
        }
    }

    /// As [`Folder::open`], making it and those on the way with mode 0700 where they are missing.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub fn make(home: &Path, relative: &str) -> io::Result<Self> {
        if let Some(folder) = Self::open(home, relative)? {
            return Ok(folder);
        }
        let (parent, name) = relative.rsplit_once('/').unwrap_or(("", relative));
        match DirBuilder::new().mode(0o700).create(Self::make(home, parent)?.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Self::open(home, relative)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// A path that leads to `name` in this very folder for as long as it is held; empty: to the folder. `name` is a single part; whoever
    /// opens it must not follow it.
    pub fn path(&self, name: &str) -> PathBuf {
        let folder = PathBuf::from(format!("/proc/self/fd/{}", self.held.as_raw_fd()));
        if name.is_empty() { folder } else { folder.join(name) }
    }

    /// The names in it with whether each is a folder; what is neither a file nor a folder is left out.
    ///
    /// # Errors
    /// What the system answers.
    pub fn entries(&self) -> io::Result<impl Iterator<Item = io::Result<(String, bool)>>> {
        let entries = fs::read_dir(self.path(""))?;
        Ok(entries.filter_map(|entry| {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            let kind = entry.file_type().ok()?;
            let name = entry.file_name().into_string().ok()?;
            (kind.is_dir() || kind.is_file()).then_some(Ok((name, kind.is_dir())))
        }))
    }

    /// The content of the regular file `name` and what was known of it then; `None` when there is none, or it is larger than `most` bytes.
    ///
    /// # Errors
    /// What the system answers, also when it is a link.
    pub fn read(&self, name: &str, most: u64) -> io::Result<Option<(Vec<u8>, Metadata)>> {
        // Not blocking: a pipe would wait for its writer.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(self.path(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > most {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
        Ok(u64::try_from(bytes.len()).is_ok_and(|size| size <= most).then_some((bytes, metadata)))
    }
}

/// The content of a file of `home`; `None` when it is missing, no regular file, or larger than `most` bytes.
///
/// # Errors
/// As [`Folder::open`] and [`Folder::read`].
pub fn read(home: &Path, relative: &str, most: u64) -> io::Result<Option<(Vec<u8>, Metadata)>> {
    let (folder, name) = relative.rsplit_once('/').unwrap_or(("", relative));
    match Folder::open(home, folder)? {
        Some(folder) => folder.read(name, most),
        None => Ok(None),
    }
}

/// As [`read`], as text with what is no UTF-8 replaced. What cannot be read is warned of and missing.
pub fn text(home: &Path, relative: &str, most: u64) -> Option<String> {
    match read(home, relative, most) {
        Ok(found) => found.map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => {
            tracing::warn!(file = relative, %error, "a file of the home cannot be read");
            None
        }
    }
}

/// Why something is not touched.
pub fn refused(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{name} lies behind a symlink or is no regular file"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_link_anywhere_on_the_way_is_refused_and_a_pipe_is_no_file() {
        let dir = tempfile::tempdir().expect("tempdir");
        let outside = tempfile::tempdir().expect("tempdir");
        let home = dir.path();
        fs::write(outside.path().join("x"), "theirs").expect("write");
        fs::create_dir_all(home.join("a/b")).expect("mkdir");
        fs::write(home.join("a/b/c"), "ours").expect("write");
        symlink(outside.path(), home.join("a/out")).expect("symlink");
        symlink(outside.path().join("x"), home.join("a/x")).expect("symlink");
        nix::unistd::mkfifo(&home.join("a/pipe"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        let read = |name: &str| read(home, name, 100).map(|found| found.map(|(bytes, _)| bytes));
        assert_eq!(read("a/b/c").expect("read"), Some(b"ours".to_vec()));
        assert_eq!(read("a/b/none").expect("read"), None);
        assert_eq!(read("none/c").expect("read"), None);
        assert_eq!(read("a/pipe").expect("read"), None);
        for name in ["a/out/x", "a/x", "../x", "/etc/passwd"] {
            assert!(read(name).is_err(), "{name}");
        }
        assert!(Folder::make(home, "a/out/new").is_err() && Folder::make(home, "d/e/f").is_ok());
        assert!(home.join("d/e/f").is_dir());
    }

    #[test]
    fn a_folder_that_is_swapped_for_a_link_meanwhile_lets_nobody_out() {
        let dir = tempfile::tempdir().expect("tempdir");
        let outside = tempfile::tempdir().expect("tempdir");
        let home = dir.path();
        fs::create_dir_all(home.join("skills")).expect("mkdir");
        fs::write(home.join("skills/s"), "ours").expect("write");
        fs::write(outside.path().join("s"), "theirs").expect("write");
        symlink(outside.path(), home.join("link")).expect("symlink");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let swap = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                    let cwd = nix::fcntl::AT_FDCWD;
                    nix::fcntl::renameat2(cwd, &home.join("skills"), cwd, &home.join("link"), swap).expect("swap");
                }
            });
            let (mut ours, mut refused) = (0, 0);
            for _ in 0..20_000 {
                match read(home, "skills/s", 100) {
                    Ok(Some((bytes, _))) => {
                        assert_eq!(bytes, b"ours");
                        ours += 1;
                    }
                    Ok(None) => {}
                    Err(_) => refused += 1,
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert!(ours > 0 && refused > 0, "{ours} {refused}");
        });
    }
}
