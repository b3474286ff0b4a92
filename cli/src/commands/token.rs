//! `token …`: bearer tokens of operators and clients, join tokens of workers. The text of a token is printed once, by
//! `create`, and nowhere else.

use hermes_proto::v1::identity_service_client::IdentityServiceClient;
use hermes_proto::v1::{self, CreateTokenRequest, ListTokensRequest, RevokeTokenRequest, TokenRole};
use serde::Serialize;

use super::{Invocation, LINES, all_pages, unknown};
use crate::args::{LimitArgs, Role, TokenCommand, TokenCreateArgs};
use crate::connect::{Connection, Transport};
use crate::error::{ExitStatus, Usage};
use crate::output::{Grid, Paint, View, or_dash, plain, time};

/// Runs one of them.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn run(command: TokenCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    match command {
        TokenCommand::Create(args) => create(args, inv).await,
        TokenCommand::List(limit) => list(limit, inv).await,
        TokenCommand::Revoke { id } => revoke(id, inv).await,
    }
}

fn client(connection: &Connection) -> IdentityServiceClient<Transport> {
    IdentityServiceClient::new(connection.transport())
}

async fn create(args: TokenCreateArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    if args.role != Role::Worker && args.uses.is_some() {
        return Err(Usage("--uses belongs to --role worker alone".into()).into());
    }
    if !matches!(args.role, Role::Worker | Role::Api) && args.agent.is_some() {
        return Err(Usage("--agent belongs to --role worker and --role api".into()).into());
    }
    let role = match args.role {
        Role::Operator => TokenRole::Operator,
        Role::Api => TokenRole::Api,
        Role::Worker => TokenRole::Worker,
        Role::Viewer => TokenRole::Viewer,
    };
    let connection = inv.connect().await?;
    let request = CreateTokenRequest {
        role: role.into(),
        agent: args.agent.unwrap_or_default(),
        uses: args.uses.unwrap_or(0),
        ttl_seconds: args.ttl.map_or(0, |ttl| ttl.as_secs()),
        name: args.name,
    };
    let answer = connection.answer(client(&connection).create_token(request)).await?;
    inv.printer.show(&NewTokenView { token: answer.token })?;
    if let Some(info) = answer.info {
        inv.printer.note(&format!("token id {0}; `hermesctl token revoke {0}` ends it", info.id));
    }
    Ok(ExitStatus::Done)
}

async fn list(limit: LimitArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let tokens = all_pages(LINES, limit.limit, |page| {
        let (connection, mut client) = (&connection, client(&connection));
        async move {
            let answer = connection.answer(client.list_tokens(ListTokensRequest { page: Some(page) })).await?;
            Ok((answer.tokens, answer.next_page_token))
        }
    })
    .await?;
    let tokens = tokens.into_iter().map(TokenView::from_proto).collect::<anyhow::Result<_>>()?;
    inv.printer.show(&TokenList(tokens))?;
    Ok(ExitStatus::Done)
}

async fn revoke(id: String, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    connection.answer(client(&connection).revoke_token(RevokeTokenRequest { id: id.clone() })).await?;
    inv.printer.show(&RevokedView { id, revoked: true })?;
    Ok(ExitStatus::Done)
}

#[derive(Serialize)]
struct NewTokenView {
    token: String,
}

impl View for NewTokenView {
    fn table(&self, _paint: Paint) -> String {
        plain(&self.token).into_owned()
    }
}

#[derive(Serialize)]
struct TokenView {
    id: String,
    role: &'static str,
    agent: String,
    name: String,
    created_at_ms: i64,
    expires_at_ms: Option<i64>,
    last_used_at_ms: Option<i64>,
    uses_left: Option<u32>,
    revoked: bool,
}

impl TokenView {
    fn from_proto(token: v1::Token) -> anyhow::Result<Self> {
        let role = match token.role() {
            TokenRole::Operator => "operator",
            TokenRole::Api => "api",
            TokenRole::Worker => "worker",
            TokenRole::Viewer => "viewer",
            TokenRole::Unspecified => return Err(unknown("token role", token.role)),
        };
        Ok(Self {
            id: token.id,
            role,
            agent: token.agent,
            name: token.name,
            created_at_ms: token.created_at_ms,
            expires_at_ms: token.expires_at_ms,
            last_used_at_ms: token.last_used_at_ms,
            uses_left: token.uses_left,
            revoked: token.revoked,
        })
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct TokenList(Vec<TokenView>);

impl View for TokenList {
    fn table(&self, paint: Paint) -> String {
        let headings = ["ID", "ROLE", "AGENT", "NAME", "CREATED", "EXPIRES", "LAST USED", "USES LEFT", "REVOKED"];
        let mut grid = Grid::new(paint, &headings).right(&[7]);
        for token in &self.0 {
            grid.row([
                token.id.clone(),
                token.role.to_owned(),
                or_dash(Some(&token.agent)),
                or_dash(Some(&token.name)),
                time(Some(token.created_at_ms)),
                time(token.expires_at_ms),
                time(token.last_used_at_ms),
                token.uses_left.map_or_else(|| "-".to_owned(), |uses| uses.to_string()),
                if token.revoked { "yes" } else { "no" }.to_owned(),
            ]);
        }
        grid.finish("no token")
    }
}

#[derive(Serialize)]
struct RevokedView {
    id: String,
    revoked: bool,
}

impl View for RevokedView {
    fn table(&self, _paint: Paint) -> String {
        format!("token {} is revoked", plain(&self.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    #[test]
    fn a_new_token_is_the_whole_answer() {
        let view = NewTokenView { token: "hk_secret".into() };
        assert_eq!(render(&view, Format::Table, Paint::Off).unwrap(), "hk_secret\n");
        assert_eq!(serde_json::to_string(&view).unwrap(), r#"{"token":"hk_secret"}"#);
    }

    #[test]
    fn tokens_are_listed_without_their_text() {
        let token = v1::Token {
            id: "7".into(),
            role: TokenRole::Worker.into(),
            agent: "coder".into(),
            name: "rack 3".into(),
            created_at_ms: 1_700_000_000_000,
            expires_at_ms: Some(1_700_000_600_000),
            last_used_at_ms: None,
            uses_left: Some(2),
            revoked: false,
        };
        let list = TokenList(vec![TokenView::from_proto(token).unwrap()]);
        insta::assert_snapshot!("token_list_table", render(&list, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("token_list_json", render(&list, Format::Json, Paint::Off).unwrap());
        assert!(TokenView::from_proto(v1::Token::default()).is_err());
    }
}
