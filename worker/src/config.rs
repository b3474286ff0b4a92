//! The process's settings: command line and environment, read once, immutable after.
//!
//! Called by `main`. Always true of a [`Config`]: each server is an `https` URL and there is one, slots are 1 to 1024, and the join token
//! never appears in argv, in the environment or in `Debug` output. It opens nothing but the inherited token descriptor.

use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser as _;
use clap::error::ErrorKind;
use tonic::transport::Uri;

/// Largest join token text that is read, in bytes.
const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Serve one agent of a Hermes control plane from one home directory.
#[derive(clap::Parser)]
#[command(
    name = "hermes-worker",
    version,
    after_help = "Example:\n  hermes-worker --server https://127.0.0.1:7071 --home /var/lib/hermes/homes/main --join-token-file /run/hermes/join-token\n\nWhat this machine gives to keep agents apart:\n  hermes-worker doctor"
)]
struct Args {
    /// A worker listener of the control plane; may be repeated, or hold several with commas
    #[arg(
        long,
        env = "HERMES_WORKER_SERVER",
        value_name = "https://HOST:PORT",
        value_delimiter = ',',
        required = true
    )]
    server: Vec<String>,
    /// The agent's home directory; made with mode 0700 when missing
    #[arg(long, env = "HERMES_WORKER_HOME", value_name = "DIR")]
    home: PathBuf,
    /// Sessions served at the same time
    #[arg(long, env = "HERMES_WORKER_SLOTS", value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1024))]
    slots: u32,
    /// How long running turns may go on after SIGTERM before they are handed back
    #[arg(long, env = "HERMES_WORKER_DRAIN_SECONDS", value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    drain_seconds: u32,
    /// Inherited descriptor to read the join token from, to its end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    join_token_fd: Option<i32>,
    /// File to read the join token from; read again at each join
    #[arg(long, env = "HERMES_WORKER_JOIN_TOKEN_FILE", value_name = "PATH")]
    join_token_file: Option<PathBuf>,
    /// Exit when the process that started this one is no longer this pid
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    parent_pid: Option<i32>,
    /// How log lines on stderr look
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// OTLP/gRPC endpoint for traces
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide = true)]
    otlp_endpoint: Option<String>,
}

/// Where the join token comes from.
#[derive(Clone)]
pub enum JoinSource {
    /// Its text, read from an inherited descriptor at start.
    Text(String),
    /// A file, read at each join, so that a renewed or multi-use token works.
    File(PathBuf),
}

impl fmt::Debug for JoinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(***)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl JoinSource {
    /// The token's text as it is now.
    ///
    /// # Errors
    /// When the file cannot be read or is not text; the message names the file, never its content.
    pub fn read(&self) -> std::io::Result<String> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => read_token(std::fs::File::open(path)?),
        }
    }
}

/// What this process was told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The worker listeners, `https` URLs; each connection goes to another one.
    pub servers: Vec<Uri>,
    /// The home directory as given.
    pub home: PathBuf,
    /// Sessions served at the same time, 1 to 1024.
    pub slots: u32,
    /// How long running turns may go on after the first signal.
    pub drain_grace: Duration,
    /// Where the join token comes from.
    pub join: JoinSource,
    /// The process whose end is also ours.
    pub parent_pid: Option<i32>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Where traces go; `None`: nowhere.
    pub otlp_endpoint: Option<String>,
    /// The program that this process runs, beside which is what its tools are started with; `None`: it has none of its own.
    pub program: Option<PathBuf>,
}

