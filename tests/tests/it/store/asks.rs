//! What agents ask each other: once, and never so that they wait for each other.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::{BoxFuture, join};
use hermes_control_plane::store::{
    self, Ask, Asking, CallEffect, CallScope, CallStep, Called, Completion, LookedAsk, SessionId, Stopped, TurnId,
};

use super::db::{Db, end, msg, same};

fn step(session: i64, epoch: i64, step: i32) -> CallStep {
    CallStep { turn: TurnId { session: SessionId(session), seq: 1 }, epoch, step, call: format!("call {step}") }
}

/// Asks an agent.
struct Asks(i32);

impl CallEffect for Asks {
    fn run<'a>(&'a self, scope: &'a mut CallScope<'_>) -> BoxFuture<'a, store::Result<String>> {
        Box::pin(async move {
            let Some(Asking { depth, before, circle }) = scope.asking(self.0).await? else { return Ok(String::new()) };
            if circle {
                return Ok(format!("circle {depth}/{before}"));
            }
            let ask = Ask {
                asked_no: self.0,
                session_key: format!("asked {}", self.0),
                payload: scope.input().await?,
                depth: depth + 1,
                wait: Duration::from_secs(60),
                most: 2,
                limit: Duration::from_secs(60),
            };
            Ok(if scope.ask(&ask).await? { String::new() } else { "full".to_owned() })
        })
    }
}

/// Says that it is answered.
struct Answered;

impl CallEffect for Answered {
    fn run<'a>(&'a self, scope: &'a mut CallScope<'_>) -> BoxFuture<'a, store::Result<String>> {
        Box::pin(async move {
            scope.answered().await?;
            Ok("answered".to_owned())
        })
    }
}

fn shown(called: Called) -> Result<String> {
    Ok(match called {
        Called::Stored { text, .. } => String::from_utf8(text)?,
        Called::Begun(wakes) => format!("begun for {:?}", wakes.agent),
        Called::Fenced => "fenced".to_owned(),
        Called::Diverged => "diverged".to_owned(),
    })
}

fn called(db: &Db, step: &CallStep, effect: &dyn CallEffect) -> Result<String> {
    shown(db.wait(db.store.call_tool(step, effect))?)
}

pub(super) fn what_is_asked_is_asked_once(db: &mut Db) -> Result<()> {
    let (w, v) = (db.worker(1)?, db.worker(2)?);
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    let open = db.wait(db.store.look_for_ask(&step(1, 1, 1)))?;
    ensure!(matches!(open, LookedAsk::Open(_)), "{open:?}");
    same!(called(db, &step(1, 1, 1), &Asks(2))?, "begun for Some(2)");
    same!(called(db, &step(1, 1, 1), &Asks(2))?, "begun for None");
    same!(called(db, &step(1, 2, 1), &Asks(2))?, "fenced");
    same!(
        db.look("SELECT session_id, seq, convert_from(payload, 'UTF8'), lane_id FROM turns ORDER BY 1")?,
        "1|1|pa|1 2|1|pa|-"
    );
    let waits = db.wait(db.store.look_for_ask(&step(1, 1, 1)))?;
    let LookedAsk::Waits(row) = waits else { anyhow::bail!("{waits:?}") };
    ensure!(row.turn.to_string() == "t2.1" && row.left > Duration::from_secs(50), "{row:?}");
    let other = CallStep { call: "another".to_owned(), ..step(1, 1, 1) };
    same!(format!("{:?}", db.wait(db.store.look_for_ask(&other))?), "Over(Diverged)");
    // Its worker is lost, and the next one waits for the same turn.
    db.expire(w)?;
    let w = db.worker(1)?;
    db.wait(db.store.reclaim(3, "gone", Duration::from_secs(15)))?;
    db.ripen()?;
    same!(db.claim(&[(w, 1), (v, 1)])?, "1/1/3/pa 2/1/1/pa");
    ensure!(matches!(db.wait(db.store.look_for_ask(&step(1, 3, 1)))?, LookedAsk::Waits(_)));
    same!(called(db, &step(1, 3, 2), &Asks(2))?, "begun for Some(2)");
    same!(called(db, &step(1, 3, 3), &Asks(2))?, "full");
    db.complete(&[Completion { lane: None, ..end(2, 1, 1) }])?;
    same!(called(db, &step(1, 3, 1), &Answered)?, "answered");
    same!(called(db, &step(1, 3, 1), &Asks(2))?, "answered");
    same!(db.look("SELECT step, depth, done FROM asks ORDER BY 1")?, "1|1|t 2|1|f");
    Ok(())
}

