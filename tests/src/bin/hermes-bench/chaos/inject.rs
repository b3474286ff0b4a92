//! Faults, carried out.
//!
//! Called by the run, one task per fault of the plan. Always true: a fault is counted when it truly struck (the signal was
//! sent, a connection was there to cut, the scripted answer was given), and what it changed is undone when it is over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hermes_tests::fake_telegram;
use hermes_tests::proxy::{Line, Proxy};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Instant, sleep};

use super::faults::{Fault, Planned};
use super::model::Trouble;
use super::process::Process;
use super::record::Killed;
use super::world::World;

/// How often a scripted fault is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Ends connections of the replicas, never its own.
const TERMINATE: &str = "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
    WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY md5(pid::text || $1::text) LIMIT $2) AS chosen";

/// How often each fault struck. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Struck(Arc<Mutex<BTreeMap<Fault, u64>>>);

impl Struck {
    /// By name; those that never struck too.
    pub(crate) fn by_name(&self, chosen: &[Fault]) -> BTreeMap<String, u64> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        chosen.iter().map(|fault| (fault.name(), counts.get(fault).copied().unwrap_or_default())).collect()
    }

    /// It struck so many times more.
    pub(crate) fn add(&self, fault: Fault, times: u64) {
        if times > 0 {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(fault).or_default() += times;
        }
    }
}

/// Carries out one fault to its end.
pub(crate) async fn inject(world: Arc<World>, planned: Planned, struck: Struck) {
    let mut dice = StdRng::seed_from_u64(planned.dice);
    let times = match planned.fault {
        Fault::KillWorker | Fault::KillWorkerAlone | Fault::StopWorker | Fault::TermWorker => {
            worker(&world, &planned, &mut dice).await
        }
        Fault::KillReplica | Fault::StopReplica | Fault::TermReplica => replica(&world, &planned, &mut dice).await,
        Fault::PgTerminate | Fault::KillPg => postgres(&world, &planned, &mut dice).await,
        Fault::WorkerCut | Fault::WorkerSlow | Fault::WorkerSilent | Fault::WorkerHalfClosed => {
            let Some(worker) = world.workers.choose(&mut dice) else { return };
            line(&worker.line, &planned, &mut dice).await
        }
        Fault::DbCut | Fault::DbSlow | Fault::DbSilent => {
            let Some(replica) = world.replicas.choose(&mut dice) else { return };
            line(&replica.database, &planned, &mut dice).await
        }
        Fault::PlatformRedelivers => {
            let times = dice.random_range(1..12);
            (0..times).filter(|_| world.bot.redeliver(dice.random_range(0..1000))).count().try_into().unwrap_or(0)
        }
        Fault::PlatformFlood
        | Fault::PlatformError
        | Fault::PlatformCut
        | Fault::PlatformProxy
        | Fault::PlatformPoll => platform(&world, &planned, &mut dice).await,
        Fault::ModelHangs | Fault::ModelError | Fault::ModelCut => model(&world, &planned, &mut dice).await,
        Fault::Rolling => 0,
    };
    struck.add(planned.fault, times);
}

async fn worker(world: &World, planned: &Planned, dice: &mut StdRng) -> u64 {
    let signal = signal_of(planned.fault);
    // Whoever is away already cannot be hit.
    let all = world.workers.choose_multiple(dice, world.workers.len());
    let at = world.recorder.now();
    let mut all = all.filter(|worker| worker.process.signal(signal));
    let Some(worker) = all.next() else { return 0 };
    if planned.fault == Fault::KillWorkerAlone {
        world.recorder.locked().killed.push(Killed { agent: worker.agent, at });
    }
    stand_still(&worker.process, planned, signal).await;
    1
}

async fn replica(world: &World, planned: &Planned, dice: &mut StdRng) -> u64 {
    let signal = signal_of(planned.fault);
    let mut all = world.replicas.choose_multiple(dice, world.replicas.len());
    let Some(replica) = all.find(|replica| replica.process.signal(signal)) else { return 0 };
    stand_still(&replica.process, planned, signal).await;
    1
}

fn signal_of(fault: Fault) -> Signal {
    match fault {
        Fault::KillWorker | Fault::KillWorkerAlone | Fault::KillReplica => Signal::SIGKILL,
        Fault::StopWorker | Fault::StopReplica => Signal::SIGSTOP,
        _ => Signal::SIGTERM,
    }
}

async fn stand_still(process: &Process, planned: &Planned, signal: Signal) {
    if signal == Signal::SIGSTOP {
        sleep(planned.lasts).await;
        process.signal(Signal::SIGCONT);
    }
}

