//! Budgets of model use: whether a model call may be made, what it is counted with, and what operators change about it.
//!
//! Asked by the model service before each call and told after it; asked by the budget service for people. It owns nothing but
//! handles: limits and prices are the snapshot's, sums are the store's, decisions are `hermes_core::budget`'s. Always true:
//! an agent without a budget, in a document without one for users, costs no query; a call under a budget is made only after
//! the most that it may take is reserved, for all replicas; a call whose use nobody reported counts with what was reserved;
//! a model without a price is not asked under a limit in dollars, unless the budget says so. It deliberately does not count
//! attempts that the broker repeats within a call, nor models of a list that failed before the one that answered: what a
//! provider wants for those it tells nobody.

use std::time::Duration;

use hermes_core::AgentId;
use hermes_core::budget::{self, Amount, Budget, Limit, Payer, Periods, Price, Raise, Unpriced};
use hermes_core::config::{Model, Resolved};
use hermes_core::turn::{TurnInput, Usage};
use jiff::Timestamp;
use uuid::Uuid;

use crate::models::ModelFailure;
use crate::outbox::Outbox;
use crate::registry::{AgentEntry, Registry, Snapshot};
use crate::store::{
    self, Alerted, BudgetCall, BudgetHit, DatabaseClock, PauseRow, RaiseRow, Reserved, SpentRow, Store, TurnId,
};
use crate::telemetry::Metrics;

/// How long a call is waited for; longer than any turn's call takes. Later it counts as spent for people, too.
const CALL_TIME: Duration = Duration::from_secs(3600);
/// Most characters of a user's id that tell users apart.
const USER_ID: usize = 400;
/// What stands before the name of a user among payers.
const USER: &str = "user:";

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Budgets {
    registry: Registry,
    outbox: Outbox,
    clock: std::sync::Arc<DatabaseClock>,
    metrics: Metrics,
}

impl std::fmt::Debug for Budgets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Budgets")
    }
}

/// A model call that is wished for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// The turn.
    pub turn: TurnId,
    /// The fence of the attempt.
    pub epoch: i64,
    /// The step.
    pub step: i32,
    /// Its input, bytes.
    pub input_bytes: u64,
}

/// A call that may be made.
#[derive(Debug)]
pub struct Admitted {
    /// Who may be asked, in this order; at least one.
    pub models: Vec<Model>,
    /// Largest answer, tokens; nothing: no budget binds.
    pub max_output_tokens: Option<u64>,
    /// What was reserved for it; nothing: no budget binds.
    pub reservation: Option<Reservation>,
}

/// Why a call may not be made.
#[derive(Debug)]
pub enum Refusal {
    /// A budget, a pause or a missing price; for the chat.
    Failure(ModelFailure),
    /// A later attempt of the turn makes it.
    Fenced,
    /// Nobody knows.
    Store(store::Error),
}

/// What is reserved for a call. Dropped without an end it stays spent.
#[derive(Debug)]
pub struct Reservation {
    store: Store,
    call: BudgetCall,
    agent: AgentId,
    prices: Vec<(String, Option<Price>)>,
    open: bool,
}

/// How a call under a budget ended.
#[derive(Clone, Copy, Debug)]
pub enum CallEnd<'a> {
    /// With an answer.
    Answered(&'a Usage),
    /// Without one, and the provider may want money for it.
    MaybeBilled,
    /// Without one, and without cost.
    Free,
}

