//! What the scheduler does: slots that came due become runs, runs become turns, turns that ended become answers on their way.
//!
//! Always true: each of both ticks is one transaction; a slot has its run exactly when its job has moved on to the next one, a run runs exactly
//! when its turn is accepted, and it is over exactly when its answer is on its way, so whatever dies in between leaves nothing half done. Whoever holds
//! a job's row decides about its runs; other replicas pass over it.

use std::time::Duration;

use deadpool_postgres::Transaction;
use hermes_core::cron::Job;
use jiff::Timestamp;
use tokio_postgres::Row;

use super::{CronRunState, spec};
use crate::failpoint::Verdict;
use crate::store::{CALL_LIMIT, Error, LaneKey, Result, SessionId, Store, TurnId, millis, pause_before_repeating};

/// What a stopped run's turn is told, where anybody reads it.
const TOO_LONG: &str = "it took longer than it may";

/// A job whose slot has come.
#[derive(Clone, Debug)]
pub struct DueJob {
    /// Its number.
    pub no: i64,
    /// Its id.
    pub id: String,
    /// What it is.
    pub job: Job,
    /// When its schedule was written.
    pub anchored_at: Timestamp,
    /// The slot.
    pub slot: Timestamp,
    /// Slots that ran before.
    pub fired: i32,
    /// Runs of it that wait.
    pub waiting: i64,
    /// One goes on.
    pub is_running: bool,
    /// The database's time.
    pub now: Timestamp,
}

/// A row of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired {
    /// For which slot, or the first of several.
    pub slot: Timestamp,
    /// The last of several.
    pub until: Option<Timestamp>,
    /// How many.
    pub slots: i32,
    /// What becomes of it.
    pub state: CronRunState,
    /// Why.
    pub reason: Option<String>,
}

/// What is to be done about a due job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firing {
    /// Rows of its history.
    pub runs: Vec<Fired>,
    /// Its next slot, and when that begins.
    pub next: Option<(Timestamp, Timestamp)>,
    /// Why it runs no more.
    pub stopped: Option<String>,
    /// What waits and runs of it is stopped first, and why.
    pub replaces: Option<&'static str>,
}

/// A run that may begin.
#[derive(Clone, Debug)]
pub struct WaitingRun {
    /// Number of its job.
    pub no: i64,
    /// The slot.
    pub slot: Timestamp,
    /// The job's id.
    pub id: String,
    /// The job's name.
    pub name: String,
    /// What it is.
    pub job: Job,
    /// Number of its agent.
    pub agent_no: i32,
    /// The agent is not there any more.
    pub is_removed: bool,
    /// What the jobs that it builds upon said last, with how they are named.
    pub said: Vec<(String, Option<Vec<u8>>)>,
}

/// How a run begins.
#[derive(Clone, Debug)]
pub struct Begin {
    /// Key of its session.
    pub session_key: String,
    /// JSON of the `TurnInput`; or why it does not begin.
    pub payload: std::result::Result<Vec<u8>, String>,
    /// How long it may take.
    pub limit: Duration,
}

/// A run that has a turn, and how that stands.
#[derive(Clone, Debug)]
pub struct EndedRun {
    /// Number of its job.
    pub no: i64,
    /// The slot.
    pub slot: Timestamp,
    /// The job's id.
    pub id: String,
    /// The job's name.
    pub name: String,
    /// What it is.
    pub job: Job,
    /// Number of its agent.
    pub agent_no: i32,
    /// The turn.
    pub turn: TurnId,
    /// How it ended: 2 succeeded 3 failed 4 dead 5 cancelled; −1: it is gone.
    pub ended: i16,
    /// What it said.
    pub said: String,
    /// It was stopped because it took too long.
    pub is_late: bool,
    /// Why it was stopped.
    pub reason: Option<String>,
    /// Runs that failed in a row before.
    pub failures: i32,
    /// Whoever made the job knows that its answers reach nobody.
    pub told: bool,
    /// The chat that it was made in.
    pub origin: Option<LaneKey>,
    /// The agent's homes, those that the document names first, then the one set last.
    pub homes: Vec<LaneKey>,
}

