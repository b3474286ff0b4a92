//! SystemService: the document as a whole, and what runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use hermes_core::config::{read, to_yaml};
use hermes_platforms::AccountState;
use hermes_proto::v1::system_service_server::{SystemService, SystemServiceServer};
use hermes_proto::{CHUNK_BYTES, v1};
use tonic::{Request, Response, Status, Streaming};

use super::convert::{self, change_to, edit_status, fault_to, store_status, unsigned, warning_to};
use super::status::{Reason, invalid, refuse};
use crate::accounts::{DEAF, DEAF_DETAIL};
use crate::cron;
use crate::dispatch::{DRAIN_GRACE, Dispatcher};
use crate::outbox::Adapters;
use crate::registry::{Edit, EditError, Edited, Registry, Snapshot};
use crate::store::{AccountRow, Parting};

/// Largest document, bytes.
const MAX_DOCUMENT: usize = 64 << 20;

/// Most workers that one call names.
const MAX_NAMED: usize = 1000;

/// Where this process listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Operators and clients.
    pub grpc: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
    /// Workers.
    pub worker: SocketAddr,
}

/// The service.
#[derive(Clone)]
pub struct SystemApi {
    parts: Arc<Parts>,
}

struct Parts {
    registry: Registry,
    dispatcher: Dispatcher,
    adapters: Adapters,
    addresses: Addresses,
    database: String,
    started: Instant,
}

impl std::fmt::Debug for SystemApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SystemApi")
    }
}

impl SystemApi {
    /// As a tonic service.
    pub fn server(
        registry: Registry,
        dispatcher: Dispatcher,
        adapters: Adapters,
        addresses: Addresses,
        database: String,
    ) -> SystemServiceServer<Self> {
        let parts = Parts { registry, dispatcher, adapters, addresses, database, started: Instant::now() };
        SystemServiceServer::new(Self { parts: Arc::new(parts) })
            .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(8 * hermes_proto::MAX_MESSAGE_BYTES)
    }
}

/// A text as an edit of the document and of the jobs that people made; `by` whom those are that it makes.
pub(crate) fn apply_text(
    text: &str,
    prune: bool,
    by: &'static str,
) -> impl Fn(&Snapshot, &mut Edit) -> Result<(), EditError> + use<> {
    let reading = read(text);
    move |snapshot: &Snapshot, edit: &mut Edit| {
        (edit.document, edit.positions) = reading.onto(&edit.document, prune).map_err(EditError::Faults)?;
        cron::plan(snapshot, edit, by);
        Ok(())
    }
}

/// Runs what judges a whole document, which may take long for a large one, beside the threads that serve everybody.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await.map_err(|error| {
        tracing::error!(%error, "a document could not be judged");
        refuse(Reason::Internal, "the document could not be judged; see the control plane's log")
    })
}

/// The chunks of a document put together.
async fn gather<T>(mut parts: Streaming<T>, part: impl Fn(T) -> (String, bool)) -> Result<(String, bool), Status> {
    let (mut text, mut prune, mut first) = (String::new(), false, true);
    while let Some(message) = parts.message().await? {
        let (chunk, flag) = part(message);
        if first {
            prune = flag;
            first = false;
        }
        if text.len() + chunk.len() > MAX_DOCUMENT {
            return Err(refuse(Reason::TooLarge, format!("the document is larger than {MAX_DOCUMENT} bytes")));
        }
        text.push_str(&chunk);
    }
    Ok((text, prune))
}

