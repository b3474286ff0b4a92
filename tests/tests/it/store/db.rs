//! One drill's database: the store's own calls with answers as short texts, and raw SQL where a transaction must stay open.
//!
//! Answers are rendered as rows separated by spaces, with `-` for nothing, so that a drill reads as a list of what it
//! expects. Always true: nothing here sleeps; waiting means looking until another connection is blocked or has answered.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use hermes_control_plane::store::{
    Absorbed, Answer, Claimed, CommandRow, Commanded, Completion, DeliveryOutcome, Effect, Ended, Functions, Ingest,
    Outcome, SendResult, SessionId, Signal, StepRow, Stopped, Store, TurnId, WorkerRegistration,
};
use hermes_core::busy::BusyMode;
use hermes_core::step::{Phase, StepKind};
use hermes_tests::postgres::TestPostgres;
use jiff::Timestamp;
use postgres::{Client, NoTls, SimpleQueryMessage};
use tokio::runtime::Runtime;

use super::statements::journal_sql;

/// Somebody who polls beside whom a drill is about.
const OTHER_REPLICA: i64 = 99;
/// How long leases last where a drill does not end them itself.
pub(super) const TTL: Duration = Duration::from_secs(60);
/// More turns than any drill lets a session hold.
pub(super) const MOST: i64 = 1000;
/// What the chat is told about a turn that was given up or cancelled.
pub(super) const NOTICE: &str = "sorry";
/// Far longer than anything here takes; only a defect reaches it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Compares and names the line, so that a red drill says where.
macro_rules! same {
    ($got:expr, $want:expr) => {{
        let (got, want) = (&$got, &$want);
        if *got != *want {
            anyhow::bail!("{}:{}: got {got:?}, want {want:?}", file!(), line!());
        }
    }};
}
pub(super) use same;

/// See the module.
pub(super) struct Db {
    /// What is tested.
    pub(super) store: Store,
    runtime: Runtime,
    raw: Mutex<Client>,
    url: String,
    /// Where it is this drill's own.
    _database: Option<TestPostgres>,
}

/// An accepted message; everything but its key and session has a default.
#[derive(Clone)]
pub(super) struct Message(pub(super) Ingest);

/// A message of agent 1 for lane 1 whose payload is `p` and its key.
pub(super) fn msg(key: &str, session: &str) -> Message {
    Message(Ingest {
        dedupe_key: key.as_bytes().to_vec(),
        body_hash: None,
        agent_no: 1,
        session_key: session.to_owned(),
        lane: Some(1),
        payload: format!("p{key}").into_bytes(),
        traceparent: None,
        submitter: None,
        reserved: None,
        idle_before: None,
        daily_before: None,
        busy: BusyMode::Queue,
    })
}

impl Message {
    pub(super) fn on(mut self, worker: i64, slot: i16) -> Self {
        self.0.reserved = Some((worker, slot));
        self
    }

    pub(super) fn lane(mut self, lane: Option<i64>) -> Self {
        self.0.lane = lane;
        self
    }

    /// What was said, instead of `p` and the key.
    pub(super) fn says(mut self, text: &str) -> Self {
        self.0.payload = format!("{{\"text\":\"{text}\"}}").into_bytes();
        self
    }

    pub(super) fn agent(mut self, agent: i32) -> Self {
        self.0.agent_no = agent;
        self
    }

    pub(super) fn body(mut self, hash: &str) -> Self {
        self.0.body_hash = Some(hash.as_bytes().to_vec());
        self
    }

    pub(super) fn busy(mut self, mode: BusyMode) -> Self {
        self.0.busy = mode;
        self
    }

    pub(super) fn idle_before(mut self, at: Timestamp) -> Self {
        self.0.idle_before = Some(at);
        self
    }

    pub(super) fn daily_before(mut self, at: Timestamp) -> Self {
        self.0.daily_before = Some(at);
        self
    }
}

/// The turn `seq` of session `session`, which ran under `epoch`, ends with the reply `r<session>.<seq>` for lane 1.
pub(super) fn end(session: i64, epoch: i64, seq: i64) -> Completion {
    Completion {
        turn: TurnId { session: SessionId(session), seq },
        epoch,
        ended: Ended::Succeeded,
        reply: format!("r{session}.{seq}").into_bytes(),
        usage: serde_json::json!({}),
        lane: Some(1),
        send: true,
        next: false,
    }
}

/// [`end`] for another lane.
pub(super) fn end_to(lane: i64, session: i64, epoch: i64, seq: i64) -> Completion {
    Completion { lane: Some(lane), ..end(session, epoch, seq) }
}

