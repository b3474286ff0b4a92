//! Slash commands: one event, one transaction of `command_begin`, an effect and `command_end`. The SQL of effects that more than one
//! statement needs is in `control-plane/functions/commands.sql`.
//!
//! Called by intake. Always true: effect and answer are committed together, and a command that is delivered again does nothing.

use std::time::Duration;

use deadpool_postgres::{Object, Transaction};
use hermes_core::approvals::Verdict;
use hermes_core::command::pick;
use hermes_core::turn::TurnInput;
use hermes_home::memory::Target;
use jiff::Timestamp;

use super::approvals::{Answered, ApprovalAnswer, answered, reach};
use super::{
    CALL_LIMIT, Error, Homed, Result, SessionId, Stopped, Store, TurnId, home_chats, millis, pause_before_repeating,
};

/// Most earlier sessions that are looked through for a name or number.
const MOST_SESSIONS: i64 = 200;

/// Most of a document that a command reads, bytes: the longest list of notes, and what a chat is shown of a skill.
const DOCUMENT_BYTES: i64 = 16 << 10;

/// A command on its way in.
#[derive(Clone, Debug)]
pub struct CommandRow {
    /// As [`super::Ingest::dedupe_key`].
    pub dedupe_key: Vec<u8>,
    /// The agent.
    pub agent_no: i32,
    /// The session key.
    pub session_key: String,
    /// The chat that is told what it came to.
    pub lane: Option<i64>,
    /// What it does.
    pub effect: Effect,
}

/// What a command does.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Nothing: it is only answered.
    Nothing,
    /// Stops what runs.
    Stop,
    /// Begins a new session, with this title.
    Renew(Option<String>),
    /// Names the session.
    Title(String),
    /// Gives the session a model of its own, or takes it away.
    Model(Option<String>),
    /// Looks at the session.
    Look,
    /// Lists the sessions of the key, at most so many.
    List(i64),
    /// Makes the session of this id, number in the list or title the current one again.
    Resume(String),
    /// Leaves so many answered turns out of the history.
    Undo(i64),
    /// Leaves the last turn out of the history and accepts its input again.
    Retry(Again),
    /// Sums up what the session used, and what all of the key used since then.
    Usage(Timestamp),
    /// Reads the agent's notes.
    Notes,
    /// Reads the beginnings of the agent's skills, at most so many.
    Skills(i64),
    /// Answers whether a call may be made.
    Answer(ApprovalAnswer),
    /// Makes the command's chat the home of its account and agent, unless the document names one.
    Home {
        /// The platform.
        platform: String,
        /// The account.
        account: String,
        /// Who wants it.
        by: String,
    },
}

/// How the input of a turn is accepted again.
#[derive(Clone, Debug)]
pub struct Again {
    /// As [`super::Ingest::traceparent`].
    pub traceparent: Option<String>,
    /// As [`super::Ingest::submitter`].
    pub submitter: Option<String>,
    /// As `limits.queued_per_session`.
    pub most: i64,
    /// How long the turn may run.
    pub limit: Duration,
}

/// What it came to.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Nothing was to be done.
    Nothing,
    /// What the stop came to.
    Stopped(Stopped),
    /// A new session is there, and what became of what ran or waited in the old one.
    Renewed(Stopped),
    /// How the session stands; `None`: there is none.
    Session(Option<Standing>, Used),
    /// The sessions of the key, the current one first.
    Sessions(Vec<Listed>),
    /// What became of going back.
    Resumed(Resumed),
    /// So many turns are left out, and the text of the first of them.
    Undone(i64, String),
    /// The last input is this turn now.
    Again(TurnId),
    /// Something runs or waits in the session: nothing was done.
    Busy,
    /// What the session and what the key used.
    Used(Used, Used),
    /// Documents of the agent by path, or how they begin, and how many there are.
    Documents(Vec<(String, Vec<u8>)>, i64),
    /// What became of an answer.
    Answered(Answered),
    /// What became of the wish that this chat be the home.
    Home(Homed),
}

/// A session as its chat sees it.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its id.
    pub id: SessionId,
    /// Its title.
    pub title: Option<String>,
    /// Its own model.
    pub model: Option<String>,
    /// Turns accepted.
    pub accepted: i64,
    /// Turns that have not ended.
    pub open: i64,
    /// A worker has one.
    pub running: bool,
    /// First message.
    pub created_at: Timestamp,
}

/// What turns used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// How many ended.
    pub turns: i64,
    /// Tokens read.
    pub input: i64,
    /// Tokens written.
    pub output: i64,
    /// US dollars, where known.
    pub cost: Option<f64>,
}

