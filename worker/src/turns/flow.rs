//! One turn from assignment to report: documents, history, prompt, what was journaled, and how it ends.
//!
//! Always true: every end that is still ours is reported exactly once, with a sentence for the chat where it failed; a
//! broken call is repeated when the connection is back, and a turn whose lease has ended is given back, not reported. The
//! steps between are in [`super::steps`].

use std::sync::Arc;
use std::time::Duration;

use hermes_proto::v1::{Assignment, Completed, ModelRole, Outcome, TurnRef, Usage};
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;
use tracing::Instrument as _;

use super::consolidation;
use super::foreign;
use super::input::{Input, given_history};
use super::job::Told;
use super::orders::{Halt, Inbox};
use super::own;
use super::past::Past;
use super::reply::Reply;
use super::reports::{Reported, Reports};
use super::{End, Ended, Said, Shared};
use crate::connection::{Connection, STEPS_SINCE, is_broken, ready};
use crate::cron::{NOT_IN_RUNS, SILENT};
use crate::documents;
use crate::inbox::{self, Attachment};
use crate::model::{self, Message};
use crate::outgoing;
use crate::prompt::Basis;
use crate::telemetry;
use crate::tools::{Author, McpOffered, Offer, PlaneError, ToolSpec};
use crate::transcript::History;

/// Broken attempts at one call, at most.
const MAX_BROKEN: u32 = 5;

/// Why a call of a turn did not succeed.
pub(super) enum Failure {
    /// The connection broke: once more.
    Broken(tonic::Status),
    /// The turn stops.
    Halt(Halt),
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            tonic::Code::PermissionDenied => Self::Halt(Halt::Gone),
            _ if is_broken(&status) => Self::Broken(status),
            _ => {
                tracing::error!(code = ?status.code(), message = status.message(), "the control plane refused a call of a turn");
                Self::Halt(Halt::Failed("I could not load this conversation. Please try again.".to_owned()))
            }
        }
    }
}

impl From<PlaneError> for Failure {
    fn from(error: PlaneError) -> Self {
        match error {
            PlaneError::Gone => Self::Halt(Halt::Gone),
            PlaneError::Broken(status) => Self::Broken(status),
            PlaneError::Refused(status) => {
                tracing::error!(code = ?status.code(), message = status.message(), "the control plane refused a tool call");
                Self::Halt(Halt::Failed("I could not use one of my tools. Please try again later.".to_owned()))
            }
        }
    }
}

impl From<model::Error> for Failure {
    fn from(error: model::Error) -> Self {
        match error {
            model::Error::NotOurs => Self::Halt(Halt::Gone),
            model::Error::Broken(status) => Self::Broken(status),
            model::Error::Failed { sentence, reason } => {
                tracing::info!(reason, "the model call failed");
                Self::Halt(Halt::Failed(sentence))
            }
            model::Error::Refused(status) => {
                tracing::error!(code = ?status.code(), message = status.message(), "the control plane refused the model call");
                Self::Halt(Halt::Failed("I could not ask my model. Please try again later.".to_owned()))
            }
        }
    }
}

/// The turn as it runs.
pub(super) struct Course {
    pub(super) shared: Arc<Shared>,
    pub(super) assignment: Assignment,
    pub(super) turn: TurnRef,
    pub(super) connection: watch::Receiver<Connection>,
    pub(super) inbox: Inbox,
    pub(super) reports: Reports,
    pub(super) reply: Reply,
    pub(super) past: Past,
    pub(super) messages: Vec<Message>,
    /// Where the turn's own message stands in them.
    begins: usize,
    /// What is said with that message of files that could not be had.
    pub(super) missing: String,
    /// What its model may call.
    pub(super) tools: Offer,
    /// Where those of MCP servers are.
    pub(super) mcp: McpOffered,
    /// The number of the next step.
    pub(super) step: u32,
    /// The folder below the agent's scratch where its work begins.
    pub(super) workdir: Option<String>,
    /// Somebody may be there who allows what has to be allowed.
    pub(super) attended: bool,
    /// As who it changes skills.
    pub(super) author: Author,
    /// What the user is asked at the end of the present steps.
    pub(super) question: Option<String>,
    pub(super) usage: Option<Usage>,
}

/// What a turn begins with.
struct Prepared {
    missing: String,
    history: History,
    past: Past,
    tools: Offer,
    mcp: McpOffered,
}

