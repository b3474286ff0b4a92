//! The two ways to run, step by step.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use hermes_core::AgentId;
use hermes_core::config::{Document, Fault, Warning};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::homes::{ExternalHomes, LocalHomes};
use super::options::{Database, Dev, Serve, Surroundings};
use super::{CONNECTIONS, GRACE, NOTE_GRACE, Plan, Replica, Seams, Signals, Sockets, local, named};
use crate::cron;
use crate::grpc::system_api::{Addresses, apply_text};
use crate::identity::{Authority, NewToken, Role, Token, TokenStore as _, Tokens, mint, mint_join, parse_bearer};
use crate::local::data_dir::{self, DataDir, Endpoint};
use crate::local::homes;
use crate::local::launcher::{self, LaunchSpec, Launcher};
use crate::local::listeners::{self, Listeners};
use crate::local::postgres::{self, Postgres};
use crate::local::spawn::Spawner;
use crate::registry::{Edit, EditError, Registry, Snapshot};
use crate::store::{LAUNCH_TTL, Store};
use crate::telemetry::{FLUSH_TIMEOUT, Telemetry};

/// How long workers may finish what they run when everything stops.
const WORKER_GRACE: Duration = Duration::from_millis(1250);
const POSTGRES_GRACE: Duration = Duration::from_millis(1500);
/// What the stop takes when every limit is reached; the rest of five seconds is for ending processes.
const STOP_AT_MOST: u128 = WORKER_GRACE.as_millis()
    + GRACE.as_millis()
    + 2 * NOTE_GRACE.as_millis()
    + POSTGRES_GRACE.as_millis()
    + postgres::IMMEDIATE.as_millis()
    + FLUSH_TIMEOUT.as_millis();
const _: () = assert!(STOP_AT_MOST < 4_700, "a stop takes less than five seconds");

pub(super) fn database_url(database: &Database) -> anyhow::Result<SecretString> {
    match (&database.database_url, &database.database_url_file) {
        (Some(url), _) => Ok(SecretString::from(url.clone())),
        (None, Some(file)) => {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("read the database URL from {}", named(file)))?;
            Ok(SecretString::from(text.trim().to_owned()))
        }
        (None, None) => bail!("say where Postgres is: --database-url-file FILE, or DATABASE_URL"),
    }
}

/// One replica on somebody's Postgres.
pub(super) async fn serve(serve: Serve, telemetry: &Telemetry, seams: &Seams) -> anyhow::Result<()> {
    let store = seams.store(database_url(&serve.database)?.expose_secret(), CONNECTIONS)?;
    if !serve.no_migrate {
        store
            .migrate()
            .await
            .with_context(|| format!("bring the schema of the database at {} up to date", store.place()))?;
    }
    store.check_functions().await?;
    store.origin_check().await?;
    if let Some(file) = &serve.operator_token_file {
        accept_operator_token(&store, file).await?;
    }
    let common = &serve.common;
    let addresses = listeners::Addresses { grpc: common.grpc_addr, http: common.http_addr, worker: common.worker_addr };
    let sockets = sockets(listeners::bind(addresses)?)?;
    let addresses = sockets.addresses;
    let plan = Plan {
        store,
        homes: Arc::new(ExternalHomes),
        common,
        worker_names: serve.worker_name.clone(),
        sole: false,
        telemetry,
    };
    let replica = Replica::build(plan, sockets).await?;
    announce(&replica.registry);
    let mut signals = Signals::watch()?;
    ready(&addresses, None)?;
    let reason = replica.until_stop(&mut signals).await;
    replica.part().await;
    replica.stop().await;
    reason
}

