//! Scheduled jobs and their runs: what owners change and see of them. What the scheduler does is in [`ticks`].
//!
//! Always true: an agent's jobs have different names, whatever their case; a change is made to the version that its author saw; a job that was
//! removed keeps its number and its history for a while. Whether a job is any good is judged before it comes here.

mod skills;
mod ticks;

use deadpool_postgres::GenericClient;
use hermes_core::cron::Job;
use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::{Json, ToSql};

use super::{CallScope, Error, LaneKey, Result, SessionId, Store, TurnId};

pub use ticks::{
    Begin, CRON_DUE, Compose, CronTick, Decide, DueJob, EndedRun, Fired, Firing, Judge, Mirror, Settle, WaitingRun,
};

/// Why the jobs of an agent that was removed run no more.
pub(super) const AGENT_REMOVED: &str = "its agent was removed";
/// Why what waits and runs of a job that was removed ends.
const JOB_REMOVED: &str = "the job was removed";

/// Why slots that wait do not run.
const JOB_PAUSED: &str = "the job was paused";
/// Runs of a job that may wait when somebody wants another one.
const MOST_WANTED: i64 = 10;

/// A job.
#[derive(Clone, Debug)]
pub struct CronJobRow {
    /// Its number.
    pub no: i64,
    /// Its id, 12 hexadecimal digits.
    pub id: String,
    /// Number of its agent.
    pub agent_no: i32,
    /// Id of its agent.
    pub agent: String,
    /// What it is called, unique for its agent.
    pub name: String,
    /// Moves with each change.
    pub version: i64,
    /// What it is; `None`: a newer build wrote it.
    pub job: Option<Job>,
    /// Its agent made it by itself.
    pub by_agent: bool,
    /// The chat that it was made in.
    pub origin: Option<LaneKey>,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// When its schedule was written.
    pub anchored_at: Timestamp,
    /// The next slot.
    pub slot: Option<Timestamp>,
    /// Slots that ran.
    pub fired: i32,
    /// Runs that failed in a row.
    pub failures: i32,
    /// Why it runs no more by itself.
    pub stopped: Option<String>,
    /// When it was removed.
    pub removed_at: Option<Timestamp>,
    /// Its last run.
    pub last: Option<(Timestamp, CronRunState)>,
}

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CronRunState {
    /// It waits for an earlier one.
    Waiting,
    /// It has a turn that has not ended.
    Running,
    /// It is done.
    Ran,
    /// It failed.
    Failed,
    /// Nobody ran it in time.
    Missed,
    /// An earlier one still went on.
    Skipped,
    /// It was stopped.
    Cancelled,
}

impl CronRunState {
    const ALL: [Self; 7] =
        [Self::Waiting, Self::Running, Self::Ran, Self::Failed, Self::Missed, Self::Skipped, Self::Cancelled];

    pub(super) fn from_code(code: i16) -> Self {
        usize::try_from(code).ok().and_then(|code| Self::ALL.get(code)).copied().unwrap_or(Self::Failed)
    }

    pub(super) fn code(self) -> i16 {
        Self::ALL.iter().position(|state| *state == self).and_then(|at| i16::try_from(at).ok()).unwrap_or_default()
    }

    /// The stable name that surfaces show.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Ran => "ran",
            Self::Failed => "failed",
            Self::Missed => "missed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it is over.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }
}

/// A job that is new.
#[derive(Clone, Debug)]
pub struct NewCronJob {
    /// Number of its agent.
    pub agent_no: i32,
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub job: Job,
    /// Its agent makes it by itself.
    pub by_agent: bool,
    /// It delivers only where its agent may write by itself, whoever makes it.
    pub confined: bool,
    /// Lane of the chat that it is made in, and the session there.
    pub origin: Option<(i64, SessionId)>,
    /// Who makes it.
    pub by: String,
    /// When its schedule was written, its first slot, and when that begins.
    pub times: CronTimes,
}

