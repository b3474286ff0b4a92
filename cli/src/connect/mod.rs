//! Finds a control plane and its token, and opens the connection.
//!
//! Called by the commands that need a control plane. It owns the discovery order: what the flags and variables name, else
//! what an `up` left in its data directory (`endpoint.json`, `operator.token`). Always true: an operator token of a data
//! directory is sent only to the endpoint of that directory; a token is never printed; a missing control plane is an error
//! within five seconds. It deliberately does not start anything and does not retry.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use nix::errno::Errno;
use nix::sys::signal;
use nix::unistd::{Pid, geteuid};
use serde::Deserialize;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Response, Status};

use crate::args::Global;
use crate::error::Usage;

/// How long a control plane may take to accept the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// A silent connection is probed this often, so that a long wait notices a control plane that is gone.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Most bytes of one answer that carries many texts: all faults of a document, a page of long turns.
pub(crate) const ANSWER_BYTES: usize = 64 << 20;
/// Where systems keep the certificates they trust.
const SYSTEM_CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What discovery takes from the process's environment, read once in `main`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub xdg_data_home: Option<PathBuf>,
    /// `PATH`.
    pub path: Option<std::ffi::OsString>,
    /// `VISUAL`, else `EDITOR`: a command for the shell.
    pub editor: Option<std::ffi::OsString>,
}

/// Where to connect and as whom.
#[derive(Debug)]
pub(crate) struct Target {
    /// The URL.
    pub url: String,
    token: Option<Token>,
    left_by: Option<LeftBy>,
}

/// A token; its `Debug` shows nothing of it.
struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The process that wrote the endpoint file.
#[derive(Debug)]
struct LeftBy {
    file: PathBuf,
    pid: Option<i32>,
}

/// `endpoint.json`; other fields are for other readers.
#[derive(Debug, Deserialize)]
struct EndpointFile {
    grpc: String,
    pid: Option<i32>,
}

/// The directory of an `up` on this machine: the one named, else the default of this user.
///
/// # Errors
/// When none is named and the user has no home.
pub(crate) fn data_dir(named: Option<&Path>, env: &Environment) -> anyhow::Result<PathBuf> {
    if let Some(dir) = named.filter(|dir| !dir.as_os_str().is_empty()) {
        return Ok(dir.to_owned());
    }
    if geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/hermes"));
    }
    let absolute = |dir: &&PathBuf| dir.is_absolute();
    if let Some(dir) = env.xdg_data_home.as_ref().filter(absolute) {
        return Ok(dir.join("hermes"));
    }
    match env.home.as_ref().filter(absolute) {
        Some(home) => Ok(home.join(".local/share/hermes")),
        None => bail!("this user has no HOME; name the data directory with --data-dir or HERMES_DATA_DIR"),
    }
}

/// Decides where to connect and with which token.
///
/// # Errors
/// When nothing names a control plane, or a file that was named cannot be read.
pub(crate) fn discover(global: &Global, env: &Environment) -> anyhow::Result<Target> {
    let token = named_token(global)?;
    if let Some(server) = global.server.as_deref().filter(|server| !server.is_empty()) {
        let url = with_scheme(server);
        let token = match token {
            Some(token) => Some(token),
            None => operator_token_of(&url, global, env),
        };
        return Ok(Target { url, token, left_by: None });
    }
    let dir = data_dir(global.data_dir.as_deref(), env)?;
    let file = dir.join("endpoint.json");
    let Some(endpoint) = read_endpoint(&file)? else {
        bail!(
            "no control plane answers at {}: it has no endpoint.json; start one with `hermesctl up`, or name one with --server",
            dir.display()
        );
    };
    let token = match token {
        Some(token) => Some(token),
        None => operator_token(&dir)?,
    };
    Ok(Target { url: with_scheme(&endpoint.grpc), token, left_by: Some(LeftBy { file, pid: endpoint.pid }) })
}

fn with_scheme(server: &str) -> String {
    if server.contains("://") { server.to_owned() } else { format!("http://{server}") }
}

fn named_token(global: &Global) -> anyhow::Result<Option<Token>> {
    if let Some(file) = &global.token_file {
        let text = std::fs::read_to_string(file).with_context(|| format!("read the token file {}", file.display()))?;
        return Ok(Some(Token(text.trim().to_owned())));
    }
    Ok(global.token.as_deref().map(str::trim).filter(|token| !token.is_empty()).map(|token| Token(token.to_owned())))
}

fn read_endpoint(file: &Path) -> anyhow::Result<Option<EndpointFile>> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    let parsed = serde_json::from_slice(&text)
        .with_context(|| format!("{} is damaged; start `hermesctl up` again to write it anew", file.display()))?;
    Ok(Some(parsed))
}