/// Postgres, control plane and workers on this machine.
pub(super) async fn dev(
    dev: Dev,
    surroundings: Surroundings,
    telemetry: &Telemetry,
    seams: &Seams,
) -> anyhow::Result<()> {
    let path = match &dev.data_dir {
        Some(path) => std::path::absolute(path).with_context(|| format!("find {}", named(path)))?,
        None => data_dir::default_path(
            nix::unistd::geteuid().is_root(),
            surroundings.xdg_data_home.as_deref(),
            surroundings.user_home.as_deref(),
        )?,
    };
    let data = DataDir::open(&path)?;
    let common = &dev.common;
    let addresses = listeners::Addresses { grpc: common.grpc_addr, http: common.http_addr, worker: common.worker_addr };
    let listeners = listeners::bind(addresses)?;
    let spawner = Spawner::start()?;
    let worker_binary = match &seams.worker_binary {
        Some(named) => named.clone(),
        None => worker_binary()?,
    };
    let (mut postgres, url) = match &dev.database_url {
        Some(url) => (None, SecretString::from(url.clone())),
        None => {
            let search = postgres::Search {
                pg_bin: surroundings.pg_bin.clone(),
                path: surroundings.path.clone(),
                runtime_dir: surroundings.runtime_dir.clone(),
            };
            let server = postgres::start(&data, &search, &spawner).await?;
            let url = server.url().clone();
            (Some(server), url)
        }
    };
    let started = start_dev(
        &dev,
        &data,
        &surroundings,
        &url,
        listeners,
        telemetry,
        seams,
        spawner,
        worker_binary,
        postgres.is_some(),
    )
    .await;
    let result = match started {
        Ok((replica, launcher, mut signals)) => {
            let reason = tokio::select! {
                reason = replica.until_stop(&mut signals) => reason,
                status = postgres_ended(&mut postgres) => Err(anyhow::anyhow!("Postgres ended by itself ({status}); its log is in {}", named(&data.logs()))),
            };
            if let Err(error) = data.remove_endpoint() {
                tracing::warn!(%error, "could not remove the endpoint file");
            }
            launcher.stop(WORKER_GRACE).await;
            replica.stop().await;
            reason
        }
        Err(error) => Err(error),
    };
    if let Some(server) = postgres {
        server.stop(POSTGRES_GRACE).await;
    }
    result
}

async fn postgres_ended(postgres: &mut Option<Postgres>) -> std::process::ExitStatus {
    match postgres {
        Some(server) => server.ended().await,
        None => std::future::pending().await,
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "the steps of one start, split off so that Postgres is stopped whatever fails"
)]
async fn start_dev(
    dev: &Dev,
    data: &DataDir,
    surroundings: &Surroundings,
    url: &SecretString,
    listeners: Listeners,
    telemetry: &Telemetry,
    seams: &Seams,
    spawner: Spawner,
    worker_binary: PathBuf,
    sole: bool,
) -> anyhow::Result<(Replica, Launcher, Signals)> {
    let store = seams.store(url.expose_secret(), CONNECTIONS)?;
    store
        .migrate()
        .await
        .with_context(|| format!("bring the schema of the database at {} up to date", store.place()))?;
    match store.origin_check().await {
        // Its lock on the data directory says that nobody else uses this database.
        Err(crate::store::Error::Schema(why)) if sole => {
            tracing::warn!(why, "the database in the data directory is a copy; fencing it");
            store.fence().await?;
        }
        checked => checked?,
    }
    ensure_operator_token(&store, data).await?;
    let sockets = sockets(listeners)?;
    let addresses = sockets.addresses;
    let home_surroundings = homes::Surroundings {
        homes: data.homes(),
        hermes_home: surroundings.hermes_home.clone(),
        user_home: surroundings.user_home.clone(),
    };
    let plan = Plan {
        store,
        homes: Arc::new(LocalHomes(home_surroundings)),
        common: &dev.common,
        worker_names: Vec::new(),
        sole,
        telemetry,
    };
    let replica = Replica::build(plan, sockets).await?;
    let mut environment = launcher::environment(std::env::vars_os());
    environment.extend(seams.worker_environment.iter().cloned());
    let launcher = launch(&replica, spawner, worker_binary, environment, &addresses);
    announce(&replica.registry);
    data.write_endpoint(&Endpoint {
        grpc: local(addresses.grpc),
        http: local(addresses.http),
        worker: local(addresses.worker),
        pid: std::process::id(),
        database_url: url.expose_secret().to_owned(),
    })?;
    let signals = Signals::watch()?;
    ready(&addresses, Some(data.path()))?;
    launcher.start_idle();
    Ok((replica, launcher, signals))
}

