//! `approval list|approve|deny`: calls that wait for somebody to allow them.

use hermes_proto::v1::approval_service_client::ApprovalServiceClient;
use hermes_proto::v1::{self, AnswerApprovalRequest, ApprovalVerdict, ListApprovalsRequest};
use serde::Serialize;

use super::{Invocation, LINES, all_pages, required};
use crate::args::{ApprovalCommand, ApprovalListArgs, Reach};
use crate::connect::{ANSWER_BYTES, Connection, Transport};
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View, plain, time};

/// Runs one of them.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn run(command: ApprovalCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    match command {
        ApprovalCommand::List(args) => list(args, inv).await,
        ApprovalCommand::Approve(args) => {
            let verdict = match args.reach {
                Reach::Once => ApprovalVerdict::Once,
                Reach::Session => ApprovalVerdict::Session,
                Reach::Always => ApprovalVerdict::Always,
            };
            answer(args.id, verdict, inv).await
        }
        ApprovalCommand::Deny { id } => answer(id, ApprovalVerdict::Deny, inv).await,
    }
}

fn client(connection: &Connection) -> ApprovalServiceClient<Transport> {
    ApprovalServiceClient::new(connection.transport()).max_decoding_message_size(ANSWER_BYTES)
}

async fn list(args: ApprovalListArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let approvals = all_pages(LINES, args.limit.limit, |page| {
        let (connection, mut client) = (&connection, client(&connection));
        let request = ListApprovalsRequest { page: Some(page), all: args.all };
        async move {
            let answer = connection.answer(client.list_approvals(request)).await?;
            Ok((answer.approvals, answer.next_page_token))
        }
    })
    .await?;
    inv.printer.show(&ApprovalList(approvals.into_iter().map(ApprovalView::from_proto).collect()))?;
    Ok(ExitStatus::Done)
}

async fn answer(id: u64, verdict: ApprovalVerdict, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let request = AnswerApprovalRequest { id, verdict: verdict.into() };
    let answer = connection.answer(client(&connection).answer_approval(request)).await?;
    let approval = required(answer.approval, "approval")?;
    inv.printer.show(&ApprovalView::from_proto(approval))?;
    Ok(ExitStatus::Done)
}

#[derive(Serialize)]
struct ApprovalView {
    id: u64,
    agent: String,
    turn: String,
    step: u32,
    tool: String,
    call: String,
    reason: String,
    patterns: Vec<String>,
    asker: String,
    state: String,
    answered_by: Option<String>,
    judgement: Option<String>,
    asked_at_ms: i64,
    expires_at_ms: i64,
}

impl ApprovalView {
    fn from_proto(approval: v1::Approval) -> Self {
        Self {
            id: approval.id,
            agent: approval.agent,
            turn: approval.turn,
            step: approval.step,
            tool: approval.tool,
            call: approval.shown,
            reason: approval.reason,
            patterns: approval.patterns,
            asker: approval.asker,
            state: approval.state,
            answered_by: Some(approval.answered_by).filter(|by| !by.is_empty()),
            judgement: Some(approval.judgement).filter(|said| !said.is_empty()),
            asked_at_ms: approval.asked_at_ms,
            expires_at_ms: approval.expires_at_ms,
        }
    }
}

impl View for ApprovalView {
    fn table(&self, _: Paint) -> String {
        format!("question {} ({}: {}) is {}", self.id, plain(&self.tool), plain(&self.call), plain(&self.state))
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct ApprovalList(Vec<ApprovalView>);

impl View for ApprovalList {
    fn table(&self, paint: Paint) -> String {
        let mut grid =
            Grid::new(paint, &["ID", "STATE", "AGENT", "TURN", "ASKED", "EXPIRES", "TOOL", "CALL", "WHY"]).right(&[0]);
        for approval in &self.0 {
            grid.row([
                approval.id.to_string(),
                approval.state.clone(),
                approval.agent.clone(),
                approval.turn.clone(),
                approval.asker.clone(),
                time(Some(approval.expires_at_ms)),
                approval.tool.clone(),
                approval.call.clone(),
                approval.patterns.join(", "),
            ]);
        }
        grid.finish("no call waits for anybody")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    #[test]
    fn questions_are_shown_with_what_would_be_done() {
        let approval = v1::Approval {
            id: 17,
            agent: "coder".into(),
            turn: "t12.4".into(),
            step: 1,
            tool: "terminal".into(),
            shown: "rm -rf build\necho done".into(),
            reason: "it deletes a directory with all that is in it".into(),
            patterns: vec!["delete_recursive".into()],
            asker: "telegram/helper/777".into(),
            state: "pending".into(),
            answered_by: String::new(),
            judgement: "It is not sure.".into(),
            asked_at_ms: 1_700_000_000_000,
            expires_at_ms: 1_700_000_300_000,
        };
        let list = ApprovalList(vec![ApprovalView::from_proto(approval.clone())]);
        let table = render(&list, Format::Table, Paint::Off).unwrap();
        assert!(
            ["17", "pending", "t12.4", "telegram/helper/777", "delete_recursive"]
                .iter()
                .all(|part| table.contains(part)),
            "{table}"
        );
        assert_eq!(table.trim_end().lines().count(), 2, "{table}");
        let json = render(&list, Format::Json, Paint::Off).unwrap();
        assert!(
            json.contains("\"call\": \"rm -rf build\\necho done\"")
                && json.contains("\"answered_by\": null")
                && json.contains("\"judgement\": \"It is not sure.\""),
            "{json}"
        );
        let one = render(&ApprovalView::from_proto(approval), Format::Table, Paint::Off).unwrap();
        assert!(one.starts_with("question 17 (terminal: rm -rf build"), "{one}");
        let none = render(&ApprovalList(vec![]), Format::Table, Paint::Off).unwrap();
        assert_eq!(none.trim_end(), "no call waits for anybody");
    }
}
