//! Chats that an agent may write to by itself, and what it writes there.
//!
//! Called by intake, which notes who has written, and by tools, within their call. Always true: a chat is reached only where the turn
//! came from, where people or the document made it the agent's home, or where it has written to this agent on this account; a text is in the
//! outbox when its call is journaled. It belongs to its session and to no turn of it, so that it never takes the place of a
//! message that shows the turn.

use tokio_postgres::Row;

use super::{CallScope, LaneKey, Result, Store};

/// A chat that may be written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachedChat {
    /// Its lane.
    pub lane: i64,
    /// Which it is.
    pub key: LaneKey,
    /// The turn came from it.
    pub origin: bool,
    /// It is the home of its account and the agent.
    pub home: bool,
}

/// The chat of the caller's turn; its columns and the account's are NULL where it has none.
const ORIGIN: &str = "WITH o AS MATERIALIZED (SELECT l.* FROM turns q JOIN lanes l USING (lane_id) WHERE q.session_id = $1 AND q.seq = $2) ";
const COLUMNS: &str = "SELECT l.lane_id, l.platform, l.account, l.chat_id, l.thread_id, coalesce(l.lane_id = o.lane_id, false), \
    EXISTS (SELECT 1 FROM home_channels h WHERE h.agent_no = $3 AND h.lane_id = l.lane_id) ";

fn chat(row: &Row) -> ReachedChat {
    let key = LaneKey { platform: row.get(1), account: row.get(2), chat_id: row.get(3), thread_id: row.get(4) };
    ReachedChat { lane: row.get(0), key, origin: row.get(5), home: row.get(6) }
}

impl Store {
    /// Notes that a chat writes to an agent.
    ///
    /// # Errors
    /// [`super::Error::Unavailable`].
    pub async fn chat_heard(&self, agent_no: i32, lane: i64) -> Result<()> {
        let sql = "INSERT INTO agent_chats(agent_no, lane_id) VALUES ($1,$2) \
                   ON CONFLICT (agent_no, lane_id) DO UPDATE SET heard_at = excluded.heard_at";
        self.execute(sql, &[&agent_no, &lane]).await.map(|_| ())
    }
}

impl Store {
    /// Whether an agent may write to a chat by itself: it is its home, or has written to it.
    ///
    /// # Errors
    /// [`super::Error::Unavailable`].
    pub async fn agent_reaches(&self, agent: &str, chat: &LaneKey) -> Result<bool> {
        let LaneKey { platform, account, chat_id, thread_id } = chat;
        let sql = "SELECT 1 FROM agents a JOIN lanes l ON l.platform = $2 AND l.account = $3 AND l.chat_id = $4 AND l.thread_id = $5 \
                   WHERE a.agent_id = $1 AND (EXISTS (SELECT 1 FROM agent_chats c WHERE c.agent_no = a.agent_no AND c.lane_id = l.lane_id) \
                     OR EXISTS (SELECT 1 FROM home_channels h WHERE h.agent_no = a.agent_no AND h.lane_id = l.lane_id))";
        Ok(self.query_opt(sql, &[&agent, platform, account, chat_id, thread_id]).await?.is_some())
    }
}

impl CallScope<'_> {
    /// The chat that the turn came from; nothing where its reply is kept for its caller.
    ///
    /// # Errors
    /// As of the call.
    pub async fn origin(&self) -> Result<Option<ReachedChat>> {
        Ok(self.chats_from("FROM o AS l CROSS JOIN o", &[]).await?.pop())
    }

    /// The agent's home on a platform: that of the account of the turn, else one that the document names, else the one that was set last.
    ///
    /// # Errors
    /// As of the call.
    pub async fn home(&self, platform: &str) -> Result<Option<ReachedChat>> {
        let sql = "FROM home_channels c JOIN lanes l USING (lane_id) LEFT JOIN o ON true WHERE c.agent_no = $3 AND c.platform = $4 \
                   ORDER BY (c.platform, c.account) = (o.platform, o.account) DESC NULLS LAST, c.documented DESC, c.set_at DESC LIMIT 1";
        Ok(self.chats_from(sql, &[&platform]).await?.pop())
    }

    /// A chat that may be written to, by the first of these readings of its id and thread that there is; on the account of the turn, else
    /// on the one where it wrote last.
    ///
    /// # Errors
    /// As of the call.
    pub async fn chat(&self, platform: &str, readings: &[(String, String)]) -> Result<Option<ReachedChat>> {
        let (ids, threads): (Vec<&str>, Vec<&str>) =
            readings.iter().map(|(id, thread)| (id.as_str(), thread.as_str())).unzip();
        let sql = "FROM unnest($5::text[], $6::text[]) WITH ORDINALITY i(id, thread, n) \
                   JOIN lanes l ON l.chat_id = i.id AND l.thread_id = i.thread AND l.platform = $4 LEFT JOIN o ON true \
                   LEFT JOIN agent_chats c ON c.agent_no = $3 AND c.lane_id = l.lane_id \
                  WHERE c.lane_id IS NOT NULL OR l.lane_id = o.lane_id \
                     OR EXISTS (SELECT 1 FROM home_channels h WHERE h.agent_no = $3 AND h.lane_id = l.lane_id) \
                  ORDER BY i.n, (l.platform, l.account) = (o.platform, o.account) DESC NULLS LAST, c.heard_at DESC NULLS LAST LIMIT 1";
        Ok(self.chats_from(sql, &[&platform, &ids, &threads]).await?.pop())
    }

    /// Chats that may be written to, at most `most`: the turn's own, homes, then those that wrote last.
    ///
    /// # Errors
    /// As of the call.
    pub async fn chats(&self, most: i64) -> Result<Vec<ReachedChat>> {
        let sql = "FROM (SELECT x.lane_id, max(x.at) AS at FROM (SELECT c.lane_id, c.heard_at FROM agent_chats c WHERE c.agent_no = $3 \
                     UNION ALL SELECT h.lane_id, h.set_at FROM home_channels h WHERE h.agent_no = $3 \
                     UNION ALL SELECT o.lane_id, clock_timestamp() FROM o) x(lane_id, at) GROUP BY x.lane_id) r \
                   JOIN lanes l USING (lane_id) LEFT JOIN o ON true ORDER BY 6 DESC, 7 DESC, r.at DESC, l.lane_id LIMIT $4";
        self.chats_from(sql, &[&most]).await
    }

    async fn chats_from(
        &self,
        from: &str,
        more: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<ReachedChat>> {
        let caller = self.caller();
        let statement = self.tx.prepare_cached(&[ORIGIN, COLUMNS, from].concat()).await?;
        let mut params: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            vec![&caller.turn.session.0, &caller.turn.seq, &caller.agent_no];
        params.extend_from_slice(more);
        Ok(self.tx.query(&statement, &params).await?.iter().map(chat).collect())
    }

    /// Has a text delivered behind what the chat has, once the call is journaled.
    ///
    /// # Errors
    /// As of the call.
    pub async fn send(&mut self, chat: &ReachedChat, text: &str) -> Result<()> {
        let statement = self.tx.prepare_cached("SELECT enqueue($1,$2,0,$3)").await?;
        self.tx.query(&statement, &[&chat.lane, &self.caller().turn.session.0, &text.as_bytes()]).await?;
        self.wakes.outbox = true;
        Ok(())
    }
}
