//! The people in the chats: they write to the bot, or through a gateway of their own, and see the answers in their chat.
//!
//! Started and stopped by each kind of run. Always true: a message carries its number; a chat writes its next message only
//! after the one before is written (to the bot) or acknowledged (through the gateway), and never has more than a few
//! unanswered; a gateway repeats a message under the same key until it is acknowledged, and now and then once more.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use hermes_proto::v1::message_service_client::MessageServiceClient;
use hermes_proto::v1::{Source, SubmitRequest, SubmitResponse};
use hermes_tests::fake_telegram::Bot;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::checker::MARK;
use super::record::{Accepted, Recorder, Said, tag};
use super::world::{ACCOUNT, World, agent_of};

/// A call of the gateway may take so long before it asks another replica.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// From a refused call to the next.
const PAUSE: Duration = Duration::from_millis(150);

/// Which update brought which message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written(Arc<Mutex<HashMap<i64, u64>>>);

impl Written {
    /// By update.
    pub(crate) fn locked(&self) -> MutexGuard<'_, HashMap<i64, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How busy the chats are.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) seed: u64,
    pub(crate) agents: usize,
    /// Chats that write to the bot.
    pub(crate) platform_chats: Range<i64>,
    /// Chats that write through the gateway.
    pub(crate) gateway_chats: Range<i64>,
    /// From one message of a chat to its next: from, to, milliseconds.
    pub(crate) pause: Range<u64>,
    /// Most unanswered messages of a chat.
    pub(crate) open: usize,
}

/// The chats, writing until they are told to stop.
#[derive(Debug)]
pub(crate) struct Traffic {
    stop: CancellationToken,
    give_up: CancellationToken,
    chats: JoinSet<()>,
}

impl Traffic {
    /// Starts every chat.
    pub(crate) fn start(world: &Arc<World>, load: &Load) -> anyhow::Result<Self> {
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {}", world.token).parse().context("the token")?;
        bearer.set_sensitive(true);
        let gateway = Gateway { world: Arc::clone(world), bearer, channels: Arc::default() };
        let (stop, give_up) = (CancellationToken::new(), CancellationToken::new());
        let mut chats = JoinSet::new();
        for chat in load.platform_chats.clone().chain(load.gateway_chats.clone()) {
            let through = load.gateway_chats.contains(&chat).then(|| gateway.clone());
            let writer = Writer {
                chat,
                agent: agent_of(chat, load.agents),
                world: Arc::clone(world),
                dice: StdRng::seed_from_u64(load.seed.rotate_left(31) ^ chat.unsigned_abs()),
            };
            chats.spawn(writer.write(through, load.clone(), stop.clone(), give_up.clone()));
        }
        Ok(Self { stop, give_up, chats })
    }

    /// No chat begins a message any more; those on their way are still repeated until they are acknowledged.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for the end of every chat, and gives up what is not acknowledged when `limit` is over.
    pub(crate) async fn end(mut self, limit: Duration) {
        self.stop();
        let ends = async { while self.chats.join_next().await.is_some() {} };
        if timeout(limit, ends).await.is_err() {
            self.give_up.cancel();
            while self.chats.join_next().await.is_some() {}
        }
    }
}

/// The next number; none is used twice, whatever is started in one run.
fn next_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Relaxed) + 1
}

struct Writer {
    chat: i64,
    agent: usize,
    world: Arc<World>,
    dice: StdRng,
}

impl Writer {
    async fn write(
        mut self,
        through: Option<Gateway>,
        load: Load,
        stop: CancellationToken,
        give_up: CancellationToken,
    ) {
        let mut written = 0;
        loop {
            let pause = Duration::from_millis(self.dice.random_range(load.pause.clone()));
            tokio::select! { () = sleep(pause) => {} () = stop.cancelled() => return }
            if written >= replies(&self.world.bot, self.chat) + load.open {
                continue;
            }
            written += 1;
            match &through {
                None => say(&self.world, self.chat, self.agent, "please"),
                Some(gateway) => {
                    let number = next_number();
                    let at = self.world.recorder.now();
                    let said = Said { number, chat: self.chat, agent: self.agent, at };
                    self.world.recorder.locked().said.push(said);
                    tokio::select! {
                        () = gateway.bring(self.chat, number, &mut self.dice) => {}
                        () = give_up.cancelled() => return,
                    }
                }
            }
        }
    }
}

