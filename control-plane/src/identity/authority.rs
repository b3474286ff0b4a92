//! The control plane's certificate authority: it signs the worker listener's certificate and the short-lived certificates
//! of workers.
//!
//! Made once per installation and kept by the store (all replicas load the same one). Always true: a worker certificate
//! carries our subject, one URI name and the client purpose, whatever the signing request asked for. It does not decide
//! who may have one.

use std::time::Duration;

use hermes_core::AgentId;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData as _, SanType,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use secrecy::{SecretSlice, SecretString};
use uuid::Uuid;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::Error;
use super::certificate::worker_uri;

/// Longest life of a worker certificate.
pub const MAX_WORKER_TTL: Duration = Duration::from_secs(3600);

/// The name every worker verifies, so that certificates do not depend on how a replica is reached.
const SERVER_NAME: &str = "hermes-control-plane";
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// A replica makes a new one at each start; a year is longer than any process should live.
const SERVER_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// Peers' clocks may be this much behind ours.
const SKEW: Duration = Duration::from_secs(60);
const MAX_CSR_BYTES: usize = 16 << 10;

/// The certificate authority of one installation.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    key: SecretSlice<u8>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A certificate for the worker listener with its key, both PEM.
#[derive(Debug)]
pub struct ServerCertificate {
    /// The chain: just the leaf, since workers hold the authority.
    pub certificate_pem: String,
    /// PKCS#8.
    pub key_pem: SecretString,
}

/// A signed worker certificate.
#[derive(Debug)]
pub struct WorkerCertificate {
    /// DER.
    pub der: Vec<u8>,
    /// When it stops being valid.
    pub expires_at: Timestamp,
}

impl Authority {
    /// Makes a new authority (ECDSA P-256, ten years from `now`).
    ///
    /// # Errors
    /// [`Error::Crypto`].
    pub fn create(now: Timestamp) -> Result<Self, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::Crypto)?;
        let mut params = params("Hermes control plane CA", now, AUTHORITY_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(Error::Crypto)?.der().clone();
        Self::load(&certificate, &key.serialize_der())
    }

    /// Loads what [`Authority::certificate_der`] and [`Authority::key_pkcs8`] gave earlier.
    ///
    /// # Errors
    /// [`Error::BadAuthority`] when either does not parse, they do not belong together, or the certificate is no CA.
    pub fn load(certificate_der: &[u8], key_pkcs8: &[u8]) -> Result<Self, Error> {
        let (rest, parsed) = x509_parser::parse_x509_certificate(certificate_der)
            .map_err(|_| Error::BadAuthority("the certificate does not parse"))?;
        if !rest.is_empty() || !parsed.is_ca() {
            return Err(Error::BadAuthority("the certificate is not a CA certificate"));
        }
        let pkcs8 = PrivatePkcs8KeyDer::from(key_pkcs8.to_vec());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| Error::BadAuthority("the key is not an ECDSA P-256 key in PKCS#8"))?;
        if key.subject_public_key_info() != parsed.tbs_certificate.subject_pki.raw {
            return Err(Error::BadAuthority("the key does not belong to the certificate"));
        }
        let certificate = CertificateDer::from(certificate_der.to_vec());
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|_| Error::BadAuthority("the certificate does not parse"))?;
        Ok(Self { issuer, certificate, key: SecretSlice::from(key_pkcs8.to_vec()) })
    }

    /// The authority's certificate: public, handed to workers inside join tokens.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// The authority's certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// The authority's private key (PKCS#8), for the store.
    pub fn key_pkcs8(&self) -> &SecretSlice<u8> {
        &self.key
    }

    /// A new key and certificate for the worker listener: `hermes-control-plane`, localhost, 127.0.0.1, ::1 and
    /// `names` (DNS names or addresses), valid for one year.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::Crypto`].
    pub fn server_certificate(&self, names: &[String], now: Timestamp) -> Result<ServerCertificate, Error> {
        let mut params = params(SERVER_NAME, now, SERVER_LIFE)?;
        let own = [SERVER_NAME, "localhost", "127.0.0.1", "::1"].map(str::to_owned);
        for name in own.iter().chain(names) {
            let san = match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(
                    rustls_pki_types::DnsName::try_from(name.as_str())
                        .ok()
                        .and_then(|_| name.as_str().try_into().ok())
                        .ok_or_else(|| Error::BadName(name.clone()))?,
                ),
            };
            if !params.subject_alt_names.contains(&san) {
                params.subject_alt_names.push(san);
            }
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::Crypto)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(Error::Crypto)?;
        Ok(ServerCertificate { certificate_pem: certificate.pem(), key_pem: key.serialize_pem().into() })
    }

    /// Signs the public key of `csr_der` for one worker of one agent, for `ttl` (cut to [`MAX_WORKER_TTL`]) from `now`.
    /// Everything else in the request is ignored; its self-signature must hold.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a request that does not parse, is not signed by its own key or has a key that is not
    /// P-256, P-384 or Ed25519; [`Error::Crypto`].
    pub fn sign_worker(
        &self,
        csr_der: &[u8],
        agent: &AgentId,
        worker: Uuid,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<WorkerCertificate, Error> {
        let key = Self::check_request(csr_der)?;
        let ttl = ttl.min(MAX_WORKER_TTL);
        let mut params = params(&format!("hermes worker of {agent}"), now, ttl)?;
        let uri = worker_uri(agent, worker);
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(Error::Crypto)?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(Error::Crypto)?;
        let expires_at = Timestamp::from_second(params.not_after.unix_timestamp())
            .map_err(|_| Error::BadRequest("its life ends after the end of time"))?;
        Ok(WorkerCertificate { der: certificate.der().to_vec(), expires_at })
    }

    /// Parses and verifies a signing request without signing anything: what a caller checks before it spends a token.
    ///
    /// # Errors
    /// [`Error::BadRequest`], as [`Authority::sign_worker`].
    pub fn check_request(csr_der: &[u8]) -> Result<SubjectPublicKeyInfo, Error> {
        if csr_der.len() > MAX_CSR_BYTES {
            return Err(Error::BadRequest("it is larger than 16 KiB"));
        }
        let (rest, request) =
            X509CertificationRequest::from_der(csr_der).map_err(|_| Error::BadRequest("it does not parse"))?;
        if !rest.is_empty() {
            return Err(Error::BadRequest("bytes follow it"));
        }
        let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
            .map_err(|_| Error::BadRequest("its key is of an unknown kind"))?;
        if ![&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519].contains(&key.algorithm()) {
            return Err(Error::BadRequest("its key is not P-256, P-384 or Ed25519"));
        }
        request.verify_signature().map_err(|_| Error::BadRequest("it is not signed by its own key"))?;
        Ok(key)
    }
}

