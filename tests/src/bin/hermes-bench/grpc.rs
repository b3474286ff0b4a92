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
        let request = SubmitRequest { source: Some(source(number, message)), text, ..SubmitRequest::default() };
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
            Some(Event::Accepted(accepted)) if accepted.duplicate => load.tally.stray(Verdict::Duplicate, "accepted as a duplicate"),
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
            Some(Event::Accepted(_) | Event::TextDelta(_)) | None => {}
        }
    }
    Ok(answered)
}

fn source(chat: u32, message: u64) -> Source {
    Source {
        platform: "bench".into(),
        chat_id: format!("chat-{chat}"),
        chat_type: "dm".into(),
        user_id: Some(format!("user-{chat}")),
        message_id: Some(format!("{chat}-{message}")),
        ..Source::default()
    }
}
