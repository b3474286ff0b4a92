//! Strangers with real processes: a code in a direct chat, an operator's word, and then an answer.

use std::time::Duration;

use hermes_tests::fake_telegram::{Bot, FakeTelegram};
use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::system::{Up, until, until_gone};
use serde_json::{Value, json};

use super::{SOON, account, start, stop, texts, with_model};

const BOT: &str = "790:pairing-secret";
const ADA: i64 = 1;
const EVE: i64 = 2;
const GROUP: i64 = -900;

/// One bot that knows Ada; what becomes of others' direct messages.
fn document(fake: &FakeTelegram, model: &MockModel, unauthorized_dm: &str) -> Value {
    let mut front = account("front", "FRONT_TOKEN", fake);
    front.as_object_mut().unwrap().remove("allow_all");
    front["allow_users"] = json!([ADA.to_string()]);
    front["unauthorized_dm"] = json!(unauthorized_dm);
    with_model(model, json!({"platforms": {"telegram": {"accounts": [front]}}}))
}

/// One bot that knows Ada, and pairs.
fn with_bot(fake: &FakeTelegram, model: &MockModel) -> (Up, Bot) {
    let bot = fake.bot(BOT);
    (start(&document(fake, model, "pair"), &[("FRONT_TOKEN", BOT)]), bot)
}

/// Says what it was told last, and whether it was told a stranger's secret.
async fn attentive() -> MockModel {
    let model = MockModel::start().await.unwrap();
    model.respond(|body| {
        let last = body["messages"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
        let secret = body.to_string().contains("SECRETWORD");
        Behaviour::Say(format!("heard: {} {secret}", last["content"].as_str().unwrap_or_default()))
    });
    model
}

/// The code in the text of the `count`th message in `chat`.
async fn code(bot: &Bot, chat: i64, count: usize) -> String {
    let text = texts(bot, chat, count).await.pop().unwrap();
    let (_, rest) = text.split_once("Your pairing code is ").unwrap_or_else(|| panic!("{text}"));
    rest.chars().take(8).collect()
}

fn list(up: &Up) -> Vec<Value> {
    up.json(["pairing", "list"]).as_array().unwrap().clone()
}

/// Everything but Postgres' files.
fn crash(up: &mut Up) {
    let processes = up.kill9();
    until_gone(Duration::from_secs(15), &processes);
    up.restart();
}

/// Waits until the bot has answered Ada about all it was sent before: updates are taken in order.
async fn behind(bot: &Bot, count: usize) {
    bot.push_text(ADA, ADA, "still there?");
    texts(bot, ADA, count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_heard_once_an_operator_has_approved_their_code() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), attentive().await);
    let (mut up, bot) = with_bot(&fake, &model);

    // In a group nobody is told anything; in a direct chat once, and nothing reaches an agent.
    bot.push_text(GROUP, EVE, "hello group");
    bot.push_text(EVE, EVE, "hello SECRETWORD");
    let code = code(&bot, EVE, 1).await;
    bot.push_text(EVE, EVE, "/status");
    behind(&bot, 1).await;
    assert_eq!((bot.delivered(GROUP).len(), bot.delivered(EVE).len(), model.requests()), (0, 1, 1));
    assert_eq!(up.json(["session", "list"]).as_array().unwrap().len(), 1, "Ada's alone");
    assert!(!up.log().contains(&code), "the log has the code");
    let waits = list(&up);
    assert_eq!((waits.len(), &waits[0]["user_id"], &waits[0]["state"]), (1, &json!("2"), &json!("pending")));
    assert!(!waits[0].to_string().contains(&code));

    crash(&mut up);
    up.ctl(["pairing", "approve", &code.to_lowercase(), "--account", "telegram/front"]).ok();
    crash(&mut up);
    assert_eq!(list(&up)[0]["state"], "approved");
    bot.push_text(EVE, EVE, "and now?");
    let answer = texts(&bot, EVE, 2).await.pop().unwrap();
    assert!(answer.contains("and now?") && answer.ends_with(" false"), "{answer}");
    bot.push_text(GROUP, EVE, "here, too");
    texts(&bot, GROUP, 1).await;

    up.ctl(["pairing", "revoke", "telegram/front", "2"]).ok();
    assert!(up.ctl(["pairing", "revoke", "telegram/front", "2"]).refused(1).contains("not approved"));
    let heard = model.requests();
    bot.push_text(GROUP, EVE, "and here?");
    bot.push_text(EVE, EVE, "and me?");
    let again = self::code(&bot, EVE, 3).await;
    behind(&bot, 2).await;
    assert_ne!(again, code);
    assert_eq!((bot.delivered(GROUP).len(), model.requests()), (1, heard + 1));
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_guesses_codes_is_locked_out_across_a_restart() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), attentive().await);
    let (mut up, bot) = with_bot(&fake, &model);
    bot.push_text(EVE, EVE, "hello");
    let code = code(&bot, EVE, 1).await;
    assert!(up.ctl(["pairing", "approve", "nonsense0"]).refused(1).contains("was not tried"));
    let wrong = if code == "AAAAAAAA" { "BBBBBBBB" } else { "AAAAAAAA" };
    for left in ["4", "3", "2", "1"] {
        let said = up.ctl(["pairing", "approve", wrong]).refused(1);
        assert!(said.contains(&format!("after {left} more")), "{said}");
    }
    let said = up.ctl(["pairing", "approve", wrong]).refused(1);
    assert!(said.contains("locked until 20"), "{said}");
    crash(&mut up);
    let said = up.ctl(["pairing", "approve", &code]).refused(1);
    assert!(said.contains("no code is approved until 20"), "{said}");
    // By the database's clock.
    up.sql("UPDATE hermes.pairing_accounts SET locked_until = clock_timestamp()");
    up.ctl(["pairing", "approve", &code]).ok();
    bot.push_text(EVE, EVE, "hello again");
    until(SOON, "an answer", || (bot.delivered(EVE).len() == 2).then_some(()));
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_ignores_strangers_hears_those_who_were_approved() {
    const MAL: i64 = 3;
    let (fake, model) = (FakeTelegram::start().await.unwrap(), attentive().await);
    let (up, bot) = with_bot(&fake, &model);
    bot.push_text(EVE, EVE, "hello");
    let code = code(&bot, EVE, 1).await;
    up.ctl(["pairing", "approve", &code]).ok();
    let ignoring = document(&fake, &model, "ignore").to_string();
    up.ctl_with_input(["apply", "-f", "-"], ignoring.as_bytes()).ok();
    bot.push_text(MAL, MAL, "let me in");
    bot.push_text(GROUP, MAL, "let me in here");
    bot.push_text(EVE, EVE, "am I heard?");
    assert!(texts(&bot, EVE, 2).await[1].contains("am I heard?"));
    bot.push_text(GROUP, EVE, "and here?");
    assert!(texts(&bot, GROUP, 1).await[0].contains("and here?"));
    assert_eq!((bot.delivered(MAL).len(), model.requests()), (0, 2), "a stranger is told nothing");
    up.ctl(["pairing", "revoke", "telegram/front", "2"]).ok();
    bot.push_text(EVE, EVE, "and now?");
    behind(&bot, 1).await;
    assert_eq!((bot.delivered(EVE).len(), model.requests()), (2, 3));
    stop(up);
}
