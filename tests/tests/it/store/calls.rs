//! Calls of tools that the control plane runs: what they do is written with their journal row, once, under the fence.

use anyhow::{Result, ensure};
use futures_util::future::BoxFuture;
use hermes_control_plane::store::{
    self, CallEffect, CallScope, CallStep, Called, Error, Looked, SessionId, StepRow, TurnId,
};
use hermes_core::step::{Effect, Phase, StepKind};

use super::db::{Db, end, msg, same};
use super::statements::RECLAIM_SQL;

const PATH: &str = "memories/MEMORY.md";

/// Writes its word behind what the document holds, keeps it for the session, and then fails when it is to.
struct Append {
    word: &'static str,
    fails: bool,
}

impl CallEffect for Append {
    fn run<'a>(&'a self, scope: &'a mut CallScope<'_>) -> BoxFuture<'a, store::Result<String>> {
        Box::pin(async move {
            let document = scope.open_document(PATH).await?;
            let text = [document.body.as_slice(), self.word.as_bytes()].concat();
            scope.write_document(document, &text).await?;
            let kept = scope.note("words").await?.unwrap_or_default();
            scope.set_note("words", &[kept.as_slice(), self.word.as_bytes()].concat()).await?;
            if self.fails {
                return Err(Error::NotFound("not to be done".to_owned()));
            }
            Ok(format!("wrote {}", self.word))
        })
    }
}

fn append(word: &'static str) -> Append {
    Append { word, fails: false }
}

fn step(epoch: i64, step: i32, call: &str) -> CallStep {
    CallStep { turn: TurnId { session: SessionId(1), seq: 1 }, epoch, step, call: call.to_owned() }
}

/// `now` or `known` with the text, and the home version where it moved.
fn called(db: &Db, step: &CallStep, effect: &dyn CallEffect) -> Result<String> {
    Ok(match db.wait(db.store.call_tool(step, effect))? {
        Called::Stored { text, now, moved, .. } => {
            let moved = moved.map_or_else(String::new, |(agent, version)| format!(" {agent}/{version}"));
            format!("{} {}{moved}", if now { "now" } else { "known" }, String::from_utf8(text)?)
        }
        Called::Begun(_) => "begun".to_owned(),
        Called::Fenced => "fenced".to_owned(),
        Called::Diverged => "diverged".to_owned(),
    })
}

const WRITTEN: &str = "SELECT d.version, d.home_version, convert_from(d.body, 'UTF8'), convert_from(n.body, 'UTF8'), \
                       (SELECT count(*) FROM turn_steps WHERE step < 2147483647) \
                       FROM home_documents d JOIN agents a USING (agent_no, home_version) LEFT JOIN session_notes n ON n.session_id = 1";

pub(super) fn a_call_is_done_once_and_answered_the_same(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    let turn = TurnId { session: SessionId(1), seq: 1 };
    same!(called(db, &step(1, 1, "one"), &append("a"))?, "now wrote a 1/1");
    same!(called(db, &step(1, 1, "one"), &append("a"))?, "known wrote a");
    same!(called(db, &step(1, 1, "another"), &append("b"))?, "diverged");
    same!(called(db, &step(1, 2, "one"), &append("b"))?, "now wrote b 1/2");
    same!(db.look(WRITTEN)?, "2|2|ab|ab|2");
    // It is a result like any other, and no worker's report can be taken for it.
    same!(db.wait(db.store.journal_result(turn, 1))?, Some((StepKind::ToolCall, b"wrote a".to_vec())));
    let report = StepRow {
        turn,
        epoch: 1,
        step: 1,
        phase: Phase::Result,
        kind: StepKind::ToolCall,
        effect: Some(Effect::Idempotent),
        idempotency_key: None,
        body: b"wrote a".to_vec(),
        unknown: false,
        absorbs: 0,
    };
    let answers = db.wait(db.store.journal(std::slice::from_ref(&report)));
    ensure!(matches!(answers[..], [Ok(store::Journaled::Diverged)]), "{answers:?}");
    // What a worker began is not done here.
    let intent = StepRow { step: 3, phase: Phase::Intent, idempotency_key: Some("key".to_owned()), ..report };
    let answers = db.wait(db.store.journal(&[intent]));
    ensure!(matches!(answers[..], [Ok(store::Journaled::Stored)]), "{answers:?}");
    same!(called(db, &step(1, 3, "three"), &append("c"))?, "diverged");
    same!(db.look(WRITTEN)?, "2|2|ab|ab|3");
    Ok(())
}

