//! `curator …`: an agent's skills, which of them are used, and what becomes of those that are not.

use std::fmt::Write as _;

use hermes_home::curator::{MERGEABLE, Settings};
use hermes_proto::v1::agent_service_client::AgentServiceClient;
use hermes_proto::v1::{self, CuratorAction, SkillState};
use serde::Serialize;

use super::Invocation;
use crate::args::{CuratorCommand, OneSkill};
use crate::connect::ANSWER_BYTES;
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View, or_dash, plain};

/// Runs one of them.
///
/// # Errors
/// What the control plane, or the worker that it asked, answered.
pub(crate) async fn run(command: CuratorCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let of = |OneSkill { agent, skill }| (agent, skill);
    let mut dry = false;
    let mut archive_only = false;
    let (action, (id, skill)) = match command {
        CuratorCommand::Status(of) => (CuratorAction::Status, (of.agent, String::new())),
        CuratorCommand::Run { of, dry_run } => {
            dry = dry_run;
            (CuratorAction::Run, (of.agent, String::new()))
        }
        CuratorCommand::Pause(of) => (CuratorAction::Pause, (of.agent, String::new())),
        CuratorCommand::Resume(of) => (CuratorAction::Resume, (of.agent, String::new())),
        CuratorCommand::Pin(one) => (CuratorAction::Pin, of(one)),
        CuratorCommand::Unpin(one) => (CuratorAction::Unpin, of(one)),
        CuratorCommand::Archive(one) => (CuratorAction::Archive, of(one)),
        CuratorCommand::Restore(one) => (CuratorAction::Restore, of(one)),
        CuratorCommand::ListArchived(of) => {
            archive_only = true;
            (CuratorAction::Status, (of.agent, String::new()))
        }
    };
    let connection = inv.connect().await?;
    let mut client = AgentServiceClient::new(connection.transport()).max_decoding_message_size(ANSWER_BYTES);
    let request = v1::CurateSkillsRequest { id, action: action.into(), skill, dry_run: dry };
    let answer = connection.answer(client.curate_skills(request)).await?;
    if archive_only {
        inv.printer.show(&Archive(answer.archive.into_iter().map(ArchivedView::from_proto).collect()))?;
    } else {
        inv.printer.show(&CuratorView::from_proto(answer, dry, action == CuratorAction::Run))?;
    }
    Ok(ExitStatus::Done)
}

/// How all stands, and what was done.
#[derive(Serialize)]
struct CuratorView {
    enabled: bool,
    paused: bool,
    interval_hours: u64,
    min_idle_hours: u64,
    stale_after_days: u64,
    archive_after_days: u64,
    consolidate: bool,
    runs: u64,
    last_run_at: Option<String>,
    last_summary: Option<String>,
    active: u64,
    stale: u64,
    archived: u64,
    pinned: Vec<String>,
    least_recent: Vec<ActivityView>,
    most_active: Vec<ActivityView>,
    least_active: Vec<ActivityView>,
    archive: Vec<ArchivedView>,
    dry_run: bool,
    changes: Vec<ChangeView>,
    more_changes: u64,
    mergeable: Vec<String>,
    consolidation: Option<String>,
    consolidation_problem: Option<String>,
    #[serde(skip)]
    ran: bool,
}

#[derive(Serialize)]
struct ActivityView {
    skill: String,
    activity: u64,
    uses: u64,
    views: u64,
    patches: u64,
    last_activity: Option<String>,
}

#[derive(Serialize)]
struct ArchivedView {
    folder: String,
    archived_at: Option<String>,
}

#[derive(Serialize)]
struct ChangeView {
    skill: String,
    from: &'static str,
    to: &'static str,
    folder: Option<String>,
}

