//! The certificate authority and the hashes of tokens.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hermes_core::AgentId;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Error, Result, Store};
use crate::identity::{NewToken, Role, StoreError, Token, TokenHash, TokenStore};

const TOKEN: &str = "token_id, role, agent_id, name, created_at, expires_at, last_used_at, uses, uses_left, revoked_at IS NOT NULL AS revoked";
const LIVE: &str = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())";

impl Store {
    /// The stored authority (certificate, private key), or the given one when there was none: the first replica's wins.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn authority_ensure(&self, certificate: &[u8], private_key: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
        let sql = "INSERT INTO authorities(certificate, private_key) VALUES ($1,$2) ON CONFLICT DO NOTHING";
        self.execute(sql, &[&certificate, &private_key]).await?;
        let row = self.query_opt("SELECT certificate, private_key FROM authorities", &[]).await?;
        row.map(|row| (row.get(0), row.get(1))).ok_or_else(|| Error::NotFound("there is no authority".to_owned()))
    }

    async fn token(&self, sql: &str, hash: &TokenHash) -> Result<Option<Token>> {
        match self.query_opt(sql, &[&hash.0.as_slice()]).await? {
            Some(row) => token(&row).map(Some),
            None => Ok(None),
        }
    }
}

impl TokenStore for Store {
    fn create(&self, new: NewToken) -> BoxFuture<'_, std::result::Result<Token, StoreError>> {
        async move {
            let sql = format!(
                "INSERT INTO tokens(token_id, role, agent_id, name, hash, uses, uses_left, expires_at) \
                 VALUES ($1,$2,$3,$4,$5,$6,$6, clock_timestamp() + $7::bigint * interval '1 millisecond') RETURNING {TOKEN}"
            );
            let uses = new.uses.map(|uses| i32::try_from(uses).unwrap_or(i32::MAX));
            let ttl = new.ttl.map(super::millis);
            let agent = new.agent.as_ref().map(AgentId::as_str);
            let row = self
                .query_opt(&sql, &[&new.id, &new.role.as_str(), &agent, &new.name, &new.hash.0.as_slice(), &uses, &ttl])
                .await?;
            row.as_ref().map_or_else(|| Err(Error::NotFound("the token was not stored".to_owned())), token)
        }
        .map(|result| result.map_err(wrap))
        .boxed()
    }

    fn find_by_hash(&self, hash: TokenHash) -> BoxFuture<'_, std::result::Result<Option<Token>, StoreError>> {
        async move {
            self.token(&format!("SELECT {TOKEN} FROM tokens WHERE hash = $1 AND {LIVE}"), &hash).await.map_err(wrap)
        }
        .boxed()
    }

    fn spend(&self, hash: TokenHash) -> BoxFuture<'_, std::result::Result<Option<Token>, StoreError>> {
        async move {
            let sql = format!(
                "UPDATE tokens SET uses_left = uses_left - 1, last_used_at = clock_timestamp() \
                 WHERE hash = $1 AND role = 'worker' AND uses_left > 0 AND {LIVE} RETURNING {TOKEN}"
            );
            self.token(&sql, &hash).await.map_err(wrap)
        }
        .boxed()
    }

    fn list(&self, after: Option<Uuid>, limit: u32) -> BoxFuture<'_, std::result::Result<Vec<Token>, StoreError>> {
        async move {
            let sql = format!(
                "SELECT {TOKEN} FROM tokens WHERE $1::uuid IS NULL OR token_id > $1 ORDER BY token_id LIMIT $2"
            );
            let rows = self.query(&sql, &[&after, &i64::from(limit)]).await.map_err(wrap)?;
            rows.iter().map(token).collect::<Result<Vec<_>>>().map_err(wrap)
        }
        .boxed()
    }

    fn revoke(&self, id: Uuid) -> BoxFuture<'_, std::result::Result<bool, StoreError>> {
        async move {
            let sql = "UPDATE tokens SET revoked_at = coalesce(revoked_at, clock_timestamp()) WHERE token_id = $1";
            self.execute(sql, &[&id]).await.map(|rows| rows > 0).map_err(wrap)
        }
        .boxed()
    }

    fn touch_last_used(&self, ids: Vec<Uuid>) -> BoxFuture<'_, std::result::Result<(), StoreError>> {
        async move {
            let sql = "UPDATE tokens SET last_used_at = clock_timestamp() WHERE token_id = ANY($1)";
            self.execute(sql, &[&ids]).await.map(|_| ()).map_err(wrap)
        }
        .boxed()
    }
}

fn wrap(error: Error) -> StoreError {
    StoreError(Arc::new(error))
}

fn token(row: &Row) -> Result<Token> {
    let role: String = row.get("role");
    let unreadable = || Error::Schema("a stored token cannot be read by this build".to_owned());
    let agent = row.get::<_, Option<String>>("agent_id").map(|id| AgentId::parse(&id)).transpose();
    Ok(Token {
        id: row.get("token_id"),
        role: Role::parse(&role).ok_or_else(unreadable)?,
        agent: agent.map_err(|_| unreadable())?,
        name: row.get("name"),
        created_at: row.get("created_at"),
        expires_at: row.get("expires_at"),
        last_used_at: row.get("last_used_at"),
        uses: row.get::<_, Option<i32>>("uses").and_then(|uses| u32::try_from(uses).ok()),
        uses_left: row.get::<_, Option<i32>>("uses_left").and_then(|uses| u32::try_from(uses).ok()),
        revoked: row.get("revoked"),
    })
}

/// How long a join token that a launcher mints for one start lives.
pub const LAUNCH_TTL: Duration = Duration::from_secs(60);
