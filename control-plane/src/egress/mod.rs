//! The one client for places that models name, and for the search provider and the MCP servers that the operator names.
//!
//! Called by the tools that reach the web, and for workers whose agents have MCP servers behind a URL. Always true: a connection is opened only to an address that `hermes_core::egress` admits:
//! names are resolved here, every address of a name is judged, and the connection goes to the very addresses that were judged, for
//! each redirect anew; it carries no cookie, no credential and goes through no proxy of the environment; bodies, redirects and
//! times have bounds, and nothing is unpacked. It deliberately does not know who asks, nor what a page means.

use std::error::Error as StdError;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hermes_core::egress::{Search, SearchProvider, Web};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Method, Response, StatusCode, Url, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// Longest URL, bytes.
const MAX_URL: usize = 4096;
/// Longest name of a host.
const MAX_HOST: usize = 253;
/// How much of a page is read, bytes; what is beyond is not asked for.
const MAX_PAGE: usize = 2 << 20;
/// How much of a provider's answer is read, bytes.
const MAX_FOUND: usize = 1 << 20;
const CONNECT: Duration = Duration::from_secs(10);
/// For a page with all its redirects.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);
const AGENT: &str = concat!("hermes/", env!("CARGO_PKG_VERSION"));

/// What may be reached now.
pub type Policy = Arc<dyn Fn() -> Web + Send + Sync>;
/// The addresses of a name.
pub type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> + Send + Sync>;

/// The client; cheap to clone.
#[derive(Clone)]
pub struct Egress {
    guarded: reqwest::Client,
    /// For the operator's own places.
    trusted: reqwest::Client,
    /// For the operator's own places that answer for as long as they like.
    named: reqwest::Client,
    policy: Policy,
    lookup: Lookup,
}

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Egress")
    }
}

/// What was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where it was in the end.
    pub url: String,
    /// The status, which may be a failure's.
    pub status: u16,
    /// Its content type, lower-case; empty where it says none.
    pub content_type: String,
    /// Its bytes, or the first of them.
    pub body: Vec<u8>,
    /// There was more.
    pub cut: bool,
}

/// One thing that a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is called.
    pub title: String,
    /// Where it is.
    pub url: String,
    /// What it says.
    pub text: String,
}

/// The machine's own resolver.
pub fn system_lookup() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) })
    })
}

/// An address that is not admitted.
#[derive(Debug, thiserror::Error)]
#[error("{host} is {kind} address, which is not allowed (web.allow_private of the operator's document)")]
struct Refused {
    host: String,
    kind: &'static str,
}

/// Resolves, and lets through what is admitted.
struct Guard {
    lookup: Lookup,
    policy: Policy,
    admits: fn(&Web, IpAddr) -> Result<(), &'static str>,
}

/// Why a connection was not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unopened {
    /// For people and models.
    pub reason: String,
    /// It may be reached, but was not.
    pub allowed: bool,
}

/// What a place answers: its head, and its body as it comes.
#[derive(Debug)]
pub struct Answer(Response);

impl Answer {
    /// The status, which may be a failure's.
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// The text of a header; none where it is not there, or no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.0.headers().get(name)?.to_str().ok()
    }

    /// What comes next of the body; none: it has ended. As much at once as the other side sends: a bound is the caller's.
    ///
    /// # Errors
    /// Why it broke off, for people.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        self.0.chunk().await.map(|chunk| chunk.map(Into::into)).map_err(|error| cause(&error))
    }
}

/// A request that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// For people; never with a URL or a header in it.
    pub reason: String,
    /// It was perhaps sent, and may have had an effect.
    pub begun: bool,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (name, web, admits) = (name.as_str().to_owned(), (self.policy)(), self.admits);
        let looked = (self.lookup)(name.clone());
        Box::pin(async move {
            let addresses = looked.await?;
            // One of them is enough to refuse the name: the others may be there to hide it.
            for address in &addresses {
                admits(&web, *address).map_err(|kind| Refused { host: name.clone(), kind })?;
            }
            let checked: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(checked)
        })
    }
}

