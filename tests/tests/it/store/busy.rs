//! Busy sessions: stops, interruptions, messages taken in, and the bounds of queues.

use std::time::Duration;

use anyhow::{Result, ensure};
use hermes_control_plane::store::Absorbed;
use hermes_core::busy::BusyMode;
use jiff::Timestamp;

use super::db::{Db, end, end_keep, end_to, msg, same};
use super::statements::{RECLAIM_SQL, absorb_sql, complete_sql, stop_sql};

/// Longer than a drill takes.
const LONG: Duration = Duration::from_secs(600);

const ENDS: &str = "SELECT seq, ended FROM turn_steps WHERE ended IS NOT NULL ORDER BY session_id, seq";
const SAID: &str = "SELECT convert_from(coalesce(o.body, t.reply), 'UTF8') FROM outbox o \
    LEFT JOIN transcripts t ON t.session_id = o.session_id AND t.seq = o.seq ORDER BY pos";

pub(super) fn a_stop_is_for_the_turn_that_ran_and_never_for_the_next(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x"), msg("c", "y").on(w, 2)])?;
    same!(db.stop("s", "x")?, "asked t1.1");
    same!(db.signals(&[w])?, format!("{w}:t1.1/1/stop"));
    same!(db.signals(&[w + 1])?, "");
    // It ended by itself first: the stop is void, the next turn runs on.
    same!(db.complete(&[end_keep(1, 1, 1)])?, "t/t/2/pb");
    same!(db.signals(&[w])?, "");
    same!(db.look("SELECT count(*) FROM turn_signals")?, "0");
    same!(db.complete(&[end(1, 2, 2)])?, "t/f/-/-");
    same!(db.look(SAID)?, "r1.1 r1.2");
    Ok(())
}

pub(super) fn a_stop_beside_the_end_of_its_turn_leaves_the_next_one_alone(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    let (answer, waited) = db.race(&complete_sql(&end(1, 1, 1)), |db| db.stop("s", "x"))?;
    ensure!(waited);
    same!(answer, "nothing");
    db.ingest(&[msg("b", "x").on(w, 1), msg("c", "x")])?;
    let (answer, waited) = db.race(&complete_sql(&end_keep(1, 2, 2)), |db| db.stop("t", "x"))?;
    ensure!(waited);
    // The one that ran when it committed.
    same!(answer, "asked t1.3");
    let (answer, waited) = db.race(&stop_sql("u", "x"), |db| db.complete(&[end(1, 3, 3)]))?;
    ensure!(waited);
    same!(answer, "t/f/-/-");
    db.ingest(&[msg("d", "x").on(w, 1)])?;
    same!(db.signals(&[w])?, "");
    Ok(())
}

pub(super) fn a_stop_that_comes_twice_acts_once(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x")])?;
    same!(db.stop("s", "x")?, "asked t1.1");
    db.complete(&[end_keep(1, 1, 1)])?;
    same!(db.stop("s", "x")?, "ended t1.1 again");
    same!(db.signals(&[w])?, "");
    // At the same time, too.
    let (answer, waited) = db.race(&stop_sql("t", "x"), |db| db.stop("t", "x"))?;
    ensure!(waited);
    same!(answer, "ended t1.2 again");
    same!(db.stop("u", "nobody")?, "nothing");
    same!(db.stop("u", "nobody")?, "nothing again");
    same!(db.look("SELECT count(*) FROM outbox WHERE body = 'nothing'")?, "1");
    // A stop is no turn, and a message under its key is a duplicate.
    same!(db.ingest(&[msg("t", "x")])?, "1/2/t/-");
    same!(db.look("SELECT count(*) FROM turns")?, "2");
    Ok(())
}

pub(super) fn a_stop_where_nothing_runs_says_so(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.complete(&[end(1, 1, 1)])?;
    same!(db.stop("s", "x")?, "nothing");
    same!(db.look(SAID)?, "r1.1 nothing");
    same!(db.look("SELECT count(*) FROM turn_signals")?, "0");
    Ok(())
}

