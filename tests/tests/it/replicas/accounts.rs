//! One receiver per bot, whichever replica it is.

use std::time::{Duration, Instant};

use hermes_tests::fake_telegram::{Bot, FakeTelegram};
use serde_json::json;

use super::SOON;
use super::cluster::{Cluster, Replica};

pub(super) const BOT: &str = "700:a-secret-of-the-bot";
/// Time to live of the lease, and as long as Telegram may hold the last poll of a dead receiver.
const HANDOVER: Duration = Duration::from_secs(15 + 35);

pub(super) async fn cluster(fake: &FakeTelegram) -> Cluster {
    let account =
        json!({"id": "front", "token_env": "FRONT_TOKEN", "api_base": fake.base(), "allow_all": true, "rate": "off"});
    Cluster::new(&json!({"platforms": {"telegram": {"accounts": [account]}}}), &[("FRONT_TOKEN", BOT)], &[]).await
}

/// The replica that receives, as soon as `by` says that the account is up.
pub(super) async fn owner(by: &Replica, cluster: &Cluster) -> u64 {
    let look = async {
        loop {
            let status = by.json(&["status"]);
            let account = &status["accounts"][0];
            if account["state"] == "up" && account["replica"] != 0 {
                return account["replica"].as_u64().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, look).await.unwrap_or_else(|_| panic!("nobody receives\n{}", cluster.logs()))
}

async fn answered(bot: &Bot, chat: i64, count: usize, cluster: &Cluster) {
    if let Err(there) = bot.wait_for(chat, count, SOON).await {
        panic!("chat {chat} has only {there:?}\n{}", cluster.logs());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_receives_for_a_bot_and_another_takes_over_when_it_dies() {
    let fake = FakeTelegram::start().await.unwrap();
    let bot = fake.bot(BOT);
    bot.hold_polls();
    let mut cluster = cluster(&fake).await;
    let (first, second) = (cluster.replica().await, cluster.replica().await);
    cluster.lead_to(&[&first, &second]);
    let _worker = cluster.worker(&first, "8").await;
    let owned_by = owner(&first, &cluster).await;
    assert_eq!(owner(&second, &cluster).await, owned_by, "both say the same");
    for chat in 1..=5 {
        bot.push_text(chat, chat, "one");
        answered(&bot, chat, 1, &cluster).await;
    }
    assert_eq!(bot.overlaps(), 0, "nobody polled beside the receiver");

    let (dies, stays) = if first.number() == owned_by { (first, second) } else { (second, first) };
    cluster.lead_to(&[&stays]);
    let died = Instant::now();
    dies.kill9().await;
    for chat in 1..=5 {
        bot.push_text(chat, chat, "two");
    }
    for chat in 1..=5 {
        answered(&bot, chat, 2, &cluster).await;
    }
    assert!(died.elapsed() < HANDOVER + Duration::from_secs(5), "it took {:?}", died.elapsed());
    assert_eq!(owner(&stays, &cluster).await, stays.number());

    // In order it goes over at once.
    let again = cluster.replica().await;
    cluster.lead_to(&[&again]);
    let asked = Instant::now();
    stays.stop().await;
    bot.push_text(9, 9, "three");
    answered(&bot, 9, 1, &cluster).await;
    assert!(asked.elapsed() < HANDOVER - Duration::from_secs(10), "it took {:?}", asked.elapsed());
    assert_eq!(owner(&again, &cluster).await, again.number());
    assert_eq!(bot.overlaps(), 0, "no two at a time");
    let texts: Vec<usize> = [1, 2, 3, 4, 5, 9].iter().map(|chat| bot.delivered(*chat).len()).collect();
    assert_eq!(texts, [2, 2, 2, 2, 2, 1], "none twice");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bots_are_spread_over_the_replicas() {
    let fake = FakeTelegram::start().await.unwrap();
    let tokens = ["701:aaaa-secret", "702:bbbb-secret"];
    let bots = tokens.map(|token| fake.bot(token));
    let account = |id: &str, env: &str| json!({"id": id, "token_env": env, "api_base": fake.base(), "allow_all": true, "rate": "off"});
    let document = json!({"platforms": {"telegram": {"accounts": [account("one", "ONE"), account("two", "TWO")]}}});
    let mut cluster = Cluster::new(&document, &[("ONE", tokens[0]), ("TWO", tokens[1])], &[]).await;
    let first = cluster.replica().await;
    cluster.lead_to(&[&first]);
    let _worker = cluster.worker(&first, "8").await;
    let second = cluster.replica().await;
    // The first had both; it gives one away when the second is there.
    let spread = async {
        loop {
            let status = first.json(&["status"]);
            let mut owners: Vec<u64> = status["accounts"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|account| account["replica"].as_u64())
                .collect();
            owners.sort_unstable();
            if owners == [first.number(), second.number()] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(SOON, spread).await.unwrap_or_else(|_| panic!("one has all\n{}", cluster.logs()));
    for bot in &bots {
        bot.push_text(1, 1, "hello");
    }
    for bot in &bots {
        answered(bot, 1, 1, &cluster).await;
    }
    first.stop().await;
    second.stop().await;
}