impl CuratorView {
    fn from_proto(answer: v1::CurateSkillsResponse, dry_run: bool, ran: bool) -> Self {
        let ranked = |list: Vec<v1::SkillActivity>| list.into_iter().map(ActivityView::from_proto).collect();
        let (settings, usual) = (answer.settings.unwrap_or_default(), Settings::default());
        Self {
            enabled: settings.enabled.unwrap_or(usual.enabled),
            interval_hours: settings.interval_hours.unwrap_or(usual.interval_hours),
            min_idle_hours: settings.min_idle_hours.unwrap_or(usual.min_idle_hours),
            stale_after_days: settings.stale_after_days.unwrap_or(usual.stale_after_days),
            archive_after_days: settings.archive_after_days.unwrap_or(usual.archive_after_days),
            consolidate: settings.consolidate.unwrap_or(usual.consolidate),
            paused: answer.paused,
            runs: answer.runs,
            last_run_at: answer.last_run_at,
            last_summary: answer.last_summary,
            active: answer.active,
            stale: answer.stale,
            archived: answer.archived,
            pinned: answer.pinned,
            least_recent: ranked(answer.least_recent),
            most_active: ranked(answer.most_active),
            least_active: ranked(answer.least_active),
            archive: answer.archive.into_iter().map(ArchivedView::from_proto).collect(),
            dry_run,
            changes: answer.changes.into_iter().map(ChangeView::from_proto).collect(),
            more_changes: answer.more_changes,
            mergeable: answer.mergeable,
            consolidation: Some(answer.consolidation).filter(|turn| !turn.is_empty()),
            consolidation_problem: Some(answer.consolidation_problem).filter(|problem| !problem.is_empty()),
            ran,
        }
    }
}

impl ActivityView {
    fn from_proto(activity: v1::SkillActivity) -> Self {
        Self {
            skill: activity.skill,
            activity: activity.activity,
            uses: activity.uses,
            views: activity.views,
            patches: activity.patches,
            last_activity: activity.last_activity,
        }
    }
}

impl ArchivedView {
    fn from_proto(archived: v1::ArchivedSkill) -> Self {
        Self { folder: archived.folder, archived_at: archived.archived_at }
    }
}

impl ChangeView {
    fn from_proto(change: v1::SkillChange) -> Self {
        let word = |state| match state {
            SkillState::Active | SkillState::Unspecified => "active",
            SkillState::Stale => "stale",
            SkillState::Archived => "archived",
        };
        Self {
            from: word(change.from()),
            to: word(change.to()),
            skill: change.skill,
            folder: Some(change.folder).filter(|folder| !folder.is_empty()),
        }
    }
}

impl View for CuratorView {
    fn table(&self, paint: Paint) -> String {
        let mut text = String::new();
        for change in &self.changes {
            let will = if self.dry_run { "would become" } else { "is now" };
            let at = change.folder.as_ref().map(|folder| format!(", {}", plain(folder))).unwrap_or_default();
            let _ = writeln!(text, "{} ({}) {will} {}{at}", plain(&change.skill), change.from, change.to);
        }
        if self.more_changes > 0 {
            let _ = writeln!(text, "… and {} more", self.more_changes);
        }
        if self.ran && self.changes.is_empty() {
            text.push_str("nothing is due\n");
        }
        let count = self.mergeable.len();
        match &self.consolidation {
            Some(turn) => {
                let turn = plain(turn);
                let _ = writeln!(
                    text,
                    "a model looks which of {count} skills overlap and merges them: hermesctl turn show {turn}"
                );
            }
            None if self.dry_run && count >= MERGEABLE => {
                let _ = writeln!(text, "a model would look which of {count} skills overlap, and merge them");
            }
            None if self.ran && self.consolidate && count < MERGEABLE => {
                let _ = writeln!(
                    text,
                    "nothing to merge: of those that the agent made by itself, as this home knows it, {count} may be"
                );
            }
            None => {}
        }
        if let Some(problem) = &self.consolidation_problem {
            let _ = writeln!(text, "nothing is merged: {}; run it again", plain(problem));
        }
        if !text.is_empty() {
            text.push('\n');
        }
        let state = match (self.enabled, self.paused) {
            (false, _) => "DISABLED",
            (true, true) => "PAUSED",
            (true, false) => "ENABLED",
        };
        let _ = writeln!(text, "{}", paint.bold(&format!("curator: {state}")));
        let _ = writeln!(text, "  runs:         {}", self.runs);
        let _ = writeln!(text, "  last run:     {}", plain(&or_dash(self.last_run_at.as_deref())));
        let _ = writeln!(text, "  last summary: {}", plain(&or_dash(self.last_summary.as_deref())));
        let every = match self.interval_hours {
            hours if hours % 24 == 0 => format!("{} d", hours / 24),
            hours => format!("{hours} h"),
        };
        let _ = writeln!(text, "  by itself:    every {every}, after {} h without work", self.min_idle_hours);
        let (stale, archive) = (self.stale_after_days, self.archive_after_days);
        let _ = writeln!(text, "  stale after:  {stale} d without use, archived after {archive} d");
        let _ = writeln!(text, "  merging:      {}", if self.consolidate { "by the agent's model" } else { "off" });
        let _ = writeln!(
            text,
            "skills the agent made: {} active, {} stale, {} archived",
            self.active, self.stale, self.archived
        );
        let _ = write!(text, "pinned: {}", plain(&or_dash(Some(&self.pinned.join(", ")))));
        for (title, ranked) in [
            ("least recently active", &self.least_recent),
            ("most active", &self.most_active),
            ("least active", &self.least_active),
        ] {
            if ranked.is_empty() {
                continue;
            }
            let heads = ["SKILL", "ACTIVITY", "USES", "VIEWS", "PATCHES", "LAST ACTIVITY"];
            let mut grid = Grid::new(paint, &heads).right(&[1, 2, 3, 4]);
            for one in ranked {
                let numbers = [one.activity, one.uses, one.views, one.patches].map(|number| number.to_string());
                let [activity, uses, views, patches] = numbers;
                let last = one.last_activity.as_deref().or(Some("never"));
                grid.row([one.skill.clone(), activity, uses, views, patches, or_dash(last)]);
            }
            let _ = write!(text, "\n\n{}\n{}", paint.bold(title), grid.finish(""));
        }
        text
    }
}

