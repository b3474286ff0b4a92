//! CronService: scheduled jobs and their runs, for operators, for API tokens of one agent, and for whoever may look.
//!
//! Always true: an API token sees and changes the jobs of its own agent, and is told of others what is told of those that do not exist;
//! one without an agent gets nothing. What a job may be is judged in `cron`; here is only the wire.

use hermes_core::AgentId;
use hermes_core::cron::{Conversation, Deliver, Error as Wrong, Fault, Job, Missed, Overlap};
use hermes_core::turn::Usage;
use hermes_proto::v1;
use hermes_proto::v1::cron_service_server::{CronService, CronServiceServer};
use jiff::{SignedDuration, Timestamp};
use tonic::{Request, Response, Status};

use super::convert::{agent_id, number_token, page, store_status};
use super::layers::principal;
use super::status::{Reason, invalid, invalid_all, refuse};
use crate::cron::{Error, Jobs, Standing, Wanted, outlook};
use crate::dispatch::Dispatcher;
use crate::identity::Principal;
use crate::registry::{Registry, Snapshot};
use crate::store::{CronJobRow, CronRunRow, CronRunState, LaneKey};

/// Slots that a job is shown with.
const UPCOMING: usize = 3;
/// Jobs and runs in one answer; all of them are read before the page is cut.
const PAGE_JOBS: u32 = 200;
const PAGE_RUNS: u32 = 32;
/// Bytes of prompts or outputs in one answer; longer pages end early.
const PAGE_BYTES: usize = 2 << 20;

/// The service.
#[derive(Clone, Debug)]
pub struct CronApi {
    registry: Registry,
    jobs: Jobs,
}

/// Who calls: the jobs that they reach, the only agent that those are of, and their name for the record.
struct Caller {
    jobs: Jobs,
    own: Option<AgentId>,
    by: String,
}

impl CronApi {
    /// As a tonic service.
    pub fn server(registry: Registry, dispatcher: Dispatcher) -> CronServiceServer<Self> {
        CronServiceServer::new(Self { jobs: Jobs::new(registry.clone(), dispatcher), registry })
            .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(4 * hermes_proto::MAX_MESSAGE_BYTES)
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let (token, own) = match principal(request) {
            Principal::Operator { token_id } | Principal::Viewer { token_id } => (token_id, None),
            Principal::Api { token_id, agent: Some(agent) } => (token_id, Some(agent.clone())),
            Principal::Api { agent: None, .. } => {
                let how = "this token is of no agent; `hermesctl token create --role api --agent ID` makes one that is";
                return Err(refuse(Reason::NotAllowed, how));
            }
            Principal::Worker { .. } | Principal::None => {
                return Err(refuse(Reason::NotAllowed, "only operators and API callers can do this"));
            }
        };
        let all = self.jobs.clone();
        let jobs = own.clone().map_or_else(|| all.clone(), |agent| all.clone().of(agent));
        Ok(Caller { jobs, own, by: format!("token:{token}") })
    }

    fn shown(&self, row: &CronJobRow) -> v1::CronJob {
        job_to(&self.registry.current(), row)
    }

    /// Whether it was so before, and the job.
    async fn set_paused(
        &self,
        caller: &Caller,
        agent: &str,
        reference: &str,
        paused: bool,
    ) -> Result<(bool, v1::CronJob), Status> {
        let agent = named(agent)?;
        let found = caller.jobs.find(agent.as_ref(), reference).await.map_err(status)?;
        let wanted = if paused { Standing::Paused } else { Standing::Scheduled };
        match outlook(&self.registry.current(), &found, 0).standing {
            Standing::Completed if !paused => {
                let message = format!(
                    "the job \"{}\" has run as often as it should; edit its schedule, or how often it runs (repeat)",
                    found.name
                );
                return Err(refuse(Reason::Conflict, message));
            }
            Standing::Completed => return Ok((true, self.shown(&found))),
            standing if standing == wanted => return Ok((true, self.shown(&found))),
            _ => {}
        }
        let edit = |wanted: &mut Wanted| {
            wanted.job.paused = paused;
            Ok(())
        };
        let row = caller.jobs.edit(agent.as_ref(), reference, Some(found.version), edit).await.map_err(status)?;
        Ok((false, self.shown(&row)))
    }
}

