//! Packages of Node's registry, for tests with programs that others wrote: installed once, by the lock files beside this package.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use hermes_tests::system::binary;

/// A Node and the packages of `tests/<folder>`, where the tools of that home see them. `HERMES_TEST_NODE` names a Node; without it it is
/// the machine's own.
pub(crate) fn packages(folder: &str, home: &Path) -> (PathBuf, PathBuf) {
    let own = Command::new("node").args(["-p", "process.execPath"]).output();
    let node = match (std::env::var_os("HERMES_TEST_NODE"), own) {
        (Some(node), _) => PathBuf::from(node),
        (None, Ok(own)) => PathBuf::from(String::from_utf8(own.stdout).unwrap().trim()),
        (None, Err(error)) => panic!("node: {error}; install Node 20 or newer with npm, or set HERMES_TEST_NODE"),
    };
    let modules = installed(folder, &node);
    let visible = home.join("scripts/node_modules");
    copy(&modules, &visible);
    let copied = home.join("scripts/node");
    let seen = if node.starts_with("/usr") { node } else { fs::copy(&node, &copied).map(|_| copied).unwrap() };
    (seen, visible)
}

/// The packages of the lock file, installed in the build directory once.
fn installed(folder: &str, node: &Path) -> PathBuf {
    let target = binary("hermesctl").ancestors().nth(2).unwrap().join("test-node").join(folder);
    let wanted = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    fs::create_dir_all(&target).unwrap();
    let lock = File::create(target.join("lock")).unwrap();
    lock.lock().unwrap();
    let (done, locked) = (target.join("installed.json"), fs::read(wanted.join("package-lock.json")).unwrap());
    if fs::read(&done).ok().as_ref() != Some(&locked) {
        for name in ["package.json", "package-lock.json"] {
            fs::copy(wanted.join(name), target.join(name)).unwrap();
        }
        // Beside its Node as it comes with it, else the machine's.
        let bundled = node.ancestors().nth(2).unwrap().join("lib/node_modules/npm/bin/npm-cli.js");
        let comes_with_it = bundled.try_exists().unwrap();
        let mut npm = Command::new(if comes_with_it { node.as_os_str() } else { "npm".as_ref() });
        npm.args(comes_with_it.then_some(&bundled));
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(&target);
        let output = npm.output().unwrap_or_else(|error| panic!("{npm:?}: {error}; install npm"));
        assert!(output.status.success(), "{npm:?}: {}", String::from_utf8_lossy(&output.stderr));
        fs::write(&done, locked).unwrap();
    }
    target.join("node_modules")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy(&entry.path(), &to),
            kind if kind.is_file() => fs::copy(entry.path(), &to).map(|_| ()).unwrap(),
            // Programs of packages, which nobody runs.
            _ => {}
        }
    }
}