/// Runs the turn to its end.
pub(super) async fn run(
    shared: Arc<Shared>,
    assignment: Assignment,
    turn: TurnRef,
    inbox: Inbox,
    link: mpsc::Sender<Reported>,
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
        let connection = shared.connection.clone();
        let mut course = Course {
            reports: Reports { turn, link, connection: connection.clone() },
            reply: Reply::new(turn, connection.clone()),
            connection,
            shared: Arc::clone(&shared),
            assignment,
            turn,
            inbox,
            past: Past::default(),
            messages: Vec::new(),
            begins: 0,
            missing: String::new(),
            tools: Offer::default(),
            mcp: McpOffered::default(),
            step: 0,
            workdir: None,
            attended: true,
            author: Author::default(),
            question: None,
            usage: None,
        };
        shared.seams.point("turn.begin").await;
        let end = course.end().await;
        let outcome = match &end {
            End::Completed(completed, _) => {
                shared.seams.point("complete.before").await;
                completed.outcome().as_str_name()
            }
            End::HandedBack => {
                shared.seams.point("handback.before").await;
                "handed back"
            }
            End::Gone => "dropped",
        };
        recorded.record("outcome", outcome);
        tracing::debug!(outcome, "turn ended");
        Ended { turn, end }
    };
    flow.instrument(span).await
}

/// The report of an end.
pub(super) fn completed(turn: TurnRef, outcome: Outcome, reply: String, usage: Option<Usage>) -> Box<Completed> {
    Box::new(Completed { turn: Some(turn), outcome: outcome.into(), reply: reply.into_bytes(), usage })
}

impl Course {
    async fn end(&mut self) -> End {
        let input: Input = match serde_json::from_slice(&self.assignment.input) {
            Ok(input) => input,
            Err(error) => {
                tracing::error!(%error, "the turn's input cannot be read");
                return self.reported(Outcome::Failed, "I could not read this message.".to_owned());
            }
        };
        let answered = match self.answer(&input).await {
            Ok(reply) => self.bring(&reply).await.map(|()| reply),
            Err(halt) => Err(halt),
        };
        let halt = match answered {
            Ok(reply) => {
                let mut messages = self.messages.split_off(self.begins.min(self.messages.len()));
                if let Some(run) = &input.cron {
                    // Where the script said that there is nothing, nobody answered.
                    if !messages.is_empty() || reply != SILENT {
                        self.keep_answer(run, &reply).await;
                    }
                    Self::only_prompt(&mut messages, &input.text);
                }
                messages.push(Message::new(ModelRole::Assistant, reply.as_str()));
                let goes_on = input.history.is_none() && input.compress.is_none() && input.consolidates.is_empty();
                let said = goes_on.then(|| Said {
                    messages,
                    history_bytes: bytes(self.assignment.history_bytes),
                    rewinds: self.assignment.history_rewinds,
                });
                return End::Completed(completed(self.turn, Outcome::Succeeded, reply, self.usage.take()), said);
            }
            Err(halt) => halt,
        };
        match halt {
            Halt::Gone => End::Gone,
            Halt::Left => {
                tracing::info!("the lease ended without a connection; the turn is left to others");
                // A control plane of before hand-backs finds out by itself.
                if self.steps_are_taken() { End::HandedBack } else { End::Gone }
            }
            Halt::HandedBack => End::HandedBack,
            Halt::Ended { outcome, sentence } => {
                let text = sentence.unwrap_or_else(|| self.reply.so_far());
                self.reported(outcome, text)
            }
            Halt::Failed(sentence) => self.reported(Outcome::Failed, sentence),
        }
    }

    fn reported(&mut self, outcome: Outcome, text: String) -> End {
        End::Completed(completed(self.turn, outcome, text, self.usage.take()), None)
    }

