//! The answers of jobs in the home: `cron/output/<job>/<time>.md`, the newest of each job.
//!
//! Called when a run has ended with an answer. Always true: nothing is written outside that folder, through no link; a file that is there is
//! never written over; at most [`KEPT`] of a job stay. That a disk is full costs the file, not the answer, and what was
//! half written is taken away again.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use jiff::Timestamp;

use super::Run;
use crate::beneath::{self, Folder};

/// Answers of a job that are kept.
const KEPT: usize = 50;
/// Files with one time, at most.
const MAX_AT_ONCE: u32 = 10;

/// Keeps the answer of a run that ended at `now`. Blocking: call it where that is allowed.
///
/// # Errors
/// What the system answers; then there is no new file.
pub(crate) fn keep(home: &Path, run: &Run, answer: &str, now: Timestamp) -> io::Result<()> {
    let is_id = !run.job.is_empty() && run.job.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id {
        return Err(beneath::refused(&run.job));
    }
    let folder = Folder::make(home, &format!("cron/output/{}", run.job))?;
    let Run { job, name, slot, .. } = run;
    let text = format!("# {name}\n\n- Job: {job}\n- Slot: {slot}\n- Answered: {now}\n\n{}\n", answer.trim_end());
    write(&folder, &now.strftime("%Y-%m-%d_%H-%M-%S").to_string(), &text)?;
    prune(&folder)
}

fn write(folder: &Folder, time: &str, text: &str) -> io::Result<()> {
    for number in 1..=MAX_AT_ONCE {
        let name = if number == 1 { format!("{time}.md") } else { format!("{time}_{number}.md") };
        let path = folder.path(&name);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => {
                return file.write_all(text.as_bytes()).inspect_err(|_| {
                    // Half an answer would be read as a whole one.
                    let _ = fs::remove_file(&path);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Takes the oldest away.
fn prune(folder: &Folder) -> io::Result<()> {
    let is_answer = |name: &String| name.ends_with(".md") && name.starts_with(|first: char| first.is_ascii_digit());
    let entries = folder.entries()?.filter_map(Result::ok);
    let mut names: Vec<String> =
        entries.filter(|(name, is_folder)| !is_folder && is_answer(name)).map(|(name, _)| name).collect();
    names.sort();
    for name in names.iter().take(names.len().saturating_sub(KEPT)) {
        fs::remove_file(folder.path(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        Run {
            job: "0123456789ab".to_owned(),
            name: "News".to_owned(),
            slot: "2027-01-31T08:00:00Z".to_owned(),
            ..Run::default()
        }
    }

    fn names(home: &Path) -> Vec<String> {
        let folder = fs::read_dir(home.join("cron/output/0123456789ab")).expect("folder");
        let mut names: Vec<String> =
            folder.map(|entry| entry.expect("entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    #[test]
    fn answers_are_kept_under_their_time_and_the_newest_fifty_stay() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).expect("time");
        for second in 0..52 {
            keep(dir.path(), &run(), "An answer.\n", at(second)).expect("kept");
        }
        keep(dir.path(), &run(), "Another.", at(51)).expect("kept");
        let names = names(dir.path());
        assert_eq!(names.len(), KEPT);
        assert_eq!((names[0].as_str(), names[49].as_str()), ("2027-01-15_08-00-03.md", "2027-01-15_08-00-51_2.md"));
        let text = fs::read_to_string(dir.path().join("cron/output/0123456789ab").join(&names[48])).expect("read");
        let expected = "# News\n\n- Job: 0123456789ab\n- Slot: 2027-01-31T08:00:00Z\n- Answered: 2027-01-15T08:00:51Z\n\nAn answer.\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn nothing_is_written_through_a_link_or_elsewhere() {
        let (dir, outside) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        fs::create_dir_all(dir.path().join("cron")).expect("mkdir");
        std::os::unix::fs::symlink(outside.path(), dir.path().join("cron/output")).expect("symlink");
        assert!(keep(dir.path(), &run(), "x", Timestamp::UNIX_EPOCH).is_err());
        let (dir, target) = (tempfile::tempdir().expect("tempdir"), outside.path().join("theirs"));
        keep(dir.path(), &run(), "first", Timestamp::UNIX_EPOCH).expect("kept");
        let planted = dir.path().join("cron/output/0123456789ab/1970-01-01_00-00-01.md");
        std::os::unix::fs::symlink(&target, planted).expect("symlink");
        let later = Timestamp::from_second(1).expect("time");
        keep(dir.path(), &run(), "second", later).expect("kept");
        assert!(!target.try_exists().expect("look") && names(dir.path()).len() == 3);
        for job in ["", "..", "a/b", "../../x"] {
            assert!(keep(dir.path(), &Run { job: job.to_owned(), ..run() }, "x", Timestamp::UNIX_EPOCH).is_err());
        }
        assert_eq!(fs::read_dir(outside.path()).expect("read").count(), 0);
    }
}
