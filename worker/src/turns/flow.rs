//! One turn from assignment to report: documents, history, prompt, model call, reply.
//!
//! Always true: the model is called only while the lease lets us; a broken call is repeated when the connection is back
//! and given up when the lease has ended; every end that is still ours is reported exactly once, with a sentence for the
//! chat where it failed. Progress is lossy: at most one message is on its way, they are at least 50 ms apart, and text
//! that cannot be sent waits for the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hermes_proto::v1::{
    Assignment, Completed, GenerateDone, GenerateHeader, ModelRole, Outcome, Progress, TurnRef, Usage,
};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::Instrument as _;

use super::{Ended, Said, Shared};
use crate::connection::{Connection, is_broken, ready};
use crate::documents;
use crate::model::{self, Deltas, Message};
use crate::prompt::{Basis, Source};
use crate::telemetry;

/// Longest reply, in bytes; what is beyond is cut and said so.
const MAX_REPLY_BYTES: usize = 900 << 10;
const CUT_NOTE: &str = "\n\n[The reply was longer than 900 KiB and ends here.]";
/// Time between two progress messages of a turn, and before its first.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);
/// Broken calls of one turn, at most.
const MAX_BROKEN: u32 = 5;

/// The body of a turn as the control plane stores it. Unknown fields are for other readers.
#[derive(Debug, Deserialize)]
struct Input {
    text: String,
    /// When present: the whole history, the session's own is not used.
    #[serde(default)]
    history: Option<Vec<HistoryMessage>>,
    #[serde(default)]
    source: Option<Source>,
}

#[derive(Debug, Deserialize)]
struct HistoryMessage {
    role: Role,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    User,
    Assistant,
}

/// Why an attempt gave no reply.
enum Failure {
    /// Not ours any more: report nothing.
    Lost,
    /// The connection broke: once more.
    Broken(tonic::Status),
    /// For good; the sentence is for the chat.
    Said(String),
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            tonic::Code::PermissionDenied => Self::Lost,
            _ if is_broken(&status) => Self::Broken(status),
            _ => {
                tracing::error!(code = ?status.code(), message = status.message(), "the control plane refused a call of a turn");
                Self::Said("I could not load this conversation. Please try again.".to_owned())
            }
        }
    }
}

/// Runs the turn to its end.
pub(super) async fn run(
    shared: Arc<Shared>,
    assignment: Assignment,
    turn: TurnRef,
    cancel: CancellationToken,
) -> Ended {
    let span = tracing::info_span!(
        "turn",
        session = turn.session_id,
        turn = turn.seq,
        epoch = turn.epoch,
        attempt = assignment.attempt,
        otel.kind = "consumer",
        outcome = tracing::field::Empty
    );
    telemetry::adopt(&span, &assignment.traceparent);
    let recorded = span.clone();
    let flow = async move {
        let ended = tokio::select! {
            biased;
            () = cancel.cancelled() => ended(turn, Outcome::Cancelled, String::new(), None),
            ended = answer(&shared, assignment, turn) => ended,
        };
        let outcome = ended.completed.as_ref().map_or("dropped", |completed| completed.outcome().as_str_name());
        recorded.record("outcome", outcome);
        tracing::debug!(outcome, "turn ended");
        ended
    };
    flow.instrument(span).await
}

/// The report of an end.
pub(super) fn ended(turn: TurnRef, outcome: Outcome, reply: String, usage: Option<Usage>) -> Ended {
    let completed = Completed { turn: Some(turn), outcome: outcome.into(), reply: reply.into_bytes(), usage };
    Ended { turn, completed: Some(completed), said: None }
}

