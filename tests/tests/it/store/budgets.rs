//! Reservations of model calls: what is let in, what is counted, and that two calls are never let in by the same sum.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use hermes_control_plane::store::{Alerted, BudgetCall, BudgetHit, RaiseRow, Reserved, SessionId, TurnId};
use hermes_core::budget::{Amount, Budget, Ceilings, Limit, Periods, Usd};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use uuid::Uuid;

use super::db::{Db, same};

const AGENT: &str = "agent:1";
const USER: &str = "user:telegram:777";
const HOUR: Duration = Duration::from_secs(3600);

/// Of a day in the middle of a month.
fn at(day: &str) -> Periods {
    Periods::at(format!("{day}T12:00:00Z").parse().unwrap(), &TimeZone::UTC)
}

fn today() -> Periods {
    at("2026-11-28")
}

fn amount(usd: u64, tokens: u64) -> Amount {
    Amount { usd: Usd::from_nanos(usd), tokens }
}

fn call(seq: i64, epoch: i64, step: i32) -> BudgetCall {
    BudgetCall { turn: TurnId { session: SessionId(1), seq }, epoch, step, call: Uuid::now_v7() }
}

/// A budget of so many nano-dollars a day.
fn daily(usd: u64) -> Budget {
    Budget { usd_per_day: Some(Usd::from_nanos(usd)), ..Budget::default() }
}

/// `in`, `fenced`, or the payer that refused with what it has spent: day, month, tokens.
fn shown(reserved: Reserved) -> String {
    match reserved {
        Reserved::In => "in".to_owned(),
        Reserved::Fenced => "fenced".to_owned(),
        Reserved::Refused { payer, spent } => {
            format!("{payer}:{}/{}/{}", spent.day.usd.nanos(), spent.month.nanos(), spent.day.tokens)
        }
    }
}

fn reserve_on(
    db: &Db,
    call: &BudgetCall,
    payers: &[(&str, &Budget)],
    periods: &Periods,
    ask: Amount,
) -> Result<String> {
    let payers: Vec<(String, Ceilings)> =
        payers.iter().map(|(payer, budget)| ((*payer).to_owned(), budget.ceilings(&ask))).collect();
    Ok(shown(db.wait(db.store.budget_reserve(call, &payers, periods, &ask, HOUR))?))
}

fn reserve(db: &Db, call: &BudgetCall, budget: &Budget, ask: Amount) -> Result<String> {
    reserve_on(db, call, &[(AGENT, budget)], &today(), ask)
}

fn spent(db: &Db) -> Result<String> {
    db.look("SELECT payer, day, usd, tokens FROM budget_days ORDER BY payer, day")
}

pub(super) fn a_call_is_let_in_while_it_fits_and_settled_with_what_it_used(db: &mut Db) -> Result<()> {
    let budget = Budget { tokens_per_day: Some(1000), ..daily(100) };
    let (one, two, three) = (call(1, 1, 0), call(1, 1, 1), call(2, 1, 0));
    same!(reserve(db, &one, &budget, amount(60, 10))?, "in");
    same!(reserve(db, &two, &budget, amount(41, 10))?, "0:60/60/10");
    same!(reserve(db, &two, &budget, amount(40, 991))?, "0:60/60/10");
    same!(reserve(db, &two, &budget, amount(40, 990))?, "in");
    same!(spent(db)?, "agent:1|2026-11-28|100|1000");
    ensure!(db.wait(db.store.budget_settle(&one, Some(&amount(15, 7))))?);
    same!(spent(db)?, "agent:1|2026-11-28|55|997");
    ensure!(!db.wait(db.store.budget_settle(&one, Some(&amount(15, 7))))?, "once is enough");
    same!(spent(db)?, "agent:1|2026-11-28|55|997");
    // More than was reserved is counted, too; then nothing fits.
    ensure!(db.wait(db.store.budget_settle(&two, Some(&amount(90, 0))))?);
    same!(reserve(db, &three, &budget, amount(1, 1))?, "0:105/105/7");
    same!(db.look("SELECT count(*) FROM budget_reservations")?, "0");
    Ok(())
}