pub(super) fn a_turn_that_waits_is_stopped_at_once_and_the_next_one_runs(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x"), msg("c", "y").lane(None)])?;
    // In its backoff after a crash.
    db.expire(w)?;
    same!(db.reclaim()?, "1/1/f");
    db.run("UPDATE ready SET ready_at = clock_timestamp() + interval '1 hour'")?;
    same!(db.stop("s", "x")?, "cancelled t1.1");
    same!(db.look(ENDS)?, "1|5");
    same!(db.look(SAID)?, "sorry");
    let v = db.worker(1)?;
    same!(db.claim(&[(v, 1)])?, "1/2/4/pb");
    same!(db.look("SELECT crashes FROM sessions WHERE session_id = 1")?, "0");
    // The last one of its session leaves nothing to claim, one without a lane nothing to say.
    same!(db.stop_turn(2, 0)?, "cancelled t2.1");
    same!(db.look("SELECT count(*) FROM ready")?, "0");
    db.ripen()?;
    same!(db.claim(&[(v, 2)])?, "");
    same!(db.look("SELECT state, head_seq FROM sessions WHERE session_id = 2")?, "0|2");
    same!(db.look(SAID)?, "sorry");
    same!(db.ingest(&[msg("d", "y").on(v, 3)])?, "2/2/f/2");
    Ok(())
}

pub(super) fn a_stop_beside_a_claim_stops_the_turn_either_way(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x")])?;
    let claim = format!("SELECT o_session FROM claim_batch('{{{w}}}', '{{1}}', 0, 60000)");
    let (answer, waited) = db.race(&claim, |db| db.stop("s", "x"))?;
    ensure!(waited);
    same!(answer, "asked t1.1");
    same!(db.signals(&[w])?, format!("{w}:t1.1/1/stop"));
    db.ingest(&[msg("b", "y")])?;
    let (answer, waited) = db.race(&stop_sql("t", "y"), |db| db.claim(&[(w, 2)]))?;
    ensure!(!waited, "the claim waited");
    same!(answer, "");
    same!(db.look("SELECT state, head_seq FROM sessions WHERE session_id = 2")?, "0|2");
    Ok(())
}

pub(super) fn a_stop_in_a_session_that_waits_for_another_strands_nobody(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    let later = Timestamp::now() + Duration::from_secs(3600);
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    same!(db.ingest(&[msg("b", "x").idle_before(later)])?, "2/1/f/-");
    same!(db.stop("s", "x")?, "cancelled t2.1");
    same!(db.ingest(&[msg("c", "x").idle_before(later)])?, "3/1/f/-");
    // The first one runs dry; the second has nothing left; the third goes.
    same!(db.complete(&[end(1, 1, 1)])?, "t/f/-/-");
    same!(db.claim(&[(w, 2)])?, "3/1/1/pc");
    Ok(())
}

pub(super) fn an_operators_stop_names_one_turn(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    same!(db.stop_turn(1, 0)?, "nothing");
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x"), msg("c", "x")])?;
    same!(db.stop_turn(1, 2)?, "behind t1.2");
    same!(db.absorb((1, 1, 1), 1, 2)?, Absorbed::Stored);
    same!(db.stop_turn(1, 2)?, "absorbed t1.2");
    same!(db.stop_turn(1, 4)?, "nothing");
    same!(db.signals(&[w])?, "");
    same!(db.stop_turn(1, 0)?, "asked t1.1");
    same!(db.complete(&[end_keep(1, 1, 1)])?, "t/t/2/pc");
    same!(db.stop_turn(1, 1)?, "ended t1.1");
    same!(db.signals(&[w])?, "");
    Ok(())
}