pub(super) fn a_call_that_fails_or_is_fenced_has_written_nothing(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1), msg("b", "x")])?;
    let failed = db.wait(db.store.call_tool(&step(1, 1, "one"), &Append { word: "a", fails: true }));
    ensure!(matches!(failed, Err(Error::NotFound(_))), "{failed:?}");
    same!(db.look("SELECT (SELECT count(*) FROM home_documents), (SELECT count(*) FROM session_notes), (SELECT count(*) FROM turn_steps), home_version FROM agents WHERE agent_no = 1")?, "0|0|0|0");
    same!(called(db, &step(1, 1, "one"), &append("a"))?, "now wrote a 1/1");
    // Another fence, a turn that does not run, a turn that has ended.
    same!(called(db, &step(2, 2, "two"), &append("b"))?, "fenced");
    let next = CallStep { turn: TurnId { session: SessionId(1), seq: 2 }, ..step(1, 1, "one") };
    same!(called(db, &next, &append("b"))?, "fenced");
    db.complete(&[end(1, 1, 1)])?;
    same!(called(db, &step(1, 1, "one"), &append("a"))?, "fenced");
    same!(db.wait(db.store.look_for_call(&step(1, 1, "one")))?, Looked::Over(Called::Fenced));
    same!(db.look(WRITTEN)?, "1|1|a|a|1");
    Ok(())
}

pub(super) fn a_call_beside_the_loss_of_its_worker_is_done_under_one_fence(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    db.expire(w)?;
    let (answer, waited) = db.race(RECLAIM_SQL, |db| called(db, &step(1, 1, "one"), &append("a")))?;
    ensure!(waited, "the call did not wait for the reclaim");
    same!(answer, "fenced");
    let v = db.worker(1)?;
    db.ripen()?;
    same!(db.claim(&[(v, 1)])?, "1/1/3/pa");
    same!(called(db, &step(3, 1, "one"), &append("a"))?, "now wrote a 1/1");
    // The next attempt is told of the row, and asks for the same.
    db.expire(v)?;
    same!(db.reclaim()?, "1/1/f");
    let u = db.worker(1)?;
    db.ripen()?;
    same!(db.claim(&[(u, 1)])?, "1/1/5/pa");
    same!(called(db, &step(5, 1, "one"), &append("a"))?, "known wrote a");
    same!(db.look(WRITTEN)?, "1|1|a|a|1");
    Ok(())
}

pub(super) fn changes_of_one_agents_documents_follow_each_other(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1)])?;
    same!(called(db, &step(1, 1, "one"), &append("a"))?, "now wrote a 1/1");
    let push = "UPDATE agents SET home_version = home_version + 1 WHERE agent_no = 1;
        UPDATE home_documents SET version = 2, home_version = 2, body = 'pushed' WHERE agent_no = 1";
    let (answer, waited) = db.race(push, |db| called(db, &step(1, 2, "two"), &append("b")))?;
    ensure!(waited, "the call did not wait for the push");
    same!(answer, "now wrote b 1/3");
    same!(db.look(WRITTEN)?, "3|3|pushedb|ab|2");
    // A document that was removed begins anew, with the next version.
    same!(db.wait(db.store.home_push(1, PATH, 3, b"", true, "somebody"))?.stored, true);
    same!(called(db, &step(1, 3, "three"), &append("c"))?, "now wrote c 1/5");
    same!(db.look(WRITTEN)?, "5|5|c|abc|3");
    Ok(())
}

pub(super) fn what_is_kept_for_a_session_goes_with_it(db: &mut Db) -> Result<()> {
    let w = db.worker(1)?;
    db.ingest(&[msg("a", "x").on(w, 1).lane(None)])?;
    called(db, &step(1, 1, "one"), &append("a"))?;
    same!(db.look("SELECT session_id, name, convert_from(body, 'UTF8') FROM session_notes")?, "1|words|a");
    db.complete(&[store::Completion { lane: None, ..end(1, 1, 1) }])?;
    db.run("UPDATE agents SET removed_at = clock_timestamp() WHERE agent_no = 1")?;
    db.wait(db.store.agent_purge(1))?;
    same!(db.look("SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM session_notes)")?, "0|0");
    Ok(())
}

