//! Scheduled jobs: each slot is one run, each run one turn, each answer on its way once, whatever dies at whichever step.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use hermes_control_plane::failpoint::{Failpoints, Verdict};
use hermes_control_plane::store::{
    Begin, CRON_DUE, CronEdit, CronRunState, CronTick, CronTimes, DueJob, EndedRun, Fired, Firing, LaneKey, NewCronJob,
    RegistryChange, SessionId, Settle, Store, TurnId, WaitingRun, turn_file_id,
};
use hermes_core::cron::Job;
use jiff::Timestamp;

use super::db::{Db, end, msg, same};

const RUNS: &str = "SELECT state, session_id, seq FROM cron_runs ORDER BY job_no, slot";
/// Without numbers that a transaction that was rolled back has used up.
const STATES: &str = "SELECT r.state, r.seq, count(q.*) FROM cron_runs r LEFT JOIN turns q USING (session_id, seq) GROUP BY r.slot, 1, 2";
const TEXTS: &str = "SELECT convert_from(body, 'UTF8') FROM outbox ORDER BY pos";
const SAID: &str = "SELECT lane_id, convert_from(body, 'UTF8') FROM outbox ORDER BY pos";
const CURSOR: &str = "SELECT due_at IS NULL, fired, stopped FROM cron_jobs ORDER BY job_no";