/// When a job runs, as judged at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CronTimes {
    /// When its schedule was written.
    pub anchored_at: Timestamp,
    /// Its next slot.
    pub slot: Option<Timestamp>,
    /// When that begins; `None`: not by itself.
    pub due_at: Option<Timestamp>,
}

/// A change of a job.
#[derive(Clone, Debug)]
pub struct CronEdit {
    /// The job.
    pub no: i64,
    /// Its version as the author saw it.
    pub version: i64,
    /// Its name from now on.
    pub name: String,
    /// What it is from now on.
    pub job: Job,
    /// When it runs from now on.
    pub times: CronTimes,
    /// Its slots are counted anew.
    pub recount: bool,
    /// Why it runs no more; nothing: it does.
    pub stopped: Option<String>,
    /// Whether it delivers only where its agent may write by itself; nothing: as before.
    pub confined: Option<bool>,
}

/// Changes of many jobs at once, for a change of the registry.
#[derive(Clone, Debug, Default)]
pub struct CronChanges {
    /// Jobs to make, each with its agent's id; the agent's number in them does not count.
    pub new: Vec<(String, NewCronJob)>,
    /// Jobs to change.
    pub edits: Vec<CronEdit>,
    /// Jobs to remove.
    pub removed: Vec<i64>,
}

impl CronChanges {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.new.is_empty() && self.edits.is_empty() && self.removed.is_empty()
    }
}

