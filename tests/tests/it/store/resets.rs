//! Resets: an expired session ends, its key moves to a new one, and the old one's turns come first.

use anyhow::{Result, ensure};
use jiff::Timestamp;

use super::db::{Db, Message, end, end_keep, msg, same};
use super::statements::ingest_sql;

/// Every session was last used before this.
fn always() -> Result<Timestamp> {
    Ok("2100-01-01T00:00:00Z".parse()?)
}

/// No session was last used before this.
fn never() -> Result<Timestamp> {
    Ok("2000-01-01T00:00:00Z".parse()?)
}

/// A message that finds its session expired.
fn late(key: &str, session: &str) -> Result<Message> {
    Ok(msg(key, session).idle_before(always()?))
}

const SESSIONS: &str = "SELECT session_id, state, head_seq, tail_seq, coalesce(end_reason, '-'), ended_at IS NOT NULL, \
     coalesce(successor, 0) FROM sessions ORDER BY 1";

pub(super) fn an_idle_session_is_replaced_and_the_new_one_runs_at_once(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    same!(db.ingest(&[msg("a", "x").on(w, 1)])?, "1/1/f/1");
    db.complete(&[end(1, 1, 1)])?;
    same!(db.ingest(&[msg("b", "x").idle_before(never()?).daily_before(never()?).on(w, 1)])?, "1/2/f/2");
    db.complete(&[end(1, 2, 2)])?;
    same!(db.ingest(&[late("c", "x")?.on(w, 1)])?, "2/1/f/1");
    same!(db.look(SESSIONS)?, "1|0|3|2|idle|t|2 2|2|1|1|-|f|0");
    same!(db.look("SELECT session_id FROM session_keys")?, "2");
    db.complete(&[end(2, 1, 1)])?;
    same!(db.ingest(&[msg("d", "x").daily_before(always()?).on(w, 1)])?, "3/1/f/1");
    same!(db.look("SELECT end_reason FROM sessions WHERE session_id = 2")?, "daily");
    Ok(())
}

pub(super) fn either_threshold_alone_expires_a_session(db: &mut Db) -> Result<()> {
    for session in ["p", "q", "r", "s"] {
        db.ingest(&[msg(session, session)])?;
    }
    let (always, never) = (always()?, never()?);
    let batch = [
        msg("1", "p").idle_before(always).daily_before(never),
        msg("2", "q").idle_before(never).daily_before(always),
        msg("3", "r").idle_before(never),
        msg("4", "s").daily_before(always),
    ];
    same!(db.ingest(&batch)?, "5/1/f/- 6/1/f/- 3/2/f/- 7/1/f/-");
    same!(
        db.look("SELECT coalesce(end_reason, '-') FROM sessions WHERE session_id < 5 ORDER BY session_id")?,
        "idle daily - daily"
    );
    Ok(())
}

pub(super) fn a_session_used_at_the_threshold_itself_stays(db: &mut Db) -> Result<()> {
    db.ingest(&[msg("a", "x")])?;
    db.run("UPDATE sessions SET updated_at = '2020-01-01T00:00:00Z'")?;
    let exactly: Timestamp = "2020-01-01T00:00:00Z".parse()?;
    same!(db.ingest(&[msg("b", "x").idle_before(exactly).daily_before(exactly)])?, "1/2/f/-");
    db.run("UPDATE sessions SET updated_at = '2020-01-01T00:00:00Z'")?;
    let after: Timestamp = "2020-01-01T00:00:00.000001Z".parse()?;
    same!(db.ingest(&[msg("c", "x").idle_before(after)])?, "2/1/f/-");
    Ok(())
}

