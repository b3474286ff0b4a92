//! Slash commands: once, with their answer; sessions that begin and come back; turns that are left out.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use hermes_control_plane::store::{Again, Answer, Completion, Effect, Ended, Homed, Outcome, Resumed, Used};
use jiff::Timestamp;

use super::db::{Db, end, end_keep, msg, same};

const SAID: &str = "SELECT convert_from(body, 'UTF8') FROM outbox WHERE body IS NOT NULL ORDER BY pos";
const SESSIONS: &str =
    "SELECT session_id, state, head_seq, tail_seq, coalesce(end_reason, '') FROM sessions ORDER BY session_id";

fn told(_: &Outcome) -> Answer {
    Answer { text: "said".to_owned(), told: true }
}

/// What a command of session key `session` comes to; its answer is `said`.
fn give(db: &Db, key: &str, session: &str, effect: Effect) -> Result<Outcome> {
    match db.command(key, session, effect, &told)?.outcome {
        Some(outcome) => Ok(outcome),
        None => bail!("it was known"),
    }
}

fn retry() -> Effect {
    Effect::Retry(Again { traceparent: None, submitter: None, most: 9, limit: Duration::from_secs(60) })
}

fn resume(db: &Db, key: &str, session: &str, which: &str) -> Result<String> {
    Ok(match give(db, key, session, Effect::Resume(which.to_owned()))? {
        Outcome::Resumed(Resumed::Done(session, stopped)) => format!("{} {}", session.id, stopped.turn().is_some()),
        Outcome::Resumed(Resumed::Current(session)) => format!("{} is current", session.id),
        Outcome::Resumed(Resumed::Busy(session)) => format!("{} is busy", session.id),
        Outcome::Resumed(Resumed::Unknown) => "unknown".to_owned(),
        other => bail!("{other:?}"),
    })
}

fn undo(db: &Db, key: &str, most: i64) -> Result<String> {
    Ok(match give(db, key, "x", Effect::Undo(most))? {
        Outcome::Undone(turns, said) => format!("{turns}:{said}"),
        Outcome::Busy => "busy".to_owned(),
        other => bail!("{other:?}"),
    })
}

fn history(db: &Db, session: &str) -> Result<Vec<i64>> {
    let rows = db.wait(db.store.transcript(session.parse()?, 0, i64::MAX, 1 << 20))?;
    Ok(rows.iter().map(|row| row.seq).collect())
}

/// Turns `1..=count` of session 1, answered at once; each says its key.
fn answered(db: &Db, worker: i64, count: i64) -> Result<()> {
    for seq in 1..=count {
        let key = format!("m{seq}");
        db.ingest(&[msg(&key, "x").says(&key).on(worker, 1)])?;
        ensure!(db.complete(&[end(1, seq, seq)])?.starts_with("t/"));
    }
    Ok(())
}

pub(super) fn a_command_that_comes_twice_acts_and_answers_once(db: &mut Db) -> Result<()> {
    db.ingest(&[msg("a", "x")])?;
    let title = |title: &str| Effect::Title(title.to_owned());
    ensure!(matches!(give(db, "k", "x", title("one"))?, Outcome::Session(Some(_), _)));
    let again = db.command("k", "x", title("two"), &told)?;
    ensure!(again.outcome.is_none() && again.answer.text.is_empty());
    same!(db.look("SELECT title FROM sessions")?, "one");
    same!(db.look(SAID)?, "said");
    // At the same time, too: the second waits for the first.
    let first = "SELECT o_session FROM command_begin('l', 1, 'x'); SELECT command_end('l', 1, 0, 1, 'first')";
    let (again, waited) = db.race(first, |db| db.command("l", "x", title("three"), &told))?;
    ensure!(waited && again.outcome.is_none());
    same!(db.look("SELECT title FROM sessions")?, "one");
    same!(db.look(SAID)?, "said first");
    // Also where there is no session: the second one fails on the key and then finds it.
    let first = "SELECT o_session FROM command_begin('m', 1, 'none'); SELECT command_end('m', 0, 0, 1, 'second')";
    let (again, waited) = db.race(first, |db| db.command("m", "none", Effect::Nothing, &told))?;
    ensure!(waited && again.outcome.is_none());
    same!(db.look(SAID)?, "said first second");
    // It is no turn, and a message under its key is a duplicate.
    same!(db.ingest(&[msg("k", "x")])?, "1/0/t/-");
    same!(db.look("SELECT count(*) FROM turns")?, "1");
    Ok(())
}

