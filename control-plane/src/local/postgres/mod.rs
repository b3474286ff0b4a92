//! A Postgres server of our own: found on this machine, kept in the data directory, run as our child.
//!
//! Started by the composition root when no database URL is given. It owns `pg/` (the cluster), `run/` (the socket),
//! `log/postgres.log` and `postgres.password` below the data directory. Always true: only this machine reaches it, by a
//! Unix socket in a private directory and with a password nobody chose; `pg/` is whole or absent (it is initialised
//! beside its place and renamed); the server ends when we end, and what a killed predecessor left behind is waited for
//! or cleared. Postgres refuses to run as root, so under root it runs as another user or in a user namespace
//! ([`account`]). It deliberately knows nothing of our schema, and does not restart a server that ended:
//! [`Postgres::ended`] tells, and the process stops.

mod account;
mod discovery;
mod durable;
mod leftovers;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rand::RngCore as _;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use self::account::Account;
pub use self::discovery::Search;
use super::data_dir::{self, DataDir, io_error};
use super::spawn::{self, Child, ChildSpec, Output, Signal, Spawner};

/// The database, and the role that owns it.
const NAME: &str = "hermes";
/// `sun_path` holds 108 bytes and ends with a zero.
const SOCKET_PATH_MAX: usize = 107;
const SOCKET_NAME: &str = ".s.PGSQL.5432";
/// How long a starting server may stay silent.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often a recovery that goes on is mentioned.
const RECOVERY_NEWS: Duration = Duration::from_secs(5);
/// How long an immediate shutdown (the next start recovers) may take before it is a kill.
pub const IMMEDIATE: Duration = Duration::from_millis(500);
/// A log longer than this is set aside at the next start; one old log is kept.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How much of the log an error carries.
const LOG_TAIL_BYTES: usize = 2048;

