//! Home documents: keeps SOUL.md, memories/*.md and skills/** equal to the versions in the control plane.
//!
//! Called after each registration and before each turn. Owns the ledger of what both sides last agreed on. Always true:
//! nothing is written or read outside the home, whatever path either side names; every upload names the version it
//! started from; when both sides changed a document the control plane's version wins and the local text stays beside it
//! as `<file>.conflict-<n>`. Between changes it looks at file stamps only, at most every 200 ms. It does not know what
//! the documents mean.

mod files;
mod ledger;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hermes_home::DocumentPath;
use hermes_home::memory::Target;
use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_proto::v1::{
    DocumentVersion, FetchHomeRequest, PushDocumentRequest, PushDocumentResponse, PushHeader, home_chunk,
    push_document_request,
};
use tokio::time::Instant;
use tonic::transport::Channel;

use ledger::{Entry, Ledger, digest};

/// How old a look at the files may be.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Fetches and pushes of one sync, at most: conflicts end after a few rounds, or wait for the next turn.
const ROUNDS: usize = 4;

/// Why documents are not in step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The home is another agent's.
    #[error("home {} belongs to agent {owner}; give {agent} another --home, or empty this one", home.display())]
    OtherAgent {
        /// The home.
        home: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who came.
        agent: String,
    },
    /// A file cannot be read or written.
    #[error("cannot sync the home's documents; check that the home is writable")]
    Io(#[from] io::Error),
    /// The control plane did not answer, or refused.
    #[error("the control plane did not sync the home's documents")]
    Call(#[from] tonic::Status),
}

/// A local change that the control plane has not seen.
struct Edit {
    path: DocumentPath,
    /// `None`: the file is gone.
    body: Option<Vec<u8>>,
    sha256: String,
}

/// What one look at the files found.
#[derive(Default)]
struct Look {
    edits: Vec<Edit>,
    /// Files equal to the ledger, with their present stamp.
    unchanged: Vec<(DocumentPath, files::Stamp)>,
}

/// Counts changes of documents, from either side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generation {
    /// Of those that a running session follows: who the agent is, and its skills.
    pub followed: u64,
    /// Of its memories, which a session sees as they were when it began.
    pub memories: u64,
}

impl Generation {
    fn count(&mut self, path: &DocumentPath) {
        if path.as_str() == Target::Memory.path() || path.as_str() == Target::User.path() {
            self.memories += 1;
        } else {
            self.followed += 1;
        }
    }
}

/// What everyone may read without waiting for a sync.
#[derive(Debug, Default)]
struct View {
    home_version: u64,
    generation: Generation,
    looked: Option<Instant>,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    /// Fetched at least once by this process.
    fetched: bool,
    /// Edits the control plane refused for good, by path: not offered again until they change.
    refused: HashMap<String, String>,
}

/// The documents of one home.
pub struct Documents {
    home: PathBuf,
    view: Mutex<View>,
    #[expect(clippy::disallowed_types, reason = "one sync at a time, and a sync waits on the network")]
    state: tokio::sync::Mutex<State>,
}

impl Documents {
    /// Takes over a home for `agent` and notes whose it is.
    ///
    /// # Errors
    /// [`Error::OtherAgent`] when another agent's worker has used it, [`Error::Io`].
    pub fn open(home: &Path, agent: &str) -> Result<Self, Error> {
        let mut ledger = Ledger::read(home)?;
        if ledger.agent.is_empty() {
            agent.clone_into(&mut ledger.agent);
            ledger.write(home)?;
        } else if ledger.agent != agent {
            return Err(Error::OtherAgent { home: home.to_owned(), owner: ledger.agent, agent: agent.to_owned() });
        }
        let state = State { ledger, ..State::default() };
        Ok(Self { home: home.to_owned(), view: Mutex::default(), state: state.into() })
    }

    /// The home they lie in.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// How often documents changed since this process began.
    pub fn generation(&self) -> Generation {
        self.view().generation
    }

    /// Brings both sides in step where the home version `wanted` is newer than ours or files changed; cheap otherwise.
    ///
    /// # Errors
    /// [`Error`]; what was synced before it stays, and the next call goes on from there.
    pub async fn refresh(&self, channel: &Channel, wanted: u64) -> Result<(), Error> {
        if self.is_fresh(wanted) {
            return Ok(());
        }
        let mut state = self.state.lock().await;
        // Somebody else's sync may have been what we need.
        if self.is_fresh(wanted) {
            return Ok(());
        }
        let before = (state.ledger.home_version, state.ledger.documents.len());
        let synced = self.sync(&mut state, channel, wanted).await;
        let mut view = self.view();
        if synced.is_ok() {
            view.looked = Some(Instant::now());
            view.home_version = state.ledger.home_version.max(wanted);
        }
        tracing::trace!(?before, home_version = view.home_version, generation = ?view.generation, "documents looked at");
        synced
    }

    /// Files are known to have changed: the next refresh looks at them, however soon it comes.
    pub fn look_again(&self) {
        self.view().looked = None;
    }

