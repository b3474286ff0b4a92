//! The documents of an agent's home on their way to its worker: the manifest, then those that it lacks.

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hermes_proto::{CHUNK_BYTES, v1};
use tonic::Status;

use super::convert::{store_status, unsigned};
use crate::store::{HomeDocumentInfo, Store};

/// What a worker that has these is sent.
pub(super) async fn documents(
    store: Store,
    agent_no: i32,
    have: Vec<v1::DocumentVersion>,
) -> Result<BoxStream<'static, Result<v1::HomeChunk, Status>>, Status> {
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
    let bodies = stream::iter(wanted).then(move |document| {
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
        stream::iter(chunks)
    });
    Ok(stream::iter(manifests.into_iter().map(Ok)).chain(bodies).boxed())
}

pub(super) fn document_to(info: &HomeDocumentInfo) -> v1::DocumentVersion {
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
