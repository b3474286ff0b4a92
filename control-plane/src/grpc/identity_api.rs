//! IdentityService: Join and Renew for workers, the token calls for operators.
//!
//! Served on both listeners; the principal table decides which of its calls each listener answers. Always true: a
//! certificate names the agent of the join token, or of the certificate it replaces, and nothing a request says; a use of
//! a join token is taken in one statement before anything is signed; every refusal of Join reads the same, its cause is in
//! the log; a token's text is in one answer and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hermes_core::AgentId;
use hermes_proto::v1;
use hermes_proto::v1::identity_service_server::{IdentityService, IdentityServiceServer};
use secrecy::ExposeSecret as _;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::layers::{principal, worker};
use super::status::{Reason, invalid, refuse};
use crate::identity::{
    Authority, Clock, MAX_WORKER_TTL, NewToken, Role, StoreError, Token, Tokens, WorkerCertificate, mint, mint_join,
    parse_join,
};

/// Life of a worker token whose request names none.
const DEFAULT_JOIN_TTL: Duration = Duration::from_secs(600);
const MAX_TOKEN_TTL_SECONDS: u64 = 366 * 86_400;
const MAX_USES: u32 = 10_000;
const MAX_NAME_CHARS: usize = 128;
const DEFAULT_PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;

/// Whether an agent is registered, answered from the registry's snapshot.
pub type IsRegistered = Arc<dyn Fn(&AgentId) -> bool + Send + Sync>;

/// The service.
#[derive(Clone)]
pub struct IdentityApi {
    authority: Arc<Authority>,
    tokens: Tokens,
    is_registered: IsRegistered,
    clock: Clock,
}

impl std::fmt::Debug for IdentityApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentityApi").finish_non_exhaustive()
    }
}

impl IdentityApi {
    /// The service on these parts.
    pub fn new(authority: Arc<Authority>, tokens: Tokens, is_registered: IsRegistered, clock: Clock) -> Self {
        Self { authority, tokens, is_registered, clock }
    }

    /// As a tonic service with the wire's message bound.
    pub fn into_server(self) -> IdentityServiceServer<Self> {
        IdentityServiceServer::new(self)
            .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
    }

    /// Spends one use of the token for a certificate; the request is checked first, so that a broken one costs no use.
    async fn admit(&self, request: &v1::JoinRequest) -> Result<(AgentId, WorkerCertificate), JoinError> {
        let token = parse_join(&request.token).ok_or(JoinError::Refused("malformed token"))?;
        Authority::check_request(&request.csr_der).map_err(|_| JoinError::Refused("bad signing request"))?;
        let spent = self.tokens.store().spend(token.hash).await.map_err(JoinError::Store)?;
        let spent = spent.ok_or(JoinError::Refused("unknown, used up, expired or revoked token"))?;
        let agent = spent.agent.filter(|_| spent.role == Role::Worker).ok_or(JoinError::Refused("not a join token"))?;
        if !(self.is_registered)(&agent) {
            return Err(JoinError::Refused("agent is not registered"));
        }
        // Whoever made a token for one start of a process knows the worker by it, whatever the worker says of itself.
        let worker = if spent.uses == Some(1) { spent.id } else { Uuid::now_v7() };
        let certificate = self
            .authority
            .sign_worker(&request.csr_der, &agent, worker, MAX_WORKER_TTL, (self.clock)())
            .map_err(JoinError::Signing)?;
        tracing::info!(%agent, %worker, token_id = %spent.id, "worker joined");
        Ok((agent, certificate))
    }
}

