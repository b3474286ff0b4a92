//! What is over goes after its time, and nothing else.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use hermes_control_plane::store::{Noted, RETAINED, SendResult, SessionId, TurnId, hash_of};
use hermes_core::attachment::{Attachment, Kind};
use hermes_core::config::Retention;

use super::db::{Db, delivered, end, msg, same, sent};

/// Passes as often as it is asked.
const AT_ONCE: Duration = Duration::ZERO;

fn days() -> Retention {
    Retention {
        dedupe_days: 8,
        steps_days: 10,
        deliveries_days: 10,
        attachments_days: 10,
        dead_days: 20,
        turns_days: Some(60),
    }
}

/// A whole pass through one kind; answers what it removed.
fn pass(db: &Db, what: &str, days: &Retention) -> Result<i64> {
    let mut removed = 0;
    loop {
        let step = db.wait(db.store.retain(what, days, 48, AT_ONCE))?;
        removed += step.removed;
        if !step.more {
            return Ok(removed);
        }
    }
}

/// Everything there is becomes older by this many days.
fn age(db: &Db, days: f64) -> Result<()> {
    let by = format!("interval '1 day' * {days}");
    db.run(&format!(
        "UPDATE inbound SET received_at = received_at - {by}; UPDATE turns SET created_at = created_at - {by};
         UPDATE turn_steps SET at = at - {by}; UPDATE dead_turns SET at = at - {by}; UPDATE deliveries SET at = at - {by};
         UPDATE sessions SET updated_at = updated_at - {by}, created_at = created_at - {by}"
    ))
}

pub(super) fn a_dedupe_key_stays_for_eight_days(db: &mut Db) -> Result<()> {
    db.ingest(&[msg("a", "x")])?;
    age(db, 7.9)?;
    same!(pass(db, "inbound", &days())?, 0);
    same!(db.ingest(&[msg("a", "x")])?, "1/1/t/-");
    age(db, 0.2)?;
    same!(pass(db, "inbound", &days())?, 1);
    same!(db.ingest(&[msg("a", "x")])?, "1/2/f/-");
    same!(db.wait(db.store.retention_runs())?.iter().find(|run| run.what == "inbound").map(|run| run.total), Some(1));
    Ok(())
}

pub(super) fn a_file_stays_for_its_days_after_it_came_last(db: &mut Db) -> Result<()> {
    let older = |db: &Db, days: f64| db.run(&format!("UPDATE blobs SET used_at = used_at - interval '1 day' * {days}"));
    let content = vec![7_u8; 600_000];
    let sha256 = hex(&db.wait(db.store.blob_put(&content))?);
    same!(db.look("SELECT count(*), sum(length(body)) FROM blob_chunks")?, "3|600000");
    older(db, 9.9)?;
    same!(pass(db, "blobs", &days())?, 0);
    // The same again is the same file, used again.
    db.wait(db.store.blob_put(&content))?;
    same!(db.look("SELECT count(*) FROM blob_chunks")?, "3");
    older(db, 9.9)?;
    same!(pass(db, "blobs", &days())?, 0);
    let file = Attachment::new(Kind::Document, "a", "text/plain", 600_000, sha256.clone());
    let Noted::Yes(id) = db.wait(db.store.upload_put("ann", &file, &content, 600_000))? else { bail!("there is room") };
    ensure!(db.wait(db.store.uploads("eve", &[id])).is_err(), "it is nobody else's");
    same!(db.wait(db.store.uploads("ann", &[id]))?, vec![file]);
    older(db, 9.9)?;
    same!(pass(db, "blobs", &days())?, 0);
    same!(db.wait(db.store.blob(&sha256))?, Some(content.clone()));
    older(db, 0.2)?;
    same!(pass(db, "blobs", &days())?, 1);
    same!(db.look("SELECT (SELECT count(*) FROM blob_chunks), (SELECT count(*) FROM uploads)")?, "0|0");
    same!(db.wait(db.store.blob(&sha256))?, None);
    ensure!(db.wait(db.store.uploads("ann", &[id])).is_err());
    db.wait(db.store.blob_put(&content))?;
    same!(db.wait(db.store.blob(&sha256))?, Some(content));
    Ok(())
}

