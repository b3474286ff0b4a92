//! Scheduled jobs, against a control plane of fixed behaviour: what is sent, what is shown, and how it ends.

use std::sync::atomic::Ordering;

use hermes_proto::v1;
use hermes_proto::v1::cron_service_server::CronService;
use tonic::{Request, Response, Status};

use crate::fake::{Answer, Fake, Service};
use crate::online::at;
use crate::{file, run, run_with_input};

const ID: &str = "3f9a1c07b2de";
const SLOT: &str = "2027-03-26T11:59:58.000123Z";

/// A job of that name; it runs every morning in Berlin, far in the future.
fn job(name: &str, state: v1::CronJobState) -> v1::CronJob {
    v1::CronJob {
        id: ID.into(),
        agent: "coder".into(),
        name: name.into(),
        version: 2,
        spec: Some(v1::CronSpec { schedule: Some("0 9 * * *".into()), ..v1::CronSpec::default() }),
        state: state.into(),
        zone: "Europe/Berlin".into(),
        upcoming_ms: vec![4_000_000_000_000, 4_000_086_400_000, 4_000_172_800_000],
        created_by: "token:0190".into(),
        ..v1::CronJob::default()
    }
}

fn scheduled(name: &str) -> Option<v1::CronJob> {
    Some(job(name, v1::CronJobState::Scheduled))
}

