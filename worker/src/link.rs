//! The worker's one stream to the control plane: register, heartbeat, take assignments, report, and come back when lost.
//!
//! Run by `app` as the process's main loop. Owns the turns, the outbound queue and the published [`Connection`]. Always
//! true: the first message of a stream is Register; one place writes to a stream; a report, of a step or of an end, is sent
//! again on every new stream until it is answered; reading never waits for writing, so the two sides cannot block each
//! other; once going away nothing new begins. It decides nothing about leases: the control plane does, and this side only
//! stops earlier.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hermes_proto::v1::worker_service_client::WorkerServiceClient;
use hermes_proto::v1::{
    Accepted, Assignment, ControlMessage, GoingAway, Heartbeat, HeartbeatAck, Register, Welcome, control_message,
    worker_message,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::connection::{Connection, Outgoing, STEPS_SINCE};
use crate::curator::Curator;
use crate::identity::{self, Identity};
use crate::sandbox;
use crate::turns::{Shared, Started, Turns};

/// Messages between this loop and the wire; progress beyond is merged, the rest waits in order.
const OUTBOUND: usize = 64;
/// How long a stream may take to answer Register.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the control plane may take to close its side of a finished stream.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// What a drill without the fence has instead of one.
const NO_FENCE: Duration = Duration::from_secs(24 * 60 * 60);
const MIN_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Why the worker gave up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No identity, for good.
    #[error("cannot join the control plane")]
    Identity(#[source] identity::Error),
    /// The control plane does not want this worker.
    #[error("the control plane refused this worker ({0}); it says that trying again does not help")]
    Refused(String),
    /// What the agent's policy asks for cannot be given on this machine.
    #[error("this worker may not run its agent's tools, so it does not begin")]
    Sandbox(#[source] sandbox::Error),
}

/// What the worker says of itself when it registers.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Sessions served at the same time.
    pub slots: u32,
    /// The home's absolute path.
    pub home: String,
    /// How long running turns may go on after it was asked to stop.
    pub drain_grace: Duration,
}

/// How a stream ended.
enum End {
    /// All done: the worker is going away.
    Closed,
    /// Come back; after a delay unless told otherwise.
    Lost { reason: String, at_once: bool },
    /// The certificate was refused: join again.
    NotTrusted(String),
    /// Not wanted.
    Refused(String),
    /// Its tools would be less apart than the agent's policy says.
    Unable(sandbox::Error),
}

/// The main loop's state.
pub struct Link {
    identity: Arc<Identity>,
    registration: Registration,
    published: watch::Sender<Connection>,
    shared: Arc<Shared>,
    turns: Turns,
    curator: Curator,
    /// Renewals and the syncs after registrations.
    background: JoinSet<()>,
    stop: CancellationToken,
    /// Set when draining: running turns may go on until then.
    grace: Option<Instant>,
    /// The grace is over: what runs is on its way back.
    handing_back: bool,
    failures: u32,
}

impl Link {
    /// `stop` begins the drain. `published` is what `shared.connection` watches.
    pub fn new(
        identity: Arc<Identity>,
        registration: Registration,
        published: watch::Sender<Connection>,
        shared: Arc<Shared>,
        stop: CancellationToken,
    ) -> Self {
        let slots = usize::try_from(registration.slots).unwrap_or(usize::MAX);
        let turns = Turns::new(Arc::clone(&shared), slots);
        Self {
            identity,
            registration,
            published,
            shared,
            turns,
            curator: Curator::default(),
            background: JoinSet::new(),
            stop,
            grace: None,
            handing_back: false,
            failures: 0,
        }
    }

    /// Serves until drained.
    ///
    /// # Errors
    /// [`Error`], when coming back cannot help. Turns that still run are left to other workers.
    pub async fn run(mut self) -> Result<(), Error> {
        loop {
            let mut credential = None;
            let end = match self.identity.connect().await {
                Ok(connected) => {
                    credential = Some(connected.credential);
                    self.attached(connected.channel).await
                }
                Err(error) if error.is_final() => return Err(Error::Identity(error)),
                Err(error) => End::Lost { reason: chain(&error), at_once: false },
            };
            self.published.send_modify(|connection| {
                connection.channel = None;
                connection.outbound = None;
            });
            let at_once = match end {
                End::Closed => return Ok(()),
                End::Refused(reason) => return Err(Error::Refused(reason)),
                End::Unable(error) => return Err(Error::Sandbox(error)),
                End::NotTrusted(reason) => {
                    tracing::warn!(reason, "the certificate is not accepted (any more)");
                    credential.into_iter().for_each(|credential| self.identity.forget(credential));
                    false
                }
                End::Lost { reason, at_once } => {
                    tracing::warn!(reason, running = self.turns.running(), "not connected");
                    at_once
                }
            };
            if !at_once && self.wait_to_return().await {
                return Ok(());
            }
        }
    }

    /// Waits before the next attempt; answers whether there is no reason for one.
    async fn wait_to_return(&mut self) -> bool {
        let most = MIN_DELAY.saturating_mul(2_u32.saturating_pow(self.failures.min(8) + 1)).min(MAX_DELAY);
        self.failures = self.failures.saturating_add(1);
        let until = Instant::now() + rand::random_range(MIN_DELAY..=most);
        loop {
            if self.grace.is_none() && self.stop.is_cancelled() {
                self.grace = Some(Instant::now() + self.registration.drain_grace);
            }
            if let Some(grace) = self.grace {
                // What was not heard of by the end of the lease is found out without us.
                let lease_end = self.published.borrow().lease_end;
                if self.turns.is_idle() || Instant::now() >= grace.max(lease_end) {
                    return true;
                }
            }
            if self.grace_is_over() {
                self.hand_back();
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => return false,
                () = self.stop.cancelled(), if self.grace.is_none() => {}
                () = sleep_until(self.grace), if self.grace.is_some() && !self.handing_back => {}
                _ = self.turns.next_report() => {}
            }
        }
    }

    fn grace_is_over(&self) -> bool {
        !self.handing_back && self.grace.is_some_and(|grace| Instant::now() >= grace)
    }

    fn hand_back(&mut self) {
        tracing::info!(running = self.turns.running(), "the grace period is over; what runs is handed back");
        self.handing_back = true;
        self.turns.hand_back();
    }

    async fn attached(&mut self, channel: Channel) -> End {
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let register = worker_message::Message::Register(Register {
            protocol_version: hermes_proto::WORKER_PROTOCOL_VERSION,
            slots: self.registration.slots,
            pid: i64::from(std::process::id()),
            home: self.registration.home.clone(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            curates: self.shared.boundary.is_some(),
        });
        if outbound.try_send(Outgoing::new(register)).is_err() {
            return lost("the outbound queue closed");
        }
        let registered = Instant::now();
        let (inbound, welcome) = match tokio::time::timeout(REGISTER_TIMEOUT, open(channel.clone(), messages)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(end)) => return end,
            Err(_) => return lost("no answer to Register"),
        };
        if let Some(boundary) = &self.shared.boundary
            && let Err(error) = boundary.admits(&sandbox::from_wire(welcome.sandbox.as_ref())).await
        {
            return End::Unable(error);
        }
        tracing::info!(agent = welcome.agent, worker = welcome.worker_id, "registered");
        self.failures = 0;
        self.sync_documents(channel.clone());
        self.curator.attached(channel.clone(), sandbox::from_wire(welcome.sandbox.as_ref()));
        self.curator.told(welcome.curator.as_ref());
        self.shared.plane_tools.forget();
        let mut stream = Stream::new(outbound, &welcome);
        stream.waiting.extend(self.turns.unanswered(stream.takes_steps));
        if self.grace.is_some() {
            stream.say_going_away("draining");
        }
        self.published.send_modify(|connection| {
            connection.channel = Some(channel.clone());
            connection.protocol = stream.protocol;
            connection.outbound = Some(stream.outbound.clone());
            connection.registration += 1;
        });
        self.hold(registered, stream.lease);
        self.serve(stream, inbound).await
    }

    async fn serve(&mut self, mut stream: Stream, mut inbound: Streaming<ControlMessage>) -> End {
        let mut beats = tokio::time::interval(stream.heartbeat);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        beats.reset();
        let identity = Arc::clone(&self.identity);
        loop {
            if self.grace.is_some() && self.turns.is_idle() && stream.waiting.is_empty() {
                break;
            }
            self.curator.note(self.turns.is_idle() && self.grace.is_none());
            let look_at = self.curator.look_at().filter(|_| self.shared.boundary.is_some());
            // The clone ends with this round, so that closing finds the only sender in `stream`.
            let outbound = stream.outbound.clone();
            let expires = identity.expires_at();
            let answer_due = stream.answer_due().filter(|_| !self.shared.seams.without.self_fence);
            let renew = identity.renew_at().filter(|_| self.background.is_empty());
            tokio::select! {
                permit = outbound.reserve(), if !stream.waiting.is_empty() => match (permit, stream.waiting.pop_front()) {
                    (Ok(permit), Some(message)) => permit.send(Outgoing::new(message)),
                    _ => return lost("the stream does not take messages any more"),
                },
                message = inbound.message() => match message {
                    Ok(Some(message)) => if let Some(end) = self.handle(&mut stream, message) {
                        return end;
                    },
                    Ok(None) => return lost("the control plane closed the stream"),
                    Err(status) => return broken(&status),
                },
                report = self.turns.next_report() => match report {
                    Some(report) if stream.takes(&report) => stream.waiting.push_back(report),
                    Some(_) => self.turns.give_up_steps(),
                    None => {}
                },
                _ = beats.tick() => stream.beat(),
                curated = self.curator.next() => stream.waiting.push_back(worker_message::Message::Curated(curated)),
                () = sleep_until(look_at), if look_at.is_some() => self.curator.look(&self.shared),
                () = sleep_until(answer_due) => return lost("a heartbeat was not answered in time"),
                () = self.stop.cancelled(), if self.grace.is_none() => {
                    self.drain(&mut stream, self.registration.drain_grace, "asked to stop");
                }
                () = sleep_until(self.grace), if self.grace.is_some() && !self.handing_back => {
                    if stream.takes_steps {
                        self.hand_back();
                        continue;
                    }
                    tracing::warn!(running = self.turns.running(), "the grace period is over; what runs is left to other workers");
                    self.turns.drop_running();
                    break;
                }
                () = sleep_until(expires) => return lost("the certificate has expired"),
                () = sleep_until(renew), if renew.is_some() => self.renew(),
                Some(ended) = self.background.join_next(), if !self.background.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a background task panicked");
                    }
                }
            }
        }
        self.close(stream, inbound).await
    }

    /// Acts on one message; answers how the stream ends, if it does.
    fn handle(&mut self, stream: &mut Stream, message: ControlMessage) -> Option<End> {
        use control_message::Message;
        match message.message {
            Some(Message::Assignment(assignment)) => self.assigned(stream, assignment),
            Some(Message::Cancel(cancel)) => {
                if let Some(turn) = cancel.turn {
                    let (kind, reason) = (cancel.kind().as_str_name(), &cancel.reason);
                    tracing::info!(session = turn.session_id, turn = turn.seq, kind, reason, "asked to cancel");
                }
                self.turns.cancel(cancel);
            }
            Some(Message::Steer(steer)) => self.turns.steer(steer),
            Some(Message::Curate(curate)) => {
                let refused = self.curator.order(&self.shared, curate);
                stream.waiting.extend(refused.map(worker_message::Message::Curated));
            }
            Some(Message::StepAck(ack)) => self.turns.step_acknowledged(&ack),
            Some(Message::CompletedAck(ack)) => {
                if let Some(turn) = ack.turn {
                    self.turns.acknowledged(&turn, ack.stored);
                }
            }
            Some(Message::HeartbeatAck(HeartbeatAck { lease_lost: true, .. })) => {
                self.turns.drop_running();
                return Some(End::Lost { reason: "the lease is lost".to_owned(), at_once: true });
            }
            Some(Message::HeartbeatAck(ack)) => {
                self.curator.told(ack.curator.as_ref());
                if let Some(sent) = stream.answered(ack.sequence) {
                    self.hold(sent, stream.lease);
                }
            }
            Some(Message::Drain(drain)) => {
                let grace = Duration::from_millis(u64::from(drain.grace_ms));
                self.drain(stream, grace, "drained by the control plane");
            }
            Some(Message::Refused(refused)) => {
                self.turns.drop_running();
                return Some(refusal(refused.reason, refused.retry));
            }
            Some(Message::Welcome(_)) => tracing::warn!("a second Welcome is ignored"),
            // A message of a later protocol is not for us.
            None => {}
        }
        None
    }

    fn assigned(&mut self, stream: &mut Stream, assignment: Assignment) {
        let turn = assignment.turn;
        if let Some(turn) = turn.filter(|_| self.grace.is_some() && stream.takes_steps) {
            stream.waiting.push_back(self.turns.decline(turn));
            return;
        }
        match self.turns.start(assignment) {
            Started::Accepted => stream.waiting.push_back(worker_message::Message::Accepted(Accepted { turn })),
            Started::AlreadyEnded(report) => stream.waiting.push_back(*report),
            Started::Ignored => {}
        }
    }

    /// The lease holds from `sent` on; this side stops at four fifths of it.
    fn hold(&self, sent: Instant, lease: Duration) {
        let fence = if self.shared.seams.without.self_fence { NO_FENCE } else { lease.mul_f32(0.8) };
        self.published.send_modify(|connection| {
            connection.fence = sent + fence;
            connection.lease_end = sent + lease.max(fence);
        });
    }

    fn drain(&mut self, stream: &mut Stream, grace: Duration, reason: &str) {
        let until = Instant::now() + grace;
        let first = self.grace.is_none();
        self.grace = Some(self.grace.map_or(until, |earlier| earlier.min(until)));
        if first {
            tracing::info!(reason, running = self.turns.running(), "going away");
            stream.say_going_away(reason);
        }
        if stream.takes_steps && self.grace_is_over() {
            self.hand_back();
        }
    }

    /// Ends our side of the stream and gives the control plane a moment to end its own.
    async fn close(&mut self, stream: Stream, mut inbound: Streaming<ControlMessage>) -> End {
        self.published.send_modify(|connection| connection.outbound = None);
        drop(stream);
        let ended = async { while let Ok(Some(_)) = inbound.message().await {} };
        if tokio::time::timeout(CLOSE_TIMEOUT, ended).await.is_err() {
            tracing::debug!("the control plane did not close its side");
        }
        End::Closed
    }

    fn sync_documents(&mut self, channel: Channel) {
        let shared = Arc::clone(&self.shared);
        self.background.spawn(async move {
            if let Err(error) = shared.documents.refresh(&channel, 0).await {
                tracing::warn!(
                    error = chain(&error),
                    "the home's documents are not in step yet; the next turn tries again"
                );
            }
        });
    }

    /// Renews the certificate; new calls move to a connection made with it, the stream stays where it is until it ends.
    fn renew(&mut self) {
        let (Some(channel), Some(stream)) = ({
            let connection = self.published.borrow();
            (connection.channel.clone(), connection.outbound.clone())
        }) else {
            return;
        };
        let stream = stream.downgrade();
        let (identity, published) = (Arc::clone(&self.identity), self.published.clone());
        self.background.spawn(async move {
            match identity.renew(channel).await {
                Ok(channel) => {
                    tracing::debug!("certificate renewed");
                    published.send_modify(|connection| {
                        // A stream that has come since may be another server's.
                        let same = |outbound: &mpsc::Sender<Outgoing>| {
                            stream.upgrade().is_some_and(|stream| stream.same_channel(outbound))
                        };
                        if connection.outbound.as_ref().is_some_and(same) {
                            connection.channel = Some(channel);
                        }
                    });
                }
                Err(error) => tracing::warn!(error = chain(&error), "the certificate is not renewed yet"),
            }
        });
    }
}

