//! A model that judges an agent's dangerous calls before a person is asked (`approvals.mode: smart`).
//!
//! Called by dispatch with a call that a rule has found dangerous; what is hardline or denied never comes here. It owns nothing but
//! handles. Always true: the call is made under the agent's budget and its turn's usage, outside any transaction, within
//! [`TIME`]; whatever is no plain verdict (an error, a budget, silence, any other words) is [`Opinion::Escalate`], with what
//! happened as its reason. The words on both sides are `hermes_core::approvals::smart`'s. It stores nothing and asks nobody else.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use hermes_core::approvals::smart::{self, MAX_ANSWER, Opinion, Questioned};
use hermes_core::config::{resolve_models, with_own_model};
use hermes_core::turn::{Role, Usage};

use crate::budget::{Admitted, Budgets, CallEnd, Refusal, Wish};
use crate::models::{Broker, Message, ModelEvent, ModelFailure, ModelTarget, Request, Shown, kind_of};
use crate::registry::{AgentEntry, Snapshot};
use crate::store::TurnId;
use crate::telemetry::Metrics;

/// Longest time for a verdict; a person who is asked instead waits that much longer.
pub const TIME: Duration = Duration::from_secs(20);
/// Largest answer, tokens: two lines, and what a model thinks before them.
const OUTPUT_TOKENS: u64 = 4096;

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Judge {
    budgets: Budgets,
    broker: Broker,
    metrics: Metrics,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Judge")
    }
}

/// Whose call is judged.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// What holds now.
    pub snapshot: &'a Snapshot,
    /// The agent.
    pub agent: &'a AgentEntry,
    /// Who judges, as a model id; nothing: the agent's own model.
    pub model: Option<&'a str>,
    /// The turn.
    pub turn: TurnId,
    /// Its fence.
    pub epoch: i64,
    /// The step that the call would be; no model's reply has its number.
    pub step: i32,
}

impl Judge {
    /// Over these.
    pub fn new(budgets: Budgets, broker: Broker, metrics: Metrics) -> Self {
        Self { budgets, broker, metrics }
    }

    /// What a model says of a call, and what that used.
    pub async fn opinion(&self, case: Case<'_>, call: &Questioned<'_>) -> (Opinion, Option<Usage>) {
        let mark = format!("{:032x}", rand::random::<u128>());
        let Some((instructions, judged)) = smart::ask(call, &mark) else {
            return (Opinion::Escalate("not judged: the call is too long for a model to judge it".to_owned()), None);
        };
        match self.said(case, instructions, judged).await {
            Ok((answer, usage)) => {
                let opinion = smart::read(&answer, &mark).unwrap_or_else(|| {
                    Opinion::Escalate(
                        "not judged: the model's answer was not in the form that was asked for".to_owned(),
                    )
                });
                (opinion, usage)
            }
            Err(why) => (Opinion::Escalate(format!("not judged: {why}")), None),
        }
    }

    /// The model's words; of an answer that is too long to be one only the beginning.
    async fn said(&self, case: Case<'_>, system: String, user: String) -> Result<(String, Option<Usage>), String> {
        let Case { snapshot, agent, model, turn, epoch, step } = case;
        let spec = with_own_model(&snapshot.models, &agent.spec, model);
        let models = resolve_models(&snapshot.models, &spec);
        let input_bytes = u64::try_from(system.len().saturating_add(user.len())).unwrap_or(u64::MAX);
        let admitted = self.budgets.admit(snapshot, agent, models, Wish { turn, epoch, step, input_bytes }).await;
        let Admitted { models, max_output_tokens, reservation } = admitted.map_err(|refusal| match refusal {
            Refusal::Failure(failure) => failure.message,
            Refusal::Fenced => "a later attempt of the turn asks".to_owned(),
            Refusal::Store(error) => error.to_string(),
        })?;
        let kind = models.first().map_or("none", |model| kind_of(&model.resolved));
        let targets = models.into_iter().map(|model| ModelTarget::of(model, &agent.id)).collect();
        let said = |role, text| Message::Said { role, text };
        let request = Request {
            messages: vec![said(Role::System, system), said(Role::User, user)],
            shown: Shown::default(),
            tools: Vec::new(),
            max_output_tokens: Some(max_output_tokens.unwrap_or(OUTPUT_TOKENS).min(OUTPUT_TOKENS)),
        };
        let began = Instant::now();
        let events = self.broker.generate_by_first(targets, &agent.id, request);
        let heard = tokio::time::timeout(TIME, hear(events)).await;
        let (result, end) = match &heard {
            Ok(Heard::All(_, usage)) => ("done", CallEnd::Answered(usage)),
            Ok(Heard::Failed(failure, begun)) => {
                let billed = failure.may_be_billed(*begun);
                (failure.reason.as_str(), if billed { CallEnd::MaybeBilled } else { CallEnd::Free })
            }
            Ok(Heard::TooMuch) => ("too_long", CallEnd::MaybeBilled),
            Err(_) => ("timeout", CallEnd::MaybeBilled),
        };
        self.metrics.model_call(kind, result, began.elapsed());
        if let CallEnd::Answered(usage) = end {
            self.metrics.model_tokens("input", usage.input_tokens);
            self.metrics.model_tokens("output", usage.output_tokens);
        }
        if let Some(reservation) = reservation {
            reservation.settle(end).await;
        }
        match heard {
            Ok(Heard::All(answer, usage)) => Ok((answer, Some(usage))),
            Ok(Heard::Failed(failure, _)) => Err(failure.message),
            Ok(Heard::TooMuch) => Err("the model's answer is too long".to_owned()),
            Err(_) => Err(format!("the model did not answer within {} s", TIME.as_secs())),
        }
    }
}

/// What came of a call.
enum Heard {
    All(String, Usage),
    /// With whether there was any text before.
    Failed(ModelFailure, bool),
    TooMuch,
}

async fn hear(mut events: BoxStream<'static, ModelEvent>) -> Heard {
    let mut answer = String::new();
    loop {
        match events.next().await {
            Some(ModelEvent::Delta(text)) => answer.push_str(&text),
            Some(ModelEvent::Done { usage, .. }) => return Heard::All(answer, usage),
            Some(ModelEvent::Failed(failure)) => return Heard::Failed(failure, !answer.is_empty()),
            // A call ends with one of these; without a model there is none.
            None => return Heard::All(answer, Usage::default()),
        }
        if answer.len() > MAX_ANSWER {
            return Heard::TooMuch;
        }
    }
}
