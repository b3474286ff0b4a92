//! Which chat is the home of an account's agent: where the agent finds its people when nobody has just written.
//!
//! Called by changes of the registry, and by a replica that starts, with what the document names, and by `/sethome`; whoever looks for a home reads `home_channels`
//! by itself. Always true: a home that the document names is as it says and has been since it said so; what is said in a chat makes
//! homes that the document does not name, and no others. It does not know what a document is.

use deadpool_postgres::Transaction;
use tokio_postgres::types::ToSql;

use super::{Error, LaneKey, Result, Store};

/// Who has set what the document names; people have numbers here.
const CONFIGURATION: &str = "configuration";

/// A home that the document names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentedHome {
    /// Whose.
    pub agent: String,
    /// The chat, which need not have written yet.
    pub chat: LaneKey,
}

/// What became of the wish that a chat be the home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Homed {
    /// It is now.
    Here,
    /// It was: the document names it.
    Already,
    /// The document names another one, and it stays that. Which is not for everybody to know who may write there.
    Elsewhere,
    /// There is no chat.
    Nowhere,
}

/// Chats that are new become lanes.
const LANES: &str = "INSERT INTO lanes(platform, account, chat_id, thread_id) \
    SELECT DISTINCT i.platform, i.account, i.chat, i.thread FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) i(platform, account, chat, thread) \
     WHERE NOT EXISTS (SELECT 1 FROM lanes l WHERE l.platform = i.platform AND l.account = i.account AND l.chat_id = i.chat AND l.thread_id = i.thread) \
     ORDER BY 1, 2, 3, 4 ON CONFLICT DO NOTHING";

/// What is right already is not touched: of several accounts the home that was set last counts. Of one change that is the last one named, hence the
/// microseconds.
const HOMES: &str = "WITH named AS MATERIALIZED ( \
      SELECT i.platform, i.account, a.agent_no, l.lane_id, statement_timestamp() + i.n * interval '1 microsecond' AS set_at \
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY i(platform, account, chat, thread, agent, n) \
        JOIN agents a ON a.agent_id = i.agent \
        JOIN lanes l ON l.platform = i.platform AND l.account = i.account AND l.chat_id = i.chat AND l.thread_id = i.thread), \
    gone AS ( \
      DELETE FROM home_channels h WHERE h.documented AND NOT EXISTS ( \
        SELECT 1 FROM named n WHERE n.platform = h.platform AND n.account = h.account AND n.agent_no = h.agent_no)), \
    made AS ( \
      INSERT INTO home_channels(platform, account, agent_no, lane_id, set_by, set_at, documented) \
      SELECT n.platform, n.account, n.agent_no, n.lane_id, $6, n.set_at, true FROM named n \
      ON CONFLICT (platform, account, agent_no) DO UPDATE SET lane_id = excluded.lane_id, set_by = excluded.set_by, set_at = excluded.set_at, documented = true \
       WHERE NOT home_channels.documented OR home_channels.lane_id <> excluded.lane_id) \
    SELECT count(*) FROM named";

/// Makes the homes that the document names, all of them, what they are to be. Agents that are new are there by then.
pub(super) async fn document_all(tx: &Transaction<'_>, homes: &[DocumentedHome]) -> Result<()> {
    let each = |part: fn(&DocumentedHome) -> &str| homes.iter().map(part).collect::<Vec<&str>>();
    let (platforms, accounts) = (each(|home| &home.chat.platform), each(|home| &home.chat.account));
    let (chats, threads) = (each(|home| &home.chat.chat_id), each(|home| &home.chat.thread_id));
    if !homes.is_empty() {
        tx.execute(LANES, &[&platforms, &accounts, &chats, &threads]).await?;
    }
    let agents = each(|home| &home.agent);
    let params: [&(dyn ToSql + Sync); 6] = [&platforms, &accounts, &chats, &threads, &agents, &CONFIGURATION];
    let named: i64 = tx.query_one(HOMES, &params).await?.get(0);
    if usize::try_from(named) != Ok(homes.len()) {
        return Err(Error::Conflict("a home is named for an agent that is not registered".to_owned()));
    }
    Ok(())
}

impl Store {
    /// Makes the homes that the document of that version names what they are to be; nothing where there is a newer one, which has. A replica of the
    /// build before, which knows nothing of them, may have made others.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn restore_homes(&self, version: i64, homes: &[DocumentedHome]) -> Result<()> {
        let mut client = self.client().await?;
        let tx = client.transaction().await?;
        if tx.query_opt("SELECT 1 FROM documents WHERE version = $1 FOR NO KEY UPDATE", &[&version]).await?.is_some() {
            document_all(&tx, homes).await?;
            tx.commit().await?;
        }
        Ok(())
    }
}

/// Makes a lane the home of an agent on an account, unless the document names one. The row stays locked either way.
pub(super) async fn settle(
    tx: &Transaction<'_>,
    (platform, account, agent_no): (&str, &str, i32),
    lane: i64,
    by: &str,
) -> Result<Homed> {
    let sql = "INSERT INTO home_channels(platform, account, agent_no, lane_id, set_by) VALUES ($1,$2,$3,$4,$5) \
         ON CONFLICT (platform, account, agent_no) DO UPDATE SET lane_id = excluded.lane_id, set_by = excluded.set_by, \
            set_at = clock_timestamp() WHERE NOT home_channels.documented";
    if tx.execute(sql, &[&platform, &account, &agent_no, &lane, &by]).await? > 0 {
        return Ok(Homed::Here);
    }
    let sql = "SELECT lane_id FROM home_channels WHERE platform = $1 AND account = $2 AND agent_no = $3";
    let row = tx.query_one(sql, &[&platform, &account, &agent_no]).await?;
    Ok(if row.get::<_, i64>(0) == lane { Homed::Already } else { Homed::Elsewhere })
}