/// Somebody writes to the bot, for an answer that the model thinks about or for a quick one.
pub(crate) fn say(world: &World, chat: i64, agent: usize, how: &str) {
    let number = next_number();
    let said = Said { number, chat, agent, at: world.recorder.now() };
    // Before the message can be confirmed.
    let mut written = world.written.locked();
    world.recorder.locked().said.push(said);
    let update = world.bot.push_text(chat, chat, &format!("{} {how}", tag(number)));
    written.insert(update, number);
}

/// Texts in the chat that are no copies.
fn replies(bot: &Bot, chat: i64) -> usize {
    bot.delivered(chat).iter().filter(|shown| !shown.text.starts_with(MARK)).count()
}

/// What brings messages by gRPC to whatever replica answers. Cheap to clone.
#[derive(Clone, Debug)]
struct Gateway {
    world: Arc<World>,
    bearer: MetadataValue<Ascii>,
    channels: Arc<Mutex<HashMap<SocketAddr, Channel>>>,
}

impl Gateway {
    /// Repeats the message until it is acknowledged.
    async fn bring(&self, chat: i64, number: u64, dice: &mut StdRng) {
        let mut acknowledged: Option<SubmitResponse> = None;
        let again = dice.random_bool(0.25);
        loop {
            let replicas = self.world.addresses("grpc");
            let address = replicas.get(dice.random_range(0..replicas.len().max(1))).copied().flatten();
            let Some(address) = address else {
                sleep(PAUSE).await;
                continue;
            };
            match self.submit(address, chat, number).await {
                Ok(answer) => {
                    if let Some(first) = acknowledged {
                        if first.turn != answer.turn || !answer.duplicate {
                            self.refused(&format!(
                                "message {number} became two turns: {} and {}",
                                first.turn, answer.turn
                            ));
                        }
                        return;
                    }
                    self.accepted(number);
                    if !again {
                        return;
                    }
                    acknowledged = Some(answer);
                }
                Err(status) => {
                    let expected = [
                        Code::Unavailable,
                        Code::Unknown,
                        Code::Cancelled,
                        Code::DeadlineExceeded,
                        Code::ResourceExhausted,
                    ];
                    if !expected.contains(&status.code()) {
                        self.refused(&format!("message {number}: {:?} {}", status.code(), status.message()));
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn submit(&self, address: SocketAddr, chat: i64, number: u64) -> Result<SubmitResponse, Status> {
        let source = Source {
            platform: "telegram".to_owned(),
            account: Some(ACCOUNT.to_owned()),
            chat_id: chat.to_string(),
            chat_type: "dm".to_owned(),
            user_id: Some(chat.to_string()),
            ..Source::default()
        };
        let mut request = Request::new(SubmitRequest {
            source: Some(source),
            text: format!("{} please", tag(number)),
            dedupe_key: Some(format!("drill-{number}")),
            deliver: true,
            ..SubmitRequest::default()
        });
        request.metadata_mut().insert("authorization", self.bearer.clone());
        let channel = self.channel(address)?;
        let call = async { MessageServiceClient::new(channel).submit(request).await };
        match timeout(ANSWER_WITHIN, call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => {
                // The connection may be dead and nobody said so.
                self.locked().remove(&address);
                Err(Status::deadline_exceeded("no answer in time"))
            }
        }
    }

    fn channel(&self, address: SocketAddr) -> Result<Channel, Status> {
        if let Some(channel) = self.locked().get(&address) {
            return Ok(channel.clone());
        }
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|error| Status::internal(error.to_string()))?;
        let channel = endpoint.connect_timeout(CONNECT_WITHIN).tcp_nodelay(true).connect_lazy();
        self.locked().insert(address, channel.clone());
        Ok(channel)
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<SocketAddr, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recorder(&self) -> &Recorder {
        &self.world.recorder
    }

    fn accepted(&self, number: u64) {
        let at = self.recorder().now();
        self.recorder().locked().accepted.push(Accepted { number, at });
    }

    fn refused(&self, what: &str) {
        let mut record = self.recorder().locked();
        // A message is repeated until it is taken: each complaint once.
        if record.refused.len() < 100 && !record.refused.iter().any(|known| known == what) {
            record.refused.push(what.to_owned());
        }
    }
}