/// [`end`] that keeps the slot for the session's next turn.
pub(super) fn end_keep(session: i64, epoch: i64, seq: i64) -> Completion {
    Completion { next: true, ..end(session, epoch, seq) }
}

/// The report of an attempt at `pos` in `lane`.
pub(super) fn sent(lane: i64, pos: i64, attempt: i32, result: SendResult) -> DeliveryOutcome {
    DeliveryOutcome { lane, pos, attempt, part: 0, result }
}

/// [`sent`] with all parts there.
pub(super) fn delivered(lane: i64, pos: i64, attempt: i32) -> DeliveryOutcome {
    sent(lane, pos, attempt, SendResult::Delivered { message_id: Some("m".to_owned()), revived: false })
}

/// A retry that is due at once.
pub(super) fn again() -> SendResult {
    SendResult::Retry { after: Duration::ZERO, maybe_duplicate: false, cause: "again".to_owned() }
}

fn shown_stop(stopped: Stopped) -> String {
    match stopped {
        Stopped::Nothing => "nothing".to_owned(),
        Stopped::Asked(turn) => format!("asked {turn}"),
        Stopped::Cancelled(turn) => format!("cancelled {turn}"),
        Stopped::Ended(turn) => format!("ended {turn}"),
        Stopped::Behind(turn) => format!("behind {turn}"),
        Stopped::Absorbed(turn) => format!("absorbed {turn}"),
    }
}

fn flag(value: bool) -> &'static str {
    if value { "t" } else { "f" }
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shown<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Where the migrations lie.
pub(super) fn migrations_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-plane/migrations")
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// Brings an empty database to the newest schema, as the server does.
pub(super) fn migrate(url: &str) -> Result<()> {
    runtime()?.block_on(async { Ok(Store::new(url, 4)?.migrate().await?) })
}

/// A migrated database without any row of ours.
pub(super) fn migrated() -> Result<TestPostgres> {
    TestPostgres::migrated(&[&migrations_dir(), &migrations_dir().join("../functions")], &migrate)
}

impl Db {
    /// A migrated database with the agents 1 (`a`) and 2 (`b`).
    pub(super) fn migrated() -> Result<Self> {
        let database = migrated()?;
        Self::on(database.url().to_owned(), Some(database))
    }

    /// The same in a database that others used before, from the text of the migrations, which may have been changed.
    pub(super) fn from_sql(database: &TestPostgres, sql: &str) -> Result<Self> {
        let mut client = Client::connect(database.url(), NoTls)?;
        let fresh = "SET client_min_messages = warning; DROP SCHEMA IF EXISTS hermes CASCADE; CREATE SCHEMA hermes; SET search_path = hermes";
        client.batch_execute(fresh).context("make the schema")?;
        client.batch_execute(sql).context("run the changed migrations")?;
        Self::on(database.url().to_owned(), None)
    }

    fn on(url: String, database: Option<TestPostgres>) -> Result<Self> {
        let store = Store::new(&url, 8)?;
        let raw = Mutex::new(connect(&url)?);
        let db = Self { store, runtime: runtime()?, raw, url, _database: database };
        db.add_agents()?;
        Ok(db)
    }

    fn add_agents(&self) -> Result<()> {
        self.run(
            "INSERT INTO agents(agent_id, revision) VALUES ('a', 1), ('b', 1);
             INSERT INTO agent_revisions(agent_no, revision, spec, created_by) VALUES (1, 1, '{}', 'drill'), (2, 1, '{}', 'drill')",
        )
    }

    /// Back to how it began.
    pub(super) fn reset(&self) -> Result<()> {
        self.run(
            "TRUNCATE agents, agent_revisions, routes, home_documents, home_revisions, mcp_pins, tokens, workers, replicas, origins, account_leases, slots, sessions, session_notes, summaries, session_keys,
               ready, inbound, turns, turn_steps, turn_signals, dead_turns, outbox, deliveries, previews, lanes, agent_chats, asks, cron_jobs, cron_runs, home_channels, approvals, approval_grants, pairing_accounts, pairing_requests, pairing_senders, budget_days,
               budget_reservations, budget_raises, budget_pauses, budget_alerts, uploads, blob_chunks, blobs RESTART IDENTITY;
             ALTER SEQUENCE session_ids RESTART; ALTER SEQUENCE registrations RESTART;
             ALTER SEQUENCE replica_ids RESTART; ALTER SEQUENCE outbox_positions RESTART;
             UPDATE retention SET page = 0, started_at = NULL, finished_at = NULL, removed = 0, total = 0;
             UPDATE documents SET version = 0, settings = '{}', file_hash = NULL",
        )?;
        self.add_agents()
    }

