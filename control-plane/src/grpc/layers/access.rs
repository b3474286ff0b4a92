//! Who may call what: one table, and the layer that enforces it and puts the [`Principal`] into the request.
//!
//! Always true: each RPC has a row or the program does not compile; a path without a row and an RPC on the other listener
//! are UNIMPLEMENTED; on the operator listener only bearer tokens count, on the worker listener only the certificate of the
//! connection. Each refusal is counted and logged with its reason, never with what was shown.
//!
//! Health is open on the operator listener, as probes hold no token and learn one word. Reflection needs a viewer or operator token
//! there: its content is public, but an open endpoint is one more thing to attack and its users have a token anyway.
//! Neither is served to workers.

use hermes_proto::Rpc;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Extensions, HeaderMap, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

use super::{Call, Called, Inner, Listener, Step};
use crate::grpc::status::{Reason, refuse};
use crate::identity::{Clock, Principal, Tokens, worker_from_certificate};
use crate::telemetry::Metrics;

/// Who may call an RPC, and by that where it is served: `WorkerCertificate` and `Nobody` on the worker listener, the rest
/// on the operator listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Requirement {
    /// An operator token.
    Operator,
    /// A viewer or operator token: what only reads.
    ViewerOrOperator,
    /// An API or operator token.
    ApiOrOperator,
    /// A viewer, API or operator token.
    AnyToken,
    /// A worker certificate.
    WorkerCertificate,
    /// Nobody has to be anybody: the request itself carries a join token.
    Nobody,
}

impl Requirement {
    /// The listener that serves it.
    pub fn listener(self) -> Listener {
        match self {
            Self::Operator | Self::ViewerOrOperator | Self::ApiOrOperator | Self::AnyToken => Listener::Operator,
            Self::WorkerCertificate | Self::Nobody => Listener::Worker,
        }
    }

    /// Whether `principal` satisfies it.
    pub fn admits(self, principal: &Principal) -> bool {
        match self {
            Self::Operator => matches!(principal, Principal::Operator { .. }),
            Self::ViewerOrOperator => matches!(principal, Principal::Viewer { .. } | Principal::Operator { .. }),
            Self::ApiOrOperator => matches!(principal, Principal::Api { .. } | Principal::Operator { .. }),
            Self::AnyToken => {
                matches!(principal, Principal::Viewer { .. } | Principal::Api { .. } | Principal::Operator { .. })
            }
            Self::WorkerCertificate => matches!(principal, Principal::Worker { .. }),
            Self::Nobody => true,
        }
    }
}

