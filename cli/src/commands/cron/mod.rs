//! `cron …`: scheduled jobs of agents. `next` asks no server; the rest is CronService.

mod next;
mod runs;
mod view;

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use hermes_core::cron::{MAX_PROMPT, Schedule};
use hermes_proto::v1::cron_service_client::CronServiceClient;
use hermes_proto::v1::{self, CronSpec, StringList};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use self::runs::{RunList, RunView, WholeRun};
use self::view::{JobList, JobView, Shown, Told};
use super::{Invocation, TEXTS, all_pages, input, required};
use crate::args::{
    CronAddArgs, CronCommand, CronEditArgs, CronListArgs, CronRemoveArgs, CronRunArgs, CronRunsArgs, JobArgs, OneJob,
};
use crate::connect::{ANSWER_BYTES, Connection, Transport};
use crate::error::{ExitStatus, Usage};

/// Between two looks at a run that is waited for: at first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Runs one of them.
///
/// # Errors
/// What the control plane answered, and what cannot mean anything.
pub(crate) async fn run(command: CronCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    match command {
        CronCommand::Add(args) => add(*args, inv).await,
        CronCommand::List(args) => list(args, inv).await,
        CronCommand::Show(of) => show(of, inv).await,
        CronCommand::Edit(args) => edit(*args, inv).await,
        CronCommand::Pause(of) => set_paused(of, true, inv).await,
        CronCommand::Resume(of) => set_paused(of, false, inv).await,
        CronCommand::Run(args) => run_now(args, inv).await,
        CronCommand::Remove(args) => remove(args, inv).await,
        CronCommand::Runs(args) => history(args, inv).await,
        CronCommand::Next(args) => next::run(&args, inv),
    }
}

fn client(connection: &Connection) -> CronServiceClient<Transport> {
    CronServiceClient::new(connection.transport()).max_decoding_message_size(ANSWER_BYTES)
}

async fn add(args: CronAddArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    readable(&args.schedule, args.job.tz.as_deref())?;
    let name = args.job.name.clone().unwrap_or_default();
    let mut spec = spec(args.job, args.prompt)?;
    spec.schedule = Some(args.schedule);
    spec.paused = args.paused.then_some(true);
    let connection = inv.connect().await?;
    let request = v1::CreateJobRequest { agent: args.agent, name, spec: Some(spec) };
    let answer = connection.answer(client(&connection).create_job(request)).await?;
    told(answer.job, Shown::Whole, inv)
}

async fn list(args: CronListArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let jobs = all_pages(TEXTS, args.limit.limit, |page| {
        let (connection, mut client) = (&connection, client(&connection));
        let request = v1::ListJobsRequest { page: Some(page), agent: args.agent.clone().unwrap_or_default() };
        async move {
            let answer = connection.answer(client.list_jobs(request)).await?;
            Ok((answer.jobs, answer.next_page_token))
        }
    })
    .await?;
    let now = Timestamp::now();
    let jobs = jobs.into_iter().map(|job| JobView::from_proto(job, now)).collect::<anyhow::Result<_>>()?;
    inv.printer.show(&JobList(jobs))?;
    Ok(ExitStatus::Done)
}

async fn show(of: OneJob, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let job = find(&connection, of).await?;
    told(Some(job), Shown::Whole, inv)
}

async fn edit(args: CronEditArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    if let Some(schedule) = &args.schedule {
        readable(schedule, args.job.tz.as_deref())?;
    }
    let name = args.job.name.clone();
    let mut spec = spec(args.job, args.prompt)?;
    spec.schedule = args.schedule;
    if spec == CronSpec::default() && name.is_none() && args.clear.is_empty() {
        return Err(Usage("nothing to change: give at least one field, or --clear FIELD".into()).into());
    }
    let connection = inv.connect().await?;
    let request = v1::UpdateJobRequest {
        job: args.of.job,
        agent: args.of.agent.unwrap_or_default(),
        name,
        spec: Some(spec),
        clear: args.clear,
        version: args.expected_version,
    };
    let answer = connection.answer(client(&connection).update_job(request)).await?;
    told(answer.job, Shown::Whole, inv)
}

async fn set_paused(of: OneJob, paused: bool, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let (job, agent) = (of.job, of.agent.unwrap_or_default());
    let mut client = client(&connection);
    let (job, was_so) = if paused {
        let answer = connection.answer(client.pause_job(v1::PauseJobRequest { job, agent })).await?;
        (answer.job, answer.was_paused)
    } else {
        let answer = connection.answer(client.resume_job(v1::ResumeJobRequest { job, agent })).await?;
        (answer.job, answer.was_scheduled)
    };
    if was_so {
        let is_over = job.as_ref().is_some_and(|job| job.state() == v1::CronJobState::Completed);
        inv.printer.note(match paused {
            true if is_over => "it runs no more in any case",
            true => "it was paused before",
            false => "it was not paused",
        });
    }
    told(job, Shown::State, inv)
}

