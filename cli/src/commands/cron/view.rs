//! Jobs as they are shown. Called by the cron commands. Always true: times are shown by the wall clock of the job's zone, and how
//! far away they are beside it.

use anyhow::Context as _;
use hermes_proto::v1::{self, CronJobState};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::runs::state_of;
use crate::commands::unknown;
use crate::output::{Grid, Paint, View, or_dash, pairs, plain, plain_lines, time};

#[derive(Serialize)]
struct SpecView {
    schedule: String,
    timezone: Option<String>,
    prompt: String,
    skills: Vec<String>,
    deliver: String,
    repeat: Option<u32>,
    paused: bool,
    model: Option<String>,
    workdir: Option<String>,
    script: Option<String>,
    no_agent: bool,
    context_from: Vec<String>,
    missed: String,
    overlap: String,
    jitter_seconds: u32,
    timeout_seconds: Option<u32>,
    session: String,
    bare: bool,
    mirror: bool,
}

impl SpecView {
    fn from_proto(spec: v1::CronSpec) -> Self {
        let list = |list: Option<v1::StringList>| list.map(|list| list.values).unwrap_or_default();
        Self {
            schedule: spec.schedule.unwrap_or_default(),
            timezone: spec.timezone,
            prompt: spec.prompt.unwrap_or_default(),
            skills: list(spec.skills),
            deliver: spec.deliver.unwrap_or_default(),
            repeat: spec.repeat,
            paused: spec.paused.unwrap_or_default(),
            model: spec.model,
            workdir: spec.workdir,
            script: spec.script,
            no_agent: spec.no_agent.unwrap_or_default(),
            context_from: list(spec.context_from),
            missed: spec.missed.unwrap_or_default(),
            overlap: spec.overlap.unwrap_or_default(),
            jitter_seconds: spec.jitter_seconds.unwrap_or_default(),
            timeout_seconds: spec.timeout_seconds,
            session: spec.session.unwrap_or_default(),
            bare: spec.bare.unwrap_or_default(),
            mirror: spec.mirror.unwrap_or_default(),
        }
    }
}

/// A run to come: its instant, and the wall clock's time then.
#[derive(Serialize)]
struct SlotView {
    at: String,
    local: String,
    #[serde(skip)]
    shown: String,
}

#[derive(Serialize)]
struct LastView {
    slot: String,
    state: &'static str,
}

/// A job.
#[derive(Serialize)]
pub(super) struct JobView {
    id: String,
    agent: String,
    name: String,
    version: i64,
    state: &'static str,
    reason: Option<String>,
    spec: Option<SpecView>,
    zone: Option<String>,
    next: Vec<SlotView>,
    fired: u32,
    failures: u32,
    by_agent: bool,
    created_by: String,
    created_at_ms: i64,
    origin: Option<String>,
    last: Option<LastView>,
    removed_at_ms: Option<i64>,
    #[serde(skip)]
    now: Timestamp,
}