async fn postgres(world: &World, planned: &Planned, dice: &mut StdRng) -> u64 {
    // As with all others, whoever is away already, or has another fault in hand, cannot be hit: so it is up for a while in between, and dies in the midst
    // of something.
    let Ok(mut cluster) = world.cluster.try_lock() else { return 0 };
    if planned.fault == Fault::PgTerminate {
        let (order, most) = (dice.random::<i64>().to_string(), dice.random_range(1..6_i64));
        let terminate = async {
            let row = cluster.connect().await?.query_one(TERMINATE, &[&order, &most]).await?;
            anyhow::Ok(row.try_get::<_, i64>(0)?)
        };
        return match terminate.await {
            Ok(count) => u64::from(count > 0),
            Err(error) => {
                world.recorder.locked().refused.push(format!("no connection could be ended: {error:#}"));
                0
            }
        };
    }
    let stopped = cluster.kill().await.is_ok();
    sleep(planned.lasts).await;
    if let Err(error) = cluster.restart().await {
        world.recorder.locked().refused.push(format!("Postgres does not start again: {error:#}"));
    }
    u64::from(stopped)
}

async fn line(line: &Proxy, planned: &Planned, dice: &mut StdRng) -> u64 {
    let some = |count: usize| u64::from(count > 0);
    match planned.fault {
        Fault::WorkerCut | Fault::DbCut => match dice.random_range(0..3) {
            0 => u64::from(line.one(dice.random_range(0..64), Line::Cut)),
            1 => some(line.open_ones(Line::Cut)),
            _ => {
                let cut = some(line.all(Line::Cut));
                sleep(planned.lasts).await;
                line.all(Line::Passes);
                cut
            }
        },
        Fault::WorkerHalfClosed => u64::from(line.one(dice.random_range(0..64), Line::HalfClosed)),
        Fault::WorkerSlow | Fault::DbSlow => {
            let slow = some(line.all(Line::Slow(Duration::from_millis(dice.random_range(20..400)))));
            sleep(planned.lasts).await;
            line.all(Line::Passes);
            slow
        }
        _ => {
            let silence =
                [Line::Silent, Line::SilentUp, Line::SilentDown].choose(dice).copied().unwrap_or(Line::Silent);
            // One connection alone now and then: its peer sees others work.
            if dice.random_bool(0.3) {
                let struck = line.one(dice.random_range(0..64), silence);
                sleep(planned.lasts).await;
                line.open_ones(Line::Passes);
                return u64::from(struck);
            }
            let struck = some(line.all(silence));
            sleep(planned.lasts).await;
            line.all(Line::Passes);
            struck
        }
    }
}

async fn platform(world: &World, planned: &Planned, dice: &mut StdRng) -> u64 {
    use fake_telegram::Fault as Answer;
    let (method, answer) = match planned.fault {
        Fault::PlatformFlood => ("sendMessage", Answer::flood(1)),
        Fault::PlatformError => ("sendMessage", Answer::answer(500, "Internal Server Error")),
        Fault::PlatformProxy => ("sendMessage", Answer::Proxy(502)),
        Fault::PlatformCut => {
            let cuts = [Answer::CutAfterApplying, Answer::CutMidResponse, Answer::CutBeforeReading];
            ("sendMessage", cuts.choose(dice).cloned().unwrap_or(Answer::CutAfterApplying))
        }
        _ => {
            let conflict = Answer::answer(409, "Conflict: terminated by other getUpdates request");
            let failure = Answer::answer(500, "Internal Server Error");
            let answers =
                [Answer::CutAfterApplying, Answer::CutMidResponse, Answer::CutBeforeReading, conflict, failure];
            ("getUpdates", answers.choose(dice).cloned().unwrap_or(Answer::CutAfterApplying))
        }
    };
    let times = dice.random_range(1..5);
    let before = world.bot.pending(method);
    world.bot.fail(method, times, answer);
    let end = Instant::now() + planned.lasts.max(Duration::from_secs(2));
    while world.bot.pending(method) > before && Instant::now() < end {
        sleep(LOOK_EVERY).await;
    }
    u64::from((before + times).saturating_sub(world.bot.pending(method)).min(times))
}

async fn model(world: &World, planned: &Planned, dice: &mut StdRng) -> u64 {
    let trouble = match planned.fault {
        Fault::ModelHangs => Trouble::Hangs,
        Fault::ModelError => Trouble::Error,
        _ => Trouble::Cut,
    };
    let times = dice.random_range(1..4);
    let before = world.model.pending(trouble);
    world.model.fail(times, trouble);
    let end = Instant::now() + planned.lasts.max(Duration::from_secs(2));
    while world.model.pending(trouble) > before && Instant::now() < end {
        sleep(LOOK_EVERY).await;
    }
    (before + times).saturating_sub(world.model.pending(trouble)).min(times).try_into().unwrap_or(0)
}

/// Undoes whatever is still wrong.
pub(crate) fn heal(world: &World) {
    for process in world.processes() {
        process.signal(Signal::SIGCONT);
        process.hold(false);
    }
    for line in world.replicas.iter().map(|one| &one.database).chain(world.workers.iter().map(|one| &one.line)) {
        line.all(Line::Passes);
    }
    world.bot.heal();
    world.model.heal();
}