/// One session of a list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its id.
    pub id: SessionId,
    /// Its title.
    pub title: Option<String>,
    /// The first words said in it; only where the list was asked for.
    pub begins: Option<String>,
    /// Turns accepted.
    pub turns: i64,
    /// Last use.
    pub updated_at: Timestamp,
    /// The key's current one.
    pub current: bool,
}

/// What became of going back to an earlier session.
#[derive(Clone, Debug)]
pub enum Resumed {
    /// It is the current one again, and what became of what ran or waited in the other one.
    Done(Listed, Stopped),
    /// It is the current one.
    Current(Listed),
    /// It still runs or waits.
    Busy(Listed),
    /// There is no such session.
    Unknown,
}

/// What is said about an outcome.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// For a caller that waits.
    pub text: String,
    /// The chat is told, too.
    pub told: bool,
}

/// A command after its commit.
#[derive(Clone, Debug)]
pub struct Commanded {
    /// What it came to; `None`: it was known, and nothing was done.
    pub outcome: Option<Outcome>,
    /// The turn that it is about, or was.
    pub turn: Option<TurnId>,
    /// What was said.
    pub answer: Answer,
}

impl Store {
    /// Carries out a command in one transaction with its dedupe key and what `answer` makes of the outcome; `notice` is what the
    /// chat of a turn that ends at once is told.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: repeat it with the same key.
    pub async fn command(
        &self,
        row: &CommandRow,
        notice: &str,
        answer: &(dyn Fn(&Outcome) -> Answer + Send + Sync),
    ) -> Result<Commanded> {
        let mut attempt = 0;
        loop {
            let mut client = self.client().await?;
            let carried = tokio::time::timeout(CALL_LIMIT, carry_out(&mut client, row, notice, answer)).await;
            match carried {
                Ok(Ok(commanded)) => return Ok(commanded),
                Ok(Err(error)) => pause_before_repeating(&mut attempt, error).await?,
                Err(_) => {
                    // Whoever had this connection next would wait behind this call.
                    drop(Object::take(client));
                    return Err(Error::Unavailable(format!("no answer within {} s", CALL_LIMIT.as_secs())));
                }
            }
        }
    }
}

async fn carry_out(
    client: &mut Object,
    row: &CommandRow,
    notice: &str,
    answer: &(dyn Fn(&Outcome) -> Answer + Send + Sync),
) -> Result<Commanded> {
    let tx = client.transaction().await?;
    let sql = "SELECT o_session, o_seq, o_dup FROM command_begin($1,$2,$3)";
    let begun = tx.query_one(sql, &[&row.dedupe_key, &row.agent_no, &row.session_key]).await?;
    let (session, seq): (i64, i64) = (begun.get(0), begun.get(1));
    let about = |seq| (seq > 0).then_some(TurnId { session: SessionId(session), seq });
    if begun.get(2) {
        return Ok(Commanded { outcome: None, turn: about(seq), answer: Answer::default() });
    }
    let outcome = Carrying { tx: &tx, row, session, notice: notice.as_bytes() }.effect().await?;
    let answer = answer(&outcome);
    let turn = match &outcome {
        Outcome::Again(turn) => Some(*turn),
        Outcome::Stopped(stopped) => stopped.turn(),
        _ => None,
    };
    // A turn that was accepted again has the event's key already.
    if !matches!(outcome, Outcome::Again(_)) {
        let said = answer.told.then_some(answer.text.as_bytes());
        let seq = turn.map_or(0, |turn| turn.seq);
        tx.execute("SELECT command_end($1,$2,$3,$4,$5)", &[&row.dedupe_key, &session, &seq, &row.lane, &said]).await?;
    }
    tx.commit().await?;
    Ok(Commanded { outcome: Some(outcome), turn, answer })
}

/// One command in its transaction, the session's lock in hand.
struct Carrying<'a> {
    tx: &'a Transaction<'a>,
    row: &'a CommandRow,
    /// 0: there is none.
    session: i64,
    notice: &'a [u8],
}

