//! Many jobs on the same second, again and again, while replicas and Postgres keep dying: each slot of each job is answered in its chat once.
//!
//! The verdict on the jobs reads what the fake platform shows and the clock on the wall, nothing else: a job's answer names the job and the slot that
//! it ran for, and which slots there were follows from the schedule.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::checker::MARK;
use super::faults::Fault;
use super::inject::{self, Struck};
use super::model;
use super::report::{Condition, Report};
use super::traffic::Traffic;
use super::world::{Plan, World, agent_id};
use super::{Common, QUIET, faults, finish, note};

/// From the second before the first slot that counts to that slot, at least.
const LEAD: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The chats of jobs begin here; whoever writes has a smaller number.
const FIRST_CHAT: i64 = 1_000_000;
/// Commands that make jobs at the same time.
const MADE_AT_ONCE: usize = 4;
/// Slots that a report names.
const NAMED: usize = 20;

/// What `cron` takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct CronArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// How many jobs there are.
    #[arg(long, default_value_t = 200)]
    jobs: u32,
    /// Seconds between their slots: a divisor of 60.
    ///
    /// A machine that cannot keep up with them falls behind: of more than a hundred runs of a job that wait, the newer are skipped with that
    /// reason, and here they are missing.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=60))]
    every: u32,
    /// Which faults; replicas and Postgres end unless given.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…", hide_possible_values = true)]
    faults: Vec<Fault>,
}

/// Which slots are to be answered: every so many seconds between two.
struct Slots {
    first: i64,
    last: i64,
    every: i64,
}

impl Slots {
    fn all(&self) -> impl Iterator<Item = i64> {
        let step = usize::try_from(self.every).unwrap_or(1).max(1);
        (self.first..=self.last).step_by(step)
    }
}

/// Lets jobs run while what they run on dies.
///
/// # Errors
/// When something does not start, or a job cannot be made.
pub(crate) async fn run(args: &CronArgs, plan: &Plan) -> anyhow::Result<Report> {
    let common = &args.common;
    let chosen = match args.faults.as_slice() {
        [] => vec![Fault::KillReplica, Fault::KillPg],
        faults => faults.to_vec(),
    };
    let planned = faults::plan(plan.seed, common.seconds, Duration::from_secs(2), &chosen);
    let world = Arc::new(World::start(plan).await?);
    make(args, plan, &world).await?;
    let traffic = Traffic::start(&world, &common.load(plan.seed))?;
    let (first, every) = (next_slot(args.every)?, i64::from(args.every));
    note(&world, &format!("{} jobs are there, the first slot that counts is {first}", args.jobs))?;

    let struck = Struck::default();
    let start = Instant::now();
    let mut injecting = tokio::task::JoinSet::new();
    for one in planned {
        tokio::time::sleep_until(start + one.at).await;
        note(&world, one.fault.name().as_str())?;
        injecting.spawn(inject::inject(Arc::clone(&world), one, struck.clone()));
    }
    tokio::time::sleep_until(start + common.seconds).await;
    let slots = Slots { first, last: Timestamp::now().as_second() / every * every, every };
    traffic.stop();
    while injecting.join_next().await.is_some() {}
    inject::heal(&world);
    let seen = drained(common, &world, args.jobs, &slots).await;
    stop(args, plan, &world).await?;
    let conditions = judged(args.jobs, &slots, &seen);
    let mut report = finish("cron", common, plan, world, traffic, struck.by_name(&chosen)).await?;
    report.conditions = conditions;
    Ok(report)
}

/// The next slot that is not too soon.
fn next_slot(every: u32) -> anyhow::Result<i64> {
    let soon = Timestamp::now().checked_add(LEAD).context("look at the clock")?.as_second();
    let every = i64::from(every);
    Ok((soon / every + 1) * every)
}

/// Makes the jobs, each with a chat of its own.
async fn make(args: &CronArgs, plan: &Plan, world: &World) -> anyhow::Result<()> {
    let schedule = match args.every {
        60 => "* * * * *".to_owned(),
        every => format!("* * * * * */{every}"),
    };
    let numbers: Vec<u32> = (0..args.jobs).collect();
    for some in numbers.chunks(MADE_AT_ONCE) {
        let made = some.iter().map(|number| {
            let agent = agent_id(usize::try_from(*number).unwrap_or_default() % plan.agents);
            let (name, chat) = (format!("job-{number}"), format!("telegram:{}", FIRST_CHAT + i64::from(*number)));
            let schedule = schedule.clone();
            async move {
                let words = ["cron", "add", &agent, &schedule, "say your slot", "--name", &name, "--deliver", &chat];
                let policies = ["--missed", "all", "--overlap", "queue", "--bare"];
                world.command(plan, &[&words[..], &policies[..]].concat()).await
            }
        });
        futures_util::future::try_join_all(made).await.context("make the jobs")?;
    }
    Ok(())
}

