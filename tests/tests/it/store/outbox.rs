//! The outbox beyond the lane: chats that are gone, senders that nobody knows, previews, dead letters, a backlog.

use std::time::Duration;

use anyhow::Result;
use hermes_control_plane::store::{
    Completion, DeliveryId, DeliveryOutcome, PreviewBegin, PreviewEnd, Redrive, SendResult, SessionId, TurnId,
};

use super::db::{Db, TTL, delivered, end_to, msg, same, sent};
use super::statements::complete_sql;

const LANE: &str = "INSERT INTO lanes(lane_id, platform, account, chat_id) OVERRIDING SYSTEM VALUE VALUES (9, 'telegram', 'front', '7')";

fn turn(session: i64) -> TurnId {
    TurnId { session: SessionId(session), seq: 1 }
}

fn gone() -> SendResult {
    SendResult::Gone { reason: "blocked".to_owned(), age: Duration::ZERO, maybe_duplicate: false }
}

fn dead(maybe_duplicate: bool) -> SendResult {
    SendResult::Dead { reason: "no".to_owned(), maybe_duplicate }
}

/// Sessions 1.. with a message each, all running.
fn running(db: &Db, count: i64) -> Result<()> {
    for replica in [1, 2] {
        db.wait(db.store.poll(replica, &[], TTL))?;
    }
    let w = db.worker(1)?;
    for (number, slot) in (1..=count).zip(1..) {
        db.ingest(&[msg(&number.to_string(), &number.to_string()).on(w, slot)])?;
    }
    Ok(())
}

/// Ends the turns of these sessions with replies to lane 9.
fn end(db: &Db, sessions: std::ops::RangeInclusive<i64>) -> Result<Vec<i64>> {
    for session in sessions {
        db.complete(&[end_to(9, session, 1, 1)])?;
    }
    db.positions()
}

pub(super) fn a_dead_chat_is_told_to_whoever_would_send_until_somebody_writes_there(db: &mut Db) -> Result<()> {
    db.run(LANE)?;
    running(db, 4)?;
    let p = end(db, 1..=2)?;
    same!(db.deliver(1, &[sent(9, p[0], 1, gone())])?, format!("t {}/r2.1!", p[1]));
    same!(db.look("SELECT dead_reason, dead_since <= clock_timestamp() FROM lanes")?, "blocked|t");
    same!(db.deliver(1, &[sent(9, p[1], 1, dead(false))])?, "t");
    // A turn that ran meanwhile ends: nobody is bothered; and a replica that never heard of it is told when it asks.
    let p = end(db, 3..=3)?;
    same!(db.wait(db.store.lane_gone(9, turn(3)))?, Some("blocked".to_owned()));
    same!(db.deliver(1, &[sent(9, p[0], 1, dead(false))])?, "t");
    // A message after that proves that the chat lives; what is due then is attempted.
    let w = db.worker(1)?;
    db.ingest(&[msg("5", "5").on(w, 1)])?;
    let p = end(db, 5..=5)?;
    same!(db.wait(db.store.lane_gone(9, turn(5)))?, None);
    let again = SendResult::Retry { after: Duration::ZERO, maybe_duplicate: false, cause: "500".to_owned() };
    same!(db.deliver(1, &[sent(9, p[0], 1, again)])?, "t");
    same!(db.due(2)?, format!("{}/2/0/f/r5.1", p[0]));
    // A success proves it too, also for those that do not know the mark.
    same!(db.deliver(2, &[delivered(9, p[0], 2)])?, "t");
    same!(db.wait(db.store.lane_gone(9, turn(4)))?, None);
    let p = end(db, 4..=4)?;
    let revived = SendResult::Delivered { message_id: None, revived: true };
    same!(db.deliver(1, &[sent(9, p[0], 1, revived)])?, "t");
    same!(db.look("SELECT dead_since, dead_reason FROM lanes")?, "-|-");
    Ok(())
}

pub(super) fn what_was_written_during_the_last_attempt_is_heard(db: &mut Db) -> Result<()> {
    db.run(LANE)?;
    running(db, 1)?;
    let p = end(db, 1..=1)?;
    let w = db.worker(1)?;
    db.ingest(&[msg("2", "2").on(w, 1)])?;
    let an_hour = SendResult::Gone { reason: "blocked".to_owned(), age: TTL * 60, maybe_duplicate: false };
    same!(db.deliver(1, &[sent(9, p[0], 1, an_hour)])?, "t");
    same!(db.wait(db.store.lane_gone(9, turn(2)))?, None);
    Ok(())
}

pub(super) fn an_attempt_of_a_replica_that_nobody_knows_is_taken_over(db: &mut Db) -> Result<()> {
    db.run(LANE)?;
    running(db, 1)?;
    let p = end(db, 1..=1)?[0];
    same!(db.due(2)?, "");
    // Lost and forgotten: nothing but the row itself says whose it was.
    db.run("DELETE FROM replicas WHERE replica_id = 1")?;
    same!(db.due(2)?, format!("{p}/2/0/t/r1.1"));
    same!(db.deliver(1, &[delivered(9, p, 1)])?, "f");
    Ok(())
}

