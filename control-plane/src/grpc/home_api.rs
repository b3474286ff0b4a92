//! HomeService: the documents of agents' homes as operators read and write them.
//!
//! Always true: what is stored was admitted by `hermes_home::admission`; a change is one transaction, whole or not at all, under the
//! operator's name; this replica's workers are told of the new home version at once, those of others within a second.

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hermes_core::AgentId;
use hermes_core::config::{AgentSpec, agent_from_yaml, agent_to_yaml, check_spec};
use hermes_home::DocumentPath;
use hermes_home::admission::{MAX_BYTES, MAX_DOCUMENT_BYTES, MAX_DOCUMENTS, admit};
use hermes_proto::v1::home_service_server::{HomeService, HomeServiceServer};
use hermes_proto::{CHUNK_BYTES, v1};
use tonic::{Request, Response, Status, Streaming};

use super::agent_api::{by, unknown};
use super::convert::{self, agent_id, edit_status, signed, store_status, unsigned};
use super::status::{Reason, invalid, invalid_all, refuse};
use crate::registry::{Edit, EditError, Registry, Snapshot};
use crate::store::{HomeRevision, Imported};

/// Longest specification of an archive, in bytes.
const MAX_SPEC: usize = 256 << 10;

/// The service.
#[derive(Clone, Debug)]
pub struct HomeApi {
    registry: Registry,
}

impl HomeApi {
    /// As a tonic service.
    pub fn server(registry: Registry) -> HomeServiceServer<Self> {
        HomeServiceServer::new(Self { registry })
            .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(4 * hermes_proto::MAX_MESSAGE_BYTES)
    }

    /// The number of a registered agent.
    fn agent(&self, text: &str) -> Result<(AgentId, i32), Status> {
        let id = agent_id("agent", text)?;
        let entry = self.registry.current().agent(&id).map(|entry| entry.no);
        entry.map(|no| (id.clone(), no)).ok_or_else(|| unknown(&id))
    }

    async fn revision(&self, (id, no): (&AgentId, i32), path: &DocumentPath, version: Option<u64>) -> Found {
        let version = version.map(|version| signed("version", version)).transpose()?;
        let found = self.registry.store().home_revision(no, path.as_str(), version).await.map_err(store_status)?;
        found.ok_or_else(|| {
            let what = match version {
                Some(version) => format!("version {version} of {path} is not kept (any more)"),
                None => format!("there is no {path}"),
            };
            let remedy =
                format!("`hermesctl agent files {id}` lists what is there, `… history {path}` the kept versions");
            refuse(Reason::NotFound, format!("{what}; {remedy}"))
        })
    }

    /// Writes the next version; answers whether it was stored, and what is there now.
    async fn put(&self, agent: (&AgentId, i32), put: Put<'_>) -> Result<(bool, HomeRevision), Status> {
        let Put { path, base, body, by } = put;
        let store = self.registry.store();
        let stored = match body {
            Some(body) => admit(path, body).map_err(|unfit| invalid(path.as_str(), unfit.to_string()))?,
            None => Vec::new().into(),
        };
        if body.is_some() && store.home_revision(agent.1, path.as_str(), None).await.map_err(store_status)?.is_none() {
            let (_, there) = store.home_manifest(agent.1).await.map_err(store_status)?;
            if there.len() >= MAX_DOCUMENTS {
                let message = format!("{path}: the home has {MAX_DOCUMENTS} documents already; write over one of them");
                return Err(refuse(Reason::TooLarge, message));
            }
        }
        let outcome =
            store.home_push(agent.1, path.as_str(), base, &stored, body.is_none(), by).await.map_err(store_status)?;
        if outcome.stored {
            self.registry.home_moved(agent.1, outcome.home_version);
        }
        if outcome.version == 0 {
            // Made from a version of a home that was purged meanwhile.
            return Err(refuse(Reason::NotFound, format!("there is no {path} any more; look at it again")));
        }
        let (now, _) = self.revision(agent, path, Some(unsigned(outcome.version))).await?;
        Ok((outcome.stored, now))
    }

