//! DeliveryService: deliveries and dead turns, for operators.

use hermes_core::busy::BusyMode;
use hermes_core::turn::TurnInput;
use hermes_proto::v1;
use hermes_proto::v1::delivery_service_server::{DeliveryService, DeliveryServiceServer};
use tonic::{Request, Response, Status};

use super::convert::{self, store_status};
use super::layers::principal;
use super::status::{Reason, invalid, refuse};
use crate::dispatch::{Dispatcher, LEASE};
use crate::identity::Principal;
use crate::intake::{Dedupe, dedupe_bytes};
use crate::outbox::Outbox;
use crate::store::{
    DeadTurnRow, DeliveryFilter, DeliveryId, DeliveryRow, DeliveryState, Error, Ingest, Redrive, Store, TurnId,
};

/// Most dead letters one call deals with.
const BATCH: usize = 500;

/// The service.
#[derive(Clone)]
pub struct DeliveryApi {
    store: Store,
    outbox: Outbox,
    dispatcher: Dispatcher,
}

impl DeliveryApi {
    /// As a tonic service.
    pub fn server(store: Store, outbox: Outbox, dispatcher: Dispatcher) -> DeliveryServiceServer<Self> {
        DeliveryServiceServer::new(Self { store, outbox, dispatcher })
            .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(4 * hermes_proto::MAX_MESSAGE_BYTES)
    }

    /// Appends a dead turn's input again. The key makes a repeat of the same redrive the same turn.
    async fn redrive_turn(&self, id: TurnId, by: &str) -> Result<Redrive<TurnId>, Error> {
        let dead = match self.store.dead_turn_get(id).await {
            Ok(dead) => dead,
            Err(Error::NotFound(why)) => return Ok(Redrive::Refused(why)),
            Err(error) => return Err(error),
        };
        if dead.removed {
            return Ok(Redrive::Refused(format!("the agent {} of {id} was removed", dead.agent_id)));
        }
        let redrives = dead.redrives + 1;
        let key = format!("redrive:{id}:{redrives}");
        let (dedupe_key, body_hash) = dedupe_bytes(Dedupe::Key { key, event_time: None, body_hash: None });
        let again = Ingest {
            dedupe_key,
            body_hash,
            agent_no: dead.agent_no,
            session_key: dead.session_key,
            lane: dead.lane,
            payload: dead.payload,
            traceparent: None,
            submitter: dead.submitter,
            reserved: None,
            idle_before: None,
            daily_before: None,
            busy: BusyMode::Queue,
        };
        let answer = self.store.ingest(&[again], i64::MAX, LEASE).await.pop();
        let accepted = answer.ok_or_else(|| Error::Unavailable("no answer".to_owned()))??;
        self.store.dead_turn_redriven(id, redrives, accepted.turn, by).await?;
        self.dispatcher.waits(dead.agent_no);
        tracing::info!(turn = %id, again = %accepted.turn, by, "a dead turn was redriven");
        Ok(Redrive::Done(accepted.turn))
    }

    /// The turns a request names, or the open ones.
    async fn turns_of(&self, named: &[String], all: bool) -> Result<Vec<String>, Status> {
        one_way(named, all, "turns", "all")?;
        if !all {
            return Ok(named.to_vec());
        }
        let open = self.store.dead_turn_list(false, 0, count(BATCH)).await.map_err(store_status)?;
        // The oldest first, so that inputs of one dialogue keep their order.
        Ok(open.iter().rev().map(|dead| dead.turn.to_string()).collect())
    }
}

#[tonic::async_trait]
impl DeliveryService for DeliveryApi {
    async fn list_deliveries(
        &self,
        request: Request<v1::ListDeliveriesRequest>,
    ) -> Result<Response<v1::ListDeliveriesResponse>, Status> {
        let request = request.into_inner();
        let states = request.states().map(state_from).collect::<Result<_, _>>()?;
        let (size, token) = convert::page(request.page)?;
        let before = convert::number_token(&token, i64::MAX)?;
        let filter = DeliveryFilter {
            states,
            platform: request.platform,
            account: request.account,
            chat_id: request.chat_id,
            open_dead: false,
        };
        let rows = self.store.delivery_list(&filter, before, i64::from(size)).await.map_err(store_status)?;
        let next_page_token = match rows.last() {
            Some(last) if rows.len() == size as usize => last.id.pos.to_string(),
            _ => String::new(),
        };
        let deliveries = rows.iter().map(delivery_to).collect();
        Ok(Response::new(v1::ListDeliveriesResponse { deliveries, next_page_token }))
    }

