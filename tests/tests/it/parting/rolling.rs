//! Workers and replicas are replaced under load, and nobody can tell from the replies.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use hermes_tests::fake_telegram::{Bot, FakeTelegram, Fault};
use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::postgres::TestPostgres;
use hermes_tests::system::{Options, Up, until};
use serde_json::{Value, json};

use super::{Plane, SOON, command, look, secret_file};

const BOT: &str = "700:the-secret-of-the-bot";
const CHATS: i64 = 20;
const EACH: i64 = 8;

/// Notes whenever a turn counts a crash; the count itself is gone when the turn ends.
const WATCH: &str = "CREATE TABLE hermes.crashed (session_id bigint);
    CREATE FUNCTION hermes.note_crash() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN INSERT INTO hermes.crashed VALUES (NEW.session_id); RETURN NULL; END $$;
    CREATE TRIGGER note_crash AFTER UPDATE ON hermes.sessions FOR EACH ROW WHEN (NEW.crashes > 0) EXECUTE FUNCTION hermes.note_crash();";

fn document(mock: &MockModel, telegram: &FakeTelegram) -> Value {
    json!({
        "model": "mock/mock-1",
        "providers": {"mock": {"kind": "openai", "base_url": mock.base_url()}},
        "platforms": {"telegram": {"accounts": [
            {"id": "bot", "token_env": "BOT_TOKEN", "api_base": telegram.base(), "allow_all": true, "rate": "off"},
        ]}},
    })
}

fn push(bot: &Bot, numbers: std::ops::Range<i64>) {
    for number in numbers {
        for chat in 1..=CHATS {
            bot.push_text(chat, chat, &format!("<{chat}:{number}>"));
        }
    }
}

/// Each chat has each answer once, in order and unmarked.
async fn all_answered_once(bot: &Bot, log: impl Fn() -> String) {
    for chat in 1..=CHATS {
        if let Err(got) = bot.wait_for(chat, usize::try_from(EACH).unwrap(), SOON).await {
            panic!("chat {chat} got only {got:?}\n{}", log());
        }
    }
    for chat in 1..=CHATS {
        let said: Vec<String> = bot.delivered(chat).into_iter().map(|delivery| delivery.text).collect();
        let begins: Vec<&str> = said.iter().map(|text| text.split(' ').next().unwrap()).collect();
        let expected: Vec<String> = (0..EACH).map(|number| format!("<{chat}:{number}>")).collect();
        assert_eq!(begins, expected, "chat {chat}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_workers_are_drained_under_load_and_no_turn_notices() {
    let (mock, telegram) = (MockModel::start().await.unwrap(), FakeTelegram::start().await.unwrap());
    mock.otherwise(Behaviour::Delay(Duration::from_millis(100)));
    let bot = telegram.bot(BOT);
    let env = vec![("BOT_TOKEN".to_owned(), BOT.into())];
    let up = Up::start(Options { env, ..Options::config(document(&mock, &telegram).to_string()) });
    let url = up.endpoint().database_url;
    up.sql(WATCH);
    let pid = |other_than: &Value| {
        until(SOON, "a worker", || {
            let workers = up.json(["worker", "list"]);
            let ready = |one: &&Value| one["pid"] != *other_than && one["state"] != "draining";
            workers.as_array().unwrap().iter().find(ready).map(|one| one["pid"].clone())
        })
    };
    let mut pids = vec![pid(&Value::Null)];
    push(&bot, 0..EACH);
    for round in 1..=3 {
        let wanted = usize::try_from(CHATS * EACH).unwrap() * round / 5;
        assert!(bot.wait_until(SOON, |bot| bot.deliveries().len() >= wanted).await, "{}", up.log_tail());
        let drained = up.json(["worker", "drain", "--all", "--wait"]);
        assert_eq!(drained.as_array().unwrap().len(), 1, "{drained}");
        pids.push(pid(pids.last().unwrap()));
    }
    all_answered_once(&bot, || up.log_tail()).await;
    pids.dedup();
    assert_eq!(pids.len(), 4, "each drain brought another process: {pids:?}");
    assert_eq!(look(&url, "SELECT count(*) FROM hermes.crashed"), "0");
    assert_eq!(look(&url, "SELECT count(*) FROM hermes.dead_turns"), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_restarted_under_load_without_a_crash_or_a_marked_copy() {
    let (mock, telegram) = (MockModel::start().await.unwrap(), FakeTelegram::start().await.unwrap());
    mock.otherwise(Behaviour::Delay(Duration::from_millis(50)));
    let bot = telegram.bot(BOT);
    // Some are always being sent when it stops.
    bot.fail("sendMessage", u32::MAX, Fault::Late(Duration::from_millis(1200)));
    let database = TestPostgres::empty().unwrap();
    let document = document(&mock, &telegram);
    let env = [("BOT_TOKEN", BOT)];
    // Its workers find the next one at the same address.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let start = async || Plane::start_at(database.url(), &document, &env, &address).await;
    let mut plane = start().await;
    look(database.url(), WATCH);
    let home = tempfile::tempdir().unwrap();
    secret_file(&home.path().join("join.token"), &plane.join_token("main"));
    let mut worker = command("hermes-worker");
    worker.args(["--server", &format!("https://{address}")]).arg("--home").arg(home.path().join("home"));
    worker.arg("--join-token-file").arg(home.path().join("join.token"));
    let mut worker = worker.stderr(fs::File::create(home.path().join("log")).unwrap()).spawn().unwrap();

    push(&bot, 0..EACH);
    for round in 1..=2 {
        let wanted = usize::try_from(CHATS * EACH).unwrap() * round / 4;
        assert!(bot.wait_until(SOON, |bot| bot.deliveries().len() >= wanted).await, "{}", plane.log());
        plane.stop().await;
        plane = start().await;
    }
    all_answered_once(&bot, || plane.log()).await;
    assert_eq!(look(database.url(), "SELECT count(*) FROM hermes.crashed"), "0");
    assert_eq!(look(database.url(), "SELECT count(*) FROM hermes.deliveries WHERE maybe_dup"), "0");
    let attempts = look(database.url(), "SELECT string_agg(DISTINCT attempts::text, ',') FROM hermes.deliveries");
    assert_eq!(attempts, "1", "each was sent once");
    let claims = look(database.url(), "SELECT count(*) FROM hermes.turn_steps WHERE ended = 2");
    assert_eq!(claims, (CHATS * EACH).to_string());
    plane.stop().await;
    worker.kill().await.unwrap();
}