impl Reservation {
    /// Puts what the call used in the place of what was reserved. Where that is not known, or cannot be stored, the
    /// reservation stays spent.
    pub async fn settle(mut self, end: CallEnd<'_>) {
        self.open = false;
        let used = match end {
            CallEnd::Answered(usage) => {
                let price = self.prices.iter().find(|(id, _)| *id == usage.model).and_then(|(_, price)| *price);
                Amount::used(usage, price.as_ref())
            }
            CallEnd::MaybeBilled => None,
            CallEnd::Free => Some(Amount::default()),
        };
        let (turn, agent) = (self.call.turn, &self.agent);
        if used.is_none() {
            tracing::warn!(%turn, %agent, "a model call ended without a report of its use; it counts with what was reserved for it");
        }
        if let Err(error) = self.store.budget_settle(&self.call, used.as_ref()).await {
            tracing::warn!(%turn, %agent, %error, "what a model call used could not be stored; it counts with what was reserved for it");
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.open {
            let (turn, agent) = (self.call.turn, &self.agent);
            tracing::warn!(%turn, %agent, "a model call broke off; it counts with what was reserved for it until it is repeated");
        }
    }
}

/// One whose use is bounded.
struct Bound {
    /// As the store names it.
    payer: String,
    budget: Budget,
    is_user: bool,
}

/// A budget as people see it.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The agent, or nothing for a user.
    pub agent: Option<AgentId>,
    /// `platform:user id`; empty for an agent.
    pub user: String,
    /// The limits that hold now.
    pub budget: Budget,
    /// What was spent.
    pub spent: SpentRow,
    /// Its periods.
    pub periods: Periods,
    /// Who paused it.
    pub pause: Option<PauseRow>,
    /// Raises that hold now.
    pub raises: Vec<RaiseRow>,
}

impl Budgets {
    /// Over what is stored and served.
    pub fn new(registry: Registry, outbox: Outbox, clock: std::sync::Arc<DatabaseClock>, metrics: Metrics) -> Self {
        Self { registry, outbox, clock, metrics }
    }

    /// Whether a call of `models`, the first that answers, may be made now. When it may, what it takes at most is reserved.
    ///
    /// # Errors
    /// [`Refusal`]: it must not be made.
    pub async fn admit(
        &self,
        snapshot: &Snapshot,
        entry: &AgentEntry,
        mut models: Vec<Model>,
        wish: Wish,
    ) -> Result<Admitted, Refusal> {
        if snapshot.pause_of(entry.no).is_some() {
            return Err(Refusal::Failure(ModelFailure::paused(&entry.id)));
        }
        let bounds = self.bounds(snapshot, entry, wish.turn).await.map_err(Refusal::Store)?;
        let Some(max_output_tokens) = bounds.iter().map(|bound| bound.budget.output_tokens()).min() else {
            return Ok(Admitted { models, max_output_tokens: None, reservation: None });
        };
        if bounds.iter().any(|bound| bound.budget.binds_usd() && bound.budget.unpriced == Unpriced::Refuse) {
            let wanted = models.first().map(|model| model.id.clone()).unwrap_or_default();
            models.retain(|model| !matches!(&model.resolved, Resolved::Endpoint(endpoint) if endpoint.price.is_none()));
            if models.is_empty() {
                return Err(Refusal::Failure(ModelFailure::unpriced(&wanted)));
            }
        }
        let prices: Vec<(String, Option<Price>)> =
            models.iter().map(|model| (model.id.clone(), price_of(model))).collect();
        let ask = prices
            .iter()
            .map(|(_, price)| Amount::reserved(wish.input_bytes, max_output_tokens, price.as_ref()))
            .fold(Amount::default(), Amount::max);
        let periods = Periods::at(self.clock.now(), &snapshot.zone);
        let call = BudgetCall { turn: wish.turn, epoch: wish.epoch, step: wish.step, call: Uuid::now_v7() };
        let payers: Vec<_> = bounds.iter().map(|bound| (bound.payer.clone(), bound.budget.ceilings(&ask))).collect();
        let store = self.registry.store();
        match store.budget_reserve(&call, &payers, &periods, &ask, CALL_TIME).await.map_err(Refusal::Store)? {
            Reserved::In => {
                let agent = entry.id.clone();
                let reservation = Reservation { store: store.clone(), call, agent, prices, open: true };
                Ok(Admitted { models, max_output_tokens: Some(max_output_tokens), reservation: Some(reservation) })
            }
            Reserved::Fenced => Err(Refusal::Fenced),
            Reserved::Refused { payer, spent } => {
                let Some(bound) = bounds.get(payer) else { return Err(Refusal::Fenced) };
                let limit = bound.budget.exceeded(&spent, &ask).unwrap_or(Limit::UsdPerDay);
                let whose = if bound.is_user { Payer::User } else { Payer::Agent(&entry.id) };
                let text = budget::alert(&entry.id, whose, &bound.budget, limit, &periods, &snapshot.zone);
                let (payer, period) = (bound.payer.as_str(), limit.begins(&periods));
                let hit = BudgetHit { payer, limit, period, turn: wish.turn, agent_no: entry.no, text: &text };
                self.alert(&hit, &entry.id).await;
                let sentence = budget::refusal(whose, &bound.budget, limit, &ask, &periods, &snapshot.zone);
                Err(Refusal::Failure(ModelFailure::over_budget(sentence)))
            }
        }
    }

