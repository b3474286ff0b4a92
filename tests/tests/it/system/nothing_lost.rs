//! `up` is killed in the middle of 200 messages to 20 chats, and nobody can tell from the replies.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use hermes_proto::v1;
use hermes_tests::fake_telegram::FakeTelegram;
use hermes_tests::mock_model::{Behaviour, MockModel};
use hermes_tests::system::{Grpc, Options, Up};
use serde_json::json;
use tonic::Code;

const CHATS: i64 = 20;
const PER_CHAT: i64 = 10;
const BOT: &str = "700:the-secret-of-the-bot";
/// For all of it, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Slow enough that turns are under way whenever `up` is killed.
async fn model() -> MockModel {
    let model = MockModel::start().await.unwrap();
    model.otherwise(Behaviour::Delay(Duration::from_millis(30)));
    model
}

#[tokio::test(flavor = "multi_thread")]
async fn over_telegram_each_chat_gets_each_reply_once_and_in_order() {
    let (model, telegram) = (model().await, FakeTelegram::start().await.unwrap());
    let bot = telegram.bot(BOT);
    let mut document = super::model_document(&model);
    document["platforms"] = json!({"telegram": {"accounts": [
        {"id": "bot", "token_env": "BOT_TOKEN", "api_base": telegram.base(), "allow_all": true, "rate": "off"},
    ]}});
    let env = vec![("BOT_TOKEN".to_owned(), BOT.into())];
    let mut up = Up::start(Options { env, ..Options::config(document.to_string()) });

    let push = |range: std::ops::Range<i64>| {
        for number in range {
            for chat in 1..=CHATS {
                bot.push_text(chat, chat, &format!("<{chat}:{number}>"));
            }
        }
    };
    push(0..PER_CHAT / 2);
    // Some are answered, some run, some are not even fetched.
    assert!(bot.wait_until(LIMIT, |bot| bot.deliveries().len() >= 30).await, "{}", up.log_tail());
    up.kill9();
    assert!(bot.deliveries().len() < 100, "it was too fast to be killed in the middle");
    push(PER_CHAT / 2..PER_CHAT);
    up.restart();

    for chat in 1..=CHATS {
        let count = usize::try_from(PER_CHAT).unwrap();
        if let Err(got) = bot.wait_for(chat, count, LIMIT).await {
            panic!("chat {chat} got only {got:?}\n{}", up.log_tail());
        }
    }
    // A copy would come before the answer to a later message of its chat.
    for chat in 1..=CHATS {
        bot.push_text(chat, chat, &format!("<{chat}:end>"));
    }
    for chat in 1..=CHATS {
        let ends = |bot: &hermes_tests::fake_telegram::Bot| {
            bot.delivered(chat).last().is_some_and(|last| last.text.starts_with(&format!("<{chat}:end>")))
        };
        assert!(bot.wait_until(LIMIT, ends).await, "chat {chat} has no end: {:?}", bot.delivered(chat));
        // Telegram has no keys to send once: the one delivery of a chat that was under way at the kill is sent again, and
        // says that it may be a copy.
        let said: Vec<_> = bot.delivered(chat).into_iter().map(|delivery| delivery.text).collect();
        let tag = |text: &str| text.get(text.find('<')?..=text.find('>')?).map(str::to_owned);
        let marked = |text: &str| !text.starts_with('<');
        assert!(said.iter().filter(|text| marked(text)).count() <= 1, "chat {chat}: {said:?}");
        let mut tags: Vec<String> = Vec::new();
        for text in &said {
            let tag = tag(text).unwrap();
            if !(marked(text) && tags.last() == Some(&tag)) {
                tags.push(tag);
            }
        }
        let numbers = (0..PER_CHAT).map(|number| number.to_string()).chain(["end".to_owned()]);
        let expected: Vec<_> = numbers.map(|number| format!("<{chat}:{number}>")).collect();
        assert_eq!(tags, expected, "chat {chat}: {said:?}");
    }
}

/// Submits until somebody says that it is kept.
async fn submit(up: &Mutex<Grpc>, chat: i64, number: i64) -> v1::SubmitResponse {
    let request = v1::SubmitRequest {
        source: Some(v1::Source { platform: "gateway".into(), chat_id: chat.to_string(), ..v1::Source::default() }),
        text: format!("<{chat}:{number}>"),
        dedupe_key: Some(format!("{chat}-{number}")),
        ..v1::SubmitRequest::default()
    };
    loop {
        let mut client = up.lock().unwrap().messages();
        match client.submit(request.clone()).await {
            Ok(answer) => return answer.into_inner(),
            Err(status) => {
                let again = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::DeadlineExceeded];
                assert!(again.contains(&status.code()), "{status:?}");
                tokio::task::yield_now().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_grpc_with_dedupe_keys_each_message_is_one_turn_in_order() {
    let model = model().await;
    let mut up = super::with_model(&model);
    let grpc = Mutex::new(up.grpc());
    let mut turns: HashMap<i64, Vec<v1::SubmitResponse>> = HashMap::new();
    for number in 0..PER_CHAT / 2 {
        for chat in 1..=CHATS {
            turns.entry(chat).or_default().push(submit(&grpc, chat, number).await);
        }
    }
    // The last ones of before are repeated after the start, as a gateway does that missed the answer.
    up.kill9();
    up.restart();
    *grpc.lock().unwrap() = up.grpc();
    for number in PER_CHAT / 2 - 1..PER_CHAT {
        for chat in 1..=CHATS {
            let answer = submit(&grpc, chat, number).await;
            let known = turns.entry(chat).or_default();
            if number < PER_CHAT / 2 {
                assert!(answer.duplicate, "{answer:?}");
                assert_eq!(known.last().map(|turn| &turn.turn), Some(&answer.turn));
            } else {
                known.push(answer);
            }
        }
    }
    let mut client = grpc.lock().unwrap().messages();
    for (chat, turns) in &turns {
        let mut ids: Vec<_> = turns.iter().map(|turn| turn.turn.as_str()).collect();
        for (number, turn) in turns.iter().enumerate() {
            let request = v1::GetTurnRequest { turn: turn.turn.clone(), wait: true };
            let answer = tokio::time::timeout(LIMIT, client.get_turn(request)).await.unwrap().unwrap().into_inner();
            let ended = answer.ended.unwrap();
            assert_eq!(ended.state(), v1::TurnState::Succeeded, "{ended:?}");
            assert!(ended.reply.starts_with(&format!("<{chat}:{number}>")), "{}", ended.reply);
        }
        let session = up.json(["session", "show", &turns[0].session_id]);
        let transcript = session["transcript"].as_array().unwrap();
        let inputs: Vec<_> = transcript.iter().map(|turn| turn["input"].as_str().unwrap().to_owned()).collect();
        let expected: Vec<_> = (0..PER_CHAT).map(|number| format!("<{chat}:{number}>")).collect();
        assert_eq!(inputs, expected, "in the order accepted, each once");
        ids.dedup();
        assert_eq!(ids.len(), expected.len());
    }
}
