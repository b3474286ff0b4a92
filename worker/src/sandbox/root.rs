//! What is seen inside: a root of its own, with system paths, the agent's entries of the home, and fresh scratch.
//!
//! Called by the second stage once, in a mount namespace of its own. Nothing of the old root stays reachable. Whether something
//! may be written is [`super::rules`]' matter; here it is only there or not.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::enter::said;

/// Where the new root is built: a directory of every system of which nothing is shown inside.
const BUILT_AT: &str = "/sys";
/// Programs, libraries and what they read. Not `/etc` as a whole: keys and others' configuration lie there.
pub(super) const SYSTEM: [&str; 42] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/debian_version",
    "/etc/fonts",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/inputrc",
    "/etc/java-11-openjdk",
    "/etc/java-17-openjdk",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/perl",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/profile.d",
    "/etc/protocols",
    "/etc/python3",
    "/etc/resolv.conf",
    "/etc/rpc",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/terminfo",
    "/etc/timezone",
    "/etc/xdg",
];
/// Devices that give nothing away.
pub(super) const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// Scratch in memory; it counts as the processes' memory.
pub(super) const SCRATCH: [&str; 2] = ["/tmp", "/dev/shm"];

/// System paths that are here.
pub(super) fn system() -> impl Iterator<Item = &'static Path> {
    SYSTEM.iter().map(Path::new).filter(|path| fs::symlink_metadata(path).is_ok())
}

/// The system path that lies in the home, or the home in it: what a link in the home leads to could be shown by its own name then.
fn meets_system(home: &Path) -> Option<&'static str> {
    SYSTEM.into_iter().find(|system| home.starts_with(system) || Path::new(system).starts_with(home))
}

/// Builds the root with `entries` of the home (`""`: all of it), moves into it and lets go of the old one; what of the home is shown there.
pub(super) fn build(home: &Path, entries: &[&str], scratch_bytes: u64) -> io::Result<Vec<PathBuf>> {
    if let Some(system) = meets_system(home) {
        return Err(io::Error::other(format!(
            "the home {} and {system}, which every tool sees, lie in one another: move the home elsewhere",
            home.display()
        )));
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|error| said("part from the system's mounts", &error.into()))?;
    let root = Path::new(BUILT_AT);
    tmpfs(root, 4 << 20, 4096)?;
    for path in system().chain(DEVICES.iter().map(Path::new)) {
        show(root, path)?;
    }
    for path in SCRATCH {
        let inside = beneath(root, Path::new(path));
        fs::create_dir_all(&inside)?;
        tmpfs(&inside, scratch_bytes, 16 << 10)?;
    }
    // After the scratch, which would hide a home that lies in /tmp.
    let held = reach(AT_FDCWD, home)
        .map_err(|error| said(&format!("reach the home {} (was it moved?)", home.display()), &error.into()))?;
    let mut shown = Vec::new();
    for entry in entries {
        let path = if entry.is_empty() { home.to_owned() } else { home.join(entry) };
        if show_own(root, &held, entry, &path)? {
            shown.push(path);
        }
    }
    fs::create_dir_all(root.join("run"))?;
    fs::create_dir_all(root.join("var"))?;
    symlink("/tmp", root.join("var/tmp"))?;
    for (link, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(Path::new("/proc/self").join(target), root.join("dev").join(link))?;
    }
    let proc = root.join("proc");
    fs::create_dir_all(&proc)?;
    let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), &proc, Some("proc"), kept, none)
        .map_err(|error| said("show only the own processes (mount proc)", &error.into()))?;
    nix::unistd::chdir(root)?;
    nix::unistd::pivot_root(".", ".").map_err(|error| said("change the root", &error.into()))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|error| said("let go of the old root", &error.into()))?;
    nix::unistd::chdir("/")?;
    Ok(shown)
}

/// `path`, absolute, below the new root.
fn beneath(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Shows `path` at its place: links as links, everything else as itself.
fn show(root: &Path, path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let inside = beneath(root, path);
    if let Some(parent) = inside.parent() {
        fs::create_dir_all(parent)?;
    }
    if metadata.is_symlink() {
        return match (fs::read_link(path), path.starts_with("/etc")) {
            // A link out of /etc (resolv.conf often is one) is followed: what it leads to is not shown elsewhere.
            (Ok(_), true) => match fs::canonicalize(path) {
                Ok(target) if target.is_file() => {
                    bind(&target, &inside, false).map_err(|error| said(&format!("show {}", target.display()), &error))
                }
                _ => Ok(()),
            },
            (Ok(target), false) => symlink(target, inside),
            (Err(error), _) => Err(error),
        };
    }
    bind(path, &inside, metadata.is_dir()).map_err(|error| said(&format!("show {}", path.display()), &error))
}

/// Holds what is at `path` of `folder`, without following a link.
fn reach(folder: impl AsFd, path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC);
    openat2(folder, path, how.resolve(ResolveFlag::RESOLVE_NO_SYMLINKS))
}

/// Shows an entry of the home at its place; false: it is not there, cannot be looked at or leads elsewhere. Whoever else works there may put a link in its
/// stead at any moment, and a mount by name would follow it: so the kernel walks there in one call that refuses links, and what it found is what is
/// mounted. A second name of a file (a hard link) is no link in this sense: who could make one could read the file.
fn show_own(root: &Path, home: &OwnedFd, entry: &str, path: &Path) -> io::Result<bool> {
    let Ok(found) = reach(home, Path::new(if entry.is_empty() { "." } else { entry })) else { return Ok(false) };
    let found = fs::File::from(found);
    let metadata = match found.metadata() {
        Ok(metadata) if !metadata.is_symlink() => metadata,
        _ => return Ok(false),
    };
    let inside = beneath(root, path);
    let shown = inside.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
        let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
        bind(Path::new(&itself), &inside, metadata.is_dir())
    });
    shown.map_err(|error| said(&format!("show {}", path.display()), &error))?;
    Ok(true)
}

fn bind(path: &Path, inside: &Path, directory: bool) -> io::Result<()> {
    if directory {
        fs::create_dir_all(inside)?;
    } else {
        fs::File::create(inside)?;
    }
    let none: Option<&str> = None;
    Ok(mount(Some(path), inside, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?)
}

fn tmpfs(at: &Path, bytes: u64, files: u64) -> io::Result<()> {
    let options = format!("size={bytes},nr_inodes={files},mode=755");
    let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), at, Some("tmpfs"), kept, Some(options.as_str()))
        .map_err(|error| said(&format!("make scratch at {}", at.display()), &error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_and_what_every_tool_sees_do_not_lie_in_one_another() {
        for (home, system) in [
            ("/usr/local/hermes", Some("/usr")),
            ("/usr", Some("/usr")),
            ("/", Some("/usr")),
            ("/etc/xdg/hermes", Some("/etc/xdg")),
            ("/etc", Some("/etc/alternatives")),
            ("/etc/hermes", None),
            ("/usrs/hermes", None),
            ("/var/lib/hermes", None),
            ("/home/ada/.hermes", None),
        ] {
            assert_eq!(meets_system(Path::new(home)), system, "{home}");
        }
    }
}
