//! The outbox: order within a lane, one in flight, retries, parts and senders that died.

use std::time::Duration;

use anyhow::Result;
use hermes_control_plane::store::{DeliveryOutcome, LaneKey, SendResult};

use super::db::{Db, TTL, again, delivered, end_to, msg, same, sent};
use super::statements::complete_sql;

/// Sessions 1.. of `count` messages whose replies all go to lane 9; the first is `attempting`.
fn replies(db: &Db, count: i64) -> Result<Vec<i64>> {
    let w = db.worker(1)?;
    for (number, slot) in (1..=count).zip(1..) {
        db.ingest(&[msg(&number.to_string(), &number.to_string()).on(w, slot)])?;
        db.complete(&[end_to(9, number, 1, 1)])?;
    }
    db.positions()
}

pub(super) fn a_lane_keeps_its_order_with_one_in_flight(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "y").on(w, 2), msg("c", "z").on(w, 3)])?;
    same!(db.complete(&[end_to(9, 1, 1, 1), end_to(9, 2, 1, 1)])?, "t/t/-/- t/f/-/-");
    same!(db.complete(&[end_to(9, 3, 1, 1)])?, "t/f/-/-");
    let p = db.positions()?;
    same!(db.look("SELECT count(*) FROM outbox WHERE state = 1")?, "1");
    same!(db.deliver(1, &[delivered(9, p[1], 1)])?, "f");
    same!(db.deliver(1, &[delivered(9, p[0], 1)])?, format!("t {}/r2.1", p[1]));
    same!(db.deliver(1, &[delivered(9, p[0], 1), delivered(9, p[1], 1)])?, format!("f t {}/r3.1", p[2]));
    same!(db.deliver(1, &[delivered(9, p[2], 1)])?, "t");
    same!(db.look("SELECT session_id FROM deliveries ORDER BY pos")?, "1 2 3");
    same!(db.look("SELECT count(*) FROM outbox")?, "0");
    Ok(())
}

pub(super) fn a_retry_keeps_the_lane_and_a_dead_sender_marks_a_possible_duplicate(db: &mut Db) -> Result<()> {
    for replica in [1, 2] {
        db.wait(db.store.poll(replica, &[], TTL))?;
    }
    let p = replies(db, 2)?[0];
    same!(db.deliver(1, &[sent(9, p, 1, again())])?, "t");
    same!(db.due(2)?, format!("{p}/2/0/f/r1.1"));
    same!(db.deliver(1, &[delivered(9, p, 1)])?, "f");
    same!(db.deliver(2, &[delivered(9, p, 1)])?, "f");
    same!(db.due(1)?, "");
    db.wait(db.store.replica_leave(2))?;
    same!(db.due(1)?, format!("{p}/3/0/t/r1.1"));
    same!(db.deliver(2, &[delivered(9, p, 2)])?, "f");
    same!(db.deliver(1, &[delivered(9, p, 3)])?.ends_with("/r2.1"), true);
    same!(db.look("SELECT attempts, maybe_dup FROM deliveries")?, "3|t");
    Ok(())
}

pub(super) fn the_reply_and_its_delivery_are_one_transaction(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    drop(db.hold(&complete_sql(&end_to(9, 1, 1, 1)))?);
    same!(db.look("SELECT state, head_seq FROM sessions")?, "2|1");
    same!(db.look("SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM turn_steps)")?, "0|0");
    same!(db.complete(&[end_to(9, 1, 1, 1)])?, "t/t/-/-");
    same!(db.look("SELECT count(*) FROM turn_steps JOIN outbox USING (session_id, seq) WHERE ended = 2")?, "1");
    Ok(())
}

pub(super) fn parts_that_arrived_survive_a_retry_and_a_dead_sender(db: &mut Db) -> Result<()> {
    for replica in [1, 2] {
        db.wait(db.store.poll(replica, &[], TTL))?;
    }
    let p = replies(db, 1)?[0];
    let at = |part, attempt, result| DeliveryOutcome { part, ..sent(9, p, attempt, result) };
    same!(db.deliver(1, &[at(1, 1, SendResult::Progress)])?, "t");
    same!(db.look("SELECT part, state, owner, attempt, maybe_dup FROM outbox")?, "1|1|1|1|f");
    same!(db.deliver(1, &[at(2, 1, SendResult::Progress)])?, "t");
    same!(db.deliver(1, &[at(2, 1, again())])?, "t");
    same!(db.due(1)?, format!("{p}/2/2/f/r1.1"));
    let ambiguous = SendResult::Retry { after: Duration::ZERO, maybe_duplicate: true, cause: "cut".to_owned() };
    same!(db.deliver(1, &[at(2, 2, ambiguous)])?, "t");
    same!(db.due(1)?, format!("{p}/3/2/t/r1.1"));
    // The doubtful part arrived for certain: the next one is not in doubt.
    same!(db.deliver(1, &[at(3, 3, SendResult::Progress)])?, "t");
    same!(db.look("SELECT part, maybe_dup FROM outbox")?, "3|f");
    db.wait(db.store.replica_leave(1))?;
    same!(db.due(2)?, format!("{p}/4/3/t/r1.1"));
    same!(db.deliver(2, &[at(4, 4, SendResult::Delivered { message_id: None, revived: false })])?, "t");
    same!(db.look("SELECT state, attempts FROM deliveries")?, "2|4");
    Ok(())
}