    /// Makes the agent with what was read, in one change of the registry.
    async fn create(&self, id: &AgentId, spec: &AgentSpec, import: &Import<'_>) -> Result<Vec<Imported>, Status> {
        let documents: Vec<_> =
            import.documents.iter().map(|(path, body)| (id.to_string(), path.clone(), body.clone())).collect();
        // Who comes back finds its home as it was.
        let left = match self.registry.current().removed(id.as_str()) {
            Some(no) => self.registry.store().home_manifest(no).await.map_err(store_status)?.1,
            None => Vec::new(),
        };
        let made = import.documents.iter().map(|(path, _)| {
            let there = left.iter().find(|document| document.path == *path);
            let before = there.filter(|document| !document.deleted).map_or(0, |document| document.version);
            Imported { path: path.clone(), before, version: there.map_or(0, |document| document.version) + 1 }
        });
        let made: Vec<_> = made.collect();
        let edit = |snapshot: &Snapshot, edit: &mut Edit| {
            if snapshot.agent(id).is_some() {
                return Err(EditError::Exists(format!(
                    "agent {id} is registered already; import without --create, or under another id"
                )));
            }
            let faults = check_spec(id, spec);
            if !faults.is_empty() {
                return Err(EditError::Faults(faults));
            }
            edit.document.agents.insert(id.clone(), spec.clone());
            edit.touch.push(id.to_string());
            edit.home_documents.clone_from(&documents);
            Ok(())
        };
        if import.dry {
            self.registry.edit_dry(edit).map_err(edit_status)?;
        } else {
            self.registry.edit(import.by, edit).await.map_err(edit_status)?;
        }
        Ok(made)
    }
}

type Found = Result<(HomeRevision, Vec<u8>), Status>;

/// A version that is to be written; without a body the document is deleted.
struct Put<'a> {
    path: &'a DocumentPath,
    base: Option<i64>,
    body: Option<&'a [u8]>,
    by: &'a str,
}

/// Documents that are to be stored together.
struct Import<'a> {
    documents: Vec<(String, Vec<u8>)>,
    by: &'a str,
    dry: bool,
}

#[tonic::async_trait]
impl HomeService for HomeApi {
    async fn list_documents(
        &self,
        request: Request<v1::ListDocumentsRequest>,
    ) -> Result<Response<v1::ListDocumentsResponse>, Status> {
        let request = request.into_inner();
        let (_, no) = self.agent(&request.agent)?;
        let (size, after) = convert::page(request.page)?;
        let rows = self.registry.store().home_files(no, &after, i64::from(size)).await.map_err(store_status)?;
        let next_page_token = match rows.last() {
            Some(last) if rows.len() == size as usize => last.path.clone(),
            _ => String::new(),
        };
        let documents = rows.into_iter().map(revision_to).collect();
        Ok(Response::new(v1::ListDocumentsResponse { documents, next_page_token }))
    }

    async fn list_document_versions(
        &self,
        request: Request<v1::ListDocumentVersionsRequest>,
    ) -> Result<Response<v1::ListDocumentVersionsResponse>, Status> {
        let request = request.into_inner();
        let (id, no) = self.agent(&request.agent)?;
        let path = document_path("path", &request.path)?;
        let (size, token) = convert::page(request.page)?;
        let before = convert::number_token(&token, i64::MAX)?;
        let store = self.registry.store();
        let rows = store.home_revisions(no, path.as_str(), before, i64::from(size)).await.map_err(store_status)?;
        if rows.is_empty() && token.is_empty() {
            return Err(self.revision((&id, no), &path, None).await.err().unwrap_or_else(|| unknown(&id)));
        }
        let next_page_token = match rows.last() {
            Some(last) if rows.len() == size as usize && last.version > 1 => last.version.to_string(),
            _ => String::new(),
        };
        let versions = rows.into_iter().map(revision_to).collect();
        Ok(Response::new(v1::ListDocumentVersionsResponse { versions, next_page_token }))
    }

    type GetDocumentStream = BoxStream<'static, Result<v1::DocumentPart, Status>>;

