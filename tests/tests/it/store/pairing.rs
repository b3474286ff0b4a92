//! Strangers: asked for once, within bounds, approved once by the right code, guessed at in vain.

use anyhow::{Result, ensure};
use hermes_control_plane::store::{LaneKey, PairedSender, PairingApproved, PairingAsk, PairingAsked};
use hermes_core::pairing::Code;

use super::db::{Db, same};

const SAID: &str = "SELECT lane_id, session_id, convert_from(body, 'UTF8') ~ 'code is ' FROM outbox ORDER BY pos";
const PENDING: &str = "SELECT user_id, event FROM pairing_requests ORDER BY 1";

/// The code of somebody's request.
fn code(of: u8) -> Code {
    Code::from_random([of; 8])
}

fn request(user: &str, event: &str, of: u8) -> PairingAsk {
    let text = str::to_owned;
    let chat =
        LaneKey { platform: text("telegram"), account: text("front"), chat_id: text(user), thread_id: String::new() };
    let salt = [of.wrapping_add(100); 16];
    PairingAsk { chat, user_id: text(user), user_name: text("Eve"), event: text(event), code: code(of), salt }
}

fn ask(db: &Db, user: &str, event: &str, of: u8) -> Result<PairingAsked> {
    Ok(db.wait(db.store.pairing_ask(&request(user, event, of)))?)
}

fn accounts(ids: &[&str]) -> Vec<(String, String)> {
    ids.iter().map(|id| ("telegram".to_owned(), (*id).to_owned())).collect()
}

/// `done USER`, `wrong LEFT`, with a `!` once an account is locked, or `locked`.
fn approve_on(db: &Db, ids: &[&str], of: u8) -> Result<String> {
    Ok(match db.wait(db.store.pairing_approve(&accounts(ids), &code(of), "token:op"))? {
        PairingApproved::Done(PairedSender { user_id, .. }) => format!("done {user_id}"),
        PairingApproved::Wrong { left, locked_until } => {
            format!("wrong {left}{}", if locked_until.is_some() { "!" } else { "" })
        }
        PairingApproved::Locked(_) => "locked".to_owned(),
    })
}

fn approve(db: &Db, of: u8) -> Result<String> {
    approve_on(db, &["front"], of)
}

fn paired(db: &Db, user: &str) -> Result<bool> {
    Ok(db.wait(db.store.is_paired("telegram", "front", user))?)
}

/// All that was written is so much older.
fn later(db: &Db, by: &str) -> Result<()> {
    db.run(&format!(
        "UPDATE pairing_requests SET asked_at = asked_at - interval '{by}', expires_at = expires_at - interval '{by}';
         UPDATE pairing_accounts SET locked_until = locked_until - interval '{by}'"
    ))
}

pub(super) fn a_stranger_gets_one_code_for_one_request(db: &mut Db) -> Result<()> {
    let before: i64 = db.look("SELECT count(*) FROM outbox")?.parse()?;
    same!(ask(db, "7", "e1", 1)?, PairingAsked::Asked);
    same!(ask(db, "7", "e1", 2)?, PairingAsked::Silent);
    same!(ask(db, "7", "e2", 2)?, PairingAsked::Silent);
    ensure!(db.look(SAID)?.ends_with("|0|t"), "{}", db.look(SAID)?);
    same!(db.look("SELECT count(*) FROM outbox")?.parse::<i64>()?, before + 1);
    // Only a hash of it is there.
    same!(db.look("SELECT count(*) FROM pairing_requests q WHERE q::text ~ 'BBBBBBBB'")?, "0");
    later(db, "11 min")?;
    // The same message again, however much later; then another one.
    same!(ask(db, "7", "e1", 2)?, PairingAsked::Silent);
    same!(ask(db, "7", "e3", 3)?, PairingAsked::Asked);
    same!(approve(db, 1)?, "wrong 4");
    same!(approve(db, 3)?, "done 7");
    same!(db.look("SELECT count(*) FROM turns")?, "0");
    same!(ask(db, "7", "e4", 4)?, PairingAsked::Paired);
    Ok(())
}