/// What becomes of a run that is over.
#[derive(Clone, Debug)]
pub struct Settle {
    /// How it stands then.
    pub state: CronRunState,
    /// Why.
    pub reason: Option<String>,
    /// A text for each of these chats; the account is what to use where nothing tells it.
    pub deliver: Vec<(LaneKey, String)>,
    /// A text that some of those name as a file, and its path there.
    pub attached: Option<(String, String)>,
    /// A text for the chat that the job was made in, where one of those cannot be reached.
    pub notice: Option<String>,
    /// What was to be delivered and finds nobody.
    pub undelivered: Option<String>,
    /// What is delivered to the chat that the job was made in becomes part of the conversation there.
    pub mirrors: bool,
    /// It counts as a failure in a row; `Some(false)`: those are over.
    pub failed: Option<bool>,
}

/// What a tick did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CronTick {
    /// Jobs that it had in hand.
    pub jobs: usize,
    /// Runs that are over now.
    pub settled: usize,
    /// Agents that have something to do.
    pub wakes: Vec<i32>,
    /// Something is to be delivered.
    pub outbox: bool,
}

/// What to do about a due job.
pub type Decide<'d> = &'d (dyn Fn(&DueJob) -> Firing + Send + Sync);
/// How a run begins.
pub type Compose<'d> = &'d (dyn Fn(&WaitingRun) -> Begin + Send + Sync);
/// What becomes of a run that is over.
pub type Judge<'d> = &'d (dyn Fn(&EndedRun) -> Settle + Send + Sync);
/// The message that a delivered answer becomes in another conversation: JSON of the `TurnInput`.
pub type Mirror<'d> = &'d (dyn Fn(&str, &str) -> Vec<u8> + Send + Sync);

/// One of both ticks.
#[derive(Clone, Copy)]
enum Tick<'d> {
    Fire { most: i64, decide: Decide<'d>, compose: Compose<'d> },
    Settle { most: i32, judge: Judge<'d>, mirror: Mirror<'d>, compose: Compose<'d> },
}

/// Most turns that a job's session may hold: its runs come one after the other.
const MOST_TURNS: i64 = 64;

/// The jobs that are due, locked. The time is a sub-select, asked once, so that the index can stop there; a bare `clock_timestamp()` would be compared with
/// every job.
pub const CRON_DUE: &str = "SELECT j.job_no, j.job_id, j.spec, j.anchored_at, j.slot, j.fired, clock_timestamp() AS now FROM cron_jobs j \
    WHERE j.due_at <= (SELECT clock_timestamp()) AND j.slot IS NOT NULL ORDER BY j.due_at LIMIT $1 FOR UPDATE SKIP LOCKED";
const OPEN: &str = "SELECT i.no, (SELECT count(*) FROM cron_runs c WHERE c.job_no = i.no AND c.state = 0), \
    EXISTS (SELECT 1 FROM cron_runs c WHERE c.job_no = i.no AND c.state = 1 AND NOT EXISTS ( \
      SELECT 1 FROM turn_steps e WHERE e.session_id = c.session_id AND e.seq = c.seq AND e.step = 2147483647 AND e.phase = 1)) \
    FROM unnest($1::bigint[]) i(no)";
const HOMES: &str = "SELECT l.platform, l.account, l.chat_id, l.thread_id, h.agent_no FROM home_channels h JOIN lanes l USING (lane_id) \
    WHERE h.agent_no = ANY($1) ORDER BY h.documented DESC, h.set_at DESC";

impl Store {
    /// Slots that came due become runs, and those that may begin are turns: up to `most` jobs, in one commit.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it was done whole or not at all, and doing it again finds out.
    pub async fn cron_fire(&self, most: i64, decide: Decide<'_>, compose: Compose<'_>) -> Result<CronTick> {
        self.cron_repeated(Tick::Fire { most, decide, compose }).await
    }

    /// Runs whose turns have ended are over and their answers on their way; what takes too long is stopped, and what waited
    /// may begin: up to `most` jobs, in one commit.
    ///
    /// # Errors
    /// As [`Store::cron_fire`].
    pub async fn cron_settle(
        &self,
        most: i32,
        judge: Judge<'_>,
        mirror: Mirror<'_>,
        compose: Compose<'_>,
    ) -> Result<CronTick> {
        self.cron_repeated(Tick::Settle { most, judge, mirror, compose }).await
    }