pub(super) fn a_new_session_takes_the_key_and_the_old_one_is_finished_first(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x")])?;
    give(db, "t", "x", Effect::Model(Some("own/model".to_owned())))?;
    ensure!(
        matches!(give(db, "n", "x", Effect::Renew(Some("plan".to_owned())))?, Outcome::Renewed(stopped) if stopped.turn().is_some())
    );
    same!(db.signals(&[w])?, format!("{w}:t1.1/1/stop"));
    same!(db.look(SESSIONS)?, "1|2|1|2|new 2|3|1|0|");
    same!(db.look("SELECT session_id, title, model FROM sessions ORDER BY 1")?, "1|-|own/model 2|plan|-");
    // The next message is in the new one and waits for what waited already.
    same!(db.ingest(&[msg("c", "x").on(w, 2)])?, "2/1/f/-");
    let stopped = Completion { ended: Ended::Cancelled, ..end_keep(1, 1, 1) };
    same!(db.complete(&[stopped])?, "t/f/2/pb");
    same!(db.claim(&[(w, 2)])?, "");
    same!(db.complete(&[end(1, 2, 2)])?, "t/f/-/-");
    same!(db.claim(&[(w, 2)])?, "2/1/1/pc");
    // What waits for a worker ends at once, and its chat is told.
    db.ingest(&[msg("d", "y")])?;
    ensure!(matches!(give(db, "o", "y", Effect::Renew(None))?, Outcome::Renewed(stopped) if stopped.turn().is_some()));
    same!(db.look("SELECT session_id, state FROM sessions WHERE session_key = 'y' ORDER BY 1")?, "3|0 4|0");
    same!(db.look(SAID)?, "said said sorry said");
    same!(db.ingest(&[msg("e", "y").on(w, 3)])?, "4/1/f/1");
    Ok(())
}

pub(super) fn a_new_session_where_nothing_was_said_is_the_one_that_is_there(db: &mut Db) -> Result<()> {
    for (key, title) in [("a", None), ("b", Some("two".to_owned())), ("c", None)] {
        ensure!(
            matches!(give(db, key, "x", Effect::Renew(title))?, Outcome::Renewed(stopped) if stopped.turn().is_none())
        );
    }
    same!(db.look(SESSIONS)?, "1|0|1|0|");
    same!(db.look("SELECT session_id, session_key FROM session_keys")?, "1|x");
    // Two that begin the first one at once: one session.
    let first = "SELECT o_session FROM begin_anew(0, 1, 'y', NULL, 'sorry')";
    let (outcome, waited) = db.race(first, |db| give(db, "d", "y", Effect::Renew(None)))?;
    ensure!(waited && matches!(outcome, Outcome::Renewed(stopped) if stopped.turn().is_none()));
    same!(db.look("SELECT count(*) FROM sessions WHERE session_key = 'y'")?, "1");
    Ok(())
}

pub(super) fn a_message_beside_a_new_session_is_in_one_of_them(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    answered(db, w, 1)?;
    let renew =
        "SELECT o_session FROM command_begin('n', 1, 'x'); SELECT o_session FROM begin_anew(1, 1, 'x', NULL, 'sorry')";
    let (answer, waited) = db.race(renew, |db| db.ingest(&[msg("b", "x").on(w, 1)]))?;
    ensure!(waited);
    same!(answer, "2/1/f/1");
    // A command beside it is about the new one.
    db.complete(&[end(2, 1, 1)])?;
    let renew =
        "SELECT o_session FROM command_begin('o', 1, 'x'); SELECT o_session FROM begin_anew(2, 1, 'x', NULL, 'sorry')";
    let (outcome, waited) = db.race(renew, |db| give(db, "t", "x", Effect::Title("late".to_owned())))?;
    ensure!(waited);
    let Outcome::Session(Some(session), _) = outcome else { bail!("{outcome:?}") };
    same!(session.id.0, 3);
    Ok(())
}

pub(super) fn an_earlier_session_of_the_key_is_resumed_and_no_other(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("o", "other").on(w, 1), msg("p", "x").agent(2)])?;
    db.complete(&[end(1, 1, 1)])?;
    give(db, "n0", "other", Effect::Renew(None))?;
    db.ingest(&[msg("a", "x").on(w, 2)])?;
    db.complete(&[end(4, 1, 1)])?;
    give(db, "t", "x", Effect::Title("First plan".to_owned()))?;
    give(db, "n1", "x", Effect::Renew(None))?;
    db.ingest(&[msg("b", "x").on(w, 2)])?;
    db.complete(&[end(5, 1, 1)])?;
    for (key, which) in [("r1", "s1"), ("r2", "s2"), ("r3", "s3"), ("r4", "7"), ("r5", "no such title")] {
        same!(resume(db, key, "x", which)?, "unknown");
    }
    // The store trusts no list either.
    same!(db.look("SELECT o_result FROM resume(5, 1, 'sorry')")?, "0");
    same!(resume(db, "r6", "x", "1")?, "s5 is current");
    // It was used long ago; coming back is a use.
    db.run("UPDATE sessions SET updated_at = '2001-01-01' WHERE session_id = 4")?;
    same!(resume(db, "r7", "x", "first PLAN")?, "s4 false");
    let hour_ago = Timestamp::now() - Duration::from_secs(3600);
    same!(db.ingest(&[msg("c", "x").on(w, 2).idle_before(hour_ago)])?, "4/2/f/2");
    same!(db.look("SELECT end_reason, successor FROM sessions WHERE session_id = 5")?, "resumed|4");
    same!(history(db, "s4")?, [1]);
    Ok(())
}

