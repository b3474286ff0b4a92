//! Who may read a turn's reply: who submitted it, and operators.

use futures_util::StreamExt as _;
use hermes_proto::v1;
use hermes_tests::system::{Grpc, Options, Up};
use tonic::{Code, Status};

fn submit(text: &str, message_id: Option<&str>) -> v1::SubmitRequest {
    let source = v1::Source {
        platform: "irc".into(),
        chat_id: "1".into(),
        message_id: message_id.map(ToOwned::to_owned),
        ..v1::Source::default()
    };
    v1::SubmitRequest { source: Some(source), text: text.to_owned(), ..v1::SubmitRequest::default() }
}

async fn read(grpc: &Grpc, turn: &str) -> Result<String, Status> {
    let request = v1::GetTurnRequest { turn: turn.to_owned(), wait: true };
    let answer = grpc.messages().get_turn(request).await?.into_inner();
    Ok(answer.ended.expect("it was waited for").reply)
}

async fn stream(grpc: &Grpc, request: v1::SubmitRequest) -> Result<String, Status> {
    let mut events = grpc.messages().submit_and_stream(request).await?.into_inner();
    while let Some(event) = events.next().await {
        if let Some(v1::turn_event::Event::Ended(ended)) = event?.event {
            return Ok(ended.reply);
        }
    }
    Err(Status::internal("no end"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_token_reads_the_turns_it_submitted_and_no_others() {
    let up = Up::start(Options::default());
    let made = || up.json(["token", "create", "--role", "api"])["token"].as_str().unwrap().to_owned();
    let (ada, bob) = (up.grpc_as(&made()), up.grpc_as(&made()));
    let code = |answer: Result<String, Status>| answer.map_err(|status| status.code());

    let turn = ada.messages().submit(submit("mine", Some("m1"))).await.unwrap().into_inner().turn;
    assert!(read(&ada, &turn).await.unwrap().contains("mine"));
    assert!(read(&up.grpc(), &turn).await.unwrap().contains("mine"));
    assert_eq!(code(read(&bob, &turn).await), Err(Code::NotFound));
    // What is not there and what is not his look the same.
    let absent = read(&bob, "t999.1").await.unwrap_err();
    let hidden = read(&bob, &turn).await.unwrap_err();
    assert_eq!(absent.message().replace("t999.1", &turn), hidden.message());

    // A message id belongs to its chat: it is known, and still not read.
    let again = bob.messages().submit(submit("mine", Some("m1"))).await.unwrap().into_inner();
    assert_eq!((again.turn.as_str(), again.duplicate), (turn.as_str(), true));
    assert_eq!(code(stream(&bob, submit("mine", Some("m1"))).await), Err(Code::NotFound));
    assert!(stream(&ada, submit("mine", Some("m1"))).await.unwrap().contains("mine"));
    assert!(stream(&bob, submit("his", Some("m2"))).await.unwrap().contains("his"));

    let _ = rustls::crypto::ring::default_provider().install_default();
    // What the HTTP API took is its caller's, too.
    let key = made();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = client.post(format!("http://{}/v1/chat/completions", up.endpoint().http)).bearer_auth(&key);
    let body = r#"{"messages": [{"role": "user", "content": "over http"}]}"#;
    let answer = call.header("content-type", "application/json").body(body).send().await.unwrap();
    let turn = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert!(answer.text().await.unwrap().contains("over http"));
    assert!(read(&up.grpc_as(&key), &turn).await.unwrap().contains("over http"));
    assert_eq!(code(read(&bob, &turn).await), Err(Code::NotFound));
}
