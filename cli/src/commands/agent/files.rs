//! `agent files` and `agent edit`: the documents of a home. Every change is one call; the control plane judges what is stored.
//!
//! Always true: an edit is stored only over the version that it began from; a text that was written and not stored stays in a file
//! that the error names.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use futures_util::stream;
use hermes_home::admission::MAX_DOCUMENT_BYTES;
use hermes_proto::CHUNK_BYTES;
use hermes_proto::v1::home_service_client::HomeServiceClient;
use hermes_proto::v1::put_document_request::Part;
use hermes_proto::v1::{self, DocumentRevision, PutHeader};
use serde::Serialize;
use tonic::Code;

use crate::args::{EditArgs, FilesArgs, FilesCommand};
use crate::commands::{Invocation, LINES, all_pages, input, required};
use crate::connect::{ANSWER_BYTES, Connection, Transport};
use crate::error::{ExitStatus, Lines, Usage, status_text};
use crate::output::{Grid, Paint, View, or_dash, plain, plain_lines, time};

/// Runs one of them.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn run(args: FilesArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let agent = args.id;
    match args.command {
        None => {
            let documents = all_pages(LINES, args.limit.limit, |page| {
                let (connection, mut client) = (&connection, client(&connection));
                let request = v1::ListDocumentsRequest { agent: agent.clone(), page: Some(page) };
                async move {
                    let answer = connection.answer(client.list_documents(request)).await?;
                    Ok((answer.documents, answer.next_page_token))
                }
            })
            .await?;
            inv.printer.show(&DocumentList(documents.into_iter().map(DocumentView::from_proto).collect()))?;
        }
        Some(FilesCommand::Show { path, version }) => {
            let (revision, body) = document(&connection, &agent, &path, version).await?;
            if revision.deleted {
                bail!(
                    "{path} was removed in version {}; `hermesctl agent files {agent} history {path}` shows what it was",
                    revision.version
                );
            }
            let text = String::from_utf8(body.clone()).ok();
            inv.printer.show_text(&ContentView { document: DocumentView::from_proto(revision), text }, &body)?;
        }
        Some(FilesCommand::History { path, limit }) => {
            let versions = all_pages(LINES, limit.limit, |page| {
                let (connection, mut client) = (&connection, client(&connection));
                let (agent, path) = (agent.clone(), path.clone());
                let request = v1::ListDocumentVersionsRequest { agent, path, page: Some(page) };
                async move {
                    let answer = connection.answer(client.list_document_versions(request)).await?;
                    Ok((answer.versions, answer.next_page_token))
                }
            })
            .await?;
            inv.printer.show(&VersionList(versions.into_iter().map(DocumentView::from_proto).collect()))?;
        }
        Some(FilesCommand::Rollback { path, to }) => {
            let request = v1::RollbackDocumentRequest { agent, path, version: to };
            let answer = connection.answer(client(&connection).rollback_document(request)).await?;
            stored(answer.document, inv)?;
        }
        Some(FilesCommand::Rm { path }) => {
            let header = PutHeader { agent, path, base_version: None, deleted: true };
            let answer = put(&connection, header, Vec::new()).await?;
            stored(answer.document, inv)?;
        }
    }
    Ok(ExitStatus::Done)
}

/// Writes the next version of a document.
///
/// # Errors
/// What the control plane answered, or how the editor ended. A text that was edited is kept in a file.
pub(crate) async fn edit(args: EditArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let EditArgs { id: agent, path, from, expected_version } = args;
    if let Some(file) = from {
        let body = input::bytes(&file, u64::try_from(MAX_DOCUMENT_BYTES)?)?;
        let connection = inv.connect().await?;
        let base_version = expected_version;
        let header = PutHeader { agent, path, base_version, deleted: false };
        let answer = put(&connection, header, body).await?;
        let document = required(answer.document, "the document")?;
        if !answer.stored {
            return Err(Lines(vec![changed_meanwhile(&document, expected_version.unwrap_or_default())]).into());
        }
        stored(Some(document), inv)?;
        return Ok(ExitStatus::Done);
    }
    let Some(editor) = inv.env.editor.clone() else {
        return Err(Usage("there is no editor: set VISUAL or EDITOR, or give the text with --from FILE".into()).into());
    };
    let connection = inv.connect().await?;
    let (base, body) = beginning(&connection, &agent, &path).await?;
    let Ok(text) = String::from_utf8(body) else {
        bail!("{path} is not text; write it with `hermesctl agent edit {agent} {path} --from FILE`");
    };
    let suffix = if Path::new(&path).extension() == Some(OsStr::new("md")) { ".md" } else { "" };
    let mut file = tempfile::Builder::new().prefix("hermes-edit-").suffix(suffix).tempfile()?;
    file.write_all(text.as_bytes()).context("write the text for the editor")?;
    file.flush()?;
    open(&editor, file.path())?;
    // An editor may put another file in its place, so it is opened by name.
    let edited = input::bytes(file.path(), u64::try_from(MAX_DOCUMENT_BYTES)?);
    let edited = match edited {
        Ok(edited) => edited,
        Err(error) => return Err(kept(file, vec![format!("error: {error:#}")], &agent, &path)?),
    };
    if edited == text.as_bytes() {
        inv.printer.note("the text is as it was; nothing was stored");
        return Ok(ExitStatus::Done);
    }
    // Nobody waits in an editor with a connection open for long: it is made anew.
    let connection = inv.connect().await?;
    let (name, place) = (agent.clone(), path.clone());
    let header = PutHeader { agent, path, base_version: Some(base), deleted: false };
    let said = match put(&connection, header, edited).await {
        Ok(v1::PutDocumentResponse { stored: true, document }) => {
            stored(document, inv)?;
            return Ok(ExitStatus::Done);
        }
        Ok(v1::PutDocumentResponse { stored: false, document }) => {
            changed_meanwhile(&required(document, "the document")?, base)
        }
        Err(error) => match error.downcast_ref::<tonic::Status>() {
            Some(status) => status_text(status),
            None => format!("error: {error:#}"),
        },
    };
    Err(kept(file, vec![said], &name, &place)?)
}

