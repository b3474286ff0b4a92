//! The data directory of one `up`: who may use it, and where everything in it lies.
//!
//! Opened once by the composition root, before anything else; `hermesctl` reads `endpoint.json` and `operator.token` from
//! outside. It owns the lock that keeps a second process out, and the two files named above. Always true: while a
//! [`DataDir`] lives no other process has it; the lock is the kernel's, so it goes with its holder however that ends;
//! files with secrets are 0600 and every file is replaced whole. It deliberately does not look into `postgres/` or
//! `homes/`: those belong to [`super::postgres`] and to the workers.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hermes_core::id::AgentId;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

/// How long a lock whose holder is dead may still be held by one of its unborn children.
const ORPHANED_LOCK: Duration = Duration::from_secs(2);

/// Why the data directory cannot be used. Nothing in it was changed by whoever got this.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another live process has it.
    #[error("{} is in use by process {pid}; stop it, or choose another --data-dir", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Its holder's pid as the holder wrote it, or `unknown`.
        pid: String,
    },
    /// Neither a home directory nor a flag says where it is.
    #[error("no data directory: set --data-dir, HERMES_DATA_DIR or HOME")]
    Unknown,
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// What `endpoint.json` says: where the ready process listens. Written by `up`, read by `hermesctl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// gRPC for operators and clients.
    pub grpc: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
    /// The workers' mutual-TLS listener.
    pub worker: SocketAddr,
    /// The control plane's process.
    pub pid: u32,
    /// Where Postgres is, with its password: the file is the owner's alone.
    pub database_url: String,
}

/// A locked data directory. Dropping it unlocks.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    lock: File,
}

/// Where the data lies when nobody says: `/var/lib/hermes` for root (other users can enter it, so Postgres can run as one
/// of them), else `$XDG_DATA_HOME/hermes`, else `~/.local/share/hermes`. Relative and empty values do not count.
///
/// # Errors
/// [`Error::Unknown`] when neither variable helps.
pub fn default_path(root_user: bool, xdg_data_home: Option<&Path>, home: Option<&Path>) -> Result<PathBuf, Error> {
    if root_user {
        return Ok(PathBuf::from("/var/lib/hermes"));
    }
    let absolute = |path: Option<&Path>| path.filter(|path| path.is_absolute()).map(Path::to_path_buf);
    absolute(xdg_data_home)
        .or_else(|| absolute(home).map(|home| home.join(".local/share")))
        .map(|base| base.join("hermes"))
        .ok_or(Error::Unknown)
}

impl DataDir {
    /// Creates the directory where missing, and locks it.
    ///
    /// # Errors
    /// [`Error::InUse`] while another process has it; [`Error::Io`] otherwise.
    pub fn open(path: &Path) -> Result<Self, Error> {
        // Others may pass through, since Postgres can be another user, but not look around.
        make_dir(path, 0o711)?;
        let root = fs::canonicalize(path).map_err(io_error("resolve", path))?;
        let lock_path = root.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error("open", &lock_path))?;
        let asked = Instant::now();
        while let Err(refusal) = lock.try_lock() {
            let TryLockError::WouldBlock = refusal else {
                return Err(io_error("lock", &lock_path)(refusal.into()));
            };
            let mut pid = String::new();
            let _ = lock.rewind().and_then(|()| lock.read_to_string(&mut pid));
            // A process killed while it starts a child leaves its lock with that child for some milliseconds.
            if !ended(pid.trim()) || asked.elapsed() >= ORPHANED_LOCK {
                let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() }.to_owned();
                return Err(Error::InUse { dir: root, pid });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let write_pid = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write_pid(&mut lock).map_err(io_error("write", &lock_path))?;
        let dir = Self { root, lock };
        make_dir(&dir.homes(), 0o700)?;
        make_dir(&dir.logs(), 0o700)?;
        // A predecessor that was killed could not remove it, and it names a port that may be somebody else's by now.
        dir.remove_endpoint()?;
        Ok(dir)
    }

    /// The directory itself, absolute and without symlinks.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The directory of all homes that have no `home_dir` of their own.
    pub fn homes(&self) -> PathBuf {
        self.root.join("homes")
    }

    /// The home of `agent` unless its profile names another.
    pub fn home(&self, agent: &AgentId) -> PathBuf {
        self.homes().join(agent.as_str())
    }

