//! A turn on its way to a worker: what it needs of the agent's profile, and nothing of where secrets are found.

use hermes_proto::v1;

use super::convert::{self, unsigned};
use super::worker_api::turn_to;
use super::{mcp, runtime};
use crate::dispatch::Assignment;

/// On the wire.
pub(super) fn to(assignment: Assignment) -> v1::Assignment {
    let toolsets_set = assignment.enabled_toolsets.is_some();
    v1::Assignment {
        turn: turn_to(assignment.turn, assignment.epoch),
        profile: Some(v1::ProfileRevision {
            revision: unsigned(assignment.revision),
            model: assignment.model,
            enabled_toolsets: assignment.enabled_toolsets.unwrap_or_default(),
            disabled_toolsets: assignment.disabled_toolsets,
            toolsets_set,
            sandbox: Some(convert::sandbox_to(&assignment.sandbox)),
            approvals: Some(Box::new(convert::approvals_to(&assignment.approvals))),
            mcp_servers: mcp::servers_for_worker(&assignment.mcp_servers),
            runtime: assignment.runtime.as_ref().map(runtime::to_worker),
        }),
        input: assignment.input,
        transcript_version: unsigned(assignment.turn.seq - 1),
        session_key: assignment.session_key,
        traceparent: assignment.traceparent,
        accepted_at_ms: assignment.accepted_at.as_millisecond(),
        attempt: assignment.attempt,
        history_bytes: u32::try_from(assignment.history_bytes).unwrap_or(u32::MAX),
        home_version: unsigned(assignment.home_version),
        journal_entries: assignment.journal_entries,
        history_rewinds: assignment.history_rewinds,
    }
}
