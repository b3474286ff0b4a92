//! Reads a worker's identity out of its certificate.
//!
//! The TLS layer has already verified the chain to our authority, the dates and the client purpose; this reads the name
//! and is strict about it: exactly one subject alternative name, a URI of our trust domain in its one canonical spelling.
//! The subject (common name) is never looked at.

use hermes_core::AgentId;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use x509_parser::extensions::GeneralName;

use super::Error;

const TRUST_DOMAIN: &str = "spiffe://hermes/agent/";

/// What a worker certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerIdentity {
    /// The one agent it serves.
    pub agent: AgentId,
    /// The worker process.
    pub worker: Uuid,
    /// SHA-256 of its public key (SubjectPublicKeyInfo).
    pub spki_sha256: [u8; 32],
    /// When it stops being valid: a connection outlives the handshake, so this is looked at on every request.
    pub expires_at: Timestamp,
}

/// The URI name of a worker's certificate.
pub(super) fn worker_uri(agent: &AgentId, worker: Uuid) -> String {
    format!("{TRUST_DOMAIN}{agent}/worker/{}", worker.hyphenated())
}

/// Reads `der`, a certificate whose chain was already verified.
///
/// # Errors
/// [`Error::BadCertificate`] with the first rule that does not hold.
pub fn worker_from_certificate(der: &[u8]) -> Result<WorkerIdentity, Error> {
    let (rest, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|_| Error::BadCertificate("it does not parse"))?;
    if !rest.is_empty() {
        return Err(Error::BadCertificate("bytes follow it"));
    }
    if certificate.is_ca() {
        return Err(Error::BadCertificate("it is a CA certificate"));
    }
    match certificate.extended_key_usage() {
        Ok(Some(usage)) if usage.value.client_auth && !usage.value.any => {}
        _ => return Err(Error::BadCertificate("it is not for a client")),
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| Error::BadCertificate("its subject alternative name is given twice or does not parse"))?
        .ok_or(Error::BadCertificate("it has no subject alternative name"))?;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else {
        return Err(Error::BadCertificate("it must have exactly one subject alternative name, a URI"));
    };
    let (agent, worker) = parse_uri(uri).ok_or(Error::BadCertificate("its URI does not name a worker of ours"))?;
    let expires_at = Timestamp::from_second(certificate.validity().not_after.timestamp())
        .map_err(|_| Error::BadCertificate("its end is out of range"))?;
    let spki_sha256 = Sha256::digest(certificate.public_key().raw).into();
    Ok(WorkerIdentity { agent, worker, spki_sha256, expires_at })
}

fn parse_uri(uri: &str) -> Option<(AgentId, Uuid)> {
    let (agent, worker) = uri.strip_prefix(TRUST_DOMAIN)?.split_once("/worker/")?;
    let agent = AgentId::parse(agent).ok()?;
    let worker = Uuid::try_parse(worker).ok()?;
    // One spelling only: no braces, no upper case, no second form of the same id.
    (worker_uri(&agent, worker) == uri).then_some((agent, worker))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};

    const GOOD: &str = "spiffe://hermes/agent/coder/worker/0191a2b3-0000-7000-8000-000000000001";

    fn certificate(names: &[SanType], change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn the_canonical_name_is_read() {
        let der = certificate(&[uri(GOOD)], |_| {});
        let worker = worker_from_certificate(&der).unwrap();
        assert_eq!(worker.agent.as_str(), "coder");
        assert_eq!(worker_uri(&worker.agent, worker.worker), GOOD);
        assert_ne!(
            worker.spki_sha256,
            worker_from_certificate(&certificate(&[uri(GOOD)], |_| {})).unwrap().spki_sha256
        );
    }

    #[test]
    fn every_other_name_is_refused() {
        let dns = SanType::DnsName("coder".try_into().unwrap());
        let sets: Vec<Vec<SanType>> = vec![
            vec![],
            vec![dns.clone()],
            vec![uri(GOOD), uri(GOOD)],
            vec![uri(GOOD), dns],
            vec![uri("spiffe://other/agent/coder/worker/0191a2b3-0000-7000-8000-000000000001")],
            vec![uri("spiffe://hermes/agent/a%2F..%2Fb/worker/0191a2b3-0000-7000-8000-000000000001")],
            vec![uri("spiffe://hermes/agent/*/worker/0191a2b3-0000-7000-8000-000000000001")],
            vec![uri("spiffe://hermes/agent//worker/0191a2b3-0000-7000-8000-000000000001")],
            vec![uri("spiffe://hermes/agent/../worker/0191a2b3-0000-7000-8000-000000000001")],
            vec![uri("spiffe://hermes/agent/Coder/worker/0191a2b3-0000-7000-8000-000000000001")],
            vec![uri("spiffe://hermes/agent/coder/worker/0191A2B3-0000-7000-8000-000000000001")],
            vec![uri("spiffe://hermes/agent/coder/worker/0191a2b3000070008000000000000001")],
            vec![uri("spiffe://hermes/agent/coder/worker/*")],
            vec![uri("spiffe://hermes/agent/coder/worker/")],
            vec![uri("spiffe://hermes/agent/coder")],
            vec![uri(&format!("{GOOD}/"))],
            vec![uri(&format!("{GOOD}?a=b"))],
            vec![uri(&GOOD.replace("spiffe", "SPIFFE"))],
        ];
        for names in sets {
            let der = certificate(&names, |_| {});
            assert!(matches!(worker_from_certificate(&der), Err(Error::BadCertificate(_))), "{names:?}");
        }
    }

    #[test]
    fn other_purposes_and_broken_bytes_are_refused() {
        for change in [
            (|p: &mut CertificateParams| p.extended_key_usages = vec![]) as fn(&mut CertificateParams),
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Any],
            |p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
        ] {
            assert!(worker_from_certificate(&certificate(&[uri(GOOD)], change)).is_err());
        }
        let mut long = certificate(&[uri(GOOD)], |_| {});
        long.push(0);
        assert!(worker_from_certificate(&long).is_err());
        assert!(worker_from_certificate(b"").is_err());
    }
}
