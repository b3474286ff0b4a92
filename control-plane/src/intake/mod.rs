//! A message in: judged, given to an agent and a session, and committed as a turn, or refused with a reason.
//!
//! Called by platform adapters (through [`Sink`]), the gRPC `MessageService` and the HTTP API. It owns the batch of messages
//! on their way into one commit. Always true: nothing is acknowledged before the commit; messages that one caller hands over
//! in order are committed in order; the decision (agent, session key, expiry) is made by `hermes-core` on one snapshot; a slash
//! command is carried out in its commit, once. It does not authorise messages: accounts and tokens have done that before,
//! but for strangers, who may have paired (`pairing`); who may
//! give which command it does (`commands`).

mod answers;
mod batch;
mod commands;
mod errands;
mod keepings;
mod notices;
mod pace;
mod pairing;
mod sink;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use hermes_core::approvals::{self, Verdict};
use hermes_core::attachment::{self, Attachment, MAX_FILES};
use hermes_core::busy::{BusyMode, BusyPolicy};
use hermes_core::command::{self, Given};
use hermes_core::config::Limits;
use hermes_core::routing::resolve;
use hermes_core::session_key::{Isolation, namespace, no_aliases, sender_prefix, session_key, shared_multi_user};
use hermes_core::source::PLATFORMS;
use hermes_core::turn::{HistoryMessage, TurnInput};
use hermes_core::{AgentId, Source};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use commands::{Giver, Order};
pub use errands::Wanted;
pub use sink::Sink;

use crate::bodies::{Held, Room};
use crate::dispatch::{Dispatcher, OnTheWay, Pressed};
use crate::outbox::Outbox;
use crate::registry::{Registry, Snapshot};
use crate::store::{self, Again, CommandRow, DatabaseClock, Ingest, LaneKey, SessionId, TurnId};
use crate::tasks::Tasks;
use crate::telemetry::{self, Metrics, TRACE};

/// Longest id of a source, in bytes: the session key made of them must fit an index entry.
const MAX_ID_BYTES: usize = 256;
/// Messages on their way into a commit; beyond that callers are told to come back.
const MAX_WAITING: usize = 4096;

/// How a message is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dedupe {
    /// It is new, whatever came before.
    New,
    /// By this key: the platform's, or the caller's own with the caller in it.
    Key {
        /// Semantic id.
        key: String,
        /// The event's own authenticated time, Unix seconds, where redelivery keeps it.
        event_time: Option<u32>,
        /// Where the caller chose the key: hash of what must be the same under it.
        body_hash: Option<[u8; 32]>,
    },
}

/// A message to accept.
#[derive(Clone, Debug)]
pub struct Message {
    /// Where it came from.
    pub source: Source,
    /// What was said.
    pub text: String,
    /// Files that came with it, kept already.
    pub attachments: Vec<Attachment>,
    /// Messages before it, which replace the session's own history.
    pub history: Option<Vec<HistoryMessage>>,
    /// The agent, when the caller names it.
    pub preset: Option<AgentId>,
    /// How it is known again.
    pub dedupe: Dedupe,
    /// Id of the token it was submitted with; no other API token reads the turn.
    pub submitter: Option<String>,
    /// The chat that gets the reply; `None` keeps it for the caller.
    pub reply_to: Option<LaneKey>,
    /// Who brings it.
    pub surface: Surface,
}

/// Who brings a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// A platform's account: what begins like a command is one; its sender does not come back by itself when refused.
    Chat,
    /// A gateway over gRPC: commands are commands, text that only looks like one is text; it comes back when told to.
    Gateway,
    /// The HTTP API: every text is for the agent; the caller comes back when told to.
    Caller,
}

/// A message that is kept.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Who answers.
    pub agent: AgentId,
    /// In which session.
    pub session_key: String,
    /// The turn; the first one's when it is a duplicate.
    pub turn: TurnId,
    /// It was known.
    pub duplicate: bool,
    /// A worker has it already.
    pub running: bool,
    /// It was a command and made no turn, and this is said about it (nothing when it was known); `turn` is the one that it was about,
    /// 0.0 when it was about none.
    pub command: Option<String>,
}

