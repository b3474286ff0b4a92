//! Two listeners in this process with tokens in memory, and raw calls to them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use futures_util::future::BoxFuture;
use hermes_control_plane::grpc::identity_api::IdentityApi;
use hermes_control_plane::grpc::layers::{Layers, Limits, Listener, server, worker_tls};
use hermes_control_plane::identity::{
    Authority, Clock, MAX_WORKER_TTL, NewToken, Principal, Role, StoreError, Token, TokenHash, TokenStore, Tokens,
    mint, mint_join,
};
use hermes_control_plane::telemetry::Metrics;
use hermes_core::AgentId;
use http_body_util::{BodyExt as _, Full};
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use uuid::Uuid;

/// Tokens in memory with the store's contract: its own clock, atomic uses, order by id.
#[derive(Default)]
pub(crate) struct MemoryTokens {
    rows: Mutex<BTreeMap<Uuid, (TokenHash, Token)>>,
    /// Seconds added to the clock.
    pub(crate) later: AtomicI64,
    /// While set every call fails.
    pub(crate) down: std::sync::atomic::AtomicBool,
}

impl MemoryTokens {
    fn now(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::from_secs(self.later.load(Ordering::SeqCst))
    }

    fn call<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut BTreeMap<Uuid, (TokenHash, Token)>, Timestamp) -> T,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        let answer = if self.down.load(Ordering::SeqCst) {
            Err(StoreError(Arc::new(std::io::Error::other("connection refused"))))
        } else {
            Ok(act(&mut self.rows.lock().unwrap(), self.now()))
        };
        Box::pin(async move {
            tokio::task::yield_now().await;
            answer
        })
    }
}

fn live(token: &Token, now: Timestamp) -> bool {
    !token.revoked && token.expires_at.is_none_or(|end| end > now)
}

impl TokenStore for MemoryTokens {
    fn create(&self, new: NewToken) -> BoxFuture<'_, Result<Token, StoreError>> {
        self.call(|rows, now| {
            let token = Token {
                id: new.id,
                role: new.role,
                agent: new.agent,
                name: new.name,
                created_at: now,
                expires_at: new.ttl.map(|ttl| now + ttl),
                last_used_at: None,
                uses: new.uses,
                uses_left: new.uses,
                revoked: false,
            };
            rows.insert(new.id, (new.hash, token.clone()));
            token
        })
    }

    fn find_by_hash(&self, hash: TokenHash) -> BoxFuture<'_, Result<Option<Token>, StoreError>> {
        self.call(|rows, now| {
            rows.values().find(|(known, token)| *known == hash && live(token, now)).map(|(_, token)| token.clone())
        })
    }

    fn spend(&self, hash: TokenHash) -> BoxFuture<'_, Result<Option<Token>, StoreError>> {
        self.call(|rows, now| {
            let (_, token) = rows.values_mut().find(|(known, token)| *known == hash && live(token, now))?;
            let left = token.uses_left.as_mut().filter(|left| **left > 0)?;
            *left -= 1;
            token.last_used_at = Some(now);
            Some(token.clone())
        })
    }

    fn list(&self, after: Option<Uuid>, limit: u32) -> BoxFuture<'_, Result<Vec<Token>, StoreError>> {
        self.call(|rows, _| {
            let behind = rows.values().map(|(_, token)| token).filter(|token| after.is_none_or(|id| token.id > id));
            behind.take(usize::try_from(limit).unwrap()).cloned().collect()
        })
    }

    fn revoke(&self, id: Uuid) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.call(|rows, _| rows.get_mut(&id).map(|(_, token)| token.revoked = true).is_some())
    }

    fn touch_last_used(&self, ids: Vec<Uuid>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.call(|rows, now| {
            for id in ids {
                if let Some((_, token)) = rows.get_mut(&id) {
                    token.last_used_at = Some(now);
                }
            }
        })
    }
}

/// What stands behind the layers of [`Fixture::probe`]: it says who called (ABORTED, the principal's kind), or holds the
/// call as the header `x-hold` asks: `answer` never answers, `stream` answers a body that never ends.
#[derive(Clone)]
pub(crate) struct Probe {
    reached: mpsc::Sender<()>,
}

impl Service<http::Request<Body>> for Probe {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let kind = request.extensions().get::<Principal>().map_or("unset", Principal::kind);
        let hold = request.headers().get("x-hold").map(|value| value.as_bytes().to_vec());
        let reached = self.reached.clone();
        Box::pin(async move {
            let _ = reached.try_send(());
            match hold.as_deref() {
                Some(b"answer") => std::future::pending().await,
                Some(_) => {
                    let never = futures_util::stream::pending::<Result<hyper::body::Frame<bytes::Bytes>, Status>>();
                    let body = Body::new(http_body_util::StreamBody::new(never));
                    Ok(http::Response::builder().header("content-type", "application/grpc").body(body).unwrap())
                }
                None => Ok(Status::aborted(kind).into_http()),
            }
        })
    }
}

/// Both listeners of one control plane.
pub(crate) struct Fixture {
    pub(crate) authority: Arc<Authority>,
    pub(crate) store: Arc<MemoryTokens>,
    pub(crate) tokens: Tokens,
    pub(crate) operator_addr: SocketAddr,
    pub(crate) worker_addr: SocketAddr,
    /// Seconds added to the clock that judges certificates.
    pub(crate) later: Arc<AtomicI64>,
    /// One entry for each call that reached the probe.
    pub(crate) reached: mpsc::Receiver<()>,
    _servers: JoinSet<()>,
}

impl Fixture {
    /// With [`Probe`] behind the layers.
    pub(crate) async fn probe(limits: Limits) -> Self {
        Self::start(limits, None).await
    }

