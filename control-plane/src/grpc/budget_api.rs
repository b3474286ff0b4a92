//! BudgetService: what was spent, raises and pauses, for operators.

use std::sync::Arc;

use hermes_core::budget::{Limit, Usd};
use hermes_proto::v1;
use hermes_proto::v1::budget_service_server::{BudgetService, BudgetServiceServer};
use jiff::Timestamp;
use tonic::{Request, Response, Status};

use super::convert::{self, agent_id, store_status};
use super::layers::principal;
use super::status::{Reason, invalid, refuse};
use crate::budget::{Budgets, Standing};
use crate::identity::Principal;
use crate::registry::{AgentEntry, Registry, Snapshot};
use crate::store::{BudgetAlertRow, RaiseRow};

/// The service.
#[derive(Clone, Debug)]
pub struct BudgetApi {
    registry: Registry,
    budgets: Budgets,
}

impl BudgetApi {
    /// As a tonic service.
    pub fn server(registry: Registry, budgets: Budgets) -> BudgetServiceServer<Self> {
        BudgetServiceServer::new(Self { registry, budgets })
            .max_decoding_message_size(hermes_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(4 * hermes_proto::MAX_MESSAGE_BYTES)
    }

    async fn set_paused(&self, agent: &str, paused: bool, by: &str) -> Result<bool, Status> {
        let entry = found(&self.registry.current(), agent)?;
        self.budgets.set_paused(&entry, paused, by).await.map_err(store_status)
    }
}

#[tonic::async_trait]
impl BudgetService for BudgetApi {
    async fn list_budgets(
        &self,
        request: Request<v1::ListBudgetsRequest>,
    ) -> Result<Response<v1::ListBudgetsResponse>, Status> {
        let request = request.into_inner();
        let (size, token) = convert::page(request.page)?;
        let snapshot = self.registry.current();
        let (standings, next_page_token) = match (&request.agent, request.users) {
            (Some(_), true) => return Err(invalid("users", "it excludes agent")),
            (None, true) => {
                let users = self.budgets.of_users(&snapshot, &token, i64::from(size)).await.map_err(store_status)?;
                let next = users.last().filter(|_| users.len() == size as usize).map(|last| last.user.clone());
                (users, next.unwrap_or_default())
            }
            (Some(agent), false) => {
                let entry = found(&snapshot, agent)?;
                (self.budgets.of_agents(&snapshot, &[&*entry]).await.map_err(store_status)?, String::new())
            }
            (None, false) => {
                let all: Vec<&AgentEntry> = snapshot.agents().into_iter().map(|entry| &**entry).collect();
                let (_, page, next) = convert::slice(&all, size, &token)?;
                (self.budgets.of_agents(&snapshot, page).await.map_err(store_status)?, next)
            }
        };
        let budgets = standings.iter().map(standing_to).collect();
        Ok(Response::new(v1::ListBudgetsResponse { budgets, next_page_token }))
    }

    async fn raise_budget(
        &self,
        request: Request<v1::RaiseBudgetRequest>,
    ) -> Result<Response<v1::RaiseBudgetResponse>, Status> {
        let by = caller(&request)?;
        let request = request.into_inner();
        let entry = found(&self.registry.current(), &request.agent)?;
        let mut limits = Vec::new();
        for (limit, dollars) in [(Limit::UsdPerDay, request.usd_per_day), (Limit::UsdPerMonth, request.usd_per_month)] {
            if let Some(dollars) = dollars {
                let usd = convert::usd_from(dollars);
                if usd > Usd::from(Usd::MOST) {
                    return Err(invalid(limit.as_str(), "it is US dollars from 0 to 1000000"));
                }
                limits.push((limit, usd.nanos()));
            }
        }
        limits.extend(request.tokens_per_day.map(|tokens| (Limit::TokensPerDay, tokens)));
        if limits.is_empty() {
            return Err(invalid("usd_per_day", "name at least one limit"));
        }
        let until = match request.until_ms {
            Some(ms) => {
                Some(Timestamp::from_millisecond(ms).map_err(|_| invalid("until_ms", "there is no such time"))?)
            }
            None => None,
        };
        let raised = self.budgets.raise(&entry, &limits, until, &by).await.map_err(store_status)?;
        raised.map_err(|why| refuse(Reason::Conflict, why))?;
        let snapshot = self.registry.current();
        let standing = self.budgets.of_agents(&snapshot, &[&*entry]).await.map_err(store_status)?;
        Ok(Response::new(v1::RaiseBudgetResponse { budget: standing.first().map(standing_to) }))
    }