/// Why a message was not kept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Too long.
    #[error("the message is {bytes} bytes; at most {limit} are accepted (limits.message_bytes)")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: u64,
    },
    /// The caller named an agent that is not registered.
    #[error("agent {0} is not registered")]
    UnknownAgent(String),
    /// A field of the source or the message is malformed.
    #[error("{field}: {message}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What to write instead.
        message: String,
    },
    /// The same key with another body.
    #[error("this key was used for another message")]
    Conflict,
    /// Too many messages wait for their commit.
    #[error("too many messages are waiting; try again in a moment")]
    Overloaded,
    /// As many messages wait in its session, or for its agent, as may: this one is not kept.
    #[error("{0}")]
    Busy(BusyReason),
    /// Not kept, or not known to be: repeat it with the same key.
    #[error("the message could not be stored: {0}")]
    Unavailable(String),
}

/// Which bound a message met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusyReason {
    /// Of its session.
    #[error(
        "this conversation has as many unanswered messages as it may have (limits.queued_per_session); send it again later"
    )]
    Session,
    /// Of its agent.
    #[error("as many messages wait for this agent as may (limits.queued_per_agent); send it again later")]
    Agent,
    /// Its agent's messages wait for too long already.
    #[error("messages to this agent wait for too long already (limits.shed_after_seconds); send it again later")]
    Late,
}

/// What a chat is told of a message that was not kept because of a bound.
const NOT_KEPT: &str = "I am too busy to take this message, so I did not keep it. Please send it again in a while.";

/// Handle to intake; cheap to clone.
#[derive(Clone)]
pub struct Intake {
    registry: Registry,
    outbox: Outbox,
    dispatcher: Dispatcher,
    clock: Arc<DatabaseClock>,
    waiting: mpsc::Sender<batch::Prepared>,
    notices: notices::Notices,
    bodies: Room,
    metrics: Metrics,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Intake")
    }
}

/// A message handed over to the next commit.
pub struct Offered {
    agent: AgentId,
    session_key: String,
    since: Instant,
    platform: &'static str,
    answer: oneshot::Receiver<store::Result<batch::Kept>>,
    lane: Option<i64>,
    policy: BusyPolicy,
    _on_the_way: (OnTheWay, Held),
}

/// What is decided about a message before its commit.
struct Decided {
    work: batch::Work,
    agent: AgentId,
    session_key: String,
    lane: Option<i64>,
    policy: BusyPolicy,
    on_the_way: (OnTheWay, Held),
}

impl Intake {
    /// Makes intake and spawns its batch loop.
    pub fn start(
        registry: Registry,
        dispatcher: Dispatcher,
        outbox: Outbox,
        clock: Arc<DatabaseClock>,
        metrics: Metrics,
        tasks: &Tasks,
    ) -> Self {
        let (waiting, offered) = mpsc::channel(MAX_WAITING);
        let run = batch::run(dispatcher.clone(), registry.clone(), clock.clone(), offered, tasks.stopping());
        tasks.spawn("intake", run);
        let notices = notices::Notices::new(dispatcher.store().clone(), outbox.clone(), tasks.clone());
        Self { registry, outbox, dispatcher, clock, waiting, notices, bodies: Room::default(), metrics }
    }

    /// The database's time.
    pub fn now(&self) -> jiff::Timestamp {
        self.clock.now()
    }

    /// Accepts one message.
    ///
    /// # Errors
    /// [`Error`]; only [`Error::Unavailable`] leaves in doubt whether it is kept.
    pub async fn submit(&self, message: Message) -> Result<Accepted, Error> {
        let offered = self.offer(message, &batch::Group::default()).await?;
        self.settle(offered).await
    }

    /// Prepares a message and hands it to the next commit; messages offered one after another are committed in that order, and
    /// in one group none behind one that was not kept.
    ///
    /// # Errors
    /// [`Error`]; it is not kept then.
    async fn offer(&self, message: Message, group: &batch::Group) -> Result<Offered, Error> {
        let offered = self.offer_one(message, group).await;
        if let Err(Error::Overloaded | Error::Unavailable(_)) = offered {
            group.break_off();
        }
        offered
    }