pub(super) fn agents_never_wait_for_each_other_in_a_circle(db: &mut Db) -> Result<()> {
    let (w, v) = (db.worker(1)?, db.worker(2)?);
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "y").agent(2).on(v, 1)])?;
    same!(called(db, &step(1, 1, 1), &Asks(1))?, "circle 0/0");
    // Both ask each other at once: one waits.
    let (one, two) = (step(1, 1, 2), step(2, 1, 1));
    let (one, two) = db.wait(join(db.store.call_tool(&one, &Asks(2)), db.store.call_tool(&two, &Asks(1))));
    let mut both = [shown(one?)?, shown(two?)?];
    both.sort_unstable();
    ensure!(both[0].starts_with("begun") && both[1] == "circle 0/0", "{both:?}");
    // What has ended waits for nothing, answered or not.
    db.run("DELETE FROM asks; DELETE FROM turn_steps")?;
    db.run("DELETE FROM inbound WHERE octet_length(dedupe_key) > 10")?;
    ensure!(called(db, &step(1, 1, 3), &Asks(2))?.starts_with("begun"));
    same!(called(db, &step(2, 1, 3), &Asks(1))?, "circle 0/0");
    db.complete(&[end(1, 1, 1)])?;
    ensure!(called(db, &step(2, 1, 4), &Asks(1))?.starts_with("begun"));
    Ok(())
}

/// What is withdrawn now.
fn forsaken(db: &Db) -> Result<String> {
    let shown = |stopped: Stopped| match stopped {
        Stopped::Asked(turn) => format!("asked {turn}"),
        Stopped::Cancelled(turn) => format!("cancelled {turn}"),
        Stopped::Ended(turn) => format!("ended {turn}"),
        Stopped::Behind(turn) => format!("behind {turn}"),
        other => format!("{other:?}"),
    };
    Ok(db.wait(db.store.forsake("stopped"))?.into_iter().map(shown).collect::<Vec<_>>().join(", "))
}

pub(super) fn what_nobody_waits_for_stops_or_never_begins(db: &mut Db) -> Result<()> {
    let (w, v) = (db.worker(1)?, db.worker(2)?);
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    ensure!(called(db, &step(1, 1, 1), &Asks(2))?.starts_with("begun"));
    ensure!(called(db, &step(1, 1, 2), &Asks(2))?.starts_with("begun"));
    same!(db.claim(&[(v, 1)])?, "2/1/1/pa");
    same!(forsaken(db)?, "");
    // The second one takes too long: it waits behind the first, and never begins.
    same!(called(db, &step(1, 1, 2), &Answered)?, "answered");
    same!(forsaken(db)?, "cancelled t2.2");
    same!(forsaken(db)?, "");
    same!(
        db.look("SELECT ended, convert_from(body, 'UTF8') FROM turn_steps WHERE session_id = 2 AND seq = 2")?,
        "5|stopped"
    );
    // Its asker ends: what runs is told to stop, once it has ended nothing is left to do.
    db.complete(&[end(1, 1, 1)])?;
    same!(forsaken(db)?, "asked t2.1");
    same!(db.look("SELECT session_id, seq, kind FROM turn_signals")?, "2|1|1");
    db.complete(&[Completion { lane: None, ..end(2, 1, 1) }])?;
    same!(db.look("SELECT head_seq, tail_seq, state FROM sessions WHERE session_id = 2")?, "3|2|0");
    same!(db.claim(&[(v, 1)])?, "");
    same!(forsaken(db)?, "ended t2.1");
    same!(forsaken(db)?, "");
    // One that has not begun when its asker ends does not.
    db.ingest(&[msg("b", "y").on(w, 1)])?;
    ensure!(called(db, &step(3, 1, 1), &Asks(2))?.starts_with("begun"));
    db.complete(&[end(3, 1, 1)])?;
    same!(forsaken(db)?, "cancelled t2.3");
    same!(db.claim(&[(v, 1)])?, "");
    // Nor one whose asker was lost for longer than it wanted to wait.
    db.ingest(&[msg("c", "z").on(w, 1)])?;
    ensure!(called(db, &step(4, 1, 1), &Asks(2))?.starts_with("begun"));
    db.run("UPDATE asks SET wait_until = clock_timestamp() - interval '11 seconds' WHERE NOT settled")?;
    same!(forsaken(db)?, "cancelled t2.4");
    Ok(())
}
