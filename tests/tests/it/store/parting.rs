//! Parting with workers: what is handed back, who left in order, who is only late, and who can go on with what.

use std::time::Duration;

use anyhow::Result;
use hermes_control_plane::store::Parting;

use super::db::{Db, TTL, end, msg, same};

/// The certificate of one worker process.
const PROCESS: &str = "11111111-1111-1111-1111-111111111111";

pub(super) fn a_turn_handed_back_runs_before_younger_ones_and_counts_no_crash(db: &mut Db) -> Result<()> {
    let (leaving, other) = (db.worker(1)?, db.worker(1)?);
    db.ingest(&[msg("a", "x").on(leaving, 1), msg("b", "x"), msg("c", "y").on(leaving, 2)])?;
    db.ingest(&[msg("d", "young")])?;
    same!(db.release(&[(2, 1, 1), (1, 1, 1)])?, "t t");
    same!(
        db.look("SELECT session_id, state, epoch, crashes, head_seq, worker_id, deadline FROM sessions ORDER BY 1")?,
        "1|1|2|0|1|-|- 2|1|2|0|1|-|- 3|1|0|0|1|-|-"
    );
    same!(db.look("SELECT session_id, prefer, needs FROM ready ORDER BY ready_at, session_id")?, "1|-|- 2|-|- 3|-|-");
    // Whoever had it is fenced, and one free slot takes the oldest.
    same!(db.complete(&[end(1, 1, 1)])?.starts_with('f'), true);
    same!(db.claim(&[(other, 1)])?, "1/1/3/pa");
    same!(db.complete(&[end(1, 3, 1)])?, "t/t/-/-");
    Ok(())
}

pub(super) fn only_who_runs_a_turn_hands_it_back_and_once(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "y").on(w, 2)])?;
    same!(db.release(&[(1, 7, 1), (1, 1, 2), (9, 1, 1)])?, "f f f");
    same!(db.look("SELECT count(*) FROM ready")?, "0");
    // The same twice in one batch, and again after its answer was lost.
    same!(db.release(&[(1, 1, 1), (1, 1, 1)])?, "t f");
    same!(db.release(&[(1, 1, 1)])?, "f");
    same!(db.complete(&[end(2, 1, 1)])?, "t/t/-/-");
    same!(db.release(&[(2, 1, 1)])?, "f");
    same!(db.look("SELECT session_id FROM ready")?, "1");
    Ok(())
}

pub(super) fn who_leaves_in_order_crashes_nothing_and_who_dies_does(db: &mut Db) -> Result<()> {
    for _ in 0..4 {
        let w = db.worker(1)?;
        if db.look("SELECT count(*) FROM sessions")? == "0" {
            db.ingest(&[msg("a", "x").on(w, 1)])?;
        } else {
            same!(db.claim(&[(w, 1)])?.starts_with("1/1/"), true);
        }
        db.wait(db.store.workers_lose(&[w], true))?;
        same!(db.reclaim()?, "1/1/f");
        same!(db.look("SELECT state, crashes FROM sessions")?, "1|0");
        // At once: it was accepted long ago.
        same!(db.look("SELECT r.ready_at = q.created_at FROM ready r, turns q")?, "t");
    }
    for crashes in 1..=2 {
        let w = db.worker(1)?;
        db.ripen()?;
        db.claim(&[(w, 1)])?;
        db.wait(db.store.workers_lose(&[w], false))?;
        same!(db.reclaim()?, "1/1/f");
        same!(db.look("SELECT crashes FROM sessions")?, crashes.to_string());
    }
    // Two crashes and an orderly leave are two crashes.
    let w = db.worker(1)?;
    db.ripen()?;
    db.claim(&[(w, 1)])?;
    db.wait(db.store.workers_lose(&[w], true))?;
    same!(db.reclaim()?, "1/1/f");
    same!(db.look("SELECT crashes FROM sessions")?, "2");
    Ok(())
}

