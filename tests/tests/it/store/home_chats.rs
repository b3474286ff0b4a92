//! Homes of agents: what the document names, what chats say, and which of the two holds.

use anyhow::{Result, bail, ensure};
use hermes_control_plane::store::{Answer, DocumentedHome, Effect, Error, Homed, LaneKey, Outcome, RegistryChange};
use serde_json::json;

use super::db::{Db, same};

const HOMES: &str = "SELECT h.account, a.agent_id, l.chat_id || ':' || l.thread_id, h.set_by, h.documented \
    FROM home_channels h JOIN agents a USING (agent_no) JOIN lanes l USING (lane_id) WHERE h.platform = l.platform AND h.account = l.account ORDER BY 1, 2";

fn chat(account: &str, chat: &str, thread: &str) -> LaneKey {
    let [platform, account, chat_id, thread_id] = ["t", account, chat, thread].map(str::to_owned);
    LaneKey { platform, account, chat_id, thread_id }
}

fn home(account: &str, agent: &str, id: &str, thread: &str) -> DocumentedHome {
    DocumentedHome { agent: agent.to_owned(), chat: chat(account, id, thread) }
}

/// A change after which the document names these homes.
fn change(homes: &[DocumentedHome]) -> RegistryChange {
    RegistryChange { settings: json!({}), homes: homes.to_vec(), by: "drill".to_owned(), ..RegistryChange::default() }
}

/// Carries it out.
fn carry(db: &Db, change: &RegistryChange) -> Result<()> {
    let version = db.wait(db.store.registry_load())?.version;
    same!(db.wait(db.store.registry_change(version, change))?, version + 1);
    Ok(())
}

/// What becomes of the wish of lane 1 to be the home of agent `a` on an account.
fn wish(db: &Db, key: &str, account: &str) -> Result<Homed> {
    let effect = Effect::Home { platform: "t".to_owned(), account: account.to_owned(), by: "ada".to_owned() };
    let told = |_: &Outcome| Answer { text: "said".to_owned(), told: true };
    match db.command(key, "x", effect, &told)?.outcome {
        Some(Outcome::Home(homed)) => Ok(homed),
        other => bail!("{other:?}"),
    }
}

/// Lanes 1 and 2, on account `one`.
fn lanes(db: &Db) -> Result<()> {
    for (number, id) in [(1, "1"), (2, "2")] {
        same!(db.wait(db.store.lane_ensure(&chat("one", id, "")))?, number);
    }
    Ok(())
}

pub(super) fn homes_are_what_the_document_names(db: &mut Db) -> Result<()> {
    lanes(db)?;
    same!(wish(db, "k", "one")?, Homed::Here);
    db.run("INSERT INTO home_channels(platform, account, agent_no, lane_id, set_by) VALUES ('t', 'one', 2, 2, 'bob')")?;
    same!(db.look(HOMES)?, "one|a|1:|ada|f one|b|2:|bob|f");
    // An agent that is new has its home at once, in a chat that has never written; what a chat said gives way, and else stays.
    let named = [home("one", "a", "7", "42"), home("two", "new", "5", "")];
    carry(db, &RegistryChange { revised: vec![("new".to_owned(), json!({}))], ..change(&named) })?;
    same!(db.look(HOMES)?, "one|a|7:42|configuration|t one|b|2:|bob|f two|new|5:|configuration|t");
    same!(db.look("SELECT count(*), max(lane_id) FROM lanes")?, "4|4");
    // Another topic is another chat; one that is known is found.
    carry(db, &change(&[home("one", "a", "7", "43"), home("two", "new", "5", "")]))?;
    carry(db, &change(&[home("one", "a", "2", ""), home("two", "b", "5", "")]))?;
    same!(db.look(HOMES)?, "one|a|2:|configuration|t one|b|2:|bob|f two|b|5:|configuration|t");
    same!(db.look("SELECT count(*), max(lane_id) FROM lanes")?, "5|5");
    // An account that goes takes its homes along, and an agent its own.
    carry(db, &change(&[home("one", "a", "2", "")]))?;
    same!(db.look(HOMES)?, "one|a|2:|configuration|t one|b|2:|bob|f");
    carry(db, &RegistryChange { removed: vec!["a".to_owned()], ..change(&[]) })?;
    same!(db.look(HOMES)?, "one|b|2:|bob|f");
    Ok(())
}