/// Opens the stream and waits for its first message.
async fn open(
    channel: Channel,
    messages: mpsc::Receiver<Outgoing>,
) -> Result<(Streaming<ControlMessage>, Welcome), End> {
    let mut client = WorkerServiceClient::new(channel).max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES);
    let outbound = ReceiverStream::new(messages).map(Outgoing::into_message);
    let mut inbound = client.attach(outbound).await.map_err(|status| broken(&status))?.into_inner();
    match inbound.message().await.map_err(|status| broken(&status))?.and_then(|message| message.message) {
        Some(control_message::Message::Welcome(welcome)) => Ok((inbound, welcome)),
        Some(control_message::Message::Refused(refused)) => Err(refusal(refused.reason, refused.retry)),
        _ => Err(lost("the first answer was neither Welcome nor Refused")),
    }
}

/// One attached stream: what waits to be written, and when heartbeats were sent.
struct Stream {
    outbound: mpsc::Sender<Outgoing>,
    /// Bounded by slots and open heartbeats: each turn adds an acceptance, one step and an end.
    waiting: VecDeque<worker_message::Message>,
    /// What both sides speak.
    protocol: u32,
    takes_steps: bool,
    heartbeat: Duration,
    lease: Duration,
    beats: u64,
    unanswered: VecDeque<(u64, Instant)>,
}

