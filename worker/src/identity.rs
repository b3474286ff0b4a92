//! Who this worker is: the join token it starts with and the certificate that the token buys.
//!
//! Called by the link before each connection and by its renewal. Owns the private key, which is made here and never
//! leaves memory. Always true: the server is verified from the first byte against the authority that came inside the
//! join token, and a certificate is renewed after half of its life, so a worker that can reach the control plane never
//! needs its join token twice. A new certificate is used with the same server, a new connection goes to another one. It does
//! not decide when to reconnect.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::future::BoxFuture;
use hermes_proto::v1::identity_service_client::IdentityServiceClient;
use hermes_proto::v1::{JoinRequest, RenewRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri};
use x509_parser::prelude::FromDer as _;

use crate::config::JoinSource;
use crate::servers::{Server, Servers};

/// The name in the control plane's certificate, whatever address it is reached by.
const SERVER_NAME: &str = "hermes-control-plane";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A certificate is not used in its last moments: a handshake takes a while too.
const EXPIRY_MARGIN: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The join token cannot be read.
    #[error("cannot read the join token; check --join-token-file or --join-token-fd")]
    Unreadable(#[source] std::io::Error),
    /// The join token's text is none.
    #[error("the join token is malformed; make one with `hermesctl token create --role worker --agent ID`")]
    Malformed,
    /// The control plane does not accept the join token (any more).
    #[error(
        "the certificate has expired or is missing and the join token is not accepted ({0}); start this worker with a new token"
    )]
    Rejected(String),
    /// The new certificate or key cannot be used.
    #[error("the control plane's certificate answer cannot be used")]
    Certificate(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Not reached, or it broke: trying again may help.
    #[error("cannot reach the control plane")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Whether trying again with the same settings cannot help.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Unreachable(_))
    }
}

/// A join token taken apart: `hermes-join.v1.<base64url(secret)>.<base64url(CA certificate DER)>`.
struct JoinToken {
    text: String,
    authority_pem: String,
}

impl JoinToken {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (secret, authority) = text.strip_prefix("hermes-join.v1.")?.split_once('.')?;
        let der = URL_SAFE_NO_PAD.decode(authority.trim_end_matches('=')).ok()?;
        let secret = URL_SAFE_NO_PAD.decode(secret.trim_end_matches('=')).ok()?;
        let (rest, _) = x509_parser::certificate::X509Certificate::from_der(&der).ok()?;
        (rest.is_empty() && !secret.is_empty())
            .then(|| Self { text: text.to_owned(), authority_pem: certificate_pem(&der) })
    }
}

/// A certificate with its key, usable until `expires`.
#[derive(Clone)]
struct Credential {
    identity: tonic::transport::Identity,
    authority_pem: String,
    agent: String,
    renew: Instant,
    expires: Instant,
    /// Tells credentials of this process apart.
    serial: u64,
}

/// A connection and as whom it was made.
#[derive(Debug)]
pub struct Connected {
    /// The mutual-TLS connection.
    pub channel: Channel,
    /// The agent this worker serves.
    pub agent: String,
    /// The credential it was made with, for [`Identity::forget`].
    pub credential: u64,
}

/// Makes a connection in place of [`Identity::connect`]'s own.
pub type Dial = Box<dyn Fn() -> BoxFuture<'static, Result<Channel, Error>> + Send + Sync>;

/// This worker's identity.
pub struct Identity {
    /// Set by [`Identity::given`].
    dial: Option<Dial>,
    servers: Servers,
    /// Where the last connection went.
    server: Mutex<Option<Server>>,
    join: JoinSource,
    /// Wall time, to read the answer's expiry; timeouts run on the monotonic clock.
    now: fn() -> jiff::Timestamp,
    current: Mutex<Option<Credential>>,
    serial: AtomicU64,
}

impl Identity {
    /// Nothing is read or called yet.
    pub fn new(servers: Servers, join: JoinSource, now: fn() -> jiff::Timestamp) -> Self {
        let (server, current) = (Mutex::new(None), Mutex::new(None));
        Self { dial: None, servers, server, join, now, current, serial: AtomicU64::new(0) }
    }

    /// One without certificates, whose connections `dial` makes: for a simulated network, which has neither TLS nor anybody to
    /// keep out. No flag or variable leads here; it takes a program that composes a worker of its own.
    pub fn given(dial: Dial, now: fn() -> jiff::Timestamp) -> Self {
        let nothing = JoinSource::File(std::path::PathBuf::new());
        Self { dial: Some(dial), ..Self::new(Servers::new(Vec::new()), nothing, now) }
    }

