//! [`TestPostgres`]: a database of its own for each test, on one real server for all.
//!
//! Called by store and system tests, under `cargo test` (threads) and nextest (processes) alike. It owns one server per
//! build directory, started by the first test that needs it and ended by a detached janitor a few seconds after the last
//! test process is gone, killed ones included. Always true: a test's database is a clone of a template that was migrated
//! once per state of the migrations; a missing Postgres fails the test with the remedy and never skips it. Nothing is
//! flushed to disk here, so nothing about durability may be concluded from these tests.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, bail};
use postgres::{Client, NoTls};
use sha2::{Digest as _, Sha256};

use crate::cluster::{self, Maker, ROLE};

const JANITOR: &str = include_str!("janitor.sh");
/// Speed before safety, and no background work that could disturb a clone.
const SETTINGS: &str = "
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 300
shared_buffers = 64MB
fsync = off
synchronous_commit = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
max_wal_size = 4GB
checkpoint_timeout = 1h
autovacuum = off
jit = off
plan_cache_mode = force_generic_plan
timezone = UTC
log_timezone = UTC
";

/// One test's database, dropped with this value; a killed test's goes with the server.
#[derive(Debug)]
pub struct TestPostgres {
    name: String,
    url: String,
}

impl TestPostgres {
    /// A database in the state that `migrate` (given a URL) brings an empty one to. The migrated template is shared by
    /// all that name the same directories with the same content, so `migrate` may depend on nothing else.
    ///
    /// # Errors
    /// When there is no Postgres (the error says how to get it), or `migrate` fails.
    pub fn migrated(sources: &[&Path], migrate: &(dyn Fn(&str) -> Result<()> + Sync)) -> Result<Self> {
        let template = format!("template_{}", digest_of(sources)?);
        apart(|| {
            let server = server()?;
            server.make_template(&template, migrate)?;
            server.make_database(Some(&template))
        })
    }

    /// An empty database.
    ///
    /// # Errors
    /// When there is no Postgres; the error says how to get it.
    pub fn empty() -> Result<Self> {
        apart(|| server()?.make_database(None))
    }

    /// Where it is; for `tokio-postgres`, `postgres` and libpq alike.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for TestPostgres {
    fn drop(&mut self) {
        let name = &self.name;
        // Whatever is still connected loses its database; if that fails the janitor removes it with all the rest.
        let _ =
            apart(|| Ok(server()?.admin()?.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))?));
    }
}

/// The server as this process uses it.
struct Server {
    socket_dir: PathBuf,
    /// Held shared until this process ends: while anybody holds it the server stays.
    _in_use: File,
}

/// Runs on a thread of its own, because the synchronous client must not be used inside a tokio runtime.
fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_| bail!("the test database's thread panicked"))
}

fn server() -> Result<&'static Server> {
    static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
    let server = SERVER.get_or_init(|| Server::share(&build_dir()).map_err(|error| format!("{error:#}")));
    server.as_ref().map_err(|error| anyhow!("no test database: {error}"))
}

impl Server {
    /// Joins the server of `build_dir`, and starts it first if nobody has.
    fn share(build_dir: &Path) -> Result<Self> {
        let dir = build_dir.join("test-postgres");
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let starting = lock_file(&dir, "start.lock")?;
        starting.lock().context("wait for another test process to start Postgres")?;
        let in_use = lock_file(&dir, "users.lock")?;
        in_use.lock_shared().context("lock the test database")?;

        // Before there is anything to clean up, so that a start that fails is cleaned up too.
        if lock_file(&dir, "janitor.lock")?.try_lock().is_ok() {
            start_janitor(&dir)?;
        }
        let named = dir.join("server");
        let socket_dir = match running(&named) {
            Some(socket_dir) => socket_dir,
            None => start_new(&named).context("start Postgres for the tests")?,
        };
        Ok(Self { socket_dir, _in_use: in_use })
    }

    /// One process migrates the template, the others wait for it.
    fn make_template(&self, template: &str, migrate: &(dyn Fn(&str) -> Result<()> + Sync)) -> Result<()> {
        let mut admin = self.admin()?;
        let exists = "SELECT 1 FROM pg_database WHERE datname = $1 AND datistemplate";
        if admin.query_opt(exists, &[&template])?.is_some() {
            return Ok(());
        }
        admin.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", &[&template])?;
        if admin.query_opt(exists, &[&template])?.is_some() {
            return Ok(());
        }
        // One that is not marked as a template was left half made.
        admin.batch_execute(&format!("DROP DATABASE IF EXISTS {template} WITH (FORCE)"))?;
        admin.batch_execute(&format!("CREATE DATABASE {template}"))?;
        migrate(&self.url(template)).context("migrate the template database")?;
        // A clone needs a source that nobody is connected to.
        admin.batch_execute(&format!("ALTER DATABASE {template} ALLOW_CONNECTIONS false"))?;
        let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1";
        admin.query(end, &[&template])?;
        admin.batch_execute(&format!("ALTER DATABASE {template} IS_TEMPLATE true"))?;
        Ok(())
    }

    fn make_database(&self, template: Option<&str>) -> Result<TestPostgres> {
        let name = format!("t_{}", uuid::Uuid::new_v4().simple());
        let template = template.unwrap_or("template0");
        self.admin()?.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}"))?;
        Ok(TestPostgres { url: self.url(&name), name })
    }

    fn admin(&self) -> Result<Client> {
        Ok(connect(&self.socket_dir)?)
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://{ROLE}@/{database}?host={}", self.socket_dir.display())
    }
}

