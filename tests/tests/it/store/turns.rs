//! Turns: dedupe, order, leases, the fence, the journal and crashes.

use std::time::Duration;

use anyhow::Result;
use hermes_control_plane::store::GivenUp;
use sha2::{Digest as _, Sha256};

use super::db::{Db, end, end_keep, end_to, msg, same};
use super::statements::journal_sql;
use crate::store::db::delivered;

pub(super) fn duplicates_inside_and_across_batches(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    let first = [msg("a", "x").on(w, 1), msg("a", "x").on(w, 2), msg("b", "x").on(w, 3), msg("a", "x").on(w, 4)];
    same!(db.ingest(&first)?, "1/1/f/1 1/1/t/- 1/2/f/- 1/1/t/-");
    same!(
        db.ingest(&[msg("b", "x").on(w, 2), msg("c", "x").on(w, 3), msg("a", "y").on(w, 4)])?,
        "1/2/t/- 1/3/f/- 1/1/t/-"
    );
    same!(db.look("SELECT count(*) FROM turns")?, "3");
    same!(db.look("SELECT count(*) FROM inbound")?, "3");
    same!(db.look("SELECT state, head_seq, tail_seq FROM sessions WHERE session_key = 'y'")?, "0|1|0");
    Ok(())
}

pub(super) fn a_past_is_the_newest_turns_that_fit_and_no_more(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    for seq in 1..=5 {
        // A text of 3 bytes with much around it, and a reply of 4.
        let mut message = msg(&format!("m{seq}"), "x").on(w, 1);
        message.0.payload = format!(r#"{{"text":"abc","other":"{}"}}"#, "s".repeat(20_000)).into_bytes();
        db.ingest(&[message])?;
        db.complete(&[end(1, seq, seq)])?;
    }
    let past = |after, before, bytes| -> Result<Vec<i64>> {
        let rows = db.wait(db.store.transcript("s1".parse()?, after, before, bytes))?;
        Ok(rows.iter().map(|row| row.seq).collect())
    };
    same!(past(0, 9, 1000)?, [1, 2, 3, 4, 5]);
    same!(past(0, 9, 21)?, [3, 4, 5]);
    same!(past(0, 9, 20)?, [4, 5]);
    same!(past(0, 5, 14)?, [3, 4]);
    same!(past(3, 9, 1000)?, [4, 5]);
    same!(past(0, 9, 6)?, [0_i64; 0]);
    Ok(())
}

pub(super) fn one_key_for_two_sessions_of_a_batch_names_the_first(db: &mut Db) -> Result<()> {
    same!(db.ingest(&[msg("a", "x"), msg("a", "y"), msg("a", "x").agent(2)])?, "1/1/f/- 1/1/t/- 1/1/t/-");
    same!(db.look("SELECT session_id, seq FROM turns")?, "1|1");
    Ok(())
}

pub(super) fn another_body_under_a_known_key_is_a_conflict(db: &mut Db) -> Result<()> {
    same!(
        db.ingest(&[msg("a", "x").body("h"), msg("a", "x").body("h"), msg("a", "x").body("i")])?,
        "1/1/f/- 1/1/t/- 1/1/conflict/-"
    );
    same!(
        db.ingest(&[msg("a", "x").body("i"), msg("a", "x").body("h"), msg("b", "x").body("i")])?,
        "1/1/conflict/- 1/1/t/- 1/2/f/-"
    );
    same!(db.look("SELECT count(*) FROM turns")?, "2");
    // Where nobody hashes the body nothing can conflict.
    same!(db.ingest(&[msg("c", "x"), msg("c", "x")])?, "1/3/f/- 1/3/t/-");
    same!(db.ingest(&[msg("c", "x")])?, "1/3/t/-");
    Ok(())
}

pub(super) fn one_new_key_of_two_agents_makes_two_sessions(db: &mut Db) -> Result<()> {
    same!(db.ingest(&[msg("a", "x"), msg("b", "x").agent(2), msg("c", "x")])?, "1/1/f/- 2/1/f/- 1/2/f/-");
    same!(db.look("SELECT agent_no, session_key, session_id FROM session_keys ORDER BY 1")?, "1|x|1 2|x|2");
    same!(db.look("SELECT session_id, agent_no FROM sessions ORDER BY 1")?, "1|1 2|2");
    Ok(())
}

pub(super) fn one_bad_message_does_not_spoil_its_batch(db: &mut Db) -> Result<()> {
    // No letter twice in a row that a compressor could use, as long as a key may be and one byte longer.
    let noise = |length: usize| {
        let digest = |round: usize| hex::encode(Sha256::digest(round.to_le_bytes()));
        (0..length).map(digest).collect::<String>().chars().take(length).collect::<String>()
    };
    let batch =
        [msg("a", "x"), msg("b", &noise(2049)), msg("c", ""), msg("d", &noise(2048)), msg("e", "x\0y"), msg("f", "x")];
    let rows: Vec<_> = batch.iter().map(|message| message.0.clone()).collect();
    let stored: Vec<bool> =
        db.wait(db.store.ingest(&rows, super::db::MOST, super::db::TTL)).iter().map(|row| row.is_ok()).collect();
    same!(stored, [true, false, false, true, false, true]);
    same!(db.look("SELECT convert_from(payload, 'UTF8') FROM turns ORDER BY created_at")?, "pa pd pf");
    // A completion that cannot be stored fails alone too.
    let w = db.worker(1)?;
    same!(db.claim(&[(w, 1), (w, 2)])?.split(' ').count(), 2);
    let mut bad = end(1, 1, 1);
    bad.usage = serde_json::json!({ "model": "\0" });
    let other: i64 = db.look("SELECT session_id FROM turns WHERE payload = 'pd'")?.parse()?;
    let answers = db.wait(db.store.complete(1, &[bad, end(other, 1, 1)], super::db::TTL));
    same!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
    same!(db.complete(&[end(1, 1, 1)])?, "t/f/-/-");
    Ok(())
}

pub(super) fn order_holds_within_a_batch(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[
        msg("a", "x").on(w, 1),
        msg("b", "y").lane(Some(2)).on(w, 2),
        msg("c", "x").on(w, 3),
        msg("d", "x").on(w, 4),
        msg("e", "y").lane(Some(2)).on(w, 5),
    ])?;
    let order = "SELECT convert_from(payload, 'UTF8') FROM turns ORDER BY session_id, seq";
    same!(db.look(order)?, "pa pc pd pb pe");
    same!(db.look("SELECT count(*) FROM ready")?, "0");
    same!(db.complete(&[end_keep(1, 1, 1), end_to(2, 2, 1, 1)])?, "t/t/2/pc t/t/-/-");
    same!(db.claim(&[(w, 2), (w, 3)])?, "2/2/2/pe");
    same!(db.complete(&[end_keep(1, 2, 2)])?, "t/f/3/pd");
    same!(db.look("SELECT count(*) FROM sessions WHERE state = 2")?, "2");
    Ok(())
}

