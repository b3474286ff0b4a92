//! Who receives for a polled account.

use std::time::Duration;

use anyhow::Result;
use hermes_control_plane::store::AccountClaim;

use super::db::{Db, TTL, same};

fn claim(account: &str) -> AccountClaim {
    AccountClaim {
        platform: "telegram".to_owned(),
        account: account.to_owned(),
        leave: false,
        state: "up",
        detail: String::new(),
        silent: Some(Duration::from_secs(1)),
    }
}

fn leaving(account: &str) -> AccountClaim {
    AccountClaim { leave: true, ..claim(account) }
}

/// `account/epoch` of each that the replica has after its poll, in order of name.
fn poll(db: &Db, replica: i64, claims: &[AccountClaim]) -> Result<String> {
    let mut held = db.wait(db.store.poll_for(replica, &[], claims, TTL))?.accounts;
    held.sort_by(|a, b| a.account.cmp(&b.account));
    Ok(held.iter().map(|held| format!("{}/{}", held.account, held.epoch)).collect::<Vec<_>>().join(" "))
}

fn count(db: &Db, replica: i64, claims: &[AccountClaim]) -> Result<usize> {
    Ok(db.wait(db.store.poll_for(replica, &[], claims, TTL))?.accounts.len())
}

/// The lease ends, and ended this many seconds ago.
fn lapse(db: &Db, seconds: u32) -> Result<()> {
    db.run(&format!("UPDATE account_leases SET lease_until = clock_timestamp() - interval '{seconds} s'"))
}

pub(super) fn one_replica_at_a_time_receives_for_an_account(db: &mut Db) -> Result<()> {
    same!(poll(db, 1, &[claim("a")])?, "a/1");
    same!(poll(db, 2, &[claim("a")])?, "");
    same!(poll(db, 1, &[claim("a")])?, "a/1");
    // By the database's clock it is over; whoever comes first has it, under a new number.
    lapse(db, 0)?;
    same!(poll(db, 2, &[claim("a")])?, "a/2");
    same!(poll(db, 1, &[claim("a")])?, "");
    // Somebody else's lease is not given up.
    same!(poll(db, 1, &[leaving("a")])?, "");
    same!(poll(db, 2, &[claim("a")])?, "a/2");
    Ok(())
}

pub(super) fn an_account_lease_is_renewed_and_says_what_is_left(db: &mut Db) -> Result<()> {
    // The second stores the state, so that there is no news any more.
    poll(db, 1, &[claim("a")])?;
    poll(db, 1, &[claim("a")])?;
    db.run("UPDATE account_leases SET lease_until = clock_timestamp() + interval '30 s'")?;
    let held = db.wait(db.store.poll_for(1, &[], &[claim("a")], TTL))?.accounts;
    same!(held.iter().all(|held| held.left > Duration::from_secs(50) && held.left <= TTL), true);
    // Most of it is left: nothing is written.
    let place = "SELECT xmin FROM account_leases";
    let before = db.look(place)?;
    poll(db, 1, &[claim("a")])?;
    same!(db.look(place)?, before);
    // News are written at once.
    poll(db, 1, &[AccountClaim { state: "down", detail: "why".to_owned(), ..claim("a") }])?;
    same!(db.look("SELECT state, detail, heard_at < clock_timestamp() FROM account_leases")?, "down|why|t");
    let seen = db.wait(db.store.accounts())?;
    same!((seen.len(), seen[0].replica, seen[0].state.as_str()), (1, Some(1), "down"));
    same!(seen[0].silent >= Duration::from_secs(1) && seen[0].silent < Duration::from_secs(20), true);
    Ok(())
}

pub(super) fn an_account_that_is_given_up_is_free_at_once(db: &mut Db) -> Result<()> {
    poll(db, 1, &[claim("a"), claim("b")])?;
    same!(poll(db, 1, &[claim("a"), leaving("b")])?, "a/1");
    same!(poll(db, 2, &[claim("a"), claim("b")])?, "b/2");
    // All of a replica that leaves.
    db.wait(db.store.replica_leave(2))?;
    same!(poll(db, 1, &[claim("a"), claim("b")])?, "a/1 b/3");
    Ok(())
}

pub(super) fn a_replica_takes_its_share_of_the_accounts_and_the_rest_only_when_nobody_else_does(
    db: &mut Db,
) -> Result<()> {
    let all: Vec<AccountClaim> = ["a", "b", "c", "d", "e"].map(claim).to_vec();
    for replica in [1, 2] {
        db.wait(db.store.poll(replica, &[], TTL))?;
    }
    same!((count(db, 1, &all)?, count(db, 2, &all)?), (3, 2));
    // Replica 2 does not want any: they stay free for a third of a lease, then they are taken nevertheless.
    lapse(db, 0)?;
    same!(count(db, 1, &all)?, 3);
    db.run("UPDATE account_leases SET lease_until = clock_timestamp() - interval '21 s' WHERE lease_until < clock_timestamp()")?;
    same!(count(db, 1, &all)?, 5);
    Ok(())
}

pub(super) fn two_replicas_that_want_one_account_do_not_wait_for_each_other(db: &mut Db) -> Result<()> {
    db.wait(db.store.poll(1, &[], TTL))?;
    poll(db, 1, &[claim("a")])?;
    lapse(db, 30)?;
    let taking = "UPDATE account_leases SET replica_id = 1, epoch = epoch + 1, lease_until = clock_timestamp() + interval '1 min'";
    let (had, waited) = db.race(taking, |db| poll(db, 2, &[claim("a")]))?;
    same!((had.as_str(), waited), ("", false));
    same!(db.look("SELECT replica_id, epoch FROM account_leases")?, "1|2");
    Ok(())
}
