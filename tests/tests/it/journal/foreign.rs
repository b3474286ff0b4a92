//! Agents that a program answers for, through the real control plane: who is given its secrets, and that no model answers in its place.

use std::fs;

use hermes_proto::v1;
use hermes_tests::mock_model::MockModel;
use tonic::Code;

use super::plane::Plane;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_go_to_who_runs_the_turn_as_its_revision_names_them() {
    let mock = MockModel::start().await.unwrap();
    let plane = Plane::start(&mock).await;
    let (one, two) = (plane.file("one.key"), plane.file("two.key"));
    fs::write(&one, "first\n").unwrap();
    fs::write(&two, "second").unwrap();
    let runs = |secrets: &str| {
        plane.json(&[
            "agent",
            "update",
            "coder",
            "--runtime",
            &format!("kind=acp,command=/bin/program --acp,{secrets}"),
        ]);
    };
    runs(&format!("secret.KEY=file:{}", one.display()));
    let (mut worker, stranger) = (plane.worker("coder").await, plane.worker("other").await);
    plane.tell("hello");
    let assignment = worker.assignment().await;
    let turn = assignment.turn;
    let runtime = assignment.profile.and_then(|profile| profile.runtime).expect("a runtime");
    assert_eq!((runtime.kind(), runtime.command.join(" ")), (v1::RuntimeKind::Acp, "/bin/program --acp".to_owned()));
    // Which there are, and not where they are.
    let named: Vec<_> = runtime.secrets.iter().map(|secret| (secret.name.as_str(), secret.from.is_some())).collect();
    assert_eq!(named, [("KEY", false)]);

    let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(worker.secrets(turn).await.unwrap(), [of("KEY", "first")]);
    // Who knows the fence and does not run the turn, and who has lost it.
    assert_eq!(stranger.secrets(turn).await.unwrap_err().code(), Code::PermissionDenied);
    let old = turn.map(|turn| v1::TurnRef { epoch: turn.epoch + 1, ..turn });
    assert_eq!(worker.secrets(old).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(worker.secrets(None).await.unwrap_err().code(), Code::InvalidArgument);
    // A worker that knows no programs asks for a model instead.
    let refused = worker.generate(turn, 0, "hello").await.unwrap_err();
    assert_eq!((refused.code(), mock.requests()), (Code::FailedPrecondition, 0), "{refused}");

    // What the agent becomes meanwhile is for its next turn.
    runs(&format!("secret.KEY=file:{0},secret.OTHER=file:{0}", two.display()));
    assert_eq!(worker.secrets(turn).await.unwrap(), [of("KEY", "first")]);
    fs::remove_file(&one).unwrap();
    let refused = worker.secrets(turn).await.unwrap_err();
    assert!(
        refused.code() == Code::FailedPrecondition && refused.message().contains("the secret KEY of agent coder"),
        "{refused}"
    );
    assert!(worker.complete(turn, "done").await);
    plane.tell("and again");
    let turn = worker.assignment().await.turn;
    assert_eq!(worker.secrets(turn).await.unwrap(), [of("KEY", "second"), of("OTHER", "second")]);
    assert!(worker.complete(turn, "done").await);
    assert!(worker.secrets(turn).await.is_err(), "the turn has ended");
}
