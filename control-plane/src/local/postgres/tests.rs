use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use nix::unistd::geteuid;
use tokio_postgres::{Client, NoTls};

use super::*;

/// Longer than any machine needs, so that each stop is a clean one.
const PATIENCE: Duration = Duration::from_secs(60);

fn search() -> Search {
    Search { path: std::env::var_os("PATH").unwrap_or_default(), ..Search::default() }
}

/// A data directory that another user can reach, as `/var/lib/hermes` is, or that only we can.
fn data_in(temp: &Path, mode: u32) -> DataDir {
    fs::set_permissions(temp, fs::Permissions::from_mode(mode)).unwrap();
    DataDir::open(&temp.join("data")).unwrap()
}

async fn client(postgres: &Postgres) -> Client {
    let (client, connection) = tokio_postgres::connect(postgres.url().expose_secret(), NoTls).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test's connection ends with its client")]
    tokio::spawn(connection);
    client
}

async fn value(client: &Client, query: &str) -> String {
    client.query_one(query, &[]).await.unwrap().get(0)
}

/// Postgres refuses root, which then needs a user namespace; containers and chroots often forbid those.
fn we_can_be_postgres() -> bool {
    let namespace = || Command::new("unshare").args(["--user", "--map-user=65534", "true"]).status();
    !geteuid().is_root() || namespace().is_ok_and(|status| status.success())
}

/// Starts cold, keeps a row, stops, starts warm, finds the row.
async fn keeps_its_rows(mode: u32) {
    let temp = tempfile::tempdir().unwrap();
    let data = data_in(temp.path(), mode);
    let spawner = Spawner::start().unwrap();
    let began = Instant::now();
    let postgres = start(&data, &search(), &spawner).await.unwrap();
    let cold = began.elapsed();
    let client1 = client(&postgres).await;
    client1.batch_execute("CREATE TABLE kept (v text); INSERT INTO kept VALUES ('row')").await.unwrap();
    assert_eq!(value(&client1, "SHOW server_encoding").await, "UTF8");
    assert_eq!(value(&client1, "SHOW fsync").await, "on");
    assert_eq!(value(&client1, "SHOW listen_addresses").await, "");
    let pid = postgres.pid();
    postgres.stop(PATIENCE).await;
    assert!(!data.path().join("pg/postmaster.pid").try_exists().unwrap(), "pid {pid} stopped cleanly");

    let began = Instant::now();
    let postgres = start(&data, &search(), &spawner).await.unwrap();
    let warm = began.elapsed();
    assert_eq!(value(&client(&postgres).await, "SELECT v FROM kept").await, "row");
    let wrong = postgres.url().expose_secret().replace("hermes:", "hermes:x");
    assert!(tokio_postgres::connect(&wrong, NoTls).await.is_err(), "the password counts");
    postgres.stop(PATIENCE).await;
    eprintln!("cold {cold:?}, warm {warm:?}");
}

#[tokio::test]
async fn it_starts_cold_and_warm_where_other_users_can_go() {
    keeps_its_rows(0o711).await;
}

#[tokio::test]
async fn it_starts_cold_and_warm_where_only_we_can_go() {
    if we_can_be_postgres() {
        return keeps_its_rows(0o700).await;
    }
    let temp = tempfile::tempdir().unwrap();
    let data = data_in(temp.path(), 0o700);
    let error = start(&data, &search(), &Spawner::start().unwrap()).await.unwrap_err();
    assert!(matches!(&error, Error::NoAccount { blocked, .. } if blocked == temp.path()), "{error}");
}

#[tokio::test]
async fn a_server_that_is_stopped_hard_keeps_what_was_committed() {
    let temp = tempfile::tempdir().unwrap();
    let data = data_in(temp.path(), 0o711);
    let spawner = Spawner::start().unwrap();
    let postgres = start(&data, &search(), &spawner).await.unwrap();
    client(&postgres).await.batch_execute("CREATE TABLE kept (v text); INSERT INTO kept VALUES ('row')").await.unwrap();
    let began = Instant::now();
    postgres.stop(Duration::ZERO).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let postgres = start(&data, &search(), &spawner).await.unwrap();
    assert_eq!(value(&client(&postgres).await, "SELECT v FROM kept").await, "row");
    postgres.stop(PATIENCE).await;
}