pub(super) fn what_no_message_names_is_bounded_for_each_caller(db: &mut Db) -> Result<()> {
    let put = |db: &Db, caller: &str, content: &[u8]| {
        let file = Attachment::new(Kind::Document, "a", "text/plain", content.len() as u64, hex(&hash_of(content)));
        db.wait(db.store.upload_put(caller, &file, content, 10))
    };
    let Noted::Yes(first) = put(db, "ann", b"123456")? else { bail!("there is room") };
    same!(put(db, "ann", b"abcde")?, Noted::Full { left: 4 });
    same!(db.look("SELECT count(*) FROM blobs")?, "1");
    // It is the caller's alone, and the last byte counts.
    ensure!(matches!(put(db, "bob", b"abcde")?, Noted::Yes(_)));
    ensure!(matches!(put(db, "ann", b"abcd")?, Noted::Yes(_)));
    same!(put(db, "ann", b"x")?, Noted::Full { left: 0 });
    // What a message names makes room; somebody else naming it does not.
    ensure!(db.wait(db.store.uploads("bob", &[first])).is_err());
    same!(put(db, "ann", b"x")?, Noted::Full { left: 0 });
    db.wait(db.store.uploads("ann", &[first]))?;
    ensure!(matches!(put(db, "ann", b"abcdef")?, Noted::Yes(_)));
    // So does a day.
    same!(put(db, "ann", b"x")?, Noted::Full { left: 0 });
    db.run("UPDATE uploads SET at = at - interval '1 day'")?;
    ensure!(matches!(put(db, "ann", b"x")?, Noted::Yes(_)));
    // A turn's file of the same path is the same file.
    let turn = TurnId { session: SessionId(1), seq: 1 };
    let file = Attachment::new(Kind::Document, "a", "text/plain", 6, hex(&hash_of(b"123456")));
    for (path, noted) in [("a", true), ("a", true), ("b", false)] {
        let put = db.wait(db.store.turn_file_put(turn, path, &file, b"123456", 10))?;
        same!(matches!(put, Noted::Yes(_)), noted);
    }
    Ok(())
}

pub(super) fn two_uploads_at_once_do_not_both_take_the_last_room(db: &mut Db) -> Result<()> {
    let put = "SELECT put_upload('ann', gen_random_uuid(), '', sha256('1'), 6, ARRAY['123456'::bytea], 10)";
    let file = Attachment::new(Kind::Document, "a", "text/plain", 6, hex(&hash_of(b"abcdef")));
    let (noted, waited) = db.race(put, |db| Ok(db.wait(db.store.upload_put("ann", &file, b"abcdef", 10))?))?;
    ensure!(waited, "it did not wait");
    same!(noted, Noted::Full { left: 4 });
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn steps_of_running_and_waiting_turns_stay(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "y").on(w, 2)])?;
    db.journal(&[(1, 1, 1, 1, "one"), (2, 1, 1, 1, "two")])?;
    db.complete(&[end(1, 1, 1)])?;
    age(db, 9.9)?;
    same!(pass(db, "steps", &days())?, 0);
    age(db, 0.2)?;
    // The ended turn's step goes; its end, which is the reply, and the running turn's step stay.
    same!(pass(db, "steps", &days())?, 1);
    same!(db.look("SELECT session_id, ended IS NOT NULL FROM turn_steps ORDER BY 1")?, "1|t 2|f");
    // Taken back and waiting it is still needed.
    db.expire(w)?;
    db.reclaim()?;
    same!(pass(db, "steps", &days())?, 0);
    Ok(())
}

