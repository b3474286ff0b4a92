//! Scheduled jobs of a plane that is away or whose clock jumps: what is missed is what each job's policy says, and no slot runs twice.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hermes_proto::v1;
use hermes_tests::fake_telegram::{Bot, FakeTelegram};
use hermes_tests::mock_model::MockModel;
use hermes_tests::postgres::TestPostgres;
use hermes_tests::system::{Options, Up, until};
use jiff::{Timestamp, ToSpan as _};
use serde_json::{Value, json};

use super::{SOON, model_document, personas};

const BOT: &str = "792:clock-secret";
/// The chat that shows that everything before it is there.
const LAST: i64 = 900;
/// For slots that come while a test waits.
const PATIENCE: Duration = Duration::from_secs(180);

/// A plane on a database that outlives it, and its bot.
fn plane(model: &MockModel, fake: &FakeTelegram, database: &TestPostgres, env: &[(&str, &str)]) -> (Up, Bot) {
    let bot = fake.bot(BOT);
    let mut document = model_document(model);
    document["platforms"] = json!({"telegram": {"accounts": [
        {"id": "front", "token_env": "FRONT_TOKEN", "api_base": fake.base(), "allow_all": true, "rate": "off"},
    ]}});
    let mut options = Options::config(document.to_string()).flag("--database-url", database.url());
    options.env =
        [("FRONT_TOKEN", BOT)].iter().chain(env).map(|(name, value)| ((*name).to_owned(), value.into())).collect();
    (Up::start(options), bot)
}

/// Makes a job of `main` that answers in a chat of its own.
fn add(up: &Up, name: &str, schedule: &str, chat: i64, missed: &str) {
    let deliver = format!("telegram:{chat}");
    up.json([
        "cron",
        "add",
        "main",
        schedule,
        "say it",
        "--name",
        name,
        "--deliver",
        &deliver,
        "--missed",
        missed,
        "--bare",
    ]);
}

/// A job's history, the oldest slot first, as `state first..last`.
fn history(up: &Up, name: &str) -> Vec<(String, Timestamp, Timestamp)> {
    let runs = up.json(["cron", "runs", name, "-n", "100"]);
    let mut all: Vec<_> = runs
        .as_array()
        .unwrap()
        .iter()
        .map(|run| {
            let at = |field: &str| run[field].as_str().map(|text| text.parse::<Timestamp>().unwrap());
            let slot = at("slot").unwrap();
            (run["state"].as_str().unwrap().to_owned(), slot, at("until").unwrap_or(slot))
        })
        .collect();
    all.sort_by_key(|(_, slot, _)| *slot);
    all
}