    /// Waits for a call of the store.
    pub(super) fn wait<F: Future>(&self, call: F) -> F::Output {
        self.runtime.block_on(call)
    }

    fn raw(&self) -> std::sync::MutexGuard<'_, Client> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Statements without an answer.
    pub(super) fn run(&self, sql: &str) -> Result<()> {
        self.raw().batch_execute(sql).map_err(|error| said(&error))
    }

    /// Rows separated by spaces, columns by `|`, NULL as `-`.
    pub(super) fn look(&self, sql: &str) -> Result<String> {
        rendered(&self.raw().simple_query(sql).map_err(|error| said(&error))?)
    }

    /// Positions of the undelivered, oldest first.
    pub(super) fn positions(&self) -> Result<Vec<i64>> {
        let shown = self.look("SELECT pos FROM outbox ORDER BY pos")?;
        shown.split_whitespace().map(|pos| Ok(pos.parse()?)).collect()
    }

    /// A worker of `agent` with 8 slots.
    pub(super) fn worker(&self, agent: i32) -> Result<i64> {
        self.worker_as(agent, "00000000-0000-0000-0000-000000000000", 2)
    }

    /// [`Db::worker`] with this certificate that speaks this protocol.
    pub(super) fn worker_as(&self, agent: i32, identity: &str, protocol: i32) -> Result<i64> {
        self.worker_at(1, agent, identity, protocol)
    }

    /// [`Db::worker_as`] at this replica.
    pub(super) fn worker_at(&self, replica: i64, agent: i32, identity: &str, protocol: i32) -> Result<i64> {
        let worker = WorkerRegistration {
            agent_no: agent,
            identity: identity.to_owned(),
            pid: 1,
            home: "/home".to_owned(),
            slots: 8,
            protocol,
            build: "1.0".to_owned(),
        };
        Ok(self.wait(self.store.worker_register(replica, &worker, Duration::from_secs(3600)))?)
    }

    /// Ends a worker's lease.
    pub(super) fn expire(&self, worker: i64) -> Result<()> {
        self.wait(self.store.poll(OTHER_REPLICA, &[], TTL))?;
        self.run(&format!(
            "UPDATE workers SET lease_until = clock_timestamp() - interval '1 s' WHERE worker_id = {worker}"
        ))
    }

    /// Nobody has polled for a while: the database stood still, or its clock jumped.
    pub(super) fn stand_still(&self) -> Result<()> {
        self.run("UPDATE replicas SET lease_until = lease_until - interval '13 s'")
    }

    /// All that waits may be claimed now.
    pub(super) fn ripen(&self) -> Result<()> {
        self.run("UPDATE ready SET ready_at = '2000-01-01'")
    }

    /// `session/turn/new, known or conflict/epoch` of each.
    pub(super) fn ingest(&self, messages: &[Message]) -> Result<String> {
        self.ingest_most(MOST, messages)
    }

    /// [`Db::ingest`] where a session holds at most so many turns.
    pub(super) fn ingest_most(&self, most: i64, messages: &[Message]) -> Result<String> {
        let rows: Vec<Ingest> = messages.iter().map(|message| message.0.clone()).collect();
        let answers = self.wait(self.store.ingest(&rows, most, TTL)).into_iter().map(|answer| {
            let answer = answer?;
            if answer.full {
                return Ok("full".to_owned());
            }
            let known = if answer.conflict { "conflict" } else { flag(answer.duplicate) };
            let TurnId { session, seq } = answer.turn;
            Ok(format!("{}/{seq}/{known}/{}", session.0, shown(answer.epoch)))
        });
        Ok(answers.collect::<Result<Vec<_>>>()?.join(" "))
    }

    /// `stored/send/epoch and payload of the next turn` of each.
    pub(super) fn complete(&self, rows: &[Completion]) -> Result<String> {
        self.complete_at(1, rows)
    }

    /// [`Db::complete`] in another replica's name.
    pub(super) fn complete_at(&self, replica: i64, rows: &[Completion]) -> Result<String> {
        let answers = self.wait(self.store.complete(replica, rows, TTL)).into_iter().map(|answer| {
            let answer = answer?;
            let next = answer
                .next
                .map_or_else(|| "-/-".to_owned(), |(epoch, _, next)| format!("{epoch}/{}", text(&next.payload)));
            Ok(format!("{}/{}/{next}", flag(answer.stored), flag(answer.send)))
        });
        Ok(answers.collect::<Result<Vec<_>>>()?.join(" "))
    }

