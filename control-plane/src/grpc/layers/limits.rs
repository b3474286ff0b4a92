//! Time limit, concurrency limit and load shedding.
//!
//! Each RPC has a pace. Quick calls share one budget and a time limit; uploads have their own, longer; streams and waits
//! have no time limit and a budget of open ones, held until their last byte, so that ten thousand people waiting for an
//! answer take nothing from the calls that give it. A quick call waits a short while in a bounded queue when its budget is
//! used up; of uploads one caller may have a part at once, so that whoever stalls theirs leaves places for the others. What is shed was not begun: RESOURCE_EXHAUSTED when the queue is full, UNAVAILABLE when the wait was in vain.
//! A call that runs out of time is DEADLINE_EXCEEDED and may have been done. A shorter deadline of the caller
//! (`grpc-timeout`) is kept by tonic.

use std::sync::Arc;
use std::time::Duration;

use hermes_proto::Rpc;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;

use super::{Call, Called, Inner, Step};
use crate::grpc::status::{Reason, refuse};
use crate::identity::Principal;
use crate::shares::{Share, Shares};
use crate::telemetry::Metrics;

/// Bounds of one listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time for a quick call.
    pub quick_time: Duration,
    /// Time for an upload.
    pub upload_time: Duration,
    /// Quick calls running at once.
    pub quick: usize,
    /// Quick calls waiting to run.
    pub waiting: usize,
    /// How long one waits.
    pub wait: Duration,
    /// Uploads running at once.
    pub uploads: usize,
    /// Of one caller: a token, or the workers of an agent.
    pub uploads_each: usize,
    /// Streams and waits open at once.
    pub streams: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            quick_time: Duration::from_secs(30),
            upload_time: Duration::from_secs(300),
            quick: 512,
            waiting: 2048,
            wait: Duration::from_secs(2),
            uploads: 64,
            uploads_each: 8,
            streams: 16_384,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// One message each way, answered from the database.
    Quick,
    /// A bounded document comes in, one message goes out.
    Upload,
    /// Open for as long as both sides want.
    Stream,
}

fn pace(called: Called) -> Pace {
    let rpc = match called {
        Called::Rpc(rpc) => rpc,
        Called::HealthCheck => return Pace::Quick,
        Called::HealthWatch | Called::Reflection => return Pace::Stream,
    };
    match rpc {
        Rpc::AgentAddAgent
        | Rpc::AgentListAgents
        | Rpc::AgentGetAgent
        | Rpc::AgentUpdateAgent
        | Rpc::AgentRemoveAgent
        | Rpc::AgentListRevisions
        | Rpc::AgentRollbackAgent
        | Rpc::AgentListMcpServers
        | Rpc::AgentAcceptMcpServer
        | Rpc::AgentCurateSkills
        | Rpc::HomeListDocuments
        | Rpc::HomeListDocumentVersions
        | Rpc::HomeRollbackDocument
        | Rpc::RouteListRoutes
        | Rpc::RouteAddRoute
        | Rpc::RouteRemoveRoute
        | Rpc::RouteExplainRoute
        | Rpc::SessionListSessions
        | Rpc::SessionGetSession
        | Rpc::SessionStopTurn
        | Rpc::SessionGetTurnSteps
        | Rpc::DeliveryListDeliveries
        | Rpc::DeliveryGetDelivery
        | Rpc::DeliveryRedriveDeliveries
        | Rpc::DeliveryListDeadTurns
        | Rpc::DeliveryRedriveTurns
        | Rpc::DeliveryDropTurns
        | Rpc::BudgetListBudgets
        | Rpc::BudgetRaiseBudget
        | Rpc::BudgetPauseAgent
        | Rpc::BudgetResumeAgent
        | Rpc::SystemGetStatus
        | Rpc::SystemListWorkers
        | Rpc::SystemDrainWorkers
        | Rpc::IdentityJoin
        | Rpc::IdentityRenew
        | Rpc::IdentityCreateToken
        | Rpc::IdentityListTokens
        | Rpc::IdentityRevokeToken
        | Rpc::WorkerListTools
        | Rpc::WorkerPutSummary
        | Rpc::ApprovalListApprovals
        | Rpc::ApprovalAnswerApproval
        | Rpc::PairingListPairings
        | Rpc::PairingApprovePairing
        | Rpc::PairingRevokePairing
        | Rpc::CronCreateJob
        | Rpc::CronListJobs
        | Rpc::CronGetJob
        | Rpc::CronUpdateJob
        | Rpc::CronPauseJob
        | Rpc::CronResumeJob
        | Rpc::CronRemoveJob
        | Rpc::CronRunJob
        | Rpc::CronListRuns
        | Rpc::WorkerPinMcpTools
        | Rpc::WorkerFetchRuntimeSecrets
        | Rpc::WorkerListJobSkills
        | Rpc::WorkerConsolidateSkills
        | Rpc::MessageSubmit => Pace::Quick,

        Rpc::SystemApply
        | Rpc::SystemDiff
        | Rpc::HomePutDocument
        | Rpc::HomeImportHome
        | Rpc::MessageUploadAttachment
        | Rpc::WorkerPutAttachment
        | Rpc::WorkerPushDocument => Pace::Upload,

        // GetTurn is here for its `wait`, CallTool for tools that wait; each of these has its own time limit.
        Rpc::MessageGetTurn
        | Rpc::MessageSubmitAndStream
        | Rpc::SystemExport
        | Rpc::HomeGetDocument
        | Rpc::HomeExportHome
        | Rpc::WorkerAttach
        | Rpc::WorkerCallTool
        | Rpc::WorkerFetchTranscript
        | Rpc::WorkerFetchJournal
        | Rpc::WorkerAskApproval
        | Rpc::WorkerMcpHttp
        | Rpc::WorkerOpenTunnel
        | Rpc::WorkerFetchHome
        | Rpc::WorkerFetchAttachment
        | Rpc::ModelGenerate => Pace::Stream,
    }
}

