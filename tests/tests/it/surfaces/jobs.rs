//! Scheduled jobs behind a whole `up`: from `hermesctl cron add` to what a chat is told, and who reaches whose.

use hermes_proto::{Rpc, v1};
use hermes_tests::fake_telegram::{Bot, FakeTelegram};
use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::system::{Transport, Up, until};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::{SOON, account, start, stop, texts, with_model};

const BOT: &str = "791:jobs-secret";
const CHAT: i64 = 11;

/// One bot, and a model.
fn with_bot(fake: &FakeTelegram, model: &MockModel) -> (Up, Bot) {
    let bot = fake.bot(BOT);
    let accounts = [account("front", "FRONT_TOKEN", fake)];
    let document = json!({"agents": {"coder": {}}, "platforms": {"telegram": {"accounts": accounts}}});
    (start(&with_model(model, document), &[("FRONT_TOKEN", BOT)]), bot)
}

fn cron(up: &Up, args: &[&str]) -> Value {
    up.json([&["cron"], args].concat())
}

/// The newest runs, once the newest is delivered.
fn delivered(up: &Up, job: &str, count: usize) -> Vec<Value> {
    until(SOON, "a run that is delivered", || {
        let runs = cron(up, &["runs", job]).as_array().unwrap().clone();
        let is_there = |run: &Value| run["deliveries"][0]["state"] == "delivered";
        (runs.len() >= count && runs.first().is_some_and(is_there)).then_some(runs)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_runs_at_its_time_and_its_chat_is_told() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let (up, bot) = with_bot(&fake, &model);
    let made = cron(
        &up,
        &["add", "coder", "* * * * * *", "say it", "--name", "ticker", "--repeat", "2", "--deliver", "telegram:11"],
    );
    assert_eq!(
        (&made["state"], &made["agent"], &made["zone"]),
        (&json!("scheduled"), &json!("coder"), &json!("UTC")),
        "{made}"
    );
    assert_eq!(made["next"].as_array().unwrap().len(), 2, "as often as it is to run: {made}");
    assert!(made["created_by"].as_str().unwrap().starts_with("token:"), "{made}");
    let id = made["id"].as_str().unwrap();

    let told = texts(&bot, CHAT, 2).await;
    assert!(
        told.iter().all(|text| text.contains("ticker") && text.contains("This is a run of the scheduled job")),
        "{told:?}"
    );
    let done = until(SOON, "a job that is done", || {
        let job = cron(&up, &["show", "Ticker", "--agent", "coder"]);
        (job["state"] == "completed").then_some(job)
    });
    assert_eq!((&done["fired"], &done["next"], &done["id"]), (&json!(2), &json!([]), &json!(id)), "{done}");
    let runs = delivered(&up, "ticker", 2);
    assert_eq!(runs.len(), 2, "one for each slot: {runs:?}");
    for run in &runs {
        assert_eq!((&run["state"], &run["by_hand"]), (&json!("ran"), &json!(false)), "{run}");
        assert_eq!(run["deliveries"], json!([{"chat": "telegram/front/11", "state": "delivered"}]));
        let usage = &run["usage"];
        let tokens = usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap();
        assert_eq!((tokens, &usage["model"]), (150, &json!("mock/mock-1")), "{run}");
        assert!(
            run["output"].as_str().unwrap().contains("This is a run of the scheduled job")
                && run["duration_ms"].as_i64().unwrap() >= 0
        );
        let turn = up.json(["turn", "show", run["turn"].as_str().unwrap()]);
        assert_eq!((&turn["state"], &turn["input"]), (&json!("succeeded"), &json!("say it")), "{turn}");
    }
    // What ran has run: only another schedule, or more runs, let it go on.
    assert_eq!(cron(&up, &["edit", "ticker", "--prompt", "say more"])["state"], "completed");
    assert_eq!(cron(&up, &["pause", "ticker"])["state"], "completed");
    let refused = up.ctl(["cron", "resume", "ticker"]).refused(1);
    assert!(refused.contains("has run as often as it should"), "{refused}");
    let slot = runs[0]["slot"].as_str().unwrap();
    let table = up.ctl(["cron", "runs", "ticker", "--slot", slot]).ok().out;
    assert!(table.contains("150 tokens") && table.contains("telegram/front/11 delivered"), "{table}");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_changed_paused_run_by_hand_and_removed() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let (up, bot) = with_bot(&fake, &model);
    let made = up.ctl_with_input(
        ["cron", "add", "main", "every 1d", "-", "--name", "daily", "--paused", "-o", "json"],
        b"say it\n",
    );
    let made = made.ok().json();
    assert_eq!(
        (&made["state"], &made["next"], &made["spec"]["prompt"]),
        (&json!("paused"), &json!([]), &json!("say it"))
    );
    let id = made["id"].as_str().unwrap();

    let change = [
        "edit",
        "daily",
        "--schedule",
        "0 9 * * *",
        "--tz",
        "Europe/Berlin",
        "--name",
        "morning",
        "--deliver",
        "telegram:11",
    ];
    let edited = cron(&up, &[&change[..], &["--clear", "paused", "--expected-version", "1"]].concat());
    assert_eq!(
        (&edited["state"], &edited["version"], &edited["name"]),
        (&json!("scheduled"), &json!(2), &json!("morning"))
    );
    let next = edited["next"].as_array().unwrap();
    assert!(
        next.len() == 3 && next.iter().all(|slot| slot["local"].as_str().unwrap().contains("T09:00:00+0")),
        "{edited}"
    );
    let refused = up.ctl(["cron", "edit", id, "--prompt", "x", "--expected-version", "1"]).refused(1);
    assert!(refused.contains("somebody else changed the job"), "{refused}");
    assert_eq!(cron(&up, &["pause", id])["state"], "paused");
    assert_eq!(cron(&up, &["list", "--agent", "main"])[0]["next"], json!([]));
    let (again, version) = (up.ctl(["cron", "pause", id]).ok(), cron(&up, &["show", id])["version"].clone());
    assert!(again.err.contains("was paused before") && again.out.contains("is paused"), "{again:?}");
    assert_eq!(version, 3, "which changes nothing");

    // By hand it runs while it is paused, and says how that went.
    let run = cron(&up, &["run", "morning", "--wait"]);
    assert_eq!((&run["state"], &run["by_hand"], &run["job"]), (&json!("ran"), &json!(true), &json!(id)), "{run}");
    assert!(texts(&bot, CHAT, 1).await[0].contains("morning"));
    model.script([Behaviour::Status(400, None)]);
    let failed = up.ctl(["cron", "run", "morning", "--wait", "-o", "json"]);
    assert!(failed.code == Some(1) && failed.err.contains("the run is failed: "), "{failed:?}");
    assert_eq!(failed.json()["state"], "failed");
    assert!(texts(&bot, CHAT, 2).await[1].contains("morning"), "a failure is told");
    assert_eq!(cron(&up, &["resume", id])["state"], "scheduled");
    assert_eq!(cron(&up, &["runs", id, "-n", "1"])[0]["slot"], failed.json()["slot"], "the newest alone");

    let refused = up.ctl(["cron", "remove", "morning"]).refused(2);
    assert!(refused.contains("--yes"), "{refused}");
    assert_eq!(cron(&up, &["list"]).as_array().unwrap().len(), 1, "nobody said yes");
    let removed = cron(&up, &["remove", "morning", "--yes"]);
    assert_eq!((&removed["state"], &removed["next"]), (&json!("removed"), &json!([])));
    assert_eq!(cron(&up, &["list"]), json!([]));
    assert!(up.ctl(["cron", "show", "morning"]).refused(1).contains("there is no job \"morning\""));
    assert_eq!(
        (&cron(&up, &["show", id])["state"], cron(&up, &["runs", id]).as_array().unwrap().len()),
        (&json!("removed"), 2)
    );
    for args in [vec!["run", id], vec!["edit", id, "--prompt", "x"], vec!["resume", id]] {
        up.ctl([&["cron"], &args[..]].concat()).refused(1);
    }
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_job_is_refused_with_every_fault_and_its_remedy() {
    let model = MockModel::start().await.unwrap();
    let up = start(&with_model(&model, json!({"agents": {"coder": {}}})), &[]);
    let refused = |args: &[&str], code: i32| up.ctl([&["cron", "add"], args].concat()).refused(code);
    assert!(refused(&["coder", "whenever", "x"], 2).contains("\"whenever\" is no schedule; write"));
    assert!(refused(&["coder", "every 1h", "x", "--tz", "Mars/Base"], 2).contains("no such time zone"));
    assert!(refused(&["coder", "every 1h", "x", "--missed", "all 1000"], 2).contains("at most 100"));
    assert!(refused(&["nobody", "every 1h", "x"], 1).contains("there is no agent nobody"));
    let said = refused(
        &["coder", "2020-01-01T00:00", "--deliver", "telegramm:1", "--script", "../x", "--run-timeout", "1s"],
        1,
    );
    for part in [
        "spec.schedule: ",
        "is over already",
        "spec.deliver: ",
        "did you mean telegram",
        "spec.script: ",
        "spec.timeout_seconds: ",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(cron(&up, &["list"]), json!([]), "nothing was stored");
    cron(&up, &["add", "coder", "every 1h", "x", "--name", "twice"]);
    assert!(refused(&["coder", "every 1h", "x", "--name", "TWICE"], 1).contains("has a job named"));
    cron(&up, &["add", "main", "every 1h", "x", "--name", "twice"]);
    let said = up.ctl(["cron", "show", "twice"]).refused(1);
    assert!(said.contains("say which agent"), "{said}");
    assert_eq!(cron(&up, &["show", "twice", "--agent", "main"])["agent"], "main");
    assert!(up.ctl(["cron", "edit", "twice", "--agent", "main"]).refused(2).contains("nothing to change"));
    assert!(up.ctl(["cron", "edit", "twice", "--agent", "main", "--clear", "schedule"]).refused(1).contains("clear: "));
    assert!(
        up.ctl(["cron", "runs", "twice", "--agent", "main", "--slot", "2027-01-01T00:00:00Z"])
            .refused(1)
            .contains("has no run for")
    );
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_an_agent_delivers_only_where_that_agent_may_write() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let (up, bot) = with_bot(&fake, &model);
    bot.push_text(CHAT, CHAT, "hello");
    texts(&bot, CHAT, 1).await;
    let mut of_main = up.grpc_as(&token(&up, &["api", "--agent", "main"])).messages();
    let request = |chat: i64| {
        let account = Some("front".to_owned());
        let source =
            v1::Source { platform: "telegram".into(), account, chat_id: chat.to_string(), ..v1::Source::default() };
        v1::SubmitRequest {
            source: Some(source),
            text: "say it".to_owned(),
            deliver: true,
            ..v1::SubmitRequest::default()
        }
    };
    let refused = of_main.submit(request(12)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("agent main may not write to telegram:12"), "{refused}");
    of_main.submit(request(CHAT)).await.unwrap();
    texts(&bot, CHAT, 2).await;
    assert!(bot.delivered(12).is_empty(), "nobody there ever wrote to it");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_in_the_conversation_of_a_job() {
    let model = MockModel::start().await.unwrap();
    let up = start(&with_model(&model, json!({"agents": {"coder": {}}})), &[]);
    let made = cron(&up, &["add", "coder", "every 1d", "say it", "--name", "j", "--session", "continue"]);
    cron(&up, &["run", "j", "--wait"]);
    let session = || up.json(["session", "list"]).as_array().unwrap().clone();
    let before = session();
    for (platform, text) in
        [("cron", "hello"), ("cron", "/new"), ("cron", "/stop"), ("agent", "hello"), ("curator", "hello")]
    {
        let id = made["id"].as_str().unwrap().to_owned();
        let source = v1::Source { platform: platform.to_owned(), chat_id: id, ..v1::Source::default() };
        let agent = Some("coder".to_owned());
        let request =
            v1::SubmitRequest { source: Some(source), text: text.to_owned(), agent, ..v1::SubmitRequest::default() };
        let refused = up.grpc().messages().submit(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{platform} {text}");
    }
    assert_eq!(session(), before);
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_the_document_names_is_told_though_nobody_has_ever_written() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let bot = fake.bot(BOT);
    let document = |homes: Value| {
        let mut front = account("front", "FRONT_TOKEN", &fake);
        front["homes"] = homes;
        with_model(&model, json!({"agents": {"coder": {}}, "platforms": {"telegram": {"accounts": [front]}}}))
    };
    let up = start(&document(json!({"coder": CHAT})), &[("FRONT_TOKEN", BOT)]);
    let apply = |homes: Value| up.ctl_with_input(["apply", "-f", "-"], document(homes).to_string().as_bytes());
    cron(&up, &["add", "coder", "every 1d", "say it", "--name", "daily", "--deliver", "telegram"]);
    let run = || assert_eq!(cron(&up, &["run", "daily", "--wait"])["state"], "ran");
    run();
    assert!(texts(&bot, CHAT, 1).await[0].contains("daily"));

    // The next run goes where the document says by then, be it a topic.
    let refused = apply(json!({"codr": 12})).refused(1);
    assert!(
        refused.contains("accounts[front].homes.codr: agent codr is not registered; did you mean coder?"),
        "{refused}"
    );
    let changed = apply(json!({"coder": "12", "main": "-100:7"})).ok();
    assert!(changed.out.contains("accounts[front].homes.coder"), "{changed:?}");
    run();
    assert!(texts(&bot, 12, 1).await[0].contains("daily"));
    let runs = delivered(&up, "daily", 2);
    assert_eq!(runs[0]["deliveries"], json!([{"chat": "telegram/front/12", "state": "delivered"}]));
    assert_eq!(bot.delivered(CHAT).len(), 1);

    // What a chat says changes nothing of it, and makes a home where the document names none any more.
    let sethome = async |chat: i64, count: usize| {
        bot.push_text(chat, chat, "/sethome");
        texts(&bot, chat, count).await.pop().unwrap()
    };
    assert_eq!(
        sethome(13, 1).await,
        "Nothing was changed: the configuration names another chat as the home of main on this account. Whoever runs this changes it there, under homes of the account."
    );
    apply(json!({"main": 13})).ok();
    assert_eq!(
        sethome(13, 2).await,
        "This chat is the home of main on this account already: the configuration names it."
    );
    apply(json!({})).ok();
    assert_eq!(sethome(13, 3).await, "This chat is the home of main on this account now.");
    run();
    let undelivered = cron(&up, &["runs", "daily", "-n", "1"]).to_string();
    assert!(undelivered.contains("name one under homes of an account"), "{undelivered}");
    assert_eq!((bot.delivered(CHAT).len(), bot.delivered(12).len()), (1, 1));
    stop(up);
}

type Client = v1::cron_service_client::CronServiceClient<Transport>;

/// Each call that names a job, in this order.
async fn calls(client: &mut Client, job: &str, agent: &str) -> Vec<(Rpc, Result<Option<v1::CronJob>, Status>)> {
    let (job, agent) = (job.to_owned(), agent.to_owned());
    let spec = Some(v1::CronSpec { prompt: Some("changed".to_owned()), ..v1::CronSpec::default() });
    macro_rules! call {
        ($rpc:ident, $method:ident, $request:ident { $($field:ident: $value:expr),* }) => {{
            #[allow(clippy::needless_update, reason = "some requests have more fields")]
            let request = v1::$request { job: job.clone(), agent: agent.clone(), $($field: $value,)* ..v1::$request::default() };
            (Rpc::$rpc, client.$method(request).await.map(|answer| answer.into_inner().job))
        }};
    }
    vec![
        call!(CronGetJob, get_job, GetJobRequest {}),
        call!(CronUpdateJob, update_job, UpdateJobRequest { spec: spec }),
        call!(CronPauseJob, pause_job, PauseJobRequest {}),
        call!(CronResumeJob, resume_job, ResumeJobRequest {}),
        call!(CronRunJob, run_job, RunJobRequest {}),
        call!(CronListRuns, list_runs, ListRunsRequest {}),
        call!(CronRemoveJob, remove_job, RemoveJobRequest {}),
    ]
}

async fn create(client: &mut Client, agent: &str) -> Result<v1::CronJob, Status> {
    let text = |text: &str| Some(text.to_owned());
    let spec = Some(v1::CronSpec { schedule: text("every 1d"), prompt: text("as it was"), ..v1::CronSpec::default() });
    let request = v1::CreateJobRequest { agent: agent.to_owned(), name: "report".to_owned(), spec };
    Ok(client.create_job(request).await?.into_inner().job.unwrap())
}

async fn list(client: &mut Client, agent: &str) -> Result<Vec<String>, Status> {
    let request = v1::ListJobsRequest { agent: agent.to_owned(), page: None };
    Ok(client.list_jobs(request).await?.into_inner().jobs.into_iter().map(|job| job.id).collect())
}

fn token(up: &Up, args: &[&str]) -> String {
    up.json([&["token", "create", "--role"], args].concat())["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_agent_finds_no_job_to_read_change_run_or_remove() {
    let model = MockModel::start().await.unwrap();
    let up = start(&with_model(&model, json!({"agents": {"a": {}, "b": {}}})), &[]);
    let mut operator = up.grpc().cron();
    let theirs = create(&mut operator, "a").await.unwrap();
    let mut of_b = up.grpc_as(&token(&up, &["api", "--agent", "b"])).cron();

    // Whatever it names of A is answered as what nobody has.
    let is_absent = |answer: &Status, reference: &str, agent: &str| {
        let unknown =
            if agent == "a" { "there is no agent a; ".to_owned() } else { format!("there is no job \"{reference}\"") };
        answer.code() == Code::NotFound && answer.message().starts_with(&unknown)
    };
    let mut seen = vec![Rpc::CronCreateJob, Rpc::CronListJobs];
    for (reference, agent) in
        [(theirs.id.as_str(), ""), ("report", ""), (&theirs.id, "b"), ("report", "b"), (&theirs.id, "a")]
    {
        for (rpc, answer) in calls(&mut of_b, reference, agent).await {
            let refused = answer.expect_err(&format!("{rpc:?} {reference} {agent:?}"));
            assert!(is_absent(&refused, reference, agent), "{rpc:?} {reference} {agent:?}: {refused}");
            seen.push(rpc);
        }
    }
    let all: Vec<Rpc> = Rpc::ALL.iter().copied().filter(|rpc| format!("{rpc:?}").starts_with("Cron")).collect();
    assert!(all.len() == 9 && all.iter().all(|rpc| seen.contains(rpc)), "every call is tried");
    for refused in [create(&mut of_b, "a").await.map(drop), list(&mut of_b, "a").await.map(drop)] {
        let refused = refused.unwrap_err();
        assert!(is_absent(&refused, "", "a"), "{refused}");
    }
    let nowhere = list(&mut of_b, "nowhere").await.unwrap_err();
    assert_eq!(nowhere.message().replace("nowhere", "a"), list(&mut of_b, "a").await.unwrap_err().message());
    assert!(list(&mut of_b, "").await.unwrap().is_empty());
    assert_eq!(cron(&up, &["show", &theirs.id])["version"], 1, "nothing was changed");
    assert_eq!(cron(&up, &["runs", &theirs.id]), json!([]), "nothing was run");

    // Its own it makes, and does everything with, whatever A has of the same name.
    let own = create(&mut of_b, "").await.unwrap();
    assert_eq!((own.agent.as_str(), list(&mut of_b, "").await.unwrap()), ("b", vec![own.id.clone()]));
    for (rpc, answer) in calls(&mut of_b, "report", "").await {
        assert_eq!(answer.unwrap_or_else(|error| panic!("{rpc:?}: {error}")).unwrap().id, own.id, "{rpc:?}");
    }
    assert_eq!(list(&mut operator, "").await.unwrap(), vec![theirs.id.clone()]);

    // A token of no agent gets nothing; a viewer looks.
    let mut of_none = up.grpc_as(&token(&up, &["api"])).cron();
    let mut refusals = vec![list(&mut of_none, "").await.map(drop), create(&mut of_none, "a").await.map(drop)];
    refusals.extend(calls(&mut of_none, &theirs.id, "a").await.into_iter().map(|(_, answer)| answer.map(drop)));
    for refused in refusals {
        let refused = refused.unwrap_err();
        assert!(
            refused.code() == Code::PermissionDenied && refused.message().contains("--role api --agent"),
            "{refused}"
        );
    }
    let mut viewer = up.grpc_as(&token(&up, &["viewer"])).cron();
    assert_eq!(list(&mut viewer, "a").await.unwrap(), vec![theirs.id.clone()]);
    assert_eq!(create(&mut viewer, "a").await.unwrap_err().code(), Code::PermissionDenied);
    for (rpc, answer) in calls(&mut viewer, &theirs.id, "").await {
        let looks = matches!(rpc, Rpc::CronGetJob | Rpc::CronListRuns);
        assert_eq!(
            answer.map_or_else(|error| error.code(), |_| Code::Ok),
            if looks { Code::Ok } else { Code::PermissionDenied },
            "{rpc:?}"
        );
    }
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_an_agent_sends_messages_to_that_agent_alone() {
    let model = MockModel::start().await.unwrap();
    let up = start(&with_model(&model, json!({"agents": {"a": {}, "b": {}}, "default_agent": "a"})), &[]);
    let mut of_b = up.grpc_as(&token(&up, &["api", "--agent", "b"])).messages();
    let source = || v1::Source { platform: "webhook".to_owned(), chat_id: "1".to_owned(), ..v1::Source::default() };
    let request = |agent: Option<&str>| v1::SubmitRequest {
        source: Some(source()),
        text: "hello".to_owned(),
        agent: agent.map(str::to_owned),
        ..v1::SubmitRequest::default()
    };
    let there = of_b.submit(request(Some("a"))).await.unwrap_err();
    let nowhere = of_b.submit(request(Some("nowhere"))).await.unwrap_err();
    assert_eq!((there.code(), there.message()), (Code::NotFound, nowhere.message().replace("nowhere", "a").as_str()));
    for agent in [None, Some("b")] {
        assert_eq!(of_b.submit(request(agent)).await.unwrap().into_inner().agent, "b");
    }
    stop(up);
}