pub(super) fn a_dialogues_past_is_its_own_and_nobody_elses(db: &mut Db) -> Result<()> {
    let (a, b) = (db.worker(1)?, db.worker(2)?);
    // Two turns, one that was not answered, and after a reset another session; beside it another chat, and another agent's.
    db.ingest(&[msg("one", "x").on(a, 1), msg("two", "x"), msg("cancelled", "x")])?;
    db.complete(&[store::Completion { next: true, ..end(1, 1, 1) }])?;
    db.complete(&[store::Completion { next: true, ..end(1, 2, 2) }])?;
    db.complete(&[store::Completion { ended: store::Ended::Cancelled, ..end(1, 3, 3) }])?;
    let now: jiff::Timestamp = "2100-01-01T00:00:00Z".parse()?;
    same!(db.ingest(&[msg("three", "x").idle_before(now).on(a, 1), msg("open", "x")])?, "2/1/f/1 2/2/f/-");
    db.complete(&[store::Completion { next: true, ..end(2, 1, 1) }])?;
    same!(db.ingest(&[msg("theirs", "y").on(a, 2), msg("others", "x").agent(2).on(b, 1)])?, "3/1/f/1 4/1/f/1");
    db.complete(&[
        store::Completion { next: false, ..end(3, 1, 1) },
        store::Completion { next: false, ..end(4, 1, 1) },
    ])?;
    let past = |session, seq, turns, bytes| -> Result<String> {
        let caller = store::Caller {
            turn: TurnId { session: SessionId(session), seq },
            agent_no: if session == 4 { 2 } else { 1 },
        };
        let past = db.wait(db.store.past_of_dialogue(caller, turns, bytes))?;
        let shown = past.iter().map(|past| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            format!("{}:{}:{}", past.turn, text(&past.payload), text(&past.reply))
        });
        Ok(shown.collect::<Vec<_>>().join(" "))
    };
    same!(past(2, 2, 100, 1000)?, "t2.1:pthree:r2.1 t1.2:ptwo:r1.2 t1.1:pone:r1.1");
    same!(past(1, 1, 100, 1000)?, past(2, 2, 100, 1000)?);
    same!(past(3, 2, 100, 1000)?, "t3.1:ptheirs:r3.1");
    same!(past(4, 2, 100, 1000)?, "t4.1:pothers:r4.1");
    // Bounded in turns and bytes, newest first.
    same!(past(2, 2, 2, 1000)?, "t2.1:pthree:r2.1 t1.2:ptwo:r1.2");
    same!(past(2, 2, 100, 20)?, "t2.1:pthree:r2.1 t1.2:ptwo:r1.2");
    same!(past(2, 2, 100, 5)?, "");
    // A session of another agent is nobody's.
    let caller = store::Caller { turn: TurnId { session: SessionId(2), seq: 2 }, agent_no: 2 };
    same!(db.wait(db.store.past_of_dialogue(caller, 100, 1000))?.len(), 0);
    Ok(())
}

pub(super) fn texts_match_as_a_web_search_does(db: &mut Db) -> Result<()> {
    let texts = ["The grey heron stands", "a Heron, two herons and a HERON", "stands the heron grey", "", "nothing"];
    let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
    let found = |query: &str, most| -> Result<Vec<usize>> {
        let found = db.wait(db.store.matches(query, &texts, most, std::time::Duration::from_secs(20)))?;
        Ok(found.iter().map(|found| found.index).collect())
    };
    same!(found("heron", 9)?, [1, 0, 2]);
    same!(found("heron", 1)?, [1]);
    same!(found("heron stands", 9)?, [0, 2]);
    same!(found("\"grey heron\"", 9)?, [0]);
    same!(found("heron -grey", 9)?, [1]);
    same!(found("\"' & | ! ( <-> :*", 9)?, Vec::<usize>::new());
    let one = db.wait(db.store.matches("grey", &texts, 1, std::time::Duration::from_secs(20)))?;
    same!(one[0].excerpt, "The **grey** heron stands");
    Ok(())
}
