//! PairingService: strangers who wait to be heard, and operators who approve them.
//!
//! Always true: only operators get here; what an account does with the answer the next message of the sender shows.

use hermes_core::pairing::Code;
use hermes_proto::v1;
use hermes_proto::v1::pairing_service_server::{PairingService, PairingServiceServer};
use tonic::{Request, Response, Status};

use super::convert::{page, store_status};
use super::layers::principal;
use super::status::{Reason, invalid, refuse};
use crate::identity::Principal;
use crate::registry::Registry;
use crate::store::{PairedSender, PairingApproved, PairingRow, Store};

/// The platform whose accounts pair.
const PLATFORM: &str = "telegram";

/// The service.
#[derive(Clone, Debug)]
pub struct PairingApi {
    registry: Registry,
    store: Store,
}

impl PairingApi {
    /// As a tonic service.
    pub fn server(registry: Registry, store: Store) -> PairingServiceServer<Self> {
        PairingServiceServer::new(Self { registry, store })
            .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(16 * hermes_proto::MAX_MESSAGE_BYTES)
    }

    /// The accounts that a code may be for: the one that is named (`platform/account`), else all that pair.
    fn accounts(&self, named: &str) -> Result<Vec<(String, String)>, Status> {
        let snapshot = self.registry.current();
        let pairs = snapshot.document.platforms.telegram.iter().filter(|(_, account)| account.pairs());
        let all = pairs.map(|(id, _)| (PLATFORM.to_owned(), id.clone()));
        let accounts: Vec<_> =
            all.filter(|(platform, id)| named.is_empty() || named == format!("{platform}/{id}")).collect();
        match (accounts.is_empty(), named.is_empty()) {
            (false, _) => Ok(accounts),
            (true, true) => Err(refuse(Reason::NotFound, "no account pairs; set unauthorized_dm: pair at one")),
            (true, false) => {
                let message = "no account of that name pairs; write PLATFORM/ACCOUNT as in `hermesctl pairing list`";
                Err(refuse(Reason::NotFound, message))
            }
        }
    }
}

#[tonic::async_trait]
impl PairingService for PairingApi {
    async fn list_pairings(
        &self,
        request: Request<v1::ListPairingsRequest>,
    ) -> Result<Response<v1::ListPairingsResponse>, Status> {
        let (size, token) = page(request.into_inner().page)?;
        let after: [String; 3] = if token.is_empty() {
            Default::default()
        } else {
            serde_json::from_str(&token)
                .map_err(|_| invalid("page.page_token", "use the token of the previous answer"))?
        };
        let rows = self.store.pairings(&after, i64::from(size)).await.map_err(store_status)?;
        let next = rows.last().filter(|_| rows.len() == size as usize).map(|last| {
            let PairedSender { platform, account, user_id, .. } = &last.sender;
            serde_json::json!([platform, account, user_id]).to_string()
        });
        let pairings = rows.into_iter().map(pairing_to).collect();
        Ok(Response::new(v1::ListPairingsResponse { pairings, next_page_token: next.unwrap_or_default() }))
    }

    async fn approve_pairing(
        &self,
        request: Request<v1::ApprovePairingRequest>,
    ) -> Result<Response<v1::ApprovePairingResponse>, Status> {
        let Principal::Operator { token_id } = principal(&request) else {
            return Err(refuse(Reason::NotAllowed, "only operators can do this"));
        };
        let by = format!("token:{token_id}");
        let request = request.into_inner();
        let code = Code::read(&request.code).ok_or_else(|| {
            invalid("code", "a code has 8 letters and digits, without I, O, 0 and 1; this one was not tried")
        })?;
        let accounts = self.accounts(&request.account)?;
        match self.store.pairing_approve(&accounts, &code, &by).await.map_err(store_status)? {
            PairingApproved::Done(sender) => {
                let pairing = v1::Pairing {
                    platform: sender.platform,
                    account: sender.account,
                    user_id: sender.user_id,
                    user_name: sender.user_name,
                    approved_by: by,
                    ..v1::Pairing::default()
                };
                Ok(Response::new(v1::ApprovePairingResponse { pairing: Some(pairing) }))
            }
            PairingApproved::Wrong { locked_until: Some(until), .. } => {
                let message = format!("nobody has this code; too many codes were wrong: locked until {until}");
                Err(refuse(Reason::NotFound, message))
            }
            PairingApproved::Wrong { left, locked_until: None } => {
                let message = format!(
                    "nobody has this code, or its hour is over; after {left} more wrong ones no code is approved for an hour"
                );
                Err(refuse(Reason::NotFound, message))
            }
            PairingApproved::Locked(until) => {
                let message = format!("too many codes were wrong; no code is approved until {until}");
                Err(refuse(Reason::Conflict, message))
            }
        }
    }

    async fn revoke_pairing(
        &self,
        request: Request<v1::RevokePairingRequest>,
    ) -> Result<Response<v1::RevokePairingResponse>, Status> {
        let v1::RevokePairingRequest { platform, account, user_id } = request.into_inner();
        if !self.store.pairing_revoke(&platform, &account, &user_id).await.map_err(store_status)? {
            return Err(refuse(Reason::NotFound, "they are not approved there; `hermesctl pairing list` shows who is"));
        }
        Ok(Response::new(v1::RevokePairingResponse {}))
    }
}

fn pairing_to(row: PairingRow) -> v1::Pairing {
    let PairedSender { platform, account, user_id, user_name } = row.sender;
    v1::Pairing {
        platform,
        account,
        user_id,
        user_name,
        approved_by: row.approved_by.unwrap_or_default(),
        since_ms: row.since.as_millisecond(),
        expires_at_ms: row.expires_at.map_or(0, |at| at.as_millisecond()),
    }
}
