//! `apply`, `diff` and `export`: the document as a whole. Called by people and by GitOps scripts. The text travels in
//! chunks both ways and is judged by the control plane. Always true: faults go to stderr with file, line and path, and
//! then stdout stays empty.

use anyhow::Context as _;
use futures_util::stream;
use hermes_proto::CHUNK_BYTES;
use hermes_proto::v1::system_service_client::SystemServiceClient;
use hermes_proto::v1::{self, ApplyRequest, ChangeKind, DiffRequest, ExportRequest};
use serde::Serialize;

use super::{Invocation, input, place, unknown, warning_text};
use crate::args::{DocumentArgs, Format};
use crate::connect::{ANSWER_BYTES, Connection, Transport};
use crate::error::{ExitStatus, Lines};
use crate::output::{Paint, View, plain};

/// Merges a document.
///
/// # Errors
/// The faults of the document, or what the control plane answered.
pub(crate) async fn apply(args: &DocumentArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let text = input::text(&args.file, input::DOCUMENT_BYTES)?;
    let connection = inv.connect().await?;
    let mut client = client(&connection);
    let prune = args.prune;
    let parts = chunks(&text).into_iter().map(move |text| ApplyRequest { text, prune });
    let answer = connection.answer(client.apply(stream::iter(parts.collect::<Vec<_>>()))).await?;
    let warnings = judged(args, &answer.faults, &answer.warnings, inv)?;
    inv.printer.show(&ChangesView::from_proto(answer.changes, warnings, Some(answer.version))?)?;
    Ok(ExitStatus::Done)
}

/// Shows what `apply` would do.
///
/// # Errors
/// The faults of the document, or what the control plane answered.
pub(crate) async fn diff(args: &DocumentArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let text = input::text(&args.file, input::DOCUMENT_BYTES)?;
    let connection = inv.connect().await?;
    let mut client = client(&connection);
    let prune = args.prune;
    let parts = chunks(&text).into_iter().map(move |text| DiffRequest { text, prune });
    let answer = connection.answer(client.diff(stream::iter(parts.collect::<Vec<_>>()))).await?;
    let warnings = judged(args, &answer.faults, &answer.warnings, inv)?;
    let same = answer.changes.is_empty();
    inv.printer.show(&ChangesView::from_proto(answer.changes, warnings, None)?)?;
    Ok(if same { ExitStatus::Done } else { ExitStatus::Failed })
}

/// Prints the stored document: as YAML, unless JSON is asked for.
///
/// # Errors
/// What the control plane answered; then nothing is printed.
pub(crate) async fn export(inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let mut client = client(&connection);
    let text = connection
        .within(async {
            let mut chunks = client.export(ExportRequest {}).await?.into_inner();
            let mut text = String::new();
            while let Some(chunk) = chunks.message().await? {
                text.push_str(&chunk.text);
            }
            Ok(text)
        })
        .await?;
    if inv.printer.format() == Format::Json {
        let document: serde_yaml::Value = serde_yaml::from_str(&text).context("read the exported document")?;
        let json = format!("{}\n", serde_json::to_string_pretty(&document)?);
        inv.printer.bytes(json.as_bytes())?;
    } else {
        inv.printer.bytes(text.as_bytes())?;
    }
    Ok(ExitStatus::Done)
}

fn client(connection: &Connection) -> SystemServiceClient<Transport> {
    SystemServiceClient::new(connection.transport()).max_decoding_message_size(ANSWER_BYTES)
}

/// Text in parts that fit a message; at least one, since the options travel in it.
fn chunks(text: &str) -> Vec<String> {
    let mut parts = Vec::with_capacity(text.len() / CHUNK_BYTES + 1);
    let mut rest = text;
    while rest.len() > CHUNK_BYTES {
        let (part, after) = rest.split_at(rest.floor_char_boundary(CHUNK_BYTES));
        parts.push(part.to_owned());
        rest = after;
    }
    if !rest.is_empty() || parts.is_empty() {
        parts.push(rest.to_owned());
    }
    parts
}

