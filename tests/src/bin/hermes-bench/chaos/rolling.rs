//! A rolling restart under load: orderly ends, one after another, each waited for until its successor is ready.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::faults::Fault;
use super::process::Process;
use super::report::{Condition, Report};
use super::traffic::Traffic;
use super::world::{Plan, World, until_ready};
use super::{Common, finish, note};

/// From SIGTERM to the end of a process.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Load before the first restart and between two.
const BETWEEN: Duration = Duration::from_secs(2);

/// Restarts everything in order, again and again until the time is over; at least once.
///
/// # Errors
/// When something does not come back.
pub(crate) async fn run(common: &Common, plan: &Plan) -> anyhow::Result<Report> {
    let world = Arc::new(World::start(plan).await?);
    let traffic = Traffic::start(&world, &common.load(plan.seed))?;
    let start = Instant::now();
    let mut restarts = 0;
    loop {
        for replica in &world.replicas {
            sleep(BETWEEN).await;
            restart(&world, &replica.process).await?;
            until_ready(&replica.process).await.with_context(|| world.tails())?;
            restarts += 1;
        }
        for worker in &world.workers {
            sleep(BETWEEN / 2).await;
            restart(&world, &worker.process).await?;
            world.until_connected(plan).await?;
            restarts += 1;
        }
        if start.elapsed() >= common.seconds {
            break;
        }
    }
    traffic.stop();
    let faults = BTreeMap::from([(Fault::Rolling.name(), restarts)]);
    let mut report = finish("rolling", common, plan, world, traffic, faults).await?;
    let (marked, unknown, told) = (report.verdict.duplicates_marked, report.verdict.unknown_steps, report.verdict.told);
    report.conditions = vec![
        Condition::new("no copy, not even a marked one", marked == 0, marked),
        Condition::new("no step is unknown", unknown == 0, unknown),
        Condition::new("no turn fails", told == 0, told),
        Condition::new("nothing ends but as asked", report.surprises.is_empty(), report.surprises.len()),
    ];
    Ok(report)
}

/// SIGTERM, and until the next instance was started.
async fn restart(world: &World, process: &Process) -> anyhow::Result<()> {
    let starts = process.starts();
    anyhow::ensure!(process.signal(Signal::SIGTERM), "{} does not run", process.name());
    let asked = Instant::now();
    let again = async {
        while process.starts() == starts {
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(ENDS_WITHIN, again).await.with_context(|| format!("{} does not end\n{}", process.name(), world.tails()))?;
    note(world, &format!("{} restarted, {:.1} s", process.name(), asked.elapsed().as_secs_f64()))
}