pub(super) fn a_replaced_session_that_runs_is_finished_first(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x")])?;
    same!(db.ingest(&[late("c", "x")?.on(w, 2), msg("d", "x").on(w, 3)])?, "2/1/f/- 2/2/f/-");
    same!(db.look(SESSIONS)?, "1|2|1|2|idle|t|2 2|3|1|2|-|f|0");
    same!(db.claim(&[(w, 2)])?, "");
    same!(db.ingest(&[msg("e", "x").on(w, 2)])?, "2/3/f/-");
    same!(db.complete(&[end_keep(1, 1, 1)])?, "t/t/2/pb");
    same!(db.claim(&[(w, 2)])?, "");
    let last = db.wait(db.store.complete(1, &[end(1, 2, 2)], super::db::TTL)).remove(0)?;
    same!((last.stored, last.waits), (true, true));
    same!(db.look("SELECT session_id, agent_no FROM ready")?, "2|1");
    same!(db.claim(&[(w, 2)])?, "2/1/1/pc");
    same!(db.complete(&[end_keep(2, 1, 1)])?, "t/f/2/pd");
    same!(db.look(SESSIONS)?, "1|0|3|2|idle|t|2 2|2|2|3|-|f|0");
    Ok(())
}

pub(super) fn a_replaced_session_that_waits_is_finished_first(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x")])?;
    same!(db.ingest(&[late("b", "x")?.on(w, 1)])?, "2/1/f/-");
    same!(db.claim(&[(w, 1), (w, 2)])?, "1/1/1/pa");
    same!(db.claim(&[(w, 2)])?, "");
    db.complete(&[end(1, 1, 1)])?;
    same!(db.claim(&[(w, 2)])?, "2/1/1/pb");
    Ok(())
}

pub(super) fn a_chain_of_resets_runs_in_order(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    same!(db.ingest(&[late("b", "x")?])?, "2/1/f/-");
    same!(db.ingest(&[late("c", "x")?])?, "3/1/f/-");
    same!(db.look(SESSIONS)?, "1|2|1|1|idle|t|2 2|3|1|1|idle|t|3 3|3|1|1|-|f|0");
    db.complete(&[end(1, 1, 1)])?;
    same!(db.claim(&[(w, 1), (w, 2)])?, "2/1/1/pb");
    same!(db.claim(&[(w, 2)])?, "");
    db.complete(&[end(2, 1, 1)])?;
    same!(db.claim(&[(w, 1), (w, 2)])?, "3/1/1/pc");
    Ok(())
}

pub(super) fn a_dead_letter_lets_the_next_session_begin(db: &mut Db) -> Result<()> {
    let mut w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    same!(db.ingest(&[late("b", "x")?])?, "2/1/f/-");
    for _ in 0..2 {
        db.expire(w)?;
        same!(db.reclaim()?, "1/1/f");
        w = db.worker(1)?;
        db.ripen()?;
        same!(db.claim(&[(w, 1), (w, 2)])?.starts_with("1/1/"), true);
    }
    db.expire(w)?;
    same!(db.reclaim()?, "1/1/t");
    w = db.worker(1)?;
    same!(db.claim(&[(w, 1), (w, 2)])?, "2/1/1/pb");
    Ok(())
}

pub(super) fn cancelling_a_removed_agents_turns_reaches_the_next_session(db: &mut Db) -> Result<()> {
    db.ingest(&[msg("a", "x")])?;
    db.ingest(&[late("b", "x")?])?;
    db.run("UPDATE agents SET removed_at = now() WHERE agent_no = 1")?;
    same!(db.look("SELECT cancel_removed('gone')")?, "1");
    same!(db.look("SELECT session_id FROM ready")?, "2");
    same!(db.wait(db.store.poll(1, &[], super::db::TTL))?.removed, true);
    same!(db.wait(db.store.removed_cancel("gone"))?, 1);
    same!(db.look("SELECT session_id, ended FROM transcripts ORDER BY 1")?, "1|5 2|5");
    same!(db.look("SELECT DISTINCT state FROM sessions")?, "0");
    Ok(())
}

