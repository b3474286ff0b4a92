//! Strangers and approved senders of accounts. The SQL of asking and approving is in `control-plane/functions/pairing.sql`.
//!
//! Called by intake for messages of strangers, and by the operators' service. Always true: of a code only a salted hash is stored here (its
//! text leaves with its delivery); a code is approved once, in time by the database's clock, and wrong ones are counted in the commit that
//! refuses them; whether somebody is approved is read for each of their messages, so a revocation counts everywhere at once.

use hermes_core::pairing::{CODE_TTL, Code, LOCK_OUT, MOST_PENDING, MOST_WRONG, QUIET};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{Error, LaneKey, Result, Store, millis};

/// Bytes of the salt of a code.
const SALT_BYTES: usize = 16;

/// A stranger's message, as far as pairing is about it.
#[derive(Clone, Debug)]
pub struct PairingAsk {
    /// Their chat, which gets the code; its platform and account are what they want to be heard by.
    pub chat: LaneKey,
    /// Their id on the platform.
    pub user_id: String,
    /// Their name, for people.
    pub user_name: String,
    /// Semantic id of the message.
    pub event: String,
    /// The code they get if they get one.
    pub code: Code,
    /// Random.
    pub salt: [u8; SALT_BYTES],
}

/// What became of a stranger's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairingAsked {
    /// Their code is on its way.
    Asked,
    /// They are approved.
    Paired,
    /// They are told nothing.
    Silent,
}

/// What became of an approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PairingApproved {
    /// They are heard from now on.
    Done(PairedSender),
    /// Nobody has that code (any more); it counted as wrong.
    Wrong {
        /// How many more until the account that had most is locked.
        left: u32,
        /// One is locked until then.
        locked_until: Option<Timestamp>,
    },
    /// Every account is locked, the first one until then.
    Locked(Timestamp),
}

/// Whom an approval was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairedSender {
    /// Platform of the account.
    pub platform: String,
    /// Account id.
    pub account: String,
    /// Their id on the platform.
    pub user_id: String,
    /// Their name when they asked.
    pub user_name: String,
}

/// A request that waits, or an approved sender.
#[derive(Clone, Debug)]
pub struct PairingRow {
    /// Who.
    pub sender: PairedSender,
    /// Who approved them; `None`: nobody yet.
    pub approved_by: Option<String>,
    /// When they asked, or were approved.
    pub since: Timestamp,
    /// Until when a request can be approved.
    pub expires_at: Option<Timestamp>,
}

impl Store {
    /// Whether a sender is approved on an account.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn is_paired(&self, platform: &str, account: &str, user_id: &str) -> Result<bool> {
        let sql = "SELECT 1 FROM pairing_senders WHERE platform = $1 AND account = $2 AND user_id = $3";
        Ok(self.query_opt(sql, &[&platform, &account, &user_id]).await?.is_some())
    }

    /// A stranger asks to be heard: their code is delivered in the commit that stores it.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it may have been done; repeat it with the same event.
    pub async fn pairing_ask(&self, ask: &PairingAsk) -> Result<PairingAsked> {
        let LaneKey { platform, account, chat_id, thread_id } = &ask.chat;
        let hash = Sha256::new().chain_update(ask.salt).chain_update(ask.code.as_str()).finalize();
        let rows = self
            .query_retrying(
                "SELECT pairing_ask($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13)",
                &[
                    platform,
                    account,
                    &ask.user_id,
                    &ask.user_name,
                    chat_id,
                    thread_id,
                    &ask.event,
                    &ask.salt.as_slice(),
                    &hash.as_slice(),
                    &ask.code.text().as_bytes(),
                    &millis(CODE_TTL),
                    &millis(QUIET),
                    &i64::from(MOST_PENDING),
                ],
            )
            .await?;
        let row = rows.first().ok_or_else(|| Error::Unavailable("no answer".to_owned()))?;
        Ok(match row.get::<_, i32>(0) {
            1 => PairingAsked::Asked,
            2 => PairingAsked::Paired,
            _ => PairingAsked::Silent,
        })
    }

    /// Approves whoever has this code on one of the accounts (platform and id).
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it may have been done; the list tells.
    pub async fn pairing_approve(
        &self,
        accounts: &[(String, String)],
        code: &Code,
        by: &str,
    ) -> Result<PairingApproved> {
        let (platforms, ids): (Vec<&str>, Vec<&str>) =
            accounts.iter().map(|(platform, id)| (platform.as_str(), id.as_str())).unzip();
        let wrong = i32::try_from(MOST_WRONG).unwrap_or(i32::MAX);
        let sql = "SELECT * FROM pairing_approve($1,$2,$3,$4,$5,$6)";
        let rows =
            self.query_retrying(sql, &[&platforms, &ids, &code.as_str(), &by, &wrong, &millis(LOCK_OUT)]).await?;
        let row = rows.first().ok_or_else(|| Error::Unavailable("no answer".to_owned()))?;
        let locked_until: Option<Timestamp> = row.get("o_locked_until");
        Ok(match (row.get::<_, i32>("o_result"), locked_until) {
            (1, _) => PairingApproved::Done(PairedSender {
                platform: row.get("o_platform"),
                account: row.get("o_account"),
                user_id: row.get("o_user"),
                user_name: row.get("o_name"),
            }),
            (2, Some(until)) => PairingApproved::Locked(until),
            _ => {
                let left = row.get::<_, Option<i32>>("o_left").unwrap_or(0);
                PairingApproved::Wrong { left: u32::try_from(left).unwrap_or(0), locked_until }
            }
        })
    }

    /// Requests that wait and approved senders, by platform, account and user, behind `after` (exclusive).
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn pairings(&self, after: &[String; 3], limit: i64) -> Result<Vec<PairingRow>> {
        let sql = "SELECT * FROM (SELECT platform, account, user_id, user_name, approved_by, approved_at AS since, NULL::timestamptz AS expires_at \
                     FROM pairing_senders UNION ALL SELECT platform, account, user_id, user_name, NULL, asked_at, expires_at \
                     FROM pairing_requests WHERE expires_at > clock_timestamp()) x \
                   WHERE (platform, account, user_id) > ($1, $2, $3) ORDER BY platform, account, user_id LIMIT $4";
        let rows = self.query(sql, &[&after[0], &after[1], &after[2], &limit]).await?;
        let pairing = |row: &tokio_postgres::Row| PairingRow {
            sender: PairedSender {
                platform: row.get("platform"),
                account: row.get("account"),
                user_id: row.get("user_id"),
                user_name: row.get("user_name"),
            },
            approved_by: row.get("approved_by"),
            since: row.get("since"),
            expires_at: row.get("expires_at"),
        };
        Ok(rows.iter().map(pairing).collect())
    }

    /// Whether somebody was approved, who is not any more.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn pairing_revoke(&self, platform: &str, account: &str, user_id: &str) -> Result<bool> {
        let sql = "DELETE FROM pairing_senders WHERE platform = $1 AND account = $2 AND user_id = $3";
        Ok(self.execute(sql, &[&platform, &account, &user_id]).await? > 0)
    }
}
