//! The registry: agents with immutable revisions, the route table and the document's settings, under one version.
//!
//! Every change is one transaction that compares and swaps the version, so decisions can be made on a snapshot without
//! holding a lock.

use jiff::Timestamp;
use serde_json::Value;

use super::{DocumentedHome, Error, PauseRow, RaiseRow, Result, Store, budgets, home_chats};

/// A registered agent, removed ones included.
#[derive(Clone, Debug)]
pub struct AgentRow {
    /// Its number, for ever.
    pub agent_no: i32,
    /// Its id.
    pub agent_id: String,
    /// Current profile revision.
    pub revision: i64,
    /// Moves with every change of its home documents.
    pub home_version: i64,
    /// Its spec as JSON.
    pub spec: Value,
    /// When it was first added.
    pub created_at: Timestamp,
    /// When it was removed.
    pub removed_at: Option<Timestamp>,
}

/// Everything a replica serves from memory.
#[derive(Clone, Debug)]
pub struct RegistryRows {
    /// Version of document, agents and routes.
    pub version: i64,
    /// The document without agents and routes.
    pub settings: Value,
    /// All agents.
    pub agents: Vec<AgentRow>,
    /// Routes in order: keys as JSON, agent number.
    pub routes: Vec<(Value, i32)>,
    /// Agents that ask no model.
    pub pauses: Vec<PauseRow>,
    /// Limits that were raised; some may be over.
    pub raises: Vec<RaiseRow>,
}

/// One change of the registry.
#[derive(Clone, Debug, Default)]
pub struct RegistryChange {
    /// The document without agents and routes.
    pub settings: Value,
    /// Agents that get a new revision (or are new): id and spec.
    pub revised: Vec<(String, Value)>,
    /// Agents that become tombstones.
    pub removed: Vec<String>,
    /// The whole new route table, when it changed: keys and agent id.
    pub routes: Option<Vec<(Value, String)>>,
    /// Copy memories, skills and SOUL.md: from, to.
    pub home_copy: Option<(String, String)>,
    /// Home documents to set: agent id, path, body.
    pub home_documents: Vec<(String, String, Vec<u8>)>,
    /// Jobs to make, change and remove.
    pub jobs: super::CronChanges,
    /// All homes that the document names.
    pub homes: Vec<DocumentedHome>,
    /// Who did it, for the history.
    pub by: String,
}

/// One profile revision.
#[derive(Clone, Debug)]
pub struct RevisionRow {
    /// Its number.
    pub revision: i64,
    /// Its spec as JSON.
    pub spec: Value,
    /// When.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
}

