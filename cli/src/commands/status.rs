//! `status`: what runs and what waits, in one call. Read-only.

use std::time::Duration;

use hermes_proto::v1::system_service_client::SystemServiceClient;
use hermes_proto::v1::{self, GetStatusRequest};
use serde::Serialize;

use super::Invocation;
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View, or_dash, pairs, warnings};

/// Shows it.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn run(inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let mut client = SystemServiceClient::new(connection.transport());
    let status = connection.answer(client.get_status(GetStatusRequest {})).await?;
    inv.printer.show(&StatusView::from_proto(status))?;
    Ok(ExitStatus::Done)
}

#[derive(Serialize)]
struct StatusView {
    version: String,
    document_version: u64,
    agents: u64,
    routes: u64,
    workers: u64,
    sessions: u64,
    queued_turns: u64,
    running_turns: u64,
    pending_deliveries: u64,
    database: String,
    accounts: Vec<AccountView>,
    warnings: Vec<String>,
    uptime_ms: u64,
    grpc_addr: String,
    http_addr: String,
    worker_addr: String,
    replica: u64,
    replicas: u64,
    retention: Vec<RetentionView>,
}

#[derive(Serialize)]
struct RetentionView {
    what: String,
    /// Milliseconds since 1970; 0: no pass has ended yet.
    finished_at_ms: i64,
    removed: u64,
    total: u64,
}

#[derive(Serialize)]
struct AccountView {
    platform: String,
    account: String,
    state: String,
    detail: String,
    /// The replica that receives for it; 0: none, or it is pushed to any.
    replica: u64,
}

impl StatusView {
    fn from_proto(status: v1::GetStatusResponse) -> Self {
        let account = |account: v1::AccountStatus| AccountView {
            platform: account.platform,
            account: account.account,
            state: account.state,
            detail: account.detail,
            replica: account.replica,
        };
        let retention = |run: v1::RetentionStatus| RetentionView {
            what: run.what,
            finished_at_ms: run.finished_at_ms,
            removed: run.removed,
            total: run.total,
        };
        Self {
            version: status.version,
            document_version: status.document_version,
            agents: status.agents,
            routes: status.routes,
            workers: status.workers,
            sessions: status.sessions,
            queued_turns: status.queued_turns,
            running_turns: status.running_turns,
            pending_deliveries: status.pending_deliveries,
            database: status.database,
            accounts: status.accounts.into_iter().map(account).collect(),
            warnings: status.warnings,
            uptime_ms: status.uptime_ms,
            grpc_addr: status.grpc_addr,
            http_addr: status.http_addr,
            worker_addr: status.worker_addr,
            replica: status.replica,
            replicas: status.replicas,
            retention: status.retention.into_iter().map(retention).collect(),
        }
    }
}

impl View for StatusView {
    fn table(&self, paint: Paint) -> String {
        let mut text = pairs(
            paint,
            &[
                ("Version", format!("{} (up {})", self.version, uptime(self.uptime_ms))),
                ("Database", or_dash(Some(&self.database))),
                ("Document", format!("version {}", self.document_version)),
                ("gRPC", or_dash(Some(&self.grpc_addr))),
                ("HTTP", or_dash(Some(&self.http_addr))),
                ("Workers at", or_dash(Some(&self.worker_addr))),
                ("Agents", self.agents.to_string()),
                ("Routes", self.routes.to_string()),
                ("Workers", format!("{} connected", self.workers)),
                ("Sessions", self.sessions.to_string()),
                ("Turns", format!("{} running, {} queued", self.running_turns, self.queued_turns)),
                ("Deliveries", format!("{} pending", self.pending_deliveries)),
                ("Replica", format!("{} of {} that live", self.replica, self.replicas)),
                ("Retention", retained(&self.retention)),
            ],
        );
        if !self.accounts.is_empty() {
            let mut grid = Grid::new(paint, &["PLATFORM", "ACCOUNT", "STATE", "REPLICA", "DETAIL"]);
            for account in &self.accounts {
                grid.row([
                    account.platform.clone(),
                    account.account.clone(),
                    account.state.clone(),
                    if account.replica == 0 { or_dash(None) } else { account.replica.to_string() },
                    or_dash(Some(&account.detail)),
                ]);
            }
            text.push_str("\n\n");
            text.push_str(&grid.finish(""));
        }
        text.push_str(&warnings(paint, &self.warnings));
        text
    }
}

/// The newest pass, and what was removed in all.
fn retained(runs: &[RetentionView]) -> String {
    let removed: Vec<String> =
        runs.iter().filter(|run| run.total > 0).map(|run| format!("{} {}", run.total, run.what)).collect();
    let removed =
        if removed.is_empty() { "nothing removed yet".to_owned() } else { format!("removed {}", removed.join(", ")) };
    match runs.iter().map(|run| run.finished_at_ms).max() {
        Some(at) if at > 0 => format!("{removed} (last pass {})", crate::output::time(Some(at))),
        _ => removed,
    }
}

fn uptime(ms: u64) -> String {
    let seconds = Duration::from_millis(ms).as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    #[test]
    fn status_names_everything_that_runs_and_waits() {
        let status = v1::GetStatusResponse {
            version: "0.1.0".into(),
            document_version: 12,
            agents: 2,
            routes: 3,
            workers: 2,
            sessions: 40,
            queued_turns: 5,
            running_turns: 1,
            pending_deliveries: 4,
            database: "postgres 15.18".into(),
            accounts: vec![v1::AccountStatus {
                platform: "telegram".into(),
                account: "support".into(),
                state: "polling".into(),
                detail: String::new(),
                replica: 2,
            }],
            warnings: vec!["no provider is configured".into()],
            uptime_ms: 3_723_000,
            grpc_addr: "127.0.0.1:7070".into(),
            http_addr: "127.0.0.1:7071".into(),
            worker_addr: String::new(),
            replica: 1,
            replicas: 3,
            retention: vec![
                v1::RetentionStatus {
                    what: "inbound".into(),
                    finished_at_ms: 1_790_000_000_000,
                    removed: 3,
                    total: 40,
                },
                v1::RetentionStatus { what: "turns".into(), ..v1::RetentionStatus::default() },
            ],
        };
        let view = StatusView::from_proto(status);
        insta::assert_snapshot!("status_table", render(&view, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("status_json", render(&view, Format::Json, Paint::Off).unwrap());
    }

    #[test]
    fn uptime_shows_its_two_largest_units() {
        assert_eq!([999, 59_000, 61_000, 3_600_000, 90_000_000].map(uptime), ["0s", "59s", "1m 1s", "1h 0m", "1d 1h"]);
    }
}