/// Whatever is named is there. A run takes two looks; that of the job `bad` fails.
#[tonic::async_trait]
impl CronService for Service {
    async fn create_job(&self, request: Request<v1::CreateJobRequest>) -> Answer<v1::CreateJobResponse> {
        self.seen(&request);
        let request = request.into_inner();
        self.0.jobs.lock().unwrap().push(request.clone());
        Ok(Response::new(v1::CreateJobResponse { job: scheduled(&request.name) }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Answer<v1::ListJobsResponse> {
        // One a page, whatever the caller would like.
        let first = request.into_inner().page.unwrap().page_token.is_empty();
        let (name, next) = if first { ("one", "1") } else { ("two", "") };
        Ok(Response::new(v1::ListJobsResponse {
            jobs: scheduled(name).into_iter().collect(),
            next_page_token: next.into(),
        }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Answer<v1::GetJobResponse> {
        Ok(Response::new(v1::GetJobResponse { job: scheduled(&request.into_inner().job) }))
    }

    async fn update_job(&self, request: Request<v1::UpdateJobRequest>) -> Answer<v1::UpdateJobResponse> {
        let request = request.into_inner();
        self.0.changes.lock().unwrap().push(request.clone());
        Ok(Response::new(v1::UpdateJobResponse { job: scheduled(&request.job) }))
    }

    async fn pause_job(&self, request: Request<v1::PauseJobRequest>) -> Answer<v1::PauseJobResponse> {
        let paused = v1::CronJob { upcoming_ms: vec![], ..job(&request.into_inner().job, v1::CronJobState::Paused) };
        Ok(Response::new(v1::PauseJobResponse { job: Some(paused), was_paused: true }))
    }

    async fn resume_job(&self, request: Request<v1::ResumeJobRequest>) -> Answer<v1::ResumeJobResponse> {
        Ok(Response::new(v1::ResumeJobResponse { job: scheduled(&request.into_inner().job), was_scheduled: false }))
    }

    async fn remove_job(&self, request: Request<v1::RemoveJobRequest>) -> Answer<v1::RemoveJobResponse> {
        let request = request.into_inner();
        self.0.gone.lock().unwrap().push(request.clone());
        Ok(Response::new(v1::RemoveJobResponse { job: scheduled(&request.job) }))
    }

    async fn run_job(&self, request: Request<v1::RunJobRequest>) -> Answer<v1::RunJobResponse> {
        let name = request.into_inner().job;
        let id = if name == "bad" { "00000000bad0" } else { ID };
        let job = v1::CronJob { id: id.into(), ..job(&name, v1::CronJobState::Scheduled) };
        Ok(Response::new(v1::RunJobResponse { job: Some(job), slot: SLOT.into() }))
    }

    async fn list_runs(&self, request: Request<v1::ListRunsRequest>) -> Answer<v1::ListRunsResponse> {
        let request = request.into_inner();
        if request.slot.is_empty() {
            return Err(Status::not_found(format!("there is no job \"{}\"", request.job)));
        }
        let open = self.0.looks.fetch_add(1, Ordering::SeqCst) == 0;
        let (state, reason) = match request.job.as_str() {
            _ if open => (v1::CronRunState::Running, ""),
            ID => (v1::CronRunState::Ran, ""),
            _ => (v1::CronRunState::Failed, "the model was not there"),
        };
        let run = v1::CronRun {
            slot: request.slot,
            state: state.into(),
            reason: reason.into(),
            turn: "t1.1".into(),
            ..v1::CronRun::default()
        };
        Ok(Response::new(v1::ListRunsResponse { job: scheduled("x"), runs: vec![run], next_page_token: String::new() }))
    }
}

#[test]
fn a_new_job_is_sent_as_written_and_shown_with_its_next_three_runs() {
    let fake = Fake::start();
    let line = [
        "cron",
        "add",
        "coder",
        "0 9 * * *",
        "-",
        "--name",
        "morning",
        "--tz",
        "Europe/Berlin",
        "--deliver",
        "origin,telegram:5",
        "--skill",
        "a",
        "--skill",
        "b",
        "--model",
        "x/y",
        "--repeat",
        "3",
        "--missed",
        "within 2h",
        "--overlap",
        "queue",
        "--jitter",
        "30s",
        "--run-timeout",
        "20m",
        "--session",
        "continue",
        "--bare",
        "--paused",
    ];
    let ran = run_with_input(&mut at(&fake, &line), "Was ist neu?\n".as_bytes());
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
    for shown in ["Tue 2096-10-02 09:06:40 CEST (in ", "Wed 2096-10-03 09:06:40", "Thu 2096-10-04 09:06:40"] {
        assert_eq!(ran.out.matches(shown).count(), 1, "{shown} in {}", ran.out);
    }
    let sent = fake.asked.jobs.lock().unwrap().pop().unwrap();
    assert_eq!((sent.agent.as_str(), sent.name.as_str()), ("coder", "morning"));
    let text = |text: &str| Some(text.to_owned());
    let expected = v1::CronSpec {
        schedule: text("0 9 * * *"),
        timezone: text("Europe/Berlin"),
        prompt: text("Was ist neu?"),
        skills: Some(v1::StringList { values: vec!["a".into(), "b".into()] }),
        deliver: text("origin,telegram:5"),
        repeat: Some(3),
        paused: Some(true),
        model: text("x/y"),
        missed: text("within 120m"),
        overlap: text("queue"),
        jitter_seconds: Some(30),
        timeout_seconds: Some(1_200),
        session: text("continue"),
        bare: Some(true),
        ..v1::CronSpec::default()
    };
    assert_eq!(sent.spec.unwrap(), expected);

    // What is no schedule is refused here.
    let ran = run(&mut at(&fake, &["cron", "add", "coder", "every now and then", "x"]));
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.contains("is no distance; write \"30m\""), "{}", ran.err);
    assert!(fake.asked.jobs.lock().unwrap().is_empty());
}

#[test]
fn a_change_sends_only_what_was_named() {
    let fake = Fake::start();
    let prompt = file("prompt.md", b"Look.\n\nTwice.\n");
    let file = prompt.to_str().unwrap();
    let line =
        ["cron", "edit", "morning", "--agent", "coder", "--prompt-file", file, "--clear", "model,bare", "-o", "json"];
    let ran = run(&mut at(&fake, &line));
    assert_eq!((ran.code, &ran.json()["id"]), (Some(0), &ID.into()), "{ran:?}");
    let sent = fake.asked.changes.lock().unwrap().pop().unwrap();
    let spec = v1::CronSpec { prompt: Some("Look.\n\nTwice.".into()), ..v1::CronSpec::default() };
    let expected = v1::UpdateJobRequest {
        job: "morning".into(),
        agent: "coder".into(),
        spec: Some(spec),
        clear: vec!["model".into(), "bare".into()],
        ..v1::UpdateJobRequest::default()
    };
    assert_eq!(sent, expected);
    let ran = run(&mut at(&fake, &["cron", "edit", "morning"]));
    assert!(ran.code == Some(2) && ran.err.contains("nothing to change"), "{ran:?}");
    assert!(fake.asked.changes.lock().unwrap().is_empty());
}

#[test]
fn a_run_that_is_waited_for_says_by_its_exit_code_how_it_ended() {
    for (name, code, state) in [("good", 0, "ran"), ("bad", 1, "failed")] {
        let fake = Fake::start();
        let ran = run(&mut at(&fake, &["cron", "run", name, "--wait", "-o", "json"]));
        assert_eq!(
            (ran.code, &ran.json()["state"], &ran.json()["slot"]),
            (Some(code), &state.into(), &SLOT.into()),
            "{ran:?}"
        );
        assert_eq!(ran.err, if code == 0 { "" } else { "error: the run is failed: the model was not there\n" });
        assert_eq!(fake.asked.looks.load(Ordering::SeqCst), 2);
    }
    let fake = Fake::start();
    let ran = run(&mut at(&fake, &["cron", "run", "bad", "-o", "json"]));
    assert_eq!((ran.code, &ran.json()["state"]), (Some(0), &"running".into()), "nobody waits");
}

#[test]
fn a_job_is_removed_by_its_id_and_not_without_a_yes() {
    let fake = Fake::start();
    let ran = run_with_input(&mut at(&fake, &["cron", "remove", "morning"]), b"y\n");
    assert!(ran.code == Some(2) && ran.err.contains("say --yes"), "no terminal answers: {ran:?}");
    assert!(fake.asked.gone.lock().unwrap().is_empty());
    let ran = run(&mut at(&fake, &["cron", "remove", "morning", "--yes"]));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let gone = fake.asked.gone.lock().unwrap().pop().unwrap();
    assert_eq!((gone.job.as_str(), gone.agent.as_str()), (ID, "coder"));
}

#[test]
fn lists_are_whole_and_refusals_are_told() {
    let fake = Fake::start();
    let ran = run(&mut at(&fake, &["cron", "list", "-o", "json"]));
    assert_eq!((&ran.json()[0]["name"], &ran.json()[1]["name"]), (&"one".into(), &"two".into()));
    let ran = run(&mut at(&fake, &["cron", "pause", "one"]));
    assert_eq!(
        (ran.out.as_str(), ran.err.as_str()),
        ("job 3f9a1c07b2de \"one\" of agent coder is paused\n", "it was paused before\n")
    );
    let ran = run(&mut at(&fake, &["cron", "runs", "nobody"]));
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), "error: there is no job \"nobody\"\n"));
}