pub(super) fn what_nobody_settles_stays_spent(db: &mut Db) -> Result<()> {
    let budget = daily(100);
    let (broken, lost) = (call(1, 1, 0), call(2, 1, 0));
    same!(reserve(db, &broken, &budget, amount(30, 1))?, "in");
    ensure!(db.wait(db.store.budget_settle(&broken, None))?, "without a report of its use");
    same!(reserve(db, &lost, &budget, amount(50, 1))?, "in");
    db.run("UPDATE budget_reservations SET until = now() - interval '9 days'")?;
    let seen = db.wait(db.store.budget_spent(&[AGENT.to_owned()], &today()))?;
    same!((seen[0].spent.day, seen[0].reserved), (amount(80, 2), amount(0, 0)));
    let days = hermes_core::config::Retention::default();
    db.wait(db.store.retain("leases", &days, 100, Duration::ZERO))?;
    same!(db.look("SELECT count(*) FROM budget_reservations")?, "0");
    same!(reserve(db, &call(3, 1, 0), &budget, amount(21, 1))?, "0:80/80/2");
    Ok(())
}

pub(super) fn the_same_step_holds_one_reservation_whoever_asks(db: &mut Db) -> Result<()> {
    let budget = daily(100);
    let first = call(1, 1, 3);
    same!(reserve(db, &first, &budget, amount(80, 5))?, "in");
    // Its worker died; the next attempt makes the same call, though nothing else would fit.
    let second = call(1, 2, 3);
    same!(reserve(db, &second, &budget, amount(80, 5))?, "in");
    same!(spent(db)?, "agent:1|2026-11-28|80|5");
    ensure!(!db.wait(db.store.budget_settle(&first, Some(&amount(1, 1))))?, "it holds nothing any more");
    same!(reserve(db, &call(1, 1, 3), &budget, amount(80, 5))?, "fenced");
    ensure!(db.wait(db.store.budget_settle(&second, Some(&amount(2, 2))))?);
    same!(spent(db)?, "agent:1|2026-11-28|2|2");
    Ok(())
}

pub(super) fn a_call_must_fit_every_payer(db: &mut Db) -> Result<()> {
    let (agent, user) = (daily(1000), daily(100));
    let both = [(USER, &user), (AGENT, &agent)];
    let one = call(1, 1, 0);
    same!(reserve_on(db, &one, &both, &today(), amount(90, 1))?, "in");
    same!(reserve_on(db, &call(2, 1, 0), &both, &today(), amount(90, 1))?, "0:90/90/1");
    same!(reserve_on(db, &call(3, 1, 0), &[both[1], both[0]], &today(), amount(90, 1))?, "1:90/90/1");
    same!(reserve(db, &call(4, 1, 0), &agent, amount(90, 1))?, "in");
    ensure!(db.wait(db.store.budget_settle(&one, Some(&amount(10, 1))))?);
    same!(spent(db)?, "agent:1|2026-11-28|100|2 user:telegram:777|2026-11-28|10|1");
    Ok(())
}

pub(super) fn a_month_counts_its_days_and_a_day_itself(db: &mut Db) -> Result<()> {
    let budget = Budget { usd_per_month: Some(Usd::from_nanos(250)), ..daily(100) };
    let on =
        |day: &str, seq: i64, usd: u64| reserve_on(db, &call(seq, 1, 0), &[(AGENT, &budget)], &at(day), amount(usd, 1));
    same!(on("2026-10-31", 1, 100)?, "in");
    same!(on("2026-11-01", 2, 100)?, "in");
    same!(on("2026-11-01", 3, 1)?, "0:100/100/1");
    same!(on("2026-11-02", 4, 100)?, "in");
    same!(on("2026-11-30", 5, 51)?, "0:0/200/0");
    same!(on("2026-11-30", 6, 50)?, "in");
    same!(on("2026-12-01", 7, 100)?, "in");
    // A call that ends after midnight is counted on the day of its reservation.
    let late = call(8, 1, 0);
    same!(reserve_on(db, &late, &[(AGENT, &daily(1000))], &at("2026-12-03"), amount(70, 1))?, "in");
    ensure!(db.wait(db.store.budget_settle(&late, Some(&amount(60, 1))))?);
    same!(db.look("SELECT usd FROM budget_days WHERE day = '2026-12-03'")?, "60");
    Ok(())
}

pub(super) fn a_call_waits_for_the_one_before_it_and_sees_its_sum(db: &mut Db) -> Result<()> {
    let budget = daily(100);
    same!(reserve(db, &call(1, 1, 0), &budget, amount(10, 1))?, "in");
    // Another call has looked at the sum and not yet added to it.
    let mut held = db.hold("SELECT 1 FROM budget_days WHERE payer = 'agent:1' FOR NO KEY UPDATE")?;
    let db = &*db;
    let answer = std::thread::scope(|scope| {
        let second = scope.spawn(|| reserve(db, &call(3, 1, 0), &budget, amount(60, 1)));
        ensure!(held.blocks(db, || second.is_finished())?);
        held.look("UPDATE budget_days SET usd = usd + 60, tokens = tokens + 1")?;
        held.commit()?;
        second.join().map_err(|_| anyhow::anyhow!("the second call panicked"))?
    });
    same!(answer?, "0:70/70/2");
    Ok(())
}