pub(super) fn leases_that_lapse_while_nobody_polls_have_one_more_to_be_heard_of(db: &mut Db) -> Result<()> {
    let workers = [db.worker(1)?, db.worker(1)?, db.worker(1)?, db.worker(1)?];
    for (index, w) in workers.iter().enumerate() {
        db.ingest(&[msg(&format!("m{index}"), &format!("s{index}")).on(*w, 1)])?;
    }
    // While somebody polls, whoever is late is silent, however many they are; their turns are taken back at once.
    db.expire(workers[2])?;
    db.expire(workers[3])?;
    same!(db.reclaim()?, "3/1/f 4/1/f");
    // The clock jumps: one is over its lease, one nearly.
    db.expire(workers[0])?;
    let nearly = "clock_timestamp() + interval '2 s'";
    db.run(&format!("UPDATE workers SET lease_until = {nearly} WHERE worker_id = {}", workers[1]))?;
    db.stand_still()?;
    same!(db.reclaim()?, "");
    same!(db.look("SELECT count(*) FROM workers WHERE NOT lost AND suspected_at IS NOT NULL")?, "2");
    // Whoever is heard of goes on under the same fence, although others poll again and its lease is over by now.
    db.expire(workers[1])?;
    same!(db.reclaim()?, "");
    same!(db.wait(db.store.poll(1, &workers[..1], TTL))?.alive, workers[..1].to_vec());
    same!(db.complete(&[end(1, 1, 1)])?, "t/t/-/-");
    same!(db.reclaim()?, "");
    // The other one is not heard of until the time is over.
    db.run("UPDATE workers SET suspected_at = suspected_at - interval '61 s' WHERE suspected_at IS NOT NULL")?;
    same!(db.reclaim()?, "2/1/f");
    same!(db.wait(db.store.poll(1, &workers, TTL))?.alive, workers[..1].to_vec());
    Ok(())
}

pub(super) fn the_poll_that_first_sees_a_jump_renews_its_workers(db: &mut Db) -> Result<()> {
    let workers = [db.worker(1)?, db.worker(1)?, db.worker(1)?];
    for w in &workers {
        db.expire(*w)?;
    }
    db.stand_still()?;
    same!(db.wait(db.store.poll(1, &workers, TTL))?.alive, workers.to_vec());
    same!(db.look("SELECT count(*) FROM workers WHERE suspected_at IS NULL AND lease_until > now()")?, "3");
    // Who is late while others poll was late by itself.
    db.expire(workers[0])?;
    same!(db.wait(db.store.poll(1, &workers, TTL))?.alive, workers[1..].to_vec());
    Ok(())
}

pub(super) fn two_polls_that_see_a_jump_do_not_wait_in_a_circle(db: &mut Db) -> Result<()> {
    let (mine, theirs) = (db.worker(1)?, db.worker(1)?);
    for w in [mine, theirs] {
        db.expire(w)?;
    }
    db.stand_still()?;
    // The first has suspected both and is about to renew its own.
    let ((), waited) = db.race("SELECT suspect(60000)", |db| {
        same!(db.wait(db.store.poll(2, &[theirs], TTL))?.alive, vec![theirs]);
        Ok(())
    })?;
    same!(waited, true);
    same!(db.wait(db.store.poll(1, &[mine], TTL))?.alive, vec![mine]);
    Ok(())
}

pub(super) fn a_turn_with_steps_is_left_to_workers_that_can_go_on_with_it(db: &mut Db) -> Result<()> {
    let (old, new) = (db.worker_as(1, PROCESS, 1)?, db.worker(1)?);
    db.ingest(&[msg("a", "x").on(new, 1), msg("b", "y").on(new, 2), msg("c", "z").on(new, 3)])?;
    same!(db.journal(&[(1, 1, 1, 0, "step"), (2, 1, 1, 0, "step")])?, "1 1");
    same!(db.release(&[(1, 1, 1), (3, 1, 1)])?, "t t");
    db.wait(db.store.workers_lose(&[new], false))?;
    same!(db.reclaim()?, "2/1/f");
    same!(db.look("SELECT session_id, needs FROM ready ORDER BY 1")?, "1|2 2|2 3|-");
    let new = db.worker(1)?;
    // Together with an older worker none of them is given away that this one could be given.
    same!(db.claim(&[(new, 1), (old, 1), (old, 2)])?, "3/1/3/pc");
    same!(db.claim(&[(old, 1), (old, 2)])?, "");
    same!(db.claim(&[(new, 2), (new, 3)])?, "1/1/3/pa 2/1/3/pb");
    Ok(())
}

