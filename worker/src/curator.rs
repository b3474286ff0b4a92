//! The curator's two occasions: an operator asks, or the agent has had nothing to do for long.
//!
//! Owned by the link's loop. The work is done behind the boundary like every other change of skills; this side reads what lies outside
//! of it, the jobs, and keeps the documents in step before and after. Always true: at most [`MAX_AT_ONCE`] orders are worked on; an
//! answer goes to the stream that asked, or nowhere; a boundary that takes too long is ended, and each skill is whole all the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hermes_home::curator::{MERGEABLE, Order, Report, Settings, named_by_jobs};
use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_proto::v1::{self, ConsolidateSkillsRequest, Curate, Curated};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::beneath::{self, Folder};
use crate::sandbox::Sandbox;
use crate::tools::local::{self, files};
use crate::turns::Shared;

/// Orders at the same time; they wait for each other in the home.
const MAX_AT_ONCE: usize = 4;
/// How long one may take.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// How often an agent that stays idle is looked after.
const LOOK_EVERY: Duration = Duration::from_secs(60 * 60);
/// How long it waits before it asks for a turn once more, and at last gives up.
const PAUSES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::ZERO];
/// Longest list of jobs that is read, bytes.
const MAX_JOBS_BYTES: u64 = 16 << 20;

/// See the module.
#[derive(Default)]
pub struct Curator {
    running: JoinSet<(u64, Option<Curated>)>,
    /// The number of the stream that asks now.
    stream: u64,
    /// Where to call and how far apart the work is done, as of the last registration.
    current: Option<(Channel, Sandbox)>,
    /// As the control plane last said.
    settings: Settings,
    /// Since when nothing was to do.
    idle_since: Option<Instant>,
    looked: Option<Instant>,
}

impl Curator {
    /// A new stream: what an earlier one asked is not answered there.
    pub fn attached(&mut self, channel: Channel, policy: Sandbox) {
        self.stream += 1;
        self.current = Some((channel, policy));
    }

    /// What the control plane says of when and what; nothing: as it was.
    pub fn told(&mut self, curator: Option<&v1::Curator>) {
        let Some(curator) = curator else { return };
        let usual = Settings::default();
        let settings = Settings {
            enabled: curator.enabled.unwrap_or(usual.enabled),
            interval_hours: curator.interval_hours.unwrap_or(usual.interval_hours),
            min_idle_hours: curator.min_idle_hours.unwrap_or(usual.min_idle_hours),
            stale_after_days: curator.stale_after_days.unwrap_or(usual.stale_after_days),
            archive_after_days: curator.archive_after_days.unwrap_or(usual.archive_after_days),
            consolidate: curator.consolidate.unwrap_or(usual.consolidate),
        };
        self.settings = settings.or_usual();
    }

    /// Whether turns run, as of now.
    pub fn note(&mut self, idle: bool) {
        self.idle_since = idle.then(|| self.idle_since.unwrap_or_else(Instant::now));
    }

    /// When an agent that stays idle is looked after.
    pub fn look_at(&self) -> Option<Instant> {
        let idle = self.idle_since.filter(|_| self.settings.enabled)? + self.settings.min_idle().unsigned_abs();
        Some(self.looked.map_or(idle, |looked| idle.max(looked + LOOK_EVERY)))
    }

    /// Looks after the idle agent.
    pub fn look(&mut self, shared: &Arc<Shared>) {
        self.looked = Some(Instant::now());
        self.start(shared, None, Order::Due);
    }

    /// Does what an operator asks; answers at once where it does not.
    pub fn order(&mut self, shared: &Arc<Shared>, curate: Curate) -> Option<Curated> {
        self.told(curate.curator.as_ref());
        let refused = |problem: &str| Some(Curated { id: curate.id, report: Vec::new(), problem: problem.to_owned() });
        let Ok(order) = serde_json::from_slice(&curate.order) else {
            return refused("this worker does not know that order; start the worker from a newer release");
        };
        if self.running.len() >= MAX_AT_ONCE {
            return refused("the worker is busy with other orders for its skills; try again");
        }
        self.start(shared, Some(curate.id), order);
        None
    }