async fn answer(shared: &Shared, assignment: Assignment, turn: TurnRef) -> Ended {
    let input: Input = match serde_json::from_slice(&assignment.input) {
        Ok(input) => input,
        Err(error) => {
            tracing::error!(%error, "the turn's input cannot be read");
            return ended(turn, Outcome::Failed, "I could not read this message.".to_owned(), None);
        }
    };
    let mut reply = Reply::new(turn, shared.connection.clone());
    let mut connection = shared.connection.clone();
    for broken in 0..MAX_BROKEN {
        let Some(channel) = ready(&mut connection).await else {
            tracing::info!("the lease ended without a connection; the turn is left to others");
            return Ended { turn, completed: None, said: None };
        };
        match attempt(shared, &assignment, turn, &input, channel, &mut reply).await {
            Ok(done) => return succeeded(turn, input, reply.finish(), done, &assignment),
            Err(Failure::Lost) => return Ended { turn, completed: None, said: None },
            Err(Failure::Said(sentence)) => return ended(turn, Outcome::Failed, sentence, None),
            Err(Failure::Broken(status)) => {
                tracing::warn!(code = ?status.code(), message = status.message(), "a call of the turn broke off");
                reply.restart();
                // Give a lost connection time to be noticed before the next attempt.
                let most = 100_u64 << broken;
                tokio::time::sleep(Duration::from_millis(rand::random_range(most / 2..=most))).await;
            }
        }
    }
    ended(turn, Outcome::Failed, "I cannot reach my model right now. Please try again later.".to_owned(), None)
}

fn succeeded(turn: TurnRef, input: Input, reply: String, done: GenerateDone, assignment: &Assignment) -> Ended {
    let own_history = input.history.is_some();
    let said = (!own_history).then(|| Said {
        input: input.text.into(),
        reply: reply.as_str().into(),
        history_bytes: bytes(assignment.history_bytes),
    });
    Ended { said, ..ended(turn, Outcome::Succeeded, reply, done.usage) }
}

async fn attempt(
    shared: &Shared,
    assignment: &Assignment,
    turn: TurnRef,
    input: &Input,
    channel: Channel,
    reply: &mut Reply,
) -> Result<GenerateDone, Failure> {
    match shared.documents.refresh(&channel, assignment.home_version).await {
        Ok(()) => {}
        Err(documents::Error::Call(status)) if is_broken(&status) => return Err(Failure::Broken(status)),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "going on with the documents that are here");
        }
    }
    let messages = conversation(shared, assignment, turn, input, &channel).await?;
    let span = tracing::info_span!("model", otel.kind = "client", session = turn.session_id, turn = turn.seq);
    let traceparent = telemetry::traceparent(&span, &assignment.traceparent);
    let header = GenerateHeader { turn: Some(turn), step: 0, traceparent };
    model::generate(channel, header, messages, reply).instrument(span).await.map_err(|error| match error {
        model::Error::NotOurs => Failure::Lost,
        model::Error::Broken(status) => Failure::Broken(status),
        model::Error::Failed { sentence, reason } => {
            tracing::info!(reason, "the model call failed");
            Failure::Said(sentence)
        }
        model::Error::Refused(status) => {
            tracing::error!(code = ?status.code(), message = status.message(), "the control plane refused the model call");
            Failure::Said("I could not ask my model. Please try again later.".to_owned())
        }
    })
}

/// The system prompt, the history that fits, and the user's message.
async fn conversation(
    shared: &Shared,
    assignment: &Assignment,
    turn: TurnRef,
    input: &Input,
    channel: &Channel,
) -> Result<Vec<Message>, Failure> {
    let budget = bytes(assignment.history_bytes);
    let (history, caller) = match &input.history {
        Some(history) => given_history(history, budget),
        None => {
            let version = assignment.transcript_version;
            let history = shared.transcripts.history(channel.clone(), turn, version, budget).await?;
            (history, String::new())
        }
    };
    let revision = assignment.profile.as_ref().map_or(0, |profile| profile.revision);
    let basis = Basis { generation: shared.documents.generation(), revision };
    let prompt = shared.prompts.of_session(turn.session_id, basis, shared.documents.home(), (shared.today)()).await;
    let system = prompt.assemble(&caller, input.source.as_ref());
    let mut messages = Vec::with_capacity(history.len() + 2);
    messages.push(Message { role: ModelRole::System, text: system.into() });
    messages.extend(history);
    messages.push(Message { role: ModelRole::User, text: input.text.as_str().into() });
    Ok(messages)
}

