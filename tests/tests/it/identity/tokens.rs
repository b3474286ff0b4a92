//! CreateToken, ListTokens and RevokeToken over the operator listener.

use hermes_control_plane::identity::Role;
use hermes_proto::v1::identity_service_client::IdentityServiceClient;
use hermes_proto::v1::{
    CreateTokenRequest, JoinRequest, ListTokensRequest, PageRequest, RevokeTokenRequest, TokenRole,
};
use rcgen::CertificateParams;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::fixture::{Fixture, call, key_and_csr};

type Bearer = Box<dyn FnMut(Request<()>) -> Result<Request<()>, Status> + Send>;

fn client(fixture: &Fixture, token: &str) -> IdentityServiceClient<InterceptedService<Channel, Bearer>> {
    let bearer: tonic::metadata::MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    let add: Bearer = Box::new(move |mut request| {
        request.metadata_mut().insert("authorization", bearer.clone());
        Ok(request)
    });
    IdentityServiceClient::with_interceptor(fixture.operator(), add)
}

fn wanted(role: TokenRole) -> CreateTokenRequest {
    CreateTokenRequest { role: role.into(), ..CreateTokenRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn created_tokens_work_as_what_they_are_until_they_are_revoked() {
    let fixture = Fixture::identity(&["coder"]).await;
    let mut operator = client(&fixture, &fixture.token(Role::Operator).await);
    for (role, text) in [(TokenRole::Operator, "operator"), (TokenRole::Api, "api"), (TokenRole::Viewer, "viewer")] {
        let created = operator.create_token(wanted(role)).await.unwrap().into_inner();
        let info = created.info.unwrap();
        assert!(created.token.starts_with(&format!("hermes.v1.{text}.")));
        assert_eq!((info.role(), info.expires_at_ms, info.uses_left, info.revoked), (role, None, None, false));
        let bearer = format!("Bearer {}", created.token);
        let try_it = async || {
            let headers = [("authorization", bearer.as_str())];
            call(&fixture.operator(), "/hermes.v1.IdentityService/ListTokens", &headers).await.unwrap().0
        };
        let expected = if role == TokenRole::Operator { Code::Ok } else { Code::PermissionDenied };
        assert_eq!(try_it().await, expected);
        operator.revoke_token(RevokeTokenRequest { id: info.id.clone() }).await.unwrap();
        assert_eq!(try_it().await, Code::Unauthenticated, "at once on this replica");
        operator.revoke_token(RevokeTokenRequest { id: info.id }).await.unwrap();
    }
    let unknown = RevokeTokenRequest { id: "0191a2b3-0000-7000-8000-000000000001".into() };
    assert_eq!(operator.revoke_token(unknown).await.unwrap_err().code(), Code::NotFound);
    let nonsense = RevokeTokenRequest { id: "../x".into() };
    assert_eq!(operator.revoke_token(nonsense).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_created_worker_token_joins_as_often_as_it_says() {
    let fixture = Fixture::identity(&["coder"]).await;
    let mut operator = client(&fixture, &fixture.token(Role::Operator).await);
    let request = CreateTokenRequest { agent: "coder".into(), uses: 2, ..wanted(TokenRole::Worker) };
    let created = operator.create_token(request).await.unwrap().into_inner();
    let info = created.info.unwrap();
    assert_eq!((info.agent.as_str(), info.uses_left), ("coder", Some(2)));
    assert_eq!(info.expires_at_ms.unwrap() - info.created_at_ms, 600_000, "ten minutes unless said otherwise");
    let (_, csr_der) = key_and_csr(CertificateParams::default());
    let request = JoinRequest { token: created.token, csr_der };
    let mut worker = IdentityServiceClient::new(fixture.worker(None));
    worker.join(request.clone()).await.unwrap();
    worker.join(request.clone()).await.unwrap();
    assert_eq!(worker.join(request).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_do_not_fit_are_refused_by_field_and_nothing_is_stored() {
    let fixture = Fixture::identity(&["coder"]).await;
    let mut operator = client(&fixture, &fixture.token(Role::Operator).await);
    let worker = || CreateTokenRequest { agent: "coder".into(), ..wanted(TokenRole::Worker) };
    let cases = [
        ("role", wanted(TokenRole::Unspecified)),
        ("role", CreateTokenRequest { role: 999, ..wanted(TokenRole::Api) }),
        ("agent", CreateTokenRequest { agent: "coder".into(), ..wanted(TokenRole::Viewer) }),
        ("agent", CreateTokenRequest { agent: "../x".into(), ..wanted(TokenRole::Api) }),
        ("uses", CreateTokenRequest { agent: "coder".into(), uses: 1, ..wanted(TokenRole::Api) }),
        ("agent", wanted(TokenRole::Worker)),
        ("agent", CreateTokenRequest { agent: "../x".into(), ..worker() }),
        ("uses", CreateTokenRequest { uses: 1, ..wanted(TokenRole::Viewer) }),
        ("uses", CreateTokenRequest { uses: 10_001, ..worker() }),
        ("ttl_seconds", CreateTokenRequest { ttl_seconds: 366 * 86_400 + 1, ..worker() }),
        ("ttl_seconds", CreateTokenRequest { ttl_seconds: u64::MAX, ..wanted(TokenRole::Api) }),
        ("name", CreateTokenRequest { name: "a\nb".into(), ..worker() }),
        ("name", CreateTokenRequest { name: "é".repeat(129), ..worker() }),
    ];
    for (field, request) in cases {
        let refused = operator.create_token(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{request:?}");
        assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, field, "{request:?}");
    }
    let unknown = CreateTokenRequest { agent: "nobody".into(), ..worker() };
    assert_eq!(operator.create_token(unknown).await.unwrap_err().code(), Code::NotFound);
    let all = operator.list_tokens(ListTokensRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.tokens.len(), 1, "only the operator's own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_page_in_order_and_mark_use() {
    let fixture = Fixture::identity(&[]).await;
    let mut operator = client(&fixture, &fixture.token(Role::Operator).await);
    let mut expected = Vec::new();
    for _ in 0..6 {
        expected.push(operator.create_token(wanted(TokenRole::Api)).await.unwrap().into_inner().info.unwrap().id);
    }
    fixture.tokens.touch().await.unwrap();
    let mut seen = Vec::new();
    let mut page_token = String::new();
    let mut pages = 0;
    loop {
        let page = Some(PageRequest { page_size: 3, page_token });
        let answer = operator.list_tokens(ListTokensRequest { page }).await.unwrap().into_inner();
        pages += 1;
        seen.extend(answer.tokens);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, 3);
    assert!(seen[0].last_used_at_ms.is_some() && seen[1].last_used_at_ms.is_none());
    assert_eq!(seen.into_iter().skip(1).map(|token| token.id).collect::<Vec<_>>(), expected);
    for page in [
        PageRequest { page_size: 1001, page_token: String::new() },
        PageRequest { page_size: 1, page_token: "!".into() },
        PageRequest { page_size: 1, page_token: "AAAA".into() },
    ] {
        let refused = operator.list_tokens(ListTokensRequest { page: Some(page) }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}