    async fn answer(&mut self, input: &Input) -> Result<String, Halt> {
        let alone = input.cron.as_ref().is_some_and(|run| run.no_agent);
        self.attended = input.cron.is_none() && input.consolidates.is_empty();
        self.author = match input.consolidates.as_slice() {
            [] if self.attended => Author::Agent,
            [] => Author::Alone,
            free => Author::Curator(free.to_vec()),
        };
        if let Some(runtime) = foreign::runtime(&self.assignment).cloned()
            && !alone
        {
            // Boxed, so that turns of the worker's own loop are not the larger for it.
            return Box::pin(self.foreign(&runtime, input)).await;
        }
        if let Some(programs) = &self.shared.programs
            && !alone
        {
            programs.end();
        }
        let mut tries = Tries::default();
        let Prepared { missing, mut history, past, tools, mcp } = loop {
            let channel = self.ready().await?;
            match self.inbox.unless_stopped(self.prepared(input, &channel)).await? {
                Ok(prepared) => break prepared,
                Err(failure) => tries.again(&self.inbox, failure).await?,
            }
        };
        if let Some(how) = &input.compress {
            return self.compressed(how, &mut history).await;
        }
        self.missing = missing;
        self.past = past;
        self.tools = tools;
        self.mcp = mcp;
        let told = match self.told(input).await? {
            Told::Message(text) => text,
            Told::Answered(reply) => return Ok(reply),
        };
        self.make_room(&mut history).await?;
        self.messages = self.inbox.unless_stopped(self.conversation(input, &told, history)).await?;
        self.begins = self.messages.len().saturating_sub(1);
        self.steps().await
    }

    /// Brings the files that a text names to the control plane, before it is said.
    pub(super) async fn bring(&mut self, text: &str) -> Result<(), Halt> {
        let shared = Arc::clone(&self.shared);
        let mut tries = Tries::default();
        loop {
            let channel = self.ready().await?;
            let brought = outgoing::bring(&channel, self.turn, shared.documents.home(), text);
            match self.inbox.unless_stopped(brought).await? {
                Ok(()) => return Ok(()),
                Err(status) => tries.again(&self.inbox, status.into()).await?,
            }
        }
    }

    /// Whether the control plane takes reports of steps, so that there may be tools and hand-backs.
    pub(super) fn steps_are_taken(&self) -> bool {
        self.connection.borrow().protocol >= STEPS_SINCE
    }

    /// Waits until a call or a tool may begin, unless the turn has to stop.
    pub(super) async fn ready(&mut self) -> Result<Channel, Halt> {
        self.inbox.unless_stopped(ready(&mut self.connection)).await?.ok_or(Halt::Left)
    }

    /// What was said before, what was journaled, and what may be called.
    async fn prepared(&self, input: &Input, channel: &Channel) -> Result<Prepared, Failure> {
        let missing = self.documents(input, channel).await?;
        let (tools, mcp) = match &input.cron {
            // Nobody is asked who could call anything.
            Some(run) if run.no_agent => Default::default(),
            Some(_) => {
                let (tools, mcp) = self.offer(channel).await?;
                (tools.without_toolsets(&NOT_IN_RUNS), mcp)
            }
            None if !input.consolidates.is_empty() => (self.offer_on_skills(channel).await?, McpOffered::default()),
            None => self.offer(channel).await?,
        };
        let history = match &input.history {
            Some(_) => History::default(),
            None if !input.consolidates.is_empty() => History::default(),
            None => self.told_before(channel).await?,
        };
        let past = match self.assignment.journal_entries {
            0 => Past::default(),
            _ => Past::fetch(channel.clone(), self.turn).await?,
        };
        Ok(Prepared { missing, history, past, tools, mcp })
    }

