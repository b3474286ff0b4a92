//! One budget, two replicas that spend it.

use std::time::Duration;

use hermes_proto::v1::{TurnEnded, TurnState};
use hermes_tests::mock_model::{Behaviour, MockModel};
use serde_json::{Value, json};

use super::SOON;
use super::cluster::{Cluster, Replica};

/// An answer of 1000 tokens is reserved at 2 cents; ten of them fit. The mock says that one of its answers costs an eighth of a cent.
fn document(mock: &MockModel) -> Value {
    let price = json!({"input_usd_per_mtok": 0, "output_usd_per_mtok": 20});
    json!({
        "model": "mock/mock-1",
        "providers": {"mock": {"kind": "openai", "base_url": mock.base_url(), "prices": {"mock-1": price}}},
        "budget": {"usd_per_day": 0.2, "max_output_tokens": 1000},
    })
}

fn budget(replica: &Replica) -> Value {
    replica.json(&["budget", "show", "main"])[0].clone()
}

/// Looks until `budget show` says what is expected; its numbers move when a call's end is stored.
async fn until_shown(replica: &Replica, spent: f64, reserved: f64) -> Value {
    let looked = tokio::time::timeout(SOON, async {
        loop {
            let shown = budget(replica);
            if shown["spent_today_usd"] == json!(spent) && shown["reserved_usd"] == json!(reserved) {
                return shown;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    looked.await.unwrap_or_else(|_| panic!("{}", budget(replica)))
}

async fn submit(replica: &Replica, name: &str, count: usize) -> Vec<String> {
    let mut turns = Vec::new();
    for number in 0..count {
        turns.push(replica.submit(&format!("{name}-{number}"), number).await.unwrap());
    }
    turns
}

async fn ends(replica: &Replica, turns: &[String]) -> Vec<TurnEnded> {
    let mut ends = Vec::new();
    for turn in turns {
        ends.push(replica.ended(turn).await);
    }
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_never_spend_more_than_the_one_budget() {
    let mock = MockModel::start().await.unwrap();
    mock.otherwise(Behaviour::Held);
    let mut cluster = Cluster::new(&document(&mock), &[], &[]).await;
    let (here, there) = (cluster.replica().await, cluster.replica().await);
    cluster.lead_to(&[&here]);
    let one = cluster.worker_in("one", &here, "20").await;
    cluster.lead_to(&[&there]);
    let two = cluster.worker_in("two", &there, "20").await;
    let both =
        async { while cluster.look("SELECT count(DISTINCT replica_id) FROM workers WHERE NOT lost").await != "2" {} };
    tokio::time::timeout(SOON, both).await.unwrap();

    // Twenty at once, ten at each replica: ten fit, whichever they are, and nobody is answered yet.
    let turns = [submit(&here, "here", 10).await, submit(&there, "there", 10).await].concat();
    let shown = until_shown(&here, 0.2, 0.2).await;
    assert_eq!((&shown["reserved_tokens"].as_u64().map(|tokens| tokens > 10_000)), &Some(true), "{shown}");
    let refused = async { while cluster.look("SELECT count(*) FROM turn_steps WHERE ended = 3").await != "10" {} };
    tokio::time::timeout(SOON, refused).await.unwrap_or_else(|_| panic!("{}", cluster.logs()));
    assert_eq!(mock.requests(), 10, "no more calls were made than fit");
    assert_eq!(mock.last().json()["max_tokens"], json!(1000), "the provider is told what was reserved");
    assert_eq!(budget(&there)["alerts"].as_array().unwrap().len(), 1, "told once");
    mock.release(10);
    let ended = ends(&here, &turns).await;
    let failed: Vec<_> = ended.iter().filter(|end| end.state() == TurnState::Failed).collect();
    assert_eq!((failed.len(), ended.len()), (10, 20));
    for end in failed {
        assert!(end.reply.contains("the budget of agent main, $0.20 a day, does not allow"), "{}", end.reply);
        assert!(end.reply.contains("hermesctl budget raise main --usd-per-day"), "{}", end.reply);
    }

    // What was used takes the place of what was reserved, on both; and what fits again is answered.
    until_shown(&here, 0.0125, 0.0).await;
    until_shown(&there, 0.0125, 0.0).await;
    mock.otherwise(Behaviour::Answer);
    let again = [submit(&here, "again-here", 4).await, submit(&there, "again-there", 4).await].concat();
    let ended = ends(&there, &again).await;
    assert!(ended.iter().all(|end| end.state() == TurnState::Succeeded), "{ended:?}");
    until_shown(&there, 0.0225, 0.0).await;
    drop((one, two));
    here.stop().await;
    there.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_loses_its_replica_goes_on_under_its_own_reservation() {
    let mock = MockModel::start().await.unwrap();
    mock.script([Behaviour::HangAfter(3)]);
    let mut document = document(&mock);
    document["budget"]["usd_per_day"] = json!(0.02);
    let mut cluster = Cluster::new(&document, &[], &[]).await;
    let (first, second) = (cluster.replica().await, cluster.replica().await);
    cluster.lead_to(&[&first, &second]);
    let worker = cluster.worker(&first, "2").await;
    let turn = second.submit("chat", 1).await.unwrap();
    until_shown(&second, 0.02, 0.02).await;
    first.kill9().await;
    // Nothing else would fit, but its own call is not a new one.
    let ended = second.ended(&turn).await;
    assert_eq!(ended.state(), TurnState::Succeeded, "{}\n{}", ended.reply, cluster.logs());
    assert_eq!(mock.requests(), 2);
    until_shown(&second, 0.001_25, 0.0).await;
    drop(worker);
    second.stop().await;
}
