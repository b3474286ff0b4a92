//! A database that falls silent or goes away: nothing is acknowledged, `/readyz` says so, and it ends by itself.

use std::time::{Duration, Instant};

use hermes_tests::system::{Options, Up, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::SOON;
use super::cluster::{Cluster, Replica};

/// From the database's silence to a red light, and from its return to a green one.
const NOTICED: Duration = Duration::from_secs(10);
/// What a busy machine may add.
const SLACK: Duration = Duration::from_secs(4);

async fn until_ready_is(replica: &Replica, status: u16) -> Duration {
    let begun = Instant::now();
    let look = async {
        while replica.readyz().await.0 != status {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, look).await.unwrap_or_else(|_| panic!("readyz is never {status}"));
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_database_nothing_is_acknowledged_and_readyz_is_red_until_it_is_back() {
    let mut cluster = Cluster::new(&json!({}), &[], &[]).await;
    let relay = cluster.database_relay().await;
    let replica = cluster.replica().await;
    assert_eq!(replica.readyz().await, (200, "ready\n".to_owned()));
    for (number, silent) in [true, false].into_iter().enumerate() {
        replica.submit("before", number).await.unwrap();
        if silent {
            relay.freeze()
        } else {
            relay.cut()
        }
        let kept = tokio::time::timeout(Duration::from_secs(3), replica.submit("meanwhile", number)).await;
        assert!(!matches!(kept, Ok(Ok(_))), "it was acknowledged: {kept:?}");
        assert!(until_ready_is(&replica, 503).await < NOTICED + SLACK, "silent: {silent}");
        let kept = tokio::time::timeout(Duration::from_secs(1), replica.submit("meanwhile", number)).await;
        assert!(!matches!(kept, Ok(Ok(_))), "it was acknowledged: {kept:?}");
        relay.mend();
        assert!(until_ready_is(&replica, 200).await < NOTICED + SLACK, "silent: {silent}");
        // The same message again, until it is kept: once.
        let kept = async { while replica.submit("meanwhile", number).await.is_err() {} };
        tokio::time::timeout(SOON, kept).await.unwrap_or_else(|_| panic!("not kept\n{}", cluster.logs()));
    }
    assert_eq!(cluster.look("SELECT count(*) FROM turns").await, "4");
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_under_load_connections_stay_below_their_bound() {
    let mut cluster = Cluster::new(&json!({}), &[], &[]).await;
    let relay = cluster.database_relay().await;
    let replica = cluster.replica().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let load = (0..40).map(|chat| {
        let (replica, stop) = (&replica, stop.clone());
        async move {
            let (mut kept, mut number) = (0_usize, 0);
            while !stop.is_cancelled() {
                number += 1;
                match replica.submit(&format!("chat-{chat}"), number).await {
                    Ok(_) => kept += 1,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
            kept
        }
    });
    let outages = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            relay.cut();
            until_ready_is(&replica, 503).await;
            relay.mend();
            assert!(until_ready_is(&replica, 200).await < NOTICED + SLACK);
        }
        stop.cancel();
    };
    let (kept, ()) = tokio::join!(futures_util::future::join_all(load), outages);
    // The pool, and the doorbell beside it.
    assert!(relay.most_connections() <= 13, "{} connections", relay.most_connections());
    let stored: usize = cluster.look("SELECT count(*) FROM turns").await.parse().unwrap();
    let acknowledged = kept.iter().sum::<usize>();
    assert!(acknowledged > 40 && stored >= acknowledged, "{acknowledged} acknowledged, {stored} stored");
    replica.stop().await;
}

#[test]
fn a_stopped_postgres_is_noticed_and_its_return_too() {
    let up = Up::start(Options::default());
    let readyz = || {
        let answer = std::net::TcpStream::connect(up.endpoint().http).and_then(|mut stream| {
            use std::io::{Read as _, Write as _};
            stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        });
        answer.unwrap_or_default().split_whitespace().nth(1).map(str::to_owned)
    };
    until(SOON, "it is ready", || (readyz().as_deref() == Some("200")).then_some(()));
    let servers: Vec<i32> = up
        .processes()
        .into_iter()
        .filter(|process| process.name.starts_with("postgres"))
        .map(|process| process.pid)
        .collect();
    assert!(servers.len() > 3, "the server and its backends: {servers:?}");
    let signal = |signal: Signal| {
        for pid in &servers {
            kill(Pid::from_raw(*pid), signal).unwrap();
        }
    };
    let stopped = Instant::now();
    signal(Signal::SIGSTOP);
    until(SOON, "readyz is red", || (readyz().as_deref() == Some("503")).then_some(()));
    let red = stopped.elapsed();
    signal(Signal::SIGCONT);
    until(SOON, "readyz is green", || (readyz().as_deref() == Some("200")).then_some(()));
    assert!(red < NOTICED + SLACK, "red after {red:?}");
}
