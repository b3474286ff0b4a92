//! `write_file`: a file as it shall be, and the one way in which the tools write files.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use super::{Answer, MAX_FILE, Write, resolved, said};

pub(super) fn run(base: &super::Base<'_>, write: &Write) -> Answer {
    if write.content.len() as u64 > MAX_FILE {
        return Err(format!("the content is longer than {MAX_FILE} bytes"));
    }
    let path = resolved(base, &write.path)?;
    let new = !path.try_exists().map_err(|error| said(&write.path, &error))?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| said(&write.path, &error))?;
    }
    replace(&path, write.content.as_bytes()).map_err(|error| said(&write.path, &error))?;
    let lines = write.content.lines().count();
    let done = if new { "Created" } else { "Replaced" };
    Ok(format!("{done} {}: {lines} lines, {} bytes.", write.path, write.content.len()))
}

/// Puts `content` in the place of the file, whole or not at all. Of a file whose directory is not the agent's the content is
/// written over instead.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    // A link is followed, so that it stays one.
    let path = match fs::canonicalize(path) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(error),
    };
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or(io::ErrorKind::IsADirectory)?);
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&beside) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            // Only what is there may be changed then.
            return if path.try_exists()? { write_over(&path, content) } else { Err(error) };
        }
        Err(error) => return Err(error),
    };
    let written = (|| {
        file.write_all(content)?;
        if let Ok(metadata) = fs::metadata(&path) {
            fs::set_permissions(&beside, metadata.permissions())?;
        }
        file.sync_all()?;
        fs::rename(&beside, &path)
    })();
    if written.is_err() {
        // The failure is what is told; what is left of it goes.
        let _ = fs::remove_file(&beside);
    }
    match written {
        // It is shown here by itself and cannot be replaced.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => write_over(&path, content),
        written => written,
    }
}

fn write_over(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}