/// What lies in the archive.
#[derive(Serialize)]
#[serde(transparent)]
struct Archive(Vec<ArchivedView>);

impl View for Archive {
    fn table(&self, paint: Paint) -> String {
        let mut grid = Grid::new(paint, &["FOLDER", "ARCHIVED AT"]);
        for one in &self.0 {
            grid.row([one.folder.clone(), or_dash(one.archived_at.as_deref())]);
        }
        grid.finish("nothing is archived")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    fn answer() -> v1::CurateSkillsResponse {
        let activity = |skill: &str, uses| v1::SkillActivity {
            skill: skill.into(),
            activity: uses + 1,
            uses,
            views: 1,
            patches: 0,
            last_activity: (uses > 0).then(|| "2026-11-22T06:11:13Z".into()),
        };
        v1::CurateSkillsResponse {
            paused: false,
            runs: 3,
            last_run_at: Some("2026-11-28T12:00:00Z".into()),
            last_summary: Some("1 archived\u{1b}[2J".into()),
            active: 2,
            stale: 1,
            archived: 1,
            pinned: vec!["weekly-report".into()],
            least_recent: vec![activity("old", 0), activity("maps", 3)],
            most_active: vec![activity("maps", 3)],
            least_active: Vec::new(),
            archive: vec![v1::ArchivedSkill { folder: "ops/retired".into(), archived_at: None }],
            changes: vec![v1::SkillChange {
                skill: "old".into(),
                from: SkillState::Stale.into(),
                to: SkillState::Archived.into(),
                folder: "skills/.archive/old".into(),
            }],
            more_changes: 2,
            mergeable: vec!["a".into(), "b".into()],
            consolidation: "t12.1".into(),
            consolidation_problem: String::new(),
            settings: Some(v1::Curator {
                interval_hours: Some(36),
                stale_after_days: Some(60),
                consolidate: Some(true),
                ..v1::Curator::default()
            }),
        }
    }

    #[test]
    fn a_report_reads_for_people_and_for_programs() {
        let view = CuratorView::from_proto(answer(), false, true);
        insta::assert_snapshot!("curator_table", render(&view, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("curator_json", render(&view, Format::Json, Paint::Off).unwrap());
        let empty = CuratorView::from_proto(
            v1::CurateSkillsResponse { mergeable: answer().mergeable, ..v1::CurateSkillsResponse::default() },
            true,
            true,
        );
        insta::assert_snapshot!("curator_nothing_table", render(&empty, Format::Table, Paint::Off).unwrap());
        let archive = Archive(answer().archive.into_iter().map(ArchivedView::from_proto).collect());
        insta::assert_snapshot!("curator_archive_table", render(&archive, Format::Table, Paint::Off).unwrap());
    }
}
