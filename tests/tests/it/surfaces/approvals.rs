//! Dangerous calls with real processes: asked in the chat once, answered by the right person, whatever is restarted meanwhile.

use std::path::PathBuf;
use std::time::Duration;

use hermes_proto::v1;
use hermes_tests::fake_telegram::{Bot, Delivery, FakeTelegram};
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use hermes_tests::system::{Up, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tonic::Code;

use super::{SOON, account, start, stop, texts, with_model};

const BOT: &str = "750:approvals-secret";
pub(super) const ADA: i64 = 1;
const EVE: i64 = 2;

/// `go COMMAND` runs the command in a terminal and says what the model was shown of it.
pub(super) async fn obedient() -> MockModel {
    let model = MockModel::start().await.unwrap();
    model.respond(|body| {
        let messages = body["messages"].as_array().cloned().unwrap_or_default();
        let last = messages.last().cloned().unwrap_or_default();
        let text = last["content"].as_str().unwrap_or_default().to_owned();
        match (last["role"].as_str(), text.rsplit_once("go ")) {
            (Some("tool"), _) => Behaviour::Say(format!("shown: {text}")),
            (_, Some((_, command))) => {
                let arguments = json!({ "command": command }).to_string();
                Behaviour::Ask(String::new(), vec![Call::new("call-1", "terminal", &arguments)])
            }
            _ => Behaviour::Say(format!("heard: {text}")),
        }
    });
    model
}

/// One bot; commands reach the machine's network, so that what deletes is asked for.
pub(super) fn with_bot(fake: &FakeTelegram, model: &MockModel, more: Value) -> (Up, Bot) {
    let bot = fake.bot(BOT);
    let mut document = json!({
        "sandbox": {"level": "strict", "network": "open"},
        "platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", fake)]}},
    });
    for (key, value) in more.as_object().unwrap() {
        document[key] = value.clone();
    }
    (start(&with_model(model, document), &[("FRONT_TOKEN", BOT)]), bot)
}

pub(super) fn workspace(up: &Up) -> PathBuf {
    let agent = up.json(["agent", "show", "main"]);
    PathBuf::from(agent["home"].as_str().unwrap()).join("workspace")
}

/// The questions that wait, newest first.
fn waiting(up: &Up) -> Vec<Value> {
    up.json(["approval", "list"]).as_array().unwrap().clone()
}

pub(super) async fn asked(bot: &Bot, chat: i64, count: usize) -> Delivery {
    texts(bot, chat, count).await;
    let question = bot.delivered(chat).into_iter().nth(count - 1).unwrap();
    assert!(question.text.starts_with("Question ") && question.text.contains("may I do this?"), "{question:?}");
    question
}