/// No more slots.
async fn stop(args: &CronArgs, plan: &Plan, world: &World) -> anyhow::Result<()> {
    let numbers: Vec<u32> = (0..args.jobs).collect();
    for some in numbers.chunks(MADE_AT_ONCE) {
        let stopped = some.iter().map(|number| {
            let name = format!("job-{number}");
            async move { world.command(plan, &["cron", "pause", &name]).await }
        });
        futures_util::future::try_join_all(stopped).await.context("pause the jobs")?;
    }
    Ok(())
}

/// What the platform showed of each slot of each job.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    plain: BTreeMap<(u32, i64), u32>,
    marked: u32,
    /// What a job said that names no slot of it.
    strange: Vec<String>,
}

fn seen(shown: impl Iterator<Item = (i64, String)>) -> Seen {
    let mut seen = Seen::default();
    for (chat, text) in shown.filter(|(chat, _)| *chat >= FIRST_CHAT) {
        let is_marked = text.starts_with(MARK);
        let named = model::named_slot(&text).and_then(|(job, slot)| {
            let number: u32 = job.strip_prefix("job-")?.parse().ok()?;
            let slot: Timestamp = slot.parse().ok()?;
            (FIRST_CHAT + i64::from(number) == chat).then_some((number, slot.as_second()))
        });
        match named {
            Some(key) => {
                let count = seen.plain.entry(key).or_default();
                // A marked copy stands beside what it is a copy of; alone it is the answer.
                if is_marked && *count > 0 {
                    seen.marked += 1;
                } else {
                    *count += 1;
                }
            }
            None => seen.strange.push(format!("{chat}: {text}")),
        }
    }
    seen
}

/// Waits until all slots are answered, and a quiet time more; bounded.
async fn drained(common: &Common, world: &World, jobs: u32, slots: &Slots) -> Seen {
    let end = Instant::now() + common.drain;
    let mut complete = None;
    loop {
        let now = seen(world.record().shown.into_iter().map(|shown| (shown.chat, shown.text)));
        let is_complete = (0..jobs).all(|job| slots.all().all(|slot| now.plain.contains_key(&(job, slot))));
        let since = *complete.get_or_insert_with(Instant::now);
        if !is_complete {
            complete = None;
        } else if since.elapsed() >= QUIET {
            return now;
        }
        if Instant::now() >= end {
            return now;
        }
        sleep(LOOK_EVERY).await;
    }
}

fn judged(jobs: u32, slots: &Slots, seen: &Seen) -> Vec<Condition> {
    let expected: BTreeSet<(u32, i64)> = (0..jobs).flat_map(|job| slots.all().map(move |slot| (job, slot))).collect();
    let name = |key: &(u32, i64)| format!("job-{} {}", key.0, key.1);
    let list = |keys: Vec<&(u32, i64)>| {
        let named: Vec<String> = keys.iter().take(NAMED).map(|key| name(key)).collect();
        format!("{} {}", keys.len(), named.join(", ")).trim_end().to_owned()
    };
    let missing: Vec<_> = expected.iter().filter(|key| !seen.plain.contains_key(key)).collect();
    let double: Vec<_> = seen.plain.iter().filter(|(_, count)| **count > 1).map(|(key, _)| key).collect();
    let ran = expected.len() - missing.len();
    vec![
        Condition::new(
            "every slot ran",
            missing.is_empty() && !expected.is_empty(),
            format!("{ran} of {}", expected.len()),
        ),
        Condition::new("no slot is missing", missing.is_empty(), list(missing)),
        Condition::new("no slot twice but marked", double.is_empty(), list(double)),
        Condition::new("nothing else is said", seen.strange.is_empty(), format!("{:?}", seen.strange)),
        Condition::new("copies that say so", true, seen.marked),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(chat: i64, text: &str) -> (i64, String) {
        (FIRST_CHAT + chat, text.to_owned())
    }

    #[test]
    fn the_verdict_reads_what_chats_show() {
        let slots = Slots { first: 0, last: 30, every: 15 };
        let texts = [
            shown(0, "{job-0 @ 1970-01-01T00:00:00Z}"),
            shown(0, "{job-0 @ 1970-01-01T00:00:15Z}"),
            shown(0, "(may be a duplicate)\n{job-0 @ 1970-01-01T00:00:15Z}"),
            shown(0, "(may be a duplicate)\n{job-0 @ 1970-01-01T00:00:30Z}"),
            (7, "no job".to_owned()),
        ];
        let good = seen(texts.iter().cloned());
        assert!(judged(1, &slots, &good).iter().all(|condition| condition.held), "{good:?}");
        assert_eq!(good.marked, 1);

        let held = |seen: &Seen| judged(1, &slots, seen).iter().map(|condition| condition.held).collect::<Vec<_>>();
        assert_eq!(held(&seen(texts.iter().take(2).cloned())), [false, false, true, true, true]);
        let twice = texts.iter().cloned().chain([texts[0].clone()]);
        assert_eq!(held(&seen(twice)), [true, true, false, true, true]);
        let strange = texts.iter().cloned().chain([shown(1, "{job-0 @ 1970-01-01T00:00:00Z}"), shown(0, "failed")]);
        assert_eq!(held(&seen(strange)), [true, true, true, false, true]);
    }
}