/// Faults are an error; warnings are told and handed back.
fn judged(
    args: &DocumentArgs,
    faults: &[v1::Fault],
    warnings: &[v1::Warning],
    inv: &mut Invocation,
) -> anyhow::Result<Vec<String>> {
    let name = input::name(&args.file);
    let warnings: Vec<String> = warnings.iter().map(|warning| warning_text(Some(&name), warning)).collect();
    warnings.iter().for_each(|warning| inv.printer.warning(warning));
    if faults.is_empty() {
        return Ok(warnings);
    }
    let mut lines: Vec<String> =
        faults.iter().map(|fault| place(Some(&name), fault.line, &fault.path, &fault.message)).collect();
    lines.push(match faults.len() {
        1 => "error: 1 fault; nothing was changed".to_owned(),
        many => format!("error: {many} faults; nothing was changed"),
    });
    Err(Lines(lines).into())
}

#[derive(Serialize)]
struct ChangesView {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    changes: Vec<ChangeView>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct ChangeView {
    kind: &'static str,
    path: String,
    before: String,
    after: String,
}

impl ChangesView {
    fn from_proto(changes: Vec<v1::Change>, warnings: Vec<String>, version: Option<u64>) -> anyhow::Result<Self> {
        let changes = changes.into_iter().map(ChangeView::from_proto).collect::<anyhow::Result<_>>()?;
        Ok(Self { version, changes, warnings })
    }
}

impl ChangeView {
    fn from_proto(change: v1::Change) -> anyhow::Result<Self> {
        let kind = match change.kind() {
            ChangeKind::Add => "add",
            ChangeKind::Change => "change",
            ChangeKind::Remove => "remove",
            ChangeKind::Unspecified => return Err(unknown("kind of change", change.kind)),
        };
        Ok(Self { kind, path: change.path, before: change.before, after: change.after })
    }

    fn line(&self) -> String {
        let (path, before, after) = (plain(&self.path), plain(&self.before), plain(&self.after));
        match self.kind {
            "add" => format!("+ {path}: {after}"),
            "remove" => format!("- {path}: {before}"),
            _ => format!("~ {path}: {before} -> {after}"),
        }
    }
}

impl View for ChangesView {
    fn table(&self, _paint: Paint) -> String {
        let mut lines: Vec<String> = self.changes.iter().map(ChangeView::line).collect();
        match (self.version, lines.len()) {
            (Some(version), 0) => lines.push(format!("no change; the document stays at version {version}")),
            (Some(version), 1) => lines.push(format!("1 change; the document is at version {version}")),
            (Some(version), many) => lines.push(format!("{many} changes; the document is at version {version}")),
            (None, 0) => lines.push("no difference".to_owned()),
            (None, _) => {}
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::render;

    #[test]
    fn a_document_travels_in_parts_that_never_split_a_character() {
        assert_eq!(chunks(""), [""]);
        assert_eq!(chunks("a: 1\n"), ["a: 1\n"]);
        let text = "é".repeat(CHUNK_BYTES) + "x";
        let parts = chunks(&text);
        assert_eq!(parts.concat(), text);
        assert!(parts.len() == 3 && parts.iter().all(|part| part.len() <= CHUNK_BYTES), "{}", parts.len());
        let odd = format!("x{text}");
        assert_eq!(chunks(&odd).concat(), odd);
        assert!(chunks(&odd).iter().all(|part| part.len() <= CHUNK_BYTES));
        assert_eq!(chunks(&"a".repeat(CHUNK_BYTES)).len(), 1);
    }

    #[test]
    fn changes_are_listed_one_a_line() {
        let change = |kind: ChangeKind, before: &str, after: &str| v1::Change {
            kind: kind.into(),
            path: "agents.coder.model".into(),
            before: before.into(),
            after: after.into(),
        };
        let changes = vec![
            change(ChangeKind::Add, "", "builtin/echo"),
            change(ChangeKind::Change, "a", "b\nc"),
            change(ChangeKind::Remove, "b", ""),
        ];
        let view =
            ChangesView::from_proto(changes, vec!["h.yaml:3: routes[1]: can never win".into()], Some(8)).unwrap();
        insta::assert_snapshot!("apply_table", render(&view, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("apply_json", render(&view, Format::Json, Paint::Off).unwrap());
        let same = ChangesView::from_proto(vec![], vec![], None).unwrap();
        insta::assert_snapshot!(render(&same, Format::Table, Paint::Off).unwrap(), @"no difference");
        insta::assert_snapshot!(render(&same, Format::Json, Paint::Off).unwrap(), @r#"
        {
          "changes": [],
          "warnings": []
        }
        "#);
        assert!(ChangesView::from_proto(vec![v1::Change::default()], vec![], None).is_err());
    }
}