pub(super) fn a_replica_that_counts_as_lost_hands_itself_nothing(db: &mut Db) -> Result<()> {
    db.run(LANE)?;
    running(db, 3)?;
    let p = end(db, 1..=2)?;
    db.wait(db.store.replica_leave(1))?;
    same!(db.deliver(1, &[delivered(9, p[0], 1)])?, "t");
    // Never begun, so it carries no mark.
    same!(db.due(2)?, format!("{}/1/0/f/r2.1", p[1]));
    same!(db.deliver(2, &[delivered(9, p[1], 1)])?, "t");
    same!(db.complete(&[end_to(9, 3, 1, 1)])?, "t/f/-/-");
    same!(db.look("SELECT state, owner FROM outbox")?, "3|-");
    same!(db.due(2)?.ends_with("/1/0/f/r3.1"), true);
    Ok(())
}

pub(super) fn what_has_no_account_waits_for_it_and_counts_no_failure(db: &mut Db) -> Result<()> {
    db.run(LANE)?;
    running(db, 1)?;
    let p = end(db, 1..=1)?[0];
    let parked = SendResult::Parked { account: "telegram/front".to_owned(), maybe_duplicate: false };
    same!(db.deliver(1, &[sent(9, p, 1, parked)])?, "t");
    same!(db.wait(db.store.poll(1, &[], TTL))?.outbox_due, false);
    same!(db.due(1)?, "");
    let account = |name: &str| [name.to_owned()];
    same!(db.wait(db.store.unpark(&account("telegram/other"), 9))?, 0);
    same!(db.wait(db.store.unpark(&account("telegram/front"), 9))?, 1);
    same!(db.wait(db.store.unpark(&account("telegram/front"), 9))?, 0);
    same!(db.due(1)?, format!("{p}/2/0/f/r1.1"));
    same!(db.look("SELECT failures, parked FROM outbox")?, "0|-");
    Ok(())
}

pub(super) fn an_empty_reply_is_no_delivery_unless_its_chat_shows_the_turn(db: &mut Db) -> Result<()> {
    running(db, 2)?;
    let silent = |session| Completion { reply: Vec::new(), ..end_to(9, session, 1, 1) };
    same!(db.complete(&[silent(1)])?, "t/f/-/-");
    same!(db.look("SELECT count(*) FROM outbox")?, "0");
    same!(db.wait(db.store.preview_begin(1, 9, turn(2)))?, PreviewBegin::Send);
    same!(db.complete(&[silent(2)])?, "t/t/-/-");
    Ok(())
}

pub(super) fn a_shown_turn_has_one_message_whoever_ends_it(db: &mut Db) -> Result<()> {
    running(db, 2)?;
    let (begin, take) = (
        |db: &Db, replica| db.wait(db.store.preview_begin(replica, 9, turn(1))),
        |db: &Db, replica, body: &[u8]| db.wait(db.store.preview_take(replica, turn(1), body)),
    );
    same!(begin(db, 1)?, PreviewBegin::Send);
    // Until its id is stored, nobody knows whether the message is there.
    same!(begin(db, 1)?, PreviewBegin::Never);
    same!(db.wait(db.store.preview_sent(2, turn(1), "m0"))?, false);
    same!(db.wait(db.store.preview_sent(1, turn(1), "m1"))?, true);
    same!(begin(db, 1)?, PreviewBegin::Edit("m1".to_owned()));
    same!(begin(db, 2)?, PreviewBegin::NotNow);
    db.wait(db.store.preview_release(1, turn(1)))?;
    same!(begin(db, 2)?, PreviewBegin::Edit("m1".to_owned()));
    same!(take(db, 2, b"r1.1")?, PreviewEnd::None);
    end(db, 1..=1)?;
    same!(begin(db, 2)?, PreviewBegin::Never);
    same!(take(db, 1, b"r1.1")?, PreviewEnd::Held);
    same!(take(db, 1, b"a notice")?, PreviewEnd::None);
    db.wait(db.store.replica_leave(2))?;
    same!(take(db, 1, b"r1.1")?, PreviewEnd::Edit("m1".to_owned()));
    same!(take(db, 1, b"r1.1")?, PreviewEnd::Edit("m1".to_owned()));
    db.wait(db.store.preview_forget(turn(1)))?;
    same!(take(db, 1, b"r1.1")?, PreviewEnd::None);
    Ok(())
}

pub(super) fn a_message_that_nobody_knows_of_makes_the_answer_a_marked_one(db: &mut Db) -> Result<()> {
    running(db, 1)?;
    same!(db.wait(db.store.preview_begin(1, 9, turn(1)))?, PreviewBegin::Send);
    end(db, 1..=1)?;
    same!(db.wait(db.store.preview_take(1, turn(1), b"r1.1"))?, PreviewEnd::Unknown);
    // It was certainly not sent after all.
    db.wait(db.store.preview_unsent(1, turn(1)))?;
    same!(db.wait(db.store.preview_take(1, turn(1), b"r1.1"))?, PreviewEnd::None);
    Ok(())
}

