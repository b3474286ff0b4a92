//! Turns between replicas: accepted here, run there, and going on when a replica is gone.

use std::time::{Duration, Instant};

use hermes_proto::v1::TurnState;
use hermes_tests::mock_model::{Behaviour, MockModel};
use serde_json::{Value, json};

use super::SOON;
use super::cluster::Cluster;

fn document(mock: &MockModel) -> Value {
    json!({"model": "mock/mock-1", "providers": {"mock": {"kind": "openai", "base_url": mock.base_url()}}})
}

async fn asked(mock: &MockModel, requests: u64, cluster: &Cluster) {
    let wait = async {
        while mock.requests() < requests {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let in_time = tokio::time::timeout(SOON, wait).await;
    assert!(in_time.is_ok(), "{} of {requests} asked\n{}", mock.requests(), cluster.logs());
}

/// Ten messages, one after another, accepted where no worker is; answers how long the model waited for each.
async fn accepted_elsewhere(flags: &[&'static str]) -> Vec<Duration> {
    let mock = MockModel::start().await.unwrap();
    let mut cluster = Cluster::new(&document(&mock), &[], flags).await;
    let (here, there) = (cluster.replica().await, cluster.replica().await);
    cluster.lead_to(&[&there]);
    let _worker = cluster.worker(&there, "8").await;
    // Both have polled and know of each other.
    assert_eq!(here.json(&["status"])["replicas"], 2);
    let known = async { while cluster.look("SELECT count(*) FROM replicas").await != "2" {} };
    tokio::time::timeout(SOON, known).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2200)).await;
    let mut waits = Vec::new();
    for number in 0..10 {
        let begun = Instant::now();
        let turn = here.submit(&format!("chat-{number}"), number).await.unwrap();
        asked(&mock, number as u64 + 1, &cluster).await;
        waits.push(begun.elapsed());
        assert_eq!(here.ended(&turn).await.state(), TurnState::Succeeded);
    }
    here.stop().await;
    there.stop().await;
    waits
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_accepted_where_no_worker_is_begins_at_once_where_one_is() {
    let waits = accepted_elsewhere(&[]).await;
    // Without the doorbell each waits for the rest of a second: five seconds in all.
    assert!(waits.iter().sum::<Duration>() < Duration::from_secs(3), "{waits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_doorbell_it_begins_with_the_next_poll() {
    let mut waits = accepted_elsewhere(&["--no-doorbell"]).await;
    waits.sort();
    assert!(waits[5] < Duration::from_millis(1500), "{waits:?}");
    assert!(waits.iter().sum::<Duration>() > Duration::from_secs(2), "somebody rang: {waits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_document_is_known_to_the_other_replica_at_once() {
    let mock = MockModel::start().await.unwrap();
    let mut cluster = Cluster::new(&document(&mock), &[], &[]).await;
    let (here, there) = (cluster.replica().await, cluster.replica().await);
    tokio::time::sleep(Duration::from_millis(2200)).await;
    let mut took = Duration::ZERO;
    for number in 0..5 {
        here.json(&["agent", "add", &format!("agent{number}")]);
        let (version, begun) = (here.json(&["status"])["document_version"].clone(), Instant::now());
        let mut system = there.grpc().system();
        let known = async {
            loop {
                let status = system.get_status(hermes_proto::v1::GetStatusRequest {}).await.unwrap().into_inner();
                if json!(status.document_version) == version {
                    return;
                }
            }
        };
        tokio::time::timeout(SOON, known).await.unwrap();
        took += begun.elapsed();
    }
    assert!(took < Duration::from_millis(1500), "five changes took {took:?}");
    here.stop().await;
    there.stop().await;
}

const RUNNING: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn running_turns_go_on_when_their_replica_is_killed() {
    let mock = MockModel::start().await.unwrap();
    mock.otherwise(Behaviour::Held);
    let mut cluster = Cluster::new(&document(&mock), &[], &[]).await;
    let (first, second) = (cluster.replica().await, cluster.replica().await);
    cluster.lead_to(&[&first, &second]);
    let _worker = cluster.worker(&first, "256").await;
    let mut turns = Vec::new();
    for chat in 0..RUNNING {
        turns.push(first.submit(&format!("chat-{chat}"), 1).await.unwrap());
    }
    asked(&mock, RUNNING as u64, &cluster).await;
    let held = "SELECT count(*) FROM sessions WHERE state = 2 AND epoch = 1 AND crashes = 0";
    assert_eq!(cluster.look(held).await, RUNNING.to_string());
    first.kill9().await;
    // The calls ended with the replica that made them; the same turns ask again through the other one.
    asked(&mock, 2 * RUNNING as u64, &cluster).await;
    mock.release(2 * RUNNING);
    for turn in &turns {
        let ended = second.ended(turn).await;
        assert_eq!(ended.state(), TurnState::Succeeded, "{turn}: {}\n{}", ended.reply, cluster.logs());
    }
    assert_eq!(
        cluster.look("SELECT count(*) FROM sessions WHERE epoch <> 1 OR crashes <> 0").await,
        "0",
        "{}",
        cluster.logs()
    );
    assert_eq!(cluster.look("SELECT count(*) FROM turn_steps WHERE ended = 2").await, RUNNING.to_string());
    assert_eq!(cluster.look("SELECT count(*) FROM turns").await, RUNNING.to_string());
    assert_eq!(mock.requests(), 2 * RUNNING as u64, "asked once, and once more for the call that was cut");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_replaced_one_after_another_under_load() {
    let mock = MockModel::start().await.unwrap();
    mock.otherwise(Behaviour::Delay(Duration::from_millis(40)));
    let mut cluster = Cluster::new(&document(&mock), &[], &[]).await;
    let (mut first, mut second) = (cluster.replica().await, cluster.replica().await);
    cluster.lead_to(&[&first, &second]);
    let _worker = cluster.worker(&first, "16").await;
    let mut turns: Vec<(usize, usize, String)> = Vec::new();
    for round in 0..6 {
        for chat in 0..20 {
            // Half of them through each.
            let by = if chat % 2 == 0 { &first } else { &second };
            turns.push((chat, round, by.submit(&format!("chat-{chat}"), round).await.unwrap()));
        }
        match round {
            1 => {
                cluster.lead_to(&[&second]);
                first.stop().await;
                first = cluster.replica().await;
                cluster.lead_to(&[&first, &second]);
            }
            3 => {
                second.stop().await;
                second = cluster.replica().await;
                cluster.lead_to(&[&first, &second]);
            }
            _ => {}
        }
    }
    for (chat, round, turn) in &turns {
        let ended = first.ended(turn).await;
        assert_eq!(ended.state(), TurnState::Succeeded, "{turn}: {}\n{}", ended.reply, cluster.logs());
        assert!(ended.reply.starts_with(&format!("<chat-{chat}:{round}>")), "{}", ended.reply);
    }
    assert_eq!(cluster.look("SELECT count(*) FROM turns").await, turns.len().to_string());
    assert_eq!(cluster.look("SELECT count(*) FROM turn_steps WHERE ended = 2").await, turns.len().to_string());
    assert_eq!(cluster.look("SELECT coalesce(sum(crashes), 0) FROM sessions").await, "0");
    first.stop().await;
    second.stop().await;
}