    /// `worker:session.turn/epoch/what`, a message to take in as `>turn`.
    pub(super) fn signals(&self, workers: &[i64]) -> Result<String> {
        let mut signalled = self.wait(self.store.signals(workers))?;
        signalled.sort_by_key(|signalled| signalled.turn);
        let shown = signalled.iter().map(|one| {
            let what = match &one.signal {
                Signal::Stop => "stop".to_owned(),
                Signal::Interrupt => "interrupt".to_owned(),
                Signal::Steer(Some((seq, payload))) => format!(">{seq}:{}", text(payload)),
                Signal::Steer(None) => ">".to_owned(),
            };
            format!("{}:{}/{}/{what}", one.worker, one.turn, one.epoch)
        });
        Ok(shown.collect::<Vec<_>>().join(" "))
    }

    /// `/stop` of agent 1 in lane 1: what it came to, and `again` when it was known.
    pub(super) fn stop(&self, key: &str, session: &str) -> Result<String> {
        let answer = |outcome: &Outcome| Answer {
            text: "nothing".to_owned(),
            told: matches!(outcome, Outcome::Stopped(Stopped::Nothing)),
        };
        let carried = self.command(key, session, Effect::Stop, &answer)?;
        Ok(match (carried.outcome, carried.turn) {
            (Some(Outcome::Stopped(stopped)), _) => shown_stop(stopped),
            (_, Some(turn)) => format!("ended {turn} again"),
            (_, None) => "nothing again".to_owned(),
        })
    }

    /// A command of agent 1 in lane 1.
    pub(super) fn command(
        &self,
        key: &str,
        session: &str,
        effect: Effect,
        answer: &(dyn Fn(&Outcome) -> Answer + Send + Sync),
    ) -> Result<Commanded> {
        let row = CommandRow {
            dedupe_key: key.as_bytes().to_vec(),
            agent_no: 1,
            session_key: session.to_owned(),
            lane: Some(1),
            effect,
        };
        Ok(self.wait(self.store.command(&row, NOTICE, answer))?)
    }

    /// An operator's stop of a turn, or of what runs in a session (turn 0).
    pub(super) fn stop_turn(&self, session: i64, seq: i64) -> Result<String> {
        let stopped = self.wait(self.store.stop(SessionId(session), (seq > 0).then_some(seq), NOTICE))?;
        Ok(shown_stop(stopped))
    }

    /// The turns that were ended without their worker.
    pub(super) fn settle(&self, patience: Duration) -> Result<String> {
        let ended = self.wait(self.store.settle_signals(patience, NOTICE))?;
        let shown = ended.iter().map(|(turn, holder)| format!("{turn}/{}", shown(holder.map(|(worker, _)| worker))));
        Ok(shown.collect::<Vec<_>>().join(" "))
    }

    /// The running turn takes in a queued one at a step.
    pub(super) fn absorb(&self, (session, epoch, seq): (i64, i64, i64), step: i32, absorbs: i64) -> Result<Absorbed> {
        let turn = TurnId { session: SessionId(session), seq };
        let body = format!("b{absorbs}").into_bytes();
        let row = StepRow {
            turn,
            epoch,
            step,
            phase: Phase::Result,
            kind: StepKind::Steering,
            effect: None,
            idempotency_key: None,
            body,
            unknown: false,
            absorbs,
        };
        Ok(self.wait(self.store.absorb(&row))?)
    }

    /// Whether each of (session, epoch, turn) was given back.
    pub(super) fn release(&self, rows: &[(i64, i64, i64)]) -> Result<String> {
        let rows: Vec<_> = rows
            .iter()
            .map(|(session, epoch, seq)| (TurnId { session: SessionId(*session), seq: *seq }, *epoch))
            .collect();
        let answers = self.wait(self.store.release(&rows))?;
        Ok(answers.into_iter().map(flag).collect::<Vec<_>>().join(" "))
    }

    /// Rows of (session, epoch, turn, step, body): 1 stored, 0 fenced, -1 divergent.
    pub(super) fn journal(&self, rows: &[(i64, i64, i64, i32, &str)]) -> Result<String> {
        self.look(&journal_sql(rows))
    }

    /// `held` of each, then `position/text` of what to send next, with `!` where the chat is gone.
    pub(super) fn deliver(&self, replica: i64, rows: &[DeliveryOutcome]) -> Result<String> {
        let (held, next) = self.wait(self.store.deliver(replica, rows))?;
        let held = held.into_iter().map(|held| flag(held).to_owned());
        let next = next.iter().map(|next| {
            let gone = if next.gone.is_some() { "!" } else { "" };
            format!("{}/{}{gone}", next.pos, text(&next.body))
        });
        Ok(held.chain(next).collect::<Vec<_>>().join(" "))
    }