impl Config {
    /// Reads the arguments, the program name first, the environment where an argument is missing, and the inherited
    /// token descriptor if one is named.
    ///
    /// # Errors
    /// A message for the person at the terminal (also for `--help`), to be printed with `print`.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let args = Args::try_parse_from(args)?;
        let wrong = |kind, message: String| {
            use clap::CommandFactory as _;
            Args::command().error(kind, message)
        };
        let mut servers = Vec::new();
        for text in args.server.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
            servers.push(server(text).ok_or_else(|| {
                wrong(ErrorKind::ValueValidation, format!("--server must be https://HOST:PORT, not {text:?}"))
            })?);
        }
        if servers.is_empty() {
            return Err(wrong(ErrorKind::MissingRequiredArgument, "--server names no server".to_owned()));
        }
        let join = match (args.join_token_fd, args.join_token_file) {
            (Some(fd), _) => {
                let text = read_descriptor(fd)
                    .map_err(|error| wrong(ErrorKind::Io, format!("cannot read --join-token-fd {fd}: {error}")))?;
                JoinSource::Text(text)
            }
            (None, Some(path)) => JoinSource::File(path),
            (None, None) => {
                let message = "a join token is needed: give --join-token-file PATH or --join-token-fd N".to_owned();
                return Err(wrong(ErrorKind::MissingRequiredArgument, message));
            }
        };
        Ok(Self {
            servers,
            home: args.home,
            slots: args.slots,
            drain_grace: Duration::from_secs(u64::from(args.drain_seconds)),
            join,
            parent_pid: args.parent_pid,
            log_format: args.log_format,
            otlp_endpoint: args.otlp_endpoint.filter(|endpoint| !endpoint.is_empty()),
            program: None,
        })
    }
}

/// The URL of a worker listener: scheme, host and port.
fn server(text: &str) -> Option<Uri> {
    let url: Uri = text.trim_end_matches('/').parse().ok()?;
    let plain = url.scheme_str() == Some("https") && url.host().is_some_and(|host| !host.is_empty());
    (plain && matches!(url.path(), "" | "/") && url.query().is_none()).then_some(url)
}

/// Reads a descriptor of this process by its name in `/proc`, which needs no unsafe code, and closes the original.
fn read_descriptor(fd: i32) -> std::io::Result<String> {
    let text = read_token(std::fs::File::open(format!("/proc/self/fd/{fd}"))?)?;
    if fd > 2 {
        nix::unistd::close(fd)?;
    }
    Ok(text)
}

fn read_token(file: std::fs::File) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(MAX_TOKEN_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, clap::Error> {
        Config::from_args(std::iter::once("hermes-worker").chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn reads_flags_and_defaults() {
        let config =
            parse(&["--server", "https://127.0.0.1:1/", "--home", "/h", "--join-token-file", "/t"]).expect("valid");
        assert_eq!((config.servers, config.slots), (vec![Uri::from_static("https://127.0.0.1:1")], 256));
        assert_eq!(config.drain_grace, Duration::from_secs(20));
        assert_eq!(config.log_format, LogFormat::Text);
    }

    #[test]
    fn several_servers_come_as_flags_or_with_commas() {
        let args = ["--server", "https://a:1, https://b:2/,", "--server", "https://[::1]:3", "--home", "/h"];
        let config = parse(&[&args[..], &["--join-token-file", "/t"]].concat()).expect("valid");
        let servers: Vec<_> = config.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["https://a:1/", "https://b:2/", "https://[::1]:3/"]);
    }

    #[test]
    fn refuses_plain_http_no_token_and_zero_slots() {
        for args in [
            vec!["--server", "http://127.0.0.1:1", "--home", "/h", "--join-token-file", "/t"],
            vec!["--server", "https://127.0.0.1:1,ftp://b", "--home", "/h", "--join-token-file", "/t"],
            vec!["--server", ",", "--home", "/h", "--join-token-file", "/t"],
            vec!["--server", "https://127.0.0.1:1/path", "--home", "/h", "--join-token-file", "/t"],
            vec!["--server", "https://127.0.0.1:1", "--home", "/h"],
            vec!["--server", "https://127.0.0.1:1", "--home", "/h", "--join-token-file", "/t", "--slots", "0"],
            vec!["--server", "https://127.0.0.1:1", "--home", "/h", "--join-token-file", "/t", "--slots", "1025"],
            vec!["--server", "https://127.0.0.1:1", "--home", "/h", "--join-token-fd", "9999"],
        ] {
            assert!(parse(&args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn reads_a_token_from_a_descriptor_and_closes_it() {
        use std::io::Write as _;
        use std::os::fd::IntoRawFd as _;
        let (reader, mut writer) = std::io::pipe().expect("pipe");
        writer.write_all(b"hermes-join.v1.a.b").expect("write");
        drop(writer);
        let fd = reader.into_raw_fd();
        assert_eq!(read_descriptor(fd).expect("read"), "hermes-join.v1.a.b");
        assert!(std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_err());
    }

    #[test]
    fn a_token_never_shows_in_debug_output() {
        assert!(!format!("{:?}", JoinSource::Text("hermes-join.v1.secret".into())).contains("secret"));
    }
}