    async fn get_delivery(
        &self,
        request: Request<v1::GetDeliveryRequest>,
    ) -> Result<Response<v1::GetDeliveryResponse>, Status> {
        let id: DeliveryId =
            request.into_inner().id.parse().map_err(|error: Error| invalid("id", error.to_string()))?;
        let row = self.store.delivery_get(id).await.map_err(store_status)?;
        let text = String::from_utf8_lossy(&row.text).into_owned();
        Ok(Response::new(v1::GetDeliveryResponse { delivery: Some(delivery_to(&row)), text }))
    }

    async fn redrive_deliveries(
        &self,
        request: Request<v1::RedriveDeliveriesRequest>,
    ) -> Result<Response<v1::RedriveDeliveriesResponse>, Status> {
        let by = caller(&request)?;
        let request = request.into_inner();
        one_way(&request.ids, request.all_dead, "ids", "all_dead")?;
        let ids = if request.all_dead {
            let filter = DeliveryFilter {
                platform: request.platform,
                account: request.account,
                open_dead: true,
                ..DeliveryFilter::default()
            };
            let dead = self.store.delivery_list(&filter, i64::MAX, count(BATCH)).await.map_err(store_status)?;
            // The oldest first, so that a chat gets them in their order.
            dead.iter().rev().map(|row| row.id.to_string()).collect()
        } else {
            request.ids
        };
        let mut results = Vec::with_capacity(ids.len());
        for id in ids {
            let redriven = match id.parse() {
                Ok(known) => self.store.delivery_redrive(known, &by).await.map_err(store_status)?,
                Err(error @ Error::NotFound(_)) => Redrive::Refused(error.to_string()),
                Err(error) => return Err(store_status(error)),
            };
            if let Redrive::Done(again) = &redriven {
                tracing::info!(delivery = id, %again, by, "a dead delivery was redriven");
            }
            results.push(redriven_to(id, redriven));
        }
        self.outbox.nudge();
        let more = request.all_dead && results.len() == BATCH;
        Ok(Response::new(v1::RedriveDeliveriesResponse { results, more }))
    }

    async fn list_dead_turns(
        &self,
        request: Request<v1::ListDeadTurnsRequest>,
    ) -> Result<Response<v1::ListDeadTurnsResponse>, Status> {
        let request = request.into_inner();
        let (size, token) = convert::page(request.page)?;
        let offset = convert::number_token(&token, 0)?.max(0);
        let rows =
            self.store.dead_turn_list(request.include_settled, offset, i64::from(size)).await.map_err(store_status)?;
        let next_page_token = match rows.len() == size as usize {
            true => (offset + i64::from(size)).to_string(),
            false => String::new(),
        };
        Ok(Response::new(v1::ListDeadTurnsResponse { turns: rows.iter().map(dead_turn_to).collect(), next_page_token }))
    }

    async fn redrive_turns(
        &self,
        request: Request<v1::RedriveTurnsRequest>,
    ) -> Result<Response<v1::RedriveTurnsResponse>, Status> {
        let by = caller(&request)?;
        let request = request.into_inner();
        let turns = self.turns_of(&request.turns, request.all).await?;
        let mut results = Vec::with_capacity(turns.len());
        for turn in turns {
            let redriven = match turn.parse() {
                Ok(id) => self.redrive_turn(id, &by).await.map_err(store_status)?,
                Err(error) => Redrive::Refused(Error::to_string(&error)),
            };
            results.push(redriven_to(turn, redriven));
        }
        let more = request.all && results.len() == BATCH;
        Ok(Response::new(v1::RedriveTurnsResponse { results, more }))
    }

    async fn drop_turns(
        &self,
        request: Request<v1::DropTurnsRequest>,
    ) -> Result<Response<v1::DropTurnsResponse>, Status> {
        let by = caller(&request)?;
        let request = request.into_inner();
        let turns = self.turns_of(&request.turns, request.all).await?;
        let mut results = Vec::with_capacity(turns.len());
        for turn in turns {
            let refused = match turn.parse::<TurnId>() {
                Err(error) => error.to_string(),
                Ok(id) if self.store.dead_turn_drop(id, &by).await.map_err(store_status)? => {
                    tracing::info!(turn, by, "a dead turn was dropped");
                    String::new()
                }
                Ok(id) => match self.store.dead_turn_get(id).await {
                    Ok(_) => format!("{id} is settled already"),
                    Err(Error::NotFound(why)) => why,
                    Err(error) => return Err(store_status(error)),
                },
            };
            results.push(v1::Redriven { id: turn, redriven_as: String::new(), refused });
        }
        let more = request.all && results.len() == BATCH;
        Ok(Response::new(v1::DropTurnsResponse { results, more }))
    }
}

