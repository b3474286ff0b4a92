//! A database that was restored from a backup is refused until it is fenced, and nothing of the lost time passes afterwards.
//!
//! Real clusters of their own: `pg_dump` and restore, and a base backup that is promoted.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hermes_proto::v1;
use hermes_tests::cluster::{account, programs_dir};
use hermes_tests::system::binary;
use serde_json::json;
use tempfile::TempDir;

use super::scripted::Joined;
use super::{Plane, SOON, document, look};

const DONE: i32 = v1::Outcome::Succeeded as i32;

/// A cluster on a socket of its own; it ends with its value.
struct Cluster {
    dir: TempDir,
    server: Option<Child>,
}

fn directory() -> TempDir {
    let open = fs::Permissions::from_mode(0o711);
    let dir = tempfile::Builder::new().prefix("hermes-restored-").permissions(open).tempdir_in("/tmp").unwrap();
    for own in ["pg", "run"] {
        let own = dir.path().join(own);
        fs::create_dir(&own).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).unwrap();
        if let Some((uid, gid)) = account().unwrap() {
            std::os::unix::fs::chown(&own, Some(uid), Some(gid)).unwrap();
        }
    }
    dir
}

fn program(name: &str, args: &[&str]) -> Command {
    let dir = tokio::runtime::Handle::current().block_on(programs_dir()).unwrap();
    // A server that is left over ends with the test.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "QUIT"])
        .arg(dir.join(name))
        .args(args)
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null());
    if let Some((uid, gid)) = account().unwrap() {
        command.uid(uid).gid(gid);
    }
    command
}

#[track_caller]
fn done(mut command: Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

impl Cluster {
    /// A new one.
    fn new() -> Self {
        let dir = directory();
        let pg = dir.path().join("pg");
        done(program("initdb", &["-N", "--auth=trust", "-E", "UTF8", "-U", "hermes", "--locale=C", "-D", text(&pg)]));
        Self::run(dir)
    }

    /// What the directory holds.
    fn run(dir: TempDir) -> Self {
        let mut cluster = Self { dir, server: None };
        cluster.start();
        cluster
    }

    fn start(&mut self) {
        let (pg, run) = (self.dir.path().join("pg"), self.dir.path().join("run"));
        let settings = ["listen_addresses=", "fsync=off", "wal_level=replica", "max_wal_senders=4"];
        let mut server = program("postgres", &["-D", text(&pg), "-k", text(&run)]);
        server.args(settings.iter().flat_map(|setting| ["-c", setting]));
        server.stdout(Stdio::null()).stderr(fs::File::create(self.dir.path().join("log")).unwrap());
        self.server = Some(server.spawn().unwrap());
        let end = Instant::now() + SOON;
        while postgres::Client::connect(&self.url("postgres"), postgres::NoTls).is_err() {
            assert!(Instant::now() < end, "{}", fs::read_to_string(self.dir.path().join("log")).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As if the machine had lost its power.
    fn crash(&mut self) {
        let mut server = self.server.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT).unwrap();
        server.wait().unwrap();
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://hermes@/{database}?host={}", self.dir.path().join("run").display())
    }

    /// A copy of this cluster's files, which runs and follows its own way.
    fn promoted_copy(&self) -> Self {
        let dir = directory();
        let (pg, run) = (dir.path().join("pg"), self.dir.path().join("run"));
        done(program(
            "pg_basebackup",
            &["-h", text(&run), "-U", "hermes", "-D", text(&pg), "-X", "stream", "-c", "fast"],
        ));
        fs::write(pg.join("standby.signal"), "").unwrap();
        let copy = Self::run(dir);
        assert_eq!(look(&copy.url("postgres"), "SELECT pg_promote()"), "t");
        copy
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.crash();
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs it to its end; what it said.
fn fence(url: &str) -> String {
    let mut fence = Command::new(binary("hermes-control-plane"));
    let output = fence.env_clear().args(["fence", "--database-url", url]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

async fn refused(url: &str, why: &str) {
    match Plane::try_start(url, &document(json!({})), &[]).await {
        Ok(plane) => panic!("it started: {}", plane.log()),
        Err(log) => {
            assert!(log.contains("this database is a copy") && log.contains(why) && log.contains("fence"), "{log}")
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_database_is_refused_until_it_is_fenced_and_then_old_workers_are() {
    let (url, copies) = tokio::task::block_in_place(|| {
        let cluster = Cluster::new();
        look(&cluster.url("postgres"), "CREATE DATABASE original");
        (cluster.url("original"), cluster)
    });
    let mut cluster = copies;
    let document = document(json!({}));
    let mut plane = Plane::start(&url, &document, &[]).await;
    let joined = Joined::main(&plane).await;
    let mut worker = joined.attach().await;
    plane.tell("1", "before the backup");
    let turn = worker.take().await.turn.unwrap();
    // The backups, then life goes on in the original.
    let run = cluster.dir.path().join("run");
    let dump =
        tokio::task::block_in_place(|| done(program("pg_dump", &["-h", text(&run), "-U", "hermes", "-d", "original"])));
    let copy = tokio::task::block_in_place(|| cluster.promoted_copy());
    worker.end(Some(turn), DONE, "after the backup").await;
    assert!(worker.acknowledged().await);
    plane.stop().await;

    // A crash, and a vacuum that writes all rows anew, are no restore.
    tokio::task::block_in_place(|| {
        cluster.crash();
        cluster.start();
        look(&url, "VACUUM (FREEZE) hermes.origins");
    });
    tokio::task::block_in_place(|| look(&url, "VACUUM (FULL, FREEZE) hermes.origins"));
    Plane::start(&url, &document, &[]).await.stop().await;

    // Restored beside the original: the same cluster, the same log.
    let restored = tokio::task::block_in_place(|| {
        look(&cluster.url("postgres"), "CREATE DATABASE restored");
        let file: PathBuf = run.join("dump.sql");
        fs::write(&file, dump).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        done(program(
            "psql",
            &["-q", "-v", "ON_ERROR_STOP=1", "-h", text(&run), "-U", "hermes", "-d", "restored", "-f", text(&file)],
        ));
        cluster.url("restored")
    });
    refused(&restored, "written anew").await;
    // A base backup that went its own way.
    let promoted = copy.url("original");
    refused(&promoted, "went another way").await;

    for url in [restored, promoted] {
        assert!(fence(&url).contains("fenced"));
        let mut plane = Plane::start(&url, &document, &[]).await;
        let mut old = joined.at(&plane).attach().await;
        // It lived through the lost time and still believes to have the turn; its word is refused, and it gets it anew.
        let again = old.take().await.turn.unwrap();
        assert_eq!((again.session_id, again.seq), (turn.session_id, turn.seq));
        assert!(again.epoch > turn.epoch + (1 << 32), "{again:?}");
        old.end(Some(turn), DONE, "of the lost time").await;
        assert!(!old.acknowledged().await);
        old.end(Some(again), DONE, "of now").await;
        assert!(old.acknowledged().await);
        let told = plane.tell("2", "a new session");
        let session: u64 = told["session_id"].as_str().unwrap()[1..].parse().unwrap();
        assert!(session > 1_000_000_000, "{told}");
        assert_eq!(look(&url, "SELECT fenced FROM hermes.origins"), "1");
        plane.stop().await;
        Plane::start(&url, &document, &[]).await.stop().await;
    }
}
