//! The file side of documents: listing, reading and atomically replacing them without ever leaving the home.
//!
//! Always true: no symlink is followed below the home, neither as the file nor as one of its folders; a document is
//! replaced by rename, so a reader sees the old or the new text; what is too large or no regular file is no document.
//! Everything here blocks.

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hermes_home::DocumentPath;

use crate::beneath::{self, Folder};

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
    let mut waiting = vec!["memories".to_owned(), "skills".to_owned()];
    if let Some(root) = Folder::open(home, "")? {
        visit(&root, "SOUL.md", "SOUL.md", &mut found)?;
    }
    while let Some(name) = waiting.pop() {
        let folder = match Folder::open(home, &name) {
            Ok(Some(folder)) => folder,
            Ok(None) => continue,
            // A link is nobody's folder.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => continue,
            Err(error) => return Err(error),
        };
        for entry in folder.entries()? {
            if found.len() + waiting.len() >= MAX_DOCUMENTS {
                tracing::warn!(limit = MAX_DOCUMENTS, "the home holds more documents than are synced");
                return Ok(found);
            }
            let (entry, is_folder) = entry?;
            let path = format!("{name}/{entry}");
            if !is_folder {
                visit(&folder, &entry, &path, &mut found)?;
            } else if DocumentPath::parse(&format!("{path}/x")).is_some() {
                waiting.push(path);
            }
        }
    }
    Ok(found)
}

/// Notes the file `name` of `folder`, which is `path` in the home, if it is a document.
fn visit(folder: &Folder, name: &str, path: &str, found: &mut Vec<(DocumentPath, Stamp)>) -> io::Result<()> {
    let Some(document) = DocumentPath::parse(path) else {
        return Ok(());
    };
    match fs::symlink_metadata(folder.path(name)) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= MAX_DOCUMENT_BYTES => {
            found.push((document, Stamp::of(&metadata)));
            Ok(())
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The document's bytes and stamp; `None` when it is missing or no regular file of acceptable size.
pub(super) fn read(home: &Path, document: &DocumentPath) -> io::Result<Option<(Vec<u8>, Stamp)>> {
    let found = beneath::read(home, document.as_str(), MAX_DOCUMENT_BYTES)?;
    Ok(found.map(|(bytes, metadata)| (bytes, Stamp::of(&metadata))))
}

/// Replaces the document, making its folders where they are missing.
pub(super) fn write(home: &Path, document: &DocumentPath, bytes: &[u8]) -> io::Result<Stamp> {
    let (folder, name) = place(document);
    let folder = Folder::make(home, folder)?;
    let target = folder.path(name);
    match fs::symlink_metadata(&target) {
        Ok(metadata) if !metadata.is_file() => return Err(beneath::refused(document.as_str())),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let new = folder.path(&format!(".hermes-new-{}", uuid::Uuid::new_v4().simple()));
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
    let (folder, name) = place(document);
    let Some(folder) = Folder::open(home, folder)? else {
        return Ok(());
    };
    match fs::remove_file(folder.path(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Keeps `bytes` beside the document as `<file>.conflict-<n>` with the first free number; where that is.
pub(super) fn set_aside(home: &Path, document: &DocumentPath, bytes: &[u8]) -> io::Result<PathBuf> {
    let (folder, name) = place(document);
    let held = Folder::make(home, folder)?;
    for number in 1..=9999 {
        let copy = format!("{name}.conflict-{number}");
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(held.path(&copy)) {
            Ok(mut file) => {
                file.write_all(bytes)?;
                return Ok(home.join(folder).join(copy));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many conflict copies; remove some"))
}

/// Folder and file name.
fn place(document: &DocumentPath) -> (&str, &str) {
    document.as_str().rsplit_once('/').unwrap_or(("", document.as_str()))
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
