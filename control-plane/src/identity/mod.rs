//! Who is calling: the certificate authority for workers, the tokens for people and programs, and the [`Principal`] that
//! every handler reads.
//!
//! Called by the gRPC layers (a principal per request), the HTTP API (bearer tokens), the launcher and the composition
//! root (the authority, join tokens). Owns the grammar of tokens and certificates and the one-second memory of token
//! look-ups; the rows are the store's, behind [`TokenStore`]. Always true: a worker's identity comes from its certificate
//! only, no request field names the caller, and no secret is kept (tokens are stored as hashes). It deliberately decides
//! nothing about what a principal may do: that is the table in `grpc::layers`.

mod authority;
mod certificate;
mod lookup;
mod token;

use std::sync::Arc;

use hermes_core::AgentId;
use uuid::Uuid;

pub use authority::{Authority, MAX_WORKER_TTL, ServerCertificate, WorkerCertificate};
pub use certificate::{WorkerIdentity, worker_from_certificate};
pub use lookup::{NewToken, StoreError, Token, TokenStore, Tokens};
pub use token::{JoinToken, MintedToken, Role, TokenHash, mint, mint_join, parse_bearer, parse_join};

/// The wall clock as a parameter, so that tests decide what time it is. Only certificates are judged by it; tokens are
/// judged by the database's clock.
pub type Clock = Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;

/// Who made a request, as the listener proved it. Handlers read this and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// An operator token: everything on the operator listener.
    Operator {
        /// The token's row, for audit.
        token_id: Uuid,
    },
    /// A viewer token: what only reads.
    Viewer {
        /// The token's row, for audit.
        token_id: Uuid,
    },
    /// An API token: MessageService and the HTTP API, and with an agent that agent's jobs.
    Api {
        /// The token's row; replies are kept for it.
        token_id: Uuid,
        /// The one agent that it reaches; nothing: all of them, by messages alone.
        agent: Option<AgentId>,
    },
    /// A worker certificate.
    Worker {
        /// The one agent this worker serves.
        agent: AgentId,
        /// This worker process's own id, made when it joined.
        worker: Uuid,
        /// SHA-256 of the certificate's public key.
        spki_sha256: [u8; 32],
    },
    /// Nothing was shown.
    None,
}

impl Principal {
    /// The kind in one word, for spans, metrics and audit lines.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Operator { .. } => "operator",
            Self::Viewer { .. } => "viewer",
            Self::Api { .. } => "api",
            Self::Worker { .. } => "worker",
            Self::None => "none",
        }
    }

    /// Who shares with others what there is little of: a token, or an agent with all its workers. Each caller has a name of its own.
    pub fn caller(&self) -> String {
        match self {
            Self::Operator { token_id } | Self::Viewer { token_id } | Self::Api { token_id, .. } => {
                token_id.to_string()
            }
            Self::Worker { agent, .. } => format!("agent {agent}"),
            Self::None => self.kind().to_owned(),
        }
    }
}

/// What can be wrong with key material or a certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stored authority cannot be used.
    #[error("the stored certificate authority is not usable: {0}")]
    BadAuthority(&'static str),
    /// A name for the server certificate is no DNS name or address.
    #[error("{0:?} is not a DNS name or IP address for the worker listener")]
    BadName(String),
    /// A signing request is refused.
    #[error("the certificate signing request is refused: {0}")]
    BadRequest(&'static str),
    /// A presented certificate is refused.
    #[error("the certificate is refused: {0}")]
    BadCertificate(&'static str),
    /// The crypto library failed.
    #[error("cannot make a certificate")]
    Crypto(#[source] rcgen::Error),
}
