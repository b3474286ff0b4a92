//! The composition root: builds the parts, joins them, serves, and stops them in order.
//!
//! Called by `main.rs` with parsed options. It owns the processes it starts (Postgres, workers), the listeners and the order
//! of the stop: its own workers first (or the listeners and the streams of workers that others started: these register with
//! another replica), so that what they report can be stored, then everything that stores, then Postgres. It holds no business
//! rules.

mod accounts;
mod api;
mod homes;
mod options;
mod process;
mod secrets;
mod start;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hermes_core::AgentId;
use hermes_proto::{DESCRIPTORS, v1};
use secrecy::ExposeSecret as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;

pub use options::{Command, Common, Database, Dev, LogFormat, ModelLimits, Options, Serve, Surroundings};

pub use process::{Seams, process};

use crate::accounts::DEAF_DETAIL;
use crate::attachments::Attachments;
use crate::budget::Budgets;
use crate::cron;
use crate::dispatch::Dispatcher;
use crate::egress::{self, Egress};
use crate::grpc::agent_api::AgentApi;
use crate::grpc::approval_api::ApprovalApi;
use crate::grpc::budget_api::BudgetApi;
use crate::grpc::cron_api::CronApi;
use crate::grpc::delivery_api::DeliveryApi;
use crate::grpc::home_api::HomeApi;
use crate::grpc::identity_api::IdentityApi;
use crate::grpc::layers::{Layers, Limits, Listener, server, worker_tls};
use crate::grpc::message_api::MessageApi;
use crate::grpc::model_api::ModelApi;
use crate::grpc::pairing_api::PairingApi;
use crate::grpc::route_api::RouteApi;
use crate::grpc::session_api::SessionApi;
use crate::grpc::system_api::{Addresses, SystemApi};
use crate::grpc::worker_api::WorkerApi;
use crate::http;
use crate::identity::{Authority, Clock, Tokens};
use crate::intake::{Intake, Sink};
use crate::judge::Judge;
use crate::models::Broker;
use crate::outbox::{Adapters, Outbox};
use crate::registry::{Homes, Registry};
use crate::retention;
use crate::store::{DatabaseClock, Store};
use crate::tasks::Tasks;
use crate::telemetry::{Metrics, Telemetry};
use crate::tools::{Secrets, Tools};

/// Connections to Postgres of one replica.
const CONNECTIONS: usize = 12;
/// Longest wait for the reports that workers have sent when their streams are ended.
const PART_GRACE: Duration = Duration::from_secs(1);
/// Longest wait of a replica, which others stand in for, for deliveries that are being sent.
const SEND_GRACE: Duration = Duration::from_secs(10);
/// Longest wait for tasks at the stop.
const GRACE: Duration = Duration::from_millis(500);
/// Longest wait for each of the two notes a replica leaves behind; both can be missed.
const NOTE_GRACE: Duration = Duration::from_millis(150);

/// The wall clock, for what is told to people only.
pub(crate) fn wall_clock() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// The bound sockets of a replica.
struct Sockets {
    grpc: TcpListener,
    http: TcpListener,
    worker: TcpListener,
    addresses: Addresses,
}

/// A running replica.
struct Replica {
    registry: Registry,
    dispatcher: Dispatcher,
    outbox: Outbox,
    tokens: Tokens,
    authority: Arc<Authority>,
    replica: i64,
    /// Closes the listeners and ends the platforms' polling; the stop of the tasks does it, too.
    doors: CancellationToken,
    tasks: Tasks,
}

/// What a replica is built from.
struct Plan<'a> {
    store: Store,
    homes: Arc<dyn Homes>,
    common: &'a Common,
    worker_names: Vec<String>,
    /// This process owns the database alone.
    sole: bool,
    telemetry: &'a Telemetry,
}

impl Replica {
    /// Builds and joins all parts; listeners accept when this returns.
    async fn build(plan: Plan<'_>, sockets: Sockets) -> anyhow::Result<Self> {
        let Plan { store, homes, common, worker_names, sole, telemetry } = plan;
        let tasks = Tasks::default();
        let metrics = telemetry.metrics();
        let replica = store.replica_register().await?;
        if sole {
            store.everybody_else_lose(replica).await?;
        }
        let clock = Arc::new(DatabaseClock::new(store.poll(replica, &[], crate::dispatch::LEASE).await?.now));
        let authority = Arc::new(start::authority(&store).await?);
        let tokens = Tokens::new(Arc::new(store.clone()));
        let registry = Registry::load(store.clone(), homes, secrets::providers_from_env()).await?;
        if let Some(file) = &common.config {
            start::apply_config(&registry, file).await?;
        }
        let adapters = Adapters::default();
        let outbox = Outbox::start(store.clone(), adapters.clone(), replica, metrics.clone(), &tasks);
        let dispatcher = Dispatcher::start(
            store.clone(),
            registry.clone(),
            outbox.clone(),
            clock.clone(),
            replica,
            metrics.clone(),
            &tasks,
        );
        if !common.no_doorbell {
            let rung = dispatcher.clone();
            registry.bell().start(store.clone(), move |words| rung.rung(words), &tasks);
        }
        let budgets = Budgets::new(registry.clone(), outbox.clone(), clock.clone(), metrics.clone());
        let intake =
            Intake::start(registry.clone(), dispatcher.clone(), outbox.clone(), clock.clone(), metrics.clone(), &tasks);
        let broker = Broker::new(common.model.settings(), secrets::for_models()).context("set up model calls")?;
        let attachments = Attachments::new(store.clone());
        let sink = Sink::new(intake.clone(), adapters.clone(), attachments);
        cron::start(registry.clone(), dispatcher.clone(), &tasks);
        tasks.spawn("retention", retention::run(registry.clone(), metrics.clone(), tasks.stopping()));
        let doors = tasks.stopping().child_token();
        accounts::start(registry.clone(), adapters, sink.clone(), &tasks, &doors);
        tasks.spawn("tokens", start::touch_tokens(tokens.clone(), tasks.stopping()));
        let this = Self { registry, dispatcher, outbox, tokens, authority, replica, doors, tasks };
        this.serve(sockets, &intake, sink, broker, budgets, clock, worker_names, telemetry, &metrics).await?;
        Ok(this)
    }

