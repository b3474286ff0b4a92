//! Memory under several workers: two processes of one agent note at once, and both homes end as copies of one list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Arc, Mutex};
use std::thread;

use hermes_home::memory::{Notes, Target, open};
use hermes_tests::mock_model::{Behaviour, Call, MockModel};
use hermes_tests::otlp::Collector;
use hermes_tests::postgres::TestPostgres;
use hermes_tests::system::until;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::external::{Plane, claims, secret_file};
use super::{SOON, with_model};

/// Dialogues, and how much is noted in each.
const SESSIONS: usize = 20;
const EACH: usize = 10;

/// The model: to `note N` it asks for as many notes, two at a time; what the tool answered is kept.
async fn noting(told: Arc<Mutex<BTreeMap<String, Value>>>) -> MockModel {
    let model = MockModel::start().await.unwrap();
    model.respond(move |body| {
        let messages = body["messages"].as_array().cloned().unwrap_or_default();
        let begun = messages.iter().rposition(|message| message["role"] == "user").unwrap_or_default();
        let Some(chat) = messages[begun]["content"].as_str().and_then(|text| text.strip_prefix("note ")) else {
            return Behaviour::Say("seen".to_owned());
        };
        let mut done = 0;
        for answer in messages[begun..].iter().filter(|message| message["role"] == "tool") {
            let said = serde_json::from_str(answer["content"].as_str().unwrap_or_default()).unwrap_or_default();
            told.lock().unwrap().insert(format!("{chat}.{}", answer["tool_call_id"]), said);
            done += 1;
        }
        if done == EACH {
            return Behaviour::Say("noted".to_owned());
        }
        let add = |number: usize| {
            let arguments = json!({"action": "add", "content": format!("{chat}.{number}")}).to_string();
            Call::new(&format!("call-{number}"), "memory", &arguments)
        };
        Behaviour::Ask(String::new(), vec![add(done), add(done + 1)])
    });
    model
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_notes_of_twenty_dialogues_on_two_processes_are_all_there_in_both_homes() {
    let told = Arc::new(Mutex::new(BTreeMap::new()));
    let mock = noting(Arc::clone(&told)).await;
    let (database, collector) = (TestPostgres::empty().unwrap(), Collector::start().await.unwrap());
    let document = json!({"agents": {"coder": {}}, "default_agent": "coder"});
    let plane = Plane::start(&database, &with_model(&mock, document), &collector).await;
    let made = plane.json(&["token", "create", "--role", "worker", "--agent", "coder", "--uses", "2", "--ttl", "1h"]);
    secret_file(&plane.file("join.token"), made["token"].as_str().unwrap());
    let _workers = [plane.worker("one"), plane.worker("two")];
    plane.workers(2).await;

    let say = |chat: &str, text: &str| {
        plane.json(&["send", "--platform", "irc", "--chat-id", chat, "--text", text, "--wait"])["reply"].clone()
    };
    thread::scope(|scope| {
        let (say, turns): (_, Vec<_>) = (&say, (0..SESSIONS).collect());
        let turns: Vec<_> = turns
            .into_iter()
            .map(|chat| scope.spawn(move || say(&chat.to_string(), &format!("note {chat}"))))
            .collect();
        for turn in turns {
            assert_eq!(turn.join().unwrap(), "noted");
        }
    });

    // Each made its version from the one before: nothing is removed, so a version is known by how many notes it has.
    let told = told.lock().unwrap().clone();
    let versions: BTreeSet<u64> = told.values().filter_map(|said| said["entry_count"].as_u64()).collect();
    assert_eq!((told.len(), versions), (SESSIONS * EACH, (1..=200).collect()), "{told:?}");
    let (client, connection) = tokio_postgres::connect(database.url(), tokio_postgres::NoTls).await.unwrap();
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let sql = "SELECT d.version, a.home_version, convert_from(d.body, 'UTF8') FROM hermes.home_documents d \
               JOIN hermes.agents a USING (agent_no) WHERE d.path = 'memories/MEMORY.md'";
    let row = client.query_one(sql, &[]).await.unwrap();
    let (version, text): (i64, String) = (row.get(0), row.get(2));
    assert_eq!(version, 200);
    let notes = open(&text, Target::Memory.limit()).unwrap();
    let there: BTreeSet<String> = notes.iter().map(str::to_owned).collect();
    let wanted: BTreeSet<String> =
        (0..SESSIONS).flat_map(|chat| (0..EACH).map(move |number| format!("{chat}.{number}"))).collect();
    assert_eq!((there, notes.iter().count()), (wanted, 200));
    assert_eq!(Notes::parse(&text).text(), text, "well-formed");

    // The homes are its copies as soon as each worker has begun another turn.
    let read = |name: &str| fs::read_to_string(plane.file(name).join("memories/MEMORY.md")).unwrap_or_default();
    until(SOON, "both homes to hold it", || {
        say(&uuid::Uuid::new_v4().to_string(), "hello");
        (read("one") == text && read("two") == text).then_some(())
    });
    for name in ["one", "two"] {
        let names = fs::read_dir(plane.file(name).join("memories")).unwrap().flatten();
        let aside = names.filter(|entry| entry.file_name().to_string_lossy().contains(".conflict-"));
        assert_eq!(aside.count(), 0, "a copy is never taken for an edit");
    }
    let spans = collector.wait_for(SOON, |spans| claims(spans).len() == 2).await.unwrap();
    assert!(claims(&spans).values().all(|turns| turns.len() > 1), "both had turns");
}