/// Nothing for an empty text.
pub(super) fn filled(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

impl JobView {
    /// As it is looked at `now`.
    ///
    /// # Errors
    /// What this build does not know.
    pub(super) fn from_proto(job: v1::CronJob, now: Timestamp) -> anyhow::Result<Self> {
        let state = match job.state() {
            CronJobState::Scheduled => "scheduled",
            CronJobState::Paused => "paused",
            CronJobState::Completed => "completed",
            CronJobState::Stopped => "stopped",
            CronJobState::Removed => "removed",
            CronJobState::Unspecified => return Err(unknown("state of a job", job.state)),
        };
        let zone = TimeZone::get(&job.zone).unwrap_or(TimeZone::UTC);
        let slot = |ms: &i64| {
            let at = Timestamp::from_millisecond(*ms).context("the control plane answered a time that there is not")?;
            let local = at.to_zoned(zone.clone());
            let shown = format!("{} ({})", local.strftime("%a %Y-%m-%d %H:%M:%S %Z"), away(at, now));
            let local = local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
            anyhow::Ok(SlotView { at: at.to_string(), local, shown })
        };
        let next = job.upcoming_ms.iter().map(slot).collect::<anyhow::Result<_>>()?;
        let last = match filled(job.last_slot) {
            Some(slot) => Some(LastView { slot, state: state_of(job.last_state)? }),
            None => None,
        };
        Ok(Self {
            id: job.id,
            agent: job.agent,
            name: job.name,
            version: job.version,
            state,
            reason: filled(job.reason),
            spec: job.spec.map(SpecView::from_proto),
            zone: filled(job.zone),
            next,
            fired: job.fired,
            failures: job.failures,
            by_agent: job.by_agent,
            created_by: job.created_by,
            created_at_ms: job.created_at_ms,
            origin: filled(job.origin),
            last,
            removed_at_ms: job.removed_at_ms,
            now,
        })
    }

    fn last(&self) -> String {
        let Some(LastView { slot, state }) = &self.last else { return "-".to_owned() };
        let when = slot.parse().map(|slot| away(slot, self.now)).unwrap_or_default();
        format!("{state} {when}")
    }

    fn next(&self) -> String {
        self.next.first().map_or_else(|| "-".to_owned(), |slot| slot.shown.clone())
    }

    fn schedule(&self) -> String {
        self.spec.as_ref().map_or_else(|| "?".to_owned(), |spec| spec.schedule.clone())
    }

    fn whole(&self, paint: Paint) -> String {
        let mut rows = vec![
            ("id", self.id.clone()),
            ("agent", self.agent.clone()),
            ("name", self.name.clone()),
            (
                "state",
                format!("{}{}", self.state, self.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default()),
            ),
            ("schedule", self.schedule()),
            ("zone", or_dash(self.zone.as_deref())),
        ];
        rows.extend(
            self.next.iter().enumerate().map(|(at, slot)| (if at == 0 { "next" } else { "" }, slot.shown.clone())),
        );
        rows.push(("last run", self.last()));
        rows.push(("runs", format!("{} by its schedule, {} failed in a row", self.fired, self.failures)));
        let who = if self.by_agent { "its agent, " } else { "" };
        rows.push(("made", format!("{} by {who}{}", time(Some(self.created_at_ms)), self.created_by)));
        rows.extend(self.origin.clone().map(|origin| ("made in", origin)));
        rows.extend(self.removed_at_ms.map(|at| ("removed", time(Some(at)))));
        rows.push(("version", self.version.to_string()));
        let Some(spec) = &self.spec else { return pairs(paint, &rows) };
        rows.push(("deliver", spec.deliver.clone()));
        rows.push(("missed", spec.missed.clone()));
        rows.push(("overlap", spec.overlap.clone()));
        rows.push(("session", spec.session.clone()));
        let seconds = |seconds: u32| words(SignedDuration::from_secs(seconds.into()));
        rows.extend(
            spec.repeat.map(|times| ("repeat", if times == 0 { "for ever".to_owned() } else { times.to_string() })),
        );
        rows.extend((spec.jitter_seconds > 0).then(|| ("jitter", seconds(spec.jitter_seconds))));
        rows.extend(spec.timeout_seconds.map(|limit| ("run timeout", seconds(limit))));
        for (name, value) in [("model", &spec.model), ("workdir", &spec.workdir), ("script", &spec.script)] {
            rows.extend(value.clone().map(|value| (name, value)));
        }
        for (name, values) in [("skills", &spec.skills), ("context from", &spec.context_from)] {
            rows.extend((!values.is_empty()).then(|| (name, values.join(", "))));
        }
        for (name, value) in [("no agent", spec.no_agent), ("bare", spec.bare), ("mirror", spec.mirror)] {
            rows.extend(value.then(|| (name, "yes".to_owned())));
        }
        let prompt = plain_lines(&spec.prompt);
        let prompt = if prompt.is_empty() { String::new() } else { format!("\n\n{prompt}") };
        format!("{}{prompt}", pairs(paint, &rows))
    }
}

/// How much of a job people are shown after it was changed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shown {
    /// All of it.
    Whole,
    /// How it stands.
    State,
    /// That it is gone.
    Removed,
}

/// A job that was looked at or changed.
#[derive(Serialize)]
pub(super) struct Told {
    /// The job.
    #[serde(flatten)]
    pub job: JobView,
    /// How much of it.
    #[serde(skip)]
    pub shown: Shown,
}

impl View for Told {
    fn table(&self, paint: Paint) -> String {
        let job = &self.job;
        let what = || format!("job {} \"{}\" of agent {}", job.id, plain(&job.name), plain(&job.agent));
        match self.shown {
            Shown::Whole => job.whole(paint),
            Shown::State => match job.next.first() {
                Some(slot) => format!("{} is {}, next {}", what(), job.state, slot.shown),
                None => format!("{} is {}", what(), job.state),
            },
            Shown::Removed => format!("{} is removed", what()),
        }
    }
}

/// Several jobs.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct JobList(pub Vec<JobView>);

impl View for JobList {
    fn table(&self, paint: Paint) -> String {
        let mut grid = Grid::new(paint, &["ID", "AGENT", "NAME", "SCHEDULE", "NEXT", "STATE", "LAST RUN"]);
        for job in &self.0 {
            grid.row([
                job.id.clone(),
                job.agent.clone(),
                job.name.clone(),
                job.schedule(),
                job.next(),
                job.state.to_owned(),
                job.last(),
            ]);
        }
        grid.finish("no job")
    }
}

