//! An agent as a file: a gzipped tar (ustar) with `agent.yaml`, its specification, and its documents below `home/`.
//!
//! Called by `agent export` and `import`; pure, on bytes. An archive comes from anywhere, so reading believes nothing: it is read in
//! memory and nothing is unpacked to disk, whatever is not a plain file of a document's name is refused by that name, and everything
//! is bounded before it is allocated. Always true: what [`write`] made, [`read`] takes; the same content is the same bytes, since
//! times, owners and modes of files do not travel. What the documents say is judged by the control plane.

use std::collections::BTreeMap;
use std::io::{self, Read};

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use hermes_home::DocumentPath;
use hermes_home::admission::{MAX_BYTES, MAX_DOCUMENT_BYTES, MAX_DOCUMENTS};
use tar::{Archive, Builder, EntryType, Header};
use unicode_normalization::UnicodeNormalization as _;

/// Largest archive as it lies on disk, in bytes.
pub(super) const FILE_BYTES: u64 = 64 << 20;
/// Most bytes of what is packed: the documents, and as much as the tar around them may take.
const TAR_BYTES: u64 = (MAX_BYTES + 4 * 512 * MAX_DOCUMENTS) as u64;
/// Most entries: documents, and the folders that they lie in.
const MAX_ENTRIES: usize = 2 * MAX_DOCUMENTS;
/// Longest specification, in bytes.
const MAX_SPEC: usize = 256 << 10;
const SPEC: &str = "agent.yaml";
const HOME: &str = "home/";

/// What is in an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// The specification as YAML.
    pub spec: Option<String>,
    /// The documents by path.
    pub documents: BTreeMap<String, Vec<u8>>,
}

