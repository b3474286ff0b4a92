//! As whom Postgres runs: it refuses root.
//!
//! Under root, an existing cluster is run as its owner; a new one as user `postgres`, else `nobody`, if that user can reach
//! data and programs, else inside a user namespace, where root's own files seem to belong to `nobody`. Otherwise Postgres
//! is simply us. The choice holds for a cluster's life, so no file ever changes its owner.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, User, geteuid};

use super::super::data_dir::io_error;
use super::super::spawn::{ChildSpec, Output, Signal, Spawner};
use super::discovery::{Search, in_path};
use super::{Error, is_dir, run};

/// The chosen way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Account {
    /// We are not root.
    Ourselves,
    /// Give up root for this user.
    Other { uid: u32, gid: u32 },
    /// Stay root outside, be `nobody` inside. Holds the path of `unshare`.
    Namespace(PathBuf),
}

pub(super) async fn choose(cluster: &Path, bin: &Path, search: &Search, spawner: &Spawner) -> Result<Account, Error> {
    if !geteuid().is_root() {
        return Ok(Account::Ourselves);
    }
    let user = if is_dir(cluster) {
        let owner = fs::metadata(cluster).map_err(io_error("read", cluster))?.uid();
        if owner == 0 { None } else { User::from_uid(Uid::from_raw(owner)).ok().flatten() }
    } else {
        ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten())
    };
    let mut refused = ("nobody".to_owned(), cluster.to_path_buf());
    if let Some(user) = user {
        let blocked = closed_on_the_way(cluster, &user).or_else(|| closed_on_the_way(&bin.join("postgres"), &user));
        match blocked {
            None => return Ok(Account::Other { uid: user.uid.as_raw(), gid: user.gid.as_raw() }),
            Some(blocked) => refused = (user.name, blocked),
        }
    }
    // The files of a cluster that another user owns would not seem to be ours inside.
    let ours = fs::metadata(cluster).map_or(true, |found| found.uid() == 0);
    if let Some(unshare) = in_path(search, "unshare").filter(|_| ours) {
        let account = Account::Namespace(unshare);
        let probe = account.command(bin.join("postgres"), vec!["--version".into()], Output::Pipe, &search.path);
        if run(spawner, probe).await?.0.success() {
            return Ok(account);
        }
    }
    let (user, blocked) = refused;
    Err(Error::NoAccount { user, blocked })
}

/// The first directory above `path` that `user` cannot pass through.
fn closed_on_the_way(path: &Path, user: &User) -> Option<PathBuf> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    above.into_iter().find(|dir| !may_enter(dir, user.uid, user.gid)).map(Path::to_path_buf)
}

fn may_enter(dir: &Path, uid: Uid, gid: Gid) -> bool {
    let Ok(found) = fs::metadata(dir) else { return false };
    let bit = if found.uid() == uid.as_raw() {
        0o100
    } else if found.gid() == gid.as_raw() {
        0o010
    } else {
        0o001
    };
    found.mode() & bit != 0
}

impl Account {
    /// The owner of Postgres's files as seen from outside.
    pub(super) fn uid(&self) -> u32 {
        match self {
            Self::Other { uid, .. } => *uid,
            Self::Ourselves | Self::Namespace(_) => geteuid().as_raw(),
        }
    }

    pub(super) fn is_ourselves(&self) -> bool {
        *self == Self::Ourselves
    }

    /// Makes a file or directory of ours Postgres's.
    pub(super) fn give(&self, path: &Path) -> Result<(), Error> {
        match self {
            Self::Other { uid, gid } => std::os::unix::fs::lchown(path, Some(*uid), Some(*gid))
                .map_err(|e| io_error("change the owner of", path)(e).into()),
            Self::Ourselves | Self::Namespace(_) => Ok(()),
        }
    }

    /// A program of Postgres as this account, killed hard when we die.
    pub(super) fn command(&self, program: PathBuf, args: Vec<OsString>, output: Output, path: &OsStr) -> ChildSpec {
        let (program, args) = match self {
            Self::Namespace(unshare) => {
                let mut all: Vec<OsString> =
                    ["--user", "--map-user=65534", "--map-group=65534"].map(OsString::from).to_vec();
                all.push(program.into());
                all.extend(args);
                (unshare.clone(), all)
            }
            Self::Ourselves | Self::Other { .. } => (program, args),
        };
        let user = match self {
            Self::Other { uid, gid } => Some((*uid, *gid)),
            Self::Ourselves | Self::Namespace(_) => None,
        };
        let environment = vec![("PATH".into(), path.to_owned()), ("LC_MESSAGES".into(), "C".into())];
        ChildSpec { program, args, environment, user, death_signal: Signal::SIGKILL, output, secret: None }
    }
}