    async fn get_document(
        &self,
        request: Request<v1::GetDocumentRequest>,
    ) -> Result<Response<Self::GetDocumentStream>, Status> {
        use v1::document_part::Part;
        let request = request.into_inner();
        let (id, no) = self.agent(&request.agent)?;
        let path = document_path("path", &request.path)?;
        let (revision, body) = self.revision((&id, no), &path, request.version).await?;
        let parts: Vec<_> = std::iter::once(Part::Revision(revision_to(revision)))
            .chain(body.chunks(CHUNK_BYTES).map(|part| Part::Body(part.to_vec())))
            .map(|part| Ok(v1::DocumentPart { part: Some(part) }))
            .collect();
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn put_document(
        &self,
        request: Request<Streaming<v1::PutDocumentRequest>>,
    ) -> Result<Response<v1::PutDocumentResponse>, Status> {
        use v1::put_document_request::Part;
        let by = by(&request);
        let mut parts = request.into_inner();
        let Some(Part::Header(header)) = parts.message().await?.and_then(|part| part.part) else {
            return Err(invalid("part", "the first message must be the header"));
        };
        let (id, no) = self.agent(&header.agent)?;
        let path = document_path("header.path", &header.path)?;
        let base = header.base_version.map(|base| signed("header.base_version", base)).transpose()?;
        let mut body = Vec::new();
        while let Some(part) = parts.message().await? {
            let Some(Part::Body(bytes)) = part.part else {
                return Err(invalid("part", "only body chunks follow the header"));
            };
            extend(&mut body, &bytes, path.as_str())?;
        }
        if header.deleted && !body.is_empty() {
            return Err(invalid("header.deleted", "a document that is deleted has no body"));
        }
        if header.deleted && base.is_none() {
            let (there, _) = self.revision((&id, no), &path, None).await?;
            if there.deleted {
                return Err(refuse(Reason::NotFound, format!("{path} is deleted already")));
            }
        }
        let put = Put { path: &path, base, body: (!header.deleted).then_some(&body), by: &by };
        let (stored, now) = self.put((&id, no), put).await?;
        Ok(Response::new(v1::PutDocumentResponse { stored, document: Some(revision_to(now)) }))
    }

    async fn rollback_document(
        &self,
        request: Request<v1::RollbackDocumentRequest>,
    ) -> Result<Response<v1::RollbackDocumentResponse>, Status> {
        let by = by(&request);
        let request = request.into_inner();
        let (id, no) = self.agent(&request.agent)?;
        let path = document_path("path", &request.path)?;
        let (kept, body) = self.revision((&id, no), &path, Some(request.version)).await?;
        let put = Put { path: &path, base: None, body: (!kept.deleted).then_some(&body), by: &by };
        let (_, now) = self.put((&id, no), put).await?;
        Ok(Response::new(v1::RollbackDocumentResponse { document: Some(revision_to(now)) }))
    }

    type ExportHomeStream = BoxStream<'static, Result<v1::HomePart, Status>>;

    async fn export_home(
        &self,
        request: Request<v1::ExportHomeRequest>,
    ) -> Result<Response<Self::ExportHomeStream>, Status> {
        use v1::home_part::Part;
        let (id, no) = self.agent(&request.into_inner().agent)?;
        let snapshot = self.registry.current();
        let spec = snapshot.agent(&id).map(|entry| agent_to_yaml(&id, &entry.spec)).ok_or_else(|| unknown(&id))?;
        let most = i64::try_from(MAX_BYTES).unwrap_or(i64::MAX);
        let documents = self.registry.store().home_export(no, most).await.map_err(store_status)?;
        let documents = documents.filter(|all| all.len() <= MAX_DOCUMENTS).ok_or_else(|| {
            let message = format!(
                "the home of {id} holds more than an archive takes ({MAX_DOCUMENTS} documents, {MAX_BYTES} bytes); remove some \
                 with `hermesctl agent files {id} rm PATH`"
            );
            refuse(Reason::TooLarge, message)
        })?;
        let parts = documents.into_iter().flat_map(|(path, body)| {
            let body: Vec<_> = body.chunks(CHUNK_BYTES).map(|part| Part::Body(part.to_vec())).collect();
            std::iter::once(Part::Path(path)).chain(body)
        });
        let parts = std::iter::once(Part::Spec(spec)).chain(parts);
        Ok(Response::new(stream::iter(parts.map(|part| Ok(v1::HomePart { part: Some(part) }))).boxed()))
    }

    async fn import_home(
        &self,
        request: Request<Streaming<v1::ImportHomeRequest>>,
    ) -> Result<Response<v1::ImportHomeResponse>, Status> {
        use v1::import_home_request::Part;
        let by = by(&request);
        let mut parts = request.into_inner();
        let Some(Part::Header(header)) = parts.message().await?.and_then(|part| part.part) else {
            return Err(invalid("part", "the first message must be the header"));
        };
        let id = agent_id("header.agent", &header.agent)?;
        let mut documents: Vec<(String, Vec<u8>)> = Vec::new();
        let mut total = 0;
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(Part::Path(path)) if documents.len() == MAX_DOCUMENTS => {
                    let message = format!("{path}: there are more than {MAX_DOCUMENTS} documents; leave some out");
                    return Err(refuse(Reason::TooLarge, message));
                }
                Some(Part::Path(path)) => documents.push((path, Vec::new())),
                Some(Part::Body(bytes)) => {
                    let Some((path, body)) = documents.last_mut() else {
                        return Err(invalid("part", "a body follows its document's path"));
                    };
                    total += bytes.len();
                    if total > MAX_BYTES {
                        let message = format!("{path}: all together have more than {MAX_BYTES} bytes; leave some out");
                        return Err(refuse(Reason::TooLarge, message));
                    }
                    extend(body, &bytes, path)?;
                }
                _ => return Err(invalid("part", "paths follow the header, each with the chunks of its body")),
            }
        }
        let import = Import { documents: admitted(documents)?, by: &by, dry: header.dry_run };
        let created = header.spec.is_some();
        let done = match &header.spec {
            Some(spec) => self.create(&id, &spec_of(spec)?, &import).await?,
            None => {
                let (_, no) = self.agent(&header.agent)?;
                let store = self.registry.store();
                let how = (import.by, MAX_DOCUMENTS, import.dry);
                let (done, home_version) = store.home_import(no, &import.documents, how).await.map_err(store_status)?;
                if !import.dry {
                    self.registry.home_moved(no, home_version);
                }
                done
            }
        };
        let documents = done.into_iter().map(|one| v1::ImportedDocument {
            path: one.path,
            before: unsigned(one.before),
            version: unsigned(one.version),
        });
        Ok(Response::new(v1::ImportHomeResponse { created, documents: documents.collect() }))
    }
}

