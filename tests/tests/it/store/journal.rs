//! The journal: what may be written once, and what the next worker is told of it.

use anyhow::Result;
use hermes_control_plane::store::{Did, JOURNAL_BEGIN, Journaled, SessionId, StepRow, TurnId};
use hermes_core::step::{Effect, Phase, StepKind};

use super::db::{Db, end, msg, same};

/// A step of turn 1 in session 1.
fn row(epoch: i64, step: i32, phase: Phase, effect: Effect, body: &str) -> StepRow {
    StepRow {
        turn: TurnId { session: SessionId(1), seq: 1 },
        epoch,
        step,
        phase,
        kind: StepKind::ToolCall,
        effect: Some(effect),
        idempotency_key: (effect == Effect::Idempotent).then(|| "key".to_owned()),
        body: body.as_bytes().to_vec(),
        unknown: false,
        absorbs: 0,
    }
}

fn stored(db: &Db, rows: &[StepRow]) -> Result<Vec<Journaled>> {
    Ok(db.wait(db.store.journal(rows)).into_iter().collect::<hermes_control_plane::store::Result<_>>()?)
}

/// Turn 1 of session 1 lost its first worker and runs on another one under epoch 3; its first attempt journaled `rows`.
fn resumed(db: &Db, rows: &[StepRow]) -> Result<i64> {
    let (first, second) = (db.worker(1)?, db.worker(1)?);
    db.ingest(&[msg("a", "x").on(first, 1)])?;
    same!(stored(db, rows)?, vec![Journaled::Stored; rows.len()]);
    db.expire(first)?;
    same!(db.reclaim()?, "1/1/f");
    db.ripen()?;
    same!(db.claim(&[(second, 1)])?, "1/1/3/pa");
    Ok(second)
}

pub(super) fn a_history_tells_what_turns_did_and_of_one_that_did_much_the_newest(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x")])?;
    db.absorb((1, 1, 1), 3, 2)?;
    db.run(
        "INSERT INTO turn_steps(session_id, seq, epoch, step, phase, kind, effect, body) VALUES \
           (1, 1, 1, 0, 1, 4, 0, repeat('r', 66000)::bytea), (1, 1, 1, 1, 0, 5, 3, 'intent'), (1, 1, 1, 1, 1, 5, 3, repeat('x', 66000)::bytea), \
           (1, 1, 1, 2, 1, 4, 0, 'reply'), (1, 3, 1, 0, 1, 4, 0, 'other'), (2, 1, 1, 0, 1, 4, 0, 'another session''s')",
    )?;
    let steps = db.wait(db.store.steps_of(SessionId(1), 1, 2))?;
    let shown: Vec<_> = steps[&1]
        .iter()
        .map(|did| match did {
            Did::Asked(body) => format!("asked {}", body.len()),
            Did::Result(body) => format!("result {}", body.len()),
            Did::TookIn => "took in".to_owned(),
        })
        .collect();
    same!(shown, ["result 2048", "asked 5", "took in"]);
    same!(steps.len(), 1);
    Ok(())
}

pub(super) fn a_call_that_may_act_once_is_stored_for_one_epoch_only(db: &mut Db) -> Result<()> {
    let [intent, result] = [Phase::Intent, Phase::Result];
    let [once, pure, keyed] = [Effect::AtMostOnce, Effect::Pure, Effect::Idempotent];
    let first = [
        row(1, 1, intent, once, "call"),
        row(1, 2, intent, pure, "look"),
        row(1, 3, intent, keyed, "put"),
        row(1, 4, intent, once, "call"),
        row(1, 4, result, once, "done"),
    ];
    resumed(db, &first)?;
    let again = |epoch| first.clone().map(|row| StepRow { epoch, ..row });
    use Journaled::{Diverged, Fenced, Known, Stored};
    same!(stored(db, &again(1))?, [Fenced; 5]);
    // Whoever hears "stored" acts: only what may be repeated is answered so.
    same!(stored(db, &again(3))?, [Diverged, Known, Known, Diverged, Known]);
    same!(stored(db, &[row(3, 1, result, once, "unknown")])?, [Stored]);
    same!(db.look("SELECT count(*) FROM turn_steps")?, "6");
    Ok(())
}

