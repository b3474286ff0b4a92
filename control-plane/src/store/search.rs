//! What was said before in one dialogue, for a call that looks for it.
//!
//! Always true: only sessions of the caller's own agent with the caller's own session key are read, so whoever shares no session
//! shares no search; what is read is bounded in turns and bytes, newest first, and nothing is locked. There is no index of words:
//! texts are read from the turns when they are asked for, so that the end of a turn costs no more.

use std::time::Duration;

use jiff::Timestamp;

use super::{Caller, Result, SessionId, Store, TurnId};

/// A turn that was answered, or that one that was answered took in.
#[derive(Clone, Debug)]
pub struct PastTurn {
    /// Which.
    pub turn: TurnId,
    /// When it was accepted.
    pub at: Timestamp,
    /// JSON of `TurnInput`.
    pub payload: Vec<u8>,
    /// The reply; empty for one that was taken in.
    pub reply: Vec<u8>,
}

/// A text that matches.
#[derive(Clone, Debug)]
pub struct Match {
    /// Its place in what was looked through.
    pub index: usize,
    /// The passages around the words, these between `**`.
    pub excerpt: String,
}

/// Most sessions of a dialogue that are looked at.
const MAX_SESSIONS: i64 = 1000;

impl Store {
    /// The newest answered turns of the caller's dialogue, newest first: at most `turns`, and at most `bytes` of input and reply.
    ///
    /// # Errors
    /// [`super::Error::Unavailable`].
    pub async fn past_of_dialogue(&self, caller: Caller, turns: i64, bytes: i64) -> Result<Vec<PastTurn>> {
        let sql = "WITH s AS MATERIALIZED (SELECT o.session_id FROM sessions c JOIN sessions o USING (agent_no, session_key) \
                     WHERE c.session_id = $1 AND c.agent_no = $2 ORDER BY o.session_id DESC LIMIT $3), \
                   t AS MATERIALIZED (SELECT p.session_id, p.seq, octet_length(p.payload) + coalesce(octet_length(p.reply), 0) AS bytes \
                     FROM s JOIN transcripts p USING (session_id) WHERE p.ended IN (2, 6) ORDER BY p.session_id DESC, p.seq DESC LIMIT $4), \
                   f AS (SELECT t.*, sum(bytes) OVER (ORDER BY session_id DESC, seq DESC) AS upto FROM t) \
                   SELECT f.session_id, f.seq, p.created_at, p.payload, p.reply FROM f JOIN transcripts p USING (session_id, seq) \
                    WHERE f.upto <= $5 ORDER BY f.session_id DESC, f.seq DESC";
        let session = caller.turn.session.0;
        let rows = self.query(sql, &[&session, &caller.agent_no, &MAX_SESSIONS, &turns, &bytes]).await?;
        let turn = |row: &tokio_postgres::Row| PastTurn {
            turn: TurnId { session: SessionId(row.get(0)), seq: row.get(1) },
            at: row.get(2),
            payload: row.get(3),
            reply: row.get::<_, Option<Vec<u8>>>(4).unwrap_or_default(),
        };
        Ok(rows.iter().map(turn).collect())
    }

    /// Which of these texts match a query in the manner of web searches (words, "phrases", OR, -without), best first, at most
    /// `most`; of equal ones the earlier. No text may hold U+0000.
    ///
    /// # Errors
    /// [`super::Error::Unavailable`], also when it takes longer than `limit`.
    pub async fn matches(&self, query: &str, texts: &[String], most: i64, limit: Duration) -> Result<Vec<Match>> {
        let sql = "WITH q AS (SELECT websearch_to_tsquery('simple', $1) AS q), \
                   m AS (SELECT i.ord, i.text, ts_rank_cd(to_tsvector('simple', i.text), q.q) AS rank \
                           FROM q, unnest($2::text[]) WITH ORDINALITY i(text, ord) WHERE to_tsvector('simple', i.text) @@ q.q \
                          ORDER BY rank DESC, i.ord LIMIT $3) \
                   SELECT m.ord, ts_headline('simple', m.text, q.q, \
                          'StartSel=**, StopSel=**, ShortWord=0, MaxFragments=3, MinWords=8, MaxWords=40, FragmentDelimiter=\" … \"') \
                     FROM m, q ORDER BY m.rank DESC, m.ord";
        let rows = self.query_within(limit, sql, &[&query, &texts, &most]).await?;
        let found = |row: &tokio_postgres::Row| Match {
            index: usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX),
            excerpt: row.get(1),
        };
        Ok(rows.iter().map(found).collect())
    }
}
