//! The curator of skills on the wire: orders for workers, reports for operators.

use hermes_home::curator::{Activity, Archived, Change, MAX_LISTED, MERGEABLE, Order, Report, Settings, State};
use hermes_home::skill::is_name;
use hermes_proto::v1;
use tonic::Status;

use super::status::{Reason, invalid, refuse};
use super::worker_api::shown;
use crate::dispatch::Curated;

pub(super) fn order_from(request: &v1::CurateSkillsRequest) -> Result<Order, Status> {
    use v1::CuratorAction as Action;
    let skill = || match request.skill.as_str() {
        "" => Err(invalid("skill", "it is missing")),
        skill if skill.len() > 256 => Err(invalid("skill", "it is longer than 256 bytes")),
        skill => Ok(skill.to_owned()),
    };
    Ok(match request.action() {
        Action::Unspecified => return Err(invalid("action", "it is missing")),
        Action::Status => Order::Status,
        Action::Run => Order::Run { dry_run: request.dry_run },
        Action::Pause => Order::Pause,
        Action::Resume => Order::Resume,
        Action::Pin => Order::Pin(skill()?),
        Action::Unpin => Order::Unpin(skill()?),
        Action::Archive => Order::Archive(skill()?),
        Action::Restore => Order::Restore(skill()?),
    })
}

pub(super) fn order_to(id: u64, order: &Order, settings: Settings) -> v1::Curate {
    // A text and a few words.
    v1::Curate { id, order: serde_json::to_vec(order).unwrap_or_default(), curator: Some(settings_to(settings)) }
}

/// On the wire, whole.
pub(super) fn settings_to(settings: Settings) -> v1::Curator {
    v1::Curator {
        enabled: Some(settings.enabled),
        interval_hours: Some(settings.interval_hours),
        min_idle_hours: Some(settings.min_idle_hours),
        stale_after_days: Some(settings.stale_after_days),
        archive_after_days: Some(settings.archive_after_days),
        consolidate: Some(settings.consolidate),
    }
}

pub(super) fn settings_from(settings: v1::Curator) -> Settings {
    let usual = Settings::default();
    Settings {
        enabled: settings.enabled.unwrap_or(usual.enabled),
        interval_hours: settings.interval_hours.unwrap_or(usual.interval_hours),
        min_idle_hours: settings.min_idle_hours.unwrap_or(usual.min_idle_hours),
        stale_after_days: settings.stale_after_days.unwrap_or(usual.stale_after_days),
        archive_after_days: settings.archive_after_days.unwrap_or(usual.archive_after_days),
        consolidate: settings.consolidate.unwrap_or(usual.consolidate),
    }
}

/// What a worker says came of it.
pub(super) fn curated_from(curated: &v1::Curated) -> Result<Box<Report>, String> {
    if !curated.problem.is_empty() {
        return Err(shown(&curated.problem));
    }
    serde_json::from_slice(&curated.report).map_err(|_| "the worker's report cannot be read".to_owned())
}

/// Refuses what no skills are called that could be merged.
pub(super) fn mergeable(skills: &[String]) -> Result<(), Status> {
    if !(MERGEABLE..=MAX_LISTED).contains(&skills.len()) || !skills.iter().all(|skill| is_name(skill)) {
        return Err(invalid("skills", format!("name {MERGEABLE} to {MAX_LISTED} skills, without category")));
    }
    Ok(())
}

/// The answer for the operator, or why there is none.
pub(super) fn answer(agent: &str, curated: Curated, settings: Settings) -> Result<v1::CurateSkillsResponse, Status> {
    let unknown = |what: &str| {
        let message = format!(
            "{what}, so nobody knows whether it was done; every skill is whole, and `hermesctl curator status {agent}` shows where"
        );
        Err(refuse(Reason::TimeLimit, message))
    };
    match curated {
        Curated::Done(report) => Ok(report_to(*report, settings)),
        Curated::Refused(problem) => Err(refuse(Reason::Conflict, problem)),
        Curated::NoWorker => Err(refuse(
            Reason::Conflict,
            format!(
                "no worker of {agent} that keeps skills is connected here, and nobody else reaches its home: start one (`hermesctl chat {agent}` \
                 does where the control plane starts workers), or ask the replica that has one (`hermesctl worker list --server …`)"
            ),
        )),
        Curated::Left => unknown("the worker left before it answered"),
        Curated::Late => unknown("the worker has not answered in time"),
    }
}

fn report_to(report: Report, settings: Settings) -> v1::CurateSkillsResponse {
    let some = |list: Vec<Activity>| list.into_iter().take(MAX_LISTED).map(activity_to).collect();
    v1::CurateSkillsResponse {
        paused: report.paused,
        runs: report.runs,
        last_run_at: report.last_run_at,
        last_summary: report.last_summary,
        active: report.active,
        stale: report.stale,
        archived: report.archived,
        pinned: report.pinned.into_iter().take(MAX_LISTED).collect(),
        least_recent: some(report.least_recent),
        most_active: some(report.most_active),
        least_active: some(report.least_active),
        archive: report.archive.into_iter().take(MAX_LISTED).map(archived_to).collect(),
        changes: report.changes.into_iter().take(MAX_LISTED).map(change_to).collect(),
        more_changes: report.more_changes,
        mergeable: report.mergeable.into_iter().take(MAX_LISTED).map(|skill| shown(&skill)).collect(),
        consolidation: report.consolidation.map_or_else(String::new, |turn| shown(&turn)),
        consolidation_problem: report.consolidation_problem.map_or_else(String::new, |problem| shown(&problem)),
        settings: Some(settings_to(settings)),
    }
}

fn activity_to(activity: Activity) -> v1::SkillActivity {
    v1::SkillActivity {
        skill: activity.skill,
        activity: activity.activity,
        uses: activity.uses,
        views: activity.views,
        patches: activity.patches,
        last_activity: activity.last_activity,
    }
}

fn archived_to(archived: Archived) -> v1::ArchivedSkill {
    v1::ArchivedSkill { folder: archived.folder, archived_at: archived.archived_at }
}

fn change_to(change: Change) -> v1::SkillChange {
    let state = |state| match state {
        State::Active => v1::SkillState::Active,
        State::Stale => v1::SkillState::Stale,
        State::Archived => v1::SkillState::Archived,
    };
    v1::SkillChange {
        skill: change.skill,
        from: state(change.from).into(),
        to: state(change.to).into(),
        folder: change.folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_the_default() {
        let usual = Settings::default();
        assert_eq!(settings_from(v1::Curator::default()), usual);
        let own = Settings { enabled: false, interval_hours: 3, consolidate: true, ..usual };
        assert_eq!(settings_from(settings_to(own)), own);
    }
}