/// Starts a worker process per agent and keeps it so.
fn launch(
    replica: &Replica,
    spawner: Spawner,
    worker_binary: PathBuf,
    environment: Vec<(OsString, OsString)>,
    addresses: &Addresses,
) -> Launcher {
    let (store, authority) = (replica.registry.store().clone(), replica.authority.clone());
    let mint: launcher::Mint = Arc::new(move |agent: AgentId| {
        let (store, authority) = (store.clone(), authority.clone());
        async move {
            let minted = mint_join(authority.certificate_der());
            let token = NewToken {
                id: Uuid::now_v7(),
                role: Role::Worker,
                agent: Some(agent),
                uses: Some(1),
                ttl: Some(LAUNCH_TTL),
                name: "process launcher".to_owned(),
                hash: minted.hash,
            };
            let start = token.id;
            store.create(token).await?;
            Ok((start, minted.text))
        }
        .boxed()
    });
    let (dispatcher, tasks) = (replica.dispatcher.clone(), replica.tasks.clone());
    let on_exit = Arc::new(move |exit: launcher::Exit| {
        let dispatcher = dispatcher.clone();
        tasks.spawn("worker exit", async move { dispatcher.process_exited(exit.start, exit.asked).await });
    });
    let config = launcher::Config {
        worker_binary,
        worker_addr: local(addresses.worker),
        environment,
        mint,
        on_exit,
        has_room: launcher::has_room,
        timing: launcher::Timing::default(),
    };
    let launcher = Launcher::new(config, spawner, replica.tasks.clone());
    let (demanded, attached) = (launcher.clone(), launcher.clone());
    replica.dispatcher.on_demand(move |agent| demanded.demand(agent), move |agent| attached.attached(agent));
    replica
        .tasks
        .spawn("launcher", follow_agents(launcher.clone(), replica.registry.clone(), replica.tasks.stopping()));
    launcher
}

async fn follow_agents(launcher: Launcher, registry: Registry, stop: CancellationToken) {
    let mut changes = registry.changes();
    loop {
        changes.borrow_and_update();
        let snapshot = registry.current();
        let specs = snapshot.agents().into_iter().map(|entry| LaunchSpec {
            agent: entry.id.clone(),
            home: registry.home_of(&entry.id, entry.spec.home_dir.as_deref()),
            // Nothing but the home needs another process yet: model, toolsets and limits travel with each turn.
            generation: 0,
        });
        for refused in launcher.set_agents(specs.collect()) {
            tracing::error!(error = %refused, "an agent gets no worker");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// `hermes-worker` beside this program, else on PATH.
fn worker_binary() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find this program's own file")?;
    let beside = own.with_file_name("hermes-worker");
    if beside.is_file() {
        return Ok(beside);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join("hermes-worker")).find(|file| file.is_file()).with_context(|| {
        format!("hermes-worker is neither beside {} nor on PATH; build it with `cargo build --release`", named(&own))
    })
}

fn sockets(listeners: Listeners) -> anyhow::Result<Sockets> {
    let Listeners { grpc, http, worker } = listeners;
    let addresses = Addresses { grpc: grpc.address, http: http.address, worker: worker.address };
    Ok(Sockets { grpc: grpc.into_tokio()?, http: http.into_tokio()?, worker: worker.into_tokio()?, addresses })
}

/// The authority that all replicas share.
pub(super) async fn authority(store: &Store) -> anyhow::Result<Authority> {
    let own = Authority::create(store.now().await?)?;
    let (certificate, key) = store.authority_ensure(own.certificate_der(), own.key_pkcs8().expose_secret()).await?;
    Authority::load(&certificate, &key).context("read the stored certificate authority")
}

/// The operator token of this data directory, made when there is none that works.
async fn ensure_operator_token(store: &Store, data: &DataDir) -> anyhow::Result<()> {
    if let Some(text) = data.operator_token()?
        && let Some((Role::Operator, hash)) = parse_bearer(text.expose_secret())
        && store.find_by_hash(hash).await?.is_some()
    {
        return Ok(());
    }
    let minted = mint(Role::Operator).context("make an operator token")?;
    store
        .create(NewToken {
            id: Uuid::now_v7(),
            role: Role::Operator,
            agent: None,
            uses: None,
            ttl: None,
            name: "hermesctl up".to_owned(),
            hash: minted.hash,
        })
        .await?;
    data.write_operator_token(&minted.text)?;
    Ok(())
}

/// Registers the operator token of a file, once.
async fn accept_operator_token(store: &Store, file: &Path) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("read the operator token from {}", named(file)))?;
    let Some((Role::Operator, hash)) = parse_bearer(text.trim()) else {
        bail!(
            "{} holds no operator token: write hermes.v1.operator. and 43 characters of base64url (32 random bytes)",
            named(file)
        );
    };
    if store.find_by_hash(hash).await?.is_none() {
        let token = NewToken {
            id: Uuid::now_v7(),
            role: Role::Operator,
            agent: None,
            uses: None,
            ttl: None,
            name: "operator token file".to_owned(),
            hash,
        };
        let made: Result<Token, _> = store.create(token).await;
        // A revoked token stays revoked, and another replica may have been faster.
        if let Err(error) = made {
            tracing::warn!(%error, "the operator token of the file was not registered: it is revoked, or was registered just now");
        }
    }
    Ok(())
}