pub(super) fn a_stopped_turn_that_lost_its_worker_ends(db: &mut Db) -> Result<()> {
    let (w, v) = (db.worker(1)?, db.worker(1)?);
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x"), msg("c", "y").lane(Some(2)).on(v, 1)])?;
    db.stop("s", "x")?;
    db.stop("t", "y")?;
    same!(db.settle(LONG)?, "");
    // Another worker gets it and hears of the stop again.
    db.expire(w)?;
    db.reclaim()?;
    db.ripen()?;
    same!(db.claim(&[(v, 2)])?, "1/1/3/pa");
    same!(db.signals(&[v])?, format!("{v}:t1.1/3/stop {v}:t2.1/1/stop"));
    db.expire(v)?;
    let u = db.worker(1)?;
    let (ended, _) = db.race(RECLAIM_SQL, |db| db.settle(LONG))?;
    // Beside the reclaim or after it, each of them ends, with a word for its chat.
    let after = db.settle(LONG)?;
    same!(format!("{ended} {after}").trim().to_owned(), "t1.1/- t2.1/-");
    same!(db.look("SELECT session_id, seq, ended FROM turn_steps ORDER BY 1")?, "1|1|5 2|1|5");
    same!(db.look("SELECT lane_id, convert_from(body, 'UTF8') FROM outbox ORDER BY 1")?, "1|sorry 2|sorry");
    db.ripen()?;
    same!(db.claim(&[(u, 1)])?, "1/2/6/pb");
    // One whose worker does not answer is ended over its head.
    db.stop("u", "x")?;
    same!(db.settle(LONG)?, "");
    same!(db.settle(Duration::ZERO)?, format!("t1.2/{u}"));
    same!(db.complete(&[end(1, 6, 2)])?, "f/f/-/-");
    same!(db.look("SELECT state, head_seq, worker_id FROM sessions WHERE session_id = 1")?, "0|3|-");
    Ok(())
}

pub(super) fn an_interruption_is_for_the_turn_that_ran(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    let interrupt = |key| msg(key, "x").busy(BusyMode::Interrupt);
    // Nothing ran: nothing is interrupted, also by what follows in the same commit.
    db.ingest(&[interrupt("a").on(w, 1), interrupt("b")])?;
    same!(db.signals(&[w])?, "");
    same!(db.ingest(&[interrupt("c")])?, "1/3/f/-");
    same!(db.ingest(&[interrupt("c"), interrupt("d")])?, "1/3/t/- 1/4/f/-");
    same!(db.signals(&[w])?, format!("{w}:t1.1/1/interrupt"));
    let mut gone = end_keep(1, 1, 1);
    gone.ended = hermes_control_plane::store::Ended::Cancelled;
    same!(db.complete(&[gone])?, "t/t/2/pb");
    // The ones behind it go in order, none of them interrupted.
    same!(db.signals(&[w])?, "");
    same!(db.complete(&[end_keep(1, 2, 2)])?, "t/f/3/pc");
    // A stop goes over an interruption, not the other way round.
    db.ingest(&[interrupt("e")])?;
    db.stop("s", "x")?;
    db.ingest(&[interrupt("f")])?;
    same!(db.signals(&[w])?, format!("{w}:t1.3/3/stop"));
    // A known message interrupts nobody.
    db.complete(&[end_keep(1, 3, 3)])?;
    db.ingest(&[interrupt("c")])?;
    same!(db.signals(&[w])?, "");
    // An interrupted turn without a worker goes without a word.
    db.ingest(&[interrupt("g")])?;
    db.expire(w)?;
    db.reclaim()?;
    let said = db.look("SELECT count(*) FROM outbox")?;
    same!(db.settle(LONG)?, "t1.4/-");
    same!(db.look("SELECT count(*) FROM outbox")?, said);
    Ok(())
}