    /// A mutual-TLS connection to the next server; joins first where no valid certificate is at hand.
    ///
    /// # Errors
    /// [`Error`]; nothing was changed unless a certificate was issued, and a used-up join token then stays used up.
    pub async fn connect(&self) -> Result<Connected, Error> {
        if let Some(dial) = &self.dial {
            return Ok(Connected { channel: dial().await?, agent: String::new(), credential: 0 });
        }
        let unreachable = |error| Error::Unreachable(Box::new(error));
        let server = within(CONNECT_TIMEOUT, self.servers.another()).await?.map_err(unreachable)?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server.clone());
        self.connect_to(&server).await
    }

    async fn connect_to(&self, server: &Server) -> Result<Connected, Error> {
        let held = self.credential().filter(|credential| Instant::now() + EXPIRY_MARGIN < credential.expires);
        let credential = match held {
            Some(credential) => credential,
            None => self.join(server).await?,
        };
        let channel = dial(server, &credential.authority_pem, Some(credential.identity)).await?;
        Ok(Connected { channel, agent: credential.agent, credential: credential.serial })
    }

    /// Forgets a credential that the control plane refused, so that the next connection joins anew. One that was
    /// renewed meanwhile stays: only its predecessor was refused.
    pub fn forget(&self, credential: u64) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|present| present.serial == credential) {
            *current = None;
        }
    }

    /// When the certificate should be renewed; `None` before the first join.
    pub fn renew_at(&self) -> Option<Instant> {
        self.credential().map(|credential| credential.renew)
    }

    /// When the certificate ends; `None` before the first join.
    pub fn expires_at(&self) -> Option<Instant> {
        self.credential().map(|credential| credential.expires)
    }

    /// Buys the next certificate with the present one and answers a connection made with it: the control plane looks at
    /// a certificate's end with every call, so calls should move there.
    ///
    /// # Errors
    /// [`Error::Unreachable`] or [`Error::Certificate`]; the present certificate stays in use, and the next attempt is
    /// due after a tenth of the life that is left.
    pub async fn renew(&self, channel: Channel) -> Result<Channel, Error> {
        let Some(present) = self.credential() else {
            return Ok(channel);
        };
        let retry =
            Instant::now() + (present.expires.saturating_duration_since(Instant::now()) / 10).max(EXPIRY_MARGIN);
        let renewed = self.renewed(channel, present.agent.clone()).await;
        let (next, answer) = match renewed {
            Ok(credential) => (credential, Ok(())),
            Err(error) => (Credential { renew: retry, ..present }, Err(error)),
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
        answer?;
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let connected = match server {
            Some(server) => self.connect_to(&server).await?,
            None => self.connect().await?,
        };
        Ok(connected.channel)
    }

    async fn renewed(&self, channel: Channel, agent: String) -> Result<Credential, Error> {
        let (key, csr_der) = key_and_csr()?;
        let mut client = IdentityServiceClient::new(channel);
        let call = client.renew(RenewRequest { csr_der });
        let answer = within(CALL_TIMEOUT, call).await?.map_err(|status| Error::Unreachable(Box::new(status)))?;
        let answer = answer.into_inner();
        self.credential_of(&key, &answer.certificate_der, &answer.ca_der, agent, answer.expires_at_ms)
    }

    async fn join(&self, server: &Server) -> Result<Credential, Error> {
        let text = self.join.read().map_err(Error::Unreadable)?;
        let token = JoinToken::parse(&text).ok_or(Error::Malformed)?;
        let channel = dial(server, &token.authority_pem, None).await?;
        let (key, csr_der) = key_and_csr()?;
        let mut client = IdentityServiceClient::new(channel);
        let call = client.join(JoinRequest { token: token.text, csr_der });
        let answer = within(CALL_TIMEOUT, call).await?.map_err(join_error)?.into_inner();
        let credential = self.credential_of(
            &key,
            &answer.certificate_der,
            &answer.ca_der,
            answer.agent.clone(),
            answer.expires_at_ms,
        )?;
        tracing::info!(agent = answer.agent, "joined");
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(credential.clone());
        Ok(credential)
    }

    fn credential(&self) -> Option<Credential> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn credential_of(
        &self,
        key: &rcgen::KeyPair,
        certificate_der: &[u8],
        authority_der: &[u8],
        agent: String,
        expires_at_ms: i64,
    ) -> Result<Credential, Error> {
        for der in [certificate_der, authority_der] {
            x509_parser::certificate::X509Certificate::from_der(der)
                .map_err(|error| Error::Certificate(Box::new(error)))?;
        }
        let left = expires_at_ms.saturating_sub((self.now)().as_millisecond());
        let life = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        let now = Instant::now();
        Ok(Credential {
            identity: tonic::transport::Identity::from_pem(certificate_pem(certificate_der), key.serialize_pem()),
            authority_pem: certificate_pem(authority_der),
            agent,
            renew: now + life / 2,
            expires: now + life,
            serial: self.serial.fetch_add(1, Ordering::Relaxed),
        })
    }
}