pub(super) fn a_session_that_was_resumed_waits_for_the_one_it_replaced(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    answered(db, w, 1)?;
    give(db, "n", "x", Effect::Renew(None))?;
    db.ingest(&[msg("b", "x").on(w, 1), msg("c", "x")])?;
    same!(resume(db, "r", "x", "2")?, "s1 true");
    same!(db.ingest(&[msg("d", "x").on(w, 2)])?, "1/2/f/-");
    // Back again: that one is not at rest.
    same!(resume(db, "q", "x", "s2")?, "s2 is busy");
    let stopped = Completion { ended: Ended::Cancelled, ..end_keep(2, 1, 1) };
    same!(db.complete(&[stopped])?, "t/f/2/pc");
    same!(db.claim(&[(w, 2)])?, "");
    same!(db.complete(&[end(2, 2, 2)])?, "t/f/-/-");
    same!(db.claim(&[(w, 2)])?, "1/2/2/pd");
    Ok(())
}

pub(super) fn turns_that_are_undone_stay_but_for_the_history(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    same!(undo(db, "u0", 1)?, "0:");
    answered(db, w, 4)?;
    same!(undo(db, "u1", 1)?, "1:m4");
    same!(history(db, "s1")?, [1, 2, 3]);
    same!(undo(db, "u2", 2)?, "2:m2");
    same!(history(db, "s1")?, [1]);
    // What follows is part of it, what failed never was.
    db.ingest(&[msg("m5", "x").says("m5").on(w, 1)])?;
    db.complete(&[end(1, 5, 5)])?;
    db.ingest(&[msg("m6", "x").says("m6").on(w, 1)])?;
    db.complete(&[Completion { ended: Ended::Failed, ..end(1, 6, 6) }])?;
    same!(history(db, "s1")?, [1, 5]);
    same!(undo(db, "u3", 9)?, "2:m1");
    same!(history(db, "s1")?, [0_i64; 0]);
    same!(undo(db, "u4", 1)?, "0:");
    same!(db.look("SELECT hidden, rewinds FROM sessions")?, "{[1,7)}|3");
    same!(db.look("SELECT count(*) FROM transcripts WHERE ended = 2")?, "5");
    Ok(())
}

pub(super) fn whoever_gets_a_turn_is_told_of_rewinds_and_of_the_model(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    answered(db, w, 2)?;
    give(db, "u", "x", Effect::Undo(1))?;
    give(db, "m", "x", Effect::Model(Some("own/model".to_owned())))?;
    let expected = (1_u32, Some("own/model".to_owned()));
    // Leased at once, kept with its slot, claimed, and asked for again.
    let rows = [msg("a", "x").on(w, 1).0, msg("b", "x").0, msg("c", "x").0];
    let mut answers = db.wait(db.store.ingest(&rows, 100, Duration::from_secs(60)));
    let first = answers.remove(0)?;
    same!((first.epoch, first.rewinds, first.model), (Some(3), expected.0, expected.1.clone()));
    let mut ended = db.wait(db.store.complete(1, &[end_keep(1, 3, 3)], Duration::from_secs(60)));
    let Some((_, _, next)) = ended.remove(0)?.next else { bail!("no next turn") };
    same!((next.rewinds, next.model), expected.clone());
    db.complete(&[end(1, 4, 4)])?;
    let claimed = db.wait(db.store.claim(&[(w, 1)], Duration::ZERO, Duration::from_secs(60)))?.leased;
    same!((claimed[0].next.rewinds, claimed[0].next.model.clone()), expected.clone());
    let held = db.wait(db.store.assigned(&[w]))?;
    same!((held[0].next.rewinds, held[0].next.model.clone()), expected);
    // A model can be wanted before anything was said, and be given up.
    for (key, wanted) in [("o1", Some("other/model")), ("o2", None)] {
        let effect = Effect::Model(wanted.map(str::to_owned));
        let Outcome::Session(Some(session), _) = give(db, key, "y", effect)? else { bail!("no session") };
        same!((session.model.as_deref(), session.accepted), (wanted, 0));
    }
    Ok(())
}

