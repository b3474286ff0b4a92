//! [`Cluster`]: a Postgres server of one owner's own, which may be stopped hard and started again.
//!
//! Used by the chaos runs of the benchmark; tests that only need a database share one server ([`crate::postgres`], which
//! takes its programs and its account from here). It owns a directory and the server in it. Always true: it is reached by a
//! Unix socket alone, every answered commit has left the server's memory, so a stop without a word loses none, and the
//! server ends with the thread that started it. Nothing is flushed to disk: a crash of the machine is not what is played.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hermes_control_plane::local::postgres::{Search, programs};
use hermes_control_plane::local::spawn::Spawner;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

/// The role that owns everything.
pub const ROLE: &str = "hermes";
/// Commits leave the server's memory before they are answered.
const SETTINGS: &str = "
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = 64MB
fsync = off
synchronous_commit = on
wal_level = minimal
max_wal_senders = 0
jit = off
timezone = UTC
log_timezone = UTC
";
/// A start, recovery included.
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How often a start is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A server, running or not. Dropping it ends the server hard and removes everything.
#[derive(Debug)]
pub struct Cluster {
    programs: PathBuf,
    account: Option<(u32, u32)>,
    server: Option<Child>,
    // Last, so that it is removed when the server is gone.
    dir: TempDir,
}

impl Cluster {
    /// Makes a cluster with an empty database and starts its server.
    ///
    /// # Errors
    /// When there is no Postgres; the error says how to get it.
    pub async fn start() -> Result<Self> {
        let dir = directory("hermes-cluster-")?;
        let account = account()?;
        let programs = programs_dir().await?;
        let made = Maker { programs: &programs, account, dir: dir.path() };
        made.make(SETTINGS)?;
        let mut cluster = Self { programs, account, server: None, dir };
        cluster.restart().await?;
        let client = cluster.connect_to("postgres").await?;
        client.batch_execute(&format!("CREATE DATABASE {ROLE}")).await.context("create the database")?;
        drop(client);
        Ok(cluster)
    }