    /// Who is bounded in this turn: its agent, and the one who wrote its message where that is known.
    async fn bounds(&self, snapshot: &Snapshot, entry: &AgentEntry, turn: TurnId) -> store::Result<Vec<Bound>> {
        let mut bounds = Vec::new();
        if snapshot.models.budget_of(&entry.spec).binds() {
            let (budget, _) = self.limits(snapshot, entry);
            bounds.push(Bound { payer: agent_payer(entry.no), budget, is_user: false });
        }
        let budget = &snapshot.models.user_budget;
        if budget.binds()
            && let Some(payer) = user_payer(&self.registry.store().turn_payload(turn).await?)
        {
            bounds.push(Bound { payer, budget: budget.clone(), is_user: true });
        }
        Ok(bounds)
    }

    /// An agent's limits that hold now, and the raises among them.
    fn limits(&self, snapshot: &Snapshot, entry: &AgentEntry) -> (Budget, Vec<RaiseRow>) {
        let now = self.clock.now();
        let holding = snapshot.raises_of(entry.no).iter().filter(|raise| raise.until > now);
        let rows: Vec<RaiseRow> = holding.cloned().collect();
        let raises: Vec<Raise> =
            rows.iter().map(|row| Raise { limit: row.limit, value: row.value, until: row.until }).collect();
        (snapshot.models.budget_of(&entry.spec).raised(&raises, now), rows)
    }

    /// Says, once a payer, limit and period, that a limit was hit: to the home chat of the agent, where it has one.
    async fn alert(&self, hit: &BudgetHit<'_>, agent: &AgentId) {
        let (payer, what, turn) = (hit.payer, hit.limit.as_str(), hit.turn);
        match self.registry.store().budget_alert(hit).await {
            Ok(Alerted::Before) => {}
            Ok(alerted @ (Alerted::Noted | Alerted::Home)) => {
                self.metrics.budget_alert(agent.as_str(), what);
                let home = alerted == Alerted::Home;
                tracing::warn!(%agent, payer, limit = what, %turn, home, "a budget is used up");
                if home {
                    self.outbox.nudge();
                }
            }
            Err(error) => {
                tracing::warn!(%agent, payer, limit = what, %error, "that a budget is used up could not be noted")
            }
        }
    }

    /// How these agents stand.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`].
    pub async fn of_agents(&self, snapshot: &Snapshot, agents: &[&AgentEntry]) -> store::Result<Vec<Standing>> {
        let periods = Periods::at(self.clock.now(), &snapshot.zone);
        let payers: Vec<String> = agents.iter().map(|entry| agent_payer(entry.no)).collect();
        let spent = self.registry.store().budget_spent(&payers, &periods).await?;
        let standing = |(entry, spent): (&&AgentEntry, SpentRow)| {
            let (budget, raises) = self.limits(snapshot, entry);
            let pause = snapshot.pause_of(entry.no).cloned();
            Standing { agent: Some(entry.id.clone()), user: String::new(), budget, spent, periods, pause, raises }
        };
        Ok(agents.iter().zip(spent).map(standing).collect())
    }