impl Stream {
    fn new(outbound: mpsc::Sender<Outgoing>, welcome: &Welcome) -> Self {
        let at_least = |ms: u32, least: u64| Duration::from_millis(u64::from(ms).max(least));
        // A control plane of before version 2 does not say what it speaks.
        let protocol = welcome.protocol_version.clamp(1, hermes_proto::WORKER_PROTOCOL_VERSION);
        Self {
            outbound,
            waiting: VecDeque::new(),
            protocol,
            takes_steps: protocol >= STEPS_SINCE,
            heartbeat: at_least(welcome.heartbeat_ms, 50),
            lease: at_least(welcome.lease_ms, 100),
            beats: 0,
            unanswered: VecDeque::new(),
        }
    }

    /// Whether the other side knows this kind of message.
    fn takes(&self, message: &worker_message::Message) -> bool {
        let new = matches!(message, worker_message::Message::Step(_) | worker_message::Message::HandBack(_));
        self.takes_steps || !new
    }

    /// Sends a heartbeat.
    fn beat(&mut self) {
        self.beats += 1;
        self.unanswered.push_back((self.beats, Instant::now()));
        self.waiting.push_back(worker_message::Message::Heartbeat(Heartbeat { sequence: self.beats }));
    }

    /// Until when the oldest open heartbeat must be answered. A replica that stands still looks like one that is idle; whoever
    /// goes elsewhere by then keeps its lease and what it runs, with a heartbeat's time to spare.
    fn answer_due(&self) -> Option<Instant> {
        self.unanswered.front().map(|(_, sent)| *sent + self.lease.mul_f32(0.4))
    }

    /// When the answered heartbeat was sent; older open ones are answered with it.
    fn answered(&mut self, sequence: u64) -> Option<Instant> {
        let mut sent = None;
        while let Some((_, at)) = self.unanswered.front().filter(|(open, _)| *open <= sequence) {
            sent = Some(*at);
            self.unanswered.pop_front();
        }
        sent
    }

    fn say_going_away(&mut self, reason: &str) {
        self.waiting.push_back(worker_message::Message::GoingAway(GoingAway { reason: reason.to_owned() }));
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn lost(reason: &str) -> End {
    End::Lost { reason: reason.to_owned(), at_once: false }
}

fn refusal(reason: String, retry: bool) -> End {
    if retry { End::Lost { reason: format!("refused: {reason}"), at_once: false } } else { End::Refused(reason) }
}

fn broken(status: &tonic::Status) -> End {
    match status.code() {
        tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => End::NotTrusted(status.message().to_owned()),
        code => End::Lost { reason: format!("{code:?}: {}", chain(status)), at_once: false },
    }
}

/// An error with its causes, for a log line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