/// How the document's accounts stand: a polled one as the replica that receives for it says, wherever that is; the others as they
/// stand here.
fn account_statuses(snapshot: &Snapshot, polled: &[AccountRow], adapters: &Adapters) -> Vec<v1::AccountStatus> {
    let platforms = &snapshot.document.platforms;
    let telegram = platforms.telegram.keys().map(|account| ("telegram", account));
    let webhook = platforms.webhook.keys().map(|account| ("webhook", account));
    let local = adapters.states();
    let mut all = Vec::new();
    for (platform, account) in telegram.chain(webhook) {
        let here = local.iter().find(|(p, a, _)| p == platform && a == account).map(|(_, _, state)| state);
        let row = polled.iter().find(|row| row.platform == platform && row.account == *account);
        let (state, detail) = match (row, here) {
            (Some(row), _) if row.replica.is_some() && row.state == "up" && row.silent > DEAF => {
                ("down", DEAF_DETAIL.to_owned())
            }
            (Some(row), _) if row.replica.is_some() => (row.state.as_str(), row.detail.clone()),
            (_, Some(AccountState::Failed(why))) => ("failed", why.clone()),
            (Some(_), _) => ("down", "no replica receives for it".to_owned()),
            (None, Some(AccountState::Up)) => ("up", String::new()),
            (None, Some(AccountState::Down(why))) => ("down", why.clone()),
            (None, None) => ("down", "starting".to_owned()),
        };
        all.push(v1::AccountStatus {
            platform: platform.to_owned(),
            account: account.clone(),
            state: state.to_owned(),
            detail,
            replica: row.and_then(|row| row.replica).map_or(0, unsigned),
        });
    }
    all
}