#[tonic::async_trait]
impl CronService for CronApi {
    async fn create_job(
        &self,
        request: Request<v1::CreateJobRequest>,
    ) -> Result<Response<v1::CreateJobResponse>, Status> {
        let caller = self.caller(&request)?;
        let v1::CreateJobRequest { agent, name, spec } = request.into_inner();
        let agent = named(&agent)?.or_else(|| caller.own.clone());
        let agent = agent.ok_or_else(|| invalid("agent", "it is missing"))?;
        let mut job = Job::default();
        over(&mut job, spec.unwrap_or_default()).map_err(faults)?;
        let row = caller.jobs.create(&agent, Wanted { name, job }, &caller.by).await.map_err(status)?;
        tracing::info!(job = row.id, %agent, by = caller.by, "job made");
        Ok(Response::new(v1::CreateJobResponse { job: Some(self.shown(&row)) }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let caller = self.caller(&request)?;
        let v1::ListJobsRequest { page: wanted, agent } = request.into_inner();
        let (size, token) = page(wanted)?;
        let size = size.min(PAGE_JOBS);
        let (after, agent) = (number_token(&token, 0)?, named(&agent)?);
        let rows = caller.jobs.list(agent.as_ref(), after, i64::from(size)).await.map_err(status)?;
        let (rows, more) = cut(&rows, size, |row| row.job.as_ref().map_or(0, |job| job.prompt.len()));
        let next = rows.last().filter(|_| more).map(|last| last.no.to_string());
        let jobs = rows.iter().map(|row| self.shown(row)).collect();
        Ok(Response::new(v1::ListJobsResponse { jobs, next_page_token: next.unwrap_or_default() }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::GetJobResponse>, Status> {
        let caller = self.caller(&request)?;
        let v1::GetJobRequest { job, agent } = request.into_inner();
        let row = caller.jobs.find(named(&agent)?.as_ref(), &job).await.map_err(status)?;
        Ok(Response::new(v1::GetJobResponse { job: Some(self.shown(&row)) }))
    }

    async fn update_job(
        &self,
        request: Request<v1::UpdateJobRequest>,
    ) -> Result<Response<v1::UpdateJobResponse>, Status> {
        let caller = self.caller(&request)?;
        let v1::UpdateJobRequest { job, agent, name, spec, clear, version } = request.into_inner();
        let edit = |wanted: &mut Wanted| {
            cleared(&mut wanted.job, &clear)?;
            over(&mut wanted.job, spec.unwrap_or_default())?;
            if let Some(name) = name {
                wanted.name = name;
            }
            Ok(())
        };
        let row = caller.jobs.edit(named(&agent)?.as_ref(), &job, version, edit).await.map_err(status)?;
        Ok(Response::new(v1::UpdateJobResponse { job: Some(self.shown(&row)) }))
    }

    async fn pause_job(&self, request: Request<v1::PauseJobRequest>) -> Result<Response<v1::PauseJobResponse>, Status> {
        let caller = self.caller(&request)?;
        let v1::PauseJobRequest { job, agent } = request.into_inner();
        let (was_paused, job) = self.set_paused(&caller, &agent, &job, true).await?;
        Ok(Response::new(v1::PauseJobResponse { job: Some(job), was_paused }))
    }

    async fn resume_job(
        &self,
        request: Request<v1::ResumeJobRequest>,
    ) -> Result<Response<v1::ResumeJobResponse>, Status> {
        let caller = self.caller(&request)?;
        let v1::ResumeJobRequest { job, agent } = request.into_inner();
        let (was_scheduled, job) = self.set_paused(&caller, &agent, &job, false).await?;
        Ok(Response::new(v1::ResumeJobResponse { job: Some(job), was_scheduled }))
    }

    async fn remove_job(
        &self,
        request: Request<v1::RemoveJobRequest>,
    ) -> Result<Response<v1::RemoveJobResponse>, Status> {
        let caller = self.caller(&request)?;
        let v1::RemoveJobRequest { job, agent } = request.into_inner();
        let row = caller.jobs.remove(named(&agent)?.as_ref(), &job).await.map_err(status)?;
        tracing::info!(job = row.id, agent = row.agent, by = caller.by, "job removed");
        Ok(Response::new(v1::RemoveJobResponse { job: Some(self.shown(&row)) }))
    }

    async fn run_job(&self, request: Request<v1::RunJobRequest>) -> Result<Response<v1::RunJobResponse>, Status> {
        let caller = self.caller(&request)?;
        let v1::RunJobRequest { job, agent } = request.into_inner();
        let (row, slot) = caller.jobs.run(named(&agent)?.as_ref(), &job).await.map_err(status)?;
        Ok(Response::new(v1::RunJobResponse { job: Some(self.shown(&row)), slot: slot.to_string() }))
    }

    async fn list_runs(&self, request: Request<v1::ListRunsRequest>) -> Result<Response<v1::ListRunsResponse>, Status> {
        let caller = self.caller(&request)?;
        let v1::ListRunsRequest { page: wanted, job, agent, slot } = request.into_inner();
        let agent = named(&agent)?;
        let (size, token) = page(wanted)?;
        let size = size.min(PAGE_RUNS);
        if !slot.is_empty() {
            let slot: Timestamp = slot.parse().map_err(|_| invalid("slot", "it is a time, as a run is shown with"))?;
            // Times are kept to the microsecond.
            let before = slot.checked_add(SignedDuration::from_micros(1)).ok();
            let (row, runs) = caller.jobs.runs(agent.as_ref(), &job, before, 1).await.map_err(status)?;
            let runs: Vec<v1::CronRun> = runs.iter().filter(|run| run.slot == slot).map(run_to).collect();
            if runs.is_empty() {
                return Err(refuse(Reason::NotFound, format!("the job \"{}\" has no run for {slot}", row.name)));
            }
            let next_page_token = String::new();
            return Ok(Response::new(v1::ListRunsResponse { job: Some(self.shown(&row)), runs, next_page_token }));
        }
        let before = match number_token(&token, i64::MAX)? {
            i64::MAX => None,
            micros => {
                Some(Timestamp::from_microsecond(micros).map_err(|_| invalid("page.page_token", "no such page"))?)
            }
        };
        let (row, runs) = caller.jobs.runs(agent.as_ref(), &job, before, i64::from(size)).await.map_err(status)?;
        let (runs, more) = cut(&runs, size, |run| run.output.as_ref().map_or(0, Vec::len));
        let next = runs.last().filter(|_| more).map(|last| last.slot.as_microsecond().to_string());
        let runs = runs.iter().map(run_to).collect();
        let next_page_token = next.unwrap_or_default();
        Ok(Response::new(v1::ListRunsResponse { job: Some(self.shown(&row)), runs, next_page_token }))
    }
}

/// As many of the first rows as one answer carries, and whether there may be more.
fn cut<T>(rows: &[T], size: u32, bytes_of: impl Fn(&T) -> usize) -> (&[T], bool) {
    let mut bytes = 0;
    let fits = rows.iter().take_while(|row| {
        bytes += bytes_of(row);
        bytes <= PAGE_BYTES
    });
    let count = fits.count().max(1).min(rows.len());
    (rows.get(..count).unwrap_or_default(), count < rows.len() || rows.len() == size as usize)
}

/// An agent that a request names, if it does.
fn named(agent: &str) -> Result<Option<AgentId>, Status> {
    (!agent.is_empty()).then(|| agent_id("agent", agent)).transpose()
}

fn status(error: Error) -> Status {
    match error {
        Error::Faults(all) => faults(all),
        Error::NotFound(message) => refuse(Reason::NotFound, message),
        Error::Store(error) => store_status(error),
    }
}

/// Faults of a job as faults of the request's fields.
fn faults(faults: Vec<Fault>) -> Status {
    let path = |field: &str| match field {
        "name" | "clear" => field.to_owned(),
        field => format!("spec.{field}"),
    };
    invalid_all(faults.into_iter().map(|fault| (path(fault.field), fault.message)).collect())
}

/// Lays what a specification says over a job.
fn over(job: &mut Job, spec: v1::CronSpec) -> Result<(), Vec<Fault>> {
    fn set<T>(field: &mut T, value: Option<T>) {
        if let Some(value) = value {
            *field = value;
        }
    }
    let mut wrong = Vec::new();
    fn word<T: std::str::FromStr<Err = Wrong>>(
        field: &mut T,
        value: Option<&str>,
        name: &'static str,
        wrong: &mut Vec<Fault>,
    ) {
        match value.map(str::parse) {
            Some(Ok(value)) => *field = value,
            Some(Err(error)) => wrong.push(Fault { field: name, message: error.to_string() }),
            None => {}
        }
    }
    word::<Missed>(&mut job.missed, spec.missed.as_deref(), "missed", &mut wrong);
    word::<Overlap>(&mut job.overlap, spec.overlap.as_deref(), "overlap", &mut wrong);
    word::<Conversation>(&mut job.session, spec.session.as_deref(), "session", &mut wrong);
    set(&mut job.schedule, spec.schedule);
    set(&mut job.timezone, spec.timezone.map(Some));
    set(&mut job.prompt, spec.prompt);
    set(&mut job.skills, spec.skills.map(|list| list.values));
    set(&mut job.deliver, spec.deliver.map(|text| Deliver::parse(&text)));
    set(&mut job.repeat, spec.repeat.map(Some));
    set(&mut job.paused, spec.paused);
    set(&mut job.model, spec.model.map(Some));
    set(&mut job.workdir, spec.workdir.map(Some));
    set(&mut job.script, spec.script.map(Some));
    set(&mut job.no_agent, spec.no_agent);
    set(&mut job.context_from, spec.context_from.map(|list| list.values));
    set(&mut job.jitter_seconds, spec.jitter_seconds);
    set(&mut job.timeout_seconds, spec.timeout_seconds.map(Some));
    set(&mut job.bare, spec.bare);
    set(&mut job.mirror, spec.mirror);
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// Makes the named fields of a job the default.
fn cleared(job: &mut Job, fields: &[String]) -> Result<(), Vec<Fault>> {
    let usual = Job::default();
    for field in fields {
        match field.as_str() {
            "timezone" => job.timezone = usual.timezone.clone(),
            "prompt" => job.prompt = usual.prompt.clone(),
            "skills" => job.skills = usual.skills.clone(),
            "deliver" => job.deliver = usual.deliver.clone(),
            "repeat" => job.repeat = usual.repeat,
            "paused" => job.paused = usual.paused,
            "model" => job.model = usual.model.clone(),
            "workdir" => job.workdir = usual.workdir.clone(),
            "script" => job.script = usual.script.clone(),
            "no_agent" => job.no_agent = usual.no_agent,
            "context_from" => job.context_from = usual.context_from.clone(),
            "missed" => job.missed = usual.missed,
            "overlap" => job.overlap = usual.overlap,
            "jitter_seconds" => job.jitter_seconds = usual.jitter_seconds,
            "timeout_seconds" => job.timeout_seconds = usual.timeout_seconds,
            "session" => job.session = usual.session,
            "bare" => job.bare = usual.bare,
            "mirror" => job.mirror = usual.mirror,
            _ => {
                let message = format!("{field:?} is no field of a job that can be cleared");
                return Err(vec![Fault { field: "clear", message }]);
            }
        }
    }
    Ok(())
}

fn spec_to(job: &Job) -> v1::CronSpec {
    let list = |values: &[String]| Some(v1::StringList { values: values.to_vec() });
    v1::CronSpec {
        schedule: Some(job.schedule.clone()),
        timezone: job.timezone.clone(),
        prompt: Some(job.prompt.clone()),
        skills: list(&job.skills),
        deliver: Some(job.deliver.to_string()),
        repeat: job.repeat,
        paused: Some(job.paused),
        model: job.model.clone(),
        workdir: job.workdir.clone(),
        script: job.script.clone(),
        no_agent: Some(job.no_agent),
        context_from: list(&job.context_from),
        missed: Some(job.missed.to_string()),
        overlap: Some(job.overlap.to_string()),
        jitter_seconds: Some(job.jitter_seconds),
        timeout_seconds: job.timeout_seconds,
        session: Some(job.session.to_string()),
        bare: Some(job.bare),
        mirror: Some(job.mirror),
    }
}

fn job_to(snapshot: &Snapshot, row: &CronJobRow) -> v1::CronJob {
    let outlook = outlook(snapshot, row, UPCOMING);
    let state = match outlook.standing {
        Standing::Scheduled => v1::CronJobState::Scheduled,
        Standing::Paused => v1::CronJobState::Paused,
        Standing::Completed => v1::CronJobState::Completed,
        Standing::Stopped => v1::CronJobState::Stopped,
        Standing::Removed => v1::CronJobState::Removed,
    };
    let last = row.last.as_ref();
    v1::CronJob {
        id: row.id.clone(),
        agent: row.agent.clone(),
        name: row.name.clone(),
        version: row.version,
        spec: row.job.as_ref().map(spec_to),
        state: state.into(),
        reason: row.stopped.clone().unwrap_or_default(),
        zone: outlook.zone.unwrap_or_default(),
        upcoming_ms: outlook.upcoming.into_iter().map(Timestamp::as_millisecond).collect(),
        fired: u32::try_from(row.fired).unwrap_or(0),
        failures: u32::try_from(row.failures).unwrap_or(0),
        by_agent: row.by_agent,
        created_by: row.created_by.clone(),
        created_at_ms: row.created_at.as_millisecond(),
        origin: row.origin.as_ref().map(chat_to).unwrap_or_default(),
        last_slot: last.map(|(slot, _)| slot.to_string()).unwrap_or_default(),
        last_state: last.map_or(v1::CronRunState::Unspecified, |(_, state)| state_to(*state)).into(),
        removed_at_ms: row.removed_at.map(|at| at.as_millisecond()),
    }
}

fn state_to(state: CronRunState) -> v1::CronRunState {
    match state {
        CronRunState::Waiting => v1::CronRunState::Waiting,
        CronRunState::Running => v1::CronRunState::Running,
        CronRunState::Ran => v1::CronRunState::Ran,
        CronRunState::Failed => v1::CronRunState::Failed,
        CronRunState::Missed => v1::CronRunState::Missed,
        CronRunState::Skipped => v1::CronRunState::Skipped,
        CronRunState::Cancelled => v1::CronRunState::Cancelled,
    }
}

fn run_to(run: &CronRunRow) -> v1::CronRun {
    let usage: Usage = run.usage.clone().and_then(|usage| serde_json::from_value(usage).ok()).unwrap_or_default();
    let delivery =
        |(lane, state): &(LaneKey, &'static str)| v1::CronDelivery { chat: chat_to(lane), state: (*state).to_owned() };
    v1::CronRun {
        slot: run.slot.to_string(),
        state: state_to(run.state).into(),
        by_hand: run.by_hand,
        slots: u32::try_from(run.slots).unwrap_or(0),
        until: run.until.map(|until| until.to_string()).unwrap_or_default(),
        reason: run.reason.clone().unwrap_or_default(),
        turn: run.turn.map(|turn| turn.to_string()).unwrap_or_default(),
        began_at_ms: run.at.as_millisecond(),
        ended_at_ms: run.ended_at.map(|at| at.as_millisecond()),
        output: run.output.as_ref().map(|body| String::from_utf8_lossy(body).into_owned()),
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cached_tokens: usage.cached_tokens,
        cost_usd: usage.cost_usd,
        model: usage.model,
        deliveries: run.deliveries.iter().map(delivery).collect(),
        undelivered: run.undelivered.clone().unwrap_or_default(),
    }
}

/// `platform/account/chat`, with the thread behind it where there is one.
fn chat_to(lane: &LaneKey) -> String {
    let LaneKey { platform, account, chat_id, thread_id } = lane;
    let chat = format!("{platform}/{account}/{chat_id}");
    if thread_id.is_empty() { chat } else { format!("{chat}/{thread_id}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_comes_through_the_wire_as_it_is_and_a_change_leaves_the_rest() {
        let job = Job {
            schedule: "every 15m".to_owned(),
            timezone: Some("Europe/Berlin".to_owned()),
            prompt: "look".to_owned(),
            skills: vec!["a".to_owned()],
            deliver: Deliver::parse("origin,telegram:5"),
            repeat: Some(3),
            paused: true,
            model: Some("x/y".to_owned()),
            workdir: Some("w".to_owned()),
            script: Some("s.sh".to_owned()),
            no_agent: true,
            context_from: vec!["b".to_owned()],
            missed: Missed::All(5),
            overlap: Overlap::Queue,
            jitter_seconds: 30,
            timeout_seconds: Some(60),
            session: Conversation::Continue,
            bare: true,
            mirror: true,
        };
        let mut made = Job::default();
        over(&mut made, spec_to(&job)).unwrap();
        assert_eq!(made, job);
        over(&mut made, v1::CronSpec { prompt: Some("else".to_owned()), ..v1::CronSpec::default() }).unwrap();
        assert_eq!(made, Job { prompt: "else".to_owned(), ..job.clone() });
        // Whatever is optional can be cleared, and nothing else.
        let written = serde_json::to_value(&job).unwrap();
        let fields: Vec<String> =
            written.as_object().unwrap().keys().filter(|key| *key != "schedule").cloned().collect();
        assert_eq!(fields.len(), 18);
        cleared(&mut made, &fields).unwrap();
        assert_eq!(made, Job { schedule: job.schedule, ..Job::default() });
        assert_eq!(cleared(&mut made, &["schedule".to_owned()]).unwrap_err()[0].field, "clear");
    }

    #[test]
    fn every_wrong_word_is_named_with_its_field() {
        let spec = v1::CronSpec {
            missed: Some("never".to_owned()),
            overlap: Some("yes".to_owned()),
            session: Some("old".to_owned()),
            ..v1::CronSpec::default()
        };
        let found = over(&mut Job::default(), spec).unwrap_err();
        assert_eq!(found.iter().map(|fault| fault.field).collect::<Vec<_>>(), ["missed", "overlap", "session"]);
        let name = Fault { field: "name", message: "x".to_owned() };
        assert_eq!(faults(vec![name, found[0].clone()]).message().split(':').next(), Some("name"));
        assert!(faults(found).message().starts_with("spec.missed: "));
    }

    #[test]
    fn pages_end_where_they_would_get_too_large_and_are_never_empty() {
        let rows = [PAGE_BYTES + 1, 1, 1];
        assert_eq!(cut(&rows, 10, |bytes| *bytes), (&rows[..1], true));
        assert_eq!(cut(&rows[1..], 10, |bytes| *bytes), (&rows[1..], false));
        assert_eq!(cut(&rows[1..], 2, |bytes| *bytes), (&rows[1..], true));
        assert_eq!(cut::<usize>(&[], 2, |bytes| *bytes), (&[][..], false));
    }
}