    async fn cron_repeated(&self, tick: Tick<'_>) -> Result<CronTick> {
        let name = match tick {
            Tick::Fire { .. } => "cron_fire",
            Tick::Settle { .. } => "cron_settle",
        };
        self.cron_point(name, "before").await?;
        let mut attempt = 0;
        let done = loop {
            let mut client = self.client().await?;
            let once = async {
                let tx = client.transaction().await?;
                let done = match tick {
                    Tick::Fire { most, decide, compose } => self.fire(&tx, most, decide, compose).await?,
                    Tick::Settle { most, judge, mirror, compose } => {
                        self.settle(&tx, most, judge, mirror, compose).await?
                    }
                };
                tx.commit().await?;
                Ok(done)
            };
            match tokio::time::timeout(CALL_LIMIT, once).await {
                Ok(Ok(done)) => break done,
                Ok(Err(error)) => pause_before_repeating(&mut attempt, error).await?,
                Err(_) => {
                    drop(deadpool_postgres::Object::take(client));
                    return Err(Error::Unavailable(format!("no answer within {} s", CALL_LIMIT.as_secs())));
                }
            }
        };
        self.cron_point(name, "after").await?;
        Ok(done)
    }

    /// A drill's point.
    async fn cron_point(&self, name: &str, point: &str) -> Result<()> {
        if self.failpoints.are_set() && self.failpoints.reach(&format!("{name}.{point}")).await == Verdict::Fail {
            return Err(Error::Unavailable("cut by a drill".to_owned()));
        }
        Ok(())
    }

    async fn fire(
        &self,
        tx: &Transaction<'_>,
        most: i64,
        decide: Decide<'_>,
        compose: Compose<'_>,
    ) -> Result<CronTick> {
        let rows = tx.query(&tx.prepare_cached(CRON_DUE).await?, &[&most]).await?;
        // What a newer build wrote is left to it.
        let mut jobs: Vec<DueJob> = rows.iter().filter_map(due).collect();
        if jobs.len() < rows.len() {
            // In nobody's way until then.
            let known: Vec<i64> = jobs.iter().map(|job| job.no).collect();
            let strange: Vec<i64> = rows.iter().map(|row| row.get("job_no")).filter(|no| !known.contains(no)).collect();
            let sql = "UPDATE cron_jobs SET due_at = clock_timestamp() + interval '10 seconds' WHERE job_no = ANY($1)";
            tx.execute(&tx.prepare_cached(sql).await?, &[&strange]).await?;
        }
        if jobs.is_empty() {
            return Ok(CronTick { jobs: rows.len(), ..CronTick::default() });
        }
        self.cron_point("cron_fire", "locked").await?;
        let numbers: Vec<i64> = jobs.iter().map(|job| job.no).collect();
        for row in tx.query(&tx.prepare_cached(OPEN).await?, &[&numbers]).await? {
            if let Some(job) = jobs.iter_mut().find(|job| job.no == row.get::<_, i64>(0)) {
                (job.waiting, job.is_running) = (row.get(1), row.get(2));
            }
        }
        let firings: Vec<Firing> = jobs.iter().map(decide).collect();
        for (job, firing) in jobs.iter().zip(&firings) {
            if let Some(reason) = firing.replaces {
                let stop = tx.prepare_cached("SELECT cron_stop(ARRAY[$1::bigint], $2, false)").await?;
                tx.query(&stop, &[&job.no, &reason]).await?;
            }
        }
        let runs =
            || jobs.iter().zip(&firings).flat_map(|(job, firing)| firing.runs.iter().map(move |run| (job.no, run)));
        let run_jobs: Vec<i64> = runs().map(|(no, _)| no).collect();
        let slots: Vec<Timestamp> = runs().map(|(_, run)| run.slot).collect();
        let until: Vec<Option<Timestamp>> = runs().map(|(_, run)| run.until).collect();
        let counts: Vec<i32> = runs().map(|(_, run)| run.slots).collect();
        let states: Vec<i16> = runs().map(|(_, run)| run.state.code()).collect();
        let reasons: Vec<Option<&str>> = runs().map(|(_, run)| run.reason.as_deref()).collect();
        let next: Vec<Option<Timestamp>> = firings.iter().map(|firing| firing.next.map(|(slot, _)| slot)).collect();
        let due: Vec<Option<Timestamp>> = firings.iter().map(|firing| firing.next.map(|(_, due)| due)).collect();
        let fired: Vec<i32> = firings.iter().map(|firing| firing.counted()).collect();
        let stopped: Vec<Option<&str>> = firings.iter().map(|firing| firing.stopped.as_deref()).collect();
        let fire = tx.prepare_cached("SELECT cron_fire($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11)").await?;
        tx.query(
            &fire,
            &[&run_jobs, &slots, &until, &counts, &states, &reasons, &numbers, &next, &due, &fired, &stopped],
        )
        .await?;
        self.cron_point("cron_fire", "fired").await?;
        let wakes = self.begin(tx, &numbers, compose).await?;
        self.cron_point("cron_fire", "begun").await?;
        Ok(CronTick { jobs: rows.len(), wakes, ..CronTick::default() })
    }

