//! `session list|show|stop` and `turn stop`: durable dialogues and their turns.

use hermes_proto::v1::session_service_client::SessionServiceClient;
use hermes_proto::v1::{self, GetSessionRequest, ListSessionsRequest, SessionState, StopOutcome};
use serde::Serialize;

use super::{Invocation, LINES, TEXTS, all_pages, required, unknown};
use crate::args::{LimitArgs, SessionCommand, SessionListArgs};
use crate::connect::{ANSWER_BYTES, Connection, Transport};
use crate::error::ExitStatus;
use crate::output::{Grid, Paint, View, or_dash, pairs, plain, plain_lines, time};

/// Runs one of them.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn run(command: SessionCommand, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    match command {
        SessionCommand::List(args) => list(args, inv).await,
        SessionCommand::Show { id, limit } => show(id, limit, inv).await,
        SessionCommand::Stop { id } => stop(String::new(), id, inv).await,
        SessionCommand::Key(args) => super::session_key::run(*args, inv),
    }
}

fn client(connection: &Connection) -> SessionServiceClient<Transport> {
    SessionServiceClient::new(connection.transport()).max_decoding_message_size(ANSWER_BYTES)
}

async fn list(args: SessionListArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let sessions = all_pages(LINES, args.limit.limit, |page| {
        let (connection, mut client) = (&connection, client(&connection));
        let request = ListSessionsRequest { page: Some(page), agent: args.agent.clone(), include_ended: args.ended };
        async move {
            let answer = connection.answer(client.list_sessions(request)).await?;
            Ok((answer.sessions, answer.next_page_token))
        }
    })
    .await?;
    let sessions = sessions.into_iter().map(SessionView::from_proto).collect::<anyhow::Result<_>>()?;
    inv.printer.show(&SessionList(sessions))?;
    Ok(ExitStatus::Done)
}

/// Stops a turn, or what runs in a session.
///
/// # Errors
/// What the control plane answered.
pub(crate) async fn stop(turn: String, session_id: String, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let request = v1::StopTurnRequest { turn, session_id };
    let answer = connection.answer(client(&connection).stop_turn(request)).await?;
    let outcome = match answer.outcome() {
        StopOutcome::Nothing => "nothing",
        StopOutcome::Asked => "asked",
        StopOutcome::Cancelled => "cancelled",
        StopOutcome::Ended => "ended",
        StopOutcome::Unspecified => return Err(unknown("outcome", answer.outcome)),
    };
    inv.printer.show(&StopView { outcome, turn: answer.turn })?;
    Ok(ExitStatus::Done)
}

async fn show(id: String, limit: LimitArgs, inv: &mut Invocation) -> anyhow::Result<ExitStatus> {
    let connection = inv.connect().await?;
    let session = std::cell::RefCell::new(None);
    let turns = all_pages(TEXTS, limit.limit, |page| {
        let (connection, mut client, session) = (&connection, client(&connection), &session);
        let request = GetSessionRequest { session_id: id.clone(), page: Some(page) };
        async move {
            let answer = connection.answer(client.get_session(request)).await?;
            *session.borrow_mut() = answer.session;
            Ok((answer.turns, answer.next_page_token))
        }
    })
    .await?;
    let session = SessionView::from_proto(required(session.into_inner(), "the session")?)?;
    inv.printer.show(&DialogueView { session, turns: turns.into_iter().map(TurnLine::from_proto).collect() })?;
    Ok(ExitStatus::Done)
}

#[derive(Serialize)]
struct StopView {
    outcome: &'static str,
    turn: String,
}

impl View for StopView {
    fn table(&self, _paint: Paint) -> String {
        match self.outcome {
            "asked" => format!("{} is being stopped\n", plain(&self.turn)),
            "cancelled" => format!("{} is stopped\n", plain(&self.turn)),
            "ended" => format!("{} had ended already\n", plain(&self.turn)),
            _ => "nothing is running\n".to_owned(),
        }
    }
}

#[derive(Serialize)]
struct SessionView {
    session_id: String,
    agent: String,
    session_key: String,
    state: &'static str,
    turns: u64,
    queued: u64,
    created_at_ms: i64,
    updated_at_ms: i64,
    ended_at_ms: Option<i64>,
    end_reason: String,
}

impl SessionView {
    fn from_proto(session: v1::Session) -> anyhow::Result<Self> {
        let state = match session.state() {
            SessionState::Idle => "idle",
            SessionState::Queued => "queued",
            SessionState::Running => "running",
            SessionState::Blocked => "blocked",
            SessionState::Unspecified => return Err(unknown("session state", session.state)),
        };
        Ok(Self {
            session_id: session.session_id,
            agent: session.agent,
            session_key: session.session_key,
            state,
            turns: session.turns,
            queued: session.queued,
            created_at_ms: session.created_at_ms,
            updated_at_ms: session.updated_at_ms,
            ended_at_ms: session.ended_at_ms,
            end_reason: session.end_reason,
        })
    }