    fn is_fresh(&self, wanted: u64) -> bool {
        let view = self.view();
        view.home_version >= wanted && view.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY)
    }

    async fn sync(&self, state: &mut State, channel: &Channel, wanted: u64) -> Result<(), Error> {
        let mut fetch = !state.fetched || wanted > self.view().home_version;
        for _ in 0..ROUNDS {
            if fetch {
                fetch = self.fetch(state, channel).await?;
            }
            for edit in self.edits(state).await? {
                fetch |= self.push(state, channel, edit).await?;
            }
            if !fetch {
                return Ok(());
            }
        }
        tracing::warn!("documents keep changing on both sides; going on with what is here");
        Ok(())
    }

    /// Takes what the control plane has and we lack; answers whether it must be done again.
    async fn fetch(&self, state: &mut State, channel: &Channel) -> Result<bool, Error> {
        let have = state.ledger.documents.iter().map(|(path, entry)| DocumentVersion {
            path: path.clone(),
            version: entry.version,
            sha256: hex::decode(&entry.sha256).unwrap_or_default(),
            deleted: entry.deleted,
        });
        let request = FetchHomeRequest { have: have.collect() };
        let mut chunks = client(channel).fetch_home(request).await?.into_inner();
        let mut home_version = 0;
        let mut open: Option<(DocumentVersion, Vec<u8>)> = None;
        while let Some(chunk) = chunks.message().await? {
            match chunk.chunk {
                Some(home_chunk::Chunk::Manifest(manifest)) => {
                    home_version = manifest.home_version;
                    for gone in manifest.documents.into_iter().filter(|document| document.deleted) {
                        self.apply(state, gone, Vec::new())?;
                    }
                }
                Some(home_chunk::Chunk::Document(next)) => {
                    if let Some((document, body)) = open.replace((next, Vec::new())) {
                        self.apply(state, document, body)?;
                    }
                }
                Some(home_chunk::Chunk::Body(bytes)) => {
                    let (_, body) = open.as_mut().ok_or_else(|| malformed("a body without its document"))?;
                    body.extend_from_slice(&bytes);
                    if u64::try_from(body.len()).is_ok_and(|size| size > files::MAX_DOCUMENT_BYTES) {
                        return Err(malformed("a document is larger than 1 MiB").into());
                    }
                }
                None => {}
            }
        }
        if let Some((document, body)) = open {
            self.apply(state, document, body)?;
        }
        let reset = home_version < state.ledger.home_version;
        if reset {
            // Another database than the one this home was last in step with: nothing agreed on holds any more.
            tracing::warn!(
                home_version,
                ours = state.ledger.home_version,
                "the control plane's home is older than ours"
            );
            state.ledger.documents.clear();
        }
        state.ledger.home_version = home_version;
        state.ledger.write(&self.home)?;
        state.fetched = true;
        Ok(reset)
    }

    /// Makes one document what the control plane says it is.
    fn apply(&self, state: &mut State, document: DocumentVersion, body: Vec<u8>) -> Result<(), Error> {
        let Some(path) = DocumentPath::parse(&document.path) else {
            tracing::warn!(path = ?document.path.chars().take(120).collect::<String>(), "a document outside the home's documents is refused");
            return Ok(());
        };
        let agreed = state.ledger.documents.get(path.as_str());
        if agreed.is_some_and(|entry| entry.version == document.version && entry.deleted == document.deleted) {
            // Nothing new: what the file says now is either that version or an edit that starts from it.
            return Ok(());
        }
        let sha256 = if document.deleted { String::new() } else { digest(&body) };
        if !document.deleted && !document.sha256.is_empty() && hex::encode(&document.sha256) != sha256 {
            return Err(malformed("a document's content does not match its digest").into());
        }
        let stamp = match self.replace(state, &path, (!document.deleted).then_some((&body, &sha256))) {
            Ok(stamp) => stamp,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tracing::warn!(%path, %error, "a document is refused");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let entry = Entry { version: document.version, sha256, deleted: document.deleted, stamp };
        state.ledger.documents.insert(path.to_string(), entry);
        Ok(())
    }

    /// Writes or removes the file, keeping a local edit aside.
    fn replace(
        &self,
        state: &State,
        path: &DocumentPath,
        new: Option<(&Vec<u8>, &String)>,
    ) -> io::Result<Option<files::Stamp>> {
        let local = files::read(&self.home, path)?;
        if let Some((bytes, stamp)) = &local {
            let ours = digest(bytes);
            if new.is_some_and(|(_, sha256)| *sha256 == ours) {
                return Ok(Some(*stamp));
            }
            let agreed = state.ledger.documents.get(path.as_str()).is_some_and(|entry| entry.sha256 == ours);
            if !agreed && !is_starter(path, bytes) {
                let copy = files::set_aside(&self.home, path, bytes)?;
                tracing::warn!(%path, copy = %copy.display(), "both sides changed a document; the local text is kept beside it");
            }
        }
        self.view().generation.count(path);
        match new {
            Some((body, _)) => files::write(&self.home, path, body).map(Some),
            None => files::remove(&self.home, path).map(|()| None),
        }
    }

    /// The files that differ from the ledger; unchanged ones are told by their stamp.
    async fn edits(&self, state: &mut State) -> Result<Vec<Edit>, Error> {
        let home = self.home.clone();
        // A copy, because a cancelled turn may drop this future while the look still runs.
        let entries = state.ledger.documents.clone();
        let looked = tokio::task::spawn_blocking(move || look(&home, &entries)).await;
        let Look { edits, unchanged } = looked.map_err(io::Error::other)??;
        for (path, stamp) in unchanged {
            if let Some(entry) = state.ledger.documents.get_mut(path.as_str()) {
                entry.stamp = Some(stamp);
            }
        }
        let refused = &state.refused;
        let fresh = edits.into_iter().filter(|edit| refused.get(edit.path.as_str()) != Some(&edit.sha256));
        Ok(fresh.collect())
    }

    /// Offers one edit; answers whether the control plane has something we must fetch.
    async fn push(&self, state: &mut State, channel: &Channel, edit: Edit) -> Result<bool, Error> {
        let Edit { path, body, sha256 } = edit;
        let known = state.ledger.documents.get(path.as_str());
        let base_version = known.map_or(0, |entry| entry.version);
        self.view().generation.count(&path);
        let answer = match push_document(channel, &path, base_version, body.clone()).await {
            Ok(answer) => answer,
            Err(status) if crate::connection::is_broken(&status) => return Err(status.into()),
            Err(status) => {
                tracing::warn!(%path, message = status.message(), "the control plane refuses a document; it stays local");
                state.refused.insert(path.to_string(), sha256);
                return Ok(false);
            }
        };
        if !answer.stored {
            tracing::info!(%path, base_version, version = answer.version, "a document was changed elsewhere meanwhile");
            if answer.version == 0 {
                // It is not there at all: offer it as new in the next round.
                state.ledger.documents.remove(path.as_str());
            } else if let Some(entry) = state.ledger.documents.get_mut(path.as_str()) {
                // Older than what the control plane has, so that it is sent.
                entry.version = entry.version.min(answer.version.saturating_sub(1));
            }
            return Ok(true);
        }
        let stamp = None;
        let deleted = body.is_none();
        let entry = Entry { version: answer.version, sha256, deleted, stamp };
        state.ledger.documents.insert(path.to_string(), entry);
        tracing::info!(%path, version = answer.version, "a local edit is stored");
        // A gap means that others changed documents between our fetch and this push.
        let gap = answer.home_version > state.ledger.home_version + 1;
        if !gap {
            state.ledger.home_version = answer.home_version;
        }
        state.ledger.write(&self.home)?;
        Ok(gap)
    }

    fn view(&self) -> std::sync::MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds edits (with content) and unchanged files (with their new stamp). Blocks.
fn look(home: &Path, entries: &std::collections::BTreeMap<String, Entry>) -> io::Result<Look> {
    let mut look = Look::default();
    let mut there = std::collections::HashSet::new();
    for (path, stamp) in files::list(home)? {
        let entry = entries.get(path.as_str());
        there.insert(path.to_string());
        if entry.is_some_and(|entry| entry.stamp == Some(stamp)) {
            continue;
        }
        let Some((body, stamp)) = files::read(home, &path)? else {
            continue;
        };
        let sha256 = digest(&body);
        if entry.is_some_and(|entry| !entry.deleted && entry.sha256 == sha256) {
            look.unchanged.push((path, stamp));
        } else if !is_starter(&path, &body) {
            look.edits.push(Edit { path, body: Some(body), sha256 });
        }
    }
    for (name, entry) in entries.iter().filter(|(name, entry)| !entry.deleted && !there.contains(*name)) {
        // Gone, and not merely hidden behind a symlink or grown too large.
        let missing = std::fs::symlink_metadata(home.join(name)).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        if missing
            && entry.version > 0
            && let Some(path) = DocumentPath::parse(name)
        {
            look.edits.push(Edit { path, body: None, sha256: String::new() });
        }
    }
    Ok(look)
}

/// The SOUL that every new home begins with is nobody's edit.
fn is_starter(path: &DocumentPath, body: &[u8]) -> bool {
    path.as_str() == "SOUL.md" && body == crate::home::STARTER_SOUL.as_bytes()
}

async fn push_document(
    channel: &Channel,
    path: &DocumentPath,
    base_version: u64,
    body: Option<Vec<u8>>,
) -> Result<PushDocumentResponse, tonic::Status> {
    let header = PushHeader { path: path.to_string(), base_version, deleted: body.is_none() };
    let body = body.unwrap_or_default();
    let bodies = body.chunks(hermes_proto::CHUNK_BYTES).map(|chunk| push_document_request::Part::Body(chunk.to_vec()));
    let parts: Vec<_> = std::iter::once(push_document_request::Part::Header(header))
        .chain(bodies)
        .map(|part| PushDocumentRequest { part: Some(part) })
        .collect();
    Ok(client(channel).push_document(tokio_stream::iter(parts)).await?.into_inner())
}

fn client(channel: &Channel) -> WorkerServiceClient<Channel> {
    WorkerServiceClient::new(channel.clone()).max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
}

fn malformed(what: &'static str) -> tonic::Status {
    tonic::Status::data_loss(what)
}