    /// Begins what may begin of locked jobs; the agents that have something to do then.
    async fn begin(&self, tx: &Transaction<'_>, jobs: &[i64], compose: Compose<'_>) -> Result<Vec<i32>> {
        let rows = tx.query(&tx.prepare_cached("SELECT * FROM cron_waiting($1)").await?, &[&jobs]).await?;
        let waiting: Vec<WaitingRun> = rows.iter().filter_map(waiting).collect();
        if waiting.is_empty() {
            return Ok(Vec::new());
        }
        let begins: Vec<Begin> = waiting.iter().map(compose).collect();
        let all = || waiting.iter().zip(&begins);
        let numbers: Vec<i64> = waiting.iter().map(|run| run.no).collect();
        let slots: Vec<Timestamp> = waiting.iter().map(|run| run.slot).collect();
        let keys: Vec<Vec<u8>> = waiting.iter().map(dedupe_key).collect();
        let agents: Vec<i32> = waiting.iter().map(|run| run.agent_no).collect();
        let sessions: Vec<&str> = begins.iter().map(|begin| begin.session_key.as_str()).collect();
        let titles: Vec<&str> = waiting.iter().map(|run| run.name.as_str()).collect();
        let models: Vec<Option<&str>> = waiting.iter().map(|run| run.job.model.as_deref()).collect();
        let fresh: Vec<bool> =
            waiting.iter().map(|run| run.job.session == hermes_core::cron::Conversation::Fresh).collect();
        let payloads: Vec<Option<&[u8]>> = begins.iter().map(|begin| begin.payload.as_deref().ok()).collect();
        let limits: Vec<i64> = begins.iter().map(|begin| millis(begin.limit)).collect();
        let refused: Vec<Option<&str>> =
            all().map(|(_, begin)| begin.payload.as_ref().err().map(String::as_str)).collect();
        let sql = "SELECT * FROM cron_begin($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13)";
        let longest = begins.iter().map(|begin| millis(begin.limit)).max().unwrap_or_default();
        let begun = tx
            .query(
                &tx.prepare_cached(sql).await?,
                &[
                    &numbers,
                    &slots,
                    &keys,
                    &agents,
                    &sessions,
                    &titles,
                    &models,
                    &fresh,
                    &payloads,
                    &limits,
                    &refused,
                    &MOST_TURNS,
                    &longest,
                ],
            )
            .await?;
        let mut wakes: Vec<i32> = begun.iter().map(|row| row.get(0)).collect();
        wakes.sort_unstable();
        wakes.dedup();
        Ok(wakes)
    }