/// Why an archive is not taken, or cannot be made. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// One entry of it, by its name.
    #[error("entry {name:?}: {why}")]
    Entry {
        /// As it stands in the archive.
        name: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// It ends too early or is not what it says.
    #[error("{after}: {cause}; the archive is damaged, so make or copy it again")]
    Damaged {
        /// How far it was read.
        after: String,
        /// The reader's words.
        cause: io::Error,
    },
    /// As a whole.
    #[error("{0}")]
    Whole(&'static str),
}

/// Makes an archive.
///
/// # Errors
/// [`Refused::Entry`] for a document whose name does not fit a tar.
pub(super) fn write(contents: &Contents) -> Result<Vec<u8>, Refused> {
    let mut tar = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let spec = contents.spec.iter().map(|spec| (SPEC.to_owned(), spec.as_bytes()));
    let documents = contents.documents.iter().map(|(path, body)| (format!("{HOME}{path}"), body.as_slice()));
    for (name, body) in spec.chain(documents) {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(body.len() as u64);
        header.set_path(&name).map_err(|_| Refused::Entry {
            name: name.clone(),
            why: "the name is too long for an archive (100 bytes, and 155 for the folders); rename the document"
                .to_owned(),
        })?;
        header.set_cksum();
        tar.append(&header, body).map_err(|cause| Refused::Damaged { after: name, cause })?;
    }
    let packed = tar.into_inner().and_then(GzEncoder::finish);
    packed.map_err(|cause| Refused::Damaged { after: "at the end".to_owned(), cause })
}

/// Reads an archive, whole or not at all.
///
/// # Errors
/// [`Refused`], with the first entry that is not taken.
pub(super) fn read(bytes: &[u8]) -> Result<Contents, Refused> {
    let mut packed = bytes;
    let mut unpacked = Bounded { from: GzDecoder::new(&mut packed), left: TAR_BYTES };
    let mut contents = Contents::default();
    let mut folded = BTreeMap::new();
    let mut after = "at the beginning".to_owned();
    {
        let mut tar = Archive::new(&mut unpacked);
        // Raw: a name or size that another entry would override is refused with that entry, so what is judged is what is there.
        let entries = tar.entries().map_err(|cause| damaged(&after, cause))?.raw(true);
        for (count, entry) in entries.enumerate() {
            let mut entry = entry.map_err(|cause| damaged(&after, cause))?;
            let name = named(&entry.path_bytes())?;
            let refused = |why: &str| Refused::Entry { name: name.clone(), why: why.to_owned() };
            if count >= MAX_ENTRIES {
                return Err(refused("the archive has too many entries; an agent has 4096 documents at most"));
            }
            after = format!("in entry {name:?}");
            let header = entry.header();
            let size = header.entry_size().map_err(|cause| damaged(&after, cause))?;
            match header.entry_type() {
                EntryType::Regular => {}
                EntryType::Directory if is_folder(&name) && size == 0 => continue,
                EntryType::Directory => return Err(refused("it is no folder of a home's documents; leave it out")),
                kind => return Err(refused(&strange(kind))),
            }
            if header.mode().map_err(|cause| damaged(&after, cause))? & 0o7000 != 0 {
                return Err(refused("it has setuid, setgid or sticky bits; clear them or leave it out"));
            }
            let path = name.strip_prefix(HOME).and_then(DocumentPath::parse);
            if path.is_none() && name != SPEC {
                return Err(refused(
                    "an archive holds agent.yaml and home/ with SOUL.md, memories/<name>.md and files below skills/, none of them \
                     hidden and none with '..'; leave it out or rename it",
                ));
            }
            let most = if path.is_some() { MAX_DOCUMENT_BYTES } else { MAX_SPEC };
            if usize::try_from(size).map_or(true, |size| size > most) {
                return Err(refused(&format!(
                    "it has {size} bytes and may have {most}; leave it out or make it shorter"
                )));
            }
            if let Some(other) = folded.insert(fold(&name), name.clone()) {
                return Err(refused(&format!("it is the same as {other:?}, on some systems at least; leave one out")));
            }
            if folded.len() > MAX_DOCUMENTS + 1 {
                return Err(refused("the archive has too many documents; leave some out"));
            }
            let mut body = Vec::new();
            entry.read_to_end(&mut body).map_err(|cause| damaged(&after, cause))?;
            if body.len() as u64 != size {
                return Err(damaged(&after, io::ErrorKind::UnexpectedEof.into()));
            }
            match path {
                Some(path) => {
                    contents.documents.insert(path.to_string(), body);
                }
                None => {
                    let text = String::from_utf8(body).map_err(|_| refused("it is not UTF-8; save it as UTF-8"))?;
                    contents.spec = Some(text);
                }
            }
        }
    }
    // To its end, where the checksum is; a tar is padded with zeros.
    let mut rest = Vec::new();
    unpacked.read_to_end(&mut rest).map_err(|cause| damaged("at the end", cause))?;
    if rest.iter().any(|byte| *byte != 0) || !packed.is_empty() {
        return Err(Refused::Whole("something stands behind the end of the archive; make it again"));
    }
    if contents.documents.values().map(Vec::len).sum::<usize>() > MAX_BYTES {
        return Err(Refused::Whole("the documents have more than 32 MiB together; leave some out"));
    }
    if contents == Contents::default() {
        return Err(Refused::Whole("the archive is empty"));
    }
    Ok(contents)
}

/// Fails where more comes than an archive may hold, however small it is packed.
struct Bounded<R> {
    from: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other(format!("it unpacks to more than the {TAR_BYTES} bytes that an archive may hold"))
        })?;
        Ok(count)
    }
}

fn damaged(after: &str, cause: io::Error) -> Refused {
    Refused::Damaged { after: after.to_owned(), cause }
}

fn named(name: &[u8]) -> Result<String, Refused> {
    String::from_utf8(name.to_vec()).map_err(|_| Refused::Entry {
        name: String::from_utf8_lossy(name).into_owned(),
        why: "its name is not UTF-8; rename it or leave it out".to_owned(),
    })
}

/// `home/`, or a folder below it that documents may lie in.
fn is_folder(name: &str) -> bool {
    name.strip_prefix(HOME).is_some_and(|path| {
        path.is_empty() || (path.ends_with('/') && DocumentPath::parse(&format!("{path}x.md")).is_some())
    })
}

/// What is neither a file nor a folder.
fn strange(kind: EntryType) -> String {
    let what = match kind {
        EntryType::Link | EntryType::Symlink => "a link",
        EntryType::Char | EntryType::Block | EntryType::Fifo => "a device or a pipe",
        EntryType::GNUSparse => "a file with holes",
        EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader => {
            return "it overrides what the next entry says of itself; make the archive with `tar --format=ustar`"
                .to_owned();
        }
        _ => "of a kind that nobody needs",
    };
    format!("it is {what}, and an archive holds plain files; leave it out")
}

