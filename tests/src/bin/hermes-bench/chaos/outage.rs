//! Postgres is away under load: nothing is acknowledged, health says so, and afterwards everything goes on by itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::report::{Condition, Report};
use super::traffic::Traffic;
use super::world::{Plan, World};
use super::{Common, finish, note};

/// Load before the outage and after it.
const AROUND: Duration = Duration::from_secs(8);
/// By then health has to say it.
const RED_WITHIN: Duration = Duration::from_secs(10);
/// What was committed before the end may be acknowledged so long after it, seconds.
const ON_ITS_WAY: f64 = 1.0;
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Stops Postgres for the given time.
///
/// # Errors
/// When the world does not start, or Postgres does not start again.
pub(crate) async fn run(common: &Common, plan: &Plan) -> anyhow::Result<Report> {
    let world = Arc::new(World::start(plan).await?);
    let traffic = Traffic::start(&world, &common.load(plan.seed))?;
    sleep(AROUND).await;
    let starts: Vec<u64> = world.processes().map(|process| process.starts()).collect();

    let mut cluster = world.cluster.lock().await;
    note(&world, "Postgres stops")?;
    cluster.stop_immediately().await?;
    let stopped = (Instant::now(), world.recorder.now());
    let red = all_say(&world, false, stopped.0 + RED_WITHIN).await;
    note(&world, &format!("health is red after {red:?}"))?;
    tokio::time::sleep_until(stopped.0 + common.seconds).await;
    let back = world.recorder.now();
    note(&world, "Postgres starts")?;
    cluster.restart().await?;
    drop(cluster);
    let green = all_say(&world, true, Instant::now() + RED_WITHIN * 3).await;
    note(&world, &format!("health is green after {green:?}"))?;
    sleep(AROUND).await;
    traffic.stop();

    let kept: Vec<u64> = world.processes().map(|process| process.starts()).collect();
    let acknowledged = {
        let record = world.record();
        let meanwhile = |at: f64| at > stopped.1 + ON_ITS_WAY && at < back;
        record.accepted.iter().filter(|one| meanwhile(one.at)).count()
    };
    let faults = BTreeMap::from([("outage".to_owned(), 1)]);
    let mut report = finish("outage", common, plan, world, traffic, faults).await?;
    let within =
        |time: Option<Duration>| time.map_or_else(|| "never".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
    report.conditions = vec![
        Condition::new("nothing is acknowledged meanwhile", acknowledged == 0, acknowledged),
        Condition::new("/readyz is red within 10 s", red.is_some(), within(red)),
        Condition::new("/readyz is green again", green.is_some(), within(green)),
        Condition::new("no process had to be started again", kept == starts, format!("{starts:?} {kept:?}")),
    ];
    Ok(report)
}

/// How long it took until `/readyz` of every replica said so; `None` when `end` came first.
async fn all_say(world: &World, ready: bool, end: Instant) -> Option<Duration> {
    let start = Instant::now();
    loop {
        let mut all = true;
        for address in world.addresses("http") {
            let said = match address {
                Some(address) => is_ready(address).await.unwrap_or(false),
                None => false,
            };
            all &= said == ready;
        }
        if all {
            return Some(start.elapsed());
        }
        if Instant::now() >= end {
            return None;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Whether it answers with 200.
async fn is_ready(address: SocketAddr) -> anyhow::Result<bool> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(ANSWER_WITHIN, ask).await.context("health does not answer")??;
    Ok(answer.lines().next().is_some_and(|status| status.contains(" 200")))
}
