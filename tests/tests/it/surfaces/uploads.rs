//! Uploads of several callers at once.

use futures_util::{StreamExt as _, stream};
use hermes_proto::v1;
use hermes_proto::v1::message_service_client::MessageServiceClient;
use hermes_proto::v1::upload_attachment_request::Part;
use hermes_tests::mock_model::MockModel;
use hermes_tests::system::{Transport, until};
use serde_json::json;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::{SOON, start, stop, with_model};

/// A file that has begun and does not go on, or ends at once.
async fn upload(mut client: MessageServiceClient<Transport>, stalls: bool) -> Result<(), Status> {
    let parts = [Part::Header(v1::UploadHeader { name: "a.txt".to_owned() }), Part::Body(b"begun".to_vec())];
    let parts = stream::iter(parts.map(|part| v1::UploadAttachmentRequest { part: Some(part) }));
    let rest = if stalls { stream::pending().left_stream() } else { stream::empty().right_stream() };
    client.upload_attachment(parts.chain(rest)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_stalls_all_their_uploads_stands_in_nobodys_way_and_is_cut_off() {
    let model = MockModel::start().await.unwrap();
    let up = start(&with_model(&model, json!({})), &[]);
    let token = up.json(["token", "create", "--role", "api", "--name", "slow"])["token"].as_str().unwrap().to_owned();
    let slow = up.grpc_as(&token);
    let mut stalled = JoinSet::new();
    // One more than a caller may begin: once that is said, the others have begun.
    for _ in 0..9 {
        stalled.spawn(upload(slow.messages(), true));
    }
    let refused = stalled.join_next().await.unwrap().unwrap().unwrap_err();
    assert!(refused.code() == Code::ResourceExhausted && stalled.try_join_next().is_none(), "{refused:?}");
    let file = up.file("note.txt", "some words");
    let send = ["send", "--platform", "irc", "--chat-id", "1", "--wait", "--attach", file.to_str().unwrap()];
    up.json(send);
    assert!(stalled.try_join_next().is_none(), "another caller's file waited for the stalled ones");
    let cut = stalled.join_next().await.unwrap().unwrap().unwrap_err();
    assert!(cut.code() == Code::DeadlineExceeded && cut.message().contains("comes too slowly"), "{cut:?}");
    stalled.shutdown().await;
    // What was held is free again.
    until(SOON, "its next upload", || {
        let handle = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| handle.block_on(upload(slow.messages(), false))).ok()
    });
    stop(up);
}