/// Each document as it is stored, or every one that cannot be.
fn admitted(documents: Vec<(String, Vec<u8>)>) -> Result<Vec<(String, Vec<u8>)>, Status> {
    let (mut stored, mut faults) = (Vec::with_capacity(documents.len()), Vec::new());
    let mut names = std::collections::HashSet::new();
    for (text, body) in documents {
        match DocumentPath::parse(&text) {
            Some(_) if !names.insert(text.to_lowercase()) => {
                faults.push((text, "it is there twice, on some systems at least; leave one out".to_owned()));
            }
            Some(path) => match admit(&path, &body) {
                Ok(body) => stored.push((text, body.into_owned())),
                Err(unfit) => faults.push((text, unfit.to_string())),
            },
            None => faults.push((text.chars().take(200).collect(), NO_DOCUMENT.to_owned())),
        }
    }
    if faults.is_empty() { Ok(stored) } else { Err(invalid_all(faults)) }
}

/// The specification of an archive; whose it was is no matter.
fn spec_of(yaml: &str) -> Result<AgentSpec, Status> {
    if yaml.len() > MAX_SPEC {
        return Err(refuse(Reason::TooLarge, format!("the specification is larger than {MAX_SPEC} bytes")));
    }
    agent_from_yaml(yaml).map(|(_, spec)| spec).map_err(|faults| {
        let place = |line: u32| if line == 0 { String::new() } else { format!("line {line}: ") };
        invalid_all(
            faults.into_iter().map(|fault| (fault.path, format!("{}{}", place(fault.line), fault.message))).collect(),
        )
    })
}

fn extend(body: &mut Vec<u8>, bytes: &[u8], path: &str) -> Result<(), Status> {
    if body.len() + bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(refuse(Reason::TooLarge, format!("{path} is larger than {MAX_DOCUMENT_BYTES} bytes")));
    }
    body.extend_from_slice(bytes);
    Ok(())
}

const NO_DOCUMENT: &str =
    "documents are SOUL.md, memories/<name>.md and files below skills/, none of them hidden; rename it or leave it out";

fn document_path(field: &str, text: &str) -> Result<DocumentPath, Status> {
    DocumentPath::parse(text).ok_or_else(|| invalid(field, NO_DOCUMENT))
}

fn revision_to(revision: HomeRevision) -> v1::DocumentRevision {
    v1::DocumentRevision {
        path: revision.path,
        version: unsigned(revision.version),
        deleted: revision.deleted,
        size: unsigned(revision.size),
        written_at_ms: revision.written_at.as_millisecond(),
        written_by: revision.written_by,
    }
}
