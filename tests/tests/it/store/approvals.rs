//! Questions about calls: asked once, bound to one call, answered once by the right person, in time.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use hermes_control_plane::store::{
    Answer, Answered, ApprovalAnswer, ApprovalAsk, ApprovalAsked, ApprovalState, Effect, Judged, Outcome, SessionId,
    TurnId,
};
use hermes_core::approvals::Verdict;

use super::db::{Db, end, msg, same};

const ADA: &str = "\ttelegram\thelper\t777";
const EVE: &str = "\ttelegram\thelper\t666";
const SAID: &str = "SELECT convert_from(body, 'UTF8') FROM outbox WHERE body IS NOT NULL AND convert_from(body, 'UTF8') <> 'noted' ORDER BY pos";

/// A question about step 1 of the first turn of session 1, in its first epoch.
fn question() -> ApprovalAsk {
    ApprovalAsk {
        turn: TurnId { session: SessionId(1), seq: 1 },
        epoch: 1,
        step: 1,
        hash: [7; 32],
        asker: ADA.to_owned(),
        tool: "terminal".to_owned(),
        shown: "rm -rf x".to_owned(),
        reason: "it deletes".to_owned(),
        patterns: vec!["delete_recursive".to_owned(), "as_root".to_owned()],
        timeout: Duration::from_secs(3600),
        text: ("may:".to_owned(), "?".to_owned()),
        judge: Duration::ZERO,
        attended: true,
    }
}

/// `ID state`, with a `*` where the person was asked just now, and what there is about a model that judges.
fn ask(db: &Db, question: &ApprovalAsk) -> Result<String> {
    Ok(match db.wait(db.store.approval_ask(question))? {
        ApprovalAsked::Fenced => "fenced".to_owned(),
        ApprovalAsked::OtherCall => "other".to_owned(),
        ApprovalAsked::Stands { id, state, asked, judge, judging, why, .. } => {
            let marks = [(asked, "*"), (judge, " judge"), (judging, " judging")];
            let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
            format!("{id} {}{marks}{}", state.as_str(), why.map(|why| format!(" {why}")).unwrap_or_default())
        }
    })
}

fn given(id: Option<i64>, verdict: Verdict, asker: &str, admin: bool) -> Effect {
    Effect::Answer(ApprovalAnswer { id, verdict, asker: Some(asker.to_owned()), admin, by: "somebody".to_owned() })
}

fn shown(answered: Answered) -> String {
    match answered {
        Answered::Done(id) => format!("done {id}"),
        Answered::Unknown => "unknown".to_owned(),
        Answered::Over(id, state) => format!("over {id} {}", state.as_str()),
    }
}

/// What an answer by command in session key `session` comes to.
fn answer(db: &Db, key: &str, session: &str, effect: Effect) -> Result<String> {
    let told = |_: &Outcome| Answer { text: "noted".to_owned(), told: true };
    match db.command(key, session, effect, &told)?.outcome {
        Some(Outcome::Answered(answered)) => Ok(shown(answered)),
        other => bail!("{other:?}"),
    }
}

fn running(db: &Db) -> Result<i64> {
    let worker = db.worker(1)?;
    same!(db.ingest(&[msg("a", "x").on(worker, 1)])?, "1/1/f/1");
    Ok(worker)
}

pub(super) fn a_call_is_asked_about_once_whoever_asks(db: &mut Db) -> Result<()> {
    let worker = running(db)?;
    same!(ask(db, &question())?, "1 pending*");
    same!(ask(db, &question())?, "1 pending");
    same!(db.look(SAID)?, "may:1?");
    same!(db.look("SELECT a.pos = o.pos, a.lane_id FROM approvals a JOIN outbox o USING (lane_id)")?, "t|1");
    // The turn lost its worker: nobody asks for that attempt any more, and the next one finds the same question.
    db.expire(worker)?;
    same!(db.reclaim()?, "1/1/f");
    same!(ask(db, &question())?, "fenced");
    let other = db.worker(1)?;
    db.ripen()?;
    same!(db.claim(&[(other, 1)])?, "1/1/3/pa");
    same!(ask(db, &question())?, "fenced");
    same!(ask(db, &ApprovalAsk { epoch: 3, ..question() })?, "1 pending");
    same!(db.look(SAID)?, "may:1?");
    Ok(())
}

pub(super) fn an_answer_is_for_one_call_of_one_turn(db: &mut Db) -> Result<()> {
    running(db)?;
    ask(db, &question())?;
    same!(answer(db, "k", "x", given(Some(1), Verdict::Once, ADA, false))?, "done 1");
    same!(ask(db, &question())?, "1 allowed");
    // Edited after the answer.
    same!(ask(db, &ApprovalAsk { hash: [8; 32], ..question() })?, "other");
    // The same words at another step, and in another turn, are another call.
    same!(ask(db, &ApprovalAsk { step: 3, ..question() })?, "2 pending*");
    same!(ask(db, &ApprovalAsk { turn: TurnId { session: SessionId(1), seq: 2 }, ..question() })?, "fenced");
    Ok(())
}

