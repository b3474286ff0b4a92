//! `worker list`: the workers whose streams are connected. `worker drain`: part with some of them.

use std::time::{Duration, Instant};

use anyhow::bail;
use hermes_proto::v1::system_service_client::SystemServiceClient;
use hermes_proto::v1::{self, DrainWorkersRequest, ListWorkersRequest};
use serde::Serialize;

use super::{Invocation, LINES, all_pages};
use crate::args::{DrainArgs, LimitArgs};
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View, or_dash, time};

/// Lists them.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn list(limit: LimitArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let workers = all_pages(LINES, limit.limit, |page| {
        let mut client = SystemServiceClient::new(connection.transport());
        let connection = &connection;
        async move {
            let request = ListWorkersRequest { page: Some(page) };
            let answer = connection.answer(client.list_workers(request)).await?;
            Ok((answer.workers, answer.next_page_token))
        }
    })
    .await?;
    inv.printer.show(&WorkerList(workers.into_iter().map(WorkerView::from_proto).collect()))?;
    Ok(ExitStatus::Done)
}

/// How often is looked who is left.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How much longer than the grace a worker may take to be gone.
const MARGIN: Duration = Duration::from_secs(60);

/// Parts with workers.
///
/// # Errors
/// What the control plane answered, a named worker that is not connected, and workers that do not go.
pub(crate) async fn drain(args: DrainArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let mut client = SystemServiceClient::new(connection.transport());
    let mut request = DrainWorkersRequest {
        workers: args.workers.clone(),
        agent: args.agent.unwrap_or_default(),
        all: args.all,
        grace_ms: u32::try_from(args.grace.as_millis()).unwrap_or(u32::MAX),
    };
    let asked = Instant::now();
    let told = connection.answer(client.drain_workers(request.clone())).await?.workers;
    let gone: Vec<String> =
        args.workers.iter().filter(|id| !told.iter().any(|one| one.worker_id == **id)).map(u64::to_string).collect();
    if !gone.is_empty() {
        bail!("no such worker: {}; `hermesctl worker list` shows the connected ones", gone.join(", "));
    }
    request = DrainWorkersRequest {
        workers: told.iter().map(|one| one.worker_id).collect(),
        agent: String::new(),
        all: false,
        ..request
    };
    let mut left = told.len();
    while args.wait && left > 0 {
        if asked.elapsed() > args.grace + MARGIN {
            bail!("{left} of {} workers have not left; `hermesctl worker list` shows them", told.len());
        }
        tokio::time::sleep(LOOK_EVERY).await;
        left = connection.answer(client.drain_workers(request.clone())).await?.workers.len();
    }
    inv.printer.show(&Drained(told.into_iter().map(DrainedView::from_proto).collect()))?;
    Ok(ExitStatus::Done)
}

#[derive(Serialize)]
struct DrainedView {
    worker_id: u64,
    agent: String,
    /// Turns that ran when it was asked to leave.
    running: u32,
}

impl DrainedView {
    fn from_proto(worker: v1::DrainingWorker) -> Self {
        Self { worker_id: worker.worker_id, agent: worker.agent, running: worker.running }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Drained(Vec<DrainedView>);

impl View for Drained {
    fn table(&self, paint: Paint) -> String {
        let mut grid = Grid::new(paint, &["DRAINED", "AGENT", "RUNNING"]);
        for worker in &self.0 {
            grid.row([worker.worker_id.to_string(), worker.agent.clone(), worker.running.to_string()]);
        }
        grid.finish("no worker is connected")
    }
}

#[derive(Serialize)]
struct WorkerView {
    worker_id: u64,
    agent: String,
    pid: i64,
    home: String,
    state: String,
    slots: u32,
    running: u32,
    connected_at_ms: i64,
    build: String,
}

impl WorkerView {
    fn from_proto(worker: v1::Worker) -> Self {
        Self {
            worker_id: worker.worker_id,
            agent: worker.agent,
            pid: worker.pid,
            home: worker.home,
            state: worker.state,
            slots: worker.slots,
            running: worker.running,
            connected_at_ms: worker.connected_at_ms,
            build: worker.build,
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct WorkerList(Vec<WorkerView>);

impl View for WorkerList {
    fn table(&self, paint: Paint) -> String {
        let headings = ["WORKER", "AGENT", "PID", "STATE", "RUNNING", "CONNECTED", "BUILD", "HOME"];
        let mut grid = Grid::new(paint, &headings).right(&[2]);
        for worker in &self.0 {
            grid.row([
                worker.worker_id.to_string(),
                worker.agent.clone(),
                worker.pid.to_string(),
                worker.state.clone(),
                format!("{}/{}", worker.running, worker.slots),
                time(Some(worker.connected_at_ms)),
                or_dash(Some(&worker.build)),
                worker.home.clone(),
            ]);
        }
        grid.finish("no worker is connected")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    #[test]
    fn workers_are_shown_with_their_processes() {
        let worker = v1::Worker {
            worker_id: 7,
            agent: "coder".into(),
            pid: 4242,
            home: "/var/lib/hermes/homes/coder".into(),
            state: "busy".into(),
            slots: 8,
            running: 3,
            connected_at_ms: 1_700_000_000_000,
            build: "0.1.0".into(),
        };
        let list = WorkerList(vec![WorkerView::from_proto(worker)]);
        insta::assert_snapshot!("worker_list_table", render(&list, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("worker_list_json", render(&list, Format::Json, Paint::Off).unwrap());
        let none = WorkerList(vec![]);
        insta::assert_snapshot!(render(&none, Format::Table, Paint::Off).unwrap(), @"no worker is connected");
        insta::assert_snapshot!(render(&none, Format::Json, Paint::Off).unwrap(), @"[]");
    }

    #[test]
    fn drained_workers_are_named_with_what_they_ran() {
        let worker = v1::DrainingWorker { worker_id: 7, agent: "coder".into(), running: 3 };
        let list = Drained(vec![DrainedView::from_proto(worker)]);
        insta::assert_snapshot!(render(&list, Format::Table, Paint::Off).unwrap(), @r"
        DRAINED  AGENT  RUNNING
        7        coder  3
        ");
        insta::assert_snapshot!(render(&Drained(vec![]), Format::Table, Paint::Off).unwrap(), @"no worker is connected");
    }
}
