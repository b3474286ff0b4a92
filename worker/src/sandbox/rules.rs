//! Which files may be read and written inside: Landlock, on top of what is there to be seen.
//!
//! Called by the second stage after the root is built. Everything that is not named here is refused, so that a mistake in the
//! root, or a way out of it, still meets a closed door.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, Scope,
};

use super::enter::said;
use super::root::{DEVICES, SCRATCH, system};

/// The oldest kernel interface that closes what has to be closed: moving files between directories (2) and truncating (3).
const REQUIRED: ABI = ABI::V3;
/// The newest one that is used where it is there: device controls (5), abstract sockets and signals (6).
const WANTED: ABI = ABI::V6;

/// Closes the door: from here on this process and its children write what is `shown` of the home and scratch, and read system paths.
pub(super) fn enforce(shown: &[PathBuf]) -> io::Result<()> {
    closed(shown).map_err(|error| said("restrict files (Landlock of Linux 6.2 or newer)", &io::Error::other(error)))
}

fn closed(shown: &[PathBuf]) -> Result<(), landlock::RulesetError> {
    let all = AccessFs::from_all(WANTED);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(REQUIRED))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    let read = AccessFs::from_read(WANTED);
    for path in system().chain([Path::new("/proc")]) {
        rules = allow(rules, path, read)?;
    }
    for device in DEVICES {
        rules = allow(rules, Path::new(device), AccessFs::ReadFile | AccessFs::WriteFile)?;
    }
    for path in SCRATCH.iter().map(Path::new).chain(shown.iter().map(PathBuf::as_path)) {
        // Devices and their controls are for nobody.
        rules = allow(rules, path, all & !(AccessFs::MakeBlock | AccessFs::MakeChar | AccessFs::IoctlDev))?;
    }
    rules.restrict_self()?;
    Ok(())
}

/// Allows `access` beneath `path`, or on it when it is a file; what is not there is left out.
fn allow(
    rules: landlock::RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<landlock::RulesetCreated, landlock::RulesetError> {
    let Ok(file) = PathFd::new(path) else {
        return Ok(rules);
    };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(WANTED) };
    rules.add_rule(PathBeneath::new(file, access))
}
