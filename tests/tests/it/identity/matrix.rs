//! Every RPC, called by every kind of caller on both listeners.

use std::sync::atomic::Ordering;

use hermes_control_plane::grpc::layers::Limits;
use hermes_control_plane::identity::Role;
use hermes_proto::Rpc;
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType};
use tonic::Code;

use super::fixture::{Answer, Fixture, call, identity};

const SERVICES: [&str; 14] = [
    "Agent", "Home", "Route", "Session", "Delivery", "Budget", "Approval", "Pairing", "Message", "Worker", "Model",
    "Identity", "System", "Cron",
];

/// `AgentAddAgent` is `/hermes.v1.AgentService/AddAgent`.
fn service_and_method(rpc: Rpc) -> (&'static str, String) {
    let name = format!("{rpc:?}");
    let service = SERVICES.into_iter().find(|service| name.starts_with(service)).unwrap();
    (service, name[service.len()..].to_owned())
}

fn path(rpc: Rpc) -> String {
    let (service, method) = service_and_method(rpc);
    let path = format!("/hermes.v1.{service}Service/{method}");
    assert_eq!(Rpc::from_path(&path), Some(rpc));
    path
}

/// Who may call it, told from its name and not from the table under test.
fn allowed(rpc: Rpc) -> &'static [&'static str] {
    let (service, method) = service_and_method(rpc);
    let reads = ["List", "Get", "Explain", "Diff", "Export"].iter().any(|verb| method.starts_with(verb));
    match (service, method.as_str()) {
        ("Identity", "Join") => &["worker", "anonymous"],
        ("Worker" | "Model", _) | ("Identity", "Renew") => &["worker"],
        // What an agent remembers of people is not for everybody who may look at its state.
        ("Identity" | "Home" | "Pairing", _) => &["operator"],
        ("Message" | "Approval", _) => &["operator", "api"],
        ("Cron", _) if reads => &["operator", "viewer", "api"],
        ("Cron", _) => &["operator", "api"],
        _ if reads => &["operator", "viewer"],
        _ => &["operator"],
    }
}