pub(super) fn a_busy_session_is_not_leased_twice(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    same!(db.ingest(&[msg("b", "x").on(w, 2)])?, "1/2/f/-");
    same!(db.journal(&[(1, 1, 1, 1, "s")])?, "1");
    same!(db.look("SELECT epoch, state FROM sessions")?, "1|2");
    Ok(())
}

pub(super) fn an_old_epoch_is_refused_and_the_rest_of_the_batch_stored(db: &mut Db) -> Result<()> {
    let (w, v) = (db.worker(1)?, db.worker(1)?);
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "y").lane(Some(2)).on(v, 1)])?;
    db.expire(w)?;
    same!(db.reclaim()?, "1/1/f");
    db.ripen()?;
    same!(db.claim(&[(v, 2)])?, "1/1/3/pa");
    same!(db.journal(&[(1, 1, 1, 1, "stale"), (2, 1, 1, 1, "ok"), (1, 3, 1, 2, "new")])?, "0 1 1");
    same!(db.complete(&[end(1, 1, 1), end_to(2, 2, 1, 1)])?, "f/f/-/- t/t/-/-");
    same!(db.look("SELECT count(*) FROM turn_steps WHERE body = 'stale'")?, "0");
    same!(db.look("SELECT session_id FROM outbox")?, "2");
    same!(db.complete(&[end(1, 1, 1), end(1, 3, 1), end(1, 3, 1)])?, "f/f/-/- t/t/-/- t/f/-/-");
    same!(db.look("SELECT count(*) FROM outbox WHERE session_id = 1")?, "1");
    same!(db.look("SELECT head_seq, state FROM sessions WHERE session_id = 1")?, "2|0");
    Ok(())
}