impl Store {
    /// The registry as one consistent snapshot.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn registry_load(&self) -> Result<RegistryRows> {
        let mut client = self.client().await?;
        let transaction =
            client.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead).read_only(true);
        let transaction = transaction.start().await?;
        let head = transaction.query_one("SELECT version, settings FROM documents", &[]).await?;
        let agents = transaction
            .query(
                "SELECT a.agent_no, a.agent_id, a.revision, a.home_version, r.spec, a.created_at, a.removed_at \
                 FROM agents a JOIN agent_revisions r USING (agent_no, revision) ORDER BY a.agent_no",
                &[],
            )
            .await?;
        let routes = transaction.query("SELECT keys, agent_no FROM routes ORDER BY position", &[]).await?;
        let pauses = transaction.query("SELECT agent_no, by, at FROM budget_pauses", &[]).await?;
        let raises = transaction.query("SELECT agent_no, what, value, until, by FROM budget_raises", &[]).await?;
        transaction.commit().await?;
        Ok(RegistryRows {
            version: head.get(0),
            settings: head.get(1),
            agents: agents
                .iter()
                .map(|row| AgentRow {
                    agent_no: row.get(0),
                    agent_id: row.get(1),
                    revision: row.get(2),
                    home_version: row.get(3),
                    spec: row.get(4),
                    created_at: row.get(5),
                    removed_at: row.get(6),
                })
                .collect(),
            routes: routes.iter().map(|row| (row.get(0), row.get(1))).collect(),
            pauses: pauses.iter().map(budgets::pause_row).collect(),
            raises: raises.iter().filter_map(budgets::raise_row).collect(),
        })
    }

    /// Carries out a change that was decided on version `expected`; answers the new version.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the registry has moved on: load it again and decide again.
    pub async fn registry_change(&self, expected: i64, change: &RegistryChange) -> Result<i64> {
        let mut client = self.client().await?;
        let tx = client.transaction().await?;
        let moved = tx
            .query_opt(
                "UPDATE documents d SET version = d.version + 1, settings = $2, updated_at = now() FROM documents o \
                 WHERE d.version = $1 RETURNING d.version, coalesce(o.settings->>'timezone', '') <> coalesce(d.settings->>'timezone', '')",
                &[&expected, &change.settings],
            )
            .await?;
        let Some(moved) = moved else {
            return Err(Error::Conflict(
                "somebody else changed the configuration at the same time; try again".to_owned(),
            ));
        };
        if moved.get(1) {
            // Jobs by the document's clock: whoever finds them due looks when that is now.
            let sql =
                "UPDATE cron_jobs SET due_at = clock_timestamp() WHERE due_at IS NOT NULL AND NOT spec ? 'timezone'";
            tx.execute(sql, &[]).await?;
        }
        for (agent, spec) in &change.revised {
            let row = tx
                .query_one(
                    "INSERT INTO agents(agent_id, revision) VALUES ($1, 1) \
                     ON CONFLICT (agent_id) DO UPDATE SET revision = agents.revision + 1, removed_at = NULL RETURNING agent_no, revision",
                    &[agent],
                )
                .await?;
            let (agent_no, revision): (i32, i64) = (row.get(0), row.get(1));
            tx.execute(
                "INSERT INTO agent_revisions(agent_no, revision, spec, created_by) VALUES ($1,$2,$3,$4)",
                &[&agent_no, &revision, spec, &change.by],
            )
            .await?;
        }
        home_chats::document_all(&tx, &change.homes).await?;
        if !change.removed.is_empty() {
            let sql = "UPDATE agents SET removed_at = clock_timestamp() WHERE agent_id = ANY($1) AND removed_at IS NULL RETURNING agent_no";
            let gone: Vec<i32> = tx.query(sql, &[&change.removed]).await?.iter().map(|row| row.get(0)).collect();
            tx.execute("SELECT cron_orphan($1,$2)", &[&gone, &super::cron::AGENT_REMOVED]).await?;
        }
        if let Some(routes) = &change.routes {
            let keys: Vec<&Value> = routes.iter().map(|(keys, _)| keys).collect();
            let agents: Vec<&str> = routes.iter().map(|(_, agent)| agent.as_str()).collect();
            tx.execute("DELETE FROM routes", &[]).await?;
            let stored = tx
                .execute(
                    "INSERT INTO routes(position, keys, agent_no) SELECT i.ord, i.keys, a.agent_no \
                     FROM unnest($1::jsonb[], $2::text[]) WITH ORDINALITY i(keys, agent, ord) JOIN agents a ON a.agent_id = i.agent",
                    &[&keys, &agents],
                )
                .await?;
            if stored != routes.len() as u64 {
                return Err(Error::Conflict("a route names an agent that is not registered".to_owned()));
            }
        }
        if let Some((from, to)) = &change.home_copy {
            let sql = "SELECT count(p.*) FROM agents t, home_documents d JOIN agents f USING (agent_no), \
                       LATERAL put_document(t.agent_no, d.path, NULL, false, d.body, $3) p \
                       WHERE t.agent_id = $2 AND f.agent_id = $1 AND NOT d.deleted";
            tx.execute(sql, &[from, to, &change.by]).await?;
        }
        let sql = "SELECT p.* FROM agents a, put_document(a.agent_no, $2, NULL, false, $3, $4) p WHERE a.agent_id = $1";
        for (agent, path, body) in &change.home_documents {
            tx.execute(sql, &[agent, path, body, &change.by]).await?;
        }
        super::cron::change_all(&tx, &change.jobs).await?;
        tx.commit().await?;
        Ok(moved.get(0))
    }

    /// Profile revisions of an agent, newest first, below `before`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn agent_revisions(&self, agent_no: i32, before: i64, limit: i64) -> Result<Vec<RevisionRow>> {
        let sql = "SELECT revision, spec, created_at, created_by FROM agent_revisions \
                   WHERE agent_no = $1 AND revision < $2 ORDER BY revision DESC LIMIT $3";
        let rows = self.query(sql, &[&agent_no, &before, &limit]).await?;
        Ok(rows
            .iter()
            .map(|row| RevisionRow {
                revision: row.get(0),
                spec: row.get(1),
                created_at: row.get(2),
                created_by: row.get(3),
            })
            .collect())
    }

    /// Whether nothing of an agent runs, waits or is undelivered.
    ///
    /// # Errors
    /// [`Error::Conflict`] says what is open.
    pub async fn agent_idle(&self, agent_no: i32) -> Result<()> {
        let sql = "SELECT (SELECT count(*) FROM sessions WHERE agent_no = $1 AND state <> 0), \
                   (SELECT count(*) FROM outbox JOIN sessions USING (session_id) WHERE agent_no = $1)";
        match self.query_opt(sql, &[&agent_no]).await? {
            Some(row) => idle(row.get(0), row.get(1)),
            None => Ok(()),
        }
    }

    /// Deletes home documents, sessions and turns of a removed agent. Dedupe keys stay, so that a redelivery stays known.
    ///
    /// # Errors
    /// [`Error::Conflict`] while one of its turns runs or waits, or a reply is not delivered yet (its text is the turn's).
    pub async fn agent_purge(&self, agent_no: i32) -> Result<()> {
        match self.purge_once(agent_no).await {
            Err(error) if error.is_retryable() => {
                Err(Error::Conflict("one of its sessions got a message at the same time; try again".to_owned()))
            }
            other => other,
        }
    }

    async fn purge_once(&self, agent_no: i32) -> Result<()> {
        let mut client = self.client().await?;
        // One snapshot for all statements: what is deleted is what was locked, and never a session that came meanwhile.
        let tx = client.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead);
        let tx = tx.start().await?;
        let sql = "SELECT count(*) FILTER (WHERE x.state <> 0) FROM \
                   (SELECT state FROM sessions WHERE agent_no = $1 ORDER BY session_id FOR UPDATE) x";
        let busy: i64 = tx.query_one(sql, &[&agent_no]).await?.get(0);
        let sql = "SELECT count(*) FROM outbox JOIN sessions USING (session_id) WHERE agent_no = $1";
        let undelivered: i64 = tx.query_one(sql, &[&agent_no]).await?.get(0);
        idle(busy, undelivered)?;
        for sql in [
            "DELETE FROM turn_steps t USING sessions s WHERE s.agent_no = $1 AND t.session_id = s.session_id",
            "DELETE FROM turns t USING sessions s WHERE s.agent_no = $1 AND t.session_id = s.session_id",
            "DELETE FROM dead_turns t USING sessions s WHERE s.agent_no = $1 AND t.session_id = s.session_id",
            "DELETE FROM session_keys WHERE agent_no = $1",
            "DELETE FROM sessions WHERE agent_no = $1",
            "DELETE FROM home_documents WHERE agent_no = $1",
            "DELETE FROM mcp_pins WHERE agent_no = $1",
            "DELETE FROM agent_chats WHERE agent_no = $1",
            "DELETE FROM cron_runs r USING cron_jobs j WHERE j.agent_no = $1 AND r.job_no = j.job_no",
            "DELETE FROM cron_jobs WHERE agent_no = $1",
            "DELETE FROM asks WHERE agent_no = $1 OR asked_no = $1",
            "DELETE FROM home_revisions WHERE agent_no = $1",
        ] {
            tx.execute(sql, &[&agent_no]).await?;
        }
        tx.execute("UPDATE agents SET home_version = home_version + 1 WHERE agent_no = $1", &[&agent_no]).await?;
        tx.commit().await?;
        Ok(())
    }
}

fn idle(busy: i64, undelivered: i64) -> Result<()> {
    if busy > 0 {
        return Err(Error::Conflict(format!(
            "{busy} of its sessions still run or wait; try again when they have ended"
        )));
    }
    if undelivered > 0 {
        return Err(Error::Conflict(format!(
            "{undelivered} of its replies are not delivered yet; try again when they are"
        )));
    }
    Ok(())
}
