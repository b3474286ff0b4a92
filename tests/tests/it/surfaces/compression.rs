//! Long conversations, end to end: summed up by the model when they outgrow what it is given, and when somebody asks for it; nothing of what
//! was said is lost.

use std::sync::{Arc, Mutex};

use hermes_proto::v1;
use hermes_tests::fake_telegram::FakeTelegram;
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{SOON, account, start, stop, texts, with_model};

/// How the question for a summary begins.
const SUM_UP: &str = "You sum up a conversation";
/// How a summary is told of.
const SUMMARY: &str = "[A summary of what was said earlier";

fn content(message: &Value) -> &str {
    message["content"].as_str().unwrap_or_default()
}

/// The number in `message N`, where the text has one.
fn number(text: &str) -> Option<u64> {
    text.rsplit_once("message ")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// What is wrong with what the model is told before `message N`: it is to be told of all messages once and in order, of the first ones by a
/// summary that says up to which.
fn fault(messages: &[Value]) -> Option<String> {
    let said: Vec<&str> = messages.iter().filter(|message| message["role"] != "system").map(content).collect();
    let (last, before) = said.split_last()?;
    let (mut next, before) = match before {
        [summary, _, rest @ ..] if summary.starts_with(SUMMARY) => (number(summary)? + 1, rest),
        all => (1, all),
    };
    for exchange in before.chunks(2) {
        let expected = [format!("message {next}"), format!("re message {next}")];
        if !(exchange.len() == 2 && exchange.iter().zip(&expected).all(|(text, start)| text.starts_with(start))) {
            return Some(format!("{expected:?} is not {exchange:?}"));
        }
        next += 1;
    }
    (number(last) != Some(next)).then(|| format!("{last} follows message {}", next - 1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_turns_are_one_conversation() {
    const TURNS: u64 = 500;
    let mock = MockModel::start().await.unwrap();
    let (faults, summaries) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
    let (seen, counted) = (faults.clone(), summaries.clone());
    mock.respond(move |body| {
        let messages = body["messages"].as_array().unwrap();
        let last = messages.last().unwrap();
        if content(&messages[0]).starts_with(SUM_UP) {
            *counted.lock().unwrap() += 1;
            return Behaviour::Say(format!("All went well up to message {}", number(content(last)).unwrap()));
        }
        if last["role"] == "tool" {
            return Behaviour::Say(content(last).to_owned());
        }
        if content(last) == "what was the word?" {
            let call = Call::new("look", "session_search", r#"{"query": "marmalade"}"#);
            return Behaviour::Ask(String::new(), vec![call]);
        }
        seen.lock().unwrap().extend(fault(messages));
        Behaviour::Say(format!("re {}", content(last).split(':').next().unwrap()))
    });
    let document = with_model(&mock, json!({"limits": {"history_bytes": 6000}}));
    let up = start(&document, &[]);
    let grpc = up.grpc();
    let send = async |text: String| {
        let source = v1::Source { platform: "irc".into(), chat_id: "long".into(), ..v1::Source::default() };
        let request = v1::SubmitRequest { source: Some(source), text, ..v1::SubmitRequest::default() };
        let turn = grpc.messages().submit(request).await.unwrap().into_inner().turn;
        let request = v1::GetTurnRequest { turn: turn.clone(), wait: true };
        let ended = tokio::time::timeout(SOON, grpc.messages().get_turn(request)).await.expect("it ends");
        (turn, ended.unwrap().into_inner().ended.unwrap().reply)
    };
    let mut session = String::new();
    for turn in 1..=TURNS {
        let more =
            if turn == 7 { "the word is marmalade" } else { "and so on and on, as people talk about this and that" };
        let (id, reply) = send(format!("message {turn}: {more}")).await;
        assert_eq!(reply, format!("re message {turn}"));
        session = format!("s{}", id.trim_start_matches('t').split('.').next().unwrap());
        // Another worker knows nothing but what is stored.
        if turn == TURNS / 2 {
            let worker = up.json(["worker", "list"])[0]["pid"].as_i64().unwrap();
            kill(Pid::from_raw(i32::try_from(worker).unwrap()), Signal::SIGKILL).unwrap();
        }
    }
    assert_eq!(*faults.lock().unwrap(), [""; 0]);
    let summed_up = *summaries.lock().unwrap();
    assert!((5..=50).contains(&summed_up), "{summed_up} summaries");
    // What was summed up is still there, for people and for the agent.
    let (_, found) = send("what was the word?".to_owned()).await;
    assert!(found.contains("the word is **marmalade**"), "{found}");
    let shown = up.json(["session", "show", &session]);
    let said: Vec<&str> =
        shown["transcript"].as_array().unwrap().iter().filter_map(|turn| turn["input"].as_str()).collect();
    assert_eq!(said.len(), 501, "{shown}");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_is_summed_up_when_somebody_asks_and_that_can_be_undone() {
    let (fake, mock) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let asked = Arc::new(Mutex::new(Vec::<Vec<String>>::new()));
    let record = asked.clone();
    mock.respond(move |body| {
        let said: Vec<String> =
            body["messages"].as_array().unwrap().iter().map(|message| content(message).to_owned()).collect();
        let last = said.last().cloned().unwrap();
        let is_summary = said[0].starts_with(SUM_UP);
        record.lock().unwrap().push(said);
        Behaviour::Say(if is_summary { "They counted.".to_owned() } else { format!("re {last}") })
    });
    let bot = fake.bot("770:compress-secret");
    let document = json!({"platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", &fake)]}}});
    let up = start(&with_model(&mock, document), &[("FRONT_TOKEN", "770:compress-secret")]);
    let mut seen = 0;
    let mut say = async |text: &str| {
        bot.push_text(1, 1, text);
        seen += 1;
        texts(&bot, 1, seen).await.pop().unwrap()
    };
    assert_eq!(say("/compress").await, "There is nothing to sum up yet.");
    for text in ["one", "two", "three"] {
        say(text).await;
    }
    assert_eq!(say("/compress").await, "There is nothing to sum up: the last 3 exchanges stay as they are.");
    assert!(say("/compress --force").await.starts_with("There is no --force."));
    assert!(say("/compress --preview").await.starts_with("There is nothing to sum up:"));
    let done = say("/compress here 1").await;
    assert!(
        done.starts_with("I summed up 2 exchanges: ") && done.contains("the last exchange stays as it is."),
        "{done}"
    );
    say("four").await;
    let last = || asked.lock().unwrap().last().unwrap()[1..].to_vec();
    let told = last();
    assert!(told[0].starts_with(SUMMARY) && told[0].ends_with("They counted."), "{told:?}");
    assert_eq!(told[2..], ["three", "re three", "four"]);
    // It goes with the turn that made it, and all is as it was.
    assert!(say("/undo 2").await.contains("/compress here 1"));
    say("five").await;
    assert_eq!(last(), ["one", "re one", "two", "re two", "three", "re three", "five"]);
    stop(up);
}
