//! Slash commands in chats, end to end: what they say, what the model is shown afterwards, and who may give them.

use std::sync::{Arc, Mutex};

use hermes_proto::v1;
use hermes_tests::fake_telegram::{Bot, FakeTelegram};
use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::system::{Up, until};
use serde_json::{Value, json};

use super::{SOON, account, start, stop, texts, with_model};

const BOT: &str = "750:command-secret";

/// What a model was asked: its name, then what was said by whom, without system text.
type Asked = Arc<Mutex<Vec<(String, Vec<String>)>>>;

/// A model that says `re` and the last words, and what it is asked.
async fn recording() -> (MockModel, Asked) {
    let (mock, asked) = (MockModel::start().await.unwrap(), Asked::default());
    let record = asked.clone();
    mock.respond(move |body| {
        let said: Vec<String> = body["messages"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|message| message["role"] != "system")
            .map(|message| message["content"].as_str().unwrap_or_default().to_owned())
            .collect();
        let last = said.last().cloned().unwrap_or_default();
        record.lock().unwrap().push((body["model"].as_str().unwrap().to_owned(), said));
        Behaviour::Say(format!("re {last}"))
    });
    (mock, asked)
}

/// What the model was shown last.
fn last(asked: &Asked) -> Vec<String> {
    asked.lock().unwrap().last().unwrap().1.clone()
}

fn with_bot(fake: &FakeTelegram, mock: &MockModel, lists: &Value, more: &Value) -> (Up, Bot) {
    let bot = fake.bot(BOT);
    let mut front = account("front", "FRONT_TOKEN", fake);
    for (key, value) in lists.as_object().unwrap() {
        front[key] = value.clone();
    }
    let mut document = with_model(mock, json!({"platforms": {"telegram": {"accounts": [front]}}}));
    for (key, value) in more.as_object().unwrap() {
        document[key] = value.clone();
    }
    (start(&document, &[("FRONT_TOKEN", BOT)]), bot)
}

/// Somebody's chat with the bot, in which every message has an answer.
struct Chat<'a> {
    bot: &'a Bot,
    id: i64,
    user: i64,
    seen: usize,
}

impl<'a> Chat<'a> {
    fn new(bot: &'a Bot, id: i64, user: i64) -> Self {
        Self { bot, id, user, seen: 0 }
    }

    /// Says it and waits for the answer.
    async fn say(&mut self, text: &str) -> String {
        self.bot.push_text(self.id, self.user, text);
        self.hear().await
    }

