use std::time::Duration;

use hermes_proto::v1::*;

use crate::fake::soon;
use crate::fake::{Fake, assignment, says, turn};
use crate::{Worker, attached};

#[tokio::test]
async fn a_worker_joins_and_registers_first() {
    let mut fake = Fake::start().await;
    let worker = Worker::start(&fake);
    let mut link = fake.attached().await;
    let register = link.register().await;
    assert_eq!((register.protocol_version, register.slots), (2, 4));
    assert_eq!(register.pid, i64::from(std::process::id()));
    assert_eq!(register.home, worker.home().canonicalize().unwrap().display().to_string());
    assert_eq!(*fake.state.joins.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_lost_stream_comes_back_and_the_report_with_it() {
    let (mut fake, _worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let call = fake.call().await;
    call.say("done").await;
    call.done().await;
    let completed = link.completed().await;
    drop(link);
    let mut link = fake.attached().await;
    link.welcome().await;
    assert_eq!(link.completed().await, completed);
    link.acknowledge(&completed).await;
    // An end that comes while disconnected is reported on the next stream, too; an acknowledged one is not.
    link.assign(assignment(turn(2, 1, 1), &says("hi"))).await;
    let call = fake.call().await;
    link.to_worker.send(Err(tonic::Status::unavailable("replica stops"))).await.unwrap();
    drop(link);
    call.done().await;
    let mut link = fake.attached().await;
    link.welcome().await;
    assert_eq!(link.completed().await.turn, Some(turn(2, 1, 1)));
    assert_eq!(*fake.state.joins.lock().unwrap(), 1, "the certificate is used again");
}

#[tokio::test]
async fn a_lost_lease_drops_what_runs_and_registers_again() {
    let (mut fake, _worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let call = fake.call().await;
    link.send(control_message::Message::HeartbeatAck(HeartbeatAck {
        sequence: 1,
        lease_lost: true,
        ..HeartbeatAck::default()
    }))
    .await;
    soon("the end of the call", call.events.closed()).await;
    let mut link = fake.attached().await;
    link.welcome().await;
    link.assign(assignment(turn(1, 1, 2), &says("hi"))).await;
    fake.call().await.done().await;
    assert_eq!(link.completed().await.turn, Some(turn(1, 1, 2)));
}

#[tokio::test]
async fn a_stream_whose_heartbeats_are_not_answered_is_given_up_and_what_runs_goes_on() {
    let mut fake = Fake::start().await;
    let _worker = Worker::start(&fake);
    let mut link = fake.attached().await;
    link.welcome_with(100, 2_000).await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let call = fake.call().await;
    // Read everything, answer nothing: long before the lease ends it comes back, with its turn.
    let silent = tokio::time::Instant::now();
    let mut again = fake.attached().await;
    assert!(silent.elapsed() < Duration::from_millis(1_900), "{:?}", silent.elapsed());
    again.welcome_with(100, 60_000).await;
    call.done().await;
    assert_eq!(again.completed().await.turn, Some(turn(1, 1, 1)));
}

#[tokio::test]
async fn drain_finishes_what_runs_says_goodbye_and_ends() {
    let (mut fake, mut worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let call = fake.call().await;
    link.send(control_message::Message::Drain(Drain { grace_ms: 8_000 })).await;
    assert!(matches!(link.next().await, worker_message::Message::GoingAway(_)));
    call.done().await;
    let completed = link.completed().await;
    link.acknowledge(&completed).await;
    assert!(link.ended().await);
    drop(link);
    worker.ended().await.expect("drained");
}

#[tokio::test]
async fn the_grace_of_a_drain_is_bounded() {
    let (mut fake, mut worker, mut link) = attached().await;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    let call = fake.call().await;
    link.send(control_message::Message::Drain(Drain { grace_ms: 100 })).await;
    assert!(matches!(link.next().await, worker_message::Message::GoingAway(_)));
    assert!(link.ended().await);
    drop(link);
    worker.ended().await.expect("drained");
    soon("the end of the call", call.events.closed()).await;
}

#[tokio::test]
async fn a_refusal_ends_the_worker_unless_it_may_come_back() {
    let mut fake = Fake::start().await;
    let mut worker = Worker::start(&fake);
    let mut link = fake.attached().await;
    link.register().await;
    let refused = |retry| Refused { reason: "protocol too old".into(), retry };
    link.send(control_message::Message::Refused(refused(true))).await;
    let mut link = fake.attached().await;
    link.register().await;
    link.send(control_message::Message::Refused(refused(false))).await;
    let error = worker.ended().await.expect_err("refused");
    assert!(format!("{error:#}").contains("protocol too old"));
}

#[tokio::test]
async fn a_used_up_join_token_ends_the_worker_and_is_not_shown() {
    let fake = Fake::start().await;
    *fake.state.joins_left.lock().unwrap() = 0;
    let error = format!("{:#}", Worker::start(&fake).ended().await.expect_err("no token"));
    assert!(error.contains("used up") && error.contains("new token"), "{error}");
    assert!(!error.contains("hermes-join"));
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_life_and_outlives_the_token() {
    let mut fake = Fake::start().await;
    *fake.state.certificate_life.lock().unwrap() = Duration::from_secs(6);
    let _worker = Worker::start(&fake);
    let mut link = fake.attached().await;
    link.welcome_with(200, 60_000).await;
    *fake.state.certificate_life.lock().unwrap() = Duration::from_secs(3600);
    while *fake.state.renewals.lock().unwrap() == 0 {
        let worker_message::Message::Heartbeat(beat) = link.next_any().await else { panic!("only heartbeats") };
        let ack = HeartbeatAck { sequence: beat.sequence, lease_lost: false, ..HeartbeatAck::default() };
        link.send(control_message::Message::HeartbeatAck(ack)).await;
    }
    // The stream goes on, and calls move to a connection with the new certificate.
    *fake.state.refuse_first.lock().unwrap() = 1;
    link.assign(assignment(turn(1, 1, 1), &says("hi"))).await;
    fake.call().await.done().await;
    assert_eq!(link.completed().await.outcome(), Outcome::Succeeded);
    // When the control plane ends the stream for its old certificate, the new one is at hand.
    link.to_worker.send(Err(tonic::Status::unauthenticated("the certificate has expired"))).await.unwrap();
    drop(link);
    fake.attached().await.register().await;
    assert_eq!(*fake.state.joins.lock().unwrap(), 1);
}

#[tokio::test]
async fn an_expired_certificate_and_a_dead_token_end_the_worker() {
    let mut fake = Fake::start().await;
    *fake.state.certificate_life.lock().unwrap() = Duration::from_millis(3_000);
    *fake.state.refuse_renewals.lock().unwrap() = true;
    let mut worker = Worker::start(&fake);
    let mut link = fake.attached().await;
    link.welcome().await;
    let error = format!("{:#}", worker.ended().await.expect_err("no identity"));
    assert!(error.contains("certificate has expired") && error.contains("new token"), "{error}");
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_any_more_is_bought_anew() {
    let (mut fake, _worker, link) = attached().await;
    *fake.state.joins_left.lock().unwrap() = 1;
    link.to_worker.send(Err(tonic::Status::permission_denied("revoked"))).await.unwrap();
    drop(link);
    fake.attached().await.register().await;
    assert_eq!(*fake.state.joins.lock().unwrap(), 2);
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_talked_to() {
    let mut fake = Fake::start().await;
    let other = Fake::start().await;
    let mut worker = Worker::new();
    let mut config = worker.config(&fake);
    config.join = hermes_worker::config::JoinSource::Text(other.join_token.clone());
    let servers = hermes_worker::servers::Servers::new(config.servers.clone());
    let identity = hermes_worker::identity::Identity::new(servers, config.join.clone(), jiff::Timestamp::now);
    let error = identity.connect().await.expect_err("another authority");
    assert!(!error.is_final());
    worker.task.spawn(hermes_worker::app::serve(config, worker.stop.clone()));
    worker.stop.cancel();
    worker.ended().await.expect("stopped before it joined");
    assert!(fake.no_call());
    assert_eq!(*fake.state.joins.lock().unwrap(), 0);
}

/// A server may be cut off in the middle of everything and its address answer nobody: what calls it must come to an end, so that
/// the turn asks the server that the worker has found meanwhile.
#[tokio::test]
async fn a_call_to_a_server_that_nobody_answers_for_any_more_ends() {
    use hermes_proto::v1::FetchHomeRequest;
    use hermes_proto::v1::worker_service_client::WorkerServiceClient;
    let fake = Fake::start().await;
    let target = fake.url.trim_start_matches("https://").to_owned();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let cut = tokio_util::sync::CancellationToken::new();
    let mut lines = tokio::task::JoinSet::new();
    let dead = cut.clone();
    lines.spawn(async move {
        let (mut open, mut silent) = (tokio::task::JoinSet::new(), Vec::new());
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            if dead.is_cancelled() {
                silent.push(near);
                continue;
            }
            let (target, dead) = (target.clone(), dead.clone());
            open.spawn(async move {
                let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
                dead.run_until_cancelled(tokio::io::copy_bidirectional(&mut near, &mut far)).await
            });
        }
    });
    let servers = hermes_worker::servers::Servers::new(vec![url.parse().unwrap()]);
    let join = hermes_worker::config::JoinSource::Text(fake.join_token.clone());
    let identity = hermes_worker::identity::Identity::new(servers, join, jiff::Timestamp::now);
    let mut client = WorkerServiceClient::new(identity.connect().await.unwrap().channel);
    client.fetch_home(FetchHomeRequest::default()).await.unwrap();
    cut.cancel();
    // The first finds the line cut, the next ones try to have another.
    for call in 1..=3 {
        let ended = tokio::time::timeout(Duration::from_secs(30), client.fetch_home(FetchHomeRequest::default())).await;
        let answer = ended.unwrap_or_else(|_| panic!("call {call} waits for ever"));
        assert!(hermes_worker::connection::is_broken(&answer.unwrap_err()), "call {call}");
    }
}
