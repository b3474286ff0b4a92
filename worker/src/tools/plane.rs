//! The tools that the control plane runs: which there are, and one call of one.
//!
//! Called by turns. Asked for once on each registration, by the first turn that begins then. Always true: a control plane of
//! before such tools has none; a call that broke off may be repeated with the same turn, step and arguments, because the
//! other side does it and journals it in one commit. It decides nothing about the turn, and repeats nothing itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_proto::v1::{
    ApprovalState, AskApprovalRequest, CallToolRequest, ListToolsRequest, OfferedTool, StepOutcome,
};
use tokio::sync::OnceCell;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{Effect, MAX_OUTPUT_BYTES, ToolSpec};
use crate::connection::is_broken;

type Listed = Arc<OnceCell<Arc<[ToolSpec]>>>;

/// What the control plane offers, as of the last registration.
#[derive(Debug, Default)]
pub struct PlaneTools(Mutex<Listed>);

impl PlaneTools {
    /// Another control plane may offer others: the next turn asks.
    pub fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Listed::default();
    }

    /// The tools; asks for them where this registration has not yet.
    ///
    /// # Errors
    /// The status of the call; the next turn asks again.
    pub async fn listed(&self, channel: &Channel) -> Result<Arc<[ToolSpec]>, Status> {
        let listed = Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        listed.get_or_try_init(|| fetch(channel.clone())).await.cloned()
    }
}

async fn fetch(channel: Channel) -> Result<Arc<[ToolSpec]>, Status> {
    let answer = client(channel).list_tools(ListToolsRequest {}).await;
    match answer {
        Ok(answer) => Ok(answer.into_inner().tools.into_iter().map(spec).collect()),
        Err(status) if status.code() == Code::Unimplemented => Ok(Arc::default()),
        Err(status) => Err(status),
    }
}

fn spec(tool: OfferedTool) -> ToolSpec {
    ToolSpec {
        name: tool.name,
        description: tool.description,
        parameters: tool.parameters,
        toolset: tool.toolset,
        effect: Effect::Journaled,
        time_limit: Duration::from_millis(tool.time_limit_ms.into()),
        max_output: usize::try_from(tool.max_output).unwrap_or(usize::MAX).min(MAX_OUTPUT_BYTES),
    }
}

/// Why a call gave no text.
#[derive(Debug)]
pub(crate) enum Error {
    /// Somebody else has the turn, or it was given up.
    Gone,
    /// Nobody knows whether it was done: repeat it.
    Broken(Status),
    /// The control plane judged the request and refused it.
    Refused(Status),
}

/// Has the control plane do it; the text for the model, as journaled.
///
/// # Errors
/// [`Error`].
pub(crate) async fn call(channel: Channel, request: CallToolRequest) -> Result<String, Error> {
    let answer = client(channel).call_tool(request).await.map_err(judge)?.into_inner();
    match answer.outcome() {
        StepOutcome::Stored => Ok(String::from_utf8_lossy(&answer.text).into_owned()),
        StepOutcome::Fenced | StepOutcome::Diverged => Err(Error::Gone),
        StepOutcome::Unspecified | StepOutcome::Refused => {
            Err(Error::Refused(Status::internal("the control plane did not say what became of the call")))
        }
    }
}

/// Whether somebody allows a call of this worker's own, and why not where a model said so; waits a while for that.
///
/// # Errors
/// [`Error`].
pub(crate) async fn ask(channel: Channel, request: AskApprovalRequest) -> Result<(ApprovalState, String), Error> {
    let answer = client(channel).ask_approval(request).await.map_err(judge)?.into_inner();
    match answer.state() {
        ApprovalState::Fenced => Err(Error::Gone),
        ApprovalState::Unspecified => {
            Err(Error::Refused(Status::internal("the control plane did not say how it stands")))
        }
        state => Ok((state, answer.reason)),
    }
}

fn judge(status: Status) -> Error {
    match status.code() {
        Code::PermissionDenied => Error::Gone,
        Code::DeadlineExceeded => Error::Broken(status),
        _ if is_broken(&status) => Error::Broken(status),
        _ => Error::Refused(status),
    }
}

fn client(channel: Channel) -> WorkerServiceClient<Channel> {
    WorkerServiceClient::new(channel).max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
}