pub(super) fn few_strangers_wait_at_a_time(db: &mut Db) -> Result<()> {
    for (of, user) in [(1, "1"), (2, "2"), (3, "3")] {
        same!(ask(db, user, user, of)?, PairingAsked::Asked);
    }
    same!(ask(db, "4", "e", 4)?, PairingAsked::Silent);
    same!(db.look(PENDING)?, "1|1 2|2 3|3");
    // One of them again is no fourth; what is over makes room.
    later(db, "11 min")?;
    same!(ask(db, "3", "again", 5)?, PairingAsked::Asked);
    same!(ask(db, "4", "f", 4)?, PairingAsked::Silent);
    later(db, "50 min")?;
    same!(ask(db, "4", "g", 4)?, PairingAsked::Asked);
    same!(db.wait(db.store.pairings(&Default::default(), 9))?.len(), 2);
    // The bound is kept by whoever asks at the same time, too.
    let first = "SELECT pairing_ask('telegram','front','8','','8','','x','\\x00','\\x00','',3600000,600000,3)";
    let (asked, waited) = db.race(first, |db| ask(db, "9", "y", 9))?;
    ensure!(waited);
    same!(asked, PairingAsked::Silent);
    same!(db.look("SELECT count(*) FROM pairing_requests WHERE expires_at > clock_timestamp()")?, "3");
    Ok(())
}

pub(super) fn a_code_is_approved_once_in_time_and_revoked_at_once(db: &mut Db) -> Result<()> {
    ask(db, "7", "e1", 1)?;
    ask(db, "8", "e2", 2)?;
    // Not on another account.
    same!(approve_on(db, &["back"], 1)?, "wrong 4");
    ensure!(!paired(db, "7")?);
    // Two at once: one of them.
    let hash =
        "SELECT o_result FROM pairing_approve(ARRAY['telegram'], ARRAY['front'], 'BBBBBBBB', 'token:a', 5, 3600000)";
    let (second, waited) = db.race(hash, |db| approve_on(db, &["back", "front"], 1))?;
    ensure!(waited);
    same!(second, "wrong 3");
    ensure!(paired(db, "7")?);
    same!(db.look("SELECT user_id, approved_by FROM pairing_senders")?, "7|token:a");
    // Its time is over.
    later(db, "61 min")?;
    same!(approve(db, 2)?, "wrong 3");
    ensure!(!paired(db, "8")?);
    ensure!(db.wait(db.store.pairing_revoke("telegram", "front", "7"))?);
    ensure!(!paired(db, "7")?);
    ensure!(!db.wait(db.store.pairing_revoke("telegram", "front", "7"))?);
    same!(ask(db, "7", "e9", 9)?, PairingAsked::Asked);
    Ok(())
}

pub(super) fn who_guesses_is_locked_out(db: &mut Db) -> Result<()> {
    ask(db, "7", "e1", 1)?;
    for left in ["wrong 4", "wrong 3", "wrong 2", "wrong 1", "wrong 0!", "locked"] {
        same!(approve(db, 9)?, left);
    }
    // The right one is refused as well, and nobody gets a new one.
    same!(approve(db, 1)?, "locked");
    same!(ask(db, "8", "e2", 2)?, PairingAsked::Silent);
    // Another account is not locked.
    same!(approve_on(db, &["back", "front"], 1)?, "wrong 0!");
    db.run("UPDATE pairing_requests SET expires_at = 'infinity'")?;
    later(db, "61 min")?;
    same!(approve(db, 9)?, "wrong 4");
    same!(approve(db, 1)?, "done 7");
    // A right one makes up for those before it.
    same!(approve(db, 9)?, "wrong 4");
    Ok(())
}
