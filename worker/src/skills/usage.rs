//! How often each skill was looked at and changed: `skills/.usage.json`, a file that existing homes have.
//!
//! Written by the skill tools, inside the boundary; read by whoever tidies skills up. Always true: one writer at a time (a lock
//! file beside it), the file is replaced whole, and what this build does not know in it stays. A file that cannot be read as such is
//! left alone and counts nothing: losing counts is no reason to fail a call.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use hermes_home::curator::Usage;
use jiff::Timestamp;
use serde::Serialize;

/// The file, in `skills/`.
const FILE: &str = ".usage.json";
/// Held while it is written.
const LOCK: &str = ".usage.lock";
/// Held while skills are changed or moved.
const HOLD: &str = ".skills.lock";

/// What happened to a skill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was made by the agent.
    Created {
        /// Nobody was there: by itself.
        alone: bool,
    },
    /// It was read; that is also a use.
    Viewed,
    /// It was changed.
    Patched,
    /// It is gone.
    Deleted,
}

/// Notes an event of the skill `name` in the folder `skills`, at `now`.
///
/// # Errors
/// What the system answers; the file is as it was then.
pub fn note(skills: &Path, name: &str, event: Event, now: Timestamp) -> io::Result<()> {
    change(skills, |all| {
        if event == Event::Deleted {
            all.remove(name);
            return;
        }
        let usage = all.entry(name.to_owned()).or_insert_with(|| Usage::new(now));
        let now = Some(now.to_string());
        match event {
            Event::Viewed => {
                usage.view_count += 1;
                usage.use_count += 1;
                usage.last_viewed_at.clone_from(&now);
                usage.last_used_at = now;
            }
            Event::Patched => {
                usage.patch_count += 1;
                usage.last_patched_at = now;
            }
            Event::Created { alone: true } => usage.created_by = Some("agent".to_owned()),
            Event::Created { alone: false } | Event::Deleted => {}
        }
    })
}

/// What is known of the skills in the folder `skills`, by name.
///
/// # Errors
/// What the system answers, also when the file is something else.
pub fn rows(skills: &Path) -> io::Result<BTreeMap<String, Usage>> {
    match fs::read(skills.join(FILE)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

/// Changes it.
///
/// # Errors
/// As [`rows`]; the file is as it was then.
pub fn change(skills: &Path, change: impl FnOnce(&mut BTreeMap<String, Usage>)) -> io::Result<()> {
    let _lock = locked(skills, LOCK)?;
    let mut all = rows(skills)?;
    change(&mut all);
    replace(skills, FILE, &all)
}

/// Held by whoever changes or moves skills: one at a time.
///
/// # Errors
/// What the system answers.
pub fn hold(skills: &Path) -> io::Result<File> {
    locked(skills, HOLD)
}

fn locked(skills: &Path, name: &str) -> io::Result<File> {
    let lock = File::options().create(true).truncate(false).write(true).open(skills.join(name))?;
    lock.lock()?;
    Ok(lock)
}

/// Puts a file of `skills` in the place of the one there.
pub(super) fn replace(skills: &Path, file: &str, content: &impl Serialize) -> io::Result<()> {
    let beside = skills.join(format!("{file}.{}.new", std::process::id()));
    fs::write(&beside, serde_json::to_vec_pretty(content)?)?;
    fs::rename(beside, skills.join(file))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn read(skills: &Path) -> Value {
        serde_json::from_slice(&fs::read(skills.join(FILE)).expect("read")).expect("json")
    }

    #[test]
    fn counts_grow_and_what_others_wrote_stays() {
        let dir = tempfile::tempdir().expect("tempdir");
        let before = r#"{"maps": {"created_by": "agent", "use_count": 3, "view_count": 1, "state": "stale", "pinned": true, "x": [1]}}"#;
        fs::write(dir.path().join(FILE), before).expect("write");
        for event in [Event::Viewed, Event::Patched, Event::Patched] {
            note(dir.path(), "maps", event, NOW).expect("noted");
        }
        note(dir.path(), "new", Event::Created { alone: false }, NOW).expect("noted");
        let after = read(dir.path());
        let maps = &after["maps"];
        assert_eq!((&maps["use_count"], &maps["view_count"], &maps["patch_count"]), (&4.into(), &2.into(), &2.into()));
        assert_eq!((&maps["state"], &maps["pinned"], &maps["x"][0]), (&"stale".into(), &true.into(), &1.into()));
        assert_eq!(
            (&after["new"]["created_at"], &after["new"]["state"]),
            (&"1970-01-01T00:00:00Z".into(), &"active".into())
        );
        note(dir.path(), "maps", Event::Deleted, NOW).expect("noted");
        assert!(read(dir.path()).get("maps").is_none());
    }

    #[test]
    fn a_file_that_is_something_else_is_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join(FILE), "[]").expect("write");
        assert!(note(dir.path(), "maps", Event::Viewed, NOW).is_err());
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).expect("read"), "[]");
    }
}