/// The principal table.
pub fn required(rpc: Rpc) -> Requirement {
    match rpc {
        Rpc::AgentListAgents
        | Rpc::AgentGetAgent
        | Rpc::AgentListRevisions
        | Rpc::AgentListMcpServers
        | Rpc::RouteListRoutes
        | Rpc::RouteExplainRoute
        | Rpc::SessionListSessions
        | Rpc::SessionGetSession
        | Rpc::SessionGetTurnSteps
        | Rpc::DeliveryListDeliveries
        | Rpc::DeliveryGetDelivery
        | Rpc::DeliveryListDeadTurns
        | Rpc::BudgetListBudgets
        | Rpc::SystemGetStatus
        | Rpc::SystemDiff
        | Rpc::SystemExport
        | Rpc::SystemListWorkers => Requirement::ViewerOrOperator,

        Rpc::AgentAddAgent
        | Rpc::AgentUpdateAgent
        | Rpc::AgentRemoveAgent
        | Rpc::AgentRollbackAgent
        | Rpc::AgentAcceptMcpServer
        | Rpc::AgentCurateSkills
        | Rpc::HomeListDocuments
        | Rpc::HomeListDocumentVersions
        | Rpc::HomeGetDocument
        | Rpc::HomePutDocument
        | Rpc::HomeRollbackDocument
        | Rpc::HomeExportHome
        | Rpc::HomeImportHome
        | Rpc::RouteAddRoute
        | Rpc::RouteRemoveRoute
        | Rpc::BudgetRaiseBudget
        | Rpc::BudgetPauseAgent
        | Rpc::BudgetResumeAgent
        | Rpc::DeliveryRedriveDeliveries
        | Rpc::DeliveryRedriveTurns
        | Rpc::DeliveryDropTurns
        | Rpc::SessionStopTurn
        | Rpc::SystemApply
        | Rpc::SystemDrainWorkers
        | Rpc::IdentityCreateToken
        | Rpc::IdentityListTokens
        | Rpc::IdentityRevokeToken
        | Rpc::PairingListPairings
        | Rpc::PairingApprovePairing
        | Rpc::PairingRevokePairing => Requirement::Operator,

        Rpc::MessageSubmit
        | Rpc::MessageUploadAttachment
        | Rpc::MessageSubmitAndStream
        | Rpc::MessageGetTurn
        | Rpc::ApprovalListApprovals
        | Rpc::ApprovalAnswerApproval
        | Rpc::CronCreateJob
        | Rpc::CronUpdateJob
        | Rpc::CronPauseJob
        | Rpc::CronResumeJob
        | Rpc::CronRemoveJob
        | Rpc::CronRunJob => Requirement::ApiOrOperator,

        Rpc::CronListJobs | Rpc::CronGetJob | Rpc::CronListRuns => Requirement::AnyToken,

        Rpc::WorkerAttach
        | Rpc::WorkerFetchTranscript
        | Rpc::WorkerFetchJournal
        | Rpc::WorkerFetchHome
        | Rpc::WorkerFetchAttachment
        | Rpc::WorkerPutAttachment
        | Rpc::WorkerPushDocument
        | Rpc::WorkerListTools
        | Rpc::WorkerCallTool
        | Rpc::WorkerPutSummary
        | Rpc::WorkerAskApproval
        | Rpc::WorkerPinMcpTools
        | Rpc::WorkerFetchRuntimeSecrets
        | Rpc::WorkerListJobSkills
        | Rpc::WorkerConsolidateSkills
        | Rpc::WorkerMcpHttp
        | Rpc::WorkerOpenTunnel
        | Rpc::ModelGenerate
        | Rpc::IdentityRenew => Requirement::WorkerCertificate,

        Rpc::IdentityJoin => Requirement::Nobody,
    }
}

/// The principal layer of one listener.
#[derive(Clone)]
pub(super) struct Principals {
    listener: Listener,
    tokens: Tokens,
    clock: Clock,
    metrics: Metrics,
}