/// Names that one file system or another takes for the same.
fn fold(name: &str) -> String {
    name.nfc().collect::<String>().to_lowercase().nfc().collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn contents() -> Contents {
        let documents = [("SOUL.md", "I am.\n"), ("memories/MEMORY.md", "a\n§\nb"), ("skills/c/ü.md", "x")];
        Contents {
            spec: Some("agents:\n  coder: {}\n".to_owned()),
            documents: documents.map(|(path, body)| (path.to_owned(), body.as_bytes().to_vec())).into(),
        }
    }

    /// A header as somebody wrote it who wants something else than we.
    fn header(kind: EntryType, name: &[u8], size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_cksum();
        header
    }

    fn tar(entries: &[(Header, &[u8])]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (header, body) in entries {
            tar.extend_from_slice(header.as_bytes());
            tar.extend_from_slice(body);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.resize(tar.len() + 1024, 0);
        tar
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    fn refusal(entries: &[(Header, &[u8])]) -> String {
        read(&gzip(&tar(entries))).expect_err("it is refused").to_string()
    }

    fn file(name: &str) -> (Header, &'static [u8]) {
        (header(EntryType::Regular, name.as_bytes(), 1), b"x")
    }

    #[test]
    fn what_is_written_is_read_and_the_same_is_the_same_bytes() {
        let packed = write(&contents()).unwrap();
        assert_eq!(read(&packed).unwrap(), contents());
        assert_eq!(write(&read(&packed).unwrap()).unwrap(), packed);
        // As `tar --format=ustar` packs a folder.
        let folders = ["home/", "home/memories/", "home/skills/", "home/skills/a/"];
        let mut entries: Vec<_> =
            folders.map(|name| (header(EntryType::Directory, name.as_bytes(), 0), &b""[..])).into();
        entries.push(file("home/skills/a/SKILL.md"));
        assert_eq!(read(&gzip(&tar(&entries))).unwrap().documents.len(), 1);
        let long = Contents { documents: [(format!("skills/{}", "n".repeat(150)), Vec::new())].into(), ..contents() };
        assert!(write(&long).unwrap_err().to_string().contains("rename the document"));
        let deep = format!("skills/{}/{}", "d".repeat(120), "n".repeat(90));
        let deep = Contents { documents: [(deep, b"x".to_vec())].into(), ..contents() };
        assert_eq!(read(&write(&deep).unwrap()).unwrap(), deep);
    }

    #[test]
    fn a_name_that_is_no_documents_is_refused_by_it() {
        for name in [
            "/etc/passwd",
            "//home/SOUL.md",
            "../home/SOUL.md",
            "home/../SOUL.md",
            "home/skills/../../x",
            "home/skills/..",
            "home//SOUL.md",
            "home/./SOUL.md",
            "./home/SOUL.md",
            "home/skills/a\\..\\..\\x",
            "C:\\x",
            "home/C:/x",
            "home/.env",
            "home/auth.json",
            "home/workspace/x",
            "home/skills/.usage.json",
            "home/skills/a\n/b",
            "home/SOUL.md.conflict-1",
            "home",
            "home/soul.md",
            "SOUL.md",
            "Agent.yaml",
            "",
        ] {
            let said = refusal(&[file("home/SOUL.md"), file(name)]);
            assert!(said.starts_with(&format!("entry {name:?}: ")), "{name:?}: {said}");
            assert!(said.contains("leave it out"), "{name:?}: {said}");
        }
        let said = refusal(&[(header(EntryType::Regular, b"home/skills/\xff\xfe", 1), b"x")]);
        assert!(said.contains("not UTF-8"), "{said}");
        for name in ["home/../", "home/workspace/", "/", "home/skills/../"] {
            let said = refusal(&[(header(EntryType::Directory, name.as_bytes(), 0), b"")]);
            assert!(said.starts_with(&format!("entry {name:?}: it is no folder")), "{said}");
        }
    }

    #[test]
    fn what_is_no_plain_file_is_refused() {
        for (kind, part) in [
            (EntryType::Symlink, "a link"),
            (EntryType::Link, "a link"),
            (EntryType::Char, "a device"),
            (EntryType::Block, "a device"),
            (EntryType::Fifo, "a device or a pipe"),
            (EntryType::GNUSparse, "holes"),
            (EntryType::Continuous, "of a kind"),
            (EntryType::GNULongName, "--format=ustar"),
            (EntryType::GNULongLink, "--format=ustar"),
            (EntryType::XHeader, "--format=ustar"),
            (EntryType::XGlobalHeader, "--format=ustar"),
        ] {
            let mut odd = header(kind, b"home/skills/a", 0);
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                odd.set_link_name("/etc").unwrap();
                odd.set_cksum();
            }
            let said = refusal(&[(odd, b""), file("home/SOUL.md")]);
            assert!(said.starts_with("entry \"home/skills/a\": ") && said.contains(part), "{kind:?}: {said}");
        }
        let mut setuid = header(EntryType::Regular, b"home/SOUL.md", 1);
        setuid.set_mode(0o4755);
        setuid.set_cksum();
        assert!(refusal(&[(setuid, b"x")]).contains("setuid"));
    }

    #[test]
    fn a_name_comes_once_whatever_the_file_system_makes_of_it() {
        for (one, two) in [
            ("home/SOUL.md", "home/SOUL.md"),
            ("home/skills/a/SKILL.md", "home/skills/A/skill.md"),
            ("home/skills/\u{e9}", "home/skills/e\u{301}"),
            ("agent.yaml", "agent.yaml"),
        ] {
            let said = refusal(&[file(one), file(two)]);
            assert!(said.starts_with(&format!("entry {two:?}: it is the same as {one:?}")), "{said}");
        }
    }

    #[test]
    fn everything_is_bounded_before_it_is_read() {
        let huge = (header(EntryType::Regular, b"home/skills/huge", 1 << 32), &b""[..]);
        assert!(refusal(&[huge]).starts_with("entry \"home/skills/huge\": it has 4294967296 bytes"));
        let spec = vec![b'x'; MAX_SPEC + 1];
        let spec = (header(EntryType::Regular, b"agent.yaml", spec.len() as u64), spec.as_slice());
        assert!(refusal(&[spec]).starts_with("entry \"agent.yaml\": it has"));
        // A megabyte of it unpacks to far more than an archive may hold.
        let zeros = gzip(&vec![0; usize::try_from(TAR_BYTES).unwrap() + (8 << 20)]);
        assert!(zeros.len() < 1 << 20);
        assert!(read(&zeros).unwrap_err().to_string().contains("unpacks to more"));
        let body = vec![0; 1 << 20];
        let names: Vec<_> = (0..60).map(|number| format!("home/skills/{number}")).collect();
        let large: Vec<_> =
            names.iter().map(|name| (header(EntryType::Regular, name.as_bytes(), 1 << 20), &body[..])).collect();
        assert!(refusal(&large).contains("unpacks to more"));
        assert!(refusal(&large[..33]).contains("32 MiB"));
        let many: Vec<_> = (0..=MAX_DOCUMENTS + 1).map(|number| file(&format!("home/skills/{number}"))).collect();
        assert!(refusal(&many).contains("too many documents"));
        let folders: Vec<_> = (0..=MAX_ENTRIES)
            .map(|number| (header(EntryType::Directory, format!("home/skills/{number}/").as_bytes(), 0), &b""[..]))
            .collect();
        assert!(refusal(&folders).contains("too many entries"));
    }

    #[test]
    fn what_is_cut_or_damaged_or_more_than_an_archive_is_refused() {
        let packed = write(&contents()).unwrap();
        for end in 0..packed.len() {
            assert!(read(&packed[..end]).is_err(), "cut at {end}");
        }
        let mut behind = packed.clone();
        behind.push(0);
        assert!(read(&behind).unwrap_err().to_string().contains("behind the end"));
        let twice = [packed.clone(), packed.clone()].concat();
        assert!(read(&twice).unwrap_err().to_string().contains("behind the end"));
        let mut tar = tar(&[file("home/SOUL.md")]);
        tar.extend_from_slice(&[7; 512]);
        assert!(read(&gzip(&tar)).unwrap_err().to_string().contains("behind the end"));
        assert!(matches!(read(b"PK\x03\x04"), Err(Refused::Damaged { .. })));
        assert!(matches!(read(&gzip(b"")), Err(Refused::Whole(_))));
    }

    proptest! {
        #[test]
        fn damage_never_gets_a_name_past_the_grammar(place in 0_usize..4096, bytes in prop::collection::vec(any::<u8>(), 1..64)) {
            let mut tar = tar(&[file("agent.yaml"), file("home/SOUL.md"), file("home/skills/a/b")]);
            let place = place.min(tar.len() - bytes.len());
            tar[place..place + bytes.len()].copy_from_slice(&bytes);
            if let Ok(read) = read(&gzip(&tar)) {
                for path in read.documents.keys() {
                    prop_assert!(DocumentPath::parse(path).is_some());
                }
            }
        }
    }
}
