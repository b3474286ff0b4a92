//! What agents reach by themselves: texts to chats, once, and to no chat that does not know them.

use anyhow::{Result, ensure};
use futures_util::future::BoxFuture;
use hermes_control_plane::store::{
    self, CallEffect, CallScope, CallStep, Called, Error, LaneKey, ReachedChat, SessionId, TurnId,
};

use super::db::{Db, end, msg, same};
use super::statements::RECLAIM_SQL;

const SENT: &str =
    "SELECT lane_id, session_id, seq, convert_from(body, 'UTF8') FROM outbox WHERE body IS NOT NULL ORDER BY pos";

fn step(session: i64, epoch: i64, step: i32) -> CallStep {
    CallStep { turn: TurnId { session: SessionId(session), seq: 1 }, epoch, step, call: format!("call {step}") }
}

/// What a call looks for, and whether it then writes there and fails.
#[derive(Default)]
struct Reach {
    /// `platform:chat|thread`; else a platform; else the turn's own chat.
    chat: Option<(&'static str, Vec<(&'static str, &'static str)>)>,
    home: Option<&'static str>,
    list: Option<i64>,
    says: Option<&'static str>,
    fails: bool,
}

fn shown(chat: &ReachedChat) -> String {
    let LaneKey { platform, account, chat_id, thread_id } = &chat.key;
    let mark = |holds, mark| if holds { mark } else { "" };
    format!(
        "{}={platform}/{account}/{chat_id}/{thread_id}{}{}",
        chat.lane,
        mark(chat.origin, " o"),
        mark(chat.home, " h")
    )
}

impl CallEffect for Reach {
    fn run<'a>(&'a self, scope: &'a mut CallScope<'_>) -> BoxFuture<'a, store::Result<String>> {
        Box::pin(async move {
            if let Some(most) = self.list {
                let chats = scope.chats(most).await?;
                return Ok(chats.iter().map(shown).collect::<Vec<_>>().join(", "));
            }
            let found = match (&self.chat, self.home) {
                (Some((platform, readings)), _) => {
                    let readings: Vec<_> =
                        readings.iter().map(|(id, thread)| ((*id).to_owned(), (*thread).to_owned())).collect();
                    scope.chat(platform, &readings).await?
                }
                (None, Some(platform)) => scope.home(platform).await?,
                (None, None) => scope.origin().await?,
            };
            let Some(chat) = found else { return Ok("nobody".to_owned()) };
            if let Some(text) = self.says {
                scope.send(&chat, text).await?;
            }
            if self.fails { Err(Error::NotFound("not to be sent".to_owned())) } else { Ok(shown(&chat)) }
        })
    }
}

/// The text of a call that is made now, or `known`, with `!` where the outbox is to be woken.
fn called(db: &Db, step: &CallStep, effect: &Reach) -> Result<String> {
    Ok(match db.wait(db.store.call_tool(step, effect))? {
        Called::Stored { now: false, .. } => "known".to_owned(),
        Called::Stored { text, wakes, .. } => {
            format!("{}{}", String::from_utf8(text)?, if wakes.outbox { "!" } else { "" })
        }
        Called::Begun(_) => "begun".to_owned(),
        Called::Fenced => "fenced".to_owned(),
        Called::Diverged => "diverged".to_owned(),
    })
}

fn lane(db: &Db, platform: &str, account: &str, chat: &str, thread: &str) -> Result<i64> {
    let [platform, account, chat_id, thread_id] = [platform, account, chat, thread].map(str::to_owned);
    Ok(db.wait(db.store.lane_ensure(&LaneKey { platform, account, chat_id, thread_id }))?)
}

pub(super) fn a_text_is_sent_once_with_its_call_and_by_nobody_whose_turn_is_lost(db: &mut Db) -> Result<()> {
    lane(db, "t", "one", "1", "")?;
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    let says = |text| Reach { says: Some(text), ..Reach::default() };
    let failed = db.wait(db.store.call_tool(&step(1, 1, 1), &Reach { fails: true, ..says("never") }));
    ensure!(matches!(failed, Err(Error::NotFound(_))), "{failed:?}");
    same!(db.look(SENT)?, "");
    same!(called(db, &step(1, 1, 1), &says("one"))?, "1=t/one/1/ o!");
    same!(called(db, &step(1, 1, 1), &says("one"))?, "known");
    same!(called(db, &step(1, 2, 2), &says("early"))?, "fenced");
    same!(db.look(SENT)?, "1|1|0|one");
    // Its worker is lost at the same moment.
    db.expire(w)?;
    let (answer, waited) = db.race(RECLAIM_SQL, |db| called(db, &step(1, 1, 2), &says("late")))?;
    ensure!(waited);
    same!(answer, "fenced");
    let v = db.worker(1)?;
    db.ripen()?;
    same!(db.claim(&[(v, 1)])?, "1/1/3/pa");
    same!(called(db, &step(1, 3, 1), &says("one"))?, "known");
    same!(called(db, &step(1, 3, 2), &says("two"))?, "1=t/one/1/ o!");
    same!(db.look(SENT)?, "1|1|0|one 1|1|0|two");
    // The reply comes behind them.
    db.complete(&[end(1, 3, 1)])?;
    same!(db.look("SELECT convert_from(body, 'UTF8'), head FROM outbox ORDER BY pos")?, "one|t two|f -|f");
    Ok(())
}