fn operator_token(dir: &Path) -> anyhow::Result<Option<Token>> {
    let file = dir.join("operator.token");
    match std::fs::read_to_string(&file) {
        Ok(text) => Ok(Some(Token(text.trim().to_owned()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| {
            format!("read {}; run this as the user who started `up`, or give a token with --token-file", file.display())
        }),
    }
}

/// The operator token of the data directory, when that directory's own endpoint is the server that was named.
fn operator_token_of(url: &str, global: &Global, env: &Environment) -> Option<Token> {
    let dir = data_dir(global.data_dir.as_deref(), env).ok()?;
    let endpoint = read_endpoint(&dir.join("endpoint.json")).ok()??;
    let same = with_scheme(&endpoint.grpc).trim_end_matches('/') == url.trim_end_matches('/');
    if same { operator_token(&dir).ok()? } else { None }
}

/// Adds the token to every call.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// What the generated clients run on.
pub(crate) type Transport = InterceptedService<Channel, Bearer>;

/// An open connection.
pub(crate) struct Connection {
    channel: Channel,
    bearer: Bearer,
    timeout: Duration,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nothing answers within [`CONNECT_TIMEOUT`], or the URL, token or certificates are unusable.
    pub(crate) async fn open(target: &Target, global: &Global) -> anyhow::Result<Self> {
        let bearer = Bearer(target.token.as_ref().map(bearer_value).transpose()?);
        let endpoint = endpoint(&target.url, global.ca_file.as_deref())?;
        let channel = match tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(unanswered(target, &innermost(&error))),
            Err(_elapsed) => return Err(unanswered(target, "it did not accept the connection in time")),
        };
        Ok(Self { channel, bearer, timeout: global.timeout })
    }

    /// For the generated clients.
    pub(crate) fn transport(&self) -> Transport {
        InterceptedService::new(self.channel.clone(), self.bearer.clone())
    }

    /// Awaits one answer, at most as long as `--timeout` says.
    ///
    /// # Errors
    /// The status the control plane answered, or that it did not answer in time.
    pub(crate) async fn answer<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> anyhow::Result<T> {
        Ok(self.within(async { call.await.map(Response::into_inner) }).await?)
    }

    /// Limits a wait to `--timeout`.
    ///
    /// # Errors
    /// The status of the wait, or `DEADLINE_EXCEEDED`.
    pub(crate) async fn within<T>(&self, wait: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        match tokio::time::timeout(self.timeout, Box::pin(wait)).await {
            Ok(done) => done,
            Err(_elapsed) => Err(Status::deadline_exceeded(format!(
                "the control plane took longer than {} s, and a change may have happened or not; look, then try again with a longer --timeout",
                self.timeout.as_secs()
            ))),
        }
    }
}

fn bearer_value(token: &Token) -> anyhow::Result<MetadataValue<Ascii>> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.0)
        .parse()
        .map_err(|_unprintable| Usage("the token holds characters that no token has; was it copied whole?".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn endpoint(url: &str, ca_file: Option<&Path>) -> anyhow::Result<Endpoint> {
    let wrong =
        |why: String| Usage(format!("\"{url}\" is no server URL ({why}); write for example http://127.0.0.1:7070"));
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| wrong(innermost(&error)))?;
    let uri = endpoint.uri();
    if uri.host().is_none_or(str::is_empty) {
        return Err(wrong("it names no host".into()).into());
    }
    let only_host = uri.authority().is_some_and(|authority| Some(authority.as_str()) == uri.host());
    if !only_host && uri.port().is_none() {
        return Err(wrong("after the host only a port may follow".into()).into());
    }
    let secure = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong("it must begin with http:// or https://".into()).into()),
    };
    let endpoint = endpoint
        .user_agent(concat!("hermesctl/", env!("CARGO_PKG_VERSION")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    if !secure {
        return Ok(endpoint);
    }
    let pem = trusted(ca_file)?;
    endpoint.tls_config(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))).context("set up TLS")
}

fn trusted(ca_file: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    if let Some(file) = ca_file {
        return std::fs::read(file).with_context(|| format!("read the certificates {}", file.display()));
    }
    SYSTEM_CERTIFICATES
        .iter()
        .find_map(|file| std::fs::read(file).ok())
        .ok_or_else(|| anyhow!("this system has no file of trusted certificates; name one with --ca-file"))
}

fn unanswered(target: &Target, why: &str) -> anyhow::Error {
    let url = &target.url;
    match &target.left_by {
        Some(LeftBy { file, pid: Some(pid) }) if is_gone(*pid) => anyhow!(
            "no control plane answers at {url}: {} was left by process {pid}, which is gone; start one with `hermesctl up`",
            file.display()
        ),
        _ => anyhow!("no control plane answers at {url} ({why}); start one with `hermesctl up`"),
    }
}

/// A process that may not be signalled still lives.
fn is_gone(pid: i32) -> bool {
    pid <= 0 || signal::kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

/// The last cause of a chain: the one that says something.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;