pub(super) fn only_whoever_was_asked_or_an_admin_of_that_chat_answers(db: &mut Db) -> Result<()> {
    running(db)?;
    ask(db, &question())?;
    same!(answer(db, "a1", "x", given(Some(1), Verdict::Once, EVE, false))?, "unknown");
    same!(answer(db, "a2", "x", given(None, Verdict::Once, EVE, false))?, "unknown");
    // Who was asked, elsewhere; and somebody whom their platform does not name.
    same!(answer(db, "a3", "y", given(Some(1), Verdict::Once, ADA, false))?, "unknown");
    let nobody = ApprovalAnswer { id: Some(1), verdict: Verdict::Once, asker: None, admin: false, by: String::new() };
    same!(answer(db, "a4", "x", Effect::Answer(nobody))?, "unknown");
    // An admin of another chat.
    db.run("UPDATE approvals SET lane_id = 2")?;
    same!(answer(db, "a5", "z", given(Some(1), Verdict::Once, EVE, true))?, "unknown");
    db.run("UPDATE approvals SET lane_id = 1")?;
    same!(ask(db, &question())?, "1 pending");
    same!(answer(db, "a6", "z", given(Some(1), Verdict::Deny, EVE, true))?, "done 1");
    same!(ask(db, &question())?, "1 denied");
    // What waits in a conversation is found without its number.
    ask(db, &ApprovalAsk { step: 2, ..question() })?;
    same!(db.wait(db.store.approval_waiting(1, "x", Some(1), ADA))?, Some(2));
    same!(db.wait(db.store.approval_waiting(1, "x", Some(1), EVE))?, None);
    same!(db.wait(db.store.approval_waiting(1, "x", Some(2), ADA))?, None);
    same!(answer(db, "a7", "x", given(None, Verdict::Once, ADA, false))?, "done 2");
    Ok(())
}

pub(super) fn silence_is_no(db: &mut Db) -> Result<()> {
    running(db)?;
    ask(db, &question())?;
    db.run("UPDATE approvals SET expires_at = clock_timestamp() - interval '1 ms'")?;
    same!(db.wait(db.store.approval_waiting(1, "x", Some(1), ADA))?, None);
    same!(db.wait(db.store.approvals(false, None, i64::MAX, 9))?.len(), 0);
    same!(answer(db, "k", "x", given(Some(1), Verdict::Once, ADA, false))?, "over 1 expired");
    same!(ask(db, &question())?, "1 expired");
    // Also when nobody said anything.
    ask(db, &ApprovalAsk { step: 2, timeout: Duration::ZERO, ..question() })?;
    same!(ask(db, &ApprovalAsk { step: 2, ..question() })?, "2 expired");
    same!(shown(db.wait(db.store.approval_answer(2, Verdict::Always, "token:op"))?), "over 2 expired");
    same!(db.look("SELECT count(*) FROM approval_grants")?, "0");
    Ok(())
}

pub(super) fn an_answer_counts_once(db: &mut Db) -> Result<()> {
    running(db)?;
    ask(db, &question())?;
    same!(answer(db, "k", "x", given(Some(1), Verdict::Deny, ADA, false))?, "done 1");
    // The same event again does nothing, another one comes too late.
    let told = |_: &Outcome| Answer { text: "noted".to_owned(), told: true };
    ensure!(db.command("k", "x", given(Some(1), Verdict::Once, ADA, false), &told)?.outcome.is_none());
    same!(answer(db, "l", "x", given(Some(1), Verdict::Once, ADA, false))?, "over 1 denied");
    same!(shown(db.wait(db.store.approval_answer(1, Verdict::Once, "token:op"))?), "over 1 denied");
    same!(ask(db, &question())?, "1 denied");
    same!(shown(db.wait(db.store.approval_answer(9, Verdict::Once, "token:op"))?), "unknown");
    Ok(())
}