pub(super) fn calls_whose_answers_were_lost_can_be_repeated(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").lane(Some(9)).on(w, 3)])?;
    same!(db.ingest(&[msg("a", "x").lane(Some(9)).on(w, 4)])?, "1/1/t/-");
    let assigned = db.wait(db.store.assigned(&[w]))?;
    let shown: Vec<_> = assigned.iter().map(|one| (one.worker, one.slot, one.turn.to_string(), one.epoch)).collect();
    same!(shown, [(w, 3, "t1.1".to_owned(), 1)]);
    same!((assigned[0].session_key.as_str(), assigned[0].next.payload.as_slice()), ("x", b"pa".as_slice()));
    let last = [end_to(9, 1, 1, 1)];
    same!(db.complete(&last)?, "t/t/-/-");
    same!(db.complete(&last)?, "t/f/-/-");
    let p = db.positions()?;
    let repeated = db.wait(db.store.complete(1, &last, super::db::TTL)).remove(0)?;
    same!(repeated.delivery, Some(p[0]));
    same!(db.look("SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM turn_steps)")?, "1|1");
    same!(db.look("SELECT head_seq FROM sessions")?, "2");
    same!(db.deliver(1, &[delivered(9, p[0], 1)])?, "t");
    same!(db.deliver(1, &[delivered(9, p[0], 1)])?, "f");
    same!(db.look("SELECT count(*) FROM deliveries")?, "1");
    same!(db.wait(db.store.assigned(&[w]))?.len(), 0);
    Ok(())
}

pub(super) fn a_turn_taken_back_and_not_yet_claimed_is_fenced(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.expire(w)?;
    db.reclaim()?;
    same!(db.journal(&[(1, 1, 1, 1, "s"), (1, 2, 1, 2, "s")])?, "0 0");
    same!(db.complete(&[end(1, 1, 1), end(1, 2, 1)])?, "f/f/-/- f/f/-/-");
    Ok(())
}

pub(super) fn a_journal_can_be_replayed_but_not_changed(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    same!(db.journal(&[(1, 1, 1, 1, "s"), (1, 1, 1, 1, "s"), (1, 1, 1, 2, "t"), (1, 1, 1, 2, "u")])?, "1 2 1 -1");
    same!(db.journal(&[(1, 1, 1, 1, "s"), (1, 1, 1, 1, "z"), (1, 1, 1, i32::MAX, "end")])?, "2 -1 -1");
    same!(db.look(&journal_sql(&[(1, 1, 2, 1, "not begun")]))?, "0");
    Ok(())
}

pub(super) fn a_lost_worker_or_one_of_another_agent_gets_no_lease(db: &mut Db) -> Result<()> {
    let (w, other) = (db.worker(1)?, db.worker(2)?);
    db.expire(w)?;
    same!(db.ingest(&[msg("a", "x").on(w, 1)])?, "1/1/f/-");
    same!(db.claim(&[(w, 1)])?, "");
    same!(db.wait(db.store.poll(1, &[w], super::db::TTL))?.alive, Vec::<i64>::new());
    same!(db.ingest(&[msg("b", "y").lane(Some(2)).on(other, 1)])?, "2/1/f/-");
    same!(db.claim(&[(other, 1)])?, "");
    let draining = db.worker(1)?;
    db.wait(db.store.workers_drain(&[draining]))?;
    same!(db.ingest(&[msg("c", "z").on(draining, 1)])?, "3/1/f/-");
    same!(db.claim(&[(draining, 1)])?, "");
    Ok(())
}

pub(super) fn a_waiting_session_is_left_to_its_worker_for_a_while_if_that_lives(db: &mut Db) -> Result<()> {
    let (long, none) = (Duration::from_secs(60), Duration::ZERO);
    let (last, other) = (db.worker(1)?, db.worker(1)?);
    db.ingest(&[msg("a", "x").on(last, 1), msg("b", "y").on(last, 2), msg("c", "z").on(last, 3)])?;
    db.complete(&[end(1, 1, 1), end(2, 1, 1), end(3, 1, 1)])?;
    db.ingest(&[msg("d", "x"), msg("e", "y"), msg("f", "z")])?;
    same!(db.claim_sticky(&[(other, 1)], long)?, "sticky");
    same!(db.claim_sticky(&[(other, 1)], none)?, "1/2/2/pd");
    same!(db.claim_sticky(&[(last, 1)], long)?, "2/2/2/pe sticky");
    // Nobody is left to wait for.
    db.expire(last)?;
    same!(db.claim_sticky(&[(other, 2)], long)?, "3/2/2/pf");
    same!(db.claim_sticky(&[(other, 3)], long)?, "");
    Ok(())
}

pub(super) fn a_draining_worker_keeps_its_turn_and_gets_no_next_one(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x")])?;
    db.wait(db.store.workers_drain(&[w]))?;
    same!(db.complete(&[end_keep(1, 1, 1)])?, "t/t/-/-");
    same!(db.look("SELECT state, head_seq FROM sessions")?, "1|2");
    same!(db.look("SELECT session_id, prefer FROM ready")?, format!("1|{w}"));
    Ok(())
}

