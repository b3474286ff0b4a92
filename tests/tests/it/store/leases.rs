//! Leases of workers and replicas.

use std::time::Duration;

use anyhow::{Result, ensure};
use hermes_core::config::Retention;

use super::db::{Db, TTL, msg, same};

pub(super) fn a_poll_renews_live_leases_only(db: &mut Db) -> Result<()> {
    let (live, expired, lost) = (db.worker(1)?, db.worker(1)?, db.worker(1)?);
    db.expire(expired)?;
    db.wait(db.store.workers_lose(&[lost], false))?;
    let answer = db.wait(db.store.poll(1, &[live, expired, lost, 999], TTL))?;
    same!(answer.alive, [live]);
    same!(answer.lost, true);
    let left = "SELECT worker_id FROM workers WHERE NOT lost AND lease_until > clock_timestamp()";
    same!(db.look(left)?, live.to_string());
    // A shorter lease than it had at first: this poll's.
    let renewed = "SELECT lease_until - clock_timestamp() BETWEEN interval '30 s' AND interval '60 s' FROM workers WHERE worker_id = ";
    same!(db.look(&format!("{renewed}{live}"))?, "t");
    db.reclaim()?;
    same!(db.wait(db.store.poll(1, &[expired], TTL))?.alive, Vec::<i64>::new());
    Ok(())
}

pub(super) fn a_poll_tells_every_loop_what_there_is(db: &mut Db) -> Result<()> {
    let quiet = db.wait(db.store.poll(1, &[], TTL))?;
    same!(
        (quiet.version, quiet.ready.len(), quiet.outbox_due, quiet.lost, quiet.removed, quiet.homes),
        (0, 0, false, false, false, 0)
    );
    db.ingest(&[msg("a", "x").agent(2)])?;
    db.run(
        "INSERT INTO outbox(lane_id, pos, head, state, next_at, session_id, seq) VALUES (1, 1, true, 3, now(), 1, 1)",
    )?;
    db.run("UPDATE agents SET home_version = 5; UPDATE documents SET version = 7")?;
    let told = db.wait(db.store.poll(1, &[], TTL))?;
    same!((told.version, told.ready, told.outbox_due, told.homes), (7, vec![2], true, 10));
    // Work for later is not told.
    db.run("UPDATE ready SET ready_at = now() + interval '1 h'; UPDATE outbox SET next_at = now() + interval '1 h'")?;
    let told = db.wait(db.store.poll(1, &[], TTL))?;
    same!((told.ready.len(), told.outbox_due), (0, false));
    Ok(())
}

pub(super) fn a_replica_is_lost_with_its_lease_and_comes_back(db: &mut Db) -> Result<()> {
    db.wait(db.store.poll(1, &[], TTL))?;
    db.wait(db.store.poll(2, &[], TTL))?;
    db.run("UPDATE replicas SET lease_until = now() - interval '1 s' WHERE replica_id = 2")?;
    same!(db.wait(db.store.poll(1, &[], TTL))?.outbox_due, true);
    let lost = "SELECT replica_id, lost_at IS NOT NULL FROM replicas ORDER BY 1";
    same!(db.look(lost)?, "1|f 2|t");
    db.wait(db.store.poll(2, &[], TTL))?;
    same!(db.look(lost)?, "1|f 2|f");
    Ok(())
}

pub(super) fn replicas_that_were_all_late_do_not_wait_for_each_other(db: &mut Db) -> Result<()> {
    for replica in [1, 2] {
        db.wait(db.store.poll(replica, &[], TTL))?;
    }
    db.run("UPDATE replicas SET lease_until = now() - interval '1 s'")?;
    // Replica 1 has renewed its own lease and has not looked at the others yet.
    let renewing = "UPDATE replicas SET lease_until = now() + interval '1 min' WHERE replica_id = 1";
    let (_, waited) = db.race(renewing, |db| Ok(db.wait(db.store.poll(2, &[], TTL))?))?;
    ensure!(!waited, "a poll waited for another replica's");
    same!(db.look("SELECT replica_id FROM replicas WHERE lost_at IS NULL ORDER BY 1")?, "1 2");
    Ok(())
}

