//! SessionService: looking at sessions and their turns, and stopping one.

use hermes_core::turn::{TurnInput, TurnState};
use hermes_proto::v1;
use hermes_proto::v1::session_service_server::{SessionService, SessionServiceServer};
use tonic::{Request, Response, Status};

use super::convert::{self, agent_id, store_status, unsigned};
use super::status::{Reason, invalid, refuse};
use crate::dispatch::Dispatcher;
use crate::registry::Registry;
use crate::store::{JOURNAL_BEGIN, SessionId, SessionRow, StepRecord, Stopped, TurnId, TurnRow};

/// The service.
#[derive(Clone, Debug)]
pub struct SessionApi {
    registry: Registry,
    dispatcher: Dispatcher,
}

impl SessionApi {
    /// As a tonic service.
    pub fn server(registry: Registry, dispatcher: Dispatcher) -> SessionServiceServer<Self> {
        SessionServiceServer::new(Self { registry, dispatcher })
            .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(4 * hermes_proto::MAX_MESSAGE_BYTES)
    }
}

/// Bytes of turns in one answer; longer pages end early.
const PAGE_BYTES: usize = 2 << 20;
/// Steps in one answer when their content is asked for: all of them are read before the page is cut.
const BODIES_PAGE: u32 = 16;

#[tonic::async_trait]
impl SessionService for SessionApi {
    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let request = request.into_inner();
        let (size, token) = convert::page(request.page)?;
        let before = convert::number_token(&token, i64::MAX)?;
        let agent = request.agent.as_deref().map(|id| agent_id("agent", id)).transpose()?;
        let agent = agent.as_ref().map(hermes_core::AgentId::as_str);
        let rows = self
            .registry
            .store()
            .session_list(agent, request.include_ended, before, i64::from(size))
            .await
            .map_err(store_status)?;
        let next_page_token = match rows.last() {
            Some(last) if rows.len() == size as usize => last.id.0.to_string(),
            _ => String::new(),
        };
        Ok(Response::new(v1::ListSessionsResponse { sessions: rows.iter().map(session_to).collect(), next_page_token }))
    }

    async fn get_session(
        &self,
        request: Request<v1::GetSessionRequest>,
    ) -> Result<Response<v1::GetSessionResponse>, Status> {
        let request = request.into_inner();
        let id: SessionId = request
            .session_id
            .parse()
            .map_err(|error: crate::store::Error| invalid("session_id", error.to_string()))?;
        let (size, token) = convert::page(request.page)?;
        let after = convert::number_token(&token, 0)?;
        let session = self.registry.store().session_get(id).await.map_err(store_status)?;
        let rows = self.registry.store().session_turns(id, after, i64::from(size)).await.map_err(store_status)?;
        let mut bytes = 0;
        let mut turns = Vec::new();
        let mut last = None;
        for row in &rows {
            bytes += row.payload.len() + row.reply.len();
            if bytes > PAGE_BYTES && last.is_some() {
                break;
            }
            last = Some(row.id.seq);
            turns.push(turn_to(row));
        }
        let cut = turns.len() < rows.len() || rows.len() == size as usize;
        let next_page_token = last.filter(|_| cut).map(|seq| seq.to_string()).unwrap_or_default();
        Ok(Response::new(v1::GetSessionResponse { session: Some(session_to(&session)), turns, next_page_token }))
    }

    async fn stop_turn(&self, request: Request<v1::StopTurnRequest>) -> Result<Response<v1::StopTurnResponse>, Status> {
        let request = request.into_inner();
        let wrong = |field: &str, error: crate::store::Error| invalid(field, error.to_string());
        let (session, seq) = match (request.turn.as_str(), request.session_id.as_str()) {
            ("", "") => return Err(invalid("turn", "name a turn or a session")),
            (turn, "") => {
                let turn: TurnId = turn.parse().map_err(|error| wrong("turn", error))?;
                (turn.session, Some(turn.seq))
            }
            ("", session) => (session.parse().map_err(|error| wrong("session_id", error))?, None),
            _ => return Err(invalid("session_id", "name a turn or a session, not both")),
        };
        self.registry.store().session_get(session).await.map_err(store_status)?;
        let stopped = self.dispatcher.stop(session, seq).await.map_err(store_status)?;
        let outcome = match stopped {
            Stopped::Nothing if seq.is_some() => return Err(refuse(Reason::NotFound, "there is no such turn")),
            Stopped::Nothing => v1::StopOutcome::Nothing,
            Stopped::Asked(_) => v1::StopOutcome::Asked,
            Stopped::Cancelled(_) => v1::StopOutcome::Cancelled,
            Stopped::Ended(_) => v1::StopOutcome::Ended,
            Stopped::Behind(turn) => {
                return Err(refuse(Reason::Conflict, format!("{turn} waits behind another turn of its session")));
            }
            Stopped::Absorbed(turn) => {
                let message = format!("{turn} was taken in by the turn that runs; stop that one, or the session");
                return Err(refuse(Reason::Conflict, message));
            }
        };
        let turn = stopped.turn().map(|turn| turn.to_string()).unwrap_or_default();
        Ok(Response::new(v1::StopTurnResponse { outcome: outcome.into(), turn }))
    }

    async fn get_turn_steps(
        &self,
        request: Request<v1::GetTurnStepsRequest>,
    ) -> Result<Response<v1::GetTurnStepsResponse>, Status> {
        let request = request.into_inner();
        let id: TurnId =
            request.turn.parse().map_err(|error: crate::store::Error| invalid("turn", error.to_string()))?;
        let (size, token) = convert::page(request.page)?;
        // The last row seen: its step, and whether that was the result.
        let after = match convert::number_token(&token, -1)? {
            -1 => JOURNAL_BEGIN,
            seen => (i32::try_from(seen >> 1).unwrap_or(i32::MAX), i16::from(seen & 1 == 1)),
        };
        let store = self.registry.store();
        let turn = store.turn_get(id).await.map_err(store_status)?;
        let size = if request.bodies { size.min(BODIES_PAGE) } else { size };
        let rows = store.journal_rows(id, after, i64::from(size), request.bodies).await.map_err(store_status)?;
        let mut bytes = 0;
        let fits = rows.iter().take_while(|row| {
            bytes += row.body.len();
            bytes <= PAGE_BYTES
        });
        let count = fits.count().max(1).min(rows.len());
        let more = count < rows.len() || rows.len() == size as usize;
        let last = rows.get(count.saturating_sub(1)).filter(|_| more).map(StepRecord::cursor);
        let token = |(step, phase): (i32, i16)| (i64::from(step) * 2 + i64::from(phase)).to_string();
        let next_page_token = last.map(token).unwrap_or_default();
        let steps = rows.into_iter().take(count).map(step_to).collect();
        Ok(Response::new(v1::GetTurnStepsResponse { turn: Some(turn_to(&turn)), steps, next_page_token }))
    }
}

