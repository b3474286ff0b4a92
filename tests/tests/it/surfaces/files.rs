//! Files that come with messages, end to end: from the chat, the command line and the HTTP API to the agent's workspace and its model.

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hermes_tests::fake_telegram::{Bot, FakeTelegram, Fault};
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use hermes_tests::system::{Up, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{SOON, account, http, start, stop, texts, with_model};

const BOT: &str = "800:files-secret";

/// A picture of so many bytes, by its first ones.
fn picture(bytes: usize) -> Vec<u8> {
    let mut content = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    content.resize(bytes, 0x5a);
    content
}

fn send(bot: &Bot, chat: i64, more: Value) {
    let mut message =
        json!({"chat": {"id": chat, "type": "private"}, "from": {"id": chat, "is_bot": false, "first_name": "Ann"}});
    message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    bot.push_message(message);
}

fn home(up: &Up, agent: &str) -> PathBuf {
    PathBuf::from(up.json(["agent", "show", agent])["home"].as_str().unwrap())
}

/// The content of the last user message that the model was sent.
fn told(model: &MockModel) -> Value {
    let asked = model.last().json();
    asked["messages"].as_array().unwrap().iter().rfind(|message| message["role"] == "user").unwrap()["content"].clone()
}

/// The hashes of the pictures in it.
fn pictures(content: &Value) -> Vec<String> {
    let urls = content.as_array().into_iter().flatten().filter_map(|part| part["image_url"]["url"].as_str());
    urls.map(|url| hash(&STANDARD.decode(url.strip_prefix("data:image/png;base64,").unwrap()).unwrap())).collect()
}

fn hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_reaches_the_model_and_the_workspace_though_the_worker_is_killed_meanwhile() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let bot = fake.bot(BOT);
    let document = json!({"platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", &fake)]}}});
    let up = start(&with_model(&model, document), &[("FRONT_TOKEN", BOT)]);
    let content = picture(700_000);
    bot.put_file("photo-1", content.clone());
    // The first attempt hangs in its model call and loses its worker.
    model.script([Behaviour::HangBeforeHeaders, Behaviour::Say("a harbour".to_owned())]);
    send(
        &bot,
        1,
        json!({"caption": "what is it?", "photo": [{"file_id": "small", "file_size": 90}, {"file_id": "photo-1", "file_size": 700_000}]}),
    );
    until(SOON, "the first attempt", || (model.requests() == 1).then_some(()));
    assert_eq!(pictures(&told(&model)), [hash(&content)]);
    let pid = up.json(["worker", "list"])[0]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(texts(&bot, 1, 1).await, ["a harbour"]);
    let content_told = told(&model);
    assert_eq!(pictures(&content_told), [hash(&content)]);
    let text = content_told[0]["text"].as_str().unwrap();
    let path = text.strip_suffix(']').unwrap().rsplit_once("workspace at ").unwrap().1;
    assert!(text.starts_with("what is it?\n[The user sent a picture: photo.jpg (image/png, 700000 bytes)."), "{text}");
    assert_eq!(hash(&fs::read(home(&up, "main").join("workspace").join(path)).unwrap()), hash(&content));
    // Later turns know of it, and are not shown it again.
    model.script([Behaviour::Say("still a harbour".to_owned())]);
    bot.push_text(1, 1, "sure?");
    assert_eq!(texts(&bot, 1, 2).await[1], "still a harbour");
    let asked = model.last().json().to_string();
    assert!(asked.contains("photo.jpg (image/png") && !asked.contains("base64"), "{asked}");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_does_not_see_is_asked_without_the_picture() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let bot = fake.bot(BOT);
    let document = json!({"platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", &fake)]}}});
    let up = start(&with_model(&model, document), &[("FRONT_TOKEN", BOT)]);
    bot.put_file("photo", picture(1_000));
    model.respond(|body| match body.to_string().contains("image_url") {
        true => Behaviour::Status(400, None),
        false => Behaviour::Say("I cannot see, but it is there".to_owned()),
    });
    send(&bot, 1, json!({"photo": [{"file_id": "photo"}]}));
    assert_eq!(texts(&bot, 1, 1).await, ["I cannot see, but it is there"]);
    let content = told(&model);
    let text = content.as_str().unwrap();
    assert!(
        text.starts_with("[The user sent a picture: photo.jpg")
            && text.ends_with("\n[You cannot see pictures, so they are not shown to you.]"),
        "{text}"
    );
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_is_read_with_the_agents_tools_and_what_cannot_be_fetched_is_said() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let bot = fake.bot(BOT);
    let document = json!({"platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", &fake)]}}});
    let up = start(&with_model(&model, document), &[("FRONT_TOKEN", BOT)]);
    // Reads the file that the message names, and says what it read; else what it was told.
    model.respond(|body| {
        let last = body["messages"].as_array().unwrap().last().unwrap().clone();
        let text = last["content"].as_str().unwrap_or_default();
        match text.strip_suffix(']').and_then(|text| text.rsplit_once("workspace at ")) {
            Some((_, path)) if last["role"] == "user" => {
                let arguments = json!({"path": path}).to_string();
                Behaviour::Ask(String::new(), vec![Call::new("call-1", "read_file", &arguments)])
            }
            _ => Behaviour::Say(text.to_owned()),
        }
    });
    bot.put_file("doc", "The harbour is east.\n");
    bot.fail("getFile", 1, Fault::flood(1));
    bot.fail("file", 1, Fault::CutMidResponse);
    send(
        &bot,
        1,
        json!({"caption": "read", "document": {"file_id": "doc", "file_name": "../../.bash\u{202e}rc", "mime_type": "image/png"}}),
    );
    let heard = texts(&bot, 1, 1).await;
    assert!(heard[0].contains("The harbour is east."), "{heard:?}");
    let inbox: Vec<String> = fs::read_dir(home(&up, "main").join("workspace/inbox"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(inbox.len() == 1 && inbox[0].ends_with("-bash_rc"), "{inbox:?}");

    // Too large, gone, and refused again and again: the message comes all the same, and so do those of others behind it.
    send(&bot, 1, json!({"caption": "large", "document": {"file_id": "large", "file_size": 30_000_000}}));
    send(&bot, 1, json!({"voice": {"file_id": "gone"}}));
    bot.push_text(2, 2, "next");
    let heard = texts(&bot, 1, 3).await;
    assert_eq!(
        heard[1],
        "large\n[The user sent a file that could not be fetched: it is larger than the 20 MiB that a bot may fetch]"
    );
    assert_eq!(heard[2], "[The user sent a voice message that could not be fetched: Telegram does not give it]");
    assert_eq!(texts(&bot, 2, 1).await, ["next"]);
    assert!(!up.log_tail().contains("files-secret"));
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_come_by_the_command_line_and_the_api_and_only_to_whom_they_were_sent() {
    let model = MockModel::start().await.unwrap();
    let mut document = with_model(&model, json!({}));
    document["agents"] = json!({"other": {}});
    let up = start(&document, &[]);
    let (one, two) = (up.file("one.png", picture(2_000)), up.file("notes.txt", "some words"));
    let args = [
        "send",
        "--platform",
        "irc",
        "--chat-id",
        "1",
        "--wait",
        "--attach",
        one.to_str().unwrap(),
        "--attach",
        two.to_str().unwrap(),
    ];
    up.json(args);
    let content = told(&model);
    assert_eq!(pictures(&content), [hash(&picture(2_000))]);
    let text = content[0]["text"].as_str().unwrap();
    assert!(
        text.contains("one.png (image/png, 2000 bytes)") && text.contains("notes.txt (text/plain, 10 bytes)"),
        "{text}"
    );
    let inbox = |agent: &str| fs::read_dir(home(&up, agent).join("workspace/inbox")).map_or(0, Iterator::count);
    assert_eq!((inbox("main"), inbox("other")), (2, 0));
    let empty = up.file("empty", "");
    let refused = up.ctl(["send", "--platform", "irc", "--chat-id", "1", "--attach", empty.to_str().unwrap()]);
    assert!(refused.code == Some(1) && refused.err.contains("a file has 1 to 20971520 bytes"), "{refused:?}");

    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = up.json(["token", "create", "--role", "api", "--name", "files"])["token"].as_str().unwrap().to_owned();
    let ask = async |part: Value| {
        let body = json!({"model": "other", "messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, part]}]});
        let url = format!("{}/v1/chat/completions", http(&up));
        let answer = reqwest::Client::new().post(url).bearer_auth(&key).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let url = format!("data:image/png;base64,{}", STANDARD.encode(picture(3_000)));
    let (status, body) = ask(json!({"type": "image_url", "image_url": {"url": url}})).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(pictures(&told(&model)), [hash(&picture(3_000))]);
    assert_eq!((inbox("main"), inbox("other")), (2, 1));
    for (part, why) in [
        (json!({"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}), "addresses are not fetched"),
        (json!({"type": "file", "file": {"file_data": "%%%"}}), "file is no base64"),
        (json!({"type": "input_audio", "input_audio": {}}), "input_audio holds no data"),
    ] {
        let (status, body) = ask(part).await;
        assert!(status == 400 && body.contains(why) && body.contains("messages[0].content[1]"), "{status} {body}");
    }
    stop(up);
}

/// Sound of so many bytes, by its first ones.
fn sound(bytes: usize) -> Vec<u8> {
    let mut content = b"RIFF\x24\0\0\0WAVEfmt ".to_vec();
    content.resize(bytes, 0x5a);
    content
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_hears_what_was_said_and_one_that_cannot_is_asked_without_once() {
    let model = MockModel::start().await.unwrap();
    let mut document = with_model(&model, json!({}));
    document["agents"] = json!({"deaf": {"model": "mock/deaf-1"}});
    let up = start(&document, &[]);
    model.respond(|body| {
        let last = body["messages"].as_array().unwrap().last().unwrap().clone();
        if body["model"] == "deaf-1" && body.to_string().contains("input_audio") {
            Behaviour::Status(400, None)
        } else if last["role"] == "user" {
            Behaviour::Ask(String::new(), vec![Call::new("call-1", "todo", "{}")])
        } else {
            Behaviour::Say("done".to_owned())
        }
    });
    let note = up.file("note.wav", sound(3_000));
    let send = |agent: &str| {
        let note = note.to_str().unwrap();
        up.json(["send", "--platform", "irc", "--chat-id", "1", "--agent", agent, "--wait", "--attach", note]);
        told(&model)
    };
    let content = send("main");
    let audio = &content[1]["input_audio"];
    let heard = STANDARD.decode(audio["data"].as_str().unwrap()).unwrap();
    assert_eq!((hash(&heard), audio["format"].as_str()), (hash(&sound(3_000)), Some("wav")));
    let text = content[0]["text"].as_str().unwrap();
    assert!(text.starts_with("[The user sent an audio file: note.wav (audio/x-wav, 3000 bytes). It is in"), "{text}");
    assert_eq!(model.requests(), 2);
    let content = send("deaf");
    let text = content.as_str().unwrap();
    assert!(
        text.starts_with("[The user sent an audio file: note.wav")
            && text.ends_with("\n[You cannot hear audio, so it is not played to you.]"),
        "{text}"
    );
    assert_eq!(model.requests(), 5, "the first step was refused once, the second did not try");
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_is_read_once_for_all_steps_of_its_turn() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let bot = fake.bot(BOT);
    let document = json!({"platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", &fake)]}}});
    let up = start(&with_model(&model, document), &[("FRONT_TOKEN", BOT)]);
    bot.put_file("photo", picture(1_000));
    let wait = json!({"command": "until [ -e go ]; do sleep 0.05; done"}).to_string();
    model.script([
        Behaviour::Ask(String::new(), vec![Call::new("call-1", "terminal", &wait)]),
        Behaviour::Say("the same".to_owned()),
    ]);
    send(&bot, 1, json!({"photo": [{"file_id": "photo"}]}));
    until(SOON, "the first step", || (model.requests() == 1).then_some(()));
    // The file is not there any more: what the turn has is all there is.
    up.sql("DELETE FROM hermes.blobs");
    fs::write(home(&up, "main").join("workspace/go"), "").unwrap();
    assert_eq!(texts(&bot, 1, 1).await, ["the same"]);
    assert_eq!((model.requests(), pictures(&told(&model))), (2, vec![hash(&picture(1_000))]));
    stop(up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_the_workspace_are_sent_and_no_others() {
    let (fake, model) = (FakeTelegram::start().await.unwrap(), MockModel::start().await.unwrap());
    let bot = fake.bot(BOT);
    let document = json!({"platforms": {"telegram": {"accounts": [account("front", "FRONT_TOKEN", &fake)]}}});
    let up = start(&with_model(&model, document), &[("FRONT_TOKEN", BOT)]);
    // Says what it is told; told `send …`, it sends that first.
    model.respond(|body| {
        let last = body["messages"].as_array().unwrap().last().unwrap().clone();
        let text = last["content"].as_str().unwrap_or_default();
        match text.strip_prefix("send ") {
            Some(message) if last["role"] == "user" => {
                let arguments = json!({ "message": message }).to_string();
                Behaviour::Ask(String::new(), vec![Call::new("call-1", "send_message", &arguments)])
            }
            _ if last["role"] == "tool" => Behaviour::Say("sent".to_owned()),
            _ => Behaviour::Say(text.to_owned()),
        }
    });
    bot.push_text(1, 1, "hello");
    assert_eq!(texts(&bot, 1, 1).await, ["hello"]);
    let home = home(&up, "main");
    fs::write(home.join("workspace/chart.png"), picture(4_000)).unwrap();
    fs::write(home.join("workspace/report.txt"), "all is well").unwrap();
    fs::write(home.join("secret.txt"), "canary").unwrap();
    std::os::unix::fs::symlink(home.join("secret.txt"), home.join("workspace/link.txt")).unwrap();

    // A reply: its text, then its files. The first upload is refused once, and goes on where it stopped.
    bot.fail("sendPhoto", 1, Fault::flood(1));
    bot.push_text(1, 1, "Here it is: MEDIA:chart.png and MEDIA:report.txt");
    let sent = bot.wait_for(1, 4, SOON).await.unwrap().split_off(1);
    let shown: Vec<_> =
        sent.iter().map(|one| (one.text.as_str(), one.file.as_ref().map(|file| file.sha256.clone()))).collect();
    let (chart, report) = (hash(&picture(4_000)), hash(b"all is well"));
    assert_eq!(shown, [("Here it is: and", None), ("", Some(chart.clone())), ("", Some(report.clone()))]);

    // A message from beside the reply has its first file under its text.
    bot.push_text(1, 1, "send look MEDIA:chart.png");
    let sent = bot.wait_for(1, 6, SOON).await.unwrap().split_off(4);
    let shown: Vec<_> =
        sent.iter().map(|one| (one.text.as_str(), one.file.as_ref().map(|file| file.sha256.clone()))).collect();
    assert_eq!(shown, [("look", Some(chart)), ("sent", None)]);

    // What is no file of the workspace stays where it is.
    let paths = [
        "../secret.txt".to_owned(),
        home.join("secret.txt").display().to_string(),
        "link.txt".to_owned(),
        "none.txt".to_owned(),
        "/etc/hostname.txt".to_owned(),
    ];
    for (count, path) in (7..).zip(&paths) {
        bot.push_text(1, 1, &format!("MEDIA:{path}"));
        let last = bot.wait_for(1, count, SOON).await.unwrap().pop().unwrap();
        assert_eq!(
            last.text,
            format!("[The file {path} could not be sent: it is not in the workspace, or too large.]")
        );
        assert_eq!(last.file, None);
    }
    // Nor does somebody else's, by the id of its upload.
    bot.push_text(1, 1, "send MEDIA:upload-00000000-0000-4000-8000-000000000000.png");
    let said = bot.wait_for(1, 13, SOON).await.unwrap().split_off(11);
    assert!(said[0].text.starts_with("[The file upload-") && said[0].file.is_none(), "{said:?}");
    stop(up);
}