/// The history that came with the input, cut to the budget in whole exchanges from the old end, and its system text.
fn given_history(history: &[HistoryMessage], budget: usize) -> (Vec<Message>, String) {
    let system: Vec<&str> =
        history.iter().filter(|message| message.role == Role::System).map(|message| message.text.as_str()).collect();
    let mut kept = Vec::new();
    let mut left = budget;
    let mut exchange_start = 0;
    for message in history.iter().rev().filter(|message| message.role != Role::System) {
        let Some(rest) = left.checked_sub(message.text.len()) else {
            break;
        };
        left = rest;
        let role = if message.role == Role::User { ModelRole::User } else { ModelRole::Assistant };
        kept.push(Message { role, text: message.text.as_str().into() });
        if message.role == Role::User {
            exchange_start = kept.len();
        }
    }
    let complete = kept.len() == history.len() - system.len();
    if !complete {
        kept.truncate(exchange_start);
    }
    kept.reverse();
    (kept, system.join("\n\n"))
}

fn bytes(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The reply as it grows, and its progress on the way to the chat.
struct Reply {
    turn: TurnRef,
    connection: watch::Receiver<Connection>,
    text: String,
    cut: bool,
    /// Text not yet sent as progress begins here.
    sent: usize,
    in_flight: Arc<AtomicBool>,
    due: Option<Instant>,
    /// After a repeated call the text begins anew, which deltas cannot say: no more of them.
    silent: bool,
}

impl Reply {
    fn new(turn: TurnRef, connection: watch::Receiver<Connection>) -> Self {
        Self {
            turn,
            connection,
            text: String::new(),
            cut: false,
            sent: 0,
            in_flight: Arc::default(),
            due: None,
            silent: false,
        }
    }

    fn restart(&mut self) {
        self.silent |= self.sent > 0;
        self.text.clear();
        self.cut = false;
        self.sent = 0;
        self.due = None;
    }

    fn finish(mut self) -> String {
        if self.cut {
            self.text.push_str(CUT_NOTE);
        }
        self.text
    }
}

impl Deltas for Reply {
    fn push(&mut self, text: &str) {
        if self.cut {
            return;
        }
        let room = MAX_REPLY_BYTES - CUT_NOTE.len() - self.text.len();
        let taken = text.floor_char_boundary(room);
        self.cut = taken < text.len();
        self.text.push_str(text.get(..taken).unwrap_or_default());
        if !self.silent && self.due.is_none() {
            self.due = Some(Instant::now() + PROGRESS_EVERY);
        }
    }

    fn due(&self) -> Option<Instant> {
        self.due
    }

    fn flush(&mut self) {
        let waiting = self.text.get(self.sent..).unwrap_or_default();
        let end = waiting.floor_char_boundary(hermes_proto::CHUNK_BYTES);
        let delta = waiting.get(..end).unwrap_or_default();
        let free = !self.in_flight.load(Ordering::Acquire);
        let progress = || Progress { turn: Some(self.turn), text_delta: delta.to_owned() };
        if !delta.is_empty() && free && self.connection.borrow().offer(progress(), &self.in_flight) {
            self.sent += end;
        }
        self.due = (self.sent < self.text.len()).then(|| Instant::now() + PROGRESS_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(role: Role, text: &str) -> HistoryMessage {
        HistoryMessage { role, text: text.to_owned() }
    }

    #[test]
    fn given_history_is_cut_in_whole_exchanges() {
        let history = [
            said(Role::System, "sys"),
            said(Role::User, "u1"),
            said(Role::Assistant, "a1"),
            said(Role::User, "u2"),
            said(Role::Assistant, "a2"),
        ];
        let texts = |budget| {
            let (kept, system) = given_history(&history, budget);
            assert_eq!(system, "sys");
            kept.iter().map(|message| message.text.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(texts(8), ["u1", "a1", "u2", "a2"]);
        assert_eq!(texts(7), ["u2", "a2"]);
        assert_eq!(texts(4), ["u2", "a2"]);
        assert_eq!(texts(3), Vec::<String>::new());
        assert_eq!(given_history(&[said(Role::Assistant, "hello")], 5).0.len(), 1);
    }

    #[test]
    fn an_endless_reply_is_cut_and_says_so() {
        let (_, connection) = watch::channel(Connection::none());
        let mut reply = Reply::new(TurnRef::default(), connection);
        for _ in 0..1000 {
            reply.push(&"é".repeat(1000));
        }
        let text = reply.finish();
        assert!(text.len() <= MAX_REPLY_BYTES && text.len() > MAX_REPLY_BYTES - 8);
        assert!(text.ends_with(CUT_NOTE));
    }
}
