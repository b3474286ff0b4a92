//! Tools that the control plane runs, on the wire.
//!
//! Called by the worker's service, which has made sure that the turn is the caller's. Always true: what a call says is checked
//! before it goes on, and whatever the model wrote in it is not a fault of the call.

use std::time::Duration;

use hermes_proto::v1;
use tonic::Status;
use uuid::Uuid;

use super::status::{Reason, invalid, refuse};
use super::steps::step_number;
use crate::dispatch::{DangerousCall, Permission, Running};
use crate::models::{MAX_CALL_ID, is_name};
use crate::store::TurnId;
use crate::tools::{Answer, Asked, Spec, Tools};

/// What there is.
pub(super) fn list() -> v1::ListToolsResponse {
    let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    let offered = |spec: Spec| v1::OfferedTool {
        name: spec.name.to_owned(),
        description: spec.description.to_owned(),
        parameters: spec.parameters.to_owned(),
        toolset: spec.toolset.to_owned(),
        time_limit_ms: millis(spec.time_limit),
        max_output: u32::try_from(spec.max_output).unwrap_or(u32::MAX),
    };
    v1::ListToolsResponse { tools: Tools::offered().map(offered).collect() }
}

/// A call that a person may have to allow first.
pub(super) fn dangerous_call(
    (turn, epoch): (TurnId, i64),
    request: v1::AskApprovalRequest,
) -> Result<DangerousCall, Status> {
    let step = step_number(request.step)?;
    let v1::ToolCall { id, name, arguments } = checked(request.call)?;
    Ok(DangerousCall { turn, epoch, step, id, name, arguments })
}

/// What became of the question about it.
pub(super) fn permission_to(permission: Permission) -> v1::AskApprovalResponse {
    let (state, reason) = match permission {
        Permission::Pending => (v1::ApprovalState::Pending, None),
        Permission::Allowed => (v1::ApprovalState::Allowed, None),
        Permission::Denied(why) => (v1::ApprovalState::Denied, why),
        Permission::Expired => (v1::ApprovalState::Expired, None),
        Permission::Fenced => (v1::ApprovalState::Fenced, None),
        Permission::OtherCall => (v1::ApprovalState::OtherCall, None),
    };
    v1::AskApprovalResponse { state: state.into(), reason: reason.unwrap_or_default() }
}

fn checked(call: Option<v1::ToolCall>) -> Result<v1::ToolCall, Status> {
    let call = call.ok_or_else(|| invalid("call", "it is missing"))?;
    if call.id.is_empty() || call.id.len() > MAX_CALL_ID || !is_name(&call.name) {
        return Err(invalid("call", "a call has its id and a tool's name"));
    }
    Ok(call)
}

/// Makes a call of the turn.
pub(super) async fn call(
    tools: &Tools,
    worker: Uuid,
    running: &Running,
    request: v1::CallToolRequest,
) -> Result<v1::CallToolResponse, Status> {
    let step = step_number(request.step)?;
    let v1::ToolCall { id, name, arguments } = checked(request.call)?;
    let Running { turn, epoch, errand, .. } = *running;
    let (outcome, text) = match tools.call(&Asked { worker, turn, epoch, errand, step, id, name, arguments }).await {
        Answer::Stored(text) => (v1::StepOutcome::Stored, text),
        Answer::Fenced => (v1::StepOutcome::Fenced, Vec::new()),
        Answer::Diverged => (v1::StepOutcome::Diverged, Vec::new()),
        Answer::Uncertain => {
            return Err(refuse(Reason::StoreUncertain, "it is not known whether the tool was called; repeat the call"));
        }
    };
    Ok(v1::CallToolResponse { outcome: outcome.into(), text })
}