async fn run_now(args: CronRunArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let request = v1::RunJobRequest { job: args.of.job, agent: args.of.agent.unwrap_or_default() };
    let answer = connection.answer(client(&connection).run_job(request)).await?;
    let (job, slot) = (required(answer.job, "the job")?, answer.slot);
    let mut pause = LOOK.0;
    loop {
        let run = run_of(&connection, &job, &slot).await?;
        if !args.wait {
            inv.printer.show(&WholeRun(run))?;
            return Ok(ExitStatus::Done);
        }
        if run.is_over() {
            let complaint = run.complaint();
            inv.printer.show(&WholeRun(run))?;
            let Some(complaint) = complaint else { return Ok(ExitStatus::Done) };
            inv.printer.error(&complaint);
            return Ok(ExitStatus::Failed);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK.1);
    }
}

async fn remove(args: CronRemoveArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let job = find(&connection, args.of).await?;
    if !args.yes {
        if !io::stdin().is_terminal() {
            return Err(Usage("nobody can be asked here: say --yes to remove it".into()).into());
        }
        inv.printer.note(&format!("remove job {} \"{}\" of agent {}? y or n", job.id, job.name, job.agent));
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line)?;
        if !matches!(line.trim(), "y" | "yes") {
            bail!("nothing was removed");
        }
    }
    // By its id: its name may be another one's by now.
    let request = v1::RemoveJobRequest { job: job.id, agent: job.agent };
    let answer = connection.answer(client(&connection).remove_job(request)).await?;
    told(answer.job, Shown::Removed, inv)
}

async fn history(args: CronRunsArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let (job, agent) = (args.of.job, args.of.agent.unwrap_or_default());
    if let Some(slot) = args.slot {
        let request = v1::ListRunsRequest { page: None, job, agent, slot };
        let answer = connection.answer(client(&connection).list_runs(request)).await?;
        let run = required(answer.runs.into_iter().next(), "the run")?;
        inv.printer.show(&WholeRun(RunView::from_proto(required(answer.job, "the job")?.id, run)?))?;
        return Ok(ExitStatus::Done);
    }
    let runs = all_pages(TEXTS, args.count, |page| {
        let (connection, mut client) = (&connection, client(&connection));
        let (job, agent) = (job.clone(), agent.clone());
        let request = v1::ListRunsRequest { page: Some(page), job, agent, slot: String::new() };
        async move {
            let answer = connection.answer(client.list_runs(request)).await?;
            let id = required(answer.job, "the job")?.id;
            let runs = answer.runs.into_iter().map(|run| RunView::from_proto(id.clone(), run));
            Ok((runs.collect::<anyhow::Result<Vec<_>>>()?, answer.next_page_token))
        }
    })
    .await?;
    inv.printer.show(&RunList(runs))?;
    Ok(ExitStatus::Done)
}

async fn find(connection: &Connection, of: OneJob) -> anyhow::Result<v1::CronJob> {
    let request = v1::GetJobRequest { job: of.job, agent: of.agent.unwrap_or_default() };
    required(connection.answer(client(connection).get_job(request)).await?.job, "the job")
}

async fn run_of(connection: &Connection, job: &v1::CronJob, slot: &str) -> anyhow::Result<RunView> {
    let (id, agent) = (job.id.clone(), job.agent.clone());
    let request = v1::ListRunsRequest { page: None, job: id.clone(), agent, slot: slot.to_owned() };
    let answer = connection.answer(client(connection).list_runs(request)).await?;
    RunView::from_proto(id, required(answer.runs.into_iter().next(), "the run")?)
}

fn told(job: Option<v1::CronJob>, shown: Shown, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let job = JobView::from_proto(required(job, "the job")?, Timestamp::now())?;
    inv.printer.show(&Told { job, shown })?;
    Ok(ExitStatus::Done)
}

/// Refuses what is no schedule before anything is sent; whether it still runs is judged by the control plane, whose clock counts.
fn readable(schedule: &str, zone: Option<&str>) -> anyhow::Result<()> {
    let zone = zone.and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC);
    match Schedule::parse(schedule, Timestamp::now(), &zone) {
        Ok(_) => Ok(()),
        Err(error) => Err(Usage(error.to_string()).into()),
    }
}

/// What the flags say of a job, all but its name and its schedule.
fn spec(args: JobArgs, prompt: Option<String>) -> anyhow::Result<CronSpec> {
    let prompt = match (args.prompt_file, prompt) {
        (Some(file), _) => Some(prompt_of(&file)?),
        (None, Some(text)) if text == "-" => Some(prompt_of(&PathBuf::from("-"))?),
        (None, text) => text,
    };
    let list = |values: Vec<String>| (!values.is_empty()).then_some(StringList { values });
    let seconds = |time: Option<Duration>| time.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    Ok(CronSpec {
        schedule: None,
        timezone: args.tz,
        prompt,
        skills: list(args.skills),
        deliver: args.deliver,
        repeat: args.repeat,
        paused: None,
        model: args.model,
        workdir: args.workdir,
        script: args.script,
        no_agent: args.no_agent.then_some(true),
        context_from: list(args.context_from),
        missed: args.missed,
        overlap: args.overlap,
        jitter_seconds: seconds(args.jitter),
        timeout_seconds: seconds(args.run_timeout),
        session: args.session,
        bare: args.bare.then_some(true),
        mirror: args.mirror.then_some(true),
    })
}

/// A prompt from a file or stdin, without the line break that ends it.
fn prompt_of(file: &Path) -> anyhow::Result<String> {
    let text = input::text(file, u64::try_from(MAX_PROMPT).unwrap_or(u64::MAX))?;
    let stripped = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text));
    Ok(stripped.unwrap_or(&text).to_owned())
}