    /// Brings the documents in step, and the message's files into the inbox; what is to be said of those that are missing.
    pub(super) async fn documents(&self, input: &Input, channel: &Channel) -> Result<String, Failure> {
        match self.shared.documents.refresh(channel, self.assignment.home_version).await {
            Ok(()) => {}
            Err(documents::Error::Call(status)) if is_broken(&status) => return Err(Failure::Broken(status)),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "going on with the documents that are here");
            }
        }
        Ok(inbox::fetch(channel, self.turn, self.shared.documents.home(), &input.attachments).await?)
    }

    /// What was said in the session before.
    async fn told_before(&self, channel: &Channel) -> Result<History, Failure> {
        let Assignment { transcript_version, history_rewinds, history_bytes, .. } = self.assignment;
        let (channel, budget) = (channel.clone(), bytes(history_bytes));
        let transcripts = &self.shared.transcripts;
        Ok(transcripts.history(channel, self.turn, transcript_version, history_rewinds, budget).await?)
    }

    /// [`Course::told_before`], however often it has to be asked for.
    pub(super) async fn history(&mut self) -> Result<History, Halt> {
        let mut tries = Tries::default();
        loop {
            let channel = self.ready().await?;
            match self.inbox.unless_stopped(self.told_before(&channel)).await? {
                Ok(history) => return Ok(history),
                Err(failure) => tries.again(&self.inbox, failure).await?,
            }
        }
    }

    /// The tools of this worker, of the control plane and of MCP servers that the turn's profile has on.
    async fn offer(&self, channel: &Channel) -> Result<(Offer, McpOffered), Failure> {
        if !self.steps_are_taken() {
            return Ok(Default::default());
        }
        let theirs = self.theirs(channel).await?;
        let ours = self.shared.toolbox.specs();
        let profile = self.assignment.profile.as_ref();
        let mcp = match &self.shared.mcp {
            // Boxed, so that turns without servers are not the larger for it.
            Some(servers) => Box::pin(servers.offered(profile, channel)).await.map_err(Failure::Broken)?,
            None => McpOffered::default(),
        };
        // Nobody else's tool stands in for one of ours.
        let specs = ours.iter().chain(own::specs()).chain(theirs.iter()).chain(&mcp.specs);
        Ok((Offer::new(specs, profile).without_toolsets(&[consolidation::TOOLSET]), mcp))
    }

    /// The tools that merge skills; whatever the profile has on, for this is not what people ask for.
    async fn offer_on_skills(&self, channel: &Channel) -> Result<Offer, Failure> {
        let (ours, theirs) = (self.shared.toolbox.specs(), self.theirs(channel).await?);
        let is_one = |spec: &&ToolSpec| consolidation::TOOLSETS.contains(&spec.toolset.as_str());
        Ok(Offer::new(ours.iter().chain(theirs.iter()).filter(is_one), None))
    }

    /// The control plane's tools.
    async fn theirs(&self, channel: &Channel) -> Result<Arc<[ToolSpec]>, Failure> {
        match self.shared.plane_tools.listed(channel).await {
            Ok(theirs) => Ok(theirs),
            Err(status) if is_broken(&status) => Err(Failure::Broken(status)),
            Err(status) => {
                tracing::warn!(code = ?status.code(), message = status.message(), "going on without the control plane's tools");
                Ok(Arc::default())
            }
        }
    }

    /// What the model is told of the message.
    pub(super) fn said(&self, input: &Input) -> String {
        format!("{}{}", input.text, self.missing)
    }

    /// The system prompt, the history that fits, and the user's message.
    async fn conversation(&self, input: &Input, told: &str, history: History) -> Vec<Message> {
        let Self { shared, assignment, turn, tools, .. } = self;
        let budget = bytes(assignment.history_bytes);
        let summed_up = history.summary().map_or(0, |summary| summary.through);
        let (history, caller) = match &input.history {
            Some(history) => given_history(history, budget),
            None => (history.told(budget), String::new()),
        };
        // Where there are no tools some providers refuse to hear of calls.
        let calls = |message: &Message| message.role == ModelRole::Tool || !message.tool_calls.is_empty();
        let history = history.into_iter().filter(|message| !tools.is_empty() || !calls(message));
        let revision = assignment.profile.as_ref().map_or(0, |profile| profile.revision);
        let available = tools.available();
        let basis =
            Basis { generation: shared.documents.generation(), revision, tools: available.fingerprint(), summed_up };
        let (home, today) = (shared.documents.home(), (shared.today)());
        let prompt = shared.prompts.of_session(turn.session_id, basis, &available, home, today).await;
        let system = prompt.assemble(&caller, input.source.as_ref());
        let mut messages = Vec::new();
        messages.push(Message::new(ModelRole::System, system));
        messages.extend(history);
        let said = Message::new(ModelRole::User, told);
        messages.push(Message { with_files: input.attachments.iter().any(Attachment::may_be_shown), ..said });
        messages
    }
}

/// Counts the attempts at one call.
#[derive(Default)]
pub(super) struct Tries(u32);

impl Tries {
    /// Waits a little before the next attempt.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn again(&mut self, inbox: &Inbox, failure: Failure) -> Result<(), Halt> {
        let status = match failure {
            Failure::Broken(status) => status,
            Failure::Halt(halt) => return Err(halt),
        };
        tracing::warn!(code = ?status.code(), message = status.message(), "a call of the turn broke off");
        // Give a lost connection time to be noticed before the next attempt.
        let most = 100_u64 << self.0;
        self.0 += 1;
        if self.0 >= MAX_BROKEN {
            return Err(Halt::Failed("I cannot reach my model right now. Please try again later.".to_owned()));
        }
        let pause = Duration::from_millis(rand::random_range(most / 2..=most));
        inbox.unless_stopped(tokio::time::sleep(pause)).await
    }
}

pub(super) fn bytes(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
