//! ApprovalService: which calls wait for a person, and the answers of operators and API callers.
//!
//! Always true: an API token sees and answers only questions about turns that it submitted, and its answer reaches no further than the
//! call; an operator answers any.

use hermes_core::approvals::Verdict;
use hermes_proto::v1;
use hermes_proto::v1::approval_service_server::{ApprovalService, ApprovalServiceServer};
use tonic::{Request, Response, Status};

use super::convert::{number_token, page, signed, store_status, unsigned};
use super::layers::principal;
use super::status::{Reason, invalid, refuse};
use crate::dispatch::Dispatcher;
use crate::identity::Principal;
use crate::store::{Answered, ApprovalRow};

/// The service.
#[derive(Clone, Debug)]
pub struct ApprovalApi {
    dispatcher: Dispatcher,
}

/// Whose questions a caller sees: `None` all; and who they are, for the record.
fn scope<T>(request: &Request<T>) -> Result<(Option<String>, String), Status> {
    match principal(request) {
        Principal::Operator { token_id } => Ok((None, token_id.to_string())),
        Principal::Api { token_id, .. } => Ok((Some(token_id.to_string()), token_id.to_string())),
        _ => Err(refuse(Reason::NotAllowed, "only operators and API callers can do this")),
    }
}

impl ApprovalApi {
    /// As a tonic service.
    pub fn server(dispatcher: Dispatcher) -> ApprovalServiceServer<Self> {
        ApprovalServiceServer::new(Self { dispatcher })
            .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(16 * hermes_proto::MAX_MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl ApprovalService for ApprovalApi {
    async fn list_approvals(
        &self,
        request: Request<v1::ListApprovalsRequest>,
    ) -> Result<Response<v1::ListApprovalsResponse>, Status> {
        let (submitter, _) = scope(&request)?;
        let request = request.into_inner();
        let (size, token) = page(request.page)?;
        let before = number_token(&token, i64::MAX)?;
        let store = self.dispatcher.store();
        let rows =
            store.approvals(request.all, submitter.as_deref(), before, i64::from(size)).await.map_err(store_status)?;
        let next = rows.last().filter(|_| rows.len() == size as usize).map(|last| last.id.to_string());
        let approvals = rows.into_iter().map(approval_to).collect();
        Ok(Response::new(v1::ListApprovalsResponse { approvals, next_page_token: next.unwrap_or_default() }))
    }

    async fn answer_approval(
        &self,
        request: Request<v1::AnswerApprovalRequest>,
    ) -> Result<Response<v1::AnswerApprovalResponse>, Status> {
        let (submitter, by) = scope(&request)?;
        let request = request.into_inner();
        let verdict = match request.verdict() {
            v1::ApprovalVerdict::Once => Verdict::Once,
            v1::ApprovalVerdict::Session => Verdict::Session,
            v1::ApprovalVerdict::Always => Verdict::Always,
            v1::ApprovalVerdict::Deny => Verdict::Deny,
            v1::ApprovalVerdict::Unspecified => return Err(invalid("verdict", "it is missing")),
        };
        let id = signed("id", request.id)?;
        let store = self.dispatcher.store();
        if let Some(submitter) = submitter {
            let row = store.approval(id).await.map_err(store_status)?;
            if row.asker.split('\t').next() != Some(submitter.as_str()) {
                return Err(refuse(Reason::NotFound, format!("there is no question {id}")));
            }
            if matches!(verdict, Verdict::Session | Verdict::Always) {
                return Err(refuse(
                    Reason::NotAllowed,
                    "an API token answers for one call; an operator can go further",
                ));
            }
        }
        match store.approval_answer(id, verdict, &format!("token:{by}")).await.map_err(store_status)? {
            Answered::Unknown => return Err(refuse(Reason::NotFound, format!("there is no question {id}"))),
            Answered::Over(_, state) => {
                let message = format!("question {id} is over ({}); nothing was changed", state.as_str());
                return Err(refuse(Reason::Conflict, message));
            }
            Answered::Done(_) => self.dispatcher.approval_answered(),
        }
        let row = store.approval(id).await.map_err(store_status)?;
        Ok(Response::new(v1::AnswerApprovalResponse { approval: Some(approval_to(row)) }))
    }
}

fn approval_to(row: ApprovalRow) -> v1::Approval {
    v1::Approval {
        id: unsigned(row.id),
        agent: row.agent,
        turn: row.turn.to_string(),
        step: u32::try_from(row.step).unwrap_or(0),
        tool: row.tool,
        shown: row.shown,
        reason: row.reason,
        patterns: row.patterns,
        asker: asker_to(&row.asker),
        state: row.state.as_str().to_owned(),
        answered_by: row.answered_by.unwrap_or_default(),
        asked_at_ms: row.asked_at.as_millisecond(),
        expires_at_ms: row.expires_at.as_millisecond(),
        judgement: row.judgement.unwrap_or_default(),
    }
}

/// `platform/account/user`, with the token that brought the message in front where one did.
fn asker_to(asker: &str) -> String {
    let mut parts = asker.split('\t');
    let token = parts.next().filter(|token| !token.is_empty()).map(|token| format!("token:{token}"));
    let parts: Vec<String> =
        token.into_iter().chain(parts.map(str::to_owned)).filter(|part| !part.is_empty()).collect();
    parts.join("/")
}
