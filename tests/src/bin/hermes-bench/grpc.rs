//! The load through `MessageService.SubmitAndStream`: each chat submits its message and reads the stream to its end.
//!
//! One [`chat`] per chat, spawned by `main`. It owns its share of the connections. Always true: a stream that fails or
//! ends without a reply is a lost message, and its first cause is kept for the report.

use std::time::Duration;

use anyhow::Context as _;
use hermes_proto::v1::message_service_client::MessageServiceClient;
use hermes_proto::v1::{Source, SubmitRequest, TurnState, turn_event::Event};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::ledger::{Ledger, Verdict};
use crate::load::{GIVE_UP_AFTER, Load};

/// So many chats share a connection.
const CHATS_PER_CONNECTION: u32 = 32;
/// After a failure, so that a server that is gone is not asked in a tight loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections and the token for them. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    connections: Vec<Channel>,
    bearer: MetadataValue<Ascii>,
}

impl Caller {
    /// Opens enough connections for `chats`.
    ///
    /// # Errors
    /// When nothing listens at `url`, or the token cannot be a header.
    pub(crate) async fn connect(url: &str, token: &str, chats: u32) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(url.to_owned()).context("parse the gRPC address")?.tcp_nodelay(true);
        let mut connections = Vec::new();
        for _ in 0..chats.div_ceil(CHATS_PER_CONNECTION) {
            connections.push(endpoint.connect().await.with_context(|| format!("connect to {url}"))?);
        }
        let mut bearer: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().ok().context("the token has characters that no header can carry")?;
        bearer.set_sensitive(true);
        Ok(Self { connections, bearer })
    }

    /// Says it in chat `number` and waits for the reply.
    ///
    /// # Errors
    /// When it is not accepted, or its turn does not succeed.
    pub(crate) async fn ask(&self, number: u32, text: String) -> anyhow::Result<String> {
        let request = SubmitRequest { source: Some(source(number, None)), text, ..SubmitRequest::default() };
        let mut request = Request::new(request);
        request.metadata_mut().insert("authorization", self.bearer.clone());
        let mut events =
            self.client(number)?.submit_and_stream(request).await.context("submit a message")?.into_inner();
        while let Some(event) = events.message().await.context("wait for the reply")? {
            if let Some(Event::Ended(ended)) = event.event {
                anyhow::ensure!(ended.state == i32::from(TurnState::Succeeded), "the turn failed: {}", ended.reply);
                return Ok(ended.reply);
            }
        }
        anyhow::bail!("the stream ended without a reply")
    }

    fn client(&self, chat: u32) -> anyhow::Result<MessageServiceClient<Channel>> {
        let index = usize::try_from(chat / CHATS_PER_CONNECTION).context("too many chats")?;
        let channel = self.connections.get(index).context("a chat beyond the connections")?;
        Ok(MessageServiceClient::new(channel.clone()))
    }
}

/// Plays the caller of chat `number` until the load ends.
///
/// # Errors
/// When `number` is beyond the chats that `caller` was made for.
pub(crate) async fn chat(caller: Caller, number: u32, load: Load) -> anyhow::Result<()> {
    let mut client = caller.client(number)?;
    let mut ledger = Ledger::new(u64::from(number));
    while Instant::now() < load.until {
        let (message, text) = ledger.send();
        let request = SubmitRequest { source: Some(source(number, Some(message))), text, ..SubmitRequest::default() };
        let mut request = Request::new(request);
        request.metadata_mut().insert("authorization", caller.bearer.clone());
        let sent = Instant::now();
        let exchange = exchange(&mut client, request, &mut ledger, message, sent, &load);
        match timeout_at(sent + GIVE_UP_AFTER, exchange).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => load.tally.lost(),
            Ok(Err(status)) => {
                load.tally.lost();
                load.tally.failed(&format!("{:?}: {}", status.code(), status.message()));
                sleep(PAUSE).await;
            }
        }
    }
    Ok(())
}

/// One message and everything that its stream says; whether it was answered.
async fn exchange(
    client: &mut MessageServiceClient<Channel>,
    request: Request<SubmitRequest>,
    ledger: &mut Ledger,
    awaited: u64,
    sent: Instant,
    load: &Load,
) -> Result<bool, Status> {
    let mut events = client.submit_and_stream(request).await?.into_inner();
    let mut answered = false;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Accepted(accepted)) if accepted.duplicate => {
                load.tally.stray(Verdict::Duplicate, "accepted as a duplicate")
            }
            Some(Event::Ended(ended)) if ended.state == i32::from(TurnState::Succeeded) => {
                match ledger.reply(&ended.reply) {
                    Some((message, Verdict::Answer)) if message == awaited => {
                        load.tally.answered(sent, sent.elapsed());
                        answered = true;
                    }
                    Some((_, verdict)) => load.tally.stray(verdict, &ended.reply),
                    None => load.tally.stray(Verdict::Unexpected, &ended.reply),
                }
            }
            Some(Event::Ended(ended)) => load.tally.failed(&format!("the turn did not succeed: {}", ended.reply)),
            Some(Event::Accepted(_) | Event::TextDelta(_) | Event::Approval(_)) | None => {}
        }
    }
    Ok(answered)
}