pub(super) fn a_steering_message_is_offered_and_taken_in_once(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    let steer = |key| msg(key, "x").busy(BusyMode::Steer);
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.ingest(&[steer("b"), steer("c")])?;
    same!(db.signals(&[w])?, format!("{w}:t1.1/1/>2:pb"));
    // Not the next one, not there, an old fence, another turn.
    same!(db.absorb((1, 1, 1), 1, 3)?, Absorbed::Refused);
    same!(db.absorb((1, 1, 1), 1, 1)?, Absorbed::Refused);
    same!(db.absorb((1, 0, 1), 1, 2)?, Absorbed::Fenced);
    same!(db.absorb((1, 1, 2), 1, 2)?, Absorbed::Fenced);
    same!(db.absorb((1, 1, 1), 1, 2)?, Absorbed::Stored);
    same!(db.absorb((1, 1, 1), 1, 2)?, Absorbed::Stored);
    same!(db.absorb((1, 1, 1), 1, 3)?, Absorbed::Diverged);
    same!(db.absorb((1, 1, 1), 2, 2)?, Absorbed::Refused);
    same!(db.absorb((1, 1, 1), i32::MAX, 3)?, Absorbed::Diverged);
    same!(db.signals(&[w])?, format!("{w}:t1.1/1/>3:pc"));
    same!(db.absorb((1, 1, 1), 2, 3)?, Absorbed::Stored);
    same!(db.absorb((1, 1, 1), 3, 4)?, Absorbed::Refused);
    same!(db.signals(&[w])?, format!("{w}:t1.1/1/>"));
    same!(db.look("SELECT head_seq, tail_seq, absorbed FROM sessions")?, "1|3|2");
    same!(db.look(ENDS)?, "2|6 3|6");
    let journaled = "SELECT step, idem_key, convert_from(body, 'UTF8') FROM turn_steps WHERE seq = 1 ORDER BY step";
    same!(db.look(journaled)?, "1|2|b2 2|3|b3");
    Ok(())
}

pub(super) fn what_was_taken_in_leaves_the_queue_with_the_turn_that_took_it(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").says("one").on(w, 1), msg("b", "x").says("two"), msg("c", "x"), msg("d", "x")])?;
    db.absorb((1, 1, 1), 1, 2)?;
    // Waiting for it is waiting for the turn that took it in.
    let taken = |db: &Db| db.wait(db.store.turn_get("t1.2".parse()?)).map_err(anyhow::Error::from);
    let turn = taken(db)?;
    same!((turn.end().is_none(), turn.running, turn.absorbed_by), (true, true, Some(1)));
    same!(db.complete(&[end_keep(1, 1, 1)])?, "t/t/2/pc");
    same!(db.look("SELECT head_seq, absorbed FROM sessions")?, "3|0");
    let turn = taken(db)?;
    same!((turn.state().as_str(), turn.reply.as_slice()), ("succeeded", b"r1.1".as_slice()));
    same!(db.look(SAID)?, "r1.1");
    // Its words stand in the dialogue, before the answer that they went into.
    let dialogue = db.wait(db.store.transcript("s1".parse()?, 0, 9, 1000))?;
    let shown: Vec<_> = dialogue.iter().map(|row| (row.seq, row.said.join(" "))).collect();
    same!(shown, [(1, "one two".to_owned())]);
    // The last ones of a session: it is idle.
    db.absorb((1, 2, 3), 1, 4)?;
    same!(db.complete(&[end_keep(1, 2, 3)])?, "t/f/-/-");
    same!(db.look("SELECT head_seq, tail_seq, absorbed, state FROM sessions")?, "5|4|0|0");
    same!(db.ingest(&[msg("e", "x").on(w, 1)])?, "1/5/f/3");
    Ok(())
}