async fn dial(
    server: &Server,
    authority_pem: &str,
    identity: Option<tonic::transport::Identity>,
) -> Result<Channel, Error> {
    let unreachable = |error: tonic::transport::Error| Error::Unreachable(Box::new(error));
    let mut tls = ClientTlsConfig::new().domain_name(SERVER_NAME).ca_certificate(Certificate::from_pem(authority_pem));
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    let endpoint = Endpoint::from_shared(format!("https://{}", server.address))
        .map_err(unreachable)?
        .origin(server.url.clone())
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        // A bound for servers with hostile clients. Here it would end the connection, and every turn's model call with
        // it, after so many cancelled calls.
        .http2_max_local_error_reset_streams(None)
        .tls_config(tls)
        .map_err(|error| Error::Certificate(Box::new(error)))?;
    let address = server.address;
    let line = tower::service_fn(move |_: Uri| async move {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(TokioIo::new(stream))
    });
    // With a connector of our own the time limit holds for TLS too, also when the channel replaces a line that broke: a call that
    // waits for a server which takes connections and says nothing must come to an end.
    within(CONNECT_TIMEOUT * 2, endpoint.connect_with_connector(line)).await?.map_err(unreachable)
}

async fn within<T>(limit: Duration, call: impl Future<Output = T>) -> Result<T, Error> {
    tokio::time::timeout(limit, call).await.map_err(|elapsed| Error::Unreachable(Box::new(elapsed)))
}

fn join_error(status: tonic::Status) -> Error {
    use tonic::Code;
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition => Error::Rejected(status.message().to_owned()),
        _ => Error::Unreachable(Box::new(status)),
    }
}

/// A new ECDSA P-256 key and the request that carries its public half. Names in the request are not read by anyone: the
/// control plane writes the certificate's subject itself.
fn key_and_csr() -> Result<(rcgen::KeyPair, Vec<u8>), Error> {
    let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).and_then(|key| {
        let csr = rcgen::CertificateParams::default().serialize_request(&key)?;
        Ok((key, csr.der().to_vec()))
    });
    made.map_err(|error| Error::Certificate(Box::new(error)))
}

fn certificate_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 56);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem.push_str("\n-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> Vec<u8> {
        let key = rcgen::KeyPair::generate().expect("key");
        rcgen::CertificateParams::default().self_signed(&key).expect("certificate").der().to_vec()
    }

    #[test]
    fn a_join_token_brings_its_authority() {
        let der = authority();
        let text = format!("hermes-join.v1.{}.{}\n", URL_SAFE_NO_PAD.encode([7; 32]), URL_SAFE_NO_PAD.encode(&der));
        let token = JoinToken::parse(&text).expect("token");
        assert_eq!(token.text, text.trim());
        let pem = rustls_pki_types::CertificateDer::from_pem_slice(token.authority_pem.as_bytes()).expect("pem");
        assert_eq!(pem.as_ref(), der);
    }

    #[test]
    fn other_texts_are_no_join_token() {
        let der = URL_SAFE_NO_PAD.encode(authority());
        let junk = URL_SAFE_NO_PAD.encode(b"no certificate");
        for text in [
            String::new(),
            "hermes.v1.operator.x".to_owned(),
            "hermes-join.v1.AAAA".to_owned(),
            format!("hermes-join.v1..{der}"),
            format!("hermes-join.v1.AAAA.{junk}"),
            format!("hermes-join.v2.AAAA.{der}"),
            format!("hermes-join.v1.AAAA.{der}AAAA"),
        ] {
            assert!(JoinToken::parse(&text).is_none(), "{text}");
        }
    }

    use rustls_pki_types::pem::PemObject as _;
}