    async fn pause_agent(
        &self,
        request: Request<v1::PauseAgentRequest>,
    ) -> Result<Response<v1::PauseAgentResponse>, Status> {
        let by = caller(&request)?;
        let was_paused = self.set_paused(&request.into_inner().agent, true, &by).await?;
        Ok(Response::new(v1::PauseAgentResponse { was_paused }))
    }

    async fn resume_agent(
        &self,
        request: Request<v1::ResumeAgentRequest>,
    ) -> Result<Response<v1::ResumeAgentResponse>, Status> {
        let by = caller(&request)?;
        let was_paused = self.set_paused(&request.into_inner().agent, false, &by).await?;
        Ok(Response::new(v1::ResumeAgentResponse { was_paused }))
    }
}

fn found(snapshot: &Snapshot, agent: &str) -> Result<Arc<AgentEntry>, Status> {
    let id = agent_id("agent", agent)?;
    let entry = snapshot.agent(&id).cloned();
    entry.ok_or_else(|| refuse(Reason::NotFound, format!("agent {id} is not registered")))
}

/// Who asks, for the record: the id of the token.
fn caller<T>(request: &Request<T>) -> Result<String, Status> {
    match principal(request) {
        Principal::Operator { token_id } => Ok(token_id.to_string()),
        _ => Err(refuse(Reason::NotAllowed, "only an operator can do this")),
    }
}

fn standing_to(standing: &Standing) -> v1::BudgetStanding {
    let pause = standing.pause.as_ref();
    let spent = &standing.spent;
    v1::BudgetStanding {
        agent: standing.agent.as_ref().map(ToString::to_string).unwrap_or_default(),
        user: standing.user.clone(),
        limits: Some(convert::budget_to(&standing.budget)),
        spent_today_usd: spent.spent.day.usd.dollars(),
        spent_today_tokens: spent.spent.day.tokens,
        spent_month_usd: spent.spent.month.dollars(),
        reserved_usd: spent.reserved.usd.dollars(),
        reserved_tokens: spent.reserved.tokens,
        day_ends_ms: standing.periods.day_ends.as_millisecond(),
        month_ends_ms: standing.periods.month_ends.as_millisecond(),
        paused_at_ms: pause.map(|pause| pause.at.as_millisecond()),
        paused_by: pause.map(|pause| pause.by.clone()).unwrap_or_default(),
        raises: standing.raises.iter().map(raise_to).collect(),
        alerts: spent.alerts.iter().map(alert_to).collect(),
    }
}

fn raise_to(raise: &RaiseRow) -> v1::BudgetRaise {
    let value = match raise.limit {
        Limit::UsdPerDay | Limit::UsdPerMonth => Usd::from_nanos(raise.value).dollars(),
        #[expect(clippy::cast_precision_loss, reason = "shown")]
        Limit::TokensPerDay => raise.value as f64,
    };
    v1::BudgetRaise {
        limit: raise.limit.as_str().to_owned(),
        value,
        until_ms: raise.until.as_millisecond(),
        by: raise.by.clone(),
    }
}

fn alert_to(alert: &BudgetAlertRow) -> v1::BudgetAlert {
    v1::BudgetAlert { limit: alert.limit.clone(), turn: alert.turn.to_string(), at_ms: alert.at.as_millisecond() }
}
