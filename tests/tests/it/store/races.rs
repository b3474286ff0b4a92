//! Two calls at once: one is held open until the other one waits for it.

use anyhow::{Result, ensure};

use super::db::{Db, Message, delivered, end, end_to, msg, same};
use super::statements::{RECLAIM_SQL, complete_sql, delivered_sql, ingest_sql, journal_sql};

pub(super) fn a_duplicate_accepted_at_the_same_time_is_seen(db: &mut Db) -> Result<()> {
    let first = ingest_sql(&[msg("a", "x"), msg("b", "x")]);
    let (answer, waited) = db.race(&first, |db| db.ingest(&[msg("b", "x"), msg("c", "x")]))?;
    ensure!(waited);
    same!(answer, "1/2/t/- 1/3/f/-");
    same!(db.look("SELECT convert_from(payload, 'UTF8') FROM turns ORDER BY seq")?, "pa pb pc");
    Ok(())
}

pub(super) fn one_event_accepted_for_two_sessions_at_once_runs_once(db: &mut Db) -> Result<()> {
    let (answer, waited) = db.race(&ingest_sql(&[msg("a", "x")]), |db| db.ingest(&[msg("b", "y"), msg("a", "y")]))?;
    ensure!(waited);
    same!(answer.split(' ').nth(1), Some("1/1/t/-"));
    same!(db.look("SELECT convert_from(payload, 'UTF8') FROM turns ORDER BY 1")?, "pa pb");
    Ok(())
}

pub(super) fn reclaim_waits_for_the_journal(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.expire(w)?;
    let (answer, waited) = db.race(&journal_sql(&[(1, 1, 1, 1, "s")]), Db::reclaim)?;
    ensure!(waited, "reclaim did not wait");
    same!(answer, "1/1/f");
    same!(db.look("SELECT count(*) FROM turn_steps")?, "1");
    Ok(())
}

pub(super) fn complete_wins_against_reclaim(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.expire(w)?;
    let (answer, waited) = db.race(&complete_sql(&end(1, 1, 1)), Db::reclaim)?;
    ensure!(waited);
    same!(answer, "");
    same!(db.look("SELECT head_seq, state, crashes FROM sessions")?, "2|0|0");
    same!(db.look("SELECT count(*) FROM ready")?, "0");
    Ok(())
}

pub(super) fn reclaim_wins_against_complete_and_journal(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.expire(w)?;
    let (answer, waited) = db.race(RECLAIM_SQL, |db| db.complete(&[end(1, 1, 1)]))?;
    ensure!(waited);
    same!(answer, "f/f/-/-");
    same!(db.look("SELECT count(*) FROM outbox")?, "0");
    let v = db.worker(1)?;
    db.ripen()?;
    same!(db.claim(&[(v, 1)])?, "1/1/3/pa");
    db.expire(v)?;
    let (answer, waited) = db.race(RECLAIM_SQL, |db| db.journal(&[(1, 3, 1, 1, "s")]))?;
    ensure!(waited);
    same!(answer, "0");
    Ok(())
}

pub(super) fn a_lease_that_slips_in_beside_reclaim_is_found_later(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("z", "y").lane(Some(2)).on(w, 2)])?;
    let lease = db.hold(&ingest_sql(&[msg("a", "x").on(w, 1)]))?;
    db.expire(w)?;
    same!(db.reclaim()?, "1/1/f");
    lease.commit()?;
    same!(db.look("SELECT state FROM sessions WHERE session_key = 'x'")?, "2");
    same!(db.reclaim()?, "2/1/f");
    Ok(())
}

pub(super) fn two_claims_take_different_sessions_and_do_not_wait(db: &mut Db) -> Result<()> {
    let (w, v) = (db.worker(1)?, db.worker(1)?);
    db.ingest(&[msg("a", "x")])?;
    db.ingest(&[msg("b", "y")])?;
    let first = format!("SELECT o_session FROM claim_batch('{{{w}}}', '{{1}}', 0, 60000)");
    let (answer, waited) = db.race(&first, |db| db.claim(&[(v, 1), (v, 2)]))?;
    ensure!(!waited, "the second claim waited");
    same!(answer, "2/1/1/pb");
    same!(db.look("SELECT session_id, worker_id FROM sessions ORDER BY 1")?, format!("1|{w} 2|{v}"));
    Ok(())
}

pub(super) fn a_message_accepted_beside_the_end_of_its_session_runs(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    let (answer, waited) = db.race(&complete_sql(&end(1, 1, 1)), |db| db.ingest(&[msg("b", "x").on(w, 1)]))?;
    ensure!(waited);
    same!(answer, "1/2/f/2");
    db.complete(&[end(1, 2, 2)])?;
    db.ingest(&[msg("c", "x").on(w, 1)])?;
    let (answer, waited) = db.race(&ingest_sql(&[msg("d", "x")]), |db| db.complete(&[end(1, 3, 3)]))?;
    ensure!(waited);
    same!(answer, "t/f/-/-");
    same!(db.claim(&[(w, 1)])?, "1/4/4/pd");
    Ok(())
}

pub(super) fn the_end_of_a_lanes_head_waits_for_a_new_follower(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "y").on(w, 2)])?;
    db.complete(&[end_to(9, 1, 1, 1)])?;
    let p = db.positions()?[0];
    let (answer, waited) = db.race(&complete_sql(&end_to(9, 2, 1, 1)), |db| db.deliver(1, &[delivered(9, p, 1)]))?;
    ensure!(waited);
    same!(answer, format!("t {}/r2.1", db.positions()?[0]));
    Ok(())
}

pub(super) fn a_new_delivery_beside_the_end_of_the_head_becomes_head(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "y").on(w, 2)])?;
    db.complete(&[end_to(9, 1, 1, 1)])?;
    let p = db.positions()?[0];
    let (answer, waited) = db.race(&delivered_sql(9, p, 1), |db| db.complete(&[end_to(9, 2, 1, 1)]))?;
    ensure!(waited);
    same!(answer, "t/t/-/-");
    same!(db.look("SELECT count(*) FROM outbox WHERE head")?, "1");
    Ok(())
}

pub(super) fn batches_in_opposite_order_do_not_deadlock(db: &mut Db) -> Result<()> {
    let sessions: Vec<String> = (0..40).map(|number| format!("s{number}")).collect();
    let first: Vec<Message> = sessions.iter().map(|session| msg(session, session)).collect();
    db.ingest(&first)?;
    let backwards: Vec<String> = sessions.iter().rev().cloned().collect();
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    let before = db.look(deadlocks)?;
    let db = &*db;
    std::thread::scope(|scope| {
        let writers = [(&sessions, "u"), (&backwards, "v"), (&backwards, "w")].map(|(order, tag)| {
            scope.spawn(move || -> Result<()> {
                for round in 0..15 {
                    let batch: Vec<Message> =
                        order.iter().map(|session| msg(&format!("{tag}{round}.{session}"), session)).collect();
                    db.ingest(&batch)?;
                }
                Ok(())
            })
        });
        writers.into_iter().try_for_each(|writer| writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?)
    })?;
    same!(db.look("SELECT DISTINCT tail_seq FROM sessions")?, "46");
    same!(db.look("SELECT count(*) FROM turns")?, (46 * 40).to_string());
    same!(db.look(deadlocks)?, before);
    Ok(())
}
