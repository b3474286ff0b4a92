//! Leases of workers and replicas, and the one statement that an idle replica sends.

use std::time::Duration;

use jiff::Timestamp;

use super::{AccountClaim, AccountHeld, Error, Result, SessionId, Store, TurnId, millis};

/// A worker process that asks to be given turns.
#[derive(Clone, Debug)]
pub struct WorkerRegistration {
    /// Its agent.
    pub agent_no: i32,
    /// The uuid of its certificate.
    pub identity: String,
    /// The host's pid, as it says.
    pub pid: i64,
    /// Its home, as it says; for people only.
    pub home: String,
    /// Concurrent sessions.
    pub slots: i32,
    /// The worker protocol that it speaks.
    pub protocol: i32,
    /// Its build, as it says; for people only.
    pub build: String,
}

/// Which workers to part with.
#[derive(Clone, Debug)]
pub enum Parting {
    /// These.
    Workers(Vec<i64>),
    /// Those of an agent.
    Agent(String),
    /// All.
    All,
}

/// A worker that is to leave and has not left yet.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// Its number.
    pub worker: i64,
    /// Its agent.
    pub agent: String,
    /// Turns that it still runs.
    pub running: i64,
}

/// What one poll found.
#[derive(Clone, Debug)]
pub struct PollAnswer {
    /// The database's clock.
    pub now: Timestamp,
    /// Version of document, agents and routes.
    pub version: i64,
    /// Those of the workers asked for whose lease holds.
    pub alive: Vec<i64>,
    /// Agents with a session that waits.
    pub ready: Vec<i32>,
    /// Some delivery is due.
    pub outbox_due: bool,
    /// Some worker was lost lately.
    pub lost: bool,
    /// A removed agent has waiting turns.
    pub removed: bool,
    /// Sum of all home versions: moves when any home document changes.
    pub homes: i64,
    /// Workers of this replica that somebody wants to part with, and how long their turns may still go on.
    pub draining: Vec<(i64, Duration)>,
    /// Replicas that live, this one included.
    pub live: i64,
    /// The accounts this replica receives for.
    pub accounts: Vec<AccountHeld>,
    /// Something is asked of running turns.
    pub signals: bool,
    /// Somebody waits no more for what they asked another agent.
    pub forsaken: bool,
    /// How long until a job is due.
    pub cron_due: Option<Duration>,
    /// Runs of jobs wait or go on.
    pub cron_open: bool,
}

