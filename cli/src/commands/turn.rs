//! One submitted message followed to the end of its turn. Called by `send` and `chat`; owns the repetition: a call that
//! broke is repeated with the same dedupe key, so a message counts once however often the connection breaks, and a turn
//! that was accepted is asked for again instead of sent again. Always true: an answer that was lost is never guessed.

use std::time::Duration;

use anyhow::bail;
use hermes_proto::v1::message_service_client::MessageServiceClient;
use hermes_proto::v1::{
    self, GetTurnRequest, GetTurnResponse, SubmitRequest, SubmitResponse, TurnEnded, TurnState, turn_event,
};
use serde::Serialize;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::unknown;
use crate::connect::{Connection, Transport};
use crate::output::{Paint, View, plain, plain_lines};

/// How long a control plane that stopped answering is asked again.
const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A turn as `send` and `chat` show it.
#[derive(Debug, Serialize)]
pub(crate) struct TurnView {
    agent: String,
    session_key: String,
    session_id: String,
    turn: String,
    duplicate: bool,
    state: &'static str,
    /// The whole answer; absent until the turn has ended.
    pub reply: Option<String>,
    /// The turn ended and succeeded.
    #[serde(skip)]
    pub succeeded: bool,
}

impl TurnView {
    /// What `Submit` answered.
    ///
    /// # Errors
    /// When its state is unknown.
    pub(crate) fn accepted(accepted: SubmitResponse) -> anyhow::Result<Self> {
        let state = state_name(accepted.state)?;
        Ok(Self {
            agent: accepted.agent,
            session_key: accepted.session_key,
            session_id: accepted.session_id,
            turn: accepted.turn,
            duplicate: accepted.duplicate,
            state,
            reply: None,
            succeeded: false,
        })
    }

    /// The same turn at its end.
    ///
    /// # Errors
    /// When the state is unknown, or none of an ended turn.
    pub(crate) fn ended(mut self, ended: TurnEnded) -> anyhow::Result<Self> {
        self.state = state_name(ended.state)?;
        if matches!(ended.state(), TurnState::Queued | TurnState::Running) {
            bail!(
                "the control plane called a {} turn ended; is it of another version than this hermesctl?",
                self.state
            );
        }
        self.succeeded = ended.state() == TurnState::Succeeded;
        self.reply = Some(ended.reply);
        Ok(self)
    }

    /// Why the turn is no success.
    pub(crate) fn complaint(&self) -> String {
        let session = plain(&self.session_id);
        match self.state {
            "cancelled" => "error: the turn was cancelled".to_owned(),
            "dead" => format!(
                "error: the turn was given up; see `hermesctl session show {session}` and the control plane's log"
            ),
            _ => format!("error: the turn failed; see `hermesctl session show {session}` and the control plane's log"),
        }
    }
}

impl View for TurnView {
    fn table(&self, _paint: Paint) -> String {
        match &self.reply {
            Some(reply) => plain_lines(reply).into_owned(),
            None => {
                let known = if self.duplicate { " (known already)" } else { "" };
                let (agent, session) = (plain(&self.agent), plain(&self.session_id));
                format!("{agent} has it as turn {} of session {session}: {}{known}", plain(&self.turn), self.state)
            }
        }
    }
}

fn state_name(state: i32) -> anyhow::Result<&'static str> {
    Ok(match TurnState::try_from(state) {
        Ok(TurnState::Queued) => "queued",
        Ok(TurnState::Running) => "running",
        Ok(TurnState::Succeeded) => "succeeded",
        Ok(TurnState::Failed) => "failed",
        Ok(TurnState::Cancelled) => "cancelled",
        Ok(TurnState::Dead) => "dead",
        Ok(TurnState::Unspecified) | Err(_) => return Err(unknown("turn state", state)),
    })
}

/// Uploads a file for a message; its id.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn upload(connection: &Connection, name: String, content: &[u8]) -> anyhow::Result<String> {
    use v1::upload_attachment_request::Part;
    let parts = std::iter::once(Part::Header(v1::UploadHeader { name }))
        .chain(content.chunks(hermes_proto::CHUNK_BYTES).map(|part| Part::Body(part.to_vec())))
        .map(|part| v1::UploadAttachmentRequest { part: Some(part) });
    let parts = futures_util::stream::iter(parts.collect::<Vec<_>>());
    Ok(connection.answer(client(connection).upload_attachment(parts)).await?.id)
}