    async fn settle(
        &self,
        tx: &Transaction<'_>,
        most: i32,
        judge: Judge<'_>,
        mirror: Mirror<'_>,
        compose: Compose<'_>,
    ) -> Result<CronTick> {
        let locked = tx.query(&tx.prepare_cached("SELECT cron_unsettled($1)").await?, &[&most]).await?;
        let jobs: Vec<i64> = locked.iter().map(|row| row.get(0)).collect();
        if jobs.is_empty() {
            return Ok(CronTick::default());
        }
        self.cron_point("cron_settle", "locked").await?;
        let mut tick = CronTick { jobs: jobs.len(), ..CronTick::default() };
        // Before any chat's deliveries are locked: whose turn ends locks its session first.
        self.mirrored(tx, &jobs, mirror).await?;
        let running = tx.query(&tx.prepare_cached("SELECT * FROM cron_running($1)").await?, &[&jobs]).await?;
        let over: Vec<i64> = running
            .iter()
            .filter(|row| {
                row.get::<_, Option<i16>>("o_ended").is_none() && row.get::<_, Option<bool>>("o_over") == Some(true)
            })
            .map(|row| row.get("o_job"))
            .collect();
        if !over.is_empty() {
            tx.query(&tx.prepare_cached("SELECT cron_stop($1, $2, true)").await?, &[&over, &TOO_LONG]).await?;
        }
        let done: Vec<(&Row, EndedRun)> = running.iter().filter_map(|row| Some((row, ended(row)?))).collect();
        let agents: Vec<i32> = done.iter().map(|(_, run)| run.agent_no).collect();
        let homes = match agents.as_slice() {
            [] => Vec::new(),
            agents => tx.query(&tx.prepare_cached(HOMES).await?, &[&agents]).await?,
        };
        for (row, mut run) in done {
            let own = homes.iter().filter(|home| home.get::<_, i32>(4) == run.agent_no);
            run.homes = own.map(|home| lane_key(home, 0)).collect();
            let settled = judge(&run);
            let (confined, origin) = (row.get("o_confined"), row.get("o_origin"));
            // One that the database refuses fails alone.
            tx.batch_execute("SAVEPOINT run").await?;
            tick.outbox |= match self.settled(tx, &run, settled, confined, origin).await {
                Err(error) if matches!(error, Error::Refused { .. }) && !error.is_retryable() => {
                    tracing::error!(job = run.id, turn = %run.turn, %error, "the answer of a scheduled job cannot be stored");
                    tx.batch_execute("ROLLBACK TO run").await?;
                    self.settled(tx, &run, Settle::refused(), confined, origin).await?
                }
                answer => answer?,
            };
            tick.settled += 1;
            self.cron_point("cron_settle", "settled").await?;
        }
        tick.wakes = self.begin(tx, &jobs, compose).await?;
        self.cron_point("cron_settle", "begun").await?;
        Ok(tick)
    }

    /// The run is over; whether something is to be delivered.
    async fn settled(
        &self,
        tx: &Transaction<'_>,
        run: &EndedRun,
        settle: Settle,
        confined: bool,
        origin: Option<i64>,
    ) -> Result<bool> {
        let Settle { state, reason, deliver, attached, notice, mut undelivered, mirrors, failed } = settle;
        if let Some((path, text)) = attached {
            super::super::blobs::put_text(tx, run.turn, &path, &text).await?;
        }
        let find = tx.prepare_cached("SELECT cron_lane($1,$2,$3,$4,$5,$6,$7)").await?;
        let (mut lanes, mut bodies) = (Vec::<i64>::new(), Vec::<Vec<u8>>::new());
        for (LaneKey { platform, account, chat_id, thread_id }, text) in &deliver {
            let account = Some(account.as_str()).filter(|account| !account.is_empty());
            let found = tx
                .query_one(&find, &[&run.agent_no, &confined, &origin, platform, chat_id, thread_id, &account])
                .await?;
            match found.get::<_, Option<i64>>(0) {
                Some(lane) if lanes.contains(&lane) => {}
                Some(lane) => {
                    lanes.push(lane);
                    bodies.push(text.as_bytes().to_vec());
                }
                None => {
                    let why = format!("{platform}:{chat_id} cannot be reached");
                    undelivered = Some(undelivered.map_or(why.clone(), |before| format!("{before}; {why}")));
                }
            }
        }
        let reaches_origin = origin.is_some_and(|lane| lanes.contains(&lane));
        let tells = undelivered.is_some() && !run.told && !reaches_origin;
        if let (true, Some(lane), Some(notice)) = (tells, origin, notice) {
            lanes.push(lane);
            bodies.push(notice.into_bytes());
        }
        let told = undelivered.is_some() && (run.told || tells);
        // A text column takes none.
        let plain = |text: Option<String>| text.map(|text| text.replace('\0', "\u{fffd}"));
        let (reason, undelivered) = (plain(reason), plain(undelivered));
        let sql = "SELECT cron_settle($1,$2,$3,$4,$5,$6,$7,$8,$9,$10)";
        let mirrors = mirrors && reaches_origin;
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 10] =
            [&run.no, &run.slot, &state.code(), &reason, &lanes, &bodies, &undelivered, &mirrors, &failed, &told];
        tx.query(&tx.prepare_cached(sql).await?, &parameters).await?;
        Ok(!lanes.is_empty())
    }

    /// Answers become part of the conversations that their jobs were made in, where nothing runs.
    async fn mirrored(&self, tx: &Transaction<'_>, jobs: &[i64], mirror: Mirror<'_>) -> Result<()> {
        let sql = "SELECT c.job_no, c.slot, j.name, e.body FROM cron_runs c JOIN cron_jobs j USING (job_no) \
                   LEFT JOIN turn_steps e ON e.session_id = c.session_id AND e.seq = c.seq AND e.step = 2147483647 AND e.phase = 1 \
                   WHERE c.job_no = ANY($1) AND c.mirrors ORDER BY c.job_no, c.slot LIMIT 64";
        for row in tx.query(&tx.prepare_cached(sql).await?, &[&jobs]).await? {
            let body = String::from_utf8_lossy(row.get::<_, Option<&[u8]>>(3).unwrap_or_default()).into_owned();
            let payload = mirror(row.get(2), &body);
            let (no, slot): (i64, Timestamp) = (row.get(0), row.get(1));
            tx.query(&tx.prepare_cached("SELECT cron_mirror($1,$2,$3)").await?, &[&no, &slot, &payload]).await?;
        }
        Ok(())
    }
}