pub(super) fn a_page_of_what_was_taken_in_is_not_the_end_of_the_past(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").says("before").on(w, 1)])?;
    db.complete(&[end_keep(1, 1, 1)])?;
    let big = |key: &str| {
        let mut message = msg(key, "x");
        message.0.payload = format!(r#"{{"text":"{key}","other":"{}"}}"#, "s".repeat(40_000)).into_bytes();
        message
    };
    db.ingest(&[msg("b", "x").says("one").on(w, 1)])?;
    db.ingest(&[big("two"), big("three"), big("four")])?;
    for (step, message) in [(1, 3), (2, 4), (3, 5)] {
        same!(db.absorb((1, 2, 2), step, message)?, Absorbed::Stored);
    }
    db.complete(&[end_keep(1, 2, 2)])?;
    let dialogue = db.wait(db.store.transcript("s1".parse()?, 0, 9, 1000))?;
    let shown: Vec<_> = dialogue.iter().map(|row| (row.seq, row.said.join(" "))).collect();
    same!(shown, [(1, "before".to_owned()), (2, "one two three four".to_owned())]);
    Ok(())
}

pub(super) fn a_message_that_is_not_taken_in_runs_by_itself(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.ingest(&[msg("b", "x").busy(BusyMode::Steer)])?;
    let (answer, waited) = db.race(&complete_sql(&end(1, 1, 1)), |db| db.absorb((1, 1, 1), 1, 2))?;
    ensure!(waited);
    same!(answer, Absorbed::Fenced);
    same!(db.claim(&[(w, 1)])?, "1/2/2/pb");
    same!(db.signals(&[w])?, "");
    db.ingest(&[msg("c", "x").busy(BusyMode::Steer)])?;
    let (answer, waited) = db.race(&absorb_sql((1, 2, 2), 3), |db| db.complete(&[end_keep(1, 2, 2)]))?;
    ensure!(waited);
    same!(answer, "t/f/-/-");
    same!(db.look("SELECT head_seq, absorbed, state FROM sessions")?, "4|0|0");
    same!(db.look(ENDS)?, "1|2 2|2 3|6");
    Ok(())
}

pub(super) fn what_was_taken_in_survives_a_crash_and_dies_with_its_turn(db: &mut Db) -> Result<()> {
    let mut w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x"), msg("c", "x").busy(BusyMode::Steer)])?;
    db.absorb((1, 1, 1), 1, 2)?;
    for epoch in [3, 5] {
        db.expire(w)?;
        same!(db.reclaim()?, "1/1/f");
        w = db.worker(1)?;
        db.ripen()?;
        same!(db.claim(&[(w, 1)])?, format!("1/1/{epoch}/pa"));
        same!(db.look("SELECT absorbed FROM sessions")?, "1");
        // The same words again are in the journal already.
        same!(db.absorb((1, epoch, 1), 1, 2)?, Absorbed::Stored);
    }
    db.expire(w)?;
    same!(db.reclaim()?, "1/1/t");
    same!(db.look("SELECT head_seq, absorbed, state FROM sessions")?, "3|0|1");
    same!(db.wait(db.store.turn_get("t1.2".parse()?))?.state().as_str(), "dead");
    same!(db.look(SAID)?, "sorry");
    w = db.worker(1)?;
    same!(db.claim(&[(w, 1)])?, "1/3/7/pc");
    Ok(())
}

pub(super) fn a_turn_that_is_to_end_takes_nothing_in(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x").busy(BusyMode::Steer), msg("c", "x")])?;
    db.stop("s", "x")?;
    same!(db.absorb((1, 1, 1), 1, 2)?, Absorbed::Refused);
    // What it took in before ends with it, what it did not goes on.
    db.complete(&[end_keep(1, 1, 1)])?;
    same!(db.absorb((1, 2, 2), 1, 3)?, Absorbed::Stored);
    db.ingest(&[msg("d", "x").busy(BusyMode::Interrupt)])?;
    same!(db.settle(Duration::ZERO)?, format!("t1.2/{w}"));
    same!(db.look("SELECT head_seq, absorbed, state FROM sessions")?, "4|0|1");
    same!(db.claim(&[(w, 1)])?, "1/4/4/pd");
    Ok(())
}

pub(super) fn taking_in_beside_a_stop_is_one_or_the_other(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x"), msg("c", "y").on(w, 2), msg("d", "y")])?;
    let (answer, waited) = db.race(&stop_sql("s", "x"), |db| db.absorb((1, 1, 1), 1, 2))?;
    ensure!(waited);
    same!(answer, Absorbed::Refused);
    let (answer, waited) = db.race(&absorb_sql((2, 1, 1), 2), |db| db.stop("t", "y"))?;
    ensure!(waited);
    same!(answer, "asked t2.1");
    same!(db.look("SELECT absorbed FROM sessions ORDER BY session_id")?, "0 1");
    Ok(())
}

pub(super) fn what_was_taken_in_is_not_cancelled_with_its_agent(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x"), msg("c", "x")])?;
    db.absorb((1, 1, 1), 1, 2)?;
    db.expire(w)?;
    db.reclaim()?;
    db.run("UPDATE agents SET removed_at = now() WHERE agent_no = 1")?;
    same!(db.wait(db.store.removed_cancel("gone"))?, 2);
    same!(db.look(ENDS)?, "1|5 2|6 3|5");
    same!(db.look("SELECT head_seq, tail_seq, absorbed, state FROM sessions")?, "4|3|0|0");
    Ok(())
}

pub(super) fn a_full_session_keeps_the_first_come_and_nothing_of_the_rest(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    let batch = [msg("a", "x").on(w, 1), msg("b", "x"), msg("c", "x"), msg("c", "x"), msg("d", "y"), msg("a", "x")];
    same!(db.ingest_most(2, &batch)?, "1/1/f/1 1/2/f/- full full 2/1/f/- 1/1/t/-");
    same!(db.ingest_most(2, &[msg("c", "x").busy(BusyMode::Interrupt), msg("b", "x")])?, "full 1/2/t/-");
    same!(db.signals(&[w])?, "");
    same!(db.look("SELECT head_seq, tail_seq FROM sessions WHERE session_id = 1")?, "1|2");
    same!(db.look("SELECT (SELECT count(*) FROM turns), (SELECT count(*) FROM inbound)")?, "3|3");
    // One has ended, or was taken in: there is room for one, and the order is that of arrival.
    db.complete(&[end_keep(1, 1, 1)])?;
    same!(db.ingest_most(2, &[msg("e", "x"), msg("c", "x")])?, "1/3/f/- full");
    db.absorb((1, 2, 2), 1, 3)?;
    same!(db.ingest_most(2, &[msg("c", "x")])?, "1/4/f/-");
    // A session that is full and does not run (another bound, a moment ago) is not leased for what is refused.
    db.ingest(&[msg("f", "z").lane(Some(3)), msg("g", "z")])?;
    same!(db.ingest_most(1, &[msg("h", "z").on(w, 5)])?, "full");
    same!(db.complete(&[end_to(1, 1, 2, 2)])?, "t/f/-/-");
    Ok(())
}

pub(super) fn the_backlog_counts_turns_that_wait(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    same!(db.wait(db.store.backlog(10))?, []);
    db.ingest(&[msg("a", "x"), msg("b", "x"), msg("c", "y"), msg("d", "z").agent(2), msg("e", "w").on(w, 1)])?;
    db.run("UPDATE ready SET ready_at = clock_timestamp() - interval '90 s' WHERE agent_no = 1")?;
    let backlog = db.wait(db.store.backlog(10))?;
    let shown: Vec<_> = backlog.iter().map(|one| (one.agent_no, one.queued, one.oldest.as_secs() / 60)).collect();
    same!(shown, [(1, 3, 1), (2, 1, 0)]);
    same!(db.wait(db.store.backlog(1))?[0].queued, 2);
    // One in its backoff is not late yet.
    db.run("UPDATE ready SET ready_at = clock_timestamp() + interval '1 hour'")?;
    same!(db.wait(db.store.backlog(10))?[0].oldest, Duration::ZERO);
    Ok(())
}