pub(super) fn what_runs_or_waits_is_not_undone(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    answered(db, w, 1)?;
    db.ingest(&[msg("a", "x")])?;
    same!(undo(db, "u1", 1)?, "busy");
    same!(db.claim(&[(w, 1)])?, "1/2/2/pa");
    same!(undo(db, "u2", 1)?, "busy");
    ensure!(matches!(give(db, "r", "x", retry())?, Outcome::Busy));
    same!(db.look("SELECT rewinds, hidden FROM sessions")?, "0|-");
    Ok(())
}

pub(super) fn a_retry_is_one_turn_with_the_last_input_under_its_own_key(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    ensure!(matches!(give(db, "r0", "x", retry())?, Outcome::Undone(0, _)));
    answered(db, w, 2)?;
    let Outcome::Again(turn) = give(db, "r1", "x", retry())? else { bail!("no turn") };
    same!(turn.to_string(), "t1.3");
    let again = db.command("r1", "x", retry(), &told)?;
    same!((again.outcome.is_none(), again.turn), (true, Some(turn)));
    same!(db.claim(&[(w, 1)])?, r#"1/3/3/{"text":"m2"}"#);
    same!(history(db, "s1")?, [1]);
    // A turn that failed is worth another try, too; the one that was replaced stays replaced.
    db.complete(&[Completion { ended: Ended::Failed, ..end(1, 3, 3) }])?;
    ensure!(matches!(give(db, "r2", "x", retry())?, Outcome::Again(_)));
    same!(db.claim(&[(w, 1)])?, r#"1/4/4/{"text":"m2"}"#);
    db.complete(&[end(1, 4, 4)])?;
    same!(history(db, "s1")?, [1, 4]);
    // Its reply is what the chat sees.
    same!(db.look("SELECT count(*) FROM outbox WHERE body IS NOT NULL")?, "1");
    Ok(())
}

pub(super) fn a_retry_says_all_that_its_turn_took_in(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").says("one").on(w, 1), msg("b", "x").says("two")])?;
    db.absorb((1, 1, 1), 0, 2)?;
    db.complete(&[end(1, 1, 1)])?;
    same!(history(db, "s1")?, [1]);
    give(db, "r", "x", retry())?;
    let claimed = db.claim(&[(w, 1)])?;
    same!(claimed, r#"1/3/2/{"text":"one\n\ntwo"}"#);
    same!(history(db, "s1")?, [0_i64; 0]);
    Ok(())
}

pub(super) fn what_was_used_is_summed_up_by_session_and_by_key(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    let ends = |session, epoch, seq, cost: serde_json::Value| Completion {
        usage: serde_json::json!({"input_tokens": 10, "output_tokens": 2, "cost_usd": cost}),
        ..end(session, epoch, seq)
    };
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.complete(&[ends(1, 1, 1, 0.5.into())])?;
    db.run("UPDATE turn_steps SET at = '2001-01-01'")?;
    db.ingest(&[msg("b", "x").on(w, 1)])?;
    db.complete(&[ends(1, 2, 2, serde_json::Value::Null)])?;
    give(db, "n", "x", Effect::Renew(None))?;
    db.ingest(&[msg("c", "x").on(w, 1), msg("d", "y").on(w, 2)])?;
    db.complete(&[ends(2, 1, 1, 0.25.into()), ends(3, 1, 1, 4.into())])?;
    let since = Timestamp::now() - Duration::from_secs(3600);
    let Outcome::Used(session, all) = give(db, "u", "x", Effect::Usage(since))? else { bail!("no usage") };
    same!(session, Used { turns: 1, input: 10, output: 2, cost: Some(0.25) });
    same!(all, Used { turns: 2, input: 20, output: 4, cost: Some(0.25) });
    let Outcome::Used(session, _) = give(db, "v", "nobody", Effect::Usage(since))? else { bail!("no usage") };
    same!(session, Used::default());
    Ok(())
}

pub(super) fn one_chat_is_home(db: &mut Db) -> Result<()> {
    let home = |by: &str| Effect::Home { platform: "p".into(), account: "a".into(), by: by.into() };
    for (key, by) in [("a", "ada"), ("b", "bob")] {
        ensure!(matches!(give(db, key, "x", home(by))?, Outcome::Home(Homed::Here)));
    }
    same!(db.look("SELECT platform, account, agent_no, lane_id, set_by FROM home_channels")?, "p|a|1|1|bob");
    Ok(())
}