impl Settle {
    /// What is left of a run whose answer the database refuses.
    fn refused() -> Self {
        Self {
            state: CronRunState::Failed,
            reason: Some("its answer cannot be stored or delivered".to_owned()),
            deliver: Vec::new(),
            attached: None,
            notice: None,
            undelivered: None,
            mirrors: false,
            failed: Some(true),
        }
    }
}

impl Firing {
    /// Slots of the schedule that run.
    fn counted(&self) -> i32 {
        let runs = self.runs.iter().filter(|run| run.state == CronRunState::Waiting).count();
        i32::try_from(runs).unwrap_or(i32::MAX)
    }
}

fn dedupe_key(run: &WaitingRun) -> Vec<u8> {
    format!("cron:{}:{}", run.id, run.slot.as_microsecond()).into_bytes()
}

fn due(row: &Row) -> Option<DueJob> {
    Some(DueJob {
        no: row.get("job_no"),
        id: row.get("job_id"),
        job: spec(row)?,
        anchored_at: row.get("anchored_at"),
        slot: row.get("slot"),
        fired: row.get("fired"),
        waiting: 0,
        is_running: false,
        now: row.get("now"),
    })
}

fn waiting(row: &Row) -> Option<WaitingRun> {
    let asked: Vec<String> = row.get::<_, Option<_>>("o_asked").unwrap_or_default();
    let said: Vec<Option<Vec<u8>>> = row.get::<_, Option<_>>("o_said").unwrap_or_default();
    Some(WaitingRun {
        no: row.get("o_job"),
        slot: row.get("o_slot"),
        id: row.get("o_id"),
        name: row.get("o_name"),
        job: serde_json::from_value(row.get("o_spec")).ok()?,
        agent_no: row.get("o_agent"),
        is_removed: row.get("o_removed"),
        said: asked.into_iter().zip(said).collect(),
    })
}

/// A run whose turn has ended.
fn ended(row: &Row) -> Option<EndedRun> {
    let body: Option<Vec<u8>> = row.get("o_body");
    Some(EndedRun {
        no: row.get("o_job"),
        slot: row.get("o_slot"),
        id: row.get("o_id"),
        name: row.get("o_name"),
        job: serde_json::from_value(row.get("o_spec")).ok()?,
        agent_no: row.get("o_agent"),
        turn: TurnId { session: SessionId(row.get("o_session")), seq: row.get("o_seq") },
        ended: row.get::<_, Option<i16>>("o_ended")?,
        said: String::from_utf8_lossy(&body.unwrap_or_default()).into_owned(),
        is_late: row.get("o_late"),
        reason: row.get("o_reason"),
        failures: row.get("o_failures"),
        told: row.get("o_told"),
        origin: row.get::<_, Option<&str>>("o_platform").map(|_| {
            let text = |name: &str| row.get::<_, String>(name);
            LaneKey {
                platform: text("o_platform"),
                account: text("o_account"),
                chat_id: text("o_chat"),
                thread_id: text("o_thread"),
            }
        }),
        homes: Vec::new(),
    })
}

fn lane_key(row: &Row, at: usize) -> LaneKey {
    LaneKey { platform: row.get(at), account: row.get(at + 1), chat_id: row.get(at + 2), thread_id: row.get(at + 3) }
}