pub(super) fn a_row_is_the_same_only_in_all_its_parts(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    let first = row(1, 1, Phase::Intent, Effect::Idempotent, "put");
    let others = [
        StepRow { body: b"take".to_vec(), ..first.clone() },
        StepRow { effect: Some(Effect::Pure), ..first.clone() },
        StepRow { kind: StepKind::ModelReply, ..first.clone() },
        StepRow { idempotency_key: Some("other".to_owned()), ..first.clone() },
        StepRow { idempotency_key: None, ..first.clone() },
        StepRow { unknown: true, ..first.clone() },
    ];
    use Journaled::{Diverged, Known, Stored};
    let batch: Vec<StepRow> = [first.clone(), first.clone()].into_iter().chain(others).collect();
    // In one call, and against what is there.
    same!(stored(db, &batch)?, [Stored, Known, Diverged, Diverged, Diverged, Diverged, Diverged, Diverged]);
    same!(stored(db, &batch)?, [Known, Known, Diverged, Diverged, Diverged, Diverged, Diverged, Diverged]);
    same!(db.look("SELECT step, phase, kind, effect, idem_key, body FROM turn_steps")?, "1|0|5|2|key|\\x707574");
    Ok(())
}

pub(super) fn whoever_gets_a_turn_is_told_how_much_of_it_is_journaled(db: &mut Db) -> Result<()> {
    let rows = [row(1, 1, Phase::Intent, Effect::Pure, "a"), row(1, 1, Phase::Result, Effect::Pure, "b")];
    let journaled = |db: &Db, worker| -> Result<Vec<i64>> {
        Ok(db.wait(db.store.assigned(&[worker]))?.iter().map(|lease| lease.journaled).collect())
    };
    // Lost.
    let second = resumed(db, &rows)?;
    same!(journaled(db, second)?, [2]);
    // Given back: no crash tells of it.
    let turn: TurnId = "t1.1".parse()?;
    same!(db.wait(db.store.release(&[(turn, 3)]))?, [true]);
    db.ripen()?;
    let third = db.worker(1)?;
    let claimed = db.wait(db.store.claim(&[(third, 1)], std::time::Duration::ZERO, super::db::TTL))?.leased;
    same!(claimed.iter().map(|lease| (lease.journaled, lease.crashes)).collect::<Vec<_>>(), [(2, 1)]);
    // Brought along to another replica.
    same!(db.wait(db.store.adopt(db.worker(1)?, "nobody's"))?.len(), 0);
    // The next turn has none.
    db.ingest(&[msg("b", "x")])?;
    db.complete(&[end(1, claimed[0].epoch, 1)])?;
    let claimed = db.wait(db.store.claim(&[(third, 1)], std::time::Duration::ZERO, super::db::TTL))?.leased;
    same!(claimed.iter().map(|lease| lease.journaled).collect::<Vec<_>>(), [0]);
    Ok(())
}

pub(super) fn a_journal_is_read_in_the_order_of_steps_page_by_page(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    let [intent, result] = [Phase::Intent, Phase::Result];
    let once = Effect::AtMostOnce;
    let unknown = StepRow { unknown: true, ..row(1, 2, result, once, "?") };
    let reply = StepRow { kind: StepKind::ModelReply, effect: None, ..row(1, 0, result, Effect::Pure, "r") };
    stored(db, &[unknown, row(1, 2, intent, once, "b"), row(1, 10, intent, once, "c"), reply])?;
    let turn: TurnId = "t1.1".parse()?;
    let (mut seen, mut after) = (Vec::new(), JOURNAL_BEGIN);
    loop {
        let page = db.wait(db.store.journal_rows(turn, after, 3, true))?;
        let Some(last) = page.last() else { break };
        after = last.cursor();
        seen.extend(page.iter().map(|row| (row.step, row.phase, row.unknown, row.body.clone(), row.bytes)));
    }
    let expected = [
        (0, result, false, b"r".to_vec(), 1),
        (2, intent, false, b"b".to_vec(), 1),
        (2, result, true, b"?".to_vec(), 1),
        (10, intent, false, b"c".to_vec(), 1),
    ];
    same!(seen, expected);
    // The row that ends the turn is none of it, and bodies come only when asked for.
    db.complete(&[end(1, 1, 1)])?;
    let rows = db.wait(db.store.journal_rows(turn, JOURNAL_BEGIN, 100, false))?;
    same!((rows.len(), rows.iter().map(|row| row.body.len()).sum::<usize>()), (4, 0));
    same!(db.wait(db.store.journal_replies(turn))?, [(0, b"r".to_vec())]);
    same!(db.wait(db.store.journal_result(turn, 2))?, Some((StepKind::ToolCall, b"?".to_vec())));
    same!(db.wait(db.store.journal_result(turn, 10))?, None);
    Ok(())
}