/// Why there is no server. Nothing runs then, and a cluster that was there is untouched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable binaries.
    #[error("no Postgres found; run `apt-get install postgresql`, or name its bin directory in HERMES_PG_BIN")]
    NotFound,
    /// `HERMES_PG_BIN` is wrong.
    #[error("HERMES_PG_BIN is {}, which has no postgres and initdb", .0.display())]
    NotThere(PathBuf),
    /// All that was found is older than we support.
    #[error(
        "found only Postgres {found}, version {} or newer is needed; install it, or set HERMES_PG_BIN",
        discovery::OLDEST
    )]
    TooOld {
        /// The newest major version there is.
        found: u32,
    },
    /// The cluster belongs to another major version.
    #[error("{} was made by Postgres {needed}, which is not installed; install it (`apt-get install postgresql-{needed}`) or set HERMES_PG_BIN", dir.display())]
    OtherVersion {
        /// The cluster.
        dir: PathBuf,
        /// Its major version.
        needed: String,
    },
    /// Neither another user nor a user namespace is possible.
    #[error("Postgres refuses to run as root, user {user} cannot enter {}, and user namespaces are not allowed here; choose a --data-dir that other users can enter, such as /var/lib/hermes", blocked.display())]
    NoAccount {
        /// Whom we would have become.
        user: String,
        /// The first directory on the way that is closed.
        blocked: PathBuf,
    },
    /// The cluster is there, its password is not.
    #[error("{} is missing, without it nobody can open the database beside it", .0.display())]
    PasswordLost(PathBuf),
    /// A server of before does not end.
    #[error("processes {pids:?} of an earlier Postgres still use {}; end them", dir.display())]
    StillRunning {
        /// The cluster.
        dir: PathBuf,
        /// Who uses it.
        pids: Vec<i32>,
    },
    /// The directory for the socket belongs to somebody else.
    #[error("{} belongs to another user; remove it, or choose a shorter --data-dir", .0.display())]
    SocketDir(PathBuf),
    /// A program of Postgres failed.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// Which one.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        output: String,
    },
    /// The server runs but does not answer as it should.
    #[error("postgres does not answer within {READY_WITHIN:?}, its log ends with: {log}")]
    NotReady {
        /// The end of its log.
        log: String,
        /// The last answer, if there was one.
        #[source]
        source: Option<tokio_postgres::Error>,
    },
    /// The server does not know our password.
    #[error("the database refuses us; postgres.password is not the one it was made with")]
    Refused(#[source] tokio_postgres::Error),
    /// The database could not be made in the new cluster.
    #[error("cannot create the database; start again")]
    Database(#[source] tokio_postgres::Error),
    /// A process could not be started.
    #[error(transparent)]
    Spawn(#[from] spawn::Error),
    /// A file could not be used.
    #[error(transparent)]
    Files(#[from] data_dir::Error),
}

/// A running server. Dropping it kills the server hard; [`Postgres::stop`] is the way to end it.
#[derive(Debug)]
pub struct Postgres {
    server: Child,
    url: SecretString,
}

/// Finds, initialises where needed, and starts the server of `data`; answers when it accepts connections.
///
/// # Errors
/// [`Error`]; each says what to do.
pub async fn start(data: &DataDir, search: &Search, spawner: &Spawner) -> Result<Postgres, Error> {
    let cluster = data.path().join("pg");
    let found = discovery::find(search, &cluster, spawner).await?;
    let account = account::choose(&cluster, &found.bin, search, spawner).await?;
    let place = Place { data, cluster, account, bin: found.bin, path: search.path.clone(), spawner };
    let password = place.password()?;
    if !is_dir(&place.cluster) {
        place.initialise(&password).await?;
    }
    let socket_dir = place.socket_dir(search)?;
    leftovers::clear(&place.cluster, &socket_dir.join(SOCKET_NAME)).await?;
    let maintenance = url(&socket_dir, &password, "postgres");
    let url = url(&socket_dir, &password, NAME);
    let (mut log, log_path) = place.log()?;
    let log_from = log.seek(SeekFrom::End(0)).map_err(io_error("read", &log_path))?;
    let mut spec = place.command("postgres", settings(&place.cluster, &socket_dir, found.lz4), Output::File(log));
    spec.death_signal = Signal::SIGINT;
    let server = spawner.spawn(spec).await?;
    let mut postgres = Postgres { server, url };
    postgres.ready(&maintenance, || tail(&log_path, log_from)).await?;
    tracing::info!(version = found.version, pid = postgres.server.pid(), dir = %place.cluster.display(), "postgres is ready");
    Ok(postgres)
}

/// The directory with the programs a new cluster would be made with; for those who run a server in their own way.
///
/// # Errors
/// [`Error::NotFound`], [`Error::NotThere`], [`Error::TooOld`].
pub async fn programs(search: &Search, spawner: &Spawner) -> Result<PathBuf, Error> {
    Ok(discovery::find(search, Path::new("/nonexistent/pg"), spawner).await?.bin)
}

impl Postgres {
    /// Where to connect: a URL with the socket's directory and the password, so not for logs.
    pub fn url(&self) -> &SecretString {
        &self.url
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Waits until the server has ended, which it does by itself only when something is wrong. Cancel-safe.
    pub async fn ended(&mut self) -> ExitStatus {
        self.server.wait().await
    }

    /// Stops the server: sessions end and a checkpoint is written, which takes a moment; after `patience` it
    /// is stopped hard, within [`IMMEDIATE`], and the next start recovers. Nothing committed is lost either way.
    pub async fn stop(mut self, patience: Duration) {
        let status = self.server.stop(&[(Signal::SIGINT, patience), (Signal::SIGQUIT, IMMEDIATE)]).await;
        if status.success() {
            tracing::info!("postgres stopped");
        } else {
            tracing::warn!(%status, "postgres was stopped hard, the next start recovers");
        }
    }

    async fn ready(&mut self, maintenance: &SecretString, log: impl Fn() -> String) -> Result<(), Error> {
        let mut deadline = Instant::now() + READY_WITHIN;
        let mut told = Instant::now();
        let mut pause = Duration::from_millis(4);
        loop {
            let error = match tokio::time::timeout_at(deadline, connect(&self.url)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => return Err(Error::NotReady { log: log(), source: None }),
            };
            match error.code() {
                Some(&SqlState::INVALID_CATALOG_NAME) => {
                    return create_database(maintenance).await.map_err(Error::Database);
                }
                Some(&SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {
                    return Err(Error::Refused(error));
                }
                // It recovers and says so, which may take minutes; ending it would only make it begin again.
                Some(&SqlState::CANNOT_CONNECT_NOW) => {
                    deadline = Instant::now() + READY_WITHIN;
                    if told.elapsed() >= RECOVERY_NEWS {
                        told = Instant::now();
                        tracing::info!("postgres is recovering");
                    }
                }
                _ if Instant::now() >= deadline => return Err(Error::NotReady { log: log(), source: Some(error) }),
                _ => {}
            }
            // Not listening yet, or recovering.
            if let Ok(status) = tokio::time::timeout(pause, self.server.wait()).await {
                return Err(Error::Failed { program: "postgres", status, output: log() });
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// What the steps of a start share.
struct Place<'a> {
    data: &'a DataDir,
    cluster: PathBuf,
    account: Account,
    bin: PathBuf,
    path: OsString,
    spawner: &'a Spawner,
}

impl Place<'_> {
    fn password(&self) -> Result<SecretString, Error> {
        if let Some(password) = self.data.secret("postgres.password")? {
            return Ok(password);
        }
        if is_dir(&self.cluster) {
            return Err(Error::PasswordLost(self.data.path().join("postgres.password")));
        }
        let mut bytes = [0; 24];
        rand::rng().fill_bytes(&mut bytes);
        let password = SecretString::from(hex::encode(bytes));
        self.data.write_secret("postgres.password", &password)?;
        Ok(password)
    }

    /// Makes the cluster beside its place, so that a crash leaves nothing half made.
    async fn initialise(&self, password: &SecretString) -> Result<(), Error> {
        let staging = self.cluster.with_extension("new");
        let locales = ["C.UTF-8", "C"];
        for locale in locales {
            remove_dir(&staging)?;
            self.own_dir(&staging)?;
            let password_file = staging.with_extension("pwfile");
            data_dir::replace(&password_file, password.expose_secret().as_bytes(), 0o600)?;
            self.account.give(&password_file)?;
            let mut args: Vec<OsString> = vec!["-D".into(), staging.clone().into(), "--pwfile".into()];
            args.push(password_file.clone().into());
            args.extend(
                ["-U", NAME, "-E", "UTF8", "--auth=scram-sha-256", "--no-sync", "--no-instructions"]
                    .map(OsString::from),
            );
            args.push(format!("--locale={locale}").into());
            let (status, output) = run(self.spawner, self.command("initdb", args, Output::Pipe)).await?;
            fs::remove_file(&password_file).map_err(io_error("remove", &password_file))?;
            if status.success() {
                return self.put_in_place(&staging).await;
            }
            let last = Some(&locale) == locales.last();
            if last || !output.contains("invalid locale name") {
                remove_dir(&staging)?;
                return Err(Error::Failed { program: "initdb", status, output: end_of(&output) });
            }
        }
        Ok(())
    }

    /// Syncs the new cluster, then renames it.
    async fn put_in_place(&self, staging: &Path) -> Result<(), Error> {
        let (from, to) = (staging.to_path_buf(), self.cluster.clone());
        let parent = self.data.path().to_path_buf();
        let work = move || {
            durable::sync_tree(&from)?;
            fs::rename(&from, &to)?;
            File::open(&parent)?.sync_all()
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|join| Err(io::Error::other(join)))
            .map_err(|source| io_error("create", &self.cluster)(source).into())
    }

    /// Where the socket lies: in the data directory, or in a short private place if the path would be too long.
    fn socket_dir(&self, search: &Search) -> Result<PathBuf, Error> {
        let own = self.data.path().join("run");
        let fits = |dir: &Path| dir.as_os_str().len() + 1 + SOCKET_NAME.len() <= SOCKET_PATH_MAX;
        if fits(&own) {
            if is_dir(&own) {
                self.account.give(&own)?;
            }
            self.own_dir(&own)?;
            return Ok(own);
        }
        let hash = hex::encode(Sha256::digest(self.data.path().as_os_str().as_bytes()));
        let name = format!("hermes-{}", hash.get(..16).expect("64 hex digits"));
        // Others cannot enter a runtime directory, so it serves only when Postgres runs as we do.
        let runtime = search.runtime_dir.as_ref().filter(|dir| self.account.is_ourselves() && is_dir(dir));
        let dir = runtime.map(|runtime| runtime.join(&name)).filter(|dir| fits(dir));
        let dir = dir.unwrap_or_else(|| Path::new("/tmp").join(&name));
        self.own_dir(&dir)?;
        Ok(dir)
    }

    /// A directory that only Postgres's user may use. In a place where others write, one that is not ours is refused.
    fn own_dir(&self, dir: &Path) -> Result<(), Error> {
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => self.account.give(dir)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_error("create", dir)(error).into()),
        }
        let found = fs::symlink_metadata(dir).map_err(io_error("read", dir))?;
        if !found.is_dir() || found.uid() != self.account.uid() || found.mode() & 0o077 != 0 {
            return Err(Error::SocketDir(dir.to_path_buf()));
        }
        Ok(())
    }

    fn log(&self) -> Result<(File, PathBuf), Error> {
        let path = self.data.logs().join("postgres.log");
        if fs::metadata(&path).is_ok_and(|found| found.len() > LOG_BYTES_MAX) {
            fs::rename(&path, path.with_extension("log.old")).map_err(io_error("rename", &path))?;
        }
        let file = OpenOptions::new().append(true).read(true).create(true).mode(0o600).open(&path);
        Ok((file.map_err(io_error("open", &path))?, path))
    }

    fn command(&self, program: &str, args: Vec<OsString>, output: Output) -> ChildSpec {
        self.account.command(self.bin.join(program), args, output, &self.path)
    }
}

/// The settings, as arguments, so that they always are this program's and not those of the time of initdb.
fn settings(cluster: &Path, socket_dir: &Path, lz4: bool) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["-D".into(), cluster.into(), "-k".into(), socket_dir.into()];
    let fixed = [
        "listen_addresses=",
        "port=5432",
        "unix_socket_permissions=0700",
        "max_connections=64",
        "shared_buffers=128MB",
        "checkpoint_timeout=15min",
        "log_checkpoints=off",
        "logging_collector=off",
        "log_timezone=UTC",
        "timezone=UTC",
        // Short statements over tables that begin empty: no compilation, and no planning per call.
        "jit=off",
        "plan_cache_mode=force_generic_plan",
        if lz4 { "wal_compression=lz4" } else { "wal_compression=on" },
    ];
    for setting in fixed {
        args.extend(["-c".into(), setting.into()]);
    }
    args
}

/// A URL that tokio-postgres and libpq read alike; the directory is percent-encoded byte by byte.
fn url(socket_dir: &Path, password: &SecretString, database: &str) -> SecretString {
    use std::fmt::Write as _;
    let mut host = String::new();
    for byte in socket_dir.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.".contains(byte) {
            host.push(char::from(*byte));
        } else {
            write!(host, "%{byte:02X}").expect("writing to a string cannot fail");
        }
    }
    format!("postgres://{NAME}:{}@/{database}?host={host}", password.expose_secret()).into()
}

/// Connects and leaves again.
async fn connect(url: &SecretString) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url.expose_secret(), tokio_postgres::NoTls).await?;
    drop(client);
    connection.await
}