    /// Where log files go.
    pub fn logs(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Tells `hermesctl` where we listen. Call when ready.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_endpoint(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let path = self.endpoint_path();
        let text = serde_json::to_vec(endpoint).map_err(|error| io_error("write", &path)(error.into()))?;
        replace(&path, &text, 0o600)
    }

    /// Takes the endpoint back; fine if there is none. Call first when stopping.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_endpoint(&self) -> Result<(), Error> {
        let path = self.endpoint_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The operator token kept for `hermesctl` on this machine, if one was written.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn operator_token(&self) -> Result<Option<SecretString>, Error> {
        self.secret("operator.token")
    }

    /// Keeps the operator token, 0600.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_operator_token(&self, token: &SecretString) -> Result<(), Error> {
        self.write_secret("operator.token", token)
    }

    /// A secret kept under `name`, or `None`.
    pub(super) fn secret(&self, name: &str) -> Result<Option<SecretString>, Error> {
        let path = self.root.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()).map(SecretString::from)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// Keeps a secret under `name`, 0600.
    pub(super) fn write_secret(&self, name: &str, secret: &SecretString) -> Result<(), Error> {
        replace(&self.root.join(name), secret.expose_secret().as_bytes(), 0o600)
    }

    fn endpoint_path(&self) -> PathBuf {
        self.root.join("endpoint.json")
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // Closing is not enough: a child on its way to its program still has a copy of the descriptor.
        let _ = self.lock.unlock();
    }
}

/// Whether the process that wrote its pid into the lock is gone.
fn ended(pid: &str) -> bool {
    pid.parse().is_ok_and(|pid: i32| pid > 0 && kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH))
}

/// Creates `path` with `mode`, and its missing parents; an existing directory keeps its mode.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_error("create", path)(error)),
        _ => {}
    }
    // Whatever the umask took away.
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io_error("set the mode of", path))
}

/// Replaces a file as a whole: readers see the old text or the new one.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let write = || {
        // Not over an old one, whose mode it would keep.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(io_error("write", path))
}

/// Turns the system's answer into an [`Error::Io`].
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_default_follows_the_user_and_xdg() {
        let xdg = Path::new("/x");
        let home = Path::new("/h");
        assert_eq!(default_path(true, Some(xdg), Some(home)).unwrap(), Path::new("/var/lib/hermes"));
        assert_eq!(default_path(false, Some(xdg), Some(home)).unwrap(), Path::new("/x/hermes"));
        assert_eq!(default_path(false, Some(Path::new("")), Some(home)).unwrap(), Path::new("/h/.local/share/hermes"));
        assert!(matches!(default_path(false, Some(Path::new("rel")), None), Err(Error::Unknown)));
    }

    #[test]
    fn a_second_holder_is_refused_with_the_first_ones_pid() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        let first = DataDir::open(&path).unwrap();
        let error = DataDir::open(&path).unwrap_err();
        assert!(matches!(&error, Error::InUse { pid, .. } if *pid == std::process::id().to_string()), "{error}");
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_lock_whose_holder_is_dead_is_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let mut orphaned = File::create(temp.path().join("lock")).unwrap();
        writeln!(orphaned, "{}", dead.id()).unwrap();
        orphaned.lock().unwrap();
        let began = Instant::now();
        std::thread::scope(|scope| {
            let opened = scope.spawn(|| DataDir::open(temp.path()));
            std::thread::sleep(Duration::from_millis(50));
            orphaned.unlock().unwrap();
            opened.join().unwrap().unwrap();
        });
        assert!(began.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn secrets_are_private_and_the_endpoint_comes_and_goes() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(&temp.path().join("data")).unwrap();
        assert_eq!((mode(dir.path()), mode(&dir.homes())), (0o711, 0o700));
        assert!(dir.operator_token().unwrap().is_none());
        dir.write_operator_token(&"t0ken".to_owned().into()).unwrap();
        dir.write_operator_token(&"t1ken".to_owned().into()).unwrap();
        assert_eq!(dir.operator_token().unwrap().unwrap().expose_secret(), "t1ken");
        assert_eq!(mode(&dir.path().join("operator.token")), 0o600);

        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let endpoint = Endpoint {
            grpc: address(1),
            http: address(2),
            worker: address(3),
            pid: 4,
            database_url: "postgres:///".to_owned(),
        };
        dir.write_endpoint(&endpoint).unwrap();
        let path = dir.path().join("endpoint.json");
        let text = fs::read_to_string(&path).unwrap();
        let told = r#"{"grpc":"127.0.0.1:1","http":"127.0.0.1:2","worker":"127.0.0.1:3","pid":4,"database_url":"postgres:///"}"#;
        assert_eq!(text, told);
        let root = dir.path().to_owned();
        drop(dir);
        // As after a kill: the file is still there, and the next holder takes it away before it is ready.
        DataDir::open(&root).unwrap();
        assert!(!path.try_exists().unwrap());
    }
}
