//! Time limits, budgets and shedding, seen from outside.

use std::time::Duration;

use hermes_control_plane::grpc::layers::Limits;
use hermes_control_plane::identity::Role;
use tokio::task::JoinSet;
use tonic::Code;

use super::fixture::{Fixture, call, open};

const SUBMIT: &str = "/hermes.v1.MessageService/Submit";
const GET_TURN: &str = "/hermes.v1.MessageService/GetTurn";
const LIMIT: Duration = Duration::from_secs(10);

fn small() -> Limits {
    Limits {
        quick: 1,
        waiting: 1,
        wait: LIMIT,
        streams: 1,
        uploads: 1,
        uploads_each: 1,
        quick_time: LIMIT,
        upload_time: LIMIT,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quick_call_that_hangs_is_ended_and_a_waiting_one_is_not() {
    let mut fixture = Fixture::probe(Limits { quick_time: Duration::from_millis(50), ..Limits::default() }).await;
    let bearer = format!("Bearer {}", fixture.token(Role::Api).await);
    let hold = [("authorization", bearer.as_str()), ("x-hold", "answer")];
    let channel = fixture.operator();
    assert_eq!(call(&channel, SUBMIT, &hold).await.unwrap().0, Code::DeadlineExceeded);
    fixture.reached.recv().await.unwrap();
    // Started first, so it has hung for longer than the other when that one is ended.
    let waiting = call(&channel, GET_TURN, &hold);
    let other = async {
        fixture.reached.recv().await.unwrap();
        call(&channel, SUBMIT, &hold).await.unwrap().0
    };
    tokio::select! {
        ended = waiting => panic!("a wait has no time limit, but ended with {ended:?}"),
        code = other => assert_eq!(code, Code::DeadlineExceeded),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_shed_and_open_streams_take_nothing_from_quick_calls() {
    let mut fixture = Fixture::probe(small()).await;
    let bearer = format!("Bearer {}", fixture.token(Role::Api).await);
    let plain = [("authorization", bearer.as_str())];
    let hold = |how| [("authorization", bearer.as_str()), ("x-hold", how)];
    let channel = fixture.operator();

    // The one stream is open: its head has come, its body has not ended.
    let stream = open(&channel, GET_TURN, &hold("stream")).await.unwrap();
    fixture.reached.recv().await.unwrap();
    assert_eq!(call(&channel, GET_TURN, &plain).await.unwrap().0, Code::ResourceExhausted);
    assert_eq!(call(&channel, SUBMIT, &plain).await.unwrap().0, Code::Aborted);
    fixture.reached.recv().await.unwrap();

    // One quick call hangs; of three more, one waits for it and two find no place.
    let mut calls = JoinSet::new();
    for how in ["answer", "none", "none", "none"] {
        let (channel, bearer) = (channel.clone(), bearer.clone());
        calls.spawn(async move {
            let headers = [("authorization", bearer.as_str()), ("x-hold", how)];
            let headers = if how == "answer" { &headers[..] } else { &headers[..1] };
            call(&channel, SUBMIT, headers).await.unwrap().0
        });
        if how == "answer" {
            fixture.reached.recv().await.unwrap();
        }
    }
    for _ in 0..2 {
        assert_eq!(calls.join_next().await.unwrap().unwrap(), Code::ResourceExhausted);
    }
    assert!(fixture.reached.try_recv().is_err(), "nothing ran beside the one that hangs");

    // Hanging up gives the permits back, of the stream and of the calls.
    drop(stream);
    calls.shutdown().await;
    for path in [GET_TURN, SUBMIT] {
        tokio::time::timeout(LIMIT, async {
            while call(&channel, path, &plain).await.unwrap().0 != Code::Aborted {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the permit comes back");
    }
}
