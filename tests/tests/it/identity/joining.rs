//! Join and Renew: one token, one agent, one certificate per use.

use std::sync::atomic::Ordering;

use hermes_control_plane::identity::{TokenStore as _, worker_from_certificate};
use hermes_proto::v1::identity_service_client::IdentityServiceClient;
use hermes_proto::v1::{JoinRequest, RenewRequest};
use rcgen::{CertificateParams, SanType};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::fixture::{Fixture, call, identity, key_and_csr};

async fn join(fixture: &Fixture, token: &str, csr_der: Vec<u8>) -> Result<hermes_proto::v1::JoinResponse, Status> {
    let request = JoinRequest { token: token.to_owned(), csr_der };
    IdentityServiceClient::new(fixture.worker(None)).join(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_buys_a_certificate_of_its_own_agent_that_renews_itself() {
    let fixture = Fixture::identity(&["coder", "main"]).await;
    let (_, token) = fixture.join_token("coder", 1).await;
    let mut greedy = CertificateParams::default();
    let other = "spiffe://hermes/agent/main/worker/00000000-0000-0000-0000-000000000000";
    greedy.subject_alt_names = vec![SanType::URI(other.try_into().unwrap())];
    let (key, csr) = key_and_csr(greedy);
    let joined = join(&fixture, &token, csr).await.unwrap();
    assert_eq!(joined.agent, "coder");
    assert_eq!(joined.ca_der, fixture.authority.certificate_der());
    let first = worker_from_certificate(&joined.certificate_der).unwrap();
    assert_eq!(first.agent.as_str(), "coder");
    assert_eq!(first.expires_at.as_millisecond(), joined.expires_at_ms);
    let life = joined.expires_at_ms - jiff::Timestamp::now().as_millisecond();
    assert!((3_500_000..=3_600_000).contains(&life), "{life}");

    let channel = fixture.worker(Some(identity(&joined.certificate_der, &key)));
    let (_, csr) = key_and_csr(CertificateParams::default());
    let mut client = IdentityServiceClient::new(channel.clone());
    let renewed = client.renew(RenewRequest { csr_der: csr }).await.unwrap().into_inner();
    let second = worker_from_certificate(&renewed.certificate_der).unwrap();
    assert_eq!((second.agent, second.worker), (first.agent, first.worker));
    assert_ne!(second.spki_sha256, first.spki_sha256);
    let refused = client.renew(RenewRequest { csr_der: b"junk".to_vec() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(call(&channel, "/hermes.v1.IdentityService/ListTokens", &[]).await.unwrap().0, Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_with_one_token_get_one_certificate() {
    let fixture = Fixture::identity(&["coder"]).await;
    let (_, token) = fixture.join_token("coder", 1).await;
    let (_, csr) = key_and_csr(CertificateParams::default());
    let mut clients = JoinSet::new();
    for _ in 0..100 {
        let mut client = IdentityServiceClient::new(fixture.worker(None));
        let request = JoinRequest { token: token.clone(), csr_der: csr.clone() };
        clients.spawn(async move { client.join(request).await });
    }
    let answers = clients.join_all().await;
    let won = answers.iter().filter(|answer| answer.is_ok()).count();
    let lost = answers.iter().filter_map(|answer| answer.as_ref().err()).all(|s| s.code() == Code::Unauthenticated);
    assert_eq!((won, lost), (1, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_request_costs_no_use_and_every_refusal_reads_the_same() {
    let fixture = Fixture::identity(&["coder"]).await;
    let (_, good) = key_and_csr(CertificateParams::default());
    let (id, token) = fixture.join_token("coder", 2).await;
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let (revoked_id, revoked) = fixture.join_token("coder", 1).await;
    fixture.tokens.revoke(revoked_id).await.unwrap();
    let (_, spent) = fixture.join_token("coder", 1).await;
    join(&fixture, &spent, good.clone()).await.unwrap();
    let (_, stranger) = fixture.join_token("removed", 1).await;
    let other = Fixture::identity(&["coder"]).await;
    let (_, foreign) = other.join_token("coder", 1).await;

    let mut refusals = Vec::new();
    for (token, csr) in [
        (token.as_str(), forged.as_slice()),
        (&token, b""),
        ("", &good),
        (&token.to_uppercase(), &good),
        (&foreign, &good),
        (&revoked, &good),
        (&spent, &good),
        (&stranger, &good),
    ] {
        refusals.push(join(&fixture, token, csr.to_vec()).await.unwrap_err());
    }
    assert_eq!(fixture.store.list(None, 10).await.unwrap().iter().find(|t| t.id == id).unwrap().uses_left, Some(2));
    fixture.store.later.store(601, Ordering::SeqCst);
    refusals.push(join(&fixture, &token, good.clone()).await.unwrap_err());
    fixture.store.later.store(0, Ordering::SeqCst);
    for refusal in &refusals {
        assert_eq!(
            (refusal.code(), refusal.message(), refusal.details()),
            (Code::Unauthenticated, refusals[0].message(), refusals[0].details())
        );
    }
    assert_eq!(refusals.len(), 9);
    fixture.store.down.store(true, Ordering::SeqCst);
    assert_eq!(join(&fixture, &token, good.clone()).await.unwrap_err().code(), Code::Unavailable);
    fixture.store.down.store(false, Ordering::SeqCst);
    join(&fixture, &token, good).await.unwrap();
}