/// Who asks, for the record: the id of the token.
fn caller<T>(request: &Request<T>) -> Result<String, Status> {
    match principal(request) {
        Principal::Operator { token_id } => Ok(token_id.to_string()),
        _ => Err(refuse(Reason::NotAllowed, "only an operator can do this")),
    }
}

/// Either names or everything.
fn one_way(named: &[String], all: bool, field: &str, flag: &str) -> Result<(), Status> {
    match (named.len(), all) {
        (0, false) => Err(invalid(field, format!("name some, or say {flag}"))),
        (0, true) => Ok(()),
        (_, true) => Err(invalid(flag, format!("it excludes {field}"))),
        (many, false) if many > BATCH => Err(invalid(field, format!("at most {BATCH} in one call"))),
        _ => Ok(()),
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn state_from(state: v1::DeliveryState) -> Result<DeliveryState, Status> {
    match state {
        v1::DeliveryState::Waiting => Ok(DeliveryState::Waiting),
        v1::DeliveryState::Attempting => Ok(DeliveryState::Attempting),
        v1::DeliveryState::Retrying => Ok(DeliveryState::Retrying),
        v1::DeliveryState::Dead => Ok(DeliveryState::Dead),
        v1::DeliveryState::Delivered => Ok(DeliveryState::Delivered),
        v1::DeliveryState::Unspecified => Err(invalid("states", "there is no such state")),
    }
}

fn state_to(state: DeliveryState) -> v1::DeliveryState {
    match state {
        DeliveryState::Waiting => v1::DeliveryState::Waiting,
        DeliveryState::Attempting => v1::DeliveryState::Attempting,
        DeliveryState::Retrying => v1::DeliveryState::Retrying,
        DeliveryState::Dead => v1::DeliveryState::Dead,
        DeliveryState::Delivered => v1::DeliveryState::Delivered,
    }
}

fn delivery_to(row: &DeliveryRow) -> v1::Delivery {
    let redriven = row.redriven.as_ref();
    v1::Delivery {
        id: row.id.to_string(),
        state: state_to(row.state).into(),
        platform: row.platform.clone(),
        account: row.account.clone(),
        chat_id: row.chat_id.clone(),
        thread_id: row.thread_id.clone(),
        turn: row.turn.to_string(),
        attempts: number(row.attempts),
        failures: number(row.failures),
        maybe_duplicate: row.maybe_duplicate,
        parts: number(row.part),
        cause: row.cause.clone(),
        next_at_ms: row.next_at.map(|at| at.as_millisecond()),
        ended_at_ms: row.ended_at.map(|at| at.as_millisecond()),
        message_id: row.message_id.clone(),
        redriven_as: redriven.map(|(id, ..)| id.to_string()).unwrap_or_default(),
        redriven_by: redriven.map(|(_, by, _)| by.clone()).unwrap_or_default(),
        redriven_at_ms: redriven.map(|(.., at)| at.as_millisecond()),
        chat_dead: row.chat_dead.clone().unwrap_or_default(),
    }
}

fn dead_turn_to(row: &DeadTurnRow) -> v1::DeadTurn {
    let input: TurnInput = serde_json::from_slice(&row.payload).unwrap_or_default();
    let settled = row.settled.as_ref();
    v1::DeadTurn {
        turn: row.turn.to_string(),
        agent: row.agent_id.clone(),
        session_key: row.session_key.clone(),
        reason: row.reason.clone(),
        died_at_ms: row.at.as_millisecond(),
        // A line of the list is no place for a whole document.
        input: input.text.chars().take(2000).collect(),
        settled: settled.map(|(how, ..)| how.clone()).unwrap_or_default(),
        settled_by: settled.map(|(_, by, _)| by.clone()).unwrap_or_default(),
        settled_at_ms: settled.map(|(.., at)| at.as_millisecond()),
        redriven_as: row.redriven_as.map(|turn| turn.to_string()).unwrap_or_default(),
        redrives: number(row.redrives),
    }
}

fn redriven_to<T: ToString>(id: String, redriven: Redrive<T>) -> v1::Redriven {
    match redriven {
        Redrive::Done(again) => v1::Redriven { id, redriven_as: again.to_string(), refused: String::new() },
        Redrive::Refused(refused) => v1::Redriven { id, redriven_as: String::new(), refused },
    }
}