/// How far away a time is, in words.
fn away(at: Timestamp, now: Timestamp) -> String {
    let distance = at.duration_since(now);
    if distance.is_negative() { format!("{} ago", words(distance.abs())) } else { format!("in {}", words(distance)) }
}

/// A distance of time: its two largest units, from days on down.
pub(super) fn words(distance: SignedDuration) -> String {
    let seconds = distance.as_secs();
    let parts = [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let parts = parts.iter().skip_while(|(count, _)| *count == 0).take(2).filter(|(count, _)| *count > 0);
    let said: Vec<String> = parts.map(|(count, unit)| format!("{count}{unit}")).collect();
    if said.is_empty() { format!("{}ms", distance.as_millis()) } else { said.join(" ") }
}

#[cfg(test)]
mod tests {
    use hermes_proto::v1::CronRunState;

    use super::*;
    use crate::args::Format;
    use crate::output::render;

    fn now() -> Timestamp {
        "2027-03-26T12:00:00Z".parse().unwrap()
    }

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn job() -> v1::CronJob {
        let list = |values: &[&str]| Some(v1::StringList { values: values.iter().map(|&text| text.into()).collect() });
        let spec = v1::CronSpec {
            schedule: Some("0 9 * * *".into()),
            prompt: Some("What changed?\nSay it \u{1b}[31mshortly.".into()),
            skills: list(&["git-log"]),
            deliver: Some("telegram:-100,origin".into()),
            context_from: list(&[]),
            model: Some("openai/gpt-5".into()),
            missed: Some("once".into()),
            overlap: Some("skip".into()),
            session: Some("fresh".into()),
            jitter_seconds: Some(30),
            timeout_seconds: Some(1_200),
            ..v1::CronSpec::default()
        };
        v1::CronJob {
            id: "3f9a1c07b2de".into(),
            agent: "coder".into(),
            name: "morning".into(),
            version: 4,
            spec: Some(spec),
            state: CronJobState::Scheduled.into(),
            zone: "Europe/Berlin".into(),
            // The clocks change between the first two.
            upcoming_ms: ["2027-03-27T08:00:00Z", "2027-03-28T07:00:00Z", "2027-03-29T07:00:00Z"].map(ms).into(),
            fired: 7,
            failures: 1,
            created_by: "token:0190".into(),
            created_at_ms: 1_700_000_000_000,
            origin: "telegram/front/11".into(),
            last_slot: "2027-03-26T08:00:00Z".into(),
            last_state: CronRunState::Failed.into(),
            ..v1::CronJob::default()
        }
    }

    #[test]
    fn a_job_is_shown_by_the_clock_of_its_zone() {
        let told = |shown| Told { job: JobView::from_proto(job(), now()).unwrap(), shown };
        insta::assert_snapshot!("cron_show_table", render(&told(Shown::Whole), Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("cron_show_json", render(&told(Shown::Whole), Format::Json, Paint::Off).unwrap());
        insta::assert_snapshot!(render(&told(Shown::State), Format::Table, Paint::Off).unwrap(), @r#"job 3f9a1c07b2de "morning" of agent coder is scheduled, next Sat 2027-03-27 09:00:00 CET (in 20h)"#);
        let over = v1::CronJob {
            id: "00000000000a".into(),
            spec: None,
            state: CronJobState::Stopped.into(),
            reason: "its time is over".into(),
            zone: String::new(),
            upcoming_ms: vec![],
            last_slot: String::new(),
            ..job()
        };
        let jobs = [job(), over].map(|job| JobView::from_proto(job, now()).unwrap());
        insta::assert_snapshot!("cron_list_table", render(&JobList(jobs.into()), Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!(render(&JobList(vec![]), Format::Table, Paint::Off).unwrap(), @"no job");
        assert!(JobView::from_proto(v1::CronJob { state: 99, ..job() }, now()).is_err());
        assert!(JobView::from_proto(v1::CronJob { last_state: 99, ..job() }, now()).is_err());
    }

    #[test]
    fn a_distance_is_said_in_its_two_largest_units() {
        let said = |seconds: i64| words(SignedDuration::from_secs(seconds));
        assert_eq!(
            [said(59), said(60), said(3_661), said(90_061), said(86_460)],
            ["59s", "1m", "1h 1m", "1d 1h", "1d"]
        );
        assert_eq!(words(SignedDuration::from_millis(40)), "40ms");
        assert_eq!(away(now(), now() + SignedDuration::from_secs(5)), "5s ago");
    }
}