/// A run, with what its turn came to.
#[derive(Clone, Debug)]
pub struct CronRunRow {
    /// For which slot; of slots in a row the first.
    pub slot: Timestamp,
    /// How it stands.
    pub state: CronRunState,
    /// Somebody wanted it, beside the schedule.
    pub by_hand: bool,
    /// How many slots it stands for, at least, and the last of them.
    pub slots: i32,
    /// The last of several.
    pub until: Option<Timestamp>,
    /// Why it is so, for people.
    pub reason: Option<String>,
    /// Its turn.
    pub turn: Option<TurnId>,
    /// When it was found due.
    pub at: Timestamp,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// What its agent said; absent once that is not kept any more.
    pub output: Option<Vec<u8>>,
    /// What its turn used, as JSON.
    pub usage: Option<serde_json::Value>,
    /// Where its answer was sent, and how that stands.
    pub deliveries: Vec<(LaneKey, &'static str)>,
    /// What was to be delivered and found nobody.
    pub undelivered: Option<String>,
}

const JOB: &str = "SELECT j.job_no, j.job_id, j.agent_no, a.agent_id, j.name, j.version, j.spec, j.by_agent, j.created_by, j.created_at, \
      j.anchored_at, j.slot, j.fired, j.failures, j.stopped, j.removed_at, l.platform, l.account, l.chat_id, l.thread_id, r.slot AS last_slot, \
      r.state AS last_state \
    FROM cron_jobs j JOIN agents a USING (agent_no) LEFT JOIN lanes l ON l.lane_id = j.origin \
    LEFT JOIN LATERAL (SELECT c.slot, c.state FROM cron_runs c WHERE c.job_no = j.job_no ORDER BY c.slot DESC LIMIT 1) r ON true ";

fn spec(row: &Row) -> Option<Job> {
    serde_json::from_value(row.get("spec")).ok()
}

fn job(row: &Row) -> CronJobRow {
    let origin = row.get::<_, Option<String>>("platform").map(|platform| LaneKey {
        platform,
        account: row.get("account"),
        chat_id: row.get("chat_id"),
        thread_id: row.get("thread_id"),
    });
    let last_slot: Option<Timestamp> = row.get("last_slot");
    CronJobRow {
        no: row.get("job_no"),
        id: row.get("job_id"),
        agent_no: row.get("agent_no"),
        agent: row.get("agent_id"),
        name: row.get("name"),
        version: row.get("version"),
        job: spec(row),
        by_agent: row.get("by_agent"),
        origin,
        created_by: row.get("created_by"),
        created_at: row.get("created_at"),
        anchored_at: row.get("anchored_at"),
        slot: row.get("slot"),
        fired: row.get("fired"),
        failures: row.get("failures"),
        stopped: row.get("stopped"),
        removed_at: row.get("removed_at"),
        last: last_slot.map(|slot| (slot, CronRunState::from_code(row.get("last_state")))),
    }
}

fn run(row: &Row) -> CronRunRow {
    let turn = row.get::<_, Option<i64>>("session_id").zip(row.get::<_, Option<i64>>("seq"));
    let places: [Vec<String>; 4] =
        ["d_platform", "d_account", "d_chat", "d_thread"].map(|name| row.get::<_, Option<_>>(name).unwrap_or_default());
    let [platforms, accounts, chats, threads] = places;
    let states: Vec<i16> = row.get::<_, Option<_>>("d_state").unwrap_or_default();
    let keys = platforms.into_iter().zip(accounts).zip(chats).zip(threads);
    let deliveries = keys.zip(states).map(|((((platform, account), chat_id), thread_id), state)| {
        let state = match state {
            2 => "delivered",
            4 => "dead",
            _ => "on its way",
        };
        (LaneKey { platform, account, chat_id, thread_id }, state)
    });
    CronRunRow {
        slot: row.get("slot"),
        state: CronRunState::from_code(row.get("state")),
        by_hand: row.get("by_hand"),
        slots: row.get("slots"),
        until: row.get("until"),
        reason: row.get("reason"),
        turn: turn.map(|(session, seq)| TurnId { session: SessionId(session), seq }),
        at: row.get("at"),
        ended_at: row.get("ended_at"),
        output: row.get("body"),
        usage: row.get("usage"),
        deliveries: deliveries.collect(),
        undelivered: row.get("undelivered"),
    }
}

/// Until the end of the transaction nobody else makes or renames a job of the agent.
async fn lock_agent<C: GenericClient>(client: &C, agent_no: i32) -> Result<()> {
    let statement = client.prepare_cached("SELECT 1 FROM agents WHERE agent_no = $1 FOR NO KEY UPDATE").await?;
    client.execute(&statement, &[&agent_no]).await?;
    Ok(())
}

/// Refuses a name that another job of the agent has; looked at beforehand, so that a refusal leaves the transaction usable.
async fn name_is_free<C: GenericClient>(client: &C, agent_no: i32, name: &str, own: Option<i64>) -> Result<()> {
    let sql = "SELECT 1 FROM cron_jobs WHERE agent_no = $1 AND lower(name) = lower($2) AND removed_at IS NULL AND job_no IS DISTINCT FROM $3";
    let statement = client.prepare_cached(sql).await?;
    if client.query_opt(&statement, &[&agent_no, &name, &own]).await?.is_none() {
        return Ok(());
    }
    let name = name.escape_debug();
    Err(Error::Conflict(format!("the agent has a job named \"{name}\" already; choose another name, or edit that one")))
}

async fn one<C: GenericClient>(client: &C, no: i64) -> Result<CronJobRow> {
    let statement = client.prepare_cached(&[JOB, "WHERE j.job_no = $1"].concat()).await?;
    let row = client.query_opt(&statement, &[&no]).await?;
    row.as_ref().map(job).ok_or_else(|| Error::NotFound("the job is gone".to_owned()))
}

async fn create<C: GenericClient>(client: &C, new: &NewCronJob, most: i64) -> Result<CronJobRow> {
    let NewCronJob { agent_no, id, name, job, by_agent, confined, origin, by, times } = new;
    let (lane, session) = (origin.map(|(lane, _)| lane), origin.map(|(_, session)| session.0));
    lock_agent(client, *agent_no).await?;
    name_is_free(client, *agent_no, name, None).await?;
    let count = "SELECT count(*) FROM cron_jobs WHERE agent_no = $1 AND removed_at IS NULL AND (by_agent OR NOT $2)";
    let there: i64 = client.query_one(&client.prepare_cached(count).await?, &[agent_no, by_agent]).await?.get(0);
    if there >= most {
        let which = if *by_agent { "made by itself" } else { "in all" };
        return Err(Error::Conflict(format!(
            "the agent has {there} jobs {which}, and {most} are the most; remove one"
        )));
    }
    let sql = "INSERT INTO cron_jobs(job_id, agent_no, name, spec, by_agent, confined, origin, origin_session, created_by, anchored_at, slot, due_at) \
               VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12) RETURNING job_no";
    let statement = client.prepare_cached(sql).await?;
    let params: [&(dyn ToSql + Sync); 12] = [
        id,
        agent_no,
        name,
        &Json(job),
        by_agent,
        confined,
        &lane,
        &session,
        by,
        &times.anchored_at,
        &times.slot,
        &times.due_at,
    ];
    let row = client.query_one(&statement, &params).await?;
    one(client, row.get(0)).await
}

async fn edit<C: GenericClient>(client: &C, edit: &CronEdit) -> Result<CronJobRow> {
    let CronEdit { no, version, name, job, times, recount, stopped, confined } = edit;
    let agent_no = one(client, *no).await?.agent_no;
    lock_agent(client, agent_no).await?;
    name_is_free(client, agent_no, name, Some(*no)).await?;
    let sql = "UPDATE cron_jobs SET version = version + 1, name = $3, spec = $4, anchored_at = $5, slot = $6, due_at = $7, stopped = $10, \
                 fired = CASE WHEN $8 THEN 0 ELSE fired END, failures = 0, told = false, confined = coalesce($9, confined) \
               WHERE job_no = $1 AND version = $2 AND removed_at IS NULL";
    let statement = client.prepare_cached(sql).await?;
    let params: [&(dyn ToSql + Sync); 10] =
        [no, version, name, &Json(job), &times.anchored_at, &times.slot, &times.due_at, recount, confined, stopped];
    let changed = client.execute(&statement, &params).await?;
    if changed == 0 {
        return Err(Error::Conflict(
            "somebody else changed the job at the same time; look at it and try again".to_owned(),
        ));
    }
    if job.paused {
        let sql = "UPDATE cron_runs SET state = 6, reason = $2, ended_at = clock_timestamp() WHERE job_no = $1 AND state = 0 AND NOT by_hand";
        client.execute(&client.prepare_cached(sql).await?, &[no, &JOB_PAUSED]).await?;
    }
    one(client, *no).await
}

async fn remove<C: GenericClient>(client: &C, no: i64) -> Result<()> {
    let sql = "UPDATE cron_jobs SET removed_at = clock_timestamp(), slot = NULL, due_at = NULL, version = version + 1 \
               WHERE job_no = $1 AND removed_at IS NULL";
    let statement = client.prepare_cached(sql).await?;
    if client.execute(&statement, &[&no]).await? > 0 {
        let statement = client.prepare_cached("SELECT cron_stop(ARRAY[$1::bigint], $2, false)").await?;
        client.query(&statement, &[&no, &JOB_REMOVED]).await?;
    }
    Ok(())
}

async fn run_now<C: GenericClient>(client: &C, no: i64) -> Result<Timestamp> {
    let lock = "SELECT (SELECT count(*) FROM cron_runs c WHERE c.job_no = j.job_no AND c.state = 0) FROM cron_jobs j WHERE j.job_no = $1 FOR UPDATE";
    let waiting = client.query_opt(&client.prepare_cached(lock).await?, &[&no]).await?;
    if waiting.is_some_and(|row| row.get::<_, i64>(0) >= MOST_WANTED) {
        return Err(Error::Conflict(format!(
            "{MOST_WANTED} runs of the job or more wait already; wait until they are over"
        )));
    }
    let sql = "INSERT INTO cron_runs(job_no, slot, state, by_hand) \
               SELECT job_no, clock_timestamp(), 0, true FROM cron_jobs WHERE job_no = $1 AND removed_at IS NULL FOR UPDATE RETURNING slot";
    let statement = client.prepare_cached(sql).await?;
    let row = client.query_opt(&statement, &[&no]).await?;
    row.map(|row| row.get(0)).ok_or_else(|| Error::NotFound("the job is gone".to_owned()))
}

/// Carries out many changes: what goes makes room for names.
pub(super) async fn change_all<C: GenericClient>(client: &C, changes: &CronChanges) -> Result<()> {
    for no in &changes.removed {
        remove(client, *no).await?;
    }
    for change in &changes.edits {
        edit(client, change).await?;
    }
    let find = client.prepare_cached("SELECT agent_no FROM agents WHERE agent_id = $1 AND removed_at IS NULL").await?;
    for (agent, new) in &changes.new {
        let row = client.query_opt(&find, &[agent]).await?;
        let row = row.ok_or_else(|| Error::Conflict(format!("agent {agent} of a job is not registered")))?;
        create(client, &NewCronJob { agent_no: row.get(0), ..new.clone() }, i64::MAX).await?;
    }
    Ok(())
}

async fn list<C: GenericClient>(client: &C, agent: Option<i32>, after: i64, limit: i64) -> Result<Vec<CronJobRow>> {
    let sql = "WHERE ($1::int IS NULL OR j.agent_no = $1) AND j.job_no > $2 AND j.removed_at IS NULL ORDER BY j.job_no LIMIT $3";
    let statement = client.prepare_cached(&[JOB, sql].concat()).await?;
    Ok(client.query(&statement, &[&agent, &after, &limit]).await?.iter().map(job).collect())
}

async fn find<C: GenericClient>(client: &C, agent: Option<i32>, reference: &str) -> Result<CronJobRow> {
    let sql = "WHERE ($1::int IS NULL OR j.agent_no = $1) AND (j.job_id = $2 OR (lower(j.name) = lower($2) AND j.removed_at IS NULL)) \
               ORDER BY (j.job_id = $2) DESC, j.job_no LIMIT 2";
    let statement = client.prepare_cached(&[JOB, sql].concat()).await?;
    let rows: Vec<CronJobRow> = client.query(&statement, &[&agent, &reference]).await?.iter().map(job).collect();
    let shown = reference.escape_debug();
    match rows.as_slice() {
        [] => Err(Error::NotFound(format!("there is no job \"{shown}\""))),
        [first, second] if first.id != reference => Err(Error::Conflict(format!(
            "agents {} and {} both have a job \"{shown}\"; use its id ({} or {}), or say which agent",
            first.agent, second.agent, first.id, second.id
        ))),
        [first, ..] => Ok(first.clone()),
    }
}

async fn runs<C: GenericClient>(client: &C, no: i64, before: Option<Timestamp>, limit: i64) -> Result<Vec<CronRunRow>> {
    let sql = "SELECT c.*, e.body, e.usage, d.* FROM cron_runs c \
               LEFT JOIN turn_steps e ON e.session_id = c.session_id AND e.seq = c.seq AND e.step = 2147483647 AND e.phase = 1 \
               LEFT JOIN LATERAL (SELECT array_agg(l.platform ORDER BY i.n) AS d_platform, array_agg(l.account ORDER BY i.n) AS d_account, \
                   array_agg(l.chat_id ORDER BY i.n) AS d_chat, array_agg(l.thread_id ORDER BY i.n) AS d_thread, \
                   array_agg(coalesce(x.state, 0::smallint) ORDER BY i.n) AS d_state \
                 FROM unnest(c.lanes, c.positions) WITH ORDINALITY i(lane, pos, n) JOIN lanes l ON l.lane_id = i.lane \
                 LEFT JOIN deliveries x ON x.lane_id = i.lane AND x.pos = i.pos) d ON true \
               WHERE c.job_no = $1 AND ($2::timestamptz IS NULL OR c.slot < $2) ORDER BY c.slot DESC LIMIT $3";
    let statement = client.prepare_cached(sql).await?;
    Ok(client.query(&statement, &[&no, &before, &limit]).await?.iter().map(run).collect())
}

async fn skills<C: GenericClient>(client: &C, agent_no: i32) -> Result<Vec<String>> {
    let sql = "SELECT DISTINCT k.name FROM cron_jobs j, jsonb_array_elements_text(coalesce(j.spec->'skills', '[]')) k(name) \
               WHERE j.agent_no = $1 AND j.removed_at IS NULL AND j.stopped IS NULL ORDER BY 1";
    let statement = client.prepare_cached(sql).await?;
    Ok(client.query(&statement, &[&agent_no]).await?.iter().map(|row| row.get(0)).collect())
}

async fn now<C: GenericClient>(client: &C) -> Result<Timestamp> {
    let statement = client.prepare_cached("SELECT clock_timestamp()").await?;
    Ok(client.query_one(&statement, &[]).await?.get(0))
}

/// What [`Store`] does on a connection of its own and [`CallScope`] within its call, alike; those that change something wake who follows jobs.
macro_rules! both {
    ($($(#[$doc:meta])+ $name:ident = $function:ident($($arg:ident: $type:ty),*) -> $answer:ty, changes: $changes:literal;)+) => {
        impl Store {$(
            $(#[$doc])+
            ///
            /// # Errors
            /// [`Error::Conflict`], [`Error::NotFound`], [`Error::Unavailable`].
            pub async fn $name(&self, $($arg: $type),*) -> Result<$answer> {
                let mut client = self.client().await?;
                let tx = client.transaction().await?;
                let answer = $function(&tx, $($arg),*).await?;
                tx.commit().await?;
                Ok(answer)
            }
        )+}

        impl CallScope<'_> {$(
            $(#[$doc])+
            ///
            /// # Errors
            /// As of the call; [`Error::Conflict`] and [`Error::NotFound`] leave nothing changed, and the call can go on.
            pub async fn $name(&mut self, $($arg: $type),*) -> Result<$answer> {
                let answer = $function(&self.tx, $($arg),*).await?;
                self.wakes.jobs |= $changes;
                Ok(answer)
            }
        )+}
    };
}

both! {
    /// Stores a new job, if its agent has fewer than `most`; of one that its agent makes itself those count that it made itself.
    cron_create = create(new: &NewCronJob, most: i64) -> CronJobRow, changes: true;
    /// Changes a job.
    cron_edit = edit(change: &CronEdit) -> CronJobRow, changes: true;
    /// Removes a job: what waits of it never runs, what runs is told to stop.
    cron_remove = remove(no: i64) -> (), changes: true;
    /// Wants a run of a job now, beside its schedule; for which slot that counts. Somebody has to begin it ([`Store::cron_settle`]).
    cron_run_now = run_now(no: i64) -> Timestamp, changes: true;
    /// Jobs, of one agent or of all, behind the job with number `after`.
    cron_list = list(agent: Option<i32>, after: i64, limit: i64) -> Vec<CronJobRow>, changes: false;
    /// The job with that id, a removed one too, or with that name; of one agent or of all.
    cron_find = find(agent: Option<i32>, reference: &str) -> CronJobRow, changes: false;
    /// Runs of a job, the newest first, for slots before `before`.
    cron_runs = runs(no: i64, before: Option<Timestamp>, limit: i64) -> Vec<CronRunRow>, changes: false;
    /// The database's time, by which jobs run.
    now = now() -> Timestamp, changes: false;
    /// Names of skills that an agent's jobs name, paused ones too.
    cron_skills = skills(agent_no: i32) -> Vec<String>, changes: false;
}