    fn standing(&self) -> String {
        match (self.ended_at_ms, self.end_reason.as_str()) {
            (None, "") => self.state.to_owned(),
            (_, "") => "ended".to_owned(),
            (_, reason) => format!("ended ({reason})"),
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct SessionList(Vec<SessionView>);

impl View for SessionList {
    fn table(&self, paint: Paint) -> String {
        let headings = ["SESSION", "AGENT", "STATE", "TURNS", "QUEUED", "LAST CHANGE", "KEY"];
        let mut grid = Grid::new(paint, &headings).right(&[3, 4]);
        for session in &self.0 {
            grid.row([
                session.session_id.clone(),
                session.agent.clone(),
                session.standing(),
                session.turns.to_string(),
                session.queued.to_string(),
                time(Some(session.updated_at_ms)),
                session.session_key.clone(),
            ]);
        }
        grid.finish("no session")
    }
}

#[derive(Serialize)]
pub(super) struct TurnLine {
    turn: String,
    state: String,
    input: String,
    reply: String,
    accepted_at_ms: i64,
    ended_at_ms: Option<i64>,
    input_tokens: u64,
    output_tokens: u64,
    cached_tokens: u64,
    cost_usd: Option<f64>,
    model: String,
}

impl TurnLine {
    pub(super) fn from_proto(turn: v1::TranscriptTurn) -> Self {
        Self {
            turn: turn.turn,
            state: turn.state,
            input: turn.input,
            reply: turn.reply,
            accepted_at_ms: turn.accepted_at_ms,
            ended_at_ms: turn.ended_at_ms,
            input_tokens: turn.input_tokens,
            output_tokens: turn.output_tokens,
            cached_tokens: turn.cached_tokens,
            cost_usd: turn.cost_usd,
            model: turn.model,
        }
    }

    pub(super) fn text(&self, paint: Paint) -> String {
        let mut head = format!("{}  {}  {}", self.turn, self.state, time(Some(self.accepted_at_ms)));
        if !self.model.is_empty() {
            head.push_str(&format!("  {}, {} tokens in, {} out", self.model, self.input_tokens, self.output_tokens));
        }
        if let Some(cost) = self.cost_usd {
            head.push_str(&format!(", {cost:.4} USD"));
        }
        let said = |mark: &str, text: &str| {
            let lines = plain_lines(text)
                .lines()
                .map(|line| format!("  {mark} {line}").trim_end().to_owned())
                .collect::<Vec<_>>();
            if lines.is_empty() { String::new() } else { format!("\n{}", lines.join("\n")) }
        };
        format!("{}{}{}", paint.dim(&plain(&head)), said(">", &self.input), said("<", &self.reply))
    }
}

#[derive(Serialize)]
struct DialogueView {
    #[serde(flatten)]
    session: SessionView,
    #[serde(rename = "transcript")]
    turns: Vec<TurnLine>,
}

impl View for DialogueView {
    fn table(&self, paint: Paint) -> String {
        let session = &self.session;
        let mut text = pairs(
            paint,
            &[
                ("Session", session.session_id.clone()),
                ("Agent", session.agent.clone()),
                ("Key", session.session_key.clone()),
                ("State", session.standing()),
                ("Turns", format!("{} accepted, {} not ended", session.turns, session.queued)),
                ("Begun", time(Some(session.created_at_ms))),
                ("Last change", time(Some(session.updated_at_ms))),
                ("Ended", or_dash(session.ended_at_ms.map(|at| time(Some(at))).as_deref())),
            ],
        );
        for turn in &self.turns {
            text.push_str("\n\n");
            text.push_str(&turn.text(paint));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;
    use crate::output::render;

    fn session() -> v1::Session {
        v1::Session {
            session_id: "17".into(),
            agent: "coder".into(),
            session_key: "agent:coder:telegram:group:-1001234:42".into(),
            state: SessionState::Running.into(),
            turns: 12,
            queued: 2,
            created_at_ms: 1_700_000_000_000,
            updated_at_ms: 1_700_000_060_000,
            ended_at_ms: None,
            end_reason: String::new(),
        }
    }

    #[test]
    fn sessions_are_listed_live_and_ended() {
        let ended = v1::Session {
            ended_at_ms: Some(1_700_000_090_000),
            end_reason: "daily".into(),
            state: SessionState::Idle.into(),
            ..session()
        };
        let list =
            SessionList(vec![SessionView::from_proto(session()).unwrap(), SessionView::from_proto(ended).unwrap()]);
        insta::assert_snapshot!("session_list_table", render(&list, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("session_list_json", render(&list, Format::Json, Paint::Off).unwrap());
    }

    #[test]
    fn a_session_is_shown_with_its_transcript() {
        let turn = v1::TranscriptTurn {
            turn: "17.12".into(),
            state: "succeeded".into(),
            input: "fix it\nplease \u{1b}[31m".into(),
            reply: "done".into(),
            accepted_at_ms: 1_700_000_000_000,
            ended_at_ms: Some(1_700_000_001_000),
            input_tokens: 120,
            output_tokens: 7,
            cached_tokens: 100,
            cost_usd: Some(0.0123),
            model: "anthropic/claude-opus-4-6".into(),
            absorbed_by: String::new(),
        };
        let view = DialogueView {
            session: SessionView::from_proto(session()).unwrap(),
            turns: vec![TurnLine::from_proto(turn)],
        };
        insta::assert_snapshot!("session_show_table", render(&view, Format::Table, Paint::Off).unwrap());
        insta::assert_snapshot!("session_show_json", render(&view, Format::Json, Paint::Off).unwrap());
    }

    #[test]
    fn an_unknown_state_is_refused() {
        assert!(SessionView::from_proto(v1::Session::default()).is_err());
    }
}