pub(super) fn only_chats_that_know_the_agent_are_reached(db: &mut Db) -> Result<()> {
    let lanes = [
        lane(db, "t", "one", "1", "")?,
        lane(db, "t", "one", "2", "")?,
        lane(db, "t", "two", "2", "")?,
        lane(db, "t", "two", "3", "7")?,
        lane(db, "m", "one", "!r:host", "")?,
        lane(db, "t", "one", "stranger", "")?,
    ];
    same!(lanes, [1, 2, 3, 4, 5, 6]);
    for (agent, lane) in [(1, 2), (1, 3), (1, 4), (1, 5), (2, 6)] {
        db.wait(db.store.chat_heard(agent, lane))?;
        db.wait(db.store.chat_heard(agent, lane))?;
    }
    db.run("UPDATE agent_chats SET heard_at = '2026-01-01'::timestamptz + lane_id * interval '1 day'")?;
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "y").lane(None).on(w, 2)])?;
    let mut at = 0;
    let mut look = |db: &Db, session, reach: Reach| {
        at += 1;
        called(db, &step(session, 1, at), &reach)
    };
    let chat = |platform, readings: &[_]| Reach { chat: Some((platform, readings.to_vec())), ..Reach::default() };
    // Nobody has written from 1 but in this turn, which is enough for it alone.
    same!(look(db, 1, Reach::default())?, "1=t/one/1/ o");
    same!(look(db, 2, Reach::default())?, "nobody");
    same!(look(db, 1, chat("t", &[("1", "")]))?, "1=t/one/1/ o");
    same!(look(db, 2, chat("t", &[("1", "")]))?, "nobody");
    // The turn's own account, or where it wrote last.
    same!(look(db, 1, chat("t", &[("2", "")]))?, "2=t/one/2/");
    same!(look(db, 2, chat("t", &[("2", "")]))?, "3=t/two/2/");
    same!(look(db, 1, chat("t", &[("3", "")]))?, "nobody");
    same!(look(db, 1, chat("t", &[("3", "7")]))?, "4=t/two/3/7");
    same!(look(db, 1, chat("m", &[("!r", "host"), ("!r:host", "")]))?, "5=m/one/!r:host/");
    // Another agent's, and one that is on another platform.
    same!(look(db, 1, chat("t", &[("stranger", "")]))?, "nobody");
    same!(look(db, 1, chat("m", &[("2", "")]))?, "nobody");
    // A home, the turn's account's first, is reached even where nobody has written.
    same!(look(db, 1, Reach { home: Some("t"), ..Reach::default() })?, "nobody");
    db.run("INSERT INTO home_channels(platform, account, agent_no, lane_id, set_by, set_at) VALUES \
            ('t', 'one', 1, 6, 'x', '2026-01-01'), ('t', 'two', 1, 3, 'x', '2026-02-02'), ('m', 'one', 2, 5, 'x', '2026-01-01')")?;
    same!(look(db, 1, Reach { home: Some("t"), ..Reach::default() })?, "6=t/one/stranger/ h");
    same!(look(db, 2, Reach { home: Some("t"), ..Reach::default() })?, "3=t/two/2/ h");
    // What the document names comes before what was said later.
    db.run("UPDATE home_channels SET documented = true WHERE lane_id = 6")?;
    same!(look(db, 2, Reach { home: Some("t"), ..Reach::default() })?, "6=t/one/stranger/ h");
    db.run("UPDATE home_channels SET documented = false")?;
    same!(look(db, 1, Reach { home: Some("m"), ..Reach::default() })?, "nobody");
    same!(look(db, 1, chat("t", &[("stranger", "")]))?, "6=t/one/stranger/ h");
    let all = "1=t/one/1/ o, 3=t/two/2/ h, 6=t/one/stranger/ h, 5=m/one/!r:host/, 4=t/two/3/7, 2=t/one/2/";
    same!(look(db, 1, Reach { list: Some(9), ..Reach::default() })?, all);
    same!(look(db, 1, Reach { list: Some(2), ..Reach::default() })?, "1=t/one/1/ o, 3=t/two/2/ h");
    // What is forgotten of the agent, it does not reach.
    db.complete(&[end(1, 1, 1), store::Completion { lane: None, ..end(2, 1, 1) }])?;
    db.run("DELETE FROM outbox; UPDATE agents SET removed_at = clock_timestamp() WHERE agent_no = 1")?;
    db.wait(db.store.agent_purge(1))?;
    same!(db.look("SELECT agent_no, lane_id FROM agent_chats")?, "2|6");
    Ok(())
}
