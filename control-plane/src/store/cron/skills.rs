//! What jobs name once skills of their agent are in the archive.
//!
//! Called by the tool that merges skills, within its call. Always true: no job changes where one would have nothing left to do; a job that
//! was written by a newer build changes in its skills alone; whoever edits a job meanwhile does so before or after, never over it.

use hermes_core::cron::skills_without;
use serde_json::Value;
use tokio_postgres::types::Json;

use super::lock_agent;
use crate::store::{CallScope, Result};

/// Whether the agent has a skill of that name as a document, in whatever category.
const THERE: &str = "SELECT 1 FROM home_documents WHERE agent_no = $1 AND NOT deleted \
    AND path ~ ('^skills/([^/]+/)?' || regexp_replace($2, '[.]', '[.]', 'g') || '/SKILL[.]md$') LIMIT 1";

impl CallScope<'_> {
    /// Whether the caller's agent has a skill of that name, as far as its workers have said.
    ///
    /// # Errors
    /// As of the call.
    pub async fn has_skill(&self, name: &str) -> Result<bool> {
        let statement = self.tx.prepare_cached(THERE).await?;
        Ok(self.tx.query_opt(&statement, &[&self.caller().agent_no, &name]).await?.is_some())
    }

    /// Has the jobs of the caller's agent, paused and stopped ones too, name `into`, or nothing, in place of these skills; the names of those that
    /// changed.
    ///
    /// # Errors
    /// As of the call. Inside: the name of a job that would have nothing left to do; no job changed then.
    pub async fn cron_replace_skills(
        &self,
        away: &[String],
        into: Option<&str>,
    ) -> Result<std::result::Result<Vec<String>, String>> {
        let agent_no = self.caller().agent_no;
        lock_agent(&self.tx, agent_no).await?;
        let sql = "SELECT job_no, name, spec FROM cron_jobs WHERE agent_no = $1 AND removed_at IS NULL AND spec ? 'skills' ORDER BY job_no FOR UPDATE";
        let rows = self.tx.query(&self.tx.prepare_cached(sql).await?, &[&agent_no]).await?;
        let mut changed: Vec<(i64, String, Value)> = Vec::new();
        for row in rows {
            let (no, name, mut spec): (i64, String, Value) = (row.get(0), row.get(1), row.get(2));
            let named: Vec<String> =
                spec["skills"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
            let left = skills_without(&named, away, into);
            if left == named {
                continue;
            }
            let says = |field: &str| spec[field].as_str().is_some_and(|text| !text.trim().is_empty());
            if left.is_empty() && !says("prompt") && !says("script") {
                return Ok(Err(name));
            }
            spec["skills"] = left.into();
            changed.push((no, name, spec));
        }
        let sql = "UPDATE cron_jobs SET spec = $2, version = version + 1 WHERE job_no = $1";
        for (no, _, spec) in &changed {
            self.tx.execute(&self.tx.prepare_cached(sql).await?, &[no, &Json(spec)]).await?;
        }
        Ok(Ok(changed.into_iter().map(|(_, name, _)| name).collect()))
    }
}