    fn start(&mut self, shared: &Arc<Shared>, id: Option<u64>, order: Order) {
        let Some((channel, policy)) = self.current.clone() else { return };
        let (stream, settings, shared) = (self.stream, self.settings, Arc::clone(shared));
        self.running.spawn(async move {
            let work = async {
                let merges = order.moves_skills();
                let report = carry_out(&shared, &channel, &policy, (order, settings)).await?;
                Ok(if merges { consolidated(&channel, id, report).await } else { report })
            };
            let done = tokio::time::timeout(TIME_LIMIT, work).await;
            let done = done.unwrap_or_else(|_| Err("it took too long and was ended".to_owned()));
            let Some(id) = id else {
                if let Err(problem) = done {
                    tracing::warn!(problem, "the skills were not looked after");
                }
                return (stream, None);
            };
            let report = done.and_then(|report| serde_json::to_vec(&report).map_err(|error| error.to_string()));
            let (report, problem) = match report {
                Ok(report) => (report, String::new()),
                Err(problem) => (Vec::new(), problem),
            };
            (stream, Some(Curated { id, report, problem }))
        });
    }

    /// The next answer for the present stream. Pending while there is none.
    pub async fn next(&mut self) -> Curated {
        loop {
            match self.running.join_next().await {
                Some(Ok((stream, Some(curated)))) if stream == self.stream => return curated,
                Some(Ok(_)) => {}
                Some(Err(error)) => tracing::error!(%error, "an order for the skills panicked"),
                None => std::future::pending().await,
            }
        }
    }
}

async fn carry_out(
    shared: &Shared,
    channel: &Channel,
    policy: &Sandbox,
    (order, settings): (Order, Settings),
) -> Result<Report, String> {
    let boundary = shared.boundary.as_ref().ok_or("this worker has no boundary to work on skills behind")?;
    let documents = &shared.documents;
    let jobs = match order.heeds_jobs() {
        true => scheduled(channel).await.and_then(|skills| {
            let there = jobs(documents.home()).map_err(|why| format!("cron/jobs.json cannot be read ({why})"))?;
            Ok(&there | &skills)
        }),
        false => Ok(BTreeSet::new()),
    };
    let moves = order.moves_skills();
    if moves && let Err(error) = documents.refresh(channel, 0).await {
        tracing::warn!(
            error = crate::link::chain(&error),
            "the home's documents are not in step; skills are moved as they are here"
        );
    }
    let request = files::Curate { order, settings, jobs, now: (shared.now)() };
    let done = local::on_files(boundary, policy, files::Request::Curate(Box::new(request)), None).await;
    if moves {
        documents.look_again();
        if let Err(error) = documents.refresh(channel, 0).await {
            tracing::warn!(
                error = crate::link::chain(&error),
                "moved skills are not in step yet; the next turn tries again"
            );
        }
    }
    serde_json::from_str(&done?).map_err(|error| format!("the report cannot be read ({error})"))
}

/// The report of a run, once a turn has been asked for that merges skills, where there are some to be merged. What was done before is
/// done, whatever comes of that.
async fn consolidated(channel: &Channel, order: Option<u64>, mut report: Report) -> Report {
    if report.mergeable.len() < MERGEABLE {
        return report;
    }
    let mut client = WorkerServiceClient::new(channel.clone());
    let request = ConsolidateSkillsRequest { order: order.unwrap_or(0), skills: report.mergeable.clone() };
    for pause in PAUSES {
        match client.consolidate_skills(request.clone()).await {
            Ok(answer) => {
                (report.consolidation, report.consolidation_problem) = (Some(answer.into_inner().turn), None);
                break;
            }
            Err(status) => report.consolidation_problem = Some(status.message().to_owned()),
        }
        tokio::time::sleep(pause).await;
    }
    if let Some(problem) = &report.consolidation_problem {
        tracing::warn!(problem, "there is no turn that merges skills; the next run asks again");
    }
    report
}