fn source(chat: u32, message: Option<u64>) -> Source {
    Source {
        platform: "bench".into(),
        chat_id: format!("chat-{chat}"),
        chat_type: "dm".into(),
        user_id: Some(format!("user-{chat}")),
        message_id: message.map(|message| format!("{chat}-{message}")),
        ..Source::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::stream::{self, BoxStream, StreamExt as _};
    use hermes_proto::v1::message_service_server::{MessageService, MessageServiceServer};
    use hermes_proto::v1::{
        GetTurnRequest, GetTurnResponse, SubmitResponse, TurnEnded, TurnEvent, UploadAttachmentRequest,
        UploadAttachmentResponse,
    };
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::Response;
    use tonic::transport::Server;

    use super::*;
    use crate::tally::{Counts, Tally};

    /// What the server's stream says to a message, or why it refuses it.
    type Script = fn(&str) -> Result<Vec<Event>, Status>;

    struct Scripted(Script);

    #[tonic::async_trait]
    impl MessageService for Scripted {
        type SubmitAndStreamStream = BoxStream<'static, Result<TurnEvent, Status>>;

        async fn submit_and_stream(
            &self,
            request: Request<SubmitRequest>,
        ) -> Result<Response<Self::SubmitAndStreamStream>, Status> {
            if request.metadata().get("authorization").is_none_or(|token| token != "Bearer secret") {
                return Err(Status::unauthenticated("no token"));
            }
            let request = request.into_inner();
            let source = request.source.ok_or_else(|| Status::invalid_argument("no source"))?;
            assert_eq!((source.platform.as_str(), source.chat_type.as_str()), ("bench", "dm"));
            let events = (self.0)(&request.text)?;
            let events = events.into_iter().map(|event| Ok(TurnEvent { event: Some(event) }));
            Ok(Response::new(stream::iter(events.collect::<Vec<_>>()).boxed()))
        }

        async fn upload_attachment(
            &self,
            _: Request<tonic::Streaming<UploadAttachmentRequest>>,
        ) -> Result<Response<UploadAttachmentResponse>, Status> {
            Err(Status::unimplemented("not used"))
        }

        async fn submit(&self, _: Request<SubmitRequest>) -> Result<Response<SubmitResponse>, Status> {
            Err(Status::unimplemented("not used"))
        }

        async fn get_turn(&self, _: Request<GetTurnRequest>) -> Result<Response<GetTurnResponse>, Status> {
            Err(Status::unimplemented("not used"))
        }
    }

    fn ended(state: TurnState, reply: &str) -> Event {
        Event::Ended(TurnEnded { state: state.into(), reply: reply.into(), ..TurnEnded::default() })
    }

    async fn run(chats: u32, token: &str, script: Script) -> Arc<Tally> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut servers = JoinSet::new();
        let service = MessageServiceServer::new(Scripted(script));
        servers.spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        let caller = Caller::connect(&url, token, chats).await.unwrap();
        let tally = Arc::new(Tally::new(Instant::now()));
        let load = Load { tally: Arc::clone(&tally), until: Instant::now() + Duration::from_millis(250) };
        let mut users = JoinSet::new();
        for number in 0..chats {
            users.spawn(chat(caller.clone(), number, load.clone()));
        }
        for ended in users.join_all().await {
            ended.unwrap();
        }
        tally
    }

    #[tokio::test]
    async fn every_message_is_answered_over_several_connections() {
        let tally = run(CHATS_PER_CONNECTION + 1, "secret", |text| {
            let accepted = Event::Accepted(SubmitResponse::default());
            let delta = Event::TextDelta("hello".into());
            Ok(vec![accepted, delta, ended(TurnState::Succeeded, &format!("{text} word02"))])
        })
        .await;
        let answered = tally.counts().answered;
        assert!(answered > u64::from(CHATS_PER_CONNECTION), "{answered}");
        assert_eq!(tally.counts(), Counts { answered, ..Counts::default() });
    }

    #[tokio::test]
    async fn a_second_end_is_a_duplicate_and_a_failed_turn_is_lost() {
        let tally = run(1, "secret", |text| {
            if text.starts_with("hello 1 ") {
                return Ok(vec![ended(TurnState::Failed, "no provider is configured")]);
            }
            let end = ended(TurnState::Succeeded, text);
            Ok(vec![end.clone(), end])
        })
        .await;
        let counts = tally.counts();
        assert!(counts.answered >= 1);
        assert_eq!((counts.lost, counts.duplicates), (1, counts.answered));
        assert_eq!(tally.first_fault().as_deref(), Some("the turn did not succeed: no provider is configured"));
    }

    #[tokio::test]
    async fn a_refusal_is_lost_with_its_cause_and_does_not_spin() {
        let tally = run(1, "wrong", |_| Ok(Vec::new())).await;
        let counts = tally.counts();
        assert_eq!(counts.answered, 0);
        assert!((1..=4).contains(&counts.lost), "{counts:?}");
        assert_eq!(tally.first_fault().as_deref(), Some("Unauthenticated: no token"));
    }
}
