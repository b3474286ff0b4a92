//! `cron` of the document: what a text changes about the jobs that people made, and what an export shows of them.
//!
//! Called where a text is applied, compared or judged ([`plan`]) and where the document is put together ([`documented`], [`exported`]). Always true: a job that a text names as
//! it is stays as it is, with its next slot; one that its agent made by itself is in no document, so no text changes or removes it; a text reaches
//! the jobs of those agents alone under which it names them. Nothing is written here: the plan is part of the registry's change.

use std::collections::{BTreeMap, HashMap};

use hermes_core::AgentId;
use hermes_core::config::{Fault, Jobs, job_path};
use hermes_core::cron::Kind;
use jiff::tz::TimeZone;

use super::jobs::{Error, Next, Wanted, changed_in, judged_in, new_id};
use crate::registry::{Edit, Snapshot};
use crate::store::{CronChanges, CronJobRow, NewCronJob};

/// The jobs that documents show, of agents that there are.
pub(crate) fn documented(rows: &[CronJobRow], snapshot: &Snapshot) -> Jobs {
    let mut jobs = Jobs::new();
    for row in rows.iter().filter(|row| !row.by_agent) {
        let agent = AgentId::parse(&row.agent).ok().filter(|id| snapshot.agent(id).is_some());
        if let (Some(agent), Some(job)) = (agent, &row.job) {
            jobs.entry(agent).or_default().insert(row.name.clone(), job.clone());
        }
    }
    jobs
}

/// Without what happened once and is over: another control plane would refuse it.
pub(crate) fn exported(rows: &[CronJobRow], snapshot: &Snapshot) -> Jobs {
    let over = |row: &CronJobRow| {
        let schedule = row.job.as_ref().and_then(|job| job.schedule(row.anchored_at, &snapshot.zone).ok());
        row.stopped.is_some() && schedule.is_some_and(|schedule| matches!(schedule.kind(), Kind::Once(_)))
    };
    let rows: Vec<CronJobRow> = rows.iter().filter(|row| !over(row)).cloned().collect();
    documented(&rows, snapshot)
}

/// What the edited document's jobs come to, against those that are stored; what is wrong with them joins the edit's faults.
pub(crate) fn plan(snapshot: &Snapshot, edit: &mut Edit, by: &str) {
    let zone = TimeZone::get(&edit.document.timezone).unwrap_or(TimeZone::UTC);
    let mut rows: HashMap<(&str, String), &CronJobRow> =
        edit.stored.iter().map(|row| ((row.agent.as_str(), row.name.to_lowercase()), row)).collect();
    let (mut changes, mut faults) = (CronChanges::default(), Vec::new());
    let mut fault = |path: String, message: String| {
        faults.push(Fault { line: edit.positions.line(&path), path, message });
    };
    // Who is not there is the document's fault; who comes back finds its jobs as they were, and stopped.
    let known = |agent: &AgentId| edit.document.agents.contains_key(agent);
    let none = BTreeMap::new();
    for agent in edit.document.agents.keys() {
        for (name, job) in edit.document.cron.get(agent).unwrap_or(&none) {
            let wanted = Wanted { name: name.clone(), job: job.clone() };
            let wrong = |error: Error| match error {
                Error::Faults(all) => {
                    all.into_iter().map(|one| (job_path(agent, name, Some(one.field)), one.message)).collect()
                }
                other => vec![(job_path(agent, name, None), other.to_string())],
            };
            let row = rows.remove(&(agent.as_str(), name.to_lowercase()));
            let told: Vec<(String, String)> = match row {
                Some(row) if row.by_agent => {
                    let message =
                        "the agent made a job of this name by itself; choose another name, or remove that one";
                    vec![(job_path(agent, name, None), message.to_owned())]
                }
                Some(row) if row.name == *name && row.job.as_ref() == Some(job) && snapshot.agent(agent).is_some() => {
                    Vec::new()
                }
                Some(row) => {
                    let change = changed_in(&zone, row.clone(), None, edit.now, |now| {
                        *now = wanted;
                        Ok(())
                    });
                    match change {
                        Ok(mut change) => {
                            if row.job.as_ref().is_none_or(|before| before.deliver != change.job.deliver) {
                                change.confined = Some(false);
                            }
                            changes.edits.push(change);
                            Vec::new()
                        }
                        Err(error) => wrong(error),
                    }
                }
                None => {
                    let id = new_id();
                    match judged_in(&zone, &id, &wanted, None, Next::Anew, edit.now) {
                        Ok(times) => {
                            let Wanted { name, job } = wanted;
                            let by = by.to_owned();
                            let new = NewCronJob {
                                agent_no: 0,
                                id,
                                name,
                                job,
                                by_agent: false,
                                confined: false,
                                origin: None,
                                by,
                                times,
                            };
                            changes.new.push((agent.to_string(), new));
                            Vec::new()
                        }
                        Err(all) => wrong(Error::Faults(all)),
                    }
                }
            };
            for (path, message) in told {
                fault(path, message);
            }
        }
    }
    let gone = rows.into_values().filter(|row| {
        let agent = AgentId::parse(&row.agent).ok().filter(|id| known(id) && snapshot.agent(id).is_some());
        !row.by_agent && row.job.is_some() && agent.is_some()
    });
    changes.removed = gone.map(|row| row.no).collect();
    edit.jobs = changes;
    edit.faults.extend(faults);
}