impl Store {
    /// A new replica number.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn replica_register(&self) -> Result<i64> {
        let row = self.query_opt("SELECT nextval('replica_ids')", &[]).await?;
        row.map(|row| row.get(0)).ok_or_else(|| Error::Unavailable("no number".to_owned()))
    }

    /// [`Store::poll_for`] of a replica that receives for no account.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn poll(&self, replica: i64, workers: &[i64], ttl: Duration) -> Result<PollAnswer> {
        self.poll_for(replica, workers, &[], ttl).await
    }

    /// Renews this replica's lease, those of `workers` that were heard of and those of `accounts`, takes its share of the accounts
    /// that nobody has, and answers for all loops. Gives up after [`super::POLL_LIMIT`].
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn poll_for(
        &self,
        replica: i64,
        workers: &[i64],
        accounts: &[AccountClaim],
        ttl: Duration,
    ) -> Result<PollAnswer> {
        let platforms: Vec<&str> = accounts.iter().map(|claim| claim.platform.as_str()).collect();
        let names: Vec<&str> = accounts.iter().map(|claim| claim.account.as_str()).collect();
        let leave: Vec<bool> = accounts.iter().map(|claim| claim.leave).collect();
        let states: Vec<&str> = accounts.iter().map(|claim| claim.state).collect();
        let details: Vec<&str> = accounts.iter().map(|claim| claim.detail.as_str()).collect();
        let silent: Vec<i64> = accounts.iter().map(|claim| claim.silent.map_or(-1, millis)).collect();
        let rows = self
            .query_retrying_within(
                super::POLL_LIMIT,
                "SELECT * FROM poll($1,$2,$3,$4,$5,$6,$7,$8,$9)",
                &[&replica, &workers, &millis(ttl), &platforms, &names, &leave, &states, &details, &silent],
            )
            .await?;
        let row = rows.first().ok_or_else(|| Error::Unavailable("no answer".to_owned()))?;
        let grace = row.get::<_, Vec<i64>>("o_grace_ms").into_iter().map(|ms| Duration::from_millis(ms.unsigned_abs()));
        let (places, epochs, lefts): (Vec<i32>, Vec<i64>, Vec<i64>) =
            (row.get("o_have"), row.get("o_epoch"), row.get("o_left_ms"));
        let held = places.into_iter().zip(epochs).zip(lefts).filter_map(|((place, epoch), left)| {
            let claim = accounts.get(usize::try_from(place).ok()?.checked_sub(1)?)?;
            let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
            Some(AccountHeld { platform: claim.platform.clone(), account: claim.account.clone(), epoch, left })
        });
        Ok(PollAnswer {
            now: row.get("o_now"),
            version: row.get("o_version"),
            alive: row.get("o_alive"),
            ready: row.get("o_ready"),
            outbox_due: row.get("o_outbox"),
            lost: row.get("o_lost"),
            removed: row.get("o_removed"),
            homes: row.get("o_homes"),
            draining: row.get::<_, Vec<i64>>("o_draining").into_iter().zip(grace).collect(),
            live: row.get("o_live"),
            accounts: held.collect(),
            signals: row.get("o_signals"),
            forsaken: row.get("o_forsaken"),
            cron_due: row.get::<_, Option<i64>>("o_cron_ms").map(|ms| Duration::from_millis(ms.unsigned_abs())),
            cron_open: row.get("o_cron_open"),
        })
    }

    /// This replica leaves in order: nothing of it is in doubt any more, and others may receive for its accounts.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn replica_leave(&self, replica: i64) -> Result<()> {
        let sql = "WITH a AS (UPDATE account_leases SET lease_until = clock_timestamp() \
                     WHERE replica_id = $1 AND lease_until > clock_timestamp()) \
                   UPDATE replicas SET lost_at = clock_timestamp() WHERE replica_id = $1";
        self.execute(sql, &[&replica]).await?;
        self.execute("SELECT pg_notify($1, 'look outbox')", &[&super::doorbell::CHANNEL]).await.map(|_| ())
    }

    /// Registers a worker under a new number, with its slots.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn worker_register(&self, replica: i64, worker: &WorkerRegistration, ttl: Duration) -> Result<i64> {
        let row = self
            .query_opt(
                "SELECT register_worker($1,$2,$3,$4,$5,$6,$7,$8,$9)",
                &[
                    &worker.agent_no,
                    &replica,
                    &worker.identity,
                    &worker.pid,
                    &worker.home,
                    &worker.slots,
                    &worker.protocol,
                    &worker.build,
                    &millis(ttl),
                ],
            )
            .await?;
        row.map(|row| row.get(0)).ok_or_else(|| Error::Unavailable("no number".to_owned()))
    }

    /// No new leases for these workers.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn workers_drain(&self, workers: &[i64]) -> Result<()> {
        // Locked in the order in which polls lock them.
        let sql = "WITH w AS MATERIALIZED (SELECT worker_id FROM workers WHERE worker_id = ANY($1) ORDER BY worker_id FOR NO KEY UPDATE) \
                   UPDATE workers SET draining = true FROM w WHERE workers.worker_id = w.worker_id";
        self.execute(sql, &[&workers]).await.map(|_| ())
    }

    /// Somebody wants to part with live workers, wherever they are connected: no new leases for them, and running turns may end
    /// by themselves for `grace`. Asked again, the shorter time counts. Answers them.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn workers_part(&self, which: &Parting, grace: Duration) -> Result<Vec<i64>> {
        let (all, workers, agent) = match which {
            Parting::Workers(workers) => (false, workers.as_slice(), ""),
            Parting::Agent(agent) => (false, [].as_slice(), agent.as_str()),
            Parting::All => (true, [].as_slice(), ""),
        };
        let sql = "WITH w AS MATERIALIZED (SELECT w.worker_id FROM workers w JOIN agents a USING (agent_no) \
                     WHERE ($1 OR w.worker_id = ANY($2) OR a.agent_id = $3) AND NOT w.lost AND w.lease_until > clock_timestamp() \
                     ORDER BY w.worker_id FOR NO KEY UPDATE OF w) \
                   UPDATE workers SET draining = true, \
                     drain_until = least(drain_until, clock_timestamp() + $4::bigint * interval '1 millisecond') \
                   FROM w WHERE workers.worker_id = w.worker_id RETURNING workers.worker_id";
        let rows = self.query(sql, &[&all, &workers, &agent, &millis(grace)]).await?;
        let mut parted: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        parted.sort_unstable();
        Ok(parted)
    }

    /// Those of `workers`, and of what their processes registered as since, that are still there.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn workers_leaving(&self, workers: &[i64]) -> Result<Vec<Leaving>> {
        let sql = "SELECT w.worker_id, a.agent_id, (SELECT count(*) FROM slots x JOIN sessions s ON s.session_id = x.session_id \
                     AND s.state = 2 AND s.worker_id = w.worker_id WHERE x.worker_id = w.worker_id) \
                   FROM workers w JOIN agents a USING (agent_no) \
                   WHERE w.identity IN (SELECT identity FROM workers WHERE worker_id = ANY($1)) AND w.draining AND NOT w.lost \
                     AND w.lease_until > clock_timestamp() ORDER BY 1";
        let leaving =
            |row: &tokio_postgres::Row| Leaving { worker: row.get(0), agent: row.get(1), running: row.get(2) };
        Ok(self.query(sql, &[&workers]).await?.iter().map(leaving).collect())
    }

    /// These workers are known to be gone: the next reclaim takes back what they hold, as a crash of each turn unless they left
    /// in order.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn workers_lose(&self, workers: &[i64], in_order: bool) -> Result<()> {
        let sql = "WITH w AS MATERIALIZED (SELECT worker_id FROM workers WHERE worker_id = ANY($1) AND NOT lost \
                     ORDER BY worker_id FOR NO KEY UPDATE) \
                   UPDATE workers SET lost = true, lost_at = clock_timestamp(), left_in_order = $2 FROM w \
                    WHERE workers.worker_id = w.worker_id";
        self.execute(sql, &[&workers, &in_order]).await.map(|_| ())
    }

    /// The live registrations of a certificate, whichever replica they came to.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn workers_of_identity(&self, identity: &str) -> Result<Vec<i64>> {
        let sql = "SELECT worker_id FROM workers WHERE identity = $1 AND NOT lost ORDER BY 1";
        Ok(self.query(sql, &[&identity]).await?.iter().map(|row| row.get(0)).collect())
    }

    /// Every worker and replica of an earlier run is gone. Only for the sole owner of a database (`dev` mode), whose lock on
    /// the data directory proves it.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn everybody_else_lose(&self, replica: i64) -> Result<()> {
        let sql = "UPDATE workers SET lost = true, lost_at = clock_timestamp() WHERE NOT lost AND replica_id <> $1";
        self.execute(sql, &[&replica]).await?;
        let sql = "WITH a AS (UPDATE account_leases SET lease_until = clock_timestamp() \
                     WHERE replica_id <> $1 AND lease_until > clock_timestamp()) \
                   UPDATE replicas SET lost_at = clock_timestamp() WHERE lost_at IS NULL AND replica_id <> $1";
        self.execute(sql, &[&replica]).await.map(|_| ())
    }

    /// Takes back what lost workers hold. Answers the turns, and whether each was given up. `ttl` is how long workers whose
    /// leases lapsed all together may still be heard of.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn reclaim(&self, max_crashes: i32, notice: &str, ttl: Duration) -> Result<Vec<(TurnId, bool)>> {
        let sql = "SELECT * FROM reclaim($1,$2,$3)";
        let rows = self.query_retrying(sql, &[&max_crashes, &notice.as_bytes(), &millis(ttl)]).await?;
        Ok(rows.iter().map(|row| (TurnId { session: SessionId(row.get(0)), seq: row.get(1) }, row.get(2))).collect())
    }

    /// Lets sessions wait again that are leased and that [`Store::reclaim`] cannot find: no slot of a worker that lives, or was
    /// lost in the last ten minutes, holds them. Reads all sessions. Answers how many.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn leases_repair(&self) -> Result<u64> {
        let sql = "WITH s AS MATERIALIZED (SELECT s.session_id FROM sessions s WHERE s.state = 2 AND NOT EXISTS \
                     (SELECT 1 FROM workers w JOIN slots x ON x.worker_id = w.worker_id AND x.session_id = s.session_id \
                       WHERE w.worker_id = s.worker_id AND (NOT w.lost OR w.lost_at > clock_timestamp() - interval '10 minutes')) \
                     ORDER BY s.session_id FOR NO KEY UPDATE) \
                   SELECT put_back(s.session_id, clock_timestamp(), 0)::text FROM s";
        Ok(self.query(sql, &[]).await?.len() as u64)
    }

    /// Ends all waiting turns of removed agents with `notice`, a batch a call; answers how many.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn removed_cancel(&self, notice: &str) -> Result<i64> {
        let mut all = 0;
        loop {
            let rows = self.query_retrying("SELECT cancel_removed($1)", &[&notice.as_bytes()]).await?;
            match rows.first().map_or(0, |row| row.get(0)) {
                0 => return Ok(all),
                cancelled => all += cancelled,
            }
        }
    }

    /// Age of the oldest transaction that runs in this database, or of the oldest snapshot that somebody holds; of other
    /// roles' only as far as ours may see them.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn oldest_transaction(&self) -> Result<Duration> {
        let sql = "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8 FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
        let age = self.query_opt(sql, &[]).await?.map_or(0.0, |row| row.get::<_, f64>(0));
        Ok(Duration::try_from_secs_f64(age.max(0.0)).unwrap_or_default())
    }
}
