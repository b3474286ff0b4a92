//! Files and stdin that commands read. Called by the commands; owns no state. Always true: what is read is bounded, and
//! text that is not UTF-8 is refused with the place of the first bad byte.

use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context as _, bail};

/// Largest document, bytes: what one `Apply` carries.
pub(crate) const DOCUMENT_BYTES: u64 = 64 << 20;
/// Largest SOUL.md, bytes.
pub(crate) const SOUL_BYTES: u64 = 1 << 20;
/// Largest message text read from stdin, bytes; the control plane's own limit is lower.
pub(crate) const MESSAGE_BYTES: u64 = 16 << 20;

/// How a file is named in messages.
pub(crate) fn name(path: &Path) -> String {
    if is_stdin(path) { "<stdin>".to_owned() } else { path.display().to_string() }
}

/// Reads a text file, or stdin for `-`.
///
/// # Errors
/// When it cannot be read, is larger than `most` bytes, or is not UTF-8.
pub(crate) fn text(path: &Path, most: u64) -> anyhow::Result<String> {
    let name = name(path);
    if is_stdin(path) {
        return decode(io::stdin().lock(), &name, most);
    }
    let file = std::fs::File::open(path).with_context(|| format!("open {name}"))?;
    decode(file, &name, most)
}

/// Reads a file, or stdin for `-`, as it is.
///
/// # Errors
/// When it cannot be read, or is larger than `most` bytes.
pub(crate) fn bytes(path: &Path, most: u64) -> anyhow::Result<Vec<u8>> {
    let name = name(path);
    if is_stdin(path) {
        return bounded(io::stdin().lock(), &name, most);
    }
    let file = std::fs::File::open(path).with_context(|| format!("open {name}"))?;
    bounded(file, &name, most)
}

/// Whether the path names stdin, or stdout.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn bounded(from: impl Read, name: &str, most: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(most + 1).read_to_end(&mut bytes).with_context(|| format!("read {name}"))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        bail!("{name} is larger than {most} bytes");
    }
    Ok(bytes)
}

fn decode(from: impl Read, name: &str, most: u64) -> anyhow::Result<String> {
    match String::from_utf8(bounded(from, name, most)?) {
        Ok(text) => Ok(text),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count() + 1;
            bail!("{name}:{line}: the text is not UTF-8 (byte {}); save it as UTF-8", good + 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_not_utf8_names_its_place() {
        let refused = decode(&b"a: 1\nb: \xff\n"[..], "x.yaml", 100).unwrap_err().to_string();
        assert_eq!(refused, "x.yaml:2: the text is not UTF-8 (byte 9); save it as UTF-8");
    }

    #[test]
    fn text_is_bounded_exactly() {
        assert_eq!(decode(&b"12345"[..], "x", 5).unwrap(), "12345");
        assert!(decode(&b"123456"[..], "x", 5).unwrap_err().to_string().contains("larger than 5 bytes"));
    }
}