fn client(connection: &Connection) -> MessageServiceClient<Transport> {
    MessageServiceClient::new(connection.transport())
}

/// A key for a message that brings none, so that a repeated call is no second message.
pub(crate) fn dedupe_key() -> String {
    format!("hermesctl:{}", uuid::Uuid::now_v7())
}

/// Submits without waiting for the answer.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn submit(connection: &Connection, request: &SubmitRequest) -> anyhow::Result<TurnView> {
    let mut patience = Patience::new();
    loop {
        let answer = connection.within(async { client(connection).submit(request.clone()).await }).await;
        match answer {
            Ok(answer) => return TurnView::accepted(answer.into_inner()),
            Err(status) => patience.after(status).await?,
        }
    }
}

/// What is heard of a turn before its end.
pub(crate) enum Heard<'t> {
    /// More of the answer.
    Text(&'t str),
    /// It waits until somebody allows a call: the question.
    Question(&'t str),
}

/// Submits and waits for the end of the turn; `on_event` gets the answer's text as it comes, which may be less than all of
/// it. Dropping this stops the waiting, not the turn.
///
/// # Errors
/// What the control plane answered, or what `on_event` failed with.
pub(crate) async fn submit_and_wait(
    connection: &Connection,
    request: &SubmitRequest,
    mut on_event: impl FnMut(Heard<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<TurnView> {
    let mut patience = Patience::new();
    loop {
        let begun = connection.within(begin(connection, request)).await;
        let (accepted, mut events) = match begun {
            Ok(begun) => begun,
            Err(status) => {
                patience.after(status).await?;
                continue;
            }
        };
        let turn = TurnView::accepted(accepted)?;
        loop {
            let event = match events.message().await {
                Ok(event) => event.map(|event| event.event),
                Err(status) => match still_waiting(status) {
                    status if may_be_repeated(&status) => None,
                    status => return Err(status.into()),
                },
            };
            match event {
                Some(Some(turn_event::Event::TextDelta(text))) => on_event(Heard::Text(&text))?,
                Some(Some(turn_event::Event::Approval(asked))) => on_event(Heard::Question(&asked.question))?,
                Some(Some(turn_event::Event::Ended(ended))) => return turn.ended(ended),
                Some(Some(turn_event::Event::Accepted(_))) => bail!("the control plane accepted one message twice"),
                // An event this build does not know carries nothing it could show.
                Some(None) => {}
                None => return wait(connection, turn).await,
            }
        }
    }
}

async fn begin(
    connection: &Connection,
    request: &SubmitRequest,
) -> Result<(SubmitResponse, tonic::Streaming<v1::TurnEvent>), Status> {
    let mut events = client(connection).submit_and_stream(request.clone()).await?.into_inner();
    match events.message().await?.and_then(|event| event.event) {
        Some(turn_event::Event::Accepted(accepted)) => Ok((accepted, events)),
        Some(_) => Err(Status::internal("its first event does not say what it accepted")),
        None => Err(Status::unavailable("the connection ended before the message was accepted")),
    }
}

/// The stream broke after the message was accepted: ask for the turn until it has ended.
async fn wait(connection: &Connection, turn: TurnView) -> anyhow::Result<TurnView> {
    let mut patience = Patience::new();
    loop {
        let request = GetTurnRequest { turn: turn.turn.clone(), wait: true };
        let status = match client(connection).get_turn(request).await.map(tonic::Response::into_inner) {
            Ok(GetTurnResponse { ended: Some(ended), .. }) => return turn.ended(ended),
            Ok(GetTurnResponse { ended: None, .. }) => Status::unavailable("the turn has not ended"),
            Err(status) => still_waiting(status),
        };
        patience.after(status).await?;
    }
}

/// A wait that the other side cut short for its length is no refusal.
fn still_waiting(status: Status) -> Status {
    match status.code() {
        Code::DeadlineExceeded => Status::unavailable(status.message()),
        _ => status,
    }
}

/// Whether the call may be made again: the control plane was not there or had no room, and nothing else is wrong.
fn may_be_repeated(status: &Status) -> bool {
    let broken = std::error::Error::source(status).is_some();
    status.code() == Code::Unavailable
        || (broken && matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled))
}

/// How long calls are still repeated. It runs out only while calls fail one after the other: one that was served for a
/// while begins it anew.
struct Patience {
    until: Option<Instant>,
    pause: Duration,
    called: Instant,
}

impl Patience {
    fn new() -> Self {
        Self { until: None, pause: FIRST_PAUSE, called: Instant::now() }
    }

    /// Pauses before the next call; the status itself when there shall be none.
    async fn after(&mut self, status: Status) -> anyhow::Result<()> {
        if !may_be_repeated(&status) {
            return Err(status.into());
        }
        let now = Instant::now();
        if now - self.called >= PATIENCE {
            *self = Self::new();
        }
        let until = *self.until.get_or_insert(now + PATIENCE);
        if now + self.pause > until {
            return Err(status.into());
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.called = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    fn accepted() -> SubmitResponse {
        SubmitResponse {
            agent: "coder".into(),
            session_key: "agent:coder:telegram:dm:12345".into(),
            session_id: "17".into(),
            turn: "17.3".into(),
            duplicate: false,
            state: TurnState::Queued.into(),
            notice: String::new(),
        }
    }

    fn ended(state: TurnState) -> anyhow::Result<TurnView> {
        let ended = TurnEnded { state: state.into(), reply: "hello\nyou".into(), ..TurnEnded::default() };
        TurnView::accepted(accepted()).unwrap().ended(ended)
    }

    #[test]
    fn a_turn_is_shown_as_scripts_expect_it() {
        let queued = TurnView::accepted(accepted()).unwrap();
        insta::assert_snapshot!("send_json", render(&queued, Format::Json, Paint::Off).unwrap());
        insta::assert_snapshot!("send_table", render(&queued, Format::Table, Paint::Off).unwrap());
        let answered = ended(TurnState::Succeeded).unwrap();
        insta::assert_snapshot!("send_wait_json", render(&answered, Format::Json, Paint::Off).unwrap());
        insta::assert_snapshot!("send_wait_table", render(&answered, Format::Table, Paint::Off).unwrap());
    }

    #[test]
    fn every_state_has_its_name_and_only_success_succeeds() {
        let names = [
            (TurnState::Succeeded, "succeeded"),
            (TurnState::Failed, "failed"),
            (TurnState::Cancelled, "cancelled"),
            (TurnState::Dead, "dead"),
        ];
        for (state, name) in names {
            let turn = ended(state).unwrap();
            assert_eq!((turn.state, turn.succeeded), (name, name == "succeeded"));
        }
        assert!(ended(TurnState::Unspecified).is_err());
        assert!(ended(TurnState::Running).is_err());
        assert!(TurnView::accepted(SubmitResponse { state: 99, ..accepted() }).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_after_a_row_of_failures_and_not_after_a_long_wait() {
        let gone = || Status::unavailable("gone");
        let begun = Instant::now();
        let mut patience = Patience::new();
        while patience.after(gone()).await.is_ok() {}
        assert!(begun.elapsed() > PATIENCE / 2 && begun.elapsed() <= PATIENCE, "{:?}", begun.elapsed());
        tokio::time::advance(PATIENCE).await;
        patience.after(gone()).await.unwrap();
        patience.after(Status::internal("a bug")).await.unwrap_err();
    }

    #[test]
    fn only_a_call_that_may_not_have_arrived_is_repeated() {
        assert!(may_be_repeated(&Status::unavailable("restarting")));
        assert!(!may_be_repeated(&Status::internal("a bug")));
        assert!(!may_be_repeated(&Status::unauthenticated("who are you")));
        assert!(!may_be_repeated(&Status::deadline_exceeded("30 s")));
        assert!(may_be_repeated(&still_waiting(Status::deadline_exceeded("30 s"))));
        assert!(may_be_repeated(&Status::from_error(Box::new(std::io::Error::other("reset")))));
    }
}