#[tonic::async_trait]
impl SystemService for SystemApi {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        let parts = &self.parts;
        let counts = parts.registry.store().counts().await.map_err(store_status)?;
        let snapshot = parts.registry.current();
        let views = parts.dispatcher.fleet().views();
        let store = parts.registry.store();
        let (polled, runs) = (store.accounts().await, store.retention_runs().await);
        let accounts = account_statuses(&snapshot, &polled.map_err(store_status)?, &parts.adapters);
        let retention = runs.map_err(store_status)?.into_iter().map(|run| v1::RetentionStatus {
            what: run.what,
            finished_at_ms: run.finished_at.map_or(0, jiff::Timestamp::as_millisecond),
            removed: unsigned(run.removed),
            total: unsigned(run.total),
        });
        let warnings = snapshot.warnings().iter().take(20).map(|w| format!("{}: {}", w.path, w.message));
        Ok(Response::new(v1::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            document_version: unsigned(snapshot.version),
            agents: snapshot.agents().len() as u64,
            routes: snapshot.document.routes.len() as u64,
            workers: views.len() as u64,
            sessions: unsigned(counts.sessions),
            queued_turns: unsigned(counts.waiting),
            running_turns: views.iter().map(|view| u64::from(view.running)).sum(),
            pending_deliveries: unsigned(counts.deliveries),
            database: parts.database.clone(),
            accounts,
            warnings: warnings.collect(),
            uptime_ms: u64::try_from(parts.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            grpc_addr: parts.addresses.grpc.to_string(),
            http_addr: parts.addresses.http.to_string(),
            worker_addr: parts.addresses.worker.to_string(),
            replica: unsigned(parts.dispatcher.replica()),
            replicas: unsigned(counts.replicas),
            retention: retention.collect(),
        }))
    }

    async fn apply(
        &self,
        request: Request<Streaming<v1::ApplyRequest>>,
    ) -> Result<Response<v1::ApplyResponse>, Status> {
        let (text, prune) = gather(request.into_inner(), |part| (part.text, part.prune)).await?;
        let registry = self.parts.registry.clone();
        let edited = aside(move || {
            tokio::runtime::Handle::current().block_on(registry.apply("apply", apply_text(&text, prune, "apply")))
        })
        .await?;
        // Workers of agents that are gone are drained by the poll, and waiting turns cancelled.
        self.parts.dispatcher.jobs_changed();
        Ok(Response::new(match edited {
            Ok(Edited { version, changes, warnings, .. }) => v1::ApplyResponse {
                faults: Vec::new(),
                warnings: warnings.iter().map(warning_to).collect(),
                changes: changes.iter().take(1000).map(change_to).collect(),
                version: unsigned(version),
            },
            Err(EditError::Faults(faults)) => v1::ApplyResponse {
                faults: faults.iter().map(fault_to).collect(),
                version: unsigned(self.parts.registry.current().version),
                ..v1::ApplyResponse::default()
            },
            Err(error) => return Err(edit_status(error)),
        }))
    }

    async fn diff(&self, request: Request<Streaming<v1::DiffRequest>>) -> Result<Response<v1::DiffResponse>, Status> {
        let (text, prune) = gather(request.into_inner(), |part| (part.text, part.prune)).await?;
        let registry = self.parts.registry.clone();
        let edited = aside(move || {
            tokio::runtime::Handle::current().block_on(registry.apply_dry(apply_text(&text, prune, "diff")))
        })
        .await?;
        Ok(Response::new(match edited {
            Ok(Edited { changes, warnings, .. }) => v1::DiffResponse {
                faults: Vec::new(),
                warnings: warnings.iter().map(warning_to).collect(),
                changes: changes.iter().take(1000).map(change_to).collect(),
            },
            Err(EditError::Faults(faults)) => {
                v1::DiffResponse { faults: faults.iter().map(fault_to).collect(), ..v1::DiffResponse::default() }
            }
            Err(error) => return Err(edit_status(error)),
        }))
    }

    type ExportStream = BoxStream<'static, Result<v1::ExportChunk, Status>>;

    async fn export(&self, _: Request<v1::ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        let text = to_yaml(&self.parts.registry.exported().await.map_err(store_status)?);
        let mut chunks = Vec::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rest.floor_char_boundary(CHUNK_BYTES));
            chunks.push(Ok(v1::ExportChunk { text: chunk.to_owned() }));
            rest = after;
        }
        Ok(Response::new(futures_util::stream::iter(chunks).boxed()))
    }

    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let (size, token) = convert::page(request.into_inner().page)?;
        let all = self.parts.dispatcher.fleet().views();
        let (_, page, next_page_token) = convert::slice(&all, size, &token)?;
        let workers = page.iter().map(|view| v1::Worker {
            worker_id: unsigned(view.worker_id),
            agent: view.agent.to_string(),
            pid: view.pid,
            home: view.home.clone(),
            state: view.state.to_owned(),
            slots: view.slots,
            running: view.running,
            connected_at_ms: view.connected_at.as_millisecond(),
            build: view.build.clone(),
        });
        Ok(Response::new(v1::ListWorkersResponse { workers: workers.collect(), next_page_token }))
    }

    async fn drain_workers(
        &self,
        request: Request<v1::DrainWorkersRequest>,
    ) -> Result<Response<v1::DrainWorkersResponse>, Status> {
        let request = request.into_inner();
        let named = request.workers.len();
        let which = match (named > 0, request.agent.as_str(), request.all) {
            (true, "", false) if named <= MAX_NAMED => {
                let workers: Result<Vec<i64>, Status> =
                    request.workers.iter().map(|worker| convert::signed("workers", *worker)).collect();
                Parting::Workers(workers?)
            }
            (true, "", false) => return Err(invalid("workers", format!("at most {MAX_NAMED}; use all or agent"))),
            (false, "", true) => Parting::All,
            (false, agent, false) if !agent.is_empty() => Parting::Agent(agent.to_owned()),
            _ => return Err(invalid("workers", "exactly one of workers, agent and all")),
        };
        let grace = match request.grace_ms {
            0 => DRAIN_GRACE,
            ms => Duration::from_millis(ms.into()),
        };
        let store = self.parts.registry.store();
        let mut workers = store.workers_part(&which, grace).await.map_err(store_status)?;
        // Who registered anew since is found by those it was.
        if let Parting::Workers(asked) = which {
            workers.extend(asked);
        }
        let left = store.workers_leaving(&workers).await.map_err(store_status)?;
        // Their replicas tell them at their next poll, this one now.
        self.parts.dispatcher.nudge();
        let left = left.into_iter().map(|left| v1::DrainingWorker {
            worker_id: unsigned(left.worker),
            agent: left.agent,
            running: u32::try_from(left.running).unwrap_or(u32::MAX),
        });
        Ok(Response::new(v1::DrainWorkersResponse { workers: left.collect() }))
    }
}
