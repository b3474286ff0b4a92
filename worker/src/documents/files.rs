//! The file side of documents: listing, reading and atomically replacing them without ever leaving the home.
//!
//! Always true: no symlink is followed below the home, neither as the file nor as one of its folders; a document is
//! replaced by rename, so a reader sees the old or the new text; what is too large or no regular file is no document.
//! Everything here blocks.

use std::fs::{self, DirBuilder, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hermes_home::DocumentPath;

/// Largest document, in bytes.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 1 << 20;
/// Documents of a home, at most; more are not looked at.
const MAX_DOCUMENTS: usize = 4096;

/// What tells an unchanged file apart without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
    inode: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.size(),
            inode: metadata.ino(),
        }
    }
}

/// Every document that is on disk, with its stamp.
pub(super) fn list(home: &Path) -> io::Result<Vec<(DocumentPath, Stamp)>> {
    let mut found = Vec::new();
    let mut waiting = Vec::new();
    visit(home, "SOUL.md", &mut found, &mut waiting)?;
    waiting.extend(["memories".to_owned(), "skills".to_owned()]);
    while let Some(folder) = waiting.pop() {
        let path = home.join(&folder);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        for entry in fs::read_dir(&path)? {
            if found.len() + waiting.len() >= MAX_DOCUMENTS {
                tracing::warn!(limit = MAX_DOCUMENTS, "the home holds more documents than are synced");
                return Ok(found);
            }
            if let Ok(name) = entry?.file_name().into_string() {
                visit(home, &format!("{folder}/{name}"), &mut found, &mut waiting)?;
            }
        }
    }
    Ok(found)
}

fn visit(home: &Path, name: &str, found: &mut Vec<(DocumentPath, Stamp)>, folders: &mut Vec<String>) -> io::Result<()> {
    let Some(path) = DocumentPath::parse(name).or_else(|| DocumentPath::parse(&format!("{name}/x"))) else {
        return Ok(());
    };
    let metadata = match fs::symlink_metadata(home.join(name)) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if metadata.is_dir() {
        folders.push(name.to_owned());
    } else if metadata.is_file() && path.as_str() == name && metadata.len() <= MAX_DOCUMENT_BYTES {
        found.push((path, Stamp::of(&metadata)));
    }
    Ok(())
}