/// The version and text that an edit begins from.
async fn beginning(connection: &Connection, agent: &str, path: &str) -> anyhow::Result<(u64, Vec<u8>)> {
    match document(connection, agent, path, None).await {
        Ok((revision, body)) => Ok((revision.version, body)),
        Err(error) => match error.downcast_ref::<tonic::Status>() {
            Some(status) if status.code() == Code::NotFound => {
                // That there is no such agent is said before somebody writes for it.
                let page = Some(v1::PageRequest { page_size: 1, page_token: String::new() });
                let request = v1::ListDocumentsRequest { agent: agent.to_owned(), page };
                connection.answer(client(connection).list_documents(request)).await?;
                Ok((0, Vec::new()))
            }
            _ => Err(error),
        },
    }
}

/// Waits for the editor, a command for the shell as its variables hold it.
fn open(editor: &OsStr, file: &Path) -> anyhow::Result<()> {
    let mut line = editor.to_owned();
    line.push(" \"$1\"");
    let status =
        Command::new("sh").arg("-c").arg(line).arg("hermesctl").arg(file).status().context("start the editor")?;
    if status.success() { Ok(()) } else { bail!("the editor ended with {status}; nothing was stored") }
}

/// The refusal, with where the text lies now.
fn kept(
    file: tempfile::NamedTempFile,
    mut lines: Vec<String>,
    agent: &str,
    path: &str,
) -> anyhow::Result<anyhow::Error> {
    let place = file.into_temp_path().keep().context("keep the edited text")?;
    lines.push(format!(
        "nothing was stored; the edited text is in {0}: look at `hermesctl agent files {agent} show {path}`, then store it with \
         `hermesctl agent edit {agent} {path} --from {0}`",
        place.display()
    ));
    Ok(Lines(lines).into())
}

fn changed_meanwhile(now: &DocumentRevision, base: u64) -> String {
    let by = if now.written_by.is_empty() { "somebody" } else { &now.written_by };
    let (path, version, at) = (&now.path, now.version, time(Some(now.written_at_ms)));
    let did = if now.deleted { "removed" } else { "changed" };
    format!("error: {path} is at version {version} by now, not {base}: {by} {did} it at {at}")
}

pub(super) fn client(connection: &Connection) -> HomeServiceClient<Transport> {
    HomeServiceClient::new(connection.transport()).max_decoding_message_size(ANSWER_BYTES)
}

async fn document(
    connection: &Connection,
    agent: &str,
    path: &str,
    version: Option<u64>,
) -> anyhow::Result<(DocumentRevision, Vec<u8>)> {
    use v1::document_part::Part;
    let request = v1::GetDocumentRequest { agent: agent.to_owned(), path: path.to_owned(), version };
    let mut client = client(connection);
    let (revision, body) = connection
        .within(async {
            let mut parts = client.get_document(request).await?.into_inner();
            let (mut revision, mut body) = (None, Vec::new());
            while let Some(part) = parts.message().await? {
                match part.part {
                    Some(Part::Revision(is)) => revision = Some(is),
                    Some(Part::Body(bytes)) => body.extend_from_slice(&bytes),
                    None => {}
                }
            }
            Ok((revision, body))
        })
        .await?;
    Ok((required(revision, "the document")?, body))
}