enum JoinError {
    Refused(&'static str),
    Store(StoreError),
    Signing(crate::identity::Error),
}

#[tonic::async_trait]
impl IdentityService for IdentityApi {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let peer = request.remote_addr();
        match self.admit(request.get_ref()).await {
            Ok((agent, certificate)) => Ok(Response::new(v1::JoinResponse {
                certificate_der: certificate.der,
                ca_der: self.authority.certificate_der().to_vec(),
                agent: agent.into(),
                expires_at_ms: certificate.expires_at.as_millisecond(),
            })),
            Err(JoinError::Refused(why)) => {
                let peer = peer.map(tracing::field::display);
                tracing::warn!(reason = Reason::JoinRefused.as_str(), why, peer, "join refused");
                Err(refuse(
                    Reason::JoinRefused,
                    "join is refused: the token or the signing request is not acceptable, ask for a new join token",
                ))
            }
            Err(JoinError::Store(error)) => Err(store_failed(&error, Reason::StoreUncertain)),
            Err(JoinError::Signing(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a worker certificate could not be signed");
                Err(refuse(Reason::Internal, "the certificate could not be signed"))
            }
        }
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let (agent, worker) = worker(&request)?;
        if !(self.is_registered)(&agent) {
            tracing::warn!(%agent, %worker, "renewal refused, the agent is not registered");
            return Err(refuse(Reason::Conflict, "the agent of this certificate is not registered any more"));
        }
        let csr = &request.get_ref().csr_der;
        let signed = self.authority.sign_worker(csr, &agent, worker, MAX_WORKER_TTL, (self.clock)());
        match signed {
            Ok(certificate) => Ok(Response::new(v1::RenewResponse {
                certificate_der: certificate.der,
                ca_der: self.authority.certificate_der().to_vec(),
                expires_at_ms: certificate.expires_at.as_millisecond(),
            })),
            Err(crate::identity::Error::BadRequest(why)) => Err(invalid("csr_der", why)),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a worker certificate could not be signed");
                Err(refuse(Reason::Internal, "the certificate could not be signed"))
            }
        }
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let by = principal(&request).clone();
        let request = request.into_inner();
        let (role, agent) = self.token_subject(&request)?;
        let minted = match mint(role) {
            Some(minted) => minted,
            None => mint_join(self.authority.certificate_der()),
        };
        let new = NewToken {
            id: Uuid::now_v7(),
            role,
            uses: (role == Role::Worker).then(|| request.uses.max(1)),
            agent,
            ttl: match (request.ttl_seconds, role) {
                (0, Role::Worker) => Some(DEFAULT_JOIN_TTL),
                (0, Role::Operator | Role::Api | Role::Viewer) => None,
                (seconds, _) => Some(Duration::from_secs(seconds)),
            },
            name: request.name,
            hash: minted.hash,
        };
        let stored =
            self.tokens.store().create(new).await.map_err(|error| store_failed(&error, Reason::StoreUncertain))?;
        tracing::info!(token_id = %stored.id, role = role.as_str(), by = by.kind(), "token created");
        let token = minted.text.expose_secret().to_owned();
        Ok(Response::new(v1::CreateTokenResponse { token, info: Some(token_to_proto(&stored)) }))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let page = request.into_inner().page.unwrap_or_default();
        let size = match page.page_size {
            0 => DEFAULT_PAGE,
            size @ 1..=MAX_PAGE => size,
            _ => return Err(invalid("page.page_size", "at most 1000")),
        };
        let after = match page.page_token.as_str() {
            "" => None,
            text => Some(parse_page(text).ok_or_else(|| invalid("page.page_token", "use the one of the last answer"))?),
        };
        // One more than asked for tells whether there is a next page.
        let mut rows = self
            .tokens
            .store()
            .list(after, size + 1)
            .await
            .map_err(|error| store_failed(&error, Reason::StoreUnavailable))?;
        let wanted = usize::try_from(size).unwrap_or(usize::MAX);
        let more = rows.len() > wanted;
        rows.truncate(wanted);
        let next = rows.last().filter(|_| more).map(|last| URL_SAFE_NO_PAD.encode(last.id.as_bytes()));
        Ok(Response::new(v1::ListTokensResponse {
            tokens: rows.iter().map(token_to_proto).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let by = principal(&request).kind();
        let id = Uuid::try_parse(&request.get_ref().id)
            .map_err(|_| invalid("id", "not a token id, see the list of tokens"))?;
        match self.tokens.revoke(id).await {
            Ok(true) => {
                tracing::info!(token_id = %id, by, "token revoked");
                Ok(Response::new(v1::RevokeTokenResponse {}))
            }
            Ok(false) => Err(refuse(Reason::NotFound, format!("there is no token {id}"))),
            Err(error) => Err(store_failed(&error, Reason::StoreUncertain)),
        }
    }
}

impl IdentityApi {
    /// The role and the agent of a request whose fields fit together: worker tokens have one, API tokens may.
    fn token_subject(&self, request: &v1::CreateTokenRequest) -> Result<(Role, Option<AgentId>), Status> {
        let role = match v1::TokenRole::try_from(request.role) {
            Ok(v1::TokenRole::Operator) => Role::Operator,
            Ok(v1::TokenRole::Api) => Role::Api,
            Ok(v1::TokenRole::Viewer) => Role::Viewer,
            Ok(v1::TokenRole::Worker) => Role::Worker,
            Ok(v1::TokenRole::Unspecified) | Err(_) => {
                return Err(invalid("role", "say operator, api, viewer or worker"));
            }
        };
        if request.ttl_seconds > MAX_TOKEN_TTL_SECONDS {
            return Err(invalid("ttl_seconds", "at most 31622400 (366 days)"));
        }
        if request.name.chars().count() > MAX_NAME_CHARS || request.name.chars().any(char::is_control) {
            return Err(invalid("name", "at most 128 characters, none of them a control character"));
        }
        if role != Role::Worker && request.uses != 0 {
            return Err(invalid("uses", "only worker tokens are used up, leave it 0"));
        }
        match (role, request.agent.as_str()) {
            (Role::Operator | Role::Viewer | Role::Api, "") => return Ok((role, None)),
            (Role::Operator | Role::Viewer, _) => {
                return Err(invalid("agent", "only worker and API tokens are of an agent, leave it empty"));
            }
            (Role::Worker | Role::Api, _) => {}
        }
        if request.uses > MAX_USES {
            return Err(invalid("uses", "at most 10000"));
        }
        let agent = AgentId::parse(&request.agent).map_err(|error| invalid("agent", error.to_string()))?;
        if !(self.is_registered)(&agent) {
            return Err(refuse(Reason::NotFound, format!("agent {agent} is not registered, add it first")));
        }
        Ok((role, Some(agent)))
    }
}

fn store_failed(error: &StoreError, reason: Reason) -> Status {
    tracing::warn!(error = error as &dyn std::error::Error, "the token store failed");
    refuse(reason, "the database did not answer, try again")
}

fn parse_page(text: &str) -> Option<Uuid> {
    Uuid::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

fn token_to_proto(token: &Token) -> v1::Token {
    let role = match token.role {
        Role::Operator => v1::TokenRole::Operator,
        Role::Api => v1::TokenRole::Api,
        Role::Viewer => v1::TokenRole::Viewer,
        Role::Worker => v1::TokenRole::Worker,
    };
    v1::Token {
        id: token.id.to_string(),
        role: role.into(),
        agent: token.agent.as_ref().map(ToString::to_string).unwrap_or_default(),
        name: token.name.clone(),
        created_at_ms: token.created_at.as_millisecond(),
        expires_at_ms: token.expires_at.map(|at| at.as_millisecond()),
        last_used_at_ms: token.last_used_at.map(|at| at.as_millisecond()),
        uses_left: token.uses_left,
        revoked: token.revoked,
    }
}