    /// Waits for one more message.
    async fn hear(&mut self) -> String {
        self.seen += 1;
        texts(self.bot, self.id, self.seen).await.pop().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_answered_once_and_are_not_for_the_agent() {
    let fake = FakeTelegram::start().await.unwrap();
    let (mock, asked) = recording().await;
    let (up, bot) = with_bot(&fake, &mock, &json!({}), &json!({"agents": {"coder": {"model": "builtin/echo"}}}));
    let mut chat = Chat::new(&bot, 1, 1);

    assert!(chat.say("/help").await.contains("\n/new [title] - "));
    assert!(chat.say("/Commands 2").await.starts_with("Commands, page 2 of 3:"));
    assert_eq!(chat.say("/statsu").await, "I know no command /statsu. Did you mean /status? /help says what there is.");
    assert!(chat.say("/whoami").await.contains("id 1) on telegram, in chat 1 (dm). You may use every command here."));
    assert!(chat.say("/status").await.starts_with("There is no conversation here yet."));
    assert_eq!(chat.say("/agents").await, "Agents:\ncoder: builtin/echo\nmain: mock/mock-1 (answers here)");
    assert_eq!(chat.say("/queue").await, "Write the message behind the command: /queue <text>");
    assert!(chat.say("/sethome").await.starts_with("This chat is the home of main"));
    // A client sends this when somebody opens a bot; a path is no command.
    bot.push_text(1, 1, "/start");
    assert_eq!(chat.say("/etc/hosts is what?").await, "re /etc/hosts is what?");

    // A command that comes again, at once and much later, acts and answers once.
    let update = bot.push_text(1, 1, "/title one");
    bot.duplicate(update);
    assert_eq!(chat.hear().await, "This conversation is called: one");
    assert_eq!(chat.say("/title two").await, "This conversation is called: two");
    let sender = json!({"id": 1, "is_bot": false, "first_name": "User 1"});
    let here = json!({"id": 1, "type": "private", "first_name": "User 1"});
    bot.push_again(
        json!({"message": {"message_id": 9, "date": 1, "chat": here, "from": sender, "text": "/title one"}}),
        update,
    );
    let status = chat.say("/status").await;
    for line in ["\nTitle: two", "\nAgent: main", "\nModel: mock/mock-1", "\nMessages: 1", "\nNow: nothing to do"] {
        assert!(status.contains(line), "{status}");
    }
    assert!(chat.say("/usage").await.starts_with("This conversation: 1 answers, "));
    assert_eq!(asked.lock().unwrap().len(), 1, "{asked:?}");

    // A gateway's commands are answered to it; what it writes otherwise is for the agent.
    let grpc = up.grpc();
    let source =
        v1::Source { platform: "irc".into(), chat_id: "x".into(), chat_type: "dm".into(), ..v1::Source::default() };
    let send = async |text: &str| {
        let request =
            v1::SubmitRequest { source: Some(source.clone()), text: text.into(), ..v1::SubmitRequest::default() };
        grpc.messages().submit(request).await.unwrap().into_inner()
    };
    let answer = send("/title irc").await;
    assert_eq!((answer.notice.as_str(), answer.turn.as_str()), ("This conversation is called: irc", ""));
    assert!(!send("/no-command-of-ours").await.turn.is_empty());
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_undone_or_answered_again_is_not_shown_to_the_model() {
    let fake = FakeTelegram::start().await.unwrap();
    let (mock, asked) = recording().await;
    let (up, bot) = with_bot(&fake, &mock, &json!({}), &json!({}));
    let mut chat = Chat::new(&bot, 1, 1);

    for text in ["one", "two", "three"] {
        assert_eq!(chat.say(text).await, format!("re {text}"));
    }
    assert_eq!(last(&asked), ["one", "re one", "two", "re two", "three"]);
    // The worker has all of it in its memory.
    assert_eq!(chat.say("/undo 2").await, "Forgotten: 2 exchanges, from: two");
    chat.say("four").await;
    assert_eq!(last(&asked), ["one", "re one", "four"]);
    assert_eq!(chat.say("/retry").await, "re four");
    assert_eq!(last(&asked), ["one", "re one", "four"]);
    chat.say("five").await;
    assert_eq!(last(&asked), ["one", "re one", "four", "re four", "five"]);
    assert_eq!(chat.say("/undo 99").await, "Forgotten: 3 exchanges, from: one");
    assert_eq!(chat.say("/undo").await, "There is nothing to forget.");
    assert!(chat.say("/undo all").await.contains("as a number"));
    chat.say("six").await;
    assert_eq!(last(&asked), ["six"]);
    // What is forgotten stays for people who look.
    let session = up.json(["session", "list"])[0]["session_id"].as_str().unwrap().to_owned();
    let shown = up.json(["session", "show", &session]);
    assert_eq!(shown["transcript"].as_array().unwrap().len(), 7);
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_begin_anew_and_are_gone_back_to() {
    let fake = FakeTelegram::start().await.unwrap();
    let (mock, asked) = recording().await;
    let (up, bot) = with_bot(&fake, &mock, &json!({}), &json!({}));
    let mut chat = Chat::new(&bot, 1, 1);

    chat.say("one").await;
    chat.say("/title first").await;
    assert_eq!(chat.say("/new").await, "A new conversation begins.");
    chat.say("two").await;
    assert_eq!(last(&asked), ["two"]);
    assert_eq!(chat.say("/reset third").await, "A new conversation begins.");
    let listed = chat.say("/sessions").await;
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[1].starts_with("1. third (s") && lines[1].ends_with(" (this one)"), "{listed}");
    assert!(lines[2].starts_with("2. two (s") && lines[3].starts_with("3. first (s"), "{listed}");
    assert!(chat.say("/resume 3").await.starts_with("Back in first (s"));
    chat.say("more").await;
    assert_eq!(last(&asked), ["one", "re one", "more"]);
    assert!(chat.say("/resume nothing like it").await.starts_with("I find no such conversation."));

    // Somebody else's conversations are not there.
    let mut other = Chat::new(&bot, 2, 2);
    assert_eq!(other.say("/sessions").await, "There is no conversation here yet.");
    assert!(other.say("/resume s1").await.starts_with("I find no such conversation."));

    // What runs is stopped, and what is new does not wait for it for long.
    mock.script([Behaviour::Held]);
    bot.push_text(1, 1, "never answered");
    until(SOON, "the model's request", || (mock.requests() >= 4).then_some(()));
    bot.push_text(1, 1, "/new");
    chat.seen += 2;
    let mut said = texts(&bot, 1, chat.seen).await.split_off(chat.seen - 2);
    said.sort();
    assert_eq!(said, ["A new conversation begins. I am stopping what I was doing.", "Stopped."]);
    chat.say("seven").await;
    assert_eq!(last(&asked), ["seven"]);
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_has_a_model_of_its_own() {
    let fake = FakeTelegram::start().await.unwrap();
    let ((mock, asked), (other, others)) = (recording().await, recording().await);
    let providers = json!({"providers": {
        "mock": {"kind": "openai", "base_url": mock.base_url()},
        "other": {"kind": "openai", "base_url": other.base_url()},
    }});
    let (up, bot) = with_bot(&fake, &mock, &json!({}), &providers);
    let mut chat = Chat::new(&bot, 1, 1);

    assert_eq!(chat.say("/model").await, "The model is mock/mock-1, as the agent has it.");
    assert!(chat.say("/model nobody/m").await.contains("no provider is configured for nobody/m"));
    let set = "The model of this conversation is other/m2. /model --reset goes back to mock/mock-1.";
    assert_eq!(chat.say("/model other/m2").await, set);
    chat.say("one").await;
    chat.say("two").await;
    assert_eq!(others.lock().unwrap().len(), 2);
    assert_eq!(others.lock().unwrap()[0].0, "m2");
    assert!(chat.say("/status").await.contains("\nModel: other/m2\n"));
    // Others have theirs.
    Chat::new(&bot, 2, 2).say("hello").await;
    assert_eq!(asked.lock().unwrap().len(), 1);
    assert_eq!(chat.say("/model --reset").await, "The model is mock/mock-1, as the agent has it.");
    chat.say("three").await;
    assert_eq!(last(&asked), ["one", "re one", "two", "re two", "three"]);
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_listed_gets_one_sentence_and_no_effect() {
    let fake = FakeTelegram::start().await.unwrap();
    let (mock, asked) = recording().await;
    let lists = json!({"group_allow_admin_from": "9", "group_user_allowed_commands": ["/status"]});
    let (up, bot) = with_bot(&fake, &mock, &lists, &json!({"group_sessions_per_user": false}));
    let (mut guest, mut admin) = (Chat::new(&bot, -5, 1), Chat::new(&bot, -5, 9));

    guest.say("one").await;
    assert_eq!(guest.say("/new@hermes_bot").await, "You may not use /new here. /help says what you may.");
    assert!(guest.say("/whoami").await.ends_with("You may use /help, /whoami, /status, /approve, /deny."));
    assert!(!guest.say("/help").await.contains("/new"));
    assert!(guest.say("/status").await.contains("\nMessages: 1"));
    guest.say("two").await;
    assert!(last(&asked)[0].ends_with("one"), "nothing was ended: {asked:?}");
    admin.seen = guest.seen;
    assert_eq!(admin.say("/new").await, "A new conversation begins.");
    admin.say("three").await;
    assert_eq!(last(&asked).len(), 1);
    // Direct chats are another scope.
    let mut direct = Chat::new(&bot, 1, 1);
    assert_eq!(direct.say("/new").await, "A new conversation begins.");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_waits_is_offered_or_runs_beside_as_its_command_says() {
    let fake = FakeTelegram::start().await.unwrap();
    let (mock, asked) = recording().await;
    // What is not said otherwise interrupts.
    let busy = json!({"busy": {"mode": "interrupt", "notice": false}});
    let (up, bot) = with_bot(&fake, &mock, &json!({}), &busy);
    let mut chat = Chat::new(&bot, 1, 1);

    mock.script([Behaviour::Held]);
    bot.push_text(1, 1, "one");
    until(SOON, "the model's request", || (mock.requests() >= 1).then_some(()));
    assert_eq!(chat.say("/queue two").await, "I am still busy with your last message; this one is next.");
    assert_eq!(chat.say("/bg three").await, "re three");
    assert_eq!(last(&asked), ["three"], "it runs beside the other one, and alone");
    // One notice in half a minute; what is offered is answered in any case.
    bot.push_text(1, 1, "/steer four");
    let retried = chat.say("/retry").await;
    assert!(retried.starts_with("I am still busy with your last message."), "{retried}");
    mock.release(1);
    assert!(chat.hear().await.starts_with("one"));
    assert_eq!(chat.hear().await, "re two");
    assert_eq!(chat.hear().await, "re four");
    let said: Vec<String> =
        last(&asked).into_iter().filter(|said| ["one", "two", "three", "four"].contains(&said.as_str())).collect();
    assert_eq!(said, ["one", "two", "four"]);
    assert!(chat.say("/sessions").await.lines().count() == 3, "what ran beside it is not of this conversation");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_keeps_is_shown_to_who_may_see_it() {
    let fake = FakeTelegram::start().await.unwrap();
    let (mock, asked) = recording().await;
    let lists = json!({"allow_admin_from": ["1"], "user_allowed_commands": ["skills"]});
    let (up, bot) = with_bot(&fake, &mock, &lists, &json!({}));
    let (mut chat, mut other) = (Chat::new(&bot, 1, 1), Chat::new(&bot, 2, 2));
    assert_eq!(chat.say("/skills").await, "I have no skills yet.");
    let write = |path: &str, text: &str| {
        let file = up.file("document", text);
        up.ctl(["agent", "edit", "main", path, "--from", file.to_str().unwrap()]).ok();
    };
    write("memories/MEMORY.md", "The build takes long.\n§\nUse make -j2.");
    write("memories/USER.md", "Ada likes short answers.");
    write("skills/ops/deploy/SKILL.md", "---\nname: deploy\ndescription: How to deploy\n---\nFirst, breathe.\n");

    let said = chat.say("/memory").await;
    assert!(said.contains("(1% — 37/2,200 chars):\n1. The build takes long.\n2. Use make -j2.\n"), "{said}");
    assert!(said.ends_with("chars):\n1. Ada likes short answers."), "{said}");
    assert!(chat.say("/memory remove 1").await.starts_with("/memory only shows"));
    assert_eq!(chat.say("/skills").await, "Skills (1):\nops/deploy: How to deploy\n/skills <name> shows one.");
    assert_eq!(chat.say("/skills deploy").await, "ops/deploy: How to deploy\n\nFirst, breathe.");
    // Another one may what the lists say.
    assert_eq!(other.say("/memory").await, "You may not use /memory here. /help says what you may.");
    assert!(other.say("/skills").await.starts_with("Skills (1):"));
    let help = other.say("/help").await;
    assert!(help.contains("\n/skills [name] - ") && !help.contains("/memory"), "{help}");
    assert!(asked.lock().unwrap().is_empty(), "no model was asked");
    stop(up);
}
