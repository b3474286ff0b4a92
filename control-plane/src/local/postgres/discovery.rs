//! Where Postgres's programs are on this machine, and which of several to take.
//!
//! Order: `HERMES_PG_BIN`, `pg_config --bindir`, the newest below the places packages use, `PATH`, then binaries unpacked
//! below the data directory. An existing cluster takes the first of its own major version, a new one the first that is
//! new enough. It deliberately downloads nothing.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::super::spawn::{ChildSpec, Output, Signal, Spawner};
use super::{Error, is_dir, run};

/// Oldest major version that is supported: the one the schema was measured with.
pub(super) const OLDEST: u32 = 15;

/// What of the process's surroundings says where Postgres is; read once at start.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// `HERMES_PG_BIN`: the one directory to take, if set.
    pub pg_bin: Option<PathBuf>,
    /// `PATH`.
    pub path: OsString,
    /// `XDG_RUNTIME_DIR`, for a socket whose path would be too long in the data directory.
    pub runtime_dir: Option<PathBuf>,
}

/// The binaries to use.
pub(super) struct Found {
    pub(super) bin: PathBuf,
    pub(super) version: u32,
    /// Whether this build can compress its log with lz4.
    pub(super) lz4: bool,
}

pub(super) async fn find(search: &Search, cluster: &Path, spawner: &Spawner) -> Result<Found, Error> {
    let needed = match fs::read_to_string(cluster.join("PG_VERSION")) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(_) if !is_dir(cluster) => None,
        Err(error) => return Err(super::io_error("read", &cluster.join("PG_VERSION"))(error).into()),
    };
    let mut newest = None;
    for bin in candidates(search, cluster, spawner).await? {
        let Some(version) = version(&bin, spawner).await else { continue };
        let fits = needed.as_ref().map_or(version >= OLDEST, |needed| *needed == version.to_string());
        if fits {
            let lz4 = says(bin.join("pg_config"), "--configure", spawner).await;
            return Ok(Found { bin, version, lz4: lz4.is_some_and(|text| text.contains("--with-lz4")) });
        }
        newest = newest.max(Some(version));
    }
    Err(match (needed, newest) {
        (_, None) => Error::NotFound,
        (Some(needed), Some(_)) => Error::OtherVersion { dir: cluster.to_path_buf(), needed },
        (None, Some(found)) => Error::TooOld { found },
    })
}

async fn candidates(search: &Search, cluster: &Path, spawner: &Spawner) -> Result<Vec<PathBuf>, Error> {
    if let Some(bin) = &search.pg_bin {
        return if has_programs(bin) { Ok(vec![bin.clone()]) } else { Err(Error::NotThere(bin.clone())) };
    }
    let mut bins = Vec::new();
    if let Some(pg_config) = in_path(search, "pg_config")
        && let Some(text) = says(pg_config, "--bindir", spawner).await
    {
        bins.push(PathBuf::from(text.trim()));
    }
    for (parent, prefix) in [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql@"),
        ("/usr/local/opt", "postgresql@"),
        ("/home/linuxbrew/.linuxbrew/opt", "postgresql@"),
    ] {
        bins.extend(versions_below(Path::new(parent), prefix));
    }
    if let Some(postgres) = in_path(search, "postgres") {
        // A link here may lead to the directory that has the other programs too.
        let real = fs::canonicalize(&postgres).unwrap_or(postgres.clone());
        bins.extend([postgres, real].iter().filter_map(|path| path.parent()).map(Path::to_path_buf));
    }
    bins.extend(versions_below(&cluster.with_file_name("postgres"), ""));
    bins.retain(|bin| has_programs(bin));
    Ok(bins)
}

/// `parent/<prefix><version>…/bin`, newest first.
fn versions_below(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = leading_number(name.to_str()?.strip_prefix(prefix)?)?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, bin)| bin).collect()
}

/// The program `name` in `PATH`.
pub(super) fn in_path(search: &Search, name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search.path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

fn has_programs(bin: &Path) -> bool {
    ["postgres", "initdb"].iter().all(|name| bin.join(name).is_file())
}

/// The major version, from text such as `postgres (PostgreSQL) 15.18 (Debian 15.18-0)`.
async fn version(bin: &Path, spawner: &Spawner) -> Option<u32> {
    let text = says(bin.join("postgres"), "--version", spawner).await?;
    text.split_ascii_whitespace().find_map(leading_number)
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.get(..end)?.parse().ok()
}

/// What a program prints for one argument, or `None` if it cannot.
async fn says(program: PathBuf, arg: &str, spawner: &Spawner) -> Option<String> {
    let spec = ChildSpec {
        program,
        args: vec![arg.into()],
        environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        user: None,
        death_signal: Signal::SIGKILL,
        output: Output::Pipe,
        secret: None,
    };
    run(spawner, spec).await.ok().filter(|(status, _)| status.success()).map(|(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_taken_newest_first_by_number() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["pgsql-9", "pgsql-16", "pgsql-100", "other-17", "pgsql-x"] {
            fs::create_dir(temp.path().join(name)).unwrap();
        }
        let names: Vec<_> = versions_below(temp.path(), "pgsql-")
            .iter()
            .map(|bin| bin.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["pgsql-100", "pgsql-16", "pgsql-9"]);
        assert_eq!(leading_number("18beta1"), Some(18));
        assert_eq!(leading_number("(PostgreSQL)"), None);
    }

    #[tokio::test]
    async fn an_empty_machine_and_a_wrong_directory_are_told_apart() {
        let temp = tempfile::tempdir().unwrap();
        let spawner = Spawner::start().unwrap();
        let wrong = Search { pg_bin: Some(temp.path().to_owned()), ..Search::default() };
        let error = find(&wrong, &temp.path().join("pg"), &spawner).await.err().unwrap();
        assert!(error.to_string().starts_with("HERMES_PG_BIN is "), "{error}");
        assert!(Error::NotFound.to_string().contains("apt-get install postgresql"));
    }
}
