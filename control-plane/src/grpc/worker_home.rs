//! An agent's home documents, as its workers fetch and push them.
//!
//! Called by [`super::worker_api`]. Always true: a document is stored only in the place of the version that it was made from, and only
//! under a path that is a document's. Whose home it is the caller has made sure of.

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use hermes_home::DocumentPath;
use hermes_proto::{CHUNK_BYTES, v1};
use tonic::{Status, Streaming};

use super::convert::{signed, store_status, unsigned};
use super::status::{Reason, invalid, refuse};
use crate::store::{HomeDocumentInfo, PushOutcome, Store};

/// Largest home document, bytes.
const MAX_DOCUMENT: usize = 1 << 20;
/// Most documents of a home.
const MAX_DOCUMENTS: usize = 10_000;

/// The documents that differ from `have`: a manifest of all, then bodies.
pub(super) async fn fetch(
    store: &Store,
    agent_no: i32,
    have: Vec<v1::DocumentVersion>,
) -> Result<BoxStream<'static, Result<v1::HomeChunk, Status>>, Status> {
    let store = store.clone();
    let (home_version, documents) = store.home_manifest(agent_no).await.map_err(store_status)?;
    let wanted: Vec<HomeDocumentInfo> = documents
        .iter()
        .filter(|document| {
            let same =
                |mine: &&v1::DocumentVersion| mine.path == document.path && mine.version == unsigned(document.version);
            !document.deleted && !have.iter().any(|mine| same(&mine))
        })
        .cloned()
        .collect();
    let manifests = manifest_chunks(home_version, &documents);
    let bodies = futures_util::stream::iter(wanted).then(move |document| {
        let store = store.clone();
        async move { store.home_document(agent_no, &document.path).await.map_err(store_status) }
    });
    let bodies = bodies.flat_map(|found| {
        let chunks: Vec<Result<v1::HomeChunk, Status>> = match found {
            Ok(None) => Vec::new(),
            Ok(Some(document)) => {
                let head = v1::home_chunk::Chunk::Document(document_to(&document.info));
                let body = document.body.chunks(CHUNK_BYTES).map(|part| v1::home_chunk::Chunk::Body(part.to_vec()));
                std::iter::once(head).chain(body).map(|chunk| Ok(v1::HomeChunk { chunk: Some(chunk) })).collect()
            }
            Err(status) => vec![Err(status)],
        };
        futures_util::stream::iter(chunks)
    });
    Ok(futures_util::stream::iter(manifests.into_iter().map(Ok)).chain(bodies).boxed())
}

/// Stores the document that comes.
pub(super) async fn push(
    store: &Store,
    agent_no: i32,
    writer: &str,
    mut parts: Streaming<v1::PushDocumentRequest>,
) -> Result<PushOutcome, Status> {
    use v1::push_document_request::Part;
    let Some(Part::Header(header)) = parts.message().await?.and_then(|part| part.part) else {
        return Err(invalid("part", "the first message must be the header"));
    };
    check_path(&header.path)?;
    let mut body = Vec::new();
    while let Some(part) = parts.message().await? {
        let Some(Part::Body(bytes)) = part.part else {
            return Err(invalid("part", "only body chunks follow the header"));
        };
        if body.len() + bytes.len() > MAX_DOCUMENT {
            return Err(refuse(Reason::TooLarge, format!("{} is larger than {MAX_DOCUMENT} bytes", header.path)));
        }
        body.extend_from_slice(&bytes);
    }
    let base = signed("base_version", header.base_version)?;
    if base == 0 {
        let (_, documents) = store.home_manifest(agent_no).await.map_err(store_status)?;
        if documents.len() >= MAX_DOCUMENTS {
            return Err(refuse(Reason::TooLarge, format!("the home has {MAX_DOCUMENTS} documents already")));
        }
    }
    store.home_push(agent_no, &header.path, base, &body, header.deleted, writer).await.map_err(store_status)
}

fn document_to(info: &HomeDocumentInfo) -> v1::DocumentVersion {
    v1::DocumentVersion {
        path: info.path.clone(),
        version: unsigned(info.version),
        sha256: info.sha256.clone(),
        deleted: info.deleted,
    }
}

fn manifest_chunks(home_version: i64, documents: &[HomeDocumentInfo]) -> Vec<v1::HomeChunk> {
    let manifest = |documents: &[HomeDocumentInfo], more| v1::HomeChunk {
        chunk: Some(v1::home_chunk::Chunk::Manifest(v1::HomeManifest {
            home_version: unsigned(home_version),
            documents: documents.iter().map(document_to).collect(),
            more,
        })),
    };
    let mut pages = documents.chunks(500).peekable();
    if pages.peek().is_none() {
        return vec![manifest(&[], false)];
    }
    let mut chunks = Vec::new();
    while let Some(page) = pages.next() {
        chunks.push(manifest(page, pages.peek().is_some()));
    }
    chunks
}

/// A document's path.
fn check_path(path: &str) -> Result<(), Status> {
    let known = DocumentPath::parse(path).map(|_| ());
    known.ok_or_else(|| {
        invalid("header.path", "documents are SOUL.md, memories/<name>.md and files below skills/, none of them hidden")
    })
}