    /// `position/attempt/part/maybe there already/text` of each.
    pub(super) fn due(&self, replica: i64) -> Result<String> {
        let due = self.wait(self.store.outbox_claim(replica, 9))?;
        let shown = due.iter().map(|due| {
            format!("{}/{}/{}/{}/{}", due.pos, due.attempt, due.part, flag(due.maybe_duplicate), text(&due.body))
        });
        Ok(shown.collect::<Vec<_>>().join(" "))
    }

    /// `session/turn/epoch/payload` of each, by session.
    pub(super) fn claim(&self, free: &[(i64, i16)]) -> Result<String> {
        self.claim_sticky(free, Duration::ZERO)
    }

    /// [`Self::claim`], and `sticky` at the end when sessions were left to the workers they were last on.
    pub(super) fn claim_sticky(&self, free: &[(i64, i16)], sticky: Duration) -> Result<String> {
        let Claimed { mut leased, sticky } = self.wait(self.store.claim(free, sticky, TTL))?;
        leased.sort_by_key(|leased| leased.turn);
        let shown = leased.iter().map(|leased| {
            let TurnId { session, seq } = leased.turn;
            format!("{}/{seq}/{}/{}", session.0, leased.epoch, text(&leased.next.payload))
        });
        Ok(shown.chain(sticky.then(|| "sticky".to_owned())).collect::<Vec<_>>().join(" "))
    }

    /// `session/turn/given up` of what was taken back.
    pub(super) fn reclaim(&self) -> Result<String> {
        let taken = self.wait(self.store.reclaim(3, NOTICE, TTL))?;
        let shown = taken.iter().map(|(turn, dead)| format!("{}/{}/{}", turn.session.0, turn.seq, flag(*dead)));
        Ok(shown.collect::<Vec<_>>().join(" "))
    }

    /// Runs `sql` in a transaction that stays open.
    pub(super) fn hold(&self, sql: &str) -> Result<Held> {
        let mut client = connect(&self.url)?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        client.batch_execute("BEGIN")?;
        client.simple_query(sql).map_err(|error| said(&error))?;
        Ok(Held { client, pid })
    }

    /// `first` runs in a transaction that stays open until `second` waits for it or has answered. Answers what `second`
    /// said, and whether it had to wait.
    pub(super) fn race<T: Send>(
        &self,
        first: &str,
        second: impl FnOnce(&Self) -> Result<T> + Send,
    ) -> Result<(T, bool)> {
        let held = self.hold(first)?;
        std::thread::scope(|scope| {
            let held = held;
            let second = scope.spawn(|| second(self));
            let waited = held.blocks(self, || second.is_finished())?;
            held.commit()?;
            Ok((second.join().map_err(|_| anyhow!("the second call panicked"))??, waited))
        })
    }
}

/// An open transaction; dropping it rolls it back.
pub(super) struct Held {
    client: Client,
    pid: i32,
}

impl Held {
    /// Looks until another connection waits for this one (true) or `enough` says so (false).
    pub(super) fn blocks(&self, db: &Db, enough: impl Fn() -> bool) -> Result<bool> {
        let mut watcher = connect(&db.url)?;
        let begun = Instant::now();
        while !enough() {
            let blocked = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))";
            if watcher.query_one(blocked, &[&self.pid])?.get::<_, i64>(0) > 0 {
                return Ok(true);
            }
            if begun.elapsed() > PATIENCE {
                bail!("the other call neither waited nor answered");
            }
        }
        Ok(false)
    }

    /// Ends it.
    pub(super) fn commit(mut self) -> Result<()> {
        Ok(self.client.batch_execute("COMMIT")?)
    }

    /// Another statement in it.
    pub(super) fn look(&mut self, sql: &str) -> Result<String> {
        rendered(&self.client.simple_query(sql).map_err(|error| said(&error))?)
    }
}

fn connect(url: &str) -> Result<Client> {
    let mut client = Client::connect(url, NoTls)?;
    let search_path = format!("SET search_path = {}, hermes; SET lock_timeout = '15s'", Functions::default().schema());
    client.batch_execute(&search_path)?;
    Ok(client)
}

fn said(error: &postgres::Error) -> anyhow::Error {
    error.as_db_error().map_or_else(|| anyhow!("{error}"), |db| anyhow!("{}", db.message()))
}

fn rendered(answer: &[SimpleQueryMessage]) -> Result<String> {
    let rows = answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).unwrap_or("-")).collect::<Vec<_>>()),
        _ => None,
    });
    Ok(rows.map(|columns| columns.join("|")).collect::<Vec<_>>().join(" "))
}
