//! The composition root: builds the parts, listens to signals and to the parent's life, fixes the order of the end.
//!
//! Called by `main` ([`process`]) and by tests ([`serve`]). Always true: the home is locked before anything is asked
//! of the control plane, the first signal drains, the second ends at once, and without its parent this process does not
//! stay.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::acp::Programs;
use crate::config::Config;
use crate::connection::Connection;
use crate::doctor;
use crate::documents::Documents;
use crate::home::Home;
use crate::identity::{Dial, Identity};
use crate::link::{Link, Registration, chain};
use crate::prompt::Prompts;
use crate::proxy;
use crate::sandbox::Boundary;
use crate::seams::Seams;
use crate::servers::Servers;
use crate::telemetry::Telemetry;
use crate::tools::local::LocalTools;
use crate::tools::{McpServers, PlaneTools};
use crate::tools::{NoTools, Toolbox};
use crate::transcript::Transcripts;
use crate::turns::Shared;

/// Text of past turns kept in memory for each slot, in bytes: as much as a turn is given of its session unless the control
/// plane says otherwise. With less, busy sessions push each other out and are fetched again for each turn.
const TRANSCRIPT_BYTES: usize = 64 << 10;
const PARENT_POLL: Duration = Duration::from_secs(1);
const MAX_JOIN_DELAY: Duration = Duration::from_secs(5);

/// Runs the process: settings from the command line, one single-threaded runtime, an exit code (0 drained, 1 failed or ended
/// early, 2 wrong use).
///
/// A worker waits on the network nearly all the time, so one thread serves hundreds of turns a second and keeps the process
/// small; file work that may take long goes to the runtime's blocking threads.
pub fn process(seams: Seams) -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|name| name == doctor::NAME) {
        let temporary = std::env::temp_dir();
        return runtime().block_on(doctor::run(std::env::args_os().skip(2), temporary));
    }
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing else installs a TLS provider before main");
    let config = match Config::from_args(std::env::args_os()) {
        Ok(config) => Config { program: std::env::current_exe().ok(), ..config },
        Err(error) => {
            // Help and version are answers; everything else is a wrong use. A closed stderr leaves nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = runtime();
    let code = runtime.block_on(run(config, seams));
    runtime.shutdown_background();
    code
}

fn runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    runtime.expect("the kernel gives a new process its event queue")
}

/// The process within its runtime: logs, signals, exit code.
async fn run(config: Config, seams: Seams) -> ExitCode {
    let telemetry = match Telemetry::start(config.log_format, config.otlp_endpoint.as_deref()) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            // Without a subscriber the message goes nowhere else; a closed stderr leaves nobody to tell.
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "cannot start telemetry: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let code = match supervised(config, seams).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(error.as_ref()), "the worker stops");
            ExitCode::FAILURE
        }
    };
    telemetry.shutdown().await;
    code
}

/// Serves until drained, told twice to stop, or orphaned.
async fn supervised(config: Config, seams: Seams) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let parent = config.parent_pid;
    let stop = CancellationToken::new();
    let orphaned = orphaned(parent)?;
    let serving = serve_with(config, seams, stop.clone());
    tokio::pin!(serving, orphaned);
    loop {
        tokio::select! {
            served = &mut serving => return served,
            () = &mut orphaned => anyhow::bail!("the process that started this worker is gone"),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if stop.is_cancelled() {
            anyhow::bail!("told to stop a second time");
        }
        stop.cancel();
    }
}

/// Serves the agent until `stop` and then until drained.
///
/// # Errors
/// When the home cannot be used, or the control plane will not have this worker.
pub async fn serve(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    serve_with(config, Seams::default(), stop).await
}

/// As [`serve`], with other tools, or with a drill looking on.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(config: Config, seams: Seams, stop: CancellationToken) -> anyhow::Result<()> {
    let home = Home::open(&config.home).context("open the agent's home")?;
    let identity = Arc::new(Identity::new(Servers::new(config.servers), config.join, jiff::Timestamp::now));
    let agent = tokio::select! {
        agent = joined(&identity) => agent?,
        () = stop.cancelled() => return Ok(()),
    };
    let registration =
        Registration { slots: config.slots, home: home.path().display().to_string(), drain_grace: config.drain_grace };
    attend(identity, &agent, &home, registration, config.program, seams, stop).await
}