pub(super) fn a_retry_is_not_due_before_its_time(db: &mut Db) -> Result<()> {
    let p = replies(db, 1)?[0];
    let later =
        SendResult::Retry { after: Duration::from_secs(600), maybe_duplicate: false, cause: "later".to_owned() };
    same!(db.deliver(1, &[sent(9, p, 1, later)])?, "t");
    same!(db.due(1)?, "");
    same!(db.wait(db.store.poll(1, &[], TTL))?.outbox_due, false);
    same!(
        db.look("SELECT next_at - clock_timestamp() BETWEEN interval '9 min' AND interval '10 min' FROM outbox")?,
        "t"
    );
    db.run("UPDATE outbox SET next_at = clock_timestamp()")?;
    same!(db.wait(db.store.poll(1, &[], TTL))?.outbox_due, true);
    same!(db.due(1)?, format!("{p}/2/0/f/r1.1"));
    Ok(())
}

pub(super) fn a_dead_delivery_lets_the_next_one_go(db: &mut Db) -> Result<()> {
    let p = replies(db, 2)?;
    let dead = SendResult::Dead { reason: "chat gone".to_owned(), maybe_duplicate: false };
    same!(db.deliver(1, &[sent(9, p[0], 1, dead)])?, format!("t {}/r2.1", p[1]));
    same!(db.look("SELECT state || ':' || replace(reason, ' ', '_') FROM deliveries")?, "4:chat_gone");
    Ok(())
}

pub(super) fn a_stale_report_does_not_spoil_the_valid_one_of_its_batch(db: &mut Db) -> Result<()> {
    let p = replies(db, 1)?[0];
    same!(db.deliver(1, &[sent(9, p, 1, again())])?, "t");
    same!(db.due(1)?, format!("{p}/2/0/f/r1.1"));
    same!(db.deliver(1, &[delivered(9, p, 1), delivered(9, p, 2)])?, "f t");
    same!(db.look("SELECT count(*) FROM outbox")?, "0");
    Ok(())
}

pub(super) fn a_replica_does_not_take_its_own_attempts_for_a_dead_senders(db: &mut Db) -> Result<()> {
    db.wait(db.store.poll(1, &[], TTL))?;
    replies(db, 1)?;
    // The others think that it is gone, and it is only late.
    db.run("UPDATE replicas SET lost_at = clock_timestamp()")?;
    same!(db.due(1)?, "");
    db.wait(db.store.poll(1, &[], TTL))?;
    same!(db.due(2)?, "");
    Ok(())
}

pub(super) fn what_a_lost_answer_handed_over_is_still_held(db: &mut Db) -> Result<()> {
    let p = replies(db, 2)?;
    let held = |db: &Db| -> Result<Vec<(i64, i32, Vec<u8>)>> {
        let held = db.wait(db.store.outbox_held(1))?;
        Ok(held.into_iter().map(|held| (held.pos, held.attempt, held.body)).collect())
    };
    same!(held(db)?, [(p[0], 1, b"r1.1".to_vec())]);
    // The next one of the lane is ours, and a repeated report does not say so again.
    db.deliver(1, &[delivered(9, p[0], 1)])?;
    same!(db.deliver(1, &[delivered(9, p[0], 1)])?, "f");
    same!(held(db)?, [(p[1], 1, b"r2.1".to_vec())]);
    same!(db.wait(db.store.outbox_held(2))?.len(), 0);
    db.deliver(1, &[sent(9, p[1], 1, again())])?;
    same!(held(db)?, []);
    Ok(())
}

pub(super) fn a_chat_has_one_lane_whoever_asks_first(db: &mut Db) -> Result<()> {
    let chat = |thread: &str| LaneKey {
        platform: "telegram".to_owned(),
        account: "bot".to_owned(),
        chat_id: "7".to_owned(),
        thread_id: thread.to_owned(),
    };
    let first = "INSERT INTO lanes(platform, account, chat_id) VALUES ('telegram', 'bot', '7') RETURNING lane_id";
    let (lane, waited) = db.race(first, |db| Ok(db.wait(db.store.lane_ensure(&chat("")))?))?;
    same!(waited, true);
    same!(lane, 1);
    same!(db.wait(db.store.lane_ensure(&chat("")))?, 1);
    let topic = db.wait(db.store.lane_ensure(&chat("3")))?;
    same!(topic == 1, false);
    same!(db.wait(db.store.lane_get(topic))?, chat("3"));
    Ok(())
}

pub(super) fn being_asked_to_wait_is_no_failure(db: &mut Db) -> Result<()> {
    db.wait(db.store.poll(1, &[], TTL))?;
    let p = replies(db, 1)?[0];
    let wait = || SendResult::Wait { after: Duration::ZERO, maybe_duplicate: false, cause: "busy".to_owned() };
    same!(db.deliver(1, &[sent(9, p, 1, wait())])?, "t");
    same!(db.look("SELECT state, attempt, failures FROM outbox")?, "3|2|0");
    same!(db.due(1)?, format!("{p}/2/0/f/r1.1"));
    same!(db.deliver(1, &[sent(9, p, 2, again())])?, "t");
    same!(db.look("SELECT state, attempt, failures FROM outbox")?, "3|3|1");
    same!(db.due(1)?, format!("{p}/3/0/f/r1.1"));
    // Words of a platform never keep an outcome from being stored.
    same!(
        db.deliver(1, &[sent(9, p, 3, SendResult::Dead { reason: "a\0b".to_owned(), maybe_duplicate: false })])?,
        "t"
    );
    same!(db.look("SELECT reason FROM deliveries")?, "a\u{fffd}b");
    Ok(())
}