impl std::fmt::Debug for Principals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Principals").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Principals {
    pub(super) fn new(listener: Listener, tokens: Tokens, clock: Clock, metrics: Metrics) -> Self {
        Self { listener, tokens, clock, metrics }
    }

    /// Who calls, if the table lets them.
    async fn admit(&self, called: Option<Called>, request: &Parts) -> Result<(Called, Principal), Refusal> {
        let Some(called) = called else { return Err(Refusal::elsewhere(Principal::None)) };
        let requirement = match called {
            Called::Rpc(rpc) => required(rpc),
            Called::Reflection => Requirement::ViewerOrOperator,
            Called::HealthCheck | Called::HealthWatch if self.listener == Listener::Operator => {
                return Ok((called, Principal::None));
            }
            Called::HealthCheck | Called::HealthWatch => return Err(Refusal::elsewhere(Principal::None)),
        };
        if requirement.listener() != self.listener {
            return Err(Refusal::elsewhere(Principal::None));
        }
        let principal = match self.listener {
            Listener::Operator => self.by_token(&request.headers).await?,
            Listener::Worker => self.by_certificate(&request.extensions)?,
        };
        if requirement.admits(&principal) {
            return Ok((called, principal));
        }
        Err(match principal {
            Principal::None => Refusal::unknown(match self.listener {
                Listener::Operator => "a token is required, send \"authorization: Bearer …\"",
                Listener::Worker => "a worker certificate is required, join first",
            }),
            known => Refusal {
                reason: Reason::NotAllowed,
                message: "this token's role does not allow this call",
                principal: known,
            },
        })
    }

    async fn by_token(&self, headers: &HeaderMap) -> Result<Principal, Refusal> {
        let mut headers = headers.get_all(AUTHORIZATION).iter();
        let Some(header) = headers.next() else { return Ok(Principal::None) };
        let bearer = header
            .to_str()
            .ok()
            .and_then(|text| text.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token);
        let (Some(bearer), None) = (bearer, headers.next()) else {
            return Err(Refusal::unknown("send exactly one \"authorization: Bearer …\""));
        };
        match self.tokens.authenticate(bearer).await {
            Ok(Some(principal)) => Ok(principal),
            Ok(None) => Err(Refusal::unknown("the token is not known, or it has ended")),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a token could not be looked up");
                Err(Refusal {
                    reason: Reason::StoreUnavailable,
                    message: "the token cannot be checked now, try again",
                    principal: Principal::None,
                })
            }
        }
    }

    /// The chain and purpose were verified in the handshake. The end is looked at again here, because a connection, or a
    /// resumed TLS session, can outlive its certificate.
    fn by_certificate(&self, extensions: &Extensions) -> Result<Principal, Refusal> {
        let certificates = extensions.get::<TlsConnectInfo<TcpConnectInfo>>().and_then(TlsConnectInfo::peer_certs);
        let Some(leaf) = certificates.as_deref().and_then(|all| all.first()) else { return Ok(Principal::None) };
        let identity = worker_from_certificate(leaf).map_err(|error| {
            tracing::warn!(%error, "a worker certificate is refused");
            Refusal::unknown("the certificate is not a worker's, join again")
        })?;
        if identity.expires_at <= (self.clock)() {
            return Err(Refusal::unknown("the certificate has ended, renew or join again"));
        }
        Ok(Principal::Worker { agent: identity.agent, worker: identity.worker, spki_sha256: identity.spki_sha256 })
    }

    fn refused(&self, called: Option<Called>, refusal: &Refusal, extensions: &Extensions) -> Status {
        let rpc = called.map_or("unknown", Called::name);
        let token = match &refusal.principal {
            Principal::Operator { token_id } | Principal::Viewer { token_id } | Principal::Api { token_id, .. } => {
                Some(token_id)
            }
            Principal::Worker { .. } | Principal::None => None,
        };
        tracing::warn!(
            reason = refusal.reason.as_str(),
            rpc,
            listener = self.listener.as_str(),
            principal = refusal.principal.kind(),
            token_id = token.map(tracing::field::display),
            peer = peer(extensions).map(tracing::field::display),
            "call refused"
        );
        self.metrics.refused(refusal.reason.as_str());
        refuse(refusal.reason, refusal.message)
    }
}

impl Step for Principals {
    async fn run<S: Inner>(&self, inner: S, request: Request<Body>) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let called = Called::from_path(head.uri.path());
        match self.admit(called, &head).await {
            Ok((called, principal)) => {
                head.extensions.insert(Call(called));
                head.extensions.insert(principal);
                inner.answer(Request::from_parts(head, body)).await
            }
            Err(refusal) => self.refused(called, &refusal, &head.extensions).into_http(),
        }
    }
}

struct Refusal {
    reason: Reason,
    message: &'static str,
    principal: Principal,
}

impl Refusal {
    fn elsewhere(principal: Principal) -> Self {
        Self { reason: Reason::WrongListener, message: "this listener does not serve this call", principal }
    }

    fn unknown(message: &'static str) -> Self {
        Self { reason: Reason::Unauthenticated, message, principal: Principal::None }
    }
}

fn peer(extensions: &Extensions) -> Option<std::net::SocketAddr> {
    match extensions.get::<TlsConnectInfo<TcpConnectInfo>>() {
        Some(tls) => tls.get_ref().remote_addr(),
        None => extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr),
    }
}