pub(super) fn what_is_right_already_is_not_touched_and_of_one_change_the_last_home_counts(db: &mut Db) -> Result<()> {
    const ORDER: &str = "SELECT account, set_at < '2021-01-01' FROM home_channels ORDER BY set_at";
    let names = ["c", "a", "b", "d"];
    let homes: Vec<DocumentedHome> = names.iter().map(|account| home(account, "a", "1", "")).collect();
    carry(db, &change(&homes))?;
    same!(db.look(ORDER)?, "c|f a|f b|f d|f");
    same!(db.look("SELECT count(DISTINCT set_at) FROM home_channels")?, "4");
    db.run("UPDATE home_channels SET set_at = '2020-01-01'::timestamptz + ascii(account) * interval '1 day'")?;
    carry(db, &change(&homes))?;
    same!(db.look(ORDER)?, "a|t b|t c|t d|t");
    // What was said in a chat is set anew when the document says the same.
    db.run("UPDATE home_channels SET documented = false WHERE account = 'a'")?;
    let mut moved = homes.clone();
    moved[2].chat.thread_id = "9".to_owned();
    carry(db, &change(&moved))?;
    same!(db.look(ORDER)?, "c|t d|t a|f b|f");
    Ok(())
}

pub(super) fn a_replica_that_starts_puts_right_what_one_of_before_has_changed(db: &mut Db) -> Result<()> {
    lanes(db)?;
    let named = [home("one", "a", "2", "")];
    carry(db, &change(&named))?;
    db.run("UPDATE home_channels SET lane_id = 1, set_by = 'ada', documented = false")?;
    db.wait(db.store.restore_homes(0, &named))?;
    same!(db.look(HOMES)?, "one|a|1:|ada|f");
    db.wait(db.store.restore_homes(1, &named))?;
    same!(db.look(HOMES)?, "one|a|2:|configuration|t");
    Ok(())
}

pub(super) fn a_home_of_an_agent_that_is_not_registered_refuses_the_whole_change(db: &mut Db) -> Result<()> {
    carry(db, &change(&[home("one", "a", "1", "")]))?;
    let bad = change(&[home("one", "a", "2", ""), home("one", "ghost", "3", "")]);
    let refused = db.wait(db.store.registry_change(1, &bad));
    ensure!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
    same!(db.look(HOMES)?, "one|a|1:|configuration|t");
    same!(db.wait(db.store.registry_load())?.version, 1);
    Ok(())
}

pub(super) fn what_the_document_names_is_not_changed_by_a_chat(db: &mut Db) -> Result<()> {
    lanes(db)?;
    carry(db, &change(&[home("one", "a", "2", "")]))?;
    let before = db.look("SELECT * FROM home_channels")?;
    same!(wish(db, "k", "one")?, Homed::Elsewhere);
    same!(db.look("SELECT * FROM home_channels")?, before);
    // Another account's is its own affair.
    same!(wish(db, "l", "two")?, Homed::Here);
    carry(db, &change(&[home("one", "a", "1", "")]))?;
    same!(wish(db, "m", "one")?, Homed::Already);
    same!(db.look("SELECT set_by, documented FROM home_channels ORDER BY account")?, "configuration|t ada|f");
    carry(db, &change(&[]))?;
    same!(wish(db, "n", "one")?, Homed::Here);
    same!(db.look("SELECT set_by, documented FROM home_channels ORDER BY account")?, "ada|f ada|f");
    Ok(())
}

pub(super) fn a_chat_that_wants_to_be_home_while_the_document_changes_waits_for_it(db: &mut Db) -> Result<()> {
    lanes(db)?;
    let names = "INSERT INTO home_channels(platform, account, agent_no, lane_id, set_by, documented) VALUES ('t', 'one', 1, 2, 'configuration', true)";
    let (homed, waited) = db.race(names, |db| wish(db, "k", "one"))?;
    same!((homed, waited), (Homed::Elsewhere, true));
    let (homed, waited) = db.race("DELETE FROM home_channels", |db| wish(db, "l", "one"))?;
    same!((homed, waited), (Homed::Here, true));
    // It was said in a chat, and the document names it meanwhile.
    let names = "UPDATE home_channels SET lane_id = 2, documented = true";
    let (homed, waited) = db.race(names, |db| wish(db, "m", "one"))?;
    same!((homed, waited), (Homed::Elsewhere, true));
    same!(db.look("SELECT lane_id FROM home_channels")?, "2");
    Ok(())
}
