//! `agent export` and `agent import`: an agent as an archive, between control planes or over time.
//!
//! Always true: an archive is written whole or not at all, and over nothing; what is imported is one call that the control plane
//! carries out whole or not at all.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use futures_util::stream;
use hermes_proto::CHUNK_BYTES;
use hermes_proto::v1::{self, ImportHeader};
use serde::Serialize;

use super::archive::{self, Contents};
use super::files::client;
use crate::args::{ExportArgs, ImportArgs};
use crate::commands::{Invocation, input};
use crate::connect::Connection;
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View, plain};

/// Writes an archive of an agent.
///
/// # Errors
/// What the control plane answered, or a file that is there already or cannot be written.
pub(crate) async fn export(args: ExportArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let contents = fetch(&connection, &args.id).await?;
    let packed = archive::write(&contents)?;
    if input::is_stdin(&args.file) {
        inv.printer.bytes(&packed)?;
        return Ok(ExitStatus::Done);
    }
    save(&args.file, &packed)?;
    inv.printer.show(&ExportedView {
        agent: args.id,
        file: args.file.display().to_string(),
        documents: contents.documents.len(),
        bytes: packed.len(),
    })?;
    Ok(ExitStatus::Done)
}

/// Puts the documents of an archive into a home.
///
/// # Errors
/// What is wrong with the archive, by entry, or what the control plane answered; then nothing was changed.
pub(crate) async fn import(args: ImportArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let name = input::name(&args.file);
    let packed = input::bytes(&args.file, archive::FILE_BYTES)?;
    let contents = archive::read(&packed).with_context(|| format!("{name}: nothing was changed"))?;
    let spec = match contents.spec {
        _ if !args.create => None,
        Some(spec) => Some(spec),
        None => bail!(
            "{name}: there is no agent.yaml, so no agent can be made of it; add the agent, then import without --create"
        ),
    };
    let connection = inv.connect().await?;
    let answer = send(&connection, &args, spec, contents.documents).await?;
    let documents = answer.documents.into_iter().map(|one| ImportedView {
        change: match (one.before, one.version) {
            (before, version) if before == version => "same",
            (0, _) => "new",
            _ => "changed",
        },
        path: one.path,
        version: one.version,
    });
    inv.printer.show(&ImportView {
        agent: args.id,
        dry_run: args.dry_run,
        created: answer.created,
        documents: documents.collect(),
    })?;
    Ok(ExitStatus::Done)
}

async fn fetch(connection: &Connection, agent: &str) -> anyhow::Result<Contents> {
    use v1::home_part::Part;
    let mut client = client(connection);
    let request = v1::ExportHomeRequest { agent: agent.to_owned() };
    let contents = connection
        .within(async {
            let mut parts = client.export_home(request).await?.into_inner();
            let (mut contents, mut open) = (Contents::default(), None);
            while let Some(part) = parts.message().await? {
                match (part.part, &mut open) {
                    (Some(Part::Spec(spec)), _) => contents.spec = Some(spec),
                    (Some(Part::Path(path)), _) => {
                        contents.documents.insert(path.clone(), Vec::new());
                        open = Some(path);
                    }
                    (Some(Part::Body(bytes)), Some(path)) => {
                        contents.documents.entry(path.clone()).or_default().extend_from_slice(&bytes);
                    }
                    (Some(Part::Body(_)), None) | (None, _) => {}
                }
            }
            Ok(contents)
        })
        .await?;
    Ok(contents)
}

async fn send(
    connection: &Connection,
    args: &ImportArgs,
    spec: Option<String>,
    documents: impl IntoIterator<Item = (String, Vec<u8>)>,
) -> anyhow::Result<v1::ImportHomeResponse> {
    use v1::import_home_request::Part;
    let mut parts = vec![Part::Header(ImportHeader { agent: args.id.clone(), spec, dry_run: args.dry_run })];
    for (path, body) in documents {
        parts.push(Part::Path(path));
        parts.extend(body.chunks(CHUNK_BYTES).map(|part| Part::Body(part.to_vec())));
    }
    let parts = parts.into_iter().map(|part| v1::ImportHomeRequest { part: Some(part) });
    connection.answer(client(connection).import_home(stream::iter(parts.collect::<Vec<_>>()))).await
}

/// Writes a file that was not there, for its owner alone: memories are in it.
fn save(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let name = path.display();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(|| format!("write {name}"))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).with_context(|| format!("write {name}"))?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{name} is there already; name another file, or remove it first")
        }
        Err(error) => Err(error.error).with_context(|| format!("write {name}")),
    }
}

#[derive(Serialize)]
struct ExportedView {
    agent: String,
    file: String,
    documents: usize,
    bytes: usize,
}

impl View for ExportedView {
    fn table(&self, _paint: Paint) -> String {
        let Self { agent, file, documents, bytes } = self;
        format!("exported {}: {documents} documents, {bytes} bytes in {}", plain(agent), plain(file))
    }
}

#[derive(Serialize)]
struct ImportedView {
    path: String,
    change: &'static str,
    version: u64,
}

#[derive(Serialize)]
struct ImportView {
    agent: String,
    dry_run: bool,
    created: bool,
    documents: Vec<ImportedView>,
}

impl View for ImportView {
    fn table(&self, paint: Paint) -> String {
        let mut grid = Grid::new(paint, &["PATH", "CHANGE", "VERSION"]).right(&[2]);
        for one in &self.documents {
            grid.row([one.path.clone(), one.change.to_owned(), one.version.to_string()]);
        }
        let did = match (self.dry_run, self.created) {
            (false, false) => "imported into",
            (false, true) => "made, with these documents:",
            (true, false) => "nothing was changed; would be imported into",
            (true, true) => "nothing was changed; would be made, with these documents:",
        };
        format!("{did} {}\n{}", plain(&self.agent), grid.finish("the archive has no document"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    #[test]
    fn an_import_says_what_changed() {
        let one = |path: &str, change, version| ImportedView { path: path.to_owned(), change, version };
        let documents = vec![one("SOUL.md", "changed", 7), one("skills/a", "new", 1), one("skills/b", "same", 2)];
        let view = ImportView { agent: "coder".into(), dry_run: true, created: false, documents };
        insta::assert_snapshot!("import_table", render(&view, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("import_json", render(&view, Format::Json, Paint::Off).unwrap());
    }

    #[test]
    fn an_archive_is_written_over_nothing_and_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar.gz");
        save(&path, b"one").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(save(&path, b"two").unwrap_err().to_string().contains("is there already"));
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