    async fn offer_one(&self, message: Message, group: &batch::Group) -> Result<Offered, Error> {
        if group.is_broken() {
            return Err(Error::Unavailable("a message before it was not stored".to_owned()));
        }
        let since = Instant::now();
        let span = tracing::info_span!(target: TRACE, "intake", platform = %message.source.platform);
        let platform = known_platform(&message.source.platform);
        let decided = self.prepare(message, telemetry::traceparent(&span)).instrument(span).await;
        let decided = decided.inspect_err(|error| {
            let result = if matches!(error, Error::Busy(_) | Error::Overloaded) { "shed" } else { "refused" };
            self.metrics.inbound(platform, result, since.elapsed());
        })?;
        self.hand_over(decided, (platform, since), group)
    }

    /// Hands what was decided to the next commit.
    fn hand_over(
        &self,
        decided: Decided,
        (platform, since): (&'static str, Instant),
        group: &batch::Group,
    ) -> Result<Offered, Error> {
        let Decided { work, agent, session_key, lane, policy, on_the_way } = decided;
        let (sender, answer) = oneshot::channel();
        let prepared = batch::Prepared { work, answer: sender, group: group.clone() };
        self.waiting.try_send(prepared).map_err(|_| Error::Overloaded)?;
        Ok(Offered { agent, session_key, since, platform, answer, lane, policy, _on_the_way: on_the_way })
    }

    /// Waits for the commit of an offered message.
    ///
    /// # Errors
    /// [`Error::Conflict`], [`Error::Unavailable`].
    async fn settle(&self, offered: Offered) -> Result<Accepted, Error> {
        let Offered { agent, session_key, since, platform, answer, lane, policy, _on_the_way } = offered;
        let kept = match answer.await {
            Ok(Ok(kept)) => kept,
            Ok(Err(error @ store::Error::Unavailable(_))) => return Err(Error::Unavailable(error.to_string())),
            Ok(Err(error)) => {
                // Repeating it would not help, and a platform would repeat it for ever.
                tracing::error!(%error, "a message was refused by the database");
                return Err(Error::Invalid { field: "message", message: "it cannot be stored".to_owned() });
            }
            Err(_) => return Err(Error::Unavailable("the control plane is stopping".to_owned())),
        };
        let count = |duplicate| {
            let result = if duplicate { "duplicate" } else { "accepted" };
            self.metrics.inbound(platform, result, since.elapsed());
        };
        match kept {
            batch::Kept::Command(store::Commanded { outcome, turn, answer }) => {
                let duplicate = outcome.is_none();
                count(duplicate);
                let again = matches!(outcome, Some(store::Outcome::Again(_)));
                let turn = turn.unwrap_or(TurnId { session: SessionId(0), seq: 0 });
                let command = (!again).then_some(answer.text);
                Ok(Accepted { agent, session_key, turn, duplicate, running: false, command })
            }
            batch::Kept::Turn { full: true, .. } => {
                self.metrics.inbound(platform, "shed", since.elapsed());
                Err(Error::Busy(BusyReason::Session))
            }
            batch::Kept::Turn { conflict: true, .. } => Err(Error::Conflict),
            batch::Kept::Turn { turn, duplicate, running, behind, .. } => {
                count(duplicate);
                if let (Some(lane), Some(_), true) = (lane, behind, policy.notice) {
                    self.notices.acknowledge(lane, turn, policy.mode.notice());
                }
                Ok(Accepted { agent, session_key, turn, duplicate, running, command: None })
            }
        }
    }

    /// What the chat of a refused message is told; empty when it was told just now.
    fn refusal(&self, lane: &LaneKey, error: &Error) -> String {
        match error {
            Error::Busy(_) if self.notices.refuse(lane) => NOT_KEPT.to_owned(),
            Error::Busy(_) => String::new(),
            error => format!("I cannot take this message: {error}."),
        }
    }

    fn inbound_per_second(&self) -> u64 {
        self.registry.current().document.limits.inbound_per_second
    }

    /// Dispatch, for callers that follow a turn.
    pub fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    /// Room for one more message of so many bytes, which comes back by itself when refused, or makes no work.
    fn admit(
        &self,
        agent_no: i32,
        limits: &Limits,
        (comes_back, idle): (bool, bool),
        bytes: usize,
    ) -> Result<(OnTheWay, Held), Error> {
        let on_the_way = match self.dispatcher.pressure().admit(agent_no, limits, comes_back, idle) {
            Ok(on_the_way) => on_the_way,
            Err(Pressed::Full) => return Err(Error::Busy(BusyReason::Agent)),
            Err(Pressed::Late) => return Err(Error::Busy(BusyReason::Late)),
            Err(Pressed::Flooded) => return Err(Error::Overloaded),
        };
        Ok((on_the_way, self.bodies.take(bytes).ok_or(Error::Overloaded)?))
    }

    async fn prepare(&self, message: Message, traceparent: Option<String>) -> Result<Decided, Error> {
        let snapshot = self.registry.current();
        check(&message, &snapshot)?;
        let document = &snapshot.document;
        let source = &message.source;
        let decision = resolve(&snapshot.table, &document.default_agent, message.preset.as_ref(), None, source);
        let Some(agent) = snapshot.agent(&decision.agent) else {
            return Err(Error::UnknownAgent(decision.agent.to_string()));
        };
        let given = match message.surface {
            Surface::Chat => command::read(&message.text, &source.platform),
            Surface::Gateway => {
                command::read(&message.text, &source.platform).filter(|given| !matches!(given, Given::Unknown(_)))
            }
            Surface::Caller => None,
        };
        let word = match (given, message.surface) {
            (None, Surface::Chat | Surface::Gateway) => Verdict::of_message(&message.text),
            _ => None,
        };
        let idle = given.is_some_and(|given| !given.adds_work());
        let comes_back = message.surface != Surface::Chat;
        let on_the_way = self.admit(agent.no, &document.limits, (comes_back, idle), message.text.len())?;
        let isolation: Isolation = document.isolation();
        let mut session_key = session_key(namespace(Some(agent.id.as_str()), None), source, isolation, &no_aliases);
        let lane = match &message.reply_to {
            Some(lane) => {
                let lane = self.outbox.lane_of_sender(lane, agent.no).await;
                Some(lane.map_err(|error| Error::Unavailable(error.to_string()))?)
            }
            None => None,
        };
        let mut policy = document.busy.select(&agent.id, &source.platform);
        let (dedupe_key, body_hash) = dedupe_bytes(message.dedupe);
        let now = self.clock.now().to_zoned(snapshot.zone.clone());
        let mut text = None;
        let mut compress = None;
        // Who a platform does not name was asked by nobody.
        let named = message.submitter.is_some() || source.user_id.is_some();
        let asker = named.then(|| approvals::asker(source, message.submitter.as_deref()));
        let answers = match (word, &asker) {
            (Some(verdict), Some(asker)) => {
                let waiting = self.dispatcher.store().approval_waiting(agent.no, &session_key, lane, asker).await;
                waiting.map_err(|error| Error::Unavailable(error.to_string()))?.map(|id| (id, verdict))
            }
            _ => None,
        };
        let giver = || Giver {
            snapshot: &snapshot,
            agent,
            source,
            session_key: &session_key,
            now: &now,
            asker: asker.clone(),
            again: Again {
                traceparent: traceparent.clone(),
                submitter: message.submitter.clone(),
                most: i64::try_from(document.limits.queued_per_session).unwrap_or(i64::MAX),
                limit: self.dispatcher.turn_limit(),
            },
        };
        let order = match (given, answers) {
            (Some(given), _) => Some(commands::order(given, giver())),
            (None, Some((id, verdict))) => Some(commands::bare(id, verdict, &giver())),
            (None, None) => None,
        };
        if let Some(order) = order {
            match order {
                Order::Effect(effect, telling) => {
                    let session = session_key.clone();
                    let row = CommandRow { dedupe_key, agent_no: agent.no, session_key, lane, effect };
                    let work = batch::Work::Command(row, telling);
                    let agent = agent.id.clone();
                    return Ok(Decided { work, agent, session_key: session, lane, policy, on_the_way });
                }
                Order::Turn { text: said, policy: own, aside, compress: how } => {
                    policy = own;
                    compress = how;
                    text = Some(said);
                    if aside {
                        session_key = beside(&session_key, &dedupe_key);
                    }
                }
            }
        }
        let thresholds = hermes_core::reset::thresholds(document.reset_rules().select(source), &now);
        let mut text = text.unwrap_or(message.text);
        if compress.is_none() && shared_multi_user(source, isolation) {
            text.insert_str(0, &sender_prefix(source));
        }
        let attachments = if compress.is_some() { Vec::new() } else { message.attachments };
        // What is taken in by a running turn is its text alone, and a program takes in nothing.
        if policy.mode == BusyMode::Steer && (!attachments.is_empty() || agent.spec.acp().is_some()) {
            policy.mode = BusyMode::Queue;
        }
        let text = attachment::told(&text, &attachments);
        let input = TurnInput {
            text,
            history: message.history,
            source: Some(message.source),
            compress,
            attachments,
            ..TurnInput::default()
        };
        let payload = serde_json::to_vec(&input)
            .map_err(|error| Error::Invalid { field: "text", message: format!("it cannot be stored: {error}") })?;
        let row = Ingest {
            dedupe_key,
            body_hash,
            agent_no: agent.no,
            session_key: session_key.clone(),
            lane,
            payload,
            traceparent,
            submitter: message.submitter,
            reserved: None,
            idle_before: thresholds.idle_before,
            daily_before: thresholds.daily_before,
            busy: policy.mode,
        };
        Ok(Decided { work: batch::Work::Turn(row), agent: agent.id.clone(), session_key, lane, policy, on_the_way })
    }
}

/// The key of a session beside another one, for one message: known again when that comes again.
fn beside(session_key: &str, dedupe_key: &[u8]) -> String {
    let mut key = format!("{session_key}:bg:");
    for byte in dedupe_key {
        let _ = write!(key, "{byte:02x}");
    }
    key
}

fn check(message: &Message, snapshot: &Snapshot) -> Result<(), Error> {
    let limit = snapshot.document.limits.message_bytes;
    let history: usize = message.history.iter().flatten().map(|entry| entry.text.len()).sum();
    let bytes = message.text.len() + history;
    if message.text.len() as u64 > limit || history as u64 > limit.saturating_mul(16) {
        return Err(Error::TooLarge { bytes, limit });
    }
    let source = &message.source;
    let invalid = |field, message: &str| Err(Error::Invalid { field, message: message.to_owned() });
    let name_like = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if source.platform.is_empty() || source.platform.len() > 64 || !source.platform.chars().all(name_like) {
        return invalid("source.platform", "write the platform's name: 1 to 64 of a-z, 0-9, _ and -");
    }
    let optional = [
        ("source.account", source.account.as_deref()),
        ("source.chat_id", Some(source.chat_id.as_str())),
        ("source.chat_type", Some(source.chat_type.as_str())),
        ("source.thread_id", source.thread_id.as_deref()),
        ("source.parent_chat_id", source.parent_chat_id.as_deref()),
        ("source.user_id", source.user_id.as_deref()),
        ("source.user_id_alt", source.user_id_alt.as_deref()),
        ("source.guild_id", source.guild_id.as_deref()),
        ("source.message_id", source.message_id.as_deref()),
    ];
    for (field, value) in optional {
        let value = value.unwrap_or_default();
        if value.len() > MAX_ID_BYTES {
            return invalid(field, "it is longer than 256 bytes");
        }
        if value.chars().any(char::is_control) {
            return invalid(field, "it holds a control character");
        }
    }
    if message.attachments.len() > MAX_FILES {
        return invalid("attachments", "a message has at most 10 files; send the others with another one");
    }
    if message.text.is_empty() && message.attachments.is_empty() {
        return invalid("text", "the message is empty");
    }
    Ok(())
}

/// 16 bytes: four of the event's own time, so that fresh keys lie together in the index, twelve of hash.
pub(crate) fn dedupe_bytes(dedupe: Dedupe) -> (Vec<u8>, Option<Vec<u8>>) {
    match dedupe {
        Dedupe::New => (uuid::Uuid::now_v7().as_bytes().to_vec(), None),
        Dedupe::Key { key, event_time, body_hash } => {
            let mut bytes = event_time.unwrap_or(0).to_be_bytes().to_vec();
            bytes.extend(Sha256::digest(key.as_bytes()).iter().take(12));
            (bytes, body_hash.map(|hash| hash.to_vec()))
        }
    }
}

/// Metric labels come from a closed set.
fn known_platform(platform: &str) -> &'static str {
    PLATFORMS.iter().find(|known| **known == platform).copied().unwrap_or("other")
}