pub(super) fn a_duplicate_never_resets(db: &mut Db) -> Result<()> {
    same!(db.ingest(&[msg("a", "x").body("h")])?, "1/1/f/-");
    same!(db.ingest(&[late("a", "x")?.body("h")])?, "1/1/t/-");
    same!(db.ingest(&[late("a", "x")?.body("other")])?, "1/1/conflict/-");
    same!(db.look(SESSIONS)?, "1|1|1|1|-|f|0");
    // Nor does it keep a session from being reset by its neighbour in the batch, and it still names its own turn.
    same!(db.ingest(&[late("a", "x")?.body("h"), late("b", "x")?])?, "1/1/t/- 2/1/f/-");
    same!(db.ingest(&[late("b", "x")?])?, "2/1/t/-");
    Ok(())
}

pub(super) fn a_session_without_a_turn_does_not_expire(db: &mut Db) -> Result<()> {
    db.ingest(&[msg("a", "x")])?;
    same!(db.ingest(&[msg("a", "empty")])?, "1/1/t/-");
    same!(db.ingest(&[late("b", "empty")?])?, "2/1/f/-");
    same!(db.look("SELECT count(*) FROM sessions WHERE ended_at IS NOT NULL")?, "0");
    Ok(())
}

pub(super) fn all_messages_of_a_batch_go_to_the_new_session(db: &mut Db) -> Result<()> {
    db.ingest(&[msg("a", "x"), msg("b", "y"), msg("c", "x").agent(2)])?;
    let batch =
        [msg("d", "x"), late("e", "x")?, late("f", "y")?, msg("g", "x"), late("h", "x")?, msg("i", "x").agent(2)];
    same!(db.ingest(&batch)?, "4/1/f/- 4/2/f/- 5/1/f/- 4/3/f/- 4/4/f/- 3/2/f/-");
    same!(db.look("SELECT agent_no, session_key, session_id FROM session_keys ORDER BY 1, 2")?, "1|x|4 1|y|5 2|x|3");
    Ok(())
}

pub(super) fn two_replicas_reset_at_once_and_one_session_follows(db: &mut Db) -> Result<()> {
    db.ingest(&[msg("a", "x")])?;
    let later = |key: &str| -> Result<Message> {
        // As of a clock that has seen the first message and not what the other replica does.
        let now: Timestamp = db.look("SELECT to_char(clock_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.USOF')")?.parse()?;
        Ok(msg(key, "x").idle_before(now))
    };
    let (first, second) = (later("b")?, later("c")?);
    let (answer, waited) = db.race(&ingest_sql(&[first]), |db| db.ingest(&[second]))?;
    ensure!(waited);
    same!(answer, "2/2/f/-");
    same!(db.look(SESSIONS)?, "1|1|1|1|idle|t|2 2|3|1|2|-|f|0");
    Ok(())
}

pub(super) fn a_reset_beside_the_end_of_the_old_session_strands_nobody(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    let (answer, waited) = db.race(&ingest_sql(&[late("b", "x")?]), |db| db.complete(&[end(1, 1, 1)]))?;
    ensure!(waited);
    same!(answer, "t/t/-/-");
    same!(db.claim(&[(w, 1)])?, "2/1/1/pb");
    let (answer, waited) =
        db.race(&super::statements::complete_sql(&end(2, 1, 1)), |db| db.ingest(&[late("c", "x")?.on(w, 1)]))?;
    ensure!(waited);
    same!(answer, "3/1/f/1");
    Ok(())
}

pub(super) fn a_message_beside_the_release_of_its_session_is_not_stranded(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.ingest(&[late("b", "x")?])?;
    let (_, waited) = db.race(&ingest_sql(&[msg("c", "x")]), |db| db.complete(&[end(1, 1, 1)]))?;
    ensure!(waited, "the release did not wait for the message");
    same!(db.look("SELECT state, head_seq, tail_seq FROM sessions WHERE session_id = 2")?, "1|1|2");
    same!(db.claim(&[(w, 1)])?, "2/1/1/pb");
    Ok(())
}