pub(super) fn the_third_crash_is_a_dead_letter_and_the_next_turn_runs(db: &mut Db) -> Result<()> {
    let mut w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x")])?;
    for crash in [1, 2] {
        db.expire(w)?;
        same!(db.reclaim()?, "1/1/f");
        same!(db.look("SELECT crashes FROM sessions")?, crash.to_string());
        w = db.worker(1)?;
        db.ripen()?;
        same!(db.claim(&[(w, 1)])?, format!("1/1/{}/pa", 2 * crash + 1));
    }
    db.expire(w)?;
    same!(db.reclaim()?, "1/1/t");
    same!(db.look("SELECT session_id, seq, reason FROM dead_turns")?, "1|1|crashed");
    same!(db.look("SELECT convert_from(body, 'UTF8'), state FROM outbox")?, "sorry|3");
    w = db.worker(1)?;
    same!(db.claim(&[(w, 1)])?, "1/2/7/pb");
    same!(db.look("SELECT crashes FROM sessions")?, "0");
    Ok(())
}

pub(super) fn a_late_end_at_its_old_replica_leases_nothing_to_a_worker_that_left(db: &mut Db) -> Result<()> {
    let old = db.worker_as(1, "same", 2)?;
    db.ingest(&[msg("a", "x").on(old, 1), msg("b", "x")])?;
    let new = db.worker_at(2, 1, "same", 2)?;
    same!(db.wait(db.store.adopt(new, "same"))?.len(), 1);
    // The report had reached replica 1 before the worker went to replica 2.
    same!(db.complete(&[end_keep(1, 1, 1)])?, "t/t/-/-");
    same!(db.look("SELECT state, epoch FROM sessions")?, "1|1");
    same!(db.claim(&[(new, 1)])?, "1/2/2/pb");
    Ok(())
}

pub(super) fn a_turn_is_given_up_under_its_own_fence_only(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x"), msg("c", "y").on(w, 2)])?;
    let row = |turn: &str, epoch| -> Result<GivenUp> {
        Ok(GivenUp { turn: turn.parse()?, epoch, reason: "deadline", notice: "too long" })
    };
    // An old fence, the same turn twice in a batch, a turn that only waits.
    let rows = [row("t1.1", 0)?, row("t1.1", 1)?, row("t1.1", 1)?, row("t1.2", 1)?, row("t2.1", 1)?];
    same!(db.wait(db.store.give_up(&rows))?, [false, true, false, false, true]);
    same!(db.look("SELECT session_id, seq, reason FROM dead_turns ORDER BY 1")?, "1|1|deadline 2|1|deadline");
    same!(db.look("SELECT session_id, state, head_seq FROM sessions ORDER BY 1")?, "1|1|2 2|0|2");
    same!(
        db.look("SELECT convert_from(body, 'UTF8') FROM outbox ORDER BY pos")?,
        "too_long too_long".replace('_', " ")
    );
    // What its worker still reports is refused, and the next message runs.
    same!(db.complete(&[end(1, 1, 1)])?, "f/f/-/-");
    same!(db.claim(&[(w, 1)])?, "1/2/3/pb");
    Ok(())
}

pub(super) fn a_turn_without_a_lane_has_no_delivery(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").lane(None).on(w, 1), msg("b", "y").on(w, 2)])?;
    let mut silent = end(1, 1, 1);
    silent.lane = None;
    same!(db.complete(&[silent.clone(), end(2, 1, 1)])?, "t/f/-/- t/t/-/-");
    same!(db.complete(&[silent])?, "t/f/-/-");
    same!(db.look("SELECT session_id FROM outbox")?, "2");
    let turn = db.wait(db.store.turn_get("t1.1".parse()?))?;
    same!(turn.reply, b"r1.1");
    // A dead letter of such a turn is kept for its caller too.
    let mut w = db.worker(1)?;
    db.ingest(&[msg("c", "z").lane(None).on(w, 1)])?;
    for _ in 0..3 {
        db.expire(w)?;
        db.reclaim()?;
        w = db.worker(1)?;
        db.ripen()?;
        db.claim(&[(w, 1)])?;
    }
    same!(db.look("SELECT ended, convert_from(reply, 'UTF8') FROM transcripts WHERE session_id = 3")?, "4|sorry");
    same!(db.look("SELECT session_id FROM outbox")?, "2");
    Ok(())
}