/// The skills that jobs of the control plane name, or why that is not known. Without category, as the curator knows them.
async fn scheduled(channel: &Channel) -> Result<BTreeSet<String>, String> {
    let mut client = WorkerServiceClient::new(channel.clone());
    let named = match client.list_job_skills(v1::ListJobSkillsRequest {}).await {
        Ok(answer) => answer.into_inner().skills,
        // It has no jobs yet.
        Err(status) if status.code() == tonic::Code::Unimplemented => Vec::new(),
        Err(status) => return Err(format!("the control plane cannot be asked ({})", status.message())),
    };
    Ok(named.iter().map(|skill| skill.rsplit('/').next().unwrap_or(skill).trim().to_owned()).collect())
}

/// The skills that jobs in the home refer to, or why that is not known.
pub(crate) fn jobs(home: &Path) -> Result<BTreeSet<String>, String> {
    let Some(cron) = Folder::open(home, "cron").map_err(|error| error.to_string())? else {
        return Ok(BTreeSet::new());
    };
    match cron.read("jobs.json", MAX_JOBS_BYTES) {
        Ok(Some((bytes, _))) => named_by_jobs(&String::from_utf8_lossy(&bytes)),
        Ok(None) if fs::symlink_metadata(cron.path("jobs.json")).is_ok() => {
            Err("it is no regular file of at most 16 MiB".to_owned())
        }
        Ok(None) => Ok(BTreeSet::new()),
        Err(_) => Err(beneath::refused("it").to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_agent_is_looked_after_when_it_has_been_idle_for_long_and_then_now_and_then() {
        let mut curator = Curator::default();
        assert_eq!(curator.look_at(), None);
        curator.note(true);
        let begun = Instant::now();
        tokio::time::advance(LOOK_EVERY).await;
        curator.note(true);
        assert_eq!(curator.look_at(), Some(begun + 2 * LOOK_EVERY), "two hours after it became idle");
        curator.note(false);
        assert_eq!(curator.look_at(), None, "a turn runs");
        curator.note(true);
        let again = Instant::now();
        assert_eq!(curator.look_at(), Some(again + 2 * LOOK_EVERY));
        tokio::time::advance(2 * LOOK_EVERY).await;
        curator.looked = Some(Instant::now());
        assert_eq!(curator.look_at(), Some(again + 3 * LOOK_EVERY), "no sooner than an hour later");
        // As the control plane says, from then on.
        curator.looked = None;
        curator.told(Some(&v1::Curator { min_idle_hours: Some(0), ..v1::Curator::default() }));
        assert_eq!(curator.look_at(), Some(again));
        curator.told(None);
        assert_eq!(curator.look_at(), Some(again));
        curator.told(Some(&v1::Curator { enabled: Some(false), ..v1::Curator::default() }));
        assert_eq!(curator.look_at(), None, "not by itself");
    }

    #[test]
    fn jobs_that_are_not_there_need_nothing_and_those_that_cannot_be_read_are_a_problem() {
        let home = tempfile::tempdir().expect("tempdir");
        let at = home.path().join("cron/jobs.json");
        assert_eq!(jobs(home.path()), Ok(BTreeSet::new()));
        fs::create_dir(home.path().join("cron")).expect("mkdir");
        assert_eq!(jobs(home.path()), Ok(BTreeSet::new()));
        fs::write(&at, r#"{"jobs": [{"skills": ["a"], "enabled": false}]}"#).expect("write");
        assert_eq!(jobs(home.path()), Ok(BTreeSet::from(["a".to_owned()])));
        fs::write(&at, "{").expect("write");
        assert!(jobs(home.path()).is_err());
        fs::File::create(&at).and_then(|file| file.set_len(MAX_JOBS_BYTES + 1)).expect("grow");
        assert!(jobs(home.path()).expect_err("too large").contains("16 MiB"));
        fs::remove_file(&at).expect("remove");
        std::os::unix::fs::symlink("/etc/passwd", &at).expect("symlink");
        assert!(jobs(home.path()).is_err());
    }
}