/// A call that no principal layer has seen gets the strictest pace.
fn pace_of(request: &Request<Body>) -> Pace {
    request.extensions().get::<Call>().map_or(Pace::Quick, |call| pace(call.0))
}

/// The time limit layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeLimit {
    quick: Duration,
    upload: Duration,
}

impl TimeLimit {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { quick: limits.quick_time, upload: limits.upload_time }
    }
}

impl Step for TimeLimit {
    async fn run<S: Inner>(&self, inner: S, request: Request<Body>) -> Response<Body> {
        let limit = match pace_of(&request) {
            Pace::Quick => self.quick,
            Pace::Upload => self.upload,
            Pace::Stream => return inner.answer(request).await,
        };
        match tokio::time::timeout(limit, inner.answer(request)).await {
            Ok(response) => response,
            Err(_) => {
                let message = format!("not done within {} s, it may still have been done", limit.as_secs_f32());
                refuse(Reason::TimeLimit, message).into_http()
            }
        }
    }
}

/// The concurrency limit and load shedding layer.
#[derive(Clone, Debug)]
pub(super) struct Admission {
    quick: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    uploads: Shares,
    streams: Arc<Semaphore>,
    wait: Duration,
    metrics: Metrics,
}

impl Admission {
    pub(super) fn new(limits: &Limits, metrics: Metrics) -> Self {
        let permits = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self {
            quick: permits(limits.quick),
            waiting: permits(limits.waiting),
            uploads: Shares::new(limits.uploads, limits.uploads_each),
            streams: permits(limits.streams),
            wait: limits.wait,
            metrics,
        }
    }

    async fn permit(&self, pace: Pace, caller: &str) -> Result<Permit, Reason> {
        let at_once = |budget: &Arc<Semaphore>| Arc::clone(budget).try_acquire_owned().map_err(|_| Reason::Overloaded);
        match pace {
            Pace::Stream => at_once(&self.streams).map(Permit::Call),
            Pace::Upload => self.uploads.try_take(caller, 1).map(Permit::Upload).ok_or(Reason::Overloaded),
            Pace::Quick => {
                if let Ok(permit) = at_once(&self.quick) {
                    return Ok(Permit::Call(permit));
                }
                let _place = at_once(&self.waiting)?;
                match tokio::time::timeout(self.wait, Arc::clone(&self.quick).acquire_owned()).await {
                    Ok(Ok(permit)) => Ok(Permit::Call(permit)),
                    Ok(Err(_)) | Err(_) => Err(Reason::Busy),
                }
            }
        }
    }
}

/// Held while a call runs.
#[derive(Debug)]
enum Permit {
    Call(#[expect(dead_code, reason = "held, never read")] OwnedSemaphorePermit),
    Upload(#[expect(dead_code, reason = "held, never read")] Share),
}

impl Step for Admission {
    async fn run<S: Inner>(&self, inner: S, request: Request<Body>) -> Response<Body> {
        let pace = pace_of(&request);
        let caller = request.extensions().get::<Principal>().map(Principal::caller).unwrap_or_default();
        match self.permit(pace, &caller).await {
            Ok(permit) if pace == Pace::Stream => {
                // The permit lives in the body and goes with it, also when the caller hangs up.
                inner.answer(request).await.map(|body| {
                    Body::new(body.map_frame(move |frame| {
                        let _held = &permit;
                        frame
                    }))
                })
            }
            Ok(_permit) => inner.answer(request).await,
            Err(reason) => {
                self.metrics.refused(reason.as_str());
                refuse(reason, "too many calls at once, nothing was done, try again in a moment").into_http()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_take_nothing_from_quick_calls_and_the_queue_is_bounded() {
        let limits = Limits {
            quick: 1,
            waiting: 1,
            wait: Duration::from_millis(20),
            streams: 1,
            uploads: 3,
            uploads_each: 1,
            ..Limits::default()
        };
        let admission = Admission::new(&limits, Metrics::unread());
        let stream = admission.permit(Pace::Stream, "ann").await.unwrap();
        assert_eq!(admission.permit(Pace::Stream, "ann").await.unwrap_err(), Reason::Overloaded);
        let upload = admission.permit(Pace::Upload, "ann").await.unwrap();
        assert_eq!(admission.permit(Pace::Upload, "ann").await.unwrap_err(), Reason::Overloaded);
        let other = admission.permit(Pace::Upload, "bob").await;
        assert!(other.is_ok(), "one caller's uploads leave places for another's");
        let quick = admission.permit(Pace::Quick, "ann").await.unwrap();
        // One waits in vain, the other finds no place to wait.
        let (first, second) = tokio::join!(admission.permit(Pace::Quick, "ann"), admission.permit(Pace::Quick, "ann"));
        assert_eq!((first.unwrap_err(), second.unwrap_err()), (Reason::Busy, Reason::Overloaded));
        // The one that waits gets the permit that comes back.
        let (waiter, ()) = tokio::join!(admission.permit(Pace::Quick, "ann"), async { drop(quick) });
        assert!(waiter.is_ok());
        drop((stream, upload));
        assert!(admission.permit(Pace::Stream, "ann").await.is_ok());
    }
}
