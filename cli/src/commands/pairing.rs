//! `pairing list|approve|revoke`: strangers who wait to be heard by an account.

use hermes_proto::v1::pairing_service_client::PairingServiceClient;
use hermes_proto::v1::{self, ApprovePairingRequest, ListPairingsRequest, RevokePairingRequest};
use serde::Serialize;

use super::{Invocation, LINES, all_pages, required};
use crate::args::{LimitArgs, PairingApproveArgs, PairingCommand, PairingRevokeArgs};
use crate::connect::{ANSWER_BYTES, Connection, Transport};
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View, plain, time};

/// Runs one of them.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn run(command: PairingCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    match command {
        PairingCommand::List(args) => list(args, inv).await,
        PairingCommand::Approve(args) => approve(args, inv).await,
        PairingCommand::Revoke(args) => revoke(args, inv).await,
    }
}

fn client(connection: &Connection) -> PairingServiceClient<Transport> {
    PairingServiceClient::new(connection.transport()).max_decoding_message_size(ANSWER_BYTES)
}

async fn list(args: LimitArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let pairings = all_pages(LINES, args.limit, |page| {
        let (connection, mut client) = (&connection, client(&connection));
        let request = ListPairingsRequest { page: Some(page) };
        async move {
            let answer = connection.answer(client.list_pairings(request)).await?;
            Ok((answer.pairings, answer.next_page_token))
        }
    })
    .await?;
    inv.printer.show(&PairingList(pairings.into_iter().map(PairingView::from_proto).collect()))?;
    Ok(ExitStatus::Done)
}

async fn approve(args: PairingApproveArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let request = ApprovePairingRequest { code: args.code, account: args.account.unwrap_or_default() };
    let answer = connection.answer(client(&connection).approve_pairing(request)).await?;
    inv.printer.show(&PairingView::from_proto(required(answer.pairing, "pairing")?))?;
    Ok(ExitStatus::Done)
}

async fn revoke(args: PairingRevokeArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let (platform, account) = args.account;
    let request =
        RevokePairingRequest { platform: platform.clone(), account: account.clone(), user_id: args.user.clone() };
    connection.answer(client(&connection).revoke_pairing(request)).await?;
    inv.printer.show(&Revoked { platform, account, user_id: args.user })?;
    Ok(ExitStatus::Done)
}

#[derive(Serialize)]
struct PairingView {
    state: &'static str,
    platform: String,
    account: String,
    user_id: String,
    user_name: String,
    approved_by: Option<String>,
    since_ms: Option<i64>,
    expires_at_ms: Option<i64>,
}

impl PairingView {
    fn from_proto(pairing: v1::Pairing) -> Self {
        Self {
            state: if pairing.approved_by.is_empty() { "pending" } else { "approved" },
            platform: pairing.platform,
            account: pairing.account,
            user_id: pairing.user_id,
            user_name: pairing.user_name,
            approved_by: Some(pairing.approved_by).filter(|by| !by.is_empty()),
            since_ms: Some(pairing.since_ms).filter(|at| *at > 0),
            expires_at_ms: Some(pairing.expires_at_ms).filter(|at| *at > 0),
        }
    }
}

impl View for PairingView {
    fn table(&self, _: Paint) -> String {
        let Self { platform, account, user_id, user_name, .. } = self;
        format!("{}/{} hears {} ({}) from now on", plain(platform), plain(account), plain(user_id), plain(user_name))
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct PairingList(Vec<PairingView>);

impl View for PairingList {
    fn table(&self, paint: Paint) -> String {
        let mut grid = Grid::new(paint, &["ACCOUNT", "USER", "NAME", "STATE", "SINCE", "EXPIRES", "BY"]);
        for pairing in &self.0 {
            grid.row([
                format!("{}/{}", pairing.platform, pairing.account),
                pairing.user_id.clone(),
                pairing.user_name.clone(),
                pairing.state.to_owned(),
                time(pairing.since_ms),
                time(pairing.expires_at_ms),
                pairing.approved_by.clone().unwrap_or_default(),
            ]);
        }
        grid.finish("nobody waits, and nobody was approved")
    }
}

#[derive(Serialize)]
struct Revoked {
    platform: String,
    account: String,
    user_id: String,
}

impl View for Revoked {
    fn table(&self, _: Paint) -> String {
        format!("{}/{} hears {} no more", plain(&self.platform), plain(&self.account), plain(&self.user_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    #[test]
    fn strangers_are_shown_with_what_they_call_themselves_made_harmless() {
        let waits = v1::Pairing {
            platform: "telegram".into(),
            account: "front".into(),
            user_id: "77".into(),
            user_name: "E\u{1b}[31mve\nadmin".into(),
            approved_by: String::new(),
            since_ms: 1_700_000_000_000,
            expires_at_ms: 1_700_003_600_000,
        };
        let approved = v1::Pairing { approved_by: "token:op".into(), expires_at_ms: 0, ..waits.clone() };
        let list = PairingList([waits, approved].into_iter().map(PairingView::from_proto).collect());
        let table = render(&list, Format::Table, Paint::Off).unwrap();
        assert!(["telegram/front", "77", "pending", "approved", "token:op"].iter().all(|part| table.contains(part)));
        assert!(table.trim_end().lines().count() == 3 && !table.contains('\u{1b}'), "{table}");
        let json = render(&list, Format::Json, Paint::Off).unwrap();
        assert!(json.contains("\"approved_by\": null") && json.contains("\"state\": \"pending\""), "{json}");
    }
}