/// The acceptance test: one question outlives its worker, the control plane and everything, is asked once, and only the right answer
/// to the very call counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_survives_a_restart_of_everything_and_nobody_elses_counts() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), obedient().await);
    let (mut up, bot) = with_bot(&fake, &model, json!({}));
    let dir = workspace(&up).join("build");
    bot.push_text(ADA, ADA, "go mkdir -p build");
    texts(&bot, ADA, 1).await;
    assert!(dir.is_dir());

    bot.push_text(ADA, ADA, "go rm -rf build");
    let question = asked(&bot, ADA, 2).await;
    assert!(question.text.contains("terminal: rm -rf build"), "{}", question.text);
    let id = waiting(&up)[0]["id"].as_u64().unwrap();
    assert_eq!(
        question.buttons,
        [
            format!("/approve {id} once"),
            format!("/approve {id} session"),
            format!("/approve {id} always"),
            format!("/deny {id}")
        ]
    );
    let requests = model.requests();

    // The worker, and then everything but Postgres' files.
    let workers = up.json(["worker", "list"]);
    let pid = i32::try_from(workers[0]["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    until(SOON, "another worker", || {
        let workers = up.json(["worker", "list"]);
        workers.as_array()?.iter().any(|worker| worker["pid"].as_i64() != Some(pid.into())).then_some(())
    });
    let processes = up.kill9();
    hermes_tests::system::until_gone(Duration::from_secs(15), &processes);
    up.restart();
    assert_eq!(waiting(&up)[0]["id"], id, "the question is still there");

    // Somebody else, in their own chat; with a button that is not theirs, and with words.
    bot.push_text(EVE, EVE, &format!("/approve {id}"));
    assert_eq!(texts(&bot, EVE, 1).await, ["There is no question here that you can answer."]);
    // In Ada's chat, but not Ada.
    bot.press(&question, EVE, &format!("/approve {id} once"));
    assert_eq!(texts(&bot, ADA, 3).await[2], "There is no question here that you can answer.");
    // With another number.
    bot.push_text(ADA, ADA, "/approve 4711");
    assert_eq!(texts(&bot, ADA, 4).await[3], "There is no question here that you can answer.");
    // Whoever sends it through the API is not who wrote in the chat.
    let forged = v1::Source {
        platform: "telegram".into(),
        account: Some("front".into()),
        chat_id: ADA.to_string(),
        chat_type: "dm".into(),
        user_id: Some(ADA.to_string()),
        ..v1::Source::default()
    };
    let request = v1::SubmitRequest {
        source: Some(forged),
        text: format!("/approve {id}"),
        deliver: true,
        ..v1::SubmitRequest::default()
    };
    let notice = up.grpc().messages().submit(request).await.unwrap().into_inner().notice;
    assert_eq!(notice, "There is no question here that you can answer.");
    assert_eq!(texts(&bot, ADA, 5).await[4], notice);
    assert!(dir.is_dir(), "nothing was deleted yet");
    assert_eq!(waiting(&up).len(), 1);

    // The right one, by the button; no model call was held or made meanwhile.
    let press = bot.press(&question, ADA, &format!("/approve {id} once"));
    let said = texts(&bot, ADA, 7).await;
    assert_eq!(said[5], format!("Allowed ({id})."));
    assert!(said[6].starts_with("shown: "), "{said:?}");
    assert!(!dir.is_dir());
    assert!(model.requests() <= requests + 1, "only the model call behind the tool was made");
    assert_eq!(said.iter().filter(|text| text.starts_with("Question ")).count(), 1, "{said:?}");

    // The same press again does nothing, and the answer is spent: the same command is another call.
    std::fs::create_dir(&dir).unwrap();
    bot.duplicate(press);
    bot.push_text(ADA, ADA, "go rm -rf build");
    asked(&bot, ADA, 8).await;
    assert!(dir.is_dir());
    bot.push_text(ADA, ADA, &format!("/approve {id}"));
    assert_eq!(texts(&bot, ADA, 9).await[8], format!("Question {id} is over already (allowed)."));
    bot.push_text(ADA, ADA, "No.");
    let said = texts(&bot, ADA, 11).await;
    assert!(said[9].starts_with("Denied ("), "{said:?}");
    assert!(said[10].contains("it may not. It was not done."), "{said:?}");
    assert!(dir.is_dir());
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_no_further_answers_reach_as_far_as_they_say_and_hardline_is_never_asked() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), obedient().await);
    let (up, bot) = with_bot(&fake, &model, json!({"approvals": {"timeout_seconds": 2, "deny": ["git push*"]}}));
    let dir = workspace(&up).join("build");
    bot.push_text(ADA, ADA, "go mkdir -p build");
    texts(&bot, ADA, 1).await;

    bot.push_text(ADA, ADA, "go rm -rf build");
    asked(&bot, ADA, 2).await;
    assert!(texts(&bot, ADA, 3).await[2].contains("nobody answered in time"));
    assert!(dir.is_dir());
    // An answer that comes too late is words for the agent.
    bot.push_text(ADA, ADA, "yes");
    assert_eq!(texts(&bot, ADA, 4).await[3], "heard: yes");
    // What nobody can allow, and what the operator refuses.
    bot.push_text(ADA, ADA, "go rm -rf /");
    assert!(texts(&bot, ADA, 5).await[4].contains("Nobody can allow that"));
    bot.push_text(ADA, ADA, "go git push origin main");
    assert!(texts(&bot, ADA, 6).await[5].contains("does not let commands like"));

    up.ctl(["agent", "update", "main", "--approvals", "timeout_seconds=600"]).ok();
    bot.push_text(ADA, ADA, "go rm -rf build");
    asked(&bot, ADA, 7).await;
    bot.push_text(ADA, ADA, "session");
    let said = texts(&bot, ADA, 9).await;
    assert!(said[7].contains("and all of its kind in this conversation") && said[8].starts_with("shown: "), "{said:?}");
    assert!(!dir.is_dir());
    std::fs::create_dir(&dir).unwrap();
    bot.push_text(ADA, ADA, "go rm -rf build");
    assert!(texts(&bot, ADA, 10).await[9].starts_with("shown: "), "it is not asked for again");
    assert!(!dir.is_dir());
    // A person's stop ends what waits.
    bot.push_text(ADA, ADA, "go sudo ls");
    let question = asked(&bot, ADA, 11).await;
    bot.push_text(ADA, ADA, "/stop");
    assert_eq!(texts(&bot, ADA, 12).await[11], "Stopped.");
    bot.press(&question, ADA, &question.buttons[0]);
    assert!(texts(&bot, ADA, 13).await[12].contains("is over: nobody answered"));
    assert!(waiting(&up).is_empty());
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_group_an_admin_of_it_may_answer_and_nobody_else_for_another() {
    const GROUP: i64 = -100;
    const ADMIN: i64 = 9;
    let (fake, model) = (FakeTelegram::start().await.unwrap(), obedient().await);
    let bot = fake.bot(BOT);
    let mut front = account("front", "FRONT_TOKEN", &fake);
    front["group_allow_admin_from"] = json!([ADMIN.to_string()]);
    let document =
        json!({"sandbox": {"level": "strict", "network": "open"}, "platforms": {"telegram": {"accounts": [front]}}});
    let up = start(&with_model(&model, document), &[("FRONT_TOKEN", BOT)]);
    bot.push_text(GROUP, ADA, "go rm -rf build");
    let question = asked(&bot, GROUP, 1).await;
    bot.press(&question, EVE, &question.buttons[0]);
    assert_eq!(texts(&bot, GROUP, 2).await[1], "There is no question here that you can answer.");
    // An admin of groups is none elsewhere.
    bot.push_text(ADMIN, ADMIN, &question.buttons[0]);
    assert_eq!(texts(&bot, ADMIN, 1).await, ["There is no question here that you can answer."]);
    bot.press(&question, ADMIN, &question.buttons[3]);
    let said = texts(&bot, GROUP, 4).await;
    assert!(said[2].starts_with("Denied (") && said[3].contains("it may not"), "{said:?}");
    let all = up.json(["approval", "list", "--all"]);
    assert_eq!(all[0]["answered_by"], "telegram/front/9");
    assert_eq!(all[0]["asker"], "telegram/front/1");
    // Whoever was asked answers there too, though commands are gated.
    bot.push_text(GROUP, ADA, "go rm -rf build");
    asked(&bot, GROUP, 5).await;
    bot.push_text(GROUP, EVE, "yes");
    assert!(texts(&bot, GROUP, 6).await[5].contains("heard: "), "somebody else's yes is words");
    bot.push_text(GROUP, ADA, "yes");
    let said = texts(&bot, GROUP, 8).await;
    assert!(said[6].starts_with("Allowed (") && said[7].starts_with("shown: "), "{said:?}");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_caller_is_told_and_answers_for_its_own_turns_only() {
    let model = obedient().await;
    let up = start(&with_model(&model, json!({"sandbox": {"level": "strict", "network": "open"}})), &[]);
    let token = |name: &str| {
        let made = up.json(["token", "create", "--role", "api", "--name", name]);
        made["token"].as_str().unwrap().to_owned()
    };
    let (ours, theirs) = (up.grpc_as(&token("ours")), up.grpc_as(&token("theirs")));
    let source =
        v1::Source { platform: "irc".into(), chat_id: "1".into(), chat_type: "dm".into(), ..v1::Source::default() };
    let request =
        v1::SubmitRequest { source: Some(source), text: "go rm -rf build".into(), ..v1::SubmitRequest::default() };
    let mut events = ours.messages().submit_and_stream(request).await.unwrap().into_inner();
    let question = loop {
        match events.message().await.unwrap().and_then(|event| event.event) {
            Some(v1::turn_event::Event::Approval(question)) => break question,
            Some(v1::turn_event::Event::Ended(ended)) => panic!("{ended:?}"),
            None => panic!("it ended"),
            _ => {}
        }
    };
    assert!(question.question.contains("rm -rf build") && question.timeout_ms > 0, "{question:?}");
    let answer = |verdict: v1::ApprovalVerdict| v1::AnswerApprovalRequest { id: question.id, verdict: verdict.into() };
    let once = answer(v1::ApprovalVerdict::Once);
    let refused = theirs.approvals().answer_approval(once).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let seen = theirs.approvals().list_approvals(v1::ListApprovalsRequest::default()).await.unwrap().into_inner();
    assert!(seen.approvals.is_empty());
    let refused = ours.approvals().answer_approval(answer(v1::ApprovalVerdict::Always)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let listed = up.json(["approval", "list"]);
    assert_eq!((listed[0]["id"].as_u64(), listed[0]["state"].as_str()), (Some(question.id), Some("pending")));

    let answered = ours.approvals().answer_approval(once).await.unwrap().into_inner().approval.unwrap();
    assert_eq!(answered.state, "allowed");
    let ended = loop {
        if let Some(v1::turn_event::Event::Ended(ended)) = events.message().await.unwrap().and_then(|event| event.event)
        {
            break ended;
        }
    };
    assert!(ended.reply.starts_with("shown: "), "{ended:?}");
    // An operator's answer to a question that is over changes nothing.
    let id = question.id.to_string();
    assert!(up.ctl(["approval", "deny", &id]).refused(1).contains("is over (allowed)"));
    stop(up);
}