async fn create_database(maintenance: &SecretString) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(maintenance.expose_secret(), tokio_postgres::NoTls).await?;
    let create = async move { client.batch_execute(&format!("CREATE DATABASE {NAME}")).await };
    let (created, closed) = tokio::join!(create, connection);
    created.and(closed)
}

/// Runs a program to its end; answers how it ended and all it said.
async fn run(spawner: &Spawner, spec: ChildSpec) -> Result<(ExitStatus, String), Error> {
    let program = spec.program.clone();
    let mut child = spawner.spawn(spec).await?;
    let mut bytes = Vec::new();
    if let Some(mut output) = child.take_output().map_err(io_error("read the output of", &program))? {
        output.read_to_end(&mut bytes).await.map_err(io_error("read the output of", &program))?;
    }
    Ok((child.wait().await, String::from_utf8_lossy(&bytes).into_owned()))
}

fn tail(path: &Path, from: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().map_or_else(|error| format!("({} cannot be read: {error})", path.display()), |text| end_of(&text))
}

fn end_of(text: &str) -> String {
    let text = text.trim_end();
    let start = text.len().saturating_sub(LOG_TAIL_BYTES);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text.get(start..).unwrap_or_default().to_owned()
}

fn remove_dir(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", dir)(error).into()),
        _ => Ok(()),
    }
}

fn is_dir(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_dir())
}