pub(super) fn a_turn_is_shown_only_while_nothing_waits_before_it(db: &mut Db) -> Result<()> {
    running(db, 2)?;
    let p = end(db, 1..=1)?[0];
    let begin = |db: &Db| db.wait(db.store.preview_begin(1, 9, turn(2)));
    same!(begin(db)?, PreviewBegin::NotNow);
    db.deliver(1, &[delivered(9, p, 1)])?;
    same!(begin(db)?, PreviewBegin::Send);
    Ok(())
}

pub(super) fn a_turn_that_ends_meanwhile_is_not_shown(db: &mut Db) -> Result<()> {
    running(db, 1)?;
    let (begun, waited) =
        db.race(&complete_sql(&end_to(9, 1, 1, 1)), |db| Ok(db.wait(db.store.preview_begin(1, 9, turn(1)))?))?;
    same!((begun, waited), (PreviewBegin::Never, true));
    same!(db.look("SELECT count(*) FROM previews")?, "0");
    Ok(())
}

pub(super) fn a_dead_letter_is_redriven_once_behind_what_its_chat_has(db: &mut Db) -> Result<()> {
    db.run(LANE)?;
    running(db, 4)?;
    let p = end(db, 1..=3)?;
    let id = |pos| DeliveryId { lane: 9, pos };
    let redrive = |db: &Db, pos| db.wait(db.store.delivery_redrive(id(pos), "me"));
    let refused =
        |redriven: Redrive<DeliveryId>, word: &str| matches!(redriven, Redrive::Refused(why) if why.contains(word));
    same!(refused(redrive(db, p[0])?, "not over"), true);
    same!(refused(redrive(db, 999)?, "no delivery"), true);
    // Two parts arrived, the third one perhaps.
    db.deliver(1, &[DeliveryOutcome { part: 2, ..sent(9, p[0], 1, dead(true)) }])?;
    same!(db.look("SELECT state, part, maybe_dup FROM deliveries")?, "4|2|t");
    let Redrive::Done(again) = redrive(db, p[0])? else { anyhow::bail!("refused") };
    same!(refused(redrive(db, p[0])?, &again.to_string()), true);
    same!(db.look("SELECT redriven_by FROM deliveries")?, "me");
    same!(db.deliver(1, &[delivered(9, p[1], 1)])?, format!("t {}/r3.1", p[2]));
    same!(refused(redrive(db, p[1])?, "delivered"), true);
    same!(db.deliver(1, &[delivered(9, p[2], 1)])?, format!("t {}/r1.1", again.pos));
    same!(db.look("SELECT part, maybe_dup, redriven FROM outbox")?, "2|t|t");
    // A chat that is marked dead is tried all the same: a person asked for it.
    same!(db.deliver(1, &[sent(9, again.pos, 1, gone())])?, "t");
    let Redrive::Done(last) = redrive(db, again.pos)? else { anyhow::bail!("refused") };
    same!(db.wait(db.store.outbox_claim(1, 9))?.iter().map(|due| due.gone.clone()).collect::<Vec<_>>(), [None]);
    same!(db.deliver(1, &[delivered(9, last.pos, 1)])?, "t");
    // A notice of its own keeps its text.
    db.run("SELECT enqueue(9, 4, 1, 'notice')")?;
    let notice = db.positions()?[0];
    db.due(1)?;
    db.deliver(1, &[sent(9, notice, 1, dead(false))])?;
    redrive(db, notice)?;
    same!(db.due(1)?.ends_with("/1/0/f/notice"), true);
    Ok(())
}

pub(super) fn a_backlog_costs_a_claim_no_more_than_it_takes(db: &mut Db) -> Result<()> {
    running(db, 1)?;
    // A platform that is down for hours, an account that is missing, attempts of a replica that lives.
    db.run(
        "INSERT INTO outbox(lane_id, pos, head, state, next_at, parked, owner, session_id, seq, body)
           SELECT g, g, true, CASE WHEN g % 3 = 2 THEN 1 ELSE 3 END, CASE g % 3 WHEN 0 THEN 'infinity' WHEN 1 THEN now() - interval '1 min' END,
                  CASE WHEN g % 3 = 0 THEN 'telegram/front' END, CASE WHEN g % 3 = 2 THEN 2 END, 1, 1, 'x' FROM generate_series(1, 100000) g;
         ANALYZE outbox",
    )?;
    let read =
        "SELECT pg_stat_get_xact_numscans('outbox'::regclass), pg_stat_get_xact_tuples_returned('outbox'::regclass),
                  pg_stat_get_xact_tuples_fetched('outbox'::regclass) < 200";
    for call in ["SELECT count(*) FROM claim_outbox(1, 9)", "SELECT unpark('{telegram/front}', 9)"] {
        let mut held = db.hold(call)?;
        same!(format!("{call}: {}", held.look(read)?), format!("{call}: 0|0|t"));
        drop(held);
    }
    same!(db.due(1)?.split(' ').count(), 9);
    Ok(())
}