impl Egress {
    /// Under this policy, which is asked anew for each connection.
    ///
    /// # Errors
    /// TLS could not be set up.
    pub fn new(policy: Policy, lookup: Lookup) -> Result<Self, reqwest::Error> {
        let endless = || {
            reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                // Whatever else of the build asks for these.
                .no_gzip()
                .no_brotli()
                .no_deflate()
                .no_zstd()
                .connect_timeout(CONNECT)
                .user_agent(AGENT)
        };
        let plain = || endless().timeout(TIME_LIMIT);
        // A kept connection would outlive the policy that admitted it.
        let guard = |admits| Arc::new(Guard { lookup: Arc::clone(&lookup), policy: Arc::clone(&policy), admits });
        let guarded = plain().pool_max_idle_per_host(0).dns_resolver(guard(Web::admits)).build()?;
        let named = endless().pool_max_idle_per_host(0).dns_resolver(guard(Web::admits_named)).build()?;
        Ok(Self { guarded, trusted: plain().build()?, named, policy, lookup })
    }

    /// Opens a connection to what a model's program names: a name or an address, and a port.
    ///
    /// # Errors
    /// [`Unopened`].
    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, Unopened> {
        let refused = |reason: String| Unopened { reason, allowed: false };
        let web = (self.policy)();
        if host.is_empty() || host.len() > MAX_HOST || host.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(refused("this is no name of a host".to_owned()));
        }
        if !web.admits_port(port) {
            return Err(refused(format!("port {port} is not allowed (web.ports of the operator's document)")));
        }
        let away = |reason: String| Unopened { reason, allowed: true };
        let dialling = async {
            let addresses = match host.parse::<IpAddr>() {
                Ok(literal) => vec![literal],
                Err(_) => {
                    let looked = (self.lookup)(host.to_owned()).await;
                    looked.map_err(|error| away(format!("{host} has no address: {error}")))?
                }
            };
            for address in &addresses {
                let kind = web.admits(*address);
                kind.map_err(|kind| refused(Refused { host: host.to_owned(), kind }.to_string()))?;
            }
            let mut last = format!("{host} has no address");
            for address in addresses {
                // This very address, and no other that the name may have by now.
                match TcpStream::connect((address, port)).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = format!("{host} could not be reached: {error}"),
                }
            }
            Err(away(last))
        };
        let late = || Err(away(format!("{host} could not be reached within {} s", CONNECT.as_secs())));
        tokio::time::timeout(CONNECT, dialling).await.unwrap_or_else(|_| late())
    }

    /// Sends one request to a place that the operator's document names, and answers with its status and headers; the caller reads the
    /// body, and bounds how long all of it takes. A redirect is an answer like another: what is sent is for that place alone.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        headers: header::HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answer, Failed> {
        let unsent = |reason: &str| Failed { reason: reason.to_owned(), begun: false };
        let url = Url::parse(url).map_err(|_| unsent("its URL cannot be read"))?;
        let request = self.named.request(method, url).header(header::ACCEPT_ENCODING, "identity").headers(headers);
        let response = request.body(body).send().await;
        let response = response.map_err(|error| Failed { reason: cause(&error), begun: !error.is_connect() })?;
        let encoding = response.headers().get(header::CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| encoding != "identity") {
            return Err(Failed { reason: "it answers packed although nobody asked for that".to_owned(), begun: true });
        }
        Ok(Answer(response))
    }

    /// Gets a page, following redirects.
    ///
    /// # Errors
    /// A sentence for whoever named the URL.
    pub async fn get(&self, url: &str) -> Result<Page, String> {
        tokio::time::timeout(TIME_LIMIT, self.follow(url))
            .await
            .unwrap_or_else(|_| Err(format!("it did not answer within {} s", TIME_LIMIT.as_secs())))
    }

    async fn follow(&self, url: &str) -> Result<Page, String> {
        let mut url = self.checked(Url::parse(url).map_err(|error| format!("this is no URL: {error}"))?)?;
        for _ in 0..=MAX_REDIRECTS {
            let request = self.guarded.get(url.clone()).header(header::ACCEPT, "text/html, text/*;q=0.9, */*;q=0.5");
            let request = request.header(header::ACCEPT_ENCODING, "identity");
            let response = request.send().await.map_err(|error| cause(&error))?;
            let Some(next) = redirected(&response) else { return page(url, response).await };
            url = self.checked(url.join(&next).map_err(|error| format!("it redirects to what is no URL: {error}"))?)?;
        }
        Err(format!("it redirects more than {MAX_REDIRECTS} times"))
    }

    /// Judges what can be judged before anything is resolved.
    fn checked(&self, url: Url) -> Result<Url, String> {
        let web = (self.policy)();
        if !matches!(url.scheme(), "http" | "https") {
            return Err("only http and https URLs are fetched".to_owned());
        }
        if url.as_str().len() > MAX_URL {
            return Err(format!("a URL has at most {MAX_URL} bytes"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a URL with a user name or a password is not fetched".to_owned());
        }
        let port = url.port_or_known_default().unwrap_or_default();
        if !web.admits_port(port) {
            return Err(format!("port {port} is not allowed (web.ports of the operator's document)"));
        }
        // Literal addresses are never resolved.
        let host = url.host_str().unwrap_or_default();
        let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = literal.parse::<IpAddr>() {
            let refused = |kind| Refused { host: literal.to_owned(), kind }.to_string();
            web.admits(address).map_err(refused)?;
        }
        Ok(url)
    }

    /// Asks the operator's search provider.
    ///
    /// # Errors
    /// A sentence for whoever searches; never with the key in it.
    pub async fn search(
        &self,
        search: &Search,
        key: Option<&SecretString>,
        query: &str,
        most: usize,
    ) -> Result<Vec<Found>, String> {
        let base = search.base_url.as_deref().or(search.provider.base_url()).unwrap_or_default();
        let base = base.trim_end_matches('/');
        let secret = key.map(|key| key.expose_secret()).unwrap_or_default();
        let (request, list, text) = match search.provider {
            SearchProvider::Brave => {
                let url =
                    url_with(&format!("{base}/res/v1/web/search"), &[("q", query), ("count", &most.to_string())])?;
                (
                    self.trusted.get(url).header("x-subscription-token", sensitive(secret)?),
                    "/web/results",
                    "description",
                )
            }
            SearchProvider::Tavily => {
                let body = json!({"query": query, "max_results": most});
                (self.trusted.post(format!("{base}/search")).bearer_auth(secret).json(&body), "/results", "content")
            }
            SearchProvider::Searxng => {
                let url = url_with(&format!("{base}/search"), &[("q", query), ("format", "json")])?;
                let request = self.trusted.get(url);
                (if secret.is_empty() { request } else { request.bearer_auth(secret) }, "/results", "content")
            }
        };
        let name = search.provider.as_str();
        let response = request.send().await.map_err(|error| format!("{name} was not reached: {}", cause(&error)))?;
        let status = response.status();
        if !status.is_success() {
            return Err(format!("{name} answered {status}"));
        }
        let (body, cut) = read(response, MAX_FOUND).await?;
        let answer: Value = serde_json::from_slice(&body).map_err(|_| {
            if cut {
                format!("{name} answered more than {MAX_FOUND} bytes")
            } else {
                format!("{name} answered what is no JSON")
            }
        })?;
        let field = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
        let results = answer.pointer(list).and_then(Value::as_array).into_iter().flatten();
        let found =
            results.map(|one| Found { title: field(one, "title"), url: field(one, "url"), text: field(one, text) });
        Ok(found.take(most).collect())
    }
}

fn url_with(url: &str, query: &[(&str, &str)]) -> Result<Url, String> {
    Url::parse_with_params(url, query).map_err(|error| format!("the place of the search provider is no URL: {error}"))
}

fn sensitive(secret: &str) -> Result<header::HeaderValue, String> {
    let mut value =
        header::HeaderValue::from_str(secret).map_err(|_| "the search provider's key cannot be sent".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// Where it leads on, if it does.
fn redirected(response: &Response) -> Option<String> {
    let location = response
        .headers()
        .get(header::LOCATION)
        .filter(|_| matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308))?;
    Some(String::from_utf8_lossy(location.as_bytes()).into_owned())
}

async fn page(url: Url, response: Response) -> Result<Page, String> {
    let text =
        |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_lowercase();
    let encoding = text(header::CONTENT_ENCODING);
    if !matches!(encoding.as_str(), "" | "identity") {
        return Err("it is packed although nobody asked for that".to_owned());
    }
    let (status, content_type) = (response.status().as_u16(), text(header::CONTENT_TYPE));
    let (body, cut) = read(response, MAX_PAGE).await?;
    Ok(Page { url: url.to_string(), status, content_type, body, cut })
}

/// The first `most` bytes of a body, and whether there were more.
async fn read(mut response: Response, most: usize) -> Result<(Vec<u8>, bool), String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| cause(&error))? {
        let room = most - body.len();
        body.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
        if chunk.len() > room {
            return Ok((body, true));
        }
    }
    Ok((body, false))
}

/// What went wrong, without the URL: that may be the operator's.
fn cause(error: &reqwest::Error) -> String {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    let mut last = String::new();
    while let Some(error) = next {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return refused.to_string();
        }
        last = error.to_string();
        next = error.source();
    }
    if error.is_timeout() { "it did not answer in time".to_owned() } else { format!("it could not be reached: {last}") }
}

#[cfg(test)]
mod tests;