fn on_worker_listener(rpc: Rpc) -> bool {
    allowed(rpc).contains(&"worker")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rpc_admits_exactly_its_principals_on_its_listener() {
    let fixture = Fixture::probe(Limits::default()).await;
    let operator = fixture.operator();
    let (_, join) = fixture.join_token("coder", 10).await;
    let mut bearers =
        vec![("nobody", None), ("join token", Some(join)), ("unknown", Some(String::from("hermes.v1.operator.AAAA")))];
    for role in [Role::Operator, Role::Viewer, Role::Api] {
        bearers.push((role.as_str(), Some(fixture.token(role).await)));
    }
    let certified = fixture.worker(Some(fixture.worker_identity(Timestamp::now())));
    let anonymous = fixture.worker(None);
    let root = format!("Bearer {}", bearers[3].1.clone().unwrap());

    for &rpc in Rpc::ALL {
        let path = path(rpc);
        for (kind, token) in &bearers {
            let bearer = token.as_ref().map(|token| format!("Bearer {token}"));
            let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
            let (code, message) = call(&operator, &path, &headers).await.unwrap();
            let expected = if on_worker_listener(rpc) {
                Code::Unimplemented
            } else if allowed(rpc).contains(kind) {
                assert_eq!(message, *kind, "{path}: the handler sees the caller");
                Code::Aborted
            } else if ["operator", "viewer", "api"].contains(kind) {
                Code::PermissionDenied
            } else {
                Code::Unauthenticated
            };
            assert_eq!(code, expected, "{path} by {kind}: {message}");
        }
        for (kind, channel) in [("worker", &certified), ("anonymous", &anonymous)] {
            // A token means nothing here, not even the operator's.
            let (code, message) = call(channel, &path, &[("authorization", &root)]).await.unwrap();
            let expected = if !on_worker_listener(rpc) {
                Code::Unimplemented
            } else if allowed(rpc).contains(&kind) {
                assert_eq!(message, if kind == "worker" { "worker" } else { "none" }, "{path}");
                Code::Aborted
            } else {
                Code::Unauthenticated
            };
            assert_eq!(code, expected, "{path} by {kind} on the worker listener: {message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_outside_the_contract_have_their_own_rows() {
    let fixture = Fixture::probe(Limits::default()).await;
    let (operator, worker) = (fixture.operator(), fixture.worker(Some(fixture.worker_identity(Timestamp::now()))));
    let viewer = format!("Bearer {}", fixture.token(Role::Viewer).await);
    let api = format!("Bearer {}", fixture.token(Role::Api).await);
    const HEALTH: &str = "/grpc.health.v1.Health/Check";
    const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let code = |answer: Answer| answer.unwrap().0;
    assert_eq!(call(&operator, HEALTH, &[]).await.unwrap(), (Code::Aborted, "none".to_owned()));
    assert_eq!(code(call(&worker, HEALTH, &[]).await), Code::Unimplemented);
    assert_eq!(code(call(&operator, REFLECTION, &[]).await), Code::Unauthenticated);
    assert_eq!(code(call(&operator, REFLECTION, &[("authorization", &api)]).await), Code::PermissionDenied);
    assert_eq!(code(call(&operator, REFLECTION, &[("authorization", &viewer)]).await), Code::Aborted);
    assert_eq!(code(call(&worker, REFLECTION, &[]).await), Code::Unimplemented);
    for path in ["/", "/hermes.v1.AgentService/Nothing", "/hermes.v1.AgentService/AddAgent/", "//", "/%2e%2e/admin"] {
        assert_eq!(code(call(&operator, path, &[("authorization", &viewer)]).await), Code::Unimplemented, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_one_well_formed_bearer_header_counts_and_a_lost_store_is_not_a_refusal() {
    let fixture = Fixture::probe(Limits::default()).await;
    let operator = fixture.operator();
    let token = fixture.token(Role::Operator).await;
    let path = "/hermes.v1.SystemService/GetStatus";
    let good = format!("Bearer {token}");
    assert_eq!(call(&operator, path, &[("authorization", &good)]).await.unwrap().0, Code::Aborted);
    assert_eq!(call(&operator, path, &[("authorization", &format!("bearer {token}"))]).await.unwrap().0, Code::Aborted);
    for bad in [token.as_str(), &format!("Basic {token}"), &format!("Bearer  {token}"), "Bearer", "Bearer ", ""] {
        let (code, message) = call(&operator, path, &[("authorization", bad)]).await.unwrap();
        assert_eq!(code, Code::Unauthenticated, "{bad:?}");
        assert!(!message.contains(&token));
    }
    let twice = [("authorization", good.as_str()), ("authorization", good.as_str())];
    assert_eq!(call(&operator, path, &twice).await.unwrap().0, Code::Unauthenticated);

    fixture.store.down.store(true, Ordering::SeqCst);
    let other = format!("Bearer {}", {
        fixture.store.down.store(false, Ordering::SeqCst);
        let other = fixture.token(Role::Viewer).await;
        fixture.store.down.store(true, Ordering::SeqCst);
        other
    });
    assert_eq!(call(&operator, path, &[("authorization", &other)]).await.unwrap().0, Code::Unavailable);
    fixture.store.down.store(false, Ordering::SeqCst);
    assert_eq!(call(&operator, path, &[("authorization", &other)]).await.unwrap().0, Code::Aborted);
}

/// A client certificate for `names`, signed by our own authority's key or by `issuer`.
fn certificate(
    fixture: &Fixture,
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
    issuer: Option<&rcgen::Issuer<'_, rcgen::KeyPair>>,
) -> tonic::transport::Identity {
    use secrecy::ExposeSecret as _;
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2090, 1, 1);
    change(&mut params);
    let key = rcgen::KeyPair::generate().unwrap();
    let der = fixture.authority.certificate_der().to_vec().into();
    let ca_key = rcgen::KeyPair::try_from(fixture.authority.key_pkcs8().expose_secret()).unwrap();
    let ours = rcgen::Issuer::from_ca_cert_der(&der, ca_key).unwrap();
    let signed = params.signed_by(&key, issuer.unwrap_or(&ours)).unwrap();
    identity(signed.der(), &key)
}

const GOOD: &str = "spiffe://hermes/agent/coder/worker/0191a2b3-0000-7000-8000-000000000001";
const RENEW: &str = "/hermes.v1.IdentityService/Renew";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_the_handshake_must_refuse_never_reach_a_handler() {
    let mut fixture = Fixture::probe(Limits::default()).await;
    let good = certificate(&fixture, &[GOOD], |_| {}, None);
    assert_eq!(call(&fixture.worker(Some(good)), RENEW, &[]).await.unwrap(), (Code::Aborted, "worker".to_owned()));
    fixture.reached.recv().await.unwrap();

    let stranger = rcgen::KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    // The same name as ours: only the key tells them apart.
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name.push(rcgen::DnType::CommonName, "Hermes control plane CA");
    let stranger = rcgen::Issuer::new(ca, stranger);
    let past = |p: &mut CertificateParams| p.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let future = |p: &mut CertificateParams| p.not_before = rcgen::date_time_ymd(2089, 1, 1);
    let for_server = |p: &mut CertificateParams| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let refused = [
        ("another CA", certificate(&fixture, &[GOOD], |_| {}, Some(&stranger))),
        ("expired", certificate(&fixture, &[GOOD], past, None)),
        ("not yet valid", certificate(&fixture, &[GOOD], future, None)),
        ("a server's", certificate(&fixture, &[GOOD], for_server, None)),
        ("expired by an hour", fixture.worker_identity(Timestamp::now() - SignedDuration::from_hours(2))),
    ];
    for (what, identity) in refused {
        let channel = fixture.worker(Some(identity));
        for path in [RENEW, "/hermes.v1.IdentityService/Join"] {
            assert!(call(&channel, path, &[]).await.is_err(), "{what} must end the connection");
        }
    }
    assert!(fixture.reached.try_recv().is_err(), "no handler was reached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_our_own_authority_with_other_names_are_nobody() {
    let mut fixture = Fixture::probe(Limits::default()).await;
    let sets: [&[&str]; 5] = [
        &[],
        &[GOOD, GOOD],
        &["spiffe://other/agent/coder/worker/0191a2b3-0000-7000-8000-000000000001"],
        &["spiffe://hermes/agent/a%2F..%2Fb/worker/0191a2b3-0000-7000-8000-000000000001"],
        &["spiffe://hermes/agent/*/worker/0191a2b3-0000-7000-8000-000000000001"],
    ];
    for names in sets {
        let common_name = |p: &mut CertificateParams| p.distinguished_name.push(rcgen::DnType::CommonName, GOOD);
        let channel = fixture.worker(Some(certificate(&fixture, names, common_name, None)));
        for path in [RENEW, "/hermes.v1.WorkerService/Attach", "/hermes.v1.IdentityService/Join"] {
            assert_eq!(call(&channel, path, &[]).await.unwrap().0, Code::Unauthenticated, "{names:?}");
        }
    }
    assert!(fixture.reached.try_recv().is_err(), "no handler was reached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_does_not_outlive_its_certificate() {
    let fixture = Fixture::probe(Limits::default()).await;
    let channel = fixture.worker(Some(fixture.worker_identity(Timestamp::now())));
    assert_eq!(call(&channel, RENEW, &[]).await.unwrap().0, Code::Aborted);
    fixture.later.store(3601, Ordering::SeqCst);
    let (code, message) = call(&channel, RENEW, &[]).await.unwrap();
    assert_eq!(code, Code::Unauthenticated);
    assert!(message.contains("has ended"), "{message}");
}
