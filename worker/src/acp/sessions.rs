//! Which session of the program stands for which session of ours.
//!
//! Owned by [`super::Programs`]. Always true: a session of the program is gone on with only by the turn that follows the last one prompted in it, with the
//! same history; what is not known is a new session. It is kept in a file of the home that the program does not see, for a program that
//! can load its sessions in another process.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::beneath::{self, Folder};

/// Where they are kept, in the home.
const FILE: &str = ".hermes-acp-sessions.json";
/// Largest file of them, bytes.
const MAX_BYTES: u64 = 4 << 20;
/// Sessions that are remembered; those unused for longest go first.
const MAX: usize = 1024;

/// A session of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The program's name for it.
    pub(super) id: String,
    /// Which program, hex.
    program: String,
    /// The last turn that was prompted in it.
    seq: u64,
    /// How often turns had been left out of the history then.
    rewinds: u32,
    /// What it was last told that the agent is, hex.
    pub(super) persona: String,
    /// The process that has it open; 0: none of this worker's.
    #[serde(skip)]
    pub(super) process: u64,
    used: u64,
}

/// Where a turn stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) session: u64,
    pub(super) seq: u64,
    pub(super) rewinds: u32,
    pub(super) program: &'a str,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Sessions {
    home: PathBuf,
    known: BTreeMap<u64, Entry>,
}

impl Sessions {
    /// Those of a home.
    pub(super) fn read(home: &Path) -> Self {
        let read = beneath::read(home, FILE, MAX_BYTES).ok().flatten();
        let known = read.and_then(|(bytes, _)| serde_json::from_slice(&bytes).ok());
        Self { home: home.to_owned(), known: known.unwrap_or_default() }
    }

    /// The session that this turn goes on with.
    pub(super) fn of(&self, place: Place<'_>) -> Option<Entry> {
        let follows = |entry: &&Entry| {
            entry.seq + 1 == place.seq && entry.rewinds == place.rewinds && entry.program == place.program
        };
        self.known.get(&place.session).filter(follows).cloned()
    }

    /// The turn is prompted in that session; `kept` where another process can go on with it.
    pub(super) fn prompted(&mut self, place: Place<'_>, id: String, persona: String, process: u64, kept: bool) {
        let Place { session, seq, rewinds, program } = place;
        let used = self.known.values().map(|entry| entry.used).max().unwrap_or(0) + 1;
        self.known.insert(session, Entry { id, program: program.to_owned(), seq, rewinds, persona, process, used });
        while self.known.len() > MAX
            && let Some(oldest) = self.known.iter().min_by_key(|(_, entry)| entry.used).map(|(session, _)| *session)
        {
            self.known.remove(&oldest);
        }
        if kept && let Err(error) = self.write() {
            tracing::warn!(%error, "the sessions of the program that answers turns are not kept");
        }
    }

    /// By rename, and through no link: at level `home` the program itself may write where this lies.
    fn write(&self) -> io::Result<()> {
        let folder = Folder::open(&self.home, "")?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let new = folder.path(&format!(".hermes-new-{}", uuid::Uuid::new_v4().simple()));
        let bytes = serde_json::to_vec(&self.known).unwrap_or_default();
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let written = file.write_all(&bytes).and_then(|()| fs::rename(&new, folder.path(FILE)));
        if written.is_err() {
            // A temporary file left behind is hidden and harmless.
            let _ = fs::remove_file(&new);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(seq: u64, rewinds: u32, program: &str) -> Place<'_> {
        Place { session: 7, seq, rewinds, program }
    }

    #[test]
    fn only_the_next_turn_with_the_same_history_goes_on() {
        let home = tempfile::tempdir().expect("tempdir");
        let mut sessions = Sessions::read(home.path());
        sessions.prompted(place(3, 1, "p"), "s".to_owned(), "me".to_owned(), 9, true);
        assert_eq!(sessions.of(place(4, 1, "p")).map(|entry| (entry.id, entry.process)), Some(("s".to_owned(), 9)));
        for other in [place(3, 1, "p"), place(5, 1, "p"), place(4, 2, "p"), place(4, 1, "q")] {
            assert_eq!(sessions.of(other), None, "{other:?}");
        }
        assert_eq!(sessions.of(Place { session: 8, ..place(4, 1, "p") }), None);
        let again = Sessions::read(home.path());
        assert_eq!(again.of(place(4, 1, "p")).map(|entry| (entry.id, entry.process)), Some(("s".to_owned(), 0)));
    }

    #[test]
    fn the_sessions_unused_for_longest_go_first() {
        let home = tempfile::tempdir().expect("tempdir");
        let mut sessions = Sessions::read(home.path());
        for session in 0..=MAX as u64 {
            let place = Place { session, ..place(1, 0, "p") };
            sessions.prompted(place, "s".to_owned(), String::new(), 1, false);
        }
        assert_eq!((sessions.known.len(), sessions.known.contains_key(&0)), (MAX, false));
        assert!(Sessions::read(home.path()).known.is_empty(), "nothing is kept unasked");
    }
}