fn states(up: &Up, name: &str) -> Vec<String> {
    history(up, name).into_iter().map(|(state, ..)| state).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_nobody_ran_are_what_each_policy_says() {
    let (model, fake) = (personas().await, FakeTelegram::start().await.unwrap());
    let database = TestPostgres::empty().unwrap();
    let (mut up, bot) = plane(&model, &fake, &database, &[]);
    // Three slots an hour, three minutes apart, ten to four minutes before the plane comes back; the next ones are far away.
    let minutes = [10, 7, 4].map(|ago| (Timestamp::now() - i64::from(ago).minutes()).strftime("%-M").to_string());
    let schedule = format!("{} * * * *", minutes.join(","));
    let jobs = [
        ("skip", "skip", vec!["missed"], 0),
        ("once", "once", vec!["missed", "ran"], 1),
        ("all", "all", vec!["ran", "ran", "ran"], 3),
        ("two", "all 2", vec!["missed", "ran", "ran"], 2),
        ("young", "within 8m", vec!["missed", "ran"], 1),
        ("old", "within 2m", vec!["missed"], 0),
    ];
    for (chat, (name, missed, ..)) in (100..).zip(&jobs) {
        add(&up, name, &schedule, chat, missed);
    }
    let (status, ..) = up.interrupt();
    assert!(status.success(), "{}", up.log_tail());
    let first = Timestamp::now().as_second() / 60 * 60 - 600;
    tokio::task::block_in_place(|| {
        let mut client = postgres::Client::connect(database.url(), postgres::NoTls).unwrap();
        let back = "UPDATE hermes.cron_jobs SET slot = to_timestamp($1::float8), due_at = to_timestamp($1::float8)";
        // As the schedule has it, also where a minute went by meanwhile.
        let at = (0..3_i64).map(|later| first - later * 60).find(|at| {
            let minute = Timestamp::from_second(*at).unwrap().strftime("%-M").to_string();
            minutes[0] == minute
        });
        assert_eq!(client.execute(back, &[&(at.unwrap() as f64)]).unwrap(), 6);
    });
    up.restart();

    for (chat, (name, _, wanted, said)) in (100..).zip(&jobs) {
        until(SOON, name, || (states(&up, name) == *wanted).then_some(()));
        let got = bot.wait_for(chat, *said, SOON).await;
        assert!(got.is_ok(), "{name}: {got:?}");
    }
    let missed = up.json(["cron", "runs", "skip"]);
    assert_eq!((&missed[0]["slots"], &missed[0]["turn"]), (&json!(3), &Value::Null), "{missed}");
    assert!(missed[0]["reason"].as_str().unwrap().contains("missed: skip"), "{missed}");
    // Whatever was said once too often would be there before this.
    add(&up, "last", "* * * * * *", LAST, "once");
    bot.wait_for(LAST, 1, SOON).await.unwrap();
    for (chat, (name, _, _, said)) in (100..).zip(&jobs) {
        assert_eq!(bot.delivered(chat).len(), *said, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plane_that_is_away_for_a_minute_and_a_half_leaves_no_slot_out_and_runs_none_twice() {
    let (model, fake) = (personas().await, FakeTelegram::start().await.unwrap());
    let database = TestPostgres::empty().unwrap();
    let (mut up, bot) = plane(&model, &fake, &database, &[]);
    let jobs = [("skip", "skip"), ("once", "once"), ("all", "all"), ("within", "within 1m")];
    for (chat, (name, missed)) in (100..).zip(&jobs) {
        // Every twenty seconds.
        add(&up, name, "* * * * * */20", chat, missed);
    }
    until(SOON * 2, "a run of each", || {
        jobs.iter().all(|(name, _)| states(&up, name).contains(&"ran".to_owned())).then_some(())
    });
    let gone = Timestamp::now();
    up.interrupt();
    until(PATIENCE, "a minute and a half", || (Timestamp::now() > gone + 90.seconds()).then_some(()));
    up.restart();
    let back = Timestamp::now();
    for (chat, (name, missed)) in (100..).zip(&jobs) {
        let later = |all: &[(String, Timestamp, Timestamp)]| {
            all.last().is_some_and(|(state, slot, _)| state == "ran" && *slot > back)
        };
        let all = until(PATIENCE, "a run after that", || Some(history(&up, name)).filter(|all| later(all)));
        for pair in all.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            assert_eq!(
                after.1.duration_since(before.2).as_secs(),
                20,
                "{name}: a slot is left out or doubled: {all:?}"
            );
        }
        let in_between = |state: &str| {
            let within = |slot: Timestamp| slot > gone && slot < back;
            all.iter().filter(|(is, slot, _)| is == state && within(*slot)).count()
        };
        match *missed {
            "all" => assert!(in_between("missed") == 0 && in_between("ran") >= 4, "{name}: {all:?}"),
            _ => assert!(in_between("missed") == 1 && in_between("ran") <= 1, "{name}: {all:?}"),
        }
        let ran = all.iter().filter(|(state, ..)| state == "ran").count();
        let said = bot.wait_for(chat, ran, SOON).await;
        assert!(said.is_ok(), "{name}: {said:?}");
    }
}

/// Where Debian keeps it, by architecture.
fn faketime() -> String {
    let dirs =
        ["x86_64-linux-gnu", "aarch64-linux-gnu"].map(|arch| format!("/usr/lib/{arch}/faketime/libfaketime.so.1"));
    dirs.into_iter().find(|library| Path::new(library).is_file()).expect("libfaketime is installed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicas_clock_that_jumps_an_hour_changes_no_run() {
    let (model, fake) = (personas().await, FakeTelegram::start().await.unwrap());
    let database = TestPostgres::empty().unwrap();
    let clock = tempfile::NamedTempFile::new().unwrap();
    fs::write(clock.path(), "+0").unwrap();
    let library = faketime();
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", clock.path().to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let (up, bot) = plane(&model, &fake, &database, &env);
    add(&up, "tick", "* * * * * */5", 100, "once");
    let mut seen = 0;
    for jump in ["+0", "+3600", "-3600", "+0"] {
        fs::write(clock.path(), jump).unwrap();
        let jumped = Timestamp::now();
        seen += 2;
        let all = until(PATIENCE, "two more runs", || {
            let all = history(&up, "tick");
            (all.iter().filter(|(state, ..)| state == "ran").count() >= seen).then_some(all)
        });
        // What it refuses it logs, with its own time.
        assert!(up.grpc_as("nobody").system().get_status(v1::GetStatusRequest {}).await.is_err());
        let (_, slot, _) = all.last().unwrap();
        assert!(slot.duration_since(jumped).abs().as_secs() < 60, "{jump}: {slot} is no slot of the clock that counts");
    }
    let all = history(&up, "tick");
    for pair in all.windows(2) {
        assert_eq!(pair[1].1.duration_since(pair[0].1).as_secs(), 5, "{all:?}");
    }
    assert!(all.iter().all(|(state, ..)| state != "missed" && state != "failed"), "{all:?}");
    // It did jump: its own log says so.
    let log = up.log();
    let hour = (Timestamp::now() + 1.hour()).strftime("T%H:").to_string();
    assert!(log.contains(&hour), "the clock of the plane never jumped:\n{}", up.log_tail());
    let said = bot.wait_for(100, seen, SOON).await;
    assert!(said.is_ok(), "{said:?}");
}
