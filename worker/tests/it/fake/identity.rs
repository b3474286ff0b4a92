//! Joins and renewals.

use hermes_proto::v1::identity_service_server::IdentityService;

use super::*;

#[tonic::async_trait]
impl IdentityService for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        assert!(request.peer_certs().is_none_or(|certificates| certificates.is_empty()), "Join needs no certificate");
        let request = request.into_inner();
        if request.token != self.join_token {
            return Err(Status::unauthenticated("unknown join token"));
        }
        {
            let mut left = self.state.joins_left.lock().unwrap();
            *left = left.checked_sub(1).ok_or_else(|| Status::unauthenticated("the join token is used up"))?;
        }
        *self.state.joins.lock().unwrap() += 1;
        let (certificate_der, expires_at_ms) = self.sign(request.csr_der)?;
        let ca_der = self.authority.der().to_vec();
        Ok(Response::new(JoinResponse { certificate_der, ca_der, agent: AGENT.into(), expires_at_ms }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        self.certified(&request)?;
        if *self.state.refuse_renewals.lock().unwrap() {
            return Err(Status::unavailable("not now"));
        }
        *self.state.renewals.lock().unwrap() += 1;
        let (certificate_der, expires_at_ms) = self.sign(request.into_inner().csr_der)?;
        let ca_der = self.authority.der().to_vec();
        Ok(Response::new(RenewResponse { certificate_der, ca_der, expires_at_ms }))
    }

    async fn create_token(&self, _: Request<CreateTokenRequest>) -> Result<Response<CreateTokenResponse>, Status> {
        Err(Status::permission_denied("not on this listener"))
    }

    async fn list_tokens(&self, _: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        Err(Status::permission_denied("not on this listener"))
    }

    async fn revoke_token(&self, _: Request<RevokeTokenRequest>) -> Result<Response<RevokeTokenResponse>, Status> {
        Err(Status::permission_denied("not on this listener"))
    }
}
