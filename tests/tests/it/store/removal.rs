//! Agents that were removed: their waiting turns, and the deletion of what they left.

use anyhow::{Result, ensure};
use hermes_control_plane::store::Error;

use super::db::{Db, end, end_to, msg, same};
use super::statements::ingest_sql;

fn remove(db: &Db) -> Result<()> {
    db.run("UPDATE agents SET removed_at = now() WHERE agent_no = 1")
}

pub(super) fn waiting_turns_of_a_removed_agent_are_cancelled_and_the_running_one_ends(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "run").lane(Some(1)).on(w, 1), msg("b", "run").lane(Some(1))])?;
    db.ingest(&[msg("c", "wait").lane(Some(2)), msg("d", "wait").lane(None)])?;
    db.ingest(&[msg("e", "other").agent(2).lane(Some(3))])?;
    same!(db.wait(db.store.removed_cancel("gone"))?, 0);
    remove(db)?;
    same!(db.wait(db.store.poll(1, &[w], super::db::TTL))?.removed, true);
    same!(db.wait(db.store.removed_cancel("gone"))?, 2);
    let turns = "SELECT session_id, seq, coalesce(ended, 0) FROM transcripts ORDER BY 1, 2";
    same!(db.look(turns)?, "1|1|0 1|2|0 2|1|5 2|2|5 3|1|0");
    same!(db.look("SELECT lane_id, convert_from(body, 'UTF8') FROM outbox")?, "2|gone");
    same!(db.look("SELECT state, head_seq, tail_seq FROM sessions WHERE session_id = 2")?, "0|3|2");
    same!(db.look("SELECT session_id FROM ready")?, "3");
    // The running turn keeps its lease and its reply; what waits behind it is cancelled then.
    same!(db.journal(&[(1, 1, 1, 1, "s")])?, "1");
    same!(db.complete(&[end(1, 1, 1)])?, "t/t/-/-");
    same!(db.wait(db.store.removed_cancel("gone"))?, 1);
    same!(db.look(turns)?, "1|1|2 1|2|5 2|1|5 2|2|5 3|1|0");
    same!(db.wait(db.store.removed_cancel("gone"))?, 0);
    same!(db.wait(db.store.poll(1, &[w], super::db::TTL))?.removed, false);
    // A session of an agent that came back goes on.
    db.run("UPDATE agents SET removed_at = NULL")?;
    same!(db.ingest(&[msg("f", "wait").lane(Some(2)).on(w, 2)])?, "2/3/f/2");
    Ok(())
}

pub(super) fn a_cancelled_turn_keeps_its_crash_from_the_next_one(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.expire(w)?;
    same!(db.reclaim()?, "1/1/f");
    remove(db)?;
    same!(db.wait(db.store.removed_cancel("gone"))?, 1);
    same!(db.look("SELECT crashes, state FROM sessions")?, "0|0");
    same!(db.complete(&[end(1, 1, 1)])?, "f/f/-/-");
    Ok(())
}

pub(super) fn a_claim_beside_the_cancellation_takes_or_leaves_a_session_whole(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x")])?;
    remove(db)?;
    let (claimed, waited) = db.race("SELECT cancel_removed('gone')", |db| db.claim(&[(w, 1)]))?;
    ensure!(!waited);
    same!(claimed, "");
    same!(db.look("SELECT state, head_seq FROM sessions")?, "0|2");
    Ok(())
}

fn purge(db: &Db) -> Result<(), Error> {
    db.wait(db.store.agent_purge(1))
}

fn conflict(answer: Result<(), Error>) -> Result<()> {
    ensure!(matches!(answer, Err(Error::Conflict(_))), "{answer:?}");
    Ok(())
}

pub(super) fn a_purge_is_refused_while_anything_runs_waits_or_is_undelivered(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("z", "x").agent(2)])?;
    remove(db)?;
    conflict(purge(db))?;
    db.expire(w)?;
    db.reclaim()?;
    conflict(purge(db))?;
    same!(db.look("SELECT count(*) FROM turns")?, "2");
    let w = db.worker(1)?;
    db.ripen()?;
    same!(db.claim(&[(w, 1)])?, "1/1/3/pa");
    db.complete(&[end_to(9, 1, 3, 1)])?;
    // The reply is still to be sent, and its text is the turn's.
    conflict(purge(db))?;
    let p = db.positions()?[0];
    same!(db.deliver(1, &[super::db::delivered(9, p, 1)])?, "t");
    db.wait(db.store.home_push(1, "SOUL.md", 0, b"me", false, "somebody"))?;
    db.wait(db.store.mcp_seen(1, "notes", b"x", None, "it ended"))?;
    purge(db)?;
    same!(
        db.look("SELECT (SELECT count(*) FROM turn_steps), (SELECT count(*) FROM home_documents), (SELECT count(*) FROM mcp_pins), (SELECT count(*) FROM inbound)")?,
        "0|0|0|2"
    );
    same!(db.look("SELECT session_id, agent_no FROM sessions")?, "2|2");
    same!(db.look("SELECT session_id FROM session_keys")?, "2");
    same!(db.look("SELECT session_id FROM turns")?, "2");
    // Known keys stay known, and the agent may come back.
    same!(db.ingest(&[msg("a", "x")])?, "1/1/t/-");
    Ok(())
}

pub(super) fn a_message_beside_a_purge_is_lost_in_no_order(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").lane(None).on(w, 1)])?;
    let mut silent = end(1, 1, 1);
    silent.lane = None;
    db.complete(&[silent])?;
    // The message first: the purge waits for it and then refuses.
    let (answer, waited) = db.race(&ingest_sql(&[msg("b", "x").lane(None)]), |db| Ok(purge(db)))?;
    ensure!(waited, "the purge did not wait for the message");
    conflict(answer)?;
    same!(db.look("SELECT seq FROM turns ORDER BY 1")?, "1 2");
    // The purge first: what it locks and deletes, by hand; the message finds its session gone and makes another.
    let purging = "SELECT 1 FROM sessions WHERE agent_no = 1 FOR UPDATE; DELETE FROM ready; DELETE FROM turns;
        DELETE FROM session_keys WHERE agent_no = 1; DELETE FROM sessions WHERE agent_no = 1";
    let (answer, waited) = db.race(purging, |db| db.ingest(&[msg("y", "first"), msg("c", "x"), msg("d", "x")]))?;
    ensure!(waited, "the message did not wait for the purge");
    let sessions: Vec<_> = answer.split(' ').map(|row| row.split('/').next().unwrap_or("")).collect();
    ensure!(sessions.len() == 3 && sessions[1] == sessions[2] && sessions[0] != sessions[1], "{answer}");
    same!(
        db.look(
            "SELECT session_key, convert_from(payload, 'UTF8') FROM turns JOIN sessions USING (session_id) ORDER BY 2"
        )?,
        "x|pc x|pd first|py"
    );
    same!(db.look("SELECT count(*) FROM ready")?, "2");
    Ok(())
}
