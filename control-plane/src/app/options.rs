//! The command line and environment of the control plane: the only place of this package that reads either.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::models;

/// The Hermes control plane: routes chat messages to agents, each in worker processes of its own.
#[derive(Debug, Parser)]
#[command(name = "hermes-control-plane", version, propagate_version = true)]
pub struct Options {
    /// What to log, for example info or info,hermes_control_plane=debug
    #[arg(long, env = "HERMES_LOG", default_value = crate::telemetry::DEFAULT_FILTER, global = true)]
    pub log: String,
    /// How log lines look
    #[arg(long, env = "HERMES_LOG_FORMAT", value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// OTLP gRPC collector for traces and metrics, for example http://127.0.0.1:4317
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", global = true, hide_env_values = true)]
    pub otlp_endpoint: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one replica on an existing Postgres; workers are started by somebody else
    #[command(
        after_help = "Example:\n  hermes-control-plane serve --database-url-file /run/secrets/db --config hermes.yaml"
    )]
    Serve(Box<Serve>),
    /// Run everything on this machine: Postgres, control plane and a worker process per agent (`hermesctl up`)
    #[command(after_help = "Example:\n  hermes-control-plane dev --data-dir ./data --config hermes.yaml")]
    Dev(Box<Dev>),
    /// Bring a database's schema up to this release and exit
    #[command(after_help = "Example:\n  hermes-control-plane migrate --database-url-file /run/secrets/db")]
    Migrate(Database),
    /// Make a database usable that was restored from a backup: run once, with every control plane stopped
    #[command(after_help = "Example:\n  hermes-control-plane fence --database-url-file /run/secrets/db")]
    Fence(Database),
    /// Check a document without a database; exit 1 names every fault
    #[command(after_help = "Example:\n  hermes-control-plane check-config hermes.yaml")]
    CheckConfig {
        /// The document
        file: PathBuf,
    },
}

/// Where Postgres is.
#[derive(Args, Clone, Debug)]
pub struct Database {
    /// postgres://user:password@host:5432/name
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// File that holds the URL
    #[arg(long, value_name = "FILE", conflicts_with = "database_url")]
    pub database_url_file: Option<PathBuf>,
}

/// Where to listen and what to apply; shared by both ways to run.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// gRPC for operators and clients
    #[arg(long, value_name = "ADDR", env = "HERMES_GRPC_ADDR")]
    pub grpc_addr: Option<SocketAddr>,
    /// HTTP API, health, metrics and webhooks
    #[arg(long, value_name = "ADDR", env = "HERMES_HTTP_ADDR")]
    pub http_addr: Option<SocketAddr>,
    /// Workers' mutual-TLS listener
    #[arg(long, value_name = "ADDR", env = "HERMES_WORKER_ADDR")]
    pub worker_addr: Option<SocketAddr>,
    /// Document to apply at this start, if it changed since the last one
    #[arg(long, value_name = "FILE", env = "HERMES_CONFIG")]
    pub config: Option<PathBuf>,
    /// Neither ring nor listen (NOTIFY): for a connection pooler between here and Postgres that cannot LISTEN. Other replicas
    /// then learn of work within a second instead of at once
    #[arg(long, env = "HERMES_NO_DOORBELL", hide = true)]
    pub no_doorbell: bool,
    /// Time limits of model calls
    #[command(flatten)]
    pub model: ModelLimits,
}

/// Time limits of model calls. Hidden: the defaults suit hosted models. A slow model of one's own may need more, tests of
/// models that hang need less.
#[derive(Args, Clone, Copy, Debug)]
pub struct ModelLimits {
    /// Longest wait for a model's first token, milliseconds
    #[arg(long, value_name = "MS", env = "HERMES_MODEL_FIRST_TOKEN_MS", hide = true, value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub model_first_token_ms: Option<u64>,
    /// Longest silence of a model after a token, milliseconds
    #[arg(long, value_name = "MS", env = "HERMES_MODEL_BETWEEN_TOKENS_MS", hide = true, value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub model_between_tokens_ms: Option<u64>,
}

impl ModelLimits {
    /// The broker's settings with these limits.
    pub(super) fn settings(self) -> models::Settings {
        let or = |given: Option<u64>, default| given.map_or(default, Duration::from_millis);
        let default = models::Settings::default();
        models::Settings {
            first_token: or(self.model_first_token_ms, default.first_token),
            between_tokens: or(self.model_between_tokens_ms, default.between_tokens),
            ..default
        }
    }
}

/// One replica on an existing Postgres.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// The database
    #[command(flatten)]
    pub database: Database,
    /// Listeners and document
    #[command(flatten)]
    pub common: Common,
    /// Who starts worker processes
    #[arg(long, value_enum, default_value = "external")]
    pub launcher: LauncherKind,
    /// Further names of the workers' listener in its certificate, for example its service name
    #[arg(long, value_name = "NAME")]
    pub worker_name: Vec<String>,
    /// File with an operator token to accept from the first start on (made with `openssl rand`, see the guide)
    #[arg(long, value_name = "FILE")]
    pub operator_token_file: Option<PathBuf>,
    /// Do not bring the schema up to this release; refuse to start when it is not
    #[arg(long)]
    pub no_migrate: bool,
}

/// Who starts worker processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LauncherKind {
    /// Somebody else, with join tokens
    External,
}

/// Everything on this machine.
#[derive(Args, Clone, Debug)]
pub struct Dev {
    /// Where Postgres, homes and tokens live
    #[arg(long, value_name = "DIR", env = "HERMES_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// A Postgres of yours instead of our own
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Listeners and document
    #[command(flatten)]
    pub common: Common,
}

/// What else of the surroundings matters; read once.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// `HERMES_HOME`: the home of `main`.
    pub hermes_home: Option<PathBuf>,
    /// `HOME`.
    pub user_home: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub xdg_data_home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
    /// `HERMES_PG_BIN`.
    pub pg_bin: Option<PathBuf>,
    /// `PATH`.
    pub path: std::ffi::OsString,
}

impl Surroundings {
    /// Reads the environment.
    pub fn read() -> Self {
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            hermes_home: path("HERMES_HOME"),
            user_home: path("HOME"),
            xdg_data_home: path("XDG_DATA_HOME"),
            runtime_dir: path("XDG_RUNTIME_DIR"),
            pg_bin: path("HERMES_PG_BIN"),
            path: std::env::var_os("PATH").unwrap_or_default(),
        }
    }
}
