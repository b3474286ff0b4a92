//! A replica that stood still and what it was about to send.

use std::time::Duration;

use hermes_tests::fake_telegram::FakeTelegram;
use nix::sys::signal::Signal;

use super::SOON;
use super::accounts::{BOT, cluster, owner};
use super::cluster::Cluster;

/// Waits until the replica's lease is another one than `known`; answers it.
async fn renewed(cluster: &Cluster, replica: u64, known: &str) -> String {
    let look = async {
        loop {
            let lease = cluster
                .look(&format!("SELECT lease_until FROM replicas WHERE replica_id = {replica} AND lost_at IS NULL"))
                .await;
            if !lease.is_empty() && lease != known {
                return lease;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, look).await.unwrap_or_else(|_| panic!("no lease\n{}", cluster.logs()))
}

/// How often the point was reached.
fn reached(log: &std::path::Path, point: &str) -> usize {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    log.lines().filter(|line| line.split(' ').nth(1) == Some(point)).count()
}

/// Waits until it was reached so often.
async fn until(log: &std::path::Path, point: &str, count: usize, cluster: &Cluster) {
    let look = async {
        while reached(log, point) < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, look).await.unwrap_or_else(|_| panic!("{point} is not reached\n{}", cluster.logs()));
}

/// It has a lease again when it goes on, but not the one under which the delivery was its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_came_back_sends_nothing_of_what_was_held_before() {
    let fake = FakeTelegram::start().await.unwrap();
    let bot = fake.bot(BOT);
    let mut cluster = cluster(&fake).await;
    let (stands_still, log) = cluster.drilled_replica("attempt.before=hold:DIR/go").await;
    let number = stands_still.number();
    let other = cluster.replica().await;
    cluster.lead_to(&[&stands_still, &other]);
    let _worker = cluster.worker(&stands_still, "8").await;
    owner(&stands_still, &cluster).await;
    bot.push_text(1, 1, "hello");
    until(&log, "attempt.before", 1, &cluster).await;

    stands_still.signal(Signal::SIGSTOP);
    let sent = bot.wait_for(1, 1, SOON).await;
    assert!(sent.is_ok(), "nobody took it over\n{}", cluster.logs());
    let old = cluster.look(&format!("SELECT lease_until FROM replicas WHERE replica_id = {number}")).await;
    stands_still.signal(Signal::SIGCONT);
    // With the second one the answer to the first was heard.
    let lease = renewed(&cluster, number, &old).await;
    renewed(&cluster, number, &lease).await;
    std::fs::write(log.with_file_name("go"), "").unwrap();
    until(&log, "send.after", 1, &cluster).await;

    // What comes next is sent by whoever has it now, and is the second message there.
    bot.push_text(1, 1, "again");
    let texts = |deliveries: Vec<_>| -> Vec<String> {
        deliveries.into_iter().map(|one: hermes_tests::fake_telegram::Delivery| one.text).collect()
    };
    assert!(bot.wait_for(1, 2, SOON).await.is_ok(), "{}", cluster.logs());
    let shown = texts(bot.delivered(1));
    assert_eq!(shown, ["(may be a duplicate)\n[main] hello", "[main] again"], "{}", cluster.logs());
}