    /// How users stand that spent something this month, behind the user `after`.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`].
    pub async fn of_users(&self, snapshot: &Snapshot, after: &str, limit: i64) -> store::Result<Vec<Standing>> {
        let periods = Periods::at(self.clock.now(), &snapshot.zone);
        let store = self.registry.store();
        let payers = store.budget_users(&periods, &format!("{USER}{after}"), limit).await?;
        let standing = |spent: SpentRow| {
            let user = spent.payer.strip_prefix(USER).unwrap_or_default().to_owned();
            let budget = snapshot.models.user_budget.clone();
            Standing { agent: None, user, budget, spent, periods, pause: None, raises: Vec::new() }
        };
        Ok(store.budget_spent(&payers, &periods).await?.into_iter().map(standing).collect())
    }

    /// Raises limits of an agent: each to a value, in nano-dollars or tokens, until `until` or else the end of its period.
    ///
    /// # Errors
    /// The first text says why a raise would do nothing; then nothing was changed.
    pub async fn raise(
        &self,
        entry: &AgentEntry,
        limits: &[(Limit, u64)],
        until: Option<Timestamp>,
        by: &str,
    ) -> store::Result<Result<(), String>> {
        let snapshot = self.registry.current();
        let now = self.clock.now();
        let periods = Periods::at(now, &snapshot.zone);
        let budget = snapshot.models.budget_of(&entry.spec);
        let mut rows = Vec::with_capacity(limits.len());
        for &(limit, value) in limits {
            let key = limit.as_str();
            let until = until.unwrap_or_else(|| limit.ends(&periods));
            match budget.limit(limit) {
                None => return Ok(Err(format!("agent {} has no limit {key}, so there is nothing to raise", entry.id))),
                Some(most) if most >= value => {
                    return Ok(Err(format!("{key} of agent {} is as high already; a raise is higher", entry.id)));
                }
                Some(_) if until <= now => return Ok(Err("until is in the past".to_owned())),
                Some(_) => rows.push(RaiseRow { agent_no: entry.no, limit, value, until, by: by.to_owned() }),
            }
        }
        self.registry.store().budget_raise(&rows).await?;
        tracing::info!(agent = %entry.id, by, "budget limits were raised");
        self.registry.moved().await?;
        Ok(Ok(()))
    }

    /// Lets an agent ask no model any more, or again. True: it was paused before.
    ///
    /// # Errors
    /// [`store::Error::Unavailable`]: it may be done; repeat it.
    pub async fn set_paused(&self, entry: &AgentEntry, paused: bool, by: &str) -> store::Result<bool> {
        let store = self.registry.store();
        let changed =
            if paused { store.budget_pause(entry.no, by).await? } else { store.budget_resume(entry.no).await? };
        if changed {
            tracing::info!(agent = %entry.id, paused, by, "an agent's model calls were paused or resumed");
        }
        self.registry.moved().await?;
        Ok(changed != paused)
    }
}

fn price_of(model: &Model) -> Option<Price> {
    match &model.resolved {
        Resolved::Endpoint(endpoint) => endpoint.price,
        Resolved::Echo | Resolved::Unserved => Some(Price::default()),
    }
}

fn agent_payer(agent_no: i32) -> String {
    format!("agent:{agent_no}")
}

/// The one who wrote a turn's message, or the one that set off what an agent asks, where it came from a platform that says who.
fn user_payer(payload: &[u8]) -> Option<String> {
    let TurnInput { source, behalf, .. } = serde_json::from_slice(payload).ok()?;
    let source = behalf.or(source)?;
    let user: String = source.user_id?.chars().filter(|c| *c != '\0').take(USER_ID).collect();
    Some(format!("{USER}{}:{user}", source.platform))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sets_off_what_agents_ask_pays_for_it() {
        let payer = |payload: &str| user_payer(payload.as_bytes());
        let asked = r#"{"text": "x", "source": {"platform": "agent", "user_id": "main"}"#;
        assert_eq!(payer(&format!("{asked}}}")).as_deref(), Some("user:agent:main"));
        let behalf = r#""behalf": {"platform": "telegram", "user_id": "7"}"#;
        assert_eq!(payer(&format!("{asked}, {behalf}}}")).as_deref(), Some("user:telegram:7"));
        assert_eq!(payer(&format!(r#"{asked}, "behalf": {{"platform": "api_server"}}}}"#)), None);
    }
}