/// Parameters with our subject, valid from a moment before `now` until `now + life`.
fn params(common_name: &str, now: Timestamp, life: Duration) -> Result<CertificateParams, Error> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = u64::try_from(now.as_second()).map_err(|_| Error::BadAuthority("the clock is before 1970"))?;
    let now = Duration::from_secs(since);
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(SKEW);
    params.not_after = epoch + now + life;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::identity::worker_from_certificate;

    fn now() -> Timestamp {
        "2026-11-22T08:00:00Z".parse().unwrap()
    }

    fn csr(params: CertificateParams) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn an_authority_survives_storage_and_refuses_a_foreign_key() {
        let first = Authority::create(now()).unwrap();
        let again = Authority::load(first.certificate_der(), first.key_pkcs8().expose_secret()).unwrap();
        assert_eq!(first.certificate_der(), again.certificate_der());
        let other = Authority::create(now()).unwrap();
        assert!(Authority::load(first.certificate_der(), other.key_pkcs8().expose_secret()).is_err());
        assert!(Authority::load(b"junk", first.key_pkcs8().expose_secret()).is_err());
        let leaf = first
            .sign_worker(&csr(CertificateParams::default()), &AgentId::main(), Uuid::nil(), MAX_WORKER_TTL, now())
            .unwrap();
        assert!(Authority::load(&leaf.der, first.key_pkcs8().expose_secret()).is_err());
        assert!(first.certificate_pem().starts_with("-----BEGIN CERTIFICATE-----\n"));
    }

    #[test]
    fn a_request_that_asks_for_more_gets_only_its_own_name_and_one_hour() {
        let authority = Authority::create(now()).unwrap();
        let mut greedy = CertificateParams::default();
        greedy.subject_alt_names = vec![
            SanType::URI("spiffe://hermes/agent/main/worker/00000000-0000-0000-0000-000000000000".try_into().unwrap()),
            SanType::DnsName("hermes-control-plane".try_into().unwrap()),
        ];
        greedy.distinguished_name.push(DnType::CommonName, "hermes-control-plane");
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
        greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let agent = AgentId::parse("coder").unwrap();
        let worker = Uuid::now_v7();
        let signed = authority.sign_worker(&csr(greedy), &agent, worker, Duration::from_secs(86_400), now()).unwrap();
        let identity = worker_from_certificate(&signed.der).unwrap();
        assert_eq!((identity.agent, identity.worker), (agent, worker));
        assert_eq!(signed.expires_at.duration_since(now()).as_secs(), 3600);
        let (_, parsed) = x509_parser::parse_x509_certificate(&signed.der).unwrap();
        assert!(!parsed.is_ca());
        assert_eq!(parsed.subject().to_string(), "CN=hermes worker of coder");
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        assert_eq!(parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
        assert!(!parsed.key_usage().unwrap().unwrap().value.key_cert_sign());
    }

    #[test]
    fn requests_that_do_not_prove_their_key_are_refused() {
        let good = csr(CertificateParams::default());
        assert!(Authority::check_request(&good).is_ok());
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        let mut long = good.clone();
        long.push(0);
        let cut = &good[..good.len() - 1];
        for bad in [&forged[..], &long[..], cut, b"", &vec![0x30; 20_000][..]] {
            assert!(matches!(Authority::check_request(bad), Err(Error::BadRequest(_))));
        }
    }

    #[test]
    fn names_of_the_listener_are_checked() {
        let authority = Authority::create(now()).unwrap();
        let good = authority.server_certificate(&["cp.example.org".into(), "10.0.0.7".into()], now()).unwrap();
        assert!(good.key_pem.expose_secret().starts_with("-----BEGIN PRIVATE KEY-----"));
        for bad in ["a b", "", "é", "x/y"] {
            assert!(matches!(authority.server_certificate(&[bad.into()], now()), Err(Error::BadName(_))), "{bad:?}");
        }
    }
}