async fn put(connection: &Connection, header: PutHeader, body: Vec<u8>) -> anyhow::Result<v1::PutDocumentResponse> {
    let parts = std::iter::once(Part::Header(header))
        .chain(body.chunks(CHUNK_BYTES).map(|part| Part::Body(part.to_vec())))
        .map(|part| v1::PutDocumentRequest { part: Some(part) });
    connection.answer(client(connection).put_document(stream::iter(parts.collect::<Vec<_>>()))).await
}

fn stored(document: Option<DocumentRevision>, inv: &mut Invocation) -> anyhow::Result<()> {
    inv.printer.show(&StoredView(DocumentView::from_proto(required(document, "the document")?)))
}

/// A version of a document.
#[derive(Serialize)]
struct DocumentView {
    path: String,
    version: u64,
    deleted: bool,
    size: u64,
    changed_at_ms: i64,
    by: String,
}

impl DocumentView {
    fn from_proto(revision: DocumentRevision) -> Self {
        Self {
            path: revision.path,
            version: revision.version,
            deleted: revision.deleted,
            size: revision.size,
            changed_at_ms: revision.written_at_ms,
            by: revision.written_by,
        }
    }
}

/// A document with its content; without a text it is not UTF-8.
#[derive(Serialize)]
struct ContentView {
    #[serde(flatten)]
    document: DocumentView,
    text: Option<String>,
}

impl View for ContentView {
    fn table(&self, _paint: Paint) -> String {
        match &self.text {
            Some(text) => plain_lines(text).trim_end_matches('\n').to_owned(),
            None => format!("{} holds {} bytes that are not text", plain(&self.document.path), self.document.size),
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct DocumentList(Vec<DocumentView>);

impl View for DocumentList {
    fn table(&self, paint: Paint) -> String {
        let mut grid = Grid::new(paint, &["PATH", "VERSION", "SIZE", "CHANGED", "BY"]).right(&[1, 2]);
        for one in &self.0 {
            let (version, size) = (one.version.to_string(), one.size.to_string());
            grid.row([one.path.clone(), version, size, time(Some(one.changed_at_ms)), or_dash(Some(&one.by))]);
        }
        grid.finish("the home has no document")
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct VersionList(Vec<DocumentView>);

impl View for VersionList {
    fn table(&self, paint: Paint) -> String {
        let mut grid = Grid::new(paint, &["VERSION", "SIZE", "CHANGED", "BY"]).right(&[0, 1]);
        for one in &self.0 {
            let size = if one.deleted { "removed".to_owned() } else { one.size.to_string() };
            grid.row([one.version.to_string(), size, time(Some(one.changed_at_ms)), or_dash(Some(&one.by))]);
        }
        grid.finish("no version is kept")
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct StoredView(DocumentView);

impl View for StoredView {
    fn table(&self, _paint: Paint) -> String {
        let DocumentView { path, version, deleted, size, .. } = &self.0;
        let path = plain(path);
        if *deleted {
            format!("{path} is removed, which is version {version}")
        } else {
            format!("{path} is at version {version}, {size} bytes; turns that start from now on see it")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    fn revision(path: &str, version: u64, deleted: bool) -> DocumentRevision {
        let written_by = if version == 1 { String::new() } else { format!("turn t7.{version}") };
        let size = if deleted { 0 } else { 20 + version };
        DocumentRevision { path: path.into(), version, deleted, size, written_at_ms: 1_700_000_000_000, written_by }
    }

    fn views(revisions: &[DocumentRevision]) -> Vec<DocumentView> {
        revisions.iter().cloned().map(DocumentView::from_proto).collect()
    }

    #[test]
    fn documents_and_their_versions_are_listed() {
        let list = DocumentList(views(&[revision("SOUL.md", 1, false), revision("skills/a\u{1b}[2J/b.md", 3, false)]));
        insta::assert_snapshot!("files_table", render(&list, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("files_json", render(&list, Format::Json, Paint::Off).unwrap());
        let versions = VersionList(views(&[revision("SOUL.md", 2, true), revision("SOUL.md", 1, false)]));
        insta::assert_snapshot!("files_history_table", render(&versions, Format::Table, Paint::Off).unwrap());
    }

    #[test]
    fn what_was_changed_meanwhile_is_said_with_who_did_it() {
        let said = changed_meanwhile(&revision("SOUL.md", 5, false), 4);
        assert!(said.starts_with("error: SOUL.md is at version 5 by now, not 4: turn t7.5 changed it at "), "{said}");
    }

    #[test]
    fn an_editor_is_a_command_with_arguments_and_its_failure_is_ours() {
        let file = tempfile::NamedTempFile::new().unwrap();
        open(OsStr::new("printf %s edited >"), file.path()).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"edited");
        let error = open(OsStr::new("false"), file.path()).unwrap_err().to_string();
        assert!(error.contains("nothing was stored"), "{error}");
    }
}