pub(super) fn what_was_allowed_further_is_not_asked_for_again(db: &mut Db) -> Result<()> {
    let worker = running(db)?;
    ask(db, &question())?;
    same!(answer(db, "k", "x", given(Some(1), Verdict::Session, ADA, false))?, "done 1");
    let next = |step| ApprovalAsk { step, ..question() };
    same!(ask(db, &next(2))?, "0 allowed");
    // One pattern more is asked for, and nobody else's word counts.
    let more = ["delete_recursive", "as_root", "shred"].map(str::to_owned).to_vec();
    same!(ask(db, &ApprovalAsk { patterns: more, ..next(3) })?, "2 pending*");
    same!(ask(db, &ApprovalAsk { asker: EVE.to_owned(), ..next(4) })?, "3 pending*");
    // Another conversation has its own.
    same!(db.ingest(&[msg("b", "y").on(worker, 2)])?, "2/1/f/1");
    let there = |step| ApprovalAsk { turn: TurnId { session: SessionId(2), seq: 1 }, step, ..question() };
    same!(ask(db, &there(1))?, "4 pending*");
    same!(answer(db, "l", "y", given(None, Verdict::Always, ADA, false))?, "done 4");
    same!(db.ingest(&[msg("c", "z").on(worker, 3)])?, "3/1/f/1");
    let third = ApprovalAsk { turn: TurnId { session: SessionId(3), seq: 1 }, ..question() };
    same!(ask(db, &third)?, "0 allowed");
    same!(ask(db, &ApprovalAsk { asker: EVE.to_owned(), ..third })?, "5 pending*");
    Ok(())
}

pub(super) fn an_answer_beside_the_end_of_its_turn_is_one_or_the_other(db: &mut Db) -> Result<()> {
    running(db)?;
    ask(db, &question())?;
    // The answer holds the session until it is committed, and the end waits for it.
    let first = "SELECT o_result FROM approval_answer(1, 0, '', NULL, NULL, false, true, true, 0, 'token:op')";
    let (ended, waited) = db.race(first, |db| db.complete(&[end(1, 1, 1)]))?;
    ensure!(waited && ended.starts_with("t/"), "{ended}");
    same!(db.look("SELECT state FROM approvals")?, "1");
    // After the end there is nothing to allow.
    db.run("UPDATE approvals SET state = 0")?;
    same!(shown(db.wait(db.store.approval_answer(1, Verdict::Once, "token:op"))?), "over 1 expired");
    same!(answer(db, "k", "x", given(Some(1), Verdict::Once, ADA, false))?, "over 1 expired");
    same!(db.wait(db.store.approvals(false, None, i64::MAX, 9))?.len(), 0);
    same!(db.wait(db.store.approvals(true, None, i64::MAX, 9))?.len(), 1);
    ensure!(db.wait(db.store.approval(1))?.state == ApprovalState::Expired);
    Ok(())
}

/// A question that a model judges first.
fn smart(step: i32) -> ApprovalAsk {
    ApprovalAsk { step, judge: Duration::from_secs(30), ..question() }
}

pub(super) fn a_model_judges_a_call_once_and_what_it_leaves_open_is_asked(db: &mut Db) -> Result<()> {
    let worker = running(db)?;
    same!(ask(db, &smart(1))?, "1 pending judge judging");
    same!(ask(db, &smart(1))?, "1 pending judging");
    // Nobody was asked, so nobody answers, but an operator who sees it.
    same!(db.look(SAID)?, "");
    same!(db.wait(db.store.approval_waiting(1, "x", Some(1), ADA))?, None);
    same!(answer(db, "a1", "x", given(None, Verdict::Once, ADA, false))?, "unknown");
    same!(answer(db, "a2", "x", given(Some(1), Verdict::Once, ADA, true))?, "unknown");
    // The verdict is for that call, and whoever has the turn by then finds it.
    let other = ApprovalAsk { hash: [8; 32], ..smart(1) };
    ensure!(!db.wait(db.store.approval_judged(&other, Judged::Allowed, "another call"))?);
    db.expire(worker)?;
    same!(db.reclaim()?, "1/1/f");
    let next = db.worker(1)?;
    db.ripen()?;
    same!(db.claim(&[(next, 1)])?, "1/1/3/pa");
    let later = |step| ApprovalAsk { epoch: 3, ..smart(step) };
    same!(ask(db, &later(1))?, "1 pending judging");
    ensure!(db.wait(db.store.approval_judged(&smart(1), Judged::Allowed, "It is harmless."))?);
    same!(ask(db, &later(1))?, "1 allowed It is harmless.");
    ensure!(!db.wait(db.store.approval_judged(&smart(1), Judged::Denied, "No."))?);
    let row = db.wait(db.store.approval(1))?;
    same!((row.answered_by.as_deref(), row.judgement.as_deref()), (Some("smart"), Some("It is harmless.")));
    ask(db, &later(2))?;
    ensure!(db.wait(db.store.approval_judged(&later(2), Judged::Denied, "It spoils."))?);
    same!(ask(db, &later(2))?, "2 denied It spoils.");
    same!(db.look(SAID)?, "");
    // What it leaves open is asked, once, with the whole time for it.
    ask(db, &later(3))?;
    ensure!(db.wait(db.store.approval_judged(&later(3), Judged::Open, "It is not sure."))?);
    ensure!(!db.wait(db.store.approval_judged(&later(3), Judged::Allowed, "It is harmless."))?);
    same!(db.look(SAID)?, "may:3?");
    same!(ask(db, &later(3))?, "3 pending");
    same!(answer(db, "a3", "x", given(None, Verdict::Deny, ADA, false))?, "done 3");
    same!(ask(db, &later(3))?, "3 denied");
    same!(db.look("SELECT judgement FROM approvals WHERE approval_id = 3")?, "It is not sure.");
    // An operator's word counts meanwhile; and what was granted is not judged.
    ask(db, &later(4))?;
    same!(shown(db.wait(db.store.approval_answer(4, Verdict::Session, "token:op"))?), "done 4");
    ensure!(!db.wait(db.store.approval_judged(&later(4), Judged::Denied, "No."))?);
    same!(ask(db, &later(5))?, "0 allowed");
    Ok(())
}

