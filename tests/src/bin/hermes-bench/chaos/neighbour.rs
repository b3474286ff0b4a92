//! Bad neighbours: one agent's worker keeps dying, another agent has a long queue, and a third one's answers are timed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::model::QUICK;
use super::record::{Record, tagged};
use super::report::{Condition, Report};
use super::traffic::{Load, Traffic, say};
use super::world::{Plan, World, agent_of};
use super::{Common, NeighbourArgs, finish, note};

/// Not timed at first: connections and caches are new.
const WARM_UP: Duration = Duration::from_secs(5);
const QUEUE_ENDS_WITHIN: Duration = Duration::from_secs(900);
/// The ratio of the 99th percentiles that is allowed.
const ALLOWED: f64 = 2.0;
/// A worker that came up runs so long.
const CRASHES_AFTER: Duration = Duration::from_millis(300);
/// The crashing agent, the one with the queue, and the one that is timed.
const CRASHING: usize = 0;
const QUEUED: usize = 1;
const TIMED: usize = 2;
const AGENTS: usize = 3;
/// The queue is really there: nothing of it is refused.
const MOST_QUEUED: u64 = 1_000_000;
/// From the last message of the queue to the last one that is accepted.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(120);
/// The model takes this long, so that its time does not vary.
const THINKS_MS: u64 = 200;

/// Times the third agent alone, then beside the other two.
///
/// # Errors
/// When the world does not start.
pub(crate) async fn run(args: &NeighbourArgs, plan: &Plan) -> anyhow::Result<Report> {
    // The queue has to be answered too, after the part that is timed.
    let common = &Common { drain: args.common.drain.max(QUEUE_ENDS_WITHIN), ..args.common.clone() };
    let plan = Plan {
        agents: AGENTS,
        workers_per_agent: 1,
        thinks: (THINKS_MS, THINKS_MS),
        queued: Some(MOST_QUEUED),
        ..plan.clone()
    };
    let world = Arc::new(World::start(&plan).await?);
    let chats = |agent| (1..=common.chats).filter(move |chat| agent_of(*chat, AGENTS) == agent);
    let load =
        Load { seed: plan.seed, agents: AGENTS, platform_chats: 0..0, gateway_chats: 0..0, pause: 400..1_200, open: 1 };
    let timed = |chat: i64| Load { platform_chats: chat..chat + 1, ..load.clone() };

    let mut quiet = Vec::new();
    for chat in chats(TIMED) {
        quiet.push(Traffic::start(&world, &timed(chat))?);
    }
    sleep(WARM_UP).await;
    let alone = (world.recorder.now(), common.seconds / 2);
    sleep(alone.1).await;

    note(&world, "the neighbours begin")?;
    let crashing = Crashing::start(Arc::clone(&world));
    let waiting: Vec<i64> = chats(QUEUED).collect();
    for (_, chat) in (0..args.queued).zip(waiting.iter().cycle()) {
        say(&world, *chat, QUEUED, QUICK);
    }
    for chat in chats(CRASHING) {
        say(&world, chat, CRASHING, "please");
    }
    let queue: BTreeSet<u64> =
        world.record().said.iter().filter(|said| said.agent == QUEUED).map(|said| said.number).collect();
    let accepted = async {
        while world.record().accepted.iter().filter(|one| queue.contains(&one.number)).count() < queue.len() {
            sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(ACCEPTED_WITHIN, accepted).await.context("the queue is not accepted")?;
    note(&world, "the queue is there")?;
    let beside = world.recorder.now();
    let end = Instant::now() + common.seconds / 2;
    sleep_until(end).await;
    let until = world.recorder.now();
    let record = world.record();
    let crashes = crashing.stop().await;
    note(&world, "the neighbours end")?;

    let (before, during) = (p99(&record, alone.0, alone.0 + alone.1.as_secs_f64()), p99(&record, beside, until));
    let left = record.said.len().saturating_sub(record.shown.len());
    for one in &quiet {
        one.stop();
    }
    let Some(last) = quiet.pop() else { anyhow::bail!("not one chat is timed; say more --chats") };
    for one in quiet {
        one.end(common.drain).await;
    }
    let faults = BTreeMap::from([("crashes".to_owned(), crashes), ("queued".to_owned(), args.queued.into())]);
    let mut report = finish("neighbour", common, &plan, world, last, faults).await?;
    let ratio = before.zip(during).map(|(before, during)| during / before);
    let said = format!("{before:?} s alone, {during:?} s beside them, ratio {ratio:?}, {left} still waited then");
    let kept = ratio.is_some_and(|ratio| ratio <= ALLOWED);
    // Turns of the first agent are given up; nothing else is told of a failure.
    let (told, given_up) = (report.verdict.told, chats(CRASHING).count());
    report.conditions = vec![
        Condition::new("the third agent's p99 is at most twice", kept, said),
        Condition::new("the first agent's worker kept dying", crashes > 2, crashes),
        Condition::new(
            "the second agent's queue was taken whole",
            told <= given_up,
            format!("{told} told of a failure"),
        ),
    ];
    Ok(report)
}

/// 99th percentile of the time to the answer of the timed agent's messages written between these times, seconds.
fn p99(record: &Record, from: f64, to: f64) -> Option<f64> {
    let mut answers = BTreeMap::new();
    for (number, at) in record.shown.iter().filter_map(|one| Some((tagged(&one.text)?, one.at))) {
        answers.entry(number).or_insert(at);
    }
    let timed = record.said.iter().filter(|one| one.agent == TIMED && one.at >= from && one.at < to);
    // What is not answered yet has waited until now at least.
    let mut times: Vec<f64> =
        timed.map(|one| answers.get(&one.number).copied().unwrap_or(to).max(one.at) - one.at).collect();
    times.sort_by(f64::total_cmp);
    times.get((times.len() * 99).div_ceil(100).saturating_sub(1)).copied()
}

/// Ends the first agent's worker whenever it has come up.
struct Crashing {
    world: Arc<World>,
    task: JoinSet<()>,
    before: u64,
}

impl Crashing {
    fn start(world: Arc<World>) -> Self {
        let starts = |world: &World| {
            world.workers.iter().find(|one| one.agent == CRASHING).map_or(0, |one| one.process.starts())
        };
        let (before, crashing) = (starts(&world), Arc::clone(&world));
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                sleep(CRASHES_AFTER).await;
                for worker in crashing.workers.iter().filter(|one| one.agent == CRASHING) {
                    worker.process.signal(Signal::SIGKILL);
                }
            }
        });
        Self { world, task, before }
    }

    /// How often it was started again.
    async fn stop(mut self) -> u64 {
        self.task.shutdown().await;
        let worker = self.world.workers.iter().find(|one| one.agent == CRASHING);
        worker.map_or(0, |one| one.process.starts()).saturating_sub(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::record::{Said, Shown, tag};

    #[test]
    fn the_percentile_is_the_timed_agents_and_counts_who_still_waits() {
        let said = |number, agent, at| Said { number, chat: 1, agent, at };
        let shown = |number, at| Shown { chat: 1, text: tag(number), at };
        let record = Record {
            said: vec![said(1, TIMED, 1.0), said(2, TIMED, 2.0), said(3, QUEUED, 2.0), said(4, TIMED, 9.0)],
            shown: vec![shown(1, 1.5), shown(3, 8.0), shown(1, 9.5)],
            ..Record::default()
        };
        assert_eq!(p99(&record, 0.0, 2.0), Some(0.5));
        assert_eq!(p99(&record, 0.0, 5.0), Some(3.0));
        assert_eq!(p99(&record, 20.0, 30.0), None);
    }
}