impl Carrying<'_> {
    async fn effect(&self) -> Result<Outcome> {
        Ok(match &self.row.effect {
            Effect::Nothing => Outcome::Nothing,
            Effect::Stop => {
                let sql = "SELECT o_result, o_seq FROM stop_head($1, NULL, $2)";
                let row = self.tx.query_one(sql, &[&self.session, &self.notice]).await?;
                Outcome::Stopped(self.stopped(row.get(0), row.get(1)))
            }
            Effect::Renew(title) => Outcome::Renewed(self.begin_anew(title.as_deref()).await?.1),
            Effect::Title(title) => {
                self.own("UPDATE sessions SET title = $2 WHERE session_id = $1", Some(title)).await?
            }
            Effect::Model(model) => {
                self.own("UPDATE sessions SET model = $2 WHERE session_id = $1", model.as_ref()).await?
            }
            Effect::Look => {
                Outcome::Session(self.standing(self.session).await?, self.used(&[self.session], None).await?)
            }
            Effect::List(most) => Outcome::Sessions(self.sessions(*most, true).await?),
            Effect::Resume(which) => Outcome::Resumed(self.resume(which).await?),
            Effect::Undo(most) => match self.rewind(*most, false).await? {
                None => Outcome::Busy,
                Some((turns, said)) => {
                    Outcome::Undone(turns, said.first().map_or_else(String::new, |said| input(said).text))
                }
            },
            Effect::Retry(again) => match self.rewind(1, true).await? {
                None => Outcome::Busy,
                Some((0, _)) => Outcome::Undone(0, String::new()),
                Some((_, said)) => Outcome::Again(self.accept(said, again).await?),
            },
            Effect::Usage(since) => {
                let all: Vec<i64> = self.sessions(i64::MAX, false).await?.iter().map(|one| one.id.0).collect();
                Outcome::Used(self.used(&[self.session], None).await?, self.used(&all, Some(*since)).await?)
            }
            Effect::Notes => {
                let paths = [Target::Memory, Target::User].map(Target::path);
                self.documents("d.path = ANY($2)", &paths.as_slice(), 2).await?
            }
            Effect::Skills(most) => self.documents("d.path ~ $2", &"^skills/([^/]+/)?[^/]+/SKILL[.]md$", *most).await?,
            Effect::Answer(answer) => {
                let sql = "SELECT o_result, o_id, o_state FROM approval_answer($1,$2,$3,$4,$5,$6,false,$7,$8,$9)";
                let CommandRow { agent_no, session_key, lane, .. } = self.row;
                let params: [&(dyn tokio_postgres::types::ToSql + Sync); 9] = [
                    &answer.id,
                    agent_no,
                    session_key,
                    lane,
                    &answer.asker,
                    &answer.admin,
                    &(answer.verdict != Verdict::Deny),
                    &reach(answer.verdict),
                    &answer.by,
                ];
                Outcome::Answered(answered(&self.tx.query_one(sql, &params).await?))
            }
            Effect::Home { platform, account, by } => {
                let Some(lane) = self.row.lane else { return Ok(Outcome::Home(Homed::Nowhere)) };
                Outcome::Home(home_chats::settle(self.tx, (platform, account, self.row.agent_no), lane, by).await?)
            }
        })
    }

    /// How the agent's documents of which `which` holds of `$2` begin.
    async fn documents(
        &self,
        which: &str,
        of: &(dyn tokio_postgres::types::ToSql + Sync),
        most: i64,
    ) -> Result<Outcome> {
        let sql = format!(
            "SELECT d.path, substring(d.body FROM 1 FOR {DOCUMENT_BYTES}), count(*) OVER () FROM home_documents d \
             WHERE d.agent_no = $1 AND NOT d.deleted AND {which} ORDER BY d.path COLLATE \"C\" LIMIT $3"
        );
        let rows = self.tx.query(&sql, &[&self.row.agent_no, of, &most]).await?;
        let total = rows.first().map_or(0, |row| row.get(2));
        Ok(Outcome::Documents(rows.iter().map(|row| (row.get(0), row.get(1))).collect(), total))
    }

    fn stopped(&self, result: i32, seq: Option<i64>) -> Stopped {
        Stopped::from_code(result, TurnId { session: SessionId(self.session), seq: seq.unwrap_or(0) })
    }

    /// The new session, and what became of what ran or waited in the old one.
    async fn begin_anew(&self, title: Option<&str>) -> Result<(i64, Stopped)> {
        let sql = "SELECT o_session, o_stopped, o_turn FROM begin_anew($1,$2,$3,$4,$5)";
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&self.session, &self.row.agent_no, &self.row.session_key, &title, &self.notice];
        let row = self.tx.query_one(sql, &params).await?;
        Ok((row.get(0), self.stopped(row.get(1), row.get(2))))
    }

    /// Sets something that is the session's own; where there is none yet, of a new one.
    async fn own(&self, sql: &str, value: Option<&String>) -> Result<Outcome> {
        let session = if self.session == 0 { self.begin_anew(None).await?.0 } else { self.session };
        self.tx.execute(sql, &[&session, &value]).await?;
        Ok(Outcome::Session(self.standing(session).await?, Used::default()))
    }

    async fn standing(&self, session: i64) -> Result<Option<Standing>> {
        let sql = "SELECT title, model, tail_seq, tail_seq - head_seq + 1 - absorbed, state = 2, created_at \
                   FROM sessions WHERE session_id = $1";
        let row = self.tx.query_opt(sql, &[&session]).await?;
        Ok(row.map(|row| Standing {
            id: SessionId(session),
            title: row.get(0),
            model: row.get(1),
            accepted: row.get(2),
            open: row.get(3),
            running: row.get(4),
            created_at: row.get(5),
        }))
    }

    /// The current session first, then earlier ones that were used, the last used first.
    async fn sessions(&self, most: i64, begins: bool) -> Result<Vec<Listed>> {
        let sql = "SELECT s.session_id, s.title, s.tail_seq, s.updated_at, s.ended_at IS NULL, CASE WHEN $5 AND s.title IS NULL THEN \
               (SELECT q.payload FROM turns q WHERE q.session_id = s.session_id ORDER BY q.seq LIMIT 1) END \
             FROM (SELECT c.* FROM sessions c WHERE c.session_id = $1 UNION ALL SELECT e.* FROM sessions e \
                    WHERE e.agent_no = $2 AND e.session_key = $3 AND e.ended_at IS NOT NULL AND e.tail_seq > 0) s \
             ORDER BY s.ended_at IS NULL DESC, s.updated_at DESC, s.session_id DESC LIMIT $4";
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&self.session, &self.row.agent_no, &self.row.session_key, &most, &begins];
        let rows = self.tx.query(sql, &params).await?;
        let listed = rows.iter().map(|row| Listed {
            id: SessionId(row.get(0)),
            title: row.get(1),
            begins: row.get::<_, Option<Vec<u8>>>(5).map(|payload| input(&payload).text),
            turns: row.get(2),
            updated_at: row.get(3),
            current: row.get(4),
        });
        Ok(listed.collect())
    }

    async fn resume(&self, which: &str) -> Result<Resumed> {
        let mut sessions = self.sessions(MOST_SESSIONS, false).await?;
        let names = sessions.iter().map(|one| (one.id.to_string(), one.title.as_deref()));
        let Some(at) = pick(which, names) else { return Ok(Resumed::Unknown) };
        let chosen = sessions.swap_remove(at);
        if chosen.current {
            return Ok(Resumed::Current(chosen));
        }
        let sql = "SELECT o_result, o_stopped, o_turn FROM resume($1,$2,$3)";
        let row = self.tx.query_one(sql, &[&self.session, &chosen.id.0, &self.notice]).await?;
        Ok(match row.get::<_, i32>(0) {
            1 => Resumed::Done(chosen, self.stopped(row.get(1), row.get(2))),
            2 => Resumed::Busy(chosen),
            _ => Resumed::Unknown,
        })
    }

    /// How many turns are left out now, and the input of the first of them and of what it took in; `None`: the session is busy.
    async fn rewind(&self, most: i64, again: bool) -> Result<Option<(i64, Vec<Vec<u8>>)>> {
        let sql = "SELECT o_turns, o_said, o_busy FROM rewind($1,$2,$3)";
        let row = self.tx.query_one(sql, &[&self.session, &most, &again]).await?;
        if row.get(2) {
            return Ok(None);
        }
        Ok(Some((row.get(0), row.get::<_, Option<_>>(1).unwrap_or_default())))
    }

    async fn accept(&self, mut said: Vec<Vec<u8>>, again: &Again) -> Result<TurnId> {
        let payload = match said.as_mut_slice() {
            [one] => std::mem::take(one),
            all => serde_json::to_vec(&TurnInput::joined(all.iter().map(|payload| input(payload))))
                .map_err(|error| Error::Conflict(error.to_string()))?,
        };
        let sql = "SELECT o_session, o_seq, o_full FROM ingest_batch(ARRAY[$1::bytea], '{NULL}', ARRAY[$2::int], ARRAY[$3::text], \
             ARRAY[$4::bigint], ARRAY[$5::bytea], ARRAY[$6::text], ARRAY[$7::text], '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{0}', $8, $9)";
        let CommandRow { dedupe_key, agent_no, session_key, lane, .. } = self.row;
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 9] = [
            dedupe_key,
            agent_no,
            session_key,
            lane,
            &payload,
            &again.traceparent,
            &again.submitter,
            &again.most,
            &millis(again.limit),
        ];
        let row = self.tx.query_one(sql, &params).await?;
        if row.get(2) {
            return Err(Error::Conflict("the session takes no turn".to_owned()));
        }
        Ok(TurnId { session: SessionId(row.get(0)), seq: row.get(1) })
    }

    async fn used(&self, sessions: &[i64], since: Option<Timestamp>) -> Result<Used> {
        let sql = "SELECT o_turns, o_input, o_output, o_cost FROM used($1,$2)";
        let row = self.tx.query_one(sql, &[&sessions, &since]).await?;
        Ok(Used { turns: row.get(0), input: row.get(1), output: row.get(2), cost: row.get(3) })
    }
}

fn input(payload: &[u8]) -> TurnInput {
    serde_json::from_slice(payload).unwrap_or_default()
}