    /// The server's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run/.s.PGSQL.5432")
    }

    /// A connection of one's own that goes past everybody, for faults.
    ///
    /// # Errors
    /// When the server does not run.
    pub async fn connect(&self) -> Result<Connection> {
        self.connect_to(ROLE).await
    }

    async fn connect_to(&self, database: &str) -> Result<Connection> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.dir.path().join("run")).user(ROLE).dbname(database);
        let (client, connection) = config.connect(NoTls).await?;
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            // How it ended shows at the next call.
            let _ = connection.await;
        });
        Ok(Connection { client, _serving: serving })
    }

    /// Starts the stopped server and waits until it answers.
    ///
    /// # Errors
    /// When it does not; with the end of its log.
    pub async fn restart(&mut self) -> Result<()> {
        let end = tokio::time::Instant::now() + READY_WITHIN;
        loop {
            let mut server = self.command()?.spawn().context("start postgres")?;
            loop {
                if self.connect_to("postgres").await.is_ok() {
                    self.server = Some(server);
                    return Ok(());
                }
                if tokio::time::Instant::now() >= end {
                    bail!("postgres is not ready within {READY_WITHIN:?}; it says: {}", self.log_tail());
                }
                // What a predecessor leaves in memory may be in the way for a moment.
                if server.try_wait()?.is_some() {
                    break;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            tokio::time::sleep(LOOK_EVERY * 10).await;
        }
    }

    /// Ends the server at once, without a checkpoint, and waits for it: what `pg_ctl stop -m immediate` does.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop_immediately(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        if let Some(pid) = server.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
        }
        tokio::time::timeout(STOP_WITHIN, server.wait()).await.context("postgres does not stop")??;
        Ok(())
    }

    /// Ends the server and all its processes without a word (SIGKILL), and waits for it. What they leave in memory the next start waits for.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        if let Some(pid) = server.id() {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            // The one that would start others first.
            for pid in [pid.to_string().as_str()].into_iter().chain(children.split_whitespace()) {
                if let Ok(pid) = pid.parse() {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
        tokio::time::timeout(STOP_WITHIN, server.wait()).await.context("postgres does not end")??;
        Ok(())
    }

    fn command(&self) -> Result<tokio::process::Command> {
        // setpriv runs as the server's user already: a change of user would take the bond off again.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "QUIT"]).arg(self.programs.join("postgres"));
        command.arg("-D").arg(self.dir.path().join("pg")).current_dir("/").env_clear().env("PATH", "/usr/bin:/bin");
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        let log =
            File::options().create(true).append(true).open(self.dir.path().join("log")).context("open the log")?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        Ok(command)
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let pid = self.server.as_ref().and_then(Child::id).and_then(|pid| i32::try_from(pid).ok());
        let Some(pid) = pid.map(Pid::from_raw) else { return };
        // Its children hold the directory until it has told them.
        let _ = kill(pid, Signal::SIGQUIT);
        let end = std::time::Instant::now() + STOP_WITHIN;
        let ended = |server: &mut Child| server.try_wait().is_ok_and(|status| status.is_some());
        while !self.server.as_mut().is_none_or(ended) && std::time::Instant::now() < end {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// A client and what serves it; dropping it ends the connection.
#[derive(Debug)]
pub struct Connection {
    client: tokio_postgres::Client,
    _serving: JoinSet<()>,
}

impl std::ops::Deref for Connection {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

/// What makes a cluster: programs, the account they run as, and the directory it is made in.
pub(crate) struct Maker<'a> {
    pub(crate) programs: &'a Path,
    pub(crate) account: Option<(u32, u32)>,
    /// Gets `pg`, the cluster, and `run`, for the socket.
    pub(crate) dir: &'a Path,
}

impl Maker<'_> {
    /// Makes the cluster, with these settings besides its own.
    pub(crate) fn make(&self, settings: &str) -> Result<()> {
        let (cluster, socket_dir) = (self.dir.join("pg"), self.dir.join("run"));
        for own in [&cluster, &socket_dir] {
            fs::create_dir(own)?;
            fs::set_permissions(own, Permissions::from_mode(0o700))?;
            if let Some((uid, gid)) = self.account {
                chown(own, Some(uid), Some(gid))?;
            }
        }
        let initdb = |locale: &str| {
            let fixed = ["-N", "--auth=trust", "-E", "UTF8", "-U", ROLE, locale, "-D"];
            self.run("initdb", &[fixed.map(OsString::from).as_slice(), &[OsString::from(&cluster)]].concat())
        };
        initdb("--locale=C.UTF-8").or_else(|_| initdb("--locale=C"))?;
        let conf = cluster.join("postgresql.conf");
        let before = fs::read_to_string(&conf)?;
        let text = format!("{before}{settings}unix_socket_directories = '{}'\n", socket_dir.display());
        Ok(fs::write(&conf, text)?)
    }

    /// Runs one of the programs to its end.
    pub(crate) fn run(&self, program: &str, args: &[OsString]) -> Result<()> {
        let mut command = Command::new(self.programs.join(program));
        command.args(args).current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").process_group(0);
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        // A file, not a pipe: a server that is started keeps it open.
        let said = self.dir.join("said");
        let output = File::create(&said)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let status = command.status().with_context(|| format!("run {}", self.programs.join(program).display()))?;
        if !status.success() {
            let log = fs::read_to_string(self.dir.join("run/log")).unwrap_or_default();
            bail!("{program} failed ({status}): {}{log}", fs::read_to_string(&said).unwrap_or_default());
        }
        Ok(())
    }
}

/// A fresh directory that the server's user may pass through.
pub(crate) fn directory(prefix: &str) -> Result<TempDir> {
    // Not TMPDIR for root, who cannot know that another user may enter it.
    let base = if geteuid().is_root() { PathBuf::from("/tmp") } else { std::env::temp_dir() };
    let mut builder = tempfile::Builder::new();
    Ok(builder.prefix(prefix).permissions(Permissions::from_mode(0o711)).tempdir_in(base)?)
}

/// Where `initdb` and `postgres` are.
///
/// # Errors
/// When there are none; the error says how to get them.
pub async fn programs_dir() -> Result<PathBuf> {
    let search = Search {
        pg_bin: std::env::var_os("HERMES_PG_BIN").map(PathBuf::from),
        path: std::env::var_os("PATH").unwrap_or_default(),
        runtime_dir: None,
    };
    Ok(programs(&search, &Spawner::start()?).await?)
}

/// Postgres refuses to run as root: whom to become then, user and group.
///
/// # Errors
/// When we are root and there is nobody to become.
pub fn account() -> Result<Option<(u32, u32)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let user = ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten());
    let user = user.context("Postgres refuses to run as root, and there is neither a user postgres nor nobody")?;
    Ok(Some((user.uid.as_raw(), user.gid.as_raw())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_committed_outlives_a_stop_and_an_end_without_a_word() {
        let mut cluster = Cluster::start().await.unwrap();
        let client = cluster.connect().await.unwrap();
        client.batch_execute("CREATE TABLE kept (v int); INSERT INTO kept VALUES (7)").await.unwrap();
        cluster.stop_immediately().await.unwrap();
        assert!(cluster.connect().await.is_err());
        cluster.restart().await.unwrap();
        let client = cluster.connect().await.unwrap();
        client.batch_execute("INSERT INTO kept VALUES (8)").await.unwrap();
        cluster.kill().await.unwrap();
        assert!(cluster.connect().await.is_err());
        cluster.restart().await.unwrap();
        let row = cluster.connect().await.unwrap().query_one("SELECT sum(v)::int FROM kept", &[]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), 15);
        let dir = cluster.dir.path().to_owned();
        drop(cluster);
        assert!(!dir.try_exists().unwrap());
    }
}