#[tokio::test]
async fn a_long_data_directory_gets_a_short_socket_path() {
    let temp = tempfile::tempdir().unwrap();
    let long = temp.path().join("a b%".repeat(30));
    let data = DataDir::open(&long).unwrap();
    let postgres = start(&data, &search(), &Spawner::start().unwrap()).await.unwrap();
    let client = client(&postgres).await;
    let dir = PathBuf::from(value(&client, "SHOW unix_socket_directories").await);
    assert!(!dir.starts_with(temp.path()), "{}", dir.display());
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    postgres.stop(PATIENCE).await;
    fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn a_cluster_of_another_version_is_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let data = data_in(temp.path(), 0o711);
    fs::create_dir(data.path().join("pg")).unwrap();
    fs::write(data.path().join("pg/PG_VERSION"), "9\n").unwrap();
    let error = start(&data, &search(), &Spawner::start().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("was made by Postgres 9"), "{error}");
    assert!(error.to_string().contains("apt-get install postgresql-9"), "{error}");
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let temp = tempfile::tempdir().unwrap();
    let data = data_in(temp.path(), 0o711);
    let spawner = Spawner::start().unwrap();
    start(&data, &search(), &spawner).await.unwrap().stop(PATIENCE).await;
    let conf = data.path().join("pg/postgresql.conf");
    let mut text = fs::read_to_string(&conf).unwrap();
    text.push_str("\nno_such_setting = 1\n");
    fs::write(&conf, text).unwrap();
    let error = start(&data, &search(), &spawner).await.unwrap_err();
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn stale_locks_with_a_living_strangers_pid_do_not_block() {
    let temp = tempfile::tempdir().unwrap();
    let data = data_in(temp.path(), 0o711);
    let spawner = Spawner::start().unwrap();
    start(&data, &search(), &spawner).await.unwrap().stop(PATIENCE).await;
    // As in a container that was killed: small pids, given to somebody else by now.
    let lock = format!("{}\n{}\n", std::os::unix::process::parent_id(), data.path().join("pg").display());
    fs::write(data.path().join("pg/postmaster.pid"), &lock).unwrap();
    fs::write(data.path().join("run/.s.PGSQL.5432.lock"), &lock).unwrap();
    start(&data, &search(), &spawner).await.unwrap().stop(PATIENCE).await;
}

/// The part of the next test that is killed.
#[test]
#[ignore = "started by the tests that kill it"]
fn owner_of_a_server() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let Some(dir) = std::env::var_os("TEST_DATA_DIR").map(PathBuf::from) else { return };
    runtime.block_on(async {
        let data = DataDir::open(&dir).unwrap();
        let postgres = start(&data, &search(), &Spawner::start().unwrap()).await.unwrap();
        let client = client(&postgres).await;
        client.batch_execute("CREATE TABLE IF NOT EXISTS kept (v int); INSERT INTO kept VALUES (1)").await.unwrap();
        eprintln!("server {}", postgres.pid());
        std::future::pending::<()>().await;
    });
}

#[test]
fn a_killed_owner_and_a_killed_server_do_not_block_the_next_start() {
    survives_kills(0o711);
}

#[test]
fn a_killed_owner_and_a_killed_server_do_not_block_the_next_start_where_only_we_can_go() {
    // Where we cannot, there is no server to kill: the test above says what happens then.
    if we_can_be_postgres() {
        survives_kills(0o700);
    }
}

fn survives_kills(mode: u32) {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(mode)).unwrap();
    let dir = temp.path().join("data");
    for kill_server_first in [false, true, false] {
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "local::postgres::tests::owner_of_a_server", "--nocapture"])
            .env("TEST_DATA_DIR", &dir)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(owner.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("server ") {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "the owner ended early");
        }
        let server = line.trim().trim_start_matches("server ").parse().unwrap();
        if kill_server_first {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(server), Signal::SIGKILL).unwrap();
        }
        owner.kill().unwrap();
        owner.wait().unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let data = DataDir::open(&dir).unwrap();
        let postgres = start(&data, &search(), &Spawner::start().unwrap()).await.unwrap();
        assert_eq!(value(&client(&postgres).await, "SELECT count(*)::text FROM kept").await, "3");
        postgres.stop(PATIENCE).await;
    });
}