pub(super) fn whoever_is_refused_thrice_in_a_turn_is_not_judged_again(db: &mut Db) -> Result<()> {
    running(db)?;
    for step in 1..=3 {
        same!(ask(db, &smart(step))?, format!("{step} pending judge judging"));
        ensure!(db.wait(db.store.approval_judged(&smart(step), Judged::Denied, "It spoils."))?);
    }
    // The person is asked at once.
    same!(ask(db, &smart(4))?, "4 pending*");
    same!(db.look(SAID)?, "may:4?");
    same!(ask(db, &smart(1))?, "1 denied It spoils.");
    Ok(())
}

pub(super) fn a_verdict_that_does_not_come_leaves_it_to_the_person(db: &mut Db) -> Result<()> {
    running(db)?;
    same!(ask(db, &smart(1))?, "1 pending judge judging");
    db.run("UPDATE approvals SET judge_until = clock_timestamp() - interval '1 ms', expires_at = clock_timestamp() - interval '1 ms'")?;
    same!(ask(db, &smart(1))?, "1 pending*");
    same!(ask(db, &smart(1))?, "1 pending");
    same!(db.look(SAID)?, "may:1?");
    ensure!(!db.wait(db.store.approval_judged(&smart(1), Judged::Allowed, "It is harmless."))?);
    same!(answer(db, "a1", "x", given(None, Verdict::Once, ADA, false))?, "done 1");
    same!(ask(db, &smart(1))?, "1 allowed");
    // Nothing is asked for a turn that has ended.
    ask(db, &smart(2))?;
    ensure!(db.complete(&[end(1, 1, 1)])?.starts_with("t/"));
    ensure!(!db.wait(db.store.approval_judged(&smart(2), Judged::Open, "It is not sure."))?);
    Ok(())
}

pub(super) fn where_nobody_is_there_what_would_be_asked_is_denied_at_once(db: &mut Db) -> Result<()> {
    let worker = running(db)?;
    let alone = |ask: ApprovalAsk| ApprovalAsk { attended: false, ..ask };
    same!(ask(db, &alone(question()))?, "1 denied");
    same!(ask(db, &alone(question()))?, "1 denied");
    let row = db.wait(db.store.approval(1))?;
    same!(row.answered_by.as_deref(), Some("nobody"));
    same!(answer(db, "k1", "x", given(Some(1), Verdict::Once, ADA, false))?, "over 1 denied");
    // A model may judge first: what it allows may be done, what it leaves open may not, and silence neither.
    ask(db, &alone(smart(2)))?;
    ensure!(db.wait(db.store.approval_judged(&alone(smart(2)), Judged::Allowed, "It is harmless."))?);
    same!(ask(db, &alone(smart(2)))?, "2 allowed It is harmless.");
    ask(db, &alone(smart(3)))?;
    ensure!(db.wait(db.store.approval_judged(&alone(smart(3)), Judged::Open, "It is not sure."))?);
    same!(ask(db, &alone(smart(3)))?, "3 denied");
    same!(ask(db, &alone(smart(4)))?, "4 pending judge judging");
    db.run("UPDATE approvals SET judge_until = clock_timestamp() - interval '1 ms' WHERE approval_id = 4")?;
    same!(ask(db, &alone(smart(4)))?, "4 denied");
    same!(db.look(SAID)?, "");
    // What was granted where somebody was there counts.
    same!(db.ingest(&[msg("b", "y").on(worker, 2)])?, "2/1/f/1");
    let there = ApprovalAsk { turn: TurnId { session: SessionId(2), seq: 1 }, ..question() };
    same!(ask(db, &there)?, "5 pending*");
    same!(answer(db, "k2", "y", given(Some(5), Verdict::Always, ADA, false))?, "done 5");
    same!(ask(db, &alone(ApprovalAsk { step: 5, ..question() }))?, "0 allowed");
    Ok(())
}