    #[expect(clippy::too_many_arguments, reason = "the composition root joins all parts once")]
    async fn serve(
        &self,
        sockets: Sockets,
        intake: &Intake,
        sink: Sink,
        broker: Broker,
        budgets: Budgets,
        clock: Arc<DatabaseClock>,
        worker_names: Vec<String>,
        telemetry: &Telemetry,
        metrics: &Metrics,
    ) -> anyhow::Result<()> {
        let database = self.registry.store().server_version().await?;
        // Certificates are made and judged by the time that all replicas agree on, whatever this host's clock says.
        let agreed = Arc::clone(&clock);
        let agreed: Clock = Arc::new(move || agreed.now());
        let known = self.registry.clone();
        let identity = IdentityApi::new(
            self.authority.clone(),
            self.tokens.clone(),
            Arc::new(move |agent: &AgentId| known.current().agent(agent).is_some()),
            agreed.clone(),
        );
        let layers =
            |listener| Layers::new(listener, self.tokens.clone(), agreed.clone(), Limits::default(), metrics.clone());
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<v1::message_service_server::MessageServiceServer<MessageApi>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .build_v1()
            .context("build reflection")?;
        let adapters = self.outbox.adapters().clone();
        let attachments = Attachments::new(self.registry.store().clone());
        let store = self.registry.store().clone();
        let operator = server()
            .layer(layers(Listener::Operator))
            .add_service(health_service)
            .add_service(reflection)
            .add_service(AgentApi::server(self.registry.clone(), self.dispatcher.clone()))
            .add_service(HomeApi::server(self.registry.clone()))
            .add_service(RouteApi::server(self.registry.clone()))
            .add_service(SessionApi::server(self.registry.clone(), self.dispatcher.clone()))
            .add_service(DeliveryApi::server(store.clone(), self.outbox.clone(), self.dispatcher.clone()))
            .add_service(BudgetApi::server(self.registry.clone(), budgets.clone()))
            .add_service(ApprovalApi::server(self.dispatcher.clone()))
            .add_service(PairingApi::server(self.registry.clone(), store.clone()))
            .add_service(CronApi::server(self.registry.clone(), self.dispatcher.clone()))
            .add_service(MessageApi::server(intake.clone(), adapters.clone(), store, attachments.clone()))
            .add_service(identity.clone().into_server())
            .add_service(SystemApi::server(
                self.registry.clone(),
                self.dispatcher.clone(),
                adapters.clone(),
                sockets.addresses,
                database,
            ));
        let followed = self.registry.clone();
        let policy = Arc::new(move || followed.current().document.web.clone());
        let egress = Egress::new(policy, egress::system_lookup()).context("set up the client for the web")?;
        let secrets: Secrets = Arc::new(secrets::resolve);
        let outside = (egress.clone(), Arc::clone(&secrets));
        let tools = Tools::new(self.registry.clone(), self.dispatcher.clone(), egress, secrets);
        let certificate = self.authority.server_certificate(&worker_names, clock.now())?;
        let workers = server()
            .tls_config(worker_tls(&self.authority, &certificate))
            .context("set up the workers' TLS")?
            .layer(layers(Listener::Worker))
            .add_service(WorkerApi::server(
                self.registry.clone(),
                intake.clone(),
                tools,
                attachments.clone(),
                Judge::new(budgets.clone(), broker.clone(), metrics.clone()),
                outside,
                self.tasks.clone(),
            ))
            .add_service(ModelApi::server(
                self.registry.clone(),
                self.dispatcher.clone(),
                budgets,
                broker,
                attachments.clone(),
                metrics.clone(),
            ))
            .add_service(identity.into_server());
        let stop = self.doors.clone();
        let incoming = TcpIncoming::from(sockets.grpc).with_nodelay(Some(true));
        self.tasks.spawn(
            "operator listener",
            ended("operator", operator.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned())),
        );
        let incoming = TcpIncoming::from(sockets.worker).with_nodelay(Some(true));
        self.tasks.spawn(
            "worker listener",
            ended("worker", workers.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned())),
        );
        let router = http::router(self.http_parts(intake, sink, attachments, telemetry));
        let http = axum::serve(sockets.http, router).with_graceful_shutdown(stop.cancelled_owned());
        self.tasks.spawn("http listener", ended("http", http.into_future()));
        Ok(())
    }

    fn http_parts(&self, intake: &Intake, sink: Sink, attachments: Attachments, telemetry: &Telemetry) -> http::Parts {
        let (registry, adapters) = (self.registry.clone(), self.outbox.adapters().clone());
        let deaf = adapters.clone();
        let metrics = telemetry.renderer();
        let turns = api::Api {
            intake: intake.clone(),
            attachments,
            registry: self.registry.clone(),
            tokens: self.tokens.clone(),
        };
        http::Parts {
            turns: Arc::new(turns),
            ready: Arc::new(move || {
                registry.database()?;
                let deaf = deaf.leases().deaf();
                Ok(deaf
                    .iter()
                    .map(|(platform, account)| format!("deaf: {platform} account {account}: {DEAF_DETAIL}"))
                    .collect())
            }),
            metrics: Arc::new(metrics),
            webhooks: Arc::new(move |platform, account, request| {
                let (adapters, sink) = (adapters.clone(), sink.clone());
                Box::pin(async move {
                    let adapter = adapters.get(&platform, &account)?;
                    let answer = adapter.webhook(request, &sink)?;
                    Some(answer.await)
                })
            }),
            now: Arc::new(|| wall_clock().as_second()),
            settings: http::Settings::default(),
        }
    }

    /// Waits for a reason to stop; an error when it is a defect.
    async fn until_stop(&self, signals: &mut Signals) -> anyhow::Result<()> {
        tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "stopping");
                Ok(())
            }
            name = self.tasks.failed() => Err(anyhow::anyhow!("task {name:?} failed")),
        }
    }

    /// Takes nothing new, parts with the workers, which others started and which go on at another replica, and finishes what is
    /// being sent.
    async fn part(&self) {
        self.doors.cancel();
        self.dispatcher.part(PART_GRACE).await;
        if !self.outbox.finish(SEND_GRACE).await {
            tracing::warn!("some deliveries were not finished in time; another replica sends them again, marked");
        }
    }

    /// Stops what stores; workers have stopped or were parted with before.
    async fn stop(self) {
        match tokio::time::timeout(NOTE_GRACE, self.tokens.touch()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "could not note when tokens were used"),
            Err(_) => tracing::debug!("could not note in time when tokens were used"),
        }
        if !self.tasks.shutdown(GRACE).await {
            tracing::warn!("some tasks did not stop in time");
        }
        match tokio::time::timeout(NOTE_GRACE, self.registry.store().replica_leave(self.replica)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "could not sign off"),
            Err(_) => tracing::debug!("could not sign off in time"),
        }
        self.registry.store().close();
    }
}

