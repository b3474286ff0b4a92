//! Summaries that stand for the oldest turns of a session: under the fence, once a turn, and gone with what is undone.

use anyhow::{Result, ensure};
use hermes_control_plane::store::{Effect, SessionId, Summarised, Summary, TurnId};

use super::db::{Db, end, end_keep, msg, same};
use super::statements::RECLAIM_SQL;

const SHOWN: &str = "SELECT through, made_in, convert_from(body, 'UTF8') FROM summaries ORDER BY through";

/// Turns `1..=count` of session 1 are answered, and one more runs under the next epoch.
fn running(db: &Db, count: i64) -> Result<i64> {
    let w = db.worker(1)?;
    for seq in 1..=count + 1 {
        db.ingest(&[msg(&format!("m{seq}"), "x").says(&format!("q{seq}")).on(w, 1)])?;
        if seq <= count {
            ensure!(db.complete(&[end(1, seq, seq)])?.starts_with("t/"));
        }
    }
    Ok(w)
}

fn put(db: &Db, (epoch, seq): (i64, i64), through: i64, text: &str) -> Result<Summarised> {
    let turn = TurnId { session: SessionId(1), seq };
    let summary = Summary { through, body: text.as_bytes().to_vec() };
    Ok(db.wait(db.store.summarise(turn, epoch, &summary))?)
}

pub(super) fn a_summary_is_stored_once_under_its_turns_fence(db: &mut Db) -> Result<()> {
    running(db, 3)?;
    same!(put(db, (3, 4), 2, "old")?, Summarised::Fenced);
    same!(put(db, (4, 3), 2, "old")?, Summarised::Fenced);
    same!(put(db, (4, 4), 4, "itself")?, Summarised::Refused);
    same!(db.look(SHOWN)?, "");
    same!(put(db, (4, 4), 2, "two")?, Summarised::Stored(1));
    // Its answer was lost, and whoever asks again may write something else.
    same!(put(db, (4, 4), 3, "again")?, Summarised::Stored(1));
    same!(db.look(SHOWN)?, "2|4|two");
    same!(db.look("SELECT rewinds, count(*) FROM sessions JOIN turns USING (session_id) GROUP BY 1")?, "1|4");
    db.complete(&[end_keep(1, 4, 4)])?;
    // Over, it writes nothing more; the next one goes on from there and never back.
    same!(put(db, (4, 4), 3, "late")?, Summarised::Fenced);
    db.ingest(&[msg("m5", "x").on(1, 1)])?;
    same!(put(db, (5, 5), 2, "back")?, Summarised::Refused);
    same!(put(db, (5, 5), 4, "four")?, Summarised::Stored(2));
    let summary = db.wait(db.store.summary(SessionId(1)))?;
    same!(summary, Some(Summary { through: 4, body: b"four".to_vec() }));
    same!(db.wait(db.store.summary(SessionId(2)))?, None);
    Ok(())
}

pub(super) fn a_summary_beside_the_loss_of_its_worker_is_stored_before_or_not_at_all(db: &mut Db) -> Result<()> {
    let w = running(db, 2)?;
    db.expire(w)?;
    let first = "SELECT o_result FROM summarise(1, 3, 3, 2, 'sum')";
    let (reclaimed, waited) = db.race(first, Db::reclaim)?;
    ensure!(waited && reclaimed.starts_with("1/3/"), "{reclaimed}");
    same!(db.look(SHOWN)?, "2|3|sum");
    same!(put(db, (3, 3), 1, "late")?, Summarised::Fenced);
    // The other way round.
    let v = db.worker(1)?;
    db.ripen()?;
    same!(db.claim(&[(v, 1)])?, r#"1/3/5/{"text":"q3"}"#);
    db.run("DELETE FROM summaries")?;
    db.expire(v)?;
    let (put, waited) = db.race(RECLAIM_SQL, |db| put(db, (5, 3), 2, "late"))?;
    ensure!(waited);
    same!(put, Summarised::Fenced);
    same!(db.look(SHOWN)?, "");
    Ok(())
}

pub(super) fn what_tells_of_undone_turns_is_undone_with_them(db: &mut Db) -> Result<()> {
    let w = running(db, 3)?;
    put(db, (4, 4), 2, "two")?;
    db.complete(&[end(1, 4, 4)])?;
    db.ingest(&[msg("m5", "x").on(w, 1)])?;
    db.complete(&[end(1, 5, 5)])?;
    let undo = |db: &Db, key: &str, most| {
        let answer = |_: &_| hermes_control_plane::store::Answer::default();
        db.command(key, "x", Effect::Undo(most), &answer).map(|_| ())
    };
    undo(db, "u1", 1)?;
    same!(db.look(SHOWN)?, "2|4|two");
    // The turn that made it, and with that all is as it was.
    undo(db, "u2", 1)?;
    same!(db.look(SHOWN)?, "");
    // A turn that it tells of.
    db.ingest(&[msg("m6", "x").on(w, 1)])?;
    same!(put(db, (6, 6), 3, "three")?, Summarised::Stored(4));
    db.complete(&[end(1, 6, 6)])?;
    undo(db, "u3", 2)?;
    same!(db.look(SHOWN)?, "");
    Ok(())
}

pub(super) fn a_turn_that_only_changes_the_history_is_no_part_of_it(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    for (seq, payload) in
        [(1, r#"{"text":"hi"}"#), (2, r#"{"text":"/compress","compress":{}}"#), (3, r#"{"text":"ho"}"#)]
    {
        let mut message = msg(&format!("m{seq}"), "x").on(w, 1);
        message.0.payload = payload.as_bytes().to_vec();
        db.ingest(&[message])?;
        db.complete(&[end(1, seq, seq)])?;
    }
    let dialogue = db.wait(db.store.transcript(SessionId(1), 0, 9, 1000))?;
    let said: Vec<_> = dialogue.iter().map(|exchange| (exchange.seq, exchange.said.join(""))).collect();
    same!(said, [(1, "hi".to_owned()), (3, "ho".to_owned())]);
    Ok(())
}