/// As [`serve_with`] for this agent, over connections that `dial` makes; see [`Identity::given`].
///
/// # Errors
/// As [`serve`].
pub async fn serve_over(
    dial: Dial,
    agent: &str,
    home: &Path,
    slots: u32,
    seams: Seams,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let home = Home::open(home).context("open the agent's home")?;
    let registration =
        Registration { slots, home: home.path().display().to_string(), drain_grace: Duration::from_secs(1) };
    let identity = Arc::new(Identity::given(dial, jiff::Timestamp::now));
    attend(identity, agent, &home, registration, None, seams, stop).await
}

/// Builds what turns share and holds the stream until it is drained.
async fn attend(
    identity: Arc<Identity>,
    agent: &str,
    home: &Home,
    registration: Registration,
    program: Option<PathBuf>,
    seams: Seams,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (published, connection) = watch::channel(Connection::none());
    let boundary = match seams.toolbox {
        Some(_) => None,
        None => program.map(|program| {
            Boundary::new(&program, home.path().to_owned()).with_way_out(proxy::way_out(connection.clone()))
        }),
    };
    let toolbox: Arc<dyn Toolbox> = match (&seams.toolbox, &boundary) {
        (Some(toolbox), _) => Arc::clone(toolbox),
        (None, Some(boundary)) => Arc::new(LocalTools::new(boundary.clone(), home.path(), jiff::Timestamp::now)),
        (None, None) => Arc::new(NoTools),
    };
    let programs = boundary.as_ref().map(|boundary| Programs::new(boundary.clone(), home.path()));
    let documents = Documents::open(home.path(), agent).context("take over the agent's home")?;
    let mcp = boundary.as_ref().map(|boundary| McpServers::new(boundary.clone(), home.path(), connection.clone()));
    let slots = usize::try_from(registration.slots).unwrap_or(usize::MAX);
    let shared = Arc::new(Shared {
        connection,
        documents,
        transcripts: Transcripts::new(TRANSCRIPT_BYTES.saturating_mul(slots)),
        prompts: Prompts::default(),
        plane_tools: PlaneTools::default(),
        mcp,
        programs,
        today: || jiff::Zoned::now().date(),
        now: jiff::Timestamp::now,
        toolbox,
        boundary,
        seams,
    });
    Link::new(identity, registration, published, shared, stop).run().await?;
    Ok(())
}

/// Joins, however long the control plane is away, and answers whose worker this is.
async fn joined(identity: &Identity) -> anyhow::Result<String> {
    let mut most = Duration::from_millis(200);
    loop {
        match identity.connect().await {
            Ok(connected) => return Ok(connected.agent),
            Err(error) if error.is_final() => return Err(error).context("join the control plane"),
            Err(error) => tracing::warn!(error = chain(&error), "not joined yet"),
        }
        tokio::time::sleep(rand::random_range(Duration::from_millis(100)..=most)).await;
        most = (most * 2).min(MAX_JOIN_DELAY);
    }
}

/// Ends when this process's parent is no longer `parent`; never, where none was named.
///
/// The kernel signals the death of the *thread* that started us, which need not be the end of the process, so the signal
/// only makes us look. It is one that ends a process which does not handle it yet.
fn orphaned(parent: Option<i32>) -> anyhow::Result<impl Future<Output = ()>> {
    let watch = match parent {
        None => None,
        Some(parent) => {
            let look = signal(SignalKind::user_defined1()).context("listen for the parent's end")?;
            #[cfg(target_os = "linux")]
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGUSR1).context("ask for the parent's end")?;
            Some((parent, look))
        }
    };
    Ok(async move {
        let Some((parent, mut look)) = watch else {
            return std::future::pending().await;
        };
        while nix::unistd::getppid().as_raw() == parent {
            tokio::select! {
                _ = look.recv() => {}
                () = tokio::time::sleep(PARENT_POLL) => {}
            }
        }
    })
}