/// A listener that ends before the stop is a defect; its task's panic-free way to say so is the log.
async fn ended<E: std::fmt::Display>(name: &'static str, serving: impl Future<Output = Result<(), E>>) {
    if let Err(error) = serving.await {
        tracing::error!(listener = name, %error, "a listener failed");
    }
}

/// The signals that ask for a stop. Watched from before the ready line on: whoever reads it may stop us at once, and in order.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn watch() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("watch SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("watch SIGTERM")?,
            hang_up: signal(SignalKind::hangup()).context("watch SIGHUP")?,
        })
    }

    /// Waits for one; its name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}

/// Runs the command.
///
/// # Errors
/// What a person must know: it is printed, and the process exits with 1.
pub async fn run(
    options: Options,
    surroundings: Surroundings,
    telemetry: &Telemetry,
    seams: &Seams,
) -> anyhow::Result<()> {
    match options.command {
        Command::Serve(serve) => start::serve(*serve, telemetry, seams).await,
        Command::Dev(dev) => start::dev(*dev, surroundings, telemetry, seams).await,
        Command::Migrate(database) => {
            let store = seams.store(start::database_url(&database)?.expose_secret(), 2)?;
            let what = || format!("bring the schema of the database at {} up to date", store.place());
            store.migrate().await.with_context(what)?;
            tracing::info!(database = store.server_version().await?, "the schema is up to date");
            Ok(())
        }
        Command::Fence(database) => {
            let store = seams.store(start::database_url(&database)?.expose_secret(), 2)?;
            store.migrate().await.with_context(|| format!("reach the database at {}", store.place()))?;
            let fenced = store.fence().await.with_context(|| format!("fence the database at {}", store.place()))?;
            tracing::warn!(
                sessions = fenced.sessions,
                workers = fenced.workers,
                "fenced: nothing that was handed out before is valid any more"
            );
            Ok(())
        }
        Command::CheckConfig { file } => start::check_config(&file),
    }
}

fn local(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], address.port())) } else { address }
}

fn named(path: &Path) -> String {
    path.display().to_string()
}