/// Fifty at once, of which ten fit.
pub(super) fn calls_at_once_never_take_more_than_there_is(db: &mut Db) -> Result<()> {
    let (ask, budget) = (amount(10, 3), daily(105));
    let (periods, payers) = (today(), [(AGENT.to_owned(), budget.ceilings(&ask))]);
    let calls: Vec<BudgetCall> = (1..=50).map(|seq| call(seq, 1, 0)).collect();
    let asked = calls.iter().map(|call| db.store.budget_reserve(call, &payers, &periods, &ask, HOUR));
    let answers = db.wait(join_all(asked)).into_iter().collect::<Result<Vec<_>, _>>()?;
    same!(answers.iter().filter(|answer| **answer == Reserved::In).count(), 10);
    same!(spent(db)?, "agent:1|2026-11-28|100|30");
    Ok(())
}

pub(super) fn a_limit_that_is_hit_is_noted_once_a_period(db: &mut Db) -> Result<()> {
    let turn = |seq| TurnId { session: SessionId(1), seq };
    let note = |db: &Db, limit, day: &str, seq| {
        let period = Limit::begins(limit, &at(day));
        let hit = BudgetHit { payer: AGENT, limit, period, turn: turn(seq), agent_no: 1, text: &format!("turn {seq}") };
        db.wait(db.store.budget_alert(&hit))
    };
    same!(note(db, Limit::UsdPerDay, "2026-11-27", 1)?, Alerted::Noted);
    db.run("INSERT INTO home_channels(platform, account, agent_no, lane_id, set_by, set_at) VALUES \
            ('t', 'one', 1, 6, 'x', '2026-01-01'), ('t', 'two', 1, 7, 'x', '2026-02-02'), ('t', 'one', 2, 8, 'x', '2026-03-03')")?;
    same!(note(db, Limit::UsdPerDay, "2026-11-28", 2)?, Alerted::Home);
    same!(note(db, Limit::UsdPerDay, "2026-11-28", 3)?, Alerted::Before);
    // What the document names comes before what was said later.
    db.run("UPDATE home_channels SET documented = true WHERE lane_id = 6")?;
    same!(note(db, Limit::UsdPerMonth, "2026-11-27", 4)?, Alerted::Home);
    same!(note(db, Limit::UsdPerMonth, "2026-11-28", 5)?, Alerted::Before);
    same!(db.look("SELECT lane_id, convert_from(body, 'UTF8') FROM outbox ORDER BY pos")?, "7|turn 2 6|turn 4");
    let seen = db.wait(db.store.budget_spent(&[USER.to_owned(), AGENT.to_owned()], &today()))?;
    let alerts: Vec<_> = seen[1].alerts.iter().map(|alert| (alert.limit.as_str(), alert.turn.seq)).collect();
    same!(alerts, [("usd_per_day", 2), ("usd_per_month", 4)]);
    ensure!(seen[0].alerts.is_empty());
    Ok(())
}

pub(super) fn a_pause_and_a_raise_move_the_registry(db: &mut Db) -> Result<()> {
    let version = |db: &Db| db.look("SELECT version FROM documents");
    let before = version(db)?;
    ensure!(db.wait(db.store.budget_pause(1, "op"))? && !db.wait(db.store.budget_pause(1, "other"))?);
    let paused = version(db)?;
    ensure!(before != paused);
    let until: Timestamp = "2026-11-29T00:00:00Z".parse()?;
    let raise = |value| RaiseRow { agent_no: 1, limit: Limit::UsdPerDay, value, until, by: "op".to_owned() };
    db.wait(db.store.budget_raise(&[raise(7)]))?;
    db.wait(db.store.budget_raise(&[raise(9)]))?;
    let rows = db.wait(db.store.registry_load())?;
    same!(rows.pauses.iter().map(|pause| (pause.agent_no, pause.by.as_str())).collect::<Vec<_>>(), [(1, "op")]);
    same!(rows.raises.iter().map(|raise| (raise.limit, raise.value)).collect::<Vec<_>>(), [(Limit::UsdPerDay, 9)]);
    ensure!(version(db)? != paused);
    ensure!(db.wait(db.store.budget_resume(1))? && !db.wait(db.store.budget_resume(1))?);
    ensure!(db.wait(db.store.registry_load())?.pauses.is_empty());
    Ok(())
}