/// Notes once a minute when tokens were used last.
pub(super) async fn touch_tokens(tokens: Tokens, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(60)) => {}
        }
        if let Err(error) = tokens.touch().await {
            tracing::debug!(%error, "could not note when tokens were used");
        }
    }
}

/// Applies `--config` unless the last start applied the very same bytes, so that a restart never undoes a later change.
pub(super) async fn apply_config(registry: &Registry, file: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(file).with_context(|| format!("read {}", named(file)))?;
    let hash = Sha256::digest(&bytes).to_vec();
    if registry.store().config_file_hash().await? == Some(hash.clone()) {
        tracing::info!(file = named(file), "unchanged since the last start, not applied again");
        return Ok(());
    }
    let text = utf8(file, bytes)?;
    let applied = registry.apply("--config", apply_text(&text, false, "--config")).await;
    match applied {
        Ok(edited) => {
            registry.store().config_file_hash_set(&hash).await?;
            tracing::info!(file = named(file), changes = edited.changes.len(), "applied");
            Ok(())
        }
        Err(EditError::Faults(faults)) => bail!(faults_text(file, &faults)),
        Err(error) => Err(error.into()),
    }
}

fn utf8(file: &Path, bytes: Vec<u8>) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(valid).filter(|byte| **byte == b'\n').count() + 1;
        anyhow::anyhow!("{}:{line}: this is not UTF-8 text", named(file))
    })
}

fn faults_text(file: &Path, faults: &[Fault]) -> String {
    let mut text = format!("{} is refused, nothing was changed:", named(file));
    for fault in faults {
        text.push_str(&format!("\n{}:{}: {}: {}", named(file), fault.line, fault.path, fault.message));
    }
    text
}

/// Judges a document without a database.
pub(super) fn check_config(file: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(file).with_context(|| format!("read {}", named(file)))?;
    let text = utf8(file, bytes)?;
    let judged = hermes_core::config::load_offline(&text).and_then(|(_, warnings)| {
        // Once more, with the places of its jobs, whose prompts are looked at here.
        let (document, positions) = hermes_core::config::read(&text).onto(&Document::default(), false)?;
        let mut edit = Edit { document, positions, ..Edit::default() };
        cron::plan(&Snapshot::default(), &mut edit, "check-config");
        if edit.faults.is_empty() { Ok(warnings) } else { Err(edit.faults) }
    });
    match judged {
        Ok(warnings) => {
            for Warning { line, path, message } in warnings {
                tracing::warn!("{}:{line}: {path}: {message}", named(file));
            }
            Ok(())
        }
        Err(faults) => bail!(faults_text(file, &faults)),
    }
}

/// What a person at the terminal should know before the first message.
fn announce(registry: &Registry) {
    let snapshot = registry.current();
    let fallback = registry.fallback_in_use();
    if !fallback.is_empty() {
        tracing::info!(
            providers = fallback.join(", "),
            "the document has no providers: using the keys found in the environment"
        );
    }
    if snapshot.document.model == hermes_core::config::ECHO_MODEL {
        tracing::info!(
            "model builtin/echo answers offline: it repeats what it is told. For a real model set providers and model in a \
             document (`hermesctl apply -f`), or OPENROUTER_API_KEY, ANTHROPIC_API_KEY, OPENAI_API_KEY or GEMINI_API_KEY before the start"
        );
    }
    for warning in registry.current().warnings().iter().take(20) {
        tracing::warn!("{}: {}", warning.path, warning.message);
    }
}

/// The one line on stdout.
fn ready(addresses: &Addresses, data: Option<&Path>) -> anyhow::Result<()> {
    let mut line = format!(
        "ready grpc={} http={} worker={}",
        local(addresses.grpc),
        local(addresses.http),
        local(addresses.worker)
    )
    .into_bytes();
    if let Some(data) = data {
        line.extend_from_slice(b" data=");
        line.extend_from_slice(data.as_os_str().as_bytes());
    }
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&line).and_then(|()| stdout.flush()).context("say on stdout that it is ready")
}