pub(super) fn turns_go_with_all_they_have_and_never_what_is_needed(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    // Ended and delivered, ended and undelivered, running, waiting behind it.
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "y").lane(Some(2)).on(w, 2), msg("c", "z").on(w, 3), msg("d", "z")])?;
    db.complete(&[end(1, 1, 1)])?;
    let p = db.positions()?[0];
    db.deliver(1, &[delivered(1, p, 1)])?;
    db.complete(&[super::db::end_to(2, 2, 1, 1)])?;
    age(db, 59.9)?;
    for what in RETAINED {
        pass(db, what, &Retention { dedupe_days: 365, ..days() })?;
    }
    same!(db.look("SELECT count(*) FROM turns")?, "4");
    age(db, 0.2)?;
    same!(pass(db, "turns", &Retention { turns_days: None, ..days() })?, 0);
    same!(pass(db, "turns", &days())?, 1);
    same!(db.look("SELECT session_id, seq FROM turns ORDER BY 1, 2")?, "2|1 3|1 3|2");
    same!(db.look("SELECT session_id FROM turn_steps ORDER BY 1")?, "2");
    // What waits runs on, and its text is there.
    same!(db.complete(&[super::db::end_keep(3, 1, 1)])?.ends_with("/pd"), true);
    // Delivered, it may go.
    let p = db.positions()?[0];
    db.deliver(1, &[delivered(2, p, 1)])?;
    same!(pass(db, "turns", &days())?, 1);
    // A turn that ended just now stays, however long ago it was accepted.
    same!(db.look("SELECT session_id, seq FROM turns ORDER BY 1, 2")?, "3|1 3|2");
    Ok(())
}

pub(super) fn a_session_without_turns_goes_with_its_key_and_comes_back_as_new(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").lane(None).on(w, 1), msg("b", "y").lane(None).on(w, 2)])?;
    db.complete(&[hermes_control_plane::store::Completion { lane: None, ..end(1, 1, 1) }])?;
    age(db, 61.0)?;
    // Its turn is still there.
    same!(pass(db, "sessions", &days())?, 0);
    pass(db, "turns", &days())?;
    same!(pass(db, "sessions", &days())?, 1);
    same!(db.look("SELECT session_id FROM sessions")?, "2");
    same!(db.look("SELECT session_id FROM session_keys")?, "2");
    same!(db.ingest(&[msg("c", "x").lane(None)])?, "3/1/f/-");
    Ok(())
}

pub(super) fn dead_deliveries_stay_longer(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "y").lane(Some(2)).on(w, 2)])?;
    db.complete(&[end(1, 1, 1), super::db::end_to(2, 2, 1, 1)])?;
    let p = db.positions()?;
    db.deliver(
        1,
        &[
            delivered(1, p[0], 1),
            sent(2, p[1], 1, SendResult::Dead { reason: "gone".to_owned(), maybe_duplicate: false }),
        ],
    )?;
    age(db, 11.0)?;
    same!(pass(db, "deliveries", &days())?, 1);
    same!(db.look("SELECT lane_id, state FROM deliveries")?, "2|4");
    age(db, 10.0)?;
    same!(pass(db, "deliveries", &days())?, 1);
    Ok(())
}

pub(super) fn a_pass_goes_page_by_page_and_one_replica_at_a_time_steps(db: &mut Db) -> Result<()> {
    db.run(
        "INSERT INTO inbound(dedupe_key, session_id, seq, received_at)
           SELECT sha256(g::text::bytea), 1, g, now() - interval '9 days' * (g % 2) FROM generate_series(1, 2000) g",
    )?;
    let first = db.wait(db.store.retain("inbound", &days(), 2, AT_ONCE))?;
    same!((first.more, first.removed > 0 && first.removed < 500), (true, true));
    // Another one is at it: nobody waits for it.
    let (step, waited) = db.race("SELECT 1 FROM retention WHERE what = 'inbound' FOR UPDATE", |db| {
        Ok(db.wait(db.store.retain("inbound", &days(), 2, AT_ONCE))?)
    })?;
    same!((step.more, step.removed, waited), (false, 0, false));
    same!(pass(db, "inbound", &days())? + first.removed, 1000);
    same!(
        db.look(
            "SELECT count(*), removed, total, page FROM inbound, retention WHERE what = 'inbound' GROUP BY 2, 3, 4"
        )?,
        "1000|1000|1000|0"
    );
    // The next pass begins when it is due.
    let day = Duration::from_secs(86_400);
    age(db, 9.0)?;
    same!(db.wait(db.store.retain("inbound", &days(), 48, day))?.removed, 0);
    same!(pass(db, "inbound", &days())?, 1000);
    Ok(())
}