fn session_to(row: &SessionRow) -> v1::Session {
    let state = match row.state {
        0 => v1::SessionState::Idle,
        1 => v1::SessionState::Queued,
        2 => v1::SessionState::Running,
        _ => v1::SessionState::Blocked,
    };
    v1::Session {
        session_id: row.id.to_string(),
        agent: row.agent_id.clone(),
        session_key: row.session_key.clone(),
        state: state.into(),
        turns: unsigned(row.accepted),
        queued: unsigned(row.open),
        created_at_ms: row.created_at.as_millisecond(),
        updated_at_ms: row.updated_at.as_millisecond(),
        ended_at_ms: row.ended_at.map(|at| at.as_millisecond()),
        end_reason: row.end_reason.clone().unwrap_or_default(),
    }
}

fn step_to(row: StepRecord) -> v1::TurnStep {
    v1::TurnStep {
        step: u32::try_from(row.step).unwrap_or(u32::MAX),
        phase: row.phase.as_str().to_owned(),
        kind: row.kind.as_str().to_owned(),
        effect: row.effect.map_or("", |effect| effect.as_str()).to_owned(),
        idempotency_key: row.idempotency_key.unwrap_or_default(),
        unknown: row.unknown,
        epoch: unsigned(row.epoch),
        at_ms: row.at.as_millisecond(),
        bytes: unsigned(row.bytes),
        body: row.body,
    }
}

fn turn_to(row: &TurnRow) -> v1::TranscriptTurn {
    let input: TurnInput = serde_json::from_slice(&row.payload).unwrap_or_default();
    let end = row.end();
    let state = row.state();
    let usage = end.as_ref().map(|end| end.usage.clone()).unwrap_or_default();
    v1::TranscriptTurn {
        turn: row.id.to_string(),
        state: TurnState::as_str(state).to_owned(),
        input: input.text,
        reply: end.map(|end| end.reply).unwrap_or_default(),
        accepted_at_ms: row.accepted_at.as_millisecond(),
        ended_at_ms: row.ended_at.map(|at| at.as_millisecond()),
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cached_tokens: usage.cached_tokens,
        cost_usd: usage.cost_usd,
        model: usage.model,
        absorbed_by: row.absorbed_by.map(|seq| TurnId { seq, ..row.id }.to_string()).unwrap_or_default(),
    }
}
