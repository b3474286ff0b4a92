//! Messages that show a running turn's text: the intent before the first is sent, its id right after, and who may touch it.
//!
//! Always true: a turn has at most one, for ever; only its owner sends or edits it, and a replica that lives is never robbed of
//! it. The SQL is in `control-plane/functions/previews.sql`.

use super::{Error, Result, Store, TurnId};

/// Whether a turn's text may be shown now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreviewBegin {
    /// The intent is committed: send the message and store its id.
    Send,
    /// An earlier run of the turn sent this message: edit it.
    Edit(String),
    /// The lane is busy, or another replica still shows the turn: ask again later.
    NotNow,
    /// The turn has ended, or nobody knows whether a message is there.
    Never,
}

/// What the final text of a turn must become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreviewEnd {
    /// A message of its own.
    None,
    /// An edit of this message.
    Edit(String),
    /// A message of its own with the mark: the chat may show an unfinished one.
    Unknown,
    /// Another replica still shows the turn: ask again soon.
    Held,
}

impl Store {
    /// Asks to show a running turn's text in its lane.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: the intent may be committed; a repeat then says [`PreviewBegin::Never`].
    pub async fn preview_begin(&self, replica: i64, lane: i64, turn: TurnId) -> Result<PreviewBegin> {
        let sql = "SELECT * FROM preview_begin($1,$2,$3,$4)";
        let rows = self.query_retrying(sql, &[&replica, &lane, &turn.session.0, &turn.seq]).await?;
        let row = rows.first().ok_or_else(|| Error::Unavailable("no answer".to_owned()))?;
        Ok(match (row.get::<_, i32>("o_state"), row.get::<_, Option<String>>("o_message")) {
            (1, _) => PreviewBegin::Send,
            (2, Some(message)) => PreviewBegin::Edit(message),
            (0, _) => PreviewBegin::NotNow,
            _ => PreviewBegin::Never,
        })
    }

    /// The message was sent and has this id. False: the preview is not this replica's any more.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: repeat it.
    pub async fn preview_sent(&self, replica: i64, turn: TurnId, message: &str) -> Result<bool> {
        let sql = "UPDATE previews SET message_id = $4 WHERE session_id = $1 AND seq = $2 AND owner = $3";
        Ok(self.execute(sql, &[&turn.session.0, &turn.seq, &replica, &message]).await? > 0)
    }

    /// The message was certainly not sent: there is no preview.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn preview_unsent(&self, replica: i64, turn: TurnId) -> Result<()> {
        let sql = "DELETE FROM previews WHERE session_id = $1 AND seq = $2 AND owner = $3 AND message_id IS NULL";
        self.execute(sql, &[&turn.session.0, &turn.seq, &replica]).await.map(|_| ())
    }

    /// This replica touches the message no more; whoever has the turn now may.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn preview_release(&self, replica: i64, turn: TurnId) -> Result<()> {
        let sql = "UPDATE previews SET owner = NULL WHERE session_id = $1 AND seq = $2 AND owner = $3";
        self.execute(sql, &[&turn.session.0, &turn.seq, &replica]).await.map(|_| ())
    }

    /// What the final text `body` of a turn must become; this replica owns the message from now on.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn preview_take(&self, replica: i64, turn: TurnId, body: &[u8]) -> Result<PreviewEnd> {
        let sql = "SELECT * FROM preview_take($1,$2,$3,$4)";
        let rows = self.query_retrying(sql, &[&replica, &turn.session.0, &turn.seq, &body]).await?;
        let row = rows.first().ok_or_else(|| Error::Unavailable("no answer".to_owned()))?;
        Ok(match (row.get::<_, i32>("o_state"), row.get::<_, Option<String>>("o_message")) {
            (1, Some(message)) => PreviewEnd::Edit(message),
            (2, _) => PreviewEnd::Unknown,
            (3, _) => PreviewEnd::Held,
            _ => PreviewEnd::None,
        })
    }

    /// The turn's delivery has ended: its preview is history.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: [`Store::previews_sweep`] forgets it later.
    pub async fn preview_forget(&self, turn: TurnId) -> Result<()> {
        let sql = "DELETE FROM previews WHERE session_id = $1 AND seq = $2";
        self.execute(sql, &[&turn.session.0, &turn.seq]).await.map(|_| ())
    }

    /// Forgets previews of turns that ended an hour ago and have nothing undelivered; answers whether any are left.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn previews_sweep(&self) -> Result<bool> {
        let sql = "DELETE FROM previews p WHERE begun_at < clock_timestamp() - interval '1 hour' AND EXISTS (\
                     SELECT 1 FROM turn_steps s WHERE s.session_id = p.session_id AND s.seq = p.seq AND s.step = 2147483647 AND s.phase = 1 \
                        AND s.at < clock_timestamp() - interval '1 hour') \
                   AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.lane_id = p.lane_id)";
        self.execute(sql, &[]).await?;
        Ok(self.query_opt("SELECT 1 FROM previews LIMIT 1", &[]).await?.is_some())
    }
}