fn connect(socket_dir: &Path) -> Result<Client, postgres::Error> {
    postgres::Config::new().host_path(socket_dir).user(ROLE).dbname("postgres").connect(NoTls)
}

/// The socket directory of the server named in `named`, if it runs; what is left of one that does not is removed.
fn running(named: &Path) -> Option<PathBuf> {
    let dir = PathBuf::from(fs::read_to_string(named).ok()?.trim_end());
    let socket_dir = dir.join("run");
    match connect(&socket_dir) {
        // It may refuse one more connection and still serve others.
        Err(error) if error.as_db_error().is_none() => {
            let _ = fs::remove_dir_all(&dir);
            None
        }
        _ => Some(socket_dir),
    }
}

/// Makes and starts a server in a fresh directory, and writes the directory's path to `named`.
fn start_new(named: &Path) -> Result<PathBuf> {
    let programs = runtime()?.block_on(cluster::programs_dir())?;
    let dir = cluster::directory("hermes-tests-")?.keep();
    // From here on the janitor removes it, also if the rest fails.
    fs::write(named, dir.display().to_string())?;
    let maker = Maker { programs: &programs, account: cluster::account()?, dir: &dir };
    maker.make(SETTINGS)?;
    let socket_dir = dir.join("run");
    let log = OsString::from(socket_dir.join("log"));
    maker.run(
        "pg_ctl",
        &["-D".into(), dir.join("pg").into(), "-l".into(), log, "-w".into(), "-s".into(), "start".into()],
    )?;
    Ok(socket_dir)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The shell that starts the janitor ends at once, so the janitor is nobody's child and holds nothing of ours open.
fn start_janitor(dir: &Path) -> Result<()> {
    let status = Command::new("/bin/sh")
        .args(["-c", "/bin/sh -c \"$1\" janitor \"$2\" &", "sh", JANITOR])
        .arg(dir)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("start the janitor of the test database")?;
    if status.success() { Ok(()) } else { bail!("the janitor of the test database did not start: {status}") }
}

fn lock_file(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(name);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    open.with_context(|| format!("open {}", path.display()))
}

/// The directory cargo builds into, where the running test lies.
fn build_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    target.or_else(|| exe.parent()).unwrap_or(Path::new("/tmp")).to_path_buf()
}

/// Changes with the name or content of any file in `dirs`.
fn digest_of(dirs: &[&Path]) -> Result<String> {
    let read = || -> std::io::Result<String> {
        let mut paths = Vec::new();
        for dir in dirs {
            for entry in fs::read_dir(dir)? {
                paths.push(entry?.path());
            }
        }
        paths.retain(|path| path.is_file());
        paths.sort_unstable();
        let mut hash = Sha256::new();
        for path in paths {
            let content = fs::read(&path)?;
            hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            hash.update([0]);
            hash.update(content.len().to_le_bytes());
            hash.update(content);
        }
        Ok(hex::encode(hash.finalize()))
    };
    let digest = read().with_context(|| format!("read the migrations in {dirs:?}"))?;
    Ok(digest.chars().take(24).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn count(url: &str) -> i64 {
        let url = url.to_owned();
        apart(move || Ok(Client::connect(&url, NoTls)?.query_one("SELECT count(*) FROM kept", &[])?.get(0))).unwrap()
    }

    #[tokio::test]
    async fn each_test_has_its_own_clone_of_a_template_that_is_migrated_once() {
        let temp = tempfile::tempdir().unwrap();
        let unique = format!("-- {}", temp.path().display());
        fs::write(temp.path().join("0001.sql"), &unique).unwrap();
        let runs = AtomicUsize::new(0);
        let migrate = |url: &str| {
            runs.fetch_add(1, Ordering::Relaxed);
            Ok(Client::connect(url, NoTls)?.batch_execute("CREATE TABLE kept (v int)")?)
        };
        let clones = std::thread::scope(|scope| {
            let make = || TestPostgres::migrated(&[temp.path()], &migrate).unwrap();
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(make)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        let url = clones[0].url().to_owned();
        apart(move || Ok(Client::connect(&url, NoTls)?.batch_execute("INSERT INTO kept VALUES (1)")?)).unwrap();
        assert_eq!((count(clones[0].url()), count(clones[1].url()), count(clones[2].url())), (1, 0, 0));

        fs::write(temp.path().join("0002.sql"), "-- more").unwrap();
        TestPostgres::migrated(&[temp.path()], &migrate).unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), 2, "other migrations, another template");
    }

    #[tokio::test]
    async fn the_url_works_with_tokio_postgres() {
        let database = TestPostgres::empty().unwrap();
        let (client, connection) = tokio_postgres::connect(database.url(), NoTls).await.unwrap();
        let query = async move { client.query_one("SHOW fsync", &[]).await.unwrap().get::<_, String>(0) };
        let (fsync, closed) = tokio::join!(query, connection);
        closed.unwrap();
        assert_eq!(fsync, "off");
    }

    #[test]
    fn a_migration_that_fails_leaves_no_template_behind() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("0001.sql"), temp.path().display().to_string()).unwrap();
        let error = TestPostgres::migrated(&[temp.path()], &|_| bail!("broken")).unwrap_err();
        assert_eq!(format!("{error:#}"), "migrate the template database: broken");
        TestPostgres::migrated(&[temp.path()], &|_| Ok(())).unwrap();
    }
}
