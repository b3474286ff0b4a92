//! The one client for places that models name, and for the search provider that the operator names.
//!
//! Called by the tools that reach the web. Always true: a connection is opened only to an address that `hermes_core::egress` admits:
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
use reqwest::{Response, Url, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// Longest URL, bytes.
const MAX_URL: usize = 4096;
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
    policy: Policy,
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
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (name, web) = (name.as_str().to_owned(), (self.policy)());
        let looked = (self.lookup)(name.clone());
        Box::pin(async move {
            let addresses = looked.await?;
            // One of them is enough to refuse the name: the others may be there to hide it.
            for address in &addresses {
                web.admits(*address).map_err(|kind| Refused { host: name.clone(), kind })?;
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
        let plain = || {
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
                .timeout(TIME_LIMIT)
                .user_agent(AGENT)
        };
        // A kept connection would outlive the policy that admitted it.
        let guard = Guard { lookup, policy: Arc::clone(&policy) };
        let guarded = plain().pool_max_idle_per_host(0).dns_resolver(Arc::new(guard)).build()?;
        Ok(Self { guarded, trusted: plain().build()?, policy })
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
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hermes_core::egress::Block;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    fn install() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }

    /// A server on loopback that answers each connection with these bytes; how often it was connected to, and its port.
    async fn server(
        tasks: &mut JoinSet<()>,
        answer: impl Fn(u16) -> String + Send + 'static,
    ) -> (Arc<AtomicUsize>, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (met, port) = (Arc::new(AtomicUsize::new(0)), listener.local_addr().unwrap().port());
        let count = Arc::clone(&met);
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer(port).as_bytes()).await;
            }
        });
        (met, port)
    }

    fn says(body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    fn egress(web: Web, lookup: Lookup) -> Egress {
        install();
        Egress::new(Arc::new(move || web.clone()), lookup).unwrap()
    }

    /// Answers these addresses one after the other, the last one for ever.
    fn answers(all: &'static [&'static str]) -> Lookup {
        let asked = Arc::new(AtomicUsize::new(0));
        Arc::new(move |_| {
            let at = asked.fetch_add(1, Ordering::SeqCst).min(all.len() - 1);
            let addresses = all[at].split(' ').map(|address| address.parse().unwrap()).collect();
            Box::pin(async move { Ok(addresses) })
        })
    }

    #[tokio::test]
    async fn no_spelling_of_an_inner_address_is_connected_to() {
        let mut tasks = JoinSet::new();
        let (met, port) = server(&mut tasks, |_| says("secret")).await;
        let egress = egress(Web { ports: vec![port], ..Web::default() }, answers(&["127.0.0.1"]));
        for host in [
            "127.0.0.1",
            "127.1",
            "0x7f.1",
            "0x7f000001",
            "2130706433",
            "017700000001",
            "0177.0.0.1",
            "0",
            "0.0.0.0",
            "127.0.0.1.",
            "localhost",
            "localhost.",
            "LOCALHOST",
            "localtest.me",
            "metadata.google.internal",
            "１２７.０.０.１",
            "127。0。0。1",
            "①②⑦.0.0.1",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[0:0:0:0:0:ffff:7f00:0001]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[fe80::1%25lo]",
            "[fd00::1]",
            "169.254.169.254",
            "0xa9fea9fe",
            "[::ffff:169.254.169.254]",
            "100.100.100.200",
            "10.0.0.1",
            "192.168.0.1",
            "a@127.0.0.1",
            "1.1.1.1:80@127.0.0.1",
            "127.0.0.1%2f.example.org",
            "xn--lcalhost-54a",
            "bücher.example",
        ] {
            let url = format!("http://{host}:{port}/");
            assert!(egress.get(&url).await.is_err(), "{url}");
        }
        for url in [
            "ftp://1.1.1.1/",
            "file:///etc/passwd",
            "gopher://1.1.1.1/",
            "http://1.1.1.1:22/",
            "https://1.1.1.1:5432/",
            "",
            "//1.1.1.1",
            "data:,x",
        ] {
            assert!(egress.get(url).await.is_err(), "{url}");
        }
        assert_eq!(met.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_name_that_turns_inward_or_hides_an_inner_address_is_not_connected_to() {
        let mut tasks = JoinSet::new();
        let (met, port) = server(&mut tasks, |_| says("secret")).await;
        // One that is public when it is first asked for, and one that is both.
        for lookup in
            [answers(&["192.0.2.1", "127.0.0.1"]), answers(&["127.0.0.1 1.1.1.1"]), answers(&["::ffff:127.0.0.1"])]
        {
            let egress = egress(Web { ports: vec![port], ..Web::default() }, lookup);
            for _ in 0..3 {
                let refused = egress.get(&format!("http://rebinds.example:{port}/")).await.unwrap_err();
                assert!(refused.contains("rebinds.example is a"), "{refused}");
            }
        }
        assert_eq!(met.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn what_an_operator_allows_is_fetched_and_every_redirect_is_judged_anew() {
        let mut tasks = JoinSet::new();
        let (inner, hidden) = server(&mut tasks, |_| says("secret")).await;
        let to = move |place: &str| {
            format!("HTTP/1.1 302 Found\r\nlocation: {place}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        };
        let (_, good) = server(&mut tasks, |_| says("a page")).await;
        let (_, on) = server(&mut tasks, move |_| to(&format!("http://site.example:{good}/x"))).await;
        let (_, inward) = server(&mut tasks, move |_| to(&format!("http://127.0.0.2:{hidden}/"))).await;
        let (_, metadata) = server(&mut tasks, move |_| to("http://169.254.169.254/latest/")).await;
        let (_, scheme) = server(&mut tasks, move |_| to("file:///etc/passwd")).await;
        let (turns, round) = server(&mut tasks, move |port| to(&format!("http://site.example:{port}/"))).await;
        let (_, packed) =
            server(&mut tasks, |_| says("x").replace("content-type", "content-encoding: gzip\r\ncontent-type")).await;
        let (_, large) = server(&mut tasks, |_| says(&"x".repeat(MAX_PAGE + 10))).await;
        let ports = vec![good, on, inward, metadata, scheme, round, packed, large, hidden];
        let web = Web { allow_private: vec![Block::parse("127.0.0.1").unwrap()], ports, ..Web::default() };
        let egress = egress(web, answers(&["127.0.0.1"]));
        let get = async |port: u16| egress.get(&format!("http://site.example:{port}/")).await;
        let page = get(on).await.unwrap();
        assert_eq!((page.body.as_slice(), page.url), (b"a page".as_slice(), format!("http://site.example:{good}/x")));
        assert!(get(inward).await.unwrap_err().contains("127.0.0.2 is a loopback address"));
        assert!(get(metadata).await.unwrap_err().contains("169.254.169.254 is a link-local or metadata address"));
        assert!(get(scheme).await.unwrap_err().contains("only http and https"));
        assert!(get(round).await.unwrap_err().contains("redirects more than 5 times"));
        assert_eq!(turns.load(Ordering::SeqCst), 6);
        assert!(get(packed).await.unwrap_err().contains("packed"));
        let page = get(large).await.unwrap();
        assert!(page.cut && page.body.len() == MAX_PAGE);
        assert_eq!(inner.load(Ordering::SeqCst), 0);
    }
}