pub(super) fn a_worker_to_part_with_is_told_wherever_it_is_and_stays_so(db: &mut Db) -> Result<()> {
    let (leaving, staying) = (db.worker_as(1, PROCESS, 2)?, db.worker(2)?);
    db.ingest(&[msg("a", "x").on(leaving, 1)])?;
    let part = |which: Parting, grace| db.wait(db.store.workers_part(&which, Duration::from_secs(grace)));
    same!(part(Parting::Agent("nobody".to_owned()), 30)?, Vec::<i64>::new());
    same!(part(Parting::Agent("a".to_owned()), 30)?, vec![leaving]);
    same!(part(Parting::Workers(vec![leaving, 99]), 5)?, vec![leaving]);
    // The shorter time counts, also when a longer one is said later.
    same!(part(Parting::Workers(vec![leaving]), 60)?, vec![leaving]);
    let told = db.wait(db.store.poll(1, &[leaving, staying], TTL))?.draining;
    same!(told.iter().map(|(worker, _)| *worker).collect::<Vec<_>>(), vec![leaving]);
    same!(told[0].1 <= Duration::from_secs(5) && told[0].1 > Duration::from_secs(1), true);
    // Another replica has nothing to tell.
    same!(db.wait(db.store.poll(2, &[], TTL))?.draining.is_empty(), true);
    same!(db.ingest(&[msg("b", "y").on(leaving, 2)])?, "2/1/f/-");
    same!(db.claim(&[(leaving, 2)])?, "");
    // Its stream broke before it was told: as its process comes back, it is still to leave.
    let again = db.worker_as(1, PROCESS, 2)?;
    same!(db.wait(db.store.adopt(again, PROCESS))?.len(), 1);
    same!(db.claim(&[(again, 2)])?, "");
    same!(db.wait(db.store.poll(1, &[again], TTL))?.draining[0].0, again);
    let left = db.wait(db.store.workers_leaving(&[leaving]))?;
    same!(left.iter().map(|left| (left.worker, left.running)).collect::<Vec<_>>(), vec![(again, 1)]);
    same!(part(Parting::All, 30)?, vec![staying, again]);
    db.wait(db.store.workers_lose(&[again], true))?;
    same!(db.wait(db.store.workers_leaving(&[leaving]))?.is_empty(), true);
    Ok(())
}

pub(super) fn what_is_left_of_a_turns_time_survives_an_adoption(db: &mut Db) -> Result<()> {
    let w = db.worker_as(1, PROCESS, 2)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.run("UPDATE sessions SET deadline = deadline - interval '40 s'")?;
    let again = db.worker_as(1, PROCESS, 2)?;
    let held = db.wait(db.store.adopt(again, PROCESS))?;
    // The limit of a turn is TTL here.
    same!(held[0].left > Duration::from_secs(10) && held[0].left <= Duration::from_secs(20), true);
    db.run("UPDATE sessions SET deadline = now() - interval '1 s'")?;
    same!(db.wait(db.store.assigned(&[again]))?[0].left, Duration::ZERO);
    // A next attempt has its own time.
    db.release(&[(1, 1, 1)])?;
    let other = db.worker(1)?;
    db.claim(&[(other, 1)])?;
    same!(db.wait(db.store.assigned(&[other]))?[0].left > Duration::from_secs(50), true);
    Ok(())
}

pub(super) fn nothing_that_was_handed_out_before_a_fence_is_valid_after_it(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "a").on(w, 1), msg("b", "b").on(w, 2)])?;
    db.ingest(&[msg("c", "c")])?;
    db.journal(&[(1, 1, 1, 0, "step")])?;
    db.complete(&[end(2, 1, 1)])?;
    let fenced = db.wait(db.store.fence())?;
    same!((fenced.sessions, fenced.workers), (3, 1));
    same!(db.look("SELECT state, crashes, epoch - 4294967296 FROM sessions ORDER BY session_id")?, "1|0|1 0|0|1 1|0|0");
    same!(db.look("SELECT session_id, needs FROM ready ORDER BY 1")?, "1|2 3|-");
    same!(db.complete(&[end(1, 1, 1)])?.starts_with('f'), true);
    same!(db.wait(db.store.poll(1, &[w], TTL))?.alive, Vec::<i64>::new());
    same!(db.look("SELECT DISTINCT maybe_dup FROM outbox")?, "t");
    let next = db.worker(1)?;
    same!(next > 1_000_000, true);
    same!(db.wait(db.store.replica_register())? > 1_000_000, true);
    same!(db.ingest(&[msg("d", "new")])?.starts_with("1000000"), true);
    same!(db.claim(&[(next, 1)])?, "1/1/4294967298/pa");
    same!(db.complete(&[end(1, 4_294_967_298, 1)])?.starts_with('t'), true);
    // Fenced and noted where it lives, it may be used.
    db.wait(db.store.origin_check())?;
    same!(db.look("SELECT fenced FROM origins")?, "1");
    // A row that was written anew is of a copy, whatever it says.
    db.run("UPDATE origins SET at = at")?;
    same!(db.wait(db.store.origin_check()).is_err(), true);
    db.wait(db.store.fence())?;
    db.wait(db.store.origin_check())?;
    db.run("UPDATE origins SET timeline = timeline + 1, writer = pg_current_xact_id()::text::bigint")?;
    same!(db.wait(db.store.origin_check()).is_err(), true);
    db.run("UPDATE origins SET timeline = timeline - 1, writer = pg_current_xact_id()::text::bigint")?;
    db.wait(db.store.origin_check())?;
    Ok(())
}