/// The document's bytes and stamp; `None` when it is missing or no regular file of acceptable size.
pub(super) fn read(home: &Path, document: &DocumentPath) -> io::Result<Option<(Vec<u8>, Stamp)>> {
    match folder_of(home, document, false) {
        Ok(Some(_)) => {}
        Ok(None) => return Ok(None),
        Err(error) => return Err(error),
    }
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(document.under(home)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_DOCUMENT_BYTES {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((u64::try_from(bytes.len()).is_ok_and(|size| size <= MAX_DOCUMENT_BYTES)).then(|| (bytes, Stamp::of(&metadata))))
}

/// Replaces the document, making its folders where they are missing.
pub(super) fn write(home: &Path, document: &DocumentPath, bytes: &[u8]) -> io::Result<Stamp> {
    let folder = folder_of(home, document, true)?.ok_or_else(|| refused(document.as_str()))?;
    let target = document.under(home);
    match fs::symlink_metadata(&target) {
        Ok(metadata) if !metadata.is_file() => return Err(refused(document.as_str())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let new = folder.join(format!(".hermes-new-{}", uuid::Uuid::new_v4().simple()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, &target)?;
        Ok(Stamp::of(&file.metadata()?))
    })();
    if written.is_err() {
        // The document itself is as before; a temporary file left behind is hidden and harmless.
        let _ = fs::remove_file(&new);
    }
    written
}

/// Removes the document; one that is missing is removed already.
pub(super) fn remove(home: &Path, document: &DocumentPath) -> io::Result<()> {
    if folder_of(home, document, false)?.is_none() {
        return Ok(());
    }
    match fs::remove_file(document.under(home)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Keeps `bytes` beside the document as `<file>.conflict-<n>` with the first free number.
pub(super) fn set_aside(home: &Path, document: &DocumentPath, bytes: &[u8]) -> io::Result<PathBuf> {
    folder_of(home, document, true)?;
    for number in 1..=9999 {
        let copy = home.join(format!("{document}.conflict-{number}"));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy) {
            Ok(mut file) => {
                file.write_all(bytes)?;
                return Ok(copy);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many conflict copies; remove some"))
}

/// The folder a document lies in, each part checked to be a real one; `None` when missing and not to be made.
fn folder_of(home: &Path, document: &DocumentPath, make: bool) -> io::Result<Option<PathBuf>> {
    let mut folder = home.to_owned();
    for name in document.folders() {
        folder.push(name);
        match fs::symlink_metadata(&folder) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(refused(document.as_str())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && make => {
                DirBuilder::new().mode(0o700).create(&folder)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(folder))
}

fn refused(document: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{document} lies behind a symlink or is no regular file"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn path(text: &str) -> DocumentPath {
        DocumentPath::parse(text).expect(text)
    }

    #[test]
    fn lists_documents_only() {
        let home = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| home.path().join(name);
        for name in ["memories", "skills/a/references", "skills/.archive/b", "workspace"] {
            fs::create_dir_all(at(name)).expect("mkdir");
        }
        for name in [
            "SOUL.md",
            ".env",
            "memories/MEMORY.md",
            "memories/notes.txt",
            "skills/a/SKILL.md",
            "skills/.usage.json",
            "skills/a/references/r.md",
            "skills/.archive/b/SKILL.md",
            "workspace/w",
            "memories/MEMORY.md.conflict-1",
        ] {
            fs::write(at(name), name).expect("write");
        }
        symlink("/etc/passwd", at("memories/link.md")).expect("symlink");
        symlink("/etc", at("skills/link")).expect("symlink");
        let big = fs::File::create(at("skills/a/big")).expect("create");
        big.set_len(MAX_DOCUMENT_BYTES + 1).expect("grow");
        let mut names: Vec<String> =
            list(home.path()).expect("list").into_iter().map(|(path, _)| path.to_string()).collect();
        names.sort();
        assert_eq!(names, ["SOUL.md", "memories/MEMORY.md", "skills/a/SKILL.md", "skills/a/references/r.md"]);
    }

    #[test]
    fn writes_never_leave_the_home() {
        let home = tempfile::tempdir().expect("tempdir");
        let outside = tempfile::tempdir().expect("tempdir");
        fs::write(outside.path().join("x.md"), "theirs").expect("write");
        symlink(outside.path(), home.path().join("memories")).expect("symlink");
        symlink(outside.path().join("x.md"), home.path().join("SOUL.md")).expect("symlink");
        for name in ["memories/x.md", "SOUL.md"] {
            write(home.path(), &path(name), b"ours").expect_err(name);
            assert!(read(home.path(), &path(name)).is_err(), "{name}");
        }
        remove(home.path(), &path("memories/x.md")).expect_err("behind a symlink");
        assert_eq!(fs::read_to_string(outside.path().join("x.md")).expect("read"), "theirs");
    }

    #[test]
    fn a_write_is_seen_by_list_and_read_with_one_stamp() {
        let home = tempfile::tempdir().expect("tempdir");
        let document = path("skills/c/a/SKILL.md");
        let stamp = write(home.path(), &document, b"text").expect("write");
        assert_eq!(list(home.path()).expect("list"), [(document.clone(), stamp)]);
        assert_eq!(read(home.path(), &document).expect("read"), Some((b"text".to_vec(), stamp)));
        assert!(set_aside(home.path(), &document, b"1").expect("aside").ends_with("SKILL.md.conflict-1"));
        assert!(set_aside(home.path(), &document, b"2").expect("aside").ends_with("SKILL.md.conflict-2"));
        remove(home.path(), &document).expect("remove");
        assert_eq!(read(home.path(), &document).expect("read"), None);
    }
}