fn spec(more: &str) -> Job {
    serde_json::from_str(&format!(r#"{{"schedule":"every 1m","prompt":"look"{more}}}"#)).unwrap()
}

/// A job of agent 1, due since a second ago unless it is said otherwise.
fn job(name: &str, more: &str, at: Timestamp) -> NewCronJob {
    NewCronJob {
        agent_no: 1,
        id: format!("{:012x}", name.bytes().fold(0_u64, |sum, byte| sum * 31 + u64::from(byte))),
        name: name.to_owned(),
        job: spec(more),
        by_agent: false,
        confined: false,
        origin: None,
        by: "drill".to_owned(),
        times: CronTimes { anchored_at: at, slot: Some(at), due_at: Some(at) },
    }
}

fn ago(db: &Db, seconds: i64) -> Result<Timestamp> {
    Ok(db.wait(db.store.now())?.checked_sub(jiff::SignedDuration::from_secs(seconds))?)
}

fn add(db: &Db, name: &str, more: &str) -> Result<i64> {
    let new = job(name, more, ago(db, 1)?);
    Ok(db.wait(db.store.cron_create(&new, 100))?.no)
}

/// The slot runs, and the next one is a minute later.
fn fires(due: &DueJob) -> Firing {
    let run = Fired { slot: due.slot, until: None, slots: 1, state: CronRunState::Waiting, reason: None };
    let next = due.slot + Duration::from_secs(60);
    Firing { runs: vec![run], next: Some((next, next)), stopped: None, replaces: None }
}

fn begins(run: &WaitingRun) -> Begin {
    Begin {
        session_key: format!("agent:a:cron:{}", run.name),
        payload: Ok(format!("{{\"text\":\"{}\"}}", run.job.prompt).into_bytes()),
        limit: Duration::from_secs(run.job.timeout_seconds.unwrap_or(3600).into()),
    }
}

fn chat(id: &str) -> LaneKey {
    let text = str::to_owned;
    LaneKey { platform: text("telegram"), account: text("front"), chat_id: text(id), thread_id: String::new() }
}

/// What it said goes to chat 7.
fn settles(run: &EndedRun) -> Settle {
    let state = match (run.ended, run.is_late) {
        (2, _) => CronRunState::Ran,
        (5, false) => CronRunState::Cancelled,
        _ => CronRunState::Failed,
    };
    Settle {
        state,
        reason: run.reason.clone(),
        deliver: vec![(chat("7"), run.said.clone())],
        attached: (run.said == "long").then(|| ("long.txt".to_owned(), "all of it".to_owned())),
        notice: Some("told".to_owned()),
        undelivered: None,
        mirrors: run.job.mirror,
        failed: match state {
            CronRunState::Failed => Some(true),
            CronRunState::Cancelled => None,
            _ => Some(false),
        },
    }
}

fn mirrors(name: &str, said: &str) -> Vec<u8> {
    format!("{{\"text\":\"{name}: {said}\"}}").into_bytes()
}

fn fire_on(db: &Db, store: &Store) -> Result<CronTick> {
    Ok(db.wait(store.cron_fire(10, &fires, &begins))?)
}

fn fire(db: &Db) -> Result<CronTick> {
    fire_on(db, &db.store)
}

fn settle_on(db: &Db, store: &Store) -> Result<CronTick> {
    Ok(db.wait(store.cron_settle(10, &settles, &mirrors, &begins))?)
}

fn settle(db: &Db) -> Result<CronTick> {
    settle_on(db, &db.store)
}

/// A store that fails once, at this point.
fn failing(db: &Db, point: &'static str) -> Store {
    let failed = AtomicBool::new(false);
    db.store.clone().with_failpoints(Failpoints::new(move |reached| {
        let fails = reached == point && !failed.swap(true, Ordering::Relaxed);
        Box::pin(async move { if fails { Verdict::Fail } else { Verdict::GoOn } })
    }))
}

/// A worker runs the only waiting turn and says so.
fn answered(db: &Db, worker: i64, said: &str) -> Result<()> {
    let leased = db.claim(&[(worker, 1)])?;
    ensure!(!leased.is_empty(), "no turn waits");
    let row = db.look("SELECT session_id, epoch, head_seq FROM sessions WHERE state = 2")?;
    let numbers: Vec<i64> = row.split('|').map(|number| number.parse().unwrap()).collect();
    let mut done = end(numbers[0], numbers[1], numbers[2]);
    done.lane = None;
    done.reply = said.as_bytes().to_vec();
    db.complete(&[done])?;
    Ok(())
}

pub(super) fn a_due_slot_is_one_run_and_one_turn(db: &mut Db) -> Result<()> {
    add(db, "one", "")?;
    same!(fire(db)?, CronTick { jobs: 1, wakes: vec![1], ..CronTick::default() });
    same!(fire(db)?, CronTick::default());
    same!(db.look(RUNS)?, "1|1|1");
    same!(db.look("SELECT count(*) FROM turns")?, "1");
    same!(db.look(CURSOR)?, "f|1|-");
    // Somebody sets it back: the slot has had its run.
    db.run("UPDATE cron_jobs SET slot = (SELECT slot FROM cron_runs), due_at = clock_timestamp()")?;
    fire(db)?;
    same!(db.look(RUNS)?, "1|1|1");
    Ok(())
}

pub(super) fn a_slot_that_somebody_fires_is_passed_over_by_others(db: &mut Db) -> Result<()> {
    add(db, "one", "")?;
    let held = db.hold("SELECT 1 FROM cron_jobs FOR UPDATE")?;
    same!(fire(db)?, CronTick::default());
    held.commit()?;
    same!(fire(db)?.jobs, 1);
    same!(db.look(RUNS)?, "1|1|1");
    Ok(())
}

pub(super) fn a_replica_that_dies_while_it_fires_leaves_a_slot_whole_or_not_at_all(db: &mut Db) -> Result<()> {
    for point in ["cron_fire.before", "cron_fire.locked", "cron_fire.fired", "cron_fire.begun", "cron_fire.after"] {
        db.reset()?;
        add(db, "one", "")?;
        ensure!(fire_on(db, &failing(db, point)).is_err(), "{point}: it went on");
        let committed = point == "cron_fire.after";
        same!(db.look(STATES)?, if committed { "1|1|1" } else { "" });
        same!(db.look("SELECT count(*) FROM turns")?, if committed { "1" } else { "0" });
        fire(db)?;
        same!(db.look(STATES)?, "1|1|1");
        same!(db.look("SELECT count(*) FROM turns")?, "1");
        same!(db.look(CURSOR)?, "f|1|-");
    }
    Ok(())
}

pub(super) fn a_run_that_has_ended_is_settled_once_with_what_it_delivers(db: &mut Db) -> Result<()> {
    for point in [
        "none",
        "cron_settle.before",
        "cron_settle.locked",
        "cron_settle.settled",
        "cron_settle.begun",
        "cron_settle.after",
    ] {
        db.reset()?;
        add(db, "one", "")?;
        fire(db)?;
        let worker = db.worker(1)?;
        same!(settle(db)?, CronTick::default());
        answered(db, worker, "done")?;
        let (others, waited) = db.race("SELECT 1 FROM cron_jobs FOR UPDATE", settle)?;
        same!((others, waited), (CronTick::default(), false));
        if point != "none" {
            ensure!(settle_on(db, &failing(db, point)).is_err(), "{point}: it went on");
            same!(db.look(TEXTS)?, if point == "cron_settle.after" { "done" } else { "" });
        }
        settle(db)?;
        same!(settle(db)?, CronTick::default());
        same!(db.look(STATES)?, "2|1|1");
        same!(db.look(TEXTS)?, "done");
        same!(
            db.look("SELECT r.lanes = ARRAY[o.lane_id] AND r.positions = ARRAY[o.pos] FROM cron_runs r, outbox o")?,
            "t"
        );
    }
    Ok(())
}

/// What the document names comes before what a chat said, however late that was.
pub(super) fn whoever_judges_a_run_is_told_of_its_agents_homes_in_their_order(db: &mut Db) -> Result<()> {
    add(db, "one", "")?;
    for (lane, id, agent, documented, day) in
        [(1, "late", 1, false, 3), (2, "named", 1, true, 1), (3, "early", 1, false, 2), (4, "else", 2, true, 4)]
    {
        same!(db.wait(db.store.lane_ensure(&chat(id)))?, lane);
        db.run(&format!("INSERT INTO home_channels(platform, account, agent_no, lane_id, set_by, set_at, documented) VALUES ('telegram', '{id}', {agent}, {lane}, 'x', '2026-01-0{day}', {documented})"))?;
    }
    fire(db)?;
    let worker = db.worker(1)?;
    answered(db, worker, "done")?;
    let told = Mutex::new(Vec::new());
    let judge = |run: &EndedRun| {
        told.lock().unwrap().extend(run.homes.iter().map(|home| home.chat_id.clone()));
        settles(run)
    };
    db.wait(db.store.cron_settle(10, &judge, &mirrors, &begins))?;
    same!(told.into_inner()?, ["named", "late", "early"]);
    Ok(())
}

pub(super) fn what_is_too_long_to_say_is_kept_as_a_file_of_the_turn(db: &mut Db) -> Result<()> {
    add(db, "one", "")?;
    fire(db)?;
    let worker = db.worker(1)?;
    answered(db, worker, "long")?;
    settle(db)?;
    let turn = TurnId { session: SessionId(1), seq: 1 };
    let file = db.wait(db.store.turn_file(turn.session, turn_file_id(turn, "long.txt")))?;
    let file = file.ok_or_else(|| anyhow::anyhow!("no file"))?;
    same!(db.wait(db.store.blob(&file.sha256))?, Some(b"all of it".to_vec()));
    Ok(())
}

pub(super) fn runs_of_a_job_come_one_after_the_other(db: &mut Db) -> Result<()> {
    let no = add(db, "one", "")?;
    fire(db)?;
    db.wait(db.store.cron_run_now(no))?;
    same!(settle(db)?.settled, 0);
    db.run("UPDATE cron_jobs SET due_at = clock_timestamp()")?;
    same!(fire(db)?.wakes, Vec::<i32>::new());
    same!(db.look("SELECT state, by_hand FROM cron_runs ORDER BY slot")?, "1|f 0|t 0|f");
    let worker = db.worker(1)?;
    answered(db, worker, "first")?;
    same!(settle(db)?, CronTick { jobs: 1, settled: 1, wakes: vec![1], outbox: true });
    // The next one is in a session of its own.
    same!(db.look("SELECT state, session_id, seq FROM cron_runs ORDER BY slot")?, "2|1|1 1|2|1 0|-|-");
    for said in ["second", "third"] {
        answered(db, worker, said)?;
        settle(db)?;
    }
    same!(db.look(TEXTS)?, "first second third");
    Ok(())
}

pub(super) fn a_job_may_go_on_with_one_conversation(db: &mut Db) -> Result<()> {
    let no = add(db, "one", r#","session":"continue","model":"p/m""#)?;
    fire(db)?;
    let worker = db.worker(1)?;
    answered(db, worker, "first")?;
    settle(db)?;
    db.wait(db.store.cron_run_now(no))?;
    settle(db)?;
    same!(db.look(RUNS)?, "2|1|1 1|1|2");
    same!(db.look("SELECT model, title FROM sessions")?, "p/m|one");
    Ok(())
}

pub(super) fn a_run_that_is_replaced_or_takes_too_long_is_stopped(db: &mut Db) -> Result<()> {
    let no = add(db, "one", "")?;
    fire(db)?;
    db.wait(db.store.cron_run_now(no))?;
    db.run("UPDATE cron_jobs SET due_at = clock_timestamp()")?;
    let replaces = |due: &DueJob| {
        assert!(due.is_running && due.waiting == 1);
        Firing { replaces: Some("a later one"), ..fires(due) }
    };
    db.wait(db.store.cron_fire(10, &replaces, &begins))?;
    // Nobody had begun the first one, so it has ended at once; what waited never runs. (The slot by hand lies before the later one.)
    same!(db.look("SELECT state, reason FROM cron_runs ORDER BY slot")?, "1|a later one 6|a later one 0|-");
    settle(db)?;
    same!(db.look("SELECT state, reason FROM cron_runs ORDER BY slot")?, "6|a later one 6|a later one 1|-");
    // One that a worker runs is told to stop, and fails when it has ended.
    let worker = db.worker(1)?;
    db.claim(&[(worker, 1)])?;
    db.run("UPDATE cron_runs SET limit_at = clock_timestamp() WHERE state = 1")?;
    same!(settle(db)?.settled, 0);
    same!(db.look("SELECT kind FROM turn_signals")?, "1");
    same!(db.look("SELECT limit_at IS NULL, reason FROM cron_runs WHERE state = 1")?, "t|it took longer than it may");
    same!(settle(db)?, CronTick::default());
    Ok(())
}

pub(super) fn a_job_that_its_agent_made_reaches_what_the_agent_reaches(db: &mut Db) -> Result<()> {
    // Agent b hears chat 7, agent a only chat 8.
    let lanes: Vec<i64> = ["7", "8"].iter().map(|id| db.wait(db.store.lane_ensure(&chat(id))).unwrap()).collect();
    db.wait(db.store.chat_heard(2, lanes[0]))?;
    db.wait(db.store.chat_heard(1, lanes[1]))?;
    db.ingest(&[msg("m", "k").lane(Some(lanes[1]))])?;
    let worker = db.worker(1)?;
    answered(db, worker, "")?;
    let at = ago(db, 1)?;
    let new = NewCronJob { by_agent: true, origin: Some((lanes[1], SessionId(1))), ..job("one", "", at) };
    let no = db.wait(db.store.cron_create(&new, 100))?.no;
    fire(db)?;
    answered(db, worker, "mine")?;
    settle(db)?;
    // It is told so where it was made, once.
    same!(db.look(SAID)?, format!("{}|told", lanes[1]));
    same!(db.look("SELECT undelivered FROM cron_runs")?, "telegram:7 cannot be reached");
    db.wait(db.store.cron_run_now(no))?;
    settle(db)?;
    answered(db, worker, "again")?;
    settle(db)?;
    same!(db.look(SAID)?, format!("{}|told", lanes[1]));
    // Whoever is confined to the agent says where it goes: the same.
    let confined = NewCronJob { confined: true, ..job("three", "", ago(db, 1)?) };
    db.wait(db.store.cron_create(&confined, 100))?;
    fire(db)?;
    answered(db, worker, "theirs, too")?;
    settle(db)?;
    same!(db.look(SAID)?, format!("{}|told", lanes[1]));
    // An operator's job reaches any chat of an account that is known.
    add(db, "two", "")?;
    fire(db)?;
    answered(db, worker, "theirs")?;
    settle(db)?;
    same!(db.look(SAID)?, format!("{}|told {}|theirs", lanes[1], lanes[0]));
    Ok(())
}

pub(super) fn an_answer_becomes_part_of_the_conversation_when_nothing_runs_there(db: &mut Db) -> Result<()> {
    let lane = db.wait(db.store.lane_ensure(&chat("7")))?;
    let worker = db.worker(1)?;
    db.ingest(&[msg("m", "k").lane(Some(lane))])?;
    answered(db, worker, "hello")?;
    let new = NewCronJob { origin: Some((lane, SessionId(1))), ..job("one", r#","mirror":true"#, ago(db, 1)?) };
    db.wait(db.store.cron_create(&new, 100))?;
    fire(db)?;
    answered(db, worker, "news")?;
    // Something runs where it was made.
    db.ingest(&[msg("n", "k").lane(Some(lane))])?;
    settle(db)?;
    settle(db)?;
    same!(db.look("SELECT mirrors FROM cron_runs")?, "t");
    same!(db.look("SELECT count(*) FROM turns WHERE session_id = 1")?, "2");
    answered(db, worker, "said")?;
    settle(db)?;
    same!(db.look("SELECT mirrors FROM cron_runs")?, "f");
    same!(
        db.look("SELECT seq, convert_from(payload, 'UTF8'), lane_id FROM turns WHERE session_id = 1 AND seq = 3")?,
        "3|{\"text\":\"one: news\"}|-"
    );
    same!(db.look("SELECT head_seq, tail_seq, state FROM sessions WHERE session_id = 1")?, "4|3|0");
    same!(settle(db)?, CronTick::default());
    // The next message there comes behind it.
    same!(db.ingest(&[msg("o", "k").lane(Some(lane))])?, "1/4/f/-");
    Ok(())
}

pub(super) fn jobs_are_changed_by_whoever_saw_them_last(db: &mut Db) -> Result<()> {
    let no = add(db, "one", "")?;
    let row = db.wait(db.store.cron_find(Some(1), "ONE"))?;
    same!((row.no, row.version, row.name.as_str()), (no, 1, "one"));
    ensure!(db.wait(db.store.cron_find(Some(2), "one")).is_err(), "another agent has no such job");
    let times = CronTimes { anchored_at: row.anchored_at, slot: None, due_at: None };
    let edit = CronEdit {
        no,
        version: 1,
        name: "uno".to_owned(),
        job: spec(r#","paused":true"#),
        times,
        recount: false,
        stopped: None,
        confined: None,
    };
    same!(db.wait(db.store.cron_edit(&edit))?.version, 2);
    ensure!(db.wait(db.store.cron_edit(&edit)).is_err(), "it was changed meanwhile");
    same!(fire(db)?, CronTick::default());
    let taken = db.wait(db.store.cron_create(&job("UNO", "", ago(db, 1)?), 100));
    ensure!(taken.is_err_and(|error| error.to_string().contains("has a job named")), "names are unique in any case");
    ensure!(
        db.wait(db.store.cron_create(&job("two", "", ago(db, 1)?), 1)).is_err(),
        "there are as many as there may be"
    );
    Ok(())
}

pub(super) fn a_removed_job_ends_what_runs_and_keeps_its_history(db: &mut Db) -> Result<()> {
    let no = add(db, "one", "")?;
    fire(db)?;
    db.wait(db.store.cron_run_now(no))?;
    db.wait(db.store.cron_remove(no))?;
    settle(db)?;
    same!(db.look("SELECT state, reason FROM cron_runs ORDER BY slot")?, "6|the job was removed 6|the job was removed");
    ensure!(db.wait(db.store.cron_find(None, "one")).is_err());
    let id = db.look("SELECT job_id FROM cron_jobs")?;
    same!(db.wait(db.store.cron_runs(db.wait(db.store.cron_find(None, &id))?.no, None, 10))?.len(), 2);
    // Its name is free.
    add(db, "One", "").map(|_| ())
}

pub(super) fn jobs_of_a_removed_agent_stop_and_say_so(db: &mut Db) -> Result<()> {
    let lane = db.wait(db.store.lane_ensure(&chat("7")))?;
    let new = NewCronJob { origin: Some((lane, SessionId(1))), ..job("one", "", ago(db, 1)?) };
    let no = db.wait(db.store.cron_create(&new, 100))?.no;
    db.wait(db.store.cron_run_now(no))?;
    db.run("SELECT cron_orphan('{1}', 'its agent was removed'); SELECT cron_orphan('{1}', 'its agent was removed')")?;
    same!(fire(db)?, CronTick::default());
    same!(db.look(CURSOR)?, "t|0|its agent was removed");
    same!(db.look("SELECT state, reason FROM cron_runs")?, "6|its agent was removed");
    same!(db.look(SAID)?, format!("{lane}|The scheduled job \"one\" runs no more: its agent was removed."));
    Ok(())
}

pub(super) fn a_job_is_told_what_others_of_its_agent_said_last(db: &mut Db) -> Result<()> {
    add(db, "source", "")?;
    fire(db)?;
    let worker = db.worker(1)?;
    answered(db, worker, "the news")?;
    settle(db)?;
    db.run("UPDATE cron_jobs SET due_at = NULL")?;
    let source = db.look("SELECT job_id FROM cron_jobs")?;
    let at = ago(db, 1)?;
    let theirs = NewCronJob { agent_no: 2, ..job("theirs", r#","context_from":["source"]"#, at) };
    db.wait(db.store.cron_create(&theirs, 100))?;
    add(db, "mine", &format!(r#","context_from":["SOURCE","{source}","nothing"]"#))?;
    let told = Mutex::new(Vec::new());
    let looks = |run: &WaitingRun| {
        told.lock()
            .unwrap()
            .push((run.name.clone(), run.said.iter().map(|(_, said)| said.is_some()).collect::<Vec<_>>()));
        begins(run)
    };
    db.wait(db.store.cron_fire(10, &fires, &looks))?;
    let mut told = told.into_inner().unwrap();
    told.sort();
    same!(told, vec![("mine".to_owned(), vec![true, true, false]), ("theirs".to_owned(), vec![false])]);
    Ok(())
}

pub(super) fn old_runs_go_and_the_last_answer_stays(db: &mut Db) -> Result<()> {
    let no = add(db, "one", "")?;
    let worker = db.worker(1)?;
    for said in ["first", "second"] {
        db.wait(db.store.cron_run_now(no))?;
        settle(db)?;
        answered(db, worker, said)?;
        settle(db)?;
    }
    // One that nobody ran, too.
    db.run("INSERT INTO cron_runs(job_no, slot, state, ended_at) VALUES (1, now() + interval '1 day', 4, now())")?;
    db.run("UPDATE cron_runs SET ended_at = ended_at - interval '400 days'")?;
    let days = hermes_core::config::Retention::default();
    let retain = || db.wait(db.store.retain("cron_runs", &days, 100, Duration::ZERO));
    same!(retain()?.removed, 2);
    same!(db.look("SELECT state FROM cron_runs")?, "2");
    db.wait(db.store.cron_remove(no))?;
    db.run("UPDATE cron_jobs SET removed_at = removed_at - interval '400 days'")?;
    same!(retain()?.removed, 1);
    same!(db.look("SELECT count(*) FROM cron_jobs")?, "0");
    Ok(())
}

pub(super) fn a_run_that_the_database_refuses_fails_alone(db: &mut Db) -> Result<()> {
    add(db, "good", "")?;
    add(db, "bad", "")?;
    fire(db)?;
    let worker = db.worker(1)?;
    answered(db, worker, "one")?;
    answered(db, worker, "two")?;
    // An id that no index of chats can hold, and a text with what no text can hold.
    let endless: String = (0..9000_u32).map(|n| char::from_u32(0x4e00 + (n * 7919) % 20_000).unwrap_or('x')).collect();
    let judge = |run: &EndedRun| {
        let chat = if run.name == "bad" { chat(&endless) } else { chat("7") };
        Settle { deliver: vec![(chat, run.said.clone())], reason: Some("a\0b".to_owned()), ..settles(run) }
    };
    same!(db.wait(db.store.cron_settle(10, &judge, &mirrors, &begins))?.settled, 2);
    same!(
        db.look("SELECT j.name, r.state, r.reason FROM cron_runs r JOIN cron_jobs j USING (job_no) ORDER BY 1 DESC")?,
        "good|2|a\u{fffd}b bad|3|its answer cannot be stored or delivered"
    );
    same!(db.look("SELECT count(*) FROM outbox")?, "1");
    Ok(())
}

pub(super) fn a_job_that_this_build_cannot_read_is_in_nobodys_way(db: &mut Db) -> Result<()> {
    add(db, "strange", "")?;
    db.run(r#"UPDATE cron_jobs SET spec = spec || '{"moon": "full"}'"#)?;
    add(db, "one", "")?;
    same!(db.wait(db.store.cron_fire(1, &fires, &begins))?, CronTick { jobs: 1, ..CronTick::default() });
    same!(db.wait(db.store.cron_fire(1, &fires, &begins))?.wakes, vec![1]);
    same!(db.look("SELECT name, due_at > clock_timestamp() FROM cron_jobs ORDER BY 1 DESC")?, "strange|t one|t");
    same!(db.look("SELECT count(*) FROM cron_runs")?, "1");
    Ok(())
}

pub(super) fn few_runs_wait_and_a_pause_lets_none_begin(db: &mut Db) -> Result<()> {
    let no = add(db, "one", "")?;
    fire(db)?;
    db.run("UPDATE cron_jobs SET due_at = clock_timestamp()")?;
    fire(db)?;
    for _ in 0..9 {
        db.wait(db.store.cron_run_now(no))?;
    }
    ensure!(db.wait(db.store.cron_run_now(no)).is_err_and(|error| error.to_string().contains("10 runs")));
    let times = CronTimes { anchored_at: ago(db, 1)?, slot: None, due_at: None };
    let job = spec(r#","paused":true"#);
    let pause =
        CronEdit { no, version: 1, name: "one".to_owned(), job, times, recount: false, stopped: None, confined: None };
    db.wait(db.store.cron_edit(&pause))?;
    // What somebody wanted by hand still runs.
    same!(db.look("SELECT state, by_hand, count(*) FROM cron_runs GROUP BY 1, 2 ORDER BY 1")?, "0|t|9 1|f|1 6|f|1");
    Ok(())
}

pub(super) fn what_an_agent_made_goes_when_it_is_done(db: &mut Db) -> Result<()> {
    for (name, by_agent) in [("theirs", false), ("own", true)] {
        let new = NewCronJob { by_agent, ..job(name, "", ago(db, 1)?) };
        db.wait(db.store.cron_create(&new, 1))?;
    }
    let last = |due: &DueJob| Firing { next: None, stopped: Some("done".to_owned()), ..fires(due) };
    db.wait(db.store.cron_fire(10, &last, &begins))?;
    same!(db.look("SELECT name, removed_at IS NULL, due_at IS NULL FROM cron_jobs ORDER BY 1")?, "own|f|t theirs|t|t");
    // Its run goes on, and there is room for another one of that name.
    same!(db.look("SELECT count(*) FROM cron_runs WHERE state = 1")?, "2");
    let again = NewCronJob { by_agent: true, id: "00000000000f".to_owned(), ..job("own", "", ago(db, 1)?) };
    db.wait(db.store.cron_create(&again, 1))?;
    Ok(())
}

pub(super) fn another_zone_of_the_document_has_its_jobs_looked_at(db: &mut Db) -> Result<()> {
    add(db, "here", "")?;
    add(db, "there", r#","timezone":"Asia/Tokyo""#)?;
    db.run("UPDATE cron_jobs SET due_at = clock_timestamp() + interval '1 hour'")?;
    let change = |settings| RegistryChange { settings, by: "drill".to_owned(), ..RegistryChange::default() };
    let due = "SELECT name FROM cron_jobs WHERE due_at <= clock_timestamp()";
    let version = db.wait(db.store.registry_change(0, &change(serde_json::json!({"model": "a/b"}))))?;
    same!(db.look(due)?, "");
    db.wait(db.store.registry_change(version, &change(serde_json::json!({"timezone": "Europe/Berlin"}))))?;
    same!(db.look(due)?, "here");
    same!(db.wait(db.store.cron_skills(1))?, Vec::<String>::new());
    Ok(())
}

/// With as many jobs as there will be, looking for due ones reads as many rows as are due.
pub(super) fn looking_for_due_jobs_does_not_grow_with_jobs(db: &mut Db) -> Result<()> {
    db.run(
        "INSERT INTO cron_jobs(job_id, agent_no, name, spec, created_by, slot, due_at)
           SELECT lpad(to_hex(n), 12, '0'), 1, 'job ' || n, '{\"schedule\":\"every 1m\",\"prompt\":\"x\"}', 'drill',
                  clock_timestamp() + n * interval '1 second', clock_timestamp() + n * interval '1 second'
             FROM generate_series(1, 100000) n;
         ANALYZE cron_jobs",
    )?;
    let next = "SELECT min(due_at) FROM cron_jobs WHERE due_at IS NOT NULL";
    let due = &CRON_DUE.replace("$1", "64");
    for sql in [next, due] {
        let plan = db.look(&format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) {sql}"))?;
        ensure!(plan.contains("cron_jobs_due") && !plan.contains("Seq Scan"), "{plan}");
        let buffers = plan.split("Buffers: shared ").nth(1).unwrap_or_default().split_whitespace();
        let read: u64 = buffers
            .map_while(|word| word.strip_prefix("hit=").or(word.strip_prefix("read=")))
            .filter_map(|pages| pages.parse::<u64>().ok())
            .sum();
        ensure!((1..40).contains(&read), "{read} pages: {plan}");
    }
    Ok(())
}
