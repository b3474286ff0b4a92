//! Migrations: who may start on which schema, and what the schema is.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use hermes_control_plane::local::postgres::{Search, programs};
use hermes_control_plane::local::spawn::Spawner;
use hermes_control_plane::store::{Error, Store};
use hermes_tests::postgres::TestPostgres;
use postgres::{Client, NoTls};

use super::db::{migrate, migrated, migrations_dir};

fn history(url: &str) -> Vec<(i32, String)> {
    let mut client = Client::connect(url, NoTls).unwrap();
    let rows = client.query("SELECT version, name FROM hermes.refinery_schema_history ORDER BY 1", &[]).unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn known() -> Vec<(i32, String)> {
    let mut known: Vec<(i32, String)> = fs::read_dir(migrations_dir())
        .unwrap()
        .map(|entry| {
            let file = entry.unwrap().file_name().into_string().unwrap();
            let (version, name) = file.strip_suffix(".sql").unwrap().split_once("__").unwrap();
            (version[1..].parse().unwrap(), name.to_owned())
        })
        .collect();
    known.sort();
    known
}

fn change(url: &str, sql: &str) {
    Client::connect(url, NoTls).unwrap().batch_execute(sql).unwrap();
}

fn refused(url: &str) -> String {
    let error = migrate(url).unwrap_err();
    assert!(matches!(error.downcast_ref::<Error>(), Some(Error::Schema(_))), "{error:?}");
    error.to_string()
}

#[test]
fn an_empty_database_is_migrated_and_the_second_run_changes_nothing() {
    let database = TestPostgres::empty().unwrap();
    migrate(database.url()).unwrap();
    assert_eq!(history(database.url()), known());
    change(database.url(), "UPDATE hermes.documents SET version = 41");
    migrate(database.url()).unwrap();
    assert_eq!(history(database.url()), known());
    let mut client = Client::connect(database.url(), NoTls).unwrap();
    assert_eq!(client.query_one("SELECT version FROM hermes.documents", &[]).unwrap().get::<_, i64>(0), 41);
    // All of it lies in one schema, the history included.
    let elsewhere = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(client.query_one(elsewhere, &[]).unwrap().get::<_, i64>(0), 0);
}

#[test]
fn replicas_that_start_together_migrate_once() {
    let database = TestPostgres::empty().unwrap();
    std::thread::scope(|scope| {
        let replicas: Vec<_> = (0..4).map(|_| scope.spawn(|| migrate(database.url()))).collect();
        replicas.into_iter().for_each(|replica| replica.join().unwrap().unwrap());
    });
    assert_eq!(history(database.url()), known());
}

#[test]
fn the_schema_of_a_newer_release_is_refused() {
    let database = migrated().unwrap();
    change(
        database.url(),
        "INSERT INTO hermes.refinery_schema_history SELECT 99, 'from_the_future', applied_on, '1' \
           FROM hermes.refinery_schema_history WHERE version = 2",
    );
    insta::assert_snapshot!(
        refused(database.url()),
        @"the database's schema is not one this build knows (migration V99__from_the_future is missing from the filesystem); run the release that made it, or a newer one"
    );
}

#[test]
fn a_changed_migration_is_refused() {
    let database = migrated().unwrap();
    change(database.url(), "UPDATE hermes.refinery_schema_history SET checksum = '1' WHERE version = 1");
    let why = refused(database.url());
    assert!(why.contains("V1__tables is different") && why.contains("run the release that made it"), "{why}");
}

#[test]
fn a_server_that_is_not_there_is_unavailable() {
    let error = migrate("postgres://hermes@127.0.0.1:1/none").unwrap_err();
    assert!(matches!(error.downcast_ref::<Error>(), Some(Error::Unavailable(_))), "{error:?}");
    let error = Store::new("postgres://user:secret@[bad/none", 1).unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
}

/// Tables, indexes, views, sequences and the signatures of functions, so that a change of any is seen in review. Bodies
/// of functions are left out: they are reviewed where they are written.
#[test]
fn the_schema() {
    let database = migrated().unwrap();
    insta::assert_snapshot!(normalised(&dump(database.url()).unwrap()));
}

fn dump(url: &str) -> Result<String> {
    let search = Search {
        pg_bin: std::env::var_os("HERMES_PG_BIN").map(PathBuf::from),
        path: std::env::var_os("PATH").unwrap_or_default(),
        runtime_dir: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let bin = runtime.block_on(async { programs(&search, &Spawner::start()?).await })?;
    let arguments = ["--schema-only", "--no-owner", "--no-privileges", "--schema=hermes", url];
    let output = Command::new(bin.join("pg_dump")).args(arguments).output().context("run pg_dump")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Without comments, settings and everything else that depends on the version of `pg_dump`.
fn normalised(dump: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut in_body = false;
    for line in dump.lines() {
        if in_body {
            in_body = !line.contains("$$;");
            continue;
        }
        let noise = ["--", "SET ", "SELECT pg_catalog.set_config", "\\"];
        if line.trim().is_empty() || noise.iter().any(|start| line.starts_with(start)) {
            continue;
        }
        kept.push(line);
        in_body = line.contains("AS $$") && line.matches("$$").count() == 1;
    }
    kept.join("\n")
}
