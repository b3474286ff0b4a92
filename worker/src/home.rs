//! The home directory: made private, given its starter files, and locked for one process.
//!
//! Called once at start, before anything else of the home is read. A [`Home`] owns the lock for as long as it lives.
//! Always true: no two worker processes of one host work in the same directory, and a directory made here is 0700. It
//! never changes the mode of a directory that was there before, and it does not know what documents mean.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What a new home's `SOUL.md` says. Unchanged, it is no document of the agent: it is not uploaded, and gives way.
pub const STARTER_SOUL: &str = "\
You are Hermes, a helpful assistant who lives in a chat.

Answer briefly and plainly, say so when you do not know, and ask when a request can be read in two ways.
";

/// The lock file, inside the home.
const LOCK: &str = ".hermes-worker.lock";

/// Why a home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another worker process holds it.
    #[error("home {} is in use by the worker with pid {pid}; give each worker its own home or stop that one", home.display())]
    InUse {
        /// The home.
        home: PathBuf,
        /// The holder as it wrote itself down, or `unknown`.
        pid: String,
    },
    /// It is there but is no directory.
    #[error("home {} is not a directory; choose another --home", .0.display())]
    NotADirectory(PathBuf),
    /// The file system refused.
    #[error("cannot prepare home {}; check that it is writable", home.display())]
    Io {
        /// The file or directory.
        home: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A home that this process holds.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    /// The lock is the open file; dropping it releases the home.
    _lock: File,
}

impl Home {
    /// Makes the directory (0700) with `memories/`, `skills/`, `workspace/` and a starter `SOUL.md` where they are
    /// missing, and locks it.
    ///
    /// # Errors
    /// [`Error`]; nothing is changed in a home that another worker holds.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io_error = |path: &Path| {
            let home = path.to_owned();
            move |source| Error::Io { home, source }
        };
        let made = make_directory(path).map_err(io_error(path))?;
        let home = path.canonicalize().map_err(io_error(path))?;
        if !home.is_dir() {
            return Err(Error::NotADirectory(home));
        }
        let lock = lock(&home)?;
        let mode = home.metadata().map_err(io_error(&home))?.permissions().mode();
        if !made && mode & 0o077 != 0 {
            tracing::warn!(home = %home.display(), mode = format!("{:o}", mode & 0o7777), "others can read this home; chmod 700 closes it");
        }
        for name in ["memories", "skills", "workspace"] {
            make_directory(&home.join(name)).map_err(io_error(&home.join(name)))?;
        }
        write_starter(&home.join("SOUL.md")).map_err(io_error(&home.join("SOUL.md")))?;
        Ok(Self { path: home, _lock: lock })
    }

    /// The absolute path, symlinks resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes a private directory and its parents; answers whether it is new.
fn make_directory(path: &Path) -> io::Result<bool> {
    if path.try_exists()? {
        return Ok(false);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    Ok(true)
}

fn write_starter(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => file.write_all(STARTER_SOUL.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn lock(home: &Path) -> Result<File, Error> {
    let io_error = |source| Error::Io { home: home.join(LOCK), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(home.join(LOCK))
        .map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let read = (&file).take(20).read_to_string(&mut pid);
            let known = read.is_ok() && !pid.is_empty() && pid.trim().bytes().all(|byte| byte.is_ascii_digit());
            let pid = if known { pid.trim().to_owned() } else { "unknown".to_owned() };
            return Err(Error::InUse { home: home.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(io_error(source)),
    }
    file.set_len(0).map_err(io_error)?;
    file.rewind().map_err(io_error)?;
    writeln!(file, "{}", std::process::id()).map_err(io_error)?;
    Ok(file)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A directory with these files: path beneath it, text.
    pub(crate) fn with_files(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("tempdir");
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        }
        dir
    }

    #[test]
    fn a_new_home_is_private_and_complete() {
        let dir = tempfile::tempdir().expect("tempdir");
        let home = Home::open(&dir.path().join("a/b")).expect("open");
        assert_eq!(home.path().metadata().expect("metadata").permissions().mode() & 0o777, 0o700);
        for name in ["memories", "skills", "workspace"] {
            assert_eq!(home.path().join(name).metadata().expect(name).permissions().mode() & 0o777, 0o700);
        }
        assert_eq!(std::fs::read_to_string(home.path().join("SOUL.md")).expect("soul"), STARTER_SOUL);
    }

    #[test]
    fn a_second_worker_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("home");
        let first = Home::open(&path).expect("open");
        std::os::unix::fs::symlink(&path, dir.path().join("alias")).expect("symlink");
        let error = Home::open(&dir.path().join("alias")).expect_err("locked").to_string();
        assert!(error.contains(&format!("pid {};", std::process::id())), "{error}");
        drop(first);
        Home::open(&path).expect("free again");
    }

    #[test]
    fn what_was_there_stays_and_a_file_is_no_home() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("SOUL.md"), "mine").expect("write");
        Home::open(dir.path()).expect("open");
        assert_eq!(std::fs::read_to_string(dir.path().join("SOUL.md")).expect("soul"), "mine");
        assert!(matches!(Home::open(&dir.path().join("SOUL.md")), Err(Error::NotADirectory(_))));
    }
}