pub(super) fn workers_are_lost_and_drained_in_the_order_in_which_polls_renew(db: &mut Db) -> Result<()> {
    let db = &*db;
    let (first, second) = (db.worker(1)?, db.worker(1)?);
    // The row of the first now lies behind the second's and the planner knows how few there are, so it reads them in that
    // order: only an ordered lock takes the first one first.
    db.run(&format!("UPDATE workers SET pid = 2 WHERE worker_id = {first}; ANALYZE workers"))?;
    for lose in [false, true] {
        let holding = format!("SELECT 1 FROM workers WHERE worker_id = {first} FOR NO KEY UPDATE");
        let held = db.hold(&holding)?;
        let free = format!("SELECT worker_id FROM workers WHERE worker_id = {second} FOR NO KEY UPDATE NOWAIT");
        std::thread::scope(|scope| -> Result<()> {
            let mut held = held;
            let other = scope.spawn(|| match lose {
                true => db.wait(db.store.workers_lose(&[second, first], false)),
                false => db.wait(db.store.workers_drain(&[second, first])),
            });
            ensure!(held.blocks(db, || other.is_finished())?, "it did not wait");
            let taken = held.look(&free);
            held.commit()?;
            other.join().map_err(|_| anyhow::anyhow!("the other call panicked"))??;
            same!(taken?, second.to_string());
            Ok(())
        })?;
    }
    same!(db.look("SELECT DISTINCT draining, lost FROM workers")?, "t|t");
    Ok(())
}

pub(super) fn the_sole_owner_takes_over_from_an_earlier_run(db: &mut Db) -> Result<()> {
    let (old, mine) = (1, 2);
    for replica in [old, mine] {
        db.wait(db.store.poll(replica, &[], TTL))?;
    }
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.complete_at(old, &[super::db::end(1, 1, 1)])?;
    db.ingest(&[msg("b", "x").on(w, 1)])?;
    let p = db.positions()?[0];
    db.wait(db.store.everybody_else_lose(mine))?;
    same!(db.reclaim()?, "1/2/f");
    same!(db.due(mine)?, format!("{p}/2/0/t/r1.1"));
    same!(db.look("SELECT replica_id FROM replicas WHERE lost_at IS NULL")?, mine.to_string());
    // Its own workers stay.
    db.run("INSERT INTO workers SELECT 77, agent_no, 2, identity, pid, home, slots, false, false, now() + interval '1 h' FROM workers LIMIT 1")?;
    db.wait(db.store.everybody_else_lose(mine))?;
    same!(db.look("SELECT worker_id FROM workers WHERE NOT lost")?, "77");
    Ok(())
}

pub(super) fn long_lost_workers_are_forgotten_with_their_slots(db: &mut Db) -> Result<()> {
    let (old, recent, live) = (db.worker(1)?, db.worker(1)?, db.worker(1)?);
    db.wait(db.store.workers_lose(&[old, recent], false))?;
    db.run(&format!("UPDATE workers SET lost_at = lost_at - interval '16 min' WHERE worker_id = {old}"))?;
    let day = Duration::from_secs(86_400);
    same!(db.wait(db.store.retain("leases", &Retention::default(), 9, day))?.removed, 1);
    let left = format!("{recent} {live}");
    same!(db.look("SELECT worker_id FROM workers ORDER BY 1")?, left);
    same!(db.look("SELECT DISTINCT worker_id FROM slots ORDER BY 1")?, left);
    Ok(())
}

pub(super) fn a_lease_that_no_slot_holds_is_found_by_the_slow_search(db: &mut Db) -> Result<()> {
    let (gone, live) = (db.worker(1)?, db.worker(1)?);
    db.ingest(&[msg("a", "x").on(gone, 1), msg("b", "y").on(live, 1), msg("c", "z").on(live, 2)])?;
    // The replica stopped before it could reclaim, and came back after the watch; a slot was given away twice.
    db.wait(db.store.workers_lose(&[gone], false))?;
    db.run(&format!("UPDATE workers SET lost_at = lost_at - interval '11 min' WHERE worker_id = {gone}"))?;
    db.run(&format!("UPDATE slots SET session_id = 2 WHERE worker_id = {live} AND slot = 2"))?;
    same!(db.reclaim()?, "");
    same!(db.wait(db.store.leases_repair())?, 2);
    same!(db.look("SELECT session_id, state, epoch, crashes FROM sessions ORDER BY 1")?, "1|1|2|0 2|2|1|0 3|1|2|0");
    same!(db.look("SELECT session_id FROM ready ORDER BY 1")?, "1 3");
    same!(db.wait(db.store.leases_repair())?, 0);
    // Who still runs it is fenced.
    same!(db.complete(&[super::db::end(3, 1, 1)])?.starts_with('f'), true);
    Ok(())
}
