//! What this home last agreed on with the control plane, kept in the home so that edits made while no worker ran are
//! still recognised as edits.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::files::Stamp;

const FILE: &str = ".hermes-documents.json";

/// SHA-256 of a document's bytes, in hex.
pub(super) fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// One document as last agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) version: u64,
    /// In hex; of a deleted document: empty.
    pub(super) sha256: String,
    #[serde(default)]
    pub(super) deleted: bool,
    /// The file's stamp when it was last seen equal to this entry; not kept over a restart.
    #[serde(skip)]
    pub(super) stamp: Option<Stamp>,
}

/// All documents as last agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    /// Whose home this is.
    pub(super) agent: String,
    pub(super) home_version: u64,
    pub(super) documents: BTreeMap<String, Entry>,
}

impl Ledger {
    /// Reads the ledger of a home; a new one when there is none, or none that can be understood (everything is compared
    /// with the control plane again then).
    pub(super) fn read(home: &Path) -> io::Result<Self> {
        match std::fs::read(home.join(FILE)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = FILE, %error, "the document ledger is unreadable and is made anew");
                Self::default()
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn write(&self, home: &Path) -> io::Result<()> {
        let new = home.join(format!("{FILE}.new"));
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, home.join(FILE))
    }
}