    /// With the identity service behind the layers; `agents` are registered.
    pub(crate) async fn identity(agents: &'static [&'static str]) -> Self {
        Self::start(Limits::default(), Some(agents)).await
    }

    async fn start(limits: Limits, agents: Option<&'static [&'static str]>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authority = Arc::new(Authority::create(Timestamp::now()).unwrap());
        let store = Arc::new(MemoryTokens::default());
        let tokens = Tokens::new(store.clone());
        let later = Arc::new(AtomicI64::new(0));
        let clock: Clock = {
            let later = Arc::clone(&later);
            Arc::new(move || Timestamp::now() + SignedDuration::from_secs(later.load(Ordering::SeqCst)))
        };
        let (reach, reached) = mpsc::channel(10_000);
        let mut servers = JoinSet::new();
        let mut addrs = Vec::new();
        for listener in [Listener::Operator, Listener::Worker] {
            let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addrs.push(socket.local_addr().unwrap());
            let incoming = TcpListenerStream::new(socket);
            let layers = Layers::new(listener, tokens.clone(), clock.clone(), limits.clone(), Metrics::unread());
            let mut server = server();
            if listener == Listener::Worker {
                let certificate = authority.server_certificate(&[], Timestamp::now()).unwrap();
                server = server.tls_config(worker_tls(&authority, &certificate)).unwrap();
            }
            let server = server.layer(layers);
            match agents {
                Some(agents) => {
                    let known = Arc::new(move |agent: &AgentId| agents.contains(&agent.as_str()));
                    let api = IdentityApi::new(authority.clone(), tokens.clone(), known, clock.clone());
                    let mut server = server;
                    let served = server.add_service(api.into_server()).serve_with_incoming(incoming);
                    servers.spawn(async move { served.await.unwrap() });
                }
                None => {
                    let probe = Probe { reached: reach.clone() };
                    servers.spawn(async move { server.serve_with_incoming(probe, incoming).await.unwrap() });
                }
            }
        }
        let (operator_addr, worker_addr) = (addrs[0], addrs[1]);
        Self { authority, store, tokens, operator_addr, worker_addr, later, reached, _servers: servers }
    }

    /// A stored token of `role`.
    pub(crate) async fn token(&self, role: Role) -> String {
        let minted = mint(role).unwrap();
        let new = NewToken {
            id: Uuid::now_v7(),
            role,
            agent: None,
            uses: None,
            ttl: None,
            name: String::new(),
            hash: minted.hash,
        };
        self.store.create(new).await.unwrap();
        minted.text.expose_secret().to_owned()
    }

    /// A stored join token of `agent`.
    pub(crate) async fn join_token(&self, agent: &str, uses: u32) -> (Uuid, String) {
        let minted = mint_join(self.authority.certificate_der());
        let new = NewToken {
            id: Uuid::now_v7(),
            role: Role::Worker,
            agent: Some(AgentId::parse(agent).unwrap()),
            uses: Some(uses),
            ttl: Some(Duration::from_secs(600)),
            name: String::new(),
            hash: minted.hash,
        };
        let id = new.id;
        self.store.create(new).await.unwrap();
        (id, minted.text.expose_secret().to_owned())
    }

    /// A connection to the operator listener.
    pub(crate) fn operator(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.operator_addr)).unwrap().connect_lazy()
    }

    /// A connection to the worker listener that trusts our authority and shows `identity`.
    pub(crate) fn worker(&self, identity: Option<Identity>) -> Channel {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.authority.certificate_pem()))
            .domain_name("hermes-control-plane");
        if let Some(identity) = identity {
            tls = tls.identity(identity);
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.worker_addr)).unwrap();
        endpoint.tls_config(tls).unwrap().connect_lazy()
    }

    /// A certificate of a worker of `coder`, signed at `now`.
    pub(crate) fn worker_identity(&self, now: Timestamp) -> Identity {
        let (key, csr) = key_and_csr(rcgen::CertificateParams::default());
        let agent = AgentId::parse("coder").unwrap();
        let signed = self.authority.sign_worker(&csr, &agent, Uuid::now_v7(), MAX_WORKER_TTL, now).unwrap();
        identity(&signed.der, &key)
    }
}

pub(crate) fn key_and_csr(params: rcgen::CertificateParams) -> (rcgen::KeyPair, Vec<u8>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    (key, csr)
}

pub(crate) fn identity(certificate_der: &[u8], key: &rcgen::KeyPair) -> Identity {
    let body = base64::engine::general_purpose::STANDARD.encode(certificate_der);
    let pem = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    Identity::from_pem(pem, key.serialize_pem())
}

/// The code and message of an answer, or the transport's error.
pub(crate) type Answer = Result<(Code, String), tonic::transport::Error>;

/// One raw call with an empty message.
pub(crate) async fn call(channel: &Channel, path: &str, headers: &[(&str, &str)]) -> Answer {
    let response = open(channel, path, headers).await?;
    let head = response.headers().clone();
    let status = match Status::from_header_map(&head) {
        Some(status) => status,
        None => {
            let trailers = response.into_body().collect().await.unwrap().trailers().cloned().unwrap_or_default();
            Status::from_header_map(&trailers).expect("a gRPC answer has a status")
        }
    };
    Ok((status.code(), status.message().to_owned()))
}

/// Starts a raw call and answers with the response's head.
pub(crate) async fn open(
    channel: &Channel,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<http::Response<Body>, tonic::transport::Error> {
    let mut request = http::Request::post(format!("http://hermes-control-plane{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let empty = Full::new(bytes::Bytes::from_static(&[0; 5]));
    let mut channel = channel.clone();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await?;
    channel.call(request.body(Body::new(empty)).unwrap()).await
}
